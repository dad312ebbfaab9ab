"""The transformers network of a GGUF file: checked against the file when it is installed, filled from it when it is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decodery.errors import ModelNotReadable
from decodery.models.gguf.architectures import configuration
from decodery.models.gguf.file import GgufFile
from decodery.models.gguf.tokenizer import end_tokens, write_tokenizer
from decodery.models.gguf.weights import GgufWeights, write_pointer

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def write_folder(file: GgufFile, folder: Path) -> None:
    """Fill `folder` with what stands for `file` there: configuration, tokenizer, and where its weights are. No weights.

    Raises ModelNotReadable where the file is damaged, or says something that cannot be honoured.
    """
    said = configuration(file)
    weights = GgufWeights(file)
    write_tokenizer(file, folder)
    try:
        config = _config(said | _ids(file))
        empty = _empty(config)
    except Exception as error:  # as many kinds as families: sizes that do not divide, too few layers, …
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise ModelNotReadable(
            f"{file.path} has metadata of which transformers makes no network ({reason})."
        ) from error
    check(weights, empty)
    described = json.loads(config.to_json_string(use_diff=True))
    _write_json(
        folder / "config.json", _shortened(described) | {"architectures": [type(empty).__name__], "dtype": "float32"}
    )
    _write_json(folder / "generation_config.json", _generation(file))
    write_pointer(file, folder)


def read_model(source: GgufWeights, folder: Path, dtype: torch.dtype) -> Any:
    """The network of an installed folder, on the CPU, in eval mode: each weight is read, dequantised and converted on its own.

    Raises ModelNotReadable where file and network do not fit together, and what transformers raises.
    """
    from transformers import AutoConfig, GenerationConfig

    empty = _empty(AutoConfig.from_pretrained(folder))
    check(source, empty)
    stored = {name: _Pending(source, name, dtype) for name in source.names()}
    model = type(empty).from_pretrained(None, config=empty.config, state_dict=stored, dtype=dtype)
    model.generation_config = GenerationConfig.from_pretrained(folder)
    model.name_or_path = model.config.name_or_path = str(folder)
    return model


class _Pending:
    """A weight that is read when it is asked for, with `[...]`: what transformers takes weights of open files for.

    Vectors come in float32, for a network may keep some of them in it.
    """

    def __init__(self, source: GgufWeights, name: str, dtype: torch.dtype):
        self._source, self._name, self._dtype = source, name, dtype

    def __getitem__(self, place: Any) -> Tensor:
        import torch

        vector = len(self._source.shape(self._name)) < 2
        return self._source.tensor(self._name, torch.float32 if vector else self._dtype)[place]


def check(weights: GgufWeights, model: Any) -> None:
    """Raise ModelNotReadable, naming them, where weights are missing, have no place in the network, or another shape.

    model: the network without weights.
    """
    places = {name: tuple(place.shape) for name, place in model.state_dict().items()}
    held = set(weights.names())
    path, family = weights.file.path, type(model).__name__
    for name in weights.names():
        shape = weights.shape(name)
        if name not in places:
            raise ModelNotReadable(
                f"{path} holds {weights.origin(name)}, for which {family}, as the file describes it, has no place ({name})."
            )
        if shape != places[name]:
            raise ModelNotReadable(
                f"{path} is inconsistent: {weights.origin(name)} makes a weight {name} of shape {list(shape)}, "
                f"where its metadata asks for {list(places[name])}."
            )
    tied = dict(getattr(model, "all_tied_weights_keys", None) or {})
    lacking = sorted(name for name in places.keys() - held if tied.get(name) not in held)
    if lacking:
        others = f" and {len(lacking) - 1} more weights" if len(lacking) > 1 else ""
        raise ModelNotReadable(f"{path} is incomplete: it lacks {lacking[0]}{others}.")


def _empty(config: Any) -> Any:
    """The network without weights: it shows the class, and what its weights are called."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def _config(said: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(
        said["model_type"], **{key: value for key, value in said.items() if key != "model_type"}
    )


def _ids(file: GgufFile) -> dict[str, Any]:
    names = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    return {name: file.tokenizer(f"{key}_token_id") for name, key in names.items()}


def _generation(file: GgufFile) -> dict[str, Any]:
    ends = end_tokens(file)
    ids = _ids(file) | {"eos_token_id": ends[0] if len(ends) == 1 else ends or None}
    return {key: value for key, value in ids.items() if value is not None}


def _shortened(value: Any) -> Any:
    """Floats as they were meant: a GGUF file holds 1e-05 in float32, which reads as 9.999999747378752e-06."""
    if isinstance(value, dict):
        return {key: _shortened(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_shortened(entry) for entry in value]
    if isinstance(value, float):
        import numpy

        single = numpy.float32(value)
        return float(str(single)) if float(single) == value else value
    return value


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
