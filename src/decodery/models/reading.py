"""Reading a transformers model from its folder: all of its weights, each from the file to its place, or a reason why not.

How weights of a family are renamed, joined and tied is left to transformers, which is handed them as a state dict, a few in
memory at a time (see `stored_weights`). What it finds missing, left over or of another shape is an error here; transformers
goes on with random numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from decodery.errors import ModelNotReadable, reason
from decodery.models import gguf_model
from decodery.models.architecture import causal_class
from decodery.models.checkpoint import some
from decodery.models.fitting import check_found, uneven
from decodery.models.gguf_weights import weight_source
from decodery.models.multimodal import Multimodal
from decodery.models.quantised import read_by_transformers
from decodery.models.quiet import quiet
from decodery.models.stored_weights import StoredWeight, put, stored_weights
from decodery.models.weight_names import unwrapped


def read_model(folder: Path, config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """What `AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)` gives, bit for bit: on the CPU, in eval mode.

    config: the folder's `config.json`. Of a multimodal model the language model alone is read.
    Raises ModelNotReadable, where the folder holds no causal language model, or its weights do not fit it.
    """
    with quiet():
        source = weight_source(folder)
        if source is not None:
            return gguf_model.read_model(source, folder, dtype)
        kind, settled, whole = causal_class(folder, config)
        if getattr(settled, "quantization_config", None) or config.get("transformers_weights"):
            return read_by_transformers(folder, kind, settled, dtype)
        multimodal = None if whole is None else Multimodal.around(whole, kind, folder)
        model = filled(kind, settled, stored_weights(folder, dtype), dtype, folder, multimodal)
        if multimodal is not None:
            multimodal.check_same(model, folder)
        _set_generation(model, folder)
    model.name_or_path = model.config.name_or_path = str(folder)
    return model


def read_tokenizer(folder: Path, foreign: bool = False) -> Any:
    """The tokenizer of a folder. foreign: its own class may be code that comes with it, but its files have the usual form.

    Raises ModelNotReadable where its files are damaged, or only code that comes with them can read them.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

    try:
        with quiet():
            if not foreign:
                return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            usual = PreTrainedTokenizerFast if (folder / "tokenizer.json").is_file() else Qwen2Tokenizer
            return usual.from_pretrained(folder)
    except Exception as error:  # of two libraries, with no common kind
        if "trust_remote_code" in str(error):
            raise ModelNotReadable(
                f"the tokenizer in {folder} needs code that comes with it, and such code is never run; load it with "
                "transformers' trust_remote_code yourself and give it to decodery.wrap."
            ) from error
        raise ModelNotReadable(f"the tokenizer in {folder} cannot be read: {reason(error)}.") from error


def filled(
    kind: Any,
    config: Any,
    stored: Mapping[str, StoredWeight],
    dtype: torch.dtype,
    folder: Path,
    multimodal: Multimodal | None = None,
) -> Any:
    """A model of a class with these weights, in eval mode.

    kind: a transformers class; config: its configuration. multimodal: what the model is a part of; weights of other parts are
    passed over.
    Raises ModelNotReadable where weights are missing, left over, of another shape, or whole numbers.
    """
    with torch.device("meta"):  # no weights: it shows the names, and the shapes
        empty = kind._from_config(config, dtype=dtype)
    known = empty.state_dict()
    inner = {name: name if multimodal is None else multimodal.text_name(name) for name in stored}
    names = {name: short for name, short in inner.items() if short is not None}
    renamed = unwrapped(list(names.values()), known, empty.base_model_prefix)
    weights: dict[str, StoredWeight] = {}
    put(weights, ((renamed[short], stored[name]) for name, short in names.items()))
    settings: dict[str, Any] = {"dtype": dtype, "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        model, found = kind.from_pretrained(None, config=empty.config, state_dict=weights, **settings)
    except RuntimeError as error:  # weights of experts that cannot be joined; the report on which goes to a log
        lacking = uneven(weights)
        what = f"it lacks {some(lacking)}" if lacking else f"its weights cannot be joined for {kind.__name__}"
        raise ModelNotReadable(f"{folder} is incomplete: {what}.") from error
    check_found(found, model, folder, weights)
    return model.eval()


def _set_generation(model: Any, folder: Path) -> None:
    """What the folder says on generation; where it has no word of its own, what its configuration says."""
    from transformers import GenerationConfig

    if not model.can_generate():
        return
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    else:
        model.generation_config = GenerationConfig.from_pretrained(
            folder, config_file_name="config.json", _from_model_config=True
        )


def transformers_model(folder: Path, dtype: torch.dtype) -> Any:
    """transformers' own network of what `store.resolve` gives, wherever its weights lie. Raises like `read_model`."""
    return read_model(folder, json.loads((folder / "config.json").read_text(encoding="utf-8")), dtype)
