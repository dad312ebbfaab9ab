"""Layer ranges, skipped layers and hidden rows: as in a model with these layers alone, and as transformers reports them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_models import VOCABULARY, network_of, random_ids, reference_logits, shared_model, worst

from decodery.models.forward import POST_NORM, Forward, Layers, Rows
from decodery.models.scorer import Scorer

BOUND = 1e-4
both_paths = pytest.mark.parametrize("path", ["eager", "blocks"])
families = pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3", "gemma2", "gpt2", "mistral"])


def without_layers(model: Any, skipped: set[int]) -> Any:
    """A copy of a model from which layers were deleted."""
    model = copy.deepcopy(model)
    base, config = model.base_model, model.config
    name = "h" if hasattr(base, "h") else "layers"
    kept = [i for i in range(config.num_hidden_layers) if i not in skipped]
    setattr(base, name, torch.nn.ModuleList([getattr(base, name)[i] for i in kept]))
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i] for i in kept]
    config.num_hidden_layers = len(kept)
    return model


@families
@both_paths
@pytest.mark.parametrize("skip", [{0}, {3}, {1, 2}, {0, 2, 3}], ids=str)
def test_skipped_layers_equal_a_model_without_them(family: str, path: str, skip: set[int]) -> None:
    network, ids = network_of(family, path), random_ids(20, seed=1)
    expected = reference_logits(without_layers(shared_model(family), skip), ids)
    layers = Layers(skip=frozenset(skip))
    sequence = network.new_sequence()
    first = network.run([Forward(sequence, ids[:15], layers=layers)])[0].logits
    second = network.run([Forward(sequence, ids[15:], layers=layers)])[0].logits
    assert worst(torch.cat([first, second]), expected) < BOUND
    assert float((expected - reference_logits(shared_model(family), ids)).abs().max()) > 0.1


@families
@both_paths
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_early_exit_equals_a_shorter_model(family: str, path: str, stop: int) -> None:
    network, ids = network_of(family, path), random_ids(16, seed=2)
    expected = reference_logits(without_layers(shared_model(family), set(range(stop, 4))), ids)
    found = network.run([Forward(network.new_sequence(), ids, layers=Layers(0, stop))])[0].logits
    assert worst(found, expected) < BOUND


@families
@both_paths
@pytest.mark.parametrize("split", [1, 2, 3])
def test_two_parts_of_the_layers_equal_the_whole(family: str, path: str, split: int) -> None:
    """The first layers draft; their hidden rows go on through the others, into the cache rows that are there already."""
    network, ids = network_of(family, path), random_ids(20, seed=3)
    expected = reference_logits(shared_model(family), [*ids, 8])
    sequence = network.new_sequence()
    logits = []
    for start, stop in ((0, 14), (14, 15), (15, 20)):
        lower = Forward(sequence, ids[start:stop], layers=Layers(0, split), taps=(split - 1,), logits=Rows.NONE)
        hidden = network.run([lower])[0].hidden[split - 1]
        upper = Forward(sequence, hidden, slots=range(start, stop), layers=Layers(split))
        logits.append(network.run([upper])[0].logits)
    assert worst(torch.cat(logits), expected[:20]) < BOUND
    assert sequence.length == 20
    assert worst(network.run([Forward(sequence, [8])])[0].logits[0], expected[20]) < BOUND


@both_paths
def test_going_on_through_later_layers_keeps_the_tokens_of_the_rows(path: str) -> None:
    """Cached tokens equal committed tokens, whichever way their rows were computed."""
    network, ids = network_of("llama", path), random_ids(6, seed=4)
    sequence = network.new_sequence()
    hidden = network.run([Forward(sequence, ids, layers=Layers(0, 2), taps=(1,))])[0].hidden[1]
    network.run([Forward(sequence, hidden, slots=range(6), layers=Layers(2))])
    assert sequence.tokens == ids


def _tapped(network: Scorer, ids: list[int], taps: tuple[int, ...], **arguments: Any) -> Any:
    return network.run([Forward(network.new_sequence(), ids, taps=taps, **arguments)])[0]


@families
@both_paths
def test_hidden_rows_are_those_of_transformers(family: str, path: str) -> None:
    network, model, ids = network_of(family, path), shared_model(family), random_ids(18, seed=5)
    with torch.inference_mode():
        expected = model(torch.tensor([ids]), output_hidden_states=True, use_cache=False).hidden_states
    scores = _tapped(network, ids, (0, 1, 2, 3, POST_NORM))
    for layer in range(3):
        assert worst(scores.hidden[layer], expected[layer + 1][0]) < BOUND
    # The last entry of transformers is after the final norm.
    assert worst(scores.hidden[POST_NORM], expected[-1][0]) < BOUND
    base = model.base_model
    with torch.inference_mode():
        normed = (base.norm if hasattr(base, "norm") else base.ln_f)(scores.hidden[3][None])[0]
    assert worst(normed, expected[-1][0]) < BOUND
    assert worst(scores.logits, reference_logits(model, ids)) < BOUND


@both_paths
@pytest.mark.parametrize("logits", [Rows.NONE, Rows.LAST, [4, 2], Rows.ALL], ids=str)
def test_taps_have_all_rows_whatever_logits_are_asked(path: str, logits: Any) -> None:
    network, ids = network_of("llama", path), random_ids(9, seed=6)
    every = _tapped(network, ids, (1, POST_NORM))
    some = _tapped(network, ids, (1, POST_NORM), logits=logits)
    rows = {Rows.NONE: [], Rows.LAST: [8], Rows.ALL: list(range(9))}.get(logits) if isinstance(logits, Rows) else logits
    assert some.logits.shape == (len(rows), VOCABULARY)
    for tap in (1, POST_NORM):
        assert worst(some.hidden[tap], every.hidden[tap]) < BOUND
    if rows:
        assert worst(some.logits, every.logits[rows]) < BOUND


@both_paths
def test_each_of_a_pack_gets_the_taps_it_asked_for(path: str) -> None:
    network = network_of("gemma3", path) if path == "eager" else network_of("llama", path)
    first, second = random_ids(5, seed=7), random_ids(8, seed=8)
    asks = [
        Forward(network.new_sequence(), first, taps=(2,)),
        Forward(network.new_sequence(), second),
        Forward(network.new_sequence(), second, taps=(POST_NORM, 0)),
    ]
    answers = network.run(asks)
    assert [set(answer.hidden) for answer in answers] == [{2}, set(), {POST_NORM, 0}]
    assert worst(answers[0].hidden[2], _tapped(network, first, (2,)).hidden[2]) < BOUND
    for tap in (POST_NORM, 0):
        assert worst(answers[2].hidden[tap], _tapped(network, second, (tap,)).hidden[tap]) < BOUND


@both_paths
def test_caches_of_layers_that_did_not_run_are_not_written(path: str) -> None:
    network, ids = network_of("llama", path), random_ids(4, seed=9)
    sequence = network.new_sequence()
    network.run([Forward(sequence, ids, layers=Layers(0, 4, frozenset({1})))])
    for layer in range(4):
        keys, values = sequence.cache.layer(layer)  # type: ignore[attr-defined]
        written = bool(keys[:, :4].abs().sum() > 0) and bool(values[:, :4].abs().sum() > 0)
        assert written == (layer != 1)
