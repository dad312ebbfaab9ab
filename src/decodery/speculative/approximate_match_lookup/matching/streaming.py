"""Distances of a growing text's last tokens to the same number of tokens any lag before, kept up to date token by token."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from decodery.speculative.approximate_match_lookup.matching.distances import Counts, Ids, Reals

Number = TypeVar("Number", bound=np.generic)

SMALLEST_CAPACITY = 256


class Lags:
    """For each lag l = 1 .. n - 1 (entry l - 1 of the arrays), how well the text agrees with itself l tokens before.

    Exact, O(n) vectorised work per token, O(n) memory. With x the text and t its last place:

    - mismatches D: [n - 1] int32, of the last `window` tokens, sum over j < window of [x[t - j] != x[t - j - l]];
    - runs R: [n - 1] int32, the length of the run of agreeing last tokens;
    - decayed E: [n - 1] float64, sum over all j of decay^j [x[t - j] != x[t - j - l]].

    A place before the text's start agrees with nothing. earlier: tokens that stand before the text and can be lagged
    into, but are themselves no part of what is compared: the texts of earlier requests.
    """

    def __init__(self, window: int, decay: float, earlier: Iterable[int] = ()):
        if window < 1:
            raise ValueError(f"a window needs at least one token, not {window}")
        if not 0 <= decay < 1:
            raise ValueError(f"the decay must lie in [0, 1), not {decay}")
        self.window, self.decay = window, decay
        before = np.fromiter(earlier, dtype=np.int64)
        self._start = self._length = len(before)
        capacity = max(SMALLEST_CAPACITY, 2 * self._length)
        self._text: Ids = np.zeros(capacity, dtype=np.int64)
        self._text[: self._length] = before
        self._mismatches: Counts = np.full(capacity, window, dtype=np.int32)
        self._runs: Counts = np.zeros(capacity, dtype=np.int32)
        self._decayed: Reals = np.full(capacity, self._unknown)

    @property
    def _unknown(self) -> float:
        """The decayed distance to where nothing stands."""
        return 1 / (1 - self.decay)

    def __len__(self) -> int:
        """Tokens of the text, those before it included."""
        return self._length

    @property
    def text(self) -> Ids:
        """The tokens [n], those before the text included."""
        return self._text[: self._length]

    @property
    def mismatches(self) -> Counts:
        return self._mismatches[: self._lags]

    @property
    def runs(self) -> Counts:
        return self._runs[: self._lags]

    @property
    def decayed(self) -> Reals:
        return self._decayed[: self._lags]

    @property
    def _lags(self) -> int:
        return max(self._length - 1, 0)

    def push(self, token: int) -> None:
        """Append one token."""
        n, window = self._length, self.window
        if n == len(self._text):
            self._grow()
        differs = self._text[n - 1 :: -1] != token if n else np.zeros(0, dtype=bool)
        mismatches, runs, decayed = self._mismatches[:n], self._runs[:n], self._decayed[:n]
        # Each lag gains the new token's comparison and loses that of the token that leaves the window. Comparisons with a
        # place before the text count as mismatches, so what leaves is 1 for all lags that reach there.
        mismatches += differs
        leaving = n - window
        if leaving >= self._start:
            if leaving:
                mismatches[:leaving] -= self._text[leaving - 1 :: -1] != self._text[leaving]
            mismatches[leaving:] -= 1
        else:
            mismatches -= 1
        runs += 1
        runs[differs] = 0
        decayed *= self.decay
        decayed += differs
        self._text[n] = token
        self._length = n + 1

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens in order."""
        for token in tokens:
            self.push(token)

    def _grow(self) -> None:
        grown = 2 * len(self._text)
        self._text = _extended(self._text, grown, 0)
        self._mismatches = _extended(self._mismatches, grown, self.window)
        self._runs = _extended(self._runs, grown, 0)
        self._decayed = _extended(self._decayed, grown, self._unknown)

    @property
    def bytes(self) -> int:
        """Memory held, in bytes."""
        return self._text.nbytes + self._mismatches.nbytes + self._runs.nbytes + self._decayed.nbytes


def _extended(array: NDArray[Number], size: int, filler: float) -> NDArray[Number]:
    grown = np.full(size, filler, dtype=array.dtype)
    grown[: len(array)] = array
    return grown
