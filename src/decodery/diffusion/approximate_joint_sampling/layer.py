"""The sampler layer: one small layer that tells what the whole model would say after one more token.

Section numbers are those of the paper: Enabling Approximate Joint Sampling in Diffusion LMs, 2025, arXiv 2509.22738.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from collections.abc import Sequence as Listing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from decodery.errors import MethodUnavailable
from decodery.models import catalogue
from decodery.models.forward import POST_NORM, Forward, Scores
from decodery.models.heads import HeadNetwork
from decodery.models.llama_blocks import Layer, Norm, Shape, rotations
from decodery.models.owner import Head

FILE = "layer.safetensors"
FIRST_GAIN = 0.01
"""Of the last norm before training: the layer begins as almost no change."""


class SamplerLayer(nn.Module):
    """h + norm(block(map(norm(e), norm(h)))): embeddings e of what stands on the canvas and rows h, both [batch, n, width], to
    the rows that the model would have there, as far as the layer has learned that. Every position sees every other one."""

    def __init__(self, shape: Shape):
        """shape: of the model; its number of layers does not matter. The map begins as the second of its inputs."""
        super().__init__()
        self.shape = shape
        self.token_norm, self.row_norm, self.out_norm = (Norm(shape.width, shape.epsilon) for _ in range(3))
        self.mix = nn.Linear(2 * shape.width, shape.width)
        self.block = Layer(shape)
        with torch.no_grad():
            self.mix.weight.copy_(torch.cat((torch.zeros(shape.width, shape.width), torch.eye(shape.width)), dim=1))
            self.mix.bias.zero_()
            self.out_norm.weight.fill_(FIRST_GAIN)

    def forward(self, embedded: Tensor, rows: Tensor, visible: Tensor | None = None) -> Tensor:
        """visible: bool, broadcast to [batch, heads, n, n]; None is everything."""
        cosine, sine = rotations(self.shape, torch.arange(rows.shape[1], device=rows.device))
        mixed = self.mix(torch.cat((self.token_norm(embedded), self.row_norm(rows)), dim=-1))
        out = self.block(mixed, cosine.to(rows.dtype), sine.to(rows.dtype), visible, False)
        changed: Tensor = rows + self.out_norm(out)
        return changed


@dataclass(frozen=True)
class TrainedLayer:
    """A sampler layer and what it was trained for.

    fingerprint: of the model. depth: how often it was applied in a row while it was trained, at most. facts: of the training.
    """

    module: SamplerLayer
    fingerprint: str
    depth: int
    facts: Mapping[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Keep it in `folder`, in float16."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: weight.detach().half().contiguous() for name, weight in self.module.named_parameters()}
        about = {
            "fingerprint": self.fingerprint,
            "depth": str(self.depth),
            "shape": json.dumps(asdict(self.module.shape)),
            "facts": json.dumps(dict(self.facts)),
        }
        save_file(tensors, folder / FILE, metadata=about)

    @classmethod
    def read(cls, folder: Path) -> TrainedLayer:
        """The layer kept in a folder, in float32. Raises MethodUnavailable where there is none."""
        from safetensors import SafetensorError, safe_open

        path = folder / FILE
        try:
            with safe_open(path, framework="pt") as stored:
                about = stored.metadata() or {}
                module = SamplerLayer(Shape(**json.loads(about["shape"])))
                module.load_state_dict({name: stored.get_tensor(name).float() for name in stored.keys()})  # noqa: SIM118
                return cls(
                    module.requires_grad_(False), about["fingerprint"], int(about["depth"]), json.loads(about["facts"])
                )
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise MethodUnavailable(f"{path} holds no sampler layer: {error}.") from error


def shipped(fingerprint: str) -> Path | None:
    """The folder of the layer that ships with decodery for the network of this fingerprint, if there is one."""
    return catalogue.made_for("sampler-layer-*", fingerprint=fingerprint)


class SamplerNetwork(HeadNetwork):
    """A sampler layer with the model's head behind it, as a scorer.

    A forward gives it embeddings and rows side by side, [n, 2 width], of all positions of prompt and canvas; its answer has the
    new rows as the tap POST_NORM, and the scores of the rows that were asked for.
    """

    def __init__(self, module: nn.Module, width: int, head: Head, vocabulary: int, name: str):
        """module: from embeddings and rows, both [batch, n, width], to rows. head: of the model, from rows to scores."""
        super().__init__(module, 2 * width, vocabulary, name)
        self.model_head = head

    def run_pass(self, forwards: Listing[Forward]) -> list[Scores]:
        answers: dict[int, Scores] = {}
        by_length: dict[int, list[int]] = {}
        for place, forward in enumerate(forwards):
            by_length.setdefault(forward.count, []).append(place)
        kind = next(iter(self.module.parameters()), torch.empty(0))
        for places in by_length.values():
            given = torch.stack([torch.as_tensor(forwards[place].tokens) for place in places])
            embedded, rows = given.to(kind.device, kind.dtype).chunk(2, dim=-1)
            with torch.inference_mode():
                new = self.module(embedded, rows)
            for place, own in zip(places, new, strict=True):
                forward = forwards[place]
                logits = self.model_head(own[list(forward.logit_rows())])
                answers[place] = Scores(logits, {POST_NORM: own})
                forward.sequence.write(forward.written_slots(), [-1] * forward.count, forward.row_positions())
        return [answers[place] for place in range(len(forwards))]
