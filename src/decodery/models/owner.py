"""What is known of a scorer without asking it for scores: all that who holds a sequence needs of the one that it belongs to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

Head: TypeAlias = "Callable[[Tensor], Tensor]"


@dataclass(frozen=True)
class Stability:
    """When the scores of a row are the same, bit for bit, whatever else is scored with it.

    They are in passes of at most `rows` rows, for rows that see all cache rows up to their own: attention ranges over a
    multiple of `columns` columns to that end. In bfloat16 rounding makes this matter: a chain that is verified in such
    passes gives the very output of plain decoding, and a tree, whose nodes skip each other's rows, nearly always.
    """

    rows: int
    columns: int


class Owner:
    """Half of the contract of scorers: what they are, and what their sequences take. `Scorer` is the other half."""

    name: str
    path: str = "none"
    """How passes are run; part of what a cost curve was measured of."""
    quantize: str | None = None
    """What its weights were rounded to when it was loaded, as `decodery.load` has it; None: they were not."""
    vocabulary: int
    """Number of token ids the logits range over."""
    context: int
    """Most positions a sequence may have."""
    layers: int
    hidden: int | None = None
    """Width of the hidden rows; None where there are none."""
    stability: Stability | None = None
    """Set where rounding depends on the company of a row unless this is heeded; None where it does not or always does."""
    chains_only: bool = False
    """It answers forwards of token ids that are appended in order, each seeing all before it, by all layers, and no others:
    drafts can be chains, but no trees; there are no masks, no rewritten rows, no parts of the network."""
    measured_rows: int = 256
    """Most rows of the passes that a cost curve is measured of; beyond, it goes on as a line."""

    @property
    def border(self) -> int | None:
        """Texts longer than this are scored in another way than shorter ones, so that a prompt beyond it is scored whole, and
        its rows serve no other text. None where length does not matter."""
        return None

    def room(self, cached: int, length: int) -> int:
        """How many rows a draft after a text of `length` tokens, of which `cached` are, may add to the forward of the others
        without changing their scores."""
        return 1 << 30

    def rows_kept(self, rows: int) -> int:
        """How many rows the cache of a sequence of at most `rows` rows has room for."""
        return rows

    def cache_bytes(self, rows: int, shared: int = 0) -> int:
        """What the keys and values of a sequence of at most `rows` rows take, in bytes; 0 where none are kept. shared: so many
        first rows are those of the sequence that it is a fork of, and do not count."""
        return 0

    def embed(self, tokens: Tensor) -> Tensor:
        """What enters the first layer, [n, hidden]: of n token ids, or of n mixtures of tokens, given as weights
        [n, vocabulary], the weighted sums of their rows. A forward takes such rows in place of token ids. Raises ValueError
        where there are no rows."""
        raise ValueError(f"{self.name} takes token ids and no embeddings")

    def head(self, tokens: Tensor | None = None, normed: bool = True) -> Head:
        """The final norm and the head, as a function of hidden rows [n, hidden] that leave any layer: logits
        [n, vocabulary] float32, or [n, len(tokens)] of these tokens alone. normed: False is the head alone, a product with
        its matrix and nothing else. Raises ValueError where there are no rows."""
        raise ValueError(f"{self.name} is no network and has no hidden rows")
