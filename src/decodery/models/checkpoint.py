"""A checkpoint folder: whether it is complete, and the record of where it came from (`decodery.json`).

Checks are cheap (sizes and the heads of files, no weights), because they run whenever a model is loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from decodery._version import __version__
from decodery.errors import ModelNotReadable

RECORD = "decodery.json"

# Raised when what is installed for a GGUF file changes, so that what older versions have installed is made anew.
CONVERSION = 2

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
PICKLES = (".bin", ".pt", ".pth")
"""Endings of the files that torch writes."""
ADAPTER = "adapter_config.json"

_NO_MODEL = ("training_args", "optimizer", "scheduler", "scaler", "rng_state", "trainer_state", "adapter_")
_POINTER = b"version https://git-lfs"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "tekken.json")
_LENGTH_BYTES = 8  # a safetensors file starts with the length of its head
_LONGEST_HEAD = 100_000_000  # the limit of the safetensors format


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where an installed model came from, and the sizes that its files had when it was installed."""

    name: str
    title: str
    licence: str
    source: str  # for people to read
    parameters: str  # such as "135M"
    sha256: dict[str, str]  # of every source file
    download_bytes: int = 0
    origin: dict[str, str | int] = field(default_factory=dict)  # path, bytes and change time of a local source file
    files: dict[str, int] = field(default_factory=dict)  # bytes of every installed file
    date: str = ""  # of the installation, in UTC
    decodery: str = ""  # the version that installed it
    conversion: int = 0

    @staticmethod
    def read(folder: Path) -> Provenance | None:
        """The record in `folder`, or None where there is none or it cannot be read."""
        try:
            return Provenance(**json.loads((folder / RECORD).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, folder: Path) -> None:
        """Record this with the present files of `folder`, the date and the version: the last step of installing."""
        filled = asdict(self) | {
            "files": {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.name != RECORD},
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "decodery": __version__,
            "conversion": CONVERSION,
        }
        (folder / RECORD).write_text(json.dumps(filled, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def matches(self, folder: Path) -> bool:
        """Whether `folder` still holds every file with the size it had, made by the present conversion."""
        return self.conversion == CONVERSION and all(_size(folder / name) == size for name, size in self.files.items())


def installed(folder: Path) -> Provenance | None:
    """The record of an intact installation in `folder`, or None where it is missing or damaged."""
    record = Provenance.read(folder)
    return record if record is not None and record.matches(folder) else None


def check(folder: Path) -> None:
    """Raise ModelNotReadable, saying what is missing, unless `folder` is a complete checkpoint, of a model or an adapter."""
    if is_adapter(folder):
        read_json(folder / ADAPTER)
        adapter_weights(folder)
        return
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        if name == "config.json" or (folder / name).is_file():
            read_json(folder / name)
    check_weights(weight_files(folder))
    if not has_tokenizer(tokenizer_folder(folder)):
        raise ModelNotReadable(f"{folder} holds no tokenizer; it needs tokenizer.json or tokenizer.model.")


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds the vocabulary of a tokenizer."""
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


def tokenizer_folder(folder: Path) -> Path:
    """Where the tokenizer of a model lies: in its own folder, or in the one beside it that `tokenizer_folder` of its
    config.json
    names, so that models which share a tokenizer need not keep it twice."""
    if has_tokenizer(folder) or not (folder / "config.json").is_file():
        return folder
    named = read_json(folder / "config.json").get("tokenizer_folder")
    return folder.parent / named if isinstance(named, str) and Path(named).name == named else folder


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds weights to be added to another model's, such as LoRA's.

    Raises ModelNotReadable where it holds the weights of a model as well: which of them are meant nobody can tell.
    """
    if not (folder / ADAPTER).is_file():
        return False
    own = [name for name in (SINGLE, INDEX, PICKLE, PICKLE_INDEX) if (folder / name).is_file()]
    if own:
        raise ModelNotReadable(
            f"{folder} holds the weights of a model ({own[0]}) and an adapter ({ADAPTER}); remove {ADAPTER} to load the model "
            "alone, or move the adapter to a folder of its own to load both."
        )
    return True


def adapter_weights(folder: Path) -> Path:
    """The file of an adapter's weights. Raises ModelNotReadable where it is missing or damaged."""
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        if (folder / name).is_file():
            check_weights({folder / name: None})
            return folder / name
    raise ModelNotReadable(f"{folder} describes an adapter but lacks its weights, adapter_model.safetensors.")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint. Raises ModelNotReadable where it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise ModelNotReadable(f"{path} is not readable; it must be a JSON object that describes a model.")
    return content


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def weight_files(folder: Path) -> dict[Path, set[str] | None]:
    """The files of a checkpoint's weights, with the names that its index says each of them holds, or None without an index.

    Where there are several sets the first of these is read, which is what transformers takes too: model.safetensors, the
    shards in model.safetensors.index.json, pytorch_model.bin, the shards in pytorch_model.bin.index.json, or else the one
    .bin, .pt or .pth file there is. Other files, such as shards that no index names, are left alone.
    Raises ModelNotReadable where files are missing.
    """
    for single, index in ((SINGLE, INDEX), (PICKLE, PICKLE_INDEX)):
        if (folder / single).is_file():
            return {folder / single: None}
        if (folder / index).is_file():
            return _shards(folder, folder / index)
    others = [
        path for path in sorted(folder.iterdir()) if path.suffix in PICKLES and not path.name.startswith(_NO_MODEL)
    ]
    if len(others) == 1:
        return {others[0]: None}
    if others:
        raise ModelNotReadable(
            f"{folder} holds {len(others)} files that could be the weights ({others[0].name}, {others[1].name} …); "
            f"call the right one {PICKLE}."
        )
    raise ModelNotReadable(f"{folder} holds no weights; it needs {SINGLE}, or {INDEX} with its shards, or {PICKLE}.")


def _shards(folder: Path, index: Path) -> dict[Path, set[str] | None]:
    files: dict[Path, set[str] | None] = {}
    try:
        for weight, name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].items():
            if Path(name).name != name:
                raise ValueError("a file elsewhere")
            names = files.setdefault(folder / name, set())
            assert names is not None
            names.add(weight)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelNotReadable(f"{index} is damaged; copy or download it again.") from error
    missing = sorted(path.name for path in files if not path.is_file())
    if missing:
        raise ModelNotReadable(
            f"{folder} lacks {len(missing)} of {len(files)} weight files ({missing[0]}); copy or download them again."
        )
    if not files:
        raise ModelNotReadable(f"{index} names no weights; copy or download it again.")
    return dict(sorted(files.items()))


def check_weights(files: Mapping[Path, set[str] | None]) -> None:
    """Raise ModelNotReadable where a weight file is damaged, or lacks weights that the index says it holds.

    Of pickles only the beginning is looked at: what they hold is known when they are read.
    """
    for path, expected in files.items():
        if path.suffix in PICKLES:
            _check_pickle(path)
            continue
        lacking = sorted((expected or set()) - _names_in(path))
        if lacking:
            raise ModelNotReadable(
                f"{path} lacks {some(lacking)}, which its index says it holds; copy or download both again."
            )


def some(names: Collection[str]) -> str:
    """The first name, and how many more there are."""
    first = next(iter(names))
    return first if len(names) == 1 else f"{first} and {len(names) - 1} more"


def _names_in(path: Path) -> set[str]:
    """The weights of a safetensors file, whose length must be the one that its head promises."""
    there = path.stat().st_size
    try:
        with path.open("rb") as stream:
            start = stream.read(_LENGTH_BYTES)
            length = int.from_bytes(start, "little")
            if length > min(there, _LONGEST_HEAD):
                _refuse_pointer(path, start + stream.read(len(_POINTER)))
                raise ValueError("the head is longer than the file")
            head = json.loads(stream.read(length))
        ends = {name: int(entry["data_offsets"][1]) for name, entry in head.items() if name != "__metadata__"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelNotReadable(f"{path} is no readable safetensors file; copy or download it again.") from error
    needed = _LENGTH_BYTES + length + max(ends.values(), default=0)
    if there != needed:
        raise ModelNotReadable(
            f"{path} is damaged: it has {there:,} bytes where {needed:,} belong; copy or download it again."
        )
    if not ends:
        raise ModelNotReadable(f"{path} is empty: it holds no weights; copy or download it again.")
    return set(ends)


def _check_pickle(path: Path) -> None:
    with path.open("rb") as stream:
        start = stream.read(len(_POINTER))
    _refuse_pointer(path, start)
    if not start:
        raise ModelNotReadable(f"{path} is empty; copy or download it again.")


def _refuse_pointer(path: Path, start: bytes) -> None:
    if start.startswith(_POINTER):
        raise ModelNotReadable(f"{path} is a pointer of Git LFS, not the file; fetch it with `git lfs pull`.")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
