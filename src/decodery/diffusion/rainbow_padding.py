"""Rainbow padding: one end token, then pads of several colours in turn (Kim et al., arXiv 2510.03680).

A canvas that is filled up with end tokens teaches a model that late positions are end tokens whatever the answer is; decoding
by confidence fills those first, and each makes its left neighbour an end token too. With K pads in a fixed cycle that starts
anew behind the end token, no pad is likelier than 1/K before anything is known, so content comes first.

The decoders stay as they are. Training takes `target`, reading an answer takes `truncate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

K = 7
"""Pads of the published recipe."""
ENTRY = "rainbow_padding"
"""Where `config.json` of a model trained so describes its pads: {"pad_token_ids": in order, "end_token_id"}."""


def target(answer: Sequence[int], length: int, end: int, pads: Sequence[int] = ()) -> list[int]:
    """The canvas [length] of an answer: the answer, one end token, and pads in turn from the first one on.

    pads: K distinct ids that mean nothing else; none at all is the usual filling with end tokens. Raises ValueError where
    the answer and its end do not fit, and where a pad is not distinct or stands in the answer.
    """
    if len(answer) + 1 > length:
        raise ValueError(f"an answer of {len(answer)} tokens and its end do not fit into a canvas of {length}")
    if len({*pads, end}) != len(pads) + 1 or {*pads, end} & set(answer):
        raise ValueError("end token and pads must differ from each other and from the answer's tokens")
    left = length - len(answer) - 1
    filling = [pads[place % len(pads)] for place in range(left)] if pads else [end] * left
    return [*answer, end, *filling]


@dataclass(frozen=True)
class Reading:
    """What a filled canvas says. tokens: the answer. no_end: no end token was there. stray: pads that stood in the answer."""

    tokens: list[int]
    no_end: bool = False
    stray: int = 0


def truncate(canvas: Sequence[int], end: int, pads: Sequence[int] = ()) -> Reading:
    """The answer on a canvas: what stands before the first end token, without stray pads; without an end token, what stands
    before the first pad."""
    known = set(pads)
    if end in canvas:
        inside = list(canvas[: list(canvas).index(end)])
        kept = [token for token in inside if token not in known]
        return Reading(kept, stray=len(inside) - len(kept))
    first = next((place for place, token in enumerate(canvas) if token in known), len(canvas))
    return Reading(list(canvas[:first]), no_end=True)


def complete(canvas: Sequence[int], end: int, pads: Sequence[int]) -> list[int]:
    """The canvas with everything behind its first end token replaced by the cycle: what an early stop may write unseen.

    Raises ValueError where there is no end token.
    """
    place = list(canvas).index(end)
    return target(canvas[:place], len(canvas), end, pads)
