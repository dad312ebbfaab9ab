"""Growing draft trees from draft laws: how children are drawn, and how many each node gets."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from decodery._lazy import torch
from decodery.models.forward import Forward
from decodery.speculative.draft import EMPTY, ROOT, Draft, Siblings

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.engine.request import Request
    from decodery.models.forward import Scores
    from decodery.sampling.noise import Chance
    from decodery.speculative.draft_laws.base import DraftLaws, Path

MOST_CHILDREN = 64
"""No node has more children."""


def draw_independent(chance: Chance, law: Tensor, count: int, position: int, node: int = ROOT) -> list[int]:
    """`count` independent draws from a law [vocabulary]. node: whose children they are, for the address."""
    from decodery.sampling.noise import Stage

    return [chance.choose(law, position, Stage.DRAFT, (node, i)) for i in range(count)]


def draw_distinct(chance: Chance, law: Tensor, count: int, position: int, node: int = ROOT) -> list[int]:
    """Up to `count` different tokens in the order in which they are drawn, each from the law without the earlier ones.

    This is Gumbel top-k: the k highest of log q + Gumbel noise, in falling order, have exactly this law (Kool et al., arXiv
    1903.06059, section 2.3). Fewer come where the law's support is smaller.
    """
    from decodery.sampling.noise import Stage

    rest = law.double().clone()
    drawn: list[int] = []
    for i in range(count):
        if not float(rest.sum()) > 0:
            break
        drawn.append(chance.choose(rest, position, Stage.DRAFT, (node, i)))
        rest[drawn[-1]] = 0
    return drawn


def likeliest(scores: Tensor, count: int) -> list[int]:
    """The `count` tokens of the highest scores [vocabulary], highest first, without forbidden ones."""
    from decodery.sampling.top import top_ids

    return [token for token in top_ids(scores[None], count)[0].tolist() if float(scores[token]) > -float("inf")]


def level_sizes(branching: Sequence[int]) -> int:
    """Nodes of a tree in which every node of level l - 1 has `branching[l - 1]` children."""
    total, level = 0, 1
    for count in branching:
        level *= count
        total += level
    return total


class TreeGrowth:
    """A tree while it grows: nodes in order of their index, and the path of each."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.paths: list[Path] = []
        self.q: dict[int, Tensor] = {}

    def path(self, node: int) -> Path:
        """The tokens from the first after the root down to `node`."""
        return () if node == ROOT else self.paths[node]

    def add(self, parent: int, token: int) -> int:
        """Hang a node on `parent`; its index."""
        self.paths.append((*self.path(parent), token))
        self.tokens.append(token)
        self.parents.append(parent)
        return len(self.tokens) - 1

    def draft(self, greedy: bool, siblings: Siblings) -> Draft:
        """The tree as a draft; in greedy decoding nothing was drawn."""
        if greedy or not self.tokens:
            return Draft(self.tokens, self.parents)
        return Draft(self.tokens, self.parents, self.q, siblings)


def grow_branching(
    request: Request, laws: DraftLaws, tokens: Sequence[int], branching: Sequence[int], siblings: Siblings
) -> Generator[Forward, Scores, Draft]:
    """A tree in which every node of level l - 1 gets `branching[l - 1]` children.

    siblings: WITH_REPLACEMENT for independent draws, WITHOUT_REPLACEMENT for distinct ones; in greedy decoding children
    are the likeliest tokens. Nothing follows a stop token. Source: arXiv 2402.14160, algorithm 2 (RSD-C).
    """
    if not branching:
        return EMPTY
    draw = draw_distinct if siblings is Siblings.WITHOUT_REPLACEMENT else draw_independent
    tree = TreeGrowth()
    frontier = {ROOT: (yield from laws.root(tokens))}
    for level, count in enumerate(branching, start=1):
        fresh: list[int] = []
        for parent, law in frontier.items():
            if law is None:
                continue
            if request.law.greedy:
                children = likeliest(law, count)
            else:
                tree.q[parent] = law
                position = request.position + level - 1
                children = draw(request.noise, law, count, position, parent)
            nodes = [tree.add(parent, token) for token in children]
            fresh += [node for node in nodes if tree.tokens[node] not in request.stop_ids]
        if level == len(branching) or not fresh:
            break
        rows = yield from laws.after([tree.paths[node] for node in fresh])
        frontier = dict(zip(fresh, rows, strict=True))
    return tree.draft(request.law.greedy, siblings)


class Arrival(NamedTuple):
    """Something came up in the race of one level of a stochastic beam.

    rate: of everything that could have come up then. parent: the place, among the arrivals of the level above, of the
    sequence that it continues; None where only a sequence came up there that nothing follows. share: the probability of
    the path down to `token`.
    """

    rate: float
    parent: int | None
    token: int
    share: float


START = (Arrival(1.0, None, -1, 1.0),)
"""Level 0 of a stochastic beam: the committed text."""


def grow_beam(
    request: Request, laws: DraftLaws, tokens: Sequence[int], width: int, length: int
) -> Generator[Forward, Scores, Draft]:
    """A tree of the first `width` different sequences of each length up to `length` that come up among independent draws.

    In greedy decoding a beam search by cumulated log probability. Nothing follows a stop token, which keeps its place in
    the beam of its level. Source: arXiv 2402.14160, algorithm 3 (RSD-S).
    """
    if length < 1:
        return EMPTY
    greedy = request.law.greedy
    tree = TreeGrowth()
    nodes: list[int | None] = [ROOT]
    arrivals: Sequence[Arrival] = START
    rows: list[Tensor | None] = [(yield from laws.root(tokens))]
    for level in range(1, length + 1):
        if greedy:
            arrivals = beam_search(arrivals, rows, width)
        else:
            tree.q.update(
                (node, row) for node, row in zip(nodes, rows, strict=True) if node is not None and row is not None
            )
            arrivals = draw_beam(request.noise, arrivals, rows, width, request.position + level - 1)
        above, nodes = nodes, []
        for arrival in arrivals:
            parent = None if arrival.parent is None else above[arrival.parent]
            nodes.append(None if parent is None else tree.add(parent, arrival.token))
        alive = [node for node in nodes if node is not None and tree.tokens[node] not in request.stop_ids]
        if level == length or not alive:
            break
        found = dict(zip(alive, (yield from laws.after([tree.paths[node] for node in alive])), strict=True))
        rows = [None if node is None else found.get(node) for node in nodes]
    return tree.draft(greedy, Siblings.WITHOUT_REPLACEMENT)


def draw_beam(
    chance: Chance, above: Sequence[Arrival], laws: Sequence[Tensor | None], width: int, position: int
) -> list[Arrival]:
    """One level of stochastic beam search: its first `width` sequences, in the order in which they come up.

    above: the arrivals of the level above, or START. laws: the draft law [vocabulary] after each of them; None where
    nothing follows.

    Gumbel noise on log q is the logarithm of an exponential race: the sequences of a level come up at random, each at the
    rate of its probability, and the earlier one comes up, the higher its perturbed value. Stochastic beam search conditions
    the values of children on their parent's (Kool et al., arXiv 1903.06059, section 4.1). The tree and its verifier
    only need the order, and that can be drawn without the values: whatever comes up next, it is either the next arrival
    of the level above (with its first child) or another child of one that has arrived, in proportion to their rates,
    since who comes next is independent of when. The law is the same; there are no tails of noise to round, and the
    decisions can be enumerated.
    """
    from decodery.sampling.noise import Stage

    whole = [None if law is None else law.double() / law.double().sum() for law in laws]
    left = list(whole)
    rates: list[float] = []
    grown: list[Arrival] = []
    sequences = event = 0
    while sequences < width:
        masses = [*rates, above[len(rates)].rate] if len(rates) < len(above) else rates
        rate = sum(masses)
        if not rate > 0:
            break
        parent = chance.choose(torch.tensor(masses, dtype=torch.float64), position, Stage.DRAFT, ("parent", event))
        if parent == len(rates):
            rates.append(0.0)
        law, start = left[parent], whole[parent]
        if law is None or start is None:
            grown.append(Arrival(rate, None, -1, 0.0))
        else:
            token = chance.choose(law, position, Stage.DRAFT, ("child", event))
            share = above[parent].share
            grown.append(Arrival(rate, parent, token, share * float(start[token])))
            sequences += 1
            left[parent] = law = law.index_fill(0, torch.tensor(token), 0.0)
            rates[parent] = share * float(law.sum())
        event += 1
    return grown


def beam_search(above: Sequence[Arrival], rows: Sequence[Tensor | None], width: int) -> list[Arrival]:
    """One level of beam search: the `width` likeliest sequences, likeliest first.

    above: the level above, or START. rows: processed scores [vocabulary] after each; None where nothing follows.
    """
    grown: list[Arrival] = []
    for parent, (arrival, row) in enumerate(zip(above, rows, strict=True)):
        if row is not None:
            law = row.double().softmax(dim=-1)
            grown += [Arrival(1.0, parent, t, arrival.share * float(law[t])) for t in likeliest(row, width)]
    return sorted(grown, key=lambda child: -child.share)[:width]
