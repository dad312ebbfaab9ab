"""The options that several verbs share, in groups.

A verb takes a group as one parameter (`model: ModelOptions`); `with_option_groups` turns each field of the group into
an option of the verb. Ranges are not checked here: the settings check themselves, with the same sentences for
everybody.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import secrets
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from decodery._lazy import without_collection
from decodery.cli.console import Bars
from decodery.errors import BadSetting

if TYPE_CHECKING:
    from decodery.language_model import LanguageModel

DEFAULT_MODEL = "smollm2-135m"
ANY_VOCABULARY = 1 << 62
"""Stands for the size of a vocabulary while the model is not loaded yet."""

JsonOption = Annotated[bool, Option("--json", help="Print JSON instead of text.")]


def _method_names(incomplete: str) -> list[str]:
    """For completion in the shell."""
    from decodery.engine import registry

    return [name for name in registry.names() if name.startswith(incomplete)]


MethodOption = Annotated[
    str | None,
    Option(
        "--method",
        metavar="SPEC",
        help="Decoding method, as name or name(key=value); default: the fast lossless one that needs nothing.",
        autocompletion=_method_names,
    ),
]


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and how it is run."""

    model: Annotated[
        str,
        Option(
            "--model",
            "-m",
            help="A bundled name, owner/name on the hub, a folder, or a .gguf file.",
            rich_help_panel="Model",
        ),
    ] = DEFAULT_MODEL
    dtype: Annotated[str, Option("--dtype", help="auto, float32, bfloat16 or float16.", rich_help_panel="Model")] = (
        "auto"
    )
    device: Annotated[str, Option("--device", help="auto, cpu, cuda, …", rich_help_panel="Model")] = "auto"
    threads: Annotated[
        int | None, Option("--threads", help="Processor threads.", show_default="all", rich_help_panel="Model")
    ] = None

    fast: Annotated[
        str,
        Option(
            "--fast",
            help="How passes are run: auto, packed, native (compiled), fused, or off.",
            rich_help_panel="Model",
        ),
    ] = "auto"

    kv_budget: Annotated[
        str | None,
        Option(
            "--kv-budget",
            metavar="SIZE",
            help="Most memory for keys and values, such as 2GB; requests beyond it wait.",
            show_default="half of what is free",
            rich_help_panel="Model",
        ),
    ] = None
    prefill_chunk: Annotated[
        int | None,
        Option(
            "--prefill-chunk",
            help="Prompt tokens scored in one pass while other requests run; 0: whole prompts.",
            show_default="by the cost curve",
            rich_help_panel="Model",
        ),
    ] = None

    def load(self, *, dtype: str | None = None) -> LanguageModel:
        """The model; fetched first where need be. dtype: what "auto" means to the verb."""
        with Bars(f"loading {self.model}") as progress, without_collection():
            return load(self.model, dtype if dtype and self.dtype == "auto" else self.dtype, self, progress)


def load(name: str, dtype: str, options: ModelOptions, progress: Bars) -> LanguageModel:
    """Load a model; its libraries say nothing on the terminal, then or later."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read when transformers is imported, if it ever is
    from decodery import loading

    return loading.load(
        name,
        dtype=dtype,
        device=options.device,
        threads=options.threads,
        fast=options.fast,
        kv_budget=options.kv_budget,
        prefill_chunk=options.prefill_chunk,
        progress=progress,
    )


_LAW = "Law of the tokens"
_OUTPUT = "Output"


@dataclass(frozen=True)
class SettingOptions:
    """Settings of a generation (`decodery.engine.settings.Settings`); None: not given."""

    temperature: Annotated[
        float | None,
        Option("--temperature", "-t", help="0 is greedy decoding.", show_default="0", rich_help_panel=_LAW),
    ] = None
    top_k: Annotated[
        int | None, Option("--top-k", help="Only the k likeliest tokens; 0: all.", rich_help_panel=_LAW)
    ] = None
    top_p: Annotated[
        float | None,
        Option("--top-p", help="Only the likeliest tokens that together reach this mass.", rich_help_panel=_LAW),
    ] = None
    min_p: Annotated[
        float | None,
        Option("--min-p", help="Only tokens at least this share as likely as the likeliest.", rich_help_panel=_LAW),
    ] = None
    repetition_penalty: Annotated[
        float | None,
        Option("--repetition-penalty", help="Factor against tokens seen before.", rich_help_panel=_LAW),
    ] = None
    presence_penalty: Annotated[
        float | None,
        Option("--presence-penalty", help="Subtracted for tokens of the output.", rich_help_panel=_LAW),
    ] = None
    frequency_penalty: Annotated[
        float | None,
        Option("--frequency-penalty", help="Subtracted for each time they occur in it.", rich_help_panel=_LAW),
    ] = None
    logit_bias: Annotated[
        list[str] | None,
        Option(
            "--logit-bias",
            metavar="ID=VALUE",
            help="Added to the score of a token; may be repeated.",
            rich_help_panel=_LAW,
        ),
    ] = None
    seed: Annotated[
        int | None,
        Option("--seed", help="Fixes every random draw.", show_default="a fresh one", rich_help_panel=_LAW),
    ] = None
    max_new_tokens: Annotated[
        int | None, Option("--max-new-tokens", help="Most tokens to generate.", rich_help_panel=_OUTPUT)
    ] = None
    min_new_tokens: Annotated[
        int | None, Option("--min-new-tokens", help="No end before that many.", rich_help_panel=_OUTPUT)
    ] = None
    stop: Annotated[
        list[str] | None,
        Option("--stop", help="Text that ends the output; may be repeated.", rich_help_panel=_OUTPUT),
    ] = None
    stop_token_id: Annotated[
        list[int] | None,
        Option("--stop-token-id", help="Token that ends the output; may be repeated.", rich_help_panel=_OUTPUT),
    ] = None
    ignore_eos: Annotated[
        bool, Option("--ignore-eos", help="The model's end tokens do not end the output.", rich_help_panel=_OUTPUT)
    ] = False
    session: Annotated[
        str | None,
        Option("--session", help="Name of the memory that methods share between requests.", rich_help_panel=_OUTPUT),
    ] = None

    def given(self) -> dict[str, Any]:
        """The settings that were given, by their names in `Settings`."""
        values: dict[str, Any] = {
            field.name: value
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) is not None and value is not False and value != []
        }
        if "logit_bias" in values:
            values["logit_bias"] = dict(_bias(pair) for pair in values["logit_bias"])
        if "stop_token_id" in values:
            values["stop_token_ids"] = tuple(values.pop("stop_token_id"))
        if "stop" in values:
            values["stop"] = tuple(values["stop"])
        return values


def _bias(pair: str) -> tuple[int, float]:
    token, equals, value = pair.partition("=")
    try:
        if not equals:
            raise ValueError
        return int(token), float(value)
    except ValueError:
        raise BadSetting(f"--logit-bias takes ID=VALUE, a token id and a number, not {pair!r}.") from None


def check_early(method: str | None, settings: dict[str, Any]) -> str | None:
    """Find what is wrong with a method or settings before a model is fetched and loaded. Returns the method's spec; None
    leaves the choice to the model."""
    from decodery.engine import registry

    if method is not None:
        registry.method(method)
    from decodery.engine.settings import Settings

    Settings.of(settings, ANY_VOCABULARY)
    return method


def with_seed(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with a seed: the given one, or a fresh one that can be reported."""
    return {"seed": secrets.randbits(48), **settings}


def with_option_groups(verb: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter of a verb that is a group of options by the options of the group."""
    hints = typing.get_type_hints(verb, include_extras=True)
    groups: dict[str, type[Any]] = {}
    options: list[inspect.Parameter] = []
    for parameter in inspect.signature(verb).parameters.values():
        hint = hints[parameter.name]
        if not dataclasses.is_dataclass(hint):
            options.append(parameter.replace(annotation=hint, kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        assert isinstance(hint, type)
        groups[parameter.name] = hint
        inner = typing.get_type_hints(hint, include_extras=True)
        options += [
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=inner[field.name]
            )
            for field in dataclasses.fields(hint)
        ]

    @functools.wraps(verb)
    def call(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})
        verb(**values)

    call.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    call.__annotations__ = {option.name: option.annotation for option in options}
    return call
