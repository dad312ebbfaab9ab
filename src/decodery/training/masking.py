"""Rows as batches, the hiding of tokens, the losses, and a plain decoder: the parts of the recipe of masked diffusion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

Row = tuple[int, Sequence[int]]
"""How many tokens the prompt has, and all tokens of prompt and canvas. A prompt of 0 tokens makes all of a text a canvas."""
Source = Callable[[int], Sequence[Row]]
"""Pool number -> the rows of that pool. It must give the same rows whenever it is asked: restarts rely on it."""
MASKS = ("count", "suffix", "late", "independent", "next")
"""What may be hidden: see `hide`; "next" hides nothing, and each token is predicted from those before it."""
JITTER = 0.1
"""What is added to probabilities at most, so that positions of which a network is about as sure come in any order."""


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


def batches(source: Source, batch_tokens: int, seed: int, pool: int) -> list[Batch]:
    """The batches of one pool: rows of similar length together, in random order."""
    rows = sorted(source(pool), key=lambda row: len(row[1]))
    found: list[Batch] = []
    start = 0
    while start < len(rows):
        stop = start + 1
        shortest = len(rows[start][1])
        while stop < len(rows) and len(rows[stop][1]) * (stop + 1 - start) <= batch_tokens:
            if len(rows[stop][1]) > shortest * 1.125:
                break
            stop += 1
        found.append(collate(rows[start:stop]))
        start = stop
    order = np.random.Generator(np.random.Philox(key=[seed, pool])).permutation(len(found))
    return [found[i] for i in order]


def rows_for(network: Any, tokens: Tensor, visible: Tensor | None) -> Tensor:
    """The hidden rows [rows, length, width] that predict the token at each position: of a network that was autoregressive,
    the row before it."""
    rows: Tensor = network(tokens, visible)
    return torch.cat((rows[:, :1], rows[:, :-1]), dim=1) if network.shift else rows


def hidden_costs(network: Any, batch: Batch, hidden: Tensor, mask_token: int) -> Tensor:
    """The cross-entropy in nats of each token that is hidden, row by row: [hidden tokens]. Only these need the head."""
    rows = rows_for(network, batch.tokens.masked_fill(hidden, mask_token), batch.visible)
    return F.cross_entropy(network.head(rows[hidden]), batch.tokens[hidden], reduction="none")


@torch.no_grad()
def sureness(network: Any, batch: Batch, mask_token: int) -> Tensor:
    """The probability [rows, length] float32 of the likeliest token of each position while all canvases are hidden."""
    rows = rows_for(network, batch.tokens.masked_fill(batch.canvas, mask_token), batch.visible)
    found: Tensor = network.head(rows).float().softmax(dim=-1).amax(dim=-1)
    return found


def hide(batch: Batch, masks: str, generator: torch.Generator, sure: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Which positions to hide [rows, length] bool, and the weights [rows, length] float32 of the bound.

    "count": exactly l ~ U{1..L} of the L canvas positions of a row, weight L / l / (tokens of all canvases). "independent":
    each with probability p = 0.001 + 0.999 t, t ~ U(0, 1) spread evenly over the rows (antithetic), weight 1 / p / (the
    same); a row may then hide nothing, without which the bound would not be one. Summed over the hidden positions, weight
    times cross-entropy estimates the bound of a token's negative log-likelihood in nats. "suffix": as "count", and every
    second row, drawn at random, hides all from the position c ~ U{1..L} of its canvas on as well; no bound, all weights are 1.
    "late": as "count", but every second row, drawn at random, hides l = floor(L ** u), u ~ U(0, 1), and those of which the
    network is least `sure` ([rows, length], with up to `JITTER` added at random); all rows weigh the same, so no bound.
    """
    canvas = batch.canvas
    sizes = canvas.sum(dim=1)
    rows, device = len(sizes), canvas.device

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=device)

    order = draw(*canvas.shape).masked_fill(~canvas, 2.0)
    if masks == "independent":
        share = (draw(1) + torch.randperm(rows, generator=generator, device=device) / rows) % 1
        share = 0.001 + 0.999 * share
        return (order < share[:, None]) & canvas, (1 / share / sizes.sum())[:, None].expand_as(order)
    chosen = 1 + (draw(rows) * sizes).long().clamp(max=sizes - 1)
    weights = sizes / chosen / sizes.sum()
    if masks == "late":
        if sure is None:
            raise ValueError('masks "late" need to know how sure the network is of each position')
        second = draw(rows) < 0.5
        chosen = (sizes ** draw(rows)).long().clamp(min=1).where(second, chosen)
        order = (sure + JITTER * order).masked_fill(~canvas, 2.0).where(second[:, None], order)
        weights = 1 / (chosen * rows)
    hidden = order.argsort(dim=1).argsort(dim=1) < chosen[:, None]
    if masks == "suffix":
        cut = batch.prompts + (draw(rows) * sizes).long()
        cut = cut.where(draw(rows) < 0.5, batch.lengths)
        hidden |= torch.arange(canvas.shape[1], device=device) >= cut[:, None]
        weights = torch.ones_like(weights)
    return hidden & canvas, weights[:, None].expand_as(order)


def loss(network: Any, batch: Batch, masks: str, mask_token: int, generator: torch.Generator) -> Tensor:
    """The loss of a batch, in nats: a scalar in float32."""
    if masks == "next":
        chosen = batch.canvas.clone()
        chosen[:, 0] = False
        rows = network(batch.tokens, causal=True)
        return F.cross_entropy(network.head(rows[:, :-1][chosen[:, 1:]]), batch.tokens[chosen])
    hidden, weights = hide(batch, masks, generator, sureness(network, batch, mask_token) if masks == "late" else None)
    costs = hidden_costs(network, batch, hidden, mask_token)
    return (costs * weights[hidden]).sum() if masks in ("independent", "late") else costs.mean()


@torch.no_grad()
def bound(network: Any, rows: Sequence[Row], mask_token: int, *, draws: int = 8, seed: int = 0) -> float:
    """The upper bound of the negative log-likelihood of the canvases, in nats a token, by `draws` masks of each row.

    With exactly l ~ U{1..L} hidden and weight L / l, as LLaDA measures it: of lower variance than independent masks.
    """
    generator = torch.Generator().manual_seed(seed)
    batch, total = collate(rows), 0.0
    for _ in range(draws):
        hidden, weights = hide(batch, "count", generator)
        total += float((hidden_costs(network, batch, hidden, mask_token) * weights[hidden]).sum())
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
            asked = rows_for(network, tokens, batch.visible)
            logits = network.head(asked.gather(1, places[..., None].expand(-1, -1, asked.shape[-1])))
            logits[..., [mask_token, *banned]] = -torch.inf
            best, words = logits.softmax(dim=-1).max(dim=-1)
            written = tokens.gather(1, places)
            best = best.masked_fill((written != mask_token) | ~inside, -1.0)
            chosen = best.topk(min(per_step, left), dim=1).indices
            tokens.scatter_(1, places.gather(1, chosen), words.gather(1, chosen))
            if order is not None:
                order.append(torch.zeros(written.shape, dtype=torch.bool).scatter(1, chosen, True))
    return tokens.gather(1, places).tolist()
