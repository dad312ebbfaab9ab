"""All tasks as prompts and answers of one-token words: what the model `diffusion-lists` is trained and measured on.

A sample is text: words separated by single blanks, rows by line breaks. Its answer is one right answer, uniform over all of
them; `score` says whether any other text is right too.
"""

from __future__ import annotations

import hashlib
import random
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from decodery.evaluation.parallelbench import arithmetic, lists, puzzles, sentences

LETTERS = tuple(string.ascii_uppercase)
LENGTHS = (3, 4, 5, 6)
"""List lengths of the published samples, equally many of each."""
INSTRUCTIONS = {
    "copy": "copy :",
    "reverse": "reverse :",
    "sort": "sort :",
    "shuffle": "shuffle :",
    "insert_index": "insert {word} at {index} :",
    "insert_random": "insert {word} anywhere :",
    "remove_index": "remove item {index} :",
    "remove_random": "remove any item :",
    "replace_index": "replace item {index} by {word} :",
    "replace_random": "replace any item by {word} :",
}


@dataclass(frozen=True)
class Sample:
    """task: its name. problem: what the metric needs. length: what the samples of a task are graded by."""

    task: str
    prompt: str
    answer: str
    problem: Any
    length: int


@dataclass(frozen=True)
class SuiteTask:
    """draw(length, generator) makes a sample; right(sample, text) judges a text. lengths: which are drawn, in turn.

    single: whether each sample has one right answer, so that no decoder loses by deciding tokens together.
    """

    name: str
    group: str
    lengths: tuple[int, ...]
    single: bool
    draw: Callable[[int, random.Random], Sample]
    right: Callable[[Sample, str], bool]


def published_seed(task: str) -> int:
    """The seed that the published benchmark takes from a name. Samples of this module take it from their task's own name."""
    return (int.from_bytes(hashlib.sha256(task.encode()).digest(), "big") + 42) % (2**16 - 1)


def list_prompt(problem: lists.ListProblem) -> str:
    """The prompt of a waiting-line task, for example "insert Q at 2 : K D A ="."""
    instruction = INSTRUCTIONS[problem.task].format(word=problem.word, index=problem.index)
    return " ".join((instruction, *problem.items, "="))


def _list_task(name: str) -> SuiteTask:
    def draw(length: int, generator: random.Random) -> Sample:
        problem = lists.draw_problem(name, LETTERS, length, generator)
        answer = " ".join(lists.draw_answer(problem, generator))
        return Sample(name, list_prompt(problem), answer, problem, length)

    def right(sample: Sample, text: str) -> bool:
        return lists.is_right(sample.problem, text.split(" ") if text else [])

    return SuiteTask(name, "lists", LENGTHS, name in lists.ORDERED, draw, right)


def rows(square: Sequence[Sequence[str]]) -> str:
    """A square as text."""
    return "\n".join(" ".join(row) for row in square)


def _read_rows(text: str) -> list[list[str]]:
    return [row.split(" ") for row in text.split("\n")]


def _draw_latin(length: int, generator: random.Random) -> Sample:
    symbols = tuple(generator.sample(puzzles.SYMBOLS, length))
    answer = rows(puzzles.draw_latin(symbols, generator))
    return Sample("latin_square", f"latin square : {' '.join(symbols)} =", answer, symbols, length)


def _draw_sudoku(length: int, generator: random.Random) -> Sample:
    puzzle, full = puzzles.draw_sudoku(generator)
    return Sample("sudoku", f"sudoku : {rows(puzzle)} =", rows(full), full, length)


def _draw_words_to_sentence(length: int, generator: random.Random) -> Sample:
    while True:
        sentence = sentences.draw_sentence(generator)
        if len(sentence.content()) >= length:
            break
    words = tuple(generator.sample(sentence.content(), length))
    answer = " ".join(sentence.words())
    return Sample("words_to_sentence", f"sentence with {' '.join(words)} =", answer, words, length)


def _right_sentence(sample: Sample, text: str) -> bool:
    words = text.split(" ")
    return sentences.parse_sentence(words) is not None and all(word in words for word in sample.problem)


def _draw_paraphrase(length: int, generator: random.Random) -> Sample:
    while True:
        sentence = sentences.draw_sentence(generator)
        if len(sentence.content()) == length + 3:
            break
    others = sentences.paraphrases(sentence)
    given, answer = " ".join(sentence.words()), " ".join(generator.choice(others).words())
    return Sample("paraphrase", f"paraphrase : {given} =", answer, sentence, length)


def _right_paraphrase(sample: Sample, text: str) -> bool:
    other = sentences.parse_sentence(text.split(" "))
    return other is not None and other != sample.problem and other.meaning() == sample.problem.meaning()


def _draw_pattern(length: int, generator: random.Random) -> Sample:
    period = generator.randint(1, 3)
    items = generator.sample(LETTERS, period)
    shown = generator.randint(2 * period, 6)
    line = [items[i % period] for i in range(shown + length)]
    prompt = f"continue {length} : {' '.join(line[:shown])} ="
    return Sample("continue_pattern", prompt, " ".join(line[shown:]), tuple(line[shown:]), length)


def _draw_arithmetic(length: int, generator: random.Random) -> Sample:
    problem = arithmetic.draw_word_problem(length, generator)
    return Sample("arithmetic", f"{problem.question()} =", problem.solution(), problem, length)


TASKS: dict[str, SuiteTask] = {
    task.name: task
    for task in (
        *(_list_task(name) for name in lists.LIST_TASKS),
        SuiteTask(
            "latin_square",
            "puzzles",
            (4,),
            False,
            _draw_latin,
            lambda sample, text: puzzles.is_latin(_read_rows(text), sample.problem),
        ),
        SuiteTask("sudoku", "puzzles", (12,), True, _draw_sudoku, lambda sample, text: text == sample.answer),
        SuiteTask("words_to_sentence", "text", (1, 2, 3, 4), False, _draw_words_to_sentence, _right_sentence),
        SuiteTask("paraphrase", "text", (0, 1, 2, 3), False, _draw_paraphrase, _right_paraphrase),
        SuiteTask(
            "continue_pattern", "text", (3, 4, 5, 6), True, _draw_pattern, lambda sample, text: text == sample.answer
        ),
        SuiteTask(
            "arithmetic",
            "arithmetic",
            (1, 2, 3),
            True,
            _draw_arithmetic,
            lambda sample, text: arithmetic.is_right(sample.problem, text),
        ),
    )
}
"""By name. Lengths are items of a list, symbols of a square, givens of a Sudoku, words given, adjectives and places of a
sentence, and steps of a word problem."""


def make_samples(
    task: str, count: int = 100, *, seed: int | None = None, lengths: Sequence[int] | None = None
) -> list[Sample]:
    """`count` samples of a task, the lengths in turn. seed: None is the task's own (`published_seed`).

    Raises ValueError for an unknown task.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; known: {', '.join(TASKS)}")
    generator = random.Random(published_seed(task) if seed is None else seed)
    lengths = tuple(lengths) if lengths is not None else TASKS[task].lengths
    return [TASKS[task].draw(lengths[i % len(lengths)], generator) for i in range(count)]


def score(sample: Sample, text: str) -> bool:
    """Whether `text` is a right answer to the sample: the whole text, without the end token. Blanks at the ends of lines, which
    depend on how a text is put together, do not count; lines do."""
    lines = [" ".join(line.split()) for line in text.split("\n")]
    return TASKS[sample.task].right(sample, "\n".join(lines))
