"""The product: of each context its successors by estimated share, as a file that drafts come from."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from decodery.errors import BadInput
from decodery.speculative.private_frequency_estimation.cells import Cells
from decodery.speculative.private_frequency_estimation.mechanism import Frequencies

FORMAT = "decodery frequency table 1"


@dataclass(frozen=True, eq=False)
class FrequencyTable:
    """Shares of all pairs of a user's neighbouring tokens; never changes.

    contexts: [n] int32. ids: [n, k] int32 successors, largest estimate first. estimates: [n, k] float32. standard_error: of a
    rare pair's; 0 where pairs were simply counted. vocabulary: number of token ids. tokenizer: its fingerprint (empty: not
    known).
    """

    contexts: NDArray[np.int32]
    ids: NDArray[np.int32]
    estimates: NDArray[np.float32]
    standard_error: float
    vocabulary: int
    tokenizer: str = ""

    @classmethod
    def of(cls, cells: Cells, frequencies: Frequencies) -> FrequencyTable:
        """The table of estimated cells. Raises BadInput where they are of single tokens."""
        if not cells.contexts:
            raise BadInput("a table of successors is made of reports of pairs, and these are of single tokens.")
        ids = np.array(cells.successors, dtype=np.int32)
        estimates = frequencies.values[:-1].reshape(ids.shape).astype(np.float32)
        order = np.argsort(-estimates, axis=1, kind="stable")
        return cls(
            np.array(cells.contexts, dtype=np.int32),
            np.take_along_axis(ids, order, axis=1),
            np.take_along_axis(estimates, order, axis=1),
            frequencies.standard_error,
            cells.vocabulary,
            cells.tokenizer,
        )

    @classmethod
    def counted(cls, cells: Cells, texts: Iterable[Sequence[int]]) -> FrequencyTable:
        """The table of the same shape that who sees all texts would have."""
        counts = np.zeros(cells.size)
        for text in texts:
            counts += np.bincount(cells.values(text), minlength=cells.size)
        return cls.of(cells, Frequencies(counts / counts.sum(), 0.0, int(counts.sum())))

    def shuffled(self, seed: int = 0) -> FrequencyTable:
        """The table with the rows of other contexts: what is left when contexts tell nothing."""
        places = np.random.default_rng(seed).permutation(len(self.contexts))
        return FrequencyTable(
            self.contexts[places], self.ids, self.estimates, self.standard_error, self.vocabulary, self.tokenizer
        )

    @cached_property
    def _rows(self) -> dict[int, int]:
        return {int(context): row for row, context in enumerate(self.contexts)}

    def after(self, context: int, alpha: float, most: int) -> list[tuple[int, float]]:
        """The `most` likeliest successors of a token with their shares of all pairs: those whose estimate a pair that nobody
        has exceeds with a probability of at most alpha."""
        row = self._rows.get(context)
        if row is None:
            return []
        threshold = NormalDist().inv_cdf(1 - alpha) * self.standard_error
        best = zip(self.ids[row, :most].tolist(), self.estimates[row, :most].tolist(), strict=True)
        return [(token, estimate) for token, estimate in best if estimate > max(threshold, 0.0)]

    def save(self, path: Path) -> None:
        """Write a .npz file."""
        told = {
            "format": FORMAT,
            "vocabulary": self.vocabulary,
            "tokenizer": self.tokenizer,
            "standard_error": self.standard_error,
        }
        with path.open("wb") as file:
            np.savez_compressed(
                file,
                about=np.array(json.dumps(told)),
                contexts=self.contexts,
                ids=self.ids,
                estimates=self.estimates,
            )

    @classmethod
    def read(cls, path: Path) -> FrequencyTable:
        """Raises BadInput where the file is none."""
        try:
            with np.load(path, allow_pickle=False) as file:
                about = json.loads(str(file["about"]))
                if about["format"] != FORMAT:
                    raise ValueError(f"it is of the format {about['format']!r}")
                return cls(
                    file["contexts"],
                    file["ids"],
                    file["estimates"],
                    float(about["standard_error"]),
                    int(about["vocabulary"]),
                    str(about["tokenizer"]),
                )
        except OSError as error:
            raise BadInput(f"the table {path} cannot be read: {error.strerror or error}.") from None
        except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise BadInput(f"{path} is no table of frequencies ({error}).") from None
