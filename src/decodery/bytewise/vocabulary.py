"""The tokens of a model as bytes: in order, so that those which begin with some bytes stand side by side."""

from __future__ import annotations

import itertools
import weakref
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from decodery._lazy import np
from decodery.bytewise.encodings import START, Border, Encoding, Fixed, byte_pairs
from decodery.bytewise.spelling import spelled, state_of
from decodery.engine.vocabularies import SAMPLES
from decodery.errors import MethodUnavailable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from decodery.engine.host import Host

KEPT = 256
"""Places whose followers are remembered, the least recently used forgotten first."""
BEFORE = 64
"""Tokens of a prompt from which a place is found."""


class ByteVocabulary:
    """The tokens of a model as bytes.

    said: [vocabulary] the bytes of each token, empty for special ones. order: [n] the tokens that say something and that the
    tokenizer makes, by their bytes. special: [s] those that say nothing, which end a text or stand between texts. encoding:
    which of them may follow which.
    """

    def __init__(self, said: Sequence[bytes], encoding: Encoding):
        self.said, self.encoding = list(said), encoding
        pairs = sorted((own, token) for token, own in enumerate(self.said) if own and encoding.reachable[token])
        self._words = [own for own, _ in pairs]
        self.order = np.array([token for _, token in pairs], dtype=np.int64)
        self.special = np.array([token for token, own in enumerate(self.said) if not own], dtype=np.int64)
        self.longest = max(map(len, self._words), default=0)
        self._lengths = np.array([len(own) for own in self._words], dtype=np.int64)
        self._flat = np.frombuffer(b"".join(self._words) or b"\0", dtype=np.uint8)
        self._offsets = np.concatenate([[0], self._lengths.cumsum()])
        self.tokens: dict[bytes, list[int]] = {}
        """Bytes -> the tokens that say exactly these."""
        for own, token in pairs:
            self.tokens.setdefault(own, []).append(token)
        first = encoding.follows(START)
        self.byte_tokens = [self._single(bytes([byte]), first) for byte in range(256)]
        """Of each byte the token that says it, -1 where there is none."""
        self._follows: OrderedDict[Border, NDArray[np.bool_]] = OrderedDict()

    @classmethod
    def of(cls, host: Host) -> ByteVocabulary:
        """That of a model, found out once. Raises MethodUnavailable where its tokenizer is of a kind that is not understood, or
        where what is understood differs from what it does."""
        if host.tokenizer is None:
            raise MethodUnavailable(f"bytes: {host.network.name} has no tokenizer that could say what its tokens are.")
        known = _KNOWN.setdefault(host.tokenizer, {})
        place = host.network.vocabulary, tuple(host.stop_ids)
        if place not in known:
            known[place] = cls._read(host)
        return known[place]

    @classmethod
    def _read(cls, host: Host) -> ByteVocabulary:
        state, name = state_of(host), host.network.name
        known = spelled(host, state)
        if state is None:
            words = sorted(own for own in known.bytes if own)
            for one, other in itertools.pairwise(words):
                if other.startswith(one):
                    raise MethodUnavailable(
                        f"bytes: the tokenizer of {name} is none of the package tokenizers, and its token {one!r} begins "
                        f"{other!r}: how it splits texts is not known."
                    )
            return cls(known.bytes, Fixed(len(known.bytes)))
        backend = host.tokenizer.backend_tokenizer  # type: ignore[attr-defined]
        vocabulary = cls(known.bytes, byte_pairs(known, state, backend, name))
        for text in SAMPLES:
            ids = backend.encode(text, add_special_tokens=False).ids
            written = backend.decode(ids)
            said = vocabulary.bytes_of(ids).decode(errors="replace")
            fault = "" if said.lstrip() == written.lstrip() else f"its tokens say {written!r} and not {said!r}"
            # Signs that it has no tokens for are dropped, and others come together that are never side by side.
            fault = fault or (vocabulary.fault(ids) if written.lstrip() == text.lstrip() else "")
            if fault:
                raise MethodUnavailable(f"bytes: the tokenizer of {name} is not understood: {fault}.")
        return vocabulary

    def fault(self, ids: Sequence[int]) -> str:
        """What is wrong with tokens that a tokenizer made of a text, by what is understood of it; empty where nothing is."""
        place = START
        for number, token in enumerate(ids):
            if self.said[token] and not self.encoding.allows(place, token):
                return f"it puts token {token} ({self.said[token]!r}) behind {self.bytes_of(ids[:number])[-20:]!r}"
            place = self.after(place, token)
        return ""

    def bytes_of(self, ids: Sequence[int]) -> bytes:
        """What tokens say together."""
        return b"".join(self.said[token] for token in ids)

    def spell(self, said: bytes) -> list[int]:
        """Tokens that say some bytes, as few as one after the other can be: the longest first."""
        found: list[int] = []
        while said:
            length = next(n for n in range(len(said), 0, -1) if said[:n] in self.tokens)
            own = self.tokens[said[:length]]
            found.append(self.byte_tokens[said[0]] if length == 1 else own[0])
            said = said[length:]
        return found

    def place(self, ids: Sequence[int]) -> Border:
        """The place after the tokens of a prompt."""
        found = START
        for token in ids[-BEFORE:]:
            found = self.after(found, token)
        return found

    def after(self, place: Border, token: int) -> Border:
        """The place after one more token; a special one begins anew."""
        return self.encoding.after(place, token) if self.said[token] else START

    def follows(self, place: Border) -> NDArray[np.bool_]:
        """Which tokens may come at a place, bool [vocabulary]."""
        if place not in self._follows:
            self._follows[place] = self.encoding.follows(place)
            if len(self._follows) > KEPT:
                self._follows.popitem(last=False)
        self._follows.move_to_end(place)
        return self._follows[place]

    def range(self, beginning: bytes) -> tuple[int, int]:
        """Where in the order the tokens are that begin with some bytes."""
        start = bisect_left(self._words, beginning)
        stem = beginning.rstrip(b"\xff")
        if not stem:
            return start, len(self._words)
        return start, bisect_left(self._words, stem[:-1] + bytes([stem[-1] + 1]), start)

    def next_bytes(self, start: int, stop: int, depth: int) -> NDArray[np.int64]:
        """Of tokens [start:stop] in the order, the byte at `depth` plus 1; 0 where they have none."""
        longer = self._lengths[start:stop] > depth
        places = np.where(longer, self._offsets[start:stop] + depth, 0)
        return np.where(longer, self._flat[places].astype(np.int64) + 1, 0)

    def crossed(self, before: bytes, behind: bytes) -> bool:
        """Whether some token could go across the border of two stretches of a text that goes on."""
        for length in range(1, min(self.longest - 1, len(before)) + 1):
            tail = before[len(before) - length :]
            start, stop = self.range(tail + behind[: self.longest - length])
            # A token may also end within what is behind, or be all of it.
            if start < stop or any(
                tail + behind[:more] in self.tokens for more in range(1, min(len(behind), self.longest - length) + 1)
            ):
                return True
        return False

    def _single(self, byte: bytes, first: NDArray[np.bool_]) -> int:
        own = self.tokens.get(byte, [])
        return next((token for token in own if first[token]), own[0] if own else -1)


_KNOWN: weakref.WeakKeyDictionary[Any, dict[tuple[int, tuple[int, ...]], ByteVocabulary]] = weakref.WeakKeyDictionary()
"""Tokenizer -> what is known of it, by the vocabulary and the end tokens of a model."""
