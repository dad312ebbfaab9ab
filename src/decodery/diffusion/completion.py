"""Canvases that are held to a constraint: which tokens may come where, so that the whole can still become a text of it.

A canvas with open positions is itself a regular language, and so is what the constraint allows (`automata.py`). What can still
be completed is what both hold: states that are reached from the left by tokens that fit, and from which the right end can be
reached. This is exact for every position by itself. Of positions that are filled in one step each one is looked at again once
those left of it are written.

The text ends before the first end token, or with the canvas. What stands behind an end token is free.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from decodery._lazy import np, torch
from decodery.diffusion.laws import Laws
from decodery.diffusion.unmasking.base import Commit
from decodery.errors import BadSetting
from decodery.sampling.structured.automata import TokenAutomaton

if TYPE_CHECKING:
    from jaxtyping import Bool
    from torch import Tensor

    from decodery.diffusion.canvas import Canvas

MOST_REMEMBERED = 4096
REDRAWN = 1 << 32
"""Added to the index of a draw: that of one that takes the place of another."""


class Completion:
    """What the canvas of a request is held to.

    automaton: of the text. most: positions that the text may take, an end token included. least: positions before the first
    that may end it. ends: tokens that end it. pads: tokens that are skipped, and behind which only such may stand. banned:
    tokens that no law gives. Raises BadSetting where no text fits.
    """

    def __init__(
        self,
        automaton: TokenAutomaton,
        most: int,
        least: int,
        *,
        ends: Collection[int],
        pads: Collection[int],
        banned: Collection[int],
    ):
        self.most, self.least = most, least
        self.told = {"states": len(automaton.accepting) - 1, "nesting": automaton.expression.nesting}
        # Behind the states of the automaton: after an end token, and after a pad. Behind its kinds of tokens: those that end,
        # pads, and those that never come.
        states, kinds = automaton.moves.shape
        self._ended, self._padded = states, states + 1
        self._dead = states - 1
        end, pad, never = kinds, kinds + 1, kinds + 2
        self._kinds = automaton.kinds.copy()
        self._kinds[list(pads)] = pad
        self._kinds[list(ends)] = end
        self._kinds[list(banned)] = never
        self._never = never
        moves = np.full((states + 2, kinds + 3), self._dead, np.int32)
        moves[:states, :kinds] = automaton.moves
        moves[:states, end][automaton.accepting] = self._ended
        moves[:states, pad][automaton.accepting] = self._padded
        moves[self._ended, :never] = self._ended
        moves[self._padded, pad] = self._padded
        self._moves = moves
        self._last = np.append(automaton.accepting, [True, True])
        """Where the text may stand at its last position's end."""
        present = np.unique(self._kinds)
        present = present[present != never]
        leads = np.zeros((states + 2, states + 2), np.bool_)
        for state in range(states + 2):
            leads[state, moves[state, present]] = True
        leads[:, self._dead] = False
        self._leads, self._led = leads, np.ascontiguousarray(leads.T)
        """From each state, those to which some token leads; to each, those from which one does."""
        self._known: dict[tuple[bytes, ...], Any] = {}
        """Sets of states -> what was found of them: most positions are open, so the same ones come again."""
        if not self._from([None] * most)[0][0]:
            raise BadSetting(
                f"structured_outputs accepts no text that fits on {most} positions"
                + (f" and takes at least {least}" if least else "")
                + "; give a longer canvas (gen_length, max_new_tokens), or another constraint."
            )

    def allowed(self, canvas: Canvas, offsets: Sequence[int]) -> Bool[Tensor, "m vocabulary"]:
        """The tokens that each masked offset may take, the offsets ascending, so that what is filled can still be
        completed; reserved tokens may be among them where the text is over."""
        filled = self._filled(canvas)
        after, states = self._from(filled), self._start()
        rows = np.ones((len(offsets), len(self._kinds)), np.bool_)
        at = 0
        for row, offset in enumerate(offsets):
            if offset >= self.most:
                break
            states, at = self._along(states, filled, at, offset), offset
            rows[row] = self._between(states, after[offset + 1])[self._kinds]
        return torch.from_numpy(rows)

    def settled(self, canvas: Canvas, commit: Commit, laws: Laws) -> Commit:
        """The same offsets with tokens that can stand together: from left to right, one that can no longer come once those
        before it are written is drawn again, from the law of what can."""
        if len(commit.offsets) < 2:
            return commit
        filled = self._filled(canvas)
        after, states, chosen = self._from(filled), self._start(), commit.filled
        at = 0
        for offset in sorted(chosen):
            if offset >= self.most:
                break
            states, at = self._along(states, filled, at, offset), offset
            possible = self._between(states, after[offset + 1])
            if not possible[self._kinds[chosen[offset]]]:
                chosen[offset] = _redrawn(laws, offset, torch.from_numpy(possible[self._kinds]))
            filled[offset] = chosen[offset]
        return Commit(commit.offsets, tuple(chosen[offset] for offset in commit.offsets))

    def _filled(self, canvas: Canvas) -> list[int | None]:
        """The token of each offset that the text may take; None where it is masked."""
        answer = canvas.answer
        return [answer[offset] if canvas.step_of[offset] >= 0 else None for offset in range(self.most)]

    def _start(self) -> Any:
        states = np.zeros(len(self._leads), np.bool_)
        states[0] = True
        return states

    def _along(self, states: Any, filled: Sequence[int | None], start: int, end: int) -> Any:
        """The states before offset `end`, from those before `start`."""
        for offset in range(start, end):
            states = self._step(states, filled[offset], offset)
        return states

    def _step(self, states: Any, token: int | None, offset: int) -> Any:
        """The states after an offset, bool [states], from those before it."""
        if token is None:
            found = self._remembered((b"after", states), lambda: self._leads[states].any(0))
        else:
            found = np.zeros_like(states)
            found[self._moves[states, self._kinds[token]]] = True
            found[self._dead] = False
        return self._not_early(found, offset + 1)

    def _from(self, filled: Sequence[int | None]) -> list[Any]:
        """By border, the one before offset 0 first: the states from which the rest can be completed."""
        borders = [self._not_early(self._last, self.most)]
        for offset in range(self.most - 1, -1, -1):
            states, token = borders[-1], filled[offset]
            if token is None:
                found = self._remembered((b"before", states), partial(self._before, states))
            else:
                found = states[self._moves[:, self._kinds[token]]]
            borders.append(self._not_early(found, offset))
        return borders[::-1]

    def _before(self, states: Any) -> Any:
        return self._led[states].any(0)

    def _between(self, before: Any, after: Any) -> Any:
        """The kinds of tokens that lead from one of some states to one of others, bool [kinds]."""

        def found() -> Any:
            kinds = after[self._moves[before]].any(0)
            kinds[self._never] = False
            return kinds

        return self._remembered((b"between", before, after), found)

    def _not_early(self, states: Any, border: int) -> Any:
        """Without those in which the text is over, where it may not be yet."""
        if border > self.least:
            return states
        found = states.copy()
        found[[self._ended, self._padded]] = False
        return found

    def _remembered(self, key: tuple[Any, ...], find: Callable[[], Any]) -> Any:
        place = tuple(part if isinstance(part, bytes) else part.tobytes() for part in key)
        if place not in self._known:
            if len(self._known) >= MOST_REMEMBERED:
                self._known.clear()
            self._known[place] = find()
        return self._known[place]


def _redrawn(laws: Laws, offset: int, allowed: Bool[Tensor, " vocabulary"]) -> int:
    """A token of an offset from the law of what is allowed."""
    place = laws.offsets.index(offset)
    scores = laws.scores[place].masked_fill(~allowed.to(laws.scores.device), -float("inf"))
    narrowed = Laws([offset], scores[None], laws.law, laws.chance, laws.prompt, laws.committed, laws.number)
    return narrowed.draw([0], laws.number + REDRAWN)[0]
