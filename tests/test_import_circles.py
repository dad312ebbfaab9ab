"""No module of the package needs, however far around, what needs it: not even for types, nor within a function."""

from __future__ import annotations

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"


def _imports() -> dict[str, set[str]]:
    """Module -> modules that it imports anywhere; packages count as nobody, since they are empty or import for others."""
    paths = {".".join(path.with_suffix("").relative_to(SOURCE).parts): path for path in SOURCE.rglob("*.py")}
    modules = {name: path for name, path in paths.items() if path.name != "__init__.py"}
    found: dict[str, set[str]] = {}
    for name, path in modules.items():
        wanted: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                wanted |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        found[name] = wanted & set(modules) - {name}
    return found


def _reached(start: str, imports: dict[str, set[str]]) -> set[str]:
    reached: set[str] = set()
    waiting = [start]
    while waiting:
        fresh = imports[waiting.pop()] - reached
        reached |= fresh
        waiting += fresh
    return reached


def test_no_module_imports_itself_round_about() -> None:
    imports = _imports()
    assert len(imports) > 100
    reached = {name: _reached(name, imports) for name in imports}
    circles = {frozenset(other for other in reached[name] if name in reached[other]) for name in imports}
    found = [{name.removeprefix("decodery.") for name in circle} for circle in circles if circle]
    assert not found, f"circles of imports: {[sorted(circle) for circle in found]}"
