"""The acceptance head: from a drafter's hidden row of a drafted token to the chance that the target accepts that token, given
that it accepted those before.

Its D blocks are distinct, as the paper describes them. The published code builds its list from one block, so that all of them
share their weights; files of either kind do not fit the other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from decodery.errors import MethodUnavailable
from decodery.models import catalogue

FILE = "head.safetensors"


class AcceptanceHead(nn.Module):
    """`blocks` residual blocks x + silu(W x + b), then a linear map to two scores, of rejection and of acceptance: rows
    [n, hidden] -> [n, 2]. In float32. Source: arXiv 2405.19715, section 3.2."""

    def __init__(self, hidden: int, blocks: int):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(blocks))
        self.out = nn.Linear(hidden, 2)

    def forward(self, rows: Tensor) -> Tensor:
        for block in self.blocks:
            rows = rows + F.silu(block(rows))
        scores: Tensor = self.out(rows)
        return scores


def corrected(accepted: Tensor, rejection_weight: float) -> Tensor:
    """The probability of acceptance that a head means which was trained with the rejected mass weighted so, of its raw P1: a
    weight w moves the optimum from a to a / (a + w (1 - a)), and w P1 / (w P1 + P0) undoes it."""
    return rejection_weight * accepted / (rejection_weight * accepted + 1 - accepted)


@dataclass(frozen=True)
class TrainedHead:
    """An acceptance head and what it was trained for.

    target, draft: fingerprints of both networks. layers: how many first layers draft; 0: all of the draft's network. threshold:
    the `threshold` that was tuned for it. rejection_weight: of the rejected mass in its loss. facts: of its training.
    """

    head: AcceptanceHead
    target: str
    draft: str
    layers: int
    threshold: float
    rejection_weight: float
    facts: Mapping[str, Any]

    @property
    def hidden(self) -> int:
        """Width of the rows that it reads."""
        return self.head.out.in_features

    def write(self, folder: Path) -> None:
        """Keep it in `folder`, in float16."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        told = {
            "target": self.target,
            "draft": self.draft,
            "layers": self.layers,
            "threshold": self.threshold,
            "rejection_weight": self.rejection_weight,
            "blocks": len(self.head.blocks),
            "hidden": "of the drafted token itself, after the final norm",
            "facts": dict(self.facts),
        }
        weights = {name: weight.to(torch.float16).contiguous() for name, weight in self.head.state_dict().items()}
        save_file(weights, folder / FILE, metadata={"acceptance_head": json.dumps(told)})

    @classmethod
    def read(cls, folder: Path) -> TrainedHead:
        """The head kept in a folder. Raises MethodUnavailable where there is none."""
        from safetensors import SafetensorError, safe_open

        path = folder / FILE
        try:
            with safe_open(path, framework="pt") as stored:
                told = json.loads((stored.metadata() or {})["acceptance_head"])
                weights = {name: stored.get_tensor(name).float() for name in stored.keys()}  # noqa: SIM118
            head = AcceptanceHead(weights["out.weight"].shape[1], int(told["blocks"]))
            head.load_state_dict(weights)
            return cls(
                head.eval(),
                str(told["target"]),
                str(told["draft"]),
                int(told["layers"]),
                float(told["threshold"]),
                float(told["rejection_weight"]),
                told["facts"],
            )
        except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise MethodUnavailable(f"{path} holds no acceptance head: {error}.") from error


def shipped(target: str, draft: str, layers: int) -> Path | None:
    """The folder of the head that ships with decodery for these networks, if there is one."""
    return catalogue.made_for("acceptance-head-*", target=target, draft=draft, layers=layers)
