"""What the tensors of a GGUF file are called in transformers, and how the file keeps them, by architecture."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from decodery.models.gguf.file import GgufFile

if TYPE_CHECKING:
    from torch import Tensor

RowOrder = Callable[[GgufFile, int, int], "Tensor"]
"""(file, layer, number of rows) to the rows of the file that are the rows 0, 1, … of the weight."""


@dataclass(frozen=True)
class Stored:
    """Where a tensor of the file belongs.

    name: of the weight in transformers. order, columns: whole rows, or columns, stand in another order in the file. change:
    of the numbers, computed in float32 where the file has them in it. part: which of several tensors that make up one weight;
    join: makes it of them.
    """

    name: str
    order: RowOrder | None = None
    columns: RowOrder | None = None
    change: Callable[[Tensor], Tensor] | None = None
    part: int = 0
    join: Callable[[list[Tensor]], Tensor] | None = None
    layer: int = 0


Names = Mapping[str, str | Stored]
"""From the file's names, without `blk.<layer>.`, to those of transformers, without the beginning that all layers share. A name
with `.weight` or `.bias` at its end stands for itself alone, and before one without, which takes its ending along."""


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


def transposed(weight: Tensor) -> Tensor:
    """Matrices that transformers keeps with one row per input."""
    return weight.mT


def heads_apart(file: GgufFile, layer: int, rows: int) -> Tensor:
    """Rows of all queries, keys and values in the file; of query, key and value of each head in transformers."""
    import torch

    heads = int(per_layer(file, "attention.head_count", layer))
    return torch.arange(rows).view(3, heads, -1).transpose(0, 1).reshape(-1)


def below(parts: list[Tensor]) -> Tensor:
    """Matrices, or those of each expert, one below the other."""
    import torch

    return torch.cat(parts, dim=-2)


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
FUSED: Names = {
    **{f"attn_{name}.weight": Stored("self_attn.qkv_proj.weight", part=i, join=below) for i, name in enumerate("qkv")},
    "attn_qkv": "self_attn.qkv_proj",
    "ffn_up": "mlp.gate_up_proj",
}
"""Of families that fuse queries, keys and values, and the two halves of the feed-forward. Files may have the former apart."""
EXPERTS: Names = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps.weight": Stored("mlp.experts.gate_up_proj", join=below),
    "ffn_up_exps.weight": Stored("mlp.experts.gate_up_proj", part=1, join=below),
    "ffn_down_exps.weight": "mlp.experts.down_proj",
}
HEAD_NORMS: Names = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
FACTS = ("rope_freqs", "rope_factors_long", "rope_factors_short")
"""Tensors that are no weights; the configuration reads them."""

TENSOR = re.compile(r"(?:blk\.(\d+)\.)?(.+?)(\.weight|\.bias)?")
"""The name of a tensor in a file: its layer, what it is, and the ending."""


def fact_of(name: str) -> str | None:
    """Which of FACTS a tensor is; None for weights."""
    match = TENSOR.fullmatch(name)
    return match.group(2) if match and match.group(2) in FACTS else None


def layer_of(name: str) -> int | None:
    """The layer of a tensor; None outside the layers."""
    match = TENSOR.fullmatch(name)
    return int(match.group(1)) if match and match.group(1) else None


def place_of(names: Names, layers: str, tensor: str) -> Stored | None:
    """Where a tensor belongs; None where nothing reads it. layers: how the names of layers' weights begin in transformers."""
    match = TENSOR.fullmatch(tensor)
    if match is None:
        return None
    layer, kind, ending = match.groups(default="")
    place = names.get(f"{kind}{ending}") if ending else None
    if place is None:
        if (place := names.get(kind)) is None:
            return None
        place = replace(place, name=place.name + ending) if isinstance(place, Stored) else place + ending
    if isinstance(place, str):
        place = Stored(place)
    return replace(place, name=f"{layers}.{layer}.{place.name}", layer=int(layer)) if layer else place
