"""Exit adapters: small corrections that let an early layer of a network speak through the network's own head.

An ordinary checkpoint is not trained to stop early, so its head understands none but the last layer. An adapter bends the
rows of one early layer towards what the head expects. The target itself stays as it is, and so does what exactness means.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from decodery.errors import MethodUnavailable
from decodery.models import catalogue

FILE = "adapters.safetensors"


def adapted(rows: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """h + rms(h) * U silu(D h / rms(h)): rows h [n, hidden], down D [width, hidden], up U [hidden, width] -> [n, hidden].

    With U at zero the rows pass unchanged. rms(h) is |h| / sqrt(hidden), which keeps the correction in proportion.
    """
    size = rows.square().mean(dim=-1, keepdim=True).sqrt()
    return rows + size * F.linear(F.silu(F.linear(rows / size.clamp(min=1e-6), down)), up)


@dataclass(frozen=True)
class ExitAdapters:
    """Adapters of some exits of one network, and the tokens that drafts are limited to.

    weights: exit (number of layers that have run) -> (down [width, hidden], up [hidden, width]). tokens: [n] int64 ids of
    the draft vocabulary, ascending. fingerprint: of the network they were trained for. facts: of the training.
    """

    weights: Mapping[int, tuple[Tensor, Tensor]]
    tokens: Tensor
    fingerprint: str
    facts: Mapping[str, Any]

    @property
    def exits(self) -> tuple[int, ...]:
        """The exits that have an adapter, ascending."""
        return tuple(sorted(self.weights))

    def apply(self, exit: int, rows: Tensor) -> Tensor:
        """Rows [n, hidden] of the layer before `exit`, bent towards the head; in float32."""
        down, up = self.weights[exit]
        return adapted(rows.float(), down.to(rows.device), up.to(rows.device))

    def write(self, folder: Path) -> None:
        """Keep them in `folder`, in bfloat16."""
        from safetensors.torch import save_file

        tensors = {"tokens": self.tokens.to(torch.int32)}
        for exit, (down, up) in self.weights.items():
            tensors[f"{exit}.down"] = down.to(torch.bfloat16).contiguous()
            tensors[f"{exit}.up"] = up.to(torch.bfloat16).contiguous()
        folder.mkdir(parents=True, exist_ok=True)
        meta = {"fingerprint": self.fingerprint, "facts": json.dumps(dict(self.facts))}
        save_file(tensors, folder / FILE, metadata=meta)

    @classmethod
    def read(cls, folder: Path) -> ExitAdapters:
        """The adapters kept in a folder. Raises MethodUnavailable where there are none."""
        from safetensors import SafetensorError, safe_open

        path = folder / FILE
        try:
            with safe_open(path, framework="pt") as stored:
                names = set(stored.keys())
                meta = stored.metadata() or {}
                exits = sorted(int(name.removesuffix(".up")) for name in names if name.endswith(".up"))
                weights = {
                    exit: (stored.get_tensor(f"{exit}.down").float(), stored.get_tensor(f"{exit}.up").float())
                    for exit in exits
                }
                return cls(
                    weights,
                    stored.get_tensor("tokens").long(),
                    meta["fingerprint"],
                    json.loads(meta.get("facts", "{}")),
                )
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise MethodUnavailable(f"{path} holds no exit adapters: {error}.") from error


def shipped(fingerprint: str) -> Path | None:
    """The folder of the adapters that ship with decodery for the network of this fingerprint, if there are any."""
    return catalogue.made_for("exit-adapters-*", fingerprint=fingerprint)
