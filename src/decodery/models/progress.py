"""How long work is reported: the interface that the store speaks, and a watcher for downloads without callbacks."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

_SECONDS_BETWEEN_LOOKS = 0.1


class Progress(Protocol):
    """Receives the stages of long work, one stage at a time: `start`, any number of `advance`, `finish`."""

    def start(self, label: str, total: int | None) -> None:
        """A stage begins; `total` is its size in bytes, or None where the size is not known beforehand."""

    def advance(self, n: int) -> None:
        """`n` more bytes of the stage are done."""

    def finish(self) -> None:
        """The stage has ended, well or not."""


class Silent:
    """Reports nothing: what library calls use where the caller passes no progress."""

    def start(self, label: str, total: int | None) -> None:
        pass

    def advance(self, n: int) -> None:
        pass

    def finish(self) -> None:
        pass


@contextmanager
def stage(progress: Progress, label: str, total: int | None = None) -> Iterator[None]:
    """One stage of work, finished whatever happens inside."""
    progress.start(label, total)
    try:
        yield
    finally:
        progress.finish()


@contextmanager
def watched(measure: Callable[[], int], progress: Progress) -> Iterator[None]:
    """While the body runs, report the growth of `measure()` (in bytes) from a second thread.

    Downloaders that give no byte counts still write files, so the files are looked at instead.
    """
    reported = 0
    stop = threading.Event()

    def look() -> None:
        nonlocal reported
        now = measure()
        if now > reported:
            progress.advance(now - reported)
            reported = now

    def keep_looking() -> None:
        while not stop.wait(_SECONDS_BETWEEN_LOOKS):
            look()

    watcher = threading.Thread(target=keep_looking, name="decodery-download-progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()
    look()


def bytes_under(folder: Path) -> int:
    """Bytes of all files under `folder`; files that vanish meanwhile count as nothing."""
    return sum(_sizes(folder))


def largest_file_under(folder: Path) -> int:
    """Bytes of the largest file under `folder`, 0 where there is none."""
    return max(_sizes(folder), default=0)


def _sizes(folder: Path) -> Iterator[int]:
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                yield os.lstat(os.path.join(parent, name)).st_size
            except OSError:
                continue
