"""ParallelBench's published items: one JSON object a line, with names instead of letters, read, written and made.

An item is {"input", "answer", "output_format", "metadata"}. The input of a waiting line holds "context" (the list as text),
"word" and "index" where the task has them, and one solved item under "icl_examples". The answer is the list as text, or, of
tasks with many right answers, an object with the parsed input and an example.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decodery.errors import BadInput
from decodery.evaluation.parallelbench import lists, puzzles
from decodery.evaluation.parallelbench.names import NAMES
from decodery.evaluation.parallelbench.tasks import LENGTHS, published_seed

PREFIX = "waiting_line_"
LATIN, SUDOKU = "latin_square_n4", "sudoku_n4"
PUBLISHED_TASKS = (*(PREFIX + name for name in lists.LIST_TASKS), LATIN, SUDOKU)
MOST_TOKENS = {**dict.fromkeys((PREFIX + name for name in lists.LIST_TASKS), 32), LATIN: 64, SUDOKU: 64}
"""Length of the canvas in the published runs."""
WISHES = {
    "copy": "Give the list back as it is.",
    "reverse": "Give the list in reverse order.",
    "sort": "Give the list in alphabetical order.",
    "shuffle": "Give the list in a new random order.",
    "insert_index": "Insert {word} at position {index}, counted from 0, and give the new list.",
    "insert_random": "Insert {word} at a random position and give the new list.",
    "remove_index": "Remove the person at position {index}, counted from 0, and give the new list.",
    "remove_random": "Remove one person at random and give the new list.",
    "replace_index": "Replace the person at position {index}, counted from 0, by {word}, and give the new list.",
    "replace_random": "Replace one person at random by {word} and give the new list.",
}


@dataclass(frozen=True)
class Item:
    """One published item. task: the name of its file. problem: what the metric needs: a ListProblem, the symbols of a Latin
    square, or the solved Sudoku. prompt: our wording. entry: the JSON object."""

    task: str
    prompt: str
    problem: Any
    entry: dict[str, Any]

    @property
    def length(self) -> int:
        """Items of the list; 4 for the puzzles."""
        return len(self.problem.items) if isinstance(self.problem, lists.ListProblem) else puzzles.SIZE


def write_list(items: Iterable[str]) -> str:
    """A list as text: ["A", "B"]."""
    return "[" + ", ".join(f'"{item}"' for item in items) + "]"


def read_list(text: str) -> tuple[str, ...] | None:
    """The last list in a text: from the last "[" to the next "]", split at commas, without blanks and quotes.

    None where there is none; an empty pair of brackets is an empty list.
    """
    start = text.rfind("[")
    end = text.find("]", start)
    if start < 0 or end < 0:
        return None
    inside = text[start + 1 : end]
    if not inside.strip():
        return ()
    return tuple(part.strip().strip("\"'").strip() for part in inside.split(","))


def read_square(text: str) -> puzzles.Square:
    """The rows of a text, split at commas where there are any, at blanks where not, else into characters."""
    found = []
    for line in text.strip().splitlines():
        row = line.strip()
        if row:
            cells = row.split(",") if "," in row else row.split() if " " in row else list(row)
            found.append(tuple(cell.strip() for cell in cells))
    return tuple(found)


def right(item: Item, response: str, *, strict: bool = False) -> bool:
    """The task's metric, 0 or 1. strict: the response must be the answer alone, in the answer's own notation."""
    if item.task == LATIN:
        clean = not strict or re.fullmatch(r"(\S(,\S)+\n?)+", response) is not None
        return clean and puzzles.is_latin(read_square(response), item.problem)
    if item.task == SUDOKU:
        if strict:
            return bool(response == item.entry["answer"])
        return bool(read_square(response) == item.problem)
    items = read_list(response)
    if items is None or (strict and response.strip() != write_list(items)):
        return False
    return lists.is_right(item.problem, items)


def _list_entry(problem: lists.ListProblem, generator: random.Random) -> dict[str, Any]:
    given: dict[str, Any] = {"context": write_list(problem.items)}
    if problem.word is not None:
        given["word"] = problem.word
    if problem.index is not None:
        given["index"] = problem.index
    example = write_list(lists.draw_answer(problem, generator))
    answer: Any = example
    if problem.task in lists.FREE:
        word = {} if problem.word is None else {"word": problem.word}
        answer = {"input": list(problem.items), **word, "example": example}
    return {
        "input": given,
        "answer": answer,
        "output_format": write_list(["[MASK]"] * problem.answer_length),
        "metadata": {"length": len(problem.items)},
    }


def make_items(task: str, count: int = 100, *, seed: int | None = None, lengths: Sequence[int] = LENGTHS) -> list[Item]:
    """`count` items of a published task, equally many of each length, the short ones first. seed: None is the task's own.

    Raises ValueError for an unknown task.
    """
    if task not in PUBLISHED_TASKS:
        raise ValueError(f"unknown task {task!r}; known: {', '.join(PUBLISHED_TASKS)}")
    generator = random.Random(published_seed(task) if seed is None else seed)
    entries = []
    for place in range(count):
        if task == LATIN:
            symbols = generator.sample(puzzles.SYMBOLS, puzzles.SIZE)
            example = "\n".join(",".join(row) for row in puzzles.shifted_latin(symbols, generator))
            given = {"size": puzzles.SIZE, "symbols": f"[{', '.join(symbols)}]"}
            answer = {"symbols": symbols, "example": example}
            entries.append({"input": given, "answer": answer, "metadata": {"length": puzzles.SIZE}})
        elif task == SUDOKU:
            puzzle, full = puzzles.draw_sudoku(generator)
            text, solved = ("\n".join("".join(row) for row in square) for square in (puzzle, full))
            blanks = sum(row.count(puzzles.BLANK) for row in puzzle)
            entries.append({"input": {"sudoku": text}, "answer": solved, "metadata": {"blanks": blanks}})
        else:
            name = task.removeprefix(PREFIX)
            length = sorted(lengths)[place * len(lengths) // count]
            entry = _list_entry(lists.draw_problem(name, NAMES, length, generator), generator)
            other = lists.draw_problem(name, NAMES, generator.choice(tuple(lengths)), generator)
            entry["input"]["icl_examples"] = [_list_entry(other, generator)]
            entries.append(entry)
    return [item_of(task, entry) for entry in entries]


def item_of(task: str, entry: dict[str, Any]) -> Item:
    """An item from its JSON object. Raises BadInput where the object is not one of the task's."""
    try:
        given = entry["input"]
        if task == LATIN:
            symbols = tuple(entry["answer"]["symbols"])
            prompt = (
                f"Write a Latin square of size {given['size']} with the symbols {given['symbols']}: every row and every column "
                "holds each symbol once. Answer with one row a line, its symbols separated by commas, and nothing else.\n"
            )
            return Item(task, prompt, symbols, entry)
        if task == SUDOKU:
            prompt = (
                "Solve this Sudoku of size 4 (0 is a blank): every row, every column and every box of two by two holds 1, 2, 3 "
                f"and 4. Answer with the four rows and nothing else.\n{given['sudoku']}\n"
            )
            return Item(task, prompt, read_square(entry["answer"]), entry)
        name = task.removeprefix(PREFIX)
        problem = _problem(name, entry)
        examples = [(_problem(name, other), _example(other)) for other in given.get("icl_examples", ())]
        return Item(task, list_prompt(problem, examples), problem, entry)
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"this is no item of {task}: {error!r}.") from error


def _problem(name: str, entry: dict[str, Any]) -> lists.ListProblem:
    if name not in lists.LIST_TASKS:
        raise ValueError(f"no such task: {name}")
    given = entry["input"]
    items = read_list(given["context"])
    if items is None:
        raise ValueError(f"no list in {given['context']!r}")
    return lists.ListProblem(name, items, given.get("word"), given.get("index"))


def _example(entry: dict[str, Any]) -> str:
    answer = entry["answer"]
    return str(answer["example"] if isinstance(answer, dict) else answer)


def list_prompt(problem: lists.ListProblem, examples: Sequence[tuple[lists.ListProblem, str]] = ()) -> str:
    """The prompt of a waiting line, in our own words, with solved examples before it."""
    scene = "You keep the waiting line of a service desk. Answer with the list only."
    parts = [scene]
    for other, answer in examples:
        parts.append(f"Line: {write_list(other.items)}\n{_wish(other)}\nAnswer: {answer}")
    parts.append(f"Line: {write_list(problem.items)}\n{_wish(problem)}\nAnswer: ")
    return "\n\n".join(parts)


def _wish(problem: lists.ListProblem) -> str:
    return WISHES[problem.task].format(word=problem.word, index=problem.index)


def read_items(path: Path, task: str | None = None) -> list[Item]:
    """The items of a published file. task: by default the file's name. Raises BadInput, with the line where there is one."""
    name = task or path.stem
    if name not in PUBLISHED_TASKS:
        raise BadInput(f"{name} is no task of ParallelBench; known: {', '.join(PUBLISHED_TASKS)}.")
    try:
        lines = path.expanduser().read_text("utf-8-sig").split("\n")
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8 text (byte {error.start}).") from None
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found.append(item_of(name, json.loads(line)))
        except (json.JSONDecodeError, BadInput) as error:
            raise BadInput(f"{path}, line {number}: {error}") from None
    return found


def write_items(items: Sequence[Item], path: Path) -> None:
    """Write items, one JSON object a line."""
    text = "".join(json.dumps(item.entry, ensure_ascii=False) + "\n" for item in items)
    path.write_text(text, "utf-8")
