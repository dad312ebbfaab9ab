"""Planted faults: methods that are wrong in the ways in which published code has been wrong.

They are the negative controls of the law checks: a check that lets one of them pass checks nothing. Each claims what the
method it was made from claims. They are not registered; pass the object itself as `method`.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from decodery.engine.method import Method
from decodery.engine.request import Request
from decodery.models.forward import Forward, Scores
from decodery.sampling.noise import Chance, Noise, Stage
from decodery.speculative.draft import ROOT, Draft
from decodery.speculative.draft_laws.base import Path
from decodery.speculative.draft_laws.networks import NetworkLaws
from decodery.speculative.draft_model import ChainDrafter, DraftModel, Length
from decodery.speculative.loop import ProcessedLaws
from decodery.speculative.token_recycling import TokenRecycling
from decodery.speculative.verifiers import TargetLaws, Verdict, Verifier, verifier_for
from decodery.speculative.verifiers.rejection import residual


class ChainFault:
    """Speculative sampling of a chain with its steps open to being got wrong. As it stands it is right."""

    def verify(self, draft: Draft, target: TargetLaws, chance: Chance, position: int) -> Verdict:
        assert draft.q is not None
        for node, token in enumerate(draft.tokens):
            p, q = self.law(target, node).exp().double(), draft.q[node - 1].double()
            if not self.accepts(float(p[token]), float(q[token]), chance, position + node):
                rest = self.leftover(p, q, target, node)
                return Verdict(tuple(range(node)), chance.choose(rest, position + node, Stage.RESIDUAL))
        depth = len(draft)
        bonus = chance.choose(self.bonus(target, depth).exp(), position + depth, Stage.TARGET)
        return Verdict(tuple(range(depth)), bonus)

    def law(self, target: TargetLaws, row: int) -> Tensor:
        """Log probabilities that a drafted token is judged by."""
        return target[row]

    def accepts(self, p: float, q: float, chance: Chance, position: int) -> bool:
        return chance.accept(p / q, position)

    def leftover(self, p: Tensor, q: Tensor, target: TargetLaws, row: int) -> Tensor:
        """The law of the token that replaces a refused one."""
        return residual(p, q)

    def bonus(self, target: TargetLaws, row: int) -> Tensor:
        """Log probabilities of the token after an accepted draft."""
        return target[row]


def _raw(target: TargetLaws, row: int) -> Tensor:
    """The softmax of the unprocessed scores."""
    assert isinstance(target, ProcessedLaws)
    return target.logits[row].float().log_softmax(dim=-1)


class _InvertedRatio(ChainFault):
    def accepts(self, p: float, q: float, chance: Chance, position: int) -> bool:
        return chance.accept(q / p if p > 0 else 1.0, position)


class _ResidualFromTarget(ChainFault):
    def leftover(self, p: Tensor, q: Tensor, target: TargetLaws, row: int) -> Tensor:
        return p


class _NoResidual(ChainFault):
    def leftover(self, p: Tensor, q: Tensor, target: TargetLaws, row: int) -> Tensor:
        return target[row + 1].exp().double()


class _IgnoresTemperature(ChainFault):
    def law(self, target: TargetLaws, row: int) -> Tensor:
        return _raw(target, row)

    def bonus(self, target: TargetLaws, row: int) -> Tensor:
        return _raw(target, row)


class _UnwarpedBonus(ChainFault):
    def bonus(self, target: TargetLaws, row: int) -> Tensor:
        return _raw(target, row)


class _ForgetsPrefix(ChainFault):
    def law(self, target: TargetLaws, row: int) -> Tensor:
        assert isinstance(target, ProcessedLaws)
        return target.request.law.log_probabilities(target.logits[row])

    def bonus(self, target: TargetLaws, row: int) -> Tensor:
        return self.law(target, row)


class _AcceptsImpossible(ChainFault):
    def accepts(self, p: float, q: float, chance: Chance, position: int) -> bool:
        if isinstance(chance, Noise):
            return chance.uniform(position, Stage.ACCEPT) <= p / q
        return chance.accept(p / q, position)


class _SharedNoise(ChainFault):
    def accepts(self, p: float, q: float, chance: Chance, position: int) -> bool:
        if isinstance(chance, Noise):
            return chance.uniform(position, Stage.RESIDUAL) < p / q
        return chance.accept(p / q, position)


class _MatchThenDraw:
    """Accepts a deterministic child with its probability, and draws from the full law where it refused."""

    def verify(self, draft: Draft, target: TargetLaws, chance: Chance, position: int) -> Verdict:
        node = ROOT
        path: list[int] = []
        while True:
            p = target[node + 1].exp().double()
            place = position + len(path)
            for order, child in enumerate(draft.children.get(node, ())):
                if chance.accept(float(p[draft.tokens[child]]), place, order):
                    path.append(child)
                    node = child
                    break
            else:
                return Verdict(tuple(path), chance.choose(p, place, Stage.TARGET))


class _UnchangedSiblings:
    """Judges every sibling by the same law, as if nothing had been refused before it."""

    def verify(self, draft: Draft, target: TargetLaws, chance: Chance, position: int) -> Verdict:
        assert draft.q is not None
        node = ROOT
        path: list[int] = []
        while True:
            p = target[node + 1].exp().double()
            place = position + len(path)
            children = draft.children.get(node, ())
            for order, child in enumerate(children):
                token = draft.tokens[child]
                if chance.accept(float(p[token] / draft.q[node][token]), place, order):
                    path.append(child)
                    node = child
                    break
            else:
                rest = residual(p, draft.q[node].double()) if children else p
                return Verdict(tuple(path), chance.choose(rest, place, Stage.RESIDUAL))


class _AcceptsAll:
    """Takes every drafted token as right, and the target's own after it."""

    def verify(self, draft: Draft, target: TargetLaws, chance: Chance, position: int) -> Verdict:
        last = len(draft)
        return Verdict(tuple(range(last)), int(target[last].argmax()))


class _UntruncatedLaws(NetworkLaws):
    """Remembers what each law was before truncation."""

    def root(self, tokens: Sequence[int]) -> Generator[Forward, Scores, Tensor | None]:
        self.untruncated: dict[Path, Tensor] = {}
        return super().root(tokens)

    def processed(self, row: Tensor, path: Path) -> Tensor | None:
        if not self.request.law.greedy:
            self.untruncated[path] = (row.float() / self.request.settings.temperature).softmax(dim=-1)
        return super().processed(row, path)


class _UntruncatedDrafter(ChainDrafter):
    """Draws from the truncated draft law, and reports the draft law before truncation."""

    def propose(self, tokens: Sequence[int], depth: int) -> Generator[Forward, Scores, Draft]:
        draft = yield from super().propose(tokens, depth)
        if draft.q is None:
            return draft
        assert isinstance(self._laws, _UntruncatedLaws)
        paths = {node: tuple(draft.tokens[i] for i in draft.path(node)) for node in draft.q}
        q = {node: self._laws.untruncated[path] for node, path in paths.items()}
        return Draft(draft.tokens, draft.parents, q, draft.siblings)


@dataclass(frozen=True)
class _ChainFaultMethod(DraftModel):
    fault: ClassVar[type[Any]]

    def judge(self, draft: Draft, greedy: bool) -> Verifier:
        verifier: Verifier = verifier_for(draft, greedy) if greedy or not len(draft) else self.fault()
        return verifier


@dataclass(frozen=True)
class InvertedRatio(_ChainFaultMethod):
    """Accepts with min(1, q / p)."""

    name: ClassVar[str] = "fault-inverted-ratio"
    fault: ClassVar[type[Any]] = _InvertedRatio


@dataclass(frozen=True)
class ResidualFromTarget(_ChainFaultMethod):
    """Draws the replacement of a refused token from p instead of (p - q)+."""

    name: ClassVar[str] = "fault-residual-from-target"
    fault: ClassVar[type[Any]] = _ResidualFromTarget


@dataclass(frozen=True)
class NoResidual(_ChainFaultMethod):
    """Forgets the residual: replaces a refused token by a draw from the law after it."""

    name: ClassVar[str] = "fault-no-residual"
    fault: ClassVar[type[Any]] = _NoResidual


@dataclass(frozen=True)
class IgnoresTemperature(_ChainFaultMethod):
    """Verifies against the softmax of the raw scores."""

    name: ClassVar[str] = "fault-ignores-temperature"
    fault: ClassVar[type[Any]] = _IgnoresTemperature


@dataclass(frozen=True)
class UnwarpedBonus(_ChainFaultMethod):
    """Draws the token after an accepted draft from the softmax of the raw scores."""

    name: ClassVar[str] = "fault-unwarped-bonus"
    fault: ClassVar[type[Any]] = _UnwarpedBonus


@dataclass(frozen=True)
class ForgetsPrefix(_ChainFaultMethod):
    """Applies penalties to a drafted token without the draft before it."""

    name: ClassVar[str] = "fault-forgets-prefix"
    fault: ClassVar[type[Any]] = _ForgetsPrefix


@dataclass(frozen=True)
class AcceptsImpossible(_ChainFaultMethod):
    """Accepts where u <= p / q, so also a token of probability 0 when u is 0."""

    name: ClassVar[str] = "fault-accepts-impossible"
    fault: ClassVar[type[Any]] = _AcceptsImpossible


@dataclass(frozen=True)
class SharedNoise(_ChainFaultMethod):
    """Decides acceptance by the very number that then draws the replacement. Only real noise shows it."""

    name: ClassVar[str] = "fault-shared-noise"
    fault: ClassVar[type[Any]] = _SharedNoise


@dataclass(frozen=True)
class UntruncatedDraft(DraftModel):
    """Reports the draft law from before top-k and top-p."""

    name: ClassVar[str] = "fault-untruncated-draft"

    def drafter(self, request: Request) -> ChainDrafter:
        return _UntruncatedDrafter(
            request,
            _UntruncatedLaws(request, request.host.network, self.first_layers(request)),
            Length(request, self.length),
            self.width,
        )


@dataclass(frozen=True)
class UnchangedSiblings(DraftModel):
    """Judges all children of a node by the same law."""

    name: ClassVar[str] = "fault-unchanged-siblings"

    def judge(self, draft: Draft, greedy: bool) -> Verifier:
        return verifier_for(draft, greedy) if greedy or not len(draft) else _UnchangedSiblings()


@dataclass(frozen=True)
class MatchThenDraw(TokenRecycling):
    """Accepts a drafted token with its probability, and otherwise may draw it again."""

    name: ClassVar[str] = "fault-match-then-draw"

    def judge(self, draft: Draft, greedy: bool) -> Verifier:
        return verifier_for(draft, greedy) if greedy else _MatchThenDraw()


@dataclass(frozen=True)
class GreedyAcceptsAll(DraftModel):
    """In greedy decoding accepts whatever was drafted."""

    name: ClassVar[str] = "fault-greedy-accepts-all"

    def judge(self, draft: Draft, greedy: bool) -> Verifier:
        return _AcceptsAll() if greedy else verifier_for(draft, greedy)


def planted_faults() -> Sequence[Method]:
    """One method of each fault."""
    from decodery.testing.multi_draft_faults import GreedySetAsSamples, KSeqPlainResidual, KSeqUnitFactor

    return (
        InvertedRatio(),
        ResidualFromTarget(),
        NoResidual(),
        IgnoresTemperature(),
        UnwarpedBonus(),
        ForgetsPrefix(),
        AcceptsImpossible(),
        SharedNoise(),
        UntruncatedDraft(),
        UnchangedSiblings(width=2, length=1),
        MatchThenDraw(),
        GreedyAcceptsAll(),
        KSeqUnitFactor(draft="layers", drafts=2, length=1),
        KSeqPlainResidual(draft="layers", drafts=2, length=1),
        GreedySetAsSamples(draft="layers", widths="2"),
    )
