"""What an insertion language model is trained on: texts with words dropped, the words that each gap misses, and the loss.

After Patel et al., "Insertion Language Models", arXiv 2505.05755: the number of dropped tokens is uniform over 0..n, both
included; the targets are the counts of missing tokens by gap; one softmax ranges over all gaps and tokens together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from decodery.training.masking import Batch

COMPLETE, MISSING = 0, 1
"""The classes of the stop head."""


@dataclass(frozen=True)
class Dropped:
    """Texts with tokens dropped; what is left stands without gaps, filled up with zeros.

    tokens: [rows, length] int64. lengths: [rows] int64, tokens that are left. open: [rows, length] bool, slots whose gap may be
    filled. cells: [3, dropped] int64, of each dropped token its row, the slot whose gap it is missing in, and the token; count:
    [rows] int64, dropped tokens of each row.
    """

    tokens: Tensor
    lengths: Tensor
    open: Tensor
    cells: Tensor
    count: Tensor

    @property
    def visible(self) -> Tensor:
        """[rows, 1, 1, length] bool: what may be looked at."""
        return (torch.arange(self.tokens.shape[1], device=self.tokens.device) < self.lengths[:, None])[:, None, None]

    def counts(self, vocabulary: int) -> Tensor:
        """[rows, length, vocabulary] float32: how often each token is missing in each gap."""
        found = torch.zeros(*self.tokens.shape, vocabulary, device=self.tokens.device)
        return found.index_put_(tuple(self.cells), torch.ones((), device=found.device), accumulate=True)


def drop(batch: Batch, generator: torch.Generator, count: Tensor | None = None) -> Dropped:
    """Drop tokens behind the prompts: of n droppable ones K ~ Uniform{0..n}, chosen evenly, without replacement.

    A prompt's last token owns the first gap, and each kept token behind it the gap to its right. count: [rows] int64 in place
    of K.
    """
    canvas, device = batch.canvas, batch.tokens.device
    sizes = canvas.sum(dim=1)
    if count is None:
        count = (torch.rand(len(sizes), generator=generator, device=device) * (sizes + 1)).long().clamp(max=sizes)
    order = torch.rand(canvas.shape, generator=generator, device=device).masked_fill(~canvas, 2.0)
    gone = (order.argsort(dim=1).argsort(dim=1) < count[:, None]) & canvas
    places = torch.arange(canvas.shape[1], device=device)
    left = (places < batch.lengths[:, None]) & ~gone
    lengths = left.sum(dim=1)
    slots = left.cumsum(dim=1) - 1
    # Those that are left first, in their order.
    front = (~left).to(torch.uint8).argsort(dim=1, stable=True)[:, : int(lengths.max())]
    inside = places[: front.shape[1]] < lengths[:, None]
    row, place = gone.nonzero(as_tuple=True)
    return Dropped(
        batch.tokens.gather(1, front).masked_fill(~inside, 0),
        lengths,
        inside & (places[: front.shape[1]] >= batch.prompts[:, None] - 1),
        torch.stack((row, slots[row, place], batch.tokens[row, place])),
        count,
    )


def joint_costs(logits: Tensor, dropped: Dropped) -> Tensor:
    """The cross-entropy in nats [rows] float32 between the shares of the missing tokens and one softmax over all open gaps and
    all tokens; 0 where nothing is missing. logits: [rows, length, vocabulary] float32."""
    closed = torch.finfo(logits.dtype).min
    table = logits.masked_fill(~dropped.open[..., None], closed).flatten(1).log_softmax(dim=1).view_as(logits)
    row = dropped.cells[0]
    shares = table[tuple(dropped.cells)] / dropped.count[row]
    return torch.zeros(len(dropped.count), device=logits.device).index_add(0, row, -shares)


def insertion_loss(network: Any, batch: Batch, generator: torch.Generator) -> Tensor:
    """The loss of a batch in nats: the joint cross-entropy and, with weight 1, that of the stop head, both as means over
    rows."""
    dropped = drop(batch, generator)
    logits, stop = network.scores(dropped.tokens, dropped.visible)
    return joint_costs(logits, dropped).mean() + F.cross_entropy(stop, (dropped.count > 0).long())


@torch.no_grad()
def grow(
    network: Any,
    prompts: Sequence[Sequence[int]],
    most: int,
    threshold: float,
    banned: Sequence[int],
    rightmost: bool = False,
) -> list[list[int]]:
    """Grow texts greedily behind prompts of one length, in batch: the plain decoder that watches training.

    most: insertions at most. threshold: of the probability of a complete text. banned: ids that are never inserted. rightmost:
    only the last gap is filled. Returns what stands behind each prompt.
    """
    texts = [list(prompt) for prompt in prompts]
    first = len(texts[0]) - 1
    living = list(range(len(texts)))
    for step in range(most):
        tokens = torch.tensor([texts[place] for place in living])
        logits, stop = network.scores(tokens)
        over = stop.softmax(-1)[:, COMPLETE] >= threshold
        logits[..., list(banned)] = -torch.inf
        logits[:, : first + step if rightmost else first] = -torch.inf
        cells = logits.flatten(1).argmax(1)
        left = []
        for place, cell, done in zip(living, cells.tolist(), over.tolist(), strict=True):
            if not done:
                slot, token = divmod(cell, logits.shape[-1])
                texts[place].insert(slot + 1, token)
                left.append(place)
        living = left
        if not living:
            break
    return [text[first + 1 :] for text in texts]
