"""What a cache of one text that only takes further tokens can do, and what is beyond it."""

from __future__ import annotations

import torch
from torch import Tensor

from decodery.models.forward import ALL_LAYERS, Attend, Forward, Slots, Tree


def beyond_chains(forward: Forward, layers: int) -> str:
    """What a forward asks that a cache of one text cannot do; empty where it asks nothing of the kind."""
    count, before = forward.count, forward.sequence.length
    attend, tree = forward.attend, forward.attend if isinstance(forward.attend, Tree) else None
    if isinstance(forward.tokens, Tensor) and forward.tokens.is_floating_point():
        return "embeddings cannot be given to it"
    if forward.layers != ALL_LAYERS and forward.layers.sublayers(layers) < 2 * layers:
        return "no layers can be left out"
    if forward.taps:
        return "its hidden rows cannot be looked at"
    if not isinstance(forward.slots, Slots) and list(forward.slots) != list(range(before, before + count)):
        return "no rows of it can be rewritten"
    if list(forward.row_positions()) != list(range(before, before + count)) and tree is None:
        return "positions cannot be chosen"
    if tree is not None and list(tree.parents) != list(range(-1, len(tree.parents) - 1)):
        return "drafts cannot be trees"
    full = attend is Attend.FULL and count > 1
    masked = isinstance(attend, Tensor) and not bool((attend.cpu() == _causal(before, count)).all())
    return "a mask cannot be given" if full or masked else ""


def _causal(before: int, count: int) -> Tensor:
    return torch.ones(count, before + count, dtype=torch.bool).tril(before)
