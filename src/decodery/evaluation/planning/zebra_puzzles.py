"""Zebra puzzles: who lives where, from clues that leave one answer, in a size for small models.

Houses stand in a row; each attribute has as many values as there are houses, one a house. Clues are of four kinds, three words
each. The answer names the values house by house, attribute by attribute. The published puzzles have up to six houses and
attributes (Shah et al., arXiv 2409.10502); these are drawn, and clues that are not needed are dropped.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations, product

from decodery.evaluation.planning.words import Puzzle

SAME, LEFT, BESIDE, IN = "same", "left", "beside", "in"
"""Two values of one house; the first directly left of the second; side by side; a value and the number of its house."""
Clue = tuple[str, str, str]
Places = dict[str, int]
"""Value -> house."""


@dataclass(frozen=True)
class ZebraPuzzles:
    """A size. houses: also values of an attribute. attributes: kinds of values."""

    houses: int
    attributes: int

    @property
    def values(self) -> list[tuple[str, ...]]:
        """The values of each attribute: a1, a2, … b1, …"""
        letters = "abcdefgh"[: self.attributes]
        return [tuple(f"{letter}{number + 1}" for number in range(self.houses)) for letter in letters]

    @property
    def words(self) -> tuple[str, ...]:
        """All words of prompts and answers."""
        numbers = [str(house + 1) for house in range(self.houses)]
        return (SAME, LEFT, BESIDE, IN, *numbers, *(value for own in self.values for value in own))

    @property
    def longest_prompt(self) -> int:
        """Words of a prompt at most: so many clues leave one answer in any case."""
        return 3 * self.houses * self.attributes

    @property
    def longest_answer(self) -> int:
        """Words of an answer."""
        return self.houses * self.attributes

    def draw(self, generator: random.Random) -> Puzzle:
        """A fresh puzzle, whose clues leave one answer and no clue of which could be left out."""
        orders = [generator.sample(own, self.houses) for own in self.values]
        answer = {value: house for order in orders for house, value in enumerate(order)}
        clues = self._true(answer)
        generator.shuffle(clues)
        answers = self._all()
        kept: list[Clue] = []
        left = answers
        for clue in clues:
            fewer = [places for places in left if holds(clue, places)]
            if len(fewer) < len(left):
                kept.append(clue)
                left = fewer
            if len(left) == 1:
                break
        for clue in list(kept):
            others = [other for other in kept if other != clue]
            if sum(all(holds(other, places) for other in others) for places in answers) == 1:
                kept = others
        prompt = [word for clue in kept for word in clue]
        return Puzzle(tuple(prompt), tuple(order[house] for house in range(self.houses) for order in orders))

    def _all(self) -> list[Places]:
        """All ways to live."""
        ways = [
            [dict(zip(order, range(self.houses), strict=True)) for order in permutations(own)] for own in self.values
        ]
        return [{value: house for part in way for value, house in part.items()} for way in product(*ways)]

    def _true(self, places: Places) -> list[Clue]:
        """All clues that hold. Those that name a house are as many as the values, the others more."""
        values = list(places)
        found = [
            clue
            for one in values
            for other in values
            for kind in (SAME, LEFT, BESIDE)
            if one != other and (kind == LEFT or one < other)
            for clue in [(kind, one, other)]
            if not (kind == SAME and one[0] == other[0]) and holds(clue, places)
        ]
        return [*found, *((IN, value, str(house + 1)) for value, house in places.items())]


def holds(clue: Clue, places: Places) -> bool:
    """Whether a clue holds of a way to live."""
    kind, one, other = clue
    if kind == IN:
        return places[one] == int(other) - 1
    apart = places[other] - places[one]
    return apart == 0 if kind == SAME else apart == 1 if kind == LEFT else abs(apart) == 1


def solutions(size: ZebraPuzzles, prompt: Sequence[str]) -> list[Places]:
    """All ways to live that the clues of a prompt allow."""
    clues = [tuple(prompt[place : place + 3]) for place in range(0, len(prompt), 3)]
    return [places for places in size._all() if all(holds(clue, places) for clue in clues)]  # type: ignore[arg-type]
