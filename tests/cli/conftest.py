"""The command as a function, over a tiny random model instead of the default one."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from decodery.engine.events import Event
from decodery.replies import Stream


@dataclass
class Result:
    """What a call of the command did."""

    code: int
    out: str
    err: str


Command = Callable[..., Result]


class Typed(io.StringIO):
    """Standard input: lines of a pipe, or of somebody who types."""

    def __init__(self, text: str, terminal: bool = False):
        super().__init__(text)
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Calls `decodery` with arguments, as from a shell without a terminal."""
    from decodery.cli.main import main

    def call(*arguments: str, stdin: str = "", terminal: bool = False) -> Result:
        monkeypatch.setattr("sys.stdin", Typed(stdin, terminal))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        captured = capsys.readouterr()
        code = ended.value.code
        return Result(code if isinstance(code, int) else 0, captured.out, captured.err)

    return call


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The toy model, which `decodery` now loads whatever name it is given."""
    from decodery.testing import toy_language_model

    lm = toy_language_model(4)  # one that does not end its texts early
    monkeypatch.setattr("decodery.loading.load", lambda name, **options: lm)
    return lm


@pytest.fixture
def interrupted(toy: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The toy model, with somebody who presses Ctrl-C at the fourth event of each stream."""
    stream = toy.stream

    def broken_off(*arguments: Any, **settings: Any) -> Stream:
        events = stream(*arguments, **settings)

        def some() -> Generator[Event]:
            for place, event in enumerate(events):
                if place == 3:
                    raise KeyboardInterrupt
                yield event

        return Stream(some(), events.replies)

    monkeypatch.setattr(toy, "stream", broken_off)
    return toy
