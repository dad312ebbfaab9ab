"""Short arithmetic word problems whose answers show the steps, one a line. Numbers up to 20 are one token each."""

from __future__ import annotations

import random
from dataclasses import dataclass

LARGEST = 20
"""No number of a problem, given or reached, is larger."""
NAMES = ("Tom", "Mia", "Ben", "Eva", "Leo", "Ida")
THINGS = ("apples", "pens", "books", "coins", "eggs", "cards")
MORE = ("buys", "wins", "collects")
FEWER = ("gives", "loses", "sells")
OTHER_WORDS = ("has", "doubles", "how", "many", "?", "answer")


@dataclass(frozen=True)
class WordProblem:
    """Somebody has `start` things; then each (verb, amount) happens. "doubles" has amount 2."""

    name: str
    thing: str
    start: int
    events: tuple[tuple[str, int], ...]

    def question(self) -> str:
        """The problem in words."""
        parts = [f"{self.name} has {self.start} {self.thing} ."]
        for verb, amount in self.events:
            parts.append(f"{self.name} {verb} ." if verb == "doubles" else f"{self.name} {verb} {amount} .")
        return " ".join((*parts, f"how many {self.thing} ?"))

    def steps(self) -> list[tuple[int, str, int, int]]:
        """(number before, sign, amount, number after) of each event."""
        found, number = [], self.start
        for verb, amount in self.events:
            sign = "+" if verb in MORE else "*" if verb == "doubles" else "-"
            after = {"+": number + amount, "-": number - amount, "*": number * amount}[sign]
            found.append((number, sign, amount, after))
            number = after
        return found

    @property
    def result(self) -> int:
        """The number asked for."""
        return self.steps()[-1][3]

    def solution(self) -> str:
        """All steps and the answer, each on a line of its own."""
        lines = [f"{before} {sign} {amount} = {after}" for before, sign, amount, after in self.steps()]
        return "\n".join((*lines, f"answer {self.result}"))


def draw_word_problem(steps: int, generator: random.Random) -> WordProblem:
    """A problem of so many steps whose numbers stay between 0 and LARGEST."""
    start = number = generator.randint(1, 12)
    events: list[tuple[str, int]] = []
    for _ in range(steps):
        verb = generator.choice((*MORE, *FEWER, "doubles"))
        if verb == "doubles" and not 1 <= number <= LARGEST // 2:
            verb = generator.choice(FEWER if number > LARGEST // 2 else MORE)
        if verb in MORE and number == LARGEST:
            verb = generator.choice(FEWER)
        if verb in FEWER and number == 0:
            verb = generator.choice(MORE)
        if verb == "doubles":
            amount, number = 2, number * 2
        elif verb in MORE:
            amount = generator.randint(1, min(9, LARGEST - number))
            number += amount
        else:
            amount = generator.randint(1, min(9, number))
            number -= amount
        events.append((verb, amount))
    return WordProblem(generator.choice(NAMES), generator.choice(THINGS), start, tuple(events))


def is_right(problem: WordProblem, text: str, *, steps: bool = False) -> bool:
    """Whether the last line gives the result. steps: all lines must be right as well."""
    if steps:
        return [line.split() for line in text.split("\n")] == [line.split() for line in problem.solution().split("\n")]
    return text.split("\n")[-1].split() == ["answer", str(problem.result)]
