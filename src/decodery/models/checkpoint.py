"""A checkpoint folder: whether it is complete, and the record of where it came from (`decodery.json`).

Checks are cheap (sizes and the heads of files, no weights), because they run whenever a model is loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from decodery._version import __version__
from decodery.errors import ModelNotReadable

RECORD = "decodery.json"

# Raised when what is installed for a GGUF file changes, so that what older versions have installed is made anew.
CONVERSION = 2

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
    """Raise ModelNotReadable, saying what is missing, unless `folder` is a complete checkpoint."""
    try:
        configuration = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        configuration = None
    if not isinstance(configuration, dict):
        raise ModelNotReadable(
            f"{folder / 'config.json'} is not readable; it must be the JSON configuration of a model."
        )
    for path in weight_files(folder):
        _check_weights(path)
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelNotReadable(f"{folder} holds no tokenizer; it needs tokenizer.json or tokenizer.model.")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def weight_files(folder: Path) -> Iterable[Path]:
    """The safetensors files of a checkpoint. Raises ModelNotReadable where some are missing."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        raise ModelNotReadable(
            f"{folder} holds no weights; it needs model.safetensors, or model.safetensors.index.json with its shards."
        )
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelNotReadable(f"{index} is damaged; copy or download it again.") from error
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing:
        raise ModelNotReadable(
            f"{folder} lacks {len(missing)} of {len(shards)} weight files ({missing[0]}); copy or download them again."
        )
    return [folder / name for name in shards]


def _check_weights(path: Path) -> None:
    """Compare the length of a safetensors file with the one that its head promises."""
    there = path.stat().st_size
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
            if length > min(there, _LONGEST_HEAD):
                raise ValueError("the head is longer than the file")
            head = json.loads(stream.read(length))
        ends = [entry["data_offsets"][1] for name, entry in head.items() if name != "__metadata__"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelNotReadable(f"{path} is no readable safetensors file; copy or download it again.") from error
    needed = _LENGTH_BYTES + length + max(ends, default=0)
    if there != needed:
        raise ModelNotReadable(
            f"{path} is damaged: it has {there:,} bytes where {needed:,} belong; copy or download it again."
        )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
