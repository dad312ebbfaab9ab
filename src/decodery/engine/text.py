"""Token ids to text as they come: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Decoder(Protocol):
    """The part of a tokenizer that this needs."""

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = ...) -> str: ...


REPLACEMENT = "\ufffd"


class TextStream:
    """Turns committed tokens into visible text.

    A token's text depends on its neighbours (spaces, characters of several tokens), so each step decodes a short window
    with and without the new token and shows the difference. Text that may be the beginning of a stop string is held
    back until it is decided.
    """

    def __init__(self, tokenizer: Decoder, stop: Sequence[str] = (), context: Sequence[int] = ()):
        """stop: the strings that end the text. context: the prompt's last tokens, so that spaces come out right."""
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._ids = list(context[-4:])
        self._window = 0
        self._shown = len(self._ids)
        self._held = ""
        self.text = ""
        self.stopped_by: str | None = None

    def push(self, token: int) -> str:
        """Add a token; returns the text that becomes visible. After a stop string nothing more becomes visible."""
        if self.stopped_by is not None:
            return ""
        self._ids.append(token)
        return self._show(self._delta(final=False))

    def finish(self) -> str:
        """The text that was held back, when no more tokens come."""
        if self.stopped_by is not None:
            return ""
        shown = self._show(self._delta(final=True))
        if self.stopped_by is None:
            shown += self._held
            self.text += self._held
            self._held = ""
        return shown

    def _delta(self, final: bool) -> str:
        decode = self._tokenizer.decode
        before = decode(self._ids[self._window : self._shown], skip_special_tokens=True)
        after = decode(self._ids[self._window :], skip_special_tokens=True)
        if after.endswith(REPLACEMENT) and not final:
            return ""  # a character is still incomplete
        self._window, self._shown = self._shown, len(self._ids)
        return after[len(before) :]

    def _show(self, delta: str) -> str:
        pending = self._held + delta
        found = [(place + len(stop), place, stop) for stop in self._stop if (place := pending.find(stop)) >= 0]
        if found:
            # The one that is complete first, the longest of them: so where tokens end makes no difference.
            _, place, self.stopped_by = min(found)
            visible, self._held = pending[:place], ""
        else:
            keep = max((_overlap(pending, stop) for stop in self._stop), default=0)
            visible, self._held = pending[: len(pending) - keep], pending[len(pending) - keep :]
        self.text += visible
        return visible


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
