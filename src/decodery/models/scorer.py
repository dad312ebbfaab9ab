"""The contract of everything that scores tokens."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from collections.abc import Sequence as Listing
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from decodery.models.forward import Forward, Layers, Ranking, Scores
from decodery.models.kinds import Kind
from decodery.models.masked_diffusion import MaskedDiffusion
from decodery.models.sequence import Sequence
from decodery.sampling.top import top_ids

PassKey: TypeAlias = "tuple[Layers, bool]"


def pass_key(forward: Forward) -> PassKey:
    """Forwards with equal keys can share a pass of their network."""
    return forward.layers, isinstance(forward.tokens, Tensor) and forward.tokens.is_floating_point()


Head: TypeAlias = "Callable[[Tensor], Tensor]"


@dataclass(frozen=True)
class Work:
    """Multiplications per row, in any unit: of one attention, one feed-forward, and the head. A scorer without a network has
    layers like those of Llama and a free head."""

    attention: float = 1.0
    feed_forward: float = 2.0
    head: float = 0.0

    @property
    def layer(self) -> float:
        """Of one whole layer."""
        return self.attention + self.feed_forward


@dataclass(frozen=True)
class Stability:
    """When the scores of a row are the same, bit for bit, whatever else is scored with it.

    They are in passes of at most `rows` rows, for rows that see all cache rows up to their own: attention ranges over a
    multiple of `columns` columns to that end. In bfloat16 rounding makes this matter: a chain that is verified in such
    passes gives the very output of plain decoding, and a tree, whose nodes skip each other's rows, nearly always.
    """

    rows: int
    columns: int


class Scorer(ABC):
    """Anything that answers forwards. Subclasses set the attributes and give `run_pass` and `new_sequence`."""

    name: str
    path: str = "none"
    """How passes are run; part of what a cost curve was measured of."""
    masked: MaskedDiffusion | None = None
    """The mask and the other special tokens of a scorer of masked positions."""
    timed: bool = False
    """Whether its passes cost time that is worth measuring."""
    device: torch.device = torch.device("cpu")
    """Where its hidden rows lie."""
    dtype: torch.dtype = torch.float32
    """Of the hidden rows."""
    threads: int = 1
    """Processor threads of its passes."""
    parameters: int = 0
    """How many weights it has."""
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
    def kinds(self) -> Kind:
        """What it scores."""
        return Kind.NEXT_TOKEN if self.masked is None else Kind.MASKED_POSITIONS

    @property
    def border(self) -> int | None:
        """Texts longer than this are scored in another way than shorter ones, so that a prompt beyond it is scored whole, and
        its rows serve no other text. None where length does not matter."""
        return None

    def room(self, cached: int, length: int) -> int:
        """How many rows a draft after a text of `length` tokens, of which `cached` are, may add to the forward of the others
        without changing their scores."""
        return 1 << 30

    @abstractmethod
    def new_sequence(self) -> Sequence:
        """An empty sequence whose cache belongs to this scorer."""

    def rows_kept(self, rows: int) -> int:
        """How many rows the cache of a sequence of at most `rows` rows has room for."""
        return rows

    def cache_bytes(self, rows: int) -> int:
        """What the keys and values of a sequence of at most `rows` rows take, in bytes; 0 where none are kept."""
        return 0

    @abstractmethod
    def run_pass(self, forwards: Listing[Forward]) -> list[Scores]:
        """Score forwards that ask for the same layers and the same kind of input, in one pass."""

    def top(self, logits: Tensor, k: int) -> Ranking:
        """The `k` likeliest tokens of each row of raw scores [n, vocabulary]."""
        ids = top_ids(logits, k)
        shares = (logits.gather(1, ids) - logits.logsumexp(1, keepdim=True)).exp()
        return Ranking(ids.tolist(), shares.tolist())

    def working(self) -> contextlib.AbstractContextManager[None]:
        """Around a stretch of passes and what a method does between them: lets a scorer arrange the machine for it."""
        return contextlib.nullcontext()

    def head(self, tokens: Tensor | None = None) -> Head:
        """The final norm and the head, as a function of hidden rows [n, hidden] that leave any layer: logits
        [n, vocabulary] float32, or [n, len(tokens)] of these tokens alone. Raises ValueError where there are no rows."""
        raise ValueError(f"{self.name} is no network and has no hidden rows")

    def embed(self, tokens: Tensor) -> Tensor:
        """What enters the first layer, [n, hidden]: of n token ids, or of n mixtures of tokens, given as weights
        [n, vocabulary], the weighted sums of their rows. A forward takes such rows in place of token ids. Raises ValueError
        where there are no rows."""
        raise ValueError(f"{self.name} takes token ids and no embeddings")

    def origin_of_faults(self, tokens: Listing[int]) -> str:
        """Where scores after a text come from that are not numbers, and what helps, as the end of a sentence."""
        return f"they come from {self.name}"

    def fingerprint(self) -> str:
        """Tells apart networks of other weights; the same in float32 and bfloat16."""
        return f"{self.name} {self.vocabulary} {self.layers}"

    @property
    def work(self) -> Work:
        """What one row costs in each part of the network."""
        return Work()

    def check(self, forward: Forward) -> None:
        """Raise ValueError where a forward is malformed; called on each ask before it is packed with others."""
        forward.check(self.vocabulary, self.layers, self.hidden)

    def run(self, forwards: Listing[Forward]) -> list[Scores]:
        """Score any forwards, in as few passes as their layers and inputs allow. The answers keep the order."""
        passes: dict[PassKey, list[int]] = {}
        for place, forward in enumerate(forwards):
            passes.setdefault(pass_key(forward), []).append(place)
        answers: list[Scores | None] = [None] * len(forwards)
        for places in passes.values():
            for place, scores in zip(places, self.run_pass([forwards[i] for i in places]), strict=True):
                answers[place] = scores
        return answers  # type: ignore[return-value]


class Network(Scorer):
    """A scorer that runs a network, and whose passes therefore cost time."""

    timed = True
