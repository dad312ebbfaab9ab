"""A hundred requests of all kinds at once: none is lost, none is wrong, and everything comes back."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import dataclass
from typing import Any

import httpx
from serving_models import Running, serving, toy

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
    ({"temperature": -1}, 400), ({"nonsense": True}, 400), ({"method": "no-such-method"}, 400), ({"model": "toys"}, 404),
    ({"max_tokens": 100_000}, 400), ({"stop_token_ids": [999]}, 400), (b"{", 400),
)  # fmt: skip


@dataclass(frozen=True)
class Ask:
    """One request of the burst. kind: whole, stream, slow, gone or bad."""

    number: int
    kind: str
    body: Any
    status: int = 200


def burst() -> list[Ask]:
    asks = []
    for number in range(100):
        kind = ("whole", "stream", "whole", "slow", "stream", "gone", "whole", "bad", "stream", "whole")[number % 10]
        if kind == "bad":
            more, status = BAD[number // 10 % len(BAD)]
            asks.append(Ask(number, kind, more if isinstance(more, bytes) else {"prompt": "hello", **more}, status))
            continue
        body = {
            "prompt": PROMPTS[number % len(PROMPTS)],
            "method": METHODS[number % len(METHODS)],
            "max_tokens": 2000 if kind == "gone" else 3 + number % 23,
            "temperature": (0.0, 0.7, 1.0)[number % 3],
            "seed": number,
            "stream": kind in ("stream", "slow") or (kind == "gone" and number % 20 == 5),
        }
        asks.append(Ask(number, kind, body))
    return asks


async def answered(client: httpx.AsyncClient, ask: Ask) -> tuple[int, str]:
    """The status and the text of an answer, read as the kind says."""
    data = ask.body if isinstance(ask.body, bytes) else json.dumps(ask.body).encode()
    sent = {"content": data, "headers": {"Content-Type": "application/json"}}
    if ask.kind == "gone":
        try:
            async with asyncio.timeout(0.3 + 0.01 * (ask.number % 10)):
                await client.post("/v1/completions", **sent)
        except TimeoutError:
            return 499, ""
        raise AssertionError("2000 tokens came sooner than expected")
    if ask.kind in ("stream", "slow"):
        text = ""
        async with client.stream("POST", "/v1/completions", **sent) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    text += "".join(choice["text"] for choice in json.loads(line[6:])["choices"])
                if ask.kind == "slow":
                    await asyncio.sleep(0.05)
            return answer.status_code, text
    answer = await client.post("/v1/completions", **sent)
    told = answer.json()
    return answer.status_code, told["choices"][0]["text"] if "choices" in told else told["error"]["type"]


def test_a_mixed_burst() -> None:
    asks = burst()
    before = threading.active_count()
    with serving(max_concurrent=24, max_queue=100, kv_budget="2MB") as server:
        threads = threading.active_count()
        answers = asyncio.run(_all_of_them(server, asks))
        server.wait_idle()
        budget = server.lm().budget
        assert budget.held == 0
        assert budget.total is not None
        assert 0 < budget.peak <= budget.total
        assert threading.active_count() <= threads + 8  # the event loop's own workers, which it keeps
        text = server.service.metrics.text().decode()
        assert 'vllm:num_requests_running{model_name="toy"} 0.0' in text
    assert threading.active_count() <= before
    lm = toy()
    for ask, (status, text) in zip(asks, answers, strict=True):
        if ask.kind == "gone":
            continue
        assert status == ask.status, (ask, text)
        if ask.kind == "bad":
            assert text == "invalid_request_error"
            continue
        told = {name: ask.body[name] for name in ("method", "max_tokens", "temperature", "seed")}
        assert text == lm.generate(ask.body["prompt"], **told).text, ask


async def _all_of_them(server: Running, asks: list[Ask]) -> list[tuple[int, str]]:
    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(base_url=server.address, timeout=120, limits=limits) as client:
        return await asyncio.gather(*(answered(client, ask) for ask in asks))
