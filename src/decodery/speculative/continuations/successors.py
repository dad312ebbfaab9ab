"""A table of likely successors of runs of one, two and three tokens, as a model itself gave them."""

from __future__ import annotations

import zipfile
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decodery._lazy import np
from decodery.errors import BadInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMAT = "decodery successors 2"
LEVELS = 255
"""Shares are kept in so many steps."""
LENGTHS = (1, 2, 3)
"""Lengths of the runs."""
KEPT = (8, 4, 3)
"""Successors kept of runs of each length."""
SEEN = (1, 1, 2)
"""Runs that were seen less often are left out: most runs of three occur once, and tell little that their last two do not."""
LARGEST = 1 << 21
"""Three ids of a smaller vocabulary fit one key."""


@dataclass(frozen=True, eq=False)
class Successors:
    """Successors of runs of one length; never changes.

    keys: [runs] int64 ascending, the run's tokens as digits to the base of the vocabulary. ids: [runs, k] int32, likeliest
    first, -1 where there are fewer. shares: [runs, k] uint8, probability in 1 / 255. counts: [runs] uint8, how often the run
    was seen (at most 255).
    """

    keys: NDArray[np.int64]
    ids: NDArray[np.int32]
    shares: NDArray[np.uint8]
    counts: NDArray[np.uint8]

    def after(self, key: int) -> tuple[list[int], list[float], int]:
        """Successors of a run, their shares, and how often it was seen; empty where it was not."""
        # Drafting waits for this: views give Python numbers several times sooner than arrays do.
        keys = self.keys.data
        row = bisect_left(keys, key)
        if row == len(keys) or keys[row] != key:
            return [], [], 0
        ids: list[int] = self.ids[row].data.tolist()
        found = [token for token in ids if token >= 0]
        shares: list[int] = self.shares[row].data.tolist()
        return found, [share / LEVELS for share in shares[: len(found)]], int(self.counts[row])


@dataclass(frozen=True, eq=False)
class SuccessorTable:
    """Successors of runs of one, two and three tokens (`runs[0]` to `runs[2]`); never changes."""

    runs: tuple[Successors, ...]
    vocabulary: int
    tokenizer: str = ""

    @classmethod
    def average(
        cls,
        context: NDArray[np.int64],
        ids: NDArray[np.int64],
        shares: NDArray[np.float32],
        vocabulary: int,
        tokenizer: str = "",
        kept: Sequence[int] = KEPT,
        seen: Sequence[int] = SEEN,
    ) -> SuccessorTable:
        """The table of the mean law after each run of tokens.

        context: [n, 3] the last three tokens. ids, shares: [n, k] likeliest successors there and their probabilities. kept:
        successors of a run. seen: how often a run must occur, both by its length. Raises ValueError for a vocabulary whose
        runs do not fit a key.
        """
        if vocabulary >= LARGEST:
            raise ValueError(
                f"a vocabulary of {vocabulary} tokens is too large: runs of three need less than {LARGEST}."
            )
        runs: list[Successors] = []
        key = np.zeros(len(context), dtype=np.int64)
        for place, (most, least) in enumerate(zip(kept, seen, strict=True)):
            key = key + context[:, -1 - place] * np.int64(vocabulary) ** place
            runs.append(_mean(key, ids, shares, vocabulary, most, least))
        return cls(tuple(runs), vocabulary, tokenizer)

    def after(self, run: Sequence[int]) -> tuple[list[int], list[float], int]:
        """Successors of a run of at most three tokens, their shares, and how often it was seen; empty where it was not."""
        key = 0
        for token in run:
            key = key * self.vocabulary + token
        return self.runs[len(run) - 1].after(key)

    def save(self, path: Path) -> None:
        """Write a compressed .npz file."""
        arrays: dict[str, Any] = {}
        for length, run in enumerate(self.runs, start=1):
            # Differences compress better than keys.
            arrays[f"keys{length}"] = np.diff(run.keys, prepend=0)
            arrays[f"ids{length}"] = run.ids
            arrays[f"shares{length}"] = run.shares
            arrays[f"counts{length}"] = run.counts
        np.savez_compressed(path, format=FORMAT, vocabulary=self.vocabulary, tokenizer=self.tokenizer, **arrays)

    @classmethod
    def read(cls, path: Path) -> SuccessorTable:
        """Raises BadInput where the file is none of ours."""
        try:
            with np.load(path, allow_pickle=False) as held:
                if str(held["format"]) != FORMAT:
                    raise ValueError(f"it is of the format {held['format']}")
                runs = [
                    Successors(
                        np.cumsum(held[f"keys{length}"]),
                        held[f"ids{length}"],
                        held[f"shares{length}"],
                        held[f"counts{length}"],
                    )
                    for length in LENGTHS
                ]
                return cls(tuple(runs), int(held["vocabulary"]), str(held["tokenizer"]))
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise BadInput(f"{path} is no table of successors: {error}.") from error


def _mean(
    keys: NDArray[np.int64], ids: NDArray[np.int64], shares: NDArray[np.float32], vocabulary: int, kept: int, seen: int
) -> Successors:
    """The `kept` likeliest successors of each key that occurs at least `seen` times."""
    unique, place, counts = np.unique(keys, return_inverse=True, return_counts=True)
    # A cell is a (key, successor); the vocabulary times keys would not fit, so keys are numbered first.
    cells = (place[:, None] * np.int64(vocabulary) + ids).ravel()
    found, where = np.unique(cells, return_inverse=True)
    total = np.bincount(where, shares.ravel().astype(np.float64), len(found))
    row, token = found // vocabulary, found % vocabulary
    mean = total / counts[row]
    order = np.lexsort((token, -mean, row))
    row, token, mean = row[order], token[order], mean[order]
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    chosen = (rank < kept) & (mean >= 0.5 / LEVELS)
    best = np.full((len(unique), kept), -1, dtype=np.int32)
    share = np.zeros((len(unique), kept), dtype=np.uint8)
    best[row[chosen], rank[chosen]] = token[chosen]
    share[row[chosen], rank[chosen]] = np.minimum(LEVELS, np.round(mean[chosen] * LEVELS)).astype(np.uint8)
    often = counts >= seen
    return Successors(unique[often], best[often], share[often], np.minimum(counts[often], 255).astype(np.uint8))
