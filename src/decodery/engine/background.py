"""Work between passes: what methods train or tidy while requests are served."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

log = logging.getLogger("decodery")

Value = TypeVar("Value")
SHARE = 0.1
"""While requests run, background work takes at most this share of their time."""


class Kept(Generic[Value]):
    """What a method keeps between requests and trains while it serves: a value, and how often it was replaced.

    Whoever uses it notes the version, so that a result can be told from one of another state.
    """

    def __init__(self, value: Value):
        self.value, self.version = value, 0

    def replace(self, value: Value) -> None:
        """The state from now on. Requests on their way go on with it at their next look."""
        self.value, self.version = value, self.version + 1


class Background:
    """Pieces of work that wait for time, in turn. Each is an iterator, of which every step should take a few milliseconds.

    clock: seconds, for tests. failed: what ended with an error, by its key; the error is logged too, and harms no request.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._works: dict[Hashable, Iterator[object]] = {}
        self.failed: dict[Hashable, Exception] = {}
        self._owed = 0.0

    def __len__(self) -> int:
        """How many pieces wait."""
        return len(self._works)

    def add(self, key: Hashable, work: Iterator[object]) -> None:
        """Work to be done. Where work of this key waits already, the new one is dropped."""
        self._works.setdefault(key, work)

    def passed(self, seconds: float) -> None:
        """Requests have run for so long: take the share that this leaves, at least one step once it has added up to one."""
        if not self._works:
            self._owed = 0.0
            return
        self._owed += SHARE * seconds
        if self._owed > 0:
            self._owed -= self.run(self._owed)

    def run(self, seconds: float) -> float:
        """Work until so many seconds are over or nothing waits. Returns the seconds taken; a step is never interrupted."""
        start = self._clock()
        while self._works and self._clock() - start < seconds:
            key, work = next(iter(self._works.items()))
            del self._works[key]
            try:
                next(work)
            except StopIteration:
                continue
            except Exception as error:
                log.warning("background work %r ended with an error: %s", key, error)
                self.failed[key] = error
                continue
            self._works.setdefault(key, work)  # the others first
        return self._clock() - start
