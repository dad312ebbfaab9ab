"""The recipe of masked-diffusion language models: train a network to fill in hidden tokens, at any share of hidden tokens.

    python -m decodery.training.masked_diffusion --data answers.jsonl --tokenizer folder --folder work --artifact model
    python -m decodery.training.masked_diffusion --data answers.jsonl --adapt smollm2-135m --folder work --artifact model

Each line of the data is {"prompt": "...", "answer": "..."} or {"text": "..."}; the prompt is never hidden. Training goes on
from its last checkpoint when it was interrupted. After LLaDA (arXiv 2502.09992, section 2) and MDLM (arXiv 2406.07524); the
adaptation of an autoregressive model after DiffuLLaMA (arXiv 2410.17891, section 3). From Python, `train` takes any source
of rows, and `decodery.training.diffusion_lists` shows how.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

Row = tuple[int, Sequence[int]]
"""How many tokens the prompt has, and all tokens of prompt and canvas. A prompt of 0 tokens makes all of a text a canvas."""
Source = Callable[[int], Sequence[Row]]
"""Pool number -> the rows of that pool. It must give the same rows whenever it is asked: restarts rely on it."""
Watch = Callable[[Any, int], dict[str, float]]
"""(network, step) -> numbers for the log."""
Progress = Callable[[int, int, dict[str, float]], None]
"""(step, of how many, the newest entry of the log)."""


def silent(step: int, steps: int, entry: dict[str, float]) -> None:
    """A progress that says nothing."""


@dataclass(frozen=True)
class Recipe:
    """steps: of AdamW. batch_tokens: rows of a batch times their length. rate: the highest; after `warmup` steps it falls
    along a cosine to `last_rate` of itself. masks: "count" hides l ~ U{1..L} tokens of a canvas of L and averages the
    cross-entropy over all hidden tokens of the batch; "independent" hides each with probability p, p ~ U(0, 1], and weighs by
    1/p, which is the bound of the likelihood; "next" trains an autoregressive twin. average: decay of the running mean of the
    weights which is what is kept in the end; 0 is none. anneal: steps over which a causal network is let see all (adapting).
    """

    steps: int = 2000
    batch_tokens: int = 6144
    rate: float = 1.5e-3
    warmup: int = 100
    last_rate: float = 0.05
    weight_decay: float = 0.01
    beta2: float = 0.98
    clip: float = 1.0
    masks: str = "count"
    average: float = 0.0
    anneal: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.masks not in ("count", "independent", "next"):
            raise ValueError(f'masks are "count", "independent" or "next", not {self.masks!r}')

    def rate_at(self, step: int) -> float:
        """The rate of a step, counted from 0."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        share = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.rate * (self.last_rate + (1 - self.last_rate) * (1 + math.cos(math.pi * share)) / 2)


@dataclass(frozen=True)
class Batch:
    """tokens: [rows, length] int64, filled up with zeros. prompts, lengths: [rows] int64."""

    tokens: Tensor
    prompts: Tensor
    lengths: Tensor

    @property
    def canvas(self) -> Tensor:
        """[rows, length] bool: the positions that may be hidden."""
        places = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        return (places >= self.prompts[:, None]) & (places < self.lengths[:, None])

    @property
    def visible(self) -> Tensor | None:
        """[rows, 1, 1, length] bool: what may be looked at; None is everything."""
        length = self.tokens.shape[1]
        if bool((self.lengths == length).all()):
            return None
        return (torch.arange(length, device=self.tokens.device) < self.lengths[:, None])[:, None, None]

    def to(self, device: torch.device | str) -> Batch:
        return Batch(self.tokens.to(device), self.prompts.to(device), self.lengths.to(device))


def collate(rows: Sequence[Row]) -> Batch:
    """Rows as tensors."""
    lengths = torch.tensor([len(tokens) for _, tokens in rows])
    tokens = np.zeros((len(rows), int(lengths.max())), dtype=np.int64)
    for place, (_, ids) in enumerate(rows):
        tokens[place, : len(ids)] = ids
    return Batch(torch.from_numpy(tokens), torch.tensor([prompt for prompt, _ in rows]), lengths)


def batches(source: Source, recipe: Recipe, pool: int) -> list[Batch]:
    """The batches of one pool: rows of similar length together, in random order."""
    rows = sorted(source(pool), key=lambda row: len(row[1]))
    found: list[Batch] = []
    start = 0
    while start < len(rows):
        stop = start + 1
        shortest = len(rows[start][1])
        while stop < len(rows) and len(rows[stop][1]) * (stop + 1 - start) <= recipe.batch_tokens:
            if len(rows[stop][1]) > shortest * 1.125:
                break
            stop += 1
        found.append(collate(rows[start:stop]))
        start = stop
    order = np.random.Generator(np.random.Philox(key=[recipe.seed, pool])).permutation(len(found))
    return [found[i] for i in order]


def hide(batch: Batch, masks: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which positions to hide [rows, length] bool, at least one a row, and the weights [rows, length] float32 of the bound.

    "count": exactly l ~ U{1..L} of the L canvas positions of a row, weight L / l / (tokens of all canvases). "independent":
    each with probability p = 0.001 + 0.999 t, t ~ U(0, 1) spread evenly over the rows (antithetic), weight 1 / p / (the
    same). Summed over the hidden positions, weight times cross-entropy estimates the bound of a token's negative
    log-likelihood in nats.
    """
    canvas = batch.canvas
    sizes = canvas.sum(dim=1)
    rows, device = len(sizes), canvas.device
    order = torch.rand(canvas.shape, generator=generator, device=device).masked_fill(~canvas, 2.0)
    if masks == "count":
        chosen = 1 + (torch.rand(rows, generator=generator, device=device) * sizes).long().clamp(max=sizes - 1)
        hidden = order.argsort(dim=1).argsort(dim=1) < chosen[:, None]
        weights = (sizes / chosen)[:, None].expand_as(order)
    else:
        offset = torch.rand(1, generator=generator, device=device)
        share = (offset + torch.randperm(rows, generator=generator, device=device) / rows) % 1
        share = 0.001 + 0.999 * share
        hidden = order < share[:, None]
        first = order.argmin(dim=1, keepdim=True)
        hidden = hidden.scatter(1, first, True)
        weights = (1 / share)[:, None].expand_as(order)
    return hidden & canvas, weights / sizes.sum()


def loss(network: Any, batch: Batch, recipe: Recipe, mask_token: int, generator: torch.Generator) -> Tensor:
    """The loss of a batch, in nats: a scalar in float32."""
    if recipe.masks == "next":
        chosen = batch.canvas.clone()
        chosen[:, 0] = False
        rows = network(batch.tokens, causal=True)
        return F.cross_entropy(network.head(rows[:, :-1][chosen[:, 1:]]), batch.tokens[chosen])
    hidden, weights = hide(batch, recipe.masks, generator)
    rows = network(batch.tokens.masked_fill(hidden, mask_token), batch.visible)
    # A network that was autoregressive predicts a position from the row before it; only hidden positions need the head.
    asked = torch.cat((rows[:, :1], rows[:, :-1]), dim=1) if network.shift else rows
    costs = F.cross_entropy(network.head(asked[hidden]), batch.tokens[hidden], reduction="none")
    return costs.mean() if recipe.masks == "count" else (costs * weights[hidden]).sum()


@torch.no_grad()
def bound(network: Any, rows: Sequence[Row], mask_token: int, *, draws: int = 8, seed: int = 0) -> float:
    """The upper bound of the negative log-likelihood of the canvases, in nats a token, by `draws` masks of each row.

    With exactly l ~ U{1..L} hidden and weight L / l, as LLaDA measures it: of lower variance than independent masks.
    """
    generator = torch.Generator().manual_seed(seed)
    batch, total = collate(rows), 0.0
    for _ in range(draws):
        hidden, weights = hide(batch, "count", generator)
        states = network(batch.tokens.masked_fill(hidden, mask_token), batch.visible)
        asked = torch.cat((states[:, :1], states[:, :-1]), dim=1) if network.shift else states
        costs = F.cross_entropy(network.head(asked[hidden]), batch.tokens[hidden], reduction="none")
        total += float((costs * weights[hidden]).sum())
    return total / draws


@torch.no_grad()
def fill(
    network: Any,
    prompts: Sequence[Sequence[int]],
    canvas: int,
    mask_token: int,
    *,
    per_step: int = 1,
    block: int | None = None,
    banned: Sequence[int] = (),
    order: list[Tensor] | None = None,
) -> list[list[int]]:
    """Fill canvases greedily, `per_step` tokens of the highest probability at a time: the plain decoder that watches training.

    Prompts of one call may differ in length. block: tokens of a block, filled from left to right; None is the whole canvas.
    banned: further ids that are never written. order: takes one [rows, canvas] bool tensor a step, the positions written.
    """
    batch = collate([(len(prompt), [*prompt, *([mask_token] * canvas)]) for prompt in prompts])
    tokens, places = batch.tokens, batch.prompts[:, None] + torch.arange(canvas)
    block = canvas if block is None else block
    for start in range(0, canvas, block):
        inside = (torch.arange(canvas) >= start) & (torch.arange(canvas) < start + block)
        for left in range(min(block, canvas - start), 0, -per_step):
            rows = network(tokens, batch.visible)
            asked = torch.cat((rows[:, :1], rows[:, :-1]), dim=1) if network.shift else rows
            logits = network.head(asked.gather(1, places[..., None].expand(-1, -1, rows.shape[-1])))
            logits[..., [mask_token, *banned]] = -torch.inf
            best, words = logits.softmax(dim=-1).max(dim=-1)
            written = tokens.gather(1, places)
            best = best.masked_fill((written != mask_token) | ~inside, -1.0)
            chosen = best.topk(min(per_step, left), dim=1).indices
            tokens.scatter_(1, places.gather(1, chosen), words.gather(1, chosen))
            if order is not None:
                order.append(torch.zeros(written.shape, dtype=torch.bool).scatter(1, chosen, True))
    return tokens.gather(1, places).tolist()


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
        path = self.folder / "checkpoint.pt"
        if path.exists():
            self._restore(torch.load(path, weights_only=True, map_location=self.device))
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
                self._save(path)
            self.progress(self.step, self.recipe.steps, self.log[-1] if self.log else {})
        return self.log

    def advance(self, batch: Batch) -> float:
        """One step on a batch; its loss."""
        recipe = self.recipe
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.rate_at(self.step)
        generator = torch.Generator(self.device).manual_seed(recipe.seed * 1_000_003 + self.step)
        batch = batch.to(self.device)
        if hasattr(self.network, "anneal"):
            self.network.anneal(self.step, recipe.anneal)
        with torch.autocast(torch.device(self.device).type, torch.bfloat16):
            value = loss(self.network, batch, recipe, self.mask_token, generator)
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(list(self.weights.values()), recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.tokens += batch.tokens.numel()
        for name, mean in self.mean.items():
            mean.lerp_(self.weights[name].detach(), 1 - min(recipe.average, self.step / (self.step + 10)))
        return float(value.detach())

    def finished(self) -> Any:
        """The network with the weights to keep: the running mean where there is one."""
        with torch.no_grad():
            for name, mean in self.mean.items():
                self.weights[name].copy_(mean)
        return self.network

    def _stream(self) -> Iterator[Batch]:
        while True:
            found = batches(self.source, self.recipe, self.pool)
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

    def _save(self, path: Path) -> None:
        draft = path.with_suffix(".tmp")
        state = {
            "identity": self._identity(),
            "place": [self.step, self.pool, self.place, self.tokens],
            "seconds": self.seconds,
            "log": self.log,
            "weights": {name: weight.detach() for name, weight in self.weights.items()},
            "mean": self.mean,
            "optimizer": self.optimizer.state_dict(),
        }
        torch.save(state, draft)
        os.replace(draft, path)

    def _restore(self, state: dict[str, Any]) -> None:
        if state["identity"] != self._identity():
            raise ValueError("the work folder holds the checkpoint of another recipe; give another folder")
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
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Bar(*columns, TextColumn("{task.fields[loss]}"), console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=None, loss="")

        def progress(step: int, steps: int, entry: dict[str, float]) -> None:
            bar.update(task, completed=step, total=steps, loss=f"loss {entry['loss']}" if entry else "")

        yield progress
