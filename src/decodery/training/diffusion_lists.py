"""The recipe of `diffusion-lists`: a small masked-diffusion model of ParallelBench's tasks.

    decodery train diffusion-lists --folder work --artifact diffusion-lists

All data come from the generators of `decodery.evaluation.parallelbench`, new rows for every step; answers to tasks with many
right answers are uniform over them. Canvases have random lengths, so that the model knows short and long ones.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from decodery.evaluation.parallelbench.tasks import TASKS, make_samples, score
from decodery.evaluation.parallelbench.words import END, MASK, PADS, decode, encode, vocabulary, write_tokenizer
from decodery.training.masked_diffusion import Recipe, Row, Source, Trainer, fill, machine
from decodery.training.networks import Shape, SmallLlama
from decodery.training.options import add_options, changed_options, read_options, recipe_parser, refusing

LENGTHS = (2, 3, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 6, 7, 8)
"""List lengths in training, so often each."""
SHORT_SHARES = {"lists": 0.84, "words_to_sentence": 0.06, "paraphrase": 0.04, "continue_pattern": 0.06}
LONG_SHARES = {
    "lists": 0.15,
    "latin_square": 0.16,
    "sudoku": 0.18,
    "words_to_sentence": 0.1,
    "paraphrase": 0.13,
    "continue_pattern": 0.02,
    "arithmetic": 0.26,
}
"""How often a task is drawn for a short row (below 32 tokens) and for a long one; the ten list tasks share theirs."""
FIRST_POOLS = 40
"""Pools of lists alone: copying is learned sooner on short rows, and everything else needs it."""
LAST_POOLS = 167
"""The pool from which on most rows are long: what is not learned by then needs them."""


@dataclass(frozen=True)
class StagePlan:
    """What the rows of a pool are. batches: tokens of prompt and canvas together -> batches of a pool. short, long: shares of
    the tasks in rows below `border` tokens and from there on. often: how often a list task is drawn, beside once for the
    others."""

    batches: Mapping[int, int]
    short: Mapping[str, float] = field(default_factory=lambda: SHORT_SHARES)
    long: Mapping[str, float] = field(default_factory=lambda: LONG_SHARES)
    border: int = 32
    often: Mapping[str, int] = field(default_factory=dict)


FIRST = StagePlan({16: 8, 20: 8, 24: 8}, short={"lists": 1.0})
MIDDLE = StagePlan({16: 5, 20: 5, 24: 5, 32: 3, 40: 2, 48: 3, 64: 1})
LAST = StagePlan({16: 2, 20: 3, 24: 4, 32: 4, 40: 4, 48: 5, 64: 2})
"""Of the first pools, then, and of the last ones."""
LISTS = StagePlan(
    {16: 4, 20: 6, 24: 6, 32: 5, 40: 1, 48: 1, 64: 1},
    short={"lists": 0.92, "words_to_sentence": 0.02, "paraphrase": 0.02, "continue_pattern": 0.04},
    border=33,
)
"""To finish a model: lists, and enough of the rest that it is not forgotten."""
HARD = replace(
    LISTS, often={"insert_index": 3, "replace_index": 4, "replace_random": 4, "reverse": 2, "insert_random": 2}
)
"""The same with more of the lists that are learned late."""
REST = StagePlan(
    {16: 2, 20: 3, 24: 3, 32: 2, 40: 4, 48: 6, 64: 3},
    long={"lists": 0.06, "latin_square": 0.17, "sudoku": 0.12, "words_to_sentence": 0.08, "paraphrase": 0.12,
          "continue_pattern": 0.01, "arithmetic": 0.44},
    often=HARD.often,
)  # fmt: skip
"""To go on with what takes longest, mostly word problems, and enough lists that they are not forgotten."""
LAST_OF_ALL = replace(REST, often={"replace_random": 8, "replace_index": 2})
"""The same with most of the one list task that is then still short of the others."""
SUITE = replace(LAST_OF_ALL, batches={16: 1, 20: 2, 24: 3, 28: 5, 32: 2, 40: 3, 48: 5, 64: 2})
"""The same with rows as long as the suite's: 16 positions behind the prompt of a list are 22 to 29 tokens."""
STAGES = {"lists": LISTS, "hard": HARD, "rest": REST, "last": LAST_OF_ALL, "suite": SUITE}


def rows(seed: int, batch_tokens: int, first_pools: int = FIRST_POOLS, only: StagePlan | None = None) -> Source:
    """A source of rows: prompts, answers, one end token and end tokens up to the canvas's end. Every batch of
    `batch_tokens` has rows of one length, so that few shapes occur. only: the plan of all pools; None is that of a
    model that begins."""
    words = vocabulary()
    lists = [name for name in TASKS if TASKS[name].group == "lists"]

    def pool(number: int) -> list[Row]:
        generator = random.Random(f"{seed} {number}")
        plan = only or (FIRST if number < first_pools else MIDDLE if number < LAST_POOLS else LAST)
        drawn = [name for name in lists for _ in range(plan.often.get(name, 1))]
        found: list[Row] = []
        for total, count in plan.batches.items():
            shares = plan.short if total < plan.border else plan.long
            left = count * (batch_tokens // total)
            while left:
                name = generator.choices(list(shares), list(shares.values()))[0]
                task = TASKS[generator.choice(drawn) if name == "lists" else name]
                length = generator.choice(LENGTHS if task.group == "lists" else task.lengths)
                sample = task.draw(length, generator)
                prompt, answer = encode(sample.prompt, words), encode(sample.answer, words)
                room = total - len(prompt) - len(answer)
                # A long row with a short answer teaches little, but canvases longer than needed must be known.
                if room < 1 or (room > 0.6 * total and generator.random() < 0.5):
                    continue
                found.append((len(prompt), [*prompt, *answer, *([words[END]] * room)]))
                left -= 1
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


def measured(network: Any, count: int, per_step: int = 1) -> dict[str, float]:
    """`accuracy` of all tasks on the canvases of the suite: 16 positions, 32 for answers of several lines."""
    long = [name for name in TASKS if "\n" in make_samples(name, 1)[0].answer]
    short = [name for name in TASKS if name not in long]
    return {
        **accuracy(network, count, canvas=16, per_step=per_step, tasks=short),
        **accuracy(network, count, canvas=32, per_step=per_step, tasks=long),
    }


@dataclass(frozen=True)
class Sizes:
    """Of the network."""

    width: int = 192
    layers: int = 4
    heads: int = 6
    theta: float = 1000.0


def make(
    recipe: Recipe,
    sizes: Sizes,
    folder: Path,
    artifact: Path,
    *,
    compiled: bool,
    progress: Any,
    command: str = "",
    start: Path | None = None,
    stage: StagePlan | None = None,
) -> dict[str, Any]:
    """Train, measure and write the artifact. Returns its card."""
    words = vocabulary()
    shape = Shape(len(words), **asdict(sizes))
    network, watched = SmallLlama(shape, recipe.seed), SmallLlama(shape)
    if start is not None:
        network.load_state_dict(SmallLlama.read(start).state_dict())
    if compiled:
        network.compile_layers()

    def watch(trained: SmallLlama, step: int) -> dict[str, float]:
        watched.load_state_dict(trained.state_dict())  # a copy that is not compiled takes any shape at once
        return measured(watched, 32)

    trainer = Trainer(
        network,
        rows(recipe.seed, recipe.batch_tokens, only=stage),
        recipe,
        words[MASK],
        folder,
        watch=watch,
        progress=progress,
        about={"sizes": asdict(sizes)},
        checkpoint_steps=100,
        watch_steps=500,
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
    artifact: Path, recipe: Recipe, sizes: Sizes, log: list[dict[str, float]], command: str, samples: int = 400
) -> dict[str, Any]:
    """Measure the model in the folder as it was written, and describe it in card.json."""
    started = time.perf_counter()
    network = SmallLlama.read(artifact)
    metrics = {str(k): measured(network, samples, k) for k in (1, 2, 4)}
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
            "about": f"share of right answers of {samples} fresh samples (seed 1), greedy, by tokens per step; canvas 16, for "
            "puzzles and word problems 32",
            "accuracy": metrics,
            "seconds": round(time.perf_counter() - started),
        },
        "log": log,
        "machine": machine(),
    }
    (artifact / "card.json").write_text(json.dumps(card, indent=1) + "\n", "utf-8")
    return card


RECIPE = Recipe(steps=6500, first_steps=4000, batch_tokens=3072, rate=2e-3)


@refusing
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of the recipe."""
    from decodery.training.masked_diffusion import training_bar

    parser = recipe_parser(
        "diffusion-lists", __doc__, folder="where the checkpoint and the log are kept", artifact="where the model goes"
    )
    parser.add_argument(
        "--compile", action="store_true", help="fuse the layers with torch.compile: needs a C++ compiler"
    )
    parser.add_argument("--start", type=Path, help="a model to go on with, in a stage of its own")
    parser.add_argument("--stage", choices=STAGES, default="lists", help="with --start: what is drawn (default: lists)")
    add_options(parser, RECIPE)
    add_options(parser, Sizes())
    given = vars(parser.parse_args(arguments))
    recipe, sizes = read_options(RECIPE, given), read_options(Sizes(), given)
    command = "decodery train diffusion-lists --folder work --artifact diffusion-lists"
    command = " ".join((command, *changed_options(RECIPE, recipe), *changed_options(Sizes(), sizes)))
    if given["start"] is not None:
        command += f" --start first --stage {given['stage']}"
    with training_bar("diffusion-lists") as progress:
        card = make(
            recipe,
            sizes,
            given["folder"],
            given["artifact"],
            compiled=given["compile"],
            progress=progress,
            command=command,
            start=given["start"],
            stage=None if given["start"] is None else STAGES[given["stage"]],
        )
    from rich.console import Console

    Console().print_json(data=card["metrics"])


if __name__ == "__main__":
    main()
