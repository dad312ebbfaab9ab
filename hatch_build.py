"""Compiles the native decoder when the package is built.

A wheel gets it for every set of instructions of this kind of machine that the compiler knows, an editable installation for
none: there it is compiled on first use, for the machine at hand, and again when a source has changed. Without a C compiler the
package is built all the same.
"""

from __future__ import annotations

import importlib.util
import platform
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NATIVE = "src/decodery/models/native"


class CompiledDecoder(BuildHookInterface):
    """Adds the compiled decoder to a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable" or platform.system() != "Linux":
            return
        compiling = _compiling(Path(self.root) / NATIVE)
        for instructions in compiling.SETS.get(platform.machine(), ()):
            place = compiling.BUILT / compiling.file_name(instructions)
            try:
                if not place.exists():
                    compiling.compile_to(place, instructions)
            except compiling.NotBuilt as reason:
                self.app.display_warning(f"the native decoder is not compiled for {instructions.name}: {reason}")
                continue
            build_data["force_include"][str(place)] = f"decodery/models/native/built/{place.name}"
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-linux_{platform.machine()}"


def _compiling(folder: Path) -> ModuleType:
    """decodery.models.native.compiling, without the package around it, whose dependencies are not there yet."""
    spec = importlib.util.spec_from_file_location("decodery_compiling", folder / "compiling.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
