"""Study of approximate-match lookup: what the matching forms cost, and what tolerance brings on texts with differences.

    python benchmarks/approximate_match_lookup.py [--json FILE]

Tables: times of the forms of `decodery.speculative.approximate_match_lookup.matching` as ratios to `direct` in the same run, on Zipf-distributed
token ids of a vocabulary of 49152. Tokens per verification against a target that is known in advance: a text of
repeated templates in which each token is replaced with probability s. And with --model the same
on what a model writes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from decodery import load
from decodery.evaluation.questions import load_questions
from decodery.evaluation.recorded import Replay, record, replay
from decodery.evaluation.report import markdown_rows
from decodery.speculative.approximate_match_lookup.matching import (
    Lags,
    NgramIndex,
    approximate,
    direct,
    heavy_light,
    jumped,
    k_bounded,
)
from decodery.speculative.approximate_match_lookup.method import AlignmentDrafter, ApproximateMatchLookup
from decodery.speculative.loop import Drafter
from decodery.speculative.prompt_lookup import NgramDrafter
from decodery.speculative.suffix_automaton.method import AutomatonDrafter

SIZES = ((1024, 16), (4096, 32), (4096, 512), (16384, 2048))
RATES = (0.0, 0.1, 0.2)
TEMPLATES, TEMPLATE_TOKENS, SYMBOLS, REPETITIONS = 20, 30, 12, 80
START, LENGTH = 1200, 10


def aligned(length: int = LENGTH, **options: Any) -> Drafter:
    """The drafter with these options, without any policy of lengths."""
    return AlignmentDrafter(ApproximateMatchLookup(length=length, nodes=max(length, 8), policy="none", **options))


DRAFTERS: dict[str, Callable[[], Drafter]] = {
    "lookup, first match": lambda: NgramDrafter(3, LENGTH, "first", False),
    "lookup, last match": lambda: NgramDrafter(3, LENGTH, "last", False),
    "longest exact suffix": lambda: aligned(rank="run"),
    "window 8, k 4": lambda: aligned(rank="mismatches", window=8),
    "window 16, k 8": lambda: aligned(rank="mismatches", window=16),
    "window 32, k 20": lambda: aligned(rank="mismatches", window=32, mismatches=20),
    "decay 0.6": lambda: aligned(decay=0.6),
    "default": lambda: aligned(),
    "decay 0.85": lambda: aligned(decay=0.85),
    "default, k 4": lambda: aligned(mismatches=4),
    "default, anchor 0": lambda: aligned(anchor=0),
    "window 8, k 4, anchor 0": lambda: aligned(rank="mismatches", anchor=0),
    "3 places, 20 nodes": lambda: AlignmentDrafter(
        ApproximateMatchLookup(length=LENGTH, places=3, nodes=20, policy="none")
    ),
}
EXACT = ("lookup, first match", "lookup, last match", "longest exact suffix")


def templated_text(replaced: float, seed: int) -> list[int]:
    """Templates in random order, each token replaced by a random symbol with probability `replaced`."""
    generator = np.random.Generator(np.random.Philox(key=[seed, round(1000 * replaced)]))
    templates = generator.integers(0, SYMBOLS, (TEMPLATES, TEMPLATE_TOKENS))
    text = templates[generator.integers(0, TEMPLATES, REPETITIONS)].reshape(-1)
    noise = generator.random(len(text)) < replaced
    return np.where(noise, generator.integers(0, SYMBOLS, len(text)), text).tolist()


def tokens_per_verification(drafter: Drafter, text: Sequence[int], start: int = START) -> float:
    """Of a target that writes `text` from place `start` on: accepted tokens and the target's own, per verification."""
    return replay(drafter, text, start).tokens_per_round


def simulation(seeds: int = 3) -> list[dict[str, Any]]:
    """Rows of tokens per verification by drafter and replacement rate, mean over seeds."""
    rows = []
    for name, make in DRAFTERS.items():
        row: dict[str, Any] = {"drafter": name}
        for rate in RATES:
            values = [tokens_per_verification(make(), templated_text(rate, seed)) for seed in range(seeds)]
            row[f"s={rate}"] = statistics.mean(values)
        rows.append(row)
    return rows


WRITTEN: dict[str, Callable[[], Drafter]] = {
    "prompt lookup": lambda: NgramDrafter(3, 8, "first", False),
    "suffix automaton": lambda: AutomatonDrafter(8, 4.0),
    "longest exact suffix": lambda: aligned(8, rank="run"),
    "default": lambda: aligned(8),
    "at most 4 mismatches": lambda: aligned(8, mismatches=4),
    "anchor 0": lambda: aligned(8, anchor=0),
    "anchor 2": lambda: aligned(8, anchor=2),
    "anchor 3": lambda: aligned(8, anchor=3),
    "by mismatches in the window": lambda: aligned(8, rank="mismatches"),
    "decay 0.6": lambda: aligned(8, decay=0.6),
    "decay 0.85": lambda: aligned(8, decay=0.85),
    "substitutions": lambda: aligned(8, substitute=True),
    "3 places, 16 nodes": lambda: AlignmentDrafter(ApproximateMatchLookup(places=3, nodes=16, policy="none")),
}
"""Drafters on texts that a model wrote; all copy up to eight tokens."""


def written(model: str, questions: Path | None, count: int, max_new_tokens: int) -> list[dict[str, Any]]:
    """Rows of tokens per verification and accepted share on a model's own answers, from totals over all questions."""
    texts = record(load(model), load_questions(questions, per_category=count), max_new_tokens)
    rows = []
    for name, make in WRITTEN.items():
        total = sum((replay(make(), text.tokens, text.start) for text in texts), Replay())
        share = total.accepted / max(total.drafted, 1)
        rows.append({
            "drafter": name,
            "tokens/round": total.tokens_per_round,
            "drafted/round": total.drafted / total.rounds,
            "accepted": share,
            "drafting, ms": 1e3 * total.seconds_per_draft,
        })  # fmt: skip
    return rows


def _seconds(run: Callable[[], object], repeats: int) -> float:
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def naive(text: Sequence[int], pattern: Sequence[int]) -> list[int]:
    """The distances token by token, in plain Python."""
    alignments = range(len(text) - len(pattern) + 1)
    return [sum(a != b for a, b in zip(pattern, text[i:], strict=False)) for i in alignments]


FORMS: dict[str, Callable[[Any, Any], object]] = {
    "heavy-light": heavy_light,
    "heavy-light, packed": partial(heavy_light, pack2=True),
    "k=2, index": partial(k_bounded, k=2),
    "k=2, jumps": partial(jumped, k=2),
    "approximate": approximate,
}


def times(repeats: int = 7) -> list[dict[str, Any]]:
    """Rows of least times by size; all but `direct` as ratios to it."""
    generator = np.random.Generator(np.random.Philox(key=0))
    rows = []
    for n, m in SIZES:
        text = np.minimum(generator.zipf(1.3, n), 49151)
        pattern = text[-m:].copy()
        pattern[generator.random(m) < 0.1] = 5
        index = NgramIndex(m // 3, text.tolist())
        lags = Lags(8, 0.75)
        lags.extend(text.tolist())
        compared = _seconds(partial(direct, text, pattern), repeats)
        row: dict[str, Any] = {"n": n, "m": m, "direct, ms": 1e3 * compared}
        row["naive"] = _seconds(partial(naive, text.tolist(), pattern.tolist()), 1) / compared
        row |= {name: _seconds(partial(form, text, pattern), repeats) / compared for name, form in FORMS.items()}
        row["k=2, index kept"] = _seconds(partial(index.near, pattern, 2), repeats) / compared
        row["one token streamed"] = _seconds(partial(lags.push, 7), repeats) / compared
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="texts per row of the simulation")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--model", help="also replay answers that this model writes, e.g. smollm2-135m")
    parser.add_argument("--questions", type=Path, help="its questions, in Spec-Bench's form; default: our own set")
    parser.add_argument("--per-category", type=int, default=1, help="questions of each category")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    arguments = parser.parse_args()
    found = {"simulation": simulation(arguments.seeds), "times": times()}
    print("Tokens per verification, by replacement rate s:\n")
    print(markdown_rows(found["simulation"]))
    print("\nTimes as multiples of the vectorised comparison (direct):\n")
    print(markdown_rows(found["times"]))
    if arguments.model:
        found["written"] = written(
            arguments.model, arguments.questions, arguments.per_category, arguments.max_new_tokens
        )
        print(f"\nOn what {arguments.model} writes:\n")
        print(markdown_rows(found["written"]))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
