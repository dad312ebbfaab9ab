"""ParallelBench's 17 published tasks: their files, one JSON object a line, read; and those that can be, written and made.

An item is {"input", "answer", "output_format", "metadata"}. The input of a waiting line holds "context" (the list as text),
"word" and "index" where the task has them, and one solved item under "icl_examples". The answer is the list as text, or, of
tasks with many right answers, an object with the parsed input and an example. Summaries and paraphrases give a "text",
sentences "words"; their files hold chosen texts of others, so they are not made here.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decodery.errors import BadInput
from decodery.evaluation.parallelbench import lists, puzzles
from decodery.evaluation.parallelbench.answers import read_list, read_square, write_list
from decodery.evaluation.parallelbench.names import NAMES
from decodery.evaluation.parallelbench.tasks import LENGTHS, published_seed

PREFIX = "waiting_line_"
LATIN, SUDOKU = "latin_square_n4", "sudoku_n4"
SUMMARIES, PARAPHRASES, SENTENCES = "samsum", "chatgpt_paraphrases", "words_to_sentence_"
TEXT_TASKS = (SUMMARIES, PARAPHRASES, *(SENTENCES + level for level in ("easy", "medium", "hard")))
"""Tasks of open text, which only their files have."""
MADE_TASKS = (*(PREFIX + name for name in lists.LIST_TASKS), LATIN, SUDOKU)
"""Tasks whose items can be made."""
PUBLISHED_TASKS = (*MADE_TASKS, *TEXT_TASKS)
MOST_TOKENS = {task: 32 if task.startswith(PREFIX) else 64 for task in PUBLISHED_TASKS}
"""Length of the canvas in the published runs."""
FILES = {
    **{PREFIX + name: f"waiting_line/{name}.jsonl" for name in lists.LIST_TASKS},
    LATIN: "puzzle/latin_square_n4.jsonl",
    SUDOKU: "puzzle/sudoku_n4_12.jsonl",
    SUMMARIES: "paraphrase_summarize/samsum.jsonl",
    PARAPHRASES: "paraphrase_summarize/chatgpt-paraphrases.jsonl",
    **{task: f"words_to_sentence/{task.removeprefix(SENTENCES)}.jsonl" for task in TEXT_TASKS[2:]},
}
"""Where each task's file lies in the folder that the benchmark's repository calls `data/output/test`."""
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
    """One published item. problem: what the metric needs: a ListProblem, the symbols of a Latin square, the solved Sudoku, the
    reference summary, the text to be said differently, or the given words. prompt: our wording. entry: the JSON object."""

    task: str
    prompt: str
    problem: Any
    entry: dict[str, Any]

    @property
    def length(self) -> int:
        """Items of the list, 4 for the puzzles, given words of a sentence, 1 for other text."""
        if isinstance(self.problem, lists.ListProblem):
            return len(self.problem.items)
        return (
            puzzles.SIZE if self.task in (LATIN, SUDOKU) else 1 if isinstance(self.problem, str) else len(self.problem)
        )


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


def _puzzle_entry(task: str, generator: random.Random) -> dict[str, Any]:
    if task == LATIN:
        symbols = generator.sample(puzzles.SYMBOLS, puzzles.SIZE)
        example = "\n".join(",".join(row) for row in puzzles.shifted_latin(symbols, generator))
        given = {"size": puzzles.SIZE, "symbols": f"[{', '.join(symbols)}]"}
        answer = {"symbols": symbols, "example": example}
        return {"input": given, "answer": answer, "metadata": {"length": puzzles.SIZE}}
    puzzle, full = puzzles.draw_sudoku(generator)
    text, solved = ("\n".join("".join(row) for row in square) for square in (puzzle, full))
    blanks = sum(row.count(puzzles.BLANK) for row in puzzle)
    return {"input": {"sudoku": text}, "answer": solved, "metadata": {"blanks": blanks}}


def seed_name(task: str) -> str:
    """What the benchmark hashes for the seed of a task: its name without the folder, and "_list" behind those that edit one."""
    name = task.removeprefix(PREFIX)
    return f"{name}_list" if name.startswith(("insert", "remove", "replace")) else name


def make_items(task: str, count: int = 100, *, seed: int | None = None, lengths: Sequence[int] = LENGTHS) -> list[Item]:
    """`count` items of a published task, equally many of each length, the short ones first. seed: None is the published
    one. Raises ValueError for an unknown task and for one that is not made.
    """
    if task not in MADE_TASKS:
        raise ValueError(f"items of {task!r} are not made here; those of these are: {', '.join(MADE_TASKS)}")
    generator = random.Random(published_seed(seed_name(task)) if seed is None else seed)
    entries: list[dict[str, Any]] = []
    for place in range(count):
        if task in (LATIN, SUDOKU):
            entry = _puzzle_entry(task, generator)
            entry["input"]["icl_examples"] = [_puzzle_entry(task, generator)]
            entries.append(entry)
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
        if task in TEXT_TASKS:
            return _text_item(task, entry)
        if task in (LATIN, SUDOKU):
            solved = [f"{_puzzle_wish(task, o['input'])}{_example(o)}\n\n" for o in given.get("icl_examples", ())]
            answer = tuple(entry["answer"]["symbols"]) if task == LATIN else read_square(entry["answer"])
            return Item(task, "".join((*solved, _puzzle_wish(task, given))), answer, entry)
        name = task.removeprefix(PREFIX)
        problem = _problem(name, entry)
        examples = [(_problem(name, other), _example(other)) for other in given.get("icl_examples", ())]
        return Item(task, list_prompt(problem, examples), problem, entry)
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"this is no item of {task}: {error!r}.") from error


def _text_item(task: str, entry: dict[str, Any]) -> Item:
    given, answer = entry["input"], entry["answer"]
    if task == SUMMARIES:
        wish = f"Sum up this conversation in a sentence or two. Answer with the summary only.\n\n{given['text']}\n\nSummary: "
        return Item(task, wish, str(answer["summary"]), entry)
    if task == PARAPHRASES:
        wish = (
            f"Say this in other words. Answer with the new sentence only.\n\nSentence: {given['text']}\n\nParaphrase: "
        )
        return Item(task, wish, str(answer["text"]), entry)
    given_words = tuple(str(word) for word in answer["words"])
    if isinstance(answer["words"], str) or not given_words:
        raise ValueError("no list of words")
    return Item(task, f"Write one sentence with the words {given['words']}.\n\nSentence: ", given_words, entry)


def _puzzle_wish(task: str, given: dict[str, Any]) -> str:
    if task == LATIN:
        return (
            f"Write a Latin square of size {given['size']} with the symbols {given['symbols']}: every row and every column "
            "holds each symbol once. Answer with one row a line, its symbols separated by commas, and nothing else.\n"
        )
    return (
        "Solve this Sudoku of size 4 (0 is a blank): every row, every column and every box of two by two holds 1, 2, 3 "
        f"and 4. Answer with the four rows and nothing else.\n{given['sudoku']}\n"
    )


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


def find_file(folder: Path, task: str) -> Path | None:
    """A task's file in a folder: named by the task, or where the benchmark's repository has it (`FILES`); else None."""
    for path in (folder / f"{task}.jsonl", folder / FILES[task]):
        if path.is_file():
            return path
    return None


def write_items(items: Sequence[Item], path: Path) -> None:
    """Write items, one JSON object a line."""
    text = "".join(json.dumps(item.entry, ensure_ascii=False) + "\n" for item in items)
    path.write_text(text, "utf-8")
