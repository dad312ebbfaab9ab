"""What happened, in order: for streaming, traces and statistics.

Every event names in `request` the text that it tells of: the place of its reply among all replies of the call, which come
prompt by prompt. `output` is the number of that text among the `n` of its prompt, be they samples or decided together.

A method that decides several texts together tells nothing of its tries. Their events come when it is decided which of them are
outputs: those of each output in the order in which they happened, one output after the other, unless the method shows them
as they come (`Request.show`). Which texts it considers is told as it does (`Branched`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from decodery.engine.statistics import Statistics


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log probabilities (natural) of one committed token, of the target network.

    raw: under the softmax of the raw scores. processed: under the law it was drawn from (0 in greedy decoding).
    top: the likeliest tokens under the raw softmax with theirs, highest first.
    """

    raw: float
    processed: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Drafted:
    """A draft was sent to be verified: its tokens and each one's parent (-1: the last committed token)."""

    request: int
    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    output: int = 0


@dataclass(frozen=True, slots=True)
class Branched:
    """A search, or a look ahead, goes on with further texts: new nodes of the tree of all that it has considered.

    Nodes are numbered in the order in which they are told, over all these events of a request; equal texts are the same node.
    tokens: of the new ones. parents: the number of the node before each (-1: the prompt). scores: what the method goes by, of
    the text that ends there when it is told; None where none ends.
    """

    request: int
    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    scores: tuple[float | None, ...]
    output: int = 0


@dataclass(frozen=True, slots=True)
class Unmasked:
    """Positions of a canvas were filled.

    step: counted from 0. offsets: of the canvas, 0 being the first position behind the prompt. tokens: one for each.
    length: of the canvas.
    """

    request: int
    step: int
    offsets: tuple[int, ...]
    tokens: tuple[int, ...]
    length: int
    output: int = 0


@dataclass(frozen=True, slots=True)
class Inserted:
    """A token was inserted into a text that grows anywhere.

    step: counted from 0; -1 of tokens that the prompt gives between its holes, which come first. offset: where the token stands
    now, 0 being the first place of the text; those that stood from there on move one place to the right.
    """

    request: int
    step: int
    offset: int
    token: int
    output: int = 0


@dataclass(frozen=True, slots=True)
class Token:
    """A token was committed.

    text: what it adds to the visible text; may be empty (a part of a character, a possible stop string) and may hold
        what earlier tokens had to hold back. from_draft: it had been drafted and was accepted.
    """

    request: int
    index: int
    token_id: int
    text: str
    from_draft: bool
    logprobs: TokenLogprobs | None = None
    output: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """The text is over. text: what was still held back. reason: "stop", "length", "cancelled" or "error"."""

    request: int
    text: str
    reason: str
    statistics: Statistics
    output: int = 0


Event: TypeAlias = "Drafted | Branched | Unmasked | Inserted | Token | Finished"
