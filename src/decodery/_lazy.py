"""torch and numpy, imported on first use; and imports that do not stop to look for garbage.

The command line answers `--help` and `methods` in a fraction of a second, although every method's own file
computes with torch: importing torch alone takes seconds. Modules that are read for the registry write
`from decodery._lazy import np, torch`; type checkers see the real modules.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Leave garbage alone for a while: importing and loading make very many objects that all stay, and looking for garbage
    among them again and again takes a fifth of the start."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _LazyModule(ModuleType):
    def __getattr__(self, name: str) -> Any:
        value = getattr(importlib.import_module(self.__name__), name)
        setattr(self, name, value)  # later look-ups cost nothing
        return value


if TYPE_CHECKING:
    import numpy
    import torch as torch

    np = numpy
else:
    np = _LazyModule("numpy")
    torch = _LazyModule("torch")
