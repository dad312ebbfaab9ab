"""Servers for the tests: real HTTP on loopback, in a thread of their own, over tiny models."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import openai

from decodery.engine.scheduling import Limits
from decodery.language_model import LanguageModel
from decodery.serving.configuration import ServerConfiguration
from decodery.serving.server import DrainingServer, make_server
from decodery.serving.service import Service
from decodery.testing import toy_language_model

KEY = "test-key"
PATIENCE = 120.0
"""Seconds until a test gives up: machines that run tests may be busy with others."""
CLIENT: Any = {"max_retries": 0, "timeout": PATIENCE}


def toy(kv_budget: int | str | None = None) -> LanguageModel:
    """A fresh toy model, the same each time, whose texts never end by themselves."""
    lm = toy_language_model(4)
    lm.stop_ids = ()
    lm._limits = Limits(kv_budget)
    return lm


def load(name: str, **options: Any) -> LanguageModel:
    """As `decodery.load`; a name that begins with toy is a toy model."""
    if not name.startswith("toy"):
        import decodery

        return decodery.load(name, **options)
    return toy(options.get("kv_budget"))


class Running:
    """A server that runs, and clients of it."""

    def __init__(self, server: DrainingServer, thread: threading.Thread, key: str = KEY):
        self.server, self.thread, self._key = server, thread, key

    @property
    def address(self) -> str:
        return self.server.address

    @property
    def service(self) -> Service:
        return self.server._service

    def lm(self, name: str = "toy") -> LanguageModel:
        """The model inside, as the server has it."""
        return self.service.models.loaded[name].lm

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key=self._key, **{**CLIENT, **options})

    def async_client(self, **options: Any) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.address}/v1", api_key=self._key, **{**CLIENT, **options})

    def cancelled(self) -> float:
        """How many texts of the toy model have been cancelled."""
        labels = {"model_name": "toy", "method": "cascade", "finished_reason": "cancelled"}
        return self.service.metrics.registry.get_sample_value("vllm:request_success_total", labels) or 0.0

    def wait_idle(self, seconds: float = PATIENCE) -> None:
        """Until no request is left and all memory is back."""
        wait_for(lambda: not self.service.active, seconds)
        for model in self.service.models.loaded.values():
            wait_for(lambda model=model: not model.engine.scheduler.active and not model.users, seconds)
            wait_for(lambda model=model: model.gate.running == model.gate.waiting == 0, seconds)
            kept = model.engine.scheduler.prefixes.size
            wait_for(lambda model=model, kept=kept: model.lm.budget.held == kept, seconds)


def wait_for(true: Any, seconds: float = PATIENCE) -> None:
    """Until something is so; AssertionError where it does not come."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


@contextlib.contextmanager
def serving(load: Any = load, key: str = KEY, **configuration: Any) -> Iterator[Running]:
    """A server with these options, until the end of the block; no thread of it is left then."""
    options = {"models": ("toy",), "port": 0, "prefix_cache": "0", **configuration}
    before = set(threading.enumerate())
    ready = threading.Event()
    server = make_server(ServerConfiguration.of(options), lambda address: ready.set(), load)
    thread = threading.Thread(target=server.run, name="server of a test", daemon=True)
    thread.start()
    wait_for(lambda: ready.is_set() or not thread.is_alive())
    if server.failed is not None:
        raise server.failed
    try:
        yield Running(server, thread, key)
    finally:
        assert server._loop is not None
        if thread.is_alive():
            server._loop.call_soon_threadsafe(server.stop)
        thread.join(PATIENCE)
        assert not thread.is_alive()
        left = [one for one in set(threading.enumerate()) - before if "engine" in one.name]
        assert not left
