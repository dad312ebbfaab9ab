"""Attentions and feed-forwards left out one by one, and heads on the rows of any layer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_models import VOCABULARY, network_of, random_ids, reference_logits, shared_model, worst

from decodery.models.forward import ALL_LAYERS, Forward, Layers, Slots
from decodery.models.network import TransformersNetwork

BOUND = 1e-4
both_paths = pytest.mark.parametrize("path", ["eager", "blocks"])
families = pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3", "gemma2", "gpt2", "mistral"])
SETS = [((1, 2), ()), ((), (1, 2)), ((0, 2), (2, 3)), ((0, 1, 2, 3), (1,))]


def silenced(model: Any, attention: tuple[int, ...], mlp: tuple[int, ...]) -> Any:
    """A copy of a model in which the last product of some attentions and feed-forwards is zero: they add nothing."""
    model = copy.deepcopy(model)
    base = model.base_model
    layers = base.h if hasattr(base, "h") else base.layers
    for chosen, part, products in ((attention, "attn", ("o_proj", "c_proj")), (mlp, "mlp", ("down_proj", "c_proj"))):
        for index in chosen:
            owner = next(child for name, child in layers[index].named_children() if part in name)
            product = next(getattr(owner, name) for name in products if hasattr(owner, name))
            for parameter in product.parameters():
                parameter.data.zero_()
    return model


@families
@both_paths
@pytest.mark.parametrize(("attention", "mlp"), SETS, ids=str)
def test_what_is_left_out_adds_nothing(
    family: str, path: str, attention: tuple[int, ...], mlp: tuple[int, ...]
) -> None:
    network, ids = network_of(family, path), random_ids(20, seed=1)
    expected = reference_logits(silenced(shared_model(family), attention, mlp), ids)
    layers = Layers(skip_attention=frozenset(attention), skip_mlp=frozenset(mlp))
    sequence = network.new_sequence()
    first = network.run([Forward(sequence, ids[:15], layers=layers)])[0].logits
    second = network.run([Forward(sequence, ids[15:], layers=layers)])[0].logits
    assert worst(torch.cat([first, second]), expected) < BOUND
    assert float((expected - reference_logits(shared_model(family), ids)).abs().max()) > 0.1
    whole = network.run([Forward(network.new_sequence(), ids)])[0].logits
    assert worst(whole, reference_logits(shared_model(family), ids)) < BOUND, "the network was not put together again"


@both_paths
def test_an_attention_that_is_left_out_writes_nothing(path: str) -> None:
    network, ids = network_of("llama", path), random_ids(4, seed=9)
    sequence = network.new_sequence()
    network.run([Forward(sequence, ids, layers=Layers(skip_attention=frozenset({1}), skip_mlp=frozenset({2})))])
    for layer in range(4):
        keys, values = sequence.cache.layer(layer)  # type: ignore[attr-defined]
        assert bool(keys[:, :4].any()) == bool(values[:, :4].any()) == (layer != 1)


def test_how_much_of_a_network_runs() -> None:
    assert ALL_LAYERS.sublayers(4) == 8
    assert Layers(1, 3, skip_mlp=frozenset({1})).sublayers(4) == 3
    both = Layers(skip_attention=frozenset({0, 1}), skip_mlp=frozenset({1}))
    assert both.indices(4) == (0, 2, 3), "of layer 1 nothing is left"
    assert both.sublayers(4) == 5
    assert [Layers(0, 2).completes(4), Layers(2).completes(4), ALL_LAYERS.completes(4), both.completes(4)] == [
        False, True, True, False,
    ]  # fmt: skip
    assert not Layers(skip=frozenset({3})).completes(4)
    for wrong in (Layers(skip_attention=frozenset({4})), Layers(skip_mlp=frozenset({-1}))):
        with pytest.raises(ValueError, match="layers"):
            wrong.indices(4)
    everything = frozenset(range(4))
    with pytest.raises(ValueError, match="no layer is left"):
        Layers(skip_attention=everything, skip_mlp=everything).indices(4)


@families
@both_paths
def test_the_head_speaks_for_any_layer(family: str, path: str) -> None:
    network, ids = network_of(family, path), random_ids(11, seed=2)
    scores = network.run([Forward(network.new_sequence(), ids, taps=(1, 3))])[0]
    assert worst(network.head()(scores.hidden[3]), scores.logits) < BOUND
    early = network.run([Forward(network.new_sequence(), ids, layers=Layers(0, 2))])[0]
    assert worst(network.head()(scores.hidden[1]), early.logits) < BOUND
    if family != "gemma2":  # whose last step is no product
        tokens = torch.tensor([5, 17, VOCABULARY - 1])
        assert worst(network.head(tokens)(scores.hidden[1]), early.logits[:, tokens]) < BOUND


@families
@both_paths
def test_what_a_row_costs(family: str, path: str) -> None:
    work = network_of(family, path).work
    assert work.head == 32 * VOCABULARY
    assert 0 < work.attention < work.layer
    assert work.layer == work.attention + work.feed_forward


def test_the_fingerprint_is_that_of_the_weights() -> None:
    marks = {network_of("llama", path).fingerprint() for path in ("eager", "blocks")}
    assert len(marks) == 1
    changed = copy.deepcopy(shared_model("llama"))
    assert TransformersNetwork(copy.deepcopy(changed), "other").fingerprint() in marks
    assert TransformersNetwork(copy.deepcopy(changed).to(torch.bfloat16), "half").fingerprint() in marks
    changed.base_model.layers[2].mlp.up_proj.weight.data.add_(0.1)
    assert TransformersNetwork(changed, "changed").fingerprint() not in marks


@both_paths
def test_a_failing_pass_puts_the_sublayers_back(path: str) -> None:
    network, ids = network_of("llama", path), random_ids(5, seed=3)
    layers = Layers(skip_attention=frozenset({1}), skip_mlp=frozenset({2}))
    before = network.run([Forward(network.new_sequence(), ids)])[0].logits
    with pytest.raises(Exception):  # noqa: B017, PT011
        network.run_pass([Forward(network.new_sequence(), [VOCABULARY + 1000], layers=layers)])
    assert worst(network.run([Forward(network.new_sequence(), ids, slots=Slots.NOWHERE)])[0].logits, before) < BOUND
