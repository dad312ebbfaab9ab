"""A text in one model, read byte by byte: its covers, and the rows of a cache that stand for their tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from decodery._lazy import torch
from decodery.bytewise.covers import ByteLaw, Covers, Left, common
from decodery.errors import BadPrompt
from decodery.models.forward import Forward, Rows

if TYPE_CHECKING:
    from decodery.bytewise.vocabulary import ByteVocabulary
    from decodery.engine.asking import Asking
    from decodery.models.sequence import Sequence as CachedSequence

SLACK = 8
"""Rows of dead left encodings that a cache keeps before it is tidied up."""
ROOM = 4
"""Rows that a cache has beside those of prompt, bytes and `SLACK`: of left encodings that are there twice, at spaces."""


def split(vocabulary: ByteVocabulary, prompt: Sequence[int], more: bytes = b"") -> int:
    """How many first tokens of a prompt stay whatever comes: no token goes across their end. What is behind is open, and read
    as bytes. One token at least, since nothing comes before the first.

    more: bytes behind the prompt. Raises BadPrompt where there is no token.
    """
    if not prompt:
        raise BadPrompt("bytes need a prompt of at least one token to go on from.")
    begin = max((place + 1 for place, token in enumerate(prompt) if not vocabulary.said[token]), default=0)
    before, behind = vocabulary.bytes_of(prompt[begin:]), more
    for place in range(len(prompt), max(begin, 1), -1):
        if behind and not vocabulary.crossed(before[-vocabulary.longest :], behind):
            return place
        own = vocabulary.said[prompt[place - 1]]
        before, behind = before[: len(before) - len(own)], own + behind
    return max(begin, 1)


class ByteReader:
    """A text as one model reads it.

    sequence: of the network, whose cached rows are the first tokens of the prompt. prompt: token ids, at least one. more: bytes
    behind it. fast: see `Covers`.
    """

    def __init__(
        self,
        vocabulary: ByteVocabulary,
        sequence: CachedSequence,
        prompt: Sequence[int],
        more: bytes = b"",
        fast: bool = False,
    ):
        self.vocabulary, self.sequence, self._fast = vocabulary, sequence, fast
        kept = split(vocabulary, prompt, more)
        self.head = list(prompt[:kept])
        """Tokens that stay."""
        if sequence.length >= kept:
            sequence.truncate(kept - 1)
        self.covers = Covers(vocabulary, vocabulary.place(self.head), fast)
        self.covers.extend(vocabulary.bytes_of(prompt[kept:]) + more)
        self.begun = len(self.covers.text)
        """How many bytes of the covers' text belong to the prompt."""
        self._rows: list[Left] = []
        """Whose rows the cache has behind the head."""
        self.forwards = 0
        """How often the network was asked."""
        self.settled = 0
        """How many bytes behind the prompt had been read at the last `settle`."""

    @property
    def read(self) -> bytes:
        """The bytes behind the prompt."""
        return bytes(self.covers.text[self.begun :])

    def extend(self, more: bytes) -> None:
        """The text goes on with these bytes."""
        self.covers.extend(more)

    def cut(self, length: int) -> None:
        """Go back to `length` bytes behind the prompt. Not before the last `settle`."""
        self.covers.cut(self.begun + length)
        needed = {node for left in self.covers.lefts for node in left.path()}
        self._keep([left for left in self._rows if left in needed])

    def settle(self) -> None:
        """Nothing of the text so far will be taken back: forget what cannot go on."""
        covers = self.covers
        covers.settle()
        self.settled = len(self.read)
        needed = {node for left in covers.lefts for node in left.path()}
        if len(self._rows) - sum(left in needed for left in self._rows) < SLACK:
            return
        stem = common(covers.lefts)
        path = set(stem.path())
        self._keep([left for left in self._rows if left in needed])
        settled = [left for left in self._rows if left in path]
        self.head += [left.token for left in settled]
        self._rows = self._rows[len(settled) :]
        stem.parent = None

    def score(self) -> Asking[None]:
        """Have the network score what is new, in one forward; at the beginning the head before it in another one."""
        covers = self.covers
        if covers.root in covers.unscored:
            self.forwards += 1
            scores = yield Forward(self.sequence, self.head[self.sequence.length :], logits=Rows.LAST)
            covers.score(covers.root, scores.logits[0])
        fresh = list(covers.unscored)
        if not fresh:
            return
        self.forwards += 1
        scores = yield self._forward(fresh)
        self._rows += fresh
        for left, row in zip(fresh, scores.logits, strict=True):
            covers.score(left, row)

    def law(self, length: int | None = None) -> ByteLaw:
        """What may come after `length` bytes behind the prompt; None: after all."""
        return self.covers.law(None if length is None else self.begun + length)

    def possible(self, length: int | None = None) -> bool:
        """Whether the text has some probability, as far as `length` bytes behind the prompt."""
        return self.covers.log_mass(None if length is None else self.begun + length) > -math.inf

    def restart(self, left: Left, token: int) -> ByteReader:
        """The text after a left encoding that ends where it does, and then a special token: whatever comes begins anew."""
        path = set(left.path())
        self._keep([one for one in self._rows if one in path])
        tokens = [*self.head, *(one.token for one in self._rows), token]
        following = ByteReader(self.vocabulary, self.sequence, tokens, fast=self._fast)
        following.forwards = self.forwards
        return following

    def after(self, left: Left) -> CachedSequence:
        """The cache with the tokens of a left encoding alone, for tokens to go on from."""
        path = set(left.path())
        self._keep([one for one in self._rows if one in path])
        return self.sequence

    def _keep(self, lefts: list[Left]) -> None:
        if len(lefts) == len(self._rows):
            return
        places = {left: place for place, left in enumerate(self._rows)}
        start = len(self.head)
        self.sequence.keep([start + places[left] for left in lefts], start)
        self._rows = lefts

    def _forward(self, fresh: Sequence[Left]) -> Forward:
        """Each left encoding sees the head, those that it goes on from, and itself."""
        sequence, start = self.sequence, len(self.head)
        rows = {left: start + place for place, left in enumerate([*self._rows, *fresh])}
        mask = torch.zeros(len(fresh), start + len(rows), dtype=torch.bool)
        mask[:, :start] = True
        base, positions = sequence.positions[start - 1], []
        for place, left in enumerate(fresh):
            seen = [rows[one] for one in left.path() if one in rows]
            mask[place, seen] = True
            positions.append(base + len(seen))
        return Forward(sequence, [left.token for left in fresh], positions, mask)
