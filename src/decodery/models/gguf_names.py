"""What the tensors of a GGUF file are called in transformers, and how the file keeps them, by architecture."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from decodery.errors import ModelNotReadable
from decodery.models.gguf_file import GgufFile

if TYPE_CHECKING:
    from torch import Tensor

RowOrder = Callable[[GgufFile, int, int], "Tensor"]
"""(file, layer, number of rows) to the rows of the file that are the rows 0, 1, … of the weight."""


@dataclass(frozen=True)
class Stored:
    """Where a tensor of the file belongs.

    name: of the weight in transformers; `*` stands for the layer. order: whole rows stand in another order in the file.
    change: of the numbers, computed in float32 where the file has them in it. part: which of several tensors that make up one
    weight; join: makes it of them.
    """

    name: str
    order: RowOrder | None = None
    change: Callable[[Tensor], Tensor] | None = None
    part: int = 0
    join: Callable[[list[Tensor]], Tensor] | None = None
    layer: int = 0


Names = Mapping[str, "str | Stored | tuple[Stored, ...]"]


def less_one(weight: Tensor) -> Tensor:
    """Norms that add one to their weight stand in the file with the one added."""
    return weight.float() - 1


def per_layer(file: GgufFile, key: str, layer: int) -> Any:
    """A metadata entry of the architecture that may be one value or a list of one per layer."""
    value = file.metadata.get(f"{file.architecture}.{key}")
    return value[layer] if isinstance(value, list) else value


def _turned(heads: int, rows: int) -> Tensor:
    """llama.cpp rotates neighbours where transformers rotates halves of a head."""
    import torch

    return torch.arange(rows).view(heads, rows // heads // 2, 2).transpose(1, 2).reshape(-1)


def turned_queries(file: GgufFile, layer: int, rows: int) -> Tensor:
    """The order of the rows of queries, whose heads are turned one by one."""
    return _turned(int(per_layer(file, "attention.head_count", layer)), rows)


def turned_keys(file: GgufFile, layer: int, rows: int) -> Tensor:
    """The same of keys."""
    heads = per_layer(file, "attention.head_count_kv", layer) or per_layer(file, "attention.head_count", layer)
    return _turned(int(heads), rows)


OUTSIDE: Names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
ATTENTION: Names = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
FEED_FORWARD: Names = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
NORMS: Names = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
USUAL: Names = {**OUTSIDE, **ATTENTION, **FEED_FORWARD, **NORMS}

_GEMMA_NORMS: Names = {
    name: Stored(place, change=less_one)
    for name, place in {
        "output_norm": "model.norm",
        "attn_norm": "input_layernorm",
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
    }.items()
}

NAMES: dict[str, Names] = {
    "llama": {
        **USUAL,
        "attn_q": Stored("self_attn.q_proj", order=turned_queries),
        "attn_k": Stored("self_attn.k_proj", order=turned_keys),
    },
    "gemma3": {**USUAL, **_GEMMA_NORMS},
}

FACTS = ("rope_freqs", "rope_factors_long", "rope_factors_short")
"""Tensors that are no weights; the configuration reads them."""

_TENSOR = re.compile(r"(?:blk\.(\d+)\.)?(.+?)(\.weight|\.bias)?")


def fact_of(name: str) -> str | None:
    """Which of FACTS a tensor is; None for weights."""
    match = _TENSOR.fullmatch(name)
    return match.group(2) if match and match.group(2) in FACTS else None


def stored(file: GgufFile, name: str) -> tuple[Stored, ...]:
    """Where a tensor of the file belongs; nowhere, if it is no weight. Raises ModelNotReadable where nothing reads it."""
    if fact_of(name) is not None:
        return ()
    names = NAMES.get(file.architecture)
    if names is None:
        raise ModelNotReadable(
            f"{file.path} is of architecture {file.architecture!r}, which cannot be read here; those that can: "
            f"{', '.join(sorted(NAMES))}."
        )
    match = _TENSOR.fullmatch(name)
    layer, kind, ending = match.groups() if match else (None, name, None)
    places = names.get(kind)
    if places is None:
        raise ModelNotReadable(f"{file.path} holds the tensor {name}, which nothing here reads.")
    if isinstance(places, str):
        places = Stored(places)
    if isinstance(places, Stored):
        places = (places,)
    before = "" if layer is None else f"model.layers.{layer}."
    return tuple(replace(place, name=f"{before}{place.name}{ending or ''}", layer=int(layer or 0)) for place in places)
