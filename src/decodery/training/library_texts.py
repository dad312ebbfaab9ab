"""Texts that every machine has: functions of Python's own library, and paragraphs of its documentation."""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain
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


@cache
def paragraphs(count: int, shortest: int = 200) -> tuple[str, ...]:
    """The first paragraphs of prose of at least so many signs: of the language's reference, in the order of its topics, then of
    the docstrings of the library, in the order of its files."""
    from pydoc_data.topics import topics

    found: dict[str, None] = {}
    for text in chain((topics[topic] for topic in sorted(topics)), _documentation()):
        for paragraph in text.split("\n\n"):
            lines = paragraph.split("\n")
            # Examples, grammar and lists are indented, and headings are short.
            if len(paragraph) >= shortest and paragraph[0].isalpha() and all(line[:1].strip() for line in lines):
                found[" ".join(paragraph.split())] = None
        if len(found) >= count:
            break
    return tuple(found)[:count]


def _documentation() -> Iterator[str]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        if {"site-packages", "test", "tests"} & set(path.relative_to(root).parts):
            continue
        try:
            tree = ast.parse(path.read_text("utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                yield ast.get_docstring(node) or ""
