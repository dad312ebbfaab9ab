"""Models that have the embedding and the head of another one: only what is their own lies in their folder.

Such a folder holds `config.json` with an entry `embedding_of`, the name of the other model, which is a GGUF file; and
`layers.gguf`, all weights but embedding and head. What is installed for it points at both files, as if they were parts of one
(see `decodery.models.gguf.weights`), so that every path reads it as it reads any GGUF file.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decodery.errors import BadInput, ModelNotReadable
from decodery.models.checkpoint import RECORD, read_json
from decodery.models.gguf.file import VOCABULARY_KEYS, GgufFile
from decodery.models.gguf.weights import POINTER, pointed_at, write_pointer

if TYPE_CHECKING:
    from torch import Tensor

LAYERS = "layers.gguf"
SHARED = ("token_embd.weight", "output.weight")
"""What GGUF files call embedding and head."""
ENTRY = "embedding_of"


def embedding_of(folder: Path) -> str | None:
    """The name of the model whose embedding the model in a folder shares; None where it has one of its own."""
    if not (folder / LAYERS).is_file() or not (folder / "config.json").is_file():
        return None
    name = read_json(folder / "config.json").get(ENTRY)
    return name if isinstance(name, str) else None


def write_pointing_folder(folder: Path, base: Path, place: Path) -> None:
    """Fill `place` with what stands for the model in `folder`: its configuration, the tokenizer of the model whose embedding it
    shares, installed in `base`, and where both files' weights are. Raises ModelNotReadable where they do not fit together."""
    own, whole = GgufFile.read(folder / LAYERS), pointed_at(base)
    if whole is None:
        raise ModelNotReadable(
            f"{folder.name} shares the embedding of a GGUF file, but {base.name} is none here; leave DECODERY_SOURCE unset."
        )
    shared = [replace(entry, part=entry.part + 1) for entry in whole.tensors if entry.name in SHARED]
    config = read_json(folder / "config.json")
    expected = (config.get("hidden_size"), config.get("vocab_size"))
    for entry in shared:
        if entry.shape != expected:
            raise ModelNotReadable(
                f"{folder.name} needs an embedding of {expected[1]} tokens and width {expected[0]}; that of {base.name} has "
                f"{entry.shape[1]} and {entry.shape[0]}."
            )
    for path in base.iterdir():
        if path.suffix != ".gguf" and path.name not in (RECORD, POINTER, "config.json"):
            shutil.copy2(path, place / path.name)
    (place / "config.json").write_text(json.dumps(config, indent=1) + "\n", "utf-8")
    joined = GgufFile((own.path, *whole.paths), own.metadata, (*own.tensors, *shared))
    write_pointer(joined, place)


def write_layers(weights: Mapping[str, Tensor], config: Mapping[str, Any], base: Path, folder: Path) -> None:
    """Write a folder of a Llama that shares the embedding of the model installed in `base`; matrices in eight bits (Q8_0).

    weights: by their names in transformers, in float32, without embedding and head. config: what its config.json is to hold.
    Raises BadInput where `base` is no installed GGUF file of a Llama.
    """
    import gguf
    import torch
    from gguf.quants import quantize

    from decodery.models.gguf.names import turned_keys, turned_queries

    whole = pointed_at(base)
    if whole is None or whole.architecture != "llama":
        raise BadInput(f"the embedding can be shared of a GGUF file of a Llama alone, which {base.name} is not.")
    folder.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(folder / LAYERS, "llama")
    own = {"llama.block_count": config["num_hidden_layers"], "llama.feed_forward_length": config["intermediate_size"]}
    for key, value in {**whole.metadata, **own}.items():
        if key.startswith("llama.") or (key.startswith("tokenizer.") and key not in VOCABULARY_KEYS):
            _add(writer, key, value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    turns = {"q_proj": turned_queries, "k_proj": turned_keys}
    for name, weight in weights.items():
        stem, ending = name.rsplit(".", 1)
        stored = f"{names.get_name(stem)}.{ending}"
        rows = weight.detach().float()
        if turn := turns.get(stem.rsplit(".", 1)[-1]):
            order = turn(whole, 0, len(rows))
            turned = torch.empty_like(rows)
            turned[order] = rows  # the file's row `order[i]` is row i
            rows = turned
        if rows.dim() == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(stored, quantize(rows.numpy(), kind), raw_dtype=kind)
        else:
            writer.add_tensor(stored, rows.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    told = {**config, ENTRY: base.name}
    (folder / "config.json").write_text(json.dumps(told, indent=1) + "\n", "utf-8")


def _add(writer: Any, key: str, value: Any) -> None:
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    adders[type(value)](key, value)
