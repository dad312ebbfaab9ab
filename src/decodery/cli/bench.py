"""`decodery bench`: methods measured against plain decoding, and against other engines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.text import Text
from typer import Option

from decodery.cli.console import Counter, check_writable, output, print_json, print_line, print_table, write_files
from decodery.cli.machine import in_words
from decodery.cli.options import JsonOption, ModelOptions, with_option_groups
from decodery.errors import BadSetting

if TYPE_CHECKING:
    from decodery.evaluation.report import BenchmarkReport


@with_option_groups
def bench(
    model: ModelOptions,
    methods: Annotated[
        list[str] | None,
        Option(
            "--methods",
            metavar="SPECS",
            help="Methods, separated by commas; may be repeated. Default: all lossless ones that need nothing.",
        ),
    ] = None,
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
    temperature: Annotated[float, Option("--temperature", "-t", help="0 is greedy decoding.")] = 0.0,
    repeats: Annotated[int, Option("--repeats", help="How often everything is measured.")] = 1,
    warmup: Annotated[int, Option("--warmup", help="Questions decoded before, which do not count.")] = 1,
    batch_size: Annotated[int, Option("--batch-size", help="Questions decoded together.")] = 1,
    against: Annotated[
        str | None, Option("--against", metavar="NAMES", help="Other engines to measure beside: transformers.")
    ] = None,
    seed: Annotated[int, Option("--seed", help="Fixes every random draw.")] = 0,
    csv: Annotated[Path | None, Option("--csv", metavar="FILE", help="Write the rows to a CSV file.")] = None,
    out: Annotated[Path | None, Option("--out", metavar="FILE", help="Write the report to a JSON file.")] = None,
    suite: Annotated[
        str | None,
        Option(
            "--suite",
            metavar="NAME",
            help="Tasks with right answers instead of questions: parallelbench, for masked-diffusion models.",
        ),
    ] = None,
    full: Annotated[bool, Option("--full", help="Of a suite: the published grid of settings.")] = False,
    plot: Annotated[
        Path | None, Option("--plot", metavar="FILE", help="Of a suite: draw its trade-off curves.")
    ] = None,
    published: Annotated[
        Path | None,
        Option(
            "--published", metavar="FOLDER", help="Of a suite: run the published tasks, from their files in a folder."
        ),
    ] = None,
    analysis: Annotated[
        bool, Option("--analysis", help="Of a suite: besides, what decoders reach with a model that makes no mistakes.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure methods on a set of questions: speed, tokens per forward, and the share of outputs that stay identical.

    Plain decoding is always measured too, in the same run on the same machine; every speed-up is relative to it.

    With `--suite parallelbench` every decoder of canvases is measured on the same tasks: accuracy against tokens per forward;
    --categories names tasks and --limit samples of each.

    Example: `decodery bench --methods "prompt-lookup, token-recycling" --limit 2 --csv speeds.csv`
    """
    from decodery.engine import registry

    specs = [spec for text in methods or [] for spec in split_specs(text)]
    for spec in specs if suite is None else ():
        registry.method(spec)
    if suite is not None:
        from decodery.cli import bench_suite

        bench_suite.run(
            suite,
            model,
            specs,
            tasks=_names(categories),
            limit=limit,
            batch_size=batch_size,
            temperature=temperature,
            seed=seed,
            full=full,
            csv=csv,
            out=out,
            plot=plot,
            published=published,
            analysis=analysis,
            as_json=as_json,
        )
        return
    if full or plot is not None or published is not None or analysis:
        raise BadSetting("--full, --plot, --published and --analysis belong to a suite; name one with --suite.")
    specs = specs or [info.name for info in registry.methods() if info.exactness.lossless and not info.needs]
    check_writable(csv, out)
    from decodery.evaluation.benchmark import run_benchmark
    from decodery.evaluation.questions import load_questions

    questions = load_questions(prompts, per_category=limit, categories=_names(categories) or None)
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
            against=_names(against),
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
    print_line()
    told, overhead = report.provenance, report.engine_overhead
    remarks = [
        f"{in_words(told)}; {told['questions']} questions ({told['prompts']}), at most {told['max_new_tokens']} new "
        f"tokens, temperature {told['temperature']:g}, batch size {told['batch_size']}.",
        f"Plain decoding takes {abs(overhead):.1%} {'longer' if overhead >= 0 else 'less time'} than its bare forwards.",
        *report.notes,
    ]
    for remark in remarks:
        output().print(Text(remark, style="dim"), soft_wrap=True)


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


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())
