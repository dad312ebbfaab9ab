"""Star graphs: find the way from a source to a goal in a star whose arms leave the centre (Bachmann and Nagarajan, arXiv
2403.06963; sizes and layout of Patel et al., arXiv 2505.05755).

A prompt is the directed edges, two words each, in random order, then source and goal. The answer is the path, again as edges.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import pairwise

from decodery.evaluation.planning.words import Puzzle


@dataclass(frozen=True)
class StarGraphs:
    """A size of star graphs. degree: arms. shortest, longest: nodes of an arm, the centre's among them, drawn evenly for each
    arm.
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
    def longest_prompt(self) -> int:
        """Words of a prompt at most: edges, source and goal."""
        return 2 * self.degree * (self.longest - 1) + 2

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
