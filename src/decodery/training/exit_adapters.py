"""The recipe of exit adapters: teach early layers of a frozen model to speak through its head.

    decodery train exit-adapters --model smollm2-135m --folder work --artifact adapters

1. The model writes texts to varied prompts, half of them greedily and half sampled. 2. One forward of each keeps the hidden
rows of the exits and of the last layer. 3. AdamW with a one-cycle rate brings each exit's law to the model's own, both over
the model's most frequent tokens. Interrupted, it goes on where it was: texts and weights are kept in the work folder.
The scaled recipe of LayerSkip's early-exit loss (arXiv 2404.16710) for DEL (arXiv 2504.05598); the model stays as it is.
"""

from __future__ import annotations

import copy
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from decodery.language_model import LanguageModel
from decodery.loading import load
from decodery.models.forward import POST_NORM
from decodery.speculative.del_.exits import ExitAdapters, adapted
from decodery.training.answers import AnswerRecipe, OwnAnswer, held_out_answers, hidden_rows, write_answers
from decodery.training.checkpoints import keep, kept
from decodery.training.options import Show, add_options, progress_bars, read_options, recipe_parser, refusing, silent

BATCH_TEXTS = 32
CHECKPOINT_STEPS = 100
COUNTED_ROWS = 8192
"""Rows whose laws are added up to find the frequent tokens: far more tokens are likely than ever occur."""
CHUNK = 512


@dataclass(frozen=True)
class AdapterRecipe:
    """exits: layers after which an adapter sits. width: of the adapters. vocabulary: how many tokens a draft may consist of.
    texts, tokens_per_text: training data. steps, rate, batch: of AdamW, a batch being positions. held_out_tokens: length of
    the texts on decodery's own questions by which agreement is measured. seed: of prompts, sampling and batches.
    """

    exits: tuple[int, ...] = (4, 5, 6, 8, 10)
    width: int = 256
    vocabulary: int = 8192
    texts: int = 768
    kinds: int = 22
    topics: int = 64
    tokens_per_text: int = 128
    steps: int = 2400
    rate: float = 2e-3
    batch: int = 128
    held_out_tokens: int = 96
    seed: int = 0


@dataclass
class HiddenRows:
    """exits: exit -> [n, hidden] hidden rows; last: [n, hidden] the rows after the final norm; both in the model's dtype."""

    exits: dict[int, Tensor]
    last: Tensor

    def __len__(self) -> int:
        return self.last.shape[0]


def written_texts(lm: LanguageModel, recipe: AdapterRecipe, folder: Path, progress: Show = silent) -> list[OwnAnswer]:
    """What the model writes to the recipe's prompts, batch by batch greedily or sampled. Kept in `folder`."""
    wanted = AnswerRecipe(
        prompts=recipe.texts,
        kinds=recipe.kinds,
        topics=recipe.topics,
        answers=1,
        temperatures=(0.0, 0.8),
        new_tokens=recipe.tokens_per_text,
        batch=BATCH_TEXTS,
        seed=recipe.seed,
    )
    return [answer for answer in write_answers(lm, wanted, folder / "answers", progress) if answer.output]


def rows_of_exits(
    lm: LanguageModel, texts: Sequence[OwnAnswer], exits: Sequence[int], progress: Show = silent
) -> HiddenRows:
    """The rows that the outputs' tokens were chosen from, see `hidden_rows`."""
    found = hidden_rows(lm, texts, (*(exit - 1 for exit in exits), POST_NORM), progress)
    return HiddenRows({exit: found[exit - 1] for exit in exits}, found[POST_NORM])


def frequent_tokens(lm: LanguageModel, texts: Sequence[OwnAnswer], rows: HiddenRows, count: int) -> Tensor:
    """The tokens [count] int64, ascending, that the model writes most often, by occurrences and by probability."""
    size = lm.network.vocabulary
    seen = torch.bincount(torch.tensor([token for text in texts for token in text.output]), minlength=size).double()
    weight = _model(lm).get_output_embeddings().weight.detach()
    sample = rows.last[:: max(1, len(rows) // COUNTED_ROWS)]
    mass = torch.zeros(size, dtype=torch.float64)
    for start in range(0, len(sample), CHUNK):
        mass += F.linear(sample[start : start + CHUNK], weight).float().softmax(dim=-1).sum(dim=0).double()
    seen += mass * len(rows) / len(sample)
    seen[list(lm.stop_ids)] = float("inf")
    return seen.topk(min(count, size)).indices.sort().values


class AdapterTrainer:
    """Trains the adapters of all exits side by side.

    The head's rows of the draft vocabulary and the final norm are the model's own, in float32 and frozen.
    """

    def __init__(self, lm: LanguageModel, recipe: AdapterRecipe, rows: HiddenRows, tokens: Tensor):
        model = _model(lm)
        self.recipe, self.rows, self.tokens = recipe, rows, tokens
        self.norm = copy.deepcopy(model.base_model.norm).float().requires_grad_(False)
        self.weight = model.get_output_embeddings().weight.detach()[tokens].float()
        hidden = rows.last.shape[1]
        generator = torch.Generator().manual_seed(recipe.seed)
        self.weights: dict[int, tuple[Tensor, Tensor]] = {}
        for exit in recipe.exits:
            down = torch.randn(recipe.width, hidden, generator=generator) * hidden**-0.5
            self.weights[exit] = (down.requires_grad_(), torch.zeros(hidden, recipe.width).requires_grad_())
        parameters = [tensor for pair in self.weights.values() for tensor in pair]
        self.optimizer = torch.optim.AdamW(parameters, lr=recipe.rate)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, recipe.rate, total_steps=recipe.steps + 1)
        self.step = 0
        self.log: list[dict[str, float]] = []

    def logits(self, exit: int, rows: Tensor, trained: bool = True) -> Tensor:
        """Scores [n, draft vocabulary] of hidden rows [n, hidden] of an exit."""
        rows = adapted(rows.float(), *self.weights[exit]) if trained else rows.float()
        return F.linear(self.norm(rows), self.weight)

    def advance(self) -> dict[int, float]:
        """One step; the divergence of each exit from the model's law, in nats."""
        recipe = self.recipe
        generator = np.random.Generator(np.random.Philox(key=[recipe.seed, self.step]))
        chosen = torch.from_numpy(generator.integers(0, len(self.rows), recipe.batch))
        target = F.linear(self.rows.last[chosen].float(), self.weight).log_softmax(dim=-1)
        losses: dict[int, float] = {}
        self.optimizer.zero_grad()
        for exit in recipe.exits:
            law = self.logits(exit, self.rows.exits[exit][chosen]).log_softmax(dim=-1)
            loss = F.kl_div(law, target, reduction="batchmean", log_target=True)
            loss.backward()  # type: ignore[no-untyped-call]
            losses[exit] = float(loss.detach())
        self.optimizer.step()
        self.schedule.step()
        self.step += 1
        return losses

    def train(self, folder: Path, progress: Show = silent) -> None:
        """All steps, from the last checkpoint in `folder` where there is one."""
        identity = json.dumps(asdict(self.recipe))
        if (state := kept(folder, identity)) is not None:
            self._restore(state)
        totals = dict.fromkeys(self.recipe.exits, 0.0)
        since = 0
        while self.step < self.recipe.steps:
            for exit, loss in self.advance().items():
                totals[exit] += loss
            since += 1
            progress("training", self.step, self.recipe.steps)
            if self.step % CHECKPOINT_STEPS == 0 or self.step == self.recipe.steps:
                self.log.append({"step": self.step, **{f"exit {e}": round(t / since, 4) for e, t in totals.items()}})
                totals, since = dict.fromkeys(totals, 0.0), 0
                keep(folder, identity, self._state())

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "log": self.log,
            "weights": {exit: [t.detach() for t in pair] for exit, pair in self.weights.items()},
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for exit, pair in state["weights"].items():
                for mine, stored in zip(self.weights[exit], pair, strict=True):
                    mine.copy_(stored)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.step, self.log = state["step"], state["log"]

    @torch.no_grad()
    def agreement(self, rows: HiddenRows, full: Tensor) -> dict[int, dict[str, float]]:
        """How often each exit's likeliest token is the model's own: without adapter and with the full head, without adapter
        and with the draft vocabulary, and as trained. full: the whole head [vocabulary, hidden]."""
        right: dict[int, dict[str, float]] = {}
        best = _best(rows.last, full)
        for exit in self.recipe.exits:
            counts = {"raw": 0.0, "raw, draft vocabulary": 0.0, "adapted": 0.0}
            for start in range(0, len(rows), CHUNK):
                chunk, true = rows.exits[exit][start : start + CHUNK], best[start : start + CHUNK]
                raw = _best(self.norm(chunk.float()).to(full.dtype), full)
                counts["raw"] += float((raw == true).sum())
                for name, trained in (("raw, draft vocabulary", False), ("adapted", True)):
                    found = self.tokens[self.logits(exit, chunk, trained).argmax(dim=-1)]
                    counts[name] += float((found == true).sum())
            right[exit] = {name: round(count / len(rows), 4) for name, count in counts.items()}
        covered = float(torch.isin(best, self.tokens).float().mean())
        right[0] = {"covered by the draft vocabulary": round(covered, 4)}
        return right


def make(
    lm: LanguageModel, recipe: AdapterRecipe, folder: Path, artifact: Path, progress: Show = silent
) -> dict[str, Any]:
    """Run the recipe and write the artifact: the adapters and their card. Returns the card."""
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    texts = written_texts(lm, recipe, folder, progress)
    rows = rows_of_exits(lm, texts, recipe.exits, progress)
    tokens = frequent_tokens(lm, texts, rows, recipe.vocabulary)
    trainer = AdapterTrainer(lm, recipe, rows, tokens)
    trainer.train(folder, progress)
    held_out = held_out_answers(lm, recipe.held_out_tokens)
    test = rows_of_exits(lm, held_out, recipe.exits)
    agreement = trainer.agreement(test, _model(lm).get_output_embeddings().weight.detach())
    card: dict[str, Any] = {
        "title": f"Exit adapters for {lm.name}",
        "model": lm.name,
        "fingerprint": lm.network.fingerprint(),
        "source": "decodery.training.exit_adapters; after DEL, arXiv 2504.05598, and LayerSkip, arXiv 2404.16710",
        "recipe": asdict(recipe),
        "data": f"{len(texts)} texts of {lm.name} on prompts of decodery.training.prompts, {len(rows)} positions",
        "held_out": f"{len(held_out)} greedy answers to decodery's own questions, {len(test)} positions",
        "agreement": {str(exit): numbers for exit, numbers in agreement.items() if exit},
        "coverage": agreement[0],
        "log": trainer.log,
        "dtype": str(lm.network.dtype),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "seconds_of_last_run": round(time.perf_counter() - started),
    }
    weights = {exit: (down.detach(), up.detach()) for exit, (down, up) in trainer.weights.items()}
    facts = {"model": lm.name, "recipe": asdict(recipe)}
    ExitAdapters(weights, tokens, card["fingerprint"], facts).write(artifact)
    (artifact / "card.json").write_text(json.dumps(card, indent=1) + "\n", "utf-8")
    return card


def _model(lm: LanguageModel) -> Any:
    """The transformers model under a language model."""
    return lm.network.model  # type: ignore[attr-defined]


def _best(rows: Tensor, head: Tensor) -> Tensor:
    """The likeliest token [n] of each row after the final norm."""
    return torch.cat([F.linear(rows[i : i + CHUNK], head).argmax(dim=-1) for i in range(0, len(rows), CHUNK)])


@refusing
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of the recipe."""
    from rich.console import Console

    parser = recipe_parser(
        "exit-adapters",
        __doc__,
        folder="where texts and checkpoints are kept",
        artifact="where the adapters and their card go",
    )
    parser.add_argument("--model", default="smollm2-135m")
    add_options(parser, AdapterRecipe())
    given = vars(parser.parse_args(arguments))
    with progress_bars() as show:
        card = make(
            load(given["model"]), read_options(AdapterRecipe(), given), given["folder"], given["artifact"], show
        )
    Console().print_json(data={"agreement": card["agreement"], "coverage": card["coverage"]})


if __name__ == "__main__":
    main()
