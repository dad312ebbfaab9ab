"""Regular languages over the tokens of a model: a table that says where each token leads from each state."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from decodery._lazy import np
from decodery.errors import Refused, reason
from decodery.sampling.structured import determinise
from decodery.sampling.structured.expressions import Expression

MOST_SECONDS = 10
"""To make an automaton."""
AT_ONCE = 32
"""States whose moves are told apart in one go."""


@dataclass(frozen=True)
class ByteAutomaton:
    """A deterministic automaton over bytes, from each of whose states some text ends. State 0 is the first; the last of the
    table's rows is where nothing leads on from.

    moves: int32 [states + 1, 256]. accepting: bool [states + 1], whether a text may end there.
    """

    moves: Any
    accepting: Any

    @classmethod
    def of(cls, pattern: str) -> ByteAutomaton:
        """That of a regular expression. Raises Refused where outlines-core does not read it, no text matches it, or it is too
        large."""
        try:
            ran = subprocess.run(
                [sys.executable, "-I", determinise.__file__],
                input=pattern.encode(),
                capture_output=True,
                timeout=MOST_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise _too_large(f"takes more than {MOST_SECONDS} seconds to make") from None
        if ran.returncode:
            raise _too_large("does not fit into the memory that it may take")
        read = json.loads(ran.stdout)
        if "error" in read:
            raise Refused(
                "structured_outputs cannot be kept to on a canvas, since no automaton can be made of it: "
                f"{reason(ValueError(read['error']))}."
            )
        if "states" in read:
            raise _too_large(f"has {read['states']} states; at most {determinise.MOST_STATES} are followed")
        states = sorted(
            {read["first"], *read["ends"], *(state for move in read["moves"] for state in (move[0], move[2]))}
        )
        states.remove(read["first"])
        numbers = {state: place for place, state in enumerate([read["first"], *states])}
        moves = np.full((len(numbers) + 1, 256), len(numbers), np.int32)
        for state, byte, after in read["moves"]:
            moves[numbers[state], byte] = numbers[after]
        accepting = np.zeros(len(numbers) + 1, np.bool_)
        accepting[[numbers[state] for state in read["ends"]]] = True
        return cls(moves, accepting)


@dataclass(frozen=True)
class TokenAutomaton:
    """The same over tokens. Tokens that lead to the same state from everywhere are one kind.

    expression: its own. moves: int32 [states + 1, kinds]; the last row leads nowhere. accepting: bool [states + 1]. kinds:
    int64 [vocabulary], the kind of each token; one that says nothing leads nowhere.
    """

    expression: Expression
    moves: Any
    accepting: Any
    kinds: Any

    @classmethod
    def of(cls, expression: Expression, said: Sequence[bytes]) -> TokenAutomaton:
        """That of an expression. said: the bytes of every token, empty where it is not text. Raises Refused, see
        `ByteAutomaton`."""
        automaton = ByteAutomaton.of(expression.pattern)
        lengths = np.array([len(one) for one in said])
        letters = np.zeros((len(said), max(int(lengths.max()), 1)), np.uint8)
        for token, one in enumerate(said):
            letters[token, : len(one)] = list(one)
        dead = len(automaton.moves) - 1

        def columns(states: Sequence[int], tokens: Any) -> Any:
            """Where tokens lead to from some states, int32 [states, tokens]."""
            reached = np.full((len(states), len(tokens)), dead, np.int32)
            for place, state in enumerate(states):
                row = automaton.moves[state][letters[tokens, 0]]
                row[lengths[tokens] == 0] = dead
                going = np.flatnonzero(row != dead)
                for letter in range(1, letters.shape[1]):
                    going = going[(lengths[tokens[going]] > letter) & (row[going] != dead)]
                    if not len(going):
                        break
                    row[going] = automaton.moves[row[going], letters[tokens[going], letter]]
                reached[place] = row
            return reached

        everything = np.arange(len(said))
        kinds = np.zeros(len(said), np.int64)
        for start in range(0, dead, AT_ONCE):
            parts = columns(range(start, min(start + AT_ONCE, dead)), everything)
            kinds = np.unique(np.vstack([kinds[None], parts]), axis=1, return_inverse=True)[1].reshape(-1)
        _, examples = np.unique(kinds, return_index=True)
        moves = np.vstack([columns(range(dead), examples), np.full((1, len(examples)), dead, np.int32)])
        return cls(expression, moves, automaton.accepting, kinds)


def _too_large(what: str) -> Refused:
    return Refused(f"structured_outputs cannot be kept to on a canvas: its automaton {what}.")
