"""The recipe of `dparallel`: certainty-forcing distillation, by which a masked-diffusion model becomes certain of more at once.

    decodery train dparallel --model diffusion-lists --folder work --artifact diffusion-lists-dparallel

1. The model answers prompts, one token a step, greedily. 2. It goes on learning from these answers: a block of each is hidden
in two halves, all behind it is hidden, and of each hidden token of the block the cross-entropy is lowered, and `beta` times the
entropy where the model predicts it already. Interrupted, it goes on where it was. After dParallel, arXiv 2509.26488.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from decodery.models.checkpoint import tokenizer_folder
from decodery.models.masked_diffusion import read_config
from decodery.training.denoisers import Denoiser, prompts_for
from decodery.training.masked_diffusion import machine
from decodery.training.masking import Batch, Row, collate, fill, rows_for
from decodery.training.options import (
    Show,
    add_options,
    changed_options,
    progress_bars,
    read_options,
    recipe_parser,
    refusing,
    silent,
)
from decodery.training.stepwise import StepTrainer

CHECKPOINT_STEPS = 25
TOGETHER = 128
"""Prompts that are answered at once."""


@dataclass(frozen=True)
class DistillationRecipe:
    """answers: that the model writes itself, of `canvas` positions each. block: positions of a block; a canvas of no more is
    one block, which is also the variant for shifted models. share: of a block that is hidden in its first half. beta: weight
    of the certainty, 1 or 2 in the paper. certainty_temperature: inside its entropy. imitation: weight of the cross-entropy,
    0 for certainty alone. steps, batch, rate, weight_decay: of AdamW, a batch being answers. seed: of prompts, order, masks.
    """

    answers: int = 4000
    canvas: int = 16
    block: int = 16
    share: float = 0.5
    beta: float = 0.25
    certainty_temperature: float = 0.5
    imitation: float = 1.0
    steps: int = 200
    batch: int = 128
    rate: float = 2e-4
    weight_decay: float = 0.01
    seed: int = 0


@dataclass(frozen=True)
class Halves:
    """A block of each row in two halves, [rows, length] bool each. first, second: together the active block. later: what stands
    behind it."""

    first: Tensor
    second: Tensor
    later: Tensor


def halves(batch: Batch, block: int, share: float, generator: torch.Generator) -> Halves:
    """A random block of each row's canvas, the last of which may be shorter, each position in the first half with probability
    `share`, or hardly more."""
    canvas = batch.canvas
    blocks = (canvas.sum(1) + block - 1) // block
    start = batch.prompts + block * (torch.rand(len(blocks), generator=generator) * blocks).long()
    places = torch.arange(canvas.shape[1])
    active = canvas & (places >= start[:, None]) & (places < start[:, None] + block)
    first = active & (torch.rand(canvas.shape, generator=generator) < share * (1 - 1e-3) + 1e-3)
    return Halves(first, active & ~first, canvas & (places >= start[:, None] + block))


def certainty(logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """The mean entropy in nats, at a temperature, of the laws [m, vocabulary] whose likeliest token is the label [m]; 0 where
    none is."""
    right = logits.argmax(-1) == labels
    if not bool(right.any()):
        return logits.sum() * 0.0
    laws = (logits[right] / temperature).log_softmax(-1)
    entropy: Tensor = -(laws.exp() * laws).sum(-1).mean()
    return entropy


def view_loss(model: Denoiser, batch: Batch, asked: Tensor, later: Tensor, recipe: DistillationRecipe) -> Tensor:
    """The loss of one half: a scalar. asked, later: [rows, length] bool, both hidden; only what is asked has a loss."""
    rows = rows_for(model.network, batch.tokens.masked_fill(asked | later, model.mask), batch.visible)
    logits, labels = model.network.head(rows[asked]).float(), batch.tokens[asked]
    loss = recipe.imitation * F.cross_entropy(logits, labels)
    if recipe.beta:
        loss = loss + recipe.beta * certainty(logits, labels, recipe.certainty_temperature)
    return loss


def distillation_loss(model: Denoiser, batch: Batch, generator: torch.Generator, recipe: DistillationRecipe) -> Tensor:
    """The sum of the losses of both halves."""
    parts = halves(batch, recipe.block, recipe.share, generator)
    views = [part for part in (parts.first, parts.second) if bool(part.any())]
    return torch.stack([view_loss(model, batch, part, parts.later, recipe) for part in views]).sum()


@torch.no_grad()
def by_entropy(
    model: Denoiser, prompts: Sequence[Sequence[int]], canvas: int, threshold: float
) -> tuple[list[list[int]], list[int]]:
    """Canvases filled greedily, in each step all tokens whose law has an entropy of at most `threshold` nats and always the
    surest: the tokens, and the forwards that each took."""
    batch = collate([(len(prompt), [*prompt, *([model.mask] * canvas)]) for prompt in prompts])
    tokens, places = batch.tokens, batch.prompts[:, None] + torch.arange(canvas)
    masked, forwards = torch.ones(len(prompts), canvas, dtype=torch.bool), torch.zeros(len(prompts), dtype=torch.long)
    while bool(masked.any()):
        forwards += masked.any(1)
        rows = rows_for(model.network, tokens, batch.visible)
        laws = model.scores(rows.gather(1, places[..., None].expand(-1, -1, rows.shape[-1])))
        entropy = torch.special.entr(laws.exp()).sum(-1).masked_fill(~masked, torch.inf)
        surest = F.one_hot(entropy.argmin(1), canvas).bool()
        chosen = masked & ((entropy <= threshold) | surest)
        tokens.scatter_(1, places, torch.where(chosen, laws.argmax(-1), tokens.gather(1, places)))
        masked &= ~chosen
    return tokens.gather(1, places).tolist(), forwards.tolist()


def own_answers(
    model: Denoiser, prompts: Sequence[Sequence[int]], recipe: DistillationRecipe, path: Path, show: Show = silent
) -> list[Row]:
    """What the model answers, one token a step; kept at `path`, from where it goes on."""
    asked = json.dumps([recipe.canvas, recipe.block, recipe.seed])
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    if not lines or lines[0] != asked:
        lines = [asked]
        path.write_text(asked + "\n", "utf-8")
    found: list[Row] = [(prompt, tokens) for line in lines[1:] for prompt, tokens in json.loads(line)]
    with path.open("a", encoding="utf-8") as file:
        while len(found) < len(prompts):
            show("answering", len(found), len(prompts))
            chosen = prompts[len(found) : len(found) + TOGETHER]
            answers = fill(model.network, chosen, recipe.canvas, model.mask, block=recipe.block, banned=model.banned)
            rows = [(len(prompt), [*prompt, *answer]) for prompt, answer in zip(chosen, answers, strict=True)]
            file.write(json.dumps(rows) + "\n")
            file.flush()
            found += rows
    return found[: len(prompts)]


class DistillationTrainer(StepTrainer):
    """Trains all weights of a model on its own answers."""

    def __init__(self, model: Denoiser, recipe: DistillationRecipe, data: Sequence[Row]):
        self.model, self.recipe, self.data = model, recipe, data
        self.weights = list(model.network.parameters())
        super().__init__(
            model.network, torch.optim.AdamW(self.weights, lr=recipe.rate, weight_decay=recipe.weight_decay)
        )

    def advance(self) -> float:
        """One step; its loss."""
        recipe = self.recipe
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + self.step)
        chosen = torch.randint(len(self.data), (recipe.batch,), generator=generator).tolist()
        loss = distillation_loss(self.model, collate([self.data[place] for place in chosen]), generator, recipe)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return float(loss.detach())

    def train(self, folder: Path, identity: str, show: Show = silent) -> None:
        """All steps, from the last checkpoint in `folder` where there is one."""
        self.go_on(self.recipe.steps, CHECKPOINT_STEPS, folder, identity, show)


def list_metrics(
    model: Denoiser, thresholds: Sequence[float], samples: int, canvas: int, seed: int = 1
) -> dict[str, Any]:
    """By threshold: the share of right answers and forwards per answer, of all list tasks and of each."""
    from decodery.evaluation.parallelbench.tasks import TASKS, make_samples, score
    from decodery.evaluation.parallelbench.words import END, decode, encode, vocabulary

    words = vocabulary()
    names, end = list(words), words[END]
    found: dict[str, Any] = {}
    for threshold in thresholds:
        tasks: dict[str, dict[str, float]] = {}
        for task in (name for name, entry in TASKS.items() if entry.group == "lists"):
            asked = make_samples(task, samples, seed=seed)
            filled, forwards = by_entropy(model, [encode(one.prompt, words) for one in asked], canvas, threshold)
            texts = [decode(ids[: ids.index(end)] if end in ids else ids, names) for ids in filled]
            right = sum(map(score, asked, texts)) / samples
            tasks[task] = {"accuracy": round(right, 4), "forwards": round(sum(forwards) / samples, 2)}
        mean = {key: round(sum(one[key] for one in tasks.values()) / len(tasks), 4) for key in ("accuracy", "forwards")}
        found[f"{threshold:g}"] = {**mean, **tasks}
    return found


THRESHOLDS = (0.1, 0.25, 0.5, 1.0)


def make(
    model: Denoiser,
    prompts: Sequence[Sequence[int]],
    recipe: DistillationRecipe,
    folder: Path,
    artifact: Path,
    answers: Path,
    about: Mapping[str, Any],
    entries: Mapping[str, Any],
    *,
    samples: int = 0,
    show: Show = silent,
) -> dict[str, Any]:
    """Run the recipe and write the model. answers: the file of the model's own. about: for the card. entries: of config.json.
    samples: of each list task to measure on, before and after. Returns the card."""
    folder.mkdir(parents=True, exist_ok=True)
    identity = json.dumps({"recipe": asdict(recipe), "model": about["base"]}, sort_keys=True)
    data = own_answers(model, prompts, recipe, answers, show)
    before = list_metrics(model, THRESHOLDS, samples, recipe.canvas) if samples else {}
    trainer = DistillationTrainer(model, recipe, data)
    trainer.train(folder, identity, show)
    model.network.write(artifact, **entries)
    metrics: dict[str, Any] = {"about": "nothing was measured"}
    if samples:
        after = list_metrics(Denoiser.read(artifact), THRESHOLDS, samples, recipe.canvas)
        metrics = {
            "about": f"share of right answers and forwards of an answer, by entropy threshold in nats, on {samples} fresh "
            f"samples (seed 1) of each list task, canvas {recipe.canvas}, greedy; before and after",
            "before": before,
            "after": after,
        }
    card = {
        **about,
        "source": "decodery.training.dparallel; after dParallel, arXiv 2509.26488",
        "data": f"{len(data)} answers of {recipe.canvas} positions that {about['base']} wrote itself, one token a step",
        "licence": "Apache-2.0",
        "seed": recipe.seed,
        "recipe": asdict(recipe),
        "parameters": sum(weight.numel() for weight in model.network.parameters()),
        "metrics": metrics,
        "log": trainer.log,
        "machine": machine(),
    }
    (artifact / "card.json").write_text(json.dumps(card, indent=1) + "\n", "utf-8")
    return card


def entries_beside(base: Path, artifact: Path) -> dict[str, Any]:
    """The entries of config.json that a model in `artifact` has from the one in `base` that it began as. Its tokenizer is named
    where both lie in one folder, and copied otherwise."""
    config, tokenizer = read_config(base), tokenizer_folder(base).resolve()
    entries: dict[str, Any] = {
        key: config[key] for key in ("masked_diffusion", "eos_token_id", "pad_token_id") if key in config
    }
    if artifact.resolve().parent == tokenizer.parent:
        return {**entries, "tokenizer_folder": tokenizer.name}
    artifact.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / name, artifact / name)
    return entries


@refusing
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of the recipe."""
    from rich.console import Console

    from decodery.models.store import resolve

    parser = recipe_parser(
        "dparallel", __doc__, folder="where the checkpoint is kept", artifact="where the model and its card go"
    )
    parser.add_argument("--model", default="diffusion-lists", help="a small masked-diffusion model")
    parser.add_argument("--prompts", type=Path, help="one a line; not needed for diffusion-lists and diffusion-stories")
    parser.add_argument("--answers-file", type=Path, help="where the answers are kept, for runs that share them")
    parser.add_argument("--samples", type=int, default=100, help="of each list task, to measure on (diffusion-lists)")
    add_options(parser, DistillationRecipe())
    given = vars(parser.parse_args(arguments))
    recipe, name = read_options(DistillationRecipe(), given), given["model"]
    place = resolve(name)
    model = Denoiser.read(place)
    prompts = prompts_for(name, place, given["prompts"], recipe.answers, recipe.seed)
    artifact: Path = given["artifact"]
    given["folder"].mkdir(parents=True, exist_ok=True)
    command = " ".join(
        (
            f"decodery train dparallel --model {name} --folder work --artifact {artifact.name}",
            *changed_options(DistillationRecipe(), recipe),
        )
    )
    about = {"title": artifact.name, "about": f"{name} after certainty-forcing distillation", "base": name}
    with progress_bars() as show:
        card = make(
            model,
            prompts,
            recipe,
            given["folder"],
            artifact,
            given["answers_file"] or given["folder"] / "answers.jsonl",
            {**about, "command": command},
            entries_beside(place, artifact),
            samples=given["samples"] if name == "diffusion-lists" else 0,
            show=show,
        )
    Console().print_json(data=card["metrics"])


if __name__ == "__main__":
    main()
