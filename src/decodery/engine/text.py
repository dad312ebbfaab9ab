"""Token ids to text as they come: whole characters only, and nothing of a stop string.

What a token says depends on its neighbours, so tokens are decoded with some of those before them. Together the pieces are
what the tokenizer says of prompt and output, without what it says of the prompt: what is shown never changes, so text that
later tokens may still change is kept until they are there.
"""

from __future__ import annotations

import codecs
import copy
from collections.abc import Sequence

from decodery.engine.spelling import REPLACEMENT, Decoder, Spelling
from decodery.engine.stop_strings import StopStrings, unsettled

__all__ = ["REPLACEMENT", "Decoder", "TextStream"]

CONTEXT = 12
"""Tokens that are decoded before new ones: of a character each, they hold CERTAIN and those that may still change."""
CERTAIN = 8
"""Characters of their text that must be certain; the longest thing that decoding rewrites is shorter."""
MOST_BYTES = 3
"""Of a character that is incomplete."""


class TextStream:
    """Turns committed tokens into visible text.

    Amortised, a token costs one decoding of a few tokens: `_ids` holds the last visible ones, of whose text the first
    `_taken` characters have been passed on. Runs of byte-fallback tokens are read as bytes and decoded when they are over.
    """

    def __init__(self, tokenizer: Decoder, stop: Sequence[str] = (), context: Sequence[int] = ()):
        """stop: the strings that end the text. context: the prompt, so that spaces and split characters come out right."""
        self._spelling = Spelling.of(tokenizer)
        self._stops = StopStrings(stop)
        self._ids, text = self._context(context)
        self._unfinished = self._spelling.incomplete(self._ids, text)
        """How many signs at the end of the prompt's text stand for what the output completes; they belong to the output."""
        self._taken = len(text) - self._unfinished
        self._before = text[: self._taken] if self._spelling.rewritten else None
        """The prompt's text, where decoding may still rewrite it: until something of the output has been passed on."""
        self._most = 2 * max(CONTEXT, len(self._ids))
        self._run = _ByteRun()
        self._continue_run()
        self._may_stop = True
        self.text = ""

    @property
    def stopped_by(self) -> str | None:
        """The stop string that has ended the text."""
        return self._stops.stopped_by

    def fork(self) -> TextStream:
        """An independent copy, which goes on from here."""
        twin = copy.copy(self)
        twin._stops, twin._run, twin._ids = self._stops.fork(), self._run.fork(), list(self._ids)
        return twin

    def push(self, token: int, shown: bool = True, may_stop: bool = True) -> str:
        """Add a token; returns the text that becomes visible. After a stop string nothing more becomes visible.

        shown: whether its text is to be seen. may_stop: whether stop strings that it completes end the text; otherwise they
        are a part of it.
        """
        if self.stopped_by is not None:
            return ""
        self._may_stop = may_stop
        unseen = self._spelling.unseen(token)
        if unseen is None and not shown:
            unseen = self._spelling.text([token])
        byte = self._spelling.byte(token)
        if unseen is not None:
            self._stops.put_unseen(unseen)
        elif byte is not None:
            self._ids.append(token)
            self._run.add(byte)
            self._stops.put("", self._run.text)
        else:
            self._ids.append(token)
            self._run = _ByteRun()
            self._read()
        return self._show()

    def finish(self) -> str:
        """The text that was held back, when no more tokens come."""
        if self.stopped_by is not None:
            return ""
        text = self._spelling.text(self._ids)
        self._stops.put(text[self._place(text) :])
        shown = self._show()
        if self.stopped_by is None:
            rest = self._stops.rest()
            self.text += rest
            shown += rest
        return shown

    def _show(self) -> str:
        shown = self._stops.show(self._may_stop)
        self.text += shown
        return shown

    def _read(self) -> None:
        """Decode what is there, and pass on what has become certain."""
        text = self._spelling.text(self._ids)
        self._taken = self._place(text)
        certain = text.rstrip(REPLACEMENT)
        certain = text[: max(len(certain), len(text) - MOST_BYTES)]
        certain = certain[: len(certain) - unsettled(certain, self._spelling.rewritten)]
        settled = certain[self._taken :]
        self._stops.put(settled, text[max(self._taken, len(certain)) :].rstrip(REPLACEMENT))
        if settled:
            self._taken, self._before = len(certain), None
        if len(self._ids) >= self._most and self._before is None:
            self._forget(text)

    def _place(self, text: str) -> int:
        """Where in the text that begins which has not been passed on."""
        return self._taken if self._before is None else behind(self._before, text)

    def _forget(self, text: str) -> None:
        """Go on with fewer tokens before the new ones, where these alone say the same."""
        start = self._begin(self._ids, len(self._ids) - CONTEXT)
        fewer = self._spelling.text(self._ids[start:])
        needed = len(text) - self._taken + CERTAIN
        if len(fewer) >= needed and text.endswith(fewer[len(fewer) - needed :]):
            self._ids = self._ids[start:]
            self._taken += len(fewer) - len(text)
        self._most = 2 * max(CONTEXT, len(self._ids))

    def _begin(self, ids: Sequence[int], start: int) -> int:
        """The last place up to `start` that is not within a run of bytes."""
        start = max(0, start)
        while start and self._spelling.byte(ids[start]) is not None:
            start -= 1
        return start

    def _context(self, prompt: Sequence[int]) -> tuple[list[int], str]:
        """The end of a prompt that later text can depend on, without unseen tokens, and its text."""
        count = CONTEXT
        while True:
            ids: list[int] = []
            for token in reversed(prompt):
                if len(ids) >= count and self._spelling.byte(ids[-1]) is None:
                    break
                if self._spelling.unseen(token) is None:
                    ids.append(token)
            text = self._spelling.text(ids[::-1]) if ids else ""
            if len(text.rstrip(REPLACEMENT)) >= CERTAIN or len(ids) < count:
                return ids[::-1], text
            count *= 2

    def _continue_run(self) -> None:
        """Where the prompt ends in a run of bytes, the output may go on with it."""
        size = len(self._ids)
        while size and self._spelling.byte(self._ids[size - 1]) is not None:
            size -= 1
        for token in self._ids[size:]:
            self._run.add(self._spelling.byte(token) or 0)
        if not self._unfinished:
            self._run.text = ""  # these characters are the prompt's


def prompt_text(tokenizer: Decoder, prompt: Sequence[int]) -> str:
    """The visible text of a prompt; without what it leaves incomplete at its end, which the output's text begins with."""
    spelling = Spelling.of(tokenizer)
    text = spelling.text(list(prompt))
    ids = [token for token in prompt if spelling.unseen(token) is None]
    return text[: len(text) - spelling.incomplete(ids, text)]


def behind(before: str, text: str) -> int:
    """Where in a text that which stood before it ends, though decoding may have taken spaces out of it since."""
    if text.startswith(before):
        return len(before)
    signs = len(before) - before.count(" ")
    for place, sign in enumerate(text):
        if not signs:
            return place
        signs -= sign != " "
    return len(text)


class _ByteRun:
    """The characters of a run of byte tokens, so far; none where the bytes are no UTF-8."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._broken = False
        self.text = ""

    def fork(self) -> _ByteRun:
        twin = _ByteRun()
        twin._decoder.setstate(self._decoder.getstate())
        twin._broken, twin.text = self._broken, self.text
        return twin

    def add(self, byte: int) -> None:
        if self._broken:
            return
        try:
            self.text += self._decoder.decode(bytes([byte]))
        except UnicodeDecodeError:
            self._broken, self.text = True, ""
