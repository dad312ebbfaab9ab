"""The recipe of `any-subset-stories`, a small any-subset autoregressive model of very short stories.

    decodery train any-subset --folder work --artifact any-subset-stories

1. `smollm2-135m` goes on with many story beginnings, as in the recipe `stories`. 2. A masked model goes on as one that knows
the law of any tokens given any others, in one fixed order: one pass with a causal mask in that order gives the log density of
all hidden tokens, whose mean is the loss. 3. It is measured on held-out stories. Training goes on from its last checkpoint
when it was interrupted. After Guo & Ermon, arXiv 2504.20456, who adapt XLNet; `--start ""` trains from scratch, with the sizes,
vocabulary and number of held-out stories that are given.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from decodery.errors import BadInput
from decodery.models.store import resolve
from decodery.training.masked_diffusion import Recipe, Trainer, machine
from decodery.training.masking import Batch, Row, collate
from decodery.training.networks import Shape, SmallLlama
from decodery.training.options import add_options, changed_options, progress_bars, read_options, recipe_parser, refusing
from decodery.training.orders import Ordered, costs, ordered, shares
from decodery.training.stories import Corpus, Data, StorySizes, prepare, thinned, written
from decodery.training.story_rows import (
    END_ID,
    MASK_ID,
    PAD_IDS,
    TOTALS,
    Story,
    encode_stories,
    story_rows,
    validation_rows,
    write_tokenizer,
)

CANVAS = 64
"""Canvas of a request that names none."""
OPENING = 15
"""Stories whose first so many words are equal count as one."""


@dataclass(frozen=True)
class AnySubsetRecipe(Recipe):
    """first_share: of the tokens that are hidden in the first step; it goes to `low_share` and `high_share`, between which it
    is uniform, over `share_steps` steps. start: the model that training begins with, of our masked ones; none: from scratch.
    """

    steps: int = 2000
    batch_tokens: int = 2048
    rate: float = 1e-3
    average: float = 0.99
    first_share: float = 0.15
    low_share: float = 0.5
    high_share: float = 0.95
    share_steps: int = 300
    start: str = "diffusion-stories"

    def share_at(self, step: int) -> tuple[float, float]:
        """Between which shares rows are hidden in a step, counted from 0."""
        done = min(1.0, step / self.share_steps) if self.share_steps else 1.0
        return tuple(self.first_share + done * (end - self.first_share) for end in (self.low_share, self.high_share))  # type: ignore[return-value]


class AnySubsetTrainer(Trainer):
    """Minimises the mean cost of a hidden token under the joint law."""

    recipe: AnySubsetRecipe

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        low, high = self.recipe.share_at(self.step)
        order = ordered(batch.tokens.shape[1], shares(len(batch.tokens), low, high, generator), generator)
        return costs(self.network, batch.tokens, order, self.mask_token).sum() / order.targets.sum()


def opening(story: str) -> str:
    """What a story is told from others by."""
    return " ".join(story.lower().split()[:OPENING])


def going_on(start: Path, corpus: Corpus, seed: int, folder: Path, progress: Any) -> Data:
    """The stories of a corpus in the tokens of the model to start with; held out are those that it has not seen. Raises
    BadInput where it comes without any."""
    from tokenizers import Tokenizer

    if not (start / "validation.txt").exists():
        raise BadInput(
            f"{start} holds no validation.txt; start with diffusion-stories or a model of the recipe stories."
        )
    tokenizer = Tokenizer.from_file(str(start / "tokenizer.json"))
    held_out = (start / "validation.txt").read_text("utf-8").splitlines()
    openings = {opening(story) for story in held_out}
    training = [story for story in written(corpus, seed, folder, progress) if opening(story) not in openings]
    return Data(encode_stories(training, tokenizer), encode_stories(held_out, tokenizer), held_out, tokenizer)


@torch.no_grad()
def bits(network: SmallLlama, rows: Sequence[Row], hidden: float | None, joint: bool = True, seed: int = 0) -> float:
    """Bits per hidden token. hidden: the share of random positions; None: all behind the rows' prompts."""
    generator = torch.Generator().manual_seed(seed)
    total, tokens = 0.0, 0
    for length, group in groupby(sorted(rows, key=lambda row: len(row[1])), key=lambda row: len(row[1])):
        batch = collate(list(group))
        if hidden is None:
            order = Ordered(torch.arange(length).expand(len(batch.tokens), -1), batch.prompts)
        else:
            order = ordered(length, torch.full((len(batch.tokens),), hidden), generator)
        total += float(costs(network, batch.tokens, order, MASK_ID, joint).double().sum())
        tokens += int(order.targets.sum())
    return total / math.log(2) / tokens


def unigram_bits(training: Sequence[Story], rows: Sequence[Row], vocabulary: int) -> float:
    """Bits per token behind the prompts by how often each stands in the stories, and once more."""
    counts = np.ones(vocabulary)
    for story in training:
        np.add.at(counts, list(story.tokens), 1)
    tokens = [token for prompt, ids in rows for token in ids[prompt:]]
    return float(-np.log2(counts[tokens] / counts.sum()).mean())


def metrics(network: SmallLlama, data: Data) -> dict[str, Any]:
    """Bits per token of held-out stories, by what is given."""
    rows = validation_rows(data.validation)
    found = {
        "about": "bits per hidden token of held-out stories, fronts of 48 to 128 tokens: all behind the first sentence, from "
        "left to right, and random shares; joint, and with the parallel mask, by which hidden tokens do not see each other",
        "stories": len(rows),
        "unigram": round(unigram_bits(data.training, rows, network.shape.vocabulary), 4),
    }
    for name, hidden in (("behind_the_first_sentence", None), ("95_percent", 0.95), ("50_percent", 0.5)):
        found[name] = {
            "joint": round(bits(network, rows, hidden), 4),
            "parallel": round(bits(network, rows, hidden, joint=False), 4),
        }
    return found


def write_artifact(
    artifact: Path, data: Data, trainer: AnySubsetTrainer, corpus: Corpus, command: str
) -> dict[str, Any]:
    """Write checkpoint, tokenizer and card; the metrics are those of the checkpoint as it was written."""
    described: dict[str, Any] = {
        "eos_token_id": END_ID,
        "max_position_embeddings": TOTALS[-1],
        "any_order": {
            "mask_token_id": MASK_ID,
            "end_token_ids": [END_ID],
            "pad_token_ids": list(PAD_IDS),
            "canvas": CANVAS,
        },
    }
    start = trainer.recipe.start
    if (artifact.parent / start / "tokenizer.json").exists() and start:
        described["tokenizer_folder"] = start
    trainer.network.write(
        artifact, torch.float8_e4m3fn, **described
    )  # 4 MB; figures of the card are those of what is written
    if "tokenizer_folder" not in described:
        write_tokenizer(data.tokenizer, artifact)
    started = time.perf_counter()
    network = SmallLlama.read(artifact)
    measured = metrics(network, data)
    card = {
        "title": artifact.name,
        "about": "An any-subset autoregressive model of very short stories in simple English",
        "command": command,
        "source": "decodery.training.any_subset; after Guo & Ermon, arXiv 2504.20456",
        "data": {
            "about": f"very short stories that {corpus.model} wrote to beginnings of decodery.training.story_prompts, "
            "filtered by decodery.training.story_texts; the corpus is made by the command and not shipped"
            + (f"; held out are those that {start} has not seen" if start else ""),
            "licence": f"Apache-2.0, as {corpus.model}, which wrote them",
            "beginnings": corpus.stories,
            "training_stories": len(data.training),
            "training_tokens": sum(len(story.tokens) for story in data.training),
            "validation_stories": len(data.validation),
        },
        "licence": "Apache-2.0",
        "seed": trainer.recipe.seed,
        "recipe": {key: value for key, value in asdict(trainer.recipe).items() if key != "masks"},
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "metrics": {**measured, "seconds": round(time.perf_counter() - started)},
        "log": thinned(trainer.log),
        "machine": machine(),
    }
    (artifact / "card.json").write_text(json.dumps(card, indent=1) + "\n", "utf-8")
    return card


@refusing
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of the recipe."""
    from rich.console import Console

    parser = recipe_parser(
        "any-subset",
        __doc__,
        folder="where texts, checkpoint and log are kept",
        artifact="the folder that the model goes to; beside the folder of the model to start with it shares its tokenizer",
    )
    add_options(parser, Corpus())
    add_options(parser, StorySizes())
    add_options(parser, AnySubsetRecipe(), without=("masks",))
    given = vars(parser.parse_args(arguments))
    corpus, recipe = read_options(Corpus(), given), read_options(AnySubsetRecipe(), given)
    sizes = read_options(StorySizes(), given)
    own = replace(Corpus(), held_out=corpus.held_out, vocabulary=corpus.vocabulary)
    if recipe.start and (sizes != StorySizes() or own != Corpus()):
        raise BadInput(
            f"sizes, vocabulary and held-out stories are those of {recipe.start}; give --start '' beside them."
        )
    options = (
        *changed_options(Corpus(), corpus),
        *changed_options(StorySizes(), sizes),
        *changed_options(AnySubsetRecipe(), recipe),
    )
    command = " ".join(("decodery train any-subset --folder work --artifact any-subset-stories", *options))
    folder = given["folder"]
    start = resolve(recipe.start) if recipe.start else None
    with progress_bars() as show:
        if start is None:
            data = prepare(corpus, recipe.seed, folder, show)
            network = SmallLlama(Shape(data.tokenizer.get_vocab_size(), **asdict(sizes)), recipe.seed)
        else:
            data = going_on(start, corpus, recipe.seed, folder, show)
            network = SmallLlama.read(start)

        def progress(step: int, steps: int, entry: dict[str, float]) -> None:
            show("training", step, steps, f"loss {entry['loss']}" if entry else "")

        source = story_rows(data.training, recipe.seed, recipe.batch_tokens, whole=True)
        about = {"stories": len(data.training)}
        trainer = AnySubsetTrainer(
            network, source, recipe, MASK_ID, folder / "any-subset", checkpoint_steps=20, progress=progress, about=about
        )
        # On a CPU the backward pass of the fused attention takes longer than that of plain matrix products on rows this short.
        with sdpa_kernel(SDPBackend.MATH):
            trainer.train()
    trainer.finished()
    card = write_artifact(given["artifact"], data, trainer, corpus, command)
    Console().print_json(data=card["metrics"])


if __name__ == "__main__":
    main()
