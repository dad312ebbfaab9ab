"""Streaming to a terminal: shades, text that stays as it is, and the bars on standard error."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

import pytest
from rich.console import Console

from decodery.cli import console, live_text
from decodery.cli.live_text import LiveText, statistic
from decodery.engine.events import Event, Finished, Token
from decodery.engine.statistics import Statistics

CYAN = "\x1b[36m"


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal of 20 columns is sent."""
    screen = io.StringIO()
    made = Console(file=screen, force_terminal=True, width=20, color_system="standard", highlight=False, no_color=False)
    monkeypatch.setattr(live_text, "output", lambda: made)
    return screen


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def tokens(request: int, *texts: str, drafted: tuple[int, ...] = ()) -> list[Event]:
    return [Token(request, place, 0, text, place in drafted) for place, text in enumerate(texts)]


def finished(request: int, text: str = "") -> Finished:
    return Finished(request, text, "stop", Statistics())


def test_drafted_tokens_have_another_shade(screen: io.StringIO) -> None:
    live = LiveText()
    live.follow([*tokens(0, "own", " drafted", " own", drafted=(1,)), finished(0, "!")])
    assert f"{CYAN} drafted\x1b[0m" in screen.getvalue()
    assert plain(screen.getvalue()) == "own drafted own!"
    assert live.drafted


def test_text_is_neither_wrapped_nor_trimmed_nor_read_as_markup(screen: io.StringIO) -> None:
    pieces = ["a very long line that no terminal of this width has room for ", " [bold]x[/bold] :smile:", "\n", "\n  b"]
    LiveText().follow(tokens(0, *pieces))
    assert plain(screen.getvalue()) == "".join(pieces)


def test_without_colours_no_legend_is_needed(screen: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Console(file=screen, force_terminal=True, width=20, no_color=True)
    monkeypatch.setattr(live_text, "output", lambda: made)
    live = LiveText()
    live.follow(tokens(0, "a", drafted=(0,)))
    assert not live.drafted
    assert CYAN not in screen.getvalue()


def test_samples_come_one_after_the_other(screen: io.StringIO) -> None:
    first, second, third = (tokens(request, f"{request}a", f"{request}b") for request in range(3))
    mixed = [*third, finished(2), first[0], second[0], first[1], finished(0), second[1], finished(1)]
    LiveText().follow(mixed, echo=">")
    assert plain(screen.getvalue()) == ">0a0b\n---\n>1a1b\n---\n>2a2b"


def test_first_sample_is_shown_as_it_comes(screen: io.StringIO) -> None:
    def events() -> Iterator[Event]:
        yield tokens(0, "a")[0]
        assert plain(screen.getvalue()) == "a"
        yield tokens(1, "b")[0]
        assert plain(screen.getvalue()) == "a"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LiveText().follow(events())
    assert plain(screen.getvalue()) == "a\n---\nb"


def test_statistic_is_one_line() -> None:
    stats = Statistics(new_tokens=12, rounds=4, seconds=0.5)
    line = statistic(stats.as_dict(), "prompt-lookup", "identical-to-sampling").plain
    assert line == "prompt-lookup · identical-to-sampling · 12 tokens in 0.50 s · 24.0 tokens/s · 3.00 per forward"
    stats.queued_seconds = 1.26
    waited = statistic(stats.as_dict(), "prompt-lookup", "identical-to-sampling").plain
    assert waited == line + " · waited 1.3 s for memory"


@pytest.fixture
def errors(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal is sent on standard error."""
    errors = io.StringIO()
    monkeypatch.setattr(console, "notices", lambda: Console(file=errors, force_terminal=True, width=100))
    return errors


def test_bars(errors: io.StringIO) -> None:
    with console.Bars("fetching m") as bars:
        bars.start("downloading m", 1_000_000)
        bars.advance(500_000)
        bars._bars.refresh()
        bars.finish()
        bars.start("converting m", None)
        bars.finish()
    assert "downloading m" in errors.getvalue()
    assert "500.0 kB of 1.0 MB" in errors.getvalue()


def test_counter(errors: io.StringIO) -> None:
    with console.Counter() as counter:
        counter("first", 0, 3)
        counter("second", 2, 3)
        counter._bars.refresh()
    assert "second" in plain(errors.getvalue())
    assert "2/3" in plain(errors.getvalue())
