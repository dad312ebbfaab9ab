"""Whether drafts pay, by rounds as they were: seconds and tokens of rounds with drafts and of rounds without.

A cost curve knows passes of one request on a quiet machine. What drafting and verification take besides, what many requests
together make of it, and what a busy machine makes of the curve, only rounds can tell. So while requests that draft run, a few
rounds now and then are plain and a few are not, for all of them at once, and what was faster is kept to until the next trial.
Nothing of a text depends on it: only drafters whose drafts are not drawn at random are paced.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

PLAIN_ROUNDS, DRAFT_ROUNDS, TURNS = 2, 4, 2
"""A trial: so many measured rounds of either kind by turns."""
SHORTEST, LONGEST = 64, 1024
"""Rounds from a trial to the next; twice as many each time that the verdict stays."""
SOON = 8
"""The same where a trial came to no verdict, such as while prompts are read."""
KEPT_PLAIN, KEPT_DRAFTS = 8, 32
"""So many latest rounds count."""
LEAST = 3
"""With fewer rounds of a kind there is no verdict."""
OUTLIER = 3.0
"""A round counts for at most so many medians: others read a prompt meanwhile, or another program had the machine."""
DOUBT = 0.5
"""Standard errors by which a verdict must be contradicted."""


class Measured(NamedTuple):
    """A round of the engine. company: requests that it served. tokens: committed per request. seconds: until the next round."""

    company: int
    tokens: float
    seconds: float


def rate(rounds: Sequence[Measured]) -> tuple[float, float]:
    """Tokens per second of a request over these rounds, and the standard error of it."""
    most = OUTLIER * statistics.median(round.seconds for round in rounds)
    seconds = [min(round.seconds, most) for round in rounds]
    total = sum(seconds)
    found = sum(round.tokens for round in rounds) / total
    squares = sum((round.tokens - found * spent) ** 2 for round, spent in zip(rounds, seconds, strict=True))
    return found, math.sqrt(squares) / total


class Course:
    """What requests of about the same company do together: draft, or not, each for some rounds."""

    def __init__(self) -> None:
        self._rounds = {False: deque[Measured](maxlen=KEPT_PLAIN), True: deque[Measured](maxlen=KEPT_DRAFTS)}
        self._open: dict[object, Measured] = {}
        """What each request told of the present round."""
        self.pays = True
        """The verdict; before the first trial, what the cost curve is trusted with."""
        self._stretches = self._plan()
        self.stretch = -1
        """Number of the present stretch: rounds of one kind in a row."""
        self.drafts, self._left = True, 0
        self._next()

    def _plan(self) -> Iterator[tuple[bool, int]]:
        """Whether to draft, and for how many rounds."""
        patience = SHORTEST
        while True:
            for _ in range(TURNS):
                yield False, PLAIN_ROUNDS
                yield True, DRAFT_ROUNDS
            before, verdict = self.pays, self._verdict()
            if verdict is None:
                yield before, SOON
                continue
            self.pays = verdict
            patience = min(2 * patience, LONGEST) if verdict == before else SHORTEST
            yield verdict, patience

    def _next(self) -> None:
        self.drafts, self._left = next(self._stretches)
        self.stretch += 1
        self._open = {}

    def observe(self, who: object, company: int, tokens: int, seconds: float) -> None:
        """One of `company` requests, `who`, committed `tokens` in a round that took `seconds`, of the present stretch."""
        if who in self._open:  # a round in which others read prompts, or do not draft: its time is no measure
            self._over()
        self._open[who] = Measured(company, tokens, seconds)
        if len(self._open) == company:
            told = self._open.values()
            tokens_each = sum(round.tokens for round in told) / company
            seconds_each = sum(round.seconds for round in told) / company
            if seconds_each > 0:
                self._rounds[self.drafts].append(Measured(company, tokens_each, seconds_each))
            self._over()

    def _over(self) -> None:
        self._open = {}
        self._left -= 1
        if not self._left:
            self._next()

    def _verdict(self) -> bool | None:
        """Whether drafts pay: as before, unless measured rounds of the present company contradict it; None where too few were
        measured."""
        company = self._rounds[True][-1].company if self._rounds[True] else 0
        plain, drafts = ([round for round in self._rounds[kind] if round.company == company] for kind in (False, True))
        if min(len(plain), len(drafts)) < LEAST:
            return None
        (without, doubt), (with_drafts, more_doubt) = rate(plain), rate(drafts)
        gain, doubt = with_drafts - without, DOUBT * math.hypot(doubt, more_doubt)
        return gain >= -doubt if self.pays else gain > doubt


class Pace:
    """Courses by company, shared by all requests of a method on one network. clock: tells seconds."""

    def __init__(self, clock: Callable[[], float]):
        self.clock = clock
        self._courses: dict[int, Course] = {}

    def course(self, company: int) -> Course:
        """The course of so many requests together: of 1, 2, 3 to 4, 5 to 8, and so on."""
        size = (company - 1).bit_length()
        if size not in self._courses:
            self._courses[size] = Course()
        return self._courses[size]


class Laps:
    """The rounds of one request, as they pass."""

    def __init__(self, pace: Pace):
        self._pace = pace
        self._course: Course | None = None
        self._stretch = self._company = 0
        self._since = 0.0
        self._pure = False
        """Whether the last round was of the same stretch: time runs from the end of a round to the end of the next."""

    def begin(self, company: int) -> bool:
        """A round begins: whether to draft."""
        course = self._pace.course(company)
        self._pure = course is self._course and course.stretch == self._stretch and company == self._company
        self._course, self._stretch, self._company = course, course.stretch, company
        return course.drafts

    def end(self, tokens: int, away: float = 0.0) -> None:
        """The round is over and has committed so many tokens. away: seconds so far in which nobody let the engine work."""
        now = self._pace.clock() - away
        course = self._course
        if course is not None and self._pure and course.stretch == self._stretch:
            course.observe(self, self._company, tokens, now - self._since)
        self._since = now
