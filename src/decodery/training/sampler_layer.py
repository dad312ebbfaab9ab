"""The recipe of sampler layers for `approximate-joint-sampling`: one layer learns what a frozen model says after more tokens.

    decodery train sampler-layer --model diffusion-lists --folder work --artifact sampler-layer-diffusion-lists

1. The model fills canvases, one token a step, drawn at the position of lowest entropy; tokens and order are kept. 2. From a
random state of a random canvas the layer is applied up to `depth` times, each time after the token that came next, and its law
of what is still masked is brought to the model's own there. Model, embeddings and head stay as they are. Interrupted, it goes
on where it was. After arXiv 2509.22738.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from decodery.diffusion.approximate_joint_sampling.layer import SamplerLayer, TrainedLayer
from decodery.training.denoisers import Denoiser, prompts_for
from decodery.training.masked_diffusion import machine
from decodery.training.masking import Batch, collate, rows_for
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

CHECKPOINT_STEPS = 50
TOGETHER = 128
"""Canvases that are filled at once."""
SURE = 0.05
"""Nats of entropy below which a law counts as certain. Most laws behind a short answer are, and teach nothing."""
ANYWHERE = 0.2
"""Share of the states that are drawn from all of a trajectory; the others follow its first certain steps."""


@dataclass(frozen=True)
class LayerRecipe:
    """canvases: that the model fills, of `canvas` positions each, at `temperature`. depth: how often the layer is applied in a
    row, at most. steps, batch, rate: of AdamW, a batch being states; the rate rises over `warmup` steps and falls linearly to a
    twentieth. held_out: canvases to measure on, in `measured` states at least. seed: of prompts, draws, states.
    """

    canvases: int = 4096
    canvas: int = 16
    temperature: float = 1.0
    depth: int = 3
    steps: int = 1500
    batch: int = 64
    rate: float = 1e-3
    warmup: int = 100
    held_out: int = 256
    measured: int = 2048
    seed: int = 0

    def rate_at(self, step: int) -> float:
        """The rate of a step, counted from 0."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        return self.rate * (1 - 0.95 * (step - self.warmup) / max(1, self.steps - self.warmup))


@dataclass(frozen=True)
class Trajectory:
    """tokens: of prompt and canvas. prompt: length of the prompt. order: of each position of the canvas, the step that filled
    it. certain: how many steps came before the first one whose law was not certain."""

    tokens: list[int]
    prompt: int
    order: list[int]
    certain: int


@torch.no_grad()
def trajectories(
    base: Denoiser, prompts: Sequence[Sequence[int]], canvas: int, temperature: float, seed: int
) -> list[Trajectory]:
    """Fill a canvas behind each prompt, one token a step: where the law has the lowest entropy, one is drawn from it."""
    batch = collate([(len(prompt), [*prompt, *([base.mask] * canvas)]) for prompt in prompts])
    places = batch.prompts[:, None] + torch.arange(canvas)
    generator = torch.Generator().manual_seed(seed)
    tokens, order, every = batch.tokens.clone(), torch.full((len(prompts), canvas), -1), torch.arange(len(prompts))
    certain = torch.full((len(prompts),), canvas)
    for step in range(canvas):
        rows = rows_for(base.network, tokens, batch.visible)
        laws = base.scores(rows.gather(1, places[..., None].expand(-1, -1, rows.shape[-1])))
        laws = (laws / temperature).log_softmax(-1)
        entropy = torch.special.entr(laws.exp()).sum(-1).masked_fill(order >= 0, torch.inf)
        lowest, chosen = entropy.min(1)
        certain = torch.where(lowest > SURE, certain.clamp(max=step), certain)
        drawn = torch.multinomial(laws[every, chosen].exp(), 1, generator=generator)[:, 0]
        tokens[every, places[every, chosen]] = drawn
        order[every, chosen] = step
    return [
        Trajectory(row[: len(prompt) + canvas], len(prompt), own, first)
        for row, prompt, own, first in zip(tokens.tolist(), prompts, order.tolist(), certain.tolist(), strict=True)
    ]


@dataclass(frozen=True)
class States:
    """States of trajectories that follow each other. batch: the complete texts. since: [rows, length] the step that filled each
    position, -1 in prompts. start: [rows] how many steps have been taken in the first of them."""

    batch: Batch
    since: Tensor
    start: Tensor

    def hidden(self, further: int) -> Tensor:
        """[rows, length] bool: what is masked so many steps after the start."""
        return self.batch.canvas & (self.since >= (self.start + further)[:, None])


def states(chosen: Sequence[Trajectory], depth: int, generator: torch.Generator) -> States:
    """A random state of each trajectory after which at least `depth` tokens follow, and one more is masked. Most of them, all
    but the share `ANYWHERE`, come after the certain steps, where there are such."""
    batch = collate([(one.prompt, one.tokens) for one in chosen])
    since = torch.full(batch.tokens.shape, -1)
    for row, one in zip(since, chosen, strict=True):
        row[one.prompt : one.prompt + len(one.order)] = torch.tensor(one.order)
    ends = torch.tensor([len(one.order) - depth for one in chosen])
    first = torch.tensor([one.certain for one in chosen])
    everywhere = torch.rand(len(chosen), generator=generator) < ANYWHERE
    first = first.masked_fill(everywhere | (first >= ends), 0)
    return States(batch, since, first + (torch.rand(len(chosen), generator=generator) * (ends - first)).long())


def after(base: Denoiser, layer: SamplerLayer, rows: Tensor, given: States, further: int) -> Tensor:
    """The layer's rows [rows, length, width] once the token of the `further`-th step stands there, from those before it."""
    shown = given.batch.tokens.masked_fill(given.hidden(further), base.mask)
    found: Tensor = layer(base.network.model.embed_tokens(shown), rows, given.batch.visible)
    return found


def unrolled(base: Denoiser, layer: SamplerLayer, given: States, depth: int) -> Tensor:
    """The layer's rows after `depth` of the tokens that came next, from the model's at the start."""
    rows = base.rows(given.batch, given.hidden(0))
    for further in range(1, depth + 1):
        rows = after(base, layer, rows, given, further)
    return rows


def target(base: Denoiser, given: States, further: int) -> Tensor:
    """The model's own log probabilities [positions, vocabulary] at what is masked `further` steps after the start."""
    hidden = given.hidden(further)
    return base.scores(base.rows(given.batch, hidden)[hidden])


def divergence(base: Denoiser, rows: Tensor, hidden: Tensor, wanted: Tensor) -> Tensor:
    """KL(wanted || law of `rows`) in nats at each hidden position: [positions]."""
    # What is banned has probability 0 in both, which adds nothing.
    return (wanted.exp() * (wanted - base.scores(rows[hidden])).masked_fill(wanted == -torch.inf, 0.0)).sum(-1)


def depth_weights(depth: int) -> Tensor:
    """How often each depth from 1 on is trained: softmax(1, 1/2, 1/4, ...), [depth]."""
    return (0.5 ** torch.arange(depth)).softmax(0)


class LayerTrainer(StepTrainer):
    """Trains a sampler layer on trajectories of a frozen model."""

    def __init__(self, base: Denoiser, recipe: LayerRecipe, data: Sequence[Trajectory]):
        self.base, self.recipe, self.data = base, recipe, data
        base.network.requires_grad_(False)
        self.layer = SamplerLayer(base.network.shape)
        self.layer.block.load_state_dict(base.network.model.layers[-1].state_dict())
        super().__init__(self.layer, torch.optim.AdamW(self.layer.parameters(), lr=recipe.rate, weight_decay=0.0))

    def advance(self) -> float:
        """One step; its loss, in nats."""
        recipe = self.recipe
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + self.step)
        depth = 1 + int(torch.multinomial(depth_weights(recipe.depth), 1, generator=generator))
        places = torch.randint(len(self.data), (recipe.batch,), generator=generator).tolist()
        given = states([self.data[place] for place in places], depth, generator)
        wanted = target(self.base, given, depth)
        loss = divergence(self.base, unrolled(self.base, self.layer, given, depth), given.hidden(depth), wanted).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.layer.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.rate_at(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return float(loss.detach())

    def train(self, folder: Path, identity: str, show: Show = silent) -> None:
        """All steps, from the last checkpoint in `folder` where there is one."""
        self.go_on(self.recipe.steps, CHECKPOINT_STEPS, folder, identity, show)


@torch.no_grad()
def measured(
    base: Denoiser, layer: SamplerLayer, data: Sequence[Trajectory], depth: int, seed: int, least: int
) -> dict[str, Any]:
    """By depth: the mean divergence in nats of the layer's laws from the model's, that of the laws the model had before the
    tokens came ("stale"), how much lower it is, and the 95 % interval of the difference over at `least` so many states."""
    costs: dict[tuple[str, int], list[Tensor]] = {}
    for number in range(-(-least // len(data))):
        for start in range(0, len(data), TOGETHER):
            generator = torch.Generator().manual_seed(seed + 1000 * number + start)
            given = states(data[start : start + TOGETHER], depth, generator)
            first = rows = base.rows(given.batch, given.hidden(0))
            for further in range(1, depth + 1):
                rows, hidden = after(base, layer, rows, given, further), given.hidden(further)
                wanted = target(base, given, further)
                for name, compared in (("layer", rows), ("stale", first)):
                    each = torch.zeros(hidden.shape).masked_scatter(hidden, divergence(base, compared, hidden, wanted))
                    costs.setdefault((name, further), []).append(each.sum(1) / hidden.sum(1))
    found: dict[str, Any] = {}
    for further in range(1, depth + 1):
        own, before = (torch.cat(costs[name, further]) for name in ("layer", "stale"))
        gain = before - own
        error = 1.96 * float(gain.std()) / len(gain) ** 0.5
        found[str(further)] = {
            "layer": round(float(own.mean()), 5),
            "stale": round(float(before.mean()), 5),
            "lower_by": round(1 - float(own.mean() / before.mean()), 4),
            "difference": [round(float(gain.mean()) + sign * error, 5) for sign in (-1, 1)],
            "states": len(gain),
        }
    return found


def recorded(
    base: Denoiser, prompts: Sequence[Sequence[int]], recipe: LayerRecipe, folder: Path, show: Show = silent
) -> list[Trajectory]:
    """The trajectories of all prompts, kept in `folder` part by part."""
    found: list[Trajectory] = []
    for number, start in enumerate(range(0, len(prompts), TOGETHER)):
        path = folder / f"trajectories-{number:04d}.json"
        if not path.exists():
            part = trajectories(
                base, prompts[start : start + TOGETHER], recipe.canvas, recipe.temperature, recipe.seed * 7919 + number
            )
            draft = path.with_suffix(".tmp")
            draft.write_text(json.dumps([asdict(one) for one in part]), "utf-8")
            draft.replace(path)
        found += [Trajectory(**one) for one in json.loads(path.read_text("utf-8"))]
        show("filling canvases", min(start + TOGETHER, len(prompts)), len(prompts))
    return found


def make(
    base: Denoiser,
    prompts: Sequence[Sequence[int]],
    recipe: LayerRecipe,
    folder: Path,
    artifact: Path,
    about: dict[str, Any],
    show: Show = silent,
) -> dict[str, Any]:
    """Run the recipe and write the artifact. about: name and fingerprint of the model, for the card. Returns the card."""
    folder.mkdir(parents=True, exist_ok=True)
    identity = json.dumps({"recipe": asdict(recipe), "model": about["fingerprint"]}, sort_keys=True)
    data = recorded(base, prompts, recipe, folder, show)
    held_out, training = data[: recipe.held_out], data[recipe.held_out :]
    trainer = LayerTrainer(base, recipe, training)
    trainer.train(folder, identity, show)
    facts = {"model": about["model"], "recipe": asdict(recipe)}
    TrainedLayer(trainer.layer, about["fingerprint"], recipe.depth, facts).write(artifact)
    layer = TrainedLayer.read(artifact).module  # as it was written
    card = {
        "title": f"Sampler layer for {about['model']}",
        **about,
        "source": "decodery.training.sampler_layer; after arXiv 2509.22738",
        "data": f"{len(training)} canvases of {recipe.canvas} positions that {about['model']} filled itself, one token a step",
        "licence": "Apache-2.0",
        "seed": recipe.seed,
        "recipe": asdict(recipe),
        "parameters": sum(weight.numel() for weight in layer.parameters()),
        "metrics": {
            "about": "divergence in nats from the model's laws after as many further tokens, over held-out states: of the "
            "layer, and of the laws before these tokens",
            "depth": measured(base, layer, held_out, recipe.depth, recipe.seed, recipe.measured),
        },
        "log": trainer.log,
        "machine": machine(),
    }
    (artifact / "card.json").write_text(json.dumps(card, indent=1) + "\n", "utf-8")
    return card


@refusing
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of the recipe."""
    from rich.console import Console

    from decodery.loading import load
    from decodery.models.store import resolve

    parser = recipe_parser(
        "sampler-layer",
        __doc__,
        folder="where canvases and checkpoints are kept",
        artifact="where the layer and its card go",
    )
    parser.add_argument("--model", default="diffusion-lists", help="a masked-diffusion model")
    parser.add_argument("--prompts", type=Path, help="one a line; not needed for diffusion-lists and diffusion-stories")
    add_options(parser, LayerRecipe())
    given = vars(parser.parse_args(arguments))
    recipe, model = read_options(LayerRecipe(), given), given["model"]
    place = resolve(model)
    base = Denoiser.read(place)
    prompts = prompts_for(model, place, given["prompts"], recipe.canvases + recipe.held_out, recipe.seed)
    command = " ".join(
        (
            f"decodery train sampler-layer --model {model} --folder work --artifact sampler-layer-{model}",
            *changed_options(LayerRecipe(), recipe),
        )
    )
    about = {"model": model, "fingerprint": load(model, dtype="float32").network.fingerprint(), "command": command}
    with progress_bars() as show:
        card = make(base, prompts, recipe, given["folder"], given["artifact"], about, show)
    Console().print_json(data=card["metrics"])


if __name__ == "__main__":
    main()
