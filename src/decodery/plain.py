"""Numbers of numpy, torch and their kind as Python's own, so that they mean the same wherever a number is asked for."""

from __future__ import annotations

from typing import Any


def plain(value: Any) -> Any:
    """A number without dimensions as Python's int, float or bool; anything else as it is."""
    if getattr(value, "ndim", None) != 0 or not hasattr(value, "item"):
        return value
    number = value.item()
    # numpy has floats wider than Python's, and gives them back as they are.
    return float(number) if hasattr(number, "item") and not isinstance(number, complex) else number
