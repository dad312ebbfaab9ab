"""How fast this machine reads memory with the threads that the engines have."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from lines import Answer, Ask, Engine, serve

BYTES = 1 << 29
"""Several times any cache."""
REPEATS = 5


class Bandwidth(Engine):
    """Measures with torch: a sum and a dot product, which read, and a copy, which reads and writes."""

    packages = ("torch",)

    def load(self, settings: dict[str, Any]) -> dict[str, Any]:
        import torch

        torch.set_num_threads(settings["threads"])
        source = torch.ones(BYTES // 4)
        target = torch.empty_like(source)
        half = len(source) // 2
        self._ways: dict[str, tuple[Callable[[], object], int]] = {
            "sum": (source.sum, BYTES),
            "dot": (lambda: torch.dot(source[:half], source[half:]), BYTES),
            "copy": (lambda: target.copy_(source), 2 * BYTES),
        }
        return {"bytes": BYTES, "threads": settings["threads"], "repeats": REPEATS}

    def generate(self, ask: Ask) -> Answer:
        raise NotImplementedError("this worker measures memory")

    def measure(self) -> dict[str, float]:
        found = {}
        for name, (work, count) in self._ways.items():
            best = float("inf")
            for _ in range(REPEATS):
                start = time.perf_counter()
                work()
                best = min(best, time.perf_counter() - start)
            found[name] = count / best
        return found


if __name__ == "__main__":
    serve(Bandwidth())
