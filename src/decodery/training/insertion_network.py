"""The network that the recipe of insertion language models trains: a small Llama with a head for gaps and for stopping."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from decodery.models.insertions import HEAD_FILE, InsertionHead
from decodery.training.networks import Shape, SmallLlama

HEAD = "insertion_head."


class InsertionLlama(SmallLlama):
    """A Llama that sees everything. Its last norm is left out: the head reads the rows that leave the last layer."""

    def __init__(self, shape: Shape, seed: int = 0):
        super().__init__(shape, seed)
        self.model.norm = nn.Identity()  # type: ignore[assignment]
        self.insertion_head = InsertionHead(shape.width, shape.vocabulary)
        generator = torch.Generator().manual_seed(seed + 1)
        for weight in self.insertion_head.parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=0.02, generator=generator)
            else:
                nn.init.zeros_(weight)

    def scores(self, tokens: Tensor, visible: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits [rows, length, vocabulary] of what to insert behind each slot and [rows, 2] of the stop head, float32, of
        tokens [rows, length] int64."""
        logits, stop = self.insertion_head(self(tokens, visible))
        return logits, stop

    def write(self, folder: Path, dtype: torch.dtype = torch.float16, **entries: Any) -> None:
        """Write config.json, with further `entries`, model.safetensors and the head's file. The norm that is left out is
        written as ones, since Llama has it."""
        from safetensors.torch import save_file

        head = {
            name: weight.detach().to("cpu", dtype).contiguous()
            for name, weight in self.insertion_head.named_parameters()
        }
        body = SmallLlama(self.shape)
        weights = {name: weight for name, weight in self.state_dict().items() if not name.startswith(HEAD)}
        body.load_state_dict({"model.norm.weight": torch.ones(self.shape.width), **weights})
        body.write(folder, dtype, **entries)
        save_file(head, str(folder / HEAD_FILE), metadata={"format": "pt"})

    @classmethod
    def read(cls, folder: Path) -> InsertionLlama:
        """The network of a folder that `write` wrote, in float32."""
        from safetensors.torch import load_file

        body = SmallLlama.read(folder)
        network = cls(body.shape)
        weights = {name: weight for name, weight in body.state_dict().items() if name != "model.norm.weight"}
        head = {f"{HEAD}{name}": weight.float() for name, weight in load_file(str(folder / HEAD_FILE)).items()}
        network.load_state_dict({**weights, **head})
        return network
