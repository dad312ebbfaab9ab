"""Models cut down before their weights are read: what is left computes as it did in the whole."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from test_native import make
from transformers import AutoModelForCausalLM

from decodery.models.reading import StoredWeights, cut, empty_model, fill
from decodery.models.twin import forget_weights, shared

TOKENS, NEURONS = 64, 32


@pytest.fixture
def whole(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    make(getattr(request, "param", "llama")).save_pretrained(tmp_path)
    return AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)


def filled(folder: Path, layers: int, tokens: int, neurons: int) -> Any:
    small = empty_model(folder, torch.float32)
    cut(small, layers, tokens, neurons)
    fill(small, StoredWeights(folder))
    return small


@pytest.mark.parametrize("whole", ["llama", "qwen2"], indirect=True)
def test_the_first_layers_tokens_and_neurons(whole: Any, tmp_path: Path) -> None:
    small = filled(tmp_path, 1, TOKENS, NEURONS)
    assert small.config.intermediate_size == NEURONS
    assert small.config.vocab_size == TOKENS
    with torch.no_grad():
        whole.base_model.layers = whole.base_model.layers[:1]
        for part in whole.base_model.layers:
            assert part.mlp.down_proj.in_features > NEURONS
            part.mlp.down_proj.weight[:, NEURONS:] = 0
        whole.config.num_hidden_layers = 1
        ids = torch.arange(1, 20)[None]
        expected = whole(ids).logits[..., :TOKENS]
        assert torch.allclose(small(ids).logits, expected, atol=1e-5)
    again = type(small)(small.config)  # the configuration says what is there
    assert {name: weight.shape for name, weight in again.named_parameters()} == {
        name: weight.shape for name, weight in small.named_parameters()
    }
    for layer in small.base_model.layers:
        assert (layer.mlp.gate_proj.out_features, layer.mlp.up_proj.out_features) == (NEURONS, NEURONS)
        assert layer.mlp.down_proj.in_features == NEURONS


def test_what_is_smaller_stays(whole: Any, tmp_path: Path) -> None:
    size = whole.config.intermediate_size
    small = filled(tmp_path, 4, 1 << 20, size)
    ids = torch.arange(1, 20)[None]
    assert torch.allclose(small(ids).logits, whole(ids).logits, atol=1e-5)


def test_a_configuration_with_another_word_for_the_neurons_is_left_alone(whole: Any, tmp_path: Path) -> None:
    small = empty_model(tmp_path, torch.float32)
    small.config.intermediate_size += 16
    cut(small, 1, TOKENS, NEURONS)
    assert small.base_model.layers[0].mlp.gate_proj.out_features == whole.config.intermediate_size


def test_forgotten_weights_are_free_at_once() -> None:
    model = make("llama")
    twin = shared(model, "eager")
    storages = [weakref.ref(weight.untyped_storage()) for weight in model.parameters()]
    gc.disable()
    try:
        forget_weights(model)
        assert not any(storage() for storage in storages)
        assert all(weight.numel() == 0 for weight in twin.parameters())
    finally:
        gc.enable()
