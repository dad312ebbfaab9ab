"""Signals under load, and a disk that is full: what is answered is right, what is not answered is known not to be."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from serving_models import PATIENCE, serving
from serving_process import process

import decodery
from decodery.serving import request_log

METHODS = ("autoregressive", "cascade", "token-recycling", "prompt-lookup")
COUNT = 12


def body(number: int, tokens: int = 40) -> dict[str, Any]:
    return {
        "prompt": "Once upon a time",
        "method": METHODS[number % len(METHODS)],
        "max_tokens": tokens + number,
        "temperature": (0.0, 0.8)[number % 2],
        "seed": number,
        "ignore_eos": True,
        "stream": number % 3 == 0,
    }


def alone(number: int) -> str:
    """The text that a request gives with nobody beside it."""
    told = {name: value for name, value in body(number).items() if name not in ("prompt", "stream")}
    text: str = model().generate("Once upon a time", **told).text
    return text


@cache
def model() -> decodery.LanguageModel:
    return decodery.load("stories-twin", threads=1)


async def under_load(address: str, when: float, strike: Any) -> list[tuple[str, str]]:
    """Requests at once, in whose midst something happens: of each "done", "refused" or "broken", and its text."""

    async def one(client: httpx.AsyncClient, number: int) -> tuple[str, str]:
        try:
            answer = await client.post(address + "/v1/completions", json=body(number))
        except httpx.TransportError:
            return "broken", ""
        if answer.status_code == 503:
            return "refused", ""
        assert answer.status_code == 200, answer.text
        if not body(number)["stream"]:
            return "done", answer.json()["choices"][0]["text"]
        frames = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
        assert frames[-1] == "[DONE]"  # a stream that ends is a whole one
        assert '"error"' not in answer.text
        parts = [httpx.Response(200, text=frame).json()["choices"] for frame in frames[:-1]]
        return "done", "".join(choice["text"] for choices in parts for choice in choices)

    async def later() -> None:
        await asyncio.sleep(when)
        await asyncio.to_thread(strike)

    async with httpx.AsyncClient(timeout=PATIENCE) as client:
        *answers, _ = await asyncio.gather(*(one(client, number) for number in range(COUNT)), later())
    return answers


def test_killed_and_started_again_and_told_to_end() -> None:
    """SIGKILL: what came is right, and what did not is an error of the connection. The same port serves again at once. SIGTERM:
    nobody gets half an answer; what runs or waits finishes, what comes later is refused, and the process ends with 0."""
    with process() as (running, address, _):
        port = urlsplit(address).port
        assert port is not None
        killed = asyncio.run(under_load(address, 0.4, running.kill))
        assert {how for how, _ in killed} <= {"done", "broken"}
        assert "broken" in {how for how, _ in killed}, "all was answered before the signal came"
    with process("--drain", "300", "--max-concurrent", "4", port=port) as (running, again, _):
        assert again == address
        drained = asyncio.run(under_load(again, 0.4, lambda: running.send_signal(signal.SIGTERM)))
        assert {how for how, _ in drained} <= {"done", "refused"}
        assert [how for how, _ in drained].count("done") >= 4
        assert running.wait(PATIENCE) == 0
    for answers in (killed, drained):
        for number, (how, text) in enumerate(answers):
            assert how != "done" or text == alone(number)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("as_json", [False, True])
def test_a_full_disk_for_the_log_costs_no_answer(as_json: bool, tmp_path: Path) -> None:
    """Lines are lost, requests are not; and when there is room again, lines come again."""
    saved = [(logging.getLogger(name), *_state(name)) for name in request_log.LOGGERS]
    try:
        full = open("/dev/full", "w")  # noqa: SIM115
        with serving() as server:
            request_log.set_up(as_json, full)
            ask = {"model": "toy", "prompt": "hello", "max_tokens": 4}
            answers = [httpx.post(server.address + "/v1/completions", json=ask, timeout=120) for _ in range(5)]
            assert [answer.status_code for answer in answers] == [200] * 5
            assert httpx.post(server.address + "/v1/completions", json={"prompt": 1}).status_code == 400
            with open(tmp_path / "log", "w") as log:
                request_log.set_up(as_json, log)
                httpx.post(server.address + "/v1/completions", json=ask, headers={"x-request-id": "seen"})
                deadline = time.monotonic() + PATIENCE
                while "seen" not in (tmp_path / "log").read_text():
                    assert time.monotonic() < deadline
            server.wait_idle()
            for name in request_log.LOGGERS:
                logging.getLogger(name).handlers = []
            with pytest.raises(OSError, match="No space"):
                full.close()
    finally:
        for logger, handlers, level, propagate in saved:
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)


def _state(name: str) -> tuple[list[logging.Handler], int, bool]:
    logger = logging.getLogger(name)
    return list(logger.handlers), logger.level, logger.propagate
