"""Code with known solutions: functions of Python's own library whose docstrings hold examples."""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Function:
    """A function of the library. prompt: its head and docstring; solution: its body."""

    name: str
    prompt: str
    solution: str


@cache
def functions(count: int, longest: int = 1600, examples: bool = True) -> tuple[Function, ...]:
    """The first functions, in the order of their files, of at most so many signs. examples: those with examples alone."""
    found: list[Function] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        try:
            source = path.read_text("utf-8")
            tree = ast.parse(source)
        except (SyntaxError, UnicodeDecodeError):
            continue
        found += (f for f in _functions(path.stem, source, tree, examples) if len(f.prompt + f.solution) <= longest)
        if len(found) >= count:
            break
    return tuple(found[:count])


def _functions(module: str, source: str, tree: ast.Module, examples: bool) -> Iterator[Function]:
    lines = source.splitlines(keepends=True)
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef) or len(node.body) < 2:
            continue
        documentation = ast.get_docstring(node)
        if documentation is None or (examples and ">>>" not in documentation):
            continue
        start, body, end = node.lineno - 1, node.body[0].end_lineno, node.end_lineno
        assert body is not None
        yield Function(f"{module}.{node.name}", "".join(lines[start:body]), "".join(lines[body:end]))
