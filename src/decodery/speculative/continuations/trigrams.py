"""Which tokens follow a pair of tokens, and how often: a table counted over texts, and its drifting copy of a session."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from decodery.errors import BadInput

FORMAT: Final = "decodery trigrams 1"
READ_ROWS: Final = 200_000
"""Rows of a table that a session keeps at hand; beyond, those it has not changed are let go."""
CHANGED_ROWS: Final = 500_000
"""Rows that a session may have changed; beyond, the half that was made first is forgotten."""


@dataclass(frozen=True, eq=False)
class TrigramTable:
    """TrigramSuccessors of pairs of tokens, as arrays; never changes.

    keys: [rows] int64, ascending, first token * vocabulary + second token. starts: [rows + 1] int64; row r has the entries
    starts[r] .. starts[r + 1] - 1. ids: [entries] int32, the successors, likeliest first, lower id first among equals.
    weights: [entries] float32, shares of the row. vocabulary: number of token ids. tokenizer: fingerprint of the tokenizer
    whose ids these are (empty: not known).
    """

    keys: NDArray[np.int64]
    starts: NDArray[np.int64]
    ids: NDArray[np.int32]
    weights: NDArray[np.float32]
    vocabulary: int
    tokenizer: str = ""

    @classmethod
    def count(
        cls, texts: Iterable[Sequence[int]], vocabulary: int, *, tokenizer: str = "", at_least: int = 1
    ) -> TrigramTable:
        """The table of all runs of three tokens of `texts`, each row normalised to sum 1.

        at_least: rows seen more rarely are left out. Raises ValueError for a token outside the vocabulary.
        """
        codes = [np.zeros(0, dtype=np.int64)]
        for text in texts:
            array = np.asarray(text, dtype=np.int64)
            if array.size and (array.min() < 0 or array.max() >= vocabulary):
                raise ValueError(f"a text holds tokens outside of 0..{vocabulary - 1}")
            codes.append((array[:-2] * vocabulary + array[1:-1]) * vocabulary + array[2:])
        found, counts = np.unique(np.concatenate(codes), return_counts=True)
        keys, starts = np.unique(found // vocabulary, return_index=True)
        sizes = np.diff(np.append(starts, len(found)))
        row = np.repeat(np.arange(len(keys)), sizes)
        totals = np.bincount(row, counts, len(keys))
        order = np.lexsort((found % vocabulary, -counts, row))
        kept = order[totals[row] >= at_least]  # `row` ascends, and sorting within rows leaves it as it is
        sizes = sizes[totals >= at_least]
        return cls(
            keys[totals >= at_least],
            np.append(0, np.cumsum(sizes)).astype(np.int64),
            (found[kept] % vocabulary).astype(np.int32),
            (counts[kept] / totals[row[kept]]).astype(np.float32),
            vocabulary,
            tokenizer,
        )

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.keys)

    def pruned(self, successors: int) -> TrigramTable:
        """The table with the likeliest successors of each row alone; their weights stay as they are."""
        sizes = np.diff(self.starts)
        rank = np.arange(len(self.ids)) - np.repeat(self.starts[:-1], sizes)
        kept = rank < successors
        starts = np.append(0, np.cumsum(np.minimum(sizes, successors))).astype(np.int64)
        return TrigramTable(self.keys, starts, self.ids[kept], self.weights[kept], self.vocabulary, self.tokenizer)

    def row(self, key: int) -> tuple[list[int], list[float]] | None:
        """Successors and weights of a pair, likeliest first; None where it was never seen."""
        place = int(np.searchsorted(self.keys, key))
        if place == len(self.keys) or self.keys[place] != key:
            return None
        part = slice(int(self.starts[place]), int(self.starts[place + 1]))
        return self.ids[part].tolist(), self.weights[part].tolist()

    def save(self, path: Path) -> None:
        """Write the table as one uncompressed .npz file, which loads in a fraction of a second."""
        about = json.dumps({"format": FORMAT, "vocabulary": self.vocabulary, "tokenizer": self.tokenizer})
        with open(path, "wb") as file:
            np.savez(
                file, about=np.array(about), keys=self.keys, starts=self.starts, ids=self.ids, weights=self.weights
            )

    @classmethod
    def load(cls, path: Path) -> TrigramTable:
        """Read a table. Raises BadInput where the file is none."""
        try:
            with np.load(path, allow_pickle=False) as file:
                about = json.loads(str(file["about"]))
                if about.get("format") != FORMAT:
                    raise BadInput(f"{path} is a table of another format than {FORMAT!r}.")
                arrays = [file[name] for name in ("keys", "starts", "ids", "weights")]
        except OSError as error:
            raise BadInput(f"the table {path} cannot be read: {error.strerror or error}.") from None
        except (ValueError, KeyError, AttributeError) as error:
            raise BadInput(f"{path} is no table of trigrams ({error}).") from None
        keys, starts, ids, weights = arrays
        return cls(keys, starts, ids, weights, about["vocabulary"], about["tokenizer"])


def fingerprint(tokenizer: Any, vocabulary: int) -> str:
    """Tells tokenizers apart: a hash of what each id stands for."""
    if hasattr(tokenizer, "get_vocab"):
        meaning = sorted((int(place), str(piece)) for piece, place in tokenizer.get_vocab().items())
    else:
        meaning = [(token, str(tokenizer.decode([token]))) for token in range(vocabulary)]
    return hashlib.sha256(json.dumps(meaning).encode()).hexdigest()


class TrigramSuccessors:
    """The successors of one pair in a session, heaviest first, lower id first among equals. Few, so lists are fastest."""

    __slots__ = ("changed", "ids", "weights")

    def __init__(self, ids: list[int], weights: list[float], changed: bool = False):
        self.ids, self.weights, self.changed = ids, weights, changed

    def weight(self, token: int) -> float:
        """The weight of a successor; 0 where it is none."""
        return self.weights[self.ids.index(token)] if token in self.ids else 0.0

    def add(self, token: int, delta: float, cap: float, most: int) -> None:
        """Raise the weight of a successor by `delta` up to `cap`. A row of more than twice `most` is pruned to `most`."""
        ids, weights = self.ids, self.weights
        place = ids.index(token) if token in ids else len(ids)
        if place == len(ids):
            ids.append(token)
            weights.append(0.0)
        weight = max(min(weights[place] + delta, cap), weights[place])
        while place and (weights[place - 1] < weight or (weights[place - 1] == weight and ids[place - 1] > token)):
            ids[place], weights[place] = ids[place - 1], weights[place - 1]
            place -= 1
        ids[place], weights[place] = token, weight
        if len(ids) > 2 * most:
            del ids[most:], weights[most:]
        self.changed = True


class TrigramStore:
    """The table of one session: begins as a counted table, or empty, and drifts toward what the target writes.

    top_m: successors kept per row. table: as pruned as the session's rows shall be.
    """

    def __init__(self, vocabulary: int, top_m: int, table: TrigramTable | None = None):
        self.vocabulary, self._top_m = vocabulary, top_m
        self._table = table
        self._rows: dict[int, TrigramSuccessors | None] = {}
        self._changed = 0

    def find(self, key: int) -> TrigramSuccessors | None:
        """The row of a pair (first token * vocabulary + second token), or None."""
        if self._table is None or key in self._rows:
            return self._rows.get(key)
        found = self._table.row(key)
        row = self._rows[key] = None if found is None else TrigramSuccessors(*found)
        return row

    def reinforce(self, first: int, second: int, third: int, delta: float, cap: float) -> None:
        """Make `third` likelier after the pair; new successors begin at 0."""
        key = first * self.vocabulary + second
        row = self.find(key)
        if row is None:
            row = self._rows[key] = TrigramSuccessors([], [])
        self._changed += not row.changed
        row.add(third, delta, cap, self._top_m)

    def tidy(self) -> None:
        """Keep memory bounded: let go rows that can be read again, and the oldest changed ones where they are too many."""
        if len(self._rows) - self._changed > READ_ROWS:
            self._rows = {key: row for key, row in self._rows.items() if row is not None and row.changed}
        if self._changed > CHANGED_ROWS:
            changed = [(key, row) for key, row in self._rows.items() if row is not None and row.changed]
            self._rows = dict(changed[len(changed) // 2 :])
            self._changed = len(self._rows)
