"""What a coroutine that asks for scores is."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    from decodery.models.forward import Forward

Value = TypeVar("Value")
Asking: TypeAlias = "Generator[Forward | tuple[Forward, ...], Any, Value]"
"""Yields one forward or a tuple of them, is sent the scores of each, and returns a value."""
Decoding: TypeAlias = "Generator[Forward | tuple[Forward, ...], Any, None]"
"""What `Method.decode` returns: the same, whose value is what it has committed to its request."""


def together(
    runs: Sequence[Asking[Value]],
) -> Generator[tuple[Forward, ...], Any, list[Value]]:
    """Several runs in step: what they ask for at the same time is scored in one pass. Returns what each returns."""
    results: dict[int, Value] = {}
    answers: dict[int, Any] = dict.fromkeys(range(len(runs)))
    while answers:
        asks: dict[int, Forward | tuple[Forward, ...]] = {}
        for place, answer in answers.items():
            try:
                asks[place] = runs[place].send(answer)
            except StopIteration as over:
                results[place] = over.value
        flat = [forward for ask in asks.values() for forward in (ask if isinstance(ask, tuple) else (ask,))]
        given = iter((yield tuple(flat)) if flat else ())
        answers = {
            place: tuple(next(given) for _ in ask) if isinstance(ask, tuple) else next(given)
            for place, ask in asks.items()
        }
    return [results[place] for place in range(len(runs))]
