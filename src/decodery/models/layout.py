"""What a decoder of the usual kind computes, as plain data: enough to run it without its transformers model.

The usual kind: RMS norm, attention with rotary positions, RMS norm, gated feed-forward, each added to the residual stream. A
`Layout` says which variant of it a model is, and how its weights are called; `decodery.models.recognition` reads it off a
transformers model. It is kept as JSON (`as_json`), so that later loads need neither the model's class nor its library.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from decodery._lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

PRODUCTS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
"""The matrices of a layer, by the names that all models of this kind give them."""
SANDWICH_NORMS = ("pre_feedforward_layernorm", "post_feedforward_layernorm")
ACTIVATIONS = ("silu", "gelu_tanh")


@dataclass(frozen=True, slots=True)
class Rotation:
    """Angles that turn queries and keys. frequencies: radians per position of each pair of widths, [width / 2], as float32
    holds them. factor: what cosines and sines are multiplied with."""

    frequencies: tuple[float, ...]
    factor: float

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [positions, width] float32, the very bits of transformers' rotary modules. positions: int64 [n]."""
        turns = positions[:, None].float() * torch.tensor(self.frequencies)
        both = torch.cat((turns, turns), dim=-1)
        return both.cos() * self.factor, both.sin() * self.factor


@dataclass(frozen=True, slots=True)
class LayerLayout:
    """window: how many positions a row sees, its own included; None: all before it. rotation: which of the layout's rotations
    the layer uses; None: it knows no positions."""

    window: int | None
    rotation: int | None


@dataclass(frozen=True, slots=True)
class Layout:
    """A model of the usual kind.

    prefix: before the names of all weights but the head's. tied: the head's matrix is the embedding. biased: names of products
    with a bias, among PRODUCTS and "lm_head". sandwich: what comes out of attention and feed-forward is normed too, before it
    is added. head_norms: queries and keys are normed, head by head. unit_norms: norms multiply with one more than their
    weights. embedding_scale: what rows of the embedding are multiplied with, in the network's dtype.
    """

    vocabulary: int
    context: int
    hidden: int
    feed_forward: int
    heads: int
    key_heads: int
    width: int
    activation: str
    epsilon: float
    attention_scale: float
    embedding_scale: float
    sandwich: bool
    head_norms: bool
    unit_norms: bool
    biased: tuple[str, ...]
    tied: bool
    prefix: str
    rotations: tuple[Rotation, ...]
    layers: tuple[LayerLayout, ...]

    @property
    def embedding(self) -> str:
        """Name of the embedding."""
        return f"{self.prefix}embed_tokens.weight"

    @property
    def final_norm(self) -> str:
        """Name of the last norm's weight."""
        return f"{self.prefix}norm.weight"

    @property
    def head(self) -> str:
        """Name of the head's matrix."""
        return self.embedding if self.tied else "lm_head.weight"

    def weight(self, layer: int, part: str, kind: str = "weight") -> str:
        """Name of a part's weight or bias."""
        return f"{self.prefix}layers.{layer}.{part}.{kind}"

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes of all weights, each once."""
        yield self.embedding, (self.vocabulary, self.hidden)
        queries, keys = self.heads * self.width, self.key_heads * self.width
        inner = {"self_attn.o_proj": queries, "mlp.down_proj": self.feed_forward}
        outer = {
            "self_attn.q_proj": queries,
            "self_attn.k_proj": keys,
            "self_attn.v_proj": keys,
            "mlp.gate_proj": self.feed_forward,
            "mlp.up_proj": self.feed_forward,
        }
        norms = ("input_layernorm", "post_attention_layernorm", *(SANDWICH_NORMS if self.sandwich else ()))
        for layer in range(len(self.layers)):
            for part in PRODUCTS:
                outputs = outer.get(part, self.hidden)
                yield self.weight(layer, part), (outputs, inner.get(part, self.hidden))
                if part in self.biased:
                    yield self.weight(layer, part, "bias"), (outputs,)
            for norm in norms:
                yield self.weight(layer, norm), (self.hidden,)
            for norm in ("q_norm", "k_norm") if self.head_norms else ():
                yield self.weight(layer, f"self_attn.{norm}"), (self.width,)
        yield self.final_norm, (self.hidden,)
        if not self.tied:
            yield "lm_head.weight", (self.vocabulary, self.hidden)
        if "lm_head" in self.biased:
            yield "lm_head.bias", (self.vocabulary,)

    @property
    def varied(self) -> int:
        """So many first layers have one of each kind."""
        return max(self.layers.index(layer) for layer in set(self.layers)) + 1

    def as_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Layout:
        """Raises ValueError, KeyError or TypeError where the text is something else."""
        read: dict[str, Any] = json.loads(text)
        read["biased"] = tuple(read["biased"])
        read["rotations"] = tuple(Rotation(tuple(r["frequencies"]), r["factor"]) for r in read["rotations"])
        read["layers"] = tuple(LayerLayout(**layer) for layer in read["layers"])
        return cls(**read)
