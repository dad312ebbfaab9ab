"""The tables of docs/serving.md: fields, what is not offered, and the options of the server."""

from __future__ import annotations

import dataclasses

from decodery.engine.settings import declared
from decodery.serving.configuration import ServerConfiguration
from decodery.serving.fields import ROUTES

WORDS = ("chat", "completions", "responses", "events")
"""What the tables call each of `ROUTES`."""


def fields_table() -> str:
    """Every field, and on which routes it is one."""
    rows: dict[tuple[str, str], set[str]] = {}
    for route in ROUTES:
        for name, own in route.fields.items():
            rows.setdefault((f"`{name}`", own.help), set()).add(route.path)
        names: dict[str, list[str]] = {}
        for name, setting in route.settings().items():
            names.setdefault(setting, []).append(name)
        for setting, called in names.items():
            first = [setting] if setting in called else []
            said = ", ".join(f"`{name}`" for name in dict.fromkeys([*first, *called]))
            rows.setdefault((said, declared()[setting].help), set()).add(route.path)
    lines = [f"| field | {' | '.join(WORDS)} | what it does |", "|---" * (len(WORDS) + 2) + "|"]
    for (names_said, said), paths in rows.items():
        marks = " | ".join("✓" if route.path in paths else "" for route in ROUTES)
        lines.append(f"| {names_said} | {marks} | {_cell(said)} |")
    return "\n".join(lines) + "\n"


def not_offered_table() -> str:
    """Fields that are known and refused, with the values that are taken since they ask for nothing."""
    rows: dict[str, tuple[str, str, list[str]]] = {}
    for route, word in zip(ROUTES, WORDS, strict=True):
        for name, refused in route.not_offered.items():
            taken = ", ".join(f"`{_json(value)}`" for value in refused.neutral)
            rows.setdefault(f"{name} {taken} {refused.instead}", (name, taken, []))[2].append(word)
    lines = ["| field | on | taken | instead |", "|---|---|---|---|"]
    for key, (name, taken, words) in sorted(rows.items()):
        instead = key.removeprefix(f"{name} {taken} ")
        lines.append(f"| `{name}` | {', '.join(words)} | {taken} | {_cell(instead)} |")
    return "\n".join(lines) + "\n"


def options_table() -> str:
    """Options of the server, as in its file; on the command line they have hyphens."""
    lines = ["| option | default | what it does |", "|---|---|---|"]
    for field in dataclasses.fields(ServerConfiguration):
        default = "" if field.default is None else f"`{_json(field.default)}`"
        lines.append(f"| `{field.name}` | {default} | {_cell(field.metadata['help'])} |")
    return "\n".join(lines) + "\n"


TABLES = {"serving.fields": fields_table, "serving.not-offered": not_offered_table, "serving.options": options_table}
"""Mark in the page -> what stands there."""


def written(page: str) -> str:
    """A page whose tables are those of the code."""
    for mark, table in TABLES.items():
        begin, end = f"<!-- {mark} -->\n", f"<!-- /{mark} -->"
        before, _, rest = page.partition(begin)
        page = before + begin + table() + end + rest.partition(end)[2]
    return page


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _json(value: object) -> str:
    from decodery.serving.shapes import json_text

    return json_text(list(value) if isinstance(value, tuple) else value)
