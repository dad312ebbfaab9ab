"""The recipe of insertion language models of planning tasks, and of models of other kinds on the same data.

    decodery train insertion-language-models --folder work --artifact insertion-stars
    decodery train insertion-language-models --kind autoregressive --folder work --artifact model

All data come from the generators of `decodery.evaluation.planning`, new rows for every step. With several sizes each one joins
after so many pools of rows, and from then on the newest makes up most of them. After Patel et al., arXiv 2505.05755; training
goes on from its last checkpoint when it was interrupted.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from decodery.errors import BadInput
from decodery.evaluation.planning.tasks import SIZES, floor, words_of
from decodery.evaluation.planning.words import BEGIN, CLASS, END, HOLE, MASK, PAD, Puzzle, vocabulary, write_tokenizer
from decodery.models.insertions import ENTRY
from decodery.training.insertion_network import InsertionLlama
from decodery.training.insertions import COMPLETE, MISSING, drop, grow, insertion_loss, joint_costs
from decodery.training.masked_diffusion import Recipe, Trainer, machine
from decodery.training.masking import Batch, Row, Source, collate, fill
from decodery.training.networks import Shape, SmallLlama
from decodery.training.options import add_options, changed_options, read_options, recipe_parser, refusing

INSERTIONS, AUTOREGRESSIVE, MASKED = KINDS = ("insertions", "autoregressive", "masked-diffusion")
MASKS = {INSERTIONS: "count", AUTOREGRESSIVE: "next", MASKED: "count"}
THRESHOLD = 0.5
"""Published for planning tasks: the probability of a complete text at which it is over."""
POOL = 640
"""Rows of a pool."""
LONGEST_IDEAL = 14
"""Words of an answer whose ideal is computed: that ranges over all ways to drop some."""
NEWEST = 0.6
"""Share of the newest size in a pool, where there are several."""


@dataclass(frozen=True)
class PlanningSizes:
    """Of the network. kind: of model."""

    kind: str = field(default=INSERTIONS, metadata={"choices": KINDS})
    width: int = 128
    layers: int = 4
    heads: int = 4
    theta: float = 1000.0


@dataclass(frozen=True)
class PlanningData:
    """sizes: of tasks, by name, in the order in which they join. pools: after how many pools each further one joins."""

    sizes: tuple[str, ...] = ("arms-of-3", "arms-of-4", "easy")
    pools: int = 200

    def __post_init__(self) -> None:
        if unknown := [size for size in self.sizes if size not in SIZES]:
            raise BadInput(f"there is no size {unknown[0]!r}; known are {', '.join(SIZES)}.")
        if not self.sizes or len({SIZES[size].words for size in self.sizes}) > 1:
            raise BadInput("the sizes must be of one vocabulary, and at least one.")

    @property
    def words(self) -> dict[str, int]:
        """Word -> id."""
        return vocabulary(words_of(self.sizes[0]))

    @property
    def longest(self) -> int:
        """Words of an answer at most."""
        return max(SIZES[size].longest_answer for size in self.sizes)


def row(puzzle: Puzzle, words: dict[str, int], kind: str, room: int = 0) -> Row:
    """A puzzle as a row: the class slot, the prompt and the begin slot, then the answer; of other kinds than insertions with
    an end token behind it, and for masked diffusion end tokens up to `room` + 1 positions."""
    prompt = [words[CLASS], *(words[word] for word in puzzle.prompt), words[BEGIN]]
    body = [words[word] for word in puzzle.answer]
    if kind != INSERTIONS:
        body.append(words[END])
    if kind == MASKED:
        body += [words[END]] * (room + 1 - len(body))
    return len(prompt), [*prompt, *body]


def rows(data: PlanningData, kind: str, seed: int) -> Source:
    """A source of rows. The puzzles are the same for every kind."""
    words, longest = data.words, data.longest

    def pool(number: int) -> list[Row]:
        generator = random.Random(f"{seed} {number}")
        known = data.sizes[: 1 + number // data.pools]
        shares = [*[(1 - NEWEST) / (len(known) - 1)] * (len(known) - 1), NEWEST] if len(known) > 1 else [1.0]
        drawn = generator.choices(known, shares, k=POOL)
        return [row(SIZES[size].draw(generator), words, kind, longest) for size in drawn]

    return pool


def puzzles(size: str, count: int, seed: int = 1) -> list[Puzzle]:
    """Fresh puzzles of a size, held out: training draws with other seeds."""
    generator = random.Random(f"held out {size} {seed}")
    return [SIZES[size].draw(generator) for _ in range(count)]


def answers(network: Any, kind: str, asked: Sequence[Puzzle], data: PlanningData) -> list[list[int]]:
    """The greedy answers of a network, as token ids without end tokens. Prompts of one length share passes."""
    words, found = data.words, [[-1]] * len(asked)
    banned = [words[word] for word in (CLASS, BEGIN, MASK, PAD, HOLE)]
    by_length: dict[int, list[int]] = {}
    for place, puzzle in enumerate(asked):
        by_length.setdefault(len(puzzle.prompt), []).append(place)
    for places in by_length.values():
        prompts = []
        for place in places:
            length, ids = row(asked[place], words, kind)
            prompts.append(list(ids[:length]))
        if kind == INSERTIONS:
            told = grow(network, prompts, 2 * data.longest, THRESHOLD, [*banned, words[END]])
        elif kind == MASKED:
            told = fill(network, prompts, data.longest + 1, words[MASK], banned=banned)
        else:
            told = continue_greedily(network, prompts, data.longest + 1, banned)
        for place, ids in zip(places, told, strict=True):
            found[place] = ids[: ids.index(words[END])] if words[END] in ids else ids
    return found


@torch.no_grad()
def continue_greedily(
    network: Any, prompts: Sequence[Sequence[int]], count: int, banned: Sequence[int]
) -> list[list[int]]:
    """`count` tokens behind each of some prompts of one length, the likeliest each time."""
    tokens = torch.tensor(prompts)
    for _ in range(count):
        logits = network.head(network(tokens, causal=True)[:, -1])
        logits[:, list(banned)] = -torch.inf
        tokens = torch.cat((tokens, logits.argmax(-1, keepdim=True)), dim=1)
    found: list[list[int]] = tokens[:, len(prompts[0]) :].tolist()
    return found


def accuracy(network: Any, kind: str, data: PlanningData, count: int, seed: int = 1) -> dict[str, float]:
    """The share of exact answers to fresh puzzles, by size, decoded greedily."""
    found = {}
    for size in data.sizes:
        asked = puzzles(size, count, seed)
        told = answers(network, kind, asked, data)
        right = [[data.words[word] for word in puzzle.answer] for puzzle in asked]
        found[size] = sum(map(list.__eq__, told, right)) / count
    return found


@torch.no_grad()
def insertion_metrics(network: InsertionLlama, data: PlanningData, count: int, seed: int = 1) -> dict[str, Any]:
    """Of an insertion model, by size: the joint cross-entropy in nats on held-out puzzles with tokens dropped, its standard
    error, what an ideal model has, and the area under the curve of the stop head, complete against one token missing."""
    found = {}
    for size in data.sizes:
        generator = torch.Generator().manual_seed(seed)
        asked = puzzles(size, count, seed)
        batch = collate([row(puzzle, data.words, INSERTIONS) for puzzle in asked])
        dropped = drop(batch, generator)
        logits, _ = network.scores(dropped.tokens, dropped.visible)
        costs = joint_costs(logits, dropped).double()
        by_length = {len(puzzle.answer): puzzle.answer for puzzle in asked}
        known = max(by_length) <= LONGEST_IDEAL
        ideal = {length: floor(answer) if known else 0.0 for length, answer in by_length.items()}
        sure = []
        for gone in (0, 1):
            again = drop(batch, generator, torch.full_like(batch.lengths, gone))
            stop = network.scores(again.tokens, again.visible)[1]
            sure.append(stop[:, COMPLETE] - stop[:, MISSING])
        found[size] = {
            "cross_entropy": round(float(costs.mean()), 4),
            "standard_error": round(float(costs.std() / count**0.5), 4),
            "ideal": round(sum(ideal[len(puzzle.answer)] for puzzle in asked) / count, 4) if known else None,
            "stop_auc": round(area(*sure), 4),
        }
    return found


def area(complete: torch.Tensor, missing: torch.Tensor) -> float:
    """The area under the curve: how often a complete text is surer to be one than a text that misses a token; ties count
    half."""
    above = (complete[:, None] > missing[None]).double() + 0.5 * (complete[:, None] == missing[None]).double()
    return float(above.mean())


def new_network(sizes: PlanningSizes, vocabulary_size: int, seed: int = 0) -> SmallLlama:
    """The network of a kind."""
    shape = Shape(vocabulary_size, sizes.width, sizes.layers, sizes.heads, theta=sizes.theta)
    return InsertionLlama(shape, seed) if sizes.kind == INSERTIONS else SmallLlama(shape, seed)


class InsertionTrainer(Trainer):
    """Minimises the costs of what was dropped, and of the stop head."""

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        return insertion_loss(self.network, batch, generator)


def make(
    recipe: Recipe,
    sizes: PlanningSizes,
    data: PlanningData,
    folder: Path,
    artifact: Path,
    *,
    compiled: bool = False,
    progress: Any = None,
    command: str = "",
    start: Path | None = None,
    samples: int = 500,
    watch_samples: int = 64,
) -> dict[str, Any]:
    """Train, measure and write the artifact. start: a model of the same kind and sizes to go on with. Returns its card."""
    words, kind = data.words, sizes.kind
    network, watched = new_network(sizes, len(words), recipe.seed), new_network(sizes, len(words))
    before: list[Any] = []
    if start is not None:
        network.load_state_dict(type(network).read(start).state_dict())
        before = _stages(start)
    if compiled:
        network.compile_layers()

    def watch(trained: Any, step: int) -> dict[str, float]:
        watched.load_state_dict(trained.state_dict())  # a copy that is not compiled takes any shape at once
        return {f"exact {size}": share for size, share in accuracy(watched, kind, data, watch_samples).items()}

    told = {} if progress is None else {"progress": progress}
    trainer = (InsertionTrainer if kind == INSERTIONS else Trainer)(
        network,
        rows(data, kind, recipe.seed),
        recipe,
        words[MASK],
        folder,
        watch=watch,
        about={"sizes": asdict(sizes), "data": asdict(data)},
        checkpoint_steps=50,
        **told,
    )
    # On a CPU the backward pass of the fused attention takes longer than that of plain matrix products on rows this short.
    with sdpa_kernel(SDPBackend.MATH):
        log = trainer.train()
    trainer.finished()
    write_model(network, kind, data, artifact)
    return write_card(artifact, recipe, sizes, data, log, command, samples, before)


def _stages(start: Path) -> list[Any]:
    """What the card of a model that training goes on with says of its own training."""
    card = json.loads((start / "card.json").read_text("utf-8"))
    return [*card.get("stages", []), {key: card[key] for key in ("command", "recipe", "tasks", "log")}]


def write_model(network: SmallLlama, kind: str, data: PlanningData, artifact: Path) -> None:
    """Write the model with its tokenizer."""
    words = data.words
    described: dict[str, Any] = {}
    if kind == INSERTIONS:
        described[ENTRY] = {
            "class_token_id": words[CLASS],
            "begin_token_id": words[BEGIN],
            "hole_token_id": words[HOLE],
            "reserved_token_ids": [words[word] for word in (MASK, END, PAD)],
            "begin_behind_prompt": True,
            "stop_threshold": THRESHOLD,
            "max_length": 3 + max(SIZES[size].longest_prompt for size in data.sizes) + 2 * data.longest,
        }
    elif kind == MASKED:
        described["masked_diffusion"] = {
            "mask_token_id": words[MASK],
            "shift": False,
            "end_token_ids": [words[END]],
            "pad_token_ids": [words[word] for word in (CLASS, BEGIN, PAD, HOLE)],
            "canvas": data.longest + 1,
        }
    artifact.mkdir(parents=True, exist_ok=True)
    network.write(artifact, **described, eos_token_id=words[END], pad_token_id=words[PAD])
    write_tokenizer(artifact, words_of(data.sizes[0]))


def write_card(
    artifact: Path,
    recipe: Recipe,
    sizes: PlanningSizes,
    data: PlanningData,
    log: list[dict[str, float]],
    command: str,
    samples: int,
    stages: Sequence[Any] = (),
) -> dict[str, Any]:
    """Measure the model in the folder as it was written, and describe it in card.json. stages: of its training before."""
    started = time.perf_counter()
    network = (InsertionLlama if sizes.kind == INSERTIONS else SmallLlama).read(artifact)
    metrics: dict[str, Any] = {
        "about": f"share of exact greedy answers to {samples} fresh puzzles of each size",
        "exact": accuracy(network, sizes.kind, data, samples),
    }
    if isinstance(network, InsertionLlama):
        metrics["held_out"] = insertion_metrics(network, data, samples)
    metrics["seconds"] = round(time.perf_counter() - started)
    card = {
        "title": artifact.name,
        "about": f"A model of the kind {sizes.kind} of planning tasks: {', '.join(data.sizes)}",
        "command": command,
        "source": "decodery.training.insertion_language_models; after Insertion Language Models, arXiv 2505.05755",
        "data": "made by decodery.evaluation.planning while training; nothing else",
        "licence": "Apache-2.0, as the project's code; the data are generated by it",
        "seed": recipe.seed,
        "recipe": asdict(recipe),
        "sizes": asdict(sizes),
        "tasks": asdict(data),
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "vocabulary": len(data.words),
        "metrics": metrics,
        **({"stages": list(stages)} if stages else {}),
        "log": log,
        "machine": machine(),
    }
    (artifact / "card.json").write_text(json.dumps(card, indent=1) + "\n", "utf-8")
    return card


RECIPE = Recipe(steps=20000, batch_tokens=2304, rate=1e-3)
"""The full recipe; about 64 graphs a batch at the largest of the sizes, as published."""


@refusing
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of the recipe."""
    from decodery.training.masked_diffusion import training_bar

    name = "insertion-language-models"
    parser = recipe_parser(
        name, __doc__, folder="where the checkpoint and the log are kept", artifact="where the model goes"
    )
    parser.add_argument(
        "--compile", action="store_true", help="fuse the layers with torch.compile: needs a C++ compiler"
    )
    parser.add_argument("--start", type=Path, help="a model of the same kind and sizes to go on with")
    for settings in (RECIPE, PlanningSizes(), PlanningData()):
        add_options(parser, settings, without=("masks",))
    given = vars(parser.parse_args(arguments))
    sizes, data = read_options(PlanningSizes(), given), read_options(PlanningData(), given)
    recipe = read_options(RECIPE, {**given, "masks": MASKS[sizes.kind]})
    pairs = ((RECIPE, read_options(RECIPE, given)), (PlanningSizes(), sizes), (PlanningData(), data))
    changed = [option for before, after in pairs for option in changed_options(before, after)]
    command = " ".join((f"decodery train {name} --folder work --artifact {given['artifact'].name}", *changed))
    if given["start"] is not None:
        command += " --start first"
    with training_bar(name) as progress:
        card = make(
            recipe,
            sizes,
            data,
            given["folder"],
            given["artifact"],
            compiled=given["compile"],
            progress=progress,
            command=command,
            start=given["start"],
        )
    from rich.console import Console

    Console().print_json(data=card["metrics"])


if __name__ == "__main__":
    main()
