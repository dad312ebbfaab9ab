"""What a coroutine that asks for scores is."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    from decodery.models.forward import Forward

Value = TypeVar("Value")
Asking: TypeAlias = "Generator[Forward | tuple[Forward, ...], Any, Value]"
"""Yields one forward or a tuple of them, is sent the scores of each, and returns a value."""
Decoding: TypeAlias = "Generator[Forward | tuple[Forward, ...], Any, None]"
"""What `Method.decode` returns: the same, whose value is what it has committed to its request."""
