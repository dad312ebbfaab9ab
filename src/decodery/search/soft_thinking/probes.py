"""What a network makes of a mixture: whether it goes on from all of its tokens, or from the heaviest alone.

Wu et al., LLMs are Single-threaded Reasoners, 2025, arXiv 2508.03440. The probes are coroutines for `LanguageModel.run`; run
them in float32.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from decodery._lazy import torch
from decodery.models.forward import Forward, Rows, Slots

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from decodery.models.forward import Scores
    from decodery.models.scorer import Scorer


@dataclass(frozen=True)
class Threads:
    """Jensen-Shannon divergences in nats of the laws after a mixture, after its heaviest token alone, and after its second."""

    to_first: float
    to_second: float
    first_to_second: float


def mixture(network: Scorer, ids: Sequence[int], weights: Sequence[float]) -> Tensor:
    """The row [1, hidden] that enters the first layer for these tokens in these shares."""
    shares = torch.zeros(1, network.vocabulary)
    shares[0, list(ids)] = torch.tensor(list(weights), dtype=torch.float32)
    return network.embed(shares)


def divergence(one: Float[Tensor, "vocabulary"], other: Float[Tensor, "vocabulary"]) -> float:
    """Jensen and Shannon's, in nats, of the laws of two rows of raw scores [vocabulary]."""
    laws = torch.stack([one, other]).double().softmax(-1)
    entropy = torch.special.entr(torch.cat([laws.mean(0, keepdim=True), laws])).sum(-1)
    return float(entropy[0] - entropy[1:].mean())


def threads(
    network: Scorer, prompt: Sequence[int], steps: Sequence[Mapping[str, Any]]
) -> Generator[Any, Any, list[Threads]]:
    """Walk along what a request has fed, and ask after each mixture of at least two tokens what its heaviest and its second
    heaviest alone would have led to, from the same cache.

    steps: as a reply of soft thinking tells them in `stats.details["thinking"]`.
    """
    sequence, found = network.new_sequence(), []
    yield Forward(sequence, list(prompt), logits=Rows.NONE)
    for step in steps:
        ids = step["ids"]
        alone: tuple[Scores, ...] = yield tuple(
            Forward(sequence, [token], slots=Slots.NOWHERE, logits=Rows.LAST) for token in ids[:2]
        )
        mixed: Scores = yield Forward(sequence, mixture(network, ids, step["weights"]), logits=Rows.LAST)
        if len(ids) > 1:
            row, (first, second) = mixed.logits[0], (answer.logits[0] for answer in alone)
            found.append(Threads(divergence(row, first), divergence(row, second), divergence(first, second)))
    return found


def lens_overlaps(
    network: Scorer, prompt: Sequence[int], first: int, second: int, share: float = 0.6, top: int = 10
) -> Generator[Any, Any, list[tuple[float, float]]]:
    """Of each layer, how much of what the head reads there after a mixture it reads after each of its two tokens alone: the
    shares of the `top` likeliest tokens that are the same.

    share: of the first token in the mixture.
    """
    sequence, layers = network.new_sequence(), tuple(range(network.layers))
    yield Forward(sequence, list(prompt), logits=Rows.NONE)
    mixed: Scores = yield Forward(
        sequence,
        mixture(network, [first, second], [share, 1 - share]),
        slots=Slots.NOWHERE,
        taps=layers,
        logits=Rows.NONE,
    )
    alone: tuple[Scores, ...] = yield tuple(
        Forward(sequence, [token], slots=Slots.NOWHERE, taps=layers, logits=Rows.NONE) for token in (first, second)
    )
    head = network.head()

    def read(scores: Scores, layer: int) -> set[int]:
        likeliest: list[int] = head(scores.hidden[layer])[0].topk(top).indices.tolist()
        return set(likeliest)

    found = []
    for layer in layers:
        seen, (one, other) = read(mixed, layer), (read(answer, layer) for answer in alone)
        found.append((len(seen & one) / top, len(seen & other) / top))
    return found
