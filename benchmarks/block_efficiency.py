"""Tokens per forward of the target (block efficiency) of methods on a real model, with standard errors.

    python benchmarks/block_efficiency.py "spectr(drafts=4, length=2)" "draft-model(draft=ngram, length=8)"

Counts things, so it does not mind a busy machine. Each method decodes the same questions with the same seeds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import decodery
from decodery.evaluation.provenance import provenance
from decodery.evaluation.questions import load_questions
from decodery.language_model import LanguageModel


@dataclass(frozen=True)
class Efficiency:
    """What a method did. tokens_per_round: emitted tokens per forward of the target; error: its standard error over
    requests. nodes: drafted tokens per round."""

    method: str
    rounds: int
    tokens_per_round: float
    error: float
    nodes: float


def measure(
    lm: LanguageModel, method: str, prompts: Sequence[str], *, temperature: float, tokens: int, seeds: int
) -> Efficiency:
    """Decode every prompt with every seed."""
    new, rounds, drafted = [], [], []
    for seed in range(seeds):
        for prompt in prompts:
            lm.forget()
            stats = lm.chat(prompt, method=method, temperature=temperature, seed=seed, max_new_tokens=tokens).stats
            new.append(stats.new_tokens)
            rounds.append(stats.rounds)
            drafted.append(stats.drafted)
    ratio = sum(new) / sum(rounds)
    # Delta method for a ratio of sums.
    spread = sum((a - ratio * b) ** 2 for a, b in zip(new, rounds, strict=True))
    error = (spread * len(new) / (len(new) - 1)) ** 0.5 / sum(rounds)
    return Efficiency(method, sum(rounds), ratio, error, sum(drafted) / sum(rounds))


def arguments(description: str, epilog: str = "") -> argparse.ArgumentParser:
    """The options that all studies of block efficiency share."""
    parser = argparse.ArgumentParser(description=description, epilog=epilog)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--questions", type=int, default=2, help="per category of decodery's own questions")
    parser.add_argument("--tokens", type=int, default=64, help="per answer")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser


def compare(options: argparse.Namespace, methods: Iterable[str]) -> list[Efficiency]:
    """Measure methods, print a table as it grows, and write the JSON file where one is wanted."""
    lm = decodery.load(options.model, dtype=options.dtype)
    prompts = [question.turns[0] for question in load_questions(None, per_category=options.questions)]
    print(f"{'method':70s} {'rounds':>7s} {'nodes':>6s}  tokens per round")
    found = []
    for method in methods:
        row = measure(lm, method, prompts, temperature=options.temperature, tokens=options.tokens, seeds=options.seeds)
        found.append(row)
        print(
            f"{row.method:70s} {row.rounds:7d} {row.nodes:6.2f}  {row.tokens_per_round:.3f} ± {row.error:.3f}",
            flush=True,
        )
    if options.json is not None:
        report = {"provenance": provenance(lm), "rows": [asdict(row) for row in found]}
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return found


if __name__ == "__main__":
    parser = arguments("Tokens per forward of the target on a real model.")
    parser.add_argument("methods", nargs="+", metavar="METHOD")
    given = parser.parse_args()
    compare(given, given.methods)
