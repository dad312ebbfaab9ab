"""How much drawing without replacement brings: block efficiency at equal node budget, and the law at scale.

    python benchmarks/recursive_speculative_decoding.py                      block efficiency on a real model
    python benchmarks/recursive_speculative_decoding.py --draft layers       the same with the target's first layers
    python benchmarks/recursive_speculative_decoding.py --laws               chi-square tests of the sampled law

Block efficiency is new tokens per target forward after the prompt. Every method of a comparison has the same drafter and
verifies the same number of nodes per round; means are over rounds, intervals (95 %) over requests.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

METHOD = "recursive-speculative-decoding"
BATCH = 12
"""Requests decoded together."""


def contestants(draft: str, layers: int | None, width: int, length: int) -> dict[str, str]:
    """What is compared, by name: trees of width x length nodes, and chains of as many and of the same length."""
    drafter = f"draft={draft}" + ("" if layers is None else f", layers={layers}")
    branching = "x".join([str(width), *["1"] * (length - 1)])
    return {
        "beam (RSD-S)": f"{METHOD}({drafter}, width={width}, length={length})",
        "branching (RSD-C)": f'{METHOD}({drafter}, tree=branching, branching="{branching}")',
        "independent tree": f"draft-model({drafter}, width={width}, length={length})",
        "spectr": f"spectr({drafter}, drafts={width}, length={length})",
        "chain, same nodes": f"draft-model({drafter}, length={width * length})",
        "chain, same length": f"draft-model({drafter}, length={length})",
    }


def ratio(pairs: list[tuple[int, int]]) -> tuple[float, float]:
    """Total tokens over total rounds of independent requests, and its standard error (linearised)."""
    tokens, rounds = sum(t for t, _ in pairs), sum(r for _, r in pairs)
    mean = tokens / rounds
    spread = sum((t - mean * r) ** 2 for t, r in pairs) * len(pairs) / max(len(pairs) - 1, 1)
    return mean, math.sqrt(spread) / rounds


def block_efficiency(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row per contestant and temperature."""
    import decodery
    from decodery.evaluation.questions import load_questions

    lm = decodery.load(arguments.model)
    questions = load_questions(per_category=arguments.per_category)
    prompts = [[{"role": "user", "content": question.turns[0]}] for question in questions]
    chosen = contestants(arguments.draft, arguments.layers, arguments.width, arguments.length)
    for temperature, top_p in arguments.settings:
        for name, spec in chosen.items():
            if arguments.only and name.split()[0] not in arguments.only:
                continue
            pairs: list[tuple[int, int]] = []
            drafted = 0
            started = time.perf_counter()
            for repeat in range(arguments.repeats):
                for start in range(0, len(prompts), BATCH):
                    replies = lm.generate(
                        prompts[start : start + BATCH],
                        method=spec,
                        temperature=temperature,
                        top_p=top_p,
                        max_new_tokens=arguments.tokens,
                        seed=arguments.seed + repeat,
                    )
                    pairs += [(reply.stats.new_tokens, reply.stats.rounds) for reply in replies]
                    drafted += sum(reply.stats.drafted for reply in replies)
            mean, error = ratio(pairs)
            rounds = sum(r for _, r in pairs)
            yield {
                "method": name,
                "spec": spec,
                "temperature": temperature,
                "top_p": top_p,
                "block_efficiency": mean,
                "standard_error": error,
                "rounds": rounds,
                "nodes_per_round": drafted / rounds,
                "seconds": time.perf_counter() - started,
            }


LAWS = [
    ("tree=branching, branching=2x1", 5),
    ("tree=branching, branching=3", 6),
    ("tree=branching, branching=2x2", 4),
    ("width=2, length=2", 6),
    ("width=2, length=3", 5),
    ("width=3, length=2", 5),
    ("width=3, length=3", 4),
]
"""Parameters and vocabulary of the sampled law tests."""


def laws(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The joint law of the first two of four tokens, sampled through the whole engine, against the target's."""
    from collections import Counter

    from decodery.engine.settings import Settings
    from decodery.testing import TabularScorer, goodness_of_fit, scripted_language_model
    from decodery.testing.outputs import sampled_outputs

    for parameters, vocabulary in LAWS:
        scorer = TabularScorer(vocabulary, order=None, seed=vocabulary)
        lm = scripted_language_model(scorer, drafter=TabularScorer(vocabulary, order=None, seed=99, name="other"))
        settings = Settings(temperature=1.0, max_new_tokens=4, seed=arguments.seed)
        spec = f"{METHOD}(draft=other, {parameters})"
        counts: Counter[tuple[int, ...]] = Counter()
        for output, count in sampled_outputs(lm, spec, [0, 1], settings, arguments.samples).items():
            counts[output[:2]] += count
        fit = goodness_of_fit(counts, scorer.joint([0, 1], 2))
        yield {
            "method": parameters,
            "vocabulary": vocabulary,
            "samples": fit.samples,
            "statistic": fit.statistic,
            "degrees": fit.degrees,
            "p_value": fit.p_value,
            "total_variation": fit.total_variation,
        }


def _setting(text: str) -> tuple[float, float]:
    temperature, _, top_p = text.partition("/")
    return float(temperature), float(top_p or 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--laws", action="store_true", help="test the sampled law instead")
    parser.add_argument("--samples", type=int, default=200_000, help="outputs per law (default 200000)")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--draft", default="ngram", help="ngram, ngram-text, layers, or a model's name")
    parser.add_argument("--layers", type=int, help="how many first layers draft, with --draft layers")
    parser.add_argument("--width", type=int, default=3)
    parser.add_argument("--length", type=int, default=3)
    parser.add_argument("--per-category", type=int, default=6, help="questions of each of the six groups")
    parser.add_argument("--repeats", type=int, default=1, help="samples per question")
    parser.add_argument("--tokens", type=int, default=96, help="new tokens per request")
    parser.add_argument("--settings", type=_setting, nargs="+", default=[(1.0, 0.95), (0.3, 1.0)],
                        metavar="TEMPERATURE/TOP_P")  # fmt: skip
    parser.add_argument("--only", nargs="+", help="first words of the contestants to run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the rows here")
    arguments = parser.parse_args()
    rows = []
    for row in laws(arguments) if arguments.laws else block_efficiency(arguments):
        rows.append(row)
        if arguments.laws:
            print(f"{row['method']:32} {row['vocabulary']} tokens, {row['samples']} samples: chi-square "
                  f"{row['statistic']:6.1f} on {row['degrees']:3}, p = {row['p_value']:.3f}", flush=True)  # fmt: skip
        else:
            low, high = (row["block_efficiency"] + sign * 1.96 * row["standard_error"] for sign in (-1, 1))
            print(f"T={row['temperature']} top-p={row['top_p']}  {row['method']:20} {row['block_efficiency']:.3f}  "
                  f"[{low:.3f}, {high:.3f}]  {row['rounds']:6} rounds, {row['nodes_per_round']:.1f} nodes each, "
                  f"{row['seconds']:.0f} s", flush=True)  # fmt: skip
        if arguments.json:
            arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
