"""Planted faults of the verifiers of several drafts; see `decodery.testing.faults`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from decodery.sampling.noise import Chance
from decodery.speculative.draft import Draft, Siblings
from decodery.speculative.optimal_multi_draft import OptimalMultiDraft
from decodery.speculative.spectr import Spectr
from decodery.speculative.verifiers import KSeq, TargetLaws, TreeRejection, Verdict, Verifier
from decodery.speculative.verifiers.rejection import residual


class _UnitFactor(KSeq):
    """Tests every draft against the target itself, as if it were the only one."""

    def factor(self, p: Tensor, q: Tensor, count: int) -> float:
        return 1.0


class _PlainResidual(KSeq):
    """Draws the replacement from (p - q)+, the residual of a single draft."""

    def residual(self, p: Tensor, q: Tensor, factor: float, count: int) -> Tensor:
        return residual(p, q)


class _UncheckedKSeq(KSeq):
    """Takes any drafts for independent ones."""

    def verify(self, draft: Draft, target: TargetLaws, chance: Chance, position: int) -> Verdict:
        return super().verify(_as_independent(draft), target, chance, position)


class _GreedyAsSamples(TreeRejection):
    """Judges the likeliest tokens as if they had been drawn."""

    def verify(self, draft: Draft, target: TargetLaws, chance: Chance, position: int) -> Verdict:
        return super().verify(_as_independent(draft), target, chance, position)


def _as_independent(draft: Draft) -> Draft:
    return Draft(draft.tokens, draft.parents, draft.q, Siblings.WITH_REPLACEMENT) if len(draft) else draft


@dataclass(frozen=True)
class KSeqUnitFactor(Spectr):
    """Tests several drafts with division factor 1."""

    name: ClassVar[str] = "fault-k-seq-unit-factor"
    fault: ClassVar[Any] = _UnitFactor

    def judge(self, draft: Draft, greedy: bool) -> Verifier:
        verifier: Verifier = super().judge(draft, greedy)
        return self.fault() if isinstance(verifier, KSeq) else verifier


@dataclass(frozen=True)
class KSeqPlainResidual(KSeqUnitFactor):
    """Replaces refused drafts by the residual of a single draft."""

    name: ClassVar[str] = "fault-k-seq-plain-residual"
    fault: ClassVar[Any] = _PlainResidual


@dataclass(frozen=True)
class GreedySetAsSamples(OptimalMultiDraft):
    """Judges the greedy set by recursive rejection."""

    name: ClassVar[str] = "fault-greedy-set-as-samples"

    def judge(self, draft: Draft, greedy: bool) -> Verifier:
        if greedy or draft.siblings is not Siblings.GREEDY:
            return super().judge(draft, greedy)
        return _GreedyAsSamples()
