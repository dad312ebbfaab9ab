"""The race: every entrant answers every group of prompts once per round, one at a time, in an order that rotates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .entrants import PLAIN, Entrant
from .worker import EngineFailed, Turn, Worker

WARM_UP_TOKENS = 24


@dataclass(frozen=True)
class Group:
    """Prompts that are decoded together. categories: of the questions they come from."""

    prompts: tuple[tuple[int, ...], ...]
    categories: tuple[str, ...]

    @property
    def batch(self) -> int:
        """How many prompts."""
        return len(self.prompts)


@dataclass(frozen=True)
class Record:
    """One turn. group: its place among the groups. identical: the share of plain decoding's answers before the first token that
    differs, mean over the prompts."""

    entrant: str
    batch: int
    group: int
    round: int
    new_tokens: int
    seconds: float
    identical: float
    first_token_seconds: float | None = None
    told: dict[str, Any] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Tokens per second of all prompts together, prefill included."""
        return self.new_tokens / self.seconds


@dataclass
class Race:
    """A race on its way. failures: by entrant, why it was left out; its records are dropped then."""

    entrants: list[Entrant]
    workers: dict[str, Worker]
    groups: Sequence[Group]
    new_tokens: int
    ends: Sequence[int] = ()
    records: list[Record] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    def warm_up(self, tell: Callable[[str], None]) -> None:
        """Let every entrant decode something of each batch size, so that nothing is loaded or compiled on the clock."""
        first: dict[int, Group] = {}
        for group in self.groups:
            first.setdefault(group.batch, group)
        for entrant in list(self.entrants):
            for group in first.values():
                if self._takes_part(entrant, group, 0):
                    tell(f"warming up: {entrant.name}, {group.batch} together")
                    self._turn(entrant, group, min(WARM_UP_TOKENS, self.new_tokens), "warm-up")

    def run(self, rounds: int, tell: Callable[[str], None], after_round: Callable[[int], None]) -> None:
        """All rounds. after_round: called after each with its number; whatever it does is on nobody's clock."""
        steps = 0
        for number in range(rounds):
            for place, group in enumerate(self.groups):
                tell(
                    f"round {number + 1} of {rounds}, group {place + 1} of {len(self.groups)} ({group.batch} together)"
                )
                start = steps % len(self.entrants)
                steps += 1
                turns: list[tuple[Entrant, Turn]] = []
                for entrant in [*self.entrants[start:], *self.entrants[:start]]:
                    if self._takes_part(entrant, group, number):
                        # What is learnt from earlier prompts of this round is kept, what an earlier round answered is not.
                        session = f"round {number}, batches of {group.batch}"
                        turn = self._turn(entrant, group, self.new_tokens, session)
                        if turn is not None:
                            turns.append((entrant, turn))
                self._keep(turns, place, number)
            after_round(number)

    def _takes_part(self, entrant: Entrant, group: Group, number: int) -> bool:
        return (
            entrant.name not in self.failures
            and (entrant.most_together is None or group.batch <= entrant.most_together)
            and (entrant.rounds is None or number < entrant.rounds)
        )

    def _turn(self, entrant: Entrant, group: Group, new_tokens: int, session: str) -> Turn | None:
        try:
            worker = self.workers[entrant.worker]
            return worker.generate(group.prompts, new_tokens, ends=self.ends, way=entrant.way, session=session)
        except EngineFailed as error:
            if entrant.name == PLAIN:
                raise
            self.failures[entrant.name] = str(error)
            self.entrants.remove(entrant)
            self.records = [record for record in self.records if record.entrant != entrant.name]
            return None

    def _keep(self, turns: Sequence[tuple[Entrant, Turn]], place: int, number: int) -> None:
        group = self.groups[place]
        expected = next(turn.tokens for entrant, turn in turns if entrant.name == PLAIN)
        for entrant, turn in turns:
            if entrant.name not in self.failures:
                shares = [same(tokens, plain) for tokens, plain in zip(turn.tokens, expected, strict=True)]
                self.records.append(
                    Record(
                        entrant.name,
                        group.batch,
                        place,
                        number,
                        turn.new_tokens,
                        turn.seconds,
                        sum(shares) / len(shares),
                        turn.first_token_seconds,
                        turn.told,
                    )
                )


def same(tokens: Sequence[int], expected: Sequence[int]) -> float:
    """The share of `expected` before the first token that differs."""
    for place, token in enumerate(expected):
        if place >= len(tokens) or tokens[place] != token:
            return place / len(expected)
    return 1.0


def groups_of(prompts: Sequence[tuple[str, Sequence[int]]], questions: int, batches: Sequence[int]) -> list[Group]:
    """The groups of each batch size.

    prompts: (category, token ids), in the order in which they are taken. The first `questions` are decoded one at a time; a
    larger batch size takes the same ones and as many further prompts as its last group wants, and leaves an incomplete group
    out. No prompt comes twice at one size. Raises ValueError where there are fewer prompts than the largest batch.
    """
    found = []
    for batch in batches:
        if len(prompts) < batch:
            raise ValueError(f"{len(prompts)} prompts are too few for batches of {batch}; give more questions.")
        wanted = min(-(-questions // batch) * batch, len(prompts) // batch * batch)
        for start in range(0, wanted, batch):
            part = prompts[start : start + batch]
            found.append(Group(tuple(tuple(ids) for _, ids in part), tuple(category for category, _ in part)))
    return found
