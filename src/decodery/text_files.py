"""Text files that users give or get."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from decodery.errors import BadInput

Record = TypeVar("Record")


def read_text(path: Path) -> str:
    """A text file in UTF-8; raises BadInput where it cannot be read."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not a text file in UTF-8 (byte {error.start}).") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise BadInput(f"{path} cannot be read: {reason}.") from None


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not empty, counted from 1; raises BadInput where it cannot be read."""
    return ((number, line) for number, line in enumerate(read_text(path).split("\n"), 1) if line.strip())


def read_records(path: Path, made: Callable[[dict[str, Any]], Record], what: str) -> list[Record]:
    """What is made of the JSON object in each line. Raises BadInput where a line is not `what`, and names it."""
    found = []
    for number, line in numbered_lines(path):
        try:
            found.append(made(json.loads(line)))
        except (ValueError, TypeError, KeyError):
            raise BadInput(f"line {number} of {path} is no {what}.") from None
    return found


def write_records(path: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line. Raises OSError."""
    path.write_text("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries), "utf-8")
