"""The two puzzles of ParallelBench: Latin squares and Sudoku, both of size 4. Squares are tuples of rows of strings."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import permutations

SIZE = 4
SYMBOLS = tuple(string.ascii_uppercase + string.digits)
"""What the symbols of a Latin square are drawn from."""
DIGITS = ("1", "2", "3", "4")
BLANK = "0"
Square = tuple[tuple[str, ...], ...]


@cache
def latin_squares() -> tuple[tuple[tuple[int, ...], ...], ...]:
    """All 576 Latin squares of size 4, as rows of numbers below 4."""
    rows = list(permutations(range(SIZE)))
    found: list[tuple[tuple[int, ...], ...]] = []

    def grow(square: tuple[tuple[int, ...], ...]) -> None:
        if len(square) == SIZE:
            found.append(square)
            return
        for row in rows:
            if all(row[column] != above[column] for above in square for column in range(SIZE)):
                grow((*square, row))

    grow(())
    return tuple(found)


def is_latin(square: Sequence[Sequence[str]], symbols: Sequence[str]) -> bool:
    """Whether every row and every column is a permutation of the symbols."""
    wanted = sorted(symbols)
    if len(square) != len(symbols) or any(len(row) != len(symbols) for row in square):
        return False
    return all(sorted(line) == wanted for line in (*square, *zip(*square, strict=True)))


def draw_latin(symbols: Sequence[str], generator: random.Random) -> Square:
    """A Latin square of four symbols, uniform over all 576."""
    square = generator.choice(latin_squares())
    return tuple(tuple(symbols[i] for i in row) for row in square)


def shifted_latin(symbols: Sequence[str], generator: random.Random) -> Square:
    """A Latin square as the published generator draws it: shifted rows, then rows and columns shuffled."""
    n = len(symbols)
    rows, columns = generator.sample(range(n), n), generator.sample(range(n), n)
    return tuple(tuple(symbols[(row + column) % n] for column in columns) for row in rows)


@cache
def sudoku_grids() -> tuple[tuple[tuple[int, ...], ...], ...]:
    """All 288 full Sudokus of size 4, as rows of numbers below 4: Latin squares whose four boxes hold every number."""
    boxes = [[(r + i, c + j) for i in (0, 1) for j in (0, 1)] for r in (0, 2) for c in (0, 2)]
    return tuple(s for s in latin_squares() if all(len({s[i][j] for i, j in box}) == SIZE for box in boxes))


def solutions(puzzle: Sequence[Sequence[str]]) -> Iterator[Square]:
    """All solutions of a Sudoku whose blanks are "0", by going through every grid."""
    for grid in sudoku_grids():
        full = tuple(tuple(DIGITS[i] for i in row) for row in grid)
        if all(
            given in (BLANK, value)
            for a, b in zip(puzzle, full, strict=True)
            for given, value in zip(a, b, strict=True)
        ):
            yield full


def draw_sudoku(generator: random.Random, givens: int = 12) -> tuple[Square, Square]:
    """A Sudoku with one solution, and that solution. givens: 4 to 15 (with fewer, no puzzle has a single solution).

    Raises ValueError for other numbers.
    """
    if not 4 <= givens < SIZE * SIZE:
        raise ValueError(f"a Sudoku of size 4 has 4 to 15 givens, not {givens}")
    while True:
        full = tuple(tuple(DIGITS[i] for i in row) for row in generator.choice(sudoku_grids()))
        blanks = set(generator.sample(range(SIZE * SIZE), SIZE * SIZE - givens))
        puzzle = tuple(tuple(BLANK if SIZE * r + c in blanks else full[r][c] for c in range(SIZE)) for r in range(SIZE))
        if sum(1 for _ in solutions(puzzle)) == 1:
            return puzzle, full
