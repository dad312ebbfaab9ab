"""Constraints that are code: what may be asked of a text, and how much a text is worth.

In Python a request may bring functions or an object of its own. Over the wire there are names alone: of rules that somebody has
registered in the server's process (`register_rule`, or the entry-point group `decodery.rules`).
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from decodery.errors import BadSetting, ConstraintFailed
from decodery.sampling.named import Registry
from decodery.sampling.settings import settings_of

ENTRY_POINTS = "decodery.rules"
FUNCTIONS = {
    "predicate": "a function of a text that says True or False, and is asked of every beginning of the output",
    "potential": "a function of a whole text that says how much it is worth, at least 0",
    "critic": "a function of a beginning that says how much is to be hoped for behind it, at least 0",
}
"""What a constraint may hold beside, or in place of, a grammar; in Python alone."""
SHOWN = 60
"""Characters of a text that a message shows."""


class TextRule:
    """Base of rules. All methods are asked of the visible output alone, without the prompt; give the same answer for the same
    text. One that is registered is a frozen dataclass whose fields are its arguments, made with `setting`."""

    name: ClassVar[str] = ""

    def begins(self, text: str) -> bool:
        """Whether some valid text begins so. Where it says no, it must say no to every longer text."""
        return True

    def accepts(self, text: str) -> bool:
        """Whether a text is valid as it stands. By default all that is a beginning is."""
        return self.begins(text)

    def weight(self, text: str) -> float:
        """How much a valid text is worth: the law that is sought is the model's times this. At least 0 and finite."""
        return 1.0

    def promise(self, text: str) -> float:
        """How much the texts behind a beginning are worth, by a guess, at least 0 and finite. It steers a search, and what is
        found weighs what `weight` says; but where it says 0, nothing is looked for."""
        return 1.0


@dataclass(frozen=True)
class FunctionRule(TextRule):
    """A rule of functions that a request brings; see FUNCTIONS."""

    predicate: Callable[[str], bool] | None = None
    potential: Callable[[str], float] | None = None
    critic: Callable[[str], float] | None = None

    def begins(self, text: str) -> bool:
        return True if self.predicate is None else self.predicate(text)

    def weight(self, text: str) -> float:
        return 1.0 if self.potential is None else self.potential(text)

    def promise(self, text: str) -> float:
        return 1.0 if self.critic is None else self.critic(text)


REGISTRY: Registry[TextRule] = Registry("rule", ENTRY_POINTS)


def register_rule(cls: type[TextRule]) -> type[TextRule]:
    """Make a rule known; as a decorator, or called for one of another package. Raises ValueError for a taken name."""
    return REGISTRY.register(cls)


@dataclass(frozen=True)
class AskedRule:
    """A rule that is asked with care: whatever its code does wrong ends the request with one sentence.

    told: it as JSON, from which the same rule can be made again; empty where it is code of this process alone.
    """

    of: TextRule
    told: str = ""

    @property
    def called(self) -> str:
        """It, in words."""
        if isinstance(self.of, FunctionRule):
            given = [name for name in FUNCTIONS if getattr(self.of, name) is not None]
            return " and ".join(f"the {name} {_name(getattr(self.of, name))}" for name in given)
        return f"the rule {self.of.name or type(self.of).__name__}"

    @property
    def code(self) -> tuple[Any, ...]:
        """What tells it from other code of this process, and is nowhere else."""
        if isinstance(self.of, FunctionRule):
            return tuple(getattr(self.of, name) for name in FUNCTIONS)
        return () if self.told else (self.of,)

    @property
    def weighs(self) -> bool:
        """Whether texts are worth different amounts."""
        if isinstance(self.of, FunctionRule):
            return self.of.potential is not None or self.of.critic is not None
        cls = type(self.of)
        return cls.weight is not TextRule.weight or cls.promise is not TextRule.promise

    def begins(self, text: str) -> bool:
        """See `TextRule.begins`. Raises ConstraintFailed where the rule breaks down."""
        return self._answer("begins", text)

    def accepts(self, text: str) -> bool:
        """See `TextRule.accepts`. Raises ConstraintFailed where the rule breaks down."""
        return self._answer("accepts", text)

    def weight(self, text: str) -> float:
        """See `TextRule.weight`. Raises ConstraintFailed where the rule breaks down."""
        return self._number("weight", text)

    def promise(self, text: str) -> float:
        """See `TextRule.promise`. Raises ConstraintFailed where the rule breaks down."""
        return self._number("promise", text)

    def not_closed(self, beginning: str, text: str) -> ConstraintFailed:
        """What to say of a rule that says no to a beginning of a text to which it says yes."""
        return ConstraintFailed(
            f"{self.called} says no to {_shown(beginning)} and yes to {_shown(text)}, which begins so; it must say whether "
            "some valid text begins so, and what is valid as a whole belongs in `accepts` of a TextRule."
        )

    def _answer(self, method: str, text: str) -> bool:
        answer = self._asked(method, text)
        if type(answer).__name__ not in ("bool", "bool_"):  # numpy's has that name
            raise ConstraintFailed(f"{self.called} says {answer!r} to {_shown(text)}; it must say True or False.")
        return bool(answer)

    def _number(self, method: str, text: str) -> float:
        answer = self._asked(method, text)
        try:
            number = float(answer)
        except (TypeError, ValueError):
            number = math.nan
        if isinstance(answer, str) or not math.isfinite(number) or number < 0:
            raise ConstraintFailed(
                f"{self.called} gives {_shown(text)} the {method} {answer!r}; it must be a finite number of at least 0."
            )
        return number

    def _asked(self, method: str, text: str) -> Any:
        try:
            return getattr(self.of, method)(text)
        except Exception as error:  # whatever a user's code raises
            raise ConstraintFailed(
                f"{self.called} fails with {type(error).__name__} for {_shown(text)}: {error}."
            ) from error


def rule_of(name: str, given: Mapping[str, Any]) -> AskedRule | None:
    """The rule among the words of a constraint; None where there is none. name: of the setting. Raises BadSetting."""
    functions = {word: given[word] for word in FUNCTIONS if given.get(word) is not None}
    for word, function in functions.items():
        if not callable(function) or isinstance(function, type):
            raise BadSetting(
                f"{name} has a {word}, which must be {FUNCTIONS[word]}, not {function!r}; in a request over the network name a "
                "registered rule instead."
            )
    asked = given.get("rule")
    if asked is None:
        return AskedRule(FunctionRule(**functions)) if functions else None
    if functions:
        raise BadSetting(f"{name} has a rule and a {next(iter(functions))}; a rule says all of that itself.")
    if isinstance(asked, TextRule):
        return AskedRule(asked, _told(asked))
    made = REGISTRY.made(f"{name}.rule", asked, 1 << 62)
    return AskedRule(made, _told(made))


def _told(rule: TextRule) -> str:
    """A registered rule as JSON; empty for one that nobody else could make."""
    if REGISTRY.all().get(rule.name) is not type(rule):
        return ""
    arguments: dict[str, Any] = {}
    if dataclasses.is_dataclass(rule):
        arguments = {own.name: getattr(rule, own.name) for own in settings_of(type(rule))}
    return json.dumps({"name": rule.name, **arguments}, sort_keys=True, ensure_ascii=False)


def _name(function: Any) -> str:
    if inspect.isroutine(function):
        return str(getattr(function, "__qualname__", function)).rpartition(".")[2] or repr(function)
    return type(function).__name__


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN else f"…{text[-SHOWN:]}")
