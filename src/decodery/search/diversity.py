"""How alike a text would be to those that another group of beams has chosen, for each token that might come next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from decodery._lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.engine.request import Request
    from decodery.search.beams import Beam

KINDS = ("hamming", "ngram", "cumulative", "embedding", "ngram-embedding")
EMBEDDED = KINDS[3:]
"""Those that compare embeddings."""
Likeness = Callable[["Beam", "Sequence[Beam]"], "Tensor"]
"""A beam, what an earlier group has kept at this step -> how alike each next token makes them [vocabulary]."""


def likeness(request: Request, kind: str, ngram: int, fading: float) -> Likeness:
    """The likeness of a kind (`KINDS`) among texts of a request.

    hamming: how many of the others took the token at this step. ngram: how often the n-gram that the token completes stands in
    the others, whose n-grams may begin in the prompt. cumulative: exp(-d / fading), d being at how many positions the text
    differs from the others, summed over them. embedding, ngram-embedding: as hamming and ngram, with the cosine of the input
    embeddings (of an n-gram: their mean) in place of 1 for what is the same and 0 for what is not.
    """
    size, before = request.network.vocabulary, len(request.prompt)

    def counts(others: Sequence[Beam]) -> Tensor:
        chosen = torch.tensor([other.output.tokens[-1] for other in others])
        return torch.bincount(chosen, minlength=size).float().to(request.network.device)

    def hamming(beam: Beam, others: Sequence[Beam]) -> Tensor:
        return counts(others)

    def cumulative(beam: Beam, others: Sequence[Beam]) -> Tensor:
        text = beam.output.new_tokens
        apart = len(others) + sum(
            one != two for other in others for one, two in zip(text, other.output.new_tokens, strict=False)
        )
        return torch.exp((counts(others) - apart) / fading)

    def context_of(beam: Beam) -> list[int]:
        tokens = beam.output.tokens
        return tokens[max(0, len(tokens) - ngram + 1) :]

    def ngrams(beam: Beam, others: Sequence[Beam]) -> Tensor:
        context = context_of(beam)
        ending = [gram[-1] for other in others for gram in _ngrams(other, ngram, before) if gram[:-1] == context]
        found = torch.bincount(torch.tensor(ending, dtype=torch.long), minlength=size)
        return found.float().to(request.network.device)

    if kind in EMBEDDED:
        rows = request.network.embed(torch.arange(size)).float()
        normed = torch.nn.functional.normalize(rows, dim=-1)

        def embedding(beam: Beam, others: Sequence[Beam]) -> Tensor:
            return normed @ normed[[other.output.tokens[-1] for other in others]].sum(dim=0)

        def ngram_embedding(beam: Beam, others: Sequence[Beam]) -> Tensor:
            grams = [rows[gram].mean(dim=0) for other in others for gram in _ngrams(other, ngram, before)]
            whole = torch.nn.functional.normalize(torch.stack(grams), dim=-1).sum(dim=0)
            context = context_of(beam)
            own = (rows + rows[context].sum(dim=0)) / (len(context) + 1)
            return torch.nn.functional.normalize(own, dim=-1) @ whole

        return embedding if kind == "embedding" else ngram_embedding
    return {"hamming": hamming, "cumulative": cumulative, "ngram": ngrams}[kind]


def _ngrams(beam: Beam, size: int, before: int) -> list[list[int]]:
    """The n-grams of a text that end with one of its new tokens; shorter ones where not even the prompt has more."""
    tokens = beam.output.tokens
    return [tokens[max(0, end - size) : end] for end in range(before + 1, len(tokens) + 1)]
