"""Folders of adapters (LoRA and its kin, as peft writes them): the base model is found, and the adapter merged into it.

A merged model is a plain one, so that every path and method runs it. peft is an optional package.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decodery.errors import DecoderyError, ModelNotReadable, reason
from decodery.models import store
from decodery.models.checkpoint import ADAPTER, adapter_weights, is_adapter, read_json, some
from decodery.models.quiet import quiet
from decodery.models.stored_weights import weights_in

if TYPE_CHECKING:
    from torch import Tensor


def base_folder(folder: Path, progress: store.Progress | None = None) -> Path | None:
    """The folder of the model that an adapter's folder is for; None where `folder` is no adapter's.

    The base is named in its `adapter_config.json`: a folder, as it stands or seen from the adapter's, or any name that
    `store.resolve` knows. Raises ModelNotReadable where it is not named, or is not to be had.
    """
    if not is_adapter(folder):
        return None
    name = read_json(folder / ADAPTER).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ModelNotReadable(f"{folder / ADAPTER} does not name its base model in base_model_name_or_path.")
    beside = [str(place / name) for place in (folder, folder.parent) if os.path.isdir(place / name)]
    chosen = name if os.path.isdir(name) or not beside else beside[0]
    try:
        base = store.resolve(chosen, progress=progress)
    except DecoderyError as error:
        raise ModelNotReadable(f"{folder} is an adapter for {name}, which is not to be had: {error}") from error
    if is_adapter(base):
        raise ModelNotReadable(f"{folder} is an adapter for {name}, which is an adapter itself; merge that one first.")
    return base


def check_available(folder: Path) -> None:
    """Raise ModelNotReadable where the adapter in `folder` cannot be merged: without peft, or with nothing to merge."""
    try:
        import peft
    except ImportError as error:
        raise ModelNotReadable(
            f"{folder} is an adapter, which is merged into its base model with peft; install it: pip install peft."
        ) from error
    kind = str(read_json(folder / ADAPTER).get("peft_type"))
    known: Mapping[Any, Any] = peft.PEFT_TYPE_TO_CONFIG_MAPPING
    if kind not in known:
        raise ModelNotReadable(
            f"{folder} is an adapter of kind {kind}, which the installed peft {peft.__version__} does not know."
        )
    if issubclass(known[kind], peft.PromptLearningConfig):
        raise ModelNotReadable(
            f"{folder} is an adapter of kind {kind}, a learned prompt, which cannot be merged into the base model's weights."
        )


def merged(model: Any, folder: Path) -> Any:
    """`model` with the adapter in `folder` merged into its weights, by peft, in the model's dtype.

    Where two parts share a weight and the adapter changes one of them, that part gets a weight of its own, as it had in
    training. Raises ModelNotReadable where the adapter does not fit the model, or peft is missing.
    """
    check_available(folder)
    with quiet():
        from peft import PeftConfig, get_peft_model, set_peft_model_state_dict

        weights = {name: weight[...] for name, weight in weights_in({adapter_weights(folder): None}).items()}
        try:
            config = PeftConfig.from_pretrained(str(folder))
            config.inference_mode = True
            _resize(model, weights, folder)
            adapted = get_peft_model(model, config)
            _untie(model)
            found: Any = set_peft_model_state_dict(adapted, weights)
            own = [
                name for name in found.missing_keys if adapted.base_model.prefix in name or "modules_to_save" in name
            ]
            _check_found(folder, own, list(found.unexpected_keys))
            plain = adapted.merge_and_unload()
        except DecoderyError:
            raise
        except Exception as error:  # peft has no errors of its own
            raise ModelNotReadable(f"the adapter in {folder} does not fit its base model: {reason(error)}.") from error
    return plain.eval()


def _check_found(folder: Path, missing: list[str], unexpected: list[str]) -> None:
    if missing:
        raise ModelNotReadable(f"the adapter in {folder} is incomplete: it lacks {some(sorted(missing))}.")
    if unexpected:
        raise ModelNotReadable(
            f"the adapter in {folder} holds {some(sorted(unexpected))}, which its base model has no place for."
        )


def _resize(model: Any, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Give the model the vocabulary that it had in training, where the adapter brings the rows of a larger or smaller one."""
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    names = [
        f"base_model.model.{name}.weight" for end in ends for name, module in model.named_modules() if module is end
    ]
    rows = {weights[name].shape[0] for name in names if name in weights}
    if not rows - {model.config.vocab_size}:
        return
    lacking = [name for name in names[: 1 if ends[0].weight is ends[1].weight else 2] if name not in weights]
    if lacking or len(rows) > 1:
        raise ModelNotReadable(
            f"the adapter in {folder} was trained with another vocabulary than its base model's, and lacks rows of it."
        )
    model.resize_token_embeddings(rows.pop(), mean_resizing=False)


def _untie(model: Any) -> None:
    """Give adapted parts that share their weight with another part a weight of their own."""
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    owners: dict[int, int] = {}
    for module in model.modules():
        weight = getattr(module, "_parameters", {}).get("weight")
        if weight is not None:
            owners[id(weight)] = owners.get(id(weight), 0) + 1
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            base: Any = module.get_base_layer()
            if owners.get(id(base.weight), 0) > 1:
                base.weight = torch.nn.Parameter(base.weight.detach().clone(), requires_grad=False)
                model.config.tie_word_embeddings = False
