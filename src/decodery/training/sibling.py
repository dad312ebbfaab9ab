"""A small sibling of a model: a few layers between its embedding and its head, taught by its answers to speak as it does.

    decodery train answers --model smollm2-135m --folder answers
    decodery train sibling --model smollm2-135m --answers answers --folder work --artifact smollm2-sibling

The layers begin as some of the model's own, with the strongest units of their feed-forward alone. Embedding and head stay the
model's and frozen. AdamW at a constant rate brings the sibling's law at every token of the answers to the model's own
(word-level distillation, Kim and Rush, arXiv 1606.07947; on the large model's own texts, as DistillSpec has it, arXiv
2310.08461, section 4.1). What is kept is a running average of the weights, so that a run may end at any step. Interrupted, it
goes on where it was; answers and steps may have been added meanwhile. The artifact holds the layers in eight bits as a GGUF
file and no embedding: when it is loaded, that is read from the file of the model whose sibling it is.
"""

from __future__ import annotations

import copy
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from decodery.errors import BadInput
from decodery.models.forward import POST_NORM, Forward
from decodery.models.shared_embedding import write_layers
from decodery.training.answers import OwnAnswer, held_out_answers, hidden_rows, in_groups, read_answers
from decodery.training.checkpoints import keep, kept, once
from decodery.training.distillation import SampledVocabulary, divergence
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

CHECKPOINT_STEPS = 50
FROZEN = ("model.embed_tokens.weight", "lm_head.weight")
PIECE = 256
"""Answers whose rows are kept in one file."""
CHUNK = 256
"""Rows whose scores over the whole vocabulary are looked at together."""


@dataclass(frozen=True)
class SiblingRecipe:
    """layers: of the model, with which the sibling's begin. feed_forward: width of theirs. frequent, drawn: tokens that a step
    looks at. steps, rate, rows: of AdamW, rows being those of a step's texts, with their prompts. warmup: steps over which the
    rate rises. decay: of weights. average: what a step leaves of the running average of the weights. held_out_tokens: length of
    the answers on decodery's own questions by which agreement is measured. seed: of batches.
    """

    layers: tuple[int, ...] = (0, 29)
    feed_forward: int = 1536
    frequent: int = 4096
    drawn: int = 1024
    steps: int = 16000
    rate: float = 1.5e-3
    rows: int = 768
    warmup: int = 60
    decay: float = 0.01
    average: float = 0.99
    held_out_tokens: int = 96
    seed: int = 0


def small_copy(model: Any, layers: Sequence[int], feed_forward: int) -> Any:
    """A model of the same class, in float32, with some layers of `model` and the strongest units of their feed-forward; its
    embedding and head are frozen. Raises BadInput where the model has no such layers or units."""
    config = copy.deepcopy(model.config)
    if not layers or max(layers) >= config.num_hidden_layers or min(layers) < 0:
        raise BadInput(f"layers must be among 0 to {config.num_hidden_layers - 1}.")
    if not 0 < feed_forward <= config.intermediate_size:
        raise BadInput(f"feed-forward must be between 1 and {config.intermediate_size}.")
    config.num_hidden_layers, config.intermediate_size, config.dtype = len(layers), feed_forward, torch.float32
    small = type(model)(config)
    given = {name: weight.detach().float() for name, weight in model.state_dict().items()}
    taken = {name: weight for name, weight in given.items() if ".layers." not in name}
    for own, layer in enumerate(layers):
        start = f"model.layers.{layer}."
        part = {name.removeprefix(start): weight for name, weight in given.items() if name.startswith(start)}
        strength = part["mlp.down_proj.weight"].norm(dim=0) * part["mlp.up_proj.weight"].norm(dim=1)
        units = strength.topk(feed_forward).indices.sort().values
        for name, weight in part.items():
            if name == "mlp.down_proj.weight":
                weight = weight[:, units]
            elif name in ("mlp.up_proj.weight", "mlp.gate_proj.weight"):
                weight = weight[units]
            taken[f"model.layers.{own}.{name}"] = weight.clone()
    small.load_state_dict(taken)
    small.get_input_embeddings().requires_grad_(False)
    small.get_output_embeddings().requires_grad_(False)
    return small


class SiblingTrainer:
    """Teaches a small copy the laws of a model.

    model: in transformers. answers: what it is taught on. rows: [n, hidden], those from which their outputs were chosen, after
    the final norm, in bfloat16.
    """

    def __init__(self, model: Any, recipe: SiblingRecipe, answers: Sequence[OwnAnswer], rows: Tensor):
        self.recipe, self.rows = recipe, rows
        self.small = small_copy(model, recipe.layers, recipe.feed_forward)
        head = self.small.get_output_embeddings().weight.detach().bfloat16()
        self.vocabulary = SampledVocabulary(head, answers, recipe.frequent, recipe.drawn)
        self._head = head
        ends = np.cumsum([len(answer.output) for answer in answers])
        order = sorted(range(len(answers)), key=lambda place: len(answers[place].prompt) + len(answers[place].output))
        self._texts = [(answers[place], int(ends[place])) for place in order]
        trained = [weight for weight in self.small.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [weight for weight in trained if weight.dim() > 1], "weight_decay": recipe.decay},
                {"params": [weight for weight in trained if weight.dim() < 2], "weight_decay": 0.0},
            ],
            lr=recipe.rate,
            betas=(0.9, 0.98),
        )
        self.averaged = copy.deepcopy(self.small)
        """The model of the running average of the weights, which is what is kept."""
        self.step = 0
        self.log: list[dict[str, float]] = []

    def batch(self, step: int) -> list[tuple[OwnAnswer, int]]:
        """The texts of a step, neighbours in length, with the place where the rows of each end."""
        generator = np.random.Generator(np.random.Philox(key=[self.recipe.seed, step]))
        at = int(generator.integers(len(self._texts)))
        chosen = [self._texts[at]]
        longest = len(chosen[0][0].prompt) + len(chosen[0][0].output)
        while (len(chosen) + 1) * longest <= self.recipe.rows and len(chosen) < len(self._texts):
            at = (at - 1) % len(self._texts)  # shorter ones, so that the first is the longest, or from the end
            chosen.append(self._texts[at])
            longest = max(longest, len(chosen[-1][0].prompt) + len(chosen[-1][0].output))
        return chosen

    def advance(self) -> float:
        """One step; the divergence from the model's laws, in nats."""
        chosen = self.batch(self.step)
        part = self.vocabulary.part(torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + self.step))
        rows = torch.cat(read_rows(self.small, [answer for answer, _ in chosen]))
        target = torch.cat([self.rows[end - len(answer.output) : end] for answer, end in chosen])
        loss = divergence(rows, target, part)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.small.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate * min(1.0, (self.step + 1) / self.recipe.warmup)
        self.optimizer.step()
        self.step += 1
        self._average()
        return float(loss.detach())

    @torch.no_grad()
    def _average(self) -> None:
        """Over few steps at first, so that the average does not lag behind what is learnt fast."""
        left = min(self.recipe.average, self.step / (self.step + 10))
        for mean, weight in zip(self.averaged.parameters(), self.small.parameters(), strict=True):
            if weight.requires_grad:
                mean.lerp_(weight, 1 - left)

    def train(self, folder: Path, held_out: tuple[Sequence[OwnAnswer], Tensor], progress: Show = silent) -> None:
        """All steps, from the last checkpoint in `folder` where there is one, even of a run of another length. held_out:
        answers, and the rows of their outputs, on which agreement is logged."""
        identity = json.dumps({key: value for key, value in asdict(self.recipe).items() if key != "steps"})
        started, before = time.perf_counter(), 0.0
        if (state := kept(folder, identity)) is not None:
            self.small.load_state_dict(state["weights"], strict=False)
            self.averaged.load_state_dict(state["averaged"], strict=False)
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.log = state["step"], state["log"]
            before = self.log[-1]["seconds"]
        losses: list[float] = []
        while self.step < self.recipe.steps:
            losses.append(self.advance())
            progress("training", self.step, self.recipe.steps, f"{losses[-1]:.3f} nats")
            if self.step % CHECKPOINT_STEPS == 0 or self.step == self.recipe.steps:
                entry = {
                    "step": self.step,
                    "divergence": round(sum(losses) / len(losses), 4),
                    "agreement": round(self.agreement(*held_out), 4),
                    "seconds": round(before + time.perf_counter() - started),
                }
                self.log.append(entry)
                losses = []
                keep(folder, identity, self._state())

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "log": self.log,
            "weights": learnt(self.small),
            "averaged": learnt(self.averaged),
            "optimizer": self.optimizer.state_dict(),
        }

    @torch.no_grad()
    def agreement(self, answers: Sequence[OwnAnswer], rows: Tensor) -> float:
        """The share of the outputs' places at which the likeliest token is the model's own, over the whole vocabulary. rows:
        [n, hidden], as for training."""
        own = torch.cat([torch.cat(read_rows(self.averaged, group)) for group in in_groups(answers)])
        return float((likeliest(own, self._head) == likeliest(rows, self._head)).float().mean())


def learnt(small: Any) -> dict[str, Tensor]:
    """The weights of a small copy that are its own, by name."""
    return {name: weight for name, weight in small.state_dict().items() if name not in FROZEN}


def read_rows(model: Any, answers: Sequence[OwnAnswer]) -> list[Tensor]:
    """The rows [output, hidden] float32, after the final norm, from which each answer's tokens are chosen, by a model that is
    being trained."""
    read = [torch.tensor([*answer.prompt, *answer.output[:-1]]) for answer in answers]
    tokens = torch.nn.utils.rnn.pad_sequence(read, batch_first=True)  # what follows a text is seen by none of its rows
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.base_model(tokens, use_cache=False).last_hidden_state
    return [
        rows[len(answer.prompt) - 1 : len(ids)].float() for rows, answer, ids in zip(hidden, answers, read, strict=True)
    ]


def likeliest(rows: Tensor, head: Tensor) -> Tensor:
    """The likeliest tokens [n] of rows [n, hidden] after the final norm."""
    starts = range(0, len(rows), CHUNK)
    return torch.cat([F.linear(rows[at : at + CHUNK].to(head.dtype), head).argmax(dim=-1) for at in starts])


def rows_of(lm: LanguageModel, answers: Sequence[OwnAnswer], folder: Path, progress: Show = silent) -> Tensor:
    """The rows of `hidden_rows` after the final norm, in bfloat16. Kept in `folder` by whole pieces of the answers, so that
    answers may be added."""
    found = []
    for start in range(0, len(answers), PIECE):
        progress("the model's rows", start, len(answers))
        piece = answers[start : start + PIECE]

        def read(piece: Sequence[OwnAnswer] = piece) -> Tensor:
            return hidden_rows(lm, piece, (POST_NORM,))[POST_NORM].bfloat16()

        found.append(once(folder / f"rows-{start:06d}.pt", read) if len(piece) == PIECE else read())
    progress("the model's rows", len(answers), len(answers))
    return torch.cat(found)


def agreement(lm: LanguageModel, small: LanguageModel, answers: Sequence[OwnAnswer]) -> float:
    """The share of the places of the outputs at which both models, as they are run here, hold the same token likeliest."""
    same = total = 0
    for group in in_groups(answers):
        best: list[list[int]] = []
        for network in (lm.network, small.network):
            asks = [
                Forward(
                    network.new_sequence(),
                    read := [*answer.prompt, *answer.output[:-1]],
                    logits=range(len(answer.prompt) - 1, len(read)),
                )
                for answer in group
            ]
            best.append([token for scores in network.run(asks) for token in scores.logits.argmax(dim=-1).tolist()])
        same += sum(one == two for one, two in zip(*best, strict=True))
        total += len(best[0])
    return same / total


def make(
    lm: LanguageModel,
    recipe: SiblingRecipe,
    answers_folder: Path,
    folder: Path,
    artifact: Path,
    progress: Show = silent,
    command: str = "",
) -> dict[str, Any]:
    """Run the recipe and write the artifact: the layers and their card. Returns the card."""
    from decodery.loading import load

    folder.mkdir(parents=True, exist_ok=True)
    if (base := lm.folder) is None:
        raise BadInput(f"{lm.name} has no folder, so that its embedding cannot be shared.")
    answers = [answer for answer in read_answers(answers_folder) if answer.output]
    held_out = held_out_answers(lm, recipe.held_out_tokens)
    test = hidden_rows(lm, held_out, (POST_NORM,))[POST_NORM]
    trainer = SiblingTrainer(lm.network.model, recipe, answers, rows_of(lm, answers, folder, progress))  # type: ignore[attr-defined]
    trainer.train(folder, (held_out, test), progress)
    weights = learnt(trainer.averaged)
    write_layers(weights, trainer.averaged.config.to_dict(), base, artifact)
    own = sum(weight.numel() for weight in weights.values())
    card: dict[str, Any] = {
        "title": f"Small sibling of {lm.name}",
        "licence": "that of the model whose sibling it is",
        "parameters": f"{own / 1e6:.1f}M beside the embedding",
        "model": lm.name,
        "recipe": asdict(recipe),
        "command": command or "decodery train sibling",
        "data": f"{len(answers)} answers of {lm.name}, {len(trainer.rows)} tokens; "
        f"{trainer.vocabulary.covered:.1%} of them among the frequent ones",
        "held_out": f"{len(held_out)} greedy answers to decodery's own questions, {len(test)} tokens",
        "log": trainer.log,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
    }
    (artifact / "card.json").write_text(json.dumps(card, indent=1) + "\n", "utf-8")
    small = load(artifact)
    card["fingerprint"] = small.network.fingerprint()
    card["metrics"] = {"agreement": round(agreement(lm, small, held_out), 4)}
    (artifact / "card.json").write_text(json.dumps(card, indent=1) + "\n", "utf-8")
    return card


@refusing
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of the recipe."""
    import shlex
    import sys

    from rich.console import Console

    from decodery import loading

    parser = recipe_parser(
        "sibling",
        __doc__,
        answers="the folder of `decodery train answers`",
        folder="where rows and checkpoints are kept",
        artifact="where the sibling and its card go",
    )
    parser.add_argument("--model", default="smollm2-135m")
    add_options(parser, SiblingRecipe())
    told = sys.argv[1:] if arguments is None else arguments
    given = vars(parser.parse_args(told))
    recipe = read_options(SiblingRecipe(), given)
    command = f"decodery train sibling {shlex.join(told)}"
    with progress_bars() as show:
        lm = loading.load(given["model"])
        card = make(lm, recipe, given["answers"], given["folder"], given["artifact"], show, command)
    Console().print_json(data={"agreement": card["metrics"]["agreement"]})


if __name__ == "__main__":
    main()
