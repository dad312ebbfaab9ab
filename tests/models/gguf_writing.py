"""GGUF files of small networks of transformers, with the names of the `gguf` package and the layout of llama.cpp's
converters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import tiny_gguf
import torch
from torch import Tensor

VOCABULARY = tiny_gguf.byte_level()
HIDDEN, INTERMEDIATE, LAYERS, HEADS, GROUPS, CONTEXT = 64, 96, 3, 4, 2, 256
SIZES = {
    "vocab_size": len(VOCABULARY.tokens),
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
ENTRIES: dict[str, Any] = {
    "context_length": CONTEXT,
    "embedding_length": HIDDEN,
    "block_count": LAYERS,
    "feed_forward_length": INTERMEDIATE,
    "attention.head_count": HEADS,
    "attention.head_count_kv": GROUPS,
}

Change = Callable[[str, Tensor], Tensor | Mapping[str, Tensor]]
"""What the converter makes of a weight: (name in transformers, weight) to another weight, or to tensors by names of their
own."""


def network(family: str, **settings: Any) -> Any:
    """A network with weights of about the size that trained ones have, so that every one of them matters."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**SIZES, **settings})).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.state_dict().items():
            noise = torch.randn(weight.shape, generator=generator) * 0.2
            weight.copy_(noise + 1 if "norm" in name and name.endswith("weight") else noise)
    return model


def write(
    path: Path,
    architecture: str,
    model: Any,
    entries: Mapping[str, Any],
    change: Change = lambda name, weight: weight,
    extra: Mapping[str, np.ndarray] | None = None,
    raw: Mapping[str, tuple[Tensor, gguf.GGMLQuantizationType]] | None = None,
) -> None:
    """Write a network as a file. entries: metadata of the architecture, and others behind a `/`. extra: tensors beside
    the weights. raw: weights by name that are written as these quantised rows; the others are written in float32."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("Tiny")
    for key, value in entries.items():
        add(writer, key[1:] if key.startswith("/") else f"{architecture}.{key}", value)
    tiny_gguf._write_vocabulary(writer, VOCABULARY)
    number = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, entries["block_count"])
    tied = getattr(model, "all_tied_weights_keys", {})
    for name, weight in model.state_dict().items():
        if name in tied:
            continue
        rows, kind = (raw or {}).get(name, (weight, None))
        changed = change(name, rows)
        made = changed if isinstance(changed, Mapping) else {name: changed}
        for source, tensor in made.items():
            stem, dot, ending = source.rpartition(".")
            if ending not in ("weight", "bias"):
                stem, dot, ending = source, "", ""
            target = source if source.startswith("blk.") else f"{names.get_name(stem)}{dot}{ending}"
            assert not target.startswith("None"), source
            writer.add_tensor(target, tensor.contiguous().numpy(), raw_dtype=kind)
    for name, array in (extra or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Write one entry of metadata, of the type that its value has in Python."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def turned(weight: Tensor, heads: int) -> Tensor:
    """The order in which llama.cpp keeps rows of queries and keys: neighbours are rotated, not halves."""
    return weight.view(heads, 2, len(weight) // heads // 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def turn_llama(name: str, weight: Tensor) -> Tensor:
    if ".q_proj." in name:
        return turned(weight, HEADS)
    return turned(weight, GROUPS) if ".k_proj." in name else weight


def add_one(name: str, weight: Tensor) -> Tensor:
    return weight + 1 if name.endswith("norm.weight") else weight


def split_experts(name: str, weight: Tensor) -> Tensor | Mapping[str, Tensor]:
    """Gates and inputs of experts apart, as files have them."""
    if not name.endswith((".experts.gate_up_proj", ".experts.down_proj")):
        return weight
    layer = name.split(".")[2]
    if name.endswith("down_proj"):
        return {f"blk.{layer}.ffn_down_exps.weight": weight}
    gate, up = weight.chunk(2, dim=1)
    return {f"blk.{layer}.ffn_gate_exps.weight": gate, f"blk.{layer}.ffn_up_exps.weight": up}
