"""The settings of a recipe as options of a command line, one for every field of a dataclass."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping
from dataclasses import Field, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = TypeVar("Settings", bound="DataclassInstance")


def _option(item: Field[Any]) -> str:
    return f"--{item.name.replace('_', '-')}"


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def add_options(parser: argparse.ArgumentParser, settings: DataclassInstance, without: Collection[str] = ()) -> None:
    """An option for every field but those `without`. Defaults are the settings' own; a tuple takes several values of its
    first one's type; `metadata={"choices": ...}` of a field are the only values that it takes."""
    for item in fields(settings):
        if item.name in without:
            continue
        value = getattr(settings, item.name)
        several = isinstance(value, tuple)
        parser.add_argument(
            _option(item),
            type=type(value[0] if several else value),
            nargs="+" if several else None,
            default=value,
            choices=item.metadata.get("choices"),
            help=f"default: {_text(value)}",
        )


def read_options(settings: Settings, given: Mapping[str, Any]) -> Settings:
    """The settings with what was given on the command line; a field that is no option stays as it is. Raises what their
    constructor raises."""
    values = {item.name: given[item.name] for item in fields(settings) if item.name in given}
    return replace(settings, **{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


def changed_options(settings: Settings, other: Settings) -> list[str]:
    """The options that make `other` of the settings, such as "--rate 0.001"."""
    now = {item: getattr(other, item.name) for item in fields(settings)}
    return [f"{_option(item)} {_text(value)}" for item, value in now.items() if value != getattr(settings, item.name)]
