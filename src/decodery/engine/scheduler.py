"""Runs many tasks at once: collects what their coroutines ask, scores it in as few passes as possible, hands it back.

Batching over any mix of methods, settings, networks and other tasks falls out of this loop; no coroutine knows of it. Nor does
any know that a task waits until its keys and values fit into the budget, that a long prompt is scored piece by piece beside the
others, and that a beginning which several have in common is scored once.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from decodery.engine.draws import foresee
from decodery.engine.memory import KVBudget, Need, size_text
from decodery.engine.prefix_tree import PrefixTree
from decodery.engine.scheduling import Scheduling
from decodery.engine.sharing import SHORTEST, KeptPrompts, Pending, beginnings, leader_of
from decodery.engine.task import Asking, Decode, Task
from decodery.errors import NotEnoughMemory
from decodery.models.forward import Forward, Scores, Slots
from decodery.models.scorer import PassKey, pass_key, scorer_of

if TYPE_CHECKING:
    from decodery.engine.background import Background
    from decodery.engine.method import Method
    from decodery.engine.request import Request
    from decodery.models.owner import Owner
    from decodery.models.sequence import Sequence as CachedSequence

CHUNKS = (64, 128, 256, 512)
"""Rows of prompts that a pass may take beside running tasks, where the cost curve chooses."""
MOST_DELAY = 4.0
"""A pass with a chunk may take so many times as long as one row does: so much slower are the others while prompts are read."""
UNWATCHED_CHUNK = 256
"""The same where nobody waits for single tokens: longer passes gain nothing, and take memory."""


@dataclass(slots=True)
class _Running:
    """A task that is admitted, its coroutine, and what it waits for. roots: sequences whose first rows others may copy."""

    task: Task[Any]
    coroutine: Asking[Any]
    need: Need
    asks: list[Pending] = field(default_factory=list)
    single: bool = True
    roots: list[CachedSequence] = field(default_factory=list)


_Piece = tuple[_Running, Pending, int]
"""An ask, and how many of its next rows are scored now."""


class Scheduler:
    """Drives tasks step by step. Not thread-safe: one thread owns it.

    budget: of keys and values, which may be shared with other schedulers; None: unlimited.
    """

    def __init__(
        self,
        budget: KVBudget | None = None,
        scheduling: Scheduling | None = None,
        background: Background | None = None,
    ) -> None:
        self.background = background
        """Work of methods between passes: a share of the time while requests run, and all that `idle` gives it."""
        self.budget = KVBudget() if budget is None else budget
        self.scheduling = Scheduling() if scheduling is None else scheduling
        self.prefixes = KeptPrompts(self.budget, self.scheduling.prefix_cache)
        self._running: list[_Running] = []
        self._queue: deque[tuple[Task[Any], Need]] = deque()
        self._stepping = False
        self.away = 0.0
        """Seconds between its steps so far: of whoever calls it, such as a reader of a stream, and no cost of a round."""
        self._left: float | None = None
        """When the last step was over."""
        self.budget.join(self)

    @property
    def active(self) -> int:
        """Tasks that are not over."""
        return len(self._running) + len(self._queue)

    @property
    def waiting(self) -> int:
        """Tasks that wait for memory."""
        return len(self._queue)

    def submit(self, request: Request, method: Method) -> None:
        """Start the decoding of a request; see `start`."""
        self.start(Decode(request, method))

    def start(self, task: Task[Any]) -> None:
        """Start a task; it runs with the next `step`. Where its keys and values do not fit beside those of the tasks that run,
        it waits for its turn. A task that could never fit ends with NotEnoughMemory."""
        try:
            need = task.need()
            self.budget.check(need)
        except Exception as error:
            task.failed(error)
            return
        self._queue.append((task, need))
        self._admit()
        self.budget.note_queue()

    def cancel(self, what: Request | Task[Any]) -> None:
        """End a request, or another task, now; what a request has committed stays."""

        def meant(task: Task[Any]) -> bool:
            return task is what or (isinstance(task, Decode) and task.request is what)

        for entry in [entry for entry in self._queue if meant(entry[0])]:
            self._queue.remove(entry)
            entry[0].cancelled()
        for running in self._running:
            if meant(running.task):
                _close(running.coroutine)
                running.task.cancelled()
        self._sweep()

    def run(self) -> None:
        """Step until all tasks are over. Where this is interrupted, they end as cancelled."""
        try:
            while self.active:
                self.step()
        finally:
            for task in [*(running.task for running in self._running), *(task for task, _ in self._queue)]:
                self.cancel(task)

    def step(self) -> None:
        """One round: score what every task asks for, and let each go on to its next ask.

        Of a long prompt a round may score a piece only, or nothing where another task scores the same beginning; its task goes
        on when all is there.
        """
        self._admit()
        if not self._running:
            self._wait()
            return
        began = time.perf_counter()
        self.away += 0.0 if self._left is None else began - self._left
        self._stepping = True
        try:
            pieces, held = self._plan()
            passes: dict[tuple[int, PassKey], list[_Piece]] = {}
            for piece in pieces:
                forward = piece[1].forward
                passes.setdefault((id(forward.sequence.owner), pass_key(forward)), []).append(piece)
            for group in passes.values():
                self._score(group)
            for running, ask, leader in held:
                if not running.task.over:
                    self._follow(running, ask, leader)
            foresee(filter(None, (running.task.draws(running.asks) for running in self._running)))
            for running in list(self._running):
                running.task.meets(len(self._running), self.away)
                if not running.task.over and all(ask.answer is not None for ask in running.asks):
                    self._remember(running)
                    answers = tuple(ask.answer for ask in running.asks)
                    self._advance(running, answers[0] if running.single else answers)
        finally:
            self._stepping = False
        self._sweep()
        if self.background is not None:
            self.background.passed(time.perf_counter() - began)
        self._left = time.perf_counter()

    def idle(self, seconds: float) -> None:
        """Give the time that no request needs to what methods do between passes. Returns when it is over or nothing waits."""
        if self.background is not None:
            self.background.run(seconds)

    # Memory

    @property
    def can_step(self) -> bool:
        """Whether a step could bring tasks that hold memory nearer to their end."""
        return bool(self._running) and not self._stepping

    def make_room(self, size: int) -> None:
        """Forget beginnings of prompts until so many bytes are left in the budget."""
        self.prefixes.make_room(size)

    def _admit(self) -> None:
        """Start the tasks that have waited longest, as long as they fit."""
        while self._queue:
            task, need = self._queue[0]
            if not self.budget.fits(need.bytes):
                for scheduler in (self, *self.budget.others(self)):
                    scheduler.make_room(need.bytes)
                if not self.budget.fits(need.bytes):
                    return
            self._queue.popleft()
            self._begin(task, need)

    def _begin(self, task: Task[Any], need: Need) -> None:
        task.statistics.admitted(need.bytes)
        try:
            coroutine = task.begin(None if self.budget.total is None else need)
        except Exception as error:  # what is no generator function runs at once
            task.failed(error)
            return
        running = _Running(task, coroutine, need)
        self.budget.take(need.bytes)
        self._running.append(running)
        self._advance(running, None)
        self._sweep()

    def _wait(self) -> None:
        """Nothing runs here, and the first task does not fit: let those go on who hold the memory."""
        if not self._queue:
            return
        holders = [other for other in self.budget.others(self) if other.can_step]
        for other in holders:
            other.step()
        if not holders:  # they wait for us, in a call that this one was made from
            task, need = self._queue.popleft()
            held, total = size_text(self.budget.held), size_text(self.budget.total or 0)
            task.failed(
                NotEnoughMemory(
                    f"the request can need {size_text(need.bytes)} of keys and values, and requests that cannot go on "
                    f"before it is over hold {held} of the KV budget of {total}; raise kv_budget."
                )
            )

    def _sweep(self) -> None:
        for running in self._running:
            if running.task.over:
                self.budget.give_back(running.need.bytes)
        self._running = [running for running in self._running if not running.task.over]

    # What is scored in a round

    def _plan(self) -> tuple[list[_Piece], list[tuple[_Running, Pending, Pending]]]:
        """Which rows are scored now; and the asks that wait, each with an earlier one that scores the same beginning."""
        pieces: list[_Piece] = []
        held: list[tuple[_Running, Pending, Pending]] = []
        leaders: dict[Hashable, PrefixTree[list[Pending]]] = {}
        roots: dict[Hashable, PrefixTree[CachedSequence]] | None = None
        room: dict[int, int] = {}
        for running in self._running:
            for ask in running.asks:
                if ask.answer is not None:
                    continue
                if self.scheduling.share and ask.shareable:
                    alike = id(ask.forward.sequence.owner), ask.forward.layers
                    if ask.gain(len(ask.text)) >= SHORTEST:
                        if roots is None:
                            roots = beginnings(root for entry in self._running for root in entry.roots)
                        self._copy(running, ask, roots.get(alike))
                    tree = leaders.setdefault(alike, PrefixTree())
                    leader = leader_of(ask, tree)
                    if leader is not None:
                        held.append((running, ask, leader))
                        continue
                    tree.put(ask.text, [*(tree.get(ask.text) or ()), ask])
                rows = ask.left
                if len(self._running) > 1 and running.task.reads(ask):
                    place = id(ask.forward.sequence.owner)
                    if place not in room:
                        room[place] = self._chunk(running, ask)
                    rows = min(rows, room[place])
                    room[place] -= rows
                if rows:
                    pieces.append((running, ask, rows))
        return pieces, held

    def _chunk(self, running: _Running, ask: Pending) -> int:
        """How many rows of prompts a pass of a network may take, so that it does not hold up the other tasks for long."""
        network, chunk = scorer_of(ask.forward.sequence), self.scheduling.chunk
        asked = [
            other for entry in self._running for other in entry.asks if other.answer is None and entry.task.reads(other)
        ]
        total = sum(other.left for other in asked if other.forward.sequence.owner is network)
        if chunk is not None:
            return chunk or total
        if not self.scheduling.watched:
            return UNWATCHED_CHUNK
        if total <= CHUNKS[0]:  # nothing to choose, so nothing to measure
            return total
        cost = running.task.cost(network).at(ask.forward.sequence.length)
        return max((rows for rows in CHUNKS if cost(rows) <= MOST_DELAY * cost(1)), default=CHUNKS[0])

    def _copy(self, running: _Running, ask: Pending, roots: PrefixTree[CachedSequence] | None) -> None:
        """Take over what a running task, or one that is over, has scored already."""
        sequence = ask.forward.sequence
        best, length = None, sequence.length
        near = roots and roots.nearest(ask.text)
        if near and ask.gain(near[1]) >= SHORTEST:
            best, length = near[0], ask.usable(near[1])
        kept = self.prefixes.find(ask)
        if kept is not None and kept[1] > length:
            best, length = kept
        if best is not None:
            running.task.statistics.shared_rows += length - sequence.length
            ask.take(best, length)

    def _follow(self, running: _Running, ask: Pending, leader: Pending) -> None:
        """Take over what an earlier ask of this round has scored, as soon as all of it is there."""
        source, before = leader.forward.sequence, ask.forward.sequence.length
        if leader.answer is not None and ask.same_as(leader):
            ask.answer_as(leader)
            self._count(running, ask, 0)
        elif source.plain >= (rows := ask.common(leader.text)) >= ask.forward.sequence.length + SHORTEST:
            ask.take(source, rows)
        running.task.statistics.shared_rows += ask.forward.sequence.length - before

    def _remember(self, running: _Running) -> None:
        """Note which sequences others may go on from."""
        for ask in running.asks:
            if self.scheduling.share and ask.shareable:
                sequence = ask.forward.sequence
                if all(root is not sequence for root in running.roots):
                    running.roots.append(sequence)
                if self.scheduling.prefix_cache:
                    self.prefixes.keep(sequence, min(sequence.length, running.task.kept))

    def _score(self, group: Sequence[_Piece]) -> None:
        network = scorer_of(group[0][1].forward.sequence)
        forwards = [ask.piece(rows) for _, ask, rows in group]
        try:
            answers: list[Scores] = network.run_pass(forwards)
        except Exception as error:
            if len(group) == 1:
                self._fail(group[0][0], error)
                return
            # One forward spoils the pass: score each alone, so that only its own task fails.
            for entry in group:
                self._score([entry])
            return
        for (running, ask, rows), scores in zip(group, answers, strict=True):
            self._count(running, ask, rows)
            ask.scored(rows, scores)

    def _count(self, running: _Running, ask: Pending, rows: int) -> None:
        """Count rows of an ask as work done for a task. All pieces of an ask are one forward."""
        forward, network = ask.forward, ask.forward.sequence.owner
        later = ask.begun or forward.joined
        ask.begun = True
        running.task.statistics.count(
            _label(forward, network), rows, len(forward.layers.indices(network.layers)), forwards=0 if later else 1
        )

    def _advance(self, running: _Running, answer: Scores | tuple[Scores | None, ...] | None) -> None:
        """Send scores into a coroutine and take its next ask; ends the task where the coroutine ends or fails."""
        try:
            ask = running.coroutine.send(answer)
            running.single = isinstance(ask, Forward)
            forwards = (ask,) if isinstance(ask, Forward) else tuple(ask)
            for forward in forwards:
                scorer_of(forward.sequence).check(forward)
            _check_together(forwards)
            running.asks = [Pending(forward) for forward in forwards]
        except StopIteration as end:
            running.task.returned(end.value)
        except Exception as error:
            self._fail(running, error)

    def _fail(self, running: _Running, error: Exception) -> None:
        _close(running.coroutine)
        running.task.failed(error)


def _label(forward: Forward, network: Owner) -> str:
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


def _close(coroutine: Asking[Any]) -> None:
    """End a coroutine. Its last words do not matter any more, and must not harm the other tasks."""
    with contextlib.suppress(Exception):
        coroutine.close()
