"""Many requests of all kinds against a server at once: none may be lost or wrong, and all it holds must come back.

    python benchmarks/load.py --requests 1000 --at-once 64 --idle 10000 --results
    python benchmarks/load.py --requests 200 --soak 20      # rounds for twenty minutes: memory must stay flat
    python benchmarks/load.py --requests 100 --idle 10000   # and as many connections that say nothing beside them

A server of its own runs on loopback. Requests differ in method, length, temperature and prompt; some are streamed, some read
slowly, some malformed, and three of twenty go away before their answers are there. Each answer is compared with the text of the
same request alone, which must be the same, greedy and sampled, but where rounding decides between two tokens (`on_a_border`).
The exit code is 0 where everything held.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

import decodery
from decodery.evaluation import experiment_files
from decodery.evaluation.provenance import provenance
from decodery.models.forward import Forward, Rows
from decodery.sampling.noise import Noise, Stage

ROOT = Path(__file__).parents[1]

METHODS = (
    "autoregressive",
    "cascade",
    "token-recycling(k=4)",
    "prompt-lookup",
    "suffix-automaton",
    "draft-model(layers=1)",
)
PROMPTS = ("hello", "the quick brown fox jumps over the lazy dog", "abcabcabcabc", "x" * 300)
BAD: tuple[tuple[Any, int], ...] = (
    ({"temperature": -1}, 400), ({"nonsense": True}, 400), ({"method": "no-such-method"}, 400),
    ({"model": "no-such-model"}, 404), ({"max_tokens": 100_000}, 400), ({"stop_token_ids": [999_999]}, 400), (b"{", 400),
)  # fmt: skip
KINDS = (
    *("whole", "stream", "gone", "slow", "stream", "whole", "bad", "stream", "whole", "gone"),
    *("whole", "slow", "stream", "whole", "gone", "stream", "whole", "stream", "whole", "whole"),
)
"""What is asked in turns: 15 % go away, 5 % are malformed, 10 % read slowly."""
GONE = 499
BORDER = 1e-5
"""Nearer to each other than this are numbers that rounding of float32 may exchange."""
PATIENCE = 600.0
"""Seconds that an answer may take."""


@dataclass(frozen=True)
class Ask:
    """One request. kind: one of KINDS. body: JSON, or bytes that are none. status: what must answer it."""

    number: int
    kind: str
    body: Any
    status: int = 200

    @property
    def told(self) -> dict[str, Any]:
        """What `generate` needs for the same text."""
        return {name: self.body[name] for name in ("method", "max_tokens", "temperature", "seed", "ignore_eos")}


def mixed(count: int, first: int = 0) -> list[Ask]:
    """`count` requests of all kinds, the same each time."""
    asks = []
    for number in range(first, first + count):
        kind = KINDS[number % len(KINDS)]
        if kind == "bad":
            more, status = BAD[number // len(KINDS) % len(BAD)]
            asks.append(Ask(number, kind, more if isinstance(more, bytes) else {"prompt": "hello", **more}, status))
            continue
        body = {
            "prompt": PROMPTS[number % len(PROMPTS)],
            "method": METHODS[number % len(METHODS)],
            "max_tokens": 150 if kind == "gone" else 3 + number % 23,
            "temperature": (0.0, 0.7, 1.0)[number % 3],
            "seed": number,
            "ignore_eos": True,
            "stream": kind in ("stream", "slow") or (kind == "gone" and number % 2 == 1),
        }
        asks.append(Ask(number, kind, body))
    return asks


async def answered(client: httpx.AsyncClient, ask: Ask) -> tuple[int, str]:
    """The status and the text of an answer, read as the kind says; GONE where the client went away."""
    data = ask.body if isinstance(ask.body, bytes) else json.dumps(ask.body).encode()
    sent: dict[str, Any] = {"content": data, "headers": {"Content-Type": "application/json"}}
    if ask.kind == "gone" and not ask.body["stream"]:
        try:
            async with asyncio.timeout(0.02 + 0.01 * (ask.number % 10)):
                await client.post("/v1/completions", **sent)
        except TimeoutError:
            return GONE, ""
    if isinstance(ask.body, dict) and ask.body.get("stream"):
        text = ""
        async with client.stream("POST", "/v1/completions", **sent) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    text += "".join(choice["text"] for choice in json.loads(line[6:])["choices"])
                if ask.kind == "gone" and text:
                    return GONE, ""
                if ask.kind == "slow":
                    await asyncio.sleep(0.02)
            return answer.status_code, text
    answer = await client.post("/v1/completions", **sent)
    told = answer.json()
    return answer.status_code, told["choices"][0]["text"] if "choices" in told else told["error"]["type"]


async def all_answered(address: str, asks: Sequence[Ask], at_once: int) -> list[tuple[int, str]]:
    """The answers to all, of which so many are under way at a time."""
    free = asyncio.Semaphore(at_once)
    limits = httpx.Limits(max_connections=2 * at_once)

    async def one(client: httpx.AsyncClient, ask: Ask) -> tuple[int, str]:
        async with free:
            return await answered(client, ask)

    async with httpx.AsyncClient(base_url=address, timeout=PATIENCE, limits=limits) as client:
        return await asyncio.gather(*(one(client, ask) for ask in asks))


def on_a_border(lm: decodery.LanguageModel, ask: Ask, text: str) -> bool:
    """Whether a text leaves that of the request alone at a token that rounding decides.

    Passes of several rows round otherwise than those of one, on most paths. So where the number that is drawn lies on the
    border between two tokens, or two tokens score alike, either may come.
    """
    reply = lm.generate(ask.body["prompt"], **ask.told)
    spans = lm.score(reply.token_ids, ask.body["prompt"]).spans
    both = enumerate(zip(text, reply.text, strict=False))
    same = next((place for place, (ours, theirs) in both if ours != theirs), min(len(text), len(reply.text)))
    place = next((i for i, (_, end) in enumerate(spans) if end > same), len(spans) - 1)
    before, token = [*reply.prompt_token_ids, *reply.token_ids[:place]], reply.token_ids[place]

    def next_scores() -> Any:
        scores = yield Forward(lm.network.new_sequence(), before, logits=Rows.LAST)
        return scores.logits[0].double()

    scores = lm.run(next_scores())
    if not ask.body["temperature"]:
        first, second = scores.topk(2).values.tolist()
        return first - second < BORDER
    masses = (scores / ask.body["temperature"]).softmax(0).cumsum(0)
    number = Noise(ask.body["seed"]).uniform(len(before), Stage.TARGET)
    borders = (float(masses[token]), float(masses[token - 1]) if token else 0.0)
    return min(abs(number - border) for border in borders) < BORDER


def wrong(
    lm: decodery.LanguageModel,
    asks: Sequence[Ask],
    answers: Sequence[tuple[int, str]],
    borders: list[int] | None = None,
) -> list[str]:
    """What is not as it must be, a sentence each. borders: gets the numbers of requests that rounding decided."""
    found = []
    alone = cache(lambda prompt, told: lm.generate(prompt, **dict(told)).text)
    for ask, (status, text) in zip(asks, answers, strict=True):
        if status == GONE and ask.kind == "gone":
            continue
        if status != ask.status:
            found.append(
                f"request {ask.number} ({ask.kind}) was answered with {status} instead of {ask.status}: {text}"
            )
        elif status != 200 and text != "invalid_request_error":
            found.append(f"request {ask.number} was refused with {text}")
        elif status == 200 and text != alone(ask.body["prompt"], tuple(ask.told.items())):
            if borders is not None and on_a_border(lm, ask, text):
                borders.append(ask.number)
                continue
            found.append(f"request {ask.number} gives another text than alone: {ask.body}")
    return found


# A server in a process of its own


@contextmanager
def server(model: str, *options: str) -> Iterator[tuple[int, str]]:
    """Process id and address."""
    command = [
        sys.executable,
        "-c",
        "from decodery.cli.main import main; main()",
        "serve",
        "--model",
        model,
        "--port",
        "0",
    ]
    running = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)
    assert running.stderr is not None
    try:
        line = ""
        while " at http://" not in line:
            line = running.stderr.readline()
            if not line:
                raise SystemExit("the server has not started")
        # Its log must be read, or it waits for that.
        reading = subprocess.Popen(["cat"], stdin=running.stderr, stdout=subprocess.DEVNULL)
        yield running.pid, line.rpartition(" ")[2].strip()
        running.terminate()
        running.wait(60)
        reading.wait(60)
    finally:
        running.kill()


def held(pid: int) -> dict[str, int]:
    """What a process holds: resident kilobytes, threads, open files."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    files = len(os.listdir(f"/proc/{pid}/fd"))
    return {"rss_kb": int(lines["VmRSS"].split()[0]), "threads": int(lines["Threads"]), "files": files}


def wait_idle(address: str) -> None:
    """Until no request runs or waits."""
    end = time.monotonic() + PATIENCE
    while True:
        text = httpx.get(address + "/metrics").text
        states = [
            line
            for line in text.splitlines()
            if line.startswith(("vllm:num_requests_running", "vllm:num_requests_waiting"))
        ]
        if all(float(line.rpartition(" ")[2]) == 0 for line in states):
            time.sleep(0.5)  # connections close
            return
        if time.monotonic() > end:
            raise SystemExit("requests are left that nobody waits for")
        time.sleep(0.1)


async def idle_connections(address: str, count: int) -> Counter[str]:
    """Open connections that say nothing, until there are so many: how many stayed, were told 503, or were closed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count + 200:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count + 200, hard), hard))
    parts, found, open_ones = urlsplit(address), Counter[str](), []
    for _ in range(count):
        try:
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        except OSError as error:
            found[f"not connected: {error.strerror}"] += 1
            continue
        open_ones.append((reader, writer))
    for reader, writer in open_ones:
        try:
            async with asyncio.timeout(0.01 if found["stayed"] < 50 else 0.001):
                said = await reader.read(20)
            found["refused" if said.startswith(b"HTTP/1.1 503") else "closed"] += 1
        except TimeoutError:
            found["stayed"] += 1
        except ConnectionResetError:
            found["closed"] += 1
        writer.close()
    return found


FIGURES = (
    "requests",
    "gone",
    "malformed",
    "lost or wrong",
    "decided by rounding",
    "resident, MB",
    "threads",
    "open files",
)
"""What the table of a page says after each part of a run."""


def row(
    name: str, asks: Sequence[Ask], problems: Sequence[str], borders: Sequence[int], now: dict[str, int]
) -> list[Any]:
    """A row of that table."""
    kinds = Counter(ask.kind for ask in asks)
    values = (
        len(asks),
        kinds["gone"],
        kinds["bad"],
        len(problems),
        len(borders),
        now["rss_kb"] / 1024,
        now["threads"],
        now["files"],
    )
    return [name, *([value, None, None] for value in values)]


def write_results(lm: decodery.LanguageModel, rows: list[list[Any]], at_once: int, idle: Counter[str]) -> None:
    """Keep the table for docs/serving.md."""
    refused = f", of which {idle['refused']} were told 503 and {idle['stayed']} taken" if idle else ""
    about = (
        f"{at_once} at once; after each part nothing runs or waits. Silent connections: {sum(idle.values())}{refused}."
    )
    files = ["benchmarks/load.py", "src/decodery"]
    table = {
        "about": about,
        "items": sum(int(one[1][0]) for one in rows),
        "head": ["after", *FIGURES],
        "forms": [(".0f", "")] * len(FIGURES),
        "rows": rows,
        "claims": [],
        "made": {
            "command": f"python benchmarks/{' '.join([Path(sys.argv[0]).name, *sys.argv[1:]])}",
            **experiment_files.here(ROOT, files),
            "seeds": ["the number of each request"],
            "settings": {},
            "model": provenance(lm, whole=False),
            "modules": {},
        },
    }
    experiment_files.write(ROOT, "load", "A server under load", "this project", {"requests": table})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="stories-twin")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=64)
    parser.add_argument("--soak", type=float, default=0.0, metavar="MINUTES", help="go on in rounds for so long")
    parser.add_argument(
        "--idle", type=int, default=0, help="connections that say nothing, opened and closed in the end"
    )
    parser.add_argument("--results", action="store_true", help="keep the table for docs/serving.md")
    given = parser.parse_args()
    lm = decodery.load(given.model, threads=1)
    problems: list[str] = []
    rows: list[list[Any]] = []
    with server(given.model, "--max-concurrent", "24", "--max-queue", "1000", "--prefix-cache", "0") as (pid, address):

        def sent(name: str, asks: Sequence[Ask]) -> None:
            answers = asyncio.run(all_answered(address, asks, given.at_once))
            wait_idle(address)
            borders: list[int] = []
            found = wrong(lm, asks, answers, borders)
            rows.append(row(name, asks, found, borders, held(pid)))
            problems.extend(found)
            print(rows[-1], flush=True)

        sent("requests to warm up", mixed(60))
        began, first = time.monotonic(), 0
        while not first or time.monotonic() - began < 60 * given.soak:
            sent(f"round {first // given.requests + 1}", mixed(given.requests, first))
            first += given.requests
        idle: Counter[str] = Counter()
        if given.idle:
            idle = asyncio.run(idle_connections(address, given.idle))
            print(dict(idle), flush=True)
            sent("silent connections", mixed(20))
    for sentence in problems:
        print(sentence, file=sys.stderr)
    left = rows[-1][7][0] - rows[0][7][0]
    print(f"{len(problems)} problems; {left} more threads than in the beginning")
    if given.results:
        write_results(lm, rows if len(rows) < 8 else [*rows[:3], *rows[-3:]], given.at_once, idle)
    sys.exit(bool(problems) or left > 8)


if __name__ == "__main__":
    main()
