"""Many texts that begin alike: what 64 forks of a prompt hold, and what forking and resampling cost beside a pass.

    python benchmarks/forks.py --json forks.json

For each path: the prompt's keys and values and those of all forks together after some tokens each, the time of forking, of
a pass with one row of each fork, and of resampling (half of the forks are dropped, the others forked). Rows are copied when
forks are first written to, so what the pass after it takes longer is counted as a cost of resampling too. Beside the forks
stands the other way of sharing a prompt: one sequence with all rows, each of which sees its own text by a mask. Times are
those of the processor, the least of several.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import decodery
from decodery.evaluation.provenance import provenance
from decodery.language_model import LanguageModel
from decodery.models.forward import Forward, Rows
from decodery.models.key_value_cache import KeyValueCache, bytes_held
from decodery.models.sequence import Sequence as CachedSequence

TEXT = "The quick brown fox jumps over the lazy dog, and the dog looks up. " * 200
REPEATS = 3


def timed(action: Callable[[], object]) -> float:
    """Milliseconds of processor time."""
    started = time.process_time()
    action()
    return (time.process_time() - started) * 1e3


def held(sequences: Sequence[CachedSequence]) -> int:
    """Bytes of keys and values of some sequences, what they share once."""
    return bytes_held(sequence.cache for sequence in sequences if isinstance(sequence.cache, KeyValueCache))


def step(lm: LanguageModel, forks: Sequence[CachedSequence], tokens: Sequence[int]) -> float:
    """A pass with one row of each fork."""
    return timed(lambda: lm.network.run([Forward(fork, [token]) for fork, token in zip(forks, tokens, strict=True)]))


def forks(lm: LanguageModel, count: int, rows: int, tokens: int) -> dict[str, Any]:
    """One row of the table: `count` forks of a prompt of `rows` tokens that go on for `tokens` tokens, resampled after each."""
    ids = lm.encode(TEXT)
    root = lm.network.new_sequence()
    lm.network.run([Forward(root, ids[:rows], logits=Rows.NONE)])
    found: dict[str, Any] = {"prompt_bytes": held([root])}
    particles: list[CachedSequence] = []
    found["fork_ms"] = timed(lambda: particles.extend(root.fork() for _ in range(count)))
    found["forked_bytes"] = held([root, *particles])
    del root

    def resample() -> None:
        for place in range(0, count, 2):
            particles[place + 1] = particles[place].fork()

    usual, after, resampling = [], [], []
    for place in range(tokens):
        resampling.append(timed(resample))
        after.append(step(lm, particles, ids[place : place + count]))
        usual += [step(lm, particles, ids[place : place + count]) for _ in range(REPEATS)]
        for particle in particles:
            particle.truncate(rows + place + 1)
    found["bytes"] = held(particles)
    found["pass_ms"] = min(usual)
    found["resample_ms"] = min(resampling) + max(0.0, min(after[1:]) - min(usual))
    found["resample_share"] = found["resample_ms"] / found["pass_ms"]
    return found


def masked(lm: LanguageModel, count: int, rows: int, tokens: int) -> float:
    """Milliseconds of a pass with one row of each text, where all texts lie in one sequence after their prompt, with `tokens`
    tokens each already."""
    ids = lm.encode(TEXT)
    sequence = lm.network.new_sequence()
    lm.network.run([Forward(sequence, ids[:rows], logits=Rows.NONE)])
    own = torch.eye(count, dtype=torch.bool)
    times: list[float] = []
    for place in range(tokens + REPEATS):
        visible = torch.cat([torch.ones(count, rows, dtype=torch.bool), own.repeat(1, min(place, tokens) + 1)], dim=1)
        ask = Forward(sequence, ids[:count], [rows + min(place, tokens)] * count, visible)
        times.append(timed(lambda ask=ask: lm.network.run([ask])))  # type: ignore[misc]
        if place >= tokens:
            sequence.truncate(rows + count * tokens)
    return min(times[tokens:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--paths", nargs="+", default=["packed", "fused", "off"])
    parser.add_argument("--forks", type=int, default=64)
    parser.add_argument("--rows", type=int, default=1024, help="of the prompt (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=16, help="of each fork after it (default: %(default)s)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    table = Table(
        "path", "prompt, MB", "forks, MB", "fork ms", "pass ms", "masked pass ms", "resample ms", "share of a pass"
    )
    results = []
    found: dict[str, Any] = {name: getattr(options, name) for name in ("forks", "rows", "tokens")}
    for path in options.paths:
        lm = decodery.load(options.model, fast=path)
        with lm.network.working():
            row = {"path": path} | forks(lm, options.forks, options.rows, options.tokens)
            row["masked_pass_ms"] = masked(lm, options.forks, options.rows, options.tokens)
        results.append(row)
        sizes = (f"{row[name] / 1e6:.1f}" for name in ("prompt_bytes", "bytes"))
        times = (
            f"{row[name]:.2f}" for name in ("fork_ms", "pass_ms", "masked_pass_ms", "resample_ms", "resample_share")
        )
        table.add_row(path, *sizes, *times)
        found["provenance"] = provenance(lm)
        del lm
    Console(width=150).print(table)
    if options.json:
        options.json.write_text(json.dumps({**found, "paths": results}, indent=1, default=str) + "\n", "utf-8")


if __name__ == "__main__":
    main()
