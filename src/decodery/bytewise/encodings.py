"""Which tokens a tokenizer may have made of a text so far, whatever comes: covers are put together from them."""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from decodery._lazy import np
from decodery.bytewise.merges import Merges
from decodery.bytewise.splits import Splits, completions
from decodery.errors import MethodUnavailable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from decodery.bytewise.spelling import Spelled

MOST_TABLES = 1 << 12
"""Beginnings of texts, by stand-ins, for which it is kept what may follow."""
DECIDING = 3
"""First signs of a token, runs cut short, that decide on splits before it."""
PIECES = 3
"""Last pieces of a pre-tokenizer that a place remembers: look-ahead reaches no farther."""


@dataclass(frozen=True)
class Border:
    """After some tokens: what of them decides on what may follow.

    last: the token before, -1 at the beginning of a text. parts: of the tokens from the beginning of a piece on, what each
    says by stand-ins; tokens that share a sign are one. joins: of each part but the first, whether it could stay apart within
    a piece. partial: the bytes of a sign that is not complete. suffix: the last bytes, as far as they may begin an added
    token.
    """

    last: int = -1
    parts: tuple[str, ...] = ()
    joins: tuple[bool, ...] = ()
    partial: bytes = b""
    suffix: bytes = b""


START = Border()


class Encoding(Protocol):
    """How a tokenizer makes tokens of text. reachable: bool [vocabulary], the tokens that it makes at all."""

    reachable: NDArray[np.bool_]

    def after(self, place: Border, token: int) -> Border:
        """The place after one more token."""
        ...

    def follows(self, place: Border) -> NDArray[np.bool_]:
        """Which tokens may come there, bool [vocabulary]: whether some continuation makes the tokenizer put them there."""
        ...

    def allows(self, place: Border, token: int) -> bool:
        """Whether one token may come there: the same for less."""
        ...

    def may_end(self, place: Border) -> bool:
        """Whether the tokens are those of their text, if nothing follows."""
        ...


class Fixed:
    """A vocabulary none of whose tokens begins another one: each text has one sequence of tokens."""

    def __init__(self, vocabulary: int):
        self.reachable = np.ones(vocabulary, dtype=bool)

    def after(self, place: Border, token: int) -> Border:
        return place

    def follows(self, place: Border) -> NDArray[np.bool_]:
        return self.reachable

    def allows(self, place: Border, token: int) -> bool:
        return True

    def may_end(self, place: Border) -> bool:
        return True


class BytePairs:
    """Byte pair encoding behind a pre-tokenizer, with added tokens that are taken out of a text first.

    spelled: what the tokens say. model: the description of the encoding in a tokenizer's file. splits: the pre-tokenizer; None
    where there is none.
    """

    def __init__(self, spelled: Spelled, model: Mapping[str, Any], splits: Splits | None):
        self._bytes, self._splits, self._size = spelled.bytes, splits, len(spelled.bytes)
        pairs = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ", 1)) for pair in model["merges"]]
        self.merges = Merges(model["vocab"], pairs)
        self._fallback = spelled.fallback
        self._added = spelled.added
        self.reachable = np.zeros(self._size, dtype=bool)
        self.reachable[: self.merges.size] = self.merges.reachable[: self._size]
        self.reachable[list(spelled.fallback)] = True
        for token, said in enumerate(self._bytes):
            if not said:
                self.reachable[token] = False
        self._hide_added()
        self._signs = self._known_signs(model["vocab"]) if spelled.fallback else {}
        self._first = np.array([said[0] if said else 0 for said in self._bytes])
        if splits is not None:
            self._groups, self._group_of = self._kinds(splits)
            self._tables: OrderedDict[tuple[tuple[str, ...], tuple[bool, ...]], NDArray[np.bool_]] = OrderedDict()

    @property
    def unreachable(self) -> list[int]:
        """Tokens that the tokenizer never makes of a text, though they say something."""
        return [token for token, said in enumerate(self._bytes) if said and not self.reachable[token]]

    def after(self, place: Border, token: int) -> Border:
        if token in self._added:
            return Border(suffix=self._bytes[token])
        suffix = (b"" if place.last < 0 else place.suffix) + self._bytes[token]
        suffix = suffix[-self._longest :] if self._longest else b""
        text, partial = _whole_signs(place.partial + self._bytes[token])
        if self._splits is None:
            return Border(token, partial=partial, suffix=suffix)
        written = self._splits.written(text)
        if place.partial:
            parts, joins = (*place.parts[:-1], place.parts[-1] + written), place.joins
        elif place.parts:
            parts, joins = (*place.parts, written), (*place.joins, self._may_meet(place.last, token))
        else:
            parts, joins = (written,), ()
        parts, joins = self._shortened(parts, joins)
        return Border(token, parts, joins, partial, suffix)

    def follows(self, place: Border) -> NDArray[np.bool_]:
        found = self.reachable.copy()
        joined = np.ones(self._size, dtype=bool)
        if place.last >= 0:
            joined[self.merges.merged_with(place.last)] = False
            joined[list(self._added)] = True
        if place.partial:
            found &= joined & (self._first >= 0x80) & (self._first < 0xC0)
        elif self._splits is None:
            found &= joined
        else:
            split_ok, join_ok = self._around(place.parts, place.joins)
            found &= split_ok | (join_ok & joined)
        for token in self._fallback:
            found[token] &= self._lacks(place.partial + self._bytes[token])
        for rest in self._rests(place):
            start = bisect_left(self._words, rest)
            stop = bisect_left(
                self._words, rest[:-1] + bytes([rest[-1] + 1]), start
            )  # rest is text, so no byte of it is 255
            found[self._ordered[start:stop]] = False
        return found

    def allows(self, place: Border, token: int) -> bool:
        said = self._bytes[token]
        if not self.reachable[token] or any(said.startswith(rest) for rest in self._rests(place)):
            return False
        joined = token in self._added or self._may_meet(place.last, token)
        if token in self._fallback and not self._lacks(place.partial + said):
            return False
        if place.partial:
            return joined and 0x80 <= said[0] < 0xC0
        if self._splits is None:
            return joined
        found = [self._splits.around(place.parts, place.joins, text) for text in self._groups[self._group_of[token]]]
        return any(split or (join and joined) for split, join in found)

    def may_end(self, place: Border) -> bool:
        return self._splits is None or bool(place.partial) or self._splits.whole(place.parts, place.joins)

    # What follows from the pre-tokenizer

    def _may_meet(self, left: int, right: int) -> bool:
        return left < 0 or self.merges.may_meet(left, right)

    def _around(self, parts: tuple[str, ...], joins: tuple[bool, ...]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Of each token, whether it may come behind a split, and whether within the last piece: bool [vocabulary] both."""
        assert self._splits is not None
        if (parts, joins) not in self._tables:
            found = np.zeros((len(self._groups), 2), dtype=bool)
            for number, group in enumerate(self._groups):
                for text in group:
                    found[number] |= self._splits.around(parts, joins, text)
            self._tables[parts, joins] = found
            if len(self._tables) > MOST_TABLES:
                self._tables.popitem(last=False)
        table = self._tables[parts, joins]
        return table[self._group_of, 0], table[self._group_of, 1]

    def _shortened(self, parts: tuple[str, ...], joins: tuple[bool, ...]) -> tuple[tuple[str, ...], tuple[bool, ...]]:
        """Without the pieces before the last ones."""
        assert self._splits is not None
        if len(parts) <= PIECES:
            return parts, joins
        starts = self._splits.starts("".join(parts))
        if len(starts) <= PIECES:
            return parts, joins
        place = 0
        for number, part in enumerate(parts):
            if place == starts[-PIECES]:
                return parts[number:], joins[number:]
            place += len(part)
        return parts, joins

    def _kinds(self, splits: Splits) -> tuple[list[frozenset[str]], NDArray[np.int64]]:
        """Groups of tokens that a pre-tokenizer treats alike, and the group of each token."""
        numbers: dict[frozenset[str], int] = {}

        def start(text: str) -> str:
            return splits.written(text)[:DECIDING]

        of = np.zeros(self._size, dtype=np.int64)
        for token, said in enumerate(self._bytes):
            text, partial = _whole_signs(said.lstrip(bytes(range(0x80, 0xC0))))
            ends = {start(text + sign) for sign in completions(partial)} if partial else {start(text)}
            of[token] = numbers.setdefault(frozenset(ends), len(numbers))
        return list(numbers), of

    # What follows from tokens that are taken out of a text first

    def _hide_added(self) -> None:
        self._longest = max((len(self._bytes[token]) for token in self._added), default=0)
        self._beginnings: dict[bytes, set[bytes]] = {}
        if not self._added:
            return
        said = {self._bytes[token] for token in self._added}
        pattern = re.compile(b"|".join(re.escape(one) for one in sorted(said, key=len)))
        for token, own in enumerate(self._bytes):
            if own and token not in self._added and pattern.search(own):
                self.reachable[token] = False
        self.reachable[list(self._added)] = True
        for one in said:
            for length in range(1, len(one)):
                self._beginnings.setdefault(one[:length], set()).add(one[length:])
        ordered = sorted((own, token) for token, own in enumerate(self._bytes) if own)
        self._words = [own for own, _ in ordered]
        self._ordered = np.array([token for _, token in ordered])

    def _rests(self, place: Border) -> set[bytes]:
        """What would complete an added token which the text before has begun: no token may begin with it."""
        if not place.suffix or not self._beginnings:
            return set()
        lengths = (len(place.suffix),) if place.last < 0 else range(1, len(place.suffix) + 1)
        return {rest for length in lengths for rest in self._beginnings.get(place.suffix[-length:], ())}

    # What follows from tokens of single bytes for signs that have none

    def _known_signs(self, vocabulary: Mapping[str, int]) -> dict[bytes, int]:
        """Beginning of a sign -> how many signs with it have a token; a space counts where it is written as another sign."""
        counts: dict[bytes, int] = {}
        for written, token in vocabulary.items():
            for sign in {written.encode(errors="ignore"), self._bytes[token]} if len(written) == 1 else ():
                for length in range(1, len(sign) + 1):
                    counts[sign[:length]] = counts.get(sign[:length], 0) + 1
        return counts

    def _lacks(self, beginning: bytes) -> bool:
        """Whether some sign that begins so has no token of its own."""
        return _signs_with(beginning) > self._signs.get(beginning, 0)


def _whole_signs(data: bytes) -> tuple[str, bytes]:
    """The complete signs of some bytes, and the beginning of one behind them."""
    for missing in range(min(4, len(data) + 1)):
        rest = data[len(data) - missing :]
        if missing and (rest[0] < 0xC0 or _length(rest[0]) <= missing):
            continue
        if missing or not data or data[-1] < 0x80:
            return data[: len(data) - missing].decode(errors="replace"), rest
        try:
            return data.decode(), b""
        except UnicodeDecodeError:
            continue
    return data.decode(errors="replace"), b""


def _length(lead: int) -> int:
    return 1 if lead < 0xC0 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4


def _signs_with(beginning: bytes) -> int:
    """How many signs of Unicode begin with these bytes of UTF-8."""
    lead = beginning[0]
    if lead < 0x80:
        return 1 if len(beginning) == 1 else 0
    length = _length(lead)
    if lead < 0xC2 or lead > 0xF4 or len(beginning) > length or any(not 0x80 <= byte < 0xC0 for byte in beginning[1:]):
        return 0
    number = lead & (0x7F >> length)
    for byte in beginning[1:]:
        number = number << 6 | (byte & 0x3F)
    width = 6 * (length - len(beginning))
    low, high = number << width, (number + 1) << width
    least = {2: 0x80, 3: 0x800, 4: 0x10000}[length]
    low, high = max(low, least), min(high, 0x110000)
    surrogates = max(0, min(high, 0xE000) - max(low, 0xD800))
    return max(0, high - low - surrogates)


def byte_pairs(spelled: Spelled, state: Mapping[str, Any], backend: Any, name: str) -> BytePairs:
    """The encoding of a tokenizer of the package `tokenizers`. state: its description. Raises MethodUnavailable where it is of
    a kind whose encodings are not known here."""
    model = state["model"]
    odd = [
        key for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges") if model.get(key)
    ]
    if odd:
        raise MethodUnavailable(
            f"bytes: {name} has a tokenizer with {odd[0]}, whose encodings are not understood here."
        )
    splits = None
    if state["pre_tokenizer"] is not None and backend.pre_tokenizer is not None:
        splits = Splits(backend.pre_tokenizer, json.dumps(state["pre_tokenizer"]))
    return BytePairs(spelled, model, splits)
