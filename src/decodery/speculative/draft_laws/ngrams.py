"""Draft laws without a network: counts of the running text, and what the target's scores have taught."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, TypeAlias

from decodery._lazy import torch
from decodery.models.forward import Forward
from decodery.speculative.draft import ROOT
from decodery.speculative.draft_laws.base import DraftLaws, Path
from decodery.speculative.loop import Round

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.engine.request import Request
    from decodery.models.forward import Scores

Context: TypeAlias = tuple[int, ...]
"""The last one or two tokens."""

FLOOR = 1e-6
"""Share of the uniform law in every law, so that each token can be drafted."""
RECYCLED = 64
"""Successors kept per context of what the target scored."""
TEXT_ROWS = 8
"""The counts of single tokens weigh as much as so many laws of the target."""
ESCAPE = 2
"""A different successor counts so often for the order below where that order knows the target's scores; else once."""


class NgramLaws(DraftLaws):
    """Interpolated trigram, bigram and unigram counts of prompt and output, with full support.

    Each order has the weight n / (n + d) of Witten and Bell (1991), where n counts the context and d its different
    successors; the rest of the mass goes to the order below, down to the uniform law. recycle: also learn from the
    target's scores of verified nodes: the likeliest successors of each context, as token recycling keeps them, come
    between its counts and the order below, and the mean of the target's laws joins the counts of single tokens. What is
    learned is the request's alone.
    """

    def __init__(self, request: Request, recycle: bool = True):
        super().__init__(request)
        self._recycle = recycle
        self._vocabulary = request.host.network.vocabulary
        self._text: list[int] = []
        self._unigrams = torch.zeros(self._vocabulary, dtype=torch.float64)
        self._different = 0
        self._mean = torch.zeros(self._vocabulary, dtype=torch.float64)
        self._rows = 0
        """How many laws of the target `_mean` is the mean of."""
        self._counts: dict[Context, dict[int, int]] = {}
        self._scored: dict[Context, tuple[Tensor, Tensor]] = {}
        """Context -> ids and probabilities of the target's likeliest successors, as last scored."""

    def root(self, tokens: Sequence[int]) -> Generator[Forward, Scores, Tensor | None]:
        yield from ()  # no network, no forwards
        self._read(tokens[len(self._text) :])
        return self._law(())

    def after(self, paths: Sequence[Path]) -> Generator[Forward, Scores, list[Tensor | None]]:
        yield from ()
        laws = {path: self._law(path) for path in dict.fromkeys(paths)}
        return [laws[path] for path in paths]

    def _read(self, tokens: Sequence[int]) -> None:
        """Count what was committed."""
        for token in tokens:
            self._different += int(self._unigrams[token] == 0)
            self._unigrams[token] += 1
            for context in self._contexts(()):
                successors = self._counts.setdefault(context, {})
                successors[token] = successors.get(token, 0) + 1
            self._text.append(token)

    def _contexts(self, path: Path) -> list[Context]:
        """The last token and the last two, as far as there are some, of the text followed by `path`."""
        end = (*self._text[-2:], *path)[-2:]
        return [end[-length:] for length in (1, 2) if len(end) >= length]

    def _law(self, path: Path) -> Tensor | None:
        return self.processed(self.probabilities(path).log().float(), path)

    def probabilities(self, path: Path = ()) -> Tensor:
        """The interpolated probabilities [vocabulary] float64 after the text and `path`, before any processing."""
        total = len(self._text)
        weight = total / max(total + self._different, 1)
        law = self._unigrams * (weight / max(total, 1)) + (1 - weight) / self._vocabulary
        law += (self._mean - law) * (self._rows / (self._rows + TEXT_ROWS))
        escape = ESCAPE if self._recycle else 1
        for context in self._contexts(path):
            scored = self._scored.get(context)
            if scored is not None:
                ids, probabilities = scored
                law *= max(1 - float(probabilities.sum()), 0)
                law[ids] += probabilities
            counts = self._counts.get(context)
            if counts is not None:
                seen, different = sum(counts.values()), escape * len(counts)
                law *= different / (seen + different)
                law[list(counts)] += torch.tensor(list(counts.values()), dtype=law.dtype) / (seen + different)
        return (1 - FLOOR) * law / law.sum() + FLOOR / self._vocabulary

    def observe(self, round: Round) -> None:
        if not self._recycle:
            return
        from decodery.sampling.top import top_ids

        laws = round.logits.softmax(dim=-1).cpu()
        self._rows += len(laws)
        self._mean += (laws.sum(dim=0).double() - len(laws) * self._mean) / self._rows
        ids = top_ids(laws, RECYCLED)
        likely = laws.gather(1, ids).double()
        before = tuple(round.tokens[-2:])
        for row, node in enumerate(range(ROOT, len(round.draft))):
            path = tuple(round.draft.tokens[i] for i in round.draft.path(node))
            end = (*before, *path)[-2:]
            for length in range(1, len(end) + 1):
                self._scored[end[-length:]] = ids[row], likely[row]
