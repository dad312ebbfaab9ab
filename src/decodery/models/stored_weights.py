"""The weights of a checkpoint's files, each read when it is asked for.

transformers maps a checkpoint's files and keeps the maps until all weights are there. Where each weight is then converted, as
float32 checkpoints are for computing in bfloat16, all pages of the files are in memory beside all converted weights: three
times what the model needs. Here a map serves few weights, and goes when these are converted.
"""

from __future__ import annotations

import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from decodery.errors import ModelNotReadable
from decodery.models.checkpoint import PICKLES, check_weights, some, weight_files

MAP = 32 << 20
"""Bytes of converted weights after which a file is mapped anew. Opening takes a quarter of a millisecond."""
FLOATING = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
"""What safetensors files call numbers that are weights as they stand."""
WHOLE = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
}  # fmt: skip
"""And those that mean something in tables, or by scales of a quantisation."""
_STATES = ("state_dict", "model_state_dict", "model", "module")
"""Under what names training programs put the weights beside what else they save."""


class WeightFile(ABC):
    """A file of weights. For several threads."""

    path: Path

    @abstractmethod
    def dtypes(self) -> dict[str, str]:
        """The dtype of each weight, in the words of safetensors, by the weight's name."""

    @abstractmethod
    def take(self, name: str, place: Any = ..., converted: bool = True) -> Tensor:
        """Part of a weight: a view of a map, which stays as long as any of its views. converted: the view goes soon."""


class SafetensorsFile(WeightFile):
    """Pages are in memory only while weights of theirs are in use. Raises ModelNotReadable where the file is damaged."""

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()
        self._taken = 0
        self._opened = self._open()

    def _open(self) -> Any:
        try:
            return safe_open(self.path, framework="pt")
        except SafetensorError as error:
            raise ModelNotReadable(f"{self.path} is no readable safetensors file ({error}).") from error

    def dtypes(self) -> dict[str, str]:
        return {name: self._opened.get_slice(name).get_dtype() for name in self._opened.keys()}  # noqa: SIM118

    def take(self, name: str, place: Any = ..., converted: bool = True) -> Tensor:
        with self._lock:
            if self._taken >= MAP:
                self._opened, self._taken = self._open(), 0
            weight: Tensor = self._opened.get_slice(name)[place]
            self._taken += weight.nbytes if converted else 0
        return weight


class PickledFile(WeightFile):
    """A file that torch wrote, read without running any code that it names.

    Raises ModelNotReadable where the file is damaged, needs code, or holds something else than tensors by name.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
        except Exception as error:  # of the reader's many own kinds
            raise ModelNotReadable(_why_not_unpickled(path, error)) from error
        for name in _STATES:
            if isinstance(content, dict) and isinstance(content.get(name), dict):
                content = content[name]
        if not isinstance(content, dict) or not content:
            raise ModelNotReadable(f"{path} holds no weights by name but {_kind(content)}.")
        other = [
            str(name) for name, value in content.items() if not isinstance(value, Tensor) or not isinstance(name, str)
        ]
        if other:
            raise ModelNotReadable(
                f"{path} holds {some(other)} beside weights, which is no tensor; it must hold weights alone."
            )
        self._weights: dict[str, Tensor] = content

    def dtypes(self) -> dict[str, str]:
        words = {dtype: word for word, dtype in (FLOATING | WHOLE).items()}
        return {name: words.get(weight.dtype, str(weight.dtype)) for name, weight in self._weights.items()}

    def take(self, name: str, place: Any = ..., converted: bool = True) -> Tensor:
        return self._weights[name][place]


class StoredWeight:
    """A weight that is read when it is asked for, with `[...]`: what transformers takes weights of open files for.

    Raises ModelNotReadable, then, where it holds numbers that are not finite: nothing could be computed with them.
    """

    def __init__(self, file: WeightFile, name: str, dtype: str, wanted: torch.dtype | None = None):
        self._file, self._name = file, name
        self.dtype = dtype
        """In the words of safetensors."""
        self.read = False
        """Whether anybody has asked for it."""
        self._converted = FLOATING.get(dtype) != wanted

    def __getitem__(self, place: Any) -> Tensor:
        self.read = True
        weight = self._file.take(self._name, place, self._converted)
        if self.dtype in FLOATING and not _finite(weight):
            raise ModelNotReadable(
                f"the weight {self._name} in {self._file.path} holds numbers that are not finite; copy or download it again."
            )
        return weight

    @property
    def place(self) -> str:
        """Name and file, for messages."""
        return f"{self._name} in {self._file.path.name}"

    def same_as(self, other: StoredWeight) -> bool:
        """Whether both hold the same numbers."""
        one, two = self._file.take(self._name), other._file.take(other._name)
        return one.dtype == two.dtype and one.shape == two.shape and torch.equal(one, two)


def stored_weights(folder: Path, dtype: torch.dtype | None = None, odd: bool = False) -> dict[str, StoredWeight]:
    """All weights of a checkpoint folder by the names in its files.

    dtype: what they are to be converted to. odd: dtypes that only somebody else can compute with are welcome too.
    Raises ModelNotReadable where files are missing or damaged, a weight has a dtype that torch cannot compute with, or two
    files hold a weight with different numbers.
    """
    files = weight_files(folder)
    check_weights(files)
    return weights_in(files, dtype, odd)


def weights_in(
    files: Mapping[Path, set[str] | None], dtype: torch.dtype | None = None, odd: bool = False
) -> dict[str, StoredWeight]:
    """The weights of these files by name; see `stored_weights`."""
    stored: dict[str, StoredWeight] = {}
    for path, expected in files.items():
        file: WeightFile = PickledFile(path) if path.suffix in PICKLES else SafetensorsFile(path)
        found = file.dtypes()
        if lacking := sorted((expected or set()) - set(found)):
            raise ModelNotReadable(f"{path} lacks {some(lacking)}, which its index says it holds.")
        strange = sorted(name for name, word in found.items() if word not in FLOATING and word not in WHOLE)
        if strange and not odd:
            raise ModelNotReadable(
                f"{path} holds {some(strange)} as {found[strange[0]]}, which cannot be computed with; "
                "take a copy of the model in bfloat16, float16 or float32."
            )
        put(stored, ((name, StoredWeight(file, name, word, dtype)) for name, word in found.items()))
    return stored


def put(stored: dict[str, StoredWeight], weights: Iterable[tuple[str, StoredWeight]]) -> None:
    """Add weights by name. Raises ModelNotReadable where a name is taken by other numbers."""
    for name, weight in weights:
        if name in stored and not stored[name].same_as(weight):
            raise ModelNotReadable(
                f"{name} is there twice with different numbers, as {stored[name].place} and as {weight.place}; "
                "remove the one that does not belong."
            )
        stored.setdefault(name, weight)


def _finite(weight: Tensor) -> bool:
    # A sum takes no memory and is finite only where all is; it may overflow where all is finite.
    if weight.dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        weight = weight.to(torch.float16)
    return bool(weight.sum().isfinite()) or bool(weight.isfinite().all())


def _is_zip(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(2) == b"PK"


def _why_not_unpickled(path: Path, error: Exception) -> str:
    if named := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return (
            f"{path} names {named[1]}, and to read it would run code that comes with it, which is never done; "
            "save the model's weights alone, best as safetensors."
        )
    return f"{path} is no readable file of torch; copy or download it again."


def _kind(content: Any) -> str:
    return "nothing" if content is None or content == {} else f"a {type(content).__name__}"
