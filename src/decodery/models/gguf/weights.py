"""The weights of a GGUF file under the names of the transformers model, read from the mapped file when they are asked for.

What is installed for a GGUF file is a small folder: `config.json`, the tokenizer, and `gguf.json`, which says where the file
(or its parts) lies, with size and change time, and repeats its head without the vocabulary, so that a load need not read it
again. `weight_source(folder)` leads from such a folder to its weights.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING

from decodery.errors import ModelNotReadable
from decodery.models.gguf.architectures import place_in
from decodery.models.gguf.file import VOCABULARY_KEYS, GgufFile, TensorEntry, tensor_bytes
from decodery.models.gguf.names import Stored
from decodery.models.gguf.tensors import mapped, tensor_rows
from decodery.models.weight_source import Blocks

if TYPE_CHECKING:
    import torch
    from torch import Tensor

POINTER = "gguf.json"
"""In the folder of a GGUF file: where its weights are."""


def weight_source(folder: Path) -> GgufWeights | None:
    """Where the weights of an installed folder come from; None where they are in safetensors files of its own.

    folder: what `store.resolve` gives. Cheap: the file is mapped, not read. Raises ModelNotReadable where the GGUF file is
    gone, or has changed since it was installed.
    """
    file = pointed_at(folder)
    return None if file is None else GgufWeights(file)


def write_pointer(file: GgufFile, folder: Path) -> None:
    """Write `gguf.json`. Files inside `folder` are named relative to it, so that they may move together."""
    files = []
    for path in file.paths:
        status = path.stat()
        inside = path.parent == folder
        files.append(
            {"path": path.name, "bytes": status.st_size}
            if inside
            else {"path": str(path.absolute()), "bytes": status.st_size, "changed": status.st_mtime_ns}
        )
    content = {
        "files": files,
        "metadata": {key: value for key, value in file.metadata.items() if key not in VOCABULARY_KEYS},
        "tensors": [astuple(tensor) for tensor in file.tensors],
    }
    (folder / POINTER).write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


def pointed_at(folder: Path) -> GgufFile | None:
    """The file of an installed folder, without its vocabulary; None where it has none.

    Raises ModelNotReadable where the file is gone or has changed.
    """
    pointer = folder / POINTER
    if not pointer.is_file():
        return None
    try:
        content = json.loads(pointer.read_text(encoding="utf-8"))
        paths = tuple(folder / entry["path"] for entry in content["files"])
        tensors = tuple(
            TensorEntry(name, tuple(shape), kind, offset, part)
            for name, shape, kind, offset, part in content["tensors"]
        )
        file = GgufFile(paths, content["metadata"], tensors)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelNotReadable(f"{pointer} is damaged; remove {folder.name}, and give the GGUF file again.") from error
    for path, entry in zip(paths, content["files"], strict=True):
        try:
            status = path.stat()
        except OSError as error:
            raise ModelNotReadable(
                f"the weights of {folder.name} are in {path}, which cannot be read "
                f"({error.strerror}); give the GGUF file again."
            ) from error
        if status.st_size != entry["bytes"] or entry.get("changed", status.st_mtime_ns) != status.st_mtime_ns:
            raise ModelNotReadable(f"{path} has changed since it was installed as {folder.name}; give it again.")
    return file


class GgufWeights:
    """A `decodery.models.weight_source.WeightSource` over a GGUF file. `blocks` gives rows of Llama's queries and keys in
    transformers' order too: they are whole rows, which the file keeps in another one.

    Raises ModelNotReadable where nothing reads one of the file's tensors, or the architecture is not known.
    """

    def __init__(self, file: GgufFile):
        self.file = file
        self._maps: dict[int, mmap.mmap] = {}
        self._weights: dict[str, list[tuple[TensorEntry, Stored]]] = {}
        for entry in file.tensors:
            if (place := place_in(file, entry.name)) is not None:
                self._weights.setdefault(place.name, []).append((entry, place))
        for parts in self._weights.values():
            parts.sort(key=lambda part: part[1].part)

    @property
    def parameters(self) -> int:
        """The number of weights."""
        return self.file.parameters

    def names(self) -> Iterable[str]:
        """All weights that the file holds."""
        return self._weights

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a weight."""
        import torch

        parts = self._weights[name]
        empty = [torch.empty(tuple(reversed(entry.shape)), device="meta") for entry, _ in parts]
        changed = [place.change(part) if place.change else part for part, (_, place) in zip(empty, parts, strict=True)]
        join = parts[0][1].join
        return tuple((join(changed) if join else changed[0]).shape)

    def origin(self, name: str) -> str:
        """The names of a weight's tensors in the file, for messages."""
        return " and ".join(entry.name for entry, _ in self._weights[name])

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        """A weight as numbers. Raises KeyError for a name that is not there."""
        parts = self._weights[name]
        numbers = [self._numbers(entry, place, dtype) for entry, place in parts]
        join = parts[0][1].join
        joined = numbers[0] if join is None else join(numbers)
        return joined.to(dtype).contiguous()

    def numbers(self, name: str) -> Tensor | None:
        """A weight in the dtype of the file, or in float32; None where the file holds it quantised."""
        import torch

        from decodery.models.gguf.dequantisation import PLAIN

        parts = self._weights[name]
        if any(entry.kind not in PLAIN for entry, _ in parts):
            return None
        kept = {torch.float32 if place.change else PLAIN[entry.kind] for entry, place in parts}
        halves = kept in ({torch.float16}, {torch.bfloat16})
        return self.tensor(name, kept.pop() if halves else torch.float32)

    def blocks(self, name: str) -> Blocks | None:
        """A quantised matrix as it lies in the file; None where it is not quantised, or is more than rows of one tensor of the
        file in another order."""
        from decodery.models.gguf.dequantisation import PLAIN

        [(entry, place), *others] = self._weights[name]
        if others or place.join or place.change or place.columns or entry.kind in PLAIN or len(entry.shape) != 2:
            return None
        rows = self.rows(entry)
        if place.order is not None:
            rows = rows[place.order(self.file, place.layer, len(rows))]
        return Blocks(entry.kind, rows, entry.shape[0])

    def rows(self, entry: TensorEntry) -> Tensor:
        """A tensor's bytes: uint8 [..., bytes of a row], a view of the mapped file."""
        return tensor_rows(self._map(entry.part), entry)

    def _numbers(self, entry: TensorEntry, place: Stored, dtype: torch.dtype) -> Tensor:
        """Numbers that stand as such in the file are changed before they are rounded to another dtype."""
        import torch

        from decodery.models.gguf.dequantisation import PLAIN, dequantise

        rows = self.rows(entry)
        if entry.kind in PLAIN:
            numbers = rows.view(PLAIN[entry.kind])
            numbers = numbers.float() if place.change else numbers.to(dtype, copy=True)
        else:
            numbers = torch.empty(tuple(reversed(entry.shape)), dtype=dtype)
            dequantise(rows, entry.kind, numbers)
        self._forget(entry)
        if place.order is not None:
            numbers = numbers[place.order(self.file, place.layer, len(numbers))]
        if place.columns is not None:
            numbers = numbers[:, place.columns(self.file, place.layer, numbers.shape[1])]
        return place.change(numbers) if place.change else numbers

    def _map(self, part: int) -> mmap.mmap:
        if part not in self._maps:
            self._maps[part] = mapped(self.file.paths[part])
        return self._maps[part]

    def release(self, name: str) -> None:
        for entry, _ in self._weights[name]:
            self._forget(entry)

    def _forget(self, entry: TensorEntry) -> None:
        """Let the pages of a tensor that was read go; they come back from the system's cache if they are read again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            start = entry.offset - entry.offset % mmap.PAGESIZE
            self._map(entry.part).madvise(mmap.MADV_DONTNEED, start, entry.offset + tensor_bytes(entry) - start)
