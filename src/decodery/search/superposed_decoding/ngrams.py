"""How often tokens followed runs of tokens in a text, packed so that a look-up is a few binary searches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from decodery._lazy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Runs:
    """All runs of n tokens of a text; never changes.

    keys: [runs] int64, ascending: the place of the run's first n - 1 tokens among the shorter runs, times the vocabulary, plus
    the last token. So the runs that begin alike lie side by side. below: [runs + 1] int64, how many times all runs before
    this one occurred, together.
    """

    keys: NDArray[np.int64]
    below: NDArray[np.int64]

    def place(self, key: int) -> int | None:
        """Where a run is; None where it never occurred."""
        place = int(np.searchsorted(self.keys, key))
        return place if place < len(self.keys) and self.keys[place] == key else None


@dataclass(frozen=True, eq=False)
class NgramCounts:
    """Runs of two tokens and more of one text (`runs[0]` has those of two); never changes."""

    runs: tuple[Runs, ...]
    vocabulary: int

    @classmethod
    def of(cls, text: Sequence[int], longest: int, vocabulary: int) -> NgramCounts:
        """Count the runs of 2 to `longest` tokens of a text of token ids."""
        tokens = np.asarray(text, dtype=np.int64)
        before, found = tokens, []
        for size in range(2, longest + 1):
            keys = before[: max(len(tokens) - size + 1, 0)] * vocabulary + tokens[size - 1 :]
            unique, before, counts = np.unique(keys, return_inverse=True, return_counts=True)
            found.append(Runs(unique, np.append(0, np.cumsum(counts)).astype(np.int64)))
        return cls(tuple(found), vocabulary)

    def probabilities(self, context: Sequence[int], ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """Of each of `ids` [n], the share of the occurrences of `context` that it followed: [n] float64, zeros where the
        context never occurred before another token. context: at least one token, fewer than the longest runs have."""
        place: int | None = context[0]
        for runs, token in zip(self.runs, context[1:], strict=False):
            place = runs.place(place * self.vocabulary + token)  # type: ignore[operator]
            if place is None:
                return np.zeros(len(ids))
        assert place is not None
        runs, first = self.runs[len(context) - 1], place * self.vocabulary
        start, stop = np.searchsorted(runs.keys, [first, first + self.vocabulary])
        if start == stop:
            return np.zeros(len(ids))
        places = np.minimum(np.searchsorted(runs.keys, first + ids), len(runs.keys) - 1)
        counts = np.where(runs.keys[places] == first + ids, runs.below[places + 1] - runs.below[places], 0)
        return np.asarray(counts / (runs.below[stop] - runs.below[start]))

    def interpolated(
        self, text: Sequence[int], ids: NDArray[np.int64], weights: Sequence[float]
    ) -> NDArray[np.float64]:
        """The sum over n of a weight times the share of each of `ids` [n] after the last n - 1 tokens of `text`: [n] float64.

        weights: of runs of 2, 3, … tokens. They are taken as they are, and so need not sum to 1. Runs that would begin
        before the text are left out.
        """
        total = np.zeros(len(ids))
        for size, weight in enumerate(weights, start=1):
            if size <= len(text):
                total += weight * self.probabilities(text[-size:], ids)
        return total
