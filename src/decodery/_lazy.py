"""torch and numpy, imported on first use.

The command line answers `--help` and `methods` in a fraction of a second, although every method's own file
computes with torch: importing torch alone takes seconds. Modules that are read for the registry write
`from decodery._lazy import np, torch`; type checkers see the real modules.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any


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
