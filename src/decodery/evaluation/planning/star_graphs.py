"""Star graphs: find the way from a source to a goal in a star whose arms leave the centre (Bachmann and Nagarajan, arXiv 2403.06963;
sizes and layout of Patel et al., arXiv 2505.05755).

A prompt is the directed edges, two words each, in random order, then source and goal. The answer is the path, again as edges.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

from decodery.evaluation.planning.words import Puzzle


@dataclass(frozen=True)
class StarGraphs:
    """A size of star graphs. degree: arms. shortest, longest: nodes of an arm, the centre's among them, drawn evenly for each arm.
    nodes: names to choose from. crossed: the centre stands at a random place of each arm, at least two nodes before its end,
    and the source is the first node of an arm; otherwise the centre is the first node of each. plan: least nodes of the path.
    """

    degree: int
    shortest: int
    longest: int
    nodes: int = 20
    crossed: bool = False
    plan: int = 0

    @property
    def words(self) -> tuple[str, ...]:
        """The names of nodes."""
        return tuple(str(node) for node in range(self.nodes))

    @property
    def longest_answer(self) -> int:
        """Words of an answer at most."""
        return 2 * (self.longest - 1)

    def draw(self, generator: random.Random) -> Puzzle:
        """A fresh graph."""
        while True:
            sizes = [generator.randint(self.shortest, self.longest) for _ in range(self.degree)]
            wanted = generator.randrange(self.degree)
            if sizes[wanted] >= self.plan:
                break
        names = iter(generator.sample(self.words, 1 + sum(sizes) - self.degree))
        centre = next(names)
        arms = []
        for size in sizes:
            place = generator.randint(0, size - 3) if self.crossed else 0
            arms.append([centre if i == place else next(names) for i in range(size)])
        edges = [edge for arm in arms for edge in pairwise(arm)]
        generator.shuffle(edges)
        path = arms[wanted]
        prompt = [word for edge in edges for word in edge]
        return Puzzle((*prompt, path[0], path[-1]), tuple(word for edge in pairwise(path) for word in edge))


SIZES = {
    "arms-of-3": StarGraphs(3, 3, 3),
    "arms-of-4": StarGraphs(3, 4, 4),
    "easy": StarGraphs(3, 5, 5),
    "medium": StarGraphs(3, 3, 6, crossed=True),
    "hard": StarGraphs(5, 6, 12, nodes=56, crossed=True, plan=5),
}
"""The paper's easy, medium and hard, and two smaller ones to begin with."""


def floor(answer: Sequence[str]) -> float:
    """The cross-entropy in nats that an ideal insertion model has on an answer that it knows: over all ways to drop words, of the
    counts of missing words in each gap, given nothing but the words that are left.

    Dropping different words may leave equal texts, whose counts differ, so this is more than the counts' own entropy.
    """
    length, total = len(answer), 0.0
    for dropped in range(1, length + 1):
        seen: dict[tuple[str, ...], dict[tuple[int, str], float]] = defaultdict(lambda: defaultdict(float))
        ways = math.comb(length, dropped)
        for gone in combinations(range(length), dropped):
            left = tuple(word for place, word in enumerate(answer) if place not in gone)
            for number, place in enumerate(gone):
                seen[left][place - number, answer[place]] += 1 / dropped
        for cells in seen.values():
            whole = sum(cells.values())
            total -= sum(share * math.log(share / whole) for share in cells.values()) / ways / (length + 1)
    return total
