"""`decodery check`: does a method keep its promise?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text
from typer import Argument, Option

from decodery.cli.console import Counter, notice, print_json, print_line, print_table
from decodery.cli.options import JsonOption, ModelOptions, SeedOption, with_option_groups
from decodery.errors import MethodUnavailable, Refused

if TYPE_CHECKING:
    from decodery.evaluation.check import CheckReport

ALL = "all"
REFUTED = 1


@with_option_groups
def check(
    model: ModelOptions,
    methods: Annotated[list[str], Argument(metavar="METHOD", help="Methods as name or name(key=value), or all.")],
    prompts: Annotated[int, Option("--prompts", help="Prompts whose greedy output is compared.")] = 20,
    max_new_tokens: Annotated[int, Option("--max-new-tokens", help="Tokens per prompt.")] = 64,
    samples: Annotated[int, Option("--samples", help="Samples for the tests of the law.")] = 20_000,
    significance: Annotated[
        float, Option("--significance", help="How often a sound method may be refuted by chance.")
    ] = 0.001,
    seed: SeedOption = 0,
    chance: Annotated[
        str, Option("--chance", metavar="SPEC", help="Where random draws come from, as name or name(key=value).")
    ] = "addressed",
    as_json: JsonOption = False,
) -> None:
    """Decide by experiment whether methods keep what they declare.

    Greedy output is compared with plain decoding token by token, and sampled output is tested against the exact law.
    The model is loaded in float32, where identity is promised, unless --dtype says otherwise. The exit code is 0 where
    every promise held and 1 where one was refuted.

    Example: `decodery check token-recycling --samples 5000`
    """
    from decodery.engine import registry

    every = ALL in methods
    specs = [info.example for info in registry.methods()] if every else methods
    for spec in specs:
        registry.method(spec)
    from decodery.evaluation.check import check_method

    lm = model.load(dtype="float32")
    reports: list[CheckReport] = []
    for spec in specs:
        try:
            with Counter() as counter:
                report = check_method(
                    lm,
                    spec,
                    prompts=prompts,
                    max_new_tokens=max_new_tokens,
                    samples=samples,
                    significance=significance,
                    seed=seed,
                    chance=chance,
                    on_progress=counter,
                )
        except (MethodUnavailable, Refused) as error:
            if not every:
                raise
            notice(f"{spec} was not checked: {error}", style="yellow")
            continue
        reports.append(report)
        if not as_json:
            _show(report)
    if as_json:
        listed = [report.as_dict() for report in reports]
        print_json(listed if every or len(specs) > 1 else listed[0])
    if not all(report.passed for report in reports):
        raise typer.Exit(REFUTED)


def _show(report: CheckReport) -> None:
    print_table(
        (str(report.method), "verdict", "detail"),
        [(part.name, _verdict(part.passed), part.detail) for part in report.parts],
    )
    promise = f"{report.method} is {report.exactness}: "
    print_line(promise + ("not refuted." if report.passed else "refuted."))
    print_line()


def _verdict(passed: bool | None) -> Text:
    if passed is None:
        return Text("no verdict", style="dim")
    return Text("holds", style="green") if passed else Text("refuted", style="bold red")
