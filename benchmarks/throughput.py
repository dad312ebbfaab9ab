"""Throughput: tokens per second by batch, stalls while a long prompt is read, shared beginnings, and a small KV budget.

python benchmarks/throughput.py                                   # the default model and method, batches of 1 to 32
python benchmarks/throughput.py --method autoregressive --fast packed --batches 1,8,32 --json throughput.json
python benchmarks/throughput.py --only stall,sharing --long 2048  # without the batches

- batch: so many requests at once, each with a prompt of its own; as `generate` runs them, for the least time of all together.
- stall: requests run, and a long prompt comes: the longest time between two tokens of a running request, and the time to the
  first token of the one that came, with the prompt read in pieces and in one pass.
- sharing: several samples of one prompt, its beginning scored once or by each.
- queue: a batch under a KV budget that holds a quarter of it.

Times are wall clock; of several repeats the fastest counts, and of two ways the runs alternate.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import decodery
from decodery.engine.events import Event, Token
from decodery.engine.memory import KVBudget, Need, size_text
from decodery.engine.method import Method
from decodery.engine.registry import method as as_method
from decodery.engine.request import Request
from decodery.engine.scheduler import Scheduler, Scheduling
from decodery.engine.settings import Settings
from decodery.evaluation.provenance import provenance
from decodery.evaluation.questions import load_questions
from decodery.language_model import LanguageModel

STUDIES = ("batch", "stall", "sharing", "queue")


class Watch:
    """A scheduler, and when each request of it got its tokens (seconds from the beginning)."""

    def __init__(self, lm: LanguageModel, method: Method, scheduling: Scheduling, budget: KVBudget | None = None):
        lm.memory.clear()
        self.lm, self.method = lm, method
        self.scheduler = Scheduler(budget, scheduling)
        self.requests: list[Request] = []
        self.times: dict[int, list[float]] = {}
        self.begun = time.perf_counter()

    def submit(self, prompt: Sequence[int], tokens: int, sample: int = 0, temperature: float = 0.0) -> int:
        """Add a request; its number."""
        settings = Settings(max_new_tokens=tokens, ignore_eos=True, temperature=temperature, seed=0)
        number = len(self.requests)
        self.times[number] = []
        self.requests.append(Request(self.lm, prompt, settings, number, sample, self._listen))
        self.scheduler.submit(self.requests[-1], self.method)
        return number

    def _listen(self, event: Event) -> None:
        if isinstance(event, Token):
            self.times[event.request].append(time.perf_counter() - self.begun)

    def step(self) -> None:
        with self.lm.network.working():
            self.scheduler.step()

    def run(self) -> float:
        """To the end; the seconds since the beginning."""
        with self.lm.network.working():
            self.scheduler.run()
        errors = [request.error for request in self.requests if request.error is not None]
        if errors:
            raise errors[0]
        return time.perf_counter() - self.begun

    @property
    def tokens(self) -> int:
        return sum(len(request.new_tokens) for request in self.requests)

    @property
    def rows(self) -> int:
        return sum(entry.rows for request in self.requests for entry in request.statistics.models.values())

    def first_tokens(self) -> list[float]:
        """Seconds to the first token of each request."""
        return [times[0] for times in self.times.values()]

    def longest_gap(self, numbers: Sequence[int], since: float = 0.0) -> float:
        """The longest time between two tokens of these requests, of gaps that end after `since`. Several tokens of one round
        count as one."""
        gaps = [
            later - earlier
            for number in numbers
            for earlier, later in zip(self.times[number], self.times[number][1:], strict=False)
            if later > since
        ]
        return max(gaps, default=0.0)


def prompts_of(lm: LanguageModel, count: int) -> list[list[int]]:
    """So many different prompts: decodery's own questions, with a number where they come again."""
    questions = load_questions()
    texts = [
        questions[place % len(questions)].turns[0] + (f" ({place})" if place >= len(questions) else "")
        for place in range(count)
    ]
    chats = getattr(lm.tokenizer, "chat_template", None)
    return [lm.tokenize([{"role": "user", "content": text}] if chats else text) for text in texts]


def long_prompt(lm: LanguageModel, tokens: int) -> list[int]:
    """A prompt of exactly so many tokens."""
    text = "\n\n".join(turn for question in load_questions() for turn in question.turns)
    ids = lm.encode(text)
    return (ids * (tokens // len(ids) + 1))[:tokens]


def best(repeats: int, by: str, ways: Sequence[Any], run: Callable[[Any], dict[str, Any]]) -> dict[Any, dict[str, Any]]:
    """What the run with the least `by` found, of each way. The ways take turns."""
    rounds = [{way: run(way) for way in ways} for _ in range(repeats)]
    return {way: min((found[way] for found in rounds), key=lambda found: found[by]) for way in ways}


def batches(lm: LanguageModel, method: Method, given: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for size in given.batches:
        prompts = prompts_of(lm, size)

        def run(size: int, prompts: Sequence[Sequence[int]] = prompts) -> dict[str, Any]:
            watch = Watch(lm, method, Scheduling(chunk=given.chunk, watched=False))
            for prompt in prompts:
                watch.submit(prompt, given.tokens)
            seconds = watch.run()
            first = watch.first_tokens()
            return {
                "batch": size,
                "tokens_per_second": watch.tokens / seconds,
                "tokens": watch.tokens,
                "prompt_tokens": sum(map(len, prompts)),
                "rows": watch.rows,
                "seconds": seconds,
                "first_token_mean": sum(first) / len(first),
                "first_token_last": max(first),
                "longest_stall": watch.longest_gap(range(size)),
            }

        found = best(given.repeats, "seconds", [size], run)[size]
        rows.append(found)
        print(
            f"batch {size:3d}: {found['tokens_per_second']:8.1f} tokens/s, "
            f"first token {milliseconds(found['first_token_mean'])} in the mean, "
            f"{milliseconds(found['first_token_last'])} at last, longest stall {milliseconds(found['longest_stall'])}",
            flush=True,
        )
    return rows


def stalls(lm: LanguageModel, method: Method, given: argparse.Namespace) -> list[dict[str, Any]]:
    chunks = {"in pieces": given.chunk, "whole": 0}
    running, prompt = prompts_of(lm, given.running), long_prompt(lm, given.long)

    def run(way: str) -> dict[str, Any]:
        watch = Watch(lm, method, Scheduling(chunk=chunks[way]))
        for one in running:
            watch.submit(one, given.tokens)
        while any(len(watch.times[number]) < given.tokens // 4 for number in range(len(running))):
            watch.step()
        since = time.perf_counter() - watch.begun
        late = watch.submit(prompt, 4)
        seconds = watch.run()
        return {
            "way": way,
            "running": len(running),
            "prompt_tokens": len(prompt),
            "longest_stall": watch.longest_gap(range(len(running)), since),
            "first_token": watch.times[late][0] - since,
            "seconds": seconds,
        }

    rows = best(given.repeats, "longest_stall", list(chunks), run)
    for way, found in rows.items():
        print(
            f"a prompt of {len(prompt)} beside {len(running)}, {way:9s}: longest stall {milliseconds(found['longest_stall'])}, "
            f"its first token after {milliseconds(found['first_token'])}",
            flush=True,
        )
    return list(rows.values())


def sharing(lm: LanguageModel, method: Method, given: argparse.Namespace) -> list[dict[str, Any]]:
    prompt = long_prompt(lm, given.long)

    def run(share: bool) -> dict[str, Any]:
        watch = Watch(lm, method, Scheduling(chunk=given.chunk, watched=False, share=share))
        for sample in range(given.samples):
            watch.submit(prompt, given.tokens, sample, temperature=1.0)
        seconds = watch.run()
        return {
            "shared": share,
            "samples": given.samples,
            "prompt_tokens": len(prompt),
            "rows": watch.rows,
            "first_token_last": max(watch.first_tokens()),
            "seconds": seconds,
            "tokens_per_second": watch.tokens / seconds,
        }

    rows = best(given.repeats, "seconds", [False, True], run)
    for share, found in rows.items():
        print(
            f"{given.samples} samples of a prompt of {len(prompt)}, {'shared ' if share else 'by each'}: {found['rows']:6d} "
            f"rows, last first token {milliseconds(found['first_token_last'])}, {found['tokens_per_second']:7.1f} tokens/s",
            flush=True,
        )
    return list(rows.values())


def queue(lm: LanguageModel, method: Method, given: argparse.Namespace) -> list[dict[str, Any]]:
    size = max(given.batches)
    prompts = prompts_of(lm, size)
    settings = Settings(max_new_tokens=given.tokens, seed=0)
    needs = [Need.of(Request(lm, prompt, settings), method).bytes for prompt in prompts]
    rows = []
    outputs = []
    for total in (sum(needs), max(max(needs), sum(needs) // 4)):
        budget = KVBudget(total)
        watch = Watch(lm, method, Scheduling(chunk=given.chunk, watched=False), budget)
        for prompt in prompts:
            watch.submit(prompt, given.tokens)
        seconds = watch.run()
        outputs.append([request.new_tokens for request in watch.requests])
        same = sum(one == other for one, other in zip(outputs[0], outputs[-1], strict=True))
        rows.append(
            {
                **budget.as_dict(),
                "batch": size,
                "seconds": seconds,
                "tokens_per_second": watch.tokens / seconds,
                "longest_queue_seconds": max(request.statistics.queued_seconds for request in watch.requests),
                "same_outputs": same,
            }
        )
        print(
            f"{size} requests in {size_text(total):>8s}: peak {size_text(budget.peak):>8s}, {budget.most_waiting:2d} waited, "
            f"at most {rows[-1]['longest_queue_seconds']:5.1f} s, {watch.tokens / seconds:7.1f} tokens/s, "
            f"{same} of {size} outputs the same",
            flush=True,
        )
    return rows


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:7.0f} ms"


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def studies_of(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in STUDIES]
    if unknown:
        raise argparse.ArgumentTypeError(f"no study is called {unknown[0]!r}; there are {', '.join(STUDIES)}.")
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--method", default=None, help="as name or name(key=value); default: the model's own")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--fast", default="auto", help="path: auto, packed, native, fused or off")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--batches", type=numbers, default=[1, 2, 4, 8, 16, 32], metavar="N,N,…")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of each request")
    parser.add_argument("--chunk", type=int, default=None, help="rows of prompts per pass; default: by the cost curve")
    parser.add_argument("--running", type=int, default=4, help="stall: requests that run while the long prompt comes")
    parser.add_argument("--long", type=int, default=1024, help="stall and sharing: tokens of the long prompt")
    parser.add_argument("--samples", type=int, default=8, help="sharing: samples of one prompt")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--only", type=studies_of, default=list(STUDIES), metavar="STUDY,…", help=f"which of {', '.join(STUDIES)}"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    lm = decodery.load(given.model, dtype=given.dtype, fast=given.fast, threads=given.threads)
    method = as_method(given.method or lm.default_method)
    network: Any = lm.network
    print(f"{lm.name}, {network.dtype}, path {network.path}, {network.threads} threads, {method.spec()}", flush=True)
    with network.working():
        lm.cost(network)  # measured before anything is timed
    studies = {"batch": batches, "stall": stalls, "sharing": sharing, "queue": queue}
    found = {name: studies[name](lm, method, given) for name in given.only}
    if given.json is not None:
        about = {"provenance": provenance(lm), "method": method.spec()}
        given.json.write_text(json.dumps({**about, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
