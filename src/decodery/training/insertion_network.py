"""The network that the recipe of insertion language models trains: a small Llama with a head of its own for gaps and for stopping."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from decodery.models.insertions import ENTRY, HEAD_FILE, InsertionHead
from decodery.training.networks import Shape, SmallLlama


class InsertionLlama(SmallLlama):
    """A Llama that sees everything. Its last norm is left out: heads read the rows that leave the last layer."""

    def __init__(self, shape: Shape, seed: int = 0):
        super().__init__(shape, seed)
        del self.model.norm.weight
        self.model.norm = nn.Identity()
        generator = torch.Generator().manual_seed(seed + 1)
        self.insertion_head = InsertionHead(shape.width, shape.vocabulary)
        for weight in self.insertion_head.parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=0.02, generator=generator)
            else:
                nn.init.zeros_(weight)

    def scores(self, tokens: Tensor, visible: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits [rows, length, vocabulary] of what to insert behind each slot and [rows, 2] of the stop head, float32, of
        tokens [rows, length] int64."""
        return self.insertion_head(self(tokens, visible))

    def write(self, folder: Path, dtype: torch.dtype = torch.float16, **entries: Any) -> None:
        raise NotImplementedError

    @classmethod
    def read(cls, folder: Path) -> InsertionLlama:
        raise NotImplementedError


__all__ = ["ENTRY", "HEAD_FILE", "InsertionLlama"]
