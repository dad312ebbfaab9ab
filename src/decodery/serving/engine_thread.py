"""One thread for each model, which owns its scheduler; all else of the server lives on the event loop.

Requests go in as calls, events come out in bundles: one wake-up of the event loop for each pass, whatever the number of
requests. What is read slowly stays in its own job's list and holds up nobody.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from decodery.engine.events import Finished, Token

if TYPE_CHECKING:
    from decodery.engine.events import Event
    from decodery.engine.scheduler import Scheduler
    from decodery.language_model import LanguageModel
    from decodery.replies import Prepared

log = logging.getLogger("decodery.serving")


IDLE_SECONDS = 0.02
"""How long background work runs at a time while no request is there."""
MEMORIES_PER_SESSION = 16
"""What methods remember of one session at most, on average: each may remember something for each of its parameters."""


@dataclass(frozen=True, slots=True)
class Heard:
    """An event of a job, and when it came. seconds: since the job was submitted. passes: of the engine, since then."""

    event: Event
    seconds: float
    passes: int


class Job:
    """What one HTTP request decodes. Its methods are called on the event loop; the engine's thread fills it."""

    def __init__(self, engine: EngineThread, session: str, whole: bool):
        self._engine, self._loop = engine, asyncio.get_running_loop()
        self.session, self._whole = session, whole
        self.prepared: Prepared | None = None
        """The requests, from `submit` on."""
        self.error: Exception | None = None
        """What ended all of it, where it was the engine's own fault."""
        self.began = time.perf_counter()
        self.over = asyncio.Event()
        self.bursts: dict[int, list[tuple[float, int]]] = {}
        """Text -> when tokens came, and how many in that pass."""
        self._first_pass = engine.passes
        self._fresh: list[Heard] = []
        self._heard: deque[Heard] = deque()
        self._news = asyncio.Event()
        self._ended: list[Callable[[], None]] = []
        self._pass = -1

    def cancel(self) -> None:
        """Nobody wants it any more: it ends before the next pass. Harmless where it is over."""
        if not self.over.is_set():
            self._engine.call(lambda: self._engine.end(self))

    def when_over(self, call: Callable[[], None]) -> None:
        """Call something on the event loop when it is over, read or not."""
        if self.over.is_set():
            call()
        else:
            self._ended.append(call)

    async def events(self) -> AsyncIterator[list[Heard]]:
        """Its tokens and ends of texts, and all other events where the whole is wanted; as many at a time as there are, until
        it is over."""
        while True:
            await self._news.wait()
            self._news.clear()
            done = self.over.is_set()
            if self._heard:
                bundle = list(self._heard)
                self._heard.clear()
                yield bundle
            if done:
                return

    # On the engine's thread

    def listen(self, event: Event) -> None:
        """Take an event in."""
        now = time.perf_counter()
        if isinstance(event, Token):
            times = self.bursts.setdefault(event.request, [])
            if times and self._pass == self._engine.passes:
                times[-1] = (times[-1][0], times[-1][1] + 1)
            else:
                times.append((now, 1))
            self._pass = self._engine.passes
        if self._whole or isinstance(event, Token | Finished):
            self._fresh.append(Heard(event, now - self.began, self._engine.passes - self._first_pass))

    def hand_over(self, ended: bool) -> None:
        """Tell the event loop what has come since the last time."""
        fresh, self._fresh = self._fresh, []
        if fresh or ended:
            try:
                self._loop.call_soon_threadsafe(self._take, fresh, ended)
            except RuntimeError:  # the loop is closed, so nobody waits
                log.debug("a job has outlived its event loop")

    def _take(self, fresh: list[Heard], ended: bool) -> None:
        self._heard.extend(fresh)
        self._news.set()
        if ended and not self.over.is_set():
            self.over.set()
            for call in self._ended:
                call()


class EngineThread:
    """Drives the scheduler of one model on a thread of its own.

    prefix_cache: see `LanguageModel.scheduler`. max_sessions: so many sessions' memories are kept; of the others the least
    recently used is forgotten first.
    """

    def __init__(self, lm: LanguageModel, prefix_cache: int | str = 0, max_sessions: int = 64):
        self.lm = lm
        self._prefix_cache, self._max_sessions = prefix_cache, max_sessions
        self._sessions: OrderedDict[str, None] = OrderedDict()
        self._jobs: list[Job] = []
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self.passes = 0
        """How many rounds it has made."""
        self.scheduler: Scheduler = lm.scheduler(prefix_cache)
        self._thread = threading.Thread(target=self._run, name=f"decodery engine of {lm.name}", daemon=True)
        self._thread.start()

    async def submit(
        self, prepare: Callable[[Callable[[Event], None]], Prepared], session: str, whole: bool = False
    ) -> Job:
        """Check and begin a job. prepare: called on the engine's thread with the listener of events; what it raises is raised
        here, and then nothing has begun. whole: hand over all events, not only
        tokens and ends. Where the caller goes away meanwhile, so does the job."""
        job = Job(self, session, whole)
        loop = asyncio.get_running_loop()
        begun: asyncio.Future[None] = loop.create_future()

        def begin() -> None:
            try:
                job.prepared = prepare(job.listen)
                self._note(session)
                self._jobs.append(job)
                job.prepared.submit(self.scheduler)
            except Exception as error:
                if job in self._jobs:
                    self.end(job)
                loop.call_soon_threadsafe(_settle, begun, error)
            else:
                loop.call_soon_threadsafe(_settle, begun, None)

        self.call(begin)
        try:
            await begun
        except asyncio.CancelledError:
            self.call(lambda: self.end(job))
            raise
        return job

    def call(self, what: Callable[[], None]) -> None:
        """Have something done on the engine's thread, before its next pass."""
        with self._wake:
            self._inbox.append(what)
            self._wake.notify()

    def end_all(self) -> None:
        """End all jobs before the next pass."""
        self.call(self._end_all)

    def stop(self) -> None:
        """End all jobs and the thread. Returns when it is over."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    # On the thread

    def end(self, job: Job) -> None:
        """Cancel what still runs of a job; its keys and values are given back at once."""
        if job.prepared is not None:
            job.prepared.cancel(self.scheduler)

    def _end_all(self) -> None:
        for job in self._jobs:
            self.end(job)

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._inbox or self._stopping or self.scheduler.active or len(self.lm.background)):
                    self._wake.wait()
                calls = [self._inbox.popleft() for _ in range(len(self._inbox))]
                stopping = self._stopping
            with self.lm.working():
                for call in calls:
                    self._make(call)
                if stopping:
                    self._end_all()
                elif self.scheduler.active:
                    self._step()
                elif not calls:
                    self.scheduler.idle(IDLE_SECONDS)
            self._hand_over()
            if stopping:
                return

    def _make(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception:  # the thread must live on for the others
            log.exception("a call of the engine of %s has failed", self.lm.name)

    def _step(self) -> None:
        self.passes += 1
        try:
            self.scheduler.step()
        except (
            Exception
        ) as error:  # not of one task, which the scheduler sees to: all that run are lost, the server is not
            log.exception("a pass of %s has failed", self.lm.name)
            for job in self._jobs:
                job.error = error
                self.end(job)
            self.scheduler = self.lm.scheduler(self._prefix_cache)

    def _hand_over(self) -> None:
        for job in self._jobs:
            job.hand_over(job.prepared is not None and job.prepared.over)
        self._jobs = [job for job in self._jobs if job.prepared is not None and not job.prepared.over]

    def _note(self, session: str) -> None:
        """A session is used now; forget those that were not for long."""
        self._sessions[session] = None
        self._sessions.move_to_end(session)
        busy = {job.session for job in self._jobs} | {session}
        for old in [name for name in self._sessions if name not in busy]:
            full = len(self.lm.memory) > MEMORIES_PER_SESSION * self._max_sessions
            if len(self._sessions) <= self._max_sessions and not full:
                return
            del self._sessions[old]
            self.lm.forget(old)


def _settle(future: asyncio.Future[None], error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
