"""Several sequences behind one: the network that a request with a `Target` sees."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from decodery._lazy import torch
from decodery.errors import BadPrompt
from decodery.models.forward import ALL_LAYERS, Attend, Forward, Scores, Slots, Tree
from decodery.models.scorer import Head, Scorer, Work, scorer_of
from decodery.models.sequence import NothingKept
from decodery.models.sequence import Sequence as CachedSequence

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.engine.asking import Decoding
    from decodery.engine.host import Host
    from decodery.engine.target import Member, Target


class ComposedNetwork(Scorer):
    """What a request sees of a target: the request's own network first, and the target's members behind it.

    prompt: of the request, in whose place members may read prompts of their own. Its forwards are never scored as they are:
    `expanded` hands the scheduler one forward per member. Passes through some layers only, with which methods draft, are those
    of the first network alone; rows that were begun there cannot be finished in the other members.
    """

    def __init__(self, target: Target, first: Scorer, members: Sequence[Member], prompt: Sequence[int]):
        self.target, self.first, self.others = target, first, tuple(members)
        self.prompt = tuple(prompt)
        networks = [first, *(member.network for member in members)]
        self.name = f"{first.name} as {target.spec()}"
        self.quantize = first.quantize
        self.path, self.vocabulary, self.layers, self.hidden = first.path, first.vocabulary, first.layers, first.hidden
        self.device, self.dtype, self.threads = first.device, first.dtype, first.threads
        self.parameters = sum({id(network): network.parameters for network in networks}.values())
        self.longer = [0, *(len(member.prompt or self.prompt) - len(self.prompt) for member in members)]
        """By how many rows the prompt of each network is longer than the request's."""
        self.context = min(network.context - max(0, more) for network, more in zip(networks, self.longer, strict=True))
        self.chains_only = any(network.chains_only for network in networks)
        steady = [network.stability for network in networks if network.stability is not None]
        self.stability = min(steady, key=lambda each: each.rows) if steady else None
        self.measured_rows = first.measured_rows
        self.taps = target.taps(first)
        """Layers of the first network that the target looks at."""

    @cached_property
    def _tap_head(self) -> Head:
        return self.first.head(normed=self.target.norms_taps)

    @property
    def networks(self) -> tuple[Scorer, ...]:
        """Of all members, the request's own first."""
        return (self.first, *(member.network for member in self.others))

    @property
    def border(self) -> int | None:
        borders = [border for network in self.networks if (border := network.border) is not None]
        return min(borders, default=None)

    @property
    def work(self) -> Work:
        return self.first.work

    def room(self, cached: int, length: int) -> int:
        return min(
            network.room(max(0, cached + more), max(1, length + more))
            for network, more in zip(self.networks, self.longer, strict=True)
        )

    def cache_bytes(self, rows: int, shared: int = 0) -> int:
        return sum(
            network.cache_bytes(max(0, rows + more), max(0, shared + more) if shared else 0)
            for network, more in zip(self.networks, self.longer, strict=True)
        )

    def rows_kept(self, rows: int) -> int:
        return self.first.rows_kept(rows)

    def new_sequence(self) -> ComposedSequence:
        return ComposedSequence(self, [network.new_sequence() for network in self.networks])

    def embed(self, tokens: Tensor) -> Tensor:
        others = {network.name for network in self.networks if network is not self.first}
        if others:
            raise ValueError(f"what enters {self.first.name} cannot enter {' and '.join(sorted(others))}")
        return self.first.embed(tokens)

    def head(self, tokens: Tensor | None = None, normed: bool = True) -> Head:
        return self.first.head(tokens, normed)

    def fingerprint(self) -> str:
        return self.first.fingerprint()

    def origin_of_faults(self, tokens: Sequence[int]) -> str:
        return f"they come from {self.name}"

    def check(self, forward: Forward) -> None:
        super().check(forward)
        if forward.layers.start > 0:
            raise ValueError(
                f"rows of {self.name} cannot go on from hidden rows of one member; draft with a method that scores whole passes"
            )

    def run_pass(self, forwards: Sequence[Forward]) -> list[Scores]:
        run = answers_to(forwards)
        parts = next(run)
        try:
            while True:
                parts = run.send(tuple(scorer_of(part.sequence).run_pass([part])[0] for part in parts))
        except StopIteration as stop:
            answers: list[Scores] = stop.value
            return answers

    # From one forward to those of the members, and back

    def parts(self, forward: Forward) -> list[Forward]:
        """The forwards of the members that answer one of this network, the first network's first; its alone where the others
        wait for what it says."""
        sequence = forward.sequence
        assert isinstance(sequence, ComposedSequence)
        whole = forward.layers == ALL_LAYERS
        parts = [replace(forward, sequence=sequence.members[0], rank=0 if whole else forward.rank)]
        if whole:
            parts[0] = replace(parts[0], taps=tuple(dict.fromkeys((*forward.taps, *self.taps))))
            if not self._defers(forward):
                parts += self._members(forward)
        return parts

    def later(self, forward: Forward, first: Scores) -> list[Forward]:
        """The forwards of members that were not among the parts, where the first network's scores ask for them."""
        common = self._common(forward)
        if not self._defers(forward) or not common or not bool(self.target.asks(first.logits[common]).any()):
            return []
        return self._members(forward)

    def _defers(self, forward: Forward) -> bool:
        """Whether the members wait for the first network's scores. They read what they have missed as a chain, so rows that do
        not see all before them are read at once."""
        return (
            self.target.defers
            and forward.layers == ALL_LAYERS
            and forward.attend is Attend.CAUSAL
            and forward.slots is Slots.APPEND
            and forward.positions is None
            and not isinstance(forward.tokens, torch.Tensor)
        )

    def _members(self, forward: Forward) -> list[Forward]:
        """The forwards of the members. Those of forwards that are one batch are one batch of their member."""
        sequence, parts = forward.sequence, []
        assert isinstance(sequence, ComposedSequence)
        for member, own in zip(self.others, sequence.members[1:], strict=True):
            if member.prompt is None and not self.target.defers:
                parts.append(replace(forward, sequence=own, taps=(), rank=0))
            elif (part := self._behind(forward, own, member.prompt or self.prompt)) is not None:
                parts.append(part)
        return parts

    def _common(self, forward: Forward) -> list[int]:
        """Which of the rows asked for all members score, as places among them: those from the prompt's last on."""
        slots = forward.written_slots()
        return [place for place, row in enumerate(forward.logit_rows()) if slots[row] >= len(self.prompt) - 1]

    def _behind(self, forward: Forward, own: CachedSequence, prompt: tuple[int, ...]) -> Forward | None:
        """The same rows behind another prompt, and before them those that the member has not read yet; None while the last row
        of the prompt is not scored."""
        cached, last = forward.sequence.length, len(self.prompt) - 1
        skipped = max(0, len(self.prompt) - cached)
        if cached + forward.count <= last:
            return None
        if not isinstance(forward.slots, Slots):
            raise ValueError(f"rows of {self.name} can be appended or written nowhere, and not to given slots")
        before = [*prompt, *forward.sequence.tokens[len(self.prompt) :]][own.length :]
        positions = None
        if forward.positions is not None:
            shift = len(prompt) - len(self.prompt)
            positions = [
                *range(own.length, own.length + len(before)),
                *(p + shift for p in list(forward.positions)[skipped:]),
            ]
        rows = forward.tokens[skipped:]
        if isinstance(rows, torch.Tensor) and rows.is_floating_point() and before:
            rows = torch.cat([own.owner.embed(torch.tensor(before)).to(rows), rows])
        elif before:
            rows = [*before, *(rows.tolist() if isinstance(rows, torch.Tensor) else rows)]
        attend: Attend | Tree | Tensor
        if isinstance(forward.attend, torch.Tensor):
            attend = torch.ones(len(rows), own.length + len(rows), dtype=torch.bool).tril(own.length)
            behind = forward.attend.shape[1] - len(self.prompt)
            attend[len(before) :, attend.shape[1] - behind :] = forward.attend[skipped:, len(self.prompt) :]
        else:
            attend = forward.attend
        first = len(before) - skipped
        logits = [row + first for row in forward.logit_rows() if cached + row >= last]
        return Forward(own, rows, positions, attend, forward.slots, logits=logits, joined=forward.joined)

    def joined(self, forward: Forward, parts: Sequence[Forward], scores: Sequence[Scores]) -> Scores:
        """The answer to a forward, given those to its parts. Rows before the prompt's last are the first network's alone."""
        first, slots, common = scores[0], forward.written_slots(), self._common(forward)
        if forward.slots is not Slots.NOWHERE:
            tokens = parts[0].sequence.tokens
            forward.sequence.write(slots, [tokens[slot] for slot in slots], forward.row_positions())
        if not common or forward.layers != ALL_LAYERS or len(scores) < len(self.networks):
            return first
        logits = first.logits.clone()
        hidden = {tap: first.hidden[tap] for tap in forward.taps}
        # Members that read the same prompt have scored every row, the others those from the prompt's last on.
        rows = [part.logits if len(part.logits) == len(common) else part.logits[common] for part in scores[1:]]
        if self.taps:
            asked = list(forward.logit_rows())
            places = [asked[place] for place in common]
            joined = torch.cat([first.hidden[tap][places] for tap in self.taps])
            rows += self._tap_head(joined).float().chunk(len(self.taps))
        logits[common] = self.target.combine([first.logits[common], *rows])
        return Scores(logits, hidden)


def composed(target: Target, host: Host, prompt: Sequence[int], new_tokens: int) -> ComposedNetwork:
    """The network of a request with a target. new_tokens: the most that it may give. Raises MethodUnavailable or BadParameter
    where the target cannot be scored, and BadPrompt where one of its members has too little context."""
    network = ComposedNetwork(target, host.network, target.members(host, prompt), prompt)
    needed = len(prompt) + new_tokens
    if needed > network.context:
        raise BadPrompt(
            f"prompt and output have {needed} tokens together, and {network.name} a context of {network.context} for them: "
            "a member of the target has a longer prompt, or a shorter context."
        )
    return network


class ComposedSequence(CachedSequence):
    """The rows of a composed network, and the sequences of its members, which follow it.

    members: of each network, the first being row for row this one.
    """

    def __init__(self, owner: ComposedNetwork, members: Sequence[CachedSequence]):
        super().__init__(owner, NothingKept())
        self.members = list(members)
        self._network = owner

    def keep(self, rows: Sequence[int], start: int = 0) -> None:
        for member, more in zip(self.members, self._network.longer, strict=True):
            _keep(member, [row + more for row in rows], start + more)
        super().keep(rows, start)

    def truncate(self, length: int) -> None:
        prompts = [None, *(member.prompt for member in self._network.others)]
        for member, own, more in zip(self.members, prompts, self._network.longer, strict=True):
            # Rows within the request's prompt stand for none of another prompt, whose last row is scored anew.
            within = own is not None and length < len(self._network.prompt)
            member.truncate(min(member.length, len(own or ()) - 1 if within else length + more))
        super().truncate(length)

    def fork(self) -> ComposedSequence:
        twin = ComposedSequence(self._network, [member.fork() for member in self.members])
        twin.tokens, twin.positions = list(self.tokens), list(self.positions)
        twin.read, twin.read_by, twin.regime = self.read, self.read_by, self.regime
        return twin


def _keep(sequence: CachedSequence, rows: Sequence[int], start: int) -> None:
    """Keep rows of a member; rows that only the first network has, which drafted with some layers, are not there."""
    there = [row for row in rows if row < sequence.length]
    if start <= sequence.length:
        sequence.keep(there, start)


def expanded(decoding: Decoding) -> Decoding:
    """The same coroutine with every forward of a composed network replaced by those of its members."""
    answer: Any = None
    try:
        while True:
            try:
                ask = decoding.send(answer)
            except StopIteration as stop:
                return stop.value
            answers = yield from answers_to((ask,) if isinstance(ask, Forward) else ask)
            answer = answers[0] if isinstance(ask, Forward) else tuple(answers)
    finally:
        decoding.close()


def answers_to(forwards: Sequence[Forward]) -> Generator[tuple[Forward, ...], Any, list[Scores]]:
    """Asks for the forwards of all members, in one step, and in another one for those that wait for what the first says."""
    groups = [_parts(forward) for forward in forwards]
    given = iter((yield tuple(part for group in groups for part in group)))
    answers: list[list[Scores]] = [[next(given) for _ in group] for group in groups]
    later = [_later(forward, own[0]) for forward, own in zip(forwards, answers, strict=True)]
    if any(later):
        given = iter((yield tuple(_batched(forwards, later))))
        for own, group in zip(answers, later, strict=True):
            own += [next(given) for _ in group]
    return [
        owner.joined(forward, group, own) if isinstance(owner := forward.sequence.owner, ComposedNetwork) else own[0]
        for forward, group, own in zip(forwards, groups, answers, strict=True)
    ]


def _parts(forward: Forward) -> list[Forward]:
    owner = forward.sequence.owner
    if not isinstance(owner, ComposedNetwork):
        return [forward]
    owner.check(forward)
    return owner.parts(forward)


def _later(forward: Forward, first: Scores) -> list[Forward]:
    owner = forward.sequence.owner
    return owner.later(forward, first) if isinstance(owner, ComposedNetwork) else []


def _batched(forwards: Sequence[Forward], groups: Sequence[Sequence[Forward]]) -> Generator[Forward, None, None]:
    """What is asked later, batch by batch: the first of each that is there begins it."""
    begun = False
    for forward, group in zip(forwards, groups, strict=True):
        begun = begun and forward.joined
        for part in group:
            yield replace(part, joined=begun)
        begun = begun or bool(group)
