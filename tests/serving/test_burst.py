"""A hundred requests of all kinds at once: none is lost, none is wrong, and everything comes back. benchmarks/load.py sends a
thousand of them to a process of its own."""

from __future__ import annotations

import asyncio
import threading

import pytest
from serving_models import Running, serving, toy

from benchmarks.load import GONE, all_answered, mixed, on_a_border, wrong


def tasks(server: Running) -> int:
    """Tasks of the server's event loop."""

    async def count() -> int:
        return len(asyncio.all_tasks())

    loop = server.server._loop
    assert loop is not None
    return asyncio.run_coroutine_threadsafe(count(), loop).result(60)


def test_a_mixed_burst() -> None:
    asks = mixed(100)
    before = threading.active_count()
    with serving(max_concurrent=24, max_queue=100, kv_budget="2MB") as server:
        threads, waiting = threading.active_count(), tasks(server)
        answers = asyncio.run(all_answered(server.address, asks, 64))
        server.wait_idle()
        budget = server.lm().budget
        assert budget.held == 0
        assert budget.total is not None
        assert 0 < budget.peak <= budget.total
        assert threading.active_count() <= threads + 8  # the event loop's own workers, which it keeps
        assert tasks(server) <= waiting
        assert server.service.active == 0
        text = server.service.metrics.text().decode()
        assert 'vllm:num_requests_running{model_name="toy"} 0.0' in text
    assert threading.active_count() <= before
    assert wrong(toy(), asks, answers, borders := []) == []
    assert len(borders) <= 1
    assert sum(status == GONE for status, _ in answers) >= 5
    assert {ask.kind for ask in asks} == {"whole", "stream", "slow", "gone", "bad"}


@pytest.mark.parametrize("fault", ["lost", "wrong", "accepted"])
def test_what_is_wrong_is_found(fault: str) -> None:
    """The judge of the burst itself: one answer in its place is told of."""
    asks = [ask for ask in mixed(40) if ask.kind in ("whole", "bad")][:12]
    lm = toy()
    answers = [
        (ask.status, lm.generate(ask.body["prompt"], **ask.told).text if ask.status == 200 else "invalid_request_error")
        for ask in asks
    ]
    assert wrong(lm, asks, answers) == []
    kind, answer = {
        "lost": ("whole", (503, "server_error")),
        "wrong": ("whole", (200, "?")),
        "accepted": ("bad", (200, "a")),
    }[fault]
    place = next(place for place, ask in enumerate(asks) if ask.kind == kind)
    answers[place] = answer
    [sentence] = wrong(lm, asks, answers)
    assert f"request {asks[place].number}" in sentence


def test_what_rounding_decides_is_told_from_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = toy()
    sampled = next(ask for ask in mixed(40) if ask.kind == "whole" and ask.body["temperature"])
    greedy = next(ask for ask in mixed(40) if ask.kind == "whole" and not ask.body["temperature"])
    for ask in (sampled, greedy):
        text = lm.generate(ask.body["prompt"], **ask.told).text
        other = text[:2] + ("a" if text[2] != "a" else "b") + text[3:]
        assert not on_a_border(lm, ask, other)
        monkeypatch.setattr("benchmarks.load.BORDER", 1e3)  # then everything is one
        assert on_a_border(lm, ask, other)
        assert wrong(lm, [ask], [(200, other)], borders := []) == []
        assert borders == [ask.number]
        monkeypatch.undo()
