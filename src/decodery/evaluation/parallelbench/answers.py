"""How answers of ParallelBench are written, and how its published readers find them in a response."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from decodery.evaluation.parallelbench.puzzles import SIZE, Square


def write_list(items: Iterable[str]) -> str:
    """A list as text: ["A", "B"]."""
    return "[" + ", ".join(f'"{item}"' for item in items) + "]"


def read_list(text: str) -> tuple[str, ...] | None:
    """The last list in a text, see `read_answer`; None where a bracket is missing."""
    start = text.rfind("[")
    return read_answer(text) if start >= 0 and text.find("]", start) >= 0 else None


def read_answer(text: str) -> tuple[str, ...]:
    """The items of a response: from behind the last "[" to the next "]", or the text's own ends where they are missing; split
    at commas, without blanks and quotes, empty ones left out. The published reader leaves single quotes where they are."""
    inside = text[text.rfind("[") + 1 :].split("]", 1)[0]
    return tuple(part.strip().strip("\"'").strip() for part in inside.split(",") if part.strip())


def read_square(text: str) -> Square:
    """The rows of a text, split at commas where there are any, at blanks where not, else into characters."""
    found = []
    for line in text.strip().splitlines():
        row = line.strip()
        if row:
            cells = row.split(",") if "," in row else row.split() if " " in row else list(row)
            found.append(tuple(cell.strip() for cell in cells))
    return tuple(found)


def read_latin(text: str, symbols: Collection[str]) -> Square:
    """The first rows of a response, as many as there are symbols, among those that hold every symbol and no other."""
    return tuple(row for row in read_square(text) if set(row) == set(symbols))[: len(symbols)]


def read_sudoku(text: str) -> Square:
    """The lines of a response that hold four digits; whatever else stands in them."""
    rows = (tuple(re.findall(r"\d", line)) for line in text.splitlines())
    return tuple(row for row in rows if len(row) == SIZE)
