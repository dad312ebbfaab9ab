"""`decodery audit obstinate`: words that mean something else, and the model predicts the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from decodery.cli.console import Counter, print_json, print_line, print_table, visible
from decodery.cli.options import JsonOption, ModelOptions, SeedOption, named, print_remarks, with_option_groups
from decodery.errors import BadInput

if TYPE_CHECKING:
    from decodery.audit.obstinate_report import ObstinateReport


@with_option_groups
def obstinate(
    model: ModelOptions,
    text: Annotated[str | None, Argument(metavar="TEXT", help="The text whose words are replaced.")] = None,
    file: Annotated[Path | None, Option("--file", metavar="FILE", help="Texts, one a line, instead.")] = None,
    before: Annotated[str, Option("--before", metavar="TEXT", help="What stands before each text.")] = "",
    after: Annotated[str, Option("--after", metavar="TEXT", help="What stands after it, such as a question.")] = "",
    labels: Annotated[
        str | None,
        Option(
            "--labels",
            metavar="WORDS",
            help="Answers of which one is predicted, separated by commas; each behind a space.",
            show_default="how the model goes on",
        ),
    ] = None,
    continued: Annotated[int, Option("--continued", help="Tokens of a continuation that must stay.")] = 1,
    judge: Annotated[
        str,
        Option(
            "--judge", metavar="NAME", help="Another model, whose embeddings say whether a word means something else."
        ),
    ] = "gemma3-270m",
    transfer: Annotated[
        str | None, Option("--transfer", metavar="NAMES", help="Models on which the words are tried, too.")
    ] = None,
    words: Annotated[int, Option("--words", help="Words of a text that are replaced.")] = 1,
    steps: Annotated[int, Option("--steps", help="Steps of a search.")] = 20,
    rate: Annotated[float, Option("--rate", help="Length of a step, in mean lengths of embeddings.")] = 0.5,
    every: Annotated[int, Option("--every", help="Steps after which the search goes on from a real token.")] = 5,
    candidates: Annotated[
        int, Option("--candidates", help="Tokens that are then tried, by gradient; 0: the nearest alone.")
    ] = 50,
    penalty: Annotated[float, Option("--penalty", help="Weight of being near to the word.")] = 1.0,
    margin: Annotated[float, Option("--margin", help="Cosine to the word that costs nothing.")] = 0.2,
    similarity: Annotated[
        float, Option("--similarity", help="A word means something else where the judge's cosine is below.")
    ] = 0.3,
    restarts: Annotated[int, Option("--restarts", help="Searches for a word, until one finds something.")] = 5,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Find words that could be replaced by words of another meaning without changing what the model predicts (GradObstinate).

    Beside it: random words, antonyms, and other models. Every text that counts was read again from its characters.

    Example: `decodery audit obstinate "Lily was happy." --after " She feels" --labels joy,fear`
    """
    from decodery.audit.gradobstinate import ObstinateSettings
    from decodery.audit.obstinate_report import audit_obstinate
    from decodery.audit.predictions import TextQuestion
    from decodery.text_files import numbered_lines

    if (text is None) == (file is None):
        raise BadInput("give a text, or --file with one text a line.")
    texts = [text or ""] if file is None else [line.strip() for _, line in numbered_lines(file)]
    question = TextQuestion(before, after, tuple(f" {label}" for label in named(labels)), continued)
    settings = ObstinateSettings(words, steps, rate, every, candidates, penalty, margin, similarity, restarts, seed)
    lm = model.load()
    judging = lm.companion(judge)
    others = [lm.companion(name) for name in named(transfer)]
    with Counter(shown=not as_json) as counter:
        report = audit_obstinate(lm, judging, texts, question, settings, others, counter)
    if as_json:
        print_json(report.as_dict())
        return
    _show(report)


def _show(report: ObstinateReport) -> None:
    from decodery.audit.obstinate_report import RECONSTRUCTED

    rows = []
    for row in report.rows:
        for one in row.search.substitutions:
            rows.append((visible(one.word), visible(one.substitute), f"{one.similarity:.2f}", str(one.checked)))
        told = "found" if row.search.found else "not found"
        rows.append(
            (visible(row.search.changed), f"{told}: {visible(row.predicted)}", f"{row.search.change:+.2f} nats", "")
        )
    print_table(("word, text", "instead, prediction", "similarity>", "read>"), rows)
    print_line()
    print_table(
        ("words", "prediction stays>", "texts>"),
        [(name, str(right), str(count)) for name, (right, count) in report.rates().items()],
    )
    print_remarks(f"Under {report.model}; {report.judge} judges meanings. {RECONSTRUCTED}")
