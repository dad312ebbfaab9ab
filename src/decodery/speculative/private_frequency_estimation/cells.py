"""What users report: one token of their text, or one pair of a known token and what follows it."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decodery.errors import BadInput

MOST_CONTEXTS = 4096
LARGEST = 1_000_000
"""Cells of a table at most: with more, no number of users shows anything."""


@dataclass(frozen=True)
class Cells:
    """What the values of a mechanism stand for.

    vocabulary: token ids. tokenizer: fingerprint of the tokenizer whose ids these are (empty: not known). contexts: tokens
    whose successors are counted; none: single tokens are. successors: of each context equally many tokens that may follow it;
    what a user has that is not listed is the last cell. Nothing of it may come from users but what they have reported.
    Raises BadInput for what does not fit together.
    """

    vocabulary: int
    tokenizer: str = ""
    contexts: tuple[int, ...] = ()
    successors: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        listed = [*self.contexts, *(token for row in self.successors for token in row)]
        if listed and not 0 <= min(listed) <= max(listed) < self.vocabulary:
            raise BadInput(f"a table of successors names tokens outside of 0..{self.vocabulary - 1}.")
        if len(set(self.contexts)) < len(self.contexts) or any(len(set(row)) < len(row) for row in self.successors):
            raise BadInput("a table of successors names a token twice.")
        if len(self.contexts) != len(self.successors) or len({len(row) for row in self.successors}) > 1:
            raise BadInput("a table of successors must list equally many for every context.")
        if self.size > LARGEST:
            raise BadInput(f"a table of {self.size} cells is too large; {LARGEST} are the most.")

    @property
    def size(self) -> int:
        """Number of values."""
        return len(self.contexts) * len(self.successors[0]) + 1 if self.contexts else self.vocabulary

    @cached_property
    def _places(self) -> dict[tuple[int, int], int]:
        pairs = ((context, token) for context, row in zip(self.contexts, self.successors, strict=True) for token in row)
        return {pair: place for place, pair in enumerate(pairs)}

    def cell(self, context: int, token: int) -> int:
        """The value of a pair."""
        return self._places.get((context, token), self.size - 1)

    def values(self, tokens: Sequence[int]) -> list[int]:
        """All values of a text: of each token, or of each pair of neighbours."""
        if not self.contexts:
            return list(tokens)
        return [self.cell(*pair) for pair in itertools.pairwise(tokens)]

    def choose(self, tokens: Sequence[int]) -> int:
        """The one value of a user's text that is reported: any of them, by the system's secure generator. Raises BadInput for a
        text that has none."""
        found = self.values(tokens)
        if not found:
            raise BadInput(f"a text of {len(tokens)} tokens has nothing to report.")
        return random.SystemRandom().choice(found)

    def tokens_of(self, value: int) -> tuple[int, ...]:
        """The token or pair of a value; empty for what is not listed."""
        if not self.contexts:
            return (value,)
        if value == self.size - 1:
            return ()
        row, column = divmod(value, len(self.successors[0]))
        return self.contexts[row], self.successors[row][column]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "vocabulary": self.vocabulary,
            "tokenizer": self.tokenizer,
            "contexts": list(self.contexts),
            "successors": [list(row) for row in self.successors],
        }

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Cells:
        """What `as_dict` gave. Raises BadInput."""
        try:
            return cls(
                int(told["vocabulary"]),
                str(told["tokenizer"]),
                tuple(map(int, told["contexts"])),
                tuple(tuple(map(int, row)) for row in told["successors"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"it does not say what its values stand for ({error!r}).") from None


def head_pairs(tokens: Cells, estimates: NDArray[np.float64], contexts: int, successors: int) -> Cells:
    """Pairs of the most frequent tokens: the first `contexts` of them, each followed by the first `successors`. estimates: of
    all single tokens, by users who are not asked again. Raises BadInput for other estimates or numbers."""
    if tokens.contexts:
        raise BadInput("pairs are chosen after counts of single tokens, and these are of pairs.")
    if not 1 <= contexts <= min(MOST_CONTEXTS, tokens.vocabulary) or not 1 <= successors <= tokens.vocabulary:
        raise BadInput(
            f"a table has 1 to {MOST_CONTEXTS} contexts and at least 1 successor, not {contexts} and {successors}."
        )
    ranked = np.argsort(-estimates, kind="stable").tolist()
    row = tuple(ranked[:successors])
    return Cells(tokens.vocabulary, tokens.tokenizer, tuple(ranked[:contexts]), (row,) * contexts)
