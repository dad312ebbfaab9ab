"""What a method's requests put out: sampled through the scheduler, or as an exact law."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Sequence as Listing

from decodery.engine.method import Method, admit
from decodery.engine.registry import method as as_method
from decodery.engine.request import Request
from decodery.engine.scheduler import Scheduler
from decodery.engine.settings import Settings
from decodery.language_model import LanguageModel
from decodery.models.forward import Forward, Scores
from decodery.models.scorer import Scorer
from decodery.sampling.noise import Chance
from decodery.testing.enumeration import enumerate_outcomes
from decodery.testing.scorers import Prefix

BATCH = 500
"""Requests packed together; more would only make the scheduler's lists longer."""


def new_request(
    lm: LanguageModel, method: str | Method, prompt: Sequence[int], settings: Settings, sample: int = 0
) -> tuple[Request, Method]:
    """A request that the method has admitted, for all `n` texts where it decides them together. Raises what `generate` raises
    before work starts."""
    chosen = as_method(method)
    before, template = lm.split_at_hole(prompt)
    request = Request(lm, before, settings, sample=sample, together=chosen.together)
    request.template = template
    admit(chosen, request)
    return request, chosen


def finished(request: Request, method: Method) -> Request:
    """The request, run to its end alone; raises what ended it, if something did."""
    scheduler = Scheduler()
    scheduler.submit(request, method)
    scheduler.run()
    if request.error is not None:
        raise request.error
    return request


def sampled_outputs(
    lm: LanguageModel,
    method: str | Method,
    prompt: Sequence[int],
    settings: Settings,
    samples: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> Counter[Prefix]:
    """Counts of the outputs of `samples` requests that differ in nothing but their noise, in packed batches. Where the samples
    of a seed depend on each other, each is the first of a seed of its own."""
    counts: Counter[Prefix] = Counter()
    settings = settings.with_seed()
    assert settings.seed is not None
    first, apart = settings.seed, settings.chance.spread
    for start in range(0, samples, BATCH):
        scheduler = Scheduler()
        requests = []
        for sample in range(start, min(start + BATCH, samples)):
            own = dataclasses.replace(settings, seed=first + sample) if apart else settings
            request, chosen = new_request(lm, method, prompt, own, 0 if apart else sample)
            scheduler.submit(request, chosen)
            requests.append(request)
        scheduler.run()
        for request in requests:
            if request.error is not None:
                raise request.error
            counts[tuple(request.new_tokens)] += 1
        if on_progress is not None:
            on_progress(start + len(requests), samples)
    return counts


def exact_outputs(
    lm: LanguageModel,
    method: str | Method,
    prompt: Sequence[int],
    settings: Settings,
    earlier: Sequence[Sequence[int]] = (),
    limit: int = 200_000,
) -> dict[Prefix, float]:
    """The exact law of a method's output: the whole engine, run once per way in which its random decisions can fall.

    earlier: prompts that were decoded greedily in the same session before, for methods that remember; each run starts
    from the same memory. Exact but for the float32 of the processed law. Raises RuntimeError beyond `limit` runs.
    """
    greedy = Settings(temperature=0.0, max_new_tokens=8, seed=0, session=settings.session)
    lm.forget()
    for before in earlier:
        finished(*new_request(lm, method, before, greedy))
    memory = dict(lm.memory)
    learned = {place: memory.pop(place) for place in list(memory) if place[0] is not None}  # type: ignore[index]

    def run(chance: Chance) -> Prefix:
        lm.memory = {**memory, **copy.deepcopy(learned)}
        request, chosen = new_request(lm, method, prompt, settings)
        request.noise = request.law.chance = chance
        return tuple(finished(request, chosen).new_tokens)

    try:
        return enumerate_outcomes(run, limit)
    finally:
        lm.forget()


@contextlib.contextmanager
def watched(network: Scorer, watch: Callable[[Forward], None]) -> Iterator[None]:
    """Tell `watch` about every forward of a network before it is answered, with the cache as the forward finds it."""
    original = network.run_pass

    def spied(forwards: Listing[Forward]) -> list[Scores]:
        for forward in forwards:
            watch(forward)
        return original(forwards)

    network.run_pass = spied  # type: ignore[method-assign]
    try:
        yield
    finally:
        del network.run_pass  # the class's own comes back
