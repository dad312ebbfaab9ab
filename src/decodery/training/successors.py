"""Which tokens a model itself lets follow runs of one to three tokens, averaged over text that it wrote: a table for drafting.

Nothing is trained. The model answers varied prompts (`decodery.training.answers`), half of them greedily and half at
temperature 0.8; at every token its own probabilities of the likeliest successors are added up under the last token, the last
two, and the last three. Run it as `decodery train successors --help`.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from decodery.models.forward import Forward
from decodery.speculative.continuations.successors import LENGTHS, SuccessorTable
from decodery.speculative.continuations.trigrams import fingerprint
from decodery.training.answers import AnswerRecipe, OwnAnswer, in_groups, read_answers, write_answers
from decodery.training.options import (
    Show,
    add_options,
    progress_bars,
    read_options,
    recipe_parser,
    refusing,
    silent,
)

if TYPE_CHECKING:
    from decodery.language_model import LanguageModel

KEPT = 4
"""Successors that are noted at each token."""
RECIPE = AnswerRecipe(prompts=4096, temperatures=(0.0, 0.8))
"""What is written."""


def table_of(
    lm: LanguageModel, answers: Sequence[OwnAnswer], tokenizer: str, progress: Show = silent
) -> tuple[SuccessorTable, int]:
    """Average the model's own likeliest successors at every token of its answers; the table, and how many tokens these are.
    tokenizer: its fingerprint."""
    context: list[list[int]] = []
    ids: list[list[int]] = []
    shares: list[list[float]] = []
    done = 0
    for group in in_groups(answers):
        asks = []
        for answer in group:
            read = [*answer.prompt, *answer.output[:-1]]
            start = len(answer.prompt) - 1
            asks.append(Forward(lm.network.new_sequence(), read, logits=range(start, len(read)), rank=KEPT))
            context += [read[place - LENGTHS[-1] + 1 : place + 1] for place in range(start, len(read))]
        for scores in lm.network.run(asks):
            ranking = scores.ranking or lm.network.top(scores.logits, KEPT)
            ids += ranking.ids
            shares += ranking.shares
        done += len(group)
        progress("successors", done, len(answers))
    table = SuccessorTable.average(
        np.array(context, dtype=np.int64),
        np.array(ids, dtype=np.int64),
        np.array(shares, dtype=np.float32),
        lm.network.vocabulary,
        tokenizer,
    )
    return table, len(context)


@refusing
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of the recipe."""
    parser = recipe_parser(
        "successors",
        __doc__,
        work="folder for the texts, so that a broken run goes on",
        artifact="the .npz to write; a .json beside it describes it",
    )
    parser.add_argument("--model", default="smollm2-135m")
    add_options(parser, RECIPE, without=("files", "per_file"))
    parser.add_argument(
        "--texts-of",
        type=Path,
        nargs="*",
        default=[],
        help="folders of `decodery train answers`, or of earlier runs, whose texts are averaged too",
    )
    told = sys.argv[1:] if arguments is None else arguments
    given = parser.parse_args(told)
    from decodery import loading

    lm = loading.load(given.model)
    with progress_bars() as show:
        answers = write_answers(lm, read_options(RECIPE, vars(given)), given.work, show)
        answers += [answer for folder in given.texts_of for answer in read_answers(folder)]
        answers = [answer for answer in answers if answer.output]
        table, tokens = table_of(lm, answers, fingerprint(lm.tokenizer, lm.network.vocabulary), show)
    given.artifact.parent.mkdir(parents=True, exist_ok=True)
    table.save(given.artifact)
    card = {
        "what": "successors of runs of one, two and three tokens, averaged over the model's own text",
        "model": given.model,
        "recipe": f"decodery train successors {shlex.join(told)}",
        "data": "answers of the model itself to decodery.training.prompts.varied_prompts",
        "seed": given.seed,
        "tokens": tokens,
        "runs": [len(run.keys) for run in table.runs],
        "tokenizer": table.tokenizer,
        "bytes": given.artifact.stat().st_size,
    }
    given.artifact.with_suffix(".json").write_text(json.dumps(card, indent=1) + "\n")


if __name__ == "__main__":
    main()
