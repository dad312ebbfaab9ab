"""The audit of a claim that texts were trained on: first whether words alone tell them from others, then what the model says.

Source: Meeus et al., arXiv 2406.17975. A score of the model that is above chance says something of membership only where the
test of words is at chance on the same texts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from decodery.audit.discontinuity import Jump, jump
from decodery.audit.evidence import Evidence, ScoreOptions, Tell, silent
from decodery.audit.items import AuditText
from decodery.audit.measures import MeasuredRate, auc, measured, true_positives
from decodery.audit.needed import statistics
from decodery.audit.scores import SCORES, chosen_scores
from decodery.audit.shift import FOLDS, LEVEL, SEED, UNUSABLE, ShiftTest, shift_test
from decodery.errors import BadInput
from decodery.evaluation.intervals import Array

if TYPE_CHECKING:
    import datetime

    from decodery.language_model import LanguageModel

SHIFT, MEMBERSHIP, NEITHER = "shift, not membership", "membership", "no sign of membership"
RATES = (0.1, 0.01)
"""False-positive rates at which true positives are counted."""
ERROR = 0.01
"""Chance of calling anything a membership where there is none, all scores together."""


@dataclass(frozen=True)
class ScoreResult:
    """One score. auc, caught: with intervals of 95 %; caught: rate of false positives -> true positives. p: of Mann and
    Whitney's test that members are no higher; adjusted: the same by Holm over all scores. documents: area of the votes of
    documents, where texts are parts of some. jump: at the cut-off, where there is one."""

    name: str
    auc: MeasuredRate
    caught: Mapping[float, MeasuredRate]
    p: float
    adjusted: float
    documents: MeasuredRate | None = None
    jump: Jump | None = None


@dataclass(frozen=True)
class MembershipReport:
    """What an audit found. members, others: how many texts. left_out: score -> why it was not computed. values: score ->
    [n]."""

    model: str
    members: int
    others: int
    shift: ShiftTest
    scores: tuple[ScoreResult, ...]
    left_out: Mapping[str, str]
    values: Mapping[str, Array]

    @property
    def verdict(self) -> str:
        """SHIFT where words alone tell the texts apart, else MEMBERSHIP where a score does, else NEITHER."""
        if self.shift.found:
            return SHIFT
        return MEMBERSHIP if any(score.adjusted < ERROR for score in self.scores) else NEITHER

    @property
    def reason(self) -> str:
        """The verdict in a sentence."""
        area = (
            f"{self.shift.auc.value:.2f} ({LEVEL:.0%} interval {self.shift.auc.low:.2f} to {self.shift.auc.high:.2f})"
        )
        if self.verdict == SHIFT:
            small = (
                "" if self.shift.unusable else f"; it is a slight one, below {UNUSABLE:g}, yet no score is beyond doubt"
            )
            return (
                f"words alone, without the model, tell the two sets apart with an area of {area}, so that no score of the "
                f"model shows membership on them{small}."
            )
        if self.verdict == MEMBERSHIP:
            names = ", ".join(score.name for score in self.scores if score.adjusted < ERROR)
            return f"words alone do not tell the two sets apart, {area}; the model's scores do: {names}."
        return f"neither words, {area}, nor any score of the model tell the two sets apart."

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "model": self.model,
            "members": self.members,
            "others": self.others,
            "verdict": self.verdict,
            "reason": self.reason,
            "shift": {
                "auc": asdict(self.shift.auc),
                "level": LEVEL,
                "words": [asdict(word) for word in self.shift.words],
            },
            "scores": [
                {
                    "name": score.name,
                    "auc": asdict(score.auc),
                    "tpr": {f"{rate:g}": asdict(found) for rate, found in score.caught.items()},
                    "p": score.p,
                    "adjusted_p": score.adjusted,
                    **({} if score.documents is None else {"documents": asdict(score.documents)}),
                    **({} if score.jump is None else {"jump": asdict(score.jump)}),
                }
                for score in self.scores
            ],
            "left_out": dict(self.left_out),
        }

    def write_json(self, path: Path) -> None:
        """The report, with what each score says of each text."""
        told = {**self.as_dict(), "values": {name: values.tolist() for name, values in self.values.items()}}
        path.write_text(json.dumps(told, indent=1) + "\n", "utf-8")


def audit_membership(
    lm: LanguageModel,
    items: Sequence[AuditText],
    options: ScoreOptions | None = None,
    scores: Sequence[str] = (),
    cutoff: datetime.date | None = None,
    tell: Tell = silent,
) -> MembershipReport:
    """Audit a claim of membership.

    items: texts with their labels; parts of one document have its name. options: what scores can be given. scores: names of
    `SCORES`; none: all that need nothing that is missing, but the dear ones. cutoff: of dated items, at which each score's
    jump is estimated. Raises BadInput where a class is too small or a score cannot be computed, and what `lm.score` raises.
    """
    options = options or ScoreOptions()
    texts, members = [item.text for item in items], np.array([float(item.member) for item in items])
    if not items:
        raise BadInput("there are no texts to audit.")
    names, left_out = chosen_scores(tuple(scores), options, min(len(text.encode()) for text in texts))
    documents = [item.document or str(place) for place, item in enumerate(items)]
    tell("words", 0, 1)
    shift = shift_test(texts, [item.member for item in items], documents)
    evidence = Evidence(lm, texts, options, tell)
    values = {name: np.asarray(SCORES[name].of(evidence), dtype=np.float64) for name in names}
    ps = [mann_whitney(found, members) for found in values.values()]
    adjusted = statistics("statsmodels.stats.multitest").multipletests(ps, method="holm")[1] if ps else []
    results = []
    for (name, found), p, holm in zip(values.items(), ps, adjusted, strict=True):
        several = len(set(documents)) < len(documents)
        results.append(
            ScoreResult(
                name,
                measured(auc, found, members),
                {rate: measured(true_positives(rate), found, members) for rate in RATES},
                p,
                float(holm),
                document_votes(found, members, documents) if several else None,
                None if cutoff is None else jump([item.date for item in items if item.date], found, cutoff),
            )
        )
    count = int(members.sum())
    return MembershipReport(lm.name, count, len(items) - count, shift, tuple(results), left_out, values)


def mann_whitney(scores: Array, members: Array) -> float:
    """The chance of members so much higher where both come from one law."""
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(scores[members == 1], scores[members == 0], alternative="greater").pvalue)


def document_votes(scores: Array, members: Array, documents: Sequence[str], seed: int = SEED) -> MeasuredRate | None:
    """The area of documents by the share of their parts that are called members, by a threshold that others gave.

    The threshold calls most parts of the other folds' documents right; five folds, so that each document is judged by a
    threshold it had no part in. None where a class has fewer documents than folds.
    """
    names = np.array(documents)
    listed = np.unique(names)
    labels = np.array([members[names == name].mean() for name in listed])
    if not set(labels) <= {0.0, 1.0}:
        raise BadInput("a document is both a member and none; all its parts are of one kind.")
    if min(int(labels.sum()), int((1 - labels).sum())) < FOLDS:
        return None
    votes = np.empty(len(listed))
    folds = statistics("sklearn.model_selection").StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    for train, test in folds.split(listed, labels):
        known = np.isin(names, listed[train])
        bound = best_threshold(scores[known], members[known])
        votes[test] = [(scores[names == listed[place]] >= bound).mean() for place in test]
    return measured(auc, votes, labels)


def best_threshold(scores: Array, members: Array) -> float:
    """The least score from which on texts are called members so that most of these calls are right."""
    bounds = np.unique(scores)
    right = [float(((scores >= bound) == (members == 1)).mean()) for bound in bounds]
    return float(bounds[int(np.argmax(right))])
