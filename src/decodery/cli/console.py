"""What all verbs share at the terminal: where text goes, how progress and errors look, and how files are read.

Results go to standard output, everything else to standard error. Colour, bars and boxes appear on a terminal only;
into a pipe or a file goes plain text, one line per row.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from decodery.errors import BadInput

CONTROLS = {
    **dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)], "�"),
    ord("\n"): "\n",
    ord("\t"): "\t",
    ord("\r"): None,
}
"""What is shown for control characters."""


def output() -> Console:
    """Standard output. Made anew each time, so that it follows redirections."""
    return Console(highlight=False)


def notices() -> Console:
    """Standard error."""
    return Console(stderr=True, highlight=False)


def notice(message: str, style: str = "") -> None:
    """A line on standard error, whoever reads it."""
    notices().print(Text(message, style=style), soft_wrap=True)


def remark(message: str | Text) -> None:
    """A dim line on standard error for somebody at a terminal; nothing otherwise."""
    console = notices()
    if console.is_terminal:
        console.print(Text(message, style="dim") if isinstance(message, str) else message, soft_wrap=True)


def visible(text: str) -> str:
    """Text of a model with its control characters made harmless: it must not steer the terminal."""
    return text.translate(CONTROLS)


def print_line(text: str = "") -> None:
    """A line on standard output, as it is."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def print_json(value: Any) -> None:
    """One JSON document on one line. What JSON cannot say (infinity, not a number) becomes null."""
    utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print_line(json.dumps(_finite(value), ensure_ascii=not utf8))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> None:
    """A table. A column whose name ends in ">" is aligned to the right."""
    console = output()
    if not console.is_terminal:
        _print_plain(columns, rows)
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        right = column.endswith(">")
        justify: Literal["left", "right"] = "right" if right else "left"
        table.add_column(column.removesuffix(">"), justify=justify, header_style="bold", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    console.print(table)


def _print_plain(columns: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> None:
    lines = [[column.removesuffix(">") for column in columns], *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
    for line in lines:
        cells = [
            cell.rjust(width) if column.endswith(">") else cell.ljust(width)
            for cell, width, column in zip(line, widths, columns, strict=True)
        ]
        print_line("  ".join(cells).rstrip())


def _progress(console: Console, detail: str) -> Progress:
    """A spinner, a label, a bar and a detail in rich's markup of a task; gone when stopped."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn(detail, style="dim"),
        console=console,
        transient=True,
    )


class Bars:
    """Progress of fetching and loading, as `decodery.models.store` reports it.

    On a terminal a spinner with the stage and a bar, gone when all is done; elsewhere one line per stage.
    """

    def __init__(self, label: str):
        """label: what all of it is for."""
        console = notices()
        self._terminal = console.is_terminal
        self._label = label
        self._bars = _progress(console, "{task.fields[done]}")
        self._whole: TaskID | None = None
        self._stage: TaskID | None = None

    def __enter__(self) -> Bars:
        if self._terminal:
            self._bars.start()
            self._whole = self._bars.add_task(self._label, total=None, done="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._terminal:
            self._bars.stop()

    def start(self, label: str, total: int | None) -> None:
        if not self._terminal:
            notice(f"{label} …")
            return
        self.finish()
        if self._whole is not None:
            self._bars.update(self._whole, visible=False)
        self._stage = self._bars.add_task(label, total=total, done="")

    def advance(self, n: int) -> None:
        if self._stage is None:
            return
        self._bars.advance(self._stage, n)
        task = next(task for task in self._bars.tasks if task.id == self._stage)
        total = f" of {size(task.total)}" if task.total else ""
        self._bars.update(self._stage, done=f"{size(task.completed)}{total}")

    def finish(self) -> None:
        if self._stage is None:
            return
        self._bars.remove_task(self._stage)
        self._stage = None
        if self._whole is not None:
            self._bars.update(self._whole, visible=True)


class Counter:
    """Progress in steps: `counter(label, done, total)`, as the evaluation calls it. Silent where nobody watches."""

    def __init__(self, shown: bool = True):
        console = notices()
        self._terminal = console.is_terminal and shown
        self._bars = _progress(console, "{task.completed:.0f}/{task.total:.0f}")
        self._task: TaskID | None = None

    def __enter__(self) -> Counter:
        if self._terminal:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._terminal:
            self._bars.stop()

    def __call__(self, label: str, done: int, total: int) -> None:
        if not self._terminal:
            return
        if self._task is None:
            self._task = self._bars.add_task(label, total=total)
        self._bars.update(self._task, description=label, completed=done, total=total)


def size(count: float) -> str:
    """Bytes for people: "98.4 MB"."""
    from rich.filesize import decimal

    return decimal(int(count))


BYTE_ORDER_MARK = "\ufeff"
"""What some editors and shells begin a text with; it is no part of it."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around writing a file: what goes wrong becomes BadInput."""
    try:
        yield
    except OSError as error:
        raise BadInput(f"{path} cannot be written: {error.strerror}.") from None


def check_writable(*paths: Path | None) -> None:
    """Raise BadInput where a file cannot be written, before the work whose result it is to hold. None: no file is wanted."""
    for path in paths:
        if path is None:
            continue
        with writing(path):
            existed = path.exists()
            path.open("a").close()
            if not existed:
                path.unlink()


def write_files(*files: tuple[Path | None, Callable[[Path], None]]) -> None:
    """Write each file that is wanted with its own writer; raises BadInput where that fails."""
    for path, write in files:
        if path is not None:
            with writing(path):
                write(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8; raises BadInput where that fails."""
    with writing(path):
        path.write_text(text, encoding="utf-8")
