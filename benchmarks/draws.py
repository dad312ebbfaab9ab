"""What drawing costs beside the passes: rounds of a batch, greedy and sampled, and the time of their bare passes.

    python benchmarks/draws.py --batch 32 --tokens 16 --out draws.json

Both times are taken in the same rounds: the passes alone, and all the rest of a round (laws, draws, commits, the scheduler).
The fastest of all rounds is what the work takes, the median what it takes beside whatever else the machine does. Where it
does much else, the seconds of processors (`*_cpu_ms`, of all threads) and their ratio (`overhead_cpu`) tell more.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import decodery
from decodery.engine.registry import method as as_method
from decodery.engine.request import Request
from decodery.engine.settings import Settings
from decodery.evaluation.provenance import provenance

LAWS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.8},
    "temperature, top-p": {"temperature": 0.8, "top_p": 0.95},
    "temperature, top-k, top-p": {"temperature": 0.8, "top_k": 50, "top_p": 0.95},
    "temperature, top-p, penalties": {
        "temperature": 0.8,
        "top_p": 0.95,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.5,
    },
}


def rounds(
    lm: decodery.LanguageModel, batch: int, tokens: int, settings: dict[str, Any]
) -> tuple[list[float], list[float], list[float], list[float]]:
    """Of each round in which the whole batch decodes one token: seconds of the pass and of all the rest, and the same of
    processors."""
    scheduler = lm.scheduler(watched=False)
    method = as_method("autoregressive")
    for number in range(batch):
        prompt = lm.tokenize(f"The {number}th of many stories that begin in the same way")
        given = Settings.of(
            {**settings, "seed": number, "max_new_tokens": tokens, "ignore_eos": True}, lm.network.vocabulary
        )
        scheduler.submit(Request(lm, prompt, given, number), method)
    spent = spent_cpu = 0.0
    original = lm.network.run_pass

    def timed(forwards: Any) -> Any:
        nonlocal spent, spent_cpu
        start, cpu = time.perf_counter(), time.process_time()
        answer = original(forwards)
        spent += time.perf_counter() - start
        spent_cpu += time.process_time() - cpu
        return answer

    lm.network.run_pass = timed  # type: ignore[method-assign]
    passes, rest, passes_cpu, rest_cpu = [], [], [], []
    try:
        with lm.working():
            while scheduler.active:
                spent = spent_cpu = 0.0
                start, cpu = time.perf_counter(), time.process_time()
                scheduler.step()
                passes.append(spent)
                rest.append(time.perf_counter() - start - spent)
                passes_cpu.append(spent_cpu)
                rest_cpu.append(time.process_time() - cpu - spent_cpu)
    finally:
        del lm.network.run_pass
    return passes[2:], rest[2:], passes_cpu[2:], rest_cpu[2:]  # the first rounds read the prompts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--fast", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    lm = decodery.load(given.model, fast=given.fast, threads=given.threads)
    rows = []
    for name, settings in LAWS.items():
        passes, rest, passes_cpu, rest_cpu = rounds(lm, given.batch, given.tokens, settings)
        bare, beside = min(passes), min(rest)
        rows.append(
            {
                "law": name,
                "batch": given.batch,
                "rounds": len(passes),
                "pass_ms": round(1e3 * bare, 2),
                "beside_ms": round(1e3 * beside, 2),
                "pass_cpu_ms": round(1e3 * min(passes_cpu), 2),
                "beside_cpu_ms": round(1e3 * min(rest_cpu), 2),
                "overhead": round(beside / bare, 4),
                "overhead_cpu": round(min(rest_cpu) / min(passes_cpu), 4),
                "overhead_of_medians": round(statistics.median(rest) / statistics.median(passes), 4),
            }
        )
        print(json.dumps(rows[-1]))
    if given.out is not None:
        given.out.write_text(json.dumps({"rows": rows, "provenance": provenance(lm)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
