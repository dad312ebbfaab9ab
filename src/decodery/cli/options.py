"""The options that several verbs share, in groups.

A verb takes a group as one parameter (`model: ModelOptions`); `with_option_groups` turns each field of the group into
an option of the verb. An option that several verbs have is declared here, once. Ranges are not checked here: the settings check
themselves, with the same sentences for everybody.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import os
import secrets
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from rich.text import Text
from typer import Option

from decodery._lazy import without_collection
from decodery.cli.console import Bars, output, print_line
from decodery.engine.settings import declared
from decodery.errors import BadInput
from decodery.sampling.law_settings import LawSettings
from decodery.sampling.settings import ANY_VOCABULARY, Setting, settings_of
from decodery.sampling.steps import step_settings

if TYPE_CHECKING:
    from decodery.language_model import LanguageModel

DEFAULT_MODEL = "smollm2-135m"

# Options of single verbs that mean the same in all of them

JsonOption = Annotated[bool, Option("--json", help="Print JSON instead of text.")]
SeedOption = Annotated[int, Option("--seed", help="Fixes every random draw.")]
TemperatureOption = Annotated[float, Option("--temperature", "-t", help="0 is greedy decoding.")]
CsvOption = Annotated[Path | None, Option("--csv", metavar="FILE", help="Write the rows to a CSV file.")]
MethodsOption = Annotated[
    list[str] | None,
    Option("--methods", metavar="SPECS", help="Methods, separated by commas; may be repeated."),
]
OutOption = Annotated[Path | None, Option("--out", metavar="FILE", help="Write the report to a JSON file.")]


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


def _panelled(panel: str) -> Callable[..., Any]:
    return functools.partial(Option, rich_help_panel=panel)


_model = _panelled("Model")


ModelOption = Annotated[
    str, _model("--model", "-m", help="A bundled name, owner/name on the hub, a folder, or a .gguf file.")
]


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and how it is run."""

    model: ModelOption = DEFAULT_MODEL
    dtype: Annotated[str, _model("--dtype", help="auto, float32, bfloat16 or float16.")] = "auto"
    device: Annotated[str, _model("--device", help="auto, cpu, cuda, …")] = "auto"
    threads: Annotated[int | None, _model("--threads", help="Processor threads.", show_default="all")] = None
    fast: Annotated[
        str,
        _model("--fast", help="How passes are run: auto, exact, integer, packed, native (compiled), fused, or off."),
    ] = "auto"
    quantize: Annotated[
        str | None,
        _model(
            "--quantize",
            metavar="WORD",
            help="Round weights to eight or four bits when the model is loaded: q8_0 or q4_0; for the integer path.",
            show_default="as they are",
        ),
    ] = None
    kv_budget: Annotated[
        str | None,
        _model(
            "--kv-budget",
            metavar="SIZE",
            help="Most memory for keys and values, such as 2GB; requests beyond it wait.",
            show_default="half of what is free",
        ),
    ] = None
    prefill_chunk: Annotated[
        int | None,
        _model(
            "--prefill-chunk",
            help="Prompt tokens scored in one pass while other requests run; 0: whole prompts.",
            show_default="by the cost curve",
        ),
    ] = None

    def given(self) -> dict[str, Any]:
        """The arguments of `decodery.load`."""
        names = ("dtype", "device", "threads", "fast", "quantize", "kv_budget", "prefill_chunk")
        return {"name": self.model, **{name: getattr(self, name) for name in names}}

    def load(self, *, dtype: str | None = None) -> LanguageModel:
        """The model; fetched first where need be. dtype: what "auto" means to the verb."""
        with Bars(f"loading {self.model}") as progress, without_collection():
            return load(self.model, dtype if dtype and self.dtype == "auto" else self.dtype, self, progress)


@contextlib.contextmanager
def needs(what: str, extra: str) -> Iterator[None]:
    """Around imports of packages that come with an extra. Raises BadInput, which names it, where one is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("decodery"):
            raise
        raise BadInput(
            f"{what} needs {error.name}, which is not installed; install it with pip install 'decodery[{extra}]'."
        ) from None


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
        quantize=options.quantize,
        kv_budget=options.kv_budget,
        prefill_chunk=options.prefill_chunk,
        progress=progress,
    )


class _SettingGroup:
    """Base of the group of settings: one field for each setting that is on the command line; None: not given."""

    def given(self) -> dict[str, Any]:
        """The settings that were given, by their names in `Settings`. Raises BadSetting."""
        values: dict[str, Any] = {}
        for setting in _on_the_command_line():
            value = getattr(self, _parameter(setting))
            if value is not None and value is not False and value != []:
                values[setting.name] = setting.kind.read(tuple(value) if isinstance(value, list) else value)
        return values


def _on_the_command_line() -> list[Setting]:
    return [setting for setting in declared().values() if setting.option]


def _parameter(setting: Setting) -> str:
    """How a setting is called among the parameters of a verb: by its option, which may be in the singular."""
    return setting.option[0].removeprefix("--").replace("-", "_")


def _field(setting: Setting) -> tuple[str, Any, Any]:
    """A field of the group, for a dataclass."""
    law = setting.name in step_settings() or setting in settings_of(LawSettings) or setting.name in ("seed", "chance")
    option = Option(
        *setting.option,
        help=setting.help,
        metavar=setting.metavar,
        show_default=False if setting.kind.option is bool else _default(setting),
        rich_help_panel="Law of the tokens" if law else "Output",
    )
    if setting.kind.option is bool:
        return _parameter(setting), Annotated[bool, option], False
    return _parameter(setting), Annotated[setting.kind.option | None, option], None


def _default(setting: Setting) -> str | bool:
    plain = isinstance(setting.default, int | float | str) and not isinstance(setting.default, bool)
    return f"{setting.default}" if plain else False


if TYPE_CHECKING:
    SettingOptions: TypeAlias = _SettingGroup
else:
    SettingOptions = dataclasses.make_dataclass(
        "SettingOptions", [_field(setting) for setting in _on_the_command_line()], bases=(_SettingGroup,), frozen=True
    )
    SettingOptions.__doc__ = (
        "The settings of a generation that are on the command line; made of what the settings declare."
    )


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


def named(text: str | None) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def specs_of(given: Sequence[str] | None) -> list[str]:
    """The specs of methods that were given, each time several separated by commas."""
    return [spec for text in given or () for spec in split_specs(text)]


def split_specs(text: str) -> list[str]:
    """Specs separated by commas; those between the brackets of a spec do not count."""
    specs, depth = [""], 0
    for character in text:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "," and depth <= 0:
            specs.append("")
        else:
            specs[-1] += character
    return [spec.strip() for spec in specs if spec.strip()]


def print_remarks(*remarks: str) -> None:
    """Print what there is to say below a table."""
    print_line()
    for remark in remarks:
        output().print(Text(remark, style="dim"), soft_wrap=True)
