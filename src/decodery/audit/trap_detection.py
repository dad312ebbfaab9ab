"""Whether a model was trained on documents with traps: are the published traps likelier than their twins?

Source: Meeus et al., arXiv 2402.09363, section 5, and its repository for ratio and log ratio. Every token is scored, behind
the token that texts begin with, under both models alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from decodery.audit.evidence import AT_ONCE, Tell, silent
from decodery.audit.formulas import least_likely
from decodery.audit.measures import MeasuredRate, auc, measured
from decodery.audit.traps import MEMBER, TWIN, Trap, opening
from decodery.errors import BadInput
from decodery.evaluation.intervals import Array

if TYPE_CHECKING:
    from decodery.language_model import LanguageModel

SCORES = ("ratio", "log-ratio", "loss", "min-k")


@dataclass(frozen=True)
class TrapCell:
    """Members of one length and number of repetitions against all twins of that length. areas: score -> area, 95 %."""

    length: int
    repetitions: int
    members: int
    twins: int
    areas: Mapping[str, MeasuredRate]


@dataclass(frozen=True)
class TrapReport:
    """cells: by length and repetitions. buckets: bucket of perplexity -> area of the ratio, all members. rank: Spearman's
    correlation of repetitions and area of the ratio, by length; bucket_correlation: Pearson's of bucket and area; None where
    there are fewer than two. values: score -> [traps], lower for members."""

    model: str
    reference: str
    cells: tuple[TrapCell, ...]
    buckets: Mapping[int, MeasuredRate]
    rank: Mapping[int, float]
    bucket_correlation: float | None
    values: Mapping[str, Array]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "model": self.model,
            "reference": self.reference,
            "cells": [
                {**asdict(cell), "areas": {name: asdict(area) for name, area in cell.areas.items()}}
                for cell in self.cells
            ],
            "buckets": {str(bucket): asdict(area) for bucket, area in self.buckets.items()},
            "spearman": {str(length): value for length, value in self.rank.items()},
            "bucket_correlation": self.bucket_correlation,
        }


def trap_values(
    lm: LanguageModel,
    reference: LanguageModel,
    traps: Sequence[Trap],
    prefixes: Sequence[str] | None = None,
    longest: int = 64,
    tell: Tell = silent,
) -> dict[str, Array]:
    """Each score of each trap, lower for members: score -> [traps].

    prefixes: what stands before each, of which the last `longest` tokens are read; None: nothing. The text of a trap is split
    by each model's own tokenizer.
    """
    own, other = (_read(each, traps, prefixes, longest, tell) for each in (lm, reference))
    loss, calm = (np.array([-float(one.mean()) for one in listed]) for listed in (own, other))
    return {
        "ratio": np.exp(loss - calm),
        "log-ratio": loss / calm,
        "loss": loss,
        "min-k": np.array([-least_likely(one) for one in own]),
    }


def _read(
    lm: LanguageModel, traps: Sequence[Trap], prefixes: Sequence[str] | None, longest: int, tell: Tell
) -> list[Array]:
    """The log probabilities of each trap's tokens."""
    first, found = opening(lm), []
    for start in range(0, len(traps), AT_ONCE):
        tell(lm.name, start, len(traps))
        part = traps[start : start + AT_ONCE]
        if prefixes is None:
            scored = lm.score([lm.encode(trap.text) for trap in part], prompt=[first])
        else:
            given = [lm.encode(text)[-longest:] if text else [] for text in prefixes[start : start + AT_ONCE]]
            scored = [
                lm.score(lm.encode(trap.text), prompt=[first, *ids]) for trap, ids in zip(part, given, strict=True)
            ]
        found += [one.logprobs.double().numpy() for one in scored]
    return found


def twin_prefixes(traps: Sequence[Trap], before: Mapping[str, str], seed: int = 0) -> list[str]:
    """What stands before each trap: of a member what does in its document, of a twin what does before a random member of its
    length and bucket. before: as `contexts` gives it. Raises BadInput where a member is not in it."""
    chance = np.random.Generator(np.random.Philox(key=seed))
    members = [trap for trap in traps if trap.split == MEMBER]
    missing = next((trap for trap in members if trap.text not in before), None)
    if missing is not None:
        raise BadInput(f"the record does not say where the trap {missing.text[:40]!r} stands.")
    found = []
    for trap in traps:
        like = [m for m in members if (len(m.ids), m.bucket) == (len(trap.ids), trap.bucket)]
        if trap.split == TWIN and not like:
            raise BadInput(f"the twin {trap.text[:40]!r} has no member of its length and perplexity.")
        found.append(before[trap.text if trap.split == MEMBER else like[int(chance.integers(len(like)))].text])
    return found


def detect(
    lm: LanguageModel,
    reference: LanguageModel,
    traps: Sequence[Trap],
    prefixes: Sequence[str] | None = None,
    longest: int = 64,
    tell: Tell = silent,
) -> TrapReport:
    """Test a model for traps. reference: a model that has not seen them, such as the one that wrote them. Raises BadInput
    where there are no members or no twins."""
    return report_of(lm.name, reference.name, traps, trap_values(lm, reference, traps, prefixes, longest, tell))


def report_of(model: str, reference: str, traps: Sequence[Trap], values: Mapping[str, Array]) -> TrapReport:
    """What scores of traps say. values: score -> [traps], lower for members."""
    from scipy.stats import pearsonr, spearmanr

    lengths = np.array([len(trap.ids) for trap in traps])
    twins = np.array([trap.split == TWIN for trap in traps])
    copies = np.array([trap.repetitions for trap in traps])
    buckets = np.array([trap.bucket for trap in traps])
    if not twins.any() or twins.all():
        raise BadInput("detection needs members and twins; the file has one of them alone.")

    def area(name: str, chosen: Array) -> MeasuredRate:
        return measured(auc, -values[name][chosen], (~twins[chosen]).astype(float))

    cells, rank = [], {}
    for length in sorted(set(lengths.tolist())):
        alike = lengths == length
        if not (twins & alike).any():
            raise BadInput(f"there are no twins of {length} tokens.")
        listed = sorted(set(copies[alike & ~twins].tolist()))
        for repetitions in listed:
            chosen = alike & (twins | (copies == repetitions))
            areas = {name: area(name, chosen) for name in values}
            cells.append(
                TrapCell(length, repetitions, int((chosen & ~twins).sum()), int((chosen & twins).sum()), areas)
            )
        found = [cell.areas["ratio"].value for cell in cells if cell.length == length]
        if len(set(found)) > 1:
            rank[length] = float(spearmanr(listed, found).statistic)
    both = [b for b in sorted(set(buckets.tolist())) if 0 < twins[buckets == b].sum() < (buckets == b).sum()]
    by_bucket = {bucket: area("ratio", buckets == bucket) for bucket in both}
    heights = [one.value for one in by_bucket.values()]
    correlation = float(pearsonr(both, heights).statistic) if len(set(heights)) > 1 else None
    return TrapReport(model, reference, tuple(cells), by_bucket, rank, correlation, values)
