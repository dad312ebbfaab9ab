"""Text as it is being decoded: on a terminal with the drafted tokens in another shade, into a pipe as it is."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from rich.text import Text

from decodery.cli.console import Bars, output, visible

if TYPE_CHECKING:
    from decodery.engine.events import Event

DRAFTED = "cyan"
PROMPT = "dim"
NOTICED = 0.1
"""Seconds of waiting that are worth telling."""


class LiveText:
    """Writes text piece by piece to standard output."""

    def __init__(self) -> None:
        self._console = output()
        self.begun = False
        """Whether anything was shown."""
        self.drafted = False
        """Whether anything was shown in the other shade."""

    def write(self, text: str, style: str = "") -> None:
        if not text:
            return
        self.begun = True
        if self._console.is_terminal:
            # Rich would expand tabs and wrap; a piece in the middle of a line must stay as it is.
            self._console.print(Text(visible(text), style=style), end="", soft_wrap=True)
        else:
            sys.stdout.write(text)
            sys.stdout.flush()

    def token(self, text: str, from_draft: bool) -> None:
        """The text of a token."""
        self.drafted |= from_draft and not self._console.no_color
        self.write(text, DRAFTED if from_draft else "")

    def end(self) -> None:
        """The text is over: end its line."""
        self.write("\n")

    def follow(self, events: Iterable[Event], echo: str = "") -> None:
        """Write what the events of one request or of several samples say; samples one after the other, in order.

        The first sample that is not over is shown as it comes; later ones wait until it is their turn. echo: the
        prompt, written before each.
        """
        from decodery.engine.events import Finished, Token

        current = 0
        waiting: dict[int, list[tuple[str, bool]]] = {}
        over: set[int] = set()

        def show_next() -> None:
            for text, from_draft in waiting.pop(current, []):
                self.token(text, from_draft)

        def separate() -> None:
            self.write("\n---\n", PROMPT)
            self.write(echo, PROMPT)

        try:
            for place, event in enumerate(_spun(events)):
                if place == 0:
                    self.write(echo, PROMPT)
                if not isinstance(event, Token | Finished):
                    continue
                from_draft = isinstance(event, Token) and event.from_draft
                waiting.setdefault(event.request, []).append((event.text, from_draft))
                if isinstance(event, Finished):
                    over.add(event.request)
                show_next()
                while current in over and waiting:
                    current += 1
                    separate()
                    show_next()
        except KeyboardInterrupt:
            while waiting:  # what the other samples had so far
                current += 1
                separate()
                show_next()
            raise


def _spun(events: Iterable[Event]) -> Iterator[Event]:
    """The events, with a spinner until the first: reading a long prompt takes a while."""
    rest = iter(events)
    with Bars("reading the prompt"):
        first = next(rest, None)
    if first is not None:
        yield first
        yield from rest


def statistic(stats: dict[str, Any], method: str, exactness: str) -> Text:
    """The numbers of one request in a line."""
    parts = (
        method,
        exactness,
        f"{stats['new_tokens']} tokens in {stats['seconds']:.2f} s",
        f"{stats['tokens_per_second']:.1f} tokens/s",
        f"{stats['acceptance_length']:.2f} per forward",
        *([f"waited {waited:.1f} s for memory"] if (waited := stats.get("queued_seconds", 0.0)) >= NOTICED else []),
    )
    return Text(" · ".join(parts), style="dim")


def legend() -> Text:
    """What the other shade means."""
    return Text("drafted and accepted tokens in ", style="dim").append("this shade", style=DRAFTED)
