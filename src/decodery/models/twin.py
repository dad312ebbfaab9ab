"""Copies of a transformers model that share its weights: to run in another way, to be cut down, without touching it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BORDERS = {"sliding_window", "attention_window_size", "attention_chunk_size", "floor_scale", "window_size"}
"""Entries of a configuration that name a number of tokens from which on something else is computed."""
LENGTHS = {"original_max_position_embeddings"}
"""The same, of rotary angles."""
LAYERS = {"decoder_layers", "encoder_layers", "num_layers"}
"""Other names of the number of layers."""
CLOSE_WINDOW, CLOSE_LENGTH = 8, 24
"""Where borders are moved to, to be crossed by short texts."""


def context_of(config: Any) -> int:
    """The longest text that a configuration says a model is for; a million tokens where it says nothing."""
    names = ("max_position_embeddings", "max_target_positions", "max_sequence_length", "max_seq_len", "seq_length")
    said = (getattr(config, name, None) for name in names)
    return next((length for length in said if isinstance(length, int) and length > 0), 1 << 20)


def shared(model: PreTrainedModel, attention: str) -> Any:
    """A copy with modules and configuration of its own and the same weights, in eval mode.

    attention: the name of its attention function. Buffers that no checkpoint holds are copied: rotary embeddings write into
    theirs.
    """
    _check(model)
    held = {id(weight): weight for weight in weights(model).values()}
    twin = copy.deepcopy(model, dict(held)).eval()
    _attend_with(twin, attention)
    return twin


def _check(model: nn.Module) -> None:
    if any(hasattr(module, "layers_are_rescaled") for module in model.modules()):
        raise ValueError(
            "it divides its weights in place, which no copy may share with it"
        )  # RWKV, when it is run in eval mode


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Everything that a checkpoint holds, by name; tied ones under each of their names."""
    found: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                found[f"{prefix}.{name}" if prefix else name] = buffer
    return found


def _attend_with(model: nn.Module, attention: str) -> None:
    configs = {id(config): config for config in _configs(model)}
    for config in configs.values():
        config._attn_implementation_internal = attention


def _configs(model: nn.Module) -> Iterator[Any]:
    for module in model.modules():
        for value in vars(module).values():
            if hasattr(value, "_attn_implementation_internal"):
                yield value
                yield from (
                    getattr(value, name) for name in getattr(value, "sub_configs", {}) if getattr(value, name, None)
                )


def reduced(model: PreTrainedModel, layers: int, close: bool, vocabulary: int | None = None) -> Any:
    """A model of the first `layers` layers, with the weights of `model`, in eval mode and with transformers' plain attention.

    vocabulary: of so many first tokens alone; None: of all.
    close: borders in the length of the text (windows, chunks, the original context of rotary angles) are moved to where short
    texts cross them. Raises ValueError, or whatever the family's code does, where it cannot be cut down.
    """
    from transformers import initialization

    _check(model)
    config = copy.deepcopy(model.config)
    cut_configuration(config.get_text_config(), layers)
    if close:
        _move_borders(config.get_text_config())
    tokens = config.get_text_config().vocab_size
    if vocabulary is not None:
        cut_vocabulary(config.get_text_config(), vocabulary)
    config._attn_implementation_internal = "eager"
    with initialization.no_init_weights(), torch.device(model.device):
        small = type(model)(config).eval()
    held = weights(model)
    for name in weights(small):
        weight, (place, _, leaf) = held.get(name), name.rpartition(".")
        module = small.get_submodule(place)
        own = getattr(module, leaf)
        if weight is not None and weight.shape[0] == tokens and own.shape[0] == vocabulary:
            weight = nn.Parameter(weight.detach()[:vocabulary], requires_grad=False)
        if weight is None or weight.shape != own.shape:
            raise ValueError(
                f"{type(model).__name__} cannot be cut down to {layers} layers: {name} is another weight then"
            )
        if isinstance(weight, nn.Parameter):
            module._parameters[leaf] = weight
        else:
            module._buffers[leaf] = weight
    _attend_with(small, "eager")
    return small


def cut_configuration(config: Any, layers: int) -> None:
    """Leave only what a configuration says of the first layers."""
    count = config.num_hidden_layers
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == count:
            setattr(config, name, value[:layers])
        elif name in LAYERS and value == count:
            setattr(config, name, layers)
    config.num_hidden_layers = layers


def cut_vocabulary(config: Any, size: int) -> None:
    """Leave only what a configuration says of the first tokens."""
    config.vocab_size = size
    for name, value in list(vars(config).items()):
        if name.endswith("token_id") and isinstance(value, int) and value >= size:
            setattr(config, name, None)


def borders(config: Any) -> list[int]:
    """The numbers of tokens from which on something else is computed, as a configuration names them."""
    return [owner[name] for owner, name, _ in _borders(config)]


def _move_borders(config: Any) -> None:
    for owner, name, close in _borders(config):
        owner[name] = min(owner[name], close)


def _borders(config: Any) -> list[tuple[dict[str, Any], str, int]]:
    """Each border: what holds it, under which name, and where it may be moved to."""
    own = vars(config)
    rope = own.get("rope_parameters")
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))] if isinstance(rope, dict) else []
    found = [(own, name, CLOSE_WINDOW) for name in BORDERS]
    found += [(owner, name, CLOSE_LENGTH) for name in LENGTHS for owner in (own, *kinds)]
    if any("dynamic" in str(kind.get("rope_type")) for kind in kinds):
        found.append((own, "max_position_embeddings", CLOSE_LENGTH))
    return [entry for entry in found if isinstance(entry[0].get(entry[1]), int | float) and entry[0][entry[1]]]


def kinds_of_layers(layers: nn.ModuleList) -> int:
    """How many first layers hold one of each kind: layers are alike whose modules, shapes and settings are."""
    seen: set[str] = set()
    last = 0
    for place, layer in enumerate(layers):
        signature = _signature(layer)
        if signature not in seen:
            seen.add(signature)
            last = place
    return max(2, last + 1) if len(layers) > 1 else 1


def _signature(layer: nn.Module) -> str:
    parts = []
    for name, module in layer.named_modules():
        settings = {
            key: value
            for key, value in vars(module).items()
            if isinstance(value, int | float | str | bool | None) and "idx" not in key and key != "training"
        }
        shapes = {key: tuple(value.shape) for key, value in module.named_parameters(recurse=False)}
        parts.append(f"{name} {type(module).__name__} {settings} {shapes}")
    return "\n".join(parts)


def forget_weights(model: nn.Module) -> None:
    """Give the memory of a model's weights back, whoever refers to them. Modules refer to each other in circles, and so stay
    until all objects are looked through."""
    for weight in weights(model).values():
        weight.data = weight.data.new_empty(0)
