"""How many requests run at once, how many wait for that, and who is sent away."""

from __future__ import annotations

import asyncio
import math
from collections import deque

from decodery.serving.failures import Failure

LONGEST_ADVICE = 60
"""Seconds that who is sent away is told to wait at most."""


class Gate:
    """Lets so many requests in at once; the others wait in the order in which they came, as long as the queue has room."""

    def __init__(self, most: int, queue: int):
        self.most, self.queue = most, queue
        self.running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._mean_seconds = 1.0
        self._closed: Failure | None = None

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    async def enter(self) -> None:
        """Wait for a place. Raises Failure (429) where the queue is full."""
        if self._closed is not None:
            raise self._closed
        if self.running < self.most and not self._waiting:
            self.running += 1
            return
        if len(self._waiting) >= self.queue:
            raise Failure(
                429,
                f"{self.running} requests run and {len(self._waiting)} wait, which is all that this server takes; try later.",
                code="rate_limit_exceeded",
                headers={"Retry-After": str(self._advice())},
            )
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn in self._waiting:
                self._waiting.remove(turn)
            elif not turn.cancelled() and turn.exception() is None:
                self._pass_on()  # the place was given and is not wanted any more
            raise

    def close(self, reason: Failure) -> None:
        """Send all away who wait, and who comes later."""
        self._closed = reason
        for turn in self._waiting:
            if not turn.done():
                turn.set_exception(reason)
        self._waiting.clear()

    def leave(self, seconds: float) -> None:
        """A request is over that has had its place for so long."""
        self._mean_seconds += 0.1 * (seconds - self._mean_seconds)
        self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # who has gone away is still in the queue until its task runs
                turn.set_result(None)
                return
        self.running -= 1

    def _advice(self) -> int:
        """Seconds until the queue has likely moved on by as many as run at once."""
        return max(1, min(LONGEST_ADVICE, math.ceil(self._mean_seconds)))
