"""The bytes of tensors in mapped GGUF files."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import TYPE_CHECKING

from decodery.models.gguf.file import GgufFile, TensorEntry, tensor_bytes

if TYPE_CHECKING:
    from torch import Tensor


def read_tensor(file: GgufFile, name: str) -> Tensor:
    """A tensor by the file's own name for it: float32."""
    import torch

    from decodery.models.gguf.dequantisation import dequantise

    entry = next(entry for entry in file.tensors if entry.name == name)
    numbers = torch.empty(tuple(reversed(entry.shape)))
    dequantise(tensor_rows(mapped(file.paths[entry.part]), entry), entry.kind, numbers)
    return numbers


def mapped(path: Path) -> mmap.mmap:
    """A file as memory."""
    with path.open("rb") as stream:
        # A private map may be written to, as torch wants of memory; nothing does.
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)


def tensor_rows(data: mmap.mmap, entry: TensorEntry) -> Tensor:
    """A tensor's bytes: uint8 [..., bytes of a row], a view of the mapped file."""
    import torch

    taken = torch.frombuffer(data, dtype=torch.uint8, count=tensor_bytes(entry), offset=entry.offset)
    return taken.view(*reversed(entry.shape[1:]), -1)
