"""`decodery attribute`: what each token of a text was chosen for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from decodery.cli.console import (
    Counter,
    check_writable,
    print_json,
    print_table,
    visible,
    write_files,
    write_text,
)
from decodery.cli.options import JsonOption, ModelOptions, SeedOption, print_remarks, with_option_groups
from decodery.cli.prompts import as_conversation, characters, read_prompt
from decodery.errors import BadInput


@with_option_groups
def attribute(
    model: ModelOptions,
    prompt: Annotated[str | None, Argument(metavar="PROMPT", help="The context; - is standard input.")] = None,
    file: Annotated[Path | None, Option("--file", metavar="FILE", help="Read the prompt from a file.")] = None,
    chat: Annotated[bool, Option("--chat", help="The prompt is what a user says.")] = False,
    continuation: Annotated[
        str | None,
        Option("--continuation", metavar="TEXT", help="What follows it.", show_default="what the model writes"),
    ] = None,
    max_new_tokens: Annotated[int, Option("--max-new-tokens", help="How much the model writes, greedily.")] = 10,
    by: Annotated[
        str,
        Option(
            "--by",
            metavar="WAY",
            help="reagent, occlusion, integrated-gradients, gradient-input, attention-mean, attention-last, "
            "attention-rollout, or random.",
        ),
    ] = "reagent",
    replacer: Annotated[
        str, Option("--replacer", help="What reagent puts in place of tokens: inferential, uniform, pos, or masked.")
    ] = "inferential",
    masked_model: Annotated[
        Path | None, Option("--masked-model", metavar="FOLDER", help="A masked language model, for --replacer masked.")
    ] = None,
    replaced: Annotated[float, Option("--replaced", help="Share of tokens replaced in a step.")] = 0.3,
    tolerance: Annotated[
        int, Option("--tolerance", help="A chain ends where the token is among so many likeliest; 0: never.")
    ] = 3,
    kept: Annotated[float, Option("--kept", help="Share of tokens that must bring the token back.")] = 0.3,
    least: Annotated[int, Option("--least", help="At least so many of them.")] = 3,
    steps: Annotated[int, Option("--steps", help="Most steps of a chain.")] = 300,
    chains: Annotated[int, Option("--chains", help="Independent chains, of which the mean is taken.")] = 5,
    votes: Annotated[int, Option("--votes", help="Chains that must agree on a token of the rationale.")] = 2,
    seed: SeedOption = 0,
    html: Annotated[
        Path | None, Option("--html", metavar="FILE", help="Write a page: point at a token to see what it depends on.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Tell how much each token of the context mattered for each token that follows it.

    By default with ReAGent, which needs forwards alone and so works with every model.

    Example: `decodery attribute "The capital of France is" --max-new-tokens 3 --html why.html`
    """
    from decodery.audit.attribution import WAYS, replacer_of
    from decodery.audit.attribution import attribute as attributed
    from decodery.audit.reagent import ReagentSettings
    from decodery.errors import near

    if by not in WAYS:
        raise BadInput(f"there is no attribution {by!r}; {near(by, WAYS)}")
    settings = ReagentSettings(replaced, tolerance, kept, least, steps, chains, votes, seed)
    asked = as_conversation(read_prompt(prompt, file), chat, None)
    check_writable(html)
    lm = model.load()
    if continuation is None:
        tokens = list(lm.generate(asked, temperature=0, max_new_tokens=max_new_tokens).token_ids)
    else:
        tokens = lm.encode(characters(continuation))
    with Counter(shown=not as_json) as counter:
        way = replacer_of(replacer, lm, "" if masked_model is None else str(masked_model))
        report = attributed(lm, asked, tokens, by, way, settings, counter)
    write_files((html, lambda path: write_text(path, report.as_html())))
    if as_json:
        print_json(report.as_dict())
        return
    rows = []
    for row in report.rows:
        best = (-row.weights).argsort(kind="stable")[:5]
        told = ", ".join(f"{visible(report.texts[place])!r} {row.weights[place]:.0%}" for place in best)
        ended = "" if row.converged is None else ("yes" if row.converged else "no")
        rows.append((repr(visible(report.texts[row.place])), told, ended))
    columns = ("token", "depends most on", "converged")
    used = 3 if by == "reagent" else 2
    print_table(columns[:used], [row[:used] for row in rows])
    print_remarks(f"By {by} under {report.model}. Shares of all tokens before it, the prompt's and those written.")
