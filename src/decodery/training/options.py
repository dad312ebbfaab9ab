"""The command lines of recipes: settings as options, one for every field of a dataclass, and refusals in one sentence."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import Field, fields, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

from decodery.errors import DecoderyError
from decodery.training.recipes import RECIPES

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = TypeVar("Settings", bound="DataclassInstance")
Given = ParamSpec("Given")


def refusing(main: Callable[Given, None]) -> Callable[Given, None]:
    """For the `main` of a recipe: what decodery raises on purpose, and files that cannot be read or written, are told in
    one sentence on the error stream, and the exit code is 2."""

    @wraps(main)
    def told(*given: Given.args, **named: Given.kwargs) -> None:
        try:
            main(*given, **named)
        except (DecoderyError, OSError) as error:
            sys.stderr.write(f"error: {error}\n")
            raise SystemExit(2) from None

    return told


def recipe_parser(name: str, about: str | None, **places: str) -> argparse.ArgumentParser:
    """The command line of a recipe, before its own options. about: the docstring of its module. places: required options for
    files and folders, and what goes there."""
    text = f"{about or ''}\n\nExample: decodery train {name} {RECIPES[name].example}"
    parser = argparse.ArgumentParser(
        prog=f"decodery train {name}", description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for place, what in places.items():
        parser.add_argument(f"--{place}", type=Path, required=True, help=what)
    return parser


class Show(Protocol):
    """Tells how far a stage is, in steps, with a note behind the bar."""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None: ...


def silent(stage: str, done: int, total: int, note: str = "") -> None:
    """A progress that says nothing."""


@contextmanager
def progress_bars() -> Iterator[Show]:
    """A progress bar for every stage, on the error stream."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True)) as bar:
        stages: dict[str, Any] = {}

        def show(stage: str, done: int, total: int, note: str = "") -> None:
            if stage not in stages:
                stages[stage] = bar.add_task(stage, total=total, note="")
            bar.update(stages[stage], completed=done, total=total, note=note)

        yield show


def _option(item: Field[Any]) -> str:
    return f"--{item.name.replace('_', '-')}"


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def add_options(parser: argparse.ArgumentParser, settings: DataclassInstance, without: Collection[str] = ()) -> None:
    """An option for every field but those `without`. Defaults are the settings' own; a tuple takes several values of its
    first one's type, an empty one texts; `metadata={"choices": ...}` of a field are the only values that it takes."""
    for item in fields(settings):
        if item.name in without:
            continue
        value = getattr(settings, item.name)
        several = isinstance(value, tuple)
        one = (value or ("",))[0] if isinstance(value, tuple) else value
        parser.add_argument(
            _option(item),
            type=type(one),
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
