"""A table of likely successors of tokens and of pairs of tokens, as a model itself gave them."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from decodery._lazy import np
from decodery.errors import BadInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMAT = "decodery successors 1"
LEVELS = 255
"""Shares are kept in so many steps."""


@dataclass(frozen=True, eq=False)
class SuccessorTable:
    """Successors of pairs and of single tokens; never changes.

    pair_keys: [pairs] int64 ascending, first token * vocabulary + second token. pair_ids: [pairs, k] int32, likeliest first,
    -1 where there are fewer. pair_shares: [pairs, k] uint8, probability in 1 / 255. pair_counts: [pairs] uint8, how often
    the pair was seen (at most 255). token_ids, token_shares, token_keys: the same for single tokens.
    """

    pair_keys: NDArray[np.int64]
    pair_ids: NDArray[np.int32]
    pair_shares: NDArray[np.uint8]
    pair_counts: NDArray[np.uint8]
    token_keys: NDArray[np.int64]
    token_ids: NDArray[np.int32]
    token_shares: NDArray[np.uint8]
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
        per_pair: int = 4,
        per_token: int = 8,
    ) -> SuccessorTable:
        """The table of the mean law after each pair and each token.

        context: [n, 2] the last two tokens. ids, shares: [n, k] likeliest successors there and their probabilities.
        """
        pairs = _mean(context[:, 0] * vocabulary + context[:, 1], ids, shares, vocabulary, per_pair)
        tokens = _mean(context[:, 1], ids, shares, vocabulary, per_token)
        return cls(*pairs, *tokens[:3], vocabulary, tokenizer)

    def after_pair(self, first: int, second: int) -> tuple[list[int], list[float], int]:
        """Successors of a pair, their shares, and how often it was seen; empty where it was not."""
        key = first * self.vocabulary + second
        row = int(self.pair_keys.searchsorted(key))
        if row == len(self.pair_keys) or self.pair_keys[row] != key:
            return [], [], 0
        ids, shares = _row(self.pair_ids[row], self.pair_shares[row])
        return ids, shares, int(self.pair_counts[row])

    def after_token(self, token: int) -> tuple[list[int], list[float]]:
        """Successors of a token and their shares; empty where it was not seen."""
        row = int(self.token_keys.searchsorted(token))
        if row == len(self.token_keys) or self.token_keys[row] != token:
            return [], []
        return _row(self.token_ids[row], self.token_shares[row])

    def save(self, path: Path) -> None:
        """Write a compressed .npz file."""
        np.savez_compressed(
            path,
            format=FORMAT,
            vocabulary=self.vocabulary,
            tokenizer=self.tokenizer,
            # Differences compress better than keys.
            pair_keys=np.diff(self.pair_keys, prepend=0),
            pair_ids=self.pair_ids,
            pair_shares=self.pair_shares,
            pair_counts=self.pair_counts,
            token_keys=np.diff(self.token_keys, prepend=0),
            token_ids=self.token_ids,
            token_shares=self.token_shares,
        )

    @classmethod
    def read(cls, path: Path) -> SuccessorTable:
        """Raises BadInput where the file is none of ours."""
        try:
            with np.load(path, allow_pickle=False) as held:
                if str(held["format"]) != FORMAT:
                    raise ValueError(f"it is of the format {held['format']}")
                return cls(
                    np.cumsum(held["pair_keys"]),
                    held["pair_ids"],
                    held["pair_shares"],
                    held["pair_counts"],
                    np.cumsum(held["token_keys"]),
                    held["token_ids"],
                    held["token_shares"],
                    int(held["vocabulary"]),
                    str(held["tokenizer"]),
                )
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise BadInput(f"{path} is no table of successors: {error}.") from error


def _row(ids: NDArray[np.int32], shares: NDArray[np.uint8]) -> tuple[list[int], list[float]]:
    found = [token for token in ids.tolist() if token >= 0]
    return found, [share / LEVELS for share in shares.tolist()[: len(found)]]


def _mean(
    keys: NDArray[np.int64], ids: NDArray[np.int64], shares: NDArray[np.float32], vocabulary: int, kept: int
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.uint8], NDArray[np.uint8]]:
    """Rows of the `kept` likeliest successors per key: keys, ids, shares, counts."""
    unique, place, counts = np.unique(keys, return_inverse=True, return_counts=True)
    # A cell is a (key, successor); vocabulary squared times keys would not fit, so keys are numbered first.
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
    return unique, best, share, np.minimum(counts, 255).astype(np.uint8)
