"""The causal counterpart of a canvas's plan: what is scored (the request's target), what picks, and what is fed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from decodery.models.forward import Forward, Rows, Tokens

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.engine.method import Decoding
    from decodery.engine.request import Request
    from decodery.models.forward import Scores
    from decodery.models.sequence import Sequence


@dataclass(frozen=True, eq=False)
class Choice:
    """The next token, and what enters the network for it: a row [1, hidden], such as a mixture of embeddings, or the token."""

    token: int
    fed: Tensor | None = None


Picking: TypeAlias = "Generator[Forward | tuple[Forward, ...], Scores | tuple[Scores, ...], Choice]"


class Picker(ABC):
    """Picks one token after the other of a single text. One object serves one request and may keep what it needs."""

    taps: tuple[int, ...] = ()
    """Layers whose hidden rows it wants to see."""

    @abstractmethod
    def pick(self, request: Request, sequence: Sequence, scores: Scores) -> Choice | Picking:
        """The next token, given the raw scores [1, vocabulary] after the committed text.

        One that looks ahead is a generator of forwards: it works on forks of `sequence`, which holds the committed text.
        """


def step_by_step(request: Request, picker: Picker) -> Decoding:
    """Decode a request with a picker."""
    sequence = request.new_sequence()
    yield from request.score_prompt(sequence)
    pending: Tokens = list(request.tokens[sequence.length :])
    while True:
        scores = yield Forward(sequence, pending, taps=picker.taps, logits=Rows.LAST)
        picked = picker.pick(request, sequence, scores)
        choice = (yield from picked) if isinstance(picked, Generator) else picked
        if request.commit([choice.token], scores.logits):
            return
        pending = [choice.token] if choice.fed is None else choice.fed
