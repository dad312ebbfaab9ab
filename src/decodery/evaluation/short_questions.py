"""Short questions with one right answer, made by rules: from copying a word to sums of three numbers, so that a small model can
do some always, some sometimes, and some never."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from decodery.audit.antonyms import PAIRS

_WORDS = """
apple river stone window garden paper silver winter bridge candle forest button pocket ladder mirror bottle hammer basket
ticket summer carpet needle pillow rabbit turtle monkey castle island market doctor farmer singer pepper cheese butter
orange lemon cherry potato tomato violin guitar trumpet piano drum letter pencil school church museum station harbor
tunnel valley desert ocean cloud thunder rain snow wind storm sunrise shadow
"""
_NAMES = "Anna Ben Clara David Emma Frank Grace Henry Ivy Jack Kate Leo Mia Noah Olive Paul Rosa Sam Tina Will"
_THINGS = "apples books coins pens cards stamps eggs cups shells balls"
WORDS, NAMES, THINGS = _WORDS.split(), _NAMES.split(), _THINGS.split()
CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin", "Japan": "Tokyo", "China": "Beijing",
    "Russia": "Moscow", "Egypt": "Cairo", "Greece": "Athens", "Austria": "Vienna", "Portugal": "Lisbon",
    "Poland": "Warsaw", "Ireland": "Dublin", "Norway": "Oslo", "Sweden": "Stockholm", "Finland": "Helsinki",
    "Denmark": "Copenhagen", "Hungary": "Budapest", "Cuba": "Havana", "Kenya": "Nairobi", "Peru": "Lima",
    "Thailand": "Bangkok", "Vietnam": "Hanoi", "Iran": "Tehran", "Iraq": "Baghdad", "Chile": "Santiago",
    "Belgium": "Brussels", "Turkey": "Ankara", "Canada": "Ottawa", "Ukraine": "Kyiv",
}  # fmt: skip
OPPOSITES = [tuple(pair.split()) for pair in PAIRS.replace("\n", " ").split(",")]
BLOCK = 200
"""Within so many questions, kinds come equally often and in random order."""
PLACES = ("first", "second", "third", "fourth", "fifth")


@dataclass(frozen=True)
class ShortQuestion:
    """A question, its answer, and the rule that made it."""

    kind: str
    text: str
    answer: str

    def right(self, written: str) -> bool:
        """Whether what was written answers it: what follows the last "Answer:", up to the end of its line, is the answer or
        ends with it, but for case, quotes and a full stop; of numbers, the first that is named counts."""
        _, mark, said = written.rpartition("Answer:")
        said = said.strip().split("\n")[0] if mark else ""
        if self.answer.isdigit():
            found = re.search(r"-?\d+", said.replace(",", ""))
            return found is not None and found.group() == self.answer
        last = said.lower().split()[-1:]
        return bool(last) and last[0].strip(".!\"'") == self.answer.lower()


class _Pool:
    """Random choices, of which questions to train on and questions to measure on have none in common: words are split by their
    place, numbers by their sum."""

    def __init__(self, chance: np.random.Generator, held_out: bool):
        self.chance, self.held_out = chance, held_out

    def of(self, several: list[str]) -> str:
        own = several[1::3] if self.held_out else [one for place, one in enumerate(several) if place % 3 != 1]
        return own[int(self.chance.integers(len(own)))]

    def words(self, count: int) -> list[str]:
        chosen: list[str] = []
        while len(chosen) < count:
            word = self.of(WORDS)
            if word not in chosen:
                chosen.append(word)
        return chosen

    def numbers(self, *ranges: tuple[int, int]) -> list[int]:
        while True:
            drawn = [int(self.chance.integers(low, high)) for low, high in ranges]
            if (sum((place + 1) * number for place, number in enumerate(drawn)) % 3 == 1) == self.held_out:
                return drawn


def _copy(pool: _Pool) -> tuple[str, str]:
    [word] = pool.words(1)
    return f'Repeat the word "{word}".', word


def _capital(pool: _Pool) -> tuple[str, str]:
    country = pool.of(sorted(CAPITALS))
    return f"What is the capital of {country}?", CAPITALS[country]


def _opposite(pool: _Pool) -> tuple[str, str]:
    pair = pool.of([" ".join(one) for one in OPPOSITES]).split()
    return f'What is the opposite of "{pair[0]}"?', pair[1]


def _letter(pool: _Pool) -> tuple[str, str]:
    [word] = pool.words(1)
    return f'What is the first letter of "{word}"?', word[0]


def _place(count: int, place: int) -> Callable[[_Pool], tuple[str, str]]:
    def made(pool: _Pool) -> tuple[str, str]:
        words = pool.words(count)
        return f"What is the {PLACES[place]} of these words: {', '.join(words)}?", words[place]

    return made


def _sum(low: int, high: int, count: int = 2) -> Callable[[_Pool], tuple[str, str]]:
    def made(pool: _Pool) -> tuple[str, str]:
        numbers = pool.numbers(*[(low, high)] * count)
        return f"What is {' plus '.join(map(str, numbers))}?", str(sum(numbers))

    return made


def _successor(pool: _Pool) -> tuple[str, str]:
    [number] = pool.numbers((10, 500))
    return f"Which number comes after {number}?", str(number + 1)


def _larger(pool: _Pool) -> tuple[str, str]:
    one, other = pool.numbers((10, 99), (10, 99))
    other += one == other
    return f"Which number is larger, {one} or {other}?", str(max(one, other))


def _product(pool: _Pool) -> tuple[str, str]:
    one, other = pool.numbers((2, 10), (2, 13))
    return f"What is {one} times {other}?", str(one * other)


def _gain(pool: _Pool) -> tuple[str, str]:
    first, more = pool.numbers((2, 10), (2, 10))
    who, what = pool.of(NAMES), pool.of(THINGS)
    return f"{who} has {first} {what} and gets {more} more. How many {what} does {who} have?", str(first + more)


def _loss(pool: _Pool) -> tuple[str, str]:
    gone, left = pool.numbers((2, 9), (1, 9))
    who, what = pool.of(NAMES), pool.of(THINGS)
    return f"{who} has {gone + left} {what} and gives away {gone}. How many {what} are left?", str(left)


def _two_steps(pool: _Pool) -> tuple[str, str]:
    bags, each, more = pool.numbers((2, 6), (2, 8), (1, 9))
    who, what = pool.of(NAMES), pool.of(THINGS)
    text = f"{who} has {bags} bags of {each} {what} and {more} more {what}. How many {what} does {who} have?"
    return text, str(bags * each + more)


KINDS: dict[str, Callable[[_Pool], tuple[str, str]]] = {
    "copy": _copy,
    "capital": _capital,
    "opposite": _opposite,
    "first letter": _letter,
    "second of three": _place(3, 1),
    "last of three": _place(3, 2),
    "last of five": _place(5, 4),
    "one-digit sum": _sum(1, 10),
    "two-digit sum": _sum(10, 60),
    "three numbers": _sum(2, 20, 3),
    "successor": _successor,
    "larger": _larger,
    "product": _product,
    "gain": _gain,
    "loss": _loss,
    "two steps": _two_steps,
}
"""Rules by name, roughly from easy to hard for a small model within each sort."""


def short_questions(count: int, seed: int = 0, held_out: bool = False) -> list[ShortQuestion]:
    """Questions of all kinds, none twice; fewer are the beginning of more. held_out: of words and numbers that the others do
    not have."""
    chance = np.random.Generator(np.random.Philox(key=[seed, int(held_out)]))
    pool, names, misses = _Pool(chance, held_out), list(KINDS), 0
    found: dict[str, ShortQuestion] = {}
    ordered: list[ShortQuestion] = []
    while len(ordered) < count:
        while len(found) < len(ordered) + BLOCK:
            kind = names[(len(found) + misses) % len(names)]
            text, answer = KINDS[kind](pool)
            misses += text in found
            found.setdefault(text, ShortQuestion(kind, text, answer))
        fresh = list(found.values())[len(ordered) :]
        ordered += [fresh[place] for place in chance.permutation(BLOCK)]
    return ordered[:count]
