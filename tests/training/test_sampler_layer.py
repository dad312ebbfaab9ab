"""The recipe of sampler layers: what it records, which states it draws, what it learns, and what it leaves alone."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from decodery.diffusion.approximate_joint_sampling.layer import SamplerLayer, TrainedLayer
from decodery.errors import BadInput
from decodery.loading import load_tokenizer
from decodery.models.catalogue import ARTIFACTS
from decodery.training import sampler_layer
from decodery.training.denoisers import Denoiser, list_prompts, prompts_for, story_prompts
from decodery.training.networks import Shape, SmallLlama
from decodery.training.sampler_layer import (
    LayerRecipe,
    LayerTrainer,
    Trajectory,
    depth_weights,
    divergence,
    main,
    make,
    measured,
    states,
    target,
    trajectories,
    unrolled,
)

MASK, VOCABULARY = 11, 12
RECIPE = LayerRecipe(canvases=96, canvas=6, depth=2, steps=40, batch=32, rate=3e-3, warmup=5, held_out=32)
PROMPTS = [[1 + place % 5, 2, 1 + place % 3][: 2 + place % 2] for place in range(RECIPE.canvases + RECIPE.held_out)]


def _base(seed=0):
    """A random network, sharp enough that what stands elsewhere matters."""
    network = SmallLlama(Shape(VOCABULARY, width=24, layers=2, heads=2, theta=100.0), seed)
    generator = torch.Generator().manual_seed(seed)
    for weight in network.parameters():
        if weight.dim() == 2:
            weight.data = torch.randn(weight.shape, generator=generator) * 1.5 * weight.shape[1] ** -0.5
    return Denoiser(network, MASK, (MASK, 10))


@pytest.fixture(scope="module")
def data():
    return trajectories(_base(), PROMPTS, RECIPE.canvas, 1.0, 0)


# Trajectories and states


@torch.no_grad()
def test_a_trajectory_is_drawn_one_by_one_where_the_law_has_the_lowest_entropy(data):
    base = _base()
    for one, prompt in zip(data[:6], PROMPTS, strict=False):
        assert one.tokens[: one.prompt] == prompt
        assert sorted(one.order) == list(range(RECIPE.canvas))
        assert not {MASK, 10} & set(one.tokens[one.prompt :])
        entropies = []
        for step in range(RECIPE.canvas):
            shown = [
                *prompt,
                *[t if s < step else MASK for t, s in zip(one.tokens[one.prompt :], one.order, strict=True)],
            ]
            laws = base.scores(base.network(torch.tensor([shown]))[0, one.prompt :])
            entropy = torch.special.entr(laws.exp()).sum(-1)
            entropy[[s < step for s in one.order]] = torch.inf
            assert int(entropy.argmin()) == one.order.index(step)
            entropies.append(float(entropy.min()))
        sure = [entropy <= sampler_layer.SURE for entropy in entropies]
        assert one.certain == (sure.index(False) if False in sure else RECIPE.canvas)


def test_temperature_and_seed_act():
    base = _base()
    same = [trajectories(base, PROMPTS[:40], 6, 1.0, 3) for _ in range(2)]
    assert same[0] == same[1] != trajectories(base, PROMPTS[:40], 6, 1.0, 4)
    cold = trajectories(base, PROMPTS[:40], 6, 0.01, 3)
    assert [one.tokens for one in cold] == [one.tokens for one in trajectories(base, PROMPTS[:40], 6, 0.01, 4)]


def test_states_follow_each_other_and_leave_something_masked(data):
    generator = torch.Generator().manual_seed(0)
    for depth in (1, 3):
        given = states(data, depth, generator)
        for further in range(depth + 1):
            assert given.hidden(further).sum(1).tolist() == (6 - given.start - further).tolist()
            assert (given.hidden(further) <= given.hidden(0)).all()
        assert int(given.hidden(depth).sum(1).min()) >= 1
        assert set(given.start.tolist()) == set(range(6 - depth))


def test_most_states_come_after_the_certain_steps():
    late = [Trajectory([1, 2, 3, 4, 5, 6, 7, 8], 2, [0, 1, 2, 3, 4, 5], 3)] * 400
    start = states(late, 1, torch.Generator().manual_seed(0)).start
    assert 0.05 < float((start < 3).float().mean()) < 0.2  # three of five places of the fifth that goes anywhere
    never = [replace(late[0], certain=6)] * 50
    assert set(states(never, 1, torch.Generator().manual_seed(0)).start.tolist()) == set(range(5))


# The loss


def test_depths_are_drawn_as_published():
    assert depth_weights(3).tolist() == pytest.approx([0.481, 0.292, 0.227], abs=1e-3)


def test_the_loss_is_the_divergence_from_the_model_s_law_after_the_tokens(data):
    base, generator = _base(), torch.Generator().manual_seed(0)
    given = states(data[:4], 2, generator)
    layer = SamplerLayer(base.network.shape)
    layer.out_norm.weight.data.fill_(0.5)
    layer.mix.weight.data += 0.1  # at first it takes nothing from the embeddings
    rows, hidden = unrolled(base, layer, given, 2), given.hidden(2)
    found = divergence(base, rows, hidden, target(base, given, 2))
    wanted = []
    for row in range(4):
        shown = given.batch.tokens[row].masked_fill(hidden[row], MASK)[None, : given.batch.lengths[row]]
        full = base.scores(base.network(shown))[0]
        for place in hidden[row].nonzero().flatten().tolist():
            law = base.scores(rows[row, place])
            known = [token for token in range(VOCABULARY) if token not in (MASK, 10)]
            p, q = full[place][known], law[known]
            wanted.append(float((p.exp() * (p - q)).sum()))
    assert found.tolist() == pytest.approx(wanted, abs=1e-4)
    found.mean().backward()
    assert all(float(weight.grad.abs().sum()) > 0 for weight in layer.parameters())
    # Both applications of the layer have learned: the first one's tokens reach it through the second.
    once = unrolled(base, layer, given, 1)
    assert not torch.equal(once, rows)


def test_it_learns_and_leaves_the_model_as_it_is(data):
    base = _base()
    before = {name: weight.clone() for name, weight in base.network.named_parameters()}
    trainer = LayerTrainer(base, replace(RECIPE, steps=150), data[RECIPE.held_out :])
    assert torch.equal(trainer.layer.block.mlp.up_proj.weight, base.network.model.layers[-1].mlp.up_proj.weight)
    for _ in range(150):
        trainer.advance()
    assert all(torch.equal(weight, before[name]) for name, weight in base.network.named_parameters())
    found = measured(base, trainer.layer, data[: RECIPE.held_out], 2, 0, 2000)
    assert found["1"]["states"] >= 2000
    for numbers in found.values():
        assert numbers["difference"][0] > 0
        assert numbers["lower_by"] == pytest.approx(1 - numbers["layer"] / numbers["stale"], abs=1e-3)
    untrained = measured(base, SamplerLayer(base.network.shape), data[: RECIPE.held_out], 2, 0, 2000)
    assert untrained["1"]["stale"] == found["1"]["stale"]
    assert abs(untrained["1"]["lower_by"]) < 0.05


def test_the_rate_rises_and_falls():
    recipe = LayerRecipe(steps=100, warmup=10, rate=1.0)
    assert [recipe.rate_at(0), recipe.rate_at(9), recipe.rate_at(10)] == [0.1, 1.0, 1.0]
    assert recipe.rate_at(99) == pytest.approx(0.05, abs=0.011)
    trainer = LayerTrainer(_base(), recipe, [Trajectory([1, 2, 3, 4, 5], 2, [0, 1, 2], 0)])
    trainer.advance()
    assert trainer.optimizer.param_groups[0]["lr"] == 0.1


# The whole recipe


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(data, tmp_path, monkeypatch):
    monkeypatch.setattr(sampler_layer, "CHECKPOINT_STEPS", 5)
    recipe = replace(RECIPE, steps=12)
    whole, first, second = (LayerTrainer(_base(), recipe, data) for _ in range(3))
    whole.train(_folder(tmp_path / "whole"), "mine")

    def stop(stage, done, total, note=""):
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.train(_folder(tmp_path / "parts"), "mine", stop)
    second.train(tmp_path / "parts", "mine")
    assert second.step == 12
    for one, other in zip(whole.layer.parameters(), second.layer.parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(BadInput, match="another recipe"):
        LayerTrainer(_base(), recipe, data).train(tmp_path / "parts", "other")


def _folder(path):
    path.mkdir()
    return path


def test_it_writes_a_layer_and_its_card(tmp_path):
    recipe, stages = replace(RECIPE, steps=3, measured=100), set()
    about = {"model": "toy", "fingerprint": "mine", "command": "decodery train sampler-layer"}
    card = make(
        _base(), PROMPTS, recipe, tmp_path / "work", tmp_path / "layer", about, lambda *told: stages.add(told[0])
    )
    assert stages == {"filling canvases", "training"}
    assert json.loads((tmp_path / "layer" / "card.json").read_text()) == json.loads(json.dumps(card))
    assert card["data"].startswith("96 canvases of 6 positions")
    trained = TrainedLayer.read(tmp_path / "layer")
    assert (trained.fingerprint, trained.depth) == ("mine", 2)
    assert card["metrics"]["depth"] == measured(_base(), trained.module, _recorded(tmp_path)[:32], 2, 0, 100)


def _recorded(path):
    return [Trajectory(**one) for one in json.loads((path / "work" / "trajectories-0000.json").read_text())]


def test_prompts(tmp_path):
    tokenizer = load_tokenizer("diffusion-lists")
    lists = list_prompts(30, 0)
    assert lists == list_prompts(40, 0)[:30] != list_prompts(30, 1)
    assert all(tokenizer.decode(ids).strip().endswith("=") for ids in lists)
    folder = ARTIFACTS / "diffusion-stories"
    stories = story_prompts(5, 0, folder)
    assert len({tuple(ids) for ids in stories}) == 5
    path = tmp_path / "prompts.txt"
    path.write_text("Once upon a time\nOne day\n")
    given = prompts_for("diffusion-stories", folder, path, 5, 0)
    assert len(given) == 5
    assert len({tuple(ids) for ids in given}) == 2
    assert prompts_for("diffusion-stories", folder, None, 5, 0) == stories
    assert prompts_for("diffusion-lists", folder, None, 30, 0) == lists
    with pytest.raises(BadInput, match="--prompts"):
        prompts_for("mine", folder, None, 5, 0)


def test_another_model_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--model", "stories-twin", "--folder", str(tmp_path), "--artifact", "x"])
    assert ended.value.code == 2
    assert "no small masked-diffusion model" in capsys.readouterr().err
