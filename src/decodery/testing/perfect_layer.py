"""Approximate joint sampling with a perfect layer: on a table of laws, where what the model would say next is known."""

from __future__ import annotations

from collections.abc import Sequence as Listing
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from decodery.diffusion.approximate_joint_sampling.layer import SamplerNetwork
from decodery.diffusion.approximate_joint_sampling.method import LAYER, ApproximateJointSampling
from decodery.models.forward import POST_NORM, Forward, Scores
from decodery.testing.denoisers import TabularDenoiser

if TYPE_CHECKING:
    from decodery.engine.request import Request


class RowsOfTable(TabularDenoiser):
    """A table of conditional laws whose hidden rows are its scores, and whose embeddings are units."""

    def run_pass(self, forwards: Listing[Forward]) -> list[Scores]:
        everything = [Forward(f.sequence, f.tokens, attend=f.attend, slots=f.slots, taps=f.taps) for f in forwards]
        return [
            Scores(answer.logits[list(forward.logit_rows())], {POST_NORM: answer.logits})
            for forward, answer in zip(forwards, super().run_pass(everything), strict=True)
        ]

    def embed(self, tokens: Tensor) -> Tensor:
        return nn.functional.one_hot(tokens, self.vocabulary).float()


class ExactRows(nn.Module):
    """In place of a layer: reads the canvas behind `prompt` tokens off the embeddings, and gives the table's own rows."""

    def __init__(self, table: TabularDenoiser, prompt: int):
        super().__init__()
        self.table, self.prompt = table, prompt

    def forward(self, embedded: Tensor, rows: Tensor) -> Tensor:
        found = rows.clone()
        for canvas, own in zip(embedded.argmax(-1).tolist(), found, strict=True):
            scores = self.table.score((), tuple(canvas[self.prompt :])).float()
            own[self.prompt :] = nn.functional.pad(scores, (0, 1), value=50.0)  # the mask's, as the table gives it
        return found


class WithExactRows(ApproximateJointSampling):
    """The method with a perfect layer; of `RowsOfTable` alone."""

    @property
    def needs_layer(self) -> bool:
        return False

    def sampler(self, request: Request) -> SamplerNetwork:
        table = request.host.network
        assert isinstance(table, RowsOfTable)
        module = ExactRows(table, len(request.prompt))
        return SamplerNetwork(module, table.vocabulary, torch.Tensor.clone, table.vocabulary, LAYER)
