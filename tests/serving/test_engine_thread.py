"""The engine's thread: texts that are decided together, work between requests, and its end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from beam_search import BeamSearch
from serving_models import Running, serving, toy, wait_for

from decodery.engine import registry
from decodery.engine.events import Drafted, Finished, Token
from decodery.serving.engine_thread import EngineThread, Job

BODY = {"prompt": "hello", "max_tokens": 6, "temperature": 1}


@pytest.fixture
def beams() -> Iterator[Running]:
    registry.register(BeamSearch)
    try:
        with serving() as running:
            yield running
            running.wait_idle()
    finally:
        del registry._classes["example-beams"]


def test_texts_that_are_decided_together(beams: Running) -> None:
    expected = toy().generate("hello", BeamSearch(), n=3, max_new_tokens=6, temperature=1.0)
    body = {**BODY, "n": 3, "method": "example-beams"}
    answer = httpx.post(beams.address + "/v1/completions", json=body).json()
    assert [choice["text"] for choice in answer["choices"]] == [reply.text for reply in expected]
    assert answer["decodery"]["weight"] == pytest.approx([reply.weight for reply in expected])
    assert answer["decodery"]["score"] == pytest.approx([reply.score for reply in expected])
    assert answer["decodery"]["metrics"]["num_forward"] == expected[0].stats.forwards
    assert answer["usage"]["completion_tokens"] == 18
    texts = {0: "", 1: "", 2: ""}
    weights = {}
    for chunk in beams.client().completions.create(
        model="toy", prompt="hello", max_tokens=6, temperature=1, n=3, stream=True,
        extra_body={"method": "example-beams"},
    ):  # fmt: skip
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            if choice.finish_reason:
                weights[choice.index] = chunk.decodery["weight"]  # type: ignore[attr-defined]
    assert list(texts.values()) == [reply.text for reply in expected]
    assert [weights[i] for i in range(3)] == pytest.approx([reply.weight for reply in expected])


def test_what_methods_do_between_requests_is_done_while_none_is_there() -> None:
    done: list[str] = []

    def work() -> Iterator[None]:
        for _ in range(3):
            done.append(threading.current_thread().name)
            yield

    with serving() as server:
        lm = server.lm()
        lm.background.add("work", work())
        httpx.post(server.address + "/v1/completions", json={**BODY, "max_tokens": 1})
        wait_for(lambda: len(done) == 3 and not len(lm.background))
        assert set(done) == {"decodery engine of toy-4"}


def run(scenario: Any) -> Any:
    async def limited() -> Any:
        async with asyncio.timeout(120):
            return await scenario()

    return asyncio.run(limited())


def test_what_is_wrong_is_raised_where_it_is_asked_and_nothing_begins() -> None:
    async def scenario() -> None:
        lm = toy()
        engine = EngineThread(lm)
        with pytest.raises(ValueError, match="not this"):
            await engine.submit(_raising, "default")
        assert engine.scheduler.active == 0
        await asyncio.to_thread(engine.stop)

    run(scenario)


def _raising(listener: Any) -> Any:
    raise ValueError("not this")


def test_events_come_once_and_in_order_to_a_reader_of_any_speed() -> None:
    async def scenario() -> None:
        lm = toy()
        engine = EngineThread(lm)
        expected = lm.generate("hello", max_new_tokens=60, seed=1, temperature=1.0).token_ids
        job = await submitted(engine, 60)
        found: list[int] = []
        async for bundle in job.events():
            found += [heard.event.token_id for heard in bundle if hasattr(heard.event, "token_id")]
            if len(found) < 10:
                await asyncio.sleep(0.05)
        assert found == expected
        assert sum(count for _, count in job.bursts[0]) == 60
        await asyncio.to_thread(engine.stop)

    run(scenario)


@pytest.mark.parametrize("whole", [False, True])
def test_drafts_are_handed_over_where_the_whole_is_wanted(whole: bool) -> None:
    async def scenario() -> None:
        engine = EngineThread(toy())
        job = await submitted(engine, 30, "token-recycling", whole)
        kinds = {type(heard.event) async for bundle in job.events() for heard in bundle}
        assert kinds == ({Drafted, Token, Finished} if whole else {Token, Finished})
        await asyncio.to_thread(engine.stop)

    run(scenario)


def submitted(engine: EngineThread, tokens: int, method: str | None = None, whole: bool = False) -> Any:
    def prepare(listener: Any) -> Any:
        return engine.lm.prepare("hello", method, listener, max_new_tokens=tokens, seed=1, temperature=1.0)

    return engine.submit(prepare, "default", whole)


def test_who_does_not_wait_for_the_beginning_is_cancelled_all_the_same() -> None:
    async def scenario() -> None:
        lm = toy()
        engine = EngineThread(lm)
        task = asyncio.create_task(submitted(engine, 4000))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        while engine.scheduler.active or lm.budget.held:
            await asyncio.sleep(0.005)
        await asyncio.to_thread(engine.stop)

    run(scenario)


def test_the_end_of_an_engine_ends_what_runs() -> None:
    async def scenario() -> str | None:
        lm = toy()
        engine = EngineThread(lm)
        job: Job = await submitted(engine, 4000)
        await asyncio.to_thread(engine.stop)
        await job.over.wait()
        assert lm.budget.held == 0
        assert job.prepared is not None
        return job.prepared.replies()[0].finish_reason

    assert run(scenario) == "cancelled"


def test_what_is_cancelled_ends_within_a_pass() -> None:
    async def scenario() -> None:
        lm = toy()
        engine = EngineThread(lm)
        job: Job = await submitted(engine, 4000)
        while engine.passes < 5:
            await asyncio.sleep(0.001)
        before = engine.passes
        job.cancel()
        await job.over.wait()
        assert engine.passes <= before + 2  # the one that runs, and one that may have begun since they were counted
        assert lm.budget.held == 0
        await asyncio.to_thread(engine.stop)

    run(scenario)
