"""Approximate-match lookup: what the matching forms cost, and what tolerance brings on texts with differences.

`templates`: tokens per verification against a text that is known in advance, repeated templates in which each token is replaced
with probability s. `answers`: the same on what a model writes. `times`: the forms of
`decodery.speculative.approximate_match_lookup.matching` as ratios to `direct` in the same run, on Zipf-distributed token ids of
a vocabulary of 49152.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from decodery.evaluation.experiment import Arm, Experiment, Figure, PublishedClaim, Study
from decodery.evaluation.recorded import replay
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
from experiments.texts import ACCEPTED, NODES, TOKENS_PER_ROUND, Asked, loaded, recorded, replaying

SIZES = ((1024, 16), (4096, 32), (4096, 512), (16384, 2048))
RATES = (0.0, 0.1, 0.2)
TEMPLATES, TEMPLATE_TOKENS, SYMBOLS, REPETITIONS = 20, 30, 12, 80
START, LENGTH = 1200, 10


@dataclass(frozen=True)
class Settings(Asked):
    tokens: int = 128
    texts: int = 3
    repeats: int = 7


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


def templated_text(replaced: float, seed: int) -> list[int]:
    """Templates in random order, each token replaced by a random symbol with probability `replaced`."""
    generator = np.random.Generator(np.random.Philox(key=[seed, round(1000 * replaced)]))
    templates = generator.integers(0, SYMBOLS, (TEMPLATES, TEMPLATE_TOKENS))
    text = templates[generator.integers(0, TEMPLATES, REPETITIONS)].reshape(-1)
    noise = generator.random(len(text)) < replaced
    return [int(token) for token in np.where(noise, generator.integers(0, SYMBOLS, len(text)), text)]


def tokens_per_verification(drafter: Drafter, text: Sequence[int], start: int = START) -> float:
    """Of a target that writes `text` from place `start` on: accepted tokens and the target's own, per verification."""
    return replay(drafter, text, start).tokens_per_round


def templates(settings: Settings) -> Study:
    def arm(name: str, make: Callable[[], Drafter]) -> Arm:
        def measure(seed: int) -> Mapping[str, float]:
            return {f"s={rate}": tokens_per_verification(make(), templated_text(rate, seed)) for rate in RATES}

        return Arm(name, measure)

    return Study(
        f"Tokens per verification on {REPETITIONS} repeated templates whose tokens are replaced with "
        "probability s; one item is a "
        "text of each rate.",
        [settings.seed + number for number in range(settings.texts)],
        [arm(name, make) for name, make in DRAFTERS.items()],
        [Figure(f"s={rate}", f"s={rate}") for rate in RATES],
        [PublishedClaim("tolerance pays where tokens differ", "s=0.1", "default", exact) for exact in EXACT],
        "drafter",
    )


def answers(settings: Settings) -> Study:
    return Study(
        f"Replayed on the model's own greedy answers of at most {settings.tokens} tokens; up to eight tokens are copied.",
        recorded(settings),
        [replaying(name, make) for name, make in WRITTEN.items()],
        (TOKENS_PER_ROUND, NODES, ACCEPTED, Figure("drafting, ms", "drafting", middle=True)),
        (PublishedClaim("tolerance pays on what a model writes", "tokens/round", "default", "longest exact suffix"),),
        "drafter",
        loaded(settings.model),
    )


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def naive(text: Sequence[int], pattern: Sequence[int]) -> list[int]:
    """The distances token by token, in plain Python."""
    alignments = range(len(text) - len(pattern) + 1)
    return [sum(a != b for a, b in zip(pattern, text[i:], strict=False)) for i in alignments]


def times(settings: Settings) -> Study:
    forms: dict[str, dict[str, Callable[[], object]]] = {}
    for n, m in SIZES:
        generator = np.random.Generator(np.random.Philox(key=settings.seed))
        text = np.minimum(generator.zipf(1.3, n), 49151)
        pattern = text[-m:].copy()
        pattern[generator.random(m) < 0.1] = 5
        index, lags = NgramIndex(m // 3, text.tolist()), Lags(8, 0.75)
        lags.extend(text.tolist())
        now: dict[str, Callable[[], object]] = {
            "direct": partial(direct, text, pattern),
            "in plain Python": partial(naive, text.tolist()[: 2 * m], pattern.tolist()),
            "heavy-light": partial(heavy_light, text, pattern),
            "heavy-light, packed": partial(heavy_light, text, pattern, pack2=True),
            "k=2, index": partial(k_bounded, text, pattern, k=2),
            "k=2, jumps": partial(jumped, text, pattern, k=2),
            "approximate": partial(approximate, text, pattern),
            "k=2, index kept": partial(index.near, pattern, 2),
            "one token streamed": partial(lags.push, 7),
        }
        for name, form in now.items():
            forms.setdefault(name, {})[f"{n} x {m}"] = form

    def arm(name: str) -> Arm:
        return Arm(name, lambda _: {size: 1e3 * _seconds(form) for size, form in forms[name].items()})

    sizes = [f"{n} x {m}" for n, m in SIZES]
    figures = [Figure(f"{size}, of direct", size, middle=True, against="direct") for size in sizes]
    return Study(
        "Medians over repeats, text x pattern; ratios to the vectorised comparison within this run. In plain "
        "Python only twice the "
        "pattern is read.",
        list(range(settings.repeats)),
        [arm(name) for name in forms],
        [Figure(f"{sizes[0]}, ms", sizes[0], middle=True, form=".3f"), *figures],
        (
            PublishedClaim(
                "the transforms win at long patterns", figures[-1].name, "heavy-light", "direct", above=False
            ),
        ),
        "form",
    )


EXPERIMENT = Experiment(
    "approximate_match_lookup",
    "Approximate-match lookup: the cost of matching, and what tolerance brings",
    "Chan et al., Text-to-Pattern Hamming Distances, FOCS 2023, arXiv 2310.13174",
    ("decodery.speculative.approximate_match_lookup.method", "decodery.speculative.approximate_match_lookup.matching"),
    Settings(),
    {"templates": templates, "answers": answers, "times": times},
)
