"""The head of a GGUF file: its metadata and its table of tensors, read in a fraction of a second.

The reader of the `gguf` package builds one array object per string, which takes many seconds for a vocabulary of a
quarter of a million tokens; all that is needed here are plain Python values.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decodery.errors import ModelNotReadable

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY, _UINT32 = 8, 9, 4
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_DEFAULT_ALIGNMENT = 32

# The arrays that only a tokenizer needs. They are most of the head of a file.
_VOCABULARY_KEYS = frozenset(f"tokenizer.ggml.{key}" for key in ("tokens", "scores", "token_type", "merges"))


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One line of the table of tensors."""

    name: str
    shape: tuple[int, ...]  # fastest dimension first, as the file has it
    kind: int  # the quantisation type
    offset: int  # bytes from the start of the data


@dataclass(frozen=True, slots=True)
class GgufFile:
    """What stands before the weights of a GGUF file."""

    path: Path
    version: int
    metadata: dict[str, Any]
    tensors: tuple[TensorEntry, ...]
    data_start: int  # bytes from the start of the file
    spans: dict[str, tuple[int, int]]  # where each metadata entry stands in the file
    table: tuple[int, int]  # where the table of tensors stands in the file

    @classmethod
    def read(cls, path: Path) -> GgufFile:
        """Read the head of `path`. Raises ModelNotReadable where the file is damaged or is something else."""
        try:
            stream = path.open("rb")
        except OSError as error:
            raise ModelNotReadable(f"{path} cannot be opened ({error.strerror}).") from error
        with stream:
            if stream.read(4) != _MAGIC:
                raise ModelNotReadable(f"{path} is not a GGUF file: it does not start with the letters GGUF.")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                try:
                    return _Reader(content).head(path)
                except (struct.error, UnicodeDecodeError, EOFError, KeyError, OverflowError, MemoryError) as error:
                    raise ModelNotReadable(
                        f"{path} is damaged or cut short: its head cannot be read; copy or download it again."
                    ) from error

    @property
    def architecture(self) -> str:
        """The name that the file gives to its network, such as `llama`."""
        return str(self.metadata.get("general.architecture", ""))

    @property
    def parameters(self) -> int:
        """The number of weights."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    def tokenizer(self, key: str, default: Any = None) -> Any:
        """The metadata entry `tokenizer.ggml.<key>`."""
        return self.metadata.get(f"tokenizer.ggml.{key}", default)

    def check_length(self) -> None:
        """Raise ModelNotReadable where the file ends before its last tensor does."""
        import gguf

        try:
            ends = [
                tensor.offset + math.prod(tensor.shape) // block * block_bytes
                for tensor in self.tensors
                for block, block_bytes in [gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(tensor.kind)]]
            ]
        except ValueError as error:
            raise ModelNotReadable(f"{self.path} uses a quantisation that is not known here ({error}).") from error
        needed, there = self.data_start + max(ends, default=0), self.path.stat().st_size
        if there < needed:
            raise ModelNotReadable(
                f"{self.path} is cut short: it has {there:,} of {needed:,} bytes; copy or download it again."
            )

    def write_without_vocabulary(self, target: Path) -> None:
        """Copy the file without the arrays of the tokenizer, for readers that spend most of their time on them.

        The size of the vocabulary, which readers otherwise take from these arrays, is added as a number.
        """
        size_key = f"{self.architecture}.vocab_size"
        with self.path.open("rb") as source, target.open("wb") as copy:

            def span(start: int, end: int) -> bytes:
                source.seek(start)
                return source.read(end - start)

            kept = [span(*where) for key, where in self.spans.items() if key not in _VOCABULARY_KEYS]
            if size_key not in self.metadata:
                encoded = size_key.encode()
                size = len(self.tokenizer("tokens", ()))
                kept.append(struct.pack("<Q", len(encoded)) + encoded + struct.pack("<II", _UINT32, size))
            head = struct.pack("<4sIQQ", _MAGIC, self.version, len(self.tensors), len(kept))
            head += b"".join(kept) + span(*self.table)
            alignment = int(self.metadata.get("general.alignment", _DEFAULT_ALIGNMENT))
            copy.write(head + bytes(-len(head) % alignment))
            source.seek(self.data_start)
            shutil.copyfileobj(source, copy, 1 << 20)


class _Reader:
    """Reads values one after another from the bytes of a file."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content = content
        self.position = 4

    def head(self, path: Path) -> GgufFile:
        version, tensor_count, entry_count = self.unpack("<IQQ")
        if version not in _VERSIONS:
            raise ModelNotReadable(f"{path} has GGUF version {version}; versions 2 and 3 can be read.")
        metadata: dict[str, Any] = {}
        spans: dict[str, tuple[int, int]] = {}
        for _ in range(entry_count):
            start = self.position
            key = self.string()
            (kind,) = self.unpack("<I")
            metadata[key] = self.value(kind)
            spans[key] = (start, self.position)
        table_start = self.position
        tensors = tuple(self.tensor() for _ in range(tensor_count))
        table = (table_start, self.position)
        alignment = int(metadata.get("general.alignment", _DEFAULT_ALIGNMENT))
        data_start = -(-self.position // alignment) * alignment
        return GgufFile(path, version, metadata, tensors, data_start, spans, table)

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
        shape = self.unpack(f"<{dimensions}Q")
        kind, offset = self.unpack("<IQ")
        return TensorEntry(name, shape, kind, offset)
