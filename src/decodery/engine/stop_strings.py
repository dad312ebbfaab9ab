"""Stop strings: looked for in text that grows, and in the special tokens that the text leaves out."""

from __future__ import annotations

import copy
from collections.abc import Sequence


class StopStrings:
    """Visible text that is not shown yet, with the unseen tokens that stand in it.

    A stop string matches in the visible text, and in the text with the special tokens in their places; there it may
    hold special tokens, but never a part of one: "|" is not found in "<|end|>". Text that may be the beginning of a stop
    string is held back until that is decided. The end of the visible text may be `open`: it is searched as it is now, but
    may still change, and is not shown.
    """

    def __init__(self, stop: Sequence[str]):
        self._stop = tuple(stop)
        self._settled = ""
        self._open = ""
        self._unseen: list[tuple[int, str]] = []
        """Offset in the visible text, and text, of each unseen token; in order."""
        self._searched = 0
        """How much of the visible text has been searched: a stop string ends behind it."""
        self._searched_all = 0
        """The same, of the text with unseen tokens."""
        self.stopped_by: str | None = None

    def fork(self) -> StopStrings:
        """An independent copy, which goes on from here."""
        twin = copy.copy(self)
        twin._unseen = list(self._unseen)
        return twin

    def put(self, settled: str, open: str = "") -> None:
        """Text that has become certain, and what may follow it; both in place of what was open before."""
        before, after = self._open, settled + open
        if self._searched > len(self._settled) and not after.startswith(before):
            self._searched = len(self._settled)
            self._searched_all = 0
        self._settled += settled
        self._open = open
        if self._unseen:
            end = len(self._settled) + len(open)
            self._unseen = [(min(offset, end), text) for offset, text in self._unseen]

    def put_unseen(self, text: str) -> None:
        """A token that the visible text leaves out."""
        if text and self._stop:
            self._unseen.append((len(self._settled) + len(self._open), text))

    def show(self, may_stop: bool = True) -> str:
        """The text that can be shown now. may_stop: whether a stop string that has become complete ends the text;
        otherwise it is a part of it."""
        if not self._stop:
            shown, self._settled = self._settled, ""
            return shown
        visible = self._settled + self._open
        complete = _WithUnseen(visible, self._unseen)
        if may_stop and (found := self._found(visible, complete)) is not None:
            place, self.stopped_by = found
            shown, self._settled, self._open, self._unseen = visible[:place], "", "", []
            return shown
        return self._release(len(visible))

    def rest(self) -> str:
        """All that is held back, when nothing more comes."""
        shown, self._settled, self._open, self._unseen = self._settled + self._open, "", "", []
        return shown

    def _found(self, visible: str, complete: _WithUnseen) -> tuple[int, str] | None:
        """Where the visible text is to be cut, and by which string: the one that is complete first, the longest of them.
        So where tokens end makes no difference."""
        found: list[tuple[int, int, int, str]] = []
        for stop in self._stop:
            place = visible.find(stop, max(0, self._searched - len(stop) + 1))
            if place >= 0:
                found.append((complete.end(place + len(stop)), complete.start(place), place, stop))
            if self._unseen:
                place = complete.find(stop, max(0, self._searched_all - len(stop) + 1))
                if place >= 0:
                    found.append((place + len(stop), place, complete.offset(place), stop))
        if not found:
            return None
        _, _, place, stop = min(found)
        return place, stop

    def _release(self, length: int) -> str:
        """What cannot be the beginning of a stop string, whatever the open text becomes."""
        size = len(self._settled)
        certain = _WithUnseen(self._settled, [entry for entry in self._unseen if entry[0] <= size])
        begun = max((_overlap(self._settled, stop) for stop in self._stop), default=0)
        begun_all = max((certain.overlap(stop) for stop in self._stop), default=0) if self._unseen else 0
        first = len(certain.text) - begun_all
        cut = min(size - begun, certain.offset(first)) if self._unseen else size - begun
        shown, self._settled = self._settled[:cut], self._settled[cut:]
        self._unseen = [
            (offset - cut, text)
            for place, (offset, text) in enumerate(self._unseen)
            if offset > min(cut, size) or certain.begins[place] >= first
        ]
        self._searched = length - cut
        self._searched_all = self._searched + sum(len(text) for _, text in self._unseen)
        return shown


class _WithUnseen:
    """A text with the unseen tokens in their places, and how places in the two belong together."""

    def __init__(self, visible: str, unseen: Sequence[tuple[int, str]]):
        parts: list[str] = []
        self.begins: list[int] = []
        """Where each unseen token begins."""
        self._unseen = unseen
        self._inside: set[int] = set()
        last = size = 0
        for offset, text in unseen:
            parts += [visible[last:offset], text]
            size += offset - last
            self.begins.append(size)
            self._inside.update(range(size + 1, size + len(text)))
            size += len(text)
            last = offset
        self.text = "".join([*parts, visible[last:]])

    def find(self, stop: str, start: int) -> int:
        """The first place from `start` on where the string stands without cutting an unseen token; -1 for none."""
        place = self.text.find(stop, start)
        while place >= 0 and not self._inside.isdisjoint((place, place + len(stop))):
            place = self.text.find(stop, place + 1)
        return place

    def overlap(self, stop: str) -> int:
        """Length of the longest end of the text that begins the string without cutting an unseen token."""
        size = len(self.text)
        lengths = range(min(size, len(stop) - 1), 0, -1)
        return next((n for n in lengths if size - n not in self._inside and stop.startswith(self.text[-n:])), 0)

    def offset(self, place: int) -> int:
        """How much of the visible text stands before a place."""
        return place - sum(
            min(len(text), place - begin)
            for begin, (_, text) in zip(self.begins, self._unseen, strict=True)
            if begin < place
        )

    def start(self, offset: int) -> int:
        """The place of the visible sign at an offset."""
        return offset + sum(len(text) for before, text in self._unseen if before <= offset)

    def end(self, offset: int) -> int:
        """The place behind the visible sign before an offset."""
        return offset + sum(len(text) for before, text in self._unseen if before < offset)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`, and is shorter."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)


def unsettled(text: str, patterns: Sequence[str]) -> int:
    """Length of the longest end of a text that begins one of the patterns."""
    return max((_overlap(text, pattern) for pattern in patterns), default=0)
