"""How fast this machine reads memory with the threads that the engines have."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from lines import Answer, Ask, Engine, serve

BYTES = 1 << 29
"""More than the caches of most machines."""
REPEATS = 5


class Bandwidth(Engine):
    """Measures with torch: a sum and a dot product, which read, and a copy, which reads and writes."""

    packages = ("decodery", "torch")

    def load(self, settings: dict[str, Any]) -> dict[str, Any]:
        import torch

        from decodery.models.pages import large

        torch.set_num_threads(settings["threads"])
        # On huge pages, as our weights are: memory is read faster from these.
        source, target = (large(BYTES).view(torch.float32) for _ in range(2))
        source.fill_(1.0)
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
