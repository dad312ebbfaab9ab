"""`decodery suite`: decoders of canvases on tasks with right answers, accuracy against tokens per forward."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from decodery.cli.console import Counter, check_writable, print_json, print_line, print_table, write_files
from decodery.cli.machine import in_words
from decodery.cli.options import (
    CsvOption,
    JsonOption,
    MethodsOption,
    ModelOption,
    ModelOptions,
    OutOption,
    TemperatureOption,
    named,
    print_remarks,
    specs_of,
    with_option_groups,
)
from decodery.errors import BadSetting

SUITES = ("parallelbench",)


@dataclass(frozen=True)
class SuiteModelOptions(ModelOptions):
    """The model that is measured: by default the one made for the suite."""

    model: ModelOption = "diffusion-lists"


@with_option_groups
def suite(
    model: SuiteModelOptions,
    name: Annotated[str, Argument(metavar="NAME", help=f"Which suite: {', '.join(SUITES)}.")] = SUITES[0],
    methods: MethodsOption = None,
    tasks: Annotated[
        str | None, Option("--tasks", metavar="NAMES", help="Only these tasks, separated by commas.")
    ] = None,
    samples: Annotated[int, Option("--samples", help="Samples of each task.")] = 100,
    batch_size: Annotated[int, Option("--batch-size", help="Samples decoded together.")] = 25,
    canvas: Annotated[
        int | None, Option("--canvas", help="Positions of the canvas.", show_default="by the task")
    ] = None,
    temperature: TemperatureOption = 0.0,
    seed: Annotated[
        int | None, Option("--seed", help="Of samples and draws.", show_default="each task's own samples, draws of 0")
    ] = None,
    full: Annotated[bool, Option("--full", help="The published grid of settings, where no methods are named.")] = False,
    published: Annotated[
        Path | None,
        Option("--published", metavar="FOLDER", help="Run the published tasks, from their files in a folder."),
    ] = None,
    analysis: Annotated[
        bool, Option("--analysis", help="Besides, what decoders reach with a model that makes no mistakes.")
    ] = False,
    plot: Annotated[Path | None, Option("--plot", metavar="FILE", help="Draw the trade-off curves.")] = None,
    csv: CsvOption = None,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure decoders of canvases on tasks with right answers: accuracy against tokens per forward.

    Without --methods all of them are measured, the base decoder at several settings. Every speed-up is relative to one token
    per forward, in the same run on the same machine.

    Example: `decodery suite parallelbench --tasks copy,sudoku --samples 20 --plot curves.png`
    """
    if name not in SUITES:
        raise BadSetting(f"there is no suite {name!r}; known: {', '.join(SUITES)}.")
    specs = specs_of(methods)
    if full and specs:
        raise BadSetting("--full is the published grid of settings, and --methods names others; give one of them.")
    from decodery.evaluation.parallelbench import suite as measuring

    entrants = measuring.given_entrants(specs) if specs else measuring.default_entrants(full)
    check_writable(csv, out, plot)
    lm = model.load()
    with Counter() as counter:
        report = measuring.run_suite(
            lm,
            entrants,
            named(tasks),
            samples=samples,
            batch_size=batch_size,
            canvas=canvas,
            temperature=temperature,
            seed=seed,
            published=published,
            analysis=analysis,
            on_progress=counter,
        )
    write_files(
        (csv, report.write_csv), (out, report.write_json), (plot, lambda path: measuring.draw_curves(report, path))
    )
    if as_json:
        print_json(report.as_dict())
        return
    header, *rows = report.table()
    print_table((*header[:3], *(f"{column}>" for column in header[3:])), rows)
    for (header, *rows), words in ((report.metrics_table(), 4), (report.oracle_table(), 3)):
        if rows:
            print_line()
            print_table((*header[:words], *(f"{column}>" for column in header[words:])), rows)
    told = report.told
    print_remarks(
        f"{in_words(told)}; {told['samples']} samples of each task, canvas {told['canvas']}, temperature "
        f"{told['temperature']:g}, {told['batch_size']} decoded together.",
        *report.notes,
    )
