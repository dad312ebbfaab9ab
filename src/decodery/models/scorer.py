"""The contract of everything that scores tokens."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Sequence as Listing
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from decodery.models.forward import Forward, Layers, Ranking, Scores
from decodery.models.insertions import Insertions
from decodery.models.kinds import Kind
from decodery.models.masked_diffusion import MaskedDiffusion
from decodery.models.owner import Head as Head
from decodery.models.owner import Owner
from decodery.models.owner import Stability as Stability
from decodery.models.sequence import Sequence
from decodery.sampling.top import top_ids

PassKey: TypeAlias = "tuple[Layers, bool]"


def pass_key(forward: Forward) -> PassKey:
    """Forwards with equal keys can share a pass of their network."""
    return forward.layers, isinstance(forward.tokens, Tensor) and forward.tokens.is_floating_point()


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


class Scorer(Owner):
    """Anything that answers forwards. Subclasses set the attributes and give `run_pass` and `new_sequence`."""

    masked: MaskedDiffusion | None = None
    """The mask and the other special tokens of a scorer of masked positions, or of any order."""
    insertions: Insertions | None = None
    """The layout and the head of an insertion language model."""
    timed: bool = False
    """Whether its passes cost time that is worth measuring."""
    device: torch.device = torch.device("cpu")
    """Where its hidden rows lie."""
    dtype: torch.dtype = torch.float32
    """Of the hidden rows."""
    threads: int = 1
    """Processor threads of its passes."""
    rounds_inputs: bool = False
    """Whether the inputs of its products are rounded to eight bits."""
    parameters: int = 0
    """How many weights it has."""

    @property
    def kinds(self) -> Kind:
        """What it scores."""
        if self.insertions is not None:
            return Kind.INSERTIONS
        if self.masked is None:
            return Kind.NEXT_TOKEN
        return Kind.ANY_ORDER if self.masked.any_order else Kind.MASKED_POSITIONS

    @abstractmethod
    def new_sequence(self) -> Sequence:
        """An empty sequence whose cache belongs to this scorer."""

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


def scorer_of(sequence: Sequence) -> Scorer:
    """The scorer that a sequence belongs to, to ask it."""
    assert isinstance(sequence.owner, Scorer)
    return sequence.owner


class Network(Scorer):
    """A scorer that runs a network, and whose passes therefore cost time."""

    timed = True
