"""The fused path: the usual decoder block, run with as few operations as it needs.

Most families share one layout: RMS norm, attention with rotary positions, RMS norm, gated feed-forward. transformers runs
it in some thirty small operations a layer, whose launch costs more on a CPU than the products themselves. Here queries,
keys and values come from one product, gate and up from another, rotation takes three operations, and in bfloat16 the
weights are laid out once for the processor's matrix units.

A model qualifies by the shape of its modules, not by its name; whether its scores agree with transformers' own is confirmed
when it is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from decodery.models.attention import Pack, Segment, attend
from decodery.models.forward import POST_NORM, Scores
from decodery.models.key_value_network import Pass
from decodery.models.network import TransformersNetwork
from decodery.models.recognition import HEAD_NORMS, LAYER_PARTS
from decodery.models.scorer import Head, Stability

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Product = Callable[[Tensor], Tensor]

ATTENTION_PARTS = {"q_proj", "k_proj", "v_proj", "o_proj"}
FEED_FORWARD_PARTS = {"gate_proj", "up_proj", "down_proj"}
STABILITY = Stability(rows=32, columns=64)
"""Of bfloat16 products and attention on a CPU with AMX: up to 32 rows a product takes the same path for each row, and the
attention kernel treats the last columns alike if their number is a multiple of 64. Found by experiment, held by
`tests/models/test_stability.py`; where there is AVX-512 BF16 alone, attention sums differently from two rows on."""


def product(weight: Tensor, bias: Tensor | None) -> Product:
    """x -> x @ weight.T + bias; weight [out, in]. In bfloat16 on a CPU the weight is laid out for the matrix units."""
    if weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and torch.backends.mkldnn.is_available():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        linear = torch.ops.mkldnn._linear_pointwise.default
        return lambda rows: linear(rows, packed, bias, "none", [], "")
    return lambda rows: F.linear(rows, weight, bias)


def _joined(*layers: nn.Linear) -> Product:
    weight = torch.cat([layer.weight.detach() for layer in layers])
    if layers[0].bias is None:
        return product(weight, None)
    return product(weight, torch.cat([layer.bias.detach() for layer in layers]))


@dataclass(frozen=True, slots=True)
class Block:
    """One decoder layer. Norm weights are None-free tensors [width]; `head_norms` are those of queries and keys."""

    input_norm: Tensor
    queries_keys_values: Product
    head_norms: tuple[Tensor, Tensor] | None
    output: Product
    feed_forward_norm: Tensor
    gate_and_up: Product
    down: Product
    activation: Callable[[Tensor], Tensor]
    window: int | None

    @classmethod
    def of(cls, layer: Any, window: int | None) -> Block:
        """window: the layer's sliding window; families keep it in different places, so it is read off a pass."""
        attention, feed_forward = layer.self_attn, layer.mlp
        norms = None
        if hasattr(attention, "q_norm"):
            norms = (attention.q_norm.weight.detach(), attention.k_norm.weight.detach())
        return cls(
            input_norm=layer.input_layernorm.weight.detach(),
            queries_keys_values=_joined(attention.q_proj, attention.k_proj, attention.v_proj),
            head_norms=norms,
            output=_joined(attention.o_proj),
            feed_forward_norm=layer.post_attention_layernorm.weight.detach(),
            gate_and_up=_joined(feed_forward.gate_proj, feed_forward.up_proj),
            down=_joined(feed_forward.down_proj),
            activation=feed_forward.act_fn,
            window=window,
        )


def has_blocks(model: PreTrainedModel) -> bool:
    """Whether a model's modules have the layout of `Block`."""
    base: Any = model.base_model
    if not all(hasattr(base, part) for part in ("embed_tokens", "layers", "norm", "rotary_emb")):
        return False
    if not isinstance(model.get_output_embeddings(), nn.Linear) or not hasattr(base.norm, "variance_epsilon"):
        return False
    for layer in base.layers:
        if {name for name, _ in layer.named_children()} != LAYER_PARTS:
            return False
        attention = {name for name, _ in layer.self_attn.named_children()}
        feed_forward = {name for name, _ in layer.mlp.named_children()} - {"act_fn"}
        if attention not in (ATTENTION_PARTS, ATTENTION_PARTS | HEAD_NORMS) or feed_forward != FEED_FORWARD_PARTS:
            return False
        linears = [module for module in layer.modules() if type(module).__name__.endswith("Linear")]
        if len(linears) != len(ATTENTION_PARTS) + len(FEED_FORWARD_PARTS) or not all(
            type(module) is nn.Linear for module in linears
        ):
            return False
    return True


class FusedNetwork(TransformersNetwork):
    """A transformers model whose blocks are run by us. Raises ValueError where the model does not qualify."""

    def __init__(self, model: PreTrainedModel, name: str):
        super().__init__(model, name)
        if not has_blocks(model):
            raise ValueError(f"{type(model).__name__} has another layer layout")
        base: Any = self._base
        attention = base.layers[0].self_attn
        self._width = int(attention.head_dim)
        self._heads = attention.q_proj.out_features // self._width
        self._key_heads = attention.k_proj.out_features // self._width
        self._scale = float(attention.scaling)
        self._epsilon = float(base.norm.variance_epsilon)
        with torch.inference_mode():
            self._blocks = [Block.of(*pair) for pair in zip(base.layers, self._windows, strict=True)]
            head: Any = model.get_output_embeddings()
            self._head = product(head.weight.detach(), None if head.bias is None else head.bias.detach())
        self.path = "fused"
        if self.device.type == "cpu" and self.dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported():
            self.stability = STABILITY

    def head(self, tokens: Tensor | None = None, normed: bool = True) -> Head:
        base: Any = self._base
        logits = self._head
        if tokens is not None:
            module: Any = self.model.get_output_embeddings()
            logits = product(
                module.weight.detach()[tokens], None if module.bias is None else module.bias.detach()[tokens]
            )

        @torch.inference_mode()
        def head(rows: Tensor) -> Tensor:
            rows = rows.to(self.device, self.dtype)
            return logits(self._norm(rows, base.norm.weight) if normed else rows).float()

        return head

    @torch.inference_mode()
    def _pass(self, asked: Pass) -> Scores:
        base: Any = self._base
        inputs, layers, taps, wanted = asked.inputs, asked.layers, asked.taps, asked.wanted
        rows = base.embed_tokens(inputs["input_ids"])[0] if "input_ids" in inputs else inputs["inputs_embeds"][0]
        cos, sin = base.rotary_emb(rows[None], torch.tensor([asked.positions], device=self.device))
        half = self._width // 2
        cos = cos[0, :, None]
        # rotate_half(x) * sin equals the halves of x exchanged times sin with its first half negated.
        sin = torch.cat((-sin[0, :, None, :half], sin[0, :, None, half:]), dim=-1)
        tapped: dict[int, Tensor] = {}
        for index in layers.indices(self.layers):
            if index not in layers.skip_attention:
                rows = self._attention(self._blocks[index], index, rows, cos, sin, asked.pack)
            if index not in layers.skip_mlp:
                rows = self._feed_forward(self._blocks[index], rows)
            if index in taps:
                tapped[index] = rows
        if POST_NORM not in taps and not wanted:
            return Scores(torch.empty(0, self.vocabulary, device=self.device), tapped)
        if POST_NORM not in taps and len(wanted) < len(rows):
            rows, wanted = rows[wanted], list(range(len(wanted)))
        rows = self._norm(rows, base.norm.weight)
        if POST_NORM in taps:
            tapped[POST_NORM] = rows
        return Scores(self._head(rows if len(wanted) == len(rows) else rows[wanted]).float(), tapped)

    def _attention(self, block: Block, index: int, rows: Tensor, cos: Tensor, sin: Tensor, pack: Pack) -> Tensor:
        count, rotated = rows.shape[0], self._heads + self._key_heads
        joined = block.queries_keys_values(self._norm(rows, block.input_norm)).view(count, -1, self._width)
        turning = joined[:, :rotated]
        if block.head_norms is not None:
            turning[:, : self._heads] = self._norm(turning[:, : self._heads], block.head_norms[0])
            turning[:, self._heads :] = self._norm(turning[:, self._heads :], block.head_norms[1])
        torch.addcmul(turning * cos, turning.roll(self._width // 2, -1), sin, out=turning)
        queries = joined[:, : self._heads].transpose(0, 1)[None]
        # Keys and values lie side by side, as they do in the cache: one copy writes both.
        written = joined[:, self._heads :].view(count, 2, self._key_heads, self._width).permute(1, 2, 0, 3)

        def one(segment: Segment) -> Tensor:
            mine = slice(segment.start, segment.stop)
            if isinstance(segment.places, slice):
                segment.writable(index)[:, :, segment.places] = written[:, :, mine]
            else:
                segment.writable(index).index_copy_(2, segment.places, written[:, :, mine])
            keys, values = segment.seen(index, pack.bench)[:, None]
            mask = segment.mask(block.window, queries, self._heads // self._key_heads)
            return attend(queries[:, :, mine], keys, values, mask, self._scale)

        return rows + block.output(pack.attend(one)[0].transpose(0, 1).reshape(count, -1))

    def _feed_forward(self, block: Block, rows: Tensor) -> Tensor:
        gate_and_up = block.gate_and_up(self._norm(rows, block.feed_forward_norm))
        gate, up = gate_and_up.chunk(2, dim=-1)
        return rows + block.down(block.activation(gate).mul_(up))

    def _norm(self, rows: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(rows, (rows.shape[-1],), weight, self._epsilon)
