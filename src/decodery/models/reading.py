"""Reading a transformers model from its folder, a few weights at a time where weights are converted.

transformers maps a checkpoint's files and keeps the maps until all weights are there. Where each weight is then converted, as
float32 checkpoints are for computing in bfloat16, all pages of the files are in memory beside all converted weights: three
times what the model needs. Here a map serves few weights, and goes when these are converted. Everything else, such as names
and tied weights, is left to transformers, which is handed the weights as a state dict.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from decodery.models.checkpoint import weight_files
from decodery.models.weight_source import Blocks, WeightSource

MAP = 32 << 20
"""Bytes of weights after which a file is mapped anew. Opening takes a quarter of a millisecond."""
OWN_WAYS = ("auto_map", "quantization_config", "transformers_weights")
"""Entries of `config.json` by which transformers decides on the folder's files itself."""
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
"""What safetensors files call them."""


class WeightFile:
    """A safetensors file whose pages are in memory only while weights of theirs are in use. For several threads."""

    def __init__(self, path: Path):
        self._path = path
        self._lock = threading.Lock()
        self._taken = 0
        self._opened = self._open()

    def _open(self) -> Any:
        return safe_open(self._path, framework="pt")

    def dtypes(self) -> dict[str, str]:
        """The dtype of each weight, in the words of the file, by the weight's name."""
        return {name: self._opened.get_slice(name).get_dtype() for name in self._opened.keys()}  # noqa: SIM118

    def take(self, name: str, place: Any) -> Tensor:
        """Part of a weight: a view of a map, which stays as long as any of its views."""
        with self._lock:
            if self._taken >= MAP:
                self._opened, self._taken = self._open(), 0
            weight: Tensor = self._opened.get_slice(name)[place]
            self._taken += weight.nbytes
        return weight


class StoredWeight:
    """A weight that is read when it is asked for, with `[...]`: what transformers takes weights of open files for."""

    def __init__(self, file: WeightFile, name: str):
        self._file, self._name = file, name

    def __getitem__(self, place: Any) -> Tensor:
        return self._file.take(self._name, place)


class StoredWeights:
    """The weights in the safetensors files of a folder, a `WeightSource`. Raises ModelNotReadable where files are missing."""

    def __init__(self, folder: Path):
        files = [WeightFile(path) for path in weight_files(folder)]
        self._stored = {name: StoredWeight(file, name) for file in files for name in file.dtypes()}

    def names(self) -> Iterable[str]:
        return self._stored

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        weight = self._stored[name][...]
        if weight.dtype not in DTYPES:
            raise ValueError(f"{name} is kept as {weight.dtype}, which is no number of a usual checkpoint")
        return weight.to(dtype)

    def blocks(self, name: str) -> Blocks | None:
        return None

    def release(self, name: str) -> None:
        pass


def read_model(folder: Path, config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """What `AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)` gives, bit for bit: on the CPU, in eval mode.

    config: the folder's `config.json`. Raises ModelNotReadable, and what transformers raises: OSError, ValueError, KeyError,
    RuntimeError.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    stored = _converted_weights(folder, config, dtype)
    if not stored:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    with torch.device("meta"):  # no weights: it shows the class, and the configuration as the class wants it
        empty: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=dtype)
    model = type(empty).from_pretrained(None, config=empty.config, state_dict=stored, dtype=dtype)
    model.generation_config = GenerationConfig.from_pretrained(folder)
    model.name_or_path = model.config.name_or_path = str(folder)
    return model


def empty_model(folder: Path, dtype: torch.dtype) -> Any:
    """The model of a folder without its weights, in eval mode. Their memory is not written to, and so takes none until `fill`
    does; what a model computes for itself, such as the angles of rotations, is there."""
    from transformers import AutoConfig, AutoModelForCausalLM, initialization

    with initialization.no_init_weights():
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=dtype).eval()
    model.tie_weights()  # a part of making weights, which was left out
    return model


def fill(model: nn.Module, source: WeightSource, names: Iterable[str]) -> None:
    """Read weights of a model from a source, one after the other."""
    with torch.no_grad():
        for name in names:
            weight = model.get_parameter(name)
            weight.copy_(source.tensor(name, weight.dtype))


def cut(model: Any, layers: int) -> None:
    """Leave only the first layers of a model of the usual kind, and of what its configuration says of each layer."""
    config: Any = model.config.get_text_config()
    count = config.num_hidden_layers
    for entry, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == count:
            setattr(config, entry, value[:layers])
    config.num_hidden_layers = layers
    model.base_model.layers = model.base_model.layers[:layers]


def end_tokens(model: Any, folder: Path) -> tuple[int, ...]:
    """The tokens that end a text, by the folder's generation config, or else by its model's configuration."""
    from transformers import GenerationConfig

    given = model.generation_config
    if (folder / "generation_config.json").is_file():
        given = GenerationConfig.from_pretrained(folder)
    ends = given.eos_token_id
    return (ends,) if isinstance(ends, int) else tuple(ends or ())


def is_usual(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether the weights are those in the folder's files, as they stand there. config: the folder's `config.json`."""
    return not any(config.get(entry) for entry in OWN_WAYS) and not (folder / "adapter_config.json").exists()


def _converted_weights(folder: Path, config: Mapping[str, Any], dtype: torch.dtype) -> dict[str, StoredWeight]:
    """The weights of a folder by name; none where all have this dtype already, or the folder is not of the usual form."""
    if not is_usual(folder, config):
        return {}
    if not (folder / "generation_config.json").is_file():
        return {}
    stored: dict[str, StoredWeight] = {}
    dtypes: set[str] = set()
    for path in weight_files(folder):
        file = WeightFile(path)
        stored |= {name: StoredWeight(file, name) for name in file.dtypes()}
        dtypes |= set(file.dtypes().values())
    return {} if dtypes == {DTYPES.get(dtype)} else stored
