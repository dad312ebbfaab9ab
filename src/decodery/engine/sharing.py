"""Asks of a step, how long ones are cut into pieces, and which of them begin alike and so need be scored only once.

Everything here is about asks of the plainest kind: token ids, appended in order, each seeing all before it. What else a method
asks (trees, canvases, embeddings, rows written elsewhere) is scored whole and by itself.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as Listing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from decodery._lazy import torch
from decodery.models.forward import Attend, Forward, Rows, Scores, Slots

if TYPE_CHECKING:
    from decodery.engine.memory import KVBudget
    from decodery.models.sequence import Sequence

SHORTEST = 16
"""Fewer rows in common are not worth a copy, nor are fewer rows worth a cut."""


def is_plain(forward: Forward) -> bool:
    """Whether an ask may be cut, and its rows copied."""
    return (
        forward.count > SHORTEST
        and forward.attend is Attend.CAUSAL
        and forward.slots is Slots.APPEND
        and forward.positions is None
        and not isinstance(forward.tokens, torch.Tensor)
        and not forward.joined
        and (isinstance(forward.logits, Rows | range) or list(forward.logits) == sorted(set(forward.logits)))
    )


@dataclass(slots=True, eq=False)
class Ask:
    """One forward that a request waits for, and how much of it is done.

    base: rows that were cached when it was asked. text: the tokens of these and of the ask, where it is plain. done: rows that
    were scored, or taken from another sequence. begun: whether it is counted as a forward yet. answer: once all is there.
    """

    forward: Forward
    base: int = 0
    text: Listing[int] = ()
    plain: bool = False
    done: int = 0
    begun: bool = False
    answer: Scores | None = None
    _pieces: list[Scores] = field(default_factory=list)

    def __post_init__(self) -> None:
        sequence = self.forward.sequence
        self.base, border = sequence.length, sequence.owner.border
        whole = border is not None and self.base + self.forward.count > border
        self.plain = is_plain(self.forward) and not whole
        if self.plain:
            self.text = [*sequence.tokens, *self.forward.tokens]

    @property
    def left(self) -> int:
        """Rows that are not scored yet."""
        return self.forward.count - self.done

    @property
    def shareable(self) -> bool:
        """Whether all rows so far are plain ones of the layers asked for, so that others may copy them, and it from others."""
        sequence, layers = self.forward.sequence, self.forward.layers
        return self.plain and (
            not sequence.length or (sequence.plain, sequence.plain_layers) == (sequence.length, layers)
        )

    @property
    def _wanted(self) -> Listing[int]:
        """Rows of which something must be answered."""
        return range(self.forward.count) if self.forward.taps else self.forward.logit_rows()

    def piece(self, rows: int) -> Forward:
        """The forward of the next `rows` rows."""
        forward = self.forward
        if rows == forward.count:
            return forward
        start, stop = self.done, self.done + rows
        logits = [row - start for row in forward.logit_rows() if start <= row < stop]
        return Forward(
            forward.sequence, forward.tokens[start:stop], layers=forward.layers, taps=forward.taps, logits=logits
        )

    def scored(self, rows: int, scores: Scores) -> None:
        """The next `rows` rows were scored."""
        before = self.forward.sequence.length - rows
        self.done += rows
        self._pieces.append(scores)
        if self.plain:
            self._mark(before)
        if not self.left:
            self.answer = _joined(self._pieces, self.forward.taps)

    def _mark(self, before: int) -> None:
        sequence = self.forward.sequence
        if before == 0 or (sequence.plain == before and sequence.plain_layers == self.forward.layers):
            sequence.plain, sequence.plain_layers = sequence.length, self.forward.layers

    # Sharing

    def common(self, text: Listing[int]) -> int:
        """How many rows of a text that begins alike this ask could still take: those before the first that must be answered."""
        first = next(iter(self._wanted), self.forward.count)
        return min(common(self.text, text), self.base + first)

    def gain(self, text: Listing[int]) -> int:
        """How many further rows it could take from a sequence of `text`."""
        return self.common(text) - self.forward.sequence.length

    def same_as(self, other: Ask) -> bool:
        """Whether the answer to another ask answers this one too. Rows that were taken before need no answer."""
        mine, theirs = self.forward, other.forward
        return (
            not self._pieces
            and self.base == other.base
            and self.text == other.text
            and mine.taps == theirs.taps
            and mine.rank == theirs.rank
            and list(mine.logit_rows()) == list(theirs.logit_rows())
        )

    def take(self, source: Sequence, length: int) -> None:
        """Copy the keys and values of a sequence that begins alike, up to `length` rows."""
        sequence = self.forward.sequence
        rows, before = length - sequence.length, sequence.length
        sequence.take(source, length)
        self.done += rows
        self._mark(before)

    def answer_as(self, other: Ask) -> None:
        """Take over all of another ask, whose answer is this one's."""
        assert other.answer is not None
        self.take(other.forward.sequence, self.base + self.forward.count)
        hidden = {tap: rows.clone() for tap, rows in other.answer.hidden.items()}
        self.answer = Scores(other.answer.logits.clone(), hidden, other.answer.ranking)


def _joined(pieces: Listing[Scores], taps: Listing[int]) -> Scores:
    if len(pieces) == 1:
        return pieces[0]
    hidden = {tap: torch.cat([piece.hidden[tap] for piece in pieces]) for tap in taps}
    return Scores(torch.cat([piece.logits for piece in pieces]), hidden)


def common(one: Listing[int], other: Listing[int]) -> int:
    """How many first tokens two texts share."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while low + 1 < high:  # the first `low` agree, the first `high` do not
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low


class PrefixCache:
    """The beginnings of recent prompts with their keys and values, the least recently used forgotten first.

    budget: where their memory is accounted. most: bytes that they may take together.
    """

    def __init__(self, budget: KVBudget, most: int):
        self._budget, self.most = budget, most
        self._kept: OrderedDict[int, tuple[Sequence, int]] = OrderedDict()
        self._count = 0
        self.size = 0
        """Bytes held."""

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, ask: Ask) -> tuple[Sequence, int] | None:
        """The kept sequence that an ask can take the most of, and up to which row; None where none is worth it."""
        best, most = None, 0
        for number, (sequence, _) in self._kept.items():
            if sequence.owner is ask.forward.sequence.owner and sequence.plain_layers == ask.forward.layers:
                gain = ask.gain(sequence.tokens)
                if gain >= SHORTEST and gain > most:
                    best, most = number, gain
        if best is None:
            return None
        self._kept.move_to_end(best)
        return self._kept[best][0], ask.forward.sequence.length + most

    def keep(self, sequence: Sequence, rows: int) -> None:
        """Remember the first `rows` rows of a plain sequence, where there is room for them."""
        network, tokens = sequence.owner, sequence.tokens[:rows]
        size = network.cache_bytes(rows)
        same = [
            (number, other)
            for number, (other, _) in self._kept.items()
            if other.owner is network and other.plain_layers == sequence.plain_layers
        ]
        if rows < SHORTEST or any(other.tokens[:rows] == tokens for _, other in same):
            return
        for number, other in same:  # what the new one begins with is of no more use
            if tokens[: other.length] == other.tokens:
                self._forget(number)
        while self._kept and (self.size + size > self.most or not self._budget.fits(size)):
            self._forget(next(iter(self._kept)))
        if self.size + size > self.most or not self._budget.fits(size):
            return
        self._budget.take(size)
        twin = network.new_sequence()
        twin.cache.expect(network.rows_kept(rows))
        twin.take(sequence, rows)
        twin.plain, twin.plain_layers = rows, sequence.plain_layers
        self._count += 1
        self._kept[self._count] = twin, size
        self.size += size

    def make_room(self, size: int) -> None:
        """Forget until so many bytes are left in the budget, or nothing is kept."""
        while self._kept and not self._budget.fits(size):
            self._forget(next(iter(self._kept)))

    def clear(self) -> None:
        """Forget everything."""
        while self._kept:
            self._forget(next(iter(self._kept)))

    def _forget(self, number: int) -> None:
        _, size = self._kept.pop(number)
        self.size -= size
        self._budget.give_back(size)
