"""The numbers that every result carries."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class ModelStatistics:
    """Work done by one network for one request.

    forwards: passes asked. rows: rows scored. layer_rows: rows times layers they went through.
    """

    forwards: int = 0
    rows: int = 0
    layer_rows: int = 0


@dataclass(slots=True)
class Statistics:
    """What one request, or another task, cost and brought. Times are wall clock, in seconds, from submission.

    What several outputs of one request brought is counted together (new_tokens, accepted, bonus), and step_of and block_ends
    are those of its first output.

    rounds: target forwards that scored at least one position for a new token. accepted: drafted tokens that were
    committed. bonus: tokens that came from the target itself, one per round. step_of: of a canvas, the step that filled each
    position, -1 where none did; of a text that grew by insertions, the step that inserted each token, -1 for given ones; empty
    for other methods. block_ends: where its blocks ended, in offsets. details:
    what the method tells besides, by its own names; values that JSON can hold. queued_seconds: until the request was admitted.
    kv_bytes: what its keys and values could take at most. shared_rows: rows that it did not score but took from a request that
    began alike.
    """

    prompt_tokens: int = 0
    new_tokens: int = 0
    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    bonus: int = 0
    step_of: list[int] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    block_ends: list[int] = field(default_factory=list)
    models: dict[str, ModelStatistics] = field(default_factory=dict)
    target: str = ""
    first_token_seconds: float = 0.0
    seconds: float = 0.0
    queued_seconds: float = 0.0
    kv_bytes: int = 0
    shared_rows: int = 0
    peak_memory_bytes: int = 0
    started: float = field(default_factory=time.perf_counter, repr=False)

    def count(self, model: str, rows: int, layers: int, forwards: int = 1) -> None:
        """One forward of `rows` rows through `layers` layers of `model`; forwards is 0 for a part of the one before."""
        entry = self.models.setdefault(model, ModelStatistics())
        entry.forwards += forwards
        entry.rows += rows
        entry.layer_rows += rows * layers

    def admitted(self, kv_bytes: int) -> None:
        """The request was admitted now, with so much memory for keys and values."""
        self.queued_seconds = time.perf_counter() - self.started
        self.kv_bytes = kv_bytes

    def committed(self, from_draft: bool) -> None:
        """A token of an output was committed. from_draft: it had been drafted."""
        if not self.accepted + self.bonus:
            self.first_token_seconds = time.perf_counter() - self.started
        if from_draft:
            self.accepted += 1
        else:
            self.bonus += 1

    def finish(self) -> None:
        """The request ended now."""
        self.seconds = time.perf_counter() - self.started
        self.peak_memory_bytes = peak_memory()

    @property
    def forwards(self) -> int:
        """Forwards of the target."""
        return self.models[self.target].forwards if self.target in self.models else 0

    @property
    def rows(self) -> int:
        """Rows scored by the target."""
        return self.models[self.target].rows if self.target in self.models else 0

    @property
    def acceptance_length(self) -> float:
        """Mean acceptance length: new tokens per round, the target's own token included (1.0 for plain decoding)."""
        return self.new_tokens / self.rounds if self.rounds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """New tokens per second of the whole request, prefill included."""
        return self.new_tokens / self.seconds if self.seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "new_tokens": self.new_tokens,
            "forwards": self.forwards,
            "rows": self.rows,
            "rounds": self.rounds,
            "drafted": self.drafted,
            "accepted": self.accepted,
            "bonus": self.bonus,
            **({"step_of": list(self.step_of), "block_ends": list(self.block_ends)} if self.step_of else {}),
            **({"details": dict(self.details)} if self.details else {}),
            "acceptance_length": self.acceptance_length,
            "first_token_seconds": self.first_token_seconds,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
            "queued_seconds": self.queued_seconds,
            "kv_bytes": self.kv_bytes,
            "shared_rows": self.shared_rows,
            "peak_memory_bytes": self.peak_memory_bytes,
            "models": {
                name: {"forwards": m.forwards, "rows": m.rows, "layer_rows": m.layer_rows}
                for name, m in self.models.items()
            },
        }


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
