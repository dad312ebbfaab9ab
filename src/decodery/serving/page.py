"""The page at /: its files, what it must know of settings, and how a method is written with the parameters that act."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from importlib import resources
from typing import Any

from starlette.responses import Response

from decodery.engine import registry
from decodery.engine.declared import build
from decodery.engine.parameters import checked, idle
from decodery.engine.settings import declared
from decodery.errors import BadParameter, MethodUnavailable, UnknownMethod, near
from decodery.sampling.settings import Setting
from decodery.sampling.steps import steps
from decodery.serving.asked import DEFAULT_TEMPERATURE
from decodery.serving.failures import Failure, bad_field
from decodery.serving.fields import EVENTS

FILES = resources.files("decodery.serving").joinpath("playground")
FOLDER = "/playground/"
"""Where its files are, but for the page itself."""
HEADERS = {
    # Nothing comes from elsewhere, and no text is ever read as HTML: assignments that would do so are errors.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}
TYPES = {".js": "text/javascript", ".html": "text/html", ".css": "text/css", ".svg": "image/svg+xml"}


def is_page(path: str) -> bool:
    """Whether a path is the page or one of its files, which hold no secret and are read before a key can be given."""
    return path == "/" or path.startswith(FOLDER)


def file(name: str) -> Response:
    """One of the files. Raises Failure (404) where it is none."""
    found = {one.name: one for one in FILES.iterdir()}
    suffix = name[name.rfind(".") :] if "." in name else ""
    if name not in found or suffix not in TYPES:
        raise Failure(404, f"there is no {name[:100]!r} here.")
    return Response(found[name].read_bytes(), headers=HEADERS, media_type=TYPES[suffix])


def settings_told() -> list[dict[str, Any]]:
    """Every setting that /v1/decodery/events takes, with what it may be and when it acts.

    needs: the setting that must be given for it to act; greedy_only: why it goes with temperature=0 alone. option: its name on
    the command line.
    """
    needs: dict[str, str] = {}
    greedy: dict[str, str] = {}
    for step in steps().values():
        first, *others = (own.name for own in step.settings())
        needs |= dict.fromkeys(others, first)
        greedy |= {first: step.greedy_only} if step.greedy_only else {}
    taken = set(EVENTS.settings().values())
    return [
        {
            "name": name,
            "help": own.help,
            "schema": own.kind.schema(),
            "default": _default(own),
            "option": own.option[0] if own.option else None,
            "needs": needs.get(name),
            "greedy_only": greedy.get(name, ""),
        }
        for name, own in declared().items()
        if name in taken
    ]


def _default(own: Setting) -> Any:
    """What holds at the server where a setting is not given; None where that depends on the request."""
    if own.name == "temperature":
        return DEFAULT_TEMPERATURE
    if own.name == "max_new_tokens":
        return None
    if isinstance(own.default, tuple):
        return list(own.default)
    plain = own.default is None or isinstance(own.default, bool | int | float | str | Mapping)
    return own.default if plain else own.default.name


def settled(name: Any, values: Any) -> dict[str, Any]:
    """A method with these values of its parameters: its spec, what it guarantees, and which parameters act.

    Values of parameters that do not act beside the others are left out. Raises Failure where a value cannot be.
    """
    if not isinstance(name, str):
        raise bad_field("name", "name must be the name of a method.")
    if not isinstance(values, dict):
        raise bad_field("values", "values must be an object: parameter -> value.")
    try:
        cls = registry.find(name)
        known = {item.name: item for item in cls.parameters() if item.names != "file"}
        for one in values:
            if one not in known:
                hint = near(one[:100], known) if known else "it has none."
                raise BadParameter(f"{name} has no parameter {one[:100]!r}; {hint}")
        mine = {own.name: own.default for own in dataclasses.fields(cls)}
        mine |= {one: checked(name, known[one], value) for one, value in values.items()}
        while left := [item for item in known.values() if idle(item, mine)]:
            mine |= {item.name: item.default for item in left}
        method = build(cls, {one: mine[one] for one in known})
        if files := registry.files_of(method):
            raise BadParameter(f"{files[0]} names a file of the server, which requests must not read.")
    except (BadParameter, UnknownMethod, MethodUnavailable) as error:
        raise bad_field("values", str(error)) from None
    return {
        "method": method.spec(),
        "exactness": str(method.exactness),
        "acts": [item.name for item in known.values() if item.acts(mine)],
    }
