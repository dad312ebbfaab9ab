"""Growing draft trees from draft laws: how children are drawn, and how many each node gets."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

from decodery.models.forward import Forward
from decodery.speculative.draft import EMPTY, ROOT, Draft, Siblings

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.engine.job import Job
    from decodery.models.forward import Scores
    from decodery.sampling.noise import Chance
    from decodery.speculative.draft_laws import DraftLaws, Path

MOST_CHILDREN = 64
"""Each node has this many addresses for the draws of its children."""


def draw_independent(chance: Chance, law: Tensor, count: int, position: int, index: int = 0) -> list[int]:
    """`count` independent draws from a law [vocabulary]. position, index: address of the first draw."""
    from decodery.sampling.noise import Stage

    return [chance.choose(law, position, Stage.DRAFT, index + i) for i in range(count)]


def draw_distinct(chance: Chance, law: Tensor, count: int, position: int, index: int = 0) -> list[int]:
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
        drawn.append(chance.choose(rest, position, Stage.DRAFT, index + i))
        rest[drawn[-1]] = 0
    return drawn


def likeliest(scores: Tensor, count: int) -> list[int]:
    """The `count` tokens of the highest scores [vocabulary], highest first, without forbidden ones."""
    from decodery.sampling.top import top_ids

    return [token for token in top_ids(scores[None], count)[0].tolist() if float(scores[token]) > -float("inf")]


class Growing:
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
    job: Job, laws: DraftLaws, tokens: Sequence[int], branching: Sequence[int], siblings: Siblings
) -> Generator[Forward, Scores, Draft]:
    """A tree in which every node of level l - 1 gets `branching[l - 1]` children.

    siblings: WITH_REPLACEMENT for independent draws, WITHOUT_REPLACEMENT for distinct ones; in greedy decoding children
    are the likeliest tokens. Nothing follows a stop token. Source: arXiv 2402.14160, algorithm 2 (RSD-C).
    """
    if not branching:
        return EMPTY
    draw = draw_distinct if siblings is Siblings.WITHOUT_REPLACEMENT else draw_independent
    tree = Growing()
    frontier = {ROOT: (yield from laws.root(tokens))}
    for level, count in enumerate(branching, start=1):
        fresh: list[int] = []
        for parent, law in frontier.items():
            if job.law.greedy:
                children = likeliest(law, count)
            else:
                tree.q[parent] = law
                position = job.position + level - 1
                children = draw(job.noise, law, count, position, (parent + 1) * MOST_CHILDREN)
            nodes = [tree.add(parent, token) for token in children]
            fresh += [node for node in nodes if tree.tokens[node] not in job.stop_ids]
        if level == len(branching) or not fresh:
            break
        rows = yield from laws.after([tree.paths[node] for node in fresh])
        frontier = dict(zip(fresh, rows, strict=True))
    return tree.draft(job.law.greedy, siblings)
