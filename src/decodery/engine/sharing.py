"""Asks of a step, how long ones are cut into pieces, and which of them begin alike and so need be scored only once.

Everything here is about asks of the plainest kind: token ids, appended in order, each seeing all before it. What else a method
asks (trees, canvases, embeddings, rows written elsewhere) is scored whole and by itself.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from collections.abc import Sequence as Listing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from decodery._lazy import torch
from decodery.engine.prefix_tree import PrefixTree, common
from decodery.models.forward import Attend, Forward, Layers, Rows, Scores, Slots
from decodery.models.scorer import scorer_of

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
class Pending:
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
        """How many rows of a text that begins alike this ask could take."""
        return self.usable(common(self.text, text))

    def usable(self, rows: int) -> int:
        """How many of the first `rows` rows it could take: those before the first that must be answered, and where none must
        be, all but the last, so that a pass answers it."""
        return min(rows, self.base + next(iter(self._wanted), self.forward.count - 1))

    def gain(self, rows: int) -> int:
        """How many further rows it could take from a text that begins with the same `rows` tokens."""
        return self.usable(rows) - self.forward.sequence.length

    def same_as(self, other: Pending) -> bool:
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
        """Take over the keys and values of a sequence that begins alike, up to `length` rows."""
        sequence = self.forward.sequence
        rows, before = length - sequence.length, sequence.length
        sequence.take(source, length)
        self.done += rows
        self._mark(before)

    def answer_as(self, other: Pending) -> None:
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


def beginnings(sequences: Iterable[Sequence]) -> dict[Hashable, PrefixTree[Sequence]]:
    """What sequences have of plain rows that others may take, by network and layers."""
    found: dict[Hashable, PrefixTree[Sequence]] = {}
    for sequence in sequences:
        if sequence.plain >= SHORTEST:
            tree = found.setdefault((id(sequence.owner), sequence.plain_layers), PrefixTree())
            tree.put(sequence.tokens[: sequence.plain], sequence)
    return found


def leader_of(ask: Pending, others: PrefixTree[list[Pending]]) -> Pending | None:
    """The ask that scores most of the rows that this one needs as well; None where none is worth waiting for.

    others: asks of the same layers of the same network, by their texts.
    """
    same = next((other for other in others.get(ask.text) or () if ask.same_as(other)), None)
    near = others.nearest(ask.text)
    if same is not None or near is None:
        return same
    return near[0][0] if ask.gain(near[1]) >= SHORTEST else None


class KeptPrompts:
    """The beginnings of recent prompts with their keys and values, the least recently used forgotten first.

    budget: where their memory is accounted. most: bytes that they may take together.
    """

    def __init__(self, budget: KVBudget, most: int):
        self._budget, self.most = budget, most
        self._kept: OrderedDict[int, tuple[Sequence, int]] = OrderedDict()
        self._trees: dict[tuple[int, Layers | None], PrefixTree[int]] = {}
        self._count = 0
        self.size = 0
        """Bytes held."""

    def __len__(self) -> int:
        return len(self._kept)

    def _tree(self, sequence: Sequence, layers: Layers | None) -> PrefixTree[int]:
        """The numbers of what is kept of a network and some of its layers, by their texts."""
        return self._trees.setdefault((id(sequence.owner), layers), PrefixTree())

    def find(self, ask: Pending) -> tuple[Sequence, int] | None:
        """The kept sequence that an ask can take the most of, and up to which row; None where none is worth it."""
        near = self._tree(ask.forward.sequence, ask.forward.layers).nearest(ask.text)
        if near is None or ask.gain(near[1]) < SHORTEST:
            return None
        self._kept.move_to_end(near[0])
        return self._kept[near[0]][0], ask.usable(near[1])

    def keep(self, sequence: Sequence, rows: int) -> None:
        """Remember the first `rows` rows of a plain sequence, where there is room for them."""
        network, tokens = scorer_of(sequence), sequence.tokens[:rows]
        size, tree = network.cache_bytes(rows), self._tree(sequence, sequence.plain_layers)
        near = tree.nearest(tokens)
        if rows < SHORTEST or (near is not None and near[1] == rows):
            return
        for number in tree.along(tokens):  # what the new one begins with is of no more use
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
        tree.put(tokens, self._count)
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
        sequence, size = self._kept.pop(number)
        self._tree(sequence, sequence.plain_layers).remove(sequence.tokens)
        self.size -= size
        self._budget.give_back(size)
