"""All membership scores by name, and what each needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

import numpy as np

from decodery.audit import formulas
from decodery.audit.evidence import Evidence, ScoreOptions
from decodery.audit.probe import probe_scores
from decodery.errors import BadInput, near
from decodery.evaluation.intervals import Array


@dataclass(frozen=True)
class MembershipScore:
    """A score. of: what it makes of the evidence, [n], members expected higher. needs: options without which it cannot be.
    long: it says nothing of texts below `formulas.HEADER` bytes. dear: it takes many passes for each text, so it is computed
    only where it is asked for."""

    about: str
    of: Callable[[Evidence], Array]
    needs: tuple[str, ...] = ()
    long: bool = False
    dear: bool = False


def _each(formula: Callable[[formulas.TokenRecord], float]) -> Callable[[Evidence], Array]:
    return lambda evidence: np.array([formula(record) for record in evidence.own])


def _losses(evidence: Evidence) -> Array:
    return np.array([record.loss for record in evidence.own])


def _lowercase(evidence: Evidence) -> Array:
    return np.asarray(-_losses(evidence) / np.array([record.loss for record in evidence.lowered]))


def _ratio(evidence: Evidence) -> Array:
    own, other = evidence.losses()
    return np.asarray(-own / other)


def _difference(evidence: Evidence) -> Array:
    own, other = evidence.losses()
    return np.asarray(other - own)


def _pac(evidence: Evidence) -> Array:
    own = np.array([formulas.polarised(record.logprobs) for record in evidence.own])
    changed = [np.mean([formulas.polarised(record.logprobs) for record in records]) for records in evidence.shuffled]
    return np.asarray(np.array(changed) - own)


def _calibrated(evidence: Evidence) -> Array:
    corpus = [evidence.lm.encode(text) for text in evidence.options.background]
    known, unseen = formulas.frequencies(corpus, evidence.lm.network.vocabulary)
    return np.array([formulas.calibrated(record, known, unseen) for record in evidence.own])


SCORES: Mapping[str, MembershipScore] = {
    "loss": MembershipScore("minus the loss, nats a token", lambda evidence: -_losses(evidence)),
    "zlib": MembershipScore("loss over how well zlib compresses", _each(formulas.zlib_ratio), long=True),
    "zlib-total": MembershipScore("log probability over zlib's bytes", _each(formulas.zlib_total), long=True),
    "lowercase": MembershipScore("loss over that of the text in lower case", _lowercase),
    "ratio": MembershipScore("loss over the reference model's", _ratio, ("reference",)),
    "diff": MembershipScore("the reference model's loss minus the loss", _difference, ("reference",)),
    "min-k": MembershipScore("the least likely fifth of tokens", _each(lambda r: formulas.least_likely(r.logprobs))),
    "min-k++": MembershipScore(
        "the same of standardised log probabilities", _each(lambda r: formulas.least_likely(formulas.standardised(r)))
    ),
    "surp": MembershipScore("unlikely tokens where the model was sure", _each(formulas.surprising)),
    "recall": MembershipScore(
        "loss behind non-members over the loss", lambda e: e.after_others / _losses(e), ("shots",)
    ),
    "con-recall": MembershipScore(
        "loss behind non-members minus that behind members, over the loss",
        lambda e: (e.after_others - e.after_members) / _losses(e),
        ("shots", "member_shots"),
    ),
    "dc-pdd": MembershipScore("probability of rare tokens", _calibrated, ("background",)),
    "neighbourhood": MembershipScore(
        "minus the loss, above that of neighbours", lambda e: -_losses(e) - e.near, ("masked_model",), dear=True
    ),
    "pac": MembershipScore("how swapped words polarise log probabilities", _pac, dear=True),
    "samia": MembershipScore("how much of its second half is written", lambda e: e.repeated, dear=True),
    "gradnorm": MembershipScore("minus the norms of the loss's gradients", lambda e: -e.gradients, dear=True),
    "probe": MembershipScore(
        "hidden rows like those of texts trained on",
        lambda e: probe_scores(e.lm, e.texts, e.options.probe, e.options.seed, tell=e.tell),
        ("probe",),
        dear=True,
    ),
}


def chosen_scores(names: tuple[str, ...], options: ScoreOptions, shortest: int) -> tuple[list[str], dict[str, str]]:
    """The scores to compute, and why each of the others is left out. names: those asked for; none: all that are not dear and
    can be. shortest: bytes of the shortest text. Raises BadInput where one that is asked for cannot be."""
    given = {item.name for item in fields(options) if getattr(options, item.name) not in (None, (), "")}
    for name in names:
        if name not in SCORES:
            raise BadInput(f"there is no membership score {name!r}; {near(name, SCORES)}")
    found, without = [], {}
    for name, score in SCORES.items():
        lacking = [need for need in score.needs if need not in given]
        why = ""
        if lacking:
            why = f"it needs {' and '.join(lacking).replace('_', ' ')}"
        elif score.long and shortest < formulas.HEADER:
            why = f"a text has {shortest} bytes, and below {formulas.HEADER} zlib's size is that of its header"
        elif not names and score.dear:
            why = "it is dear, and computed where it is named"
        if not why and (not names or name in names):
            found.append(name)
        elif why and name in names:
            raise BadInput(f"the score {name} cannot be computed: {why}.")
        elif why:
            without[name] = why
    return found, without
