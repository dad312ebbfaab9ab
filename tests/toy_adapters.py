"""Adapters for networks that none is shipped for."""

from __future__ import annotations

from collections.abc import Sequence as Listing
from typing import Any

import pytest
import torch

from decodery.engine.request import Request
from decodery.models.forward import POST_NORM, Forward, Scores
from decodery.models.scorer import Scorer
from decodery.models.sequence import NothingKept, Sequence
from decodery.speculative.kangaroo.adapter import WEIGHTS, Adapter, empty_adapter
from decodery.speculative.kangaroo.method import Kangaroo


def toy_adapter(network: Scorer) -> Adapter:
    """An adapter of kangaroo with random weights, for a network that none is shipped for."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": network.hidden,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": network.hidden,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
    }
    model = empty_adapter(shape)
    weights = {name: model.get_parameter(place).detach() * 9 for name, place in WEIGHTS.items()}
    return Adapter(weights, 1, shape, torch.arange(0, network.vocabulary, 2), network.fingerprint(), {})


class Passing(Scorer):
    """An adapter that changes nothing."""

    def __init__(self, hidden: int):
        self.hidden, self.vocabulary, self.layers, self.context, self.name = hidden, 1, 1, 1 << 30, "passing"

    def new_sequence(self) -> Sequence:
        return Sequence(self, NothingKept())

    def run_pass(self, forwards: Listing[Forward]) -> list[Scores]:
        answers = []
        for forward in forwards:
            rows = torch.as_tensor(forward.tokens)
            answers.append(Scores(torch.empty(0, 1), {POST_NORM: rows}))
            forward.sequence.write(forward.written_slots(), [-1] * forward.count, forward.row_positions())
        return answers


def use_toy_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let kangaroo find one for every network."""
    found = Kangaroo._adapter

    def adapter(self: Kangaroo, request: Request) -> Adapter:
        if self.adapter != "auto":
            return found(self, request)
        return request.remember(("toy adapter",), lambda: toy_adapter(request.host.network), everywhere=True)

    network = Adapter.network
    monkeypatch.setattr(Kangaroo, "_adapter", adapter)
    monkeypatch.setattr(  # the rows of scorers without a network are numbers of prefixes, which nothing may change
        Adapter, "network", lambda self, target: network(self, target) if target.timed else Passing(target.hidden)
    )
