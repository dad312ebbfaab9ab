"""`decodery acceptance`: what verifiers of several drafts accept, beside what any of them could."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

from rich.text import Text
from typer import Option

from decodery.cli.console import Counter, check_writable, output, print_json, print_line, print_table, write_files
from decodery.cli.machine import in_words
from decodery.cli.options import JsonOption, ModelOptions, with_option_groups
from decodery.errors import BadSetting

if TYPE_CHECKING:
    from decodery.evaluation.acceptance_report import AcceptanceReport

Number = TypeVar("Number", int, float)


@with_option_groups
def acceptance(
    model: ModelOptions,
    draft: Annotated[
        str,
        Option(
            "--draft",
            metavar="NAME",
            help="Who drafts: ngram (counts and recycled scores), ngram-text (counts), layers (the target's first), "
            "or a model.",
        ),
    ] = "ngram",
    layers: Annotated[
        int | None, Option("--layers", help="How many first layers draft, with --draft layers.", show_default="a third")
    ] = None,
    temperatures: Annotated[
        str, Option("--temperatures", metavar="NUMBERS", help="Temperatures, separated by commas.")
    ] = "0.6,1.0",
    drafts: Annotated[
        str, Option("--drafts", metavar="NUMBERS", help="Numbers of drafts, separated by commas.")
    ] = "1,2,3,4,8",
    rows: Annotated[int, Option("--rows", help="Positions logged per temperature.")] = 500,
    support: Annotated[int, Option("--support", help="Both laws keep so many of their likeliest tokens.")] = 1000,
    trials: Annotated[int, Option("--trials", help="How often the drafts of a position are drawn and verified.")] = 1,
    prompts: Annotated[
        Path | None,
        Option(
            "--prompts", metavar="FILE", help="Questions as in Spec-Bench's question.jsonl; default: a small own set."
        ),
    ] = None,
    limit: Annotated[int | None, Option("--limit", help="At most so many questions per category.")] = None,
    max_new_tokens: Annotated[int, Option("--max-new-tokens", help="Most positions from one answer.")] = 32,
    seed: Annotated[int, Option("--seed", help="Fixes every random draw.")] = 0,
    plot: Annotated[Path | None, Option("--plot", metavar="FILE", help="Draw the table (.png, .svg or .pdf).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure how often verifiers accept one of several drafts, and how often any exact verifier could at most.

    The target answers the questions, and the laws of target and draft are kept at every position. "accepted" is observed
    by running the verifier on drawn drafts, "computed" is its exact expectation, "optimum" solves the transport problem
    for the same way of drawing. Numbers stand with their standard errors.

    Example: `decodery acceptance --draft layers --rows 200 --temperatures 0.8 --plot acceptance.png`
    """
    heats = _numbers("--temperatures", temperatures, float)
    counts = _numbers("--drafts", drafts, int)
    from decodery.evaluation.acceptance_report import check_plotting

    if plot is not None:
        check_plotting(plot)
    check_writable(plot)
    from decodery.evaluation.acceptance import acceptance_report, check_numbers
    from decodery.evaluation.questions import load_questions
    from decodery.speculative.draft_model import DraftModel

    check_numbers(heats, counts, rows, support, trials, max_new_tokens)
    drafting = DraftModel(draft=draft, layers=layers)
    questions = load_questions(prompts, per_category=limit)
    lm = model.load()
    with Counter() as counter:
        report = acceptance_report(
            lm,
            drafting,
            questions,
            temperatures=heats,
            counts=counts,
            rows=rows,
            support=support,
            trials=trials,
            max_new_tokens=max_new_tokens,
            seed=seed,
            on_progress=counter,
        )
    write_files((plot, report.plot))
    if as_json:
        print_json(report.as_dict())
    else:
        _show(report)


def _numbers(option: str, text: str, kind: type[Number]) -> list[Number]:
    try:
        return list(dict.fromkeys(kind(part) for part in text.split(",") if part.strip()))
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise BadSetting(f"{option} takes {what} separated by commas, not {text!r}.") from None


def _show(report: AcceptanceReport) -> None:
    header, *lines = report.table()
    print_table([f"{column}>" if column not in ("drawn", "verifier") else column for column in header], lines)
    print_line()
    told = report.provenance
    layers = f" ({told['layers']} layers)" if told["layers"] else ""
    remark = (
        f"{in_words(told)}; draft {told['draft']}{layers}; {told['rows']} positions per temperature of answers to "
        f"{told['questions']} questions ({told['prompts']}), support {told['support']}; analysed in "
        f"{told['analysis_seconds']:.0f} s."
    )
    output().print(Text(remark, style="dim"), soft_wrap=True)
