"""How sure a model is of what is still masked, and how sure it must be at each stage of the decoding."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from decodery._lazy import torch
from decodery.errors import BadParameter

if TYPE_CHECKING:
    from torch import Tensor

SHAPES = ("linear", "cosine", "exponential", "prophet")
PHASES = 3
"""Prophet's steps of the threshold."""


def margins(scores: Tensor) -> Tensor:
    """Highest minus second highest raw score of each row of [m, vocabulary], [m] float64."""
    top = scores.double().topk(2, dim=-1).values
    return top[:, 0] - top[:, 1]


@dataclass(frozen=True)
class Thresholds:
    """The margin at which everything is filled, from `high` at the start down to `low`.

    shape: linear, cosine or exponential in the progress (SchED, section 3), the latter with `slope` k; or prophet: high, the
    middle and low, for a third of the steps each.
    """

    high: float = 7.5
    low: float = 2.5
    shape: str = "linear"
    slope: float = 4.0

    def at(self, step: int, steps: int) -> float:
        """The threshold of step number `step`, counted from 0, of `steps` planned ones; later steps count as the last."""
        if self.high == self.low:  # both may be infinite
            return self.high
        if self.shape == "prophet":
            phase = min(PHASES * (step + 1) // steps, PHASES - 1)
            return self.high + (self.low - self.high) * phase / (PHASES - 1)
        progress = min(step / (steps - 1), 1.0) if steps > 1 else 1.0
        fall = self.high - self.low
        if self.shape == "linear":
            return self.high - fall * progress
        if self.shape == "cosine":
            return self.low + fall * (1 + math.cos(math.pi * progress)) / 2
        return self.low + fall * math.exp(-self.slope * progress)


@dataclass(frozen=True)
class Calibration:
    """Thresholds that suit a model: margins are not comparable between models."""

    model: str
    high: float
    low: float
    prompts: int
    share_high: float
    share_low: float

    @classmethod
    def of(
        cls, model: str, first_margins: Sequence[float], prompts: int, high: float = 0.9, low: float = 0.3
    ) -> Calibration:
        """high, low: which shares of the margins of the first step lie below the thresholds."""
        values = torch.tensor(list(first_margins), dtype=torch.float64)
        return cls(
            model, float(values.quantile(high)), float(values.quantile(low)), prompts, share_high=high, share_low=low
        )

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", "utf-8")

    @classmethod
    def read(cls, path: Path) -> Calibration:
        """Raises BadParameter where the file is none that `write` wrote."""
        try:
            return cls(**json.loads(path.expanduser().read_text("utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise BadParameter(f"the calibration {path} cannot be read: {error}.") from None


def quality_penalised_speed(speed_up: float, score: float, baseline: float, gamma: float = 4.0) -> float:
    """Speed-up times (score / baseline) to the power gamma: QPS of the paper. baseline: the score of the full sampler, > 0."""
    return float(speed_up * (score / baseline) ** gamma)
