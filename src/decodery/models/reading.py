"""Reading a transformers model from its folder: all of its weights, each from the file to its place, or a reason why not.

How weights of a family are renamed, joined and tied is left to transformers, which is handed them as a state dict, a few in
memory at a time (see `stored_weights`). What it finds missing, left over or of another shape is an error here; transformers
goes on with random numbers.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from decodery.errors import ModelNotReadable, reason
from decodery.models.architecture import causal_class
from decodery.models.checkpoint import some
from decodery.models.quiet import quiet
from decodery.models.stored_weights import WHOLE, StoredWeight, put, stored_weights
from decodery.models.weight_names import text_part, unwrapped

OWN_WAYS = ("quantization_config", "transformers_weights")
"""Entries of `config.json` by which transformers decides on the folder's files itself."""
_DERIVED = r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$|(^|\.)(attn|attention)\.(masked_)?bias$"
"""Tables that older files hold and networks compute: angles of positions, the causal mask."""


def read_model(folder: Path, config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """What `AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)` gives, bit for bit: on the CPU, in eval mode.

    config: the folder's `config.json`. Of a multimodal model the language model alone is read.
    Raises ModelNotReadable, where the folder holds no causal language model, or its weights do not fit it.
    """
    with quiet():
        kind, settled, parts = causal_class(folder, config)
        if any(config.get(entry) for entry in OWN_WAYS):
            return _as_transformers_does(folder, kind, settled, dtype)
        model = filled(kind, settled, stored_weights(folder, dtype), dtype, folder, parts)
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
    parts: Collection[str] = (),
) -> Any:
    """A model of a class with these weights, in eval mode.

    kind: a transformers class; config: its configuration. parts: names of parts of a larger model, whose weights are passed
    over.
    Raises ModelNotReadable where weights are missing, left over, of another shape, or whole numbers.
    """
    with torch.device("meta"):  # no weights: it shows the names, and the shapes
        empty = kind._from_config(config, dtype=dtype)
    known = empty.state_dict()
    names = {name: text_part(name) if parts else name for name in stored if not _is_of(name, parts)}
    renamed = unwrapped(list(names.values()), known, empty.base_model_prefix)
    weights: dict[str, StoredWeight] = {}
    put(weights, ((renamed[short], stored[name]) for name, short in names.items()))
    settings: dict[str, Any] = {"dtype": dtype, "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        model, found = kind.from_pretrained(None, config=empty.config, state_dict=weights, **settings)
    except RuntimeError as error:  # weights of experts that cannot be joined; the report on which goes to a log
        lacking = _uneven(weights)
        what = f"it lacks {some(lacking)}" if lacking else f"its weights cannot be joined for {kind.__name__}"
        raise ModelNotReadable(f"{folder} is incomplete: {what}.") from error
    _check_found(found, model, folder, weights)
    return model.eval()


def _as_transformers_does(folder: Path, kind: Any, config: Any, dtype: torch.dtype) -> Any:
    model, found = kind.from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        trust_remote_code=False,
    )
    _check_found(found, model, folder, {})
    return model


def _check_found(found: Mapping[str, Any], model: Any, folder: Path, stored: Mapping[str, StoredWeight]) -> None:
    """Raise ModelNotReadable where transformers has found other weights than the network has."""
    if found["mismatched_keys"]:
        name, there, wanted = min(found["mismatched_keys"])
        more = len(found["mismatched_keys"]) - 1
        others = f", and {more} more weights do not fit" if more else ""
        raise ModelNotReadable(
            f"{folder} does not fit its config.json: {name} has the shape {list(there)} where {type(model).__name__} "
            f"has {list(wanted)}{others}."
        )
    ignored = re.compile("|".join([_DERIVED, *_further_layers(model.config)]))
    unexpected = sorted(name for name in found["unexpected_keys"] if not ignored.search(name))
    missing = sorted(found["missing_keys"])
    if missing:
        instead = f", and holds {some(unexpected)} instead" if unexpected else ""
        raise ModelNotReadable(f"{folder} is incomplete: it lacks {some(missing)} of {type(model).__name__}{instead}.")
    if unexpected:
        raise ModelNotReadable(
            f"{folder} does not fit its config.json: it holds {some(unexpected)}, which {type(model).__name__} has no "
            "place for."
        )
    tables = {name for name, weight in model.state_dict().items() if not weight.is_floating_point()}
    whole = sorted(
        name for name, weight in stored.items() if weight.read and weight.dtype in WHOLE and name not in tables
    )
    if whole:
        raise ModelNotReadable(
            f"{folder} holds {some(whole)} as whole numbers ({stored[whole[0]].dtype}), but its config.json has no "
            "quantization_config that says what they mean."
        )


def _uneven(names: Iterable[str]) -> list[str]:
    """Names that are missing in lists within lists, such as a layer's experts, by what the others of a list have."""
    lists: dict[str, dict[str, set[str]]] = {}
    for name in names:
        if found := re.fullmatch(r"(.*\.\d+\..*\.)(\d+)(\..+)", name):
            lists.setdefault(found[1], {}).setdefault(found[3], set()).add(found[2])
    return sorted(
        f"{head}{place}{tail}"
        for head, tails in lists.items()
        for tail, places in tails.items()
        for place in set().union(*tails.values()) - places
    )


def _further_layers(config: Any) -> list[str]:
    """Patterns of the layers that the configuration counts apart: they predict further tokens, and no class has them."""
    first, count = getattr(config, "num_hidden_layers", 0), getattr(config, "num_nextn_predict_layers", 0) or 0
    return [rf"^model\.layers\.{first + place}\." for place in range(count)]


def _is_of(name: str, parts: Collection[str]) -> bool:
    """Whether a weight belongs to one of these parts of a larger model."""
    segments = name.split(".")
    return "language_model" not in segments[:2] and bool(set(parts) & set(segments[:2]))


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
