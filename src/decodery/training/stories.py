"""The recipe of `diffusion-stories`, a small masked-diffusion model of very short stories, and of its causal twin.

    decodery train stories --folder work --artifacts models

1. `smollm2-135m` goes on with many story beginnings; a filter keeps what is usable. 2. A byte-level tokenizer is trained on
that. 3. `diffusion-stories` learns to fill in hidden tokens, `stories-twin` to predict the next one: two networks of the same
shape, the same rows in the same order, the same number of steps. 4. Both are measured on stories that were held out.
Everything goes on where it was when it was interrupted. `--part` does one of the parts, so that the two networks can be
trained side by side. Stories of a model, as in TinyStories (arXiv 2305.07759); training after LLaDA (arXiv 2502.09992).
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from decodery.training.masked_diffusion import Progress, Recipe, Trainer, machine, silent
from decodery.training.masking import Row, bound, collate
from decodery.training.networks import Shape, SmallLlama
from decodery.training.options import add_options, changed_options, progress_bars, read_options, recipe_parser, refusing
from decodery.training.story_rows import (
    END_ID,
    MASK_ID,
    PAD_IDS,
    Story,
    counted_tokens,
    encode_stories,
    story_rows,
    train_tokenizer,
    validation_rows,
    write_tokenizer,
)
from decodery.training.story_texts import BATCH, read_stories, write_stories

DIFFUSION, TWIN = "diffusion-stories", "stories-twin"
CANVAS = 64
"""Canvas of a request that names none."""
HIDDEN_INPUTS = 0.25
"""Share of the tokens that the twin is not shown while it is trained."""
SAMPLE_PROMPTS = (
    "Once upon a time",
    "One day a little cat called Mia",
    "Tom was sad. He wanted to",
    "It was raining.",
    "Lily and a brave dog were playing in the garden.",
)


@dataclass(frozen=True)
class Corpus:
    """stories: beginnings that the model goes on with. held_out: stories to validate on. vocabulary: of the tokenizer."""

    model: str = "smollm2-135m"
    stories: int = 9984
    held_out: int = 200
    vocabulary: int = 2048


@dataclass(frozen=True)
class StorySizes:
    """Of the networks."""

    width: int = 256
    layers: int = 4
    heads: int = 4


@dataclass(frozen=True)
class Data:
    """What both networks are trained and measured on."""

    training: list[Story]
    validation: list[Story]
    validation_texts: list[str]
    tokenizer: Any


def written(corpus: Corpus, seed: int, folder: Path, progress: Any = silent) -> list[str]:
    """The clean stories of a corpus; what is missing of it is written to `folder`."""
    texts = folder / "texts"
    wanted = [texts / f"{number:05d}.jsonl" for number in range(-(-corpus.stories // BATCH))]
    if not all(path.exists() for path in wanted):
        from decodery import loading

        write_stories(loading.load(corpus.model), corpus.stories, seed, texts, progress)
    return list(read_stories(wanted))


def prepare(corpus: Corpus, seed: int, folder: Path, progress: Any = silent) -> Data:
    """Write what is missing of the corpus and its tokenizer to `folder`, and read both."""
    from tokenizers import Tokenizer

    stories = written(corpus, seed, folder, progress)
    # Every n-th story, so that the held-out ones are like the others.
    step = len(stories) // corpus.held_out
    held_out = set(range(0, step * corpus.held_out, step))
    training = [story for place, story in enumerate(stories) if place not in held_out]
    validation = [stories[place] for place in sorted(held_out)]
    path = folder / "tokenizer.json"
    if not path.exists():
        train_tokenizer(training, corpus.vocabulary).save(str(path))
    tokenizer = Tokenizer.from_file(str(path))
    return Data(encode_stories(training, tokenizer), encode_stories(validation, tokenizer), validation, tokenizer)


class TwinNetwork(SmallLlama):
    """The twin while it is trained: a share of the tokens that it sees, not of those that it predicts, is hidden.

    The diffusion model hardly sees the same row twice, since other tokens of it are hidden each time. Its twin would, and
    learns a corpus this small by heart within a few passes.
    """

    def forward(
        self,
        tokens: Tensor,
        visible: Tensor | None = None,
        causal: bool = False,
        positions: Tensor | None = None,
    ) -> Tensor:
        # The seed comes from the batch, so that a run that goes on draws what it would have drawn.
        generator = torch.Generator().manual_seed(int((tokens * torch.arange(1, tokens.shape[1] + 1)).sum()))
        hidden = torch.rand(tokens.shape, generator=generator) < HIDDEN_INPUTS
        return super().forward(tokens.masked_fill(hidden, MASK_ID), visible, causal, positions)


def train(name: str, data: Data, recipe: Recipe, sizes: StorySizes, folder: Path, progress: Progress) -> Trainer:
    """Train one of the two networks, from its last checkpoint in `folder` where there is one."""
    causal = name == TWIN
    kind = TwinNetwork if causal else SmallLlama
    network = kind(Shape(data.tokenizer.get_vocab_size(), **asdict(sizes)), recipe.seed)
    source = story_rows(data.training, recipe.seed, recipe.batch_tokens, whole=causal)
    about = {"sizes": asdict(sizes), "stories": len(data.training)}
    trainer = Trainer(network, source, recipe, MASK_ID, folder, progress=progress, about=about)
    # On a CPU the backward pass of the fused attention takes longer than that of plain matrix products on rows this short.
    with sdpa_kernel(SDPBackend.MATH):
        trainer.train()
    trainer.finished()
    return trainer


def diffusion_bits(network: Any, rows: Sequence[Row], draws: int, seed: int = 0) -> tuple[float, float]:
    """The bound on bits per token by `draws` masks of each row, and its Monte-Carlo standard error.

    All of each canvas is predicted, with the ends after the first one; it counts as the tokens up to and with the first end.
    """
    parts = 8
    if draws % parts:
        raise ValueError(f"draws are a multiple of {parts}, not {draws}")
    totals = np.zeros(parts)
    for start in range(0, len(rows), 25):
        chunk = rows[start : start + 25]
        canvas = sum(len(ids) - prompt for prompt, ids in chunk)
        for part in range(parts):
            key = (seed * len(rows) + start) * parts + part
            totals[part] += bound(network, chunk, MASK_ID, draws=draws // parts, seed=key) * canvas
    bits = totals / np.log(2) / counted_tokens(rows)
    return float(bits.mean()), float(bits.std(ddof=1) / np.sqrt(parts))


@torch.no_grad()
def twin_bits(network: Any, rows: Sequence[Row]) -> float:
    """Bits per token of the twin on the canvases, given the prompts; counted as in `diffusion_bits`."""
    total = 0.0
    for start in range(0, len(rows), 25):
        batch = collate(rows[start : start + 25])
        logits = network.head(network(batch.tokens, causal=True)[:, :-1])
        costs = F.cross_entropy(logits.transpose(1, 2), batch.tokens[:, 1:], reduction="none")
        total += float(costs[batch.canvas[:, 1:]].double().sum())
    return total / float(np.log(2)) / counted_tokens(rows)


def drawn(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """Tokens drawn from the laws of logits [rows, vocabulary], without the reserved ones: [rows]."""
    logits[:, [MASK_ID, *PAD_IDS]] = -torch.inf
    return torch.multinomial((logits / temperature).softmax(dim=-1), 1, generator=generator)[:, 0]


@torch.no_grad()
def sample_diffusion(
    network: Any, prompt: Sequence[int], canvas: int, temperature: float, generator: torch.Generator, block: int = 16
) -> list[int]:
    """One token a step: the position whose law has the lowest entropy within the block, then a token from that law."""
    tokens = torch.tensor([[*prompt, *([MASK_ID] * canvas)]])
    for start in range(len(prompt), len(prompt) + canvas, block):
        places = torch.arange(start, min(start + block, len(prompt) + canvas))
        while len(places):
            logits = network.head(network(tokens)[0, places])
            laws = logits.log_softmax(dim=-1)
            best = int((laws.exp() * laws).sum(dim=-1).argmax())
            tokens[0, places[best]] = drawn(logits[best : best + 1], temperature, generator)[0]
            places = torch.cat((places[:best], places[best + 1 :]))
    return tokens[0, len(prompt) :].tolist()


@torch.no_grad()
def sample_twin(
    network: Any, prompt: Sequence[int], canvas: int, temperature: float, generator: torch.Generator
) -> list[int]:
    """From left to right, `canvas` tokens."""
    tokens = torch.tensor([list(prompt)])
    for _ in range(canvas):
        logits = network.head(network(tokens, causal=True)[:, -1])
        tokens = torch.cat((tokens, drawn(logits, temperature, generator)[:, None]), dim=1)
    return tokens[0, len(prompt) :].tolist()


def samples(name: str, network: Any, tokenizer: Any, temperature: float = 0.7, seed: int = 0) -> list[dict[str, str]]:
    """What a network writes after some prompts, up to its first end."""
    found = []
    sample = sample_twin if name == TWIN else sample_diffusion
    for number, prompt in enumerate(SAMPLE_PROMPTS):
        generator = torch.Generator().manual_seed(seed * 1000 + number)
        ids = sample(network, tokenizer.encode(prompt).ids, CANVAS, temperature, generator)
        found.append({"prompt": prompt, "text": tokenizer.decode(ids[: ids.index(END_ID)] if END_ID in ids else ids)})
    return found


def write_artifact(
    name: str, data: Data, trainer: Trainer, corpus: Corpus, sizes: StorySizes, artifact: Path, command: str, draws: int
) -> dict[str, Any]:
    """Write checkpoint, tokenizer, held-out stories and card; the metrics are those of the checkpoint as it was written."""
    described: dict[str, Any] = {"eos_token_id": END_ID}
    if name == DIFFUSION:
        described["masked_diffusion"] = {
            "mask_token_id": MASK_ID,
            "shift": False,
            "end_token_ids": [END_ID],
            "pad_token_ids": list(PAD_IDS),
            "canvas": CANVAS,
        }
    trainer.network.write(artifact, **described)
    write_tokenizer(data.tokenizer, artifact)
    (artifact / "validation.txt").write_text("\n".join(data.validation_texts) + "\n", "utf-8")
    network = SmallLlama.read(artifact)
    started = time.perf_counter()
    rows = validation_rows(data.validation)
    metrics: dict[str, Any] = {
        "about": "fronts of held-out stories, 48 to 128 tokens, their first sentence given",
        "stories": len(rows),
        "tokens": counted_tokens(rows),
    }
    if name == TWIN:
        bits = twin_bits(network, rows)
    else:
        bits, error = diffusion_bits(network, rows, draws)
        metrics |= {"draws": draws, "standard_error_of_the_draws": round(error, 4)}
    size = counted_bytes(rows, data.tokenizer)
    metrics |= {
        "bits_per_token" if name == TWIN else "bound_in_bits_per_token": round(bits, 4),
        "bits_per_byte" if name == TWIN else "bound_in_bits_per_byte": round(bits * counted_tokens(rows) / size, 4),
        "seconds": round(time.perf_counter() - started),
    }
    about = {
        DIFFUSION: "A masked-diffusion model of very short stories in simple English",
        TWIN: f"The autoregressive twin of {DIFFUSION}: same shape, rows, order and number of steps; while it was trained, "
        f"{HIDDEN_INPUTS:.0%} of the tokens before a predicted one were hidden, so that it does not learn the corpus by heart",
    }
    card = {
        "title": name,
        "about": about[name],
        "command": command,
        "source": "decodery.training.stories; after LLaDA, arXiv 2502.09992, and TinyStories, arXiv 2305.07759",
        "data": {
            "about": f"very short stories that {corpus.model} wrote to beginnings of decodery.training.story_prompts, "
            "filtered by decodery.training.story_texts; the corpus is made by the command and not shipped",
            "licence": f"Apache-2.0, as {corpus.model}, which wrote them",
            "beginnings": corpus.stories,
            "training_stories": len(data.training),
            "training_tokens": sum(len(story.tokens) for story in data.training),
            "validation_stories": len(data.validation),
        },
        "licence": "Apache-2.0",
        "seed": trainer.recipe.seed,
        "recipe": asdict(trainer.recipe),
        "sizes": asdict(sizes),
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "metrics": metrics,
        "samples": {
            "about": "temperature 0.7, canvas of 64 tokens; "
            + ("from left to right" if name == TWIN else "one token a step, lowest entropy first, blocks of 16"),
            "texts": samples(name, network, data.tokenizer),
        },
        "log": thinned(trainer.log),
        "machine": machine(),
    }
    (artifact / "card.json").write_text(json.dumps(card, indent=1) + "\n", "utf-8")
    return card


def counted_bytes(rows: Sequence[Row], tokenizer: Any) -> int:
    """Bytes of the text of the counted tokens of the canvases; an end counts as one byte, like the line break it stands for."""
    total = 0
    for prompt, ids in rows:
        stop = ids.index(END_ID) if END_ID in ids else len(ids)
        total += len(tokenizer.decode(list(ids[prompt:stop])).encode()) + (END_ID in ids)
    return total


def thinned(log: Sequence[dict[str, float]], entries: int = 24) -> list[dict[str, float]]:
    """At most about `entries` entries of a log, with its last."""
    step = max(1, len(log) // entries)
    return [*log[: len(log) - 1 : step], *log[-1:]]


RECIPE = Recipe(steps=5000, batch_tokens=2048, rate=2e-3, average=0.99)


@refusing
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of the recipe."""
    from rich.console import Console

    parser = recipe_parser(
        "stories",
        __doc__,
        folder="where texts, checkpoints and logs are kept",
        artifacts="the folder that the two models' folders go to",
    )
    parser.add_argument("--part", choices=("all", "corpus", DIFFUSION, TWIN), default="all")
    parser.add_argument("--draws", type=int, default=64, help="masks of each held-out story that measure the bound")
    add_options(parser, Corpus())
    add_options(parser, StorySizes())
    add_options(parser, RECIPE, without=("masks",))  # each model has its own
    given = vars(parser.parse_args(arguments))
    corpus, sizes, recipe = (
        read_options(Corpus(), given),
        read_options(StorySizes(), given),
        read_options(RECIPE, given),
    )
    options = (
        *changed_options(Corpus(), corpus),
        *changed_options(StorySizes(), sizes),
        *changed_options(RECIPE, recipe),
    )
    command = " ".join(("decodery train stories --folder work --artifacts models", *options))
    with progress_bars() as show:
        data = prepare(corpus, recipe.seed, given["folder"], show)
        for name in (DIFFUSION, TWIN):
            if given["part"] not in ("all", name):
                continue
            own = replace(recipe, masks="next" if name == TWIN else "count")
            trainer = train(
                name,
                data,
                own,
                sizes,
                given["folder"] / name,
                progress=lambda step, steps, entry, name=name: show(  # type: ignore[misc]
                    name, step, steps, f"loss {entry['loss']}" if entry else ""
                ),
            )
            artifact = given["artifacts"] / name
            card = write_artifact(name, data, trainer, corpus, sizes, artifact, command, given["draws"])
            Console().print_json(data={name: card["metrics"]})


if __name__ == "__main__":
    main()
