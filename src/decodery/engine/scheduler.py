"""Runs many jobs at once: collects what their methods ask, scores it in as few passes as possible, hands it back.

Batching over any mix of methods, settings and networks falls out of this loop; no method knows of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from decodery.engine.job import Job
from decodery.engine.method import Decoding, Method
from decodery.models.forward import Forward, Scores, Slots
from decodery.models.network import PassKey, pass_key

if TYPE_CHECKING:
    from decodery.models.network import Scorer


@dataclass(slots=True)
class _Task:
    """A job, its coroutine, and what it waits for."""

    job: Job
    decoding: Decoding
    asks: tuple[Forward, ...] = ()
    single: bool = True
    answers: list[Scores | None] = field(default_factory=list)


class Scheduler:
    """Drives jobs step by step. Not thread-safe: one thread owns it."""

    def __init__(self) -> None:
        self._tasks: list[_Task] = []

    @property
    def active(self) -> int:
        """Jobs that are not over."""
        return len(self._tasks)

    def submit(self, job: Job, method: Method) -> None:
        """Start a job. It runs with the next `step`."""
        try:
            task = _Task(job, method.decode(job))
        except Exception as error:  # a `decode` that is no generator function runs at once
            job.finish("error", error)
            return
        self._tasks.append(task)
        self._advance(task, None)
        self._sweep()

    def cancel(self, job: Job) -> None:
        """End a job now; what it has committed stays."""
        for task in self._tasks:
            if task.job is job:
                _close(task.decoding)
                job.finish("cancelled")
        self._sweep()

    def run(self) -> None:
        """Step until all jobs are over. Where this is interrupted, the jobs end as cancelled."""
        try:
            while self._tasks:
                self.step()
        finally:
            for task in list(self._tasks):
                self.cancel(task.job)

    def step(self) -> None:
        """One round: score what every job asks for, and let each go on to its next ask."""
        asks = [(task, place) for task in self._tasks for place in range(len(task.asks))]
        passes: dict[tuple[int, PassKey], list[tuple[_Task, int]]] = {}
        for task, place in asks:
            ask = task.asks[place]
            passes.setdefault((id(ask.sequence.owner), pass_key(ask)), []).append((task, place))
        for group in passes.values():
            self._score(group)
        for task in list(self._tasks):
            task.job.company = len(self._tasks)
            if task.job.finish_reason is None:
                answers = tuple(task.answers)
                self._advance(task, answers[0] if task.single else answers)
        self._sweep()

    def _score(self, group: Sequence[tuple[_Task, int]]) -> None:
        network = group[0][0].asks[group[0][1]].sequence.owner
        forwards = [task.asks[place] for task, place in group]
        try:
            answers: list[Scores] = network.run_pass(forwards)
        except Exception as error:
            if len(group) == 1:
                self._fail(group[0][0], error)
                return
            # One forward spoils the pass: score each alone, so that only its own job fails.
            for entry in group:
                self._score([entry])
            return
        for (task, place), scores in zip(group, answers, strict=True):
            task.answers[place] = scores
            forward = task.asks[place]
            task.job.statistics.count(
                _label(forward, network),
                forward.count,
                len(forward.layers.indices(network.layers)),
                forwards=0 if forward.joined else 1,
            )

    def _advance(self, task: _Task, answer: Scores | tuple[Scores | None, ...] | None) -> None:
        """Send scores into a coroutine and take its next ask; ends the job where the coroutine ends or fails."""
        try:
            ask = task.decoding.send(answer)
            task.single = isinstance(ask, Forward)
            task.asks = (ask,) if isinstance(ask, Forward) else tuple(ask)
            task.answers = [None] * len(task.asks)
            for forward in task.asks:
                network: Scorer = forward.sequence.owner
                network.check(forward)
            _check_together(task.asks)
        except StopIteration:
            task.job.finish("stop")
        except Exception as error:
            self._fail(task, error)

    def _fail(self, task: _Task, error: Exception) -> None:
        _close(task.decoding)
        task.job.finish("error", error)

    def _sweep(self) -> None:
        self._tasks = [task for task in self._tasks if task.job.finish_reason is None]


def _label(forward: Forward, network: Scorer) -> str:
    """Under which name a forward is counted. A pass through some of the layers is a drafter's; one that takes rows through
    the last of all layers is one of the model itself, wherever the first layers were run."""
    layers, count = forward.layers, network.layers
    if layers.completes(count):
        return network.name
    running, sublayers = len(layers.indices(count)), layers.sublayers(count)
    if sublayers == 2 * running:
        return f"{network.name} ({running} of {count} layers)"
    return f"{network.name} ({sublayers} of {2 * count} sublayers)"


def _check_together(asks: Sequence[Forward]) -> None:
    """Raise ValueError where forwards of one step would write over each other: the rows of neither would be right."""
    writers = [forward.sequence for forward in asks if forward.slots is not Slots.NOWHERE]
    for writer in writers:
        if sum(forward.sequence is writer for forward in asks) > 1:
            raise ValueError("two forwards of one step use the same sequence and one of them writes to it; fork it")


def _close(decoding: Decoding) -> None:
    """End a coroutine. Its last words do not matter any more, and must not harm the other jobs."""
    with contextlib.suppress(Exception):
        decoding.close()
