"""Token recycling: the likeliest successors that the target computes anyway make the next draft trees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar

from decodery._lazy import torch
from decodery.engine.method import Exactness, parameter
from decodery.engine.parameters import not_one_of
from decodery.speculative.draft import EMPTY, ROOT, Draft
from decodery.speculative.loop import Drafter, Round, SpeculativeMethod

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.engine.request import Request

TEMPLATE_CHILDREN: tuple[tuple[int, ...], ...] = (
    (8,),
    (8, 4, 3, 2, 1, 1, 1, 1),
    (8, 3, 2, 1, 1, 1, 1, 1, 2, 1, 0, 0, 1, 0, 0, 1, 0, 1, 1, 0, 0),
    (5, 2, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 1, 0, 0),
    (3, 1, 1, 0, 0, 1, 0, 0, 0, 0, 1, 0, 1, 0, 0),
    (2, 0, 0, 1, 0, 0, 0, 0),
    (0, 0, 0),
)
"""Template "2.2.2": how many children each node has, level by level from the root, in breadth-first order."""


@dataclass(frozen=True)
class Template:
    """A static tree. Node i hangs on `parents[i]` (ROOT for the last committed token) and takes candidate `ranks[i]` of
    its parent's row; `depths[i]` starts at 1. Nodes are in breadth-first order."""

    parents: tuple[int, ...]
    ranks: tuple[int, ...]
    depths: tuple[int, ...]

    def truncated(self, nodes: int) -> Template:
        """The `nodes` best nodes by the sum of ranks along the path, then by depth; always closed under parents."""
        path_ranks: list[int] = []
        for parent, rank in zip(self.parents, self.ranks, strict=True):
            path_ranks.append(rank + (0 if parent == ROOT else path_ranks[parent]))
        order = sorted(range(len(self.parents)), key=lambda node: (path_ranks[node], self.depths[node], node))
        return self._select(sorted(order[:nodes]))

    def narrowed(self, k: int) -> Template:
        """Only the nodes that can be filled from rows of k candidates."""
        alive: set[int] = {ROOT}
        for node, (parent, rank) in enumerate(zip(self.parents, self.ranks, strict=True)):
            if parent in alive and rank < k:
                alive.add(node)
        return self._select(sorted(alive - {ROOT}))

    def _select(self, kept: list[int]) -> Template:
        places = {ROOT: ROOT, **{node: place for place, node in enumerate(kept)}}
        return Template(
            tuple(places[self.parents[node]] for node in kept),
            tuple(self.ranks[node] for node in kept),
            tuple(self.depths[node] for node in kept),
        )


@cache
def template() -> Template:
    """The published tree: 80 nodes in 6 levels of 8, 21, 25, 15, 8 and 3."""
    parents: list[int] = []
    ranks: list[int] = []
    depths: list[int] = []
    level = [ROOT]
    for depth, counts in enumerate(TEMPLATE_CHILDREN[:-1], start=1):
        below = []
        for parent, count in zip(level, counts, strict=True):
            for rank in range(count):
                below.append(len(parents))
                parents.append(parent)
                ranks.append(rank)
                depths.append(depth)
        level = below
    return Template(tuple(parents), tuple(ranks), tuple(depths))


@cache
def _tree(k: int, nodes: int | None) -> Template:
    """The part of the template that rows of k candidates can fill, or its best nodes."""
    shape = template().narrowed(k)
    return shape if nodes is None else shape.truncated(nodes)


@dataclass(frozen=True)
class TokenRecycling(SpeculativeMethod):
    """Keeps the k likeliest successors the target ever computed for each token, and grows a draft tree from them.
    Needs no training and no second model, 1.5 MB of memory, and improves while it runs and across requests."""

    name: ClassVar[str] = "token-recycling"
    title: ClassVar[str] = "Token Recycling"
    paper: ClassVar[str] = "Luo et al., Turning Trash into Treasure, ACL 2025, arXiv 2408.08696"
    exactness: ClassVar[Exactness] = Exactness.IDENTICAL_TO_PLAIN
    family: ClassVar[str] = "speculative"

    k: int = parameter(8, "candidates kept per token; the tree has room for 8", low=1, high=8)
    nodes: int | None = parameter(
        None, "nodes of the draft tree", low=1, high=80, auto="as many as pay on this machine, of the template's 80"
    )
    persist: bool = parameter(
        True,
        "keep the candidates between requests of a session",
        only=({"update": not_one_of("none")}, {"seed_from_prompt": True}),
    )
    seed_from_prompt: bool = parameter(False, "also take candidates from the prompt's own scores")
    skip_unknown: bool = parameter(
        True, "leave out nodes whose token was never seen (the original drafts token 0 there)"
    )
    update: str = parameter("all", "which nodes' scores are kept", choices=("all", "accepted", "none"))

    @property
    def adaptive(self) -> bool:
        return self.nodes is None

    @property
    def paced(self) -> bool:
        return self.adaptive

    def most_nodes(self) -> int:
        return self.nodes or len(template().parents)

    def drafter(self, request: Request) -> RecyclingDrafter:
        vocabulary = request.host.network.vocabulary
        k = min(self.k, vocabulary)

        def fresh() -> Tensor:
            return torch.full((vocabulary, k), -1, dtype=torch.int32)

        matrix = request.remember(("token-recycling", k, self.update), fresh) if self.persist else fresh()
        return RecyclingDrafter(matrix, _tree(k, self.nodes), self.skip_unknown, self.update, self.seed_from_prompt)


class RecyclingDrafter(Drafter):
    """matrix: [vocabulary, k] int32, row t the likeliest successors of token t, highest first; -1 where unknown."""

    def __init__(
        self, matrix: Tensor, shape: Template, skip_unknown: bool = True, update: str = "all", seed: bool = False
    ):
        self.matrix, self._shape, self._skip_unknown, self._update = matrix, shape, skip_unknown, update
        if seed:
            self.watch_prompt = lambda tokens, scores: self.recycle(tokens, scores.logits)

    def propose(self, tokens: Sequence[int], depth: int) -> Draft:
        shape = self._shape
        rows: dict[int, list[int]] = {}
        filled: list[int] = []
        kept: list[int] = []
        places: dict[int, int] = {ROOT: ROOT}
        taken: set[tuple[int, int]] = set()
        for node, (parent, rank) in enumerate(zip(shape.parents, shape.ranks, strict=True)):
            filled.append(-1)
            if parent not in places or shape.depths[node] > depth:
                continue
            above = tokens[-1] if parent == ROOT else filled[parent]
            if above not in rows:
                rows[above] = self.matrix[above].tolist()
            token = rows[above][rank]
            if token < 0:
                if self._skip_unknown:
                    continue
                token = 0
            if (parent, token) in taken:  # only rows that were never filled repeat a token
                continue
            taken.add((parent, token))
            filled[node] = token
            places[node] = len(kept)
            kept.append(node)
        if not kept:
            return EMPTY
        return Draft(
            [filled[node] for node in kept],
            [places[shape.parents[node]] for node in kept],
            kinds=[("recycled", shape.depths[node], shape.ranks[node]) for node in kept],
        )

    def observe(self, round: Round) -> None:
        if self._update == "none":
            return
        fed = [round.tokens[-1], *round.draft.tokens]
        if self._update == "accepted":
            rows = [0, *(node + 1 for node in round.verdict.path)]
            self.recycle([fed[row] for row in rows], round.logits[rows])
        else:
            self.recycle(fed, round.logits)

    def recycle(self, tokens: Sequence[int], logits: Tensor) -> None:
        """Overwrite the rows of `tokens` with the likeliest successors in `logits` [n, vocabulary]; later ones win."""
        from decodery.sampling.top import top_ids

        last = {token: row for row, token in enumerate(tokens)}  # repeated tokens: the later node in order
        rows = list(last.values())
        chosen = logits if len(rows) == len(tokens) else logits[rows]
        self.matrix[torch.tensor(list(last))] = top_ids(chosen, self.matrix.shape[1]).to("cpu", torch.int32)
