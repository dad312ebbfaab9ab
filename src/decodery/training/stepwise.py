"""Training of a module step by step: from the last checkpoint on, with a log."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import nn

from decodery.training.checkpoints import keep, kept
from decodery.training.options import Show, silent


class StepTrainer(ABC):
    """module: what is trained, and all that a checkpoint keeps of it. optimizer: of its weights."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer):
        self.module, self.optimizer = module, optimizer
        self.step, self.seconds = 0, 0.0
        self.log: list[dict[str, float]] = []

    @abstractmethod
    def advance(self) -> float:
        """One step, counted in `step`; its loss."""

    def go_on(self, steps: int, every: int, folder: Path, identity: str, show: Show = silent) -> None:
        """All steps, from the last checkpoint in `folder` where there is one; a checkpoint and an entry of the log after
        `every` so many. identity: see `keep`. Seconds are those of the processors."""
        if (state := kept(folder, identity)) is not None:
            self.module.load_state_dict(state["module"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds, self.log = state["step"], state["seconds"], state["log"]
        total, since, started = 0.0, 0, time.process_time()
        while self.step < steps:
            total += self.advance()
            since += 1
            show("training", self.step, steps, f"loss {total / since:.4f}")
            if self.step % every == 0 or self.step == steps:
                self.seconds += time.process_time() - started
                started = time.process_time()
                self.log.append({"step": self.step, "loss": round(total / since, 5), "seconds": round(self.seconds, 1)})
                total, since = 0.0, 0
                state = {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}
                keep(folder, identity, {**state, "step": self.step, "seconds": self.seconds, "log": self.log})
