"""The recipe of `diffusion-lists`: a small masked-diffusion model of ParallelBench's tasks.

    python -m decodery.training.diffusion_lists --folder work --artifact diffusion-lists

All data come from the generators of `decodery.evaluation.parallelbench`, new rows for every step; answers to tasks with many
right answers are uniform over them. Canvases have random lengths, so that the model knows short and long ones.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from decodery.evaluation.parallelbench.tasks import TASKS, make_samples, score
from decodery.evaluation.parallelbench.words import END, MASK, PADS, decode, encode, vocabulary, write_tokenizer
from decodery.training.masked_diffusion import Recipe, Row, Source, Trainer, fill, machine
from decodery.training.networks import Shape, SmallLlama

POOL = 4096
"""Rows that are made and sorted by length together."""
SHARES = {
    "latin_square": 0.08,
    "sudoku": 0.08,
    "words_to_sentence": 0.07,
    "paraphrase": 0.07,
    "continue_pattern": 0.03,
    "arithmetic": 0.12,
}
"""Of the rows; the ten list tasks share the rest evenly."""
LENGTHS = (2, 3, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 6, 7, 8)
"""List lengths in training, so often each."""
TOTALS = {16: 0.3, 20: 0.25, 24: 0.25, 32: 0.12, 40: 0.04, 48: 0.03, 64: 0.01}
"""Lengths of prompt and canvas together, and how often each is taken among those that fit."""


def rows(seed: int, tasks: Sequence[str] | None = None) -> Source:
    """A source of rows: prompts, answers, one end token and end tokens up to the canvas's end."""
    words = vocabulary()
    names = tuple(tasks) if tasks is not None else tuple(TASKS)
    lists = [name for name in names if TASKS[name].group == "lists"]
    rest = 1 - sum(SHARES[name] for name in names if name in SHARES)
    weights = [SHARES.get(name, rest / max(1, len(lists))) for name in names]

    def pool(number: int) -> list[Row]:
        generator = random.Random(f"{seed} {number}")
        found: list[Row] = []
        for name in generator.choices(names, weights, k=POOL):
            task = TASKS[name]
            length = generator.choice(LENGTHS if task.group == "lists" else task.lengths)
            sample = task.draw(length, generator)
            prompt, answer = encode(sample.prompt, words), encode(sample.answer, words)
            needed = len(prompt) + len(answer) + 1
            fitting = [total for total in TOTALS if total >= needed]
            total = generator.choices(fitting, [TOTALS[t] for t in fitting])[0]
            found.append((len(prompt), [*prompt, *answer, *([words[END]] * (total - len(prompt) - len(answer)))]))
        return found

    return pool


def accuracy(
    network: Any, count: int, *, canvas: int = 32, per_step: int = 1, seed: int = 1, tasks: Sequence[str] = tuple(TASKS)
) -> dict[str, float]:
    """The share of right answers by task, filling greedily, `per_step` tokens at a time, on `count` fresh samples."""
    words = vocabulary()
    names, end = list(words), words[END]
    found = {}
    for task in tasks:
        samples = make_samples(task, count, seed=seed)
        prompts = [encode(sample.prompt, words) for sample in samples]
        filled = fill(network, prompts, canvas, words[MASK], per_step=per_step, banned=[words[pad] for pad in PADS])
        texts = [decode(ids[: ids.index(end)] if end in ids else ids, names) for ids in filled]
        found[task] = sum(map(score, samples, texts)) / count
    return found


@dataclass(frozen=True)
class Sizes:
    """Of the network."""

    width: int = 192
    layers: int = 4
    heads: int = 6


def make(
    recipe: Recipe, sizes: Sizes, folder: Path, artifact: Path, *, compiled: bool, progress: Any, command: str = ""
) -> dict[str, Any]:
    """Train, measure and write the artifact. Returns its card."""
    words = vocabulary()
    network = SmallLlama(Shape(len(words), **asdict(sizes)), recipe.seed)
    if compiled:
        network.compile_layers()
    trainer = Trainer(
        network,
        rows(recipe.seed),
        recipe,
        words[MASK],
        folder,
        watch=lambda net, step: accuracy(net, 32, canvas=24),
        progress=progress,
        about={"sizes": asdict(sizes)},
        checkpoint_steps=50,
        watch_steps=400,
    )
    log = trainer.train()
    trainer.finished()
    artifact.mkdir(parents=True, exist_ok=True)
    network.write(
        artifact,
        masked_diffusion={
            "mask_token_id": words[MASK],
            "shift": False,
            "end_token_ids": [words[END]],
            "pad_token_ids": [words[pad] for pad in PADS],
            "canvas": 32,
        },
        eos_token_id=words[END],
        pad_token_id=words[END],
    )
    write_tokenizer(artifact)
    return write_card(artifact, recipe, sizes, log, command)


def write_card(
    artifact: Path, recipe: Recipe, sizes: Sizes, log: list[dict[str, float]], command: str
) -> dict[str, Any]:
    """Measure the model in the folder as it was written, and describe it in card.json."""
    started = time.perf_counter()
    network = SmallLlama.read(artifact)
    metrics = {str(k): accuracy(network, 400, per_step=k) for k in (1, 2, 4)}
    card = {
        "title": "diffusion-lists",
        "about": "A masked-diffusion model of ParallelBench's list, puzzle and text tasks and of arithmetic word problems",
        "command": command,
        "source": "decodery.training.diffusion_lists; after ParallelBench, arXiv 2510.04767, and LLaDA, arXiv 2502.09992",
        "data": "made by decodery.evaluation.parallelbench.tasks while training; nothing else",
        "licence": "Apache-2.0, as the project's code; the data are generated by it",
        "seed": recipe.seed,
        "recipe": asdict(recipe),
        "sizes": asdict(sizes),
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "vocabulary": len(vocabulary()),
        "metrics": {
            "about": "share of right answers of 400 fresh samples (seed 1), canvas 32, greedy, by tokens per step",
            "accuracy": metrics,
            "seconds": round(time.perf_counter() - started),
        },
        "log": log,
        "machine": machine(),
    }
    (artifact / "card.json").write_text(json.dumps(card, indent=1) + "\n", "utf-8")
    return card


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of the recipe."""
    from decodery.training.masked_diffusion import training_bar

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the checkpoint and the log are kept")
    parser.add_argument("--artifact", type=Path, required=True, help="where the model goes")
    parser.add_argument(
        "--compile", action="store_true", help="fuse the layers with torch.compile: needs a C++ compiler"
    )
    for kind in (Recipe, Sizes):
        for item in fields(kind):
            parser.add_argument(f"--{item.name.replace('_', '-')}", type=type(item.default), default=item.default)
    given = vars(parser.parse_args(arguments))
    recipe = Recipe(**{item.name: given[item.name] for item in fields(Recipe)})
    sizes = Sizes(**{item.name: given[item.name] for item in fields(Sizes)})
    changed = [
        f"--{item.name.replace('_', '-')} {given[item.name]}"
        for kind in (Recipe, Sizes)
        for item in fields(kind)
        if given[item.name] != item.default
    ]
    command = " ".join(
        ("python -m decodery.training.diffusion_lists --folder work --artifact diffusion-lists", *changed)
    )
    with training_bar("diffusion-lists") as progress:
        card = make(
            recipe,
            sizes,
            given["folder"],
            given["artifact"],
            compiled=given["compile"],
            progress=progress,
            command=command,
        )
    from rich.console import Console

    Console().print_json(data=card["metrics"])


if __name__ == "__main__":
    main()
