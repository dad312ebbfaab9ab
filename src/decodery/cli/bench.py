"""`decodery bench`: methods measured against plain decoding, and against other engines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from decodery.cli.console import Counter, check_writable, print_json, print_table, write_files
from decodery.cli.machine import in_words
from decodery.cli.options import (
    CsvOption,
    JsonOption,
    MethodsOption,
    ModelOptions,
    OutOption,
    SeedOption,
    TemperatureOption,
    named,
    print_remarks,
    specs_of,
    with_option_groups,
)

if TYPE_CHECKING:
    from decodery.evaluation.report import BenchmarkReport


@with_option_groups
def bench(
    model: ModelOptions,
    methods: MethodsOption = None,
    prompts: Annotated[
        Path | None,
        Option(
            "--prompts", metavar="FILE", help="Questions as in Spec-Bench's question.jsonl; default: a small own set."
        ),
    ] = None,
    limit: Annotated[int | None, Option("--limit", help="At most so many questions per category.")] = None,
    categories: Annotated[
        str | None, Option("--categories", metavar="NAMES", help="Only these categories, separated by commas.")
    ] = None,
    max_new_tokens: Annotated[int, Option("--max-new-tokens", help="Most tokens per answer.")] = 128,
    temperature: TemperatureOption = 0.0,
    repeats: Annotated[int, Option("--repeats", help="How often everything is measured.")] = 1,
    warmup: Annotated[int, Option("--warmup", help="Questions decoded before, which do not count.")] = 1,
    batch_size: Annotated[int, Option("--batch-size", help="Questions decoded together.")] = 1,
    against: Annotated[
        str | None, Option("--against", metavar="NAMES", help="Other engines to measure beside: transformers.")
    ] = None,
    seed: SeedOption = 0,
    csv: CsvOption = None,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure methods on a set of questions: speed, tokens per forward, and the share of outputs that stay identical.

    Without --methods all lossless ones are measured that need nothing. Plain decoding is always measured too, in the same
    run on the same machine; every speed-up is relative to it.

    Example: `decodery bench --methods "prompt-lookup, token-recycling" --limit 2 --csv speeds.csv`
    """
    from decodery.engine import registry

    specs = specs_of(methods)
    for spec in specs:
        registry.method(spec)
    specs = specs or [info.name for info in registry.methods() if info.exactness.lossless and not info.extras]
    check_writable(csv, out)
    from decodery.evaluation.benchmark import run_benchmark
    from decodery.evaluation.questions import load_questions

    questions = load_questions(prompts, per_category=limit, categories=named(categories) or None)
    lm = model.load()
    with Counter() as counter:
        report = run_benchmark(
            lm,
            specs,
            questions,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            repeats=repeats,
            warmup=warmup,
            batch_size=batch_size,
            against=named(against),
            seed=seed,
            on_progress=counter,
        )
    write_files((csv, report.write_csv), (out, report.write_json))
    if as_json:
        print_json(report.as_dict())
    else:
        _show(report)


def _show(report: BenchmarkReport) -> None:
    header, *rows = report.table()
    print_table((header[0], *(f"{column}>" for column in header[1:])), rows)
    told, overhead = report.provenance, report.engine_overhead
    print_remarks(
        f"{in_words(told)}; {told['questions']} questions ({told['prompts']}), at most {told['max_new_tokens']} new "
        f"tokens, temperature {told['temperature']:g}, batch size {told['batch_size']}.",
        f"Plain decoding takes {abs(overhead):.1%} {'longer' if overhead >= 0 else 'less time'} than its bare forwards.",
        *report.notes,
    )
