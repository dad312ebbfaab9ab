"""`decodery traps`: texts that show whether a document was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from decodery.cli.console import Counter, check_writable, print_json, print_line, print_table, writing
from decodery.cli.options import JsonOption, ModelOptions, SeedOption, print_remarks, with_option_groups
from decodery.errors import BadInput
from decodery.text_files import write_records

if TYPE_CHECKING:
    from collections.abc import Sequence

    from decodery.audit.trap_detection import TrapReport

app = typer.Typer(invoke_without_command=True)
Traps = Annotated[Path, Argument(metavar="TRAPS", help="The file that `decodery traps make` wrote.")]
Documents = Annotated[Path, Argument(metavar="DOCUMENTS", help="JSON lines with a text each.")]
Record = Annotated[Path, Option("--record", metavar="FILE", help="Where each copy stands.")]
Out = Annotated[Path, Option("--out", metavar="FILE", help="Where the result goes.")]


@app.callback()
def traps(context: typer.Context) -> None:
    """Put texts that exist nowhere else into your documents, and find out later whether a model was trained on them.

    make writes traps and their twins, inject puts the traps into documents, remove takes them out again, detect tests a model.

    Example: `decodery traps make --out traps.jsonl`
    """
    if context.invoked_subcommand is None:
        print_line(context.get_help())


@app.command("make")
@with_option_groups
def make(
    model: ModelOptions,
    out: Out,
    length: Annotated[int, Option("--length", help="Tokens of a trap.")] = 25,
    count: Annotated[
        int, Option("--count", help="Traps in all; half of them are twins that are never published.")
    ] = 80,
    buckets: Annotated[int, Option("--buckets", help="Classes of perplexity, each with as many traps.")] = 5,
    lowest: Annotated[int, Option("--lowest", help="Least perplexity.")] = 5,
    highest: Annotated[int, Option("--highest", help="Most perplexity.")] = 99,
    repetitions: Annotated[
        str, Option("--repetitions", metavar="NUMBERS", help="Copies of the members, in turn.")
    ] = "1,4,16,64",
    hottest: Annotated[float, Option("--hottest", help="Temperatures are tried from 0.5 to below this.")] = 4.0,
    rounds: Annotated[int, Option("--rounds", help="How often all temperatures are tried.")] = 20,
    batch: Annotated[int, Option("--batch", help="Texts sampled together.")] = 128,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Sample traps of one length and a range of perplexities, and their twins.

    Example: `decodery traps make --length 25 --count 80 --out traps.jsonl`
    """
    from decodery.audit.traps import MEMBER, TrapRecipe, make_traps, write_traps

    try:
        times = tuple(int(number) for number in repetitions.split(","))
    except ValueError:
        raise BadInput(
            f"--repetitions are numbers separated by commas, such as 1,4,16,64, not {repetitions!r}."
        ) from None
    recipe = TrapRecipe(length, count, buckets, lowest, highest, hottest=hottest, batch=batch, rounds=rounds,
                        repetitions=times, seed=seed)  # fmt: skip
    check_writable(out)
    lm = model.load()
    with Counter(shown=not as_json) as counter:
        found = make_traps(lm, recipe, counter)
    with writing(out):
        write_traps(out, found)
    members = sum(trap.split == MEMBER for trap in found)
    told = {"members": members, "twins": len(found) - members, "generator": lm.name, "seed": seed}
    if as_json:
        print_json(told)
    else:
        print_line(
            f"{members} traps and {len(found) - members} twins of {length} tokens, by {lm.name} and seed {seed}: {out}"
        )


@app.command("inject")
def inject(
    traps: Traps,
    documents: Documents,
    out: Out,
    record: Record,
    least_words: Annotated[int, Option("--least-words", help="Shortest document that gets a trap.")] = 1000,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Put each trap into a document of its own, as often as it is to be repeated. Keep the record: it takes them out again.

    Example: `decodery traps inject traps.jsonl books.jsonl --out published.jsonl --record record.jsonl`
    """
    from decodery.audit.injection import inject_all, write_injections
    from decodery.audit.items import read_texts
    from decodery.audit.traps import read_traps

    check_writable(out, record)
    texts, injected = inject_all(read_texts(documents), read_traps(traps), least_words, seed)
    _write(out, texts)
    with writing(record):
        write_injections(record, injected)
    copies = sum(len(one.positions) for one in injected)
    _told(as_json, {"documents": len(texts), "traps": len(injected), "copies": copies, "seed": seed})


@app.command("remove")
def remove(documents: Documents, record: Record, out: Out, as_json: JsonOption = False) -> None:
    """Take traps out of documents again, byte for byte.

    Example: `decodery traps remove published.jsonl --record record.jsonl --out books.jsonl`
    """
    from decodery.audit.injection import read_injections, remove_all
    from decodery.audit.items import read_texts

    check_writable(out)
    injected = read_injections(record)
    texts = remove_all(read_texts(documents), injected)
    _write(out, texts)
    copies = sum(len(one.positions) for one in injected)
    _told(as_json, {"documents": len(texts), "traps": len(injected), "copies": copies})


@app.command("detect")
@with_option_groups
def detect(
    model: ModelOptions,
    traps: Traps,
    reference: Annotated[
        str,
        Option(
            "--reference", metavar="NAME", help="A model that has not seen the traps, such as the one that wrote them."
        ),
    ],
    published: Annotated[
        Path | None,
        Option("--published", metavar="DOCUMENTS", help="Score traps behind what stands before them there."),
    ] = None,
    record: Annotated[
        Path | None, Option("--record", metavar="FILE", help="Where they stand, for --published.")
    ] = None,
    context: Annotated[int, Option("--context", help="Tokens of what stands before them.")] = 64,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Test a model for traps: are those that were published likelier than their twins?

    Example: `decodery traps detect traps.jsonl --model FOLDER --reference smollm2-135m`
    """
    from decodery.audit.traps import read_traps

    if (published is None) != (record is None):
        raise BadInput("--published and --record go together: the documents, and where the traps stand in them.")
    if context < 1:
        raise BadInput(f"--context must be at least 1, not {context}.")
    listed = read_traps(traps)
    prefixes = None
    if published is not None and record is not None:
        from decodery.audit.injection import contexts, read_injections
        from decodery.audit.items import read_texts
        from decodery.audit.trap_detection import twin_prefixes

        prefixes = twin_prefixes(listed, contexts(read_texts(published), read_injections(record)), seed)
    from decodery.audit import trap_detection

    lm = model.load()
    with Counter(shown=not as_json) as counter:
        report = trap_detection.detect(lm, lm.companion(reference), listed, prefixes, context, counter)
    if as_json:
        print_json(report.as_dict())
        return
    _show(report)


def _write(path: Path, texts: Sequence[str]) -> None:
    with writing(path):
        write_records(path, ({"text": text} for text in texts))


def _told(as_json: bool, told: dict[str, int]) -> None:
    if as_json:
        print_json(told)
    else:
        print_line(", ".join(f"{name}: {count}" for name, count in told.items()))


def _show(report: TrapReport) -> None:
    names = list(report.values)
    print_table(
        ("tokens", "copies>", "traps>", "twins>", *names),
        [
            (str(cell.length), str(cell.repetitions), str(cell.members), str(cell.twins),
             *(str(cell.areas[name]) for name in names))
            for cell in report.cells
        ],
    )  # fmt: skip
    print_line()
    print_table(
        ("bucket of perplexity", "ratio, all copies"),
        [(str(bucket), str(area)) for bucket, area in report.buckets.items()],
    )
    ranks = [f"{value:+.2f} for {length} tokens" for length, value in report.rank.items()]
    print_remarks(
        f"AUC of traps against twins under {report.model}, beside {report.reference}; 95 %. A half is chance.",
        *([f"Spearman's correlation of copies and AUC of the ratio: {', '.join(ranks)}."] if ranks else []),
    )
