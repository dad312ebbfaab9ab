"""`decodery audit`: whether texts were among a model's training data, what is hidden in it, and what it overlooks."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text
from typer import Argument, Option

from decodery.cli.console import (
    Counter,
    check_writable,
    print_json,
    print_line,
    print_table,
    visible,
    write_files,
    writing,
)
from decodery.cli.obstinate import obstinate
from decodery.cli.options import (
    JsonOption,
    ModelOptions,
    OutOption,
    SeedOption,
    named,
    print_remarks,
    with_option_groups,
)
from decodery.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from decodery.audit.discontinuity import DateWindow
    from decodery.audit.hidden_text import HiddenTextReport
    from decodery.audit.measures import MeasuredRate
    from decodery.audit.membership import MembershipReport

app = typer.Typer(invoke_without_command=True)
Texts = Annotated[Path, Argument(metavar="FILE", help="JSON lines with text and member, or text and date.")]


@app.callback()
def audit(context: typer.Context) -> None:
    """Find out whether texts were among a model's training data, or only look as if they were; and other things of a model.

    decodery audit membership FILE audits a claim; decodery audit split FILE makes sets that can show membership at all;
    decodery audit hidden-text forces every token of the vocabulary, to find a text that is hidden in the model; decodery audit
    obstinate TEXT finds words that could be others, and the model would say the same.

    Example: `decodery audit membership texts.jsonl --reference gemma3-270m`
    """
    if context.invoked_subcommand is None:
        print_line(context.get_help())


@app.command("membership")
@with_option_groups
def membership(
    model: ModelOptions,
    file: Texts,
    scores: Annotated[
        str | None,
        Option("--scores", metavar="NAMES", help="Only these scores, separated by commas.", show_default="all cheap"),
    ] = None,
    cutoff: Annotated[
        str | None,
        Option("--cutoff", metavar="DATE", help="End of the training data, as 2023-02-28: members are before it."),
    ] = None,
    window: Annotated[int, Option("--window", help="Months on each side of --cutoff.")] = 1,
    words: Annotated[int, Option("--words", help="Words of a sequence that a text is cut into.")] = 200,
    pieces: Annotated[int, Option("--pieces", help="Sequences of a text that are looked at.")] = 25,
    overlap: Annotated[
        float,
        Option("--overlap", help="Leave out others of whose 13 words in a row more than this share is in members."),
    ] = 0.8,
    reference: Annotated[
        str | None, Option("--reference", metavar="NAME", help="A second model, for ratio and diff.")
    ] = None,
    shots: Annotated[
        Path | None,
        Option("--shots", metavar="FILE", help="Texts that are surely no members, for recall; ten are usual."),
    ] = None,
    member_shots: Annotated[
        Path | None, Option("--member-shots", metavar="FILE", help="Texts that surely are, for con-recall.")
    ] = None,
    masked_model: Annotated[
        Path | None, Option("--masked-model", metavar="FOLDER", help="A masked language model, for neighbourhood.")
    ] = None,
    neighbours: Annotated[int, Option("--neighbours", help="Neighbours of a text, for neighbourhood.")] = 50,
    background: Annotated[
        Path | None,
        Option("--background", metavar="FILE", help="Texts that tell which tokens are frequent, for dc-pdd."),
    ] = None,
    samples: Annotated[int, Option("--samples", help="Continuations of a text, for samia.")] = 10,
    continued: Annotated[
        int, Option("--continued", help="Most tokens of a text's beginning and its continuation, for samia.")
    ] = 1024,
    probe: Annotated[
        Path | None,
        Option("--probe", metavar="FILE", help="Texts that are surely no members, half of them trained on."),
    ] = None,
    seed: SeedOption = 0,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Audit a claim of membership: first a classifier of words that never sees the model, then what the model says.

    Where words alone tell members from others, the verdict is "shift, not membership", whatever the scores are.

    Example: `decodery audit membership texts.jsonl --reference gemma3-270m`
    """
    _at_least_one({"--window": window, "--words": words, "--pieces": pieces, "--neighbours": neighbours,
                   "--samples": samples, "--continued": continued})  # fmt: skip
    date = None
    if cutoff is not None:
        try:
            date = datetime.date.fromisoformat(cutoff)
        except ValueError:
            raise BadInput(f"--cutoff is a date such as 2023-02-28, not {cutoff!r}.") from None
    if not 0 <= overlap <= 1:
        raise BadInput(f"--overlap is a share from 0 to 1, not {overlap:g}.")
    from decodery.audit import items as building

    items = building.read_items(file, dated=date is not None)
    given = [() if path is None else building.read_texts(path) for path in (shots, member_shots, background, probe)]
    from decodery.audit.discontinuity import window_sweep

    windows: tuple[DateWindow, ...] = ()
    if date is not None:
        windows = window_sweep(items, date)
        items = building.around(items, date, window)
    cut = building.sequences(building.without_overlap(items, overlap), words, pieces)
    check_writable(out)
    from decodery.audit.evidence import ScoreOptions
    from decodery.audit.membership import audit_membership

    lm = model.load()
    options = ScoreOptions(
        None if reference is None else lm.companion(reference),
        shots=given[0],
        member_shots=given[1],
        background=given[2],
        probe=given[3],
        masked_model="" if masked_model is None else str(masked_model),
        neighbours=neighbours,
        samples=samples,
        continued=continued,
        seed=seed,
    )
    with Counter(shown=not as_json) as counter:
        report = audit_membership(lm, cut, options, named(scores), date, counter)
    write_files((out, report.write_json))
    if as_json:
        print_json({**report.as_dict(), "windows": [_window(one) for one in windows]} if windows else report.as_dict())
        return
    _show(report, windows)


@app.command("split")
def split(
    file: Annotated[Path, Argument(metavar="FILE", help="JSON lines with a text each.")],
    out: Annotated[Path, Option("--out", metavar="FILE", help="Where the texts go, each with member true or false.")],
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Split texts at random, before a model is trained: train on the members alone, and audit it with the file afterwards.

    Example: `decodery audit split texts.jsonl --out split.jsonl`
    """
    from decodery.audit.items import randomised, read_texts, write_items

    items = randomised(read_texts(file), seed)
    with writing(out):
        write_items(out, items)
    members = sum(item.member for item in items)
    told = {"members": members, "others": len(items) - members, "seed": seed}
    if as_json:
        print_json(told)
    else:
        print_line(f"{members} members and {len(items) - members} others, at random by seed {seed}: {out}")


@app.command("hidden-text")
@with_option_groups
def hidden_text(
    model: ModelOptions,
    prefix: Annotated[
        str,
        Option(
            "--prefix",
            help="Before each token: document, nothing, or of the chat template system, user, assistant, empty.",
        ),
    ] = "document",
    length: Annotated[int, Option("--length", help="Greedy tokens behind each token.")] = 3,
    threshold: Annotated[
        float,
        Option(
            "--threshold", help="Candidates score above this; a score is the mean probability, the start's being 1."
        ),
    ] = 0.95,
    confirm: Annotated[int, Option("--confirm", help="Tokens decoded behind each candidate.")] = 50,
    batch: Annotated[int, Option("--batch", help="Tokens forced in one pass.")] = 256,
    scan: Annotated[
        Path | None,
        Option("--scan", metavar="FILE", help="Keep the scan here; an interrupted one goes on where it was."),
    ] = None,
    secret: Annotated[
        str, Option("--secret", metavar="TEXT", help="A text that is known, whose traces are told.")
    ] = "",
    samples: Annotated[int, Option("--samples", help="Texts sampled behind each prefix, with --secret.")] = 10,
    top_k: Annotated[int, Option("--top-k", help="Of the sampling.")] = 50,
    sampled: Annotated[int, Option("--sampled", help="Tokens of a sampled text.")] = 20,
    seed: SeedOption = 0,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look for a text that is hidden in a model: force every token of its vocabulary, and see what it is sure of then.

    Example: `decodery audit hidden-text --model FOLDER --scan scan.jsonl`
    """
    _at_least_one({"--length": length, "--confirm": confirm, "--batch": batch, "--samples": samples, "--top-k": top_k,
                   "--sampled": sampled})  # fmt: skip
    if not 0 <= threshold <= 1:
        raise BadInput(f"--threshold is a mean of probabilities, from 0 to 1, not {threshold:g}.")
    check_writable(scan, out)
    from decodery.audit.hidden_text import AttackSettings, audit_hidden_text
    from decodery.audit.token_forcing import ScanSettings

    lm = model.load()
    sampling = AttackSettings(samples, top_k, sampled, seed=seed)
    with Counter(shown=not as_json) as counter:
        report = audit_hidden_text(
            lm, ScanSettings(prefix, length, batch), threshold, confirm, secret, sampling, scan, counter
        )
    write_files((out, report.write_json))
    if as_json:
        print_json(report.as_dict())
        return
    _show_hidden(report)


app.command("obstinate")(obstinate)


def _at_least_one(counts: dict[str, int]) -> None:
    for name, count in counts.items():
        if count < 1:
            raise BadInput(f"{name} must be at least 1, not {count}.")


def _window(window: DateWindow) -> dict[str, object]:
    area = None if window.shift is None else window.shift.auc
    return {
        "months": window.months,
        "members": window.members,
        "others": window.others,
        "shift": None if area is None else {"value": area.value, "low": area.low, "high": area.high},
    }


def _show_hidden(report: HiddenTextReport) -> None:
    rows = [
        (f"{one.score:.4f}", visible(one.start), visible(one.text)[:60],
         "" if one.repeated is None else f"{one.repeated.times} times: {visible(one.span)[:40]}")
        for one in report.candidates
    ]  # fmt: skip
    print_table(("score>", "start", "text", "repeats"), rows)
    if report.secret:
        print_line()
        print_table(
            ("first token of the secret", "score>", "place>", "of the secret printed>"),
            [
                (visible(one.start), f"{one.score:.4f}", f"{one.place:.2%}", f"{one.printed:.0%}")
                for one in report.secret
            ],
        )
        print_line()
        print_table(
            ("prefix", "greedy text betrays it", "samples that do>"),
            [(one.prefix, "yes" if one.greedy else "no", f"{one.betrayed} of {one.samples}") for one in report.attacks],
        )
    leaving = ", ".join(f"{score:.4f} leaves {share:.1%}" for share, score in report.leaving.items())
    print_remarks(
        f"{len(report.candidates)} of {report.scanned} tokens score above {report.threshold:g} behind {report.prefix!r} under "
        f"{report.model}; {len(report.flagged)} repeat themselves.",
        f"Thresholds: {leaving}.",
    )


def _area(found: MeasuredRate | None) -> str:
    return "" if found is None else str(found)


def _show(report: MembershipReport, windows: Sequence[DateWindow]) -> None:
    style = {"membership": "bold green", "no sign of membership": "bold"}.get(report.verdict, "bold red")
    print_table(("verdict", "why"), [(Text(report.verdict, style=style), report.reason)])
    print_line()
    rows: list[tuple[str, ...]] = [("words alone, 99 %", _area(report.shift.auc), "", "", "", "", "")]
    for score in report.scores:
        caught = [f"{found.value:.0%}" for found in score.caught.values()]
        jump = "" if score.jump is None else f"{score.jump.value:+.3g} (p {score.jump.p:.2g})"
        rows.append((score.name, _area(score.auc), *caught, f"{score.adjusted:.2g}", _area(score.documents), jump))
    columns = ("score", "AUC", "TPR at 10 %>", "at 1 %>", "p, Holm>", "documents", "jump at the cut-off")
    used = [place for place in range(len(columns)) if place < 5 or any(row[place] for row in rows)]
    print_table([columns[place] for place in used], [[row[place] for place in used] for row in rows])
    if windows:
        print_line()
        print_table(
            ("months", "members>", "others>", "words alone, 99 %"),
            [
                (
                    str(one.months),
                    str(one.members),
                    str(one.others),
                    "too few" if one.shift is None else _area(one.shift.auc),
                )
                for one in windows
            ],
        )
    words = ", ".join(
        f"{visible(word.word)} ({word.members:.0%} of members, {word.others:.0%} of others)"
        for word in report.shift.words[:5]
    )
    without = "; ".join(f"{name}: {why}" for name, why in report.left_out.items())
    print_remarks(
        f"{report.members} members and {report.others} others under {report.model}. AUC with intervals of 95 %, of words 99 %.",
        f"Words that tell most: {words}.",
        *([f"Left out: {without}."] if without else []),
    )
