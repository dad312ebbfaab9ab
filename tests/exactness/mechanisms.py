"""The ways in which methods work, found out from what they declare."""

from __future__ import annotations

import inspect

from decodery.engine.needs import DEFAULTS
from decodery.engine.registry import MethodInfo, find, names
from decodery.models.kinds import Kind


def mechanism(method: str) -> object:
    """How a method works: its loop, the abstract bases that it fills in, its guarantee, and what it needs."""
    cls = find(method)
    return cls.decode, tuple(base for base in cls.__mro__ if inspect.isabstract(base)), cls.exactness, cls.needs


def one_of_each() -> list[str]:
    """One method of each mechanism: the default method where it is of it, else the first."""
    found: dict[object, str] = {}
    for name in names():
        if name in DEFAULTS.values() or mechanism(name) not in found:
            found[mechanism(name)] = name
    return list(found.values())


CAUSAL = [name for name in names() if MethodInfo.of(find(name)).suits(Kind.NEXT_TOKEN)]
"""Methods that decode with causal models."""
LOSSLESS = [name for name in CAUSAL if find(name).exactness.lossless]
"""Those of them that promise plain decoding's greedy output."""
