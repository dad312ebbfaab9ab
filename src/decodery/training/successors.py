"""Which tokens a model itself lets follow runs of one to three tokens, averaged over text that it wrote: a table for drafting.

Nothing is trained. The model answers varied prompts (`decodery.training.prompts`), half of them greedily and half at
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
from numpy.typing import NDArray

from decodery.speculative.continuations.successors import LENGTHS, SuccessorTable
from decodery.speculative.continuations.trigrams import fingerprint
from decodery.training.options import recipe_parser, refusing
from decodery.training.prompts import ASKS, TOPICS, varied_prompts

if TYPE_CHECKING:
    from decodery.language_model import LanguageModel

KEPT = 4
"""Successors that are noted at each token."""


def write_texts(
    lm: LanguageModel, prompts: list[str], new_tokens: int, seed: int, folder: Path, batch: int
) -> list[Path]:
    """Let the model answer, batch by batch; each batch becomes a file, and files that are there are not made again.

    A file holds `context` [n, 3] (the last three tokens), `ids` and `shares` [n, KEPT] (likeliest successors and their
    probabilities).
    """
    from rich.progress import track

    files = []
    starts = range(0, len(prompts), batch)
    for number, start in enumerate(track(starts, "writing texts", disable=not sys.stderr.isatty())):
        path = folder / f"{number:05d}.npz"
        files.append(path)
        if path.exists():
            continue
        group = [[{"role": "user", "content": prompt}] for prompt in prompts[start : start + batch]]
        replies = lm.generate(
            group,
            "autoregressive",
            max_new_tokens=new_tokens,
            logprobs=KEPT,
            seed=seed + number,
            temperature=0.8 * (number % 2),
        )
        context, ids, shares = [], [], []
        for reply in replies:
            before = [*reply.prompt_token_ids, *reply.token_ids]
            offset = len(reply.prompt_token_ids)
            for place, entry in enumerate(reply.logprobs):
                context.append(before[offset + place - LENGTHS[-1] : offset + place])
                ids.append([token for token, _ in entry.top[:KEPT]])
                shares.append([np.exp(value) for _, value in entry.top[:KEPT]])
        scratch = path.with_suffix(".tmp.npz")
        np.savez(scratch, context=np.array(context), ids=np.array(ids), shares=np.array(shares, dtype=np.float32))
        scratch.rename(path)
    return files


def table_of(files: list[Path], vocabulary: int, tokenizer: str) -> SuccessorTable:
    """Average what the files hold."""
    loaded = [np.load(path) for path in files]
    context: NDArray[np.int64] = np.concatenate([part["context"] for part in loaded]).astype(np.int64)
    ids: NDArray[np.int64] = np.concatenate([part["ids"] for part in loaded]).astype(np.int64)
    shares = np.concatenate([part["shares"] for part in loaded])
    return SuccessorTable.average(context, ids, shares, vocabulary, tokenizer)


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
    parser.add_argument("--prompts", type=int, default=4096, help="different prompts")
    parser.add_argument("--answers", type=int, default=2, choices=(1, 2), help="how often each is answered")
    parser.add_argument("--kinds", type=int, default=len(ASKS), help="kinds of prompts, the first so many")
    parser.add_argument("--topics", type=int, default=len(TOPICS), help="topics, the first so many")
    parser.add_argument("--new-tokens", type=int, default=160)
    parser.add_argument("--batch", type=int, default=96, help="prompts that are answered at once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--texts-of",
        type=Path,
        nargs="*",
        default=[],
        help="work folders of earlier runs, whose texts are averaged too",
    )
    told = sys.argv[1:] if arguments is None else arguments
    given = parser.parse_args(told)
    import decodery

    lm = decodery.load(given.model)
    given.work.mkdir(parents=True, exist_ok=True)
    once = varied_prompts(given.prompts, given.seed, given.kinds, given.topics)
    # Every other batch is greedy: the second time, a prompt stands in a batch of the other kind.
    prompts = once + once[given.batch :] + once[: given.batch] if given.answers == 2 else once
    files = write_texts(lm, prompts, given.new_tokens, given.seed, given.work, given.batch)
    files += [path for folder in given.texts_of for path in sorted(folder.glob("[0-9]*.npz")) if path.stem.isdigit()]
    table = table_of(files, lm.network.vocabulary, fingerprint(lm.tokenizer, lm.network.vocabulary))
    given.artifact.parent.mkdir(parents=True, exist_ok=True)
    table.save(given.artifact)
    card = {
        "what": "successors of runs of one, two and three tokens, averaged over the model's own text",
        "model": given.model,
        "recipe": f"decodery train successors {shlex.join(told)}",
        "data": "answers of the model itself to decodery.training.prompts.varied_prompts",
        "seed": given.seed,
        "tokens": sum(len(np.load(path)["context"]) for path in files),
        "runs": [len(run.keys) for run in table.runs],
        "tokenizer": table.tokenizer,
        "bytes": given.artifact.stat().st_size,
    }
    given.artifact.with_suffix(".json").write_text(json.dumps(card, indent=1) + "\n")


if __name__ == "__main__":
    main()
