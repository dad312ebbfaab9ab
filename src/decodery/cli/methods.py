"""`decodery methods`: what is there to decode with."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Annotated

from rich.text import Text
from typer import Argument

from decodery.cli.console import output, print_json, print_line, print_table
from decodery.cli.options import JsonOption

if TYPE_CHECKING:
    from decodery.engine.parameters import Parameter
    from decodery.engine.registry import MethodInfo

SHADES = {
    "identical-to-plain": "green",
    "identical-to-sampling": "green",
    "greedy-identical": "green",
    "approximate": "yellow",
    "quality-changing": "magenta",
}


def methods(
    name: Annotated[
        str | None,
        Argument(metavar="NAME", help="One method, with its parameters; or a part of names, titles or papers."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the decoding methods by family, those that a word is found in, or describe one with its paper and parameters.

    Each method says what it guarantees: identical-to-plain, identical-to-sampling and greedy-identical methods give the
    output of plain decoding (in float32), only faster: the very tokens at the same seed, the same law, or the same greedy
    output. The others say what they change. decodery check decides that by experiment.

    Example: `decodery methods token-recycling`
    """
    from decodery.engine import registry

    entries = registry.methods()
    if name is not None and name not in registry.names() and (found := [e for e in entries if _holds(e, name)]):
        entries = found
    elif name is not None:
        info = registry.MethodInfo.of(registry.find(name))
        if as_json:
            print_json(info.as_dict())
        else:
            _page(info)
        return
    if as_json:
        print_json([entry.as_dict() for entry in entries])
        return
    rows: list[tuple[str | Text, ...]] = []
    for family in dict.fromkeys(entry.family for entry in entries):
        rows.append((Text(family, style="dim"), "", "", ""))
        rows += [
            (
                Text.assemble("  ", (entry.name, "bold")),
                entry.title,
                _exactness(entry),
                "; ".join(entry.wanted) or "–",
            )
            for entry in entries
            if entry.family == family
        ]
    print_table(("name", "title", "exactness", "needs"), rows)


def _holds(info: MethodInfo, word: str) -> bool:
    """Whether a word is found in what a method is called, its family, or its source; upper and lower case are alike."""
    return word.casefold() in " ".join((info.name, info.title, info.family, info.paper)).casefold()


def _exactness(info: MethodInfo) -> Text:
    return Text(str(info.exactness), style=SHADES.get(str(info.exactness), ""))


def _page(info: MethodInfo) -> None:
    console = output()
    console.print(Text.assemble((info.title, "bold"), f" ({info.name})"), soft_wrap=True)
    width = min(console.width, 100) if console.is_terminal else 100
    print_line()
    print_line(textwrap.fill(info.summary, width))
    print_line()
    facts: list[tuple[str, str | Text]] = [
        ("exactness", _exactness(info)),
        ("family", info.family),
        ("paper", info.paper),
        ("needs", "; ".join(info.wanted) or "nothing"),
        *(("refuses", f"{setting}: {reason}") for setting, reason in info.refuses.items()),
    ]
    for label, fact in facts:
        console.print(Text.assemble((f"{label:<11}", "dim"), fact), soft_wrap=True)
    print_line()
    if info.parameters:
        print_table(
            ("parameter", "type", "default", "range", "meaning"),
            [(Text(p.name, style="bold"), p.type, _default(p), p.range or "–", p.meaning) for p in info.parameters],
        )
    else:
        print_line("It has no parameters.")
    print_line()
    console.print(Text.assemble(("example    ", "dim"), _example(info)), soft_wrap=True)


def _default(parameter: Parameter) -> str:
    if parameter.default is None:
        return "auto"
    return str(parameter.default) if parameter.default != "" else '""'


def _example(info: MethodInfo) -> str:
    """A command that works: the first parameter stands in it with a value that it may have."""
    shown = next((p for p in info.parameters if p.default not in (None, "")), None)
    spec = f'"{info.name}({shown.name}={shown.default})"' if shown is not None else info.name
    return f'decodery generate --chat "What is a prime number?" --method {spec}'
