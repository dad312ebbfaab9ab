"""What a user may set for one generation, whatever the method. Unknown names and bad values are errors."""

from __future__ import annotations

import dataclasses
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from decodery.engine.target import Target, Targets
from decodery.errors import BadSetting, near
from decodery.plain import plain
from decodery.sampling.chance import Addressed, Chances, Source, Watermarked, sources
from decodery.sampling.law_settings import LawSettings
from decodery.sampling.settings import (
    Callables,
    Flag,
    Optional,
    Setting,
    Text,
    Texts,
    TokenIds,
    Whole,
    setting,
    settings_of,
)
from decodery.sampling.steps import step_settings, steps
from decodery.sampling.watermarks.keys import WatermarkKey


@dataclass(frozen=True, init=False)
class Settings(LawSettings):
    """Settings of one request: those of the law (`LawSettings`) and those of the output. docs/settings.md lists all of them.

    A stop string that is complete before the least length is a part of the text. stop strings may hold special tokens, which
    the output does not show. The log probabilities are always the target's, raw and processed.
    """

    max_new_tokens: int = setting(
        128,
        Whole(1),
        "Most tokens to generate.",
        aliases=("max_tokens", "max_completion_tokens"),
        option=("--max-new-tokens",),
    )
    seed: int | None = setting(
        None, Optional(Whole(-(2**63), 2**64 - 1)), "Fixes every random draw; default: a fresh one.", option=("--seed",)
    )
    chance: Source = setting(  # noqa: RUF009 (a dataclass field like the others)
        Addressed,
        Chances(),
        "Where random draws come from, as name or name(key=value).",
        option=("--chance",),
        metavar="SPEC",
    )
    stop: tuple[str, ...] = setting(
        (), Texts(), "Text that ends the output; may be repeated.", aliases=("stop_strings",), option=("--stop",)
    )
    stop_token_ids: tuple[int, ...] = setting(
        (), TokenIds(), "Token that ends the output; may be repeated.", option=("--stop-token-id",)
    )
    ignore_eos: bool = setting(False, Flag(), "The model's end tokens do not end the output.", option=("--ignore-eos",))
    echo: bool = setting(False, Flag(), "The reply's text begins with the prompt.")
    n: int = setting(
        1,
        Whole(1, 1024),
        "How many texts of each prompt: independent samples, unless the method decides them together.",
        aliases=("num_return_sequences",),
    )
    logprobs: int | None = setting(
        None,
        Optional(Whole(0, 1000)),
        "So many alternatives are reported with each token's log probability; 0: none.",
        aliases=("top_logprobs",),
    )
    stopping_criteria: tuple[Callable[..., Any], ...] = setting(
        (), Callables(), "Functions (input_ids, scores) that end the output, as in transformers."
    )
    session: str = setting(
        "default", Text(), "Name of the memory that methods share between requests.", option=("--session",)
    )
    target: Target | None = setting(  # noqa: RUF009 (as above)
        None,
        Optional(Targets()),
        "What is scored in place of the model alone: guidance, contrast, ensemble, uscd or dola, as name(key=value).",
        option=("--target",),
        metavar="SPEC",
    )

    @property
    def source(self) -> Source:
        """Where random draws come from: `chance`, or the watermark, where it is one of the draws."""
        key: WatermarkKey | None = self.watermark
        return Watermarked(key) if key is not None and key.drawn else self.chance

    @classmethod
    def of(cls, values: Mapping[str, Any], vocabulary: int) -> Settings:
        """Check and build settings from names as a user gives them.

        Aliases of other libraries are understood; `do_sample` is: False means temperature 0, True means temperature 1
        where none is given. Raises BadSetting with one sentence.
        """
        known, others = declared(), aliases()
        given: dict[str, Any] = {}
        names: dict[str, str] = {}
        for name, value in values.items():
            ours = others.get(name, name)
            if ours in given:
                raise BadSetting(f"{names[ours]} and {name} mean the same setting; give one of them.")
            given[ours], names[ours] = plain(value), name
        sample = given.pop("do_sample", None)
        if sample is not None:
            if not isinstance(sample, bool):
                raise BadSetting(f"do_sample must be True or False, not {sample!r}.")
            if sample and given.get("temperature") == 0:
                raise BadSetting("do_sample=True contradicts temperature=0, which is greedy decoding.")
            given["temperature"] = given.get("temperature", 1.0) if sample else 0.0
        for name in given:
            if name not in known:
                raise BadSetting(f"{name!r} is not a setting; {near(name, {*known, *others})}")
        settings = cls(**{name: known[name].convert(value, vocabulary) for name, value in given.items()})
        _check_together(settings, given)
        return settings

    def with_seed(self) -> Settings:
        """These settings with a seed: the given one, or a fresh one."""
        return self if self.seed is not None else dataclasses.replace(self, seed=secrets.randbits(48))


def _check_together(settings: Settings, given: Mapping[str, Any]) -> None:
    """Raise BadSetting where settings contradict each other, or where one that was given cannot act."""
    if settings.min_new_tokens > settings.max_new_tokens:
        least, most = settings.min_new_tokens, settings.max_new_tokens
        raise BadSetting(f"min_new_tokens is {least}, but max_new_tokens is only {most}.")
    for step in steps().values():
        first, *others = step.settings()
        idle = [other.name for other in others if other.name in given]
        if idle and getattr(settings, first.name) == first.neutral:
            raise BadSetting(f"{idle[0]} acts only together with {first.name}, which is not set.")
        if step.greedy_only and settings.temperature > 0 and getattr(settings, first.name) != first.neutral:
            raise BadSetting(f"{first.name} goes with temperature=0 alone: {step.greedy_only}.")
    settings.active_steps()
    _check_watermark(settings, given)
    reason = settings.source.refuses_samples(settings.n)
    if reason is not None:
        named = settings.source.name if settings.source is not settings.chance else f"chance {settings.chance.name}"
        raise BadSetting(f"{named} does not run with n={settings.n}: {reason}.")


def _check_watermark(settings: Settings, given: Mapping[str, Any]) -> None:
    """Raise BadSetting where a watermark could not be found again."""
    key: WatermarkKey | None = settings.watermark
    if key is None:
        return
    if settings.temperature == 0 and key.greedy:
        raise BadSetting(f"watermark {key.scheme} needs a temperature above 0: {key.greedy}.")
    if key.drawn and "chance" in given:
        raise BadSetting(f"chance and watermark {key.scheme} both say where draws come from; give one of them.")
    if key.longest is not None and settings.max_new_tokens > key.longest:
        raise BadSetting(
            f"the watermark has {key.longest} entries, and max_new_tokens is {settings.max_new_tokens}: a longer text would "
            "spend some twice, and no longer have the model's law; ask for fewer tokens, or make a longer key."
        )


def declared() -> dict[str, Setting]:
    """All settings by name: those of the steps in the default order, then those of the output."""
    return {**step_settings(), **{own.name: own for own in settings_of(Settings)}}


def aliases() -> dict[str, str]:
    """Names of transformers, vLLM and OpenAI that mean a setting of ours."""
    return {alias: own.name for own in declared().values() for alias in own.aliases}


def schema() -> dict[str, Any]:
    """The settings as a JSON schema, for servers; without those that JSON cannot say (functions)."""
    properties: dict[str, Any] = {}
    for own in declared().values():
        kind = own.kind.schema()
        if kind is None:
            continue
        default = {"default": list(own.default) if isinstance(own.default, tuple) else own.default}
        properties[own.name] = {
            **kind,
            "description": own.help,
            **(default if not isinstance(own.default, Source) else {"default": own.default.name}),
        }
        for alias in own.aliases:
            properties[alias] = {**kind, "description": f"The same as {own.name}."}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def table() -> str:
    """The settings as a table of Markdown."""
    lines = ["| setting | default | what it does | elsewhere | command line |", "|---|---|---|---|---|"]
    for own in declared().values():
        others, option = ", ".join(f"`{a}`" for a in own.aliases), ", ".join(f"`{o}`" for o in own.option)
        lines.append(f"| `{own.name}` | {_shown(own.default)} | {own.help} | {others} | {option} |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """The tables of docs/settings.md: the settings, and the sources of chance."""
    lines = [
        "## Chance",
        "",
        "`chance` says where random draws come from. Each source gives every single draw its right law.",
        "",
        "| source | what it does | parameters |",
        "|---|---|---|",
    ]
    for name, source in sorted(sources().items()):
        parameters = "; ".join(f"`{own.name}` ({_shown(own.default)}): {own.help}" for own in source.parameters())
        lines.append(f"| `{name}` | {source.summary} | {parameters or 'none'} |")
    return table() + "\n" + "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    """A default, for people."""
    if isinstance(value, Source):
        return value.name
    if value is None or value in ((), {}):
        return "none"
    if isinstance(value, tuple):
        names = (part if str(part).isidentifier() else json.dumps(part) for part in value)
        return ", ".join(names)
    return str(value)
