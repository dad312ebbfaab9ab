"""The models that a server has: loaded on first use, unloaded where others need their memory."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import time
from collections.abc import Callable
from typing import Any

from decodery.engine.memory import parse_size, size_text
from decodery.errors import DecoderyError, MethodUnavailable, NotEnoughMemory
from decodery.fill_in import PREFIX_FIRST
from decodery.language_model import LanguageModel
from decodery.models import catalogue, pages
from decodery.serving.admission import Gate
from decodery.serving.asked import AskedText
from decodery.serving.configuration import ServerConfiguration
from decodery.serving.engine_thread import EngineThread
from decodery.serving.failures import Failure, bad_field

log = logging.getLogger("decodery.serving")

Load = Callable[..., LanguageModel]
"""As `decodery.load`."""
KV_SHARE = 4
"""The KV budget of a model is the memory of all models divided by this, where it is not said."""
WARM_UP = 4
"""Tokens that a model decodes before it is served: by then it knows what its passes cost."""


class NotLent(MethodUnavailable):
    """A method or target asks for a model that this server does not lend. model: its name."""

    def __init__(self, message: str, model: str):
        super().__init__(message)
        self.model = model


class ServedModel:
    """A model that is loaded, with its engine and its gate. name: what clients call it."""

    def __init__(self, name: str, lm: LanguageModel, configuration: ServerConfiguration):
        self.name, self.lm = name, lm
        prefix_cache = configuration.prefix_cache if configuration.prefix_cache != "0" else 0
        self.engine = EngineThread(lm, prefix_cache, configuration.max_sessions)
        self.gate = Gate(configuration.max_concurrent, configuration.max_queue)
        self.loaded_at = int(time.time())
        self.users = 0
        self.leaving = False
        self._reading = asyncio.Lock()
        self._unused = asyncio.Event()
        self._unused.set()

    @property
    def bytes(self) -> int:
        """Of weights, and of keys and values at most."""
        every = [self.lm, *self.lm.companions.values()]
        weights = sum(one.network.parameters * one.network.dtype.itemsize for one in every)
        return weights + (self.lm.budget.total or 0)

    def hold(self) -> None:
        """A request uses it; until it is released, it stays."""
        self.users += 1
        self._unused.clear()

    def release(self) -> None:
        """A request uses it no longer."""
        self.users -= 1
        if not self.users:
            self._unused.set()

    def discard(self) -> None:
        """It is unloaded: let its memory go, whoever still holds this object."""
        del self.lm, self.engine

    async def tokens(self, prompt: Any, asked: AskedText | None = None) -> list[int]:
        """Token ids of a prompt, of a request or by itself, on a worker thread, one prompt at a time. Raises BadPrompt, and
        Failure where a model that cannot fill in is given a suffix."""
        async with self._reading:
            if asked is None:
                return await asyncio.to_thread(self.lm.tokenize, prompt)
            if asked.tools is not None:
                return await asyncio.to_thread(asked.tools.prompt, self.lm, prompt, asked.method)
            if asked.suffix:
                try:
                    return await asyncio.to_thread(self.lm.fill_prompt, prompt, asked.suffix, PREFIX_FIRST)
                except MethodUnavailable as error:
                    raise bad_field("suffix", str(error)) from None
            return await asyncio.to_thread(self.lm.tokenize, prompt, None, asked.method)

    async def unused(self) -> None:
        """Wait until no request uses it."""
        await self._unused.wait()


class ServedModels:
    """All models by the names that clients use. Everything happens on one event loop, but for loading and unloading."""

    def __init__(self, configuration: ServerConfiguration, load: Load | None = None):
        """load: in place of `decodery.load`."""
        self.configuration = configuration
        self.names = configuration.names
        self.loaded: dict[str, ServedModel] = {}
        """The least recently used first."""
        self._load = load
        self._memory = None if configuration.memory is None else parse_size("memory", configuration.memory)
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._tickets: dict[str, list[asyncio.Future[ServedModel]]] = {}
        self._one_at_a_time = asyncio.Lock()
        self._sizes: dict[str, int] = {}

    @property
    def first(self) -> str:
        """What a request means that names no model, and what is loaded at the start."""
        return next(iter(self.names))

    async def use(self, name: str | None) -> ServedModel:
        """The model of this name, held until it is released; loaded where it is not yet. Raises Failure."""
        name = self.first if name is None else name
        if name not in self.names:
            known = ", ".join(self.names)
            raise Failure(
                404, f"there is no model {name[:100]!r} here; there are: {known}.", "model", "model_not_found"
            )
        model = self.loaded.get(name)
        if model is not None and not model.leaving:
            model.hold()
            self.loaded[name] = self.loaded.pop(name)
            return model
        ticket: asyncio.Future[ServedModel] = asyncio.get_running_loop().create_future()
        self._tickets.setdefault(name, []).append(ticket)
        self._begin_loading(name)
        try:
            return await ticket
        except asyncio.CancelledError:
            if ticket.done() and not ticket.cancelled() and ticket.exception() is None:
                ticket.result().release()  # it was handed out and is not wanted any more
            raise
        except Failure:
            raise
        except NotEnoughMemory as error:
            raise Failure(503, str(error), "model", "model_not_loaded") from error
        except Exception as error:
            said = f"the model {name!r} cannot be loaded; the server's log says why."
            raise Failure(503, said, "model", "model_not_loaded") from error

    async def start(self, name: str) -> None:
        """Load a model that nobody asks for yet. Raises what loading raises, after it was logged."""
        await self._begin_loading(name)

    async def close(self) -> None:
        """End all engines."""
        for task in list(self._loading.values()):
            task.cancel()
        for model in list(self.loaded.values()):
            await asyncio.to_thread(model.engine.stop)
        self.loaded.clear()

    def _begin_loading(self, name: str) -> asyncio.Task[None]:
        """All who want a model wait for the same task, which goes on where one of them goes away."""
        task = self._loading.get(name)
        if task is None or task.done():
            task = self._loading[name] = asyncio.create_task(self._start(name), name=f"loading {name}")
            task.add_done_callback(lambda task: task.cancelled() or task.exception())  # who waits has it by a ticket
        return task

    async def _start(self, name: str) -> None:
        try:
            async with self._one_at_a_time:
                self._hand_out(await self._load_alone(name))
        except BaseException as error:
            told = error if isinstance(error, Exception) else Failure(503, "the server is shutting down.")
            for ticket in self._tickets.pop(name, ()):
                if not ticket.done():
                    ticket.set_exception(told)
            raise

    def _hand_out(self, model: ServedModel) -> None:
        """Give a fresh model to all who wait for it, before anything else can take its memory again."""
        self.loaded[model.name] = model
        for ticket in self._tickets.pop(model.name, ()):
            if not ticket.done():
                model.hold()
                ticket.set_result(model)

    async def _load_alone(self, name: str) -> ServedModel:
        began = time.perf_counter()
        log.info("loading %s", name)
        try:
            if self._memory is not None:
                expected = self._sizes.get(name)
                if expected is None:
                    expected = await asyncio.to_thread(self._expected, self.names[name])
                await self._make_room(expected)
            lm = await asyncio.to_thread(self._loaded, self.names[name])
        except Exception as error:
            known = isinstance(error, DecoderyError)
            log.error("%s cannot be loaded: %s", name, error, exc_info=None if known else error)
            raise
        model = ServedModel(name, lm, self.configuration)
        self._sizes[name] = model.bytes
        if self._memory is not None:
            await self._make_room(model.bytes)
            if model.bytes > self._memory:
                await asyncio.to_thread(model.engine.stop)
                said = (
                    f"{name} takes {size_text(model.bytes)}, and the memory of all models is {size_text(self._memory)}."
                )
                log.error("%s", said)
                raise NotEnoughMemory(said)
        log.info("loaded %s (%s) in %.1f s", name, lm.network.path, time.perf_counter() - began)
        return model

    async def _make_room(self, size: int) -> None:
        """Unload the least recently used models until so many bytes are free, or none is left. Who asks for one of them
        meanwhile waits, so that busy models give way too."""
        assert self._memory is not None
        victims, taken = [], sum(model.bytes for model in self.loaded.values())
        for model in list(self.loaded.values()):
            if taken + size <= self._memory:
                break
            model.leaving = True
            victims.append(model)
            taken -= model.bytes
        for model in victims:
            await model.unused()
            await self._unload(model)

    async def _unload(self, model: ServedModel) -> None:
        del self.loaded[model.name]
        await asyncio.to_thread(model.engine.stop)
        log.info("unloaded %s", model.name)
        model.discard()
        await asyncio.to_thread(gc.collect)
        await asyncio.to_thread(pages.give_back)

    # On a worker thread

    def _expected(self, source: str) -> int:
        if self._load is not None:
            return 0  # nobody knows before
        from decodery.loading import expected_bytes

        return expected_bytes(source, dtype=self.configuration.dtype, device=self.configuration.device)

    def _loaded(self, source: str) -> LanguageModel:
        from decodery.loading import load

        told = self.configuration
        given = self._load or load
        budget = told.kv_budget or (None if self._memory is None else self._memory // KV_SHARE)
        lm = given(
            source,
            dtype=told.dtype,
            device=told.device,
            threads=told.threads,
            fast=told.fast,
            kv_budget=budget,
            prefill_chunk=told.prefill_chunk,
        )
        lm.load_companion = functools.partial(self._companion, given)
        for name in told.companions:
            lm.companion(name)
        lm.generate([0], max_new_tokens=WARM_UP, session="warm-up")
        lm.forget("warm-up")
        return lm

    def _companion(self, given: Load, name: str, **options: Any) -> LanguageModel:
        """A model beside a served one: those that the server was told of, and those that come with the package. Whoever asks
        over the network must not make it load others, nor learn which files there are."""
        if name not in self.configuration.companions and name not in catalogue.shipped():
            lent = ", ".join(self.configuration.companions) or "none"
            raise NotLent(f"this server lends methods and targets no model {name!r}; it lends: {lent}.", name)
        return given(name, **options)
