"""The adapter of kangaroo: what follows a model's first layers, so that its head understands them.

    decodery train answers --model smollm2-135m --folder answers
    decodery train kangaroo --model smollm2-135m --answers answers --folder work --artifact kangaroo-smollm2-135m

The model stays as it is. One pass over each answer keeps the rows that leave the first layers, and those that enter the head.
AdamW brings the law of the adapter's row to the model's own at the same position, on the answers' tokens; those of the prompts
are only looked back at. A step looks at the frequent tokens and some others of the vocabulary (see `distillation`). Beginning:
the attention of the first layer that is left out, and the model's final norm. Interrupted, it goes on where it was.
Source: Kangaroo, arXiv 2404.18911, section 3.1; there the adapter begins at random, and a step looks at all tokens.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from decodery.models.forward import POST_NORM, Forward, Rows
from decodery.speculative.kangaroo.adapter import WEIGHTS, Adapter, empty_adapter, shape_of
from decodery.training.answers import OwnAnswer, held_out_answers, in_groups, read_answers
from decodery.training.checkpoints import keep, kept
from decodery.training.distillation import SampledVocabulary, divergence
from decodery.training.masked_diffusion import rise_and_fall
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
from decodery.training.sibling import likeliest

if TYPE_CHECKING:
    from decodery.language_model import LanguageModel

CHECKPOINT_STEPS = 50


@dataclass(frozen=True)
class KangarooRecipe:
    """exit: first layers that run before the adapter. longest: tokens of a text that are looked at, its beginning. vocabulary:
    frequent tokens that drafts may be made of. drawn: others that a step looks at beside them. steps, rate, least_rate, warmup,
    texts: of AdamW with a rate that falls along a cosine; texts: in a step. clip: most that a gradient's number may be.
    random_start: begin with random weights, as published. held_out_tokens: length of the answers to decodery's own questions
    by which agreement is measured. seed: of beginning and order.
    """

    exit: int = 3
    longest: int = 256
    vocabulary: int = 8192
    drawn: int = 4096
    steps: int = 1500
    rate: float = 1e-3
    least_rate: float = 1e-4
    warmup: int = 30
    texts: int = 4
    clip: float = 0.5
    random_start: bool = False
    held_out_tokens: int = 96
    seed: int = 0


@dataclass(frozen=True)
class ReadText:
    """A text as the model reads it. lower: [n, hidden] rows behind the first layers. last: [m, hidden] rows that enter the
    head, those of the last m positions, which are the answer's."""

    lower: Tensor
    last: Tensor


def read_texts(
    lm: LanguageModel, answers: Sequence[OwnAnswer], exit: int, longest: int, progress: Show = silent
) -> list[ReadText]:
    """What is looked at of each answer, in bfloat16."""
    read: list[ReadText] = []
    for group in in_groups(answers):
        asks, starts = [], []
        for answer in group:
            ids = [*answer.prompt, *answer.output[:-1]][:longest]
            starts.append(len(answer.prompt) - 1)
            if starts[-1] >= len(ids):  # the prompt alone is too long
                starts.pop()
                continue
            asks.append(Forward(lm.network.new_sequence(), ids, taps=(exit - 1, POST_NORM), logits=Rows.NONE))
        for start, scores in zip(starts, lm.network.run(asks) if asks else [], strict=True):
            lower, last = scores.hidden[exit - 1].bfloat16(), scores.hidden[POST_NORM][start:].bfloat16()
            read.append(ReadText(lower.clone(), last.clone()))
        progress("rows", len(read), len(answers))
    return read


class KangarooTrainer:
    """head: [vocabulary, hidden] of the model. vocabulary: what a step looks at of it."""

    def __init__(self, model: Any, recipe: KangarooRecipe, texts: Sequence[ReadText], vocabulary: SampledVocabulary):
        self.recipe, self.texts, self.vocabulary = recipe, texts, vocabulary
        torch.manual_seed(recipe.seed)
        self.adapter = empty_adapter(shape_of(model.config))
        if not recipe.random_start:
            first = model.base_model.layers[recipe.exit]
            start = {
                "norm": first.input_layernorm.weight,
                "queries": first.self_attn.q_proj.weight,
                "keys": first.self_attn.k_proj.weight,
                "values": first.self_attn.v_proj.weight,
                "output": first.self_attn.o_proj.weight,
                "final_norm": model.base_model.norm.weight,
            }
            with torch.no_grad():
                for name, weight in start.items():
                    self.adapter.get_parameter(WEIGHTS[name]).copy_(weight)
        learnt = [self.adapter.get_parameter(name) for name in WEIGHTS.values()]
        self.learnt = learnt
        self.optimizer = torch.optim.AdamW(learnt, lr=recipe.rate, betas=(0.9, 0.95))
        self.step = 0
        self.log: list[dict[str, float]] = []

    def rate(self) -> float:
        """Of the next step."""
        recipe = self.recipe
        return recipe.rate * rise_and_fall(self.step, recipe.steps, recipe.warmup, recipe.least_rate / recipe.rate)

    def advance(self) -> float:
        """One step; the divergence in nats."""
        recipe = self.recipe
        order = np.random.Generator(np.random.Philox(key=[recipe.seed, self.step]))
        chosen = [self.texts[i] for i in order.integers(0, len(self.texts), recipe.texts)]
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        self.optimizer.zero_grad()
        part = self.vocabulary.part(torch.Generator().manual_seed(recipe.seed + self.step))
        rows = torch.cat(speak(self.adapter, chosen))
        loss = divergence(rows, torch.cat([text.last for text in chosen]), part)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_value_(self.learnt, recipe.clip)
        self.optimizer.step()
        self.step += 1
        return float(loss.detach())

    def train(self, folder: Path, progress: Show = silent) -> None:
        """All steps, from the last checkpoint in `folder` where there is one."""
        identity = json.dumps(asdict(self.recipe))
        if (state := kept(folder, identity)) is not None:
            self.adapter.load_state_dict(state["weights"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.log = state["step"], state["log"]
        started, before = time.perf_counter(), self.log[-1]["seconds"] if self.log else 0
        losses: list[float] = []
        while self.step < self.recipe.steps:
            losses.append(self.advance())
            progress("training", self.step, self.recipe.steps, f"{losses[-1]:.3f} nats")
            if self.step % CHECKPOINT_STEPS == 0 or self.step == self.recipe.steps:
                seconds = round(before + time.perf_counter() - started)
                self.log.append(
                    {"step": self.step, "divergence": round(sum(losses) / len(losses), 4), "seconds": seconds}
                )
                losses = []
                state = {"weights": self.adapter.state_dict(), "optimizer": self.optimizer.state_dict()}
                keep(folder, identity, {**state, "step": self.step, "log": self.log})

    @torch.no_grad()
    def agreement(self, texts: Sequence[ReadText], head: Tensor, tokens: Tensor, final_norm: Any) -> dict[str, float]:
        """How often the likeliest token is the model's own, over all tokens: of the adapter; of it where drafts are made of the
        frequent `tokens`; of it with an attention that adds nothing; and of the first layers' rows after the model's own final
        norm."""
        true = torch.cat([likeliest(text.last, head) for text in texts])
        own = torch.cat([torch.cat(speak(self.adapter, [text])) for text in texts])
        some = tokens[likeliest(own, head[tokens])]
        rows = torch.cat([text.lower[-len(text.last) :].float() for text in texts])
        still = self.adapter.base_model.norm(rows)
        raw = final_norm(rows.to(final_norm.weight.dtype))
        found = {
            "adapter": likeliest(own, head),
            "adapter, frequent tokens": some,
            "without attention": likeliest(still, head),
            "untrained": likeliest(raw, head),
        }
        return {name: round(float((best == true).float().mean()), 4) for name, best in found.items()}


def speak(adapter: Any, texts: Sequence[ReadText]) -> list[Tensor]:
    """The adapter's rows [m, hidden] of each text's answer."""
    lower = torch.nn.utils.rnn.pad_sequence([text.lower for text in texts], batch_first=True).float()
    with torch.autocast("cpu", torch.bfloat16):
        hidden = adapter.base_model(inputs_embeds=lower, use_cache=False).last_hidden_state
    return [
        rows[len(text.lower) - len(text.last) : len(text.lower)].float()
        for rows, text in zip(hidden, texts, strict=True)
    ]


def frequent(answers: Sequence[OwnAnswer], size: int, vocabulary: int, always: Sequence[int]) -> Tensor:
    """The `size` tokens that are written most often, ascending; `always` are among them."""
    counts = torch.bincount(
        torch.tensor([token for answer in answers for token in answer.output]), minlength=vocabulary
    )
    counts[list(always)] = counts.max() + 1
    return counts.argsort(descending=True, stable=True)[:size].sort().values


def make(
    lm: LanguageModel,
    recipe: KangarooRecipe,
    answers_folder: Path,
    folder: Path,
    artifact: Path,
    progress: Show = silent,
) -> dict[str, Any]:
    """Run the recipe and write the artifact: the adapter and its card. Returns the card."""
    folder.mkdir(parents=True, exist_ok=True)
    answers = [answer for answer in read_answers(answers_folder) if answer.output]
    model = lm.network.model  # type: ignore[attr-defined]
    head = model.get_output_embeddings().weight.detach()
    texts = read_texts(lm, answers, recipe.exit, recipe.longest, progress)
    vocabulary = SampledVocabulary(head, answers, recipe.vocabulary, recipe.drawn)
    trainer = KangarooTrainer(model, recipe, texts, vocabulary)
    trainer.train(folder, progress)
    tokens = frequent(answers, recipe.vocabulary, lm.network.vocabulary, lm.stop_ids)
    held_out = held_out_answers(lm, recipe.held_out_tokens)
    questions = f"{len(held_out)} greedy answers to decodery's own questions"
    test = read_texts(lm, held_out, recipe.exit, recipe.longest + recipe.held_out_tokens)
    agreement = trainer.agreement(test, head, tokens, model.base_model.norm)
    fingerprint = lm.network.fingerprint()
    card: dict[str, Any] = {
        "title": f"Kangaroo's adapter for {lm.name}",
        "licence": "Apache-2.0",
        "model": lm.name,
        "fingerprint": fingerprint,
        "source": "decodery.training.kangaroo; after Kangaroo, arXiv 2404.18911",
        "recipe": asdict(recipe),
        "command": " ".join(["decodery train kangaroo", *changed_options(KangarooRecipe(), recipe)]),
        "data": f"{len(texts)} answers of {lm.name}, {sum(len(text.last) for text in texts)} positions",
        "held_out": f"{questions}, {sum(len(text.last) for text in test)} positions",
        "metrics": {"agreement": agreement},
        "log": trainer.log,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
    }
    weights = {name: trainer.adapter.get_parameter(place).detach() for name, place in WEIGHTS.items()}
    facts = {"model": lm.name, "recipe": asdict(recipe)}
    Adapter(weights, recipe.exit, shape_of(model.config), tokens, fingerprint, facts).write(artifact)
    (artifact / "card.json").write_text(json.dumps(card, indent=1) + "\n", "utf-8")
    return card


@refusing
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of the recipe."""
    from rich.console import Console

    from decodery import loading

    parser = recipe_parser(
        "kangaroo",
        __doc__,
        answers="the folder of `decodery train answers`",
        folder="where checkpoints are kept",
        artifact="where the adapter and its card go",
    )
    parser.add_argument("--model", default="smollm2-135m")
    add_options(parser, KangarooRecipe())
    given = vars(parser.parse_args(arguments))
    recipe = read_options(KangarooRecipe(), given)
    with progress_bars() as show:
        lm = loading.load(given["model"])
        card = make(lm, recipe, given["answers"], given["folder"], given["artifact"], show)
    Console().print_json(data=card["metrics"])


if __name__ == "__main__":
    main()
