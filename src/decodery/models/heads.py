"""Small trained modules over hidden rows, as scorers: their rows are packed over requests as those of any network."""

from __future__ import annotations

from collections.abc import Sequence as Listing

import torch
from torch import Tensor, nn

from decodery.models.forward import Forward, Scores
from decodery.models.scorer import Scorer
from decodery.models.sequence import NothingKept, Sequence


class HeadNetwork(Scorer):
    """A module from hidden rows [n, hidden] to scores [n, vocabulary], row by row: a draft head, an acceptance head, a probe.

    Forwards give it rows that a network's taps have brought, as embeddings. It keeps no keys and values; a head that looks back
    is a small network of its own, which takes embeddings too. module: may be trained or replaced between passes.
    """

    def __init__(self, module: nn.Module, hidden: int, vocabulary: int, name: str):
        """vocabulary: how many scores a row gets, whatever they stand for."""
        self.module, self.hidden, self.vocabulary, self.name = module, hidden, vocabulary, name
        self.layers, self.context = 1, 1 << 30

    def new_sequence(self) -> Sequence:
        return Sequence(self, NothingKept())

    def check(self, forward: Forward) -> None:
        super().check(forward)
        if not isinstance(forward.tokens, Tensor) or not forward.tokens.is_floating_point():
            raise ValueError(f"{self.name} scores hidden rows [n, {self.hidden}] and no token ids")

    def run_pass(self, forwards: Listing[Forward]) -> list[Scores]:
        rows = torch.cat([torch.as_tensor(forward.tokens) for forward in forwards])
        kind = next((weight for weight in self.module.parameters()), rows)
        with torch.inference_mode():
            scores: Tensor = self.module(rows.to(kind.device, kind.dtype)).float()
        answers = []
        for forward, own in zip(forwards, scores.split([forward.count for forward in forwards]), strict=True):
            answers.append(Scores(own[list(forward.logit_rows())]))
            forward.sequence.write(forward.written_slots(), [-1] * forward.count, forward.row_positions())
        return answers
