"""All sizes of planning tasks by name, and what an ideal insertion model has on an answer."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from typing import Protocol

from decodery.evaluation.planning.star_graphs import StarGraphs
from decodery.evaluation.planning.words import Puzzle
from decodery.evaluation.planning.zebra_puzzles import ZebraPuzzles


class Puzzles(Protocol):
    """A kind of puzzles in one size."""

    @property
    def words(self) -> tuple[str, ...]:
        """All words of prompts and answers."""
        ...

    @property
    def longest_prompt(self) -> int:
        """Words of a prompt at most."""
        ...

    @property
    def longest_answer(self) -> int:
        """Words of an answer at most."""
        ...

    def draw(self, generator: random.Random) -> Puzzle:
        """A fresh puzzle."""
        ...


SIZES: dict[str, Puzzles] = {
    "arms-of-3": StarGraphs(3, 3, 3),
    "arms-of-4": StarGraphs(3, 4, 4),
    "easy": StarGraphs(3, 5, 5),
    "medium": StarGraphs(3, 3, 6, crossed=True),
    "hard": StarGraphs(5, 6, 12, nodes=56, crossed=True, plan=5),
    "zebra-2": ZebraPuzzles(2, 2),
    "zebra-3": ZebraPuzzles(3, 3),
}
"""Star graphs: the paper's easy, medium and hard, and two smaller ones to begin with. Zebra puzzles of two and three houses,
with as many attributes."""


def words_of(size: str) -> tuple[str, ...]:
    """The words of a size."""
    return SIZES[size].words


def floor(answer: Sequence[str]) -> float:
    """The cross-entropy in nats that an ideal insertion model has on an answer that it knows: over all ways to drop words, of
    the counts of missing words in each gap, given nothing but the words that are left.

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
