"""HEX against what it has to beat: the same number of forwards spent on one block length, or on random orders.

python benchmarks/hex.py                                    # list tasks, puzzles and word problems on diffusion-lists
python benchmarks/hex.py --tasks sort,sudoku --items 50 --canvas 32 --steps 16

All schedules are runs of one request with all block lengths and as many seeds of each as the whole ensemble has runs. Runs are
addressed by block length and seed, so a vote over some of them is what `hex` with these lengths and seeds gives.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import decodery
from decodery.diffusion.hex import HiddenExperts
from decodery.evaluation.parallelbench.tasks import Sample, make_samples, score
from decodery.search.votes import Key, count, decided

TASKS = "sort,continue_pattern,arithmetic,sudoku"
KINDS = {"arithmetic": "math"}
"""How a task's answer is read; that of all others is the whole text."""

Runs = dict[Key, dict[str, Any]]
"""What `hex` tells of its runs."""


def runs_of(lm: Any, sample: Sample, method: str, seed: int) -> Runs:
    """All runs of one request."""
    reply = lm.generate(sample.prompt, method, seed=seed)
    return {(run["block"], run["seed"]): run for run in reply.stats.details["runs"]}


def voted(sample: Sample, runs: Runs, keys: Iterable[Key], choice: str = "vote") -> tuple[bool, int]:
    """Whether the winner of these runs is right, and the forwards that they took."""
    some = {key: runs[key] for key in keys}
    winner = count({key: run["answer"] for key, run in some.items()}).run
    if choice == "likelihood":
        winner = max(sorted(some), key=lambda key: some[key]["likelihood"])
    return score(sample, some[winner]["text"]), sum(run["forwards"] for run in some.values())


def saved(runs: Runs, keys: Sequence[Key], at_once: int) -> float:
    """The share of forwards that is not needed where runs stop once the winner is decided."""
    total, spent = sum(runs[key]["forwards"] for key in keys), 0
    done: dict[Key, str | None] = {}
    for start in range(0, len(keys), at_once):
        if decided(done, keys[start:]):
            break
        for key in keys[start : start + at_once]:
            done[key] = runs[key]["answer"]
            spent += runs[key]["forwards"]
    return 1.0 - spent / total


def agreement(runs: Runs, blocks: Sequence[int], seeds: int) -> tuple[list[float], list[float]]:
    """Of pairs of runs that both answer, whether they agree: pairs of one block length, and of two."""
    within: list[float] = []
    across: list[float] = []
    keys = [(block, seed) for block in blocks for seed in range(seeds)]
    for one, two in itertools.combinations(keys, 2):
        answers = runs[one]["answer"], runs[two]["answer"]
        if None not in answers:
            (within if one[0] == two[0] else across).append(float(answers[0] == answers[1]))
    return within, across


def study(lm: Any, task: str, given: argparse.Namespace) -> dict[str, Any]:
    """All schedules on the samples of one task."""
    canvas = given.canvas or lm.diffusion.canvas
    shape = HiddenExperts(steps=given.steps)
    blocks = shape.lengths(canvas)
    total = given.seeds * len(blocks)
    shared = f"gen_length={canvas}, answer={KINDS.get(task, 'text')}, temperature={given.temperature}"
    shared += f", steps={shape.planned(canvas)}, at_once={given.at_once}, early_stop={given.early_stop}"
    all_blocks = "x".join(str(block) for block in (*blocks, canvas))
    samples = make_samples(task, given.items, seed=given.seed)
    outcomes: dict[str, list[tuple[bool, int]]] = {}
    pairs: tuple[list[float], list[float]] = ([], [])
    collapsed: dict[int, list[bool]] = {block: [] for block in (*blocks, canvas)}
    single: dict[int, list[float]] = {block: [] for block in (*blocks, canvas)}
    spared = []
    for place, sample in enumerate(samples):
        runs = runs_of(lm, sample, f"hex({shared}, block_lengths={all_blocks}, seeds={total})", given.seed + place)
        orders = runs_of(
            lm, sample, f"hex({shared}, block_lengths={canvas}, order=random, seeds={total})", given.seed + place
        )
        greedy = lm.generate(
            sample.prompt,
            f"masked-diffusion(gen_length={canvas}, block_length={max(blocks)}, steps={shape.planned(canvas)}, "
            f"early_stop={given.early_stop})",
        )
        told = {"(a) one greedy run": (score(sample, greedy.text), greedy.stats.forwards)}
        for block in (*blocks, canvas):
            name = f"(b) blocks of {block} x {total}" if block < canvas else f"    no blocks x {total}"
            told[name] = voted(sample, runs, [(block, seed) for seed in range(total)])
        ensemble = [(block, seed) for block in blocks for seed in range(given.seeds)]
        told[f"(c) HEX {len(blocks)} x {given.seeds}"] = voted(sample, runs, ensemble)
        told[f"    HEX {len(blocks)} x 1"] = voted(sample, runs, [(block, 0) for block in blocks])
        told["    HEX, likeliest run"] = voted(sample, runs, ensemble, "likelihood")
        told[f"(d) random order x {total}"] = voted(sample, orders, orders)
        for name, outcome in told.items():
            outcomes.setdefault(name, []).append(outcome)
        for mine, found in zip(pairs, agreement(runs, blocks, given.seeds), strict=True):
            mine += found
        for (block, _), run in runs.items():
            collapsed[block].append(run["collapsed"])
            single[block].append(float(score(sample, run["text"])))
        spared.append(saved(runs, ensemble, shape.at_once))
        print(f"\r{task}: {place + 1} of {len(samples)}", end="", flush=True)
    print("\r", end="")
    rows = [
        {
            "schedule": name,
            "accuracy": fmean(right for right, _ in results),
            "error": (fmean(r for r, _ in results) * (1 - fmean(r for r, _ in results)) / len(results)) ** 0.5,
            "forwards": fmean(forwards for _, forwards in results),
        }
        for name, results in outcomes.items()
    ]
    hexed = next(name for name in outcomes if name.startswith("(c)"))
    best = max((row for row in rows if row["schedule"].startswith("(b)")), key=lambda row: row["accuracy"])
    against = list(zip(outcomes[hexed], outcomes[best["schedule"]], strict=True))
    return {
        "task": task,
        "items": len(samples),
        "canvas": canvas,
        "rows": rows,
        "best_single": best["schedule"],
        "hex_only_right": sum(c[0] and not b[0] for c, b in against),
        "best_single_only_right": sum(b[0] and not c[0] for c, b in against),
        "agreement_within": fmean(pairs[0]) if pairs[0] else None,
        "agreement_across": fmean(pairs[1]) if pairs[1] else None,
        "collapsed": {str(block): fmean(values) for block, values in collapsed.items()},
        "single_run_accuracy": {str(block): fmean(values) for block, values in single.items()},
        "forwards_saved_by_stopping": fmean(spared),
    }


def show(result: dict[str, Any]) -> None:
    """One task as a table."""
    print(f"\n{result['task']}: {result['items']} samples, canvas {result['canvas']}")
    print(f"  {'schedule':26} {'accuracy':>16} {'forwards':>9} {'accuracy per 100 forwards':>26}")
    for row in result["rows"]:
        print(
            f"  {row['schedule']:26} {row['accuracy']:8.3f} ± {row['error']:.3f} {row['forwards']:9.1f} "
            f"{100 * row['accuracy'] / row['forwards']:26.3f}"
        )
    print(
        f"  (c) against the best of (b), {result['best_single'].removeprefix('(b) ')}: only (c) right "
        f"{result['hex_only_right']}, only (b) right {result['best_single_only_right']}"
    )
    if result["agreement_within"] is not None and result["agreement_across"] is not None:
        print(
            f"  pairs of runs that agree: {result['agreement_within']:.3f} within one block length, "
            f"{result['agreement_across']:.3f} across"
        )
    for name, key in (("accuracy of a single run", "single_run_accuracy"), ("ends at the first position", "collapsed")):
        print(f"  {name}, by block: " + ", ".join(f"{block}: {value:.3f}" for block, value in result[key].items()))
    print(f"  forwards saved by stop_when_decided: {result['forwards_saved_by_stopping']:.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description="HEX at equal numbers of forwards.")
    parser.add_argument("--model", default="diffusion-lists")
    parser.add_argument("--tasks", default=TASKS, help="joined by commas")
    parser.add_argument("--items", type=int, default=40, help="samples of each task")
    parser.add_argument("--canvas", type=int, help="positions; by default the model's own")
    parser.add_argument("--steps", type=int, help="steps for the whole canvas; by default those of the method")
    parser.add_argument("--seeds", type=int, default=5, help="of each block length in the ensemble")
    parser.add_argument("--temperature", type=float, default=0.9)
    parser.add_argument("--at-once", type=int, default=25, help="runs that share a pass")
    parser.add_argument(
        "--early-stop", default="never", help="block: a run ends with the block that ends its text, and forwards differ"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    given = parser.parse_args()
    lm = decodery.load(given.model, dtype="float32")
    results = []
    for task in given.tasks.split(","):
        results.append(study(lm, task, given))
        show(results[-1])
    if given.json is not None:
        given.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
