"""`decodery bench --suite parallelbench`: decoders of canvases, accuracy against tokens per forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.text import Text

from decodery.cli.console import Counter, check_writable, output, print_json, print_line, print_table, write_files
from decodery.cli.machine import in_words
from decodery.cli.options import DEFAULT_MODEL, ModelOptions
from decodery.errors import BadSetting

SUITES = ("parallelbench",)
SUITE_MODEL = "diffusion-lists"


def run(
    suite: str,
    model: ModelOptions,
    specs: Sequence[str],
    *,
    tasks: Sequence[str],
    limit: int | None,
    batch_size: int,
    temperature: float,
    seed: int,
    full: bool,
    csv: Path | None,
    out: Path | None,
    plot: Path | None,
    published: Path | None,
    analysis: bool,
    as_json: bool,
) -> None:
    """Measure and report. A model that was not named is the one made for the suite."""
    if suite not in SUITES:
        raise BadSetting(f"there is no suite {suite!r}; known: {', '.join(SUITES)}.")
    from decodery.evaluation.parallelbench import suite as measuring

    entrants = measuring.given_entrants(specs) if specs else measuring.default_entrants(full)
    check_writable(csv, out, plot)
    lm = (replace(model, model=SUITE_MODEL) if model.model == DEFAULT_MODEL else model).load()
    with Counter() as counter:
        report = measuring.run_suite(
            lm,
            entrants,
            tasks,
            samples=100 if limit is None else limit,
            batch_size=25 if batch_size == 1 else batch_size,
            temperature=temperature,
            seed=seed or None,
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
    print_line()
    told = report.told
    remarks = [
        f"{in_words(told)}; {told['samples']} samples of each task, canvas {told['canvas']}, temperature "
        f"{told['temperature']:g}, {told['batch_size']} decoded together.",
        *report.notes,
    ]
    for remark in remarks:
        output().print(Text(remark, style="dim"), soft_wrap=True)
