"""`decodery frequencies`: what users write often, counted from private reports, and tables to draft from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from decodery.cli.console import (
    Counter,
    check_writable,
    print_json,
    print_line,
    print_table,
    visible,
    write_text,
    writing,
)
from decodery.cli.options import JsonOption, ModelOptions, SeedOption, with_option_groups
from decodery.errors import BadInput
from decodery.text_files import numbered_lines, read_text

if TYPE_CHECKING:
    from decodery.language_model import LanguageModel
    from decodery.speculative.private_frequency_estimation.cells import Cells
    from decodery.speculative.private_frequency_estimation.mechanism import Counts, Mechanism

app = typer.Typer(invoke_without_command=True)
Plan = Annotated[Path, Argument(metavar="PLAN", help="The file that `decodery frequencies plan` wrote.")]
Out = Annotated[Path, Option("--out", metavar="FILE", help="Where the result goes.")]


@app.callback()
def frequencies(context: typer.Context) -> None:
    """Learn what users write often without seeing anybody's text, and draft from it.

    plan says what is reported and how it is hidden; report runs where a user's text is; count and merge run on servers;
    estimate gives frequencies, and the table that `private-frequency-estimation` drafts from.

    Example: `decodery frequencies plan --out tokens.json`
    """
    if context.invoked_subcommand is None:
        print_line(context.get_help())


@app.command("plan")
@with_option_groups
def plan(
    model: ModelOptions,
    out: Out,
    epsilon: Annotated[float, Option("--epsilon", help="Privacy budget of a report; smaller hides more.")] = 4.0,
    after: Annotated[
        Path | None,
        Option(
            "--after",
            metavar="COUNTS",
            help="Counts of single tokens: pairs of the most frequent ones are reported next, by other users.",
        ),
    ] = None,
    contexts: Annotated[
        int, Option("--contexts", help="Tokens whose successors are counted, at most 4096; with --after.")
    ] = 128,
    successors: Annotated[
        int, Option("--successors", help="Successors of each, the most frequent tokens; with --after.")
    ] = 31,
    moduli: Annotated[int, Option("--moduli", help="Number of moduli.")] = 10,
    least: Annotated[float, Option("--least", help="Least modulus, as a share of the number of values.")] = 0.5,
    most: Annotated[
        float, Option("--most", help="Largest modulus: larger ones make reports longer and errors smaller.")
    ] = 0.6,
    tries: Annotated[int, Option("--tries", help="Sets of moduli that are tried.")] = 20,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Write down what users report and how it is hidden. Nothing of a plan is secret.

    Example: `decodery frequencies plan --epsilon 4 --out tokens.json`
    """
    from decodery.speculative.continuations.trigrams import fingerprint
    from decodery.speculative.private_frequency_estimation.cells import Cells, head_pairs
    from decodery.speculative.private_frequency_estimation.mechanism import Mechanism

    check_writable(out)
    if after is None:
        lm = model.load()
        cells = Cells(lm.network.vocabulary, fingerprint(lm.tokenizer, lm.network.vocabulary))
    else:
        counts, before = _counts(after)
        cells = head_pairs(before, counts.frequencies().values, contexts, successors)
    with Counter(shown=not as_json) as counter:
        chosen = Mechanism.choose(
            cells.size,
            epsilon,
            moduli,
            (least, most),
            tries,
            seed,
            lambda done, total: counter("choosing moduli", done, total),
        )
    write_text(out, json.dumps({**chosen.as_dict(), "cells": cells.as_dict()}) + "\n")
    longest = max(chosen.bits(block) for block in range(len(chosen.moduli)))
    if as_json:
        print_json({"values": chosen.size, "epsilon": epsilon, "moduli": list(chosen.moduli), "bits": longest})
        return
    print_line(
        f"{chosen.size} values, epsilon {epsilon:g}, moduli {', '.join(map(str, chosen.moduli))}; a report has at most "
        f"{longest} bits: {out}"
    )


@app.command("report")
@with_option_groups
def report(
    model: ModelOptions,
    plan: Plan,
    texts: Annotated[list[Path], Argument(metavar="TEXTS", help="UTF-8 files: all text of one user each.")],
    out: Annotated[
        Path | None, Option("--out", metavar="FILE", help="Where the reports go; default: standard output.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Report one token or pair of each user's text, hidden. Run it where the text is; once a user and plan.

    Example: `decodery frequencies report tokens.json diary.txt --out report.txt`
    """
    mechanism, cells = _plan(plan)
    check_writable(out)
    contents = [read_text(path) for path in texts]
    lm = model.load()
    _same_tokens(lm, cells, plan)
    lines = [mechanism.encode(mechanism.report(cells.choose(lm.encode(content)))) for content in contents]
    if out is not None:
        write_text(out, "".join(f"{line}\n" for line in lines))
    if as_json:
        print_json({"reports": lines})
    elif out is None:
        for line in lines:
            print_line(line)
    else:
        print_line(f"{len(lines)} reports: {out}")


@app.command("count")
def count(
    plan: Plan,
    reports: Annotated[list[Path], Argument(metavar="REPORTS", help="Files with a report a line.")],
    out: Out,
    as_json: JsonOption = False,
) -> None:
    """Count reports. Counts of several servers add up: `decodery frequencies merge`.

    Example: `decodery frequencies count tokens.json reports.txt --out counts.npz`
    """
    from decodery.speculative.private_frequency_estimation.mechanism import Counts

    mechanism, cells = _plan(plan)
    check_writable(out)
    counts = Counts(mechanism)
    for path in reports:
        for number, line in numbered_lines(path):
            try:
                counts.add(mechanism.decode(line))
            except BadInput as error:
                raise BadInput(f"line {number} of {path} is no report: {str(error).rstrip('.')}.") from None
    _save(counts, cells, out, as_json)


@app.command("merge")
def merge(
    counts: Annotated[list[Path], Argument(metavar="COUNTS", help="What servers have counted, by one plan.")],
    out: Out,
    as_json: JsonOption = False,
) -> None:
    """Add up what several servers have counted, in any order.

    Example: `decodery frequencies merge first.npz second.npz --out counts.npz`
    """
    from decodery.speculative.private_frequency_estimation.mechanism import Counts

    check_writable(out)
    read = [_counts(path) for path in counts]
    for path, (_, cells) in zip(counts, read, strict=True):
        if cells != read[0][1]:
            raise BadInput(f"{path} counts other things than {counts[0]}.")
    _save(Counts.merged(part for part, _ in read), read[0][1], out, as_json)


@app.command("estimate")
@with_option_groups
def estimate(
    model: ModelOptions,
    counts: Annotated[Path, Argument(metavar="COUNTS", help="What was counted.")],
    out: Annotated[
        Path | None, Option("--out", metavar="FILE", help="Where the table to draft from goes; of pairs alone.")
    ] = None,
    top: Annotated[int, Option("--top", help="Show so many of the most frequent.")] = 20,
    alpha: Annotated[float, Option("--alpha", help="Show those that a value nobody has exceeds so rarely.")] = 0.01,
    as_json: JsonOption = False,
) -> None:
    """Estimate frequencies from counts, and write the table that `private-frequency-estimation(table=FILE)` drafts from.

    Example: `decodery frequencies estimate counts.npz --out table.npz`
    """
    from decodery.speculative.private_frequency_estimation.table import FrequencyTable

    if not 0 < alpha < 1:
        raise BadInput(f"--alpha must lie between 0 and 1, not {alpha:g}.")
    if top < 0:
        raise BadInput(f"--top must be at least 0, not {top}.")
    check_writable(out)
    counted, cells = _counts(counts)
    found = counted.frequencies()
    if out is not None:
        table = FrequencyTable.of(cells, found)
        with writing(out):
            table.save(out)
    lm = model.load()
    _same_tokens(lm, cells, counts)
    least = found.threshold(alpha)
    best = [int(place) for place in (-found.values).argsort(kind="stable")[:top] if found.values[place] > least]
    named = [(cells.tokens_of(place), float(found.values[place])) for place in best]
    told: list[dict[str, Any]] = [
        {"tokens": list(tokens), "text": lm.tokenizer.decode(list(tokens)), "share": share} for tokens, share in named
    ]
    if as_json:
        print_json(
            {
                "reports": found.reports,
                "standard_error": found.standard_error,
                "threshold": least,
                "significant": int((found.values > least).sum()),
                "top": told,
            }
        )
        return
    print_table(
        ("text", "share"),
        [(visible(repr(one["text"])) if one["tokens"] else "(all others)", f"{one['share']:.4f}") for one in told],
    )
    print_line(
        f"{found.reports} reports; standard error {found.standard_error:.5f}; "
        f"{int((found.values > least).sum())} of {len(found.values)} values are above {least:.5f}."
    )


def _plan(path: Path) -> tuple[Mechanism, Cells]:
    from decodery.speculative.private_frequency_estimation.cells import Cells
    from decodery.speculative.private_frequency_estimation.mechanism import Mechanism

    try:
        told = json.loads(read_text(path))
        mechanism, cells = Mechanism.of(told), Cells.of(told["cells"])
    except (ValueError, KeyError, TypeError):
        raise BadInput(f"{path} is no plan; `decodery frequencies plan` writes one.") from None
    except BadInput as error:
        raise BadInput(f"{path} is no plan that can be used: {error}") from None
    if mechanism.size != cells.size:
        raise BadInput(f"{path} hides {mechanism.size} values, and names {cells.size}.")
    return mechanism, cells


def _counts(path: Path) -> tuple[Counts, Cells]:
    from decodery.speculative.private_frequency_estimation.cells import Cells
    from decodery.speculative.private_frequency_estimation.mechanism import Counts

    counts, about = Counts.read(path)
    if "cells" not in about:
        raise BadInput(f"{path} does not say what it counts.")
    return counts, Cells.of(about["cells"])


def _save(counts: Counts, cells: Cells, out: Path, as_json: bool) -> None:
    with writing(out):
        counts.save(out, {"cells": cells.as_dict()})
    if as_json:
        print_json({"reports": int(counts.users.sum())})
    else:
        print_line(f"{int(counts.users.sum())} reports: {out}")


def _same_tokens(lm: LanguageModel, cells: Cells, path: Path) -> None:
    from decodery.speculative.continuations.trigrams import fingerprint

    vocabulary = lm.network.vocabulary
    if cells.vocabulary != vocabulary or cells.tokenizer != fingerprint(lm.tokenizer, vocabulary):
        raise BadInput(f"{path} is of the tokens of another model than {lm.name}.")
