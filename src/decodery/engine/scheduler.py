"""Runs many requests at once: collects what their methods ask, scores it in as few passes as possible, hands it back.

Batching over any mix of methods, settings and networks falls out of this loop; no method knows of it. Nor does any know that a
request waits until its keys and values fit into the budget, that a long prompt is scored piece by piece beside the others, and that
a beginning which several have in common is scored once.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from decodery.engine.memory import KVBudget, Need, size_text
from decodery.engine.method import Decoding, Method
from decodery.engine.plain import plain
from decodery.engine.prefix_tree import PrefixTree
from decodery.engine.request import Request
from decodery.engine.sharing import SHORTEST, KeptPrompts, Pending, beginnings, leader_of
from decodery.errors import BadSetting, NotEnoughMemory, ScoresNotNumbers
from decodery.models.forward import Forward, Scores, Slots
from decodery.models.scorer import PassKey, pass_key, scorer_of

if TYPE_CHECKING:
    from decodery.models.owner import Owner
    from decodery.models.sequence import Sequence as CachedSequence

CHUNKS = (64, 128, 256, 512)
"""Rows of prompts that a pass may take beside running requests, where the cost curve chooses."""
MOST_DELAY = 4.0
"""A pass with a chunk may take so many times as long as one row does: so much slower are the others while prompts are read."""
UNWATCHED_CHUNK = 256
"""The same where nobody waits for single tokens: longer passes gain nothing, and take memory."""


@dataclass(frozen=True)
class Scheduling:
    """How requests that run together share passes and memory. None of it changes what a request gives, up to rounding.

    chunk: rows of prompts in one pass while several requests run; None: by the cost curve; 0: prompts are scored whole; BadSetting
    where it is neither. watched: somebody reads tokens as they come, so a pass must not take long because of a prompt. share:
    beginnings that several requests have in common are scored once. prefix_cache: bytes, within the KV budget, for beginnings of
    prompts that are over, so that later requests can go on from them.
    """

    chunk: int | None = None
    watched: bool = True
    share: bool = True
    prefix_cache: int = 0

    def __post_init__(self) -> None:
        chunk = plain(self.chunk)
        object.__setattr__(self, "chunk", chunk)
        if chunk is not None and (not isinstance(chunk, int) or isinstance(chunk, bool) or chunk < 0):
            raise BadSetting(f"prefill_chunk must be a number of tokens, or 0 for whole prompts, not {chunk!r}.")


@dataclass(slots=True)
class _Waiting:
    """A request that is not admitted yet."""

    request: Request
    method: Method
    need: Need


@dataclass(slots=True)
class _Task:
    """A request, its coroutine, and what it waits for. roots: sequences whose first rows others may copy."""

    request: Request
    decoding: Decoding
    need: Need
    asks: list[Pending] = field(default_factory=list)
    single: bool = True
    roots: list[CachedSequence] = field(default_factory=list)


_Piece = tuple[_Task, Pending, int]
"""An ask, and how many of its next rows are scored now."""


class Scheduler:
    """Drives requests step by step. Not thread-safe: one thread owns it.

    budget: of keys and values, which may be shared with other schedulers; None: unlimited.
    """

    def __init__(self, budget: KVBudget | None = None, scheduling: Scheduling | None = None) -> None:
        self.budget = KVBudget() if budget is None else budget
        self.scheduling = Scheduling() if scheduling is None else scheduling
        self.prefixes = KeptPrompts(self.budget, self.scheduling.prefix_cache)
        self._tasks: list[_Task] = []
        self._queue: deque[_Waiting] = deque()
        self._stepping = False
        self.budget.join(self)

    @property
    def active(self) -> int:
        """Requests that are not over."""
        return len(self._tasks) + len(self._queue)

    @property
    def waiting(self) -> int:
        """Requests that wait for memory."""
        return len(self._queue)

    def submit(self, request: Request, method: Method) -> None:
        """Start a request; it runs with the next `step`. Where its keys and values do not fit beside those of the requests that run, it
        waits for its turn. A request that could never fit ends with NotEnoughMemory."""
        try:
            need = Need.of(request, method)
            self.budget.check(need)
        except Exception as error:
            request.finish("error", error)
            return
        self._queue.append(_Waiting(request, method, need))
        self._admit()
        self.budget.note_queue()

    def cancel(self, request: Request) -> None:
        """End a request now; what it has committed stays."""
        for waiting in [waiting for waiting in self._queue if waiting.request is request]:
            self._queue.remove(waiting)
            request.finish("cancelled")
        for task in self._tasks:
            if task.request is request:
                _close(task.decoding)
                request.finish("cancelled")
        self._sweep()

    def run(self) -> None:
        """Step until all requests are over. Where this is interrupted, the requests end as cancelled."""
        try:
            while self.active:
                self.step()
        finally:
            for request in [*(task.request for task in self._tasks), *(waiting.request for waiting in self._queue)]:
                self.cancel(request)

    def step(self) -> None:
        """One round: score what every request asks for, and let each go on to its next ask.

        Of a long prompt a round may score a piece only, or nothing where another request scores the same beginning; its request goes on
        when all is there.
        """
        self._admit()
        if not self._tasks:
            self._wait()
            return
        self._stepping = True
        try:
            pieces, held = self._plan()
            passes: dict[tuple[int, PassKey], list[_Piece]] = {}
            for piece in pieces:
                forward = piece[1].forward
                passes.setdefault((id(forward.sequence.owner), pass_key(forward)), []).append(piece)
            for group in passes.values():
                self._score(group)
            for task, ask, leader in held:
                if task.request.finish_reason is None:
                    self._follow(task, ask, leader)
            for task in list(self._tasks):
                task.request.company = len(self._tasks)
                if task.request.finish_reason is None and all(ask.answer is not None for ask in task.asks):
                    self._remember(task)
                    answers = tuple(ask.answer for ask in task.asks)
                    self._advance(task, answers[0] if task.single else answers)
        finally:
            self._stepping = False
        self._sweep()

    # Memory

    @property
    def can_step(self) -> bool:
        """Whether a step could bring requests that hold memory nearer to their end."""
        return bool(self._tasks) and not self._stepping

    def make_room(self, size: int) -> None:
        """Forget beginnings of prompts until so many bytes are left in the budget."""
        self.prefixes.make_room(size)

    def _admit(self) -> None:
        """Start the requests that have waited longest, as long as they fit."""
        while self._queue:
            first = self._queue[0]
            if not self.budget.fits(first.need.bytes):
                for scheduler in (self, *self.budget.others(self)):
                    scheduler.make_room(first.need.bytes)
                if not self.budget.fits(first.need.bytes):
                    return
            self._queue.popleft()
            self._start(first)

    def _start(self, waiting: _Waiting) -> None:
        request, need = waiting.request, waiting.need
        if self.budget.total is not None:
            request.rows = need.rows
        request.statistics.admitted(need.bytes)
        try:
            task = _Task(request, waiting.method.decode(request), need)
        except Exception as error:  # a `decode` that is no generator function runs at once
            request.finish("error", error)
            return
        self.budget.take(need.bytes)
        self._tasks.append(task)
        self._advance(task, None)
        self._sweep()

    def _wait(self) -> None:
        """Nothing runs here, and the first request does not fit: let those go on who hold the memory."""
        if not self._queue:
            return
        holders = [other for other in self.budget.others(self) if other.can_step]
        for other in holders:
            other.step()
        if not holders:  # they wait for us, in a call that this one was made from
            waiting = self._queue.popleft()
            held, total = size_text(self.budget.held), size_text(self.budget.total or 0)
            waiting.request.finish(
                "error",
                NotEnoughMemory(
                    f"the request can need {size_text(waiting.need.bytes)} of keys and values, and requests that cannot go on "
                    f"before it is over hold {held} of the KV budget of {total}; raise kv_budget."
                ),
            )

    def _sweep(self) -> None:
        for task in self._tasks:
            if task.request.finish_reason is not None:
                self.budget.give_back(task.need.bytes)
        self._tasks = [task for task in self._tasks if task.request.finish_reason is None]

    # What is scored in a round

    def _plan(self) -> tuple[list[_Piece], list[tuple[_Task, Pending, Pending]]]:
        """Which rows are scored now; and the asks that wait, each with an earlier one that scores the same beginning."""
        pieces: list[_Piece] = []
        held: list[tuple[_Task, Pending, Pending]] = []
        leaders: dict[Hashable, PrefixTree[list[Pending]]] = {}
        roots: dict[Hashable, PrefixTree[CachedSequence]] | None = None
        room: dict[int, int] = {}
        for task in self._tasks:
            for ask in task.asks:
                if ask.answer is not None:
                    continue
                if self.scheduling.share and ask.shareable:
                    alike = id(ask.forward.sequence.owner), ask.forward.layers
                    if ask.gain(len(ask.text)) >= SHORTEST:
                        roots = (
                            beginnings(root for task in self._tasks for root in task.roots) if roots is None else roots
                        )
                        self._copy(task, ask, roots.get(alike))
                    tree = leaders.setdefault(alike, PrefixTree())
                    leader = leader_of(ask, tree)
                    if leader is not None:
                        held.append((task, ask, leader))
                        continue
                    tree.put(ask.text, [*(tree.get(ask.text) or ()), ask])
                rows = ask.left
                if len(self._tasks) > 1 and _reads(task, ask):
                    place = id(ask.forward.sequence.owner)
                    if place not in room:
                        room[place] = self._chunk(task, ask)
                    rows = min(rows, room[place])
                    room[place] -= rows
                if rows:
                    pieces.append((task, ask, rows))
        return pieces, held

    def _chunk(self, task: _Task, ask: Pending) -> int:
        """How many rows of prompts a pass of a network may take, so that it does not hold up the other requests for long."""
        network, chunk = scorer_of(ask.forward.sequence), self.scheduling.chunk
        asked = [
            other for entry in self._tasks for other in entry.asks if other.answer is None and _reads(entry, other)
        ]
        total = sum(other.left for other in asked if other.forward.sequence.owner is network)
        if chunk is not None:
            return chunk or total
        if not self.scheduling.watched:
            return UNWATCHED_CHUNK
        if total <= CHUNKS[0]:  # nothing to choose, so nothing to measure
            return total
        cost = task.request.host.cost(network).at(ask.forward.sequence.length)
        return max((rows for rows in CHUNKS if cost(rows) <= MOST_DELAY * cost(1)), default=CHUNKS[0])

    def _copy(self, task: _Task, ask: Pending, roots: PrefixTree[CachedSequence] | None) -> None:
        """Take over what a running request, or one that is over, has scored already."""
        sequence = ask.forward.sequence
        best, length = None, sequence.length
        near = roots and roots.nearest(ask.text)
        if near and ask.gain(near[1]) >= SHORTEST:
            best, length = near[0], ask.usable(near[1])
        kept = self.prefixes.find(ask)
        if kept is not None and kept[1] > length:
            best, length = kept
        if best is not None:
            task.request.statistics.shared_rows += length - sequence.length
            ask.take(best, length)

    def _follow(self, task: _Task, ask: Pending, leader: Pending) -> None:
        """Take over what an earlier ask of this round has scored, as soon as all of it is there."""
        source, before = leader.forward.sequence, ask.forward.sequence.length
        if leader.answer is not None and ask.same_as(leader):
            ask.answer_as(leader)
            self._count(task, ask, 0)
        elif source.plain >= (rows := ask.common(leader.text)) >= ask.forward.sequence.length + SHORTEST:
            ask.take(source, rows)
        task.request.statistics.shared_rows += ask.forward.sequence.length - before

    def _remember(self, task: _Task) -> None:
        """Note which sequences others may go on from."""
        for ask in task.asks:
            if self.scheduling.share and ask.shareable:
                sequence = ask.forward.sequence
                if all(root is not sequence for root in task.roots):
                    task.roots.append(sequence)
                if self.scheduling.prefix_cache:
                    self.prefixes.keep(sequence, min(sequence.length, len(task.request.prompt)))

    def _score(self, group: Sequence[_Piece]) -> None:
        network = scorer_of(group[0][1].forward.sequence)
        forwards = [ask.piece(rows) for _, ask, rows in group]
        try:
            answers: list[Scores] = network.run_pass(forwards)
        except Exception as error:
            if len(group) == 1:
                self._fail(group[0][0], error)
                return
            # One forward spoils the pass: score each alone, so that only its own request fails.
            for entry in group:
                self._score([entry])
            return
        for (task, ask, rows), scores in zip(group, answers, strict=True):
            self._count(task, ask, rows)
            ask.scored(rows, scores)

    def _count(self, task: _Task, ask: Pending, rows: int) -> None:
        """Count rows of an ask as work done for a request. All pieces of an ask are one forward."""
        forward, network = ask.forward, ask.forward.sequence.owner
        later = ask.begun or forward.joined
        ask.begun = True
        task.request.statistics.count(
            _label(forward, network), rows, len(forward.layers.indices(network.layers)), forwards=0 if later else 1
        )

    def _advance(self, task: _Task, answer: Scores | tuple[Scores | None, ...] | None) -> None:
        """Send scores into a coroutine and take its next ask; ends the request where the coroutine ends or fails."""
        try:
            ask = task.decoding.send(answer)
            task.single = isinstance(ask, Forward)
            forwards = (ask,) if isinstance(ask, Forward) else tuple(ask)
            for forward in forwards:
                scorer_of(forward.sequence).check(forward)
            _check_together(forwards)
            task.asks = [Pending(forward) for forward in forwards]
        except StopIteration:
            task.request.finish("stop")
        except Exception as error:
            self._fail(task, error)

    def _fail(self, task: _Task, error: Exception) -> None:
        _close(task.decoding)
        if isinstance(error, ScoresNotNumbers) and error.raw:
            error = ScoresNotNumbers(
                f"{error}: {task.request.host.network.origin_of_faults(task.request.tokens)}.", raw=True
            )
        task.request.finish("error", error)


def _reads(task: _Task, ask: Pending) -> bool:
    """Whether an ask reads a prompt. Long drafts are no prompts: their requests are those that must not wait."""
    return ask.plain and ask.base < len(task.request.prompt) - 1


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


def _close(decoding: Decoding) -> None:
    """End a coroutine. Its last words do not matter any more, and must not harm the other requests."""
    with contextlib.suppress(Exception):
        decoding.close()
