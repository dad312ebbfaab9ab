"""How uncertain a law is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from decodery._lazy import torch

if TYPE_CHECKING:
    from jaxtyping import Float, Float64
    from torch import Tensor


def entropies(rows: Float[Tensor, "n vocabulary"]) -> Float64[Tensor, "n"]:
    """The entropy in nats of the law of each row of scores. Sums are float64, and each row's is the same in any company."""
    laws = rows.softmax(dim=-1)
    return torch.stack([torch.special.entr(law.double()).sum() for law in laws])
