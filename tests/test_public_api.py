"""What users may rely on, written down: a change of a public name or signature shows in a diff of `public_api.txt`.

Where the change is meant: DECODERY_UPDATE_API=1 pytest tests/test_public_api.py
"""

from __future__ import annotations

import enum
import importlib
import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOMS = ("decodery", "decodery.sampling", "decodery.testing")
RECORD = Path(__file__).with_name("public_api.txt")
UPDATE = "DECODERY_UPDATE_API"


def _signature(value: Any) -> str:
    """Parameters with their annotations as written, and defaults."""
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return "(...)"
    parts, star = [], False
    for parameter in signature.parameters.values():
        if parameter.name == "self":
            continue
        text = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "") + parameter.name
        if parameter.annotation is not parameter.empty:
            text += f": {_annotation(parameter.annotation)}"
        if parameter.default is not parameter.empty:
            text += f" = {_default(parameter.default)}"
        star = star or parameter.kind is parameter.VAR_POSITIONAL
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            parts.append("*")
            star = True
        parts.append(text)
    returned = signature.return_annotation
    tail = "" if returned is signature.empty or inspect.isclass(value) else f" -> {_annotation(returned)}"
    return f"({', '.join(parts)}){tail}"


def _annotation(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def _default(value: Any) -> str:
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    text = repr(value)
    return "..." if text.startswith("<") else text  # factories and functions have addresses


def _members(cls: type) -> Iterator[str]:
    """Public methods and properties, inherited ones of ours included; the members of an enumeration."""
    if issubclass(cls, enum.Enum):
        for member in cls:
            yield f"{member.name} = {member.value!r}"
    ours = [base for base in cls.__mro__ if base.__module__.startswith("decodery")]
    names = {name for base in ours for name in vars(base) if not name.startswith("_")}
    for name in sorted(names):
        if issubclass(cls, enum.Enum) and name in cls.__members__:
            continue
        value = inspect.getattr_static(cls, name)
        if isinstance(value, property):
            yield name
        elif isinstance(value, staticmethod | classmethod) or inspect.isfunction(value):
            yield f"{name}{_signature(getattr(cls, name))}"


def _public(room: ModuleType) -> Iterator[tuple[str, Any]]:
    for name in sorted(dir(room)):
        value = getattr(room, name)
        if name.startswith("_") or isinstance(value, ModuleType):
            continue
        origin = getattr(value, "__module__", None)
        constant = origin is None and name.isupper() and name != "TYPE_CHECKING"
        if constant or (isinstance(origin, str) and origin.startswith("decodery")):
            yield name, value


def public_api() -> str:
    lines = []
    for room_name in ROOMS:
        room = importlib.import_module(room_name)
        for name, value in _public(room):
            full = f"{room_name}.{name}"
            if inspect.isclass(value):
                bases = ", ".join(base.__name__ for base in value.__bases__ if base is not object)
                plain = issubclass(value, Exception | enum.Enum) or getattr(value, "_is_protocol", False)
                lines.append(f"class {full}{f' <{bases}>' if bases else ''}{'' if plain else _signature(value)}")
                lines.extend(f"    {member}" for member in _members(value))
            elif callable(value):
                lines.append(f"{full}{_signature(value)}")
            else:
                lines.append(f"{full}: {type(value).__name__}")
    return "\n".join(lines) + "\n"


def test_the_public_api_is_as_recorded() -> None:
    found = public_api()
    if os.environ.get(UPDATE):
        RECORD.write_text(found)
    recorded = RECORD.read_text()
    changed = sorted(set(found.splitlines()) ^ set(recorded.splitlines()))
    assert found == recorded, f"changed: {changed}; where this is meant, run again with {UPDATE}=1"


def test_every_public_name_is_documented() -> None:
    for room_name in ROOMS:
        for name, value in _public(importlib.import_module(room_name)):
            if inspect.isclass(value) or inspect.isfunction(value):
                assert (value.__doc__ or "").strip(), f"{room_name}.{name} has no docstring"


def test_lazy_names_and_their_types_agree() -> None:
    """What type checkers see and what is imported on first use are the same names."""
    import ast

    import decodery

    tree = ast.parse(Path(decodery.__file__).read_text())
    checked = {
        alias.asname: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert checked == decodery._LAZY
    for name in decodery._LAZY:
        assert name in dir(decodery)
        assert getattr(decodery, name).__module__ == decodery._LAZY[name]
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = decodery.nothing


@pytest.mark.parametrize(
    "code",
    [
        "import decodery; dir(decodery)",
        "import decodery.errors, decodery.models.forward, decodery.models.sequence, decodery.models.store",
        "from decodery import Method, Exactness, register, methods",
        "import decodery; decodery.methods()",
    ],
)
def test_importing_loads_nothing_heavy(code: str) -> None:
    heavy = ("torch", "transformers", "scipy", "numpy", "safetensors")
    code += f"; import sys; print(*[name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
