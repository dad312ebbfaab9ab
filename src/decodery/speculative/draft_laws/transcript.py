"""The committed text as a draft model reads it, in tokens of its own, and its cache in step with them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from decodery.engine.text import REPLACEMENT

if TYPE_CHECKING:
    from decodery.engine.vocabularies import Tokens
    from decodery.models.sequence import Sequence as CachedSequence

STRETCH = 48
"""From so many tokens on, a stretch of text ends at the next word: what was read before is not read again."""
LONGEST_CHARACTER = 4
"""Bytes, and so the most tokens, of one character."""


class Rendering(ABC):
    """The text of one request, which only grows, in a draft model's tokens."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        """The text as read the last time."""
        self.settled = 0
        """So many first ids stay whatever comes."""

    @abstractmethod
    def read(self, tokens: Sequence[int]) -> list[int] | None:
        """The ids of the committed `tokens`, of which those of the last call are the beginning; None where they cannot be
        read as they end. Nobody else changes the list."""


class SameTokens(Rendering):
    """The target's ids mean the same to the draft model. What it has no id for, it does not read.

    vocabulary: number of ids that the draft model has.
    """

    def __init__(self, vocabulary: int):
        super().__init__()
        self._vocabulary, self._seen = vocabulary, 0

    def read(self, tokens: Sequence[int]) -> list[int]:
        self.ids += [token for token in tokens[self._seen :] if token < self._vocabulary]
        self._seen, self.settled = len(tokens), len(self.ids)
        return self.ids


class OtherTokens(Rendering):
    """The text as the draft model's own tokenizer splits it: the tokens that it was trained on.

    Special tokens say nothing, but where both have one that is written the same (`shared`: the target's id -> the draft
    model's). Between them, the text is split anew from a word's beginning some tokens back, since later text can change how
    earlier text is split. A character that is incomplete is read if its parts are tokens of both.
    """

    def __init__(self, target: Tokens, draft: Tokens, shared: Mapping[int, int]):
        super().__init__()
        self._target, self._draft, self._shared = target, draft, shared
        self._settled_ids = draft.begin()
        self._open: list[int] = []
        """The target's tokens of the stretch of text that is not settled."""
        self._begun = False
        self._seen = 0
        self._special: dict[int, bool] = {}

    def read(self, tokens: Sequence[int]) -> list[int] | None:
        for token in tokens[self._seen :]:
            if self._is_special(token):
                self._settle()
                if token in self._shared:
                    self._settled_ids.append(self._shared[token])
                    self._begun = True
            else:
                if len(self._open) >= STRETCH and self._target.decode_within([token])[:1].isspace():
                    self._settle()
                self._open.append(token)
        self._seen = len(tokens)
        whole = self._complete()
        rest = self._open[whole:]
        if any(token not in self._shared for token in rest):
            return None
        self.settled = len(self._settled_ids)
        self.ids = [*self._settled_ids, *self._split(self._open[:whole]), *(self._shared[token] for token in rest)]
        return self.ids

    def _is_special(self, token: int) -> bool:
        if token not in self._special:
            self._special[token] = self._target.special(token) is not None
        return self._special[token]

    def _settle(self) -> None:
        self._settled_ids += self._split(self._open)
        self._begun = self._begun or bool(self._open)
        self._open = []

    def _split(self, tokens: list[int]) -> list[int]:
        if not tokens:
            return []
        if self._begun:
            return self._draft.encode_within(self._target.decode_within(tokens))
        return self._draft.encode(self._target.decode(tokens))

    def _complete(self) -> int:
        """How many of the open tokens end with a whole character."""
        for missing in range(min(LONGEST_CHARACTER, len(self._open) + 1)):
            end = len(self._open) - missing
            if not self._target.decode_within(self._open[:end]).endswith(REPLACEMENT):
                return end
        return len(self._open)  # no part of a character, but what can never become one


class Transcript:
    """What a draft model has read of a request: its cache follows the text by the longest beginning in common."""

    def __init__(self, rendering: Rendering, sequence: CachedSequence):
        self.rendering, self.sequence = rendering, sequence
        self._agreed = 0
        """So many first rows of the cache are settled ids."""

    def pending(self, tokens: Sequence[int]) -> list[int] | None:
        """Forget the rows that are not of the text, and give the ids that are missing, at least one; None where the draft
        model cannot read the text, or where it is longer than its context."""
        ids = self.rendering.read(tokens)
        if not ids or len(ids) > self.sequence.owner.context:
            return None
        cached = self.sequence.tokens
        most = min(len(cached), len(ids) - 1)
        same = min(self._agreed, most)
        while same < most and cached[same] == ids[same]:
            same += 1
        self.sequence.truncate(same)
        self._agreed = self.rendering.settled
        return ids[same:]
