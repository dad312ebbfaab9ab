"""Draws a chain token by token, until a rule says that it is long enough. Nothing is asked of the target meanwhile."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from decodery._lazy import torch
from decodery.models.forward import Forward
from decodery.speculative.draft import EMPTY, ROOT, Draft, Siblings
from decodery.speculative.draft_laws.base import DraftLaws
from decodery.speculative.draft_laws.growth import TreeGrowth, draw_independent, likeliest
from decodery.speculative.draft_laws.networks import NetworkLaws
from decodery.speculative.loop import Drafter, Round

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.engine.request import Request
    from decodery.models.forward import Scores
    from decodery.models.heads import HeadNetwork


class Stop(ABC):
    """A rule for the end of a chain. One of each request; it sees what the drafter knows, and nothing of the target."""

    def begin(self) -> None:  # noqa: B027
        """A new chain begins."""

    def observe(self, accepted: int) -> None:  # noqa: B027
        """The chain was verified: so many of its tokens were accepted."""

    @abstractmethod
    def after(self, length: int, law: Tensor) -> Generator[Forward, Scores, bool]:
        """Whether a chain should end with its token number `length`, from 1, which was drawn from `law`."""


class HeadStop(Stop):
    """Ends a chain once it is likelier than `threshold` that one of its tokens is rejected. Source: arXiv 2405.19715, section
    3.3: the head reads the row that the drafter computed last, which is that of the token before the newest, so the newest
    token goes unjudged, and no forward of the drafter is made for it."""

    def __init__(self, laws: NetworkLaws, head: HeadNetwork, threshold: float):
        self._laws, self._head, self._threshold = laws, head, threshold
        self._chances: list[float] = []
        """What the head told of the chain's tokens but the newest."""
        self._judged: list[tuple[float, bool]] = laws.request.statistics.details.setdefault("judged", [])
        """Of all tokens that were judged and whose predecessors were accepted: what the head told, and whether it was
        accepted."""

    def begin(self) -> None:
        self._chances = []

    def observe(self, accepted: int) -> None:
        self._judged += [(chance, place < accepted) for place, chance in enumerate(self._chances[: accepted + 1])]
        self._chances = []  # there may be rounds without a chain

    def after(self, length: int, law: Tensor) -> Generator[Forward, Scores, bool]:
        if length > 1:  # before that, the row is that of a committed token
            row = self._laws.row
            assert row is not None
            scores = yield Forward(self._head.new_sequence(), row[None].float())
            self._chances.append(float(scores.logits[0].softmax(dim=-1)[1]))
        return 1 - math.prod(self._chances) > self._threshold


class ConfidenceStop(Stop):
    """Ends a chain with a token where the drafter's likeliest one has less than a probability. Source: the baseline of arXiv
    2405.19715, and the assisted generation of transformers."""

    def __init__(self, confidence: float, greedy: bool):
        self._confidence, self._greedy = confidence, greedy

    def after(self, length: int, law: Tensor) -> Generator[Forward, Scores, bool]:
        yield from ()
        highest = torch.softmax(law.float(), dim=-1).max() if self._greedy else law.max()
        return float(highest) < self._confidence


@dataclass(frozen=True)
class Bounds:
    """Fewest and most tokens of a chain, whatever the rule says."""

    shortest: int
    longest: int


class StoppingDrafter(Drafter):
    """Draws chains of the length that a rule gives them."""

    def __init__(self, request: Request, laws: DraftLaws, stop: Stop, bounds: Bounds):
        self._request, self._laws, self._stop, self._bounds = request, laws, stop, bounds

    def propose(self, tokens: Sequence[int], depth: int) -> Generator[Forward, Scores, Draft]:
        request, bounds, tree = self._request, self._bounds, TreeGrowth()
        longest = min(depth, bounds.longest)
        if longest < 1:
            return EMPTY
        self._stop.begin()
        parent, length = ROOT, 0
        law = yield from self._laws.root(tokens)
        while law is not None:
            length += 1
            if request.law.greedy:
                [token] = likeliest(law, 1)
            else:
                tree.q[parent] = law
                [token] = draw_independent(request.noise, law, 1, request.position + length - 1, parent)
            parent = tree.add(parent, token)
            if token in request.stop_ids:
                break
            over = yield from self._stop.after(length, law)
            if length >= longest or (over and length >= bounds.shortest):
                break
            [law] = yield from self._laws.after([tree.paths[parent]])
        return tree.draft(request.law.greedy, Siblings.WITH_REPLACEMENT)

    def observe(self, round: Round) -> None:
        self._stop.observe(len(round.verdict.path))
        self._laws.observe(round)
