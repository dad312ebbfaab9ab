"""The blocks of a small Llama in plain torch: for networks that are trained here, and for layers put beside an existing one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama: rotary positions, RMS norms, gated feed-forward, tied embeddings, no biases."""

    vocabulary: int
    width: int = 192
    layers: int = 4
    heads: int = 6
    inner: int | None = None
    """Width inside the feed-forward; None is three times the width."""
    theta: float = 10000.0
    epsilon: float = 1e-5

    @property
    def inner_width(self) -> int:
        return self.inner if self.inner is not None else 3 * self.width


class Norm(nn.Module):
    """A root-mean-square norm."""

    def __init__(self, width: int, epsilon: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, rows: Tensor) -> Tensor:
        scale = rows.float().pow(2).mean(-1, keepdim=True).add(self.epsilon).rsqrt()
        return (rows.float() * scale).to(rows.dtype) * self.weight.to(rows.dtype)


class Attention(nn.Module):
    """Attention with rotary positions, the halves of a head rotated against each other."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.heads = shape.heads
        self.q_proj = nn.Linear(shape.width, shape.width, bias=False)
        self.k_proj = nn.Linear(shape.width, shape.width, bias=False)
        self.v_proj = nn.Linear(shape.width, shape.width, bias=False)
        self.o_proj = nn.Linear(shape.width, shape.width, bias=False)

    def forward(self, rows: Tensor, cosine: Tensor, sine: Tensor, visible: Tensor | None, causal: bool) -> Tensor:
        def split(projected: Tensor) -> Tensor:
            return projected.view(*projected.shape[:-1], self.heads, -1).transpose(1, 2)

        def rotate(heads: Tensor) -> Tensor:
            first, second = heads.chunk(2, dim=-1)
            return heads * cosine + torch.cat((-second, first), dim=-1) * sine

        queries, keys, values = split(self.q_proj(rows)), split(self.k_proj(rows)), split(self.v_proj(rows))
        mixed = F.scaled_dot_product_attention(
            rotate(queries), rotate(keys), values, attn_mask=visible, is_causal=causal
        )
        output: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return output


class FeedForward(nn.Module):
    """A gated feed-forward."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.gate_proj = nn.Linear(shape.width, shape.inner_width, bias=False)
        self.up_proj = nn.Linear(shape.width, shape.inner_width, bias=False)
        self.down_proj = nn.Linear(shape.inner_width, shape.width, bias=False)

    def forward(self, rows: Tensor) -> Tensor:
        output: Tensor = self.down_proj(F.silu(self.gate_proj(rows)) * self.up_proj(rows))
        return output


class Layer(nn.Module):
    """One block: attention and feed-forward, each behind a norm and added."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = FeedForward(shape)
        self.input_layernorm = Norm(shape.width, shape.epsilon)
        self.post_attention_layernorm = Norm(shape.width, shape.epsilon)

    def forward(self, rows: Tensor, cosine: Tensor, sine: Tensor, visible: Tensor | None, causal: bool) -> Tensor:
        rows = rows + self.self_attn(self.input_layernorm(rows), cosine, sine, visible, causal)
        output: Tensor = rows + self.mlp(self.post_attention_layernorm(rows))
        return output


def rotations(shape: Shape, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine [..., width of a head] float32 by which rotary attention turns rows at these positions [...]."""
    half = shape.width // shape.heads // 2
    rates = shape.theta ** -(torch.arange(half, dtype=torch.float32, device=positions.device) / half)
    angles = positions.float()[..., None] * rates.repeat(2)
    return angles.cos(), angles.sin()
