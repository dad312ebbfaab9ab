"""Prompts with holes: what stands before the first of them is the prompt, and the rest is given text and holes."""

from __future__ import annotations

from collections.abc import Sequence


def at_first_hole(tokens: Sequence[int], mask: int) -> tuple[list[int], tuple[int, ...]]:
    """What stands before the first mask, and the rest from there on; no rest where there is none."""
    if mask not in tokens:
        return list(tokens), ()
    first = list(tokens).index(mask)
    return list(tokens[:first]), tuple(tokens[first:])
