"""The settings of a law: those of all steps, and the order of the steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from decodery.errors import BadSetting, near
from decodery.sampling.settings import Speller, ValueKind, setting
from decodery.sampling.steps import PRESETS, Step, default_order, step_settings, steps


class Order(ValueKind):
    """The names of the steps, or the name of a preset. Steps that are off may be left out."""

    option = str

    def schema(self) -> Mapping[str, Any]:
        return {"anyOf": [{"type": "string", "enum": list(PRESETS)}, {"type": "array", "items": {"type": "string"}}]}

    def check(self, name: str, value: Any, vocabulary: int) -> tuple[str, ...]:
        if isinstance(value, str):
            if value not in PRESETS:
                raise BadSetting(
                    f"{name} must name the steps of the law, or a preset ({', '.join(PRESETS)}), not {value!r}."
                )
            return default_order(value)
        if isinstance(value, Mapping):
            raise BadSetting(f"{name} must be a list of steps of the law, not {value!r}.")
        order, known = tuple(value), steps()
        for step in order:
            if step not in known:
                raise BadSetting(f"{name} names {step!r}, which is no step of the law; {near(str(step), known)}")
        twice = [step for place, step in enumerate(order) if step in order[:place]]
        if twice:
            raise BadSetting(f"{name} names {twice[0]} twice; name each step of the law once.")
        return order

    def read(self, given: Any) -> Any:
        words = [word.strip() for word in given.split(",")]
        return words if len(words) > 1 else given


@dataclass(frozen=True, init=False)
class LawSettings:
    """What shapes the law of a token: the settings of the steps, as attributes and by name in the call, and the order of the
    steps.

    `Settings(temperature=0.7).top_k` is 0, as nothing else was said. Each setting is declared in the step's own file
    (`sampling/steps/`; docs/settings.md lists them). Raises TypeError for a name that is no setting.
    """

    law: Mapping[str, Any] = field(default_factory=dict)
    """The settings of steps that differ from their defaults."""
    order: tuple[str, ...] = setting(
        default_order,
        Order(),
        f"Steps of the law in the order in which they are applied, but for those that are off, or a preset: "
        f"{', '.join(PRESETS)}.",
        option=("--order",),
        metavar="STEPS",
    )

    def __init__(self, **values: Any) -> None:
        known = step_settings()
        for own in dataclasses.fields(self):
            if own.name != "law":
                assert own.default_factory is not dataclasses.MISSING
                given = values.pop(own.name) if own.name in values else own.default_factory()
                object.__setattr__(self, own.name, given)
        law = {**values.pop("law", {}), **values}
        for name in law:
            if name not in known:
                raise TypeError(f"{name!r} is no setting")
        changed = {name: law[name] for name in known if name in law and law[name] != known[name].default}
        object.__setattr__(self, "law", changed)

    def active_steps(self) -> list[Step]:
        """The steps that are switched on, in their order. Raises BadSetting where the order leaves one out."""
        found: dict[str, Step] = {}
        for name, cls in steps().items():
            step = cls(**{own.name: getattr(self, own.name) for own in cls.settings()})
            if step.active and not (self.temperature == 0 and step.keeps_argmax):
                found[name] = step
        forgotten = sorted(set(found).difference(self.order))
        if forgotten:
            raise BadSetting(f"order leaves out {', '.join(forgotten)}, which the settings switch on.")
        return [found[name] for name in self.order if name in found]

    def spelled(self, speller: Speller) -> Self:
        """The same, with what steps say of text as what it means for tokens. Settings of steps that are off stay as they
        are."""
        changed: dict[str, Any] = {}
        for step in steps().values():
            first, *_ = step.settings()
            if getattr(self, first.name) == first.neutral:
                continue
            for own in step.settings():
                value = getattr(self, own.name)
                if (spelled := own.kind.spelled(value, speller)) is not value:
                    changed[own.name] = spelled
        return dataclasses.replace(self, law={**self.law, **changed}) if changed else self

    def __getattr__(self, name: str) -> Any:
        known = step_settings()
        if name not in known:
            raise AttributeError(f"{name!r} is no setting")
        return self.law.get(name, known[name].default)
