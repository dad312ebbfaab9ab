"""The ten waiting-line tasks of ParallelBench (arXiv 2510.04767, section 4.1) on lists of atomic items.

Items are any strings, one token each in the prompts of `words.py`, "First Last" in the published files (`published.py`).
Indices count from 0 and follow Python's `list.insert`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

ORDERED = ("copy", "reverse", "sort", "insert_index", "remove_index", "replace_index")
"""Tasks with one right answer: nothing is lost by deciding their tokens together."""
FREE = ("shuffle", "insert_random", "remove_random", "replace_random")
"""Tasks with many right answers, whose tokens depend on each other."""
LIST_TASKS = (
    "copy",
    "reverse",
    "sort",
    "shuffle",
    "insert_index",
    "insert_random",
    "remove_index",
    "remove_random",
    "replace_index",
    "replace_random",
)


@dataclass(frozen=True)
class ListProblem:
    """items: distinct. word: the new item of insert and replace; not among the items. index: of the tasks "…_index"."""

    task: str
    items: tuple[str, ...]
    word: str | None = None
    index: int | None = None

    @property
    def answer_length(self) -> int:
        """Items of a right answer."""
        change = {"insert": 1, "remove": -1}.get(self.task.split("_")[0], 0)
        return len(self.items) + change


def draw_problem(task: str, items: Sequence[str], length: int, generator: random.Random) -> ListProblem:
    """A problem on `length` of `items`, drawn without replacement.

    Raises ValueError for an unknown task, a shuffle of fewer than 2 items, and a removal from fewer than 1.
    """
    if task not in LIST_TASKS:
        raise ValueError(f"unknown list task {task!r}; known: {', '.join(LIST_TASKS)}")
    if length < (2 if task == "shuffle" else 1):
        raise ValueError(f"{task} needs a longer list than {length}")
    needs_word = task.startswith(("insert", "replace"))
    drawn = generator.sample(items, length + needs_word)
    word = drawn.pop() if needs_word else None
    index = None
    if task.endswith("_index"):
        index = generator.randrange(length + (task == "insert_index"))
    return ListProblem(task, tuple(drawn), word, index)


def draw_answer(problem: ListProblem, generator: random.Random) -> tuple[str, ...]:
    """A right answer, uniform over all of them."""
    task, items, word = problem.task, problem.items, problem.word
    if task == "copy":
        return items
    if task == "reverse":
        return items[::-1]
    if task == "sort":
        return tuple(sorted(items))
    if task == "shuffle":
        order = list(items)
        while tuple(order) == items:
            generator.shuffle(order)
        return tuple(order)
    kind = task.split("_")[0]
    places = len(items) + (kind == "insert")
    index = problem.index if problem.index is not None else generator.randrange(places)
    new = () if word is None else (word,)
    return items[:index] + new + items[index + (kind != "insert") :]


def all_answers(problem: ListProblem) -> list[tuple[str, ...]]:
    """Every right answer, without duplicates. For a shuffle of n items that is n! - 1 of them."""
    from itertools import permutations

    if problem.task in ORDERED:
        return [draw_answer(problem, random.Random(0))]
    if problem.task == "shuffle":
        return [order for order in permutations(problem.items) if order != problem.items]
    places = len(problem.items) + (problem.task == "insert_random")
    indexed = problem.task.replace("random", "index")
    return [
        draw_answer(ListProblem(indexed, problem.items, problem.word, index), random.Random(0))
        for index in range(places)
    ]


def is_right(problem: ListProblem, output: Sequence[str]) -> bool:
    """Whether a list answers the problem: the metrics list_match, shuffle, and insert, remove and replace anywhere."""
    output, items, word = tuple(output), problem.items, problem.word
    if problem.task in ORDERED:
        return output == draw_answer(problem, random.Random(0))
    if problem.task == "shuffle":
        return is_permutation(problem, output) and output != items
    if problem.task == "insert_random":
        return any(output[:i] + output[i + 1 :] == items for i in _places(output, word))
    if problem.task == "remove_random":
        return len(output) == len(items) - 1 and any(output == items[:i] + items[i + 1 :] for i in range(len(items)))
    return len(output) == len(items) and any(
        output == (*items[:i], word, *items[i + 1 :]) for i in _places(output, word)
    )


def is_permutation(problem: ListProblem, output: Sequence[str]) -> bool:
    """Whether the list holds the problem's items, each as often, in any order: what the closed form for shuffle counts."""
    return Counter(output) == Counter(problem.items)


def _places(output: Sequence[str], word: str | None) -> list[int]:
    return [i for i, item in enumerate(output) if item == word]
