"""Jobs that fail or are cancelled: alone, with their own error, and with the others' results as they should be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scripted_jobs import Scripted, new_job, run
from tiny_models import network_of, random_ids

from decodery.engine.events import Finished
from decodery.engine.job import Job
from decodery.engine.method import Decoding, Method
from decodery.engine.registry import method as as_method
from decodery.engine.scheduler import Scheduler
from decodery.models.forward import Forward
from decodery.testing import (
    LetterTokenizer,
    ScriptedScorer,
    SmallLanguageModel,
    scripted_language_model,
    story_scorer,
)

# Failures


class Trouble(Exception):
    pass


def raises_at_once(job: Job) -> Decoding:
    raise Trouble("at once")
    yield


def raises_when_called(job: Job) -> Decoding:
    raise Trouble("when called")


def raises_later(job: Job) -> Decoding:
    sequence = job.new_sequence()
    scores = yield Forward(sequence, job.prompt)
    job.commit([3], scores.logits[-1:])
    yield Forward(sequence, [3])
    raise Trouble("later")


def malformed(job: Job) -> Decoding:
    sequence = job.new_sequence()
    yield Forward(sequence, job.prompt)
    yield Forward(sequence, [job.host.network.vocabulary])


def one_of_two_malformed(job: Job) -> Decoding:
    yield (Forward(job.new_sequence(), [1]), Forward(job.new_sequence(), [2], [3, 4]))


def no_forward(job: Job) -> Decoding:
    yield None  # type: ignore[misc]


def dies_badly(job: Job) -> Decoding:
    sequence = job.new_sequence()
    try:
        yield Forward(sequence, job.prompt)
        yield Forward(sequence, [-1])
    finally:
        raise Trouble("in the last words")


@pytest.mark.parametrize(
    ("decode", "kind", "message"),
    [
        (raises_at_once, Trouble, "at once"),
        (raises_when_called, Trouble, "when called"),
        (raises_later, Trouble, "later"),
        (malformed, ValueError, "token ids"),
        (one_of_two_malformed, ValueError, "positions"),
        (no_forward, TypeError, ""),
        (dies_badly, Exception, ""),
    ],
)
def test_a_failing_job_fails_alone(decode: Any, kind: type[Exception], message: str) -> None:
    lm = scripted_language_model(story_scorer())
    before, after = new_job(lm, [1, 2], 0), new_job(lm, [4], 2, temperature=1.0, seed=1)
    bad = new_job(lm, [3], 1)
    run((before, "autoregressive"), (bad, Scripted(decode)), (after, "token-recycling"))
    assert isinstance(bad.error, kind)
    assert message in str(bad.error)
    assert bad.finish_reason == "error"
    assert len([e for e in bad.events if isinstance(e, Finished)]) == 1
    for job, method, prompt, settings in (
        (before, "autoregressive", [1, 2], {}),
        (after, "token-recycling", [4], {"temperature": 1.0, "seed": 1}),
    ):
        alone = new_job(lm, prompt, **settings)
        run((alone, method))
        assert job.error is None
        assert job.new_tokens == alone.new_tokens


def breaks_the_pass(job: Job) -> Decoding:
    """Well formed, but the network cannot score it: there is no such position."""
    sequence = job.new_sequence()
    yield Forward(sequence, job.prompt)
    yield Forward(sequence, [5], positions=[10**6])


def test_a_forward_that_breaks_the_pass_fails_alone() -> None:
    network = network_of("gpt2", "eager")
    lm = SmallLanguageModel(network, LetterTokenizer(network.vocabulary))

    def others() -> list[Job]:
        return [new_job(lm, random_ids(4 + i, i), i) for i in range(3)]

    alone = others()
    for job in alone:
        run((job, "autoregressive"))
    for place in range(4):
        jobs, bad = others(), new_job(lm, [1])
        pairs: list[tuple[Job, Method | str]] = [(job, "autoregressive") for job in jobs]
        pairs.insert(place, (bad, Scripted(breaks_the_pass)))
        run(*pairs)
        assert isinstance(bad.error, IndexError)
        for one, other in zip(jobs, alone, strict=True):
            assert one.error is None
            assert one.new_tokens == other.new_tokens
            # Scoring again after the broken pass is not counted twice.
            assert one.statistics.rows == other.statistics.rows


def test_a_tuple_of_which_one_breaks_fails_its_job_once() -> None:
    def script(prefix: tuple[int, ...]) -> torch.Tensor:
        if 9 in prefix:
            raise Trouble("token 9")
        return torch.arange(10.0)

    lm = scripted_language_model(ScriptedScorer(script, 10))

    def decode(job: Job) -> Decoding:
        yield (Forward(job.new_sequence(), [9]), Forward(job.new_sequence(), [1]), Forward(job.new_sequence(), [9]))

    bad, good = new_job(lm, [1]), new_job(lm, [2], max_new_tokens=1)
    run((bad, Scripted(decode)), (good, "autoregressive"))
    assert isinstance(bad.error, Trouble)
    assert len([e for e in bad.events if isinstance(e, Finished)]) == 1
    assert good.error is None
    assert good.new_tokens == [9]


# Cancelling


def test_a_cancelled_job_keeps_what_it_has_and_the_others_go_on() -> None:
    lm = scripted_language_model(story_scorer())
    closed = []

    def decode(job: Job) -> Decoding:
        try:
            yield from as_method("autoregressive").decode(job)
        finally:
            closed.append(job)

    jobs = [new_job(lm, [place + 1], place) for place in range(3)]
    scheduler = Scheduler()
    for job in jobs:
        scheduler.submit(job, Scripted(decode))
    for _ in range(4):
        scheduler.step()
    scheduler.cancel(jobs[1])
    assert scheduler.active == 2
    assert closed == [jobs[1]]
    assert jobs[1].finish_reason == "cancelled"
    assert len(jobs[1].new_tokens) == 4
    scheduler.cancel(jobs[1])  # again: nothing happens
    scheduler.run()
    alone = [new_job(lm, [place + 1], place) for place in range(3)]
    run(*[(job, "autoregressive") for job in alone])
    assert jobs[0].new_tokens == alone[0].new_tokens
    assert jobs[1].new_tokens == alone[1].new_tokens[:4]
    assert jobs[2].new_tokens == alone[2].new_tokens
    assert [job.finish_reason for job in jobs] == ["length", "cancelled", "length"]


@pytest.mark.parametrize("where", ["in a method", "in a pass"])
def test_an_interrupt_cancels_all(where: str) -> None:
    count = 0

    def script(prefix: tuple[int, ...]) -> torch.Tensor:
        nonlocal count
        count += 1
        if where == "in a pass" and count == 8:
            raise KeyboardInterrupt
        return torch.arange(10.0)

    lm = scripted_language_model(ScriptedScorer(script, 10))

    def interrupted(job: Job) -> Decoding:
        yield Forward(job.new_sequence(), [1])
        if where == "in a method":
            raise KeyboardInterrupt
        yield from as_method("autoregressive").decode(job)

    jobs = [new_job(lm, [place + 1], place) for place in range(3)]
    scheduler = Scheduler()
    for job in jobs:
        scheduler.submit(job, Scripted(interrupted) if job is jobs[1] else as_method("autoregressive"))
    with pytest.raises(KeyboardInterrupt):
        scheduler.run()
    assert scheduler.active == 0
    assert [job.finish_reason for job in jobs] == ["cancelled"] * 3
    assert all(job.error is None for job in jobs)
    assert all(isinstance(job.events[-1], Finished) for job in jobs)
