"""Approximate joint sampling: when it is what else, what it costs, and which law it has with a perfect layer."""

from __future__ import annotations

import logging
from collections import Counter

import pytest
import torch
from canvas_outcomes import PROMPT, assert_alone_as_in_a_batch, assert_check_decides_the_claims, decoded

from decodery.diffusion.approximate_joint_sampling import layer as layers
from decodery.diffusion.approximate_joint_sampling.layer import SamplerLayer, TrainedLayer
from decodery.diffusion.approximate_joint_sampling.method import LAYER, ApproximateJointSampling, StepSizes
from decodery.diffusion.unmasking.base import CanvasStep
from decodery.engine.registry import method as as_method
from decodery.engine.settings import Settings
from decodery.errors import BadParameter, MethodUnavailable
from decodery.models import catalogue
from decodery.models.forward import POST_NORM, Attend, Forward
from decodery.models.llama_blocks import Shape
from decodery.testing import denoising_language_model, exact_outputs, total_variation, toy_diffusion_model
from decodery.testing.perfect_layer import RowsOfTable, WithExactRows

NAME = "approximate-joint-sampling"
MASK, CANVAS = 23, 12


def _module(gain=1.0, seed=0):
    """A layer with random weights: untrained, but everything in it matters."""
    module = SamplerLayer(Shape(24, width=32, layers=2, heads=4, inner=64))
    generator = torch.Generator().manual_seed(seed)
    for weight in module.parameters():
        if weight.dim() == 2:
            weight.data = torch.randn(weight.shape, generator=generator) * 1.5 * weight.shape[1] ** -0.5
    module.out_norm.weight.data.fill_(gain)
    return module.requires_grad_(False)


@pytest.fixture
def written(tmp_path):
    """Writes a layer for the toy models and gives its folder."""

    def write(gain=1.0, depth=3, **model):
        lm = toy_diffusion_model(**model)
        TrainedLayer(_module(gain), lm.network.fingerprint(), depth, {"model": "toy"}).write(tmp_path / f"{gain}")
        return lm, tmp_path / f"{gain}"

    return write


# Limits


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_one_token_per_step_is_plain_sampling_and_needs_no_layer(temperature, written):
    lm, folder = written()
    for seed in range(2):
        for canvas in ("block_length=4", "block_length=4, cache=dual", "block_length=6, cfg_scale=0.5"):
            spec = f"masked-diffusion(value_independent=True, {canvas})"
            plain = lm.generate([*PROMPT, seed], spec, temperature=temperature, seed=seed)
            for layer in ("auto", folder):
                spec = f"{NAME}(tokens_per_step=1, layer={layer}, {canvas})"
                found = lm.generate([*PROMPT, seed], spec, temperature=temperature, seed=seed)
                assert decoded(found) == decoded(plain)
                assert LAYER not in found.stats.models


@pytest.mark.parametrize("tokens", [2, 3, 4])
def test_a_layer_without_gain_draws_from_the_forward_alone(tokens, written):
    lm, folder = written(gain=0.0)
    lm_random, random = written(gain=1.0)
    other = 0
    for seed in range(4):
        prompt = [*PROMPT, seed]
        together = f"masked-diffusion(value_independent=True, tokens_per_step={tokens}, block_length=12)"
        plain = lm.generate(prompt, together, temperature=1.0, seed=seed)
        for layer in ("off", folder):
            spec = f"{NAME}(tokens_per_step={tokens}, layer={layer})"
            assert decoded(lm.generate(prompt, spec, temperature=1.0, seed=seed)) == decoded(plain)
        found = lm_random.generate(
            prompt, f"{NAME}(tokens_per_step={tokens}, layer={random})", temperature=1.0, seed=seed
        )
        other += decoded(found) != decoded(plain)
    assert other >= 2


def test_positions_follow_the_processed_law(written):
    """After temperature, the law of lowest entropy is often another one than before."""
    lm, _ = written()
    hot = lm.generate(PROMPT, f"{NAME}(layer=off, tokens_per_step=1)", temperature=4.0, top_k=2, seed=0).stats.step_of
    raw = lm.generate(
        PROMPT, "masked-diffusion(value_independent=True, block_length=12)", temperature=4.0, top_k=2, seed=0
    )
    assert hot != raw.stats.step_of


# What it costs


@pytest.mark.parametrize("tokens", [1, 2, 3, 4])
def test_one_forward_a_step_and_a_layer_call_less_than_tokens(tokens, written):
    lm, folder = written()
    reply = lm.generate(PROMPT, f"{NAME}(tokens_per_step={tokens}, layer={folder}, block_length=6)")
    sizes = Counter(reply.stats.step_of)
    assert list(sizes.values()) == [tokens] * (6 // tokens) * 2 if 6 % tokens == 0 else sorted(sizes.values())[0] == 2
    assert reply.stats.forwards == len(sizes)
    if tokens > 1:
        assert reply.stats.models[LAYER].forwards == CANVAS - len(sizes)
        assert reply.stats.models[LAYER].rows == (CANVAS - len(sizes)) * (len(PROMPT) + CANVAS)


def test_steps_follow_the_grid_of_times_and_the_layer_s_depth(written, caplog):
    def step(number, planned=4):
        return CanvasStep(number, number, planned, 12, 0, 12, planned)

    free = StepSizes(None, None)
    assert [free.at(step(0), 12), free.at(step(1), 10), free.at(step(2), 7), free.at(step(3), 4)] == [2, 3, 3, 4]
    assert free.at(step(0, planned=40), 12) == 0
    with caplog.at_level(logging.INFO, "decodery"):
        assert StepSizes(None, 3).at(step(3), 4) == 3
    assert "3 tokens in place of 4" in caplog.text
    assert StepSizes(5, None).at(step(0), 3) == 3
    lm, folder = written(depth=2)
    whole = lm.generate(PROMPT, f"{NAME}(steps=4, layer=off)")
    assert whole.stats.forwards == 4
    capped = Counter(lm.generate(PROMPT, f"{NAME}(steps=2, layer={folder})").stats.step_of)
    assert list(capped.values()) == [3, 3, 3, 3]
    slow = lm.generate(PROMPT, f"{NAME}(steps=12, layer={folder})")
    assert slow.stats.forwards == len(set(slow.stats.step_of)) == 11  # the grid's first step is too short for a token


# Which law


def test_with_a_perfect_layer_the_law_is_the_joint_law_of_the_model():
    oracle = RowsOfTable.random(3, 3, seed=5)
    lm = denoising_language_model(oracle)
    settings = Settings(temperature=1.0, max_new_tokens=3, seed=0)
    for tokens in (1, 2, 3):
        law = exact_outputs(lm, WithExactRows(tokens_per_step=tokens), [0, 1], settings)
        assert total_variation(law, oracle.law()) < 1e-6


def test_from_the_forward_alone_it_is_not():
    """On a joint law in which the positions depend on each other: all three tokens are the same."""
    joint = torch.zeros(3, 3, 3)
    for token in range(3):
        joint[token, token, token] = 1 + token
    oracle = RowsOfTable(joint)
    lm = denoising_language_model(oracle)
    settings = Settings(temperature=1.0, max_new_tokens=3, seed=0)
    law = exact_outputs(lm, ApproximateJointSampling(tokens_per_step=3, layer="off"), [0, 1], settings)
    assert total_variation(law, oracle.law()) > 0.05
    law = exact_outputs(lm, WithExactRows(tokens_per_step=3), [0, 1], settings)
    assert total_variation(law, oracle.law()) < 1e-6


def test_a_position_is_chosen_before_its_token_is_drawn(written):
    """The same canvas, other noise: the first position of the first step is the same, and the second where that token is."""
    lm, folder = written()
    first, second = set(), {}
    for seed in range(12):
        reply = lm.generate(PROMPT, f"{NAME}(tokens_per_step=2, layer={folder})", temperature=8.0, seed=seed)
        [unmasked] = [event for event in reply.events if getattr(event, "step", None) == 0][:1]
        first.add(unmasked.offsets[0])
        second.setdefault(unmasked.tokens[0], set()).add(unmasked.offsets[1])
    assert len(first) == 1
    assert all(len(places) == 1 for places in second.values())
    assert len(second) > 1


# Against the algorithm, written down once more


def _reference(lm, prompt, tokens, module, shift=0, scale=0.0):
    """Greedy decoding as the paper has it, without an engine."""
    network = lm.network
    model = network.model

    def forward(ids):
        ask = Forward(network.new_sequence(), ids, attend=Attend.FULL, taps=(POST_NORM,))
        [scores] = network.run([ask])
        return scores.hidden[POST_NORM].clone()

    canvas, order, number = [*prompt, *[MASK] * CANVAS], {}, 0
    while MASK in canvas[len(prompt) :]:
        rows = forward(canvas)
        if scale:
            without = forward([*[MASK] * len(prompt), *canvas[len(prompt) :]])
            rows = without + (scale + 1) * (rows - without)
        if shift:
            rows = torch.cat((rows[:1], rows[:-1]))
        for draw in range(tokens):
            if draw:
                embedded = model.get_input_embeddings()(torch.tensor(canvas))
                rows = module(embedded[None], rows[None])[0]
            logits = rows @ model.get_output_embeddings().weight.T
            logits[:, MASK] = -torch.inf
            laws = logits.double().log_softmax(-1)
            entropy = torch.special.entr(laws.exp()).sum(-1)
            masked = [place for place, token in enumerate(canvas) if place >= len(prompt) and token == MASK]
            if not masked:
                break
            place = min(masked, key=lambda place: float(entropy[place]))
            canvas[place] = int(laws[place].argmax())
            order[place - len(prompt)] = (number, float(laws[place].max()))
        number += 1
    steps, logprobs = zip(*(order[offset] for offset in range(CANVAS)), strict=True)
    return canvas[len(prompt) :], list(steps), pytest.approx(list(logprobs), abs=1e-4)


@pytest.mark.parametrize(("shift", "scale"), [(False, 0.0), (True, 0.0), (False, 0.7), (True, 0.7)])
@torch.no_grad()
def test_it_decodes_as_the_algorithm_says(shift, scale, written):
    lm, folder = written(shift=shift)
    module = TrainedLayer.read(folder).module
    for start in range(4):
        prompt = [*PROMPT, start]
        reply = lm.generate(prompt, f"{NAME}(tokens_per_step=3, layer={folder}, cfg_scale={scale})", logprobs=0)
        told = [entry.raw for entry in reply.logprobs]  # of the law that each token was drawn from
        assert (reply.token_ids, reply.stats.step_of, told) == _reference(lm, prompt, 3, module, shift, scale)


# The layer


def test_every_position_sees_every_other_one_and_where_it_stands():
    module = _module()
    generator = torch.Generator().manual_seed(1)
    embedded, rows = torch.randn(2, 1, 7, 32, generator=generator)
    before = module(embedded, rows)
    changed = embedded.clone()
    changed[0, -1] += 1.0
    assert (module(changed, rows)[0, 0] - before[0, 0]).abs().max() > 1e-3
    swapped = torch.tensor([1, 0, 2, 3, 4, 5, 6])
    moved = module(embedded[:, swapped], rows[:, swapped])
    assert (moved[0, 2] - before[0, 2]).abs().max() > 1e-3
    hidden = torch.ones(1, 1, 1, 7, dtype=torch.bool)
    hidden[..., -1] = False
    assert torch.equal(module(changed, rows, hidden)[0, 0], module(embedded, rows, hidden)[0, 0])


def test_it_begins_as_almost_no_change():
    module = SamplerLayer(Shape(24, width=32, layers=2, heads=4, inner=64))
    generator = torch.Generator().manual_seed(1)
    embedded, rows = torch.randn(2, 1, 7, 32, generator=generator)
    changed = module(embedded, rows) - rows
    assert 0 < changed.abs().max() < 0.1
    module.out_norm.weight.data.zero_()
    assert torch.equal(module(embedded, rows), rows)


def test_it_is_kept_and_read(tmp_path):
    TrainedLayer(_module(), "mine", 2, {"model": "toy"}).write(tmp_path)
    read = TrainedLayer.read(tmp_path)
    assert (read.fingerprint, read.depth, read.facts) == ("mine", 2, {"model": "toy"})
    assert read.module.shape == Shape(24, width=32, layers=2, heads=4, inner=64)
    for one, other in zip(_module().parameters(), read.module.parameters(), strict=True):
        assert torch.equal(one.half().float(), other)


def test_what_ships_is_found_by_the_model_s_fingerprint(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "ARTIFACTS", tmp_path)
    for name in ("one", "two"):
        (tmp_path / f"sampler-layer-{name}").mkdir()
        (tmp_path / f"sampler-layer-{name}" / "card.json").write_text(f'{{"fingerprint": "{name}"}}')
    assert layers.shipped("two") == tmp_path / "sampler-layer-two"
    assert layers.shipped("three") is None


# What is refused


def test_what_is_refused(written, tmp_path):
    lm, folder = written(depth=2)
    with pytest.raises(MethodUnavailable, match="no sampler layer ships for toy"):
        lm.generate(PROMPT, NAME)
    with pytest.raises(MethodUnavailable, match="no sampler layer ships for toy"):
        lm.generate(PROMPT, f"{NAME}(steps=4, tokens_per_step=2)")
    with pytest.raises(MethodUnavailable, match="holds no sampler layer"):
        lm.generate(PROMPT, f"{NAME}(layer={tmp_path / 'nowhere'})")
    with pytest.raises(MethodUnavailable, match="was trained for the model"):
        toy_diffusion_model(seed=1).generate(PROMPT, f"{NAME}(layer={folder})")
    with pytest.raises(BadParameter, match="3 tokens per step at most, not for 4"):
        lm.generate(PROMPT, f"{NAME}(layer={folder}, tokens_per_step=4)")
    assert lm.generate(PROMPT, f"{NAME}(layer={folder}, tokens_per_step=3)").stats.forwards == 4
    with pytest.raises(BadParameter, match="cannot be the sampler"):
        as_method(f"sched(sampler={NAME})")


# In company


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_alone_and_in_a_batch(temperature, written):
    _, folder = written()
    assert_alone_as_in_a_batch(f"{NAME}(tokens_per_step=3, layer={folder}, block_length=6)", temperature)


def test_with_a_cache_it_goes_on_from_the_rows_that_were_left(written):
    lm, folder = written()
    caches = ("none", "prefix", "dual")

    def replies(block):
        spec = f"{NAME}(tokens_per_step=3, layer={folder}, block_length={block}"
        return [lm.generate(PROMPT, f"{spec}, cache={cache})") for cache in caches]

    full, prefix, dual = replies(6)
    assert full.stats.forwards == prefix.stats.forwards == dual.stats.forwards == 4
    assert full.stats.rows > prefix.stats.rows > dual.stats.rows
    # A block of one step is decided by the forward that opens it, which computes every row.
    full, prefix, dual = replies(3)
    assert decoded(full) == decoded(prefix) == decoded(dual)


def test_check_decides_its_claims():
    assert_check_decides_the_claims(f"{NAME}(layer=off)")
    guided = as_method(f"{NAME}(cfg_scale=0.5, cache=dual, block_length=4)")
    # Guidance and stale rows change the law, so exactness is claimed without them.
    assert guided.claims()[2].method == as_method(f"{NAME}(tokens_per_step=1, block_length=4)")
