"""Checkpoints that transformers reads by itself: quantised ones, with the libraries that these need.

What cannot be read here is refused with transformers' reason, which says what to install. Nothing is read as raw numbers: a
method that is not known, scales that are missing and layers that were left with quantised numbers are errors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from decodery.errors import ModelNotReadable, reason
from decodery.models.checkpoint import some
from decodery.models.fitting import LIST, check_found, uneven
from decodery.models.stored_weights import FLOATING, stored_weights

_SCALES = ("_scale_inv", "_scale", ".scale", "_scales")
"""Under what names the scales of a weight are kept beside it."""
_USABLE = (torch.float32, torch.bfloat16, torch.float16)
"""What a plain layer multiplies by."""


def read_by_transformers(folder: Path, kind: Any, config: Any, dtype: torch.dtype) -> Any:
    """A folder whose files transformers chooses and reads by itself, as quantised ones, with the libraries that these need."""
    quantised = getattr(config, "quantization_config", None)
    if quantised:
        _check_method(folder, quantised)
        _check_scales(folder)
    settings: dict[str, Any] = {"dtype": dtype, "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        model, found = kind.from_pretrained(folder, config=config, **settings)
    except Exception as error:  # of as many libraries as there are ways to quantise
        if "not implemented for" in str(error):  # whole numbers, say, cannot be made up where they are missing
            lacking = uneven(stored_weights(folder, odd=True), LIST)
            what = some(lacking) if lacking else "weights"
            raise ModelNotReadable(f"{folder} is incomplete: it lacks {what} of {kind.__name__}.") from error
        what = f" is quantised ({_method(quantised)}), and" if quantised else ""
        raise ModelNotReadable(f"{folder}{what} cannot be read here: {reason(error)}.") from error
    check_found(found, model, folder, {})
    _check_plain_layers(model, folder)
    return model


def _method(quantised: Any) -> str:
    entries = quantised if isinstance(quantised, dict) else quantised.to_dict()
    return str(getattr(entries.get("quant_method"), "value", entries.get("quant_method")))


def _check_method(folder: Path, quantised: Any) -> None:
    """Raise ModelNotReadable where transformers does not know how a model was quantised: it would read the raw numbers."""
    from transformers.quantizers.auto import AutoHfQuantizer

    entries = quantised if isinstance(quantised, dict) else quantised.to_dict()
    try:
        known = AutoHfQuantizer.supports_quant_method(entries)
    except ValueError:
        known = False
    if not known:
        raise ModelNotReadable(
            f"{folder} is quantised by a method ({_method(quantised)}) that the installed transformers does not know; take a "
            "copy of the model that is not quantised, or a GGUF file of it."
        )


def _check_scales(folder: Path) -> None:
    """Raise ModelNotReadable where a quantised weight lacks its scales: transformers would take its numbers as they stand."""
    stored = stored_weights(folder, odd=True)
    bare = [name for name, weight in stored.items() if weight.dtype in FLOATING and weight.dtype.startswith("F8")]
    lacking = [f"{name}_scale" for name in bare if not any(f"{name}{end}" in stored for end in _SCALES)]
    lacking += [name for part in stored if part.endswith("_blocks") and (name := f"{part[:-7]}_scales") not in stored]
    if lacking:
        raise ModelNotReadable(f"{folder} is incomplete: it lacks {some(sorted(lacking))} of quantised weights.")


def _check_plain_layers(model: Any, folder: Path) -> None:
    """Raise ModelNotReadable where a layer that multiplies by its weight as it stands was left with quantised numbers."""
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        # Some quantised layers are of these classes too, but with another forward.
        plain = type(module) in (torch.nn.Linear, torch.nn.Embedding) and "forward" not in vars(module)
        if plain and type(weight) is torch.nn.Parameter and weight.dtype not in _USABLE:
            raise ModelNotReadable(
                f"{folder} cannot be read here: {name}.weight is left as {weight.dtype}, which its layer cannot use."
            )
