"""Code that requests may ask for by a name: classes that somebody has registered in this process.

Each is a frozen dataclass whose fields are its arguments, made with `setting`. Those of other packages are found by an
entry-point group (name -> "module:Class"). Nothing but names and plain values ever comes from whoever asks: neither code nor
pickles.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from decodery.errors import BadParameter, BadSetting, near
from decodery.sampling.settings import settings_of
from decodery.spec import parse_spec

log = logging.getLogger("decodery")

Kind = TypeVar("Kind")


class Registry(Generic[Kind]):
    """Classes of a kind by name. word: what one of them is called; entry_points: the group of those of other packages."""

    def __init__(self, word: str, entry_points: str):
        self.word, self.entry_points = word, entry_points
        self.known: dict[str, type[Kind]] = {}
        self._read = False

    def register(self, cls: type[Kind]) -> type[Kind]:
        """Make a class known. Raises ValueError for a taken name."""
        name: str = cls.name  # type: ignore[attr-defined]
        if self.known.get(name, cls) is not cls:
            raise ValueError(f"there is a {self.word} {name!r} already")
        self.known[name] = cls
        return cls

    def all(self) -> Mapping[str, type[Kind]]:
        """All by name: registered ones, and those of installed packages. These are read once, since looking at what is
        installed is slow; a package that fails is left out, with a warning in the log."""
        if not self._read:
            self._read = True
            for point in importlib.metadata.entry_points(group=self.entry_points):
                try:
                    self.register(point.load())
                except Exception as error:
                    log.warning("the %s %r comes from %s, which fails: %s", self.word, point.name, point.value, error)
        return self.known

    def made(self, name: str, given: object, vocabulary: int) -> Kind:
        """What a name, a spec or a JSON object means. name: of the setting. Raises BadSetting."""
        try:
            word, values = parse_spec(given) if isinstance(given, str) else self._of_json(name, given)
        except BadParameter as error:
            raise BadSetting(f"{name}: {error}") from None
        known = self.all()
        if word not in known:
            hint = near(word, known) if known else "none is registered."
            raise BadSetting(f"{name}: there is no {self.word} {word!r}; {hint}")
        cls: Any = known[word]
        declared = {own.name: own for own in settings_of(cls)}
        for argument in values:
            if argument not in declared:
                hint = near(argument, declared) if declared else "it has none."
                raise BadSetting(f"{name}: {word} has no argument {argument!r}; {hint}")
        missing = next((own.name for own in declared.values() if own.default is None and own.name not in values), None)
        if missing is not None:
            raise BadSetting(f"{name}: {word} needs the argument {missing}.")
        made: Kind = cls(**{key: declared[key].convert(value, vocabulary) for key, value in values.items()})
        return made

    def _of_json(self, name: str, given: object) -> tuple[str, dict[str, Any]]:
        if isinstance(given, Mapping) and isinstance(given.get("name"), str):
            return given["name"], {key: value for key, value in given.items() if key != "name"}
        raise BadSetting(f'{name}: a {self.word} is a name, or {{"name": …}} with its arguments, not {given!r}.')

    def schema(self) -> Mapping[str, Any]:
        """One of them as a JSON schema."""
        known: Mapping[str, Any] = self.all()
        return {
            "anyOf": [
                {"type": "string"},
                *(
                    {
                        "type": "object",
                        "properties": {
                            "name": {"const": word},
                            **{
                                own.name: {**(own.kind.schema() or {}), "description": own.help}
                                for own in settings_of(cls)
                            },
                        },
                        "required": ["name", *(own.name for own in settings_of(cls) if own.default is None)],
                        "additionalProperties": False,
                    }
                    for word, cls in sorted(known.items())
                ),
            ]
        }
