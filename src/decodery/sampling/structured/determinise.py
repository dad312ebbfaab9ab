"""A program of its own: reads a regular expression, writes its automaton over bytes as JSON.

An expression of a few characters can ask for more states than there is memory. So this runs in a process that may take so much
and no more, and imports nothing of the rest.
"""

import contextlib
import json
import sys

MOST_BYTES = 2 << 30
"""Of memory."""
MOST_STATES = 4096
BEGIN, END = 0, 1
"""Bytes that stand around each text, and in none. outlines-core looks for matches that begin anywhere, which would be many at
once, and leaves out texts that begin with shorter ones; so these two tell where a text begins and ends."""


def automaton(pattern: str) -> dict[str, object]:
    """first: its first state. moves: (state, byte, state after) of every move. ends: states where a text may end. Where there
    are too many, `states` alone: their number. Raises ValueError."""
    from outlines_core import Index, Vocabulary

    bytewise = Vocabulary(256, {bytes([byte]): [byte] for byte in range(256)})
    index = Index(f"\\x{BEGIN:02x}(?:{pattern})\\x{END:02x}", bytewise)
    moves = index.get_transitions()
    if len(moves) > MOST_STATES:
        return {"states": len(moves)}
    told = [(state, byte, after) for state, steps in moves.items() for byte, after in steps.items() if END < byte < 256]
    ends = [state for state, steps in moves.items() if END in steps]
    return {"first": moves[index.get_initial_state()][BEGIN], "moves": told, "ends": ends}


def main() -> None:
    with contextlib.suppress(ImportError):  # there is none on Windows
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    try:
        answer = automaton(sys.stdin.read())
    except ValueError as error:
        answer = {"error": str(error)}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
