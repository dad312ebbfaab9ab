"""What a verifier is: a pure function from a draft and the target's laws to what is committed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from decodery.sampling.noise import Chance, Stage
from decodery.speculative.draft import ROOT, Draft


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier decided. path: accepted nodes, from the root's child on. next_token: the target's own token."""

    path: tuple[int, ...]
    next_token: int


@runtime_checkable
class TargetLaws(Protocol):
    """The target's processed law after each node: a tensor of log probabilities [n + 1, vocabulary], or something that
    computes the rows asked for. Row 0 is the law after the last committed token, row i + 1 that after node i. Where it has a
    method `likeliest(row) -> int`, greedy verification asks that instead of looking for the highest of a row."""

    def __getitem__(self, row: int) -> Tensor: ...


@runtime_checkable
class Verifier(Protocol):
    """Decides how much of a draft is kept. No cache, no model: its law can be tested by enumeration."""

    def verify(self, draft: Draft, target: TargetLaws, chance: Chance, position: int) -> Verdict:
        """Judge a draft.

        target: see `TargetLaws`. chance: where random decisions come from. position: that of the first drafted token;
        a draw at depth d of the tree is made at position + d - 1.
        """
        ...


class NodeByNode(ABC):
    """Goes down a tree of drawn nodes as long as a child is accepted; below a leaf the target's own law is drawn from."""

    @abstractmethod
    def check(self, draft: Draft) -> None:
        """Raise ValueError for drafts that this verifier is not exact for."""

    @abstractmethod
    def judge(
        self, draft: Draft, node: int, drawn: Sequence[int], p: Tensor, chance: Chance, position: int
    ) -> tuple[int | None, int]:
        """The child of `node` that is accepted, or None, and then the token that is emitted instead.

        drawn: its children in the order of their draws. p: the target's law after it [vocabulary] in float64. position: of
        the children.
        """

    def verify(self, draft: Draft, target: TargetLaws, chance: Chance, position: int) -> Verdict:
        self.check(draft)
        node = ROOT
        path: list[int] = []
        while True:
            p = target[node + 1].exp().double()
            place = position + len(path)
            drawn = draft.drawn(node)
            if not drawn:
                tokens = [draft.tokens[passed] for passed in path]
                return Verdict(tuple(path), chance.choose(p, place, Stage.TARGET, path=tokens))
            accepted, token = self.judge(draft, node, drawn, p, chance, place)
            if accepted is None:
                return Verdict(tuple(path), token)
            path.append(accepted)
            node = accepted
