"""GGUF files: metadata and the table of tensors, read and checked in a fraction of a second; one file or several parts.

The reader of the `gguf` package builds one array object per string, which takes many seconds for a vocabulary of a
quarter of a million tokens; all that is needed here are plain Python values.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from decodery.errors import ModelNotReadable

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_DEFAULT_ALIGNMENT = 32
_MOST_DIMENSIONS = 4
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.gguf)", re.IGNORECASE)

# The arrays that only a tokenizer needs. They are most of the head of a file.
VOCABULARY_KEYS = frozenset(f"tokenizer.ggml.{key}" for key in ("tokens", "scores", "token_type", "merges"))


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One line of the table of tensors."""

    name: str
    shape: tuple[int, ...]  # fastest dimension first, as the file has it
    kind: int  # the quantisation type
    offset: int  # bytes from the start of the part that holds it
    part: int = 0  # which of the files


@dataclass(frozen=True, slots=True)
class GgufFile:
    """What stands before the weights of a GGUF file, or of all parts of a split one."""

    paths: tuple[Path, ...]
    metadata: dict[str, Any]
    tensors: tuple[TensorEntry, ...]

    @classmethod
    def read(cls, path: Path) -> GgufFile:
        """Read the head of `path` and of the parts that belong to it, and check that all weights lie in the files.

        Raises ModelNotReadable where a file is damaged, missing, or something else.
        """
        first = _read_head(path)
        count = first.metadata.get("split.count", 1)
        if not isinstance(count, int) or count < 2:
            return first
        paths = _parts(path, int(first.metadata.get("split.no", 0)), count)
        return _joined(first, [_read_head(part) for part in paths[1:]])

    @property
    def path(self) -> Path:
        """The file, or its first part."""
        return self.paths[0]

    @property
    def architecture(self) -> str:
        """The name that the file gives to its network, such as `llama`."""
        return str(self.metadata.get("general.architecture", ""))

    @property
    def parameters(self) -> int:
        """The number of weights."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    @property
    def bytes(self) -> int:
        """What the weights take."""
        return sum(map(tensor_bytes, self.tensors))

    def tokenizer(self, key: str, default: Any = None) -> Any:
        """The metadata entry `tokenizer.ggml.<key>`."""
        return self.metadata.get(f"tokenizer.ggml.{key}", default)


BLOCKS = {
    0: (1, 4),
    1: (1, 2),
    2: (32, 18),
    3: (32, 20),
    6: (32, 22),
    7: (32, 24),
    8: (32, 34),
    12: (256, 144),
    13: (256, 176),
}
BLOCKS |= {14: (256, 210), 20: (32, 18), 30: (1, 2)}
"""Numbers and bytes of a block of the usual kinds. The package `gguf` knows all, but takes a tenth of a second to import."""


def block_of(kind: int) -> tuple[int, int]:
    """Numbers and bytes of a block. kind: as `gguf.GGMLQuantizationType` numbers it. Raises ValueError for an unknown one."""
    if kind not in BLOCKS:
        import gguf

        return gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    return BLOCKS[kind]


def tensor_bytes(entry: TensorEntry) -> int:
    """Bytes that a tensor takes. Raises ValueError for an unknown kind, or rows that are no whole number of blocks."""
    block, size = block_of(entry.kind)
    if entry.shape and entry.shape[0] % block:
        raise ValueError(f"its rows of {entry.shape[0]} numbers are no whole number of blocks of {block}")
    return math.prod(entry.shape) // block * size


def _read_head(path: Path) -> GgufFile:
    try:
        stream = path.open("rb")
    except OSError as error:
        raise ModelNotReadable(f"{path} cannot be opened ({error.strerror}).") from error
    with stream:
        if stream.read(4) != _MAGIC:
            raise ModelNotReadable(f"{path} is not a GGUF file: it does not start with the letters GGUF.")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                file = _Reader(content).head(path)
            except (struct.error, UnicodeDecodeError, EOFError, KeyError, OverflowError, MemoryError) as error:
                raise ModelNotReadable(
                    f"{path} is damaged or cut short: its head cannot be read; copy or download it again."
                ) from error
            _check_places(file, len(content))
    return file


def _check_places(file: GgufFile, there: int) -> None:
    """Raise ModelNotReadable unless every tensor lies in the file, at a place of its own."""
    ends = 0
    before = ""
    for tensor in sorted(file.tensors, key=lambda entry: entry.offset):
        try:
            size = tensor_bytes(tensor)
        except ValueError as error:
            reason = str(error) if str(error).startswith("its rows") else _unknown_kind(tensor.kind)
            raise ModelNotReadable(f"{file.path} holds {tensor.name}, which cannot be read: {reason}.") from error
        if tensor.offset < ends:
            raise ModelNotReadable(
                f"{file.path} is damaged: {tensor.name} begins inside of {before}; copy or download it again."
            )
        before, ends = tensor.name, tensor.offset + size
        if ends > there:
            raise ModelNotReadable(
                f"{file.path} is cut short: it has {there:,} of at least {ends:,} bytes; copy or download it again."
            )


def _unknown_kind(kind: int) -> str:
    removed = {4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 36: "IQ4_NL_4_4"}
    if kind in removed:
        return f"its quantisation {removed[kind]} is no longer in use; get a file of another quantisation"
    return f"its quantisation, number {kind}, is not known here"


def _parts(path: Path, number: int, count: int) -> list[Path]:
    """The files of a split model. `number` is which of them was given, from 0."""
    named = _PART.fullmatch(path.name)
    if named is None:
        raise ModelNotReadable(
            f"{path} is part {number + 1} of {count}; the parts are found by names that end in -00001-of-{count:05}.gguf "
            "and so on, so give them their names back."
        )
    stem, _, _, ending = named.groups()
    paths = [path.with_name(f"{stem}-{i:05}-of-{count:05}{ending}") for i in range(1, count + 1)]
    if number:
        raise ModelNotReadable(f"{path} is part {number + 1} of {count}; give the first part, {paths[0].name}.")
    missing = [part.name for part in paths if part != path and not part.is_file()]
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelNotReadable(f"{path} is one of {count} parts, of which {missing[0]}{others} is not beside it.")
    return [path, *paths[1:]]


def _joined(first: GgufFile, others: list[GgufFile]) -> GgufFile:
    count, total = first.metadata["split.count"], first.metadata.get("split.tensors.count")
    tensors = list(first.tensors)
    names = {tensor.name for tensor in tensors}
    for number, part in enumerate(others, start=1):
        said = [part.metadata.get(f"split.{key}") for key in ("no", "count", "tensors.count")]
        if said != [number, count, total]:
            raise ModelNotReadable(
                f"{part.path} is not part {number + 1} of {count} of the model in {first.path.name}; "
                "copy or download the parts again."
            )
        for tensor in part.tensors:
            if tensor.name in names:
                raise ModelNotReadable(
                    f"{part.path} holds {tensor.name} once more, so it belongs to another model; "
                    "copy or download the parts again."
                )
            names.add(tensor.name)
            tensors.append(replace(tensor, part=number))
    if total is not None and len(tensors) != total:
        raise ModelNotReadable(
            f"the {count} parts of {first.path} hold {len(tensors)} tensors where {total} belong; copy or download them again."
        )
    extra = {key: value for part in reversed(others) for key, value in part.metadata.items()}
    return GgufFile((first.path, *(part.path for part in others)), {**extra, **first.metadata}, tuple(tensors))


class _Reader:
    """Reads values one after another from the bytes of a file."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content = content
        self.position = 4

    def head(self, path: Path) -> GgufFile:
        (version,) = self.unpack("<I")
        if version and version % (1 << 16) == 0:
            raise ModelNotReadable(f"{path} is written for big-endian machines; get the little-endian file.")
        if version not in _VERSIONS:
            raise ModelNotReadable(f"{path} has GGUF version {version}; versions 2 and 3 can be read.")
        tensor_count, entry_count = self.unpack("<QQ")
        metadata: dict[str, Any] = {}
        for _ in range(entry_count):
            key = self.string()
            (kind,) = self.unpack("<I")
            if key in metadata:
                raise ModelNotReadable(f"{path} is damaged: it holds the entry {key} twice.")
            metadata[key] = self.value(kind)
        table = [self.tensor() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1):
            raise ModelNotReadable(f"{path} has general.alignment {alignment}; it must be a power of two from 8 on.")
        start = -(-self.position // alignment) * alignment
        return GgufFile((path,), metadata, tuple(_placed(table, start, alignment, path)))

    def unpack(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from(form, self.content, self.position)
        self.position += struct.calcsize(form)
        return values

    def string(self, errors: str = "strict") -> str:
        (length,) = self.unpack("<Q")
        end = self.position + length
        if end > len(self.content):
            raise EOFError
        text = self.content[self.position : end].decode(errors=errors)
        self.position = end
        return text

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            element, count = self.unpack("<IQ")
            if element in _SCALARS:
                return list(self.unpack(f"<{count}{_SCALARS[element]}"))
            if element == _STRING:  # tokens may be bytes that are no text; whoever reads them says so
                return [self.string("surrogateescape") for _ in range(count)]
            return [self.value(element) for _ in range(count)]
        return self.unpack(f"<{_SCALARS[kind]}")[0]

    def tensor(self) -> TensorEntry:
        name = self.string()
        (dimensions,) = self.unpack("<I")
        if not 0 < dimensions <= _MOST_DIMENSIONS:
            raise EOFError
        shape = self.unpack(f"<{dimensions}Q")
        kind, offset = self.unpack("<IQ")
        return TensorEntry(name, shape, kind, offset)


def _placed(table: Iterable[TensorEntry], start: int, alignment: int, path: Path) -> Iterator[TensorEntry]:
    """The entries with offsets from the start of the file."""
    names: set[str] = set()
    for entry in table:
        if entry.name in names:
            raise ModelNotReadable(f"{path} is damaged: it holds the tensor {entry.name} twice.")
        if entry.offset % alignment:
            raise ModelNotReadable(
                f"{path} is damaged: {entry.name} does not begin at a multiple of {alignment} bytes; copy or download it again."
            )
        names.add(entry.name)
        yield replace(entry, offset=start + entry.offset)
