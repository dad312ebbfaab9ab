"""The recipe of masked-diffusion language models: train a network to fill in hidden tokens, at any share of hidden tokens.

    decodery train masked-diffusion --data answers.jsonl --tokenizer folder --folder work --artifact model
    decodery train masked-diffusion --data answers.jsonl --adapt smollm2-135m --folder work --artifact model

Each line of the data is {"prompt": "...", "answer": "..."} or {"text": "..."}; the prompt is never hidden. Training goes on
from its last checkpoint when it was interrupted. After LLaDA (arXiv 2502.09992, section 2) and MDLM (arXiv 2406.07524); the
adaptation of an autoregressive model after DiffuLLaMA (arXiv 2410.17891, section 3). From Python, `train` takes any source
of rows, and `decodery.training.diffusion_lists` shows how.
"""

from __future__ import annotations

import json
import math
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from decodery.errors import BadInput
from decodery.training.checkpoints import keep, kept
from decodery.training.masking import MASKS, Batch, Row, Source, batches, bound, collate, fill, hide, loss
from decodery.training.options import add_options, progress_bars, read_options, recipe_parser, refusing

__all__ = [
    "Batch", "Recipe", "Row", "Source", "Trainer", "batches", "bound", "collate", "fill", "hide", "loss", "machine",
]  # fmt: skip
Watch = Callable[[Any, int], dict[str, float]]
"""(network, step) -> numbers for the log."""
Progress = Callable[[int, int, dict[str, float]], None]
"""(step, of how many, the newest entry of the log)."""


def silent(step: int, steps: int, entry: dict[str, float]) -> None:
    """A progress that says nothing."""


@dataclass(frozen=True)
class Recipe:
    """steps: of AdamW. batch_tokens: rows of a batch times their length. rate: the highest; after `warmup` steps it falls
    along a cosine to `last_rate` of itself. first_steps: where it warms up again, for a second cosine (0: nowhere). masks:
    "count" hides l ~ U{1..L} tokens of a canvas of L and averages the cross-entropy over all hidden tokens of the batch;
    "suffix" does so too, and in every second row hides all from a random position on: what a decoder sees that writes an answer
    before its padding, and what "count" hardly ever shows of a long canvas; "late" does so too, and in every second row hides
    the few tokens that the network is least sure of: what a decoder sees last, and "count" hardly ever shows; each row weighs
    the same, however few it hides;
    "independent" hides each with probability p, p ~ U(0, 1], and weighs by 1/p, which is the bound of the likelihood; "next"
    trains an autoregressive twin. average: decay of the running mean of the weights, which is kept in the end (0: none).
    anneal: steps over which a causal network is let see everything (adapting).
    """

    steps: int = 2000
    first_steps: int = 0
    batch_tokens: int = 6144
    rate: float = 1.5e-3
    warmup: int = 100
    last_rate: float = 0.05
    weight_decay: float = 0.01
    beta2: float = 0.98
    clip: float = 1.0
    masks: str = field(default="count", metadata={"choices": MASKS})
    average: float = 0.0
    anneal: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.masks not in MASKS:
            raise ValueError(f"masks are {', '.join(MASKS)}, not {self.masks!r}")

    def rate_at(self, step: int) -> float:
        """The rate of a step, counted from 0."""
        if self.first_steps and step >= self.first_steps:
            place, length = step - self.first_steps, self.steps - self.first_steps
        else:
            place, length = step, self.first_steps or self.steps
        return self.rate * rise_and_fall(place, length, self.warmup, self.last_rate)


def rise_and_fall(step: int, steps: int, warmup: int, last: float) -> float:
    """The rate of a step, counted from 0, as a share of the highest: a line over `warmup` steps, then along a cosine to
    `last`."""
    if step < warmup:
        return (step + 1) / warmup
    share = (step - warmup) / max(1, steps - warmup)
    return last + (1 - last) * (1 + math.cos(math.pi * share)) / 2


@dataclass
class Trainer:
    """Trains a network on rows. folder: where the checkpoint and the log are kept."""

    network: Any
    source: Source
    recipe: Recipe
    mask_token: int
    folder: Path
    device: str = "cpu"
    checkpoint_steps: int = 100
    watch: Watch | None = None
    watch_steps: int = 500
    progress: Progress = silent
    about: dict[str, Any] = field(default_factory=dict)
    """What else must be the same for a checkpoint to be continued: the data's settings, for example."""

    def __post_init__(self) -> None:
        self.network.to(self.device)
        self.weights = {name: weight for name, weight in self.network.named_parameters() if weight.requires_grad}
        recipe = self.recipe
        groups = [
            {"params": [w for w in self.weights.values() if w.dim() >= 2], "weight_decay": recipe.weight_decay},
            {"params": [w for w in self.weights.values() if w.dim() < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, recipe.beta2), fused=True)
        self.mean = {name: weight.detach().clone() for name, weight in self.weights.items()} if recipe.average else {}
        self.step, self.pool, self.place = 0, 0, 0
        self.seconds = 0.0
        self.tokens = 0
        self.log: list[dict[str, float]] = []

    def train(self) -> list[dict[str, float]]:
        """All steps, from the last checkpoint in the folder where there is one. Returns the log."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if (state := kept(self.folder, self._identity(), self.device)) is not None:
            self._restore(state)
        total, since, started = 0.0, 0, time.perf_counter()
        stream = self._stream()
        while self.step < self.recipe.steps:
            total += self.advance(next(stream))
            since += 1
            last = self.step == self.recipe.steps
            if self.step % self.checkpoint_steps == 0 or last:
                self.seconds += time.perf_counter() - started
                started = time.perf_counter()
                entry = {"step": self.step, "loss": round(total / since, 5), "seconds": round(self.seconds, 1)}
                entry |= {"tokens": self.tokens, "rate": round(self.recipe.rate_at(self.step), 8)}
                if self.watch is not None and (self.step % self.watch_steps == 0 or last):
                    entry |= self._watched()
                    started = time.perf_counter()
                self.log.append(entry)
                with (self.folder / "log.jsonl").open("a") as file:
                    file.write(json.dumps(entry) + "\n")
                total, since = 0.0, 0
                self._save()
            self.progress(self.step, self.recipe.steps, self.log[-1] if self.log else {})
        return self.log

    def advance(self, batch: Batch) -> float:
        """One step on a batch; its loss. Raises FloatingPointError where that is no number, so that nothing is saved."""
        recipe = self.recipe
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.rate_at(self.step)
        generator = torch.Generator(self.device).manual_seed(recipe.seed * 1_000_003 + self.step)
        batch = batch.to(self.device)
        if hasattr(self.network, "anneal"):
            self.network.anneal(self.step, recipe.anneal)
        with torch.autocast(torch.device(self.device).type, torch.bfloat16):
            value = self.loss(batch, generator)
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(list(self.weights.values()), recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.tokens += batch.tokens.numel()
        for name, mean in self.mean.items():
            mean.lerp_(self.weights[name].detach(), 1 - min(recipe.average, self.step / (self.step + 10)))
        found = float(value.detach())
        if not math.isfinite(found):
            raise FloatingPointError(f"the loss of step {self.step} is {found}; the last checkpoint is whole")
        return found

    def loss(self, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        """What the present step makes smaller: a scalar in float32."""
        return loss(self.network, batch, self.recipe.masks, self.mask_token, generator)

    def finished(self) -> Any:
        """The network with the weights to keep: the running mean where there is one."""
        with torch.no_grad():
            for name, mean in self.mean.items():
                self.weights[name].copy_(mean)
        return self.network

    def _stream(self) -> Iterator[Batch]:
        while True:
            found = batches(self.source, self.recipe.batch_tokens, self.recipe.seed, self.pool)
            while self.place < len(found):
                batch = found[self.place]
                self.place += 1
                yield batch
            self.pool, self.place = self.pool + 1, 0

    def _watched(self) -> dict[str, float]:
        kept = {name: weight.detach().clone() for name, weight in self.weights.items()}
        try:
            return self.watch(self.finished(), self.step) if self.watch is not None else {}
        finally:
            with torch.no_grad():
                for name, weight in kept.items():
                    self.weights[name].copy_(weight)

    def _identity(self) -> str:
        return json.dumps({"recipe": asdict(self.recipe), **self.about}, sort_keys=True)

    def _save(self) -> None:
        state = {
            "place": [self.step, self.pool, self.place, self.tokens],
            "seconds": self.seconds,
            "log": self.log,
            "weights": {name: weight.detach() for name, weight in self.weights.items()},
            "mean": self.mean,
            "optimizer": self.optimizer.state_dict(),
        }
        keep(self.folder, self._identity(), state)

    def _restore(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(state["weights"][name])
        self.mean = state["mean"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.pool, self.place, self.tokens = state["place"]
        self.seconds, self.log = state["seconds"], state["log"]


def machine() -> str:
    """What trained, for a card."""
    return f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


@contextmanager
def training_bar(name: str) -> Iterator[Progress]:
    """A progress bar on the error stream, with the newest loss."""
    with progress_bars() as show:

        def progress(step: int, steps: int, entry: dict[str, float]) -> None:
            show(name, step, steps, f"loss {entry['loss']}" if entry else "")

        yield progress


def text_rows(path: Path, tokenizer: Any, end: int, canvas: int, seed: int, pool_rows: int = 2048) -> Source:
    """A source of rows of a file: one JSON object a line, {"prompt", "answer"} or {"text"}.

    Answers are filled up with end tokens to `canvas` positions, texts are cut into rows of that many. Raises BadInput, with
    the line, where a line is not such an object or an answer does not fit.
    """
    found: list[Row] = []
    for number, line in enumerate(path.read_text("utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise BadInput(f"{path}, line {number}, is not JSON: {error}.") from None
        if not isinstance(entry, dict) or not ("text" in entry or {"prompt", "answer"} <= set(entry)):
            raise BadInput(f'{path}, line {number}, has neither "text" nor "prompt" and "answer".')
        if "text" in entry:
            ids = [*tokenizer(entry["text"])["input_ids"], end]
            found += [(0, ids[start : start + canvas]) for start in range(0, len(ids), canvas)]
        else:
            prompt = tokenizer(entry["prompt"])["input_ids"]
            answer = tokenizer(entry["answer"], add_special_tokens=False)["input_ids"]
            if len(answer) + 1 > canvas:
                raise BadInput(
                    f"{path}, line {number}: the answer has {len(answer)} tokens and an end, the canvas {canvas} positions."
                )
            found.append((len(prompt), [*prompt, *answer, *([end] * (canvas - len(answer)))]))
    if not found:
        raise BadInput(f"{path} holds no rows.")

    def pool(number: int) -> list[Row]:
        chosen = np.random.Generator(np.random.Philox(key=[seed, number])).integers(0, len(found), pool_rows)
        return [found[place] for place in chosen]

    return pool


@refusing
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of the recipe."""
    from transformers import AutoTokenizer

    from decodery.models.reading import transformers_model
    from decodery.models.store import resolve
    from decodery.training.adaptation import AdaptedModel, reserved_token
    from decodery.training.networks import Shape, SmallLlama

    parser = recipe_parser(
        "masked-diffusion", __doc__, folder="where the checkpoint and the log are kept", artifact="where the model goes"
    )
    parser.add_argument("--data", type=Path, required=True, help="JSON lines, each with prompt and answer, or text")
    start = parser.add_mutually_exclusive_group(required=True)
    start.add_argument("--tokenizer", help="train from scratch with the tokenizer of this folder or model")
    start.add_argument("--adapt", metavar="MODEL", help="begin with this autoregressive model, its alignment kept")
    parser.add_argument("--rank", type=int, help="adapting: train maps of this rank instead of all weights")
    parser.add_argument("--width", type=int, default=256, help="from scratch: of the hidden rows")
    parser.add_argument("--layers", type=int, default=4, help="from scratch")
    parser.add_argument("--heads", type=int, default=4, help="from scratch")
    parser.add_argument("--canvas", type=int, default=64, help="positions behind the prompt")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="from scratch: fuse the layers with torch.compile")
    add_options(parser, Recipe())
    given = parser.parse_args(arguments)
    recipe = read_options(Recipe(), vars(given))
    folder = (
        Path(given.tokenizer)
        if given.tokenizer and Path(given.tokenizer).is_dir()
        else resolve(given.adapt or given.tokenizer)
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    end, mask = tokenizer.eos_token_id, reserved_token(tokenizer)
    if end is None:
        parser.error("the tokenizer names no end token")
    network: Any
    if given.adapt:
        network = AdaptedModel(transformers_model(folder, torch.float32), mask, given.rank, recipe.seed)
    else:
        network = SmallLlama(Shape(len(tokenizer), given.width, given.layers, given.heads), recipe.seed)
        if given.compile:
            network.compile_layers()
    source = text_rows(given.data, tokenizer, end, given.canvas, recipe.seed)
    about = {"start": given.adapt or "", "rank": given.rank, "canvas": given.canvas}
    with training_bar("masked diffusion") as progress:
        trainer = Trainer(
            network, source, recipe, mask, given.folder, device=given.device, progress=progress, about=about
        )
        log = trainer.train()
    given.artifact.mkdir(parents=True, exist_ok=True)
    described = {
        "mask_token_id": mask,
        "shift": network.shift,
        "end_token_ids": [end],
        "pad_token_ids": [],
        "canvas": given.canvas,
    }
    trained = trainer.finished()
    trained.write(given.artifact, masked_diffusion=described, eos_token_id=end)
    tokenizer.save_pretrained(str(given.artifact))
    card = {
        "title": given.artifact.name,
        "command": shlex.join(["decodery", "train", "masked-diffusion", *(arguments or sys.argv[1:])]),
        "data": str(given.data),
        "licence": "not stated",
        "seed": recipe.seed,
        "recipe": asdict(recipe),
        "parameters": sum(weight.numel() for weight in trained.parameters()),
        "log": log,
        "machine": machine(),
    }
    (given.artifact / "card.json").write_text(json.dumps(card, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
