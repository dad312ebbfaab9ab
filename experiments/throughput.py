"""Throughput: many requests at once, stalls while a long prompt is read, shared beginnings, and a small KV budget.

`batch`: so many requests at once, each with a prompt of its own. `stall`: requests run, and a long prompt comes: the longest
time
between two tokens of a running request, and the time to the first token of the one that came, with the prompt read in pieces
and
in one pass. `sharing`: several samples of one prompt, its beginning scored once or by each. `queue`: a batch under a KV budget
that holds a quarter of it. An item is a repeat; the ways take turns, and medians are told.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from decodery.engine.events import Event, Token
from decodery.engine.memory import KVBudget, Need
from decodery.engine.method import Method
from decodery.engine.registry import method as as_method
from decodery.engine.request import Request
from decodery.engine.scheduler import Scheduler
from decodery.engine.scheduling import Scheduling
from decodery.engine.settings import Settings as Decoding
from decodery.evaluation.experiment import Arm, Experiment, Figure, PublishedClaim, Study
from decodery.evaluation.questions import load_questions
from decodery.language_model import LanguageModel
from experiments.texts import loaded, prompt_of


@dataclass(frozen=True)
class Settings:
    model: str = "smollm2-135m"
    method: str = "cascade"
    fast: str = "auto"
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    tokens: int = 64
    chunk: int = 0
    running: int = 4
    long: int = 1024
    samples: int = 8
    repeats: int = 3
    seed: int = 0


class Watch:
    """A scheduler, and when each request of it got its tokens (seconds from the beginning)."""

    def __init__(self, lm: LanguageModel, method: Method, scheduling: Scheduling, budget: KVBudget | None = None):
        lm.memory.clear()
        self.lm, self.method = lm, method
        self.scheduler = Scheduler(budget, scheduling)
        self.requests: list[Request] = []
        self.times: dict[int, list[float]] = {}
        self.begun = time.perf_counter()

    def submit(self, prompt: Sequence[int], tokens: int, seed: int, sample: int = 0, temperature: float = 0.0) -> int:
        """Add a request; its number."""
        given = Decoding(max_new_tokens=tokens, ignore_eos=True, temperature=temperature, seed=seed)
        number = len(self.requests)
        self.times[number] = []
        self.requests.append(Request(self.lm, prompt, given, number, sample, self._listen))
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
        for request in self.requests:
            if request.error is not None:
                raise request.error
        return time.perf_counter() - self.begun

    def told(self, seconds: float) -> dict[str, float]:
        """Tokens, seconds, rows that were scored, and milliseconds to first tokens."""
        first = [1e3 * times[0] for times in self.times.values()]
        return {
            "tokens": float(sum(len(request.new_tokens) for request in self.requests)),
            "seconds": seconds,
            "rows": float(sum(entry.rows for request in self.requests for entry in request.statistics.models.values())),
            "first mean": sum(first) / len(first),
            "first last": max(first),
        }

    def longest_gap(self, numbers: Sequence[int], since: float = 0.0) -> float:
        """The longest milliseconds between two tokens of these requests, of gaps that end after `since`."""
        gaps = [
            later - earlier
            for number in numbers
            for earlier, later in zip(self.times[number], self.times[number][1:], strict=False)
            if later > since
        ]
        return 1e3 * max(gaps, default=0.0)


def prompts_of(lm: LanguageModel, count: int) -> list[list[int]]:
    """So many different prompts: decodery's own questions, cut by one token more where they come again."""
    questions = load_questions()
    prompts = []
    for place in range(count):
        again = place // len(questions)
        ids = prompt_of(lm, questions[place % len(questions)])
        prompts.append(ids[again:])
    return prompts


def long_prompt(lm: LanguageModel, tokens: int) -> list[int]:
    """A prompt of exactly so many tokens."""
    ids = lm.encode("\n\n".join(turn for question in load_questions() for turn in question.turns))
    return (ids * (tokens // len(ids) + 1))[:tokens]


RATE = Figure("tokens/s", "tokens", per="seconds", form=".0f")
FIRST = Figure("first token, mean, ms", "first mean", middle=True, form=".0f")
LAST = Figure("first token, last, ms", "first last", middle=True, form=".0f")
STALL = Figure("longest stall, ms", "stall", middle=True, form=".0f")


def _begun(settings: Settings) -> tuple[LanguageModel, Method, int | None, list[int]]:
    lm = loaded(settings.model, settings.fast)
    with lm.network.working():
        lm.cost(lm.network)  # measured before anything is timed
    return lm, as_method(settings.method), settings.chunk or None, list(range(settings.repeats))


def batch(settings: Settings) -> Study:
    lm, method, chunk, repeats = _begun(settings)

    def arm(size: int) -> Arm:
        prompts = prompts_of(lm, size)

        def measure(_: int) -> Mapping[str, float]:
            watch = Watch(lm, method, Scheduling(chunk=chunk, watched=False))
            for prompt in prompts:
                watch.submit(prompt, settings.tokens, settings.seed)
            told = watch.told(watch.run())
            return told | {"stall": watch.longest_gap(range(size))}

        return Arm(str(size), measure)

    one = str(settings.batches[0])
    gain = Figure(f"times that of {one}", "tokens", per="seconds", against=one, unit="x")
    about = f"{settings.method}, {settings.tokens} new tokens each, greedy."
    arms = [arm(size) for size in settings.batches]
    claims = (PublishedClaim("requests that share a pass have more throughput", "tokens/s", arms[-1].name, one),)
    return Study(about, repeats, arms, (RATE, gain, FIRST, LAST, STALL), claims, "requests", lm)


def stall(settings: Settings) -> Study:
    lm, method, chunk, repeats = _begun(settings)
    running, prompt = prompts_of(lm, settings.running), long_prompt(lm, settings.long)

    def arm(name: str, chunk: int | None) -> Arm:
        def measure(_: int) -> Mapping[str, float]:
            watch = Watch(lm, method, Scheduling(chunk=chunk))
            for one in running:
                watch.submit(one, settings.tokens, settings.seed)
            while any(len(watch.times[number]) < settings.tokens // 4 for number in range(len(running))):
                watch.step()
            since = time.perf_counter() - watch.begun
            late = watch.submit(prompt, 4, settings.seed)
            watch.run()
            first = 1e3 * (watch.times[late][0] - since)
            return {"stall": watch.longest_gap(range(len(running)), since), "first last": first}

        return Arm(name, measure)

    arms = [arm("in pieces", chunk), arm("whole", 0)]
    about = f"A prompt of {settings.long} tokens comes while {settings.running} requests run ({settings.method})."
    claims = (
        PublishedClaim("pieces keep running requests from waiting", STALL.name, "in pieces", "whole", above=False),
    )
    return Study(
        about,
        repeats,
        arms,
        (STALL, Figure("its first token, ms", "first last", middle=True, form=".0f")),
        claims,
        "read",
        lm,
    )


def sharing(settings: Settings) -> Study:
    lm, method, chunk, repeats = _begun(settings)
    prompt = long_prompt(lm, settings.long)

    def arm(name: str, share: bool) -> Arm:
        def measure(_: int) -> Mapping[str, float]:
            watch = Watch(lm, method, Scheduling(chunk=chunk, watched=False, share=share))
            for sample in range(settings.samples):
                watch.submit(prompt, settings.tokens, settings.seed, sample, temperature=1.0)
            return watch.told(watch.run())

        return Arm(name, measure)

    figures = (Figure("rows scored", "rows", form=".0f"), LAST, RATE)
    claims = (PublishedClaim("a beginning in common is scored once", "rows scored", "shared", "by each", above=False),)
    about = f"{settings.samples} samples of a prompt of {settings.long} tokens, temperature 1."
    return Study(about, repeats, [arm("by each", False), arm("shared", True)], figures, claims, "beginnings", lm)


def queue(settings: Settings) -> Study:
    lm, method, chunk, repeats = _begun(settings)
    prompts = prompts_of(lm, max(settings.batches))
    given = Decoding(max_new_tokens=settings.tokens, seed=settings.seed)
    needs = [Need.of(Request(lm, prompt, given), method).bytes for prompt in prompts]
    outputs: dict[str, list[list[int]]] = {}

    def run(name: str, total: int) -> dict[str, float]:
        budget = KVBudget(total)
        watch = Watch(lm, method, Scheduling(chunk=chunk, watched=False), budget)
        for prompt in prompts:
            watch.submit(prompt, settings.tokens, settings.seed)
        told = watch.told(watch.run())
        outputs[name] = [list(request.new_tokens) for request in watch.requests]
        return told | {
            "peak": budget.peak / 1e6,
            "waiting": float(budget.most_waiting),
            "queued": max(request.statistics.queued_seconds for request in watch.requests),
        }

    def arm(name: str, total: int) -> Arm:
        def measure(_: int) -> Mapping[str, float]:
            if "for all" not in outputs:
                run("for all", sum(needs))
            told = run(name, total)
            return told | {"identical": float(outputs[name] == outputs["for all"])}

        return Arm(name, measure)

    figures = (
        Figure("peak of keys and values, MB", "peak", form=".0f"),
        Figure("waited", "waiting", form=".0f"),
        Figure("longest wait, s", "queued", middle=True, form=".1f"),
        RATE,
        Figure("identical", "identical", form=".0%", share=True),
    )
    arms = [arm("for all", sum(needs)), arm("a quarter", max(max(needs), sum(needs) // 4))]
    claims = (PublishedClaim("a small budget changes no output", "identical", "a quarter", every=True),)
    return Study(
        f"{len(prompts)} requests of {settings.tokens} new tokens.", repeats, arms, figures, claims, "budget", lm
    )


STUDIES: dict[str, Callable[[Settings], Study]] = {"batch": batch, "stall": stall, "sharing": sharing, "queue": queue}
EXPERIMENT = Experiment(
    "throughput",
    "Many requests at once",
    "decodery's own scheduler",
    ("decodery.engine.scheduler", "decodery.engine.sharing", "decodery.engine.memory"),
    Settings(),
    STUDIES,
)
