"""The ways in which a model's passes are run: time by rows and context, agreement, memory and start.

    python benchmarks/paths.py --json paths.json
    python benchmarks/paths.py --sections agreement --questions 4

Sections: times (milliseconds of one pass after some cached tokens, the least of several, and of a prefill), profile (parts of
such a pass in compiled code), bandwidth (of memory), agreement (plain greedy answers against those of the path "off", tokens
of it scored by each path in one go), start (a process from nothing to the first token, and its peak memory, by path), and,
only where it is named, compiled (transformers' modules as a graph of torch.compile with frozen weights and a cache of fixed
size, which takes minutes to make). Times want a machine that does nothing else; agreement counts things.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent / "engines" / "workers"))

from bandwidth_worker import Bandwidth
from rich.console import Console
from rich.table import Table

import decodery
from decodery.evaluation.provenance import provenance
from decodery.evaluation.questions import load_questions
from decodery.language_model import LanguageModel
from decodery.models import store
from decodery.models.forward import Forward, Rows
from decodery.models.native import binding, build
from decodery.models.reading import transformers_model

SECTIONS = ("times", "profile", "bandwidth", "agreement", "start", "compiled")
ROWS = (1, 4, 8, 16, 32, 64)
PARTS = ("norms", "queries, keys, values", "attention", "output", "gate and up", "down", "head")
"""Of a pass, as the native decoder counts them."""
CONTEXTS = (64, 256, 1024)
REPEATS = 15
TEXT = "The quick brown fox jumps over the lazy dog, and the dog looks up. " * 200
"""What the passes that are timed read."""


def milliseconds(lm: LanguageModel, ids: Sequence[int], context: int, rows: int) -> float:
    """The least time of a pass over `rows` tokens after `context` cached ones; context 0 is a prefill."""
    network, times = lm.network, []
    wanted = Rows.ALL if context else Rows.LAST
    with network.working():
        sequence = network.new_sequence()
        if context:
            network.run([Forward(sequence, ids[:context], logits=Rows.LAST)])
        for _ in range(REPEATS if context else 5):
            started = time.perf_counter()
            network.run([Forward(sequence, ids[:rows], logits=wanted)])
            times.append(time.perf_counter() - started)
            sequence.truncate(context)
    return min(times) * 1e3


def times(models: dict[str, LanguageModel]) -> list[dict[str, Any]]:
    """Milliseconds by context and rows for each path."""
    found = []
    for context, rows in [*((c, r) for c in CONTEXTS for r in ROWS), (0, 256)]:
        row: dict[str, Any] = {"context": context, "rows": rows}
        for path, lm in models.items():
            row[path] = milliseconds(lm, lm.encode(TEXT)[: context + rows], context, rows)
        found.append(row)
    return found


def profile(models: dict[str, LanguageModel]) -> list[dict[str, Any]]:
    """Milliseconds of each part of a pass, the least of several, of paths in compiled code, and of the whole call around it."""
    library = binding.load(build.compiled(("-DDECODERY_PROFILE",)))
    library.decodery_ready()
    found = []
    for path, lm in models.items():
        network: Any = lm.network
        if not hasattr(network, "library"):
            continue
        plain, network.library = network.library, library
        ids = lm.encode(TEXT)
        for context, rows in [*((c, r) for c in CONTEXTS for r in (1, 8, 16, 32)), *((0, c) for c in CONTEXTS)]:
            counted = [_parts(network, library, ids, context, rows) for _ in range(REPEATS if context else 5)]
            least = (min(column) for column in zip(*counted, strict=True))
            named = dict(zip((*PARTS, "whole call"), least, strict=True))
            found.append({"path": path, "context": context, "rows": rows, **named})
        network.library = plain
    return found


def _parts(network: Any, library: Any, ids: Sequence[int], context: int, rows: int) -> list[float]:
    with network.working():
        sequence = network.new_sequence()
        if context:
            network.run([Forward(sequence, ids[:context], logits=Rows.LAST)])
            # The pass before the one that counts warms the caches as decoding does.
            network.run([Forward(sequence, ids[:rows])])
            sequence.truncate(context)
        spent = (ctypes.c_int64 * len(PARTS))()
        library.decodery_spent(spent)
        started = time.perf_counter()
        network.run([Forward(sequence, ids[:rows], logits=Rows.ALL if context else Rows.LAST)])
        whole = time.perf_counter() - started
        library.decodery_spent(spent)
    return [*(part / 1e6 for part in spent), whole * 1e3]


def compiled(name: str) -> list[dict[str, Any]]:
    """Milliseconds of a pass of transformers' modules after 256 tokens, as they are and as a compiled graph with frozen
    weights, and the seconds that compiling took: what torch itself makes of the model."""
    from torch._inductor import config as inductor
    from transformers import StaticCache

    model: Any = transformers_model(store.resolve(name), torch.bfloat16)
    context, found = 256, []
    for rows in (1, 16):
        cache: Any = StaticCache(config=model.config, max_cache_len=2 * context)
        ids, positions = torch.randint(0, 1000, (1, rows)), torch.arange(context, context + rows)[None]

        def one_pass(cache: Any = cache, ids: torch.Tensor = ids, positions: torch.Tensor = positions) -> torch.Tensor:
            for layer in cache.layers:  # every pass writes to the same place
                layer.cumulative_length.fill_(context)
            logits: torch.Tensor = model(ids, position_ids=positions, past_key_values=cache).logits
            return logits

        with torch.no_grad(), inductor.patch(freezing=True):
            model(torch.zeros(1, context, dtype=torch.long), past_key_values=cache)
            graph = torch.compile(one_pass, dynamic=False)
            row: dict[str, Any] = {"context": context, "rows": rows, "as it is": least_milliseconds(one_pass)}
            started = time.perf_counter()
            graph(), graph()
            row["compile_seconds"] = time.perf_counter() - started
            row["compiled"] = least_milliseconds(graph)
        found.append(row)
    return found


def least_milliseconds(work: Callable[[], object]) -> float:
    """The least time of REPEATS calls."""
    taken = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return min(taken) * 1e3


def bandwidth() -> dict[str, float]:
    """GB/s of memory with torch's threads, by what is done."""
    meter = Bandwidth()
    meter.load({"threads": torch.get_num_threads()})
    return {f"{way}_gigabytes_per_second": rate / 1e9 for way, rate in meter.measure().items()}


def agreement(models: dict[str, LanguageModel], questions: int, tokens: int) -> list[dict[str, Any]]:
    """Plain greedy answers of each path against those of the modules of transformers, and the latter's perplexity."""
    prompts = [question.turns[0] for question in load_questions(per_category=questions)]
    answers = {
        path: [lm.chat(prompt, method="autoregressive", max_new_tokens=tokens, temperature=0.0) for prompt in prompts]
        for path, lm in models.items()
    }
    found = []
    for path, lm in models.items():
        same = lengths = identical = 0
        surprise: list[float] = []
        for own, theirs in zip(answers[path], answers["off"], strict=True):
            pairs = list(zip(own.token_ids, theirs.token_ids, strict=False))
            first = next((place for place, (a, b) in enumerate(pairs) if a != b), len(pairs))
            same, lengths = same + first, lengths + len(theirs.token_ids)
            identical += list(own.token_ids) == list(theirs.token_ids)
            ids = [*theirs.prompt_token_ids, *theirs.token_ids]
            sequence = lm.network.new_sequence()
            logits = lm.network.run([Forward(sequence, ids[:-1])])[0].logits.log_softmax(-1)
            start = len(theirs.prompt_token_ids) - 1
            surprise += [-float(logits[row, ids[row + 1]]) for row in range(start, len(ids) - 1)]
        found.append(
            {
                "path": path,
                "answers": len(prompts),
                "identical_answers": identical / len(prompts),
                "tokens_before_the_first_difference": same / lengths,
                "perplexity_of_the_answers_of_off": float(torch.tensor(surprise).mean().exp()),
            }
        )
    return found


START = """
import sys, time
started = float(sys.argv[1])
import decodery, resource
lm = decodery.load(sys.argv[2], fast=sys.argv[3])
loaded = time.time()
for _ in lm.stream("The sea is", max_new_tokens=2):
    break
first = time.time()
print(loaded - started, first - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def start(name: str, paths: Sequence[str]) -> list[dict[str, Any]]:
    """Seconds of a fresh process until the model is loaded and until the first token, and MiB at its peak: medians of 3."""
    found = []
    for path in paths:
        runs = []
        for _ in range(3):
            command = [sys.executable, "-c", START, str(time.time()), name, path]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            runs.append([float(number) for number in out.split()[-3:]])
        loaded, first, peak = (statistics.median(column) for column in zip(*runs, strict=True))
        found.append({"path": path, "loaded_seconds": loaded, "first_token_seconds": first, "peak_mebibytes": peak})
    return found


def show(console: Console, title: str, rows: Sequence[dict[str, Any]]) -> None:
    """A table of rows that have the same keys."""
    table = Table(*(key.replace("_", " ") for key in rows[0]), title=title)
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    console.print(table)


def main() -> None:
    """The command line of the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--paths", nargs="+", default=["packed", "native", "fused", "off"], help="with off among them")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS[:-1]))
    parser.add_argument("--questions", type=int, default=2, help="per category of decodery's own questions")
    parser.add_argument("--tokens", type=int, default=128, help="per answer")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    if "agreement" in given.sections and "off" not in given.paths:
        parser.error("agreement is with the path off: name it among --paths")
    console = Console(width=150)
    report: dict[str, Any] = {}
    if "start" in given.sections:  # before this process holds any memory
        report["start"] = start(given.model, given.paths)
        show(console, "from nothing to the first token", report["start"])
    if "compiled" in given.sections:
        report["compiled"] = compiled(given.model)
        show(console, "transformers' modules, compiled by torch", report["compiled"])
    if set(given.sections) <= {"start", "compiled"}:
        models = {}
    else:
        models = {path: decodery.load(given.model, fast=path) for path in given.paths}
        report["provenance"] = provenance(next(iter(models.values())))
    if "bandwidth" in given.sections:
        report["bandwidth"] = bandwidth()
        show(console, "memory", [report["bandwidth"]])
    if "times" in given.sections:
        report["times"] = times(models)
        show(console, "milliseconds of a pass", report["times"])
    if "profile" in given.sections:
        report["profile"] = profile(models)
        if report["profile"]:
            show(console, "milliseconds of the parts of a pass", report["profile"])
    if "agreement" in given.sections:
        report["agreement"] = agreement(models, given.questions, given.tokens)
        show(console, "greedy answers", report["agreement"])
    report["peak_mebibytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if given.json:
        given.json.write_text(json.dumps(report, indent=1, default=str) + "\n", "utf-8")


if __name__ == "__main__":
    main()
