"""The recipe of dParallel: what is hidden, what is lowered, what it learns from, and what it writes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from decodery.errors import BadInput
from decodery.models.catalogue import ARTIFACTS
from decodery.training import dparallel
from decodery.training.denoisers import Denoiser
from decodery.training.dparallel import (
    DistillationRecipe,
    DistillationTrainer,
    by_entropy,
    certainty,
    distillation_loss,
    entries_beside,
    halves,
    list_metrics,
    main,
    make,
    own_answers,
    view_loss,
)
from decodery.training.masking import collate, fill
from decodery.training.networks import Shape, SmallLlama

MASK, VOCABULARY = 11, 12
RECIPE = DistillationRecipe(answers=60, canvas=6, block=6, steps=12, batch=16, rate=3e-3)
PROMPTS = [[1 + place % 5, 2, 1 + place % 3][: 2 + place % 2] for place in range(RECIPE.answers)]


def _model(seed=0):
    network = SmallLlama(Shape(VOCABULARY, width=24, layers=2, heads=2, theta=100.0), seed)
    generator = torch.Generator().manual_seed(seed)
    for weight in network.parameters():
        if weight.dim() == 2:
            weight.data = torch.randn(weight.shape, generator=generator) * 1.5 * weight.shape[1] ** -0.5
    return Denoiser(network, MASK, (MASK, 10))


@pytest.fixture(scope="module")
def data():
    model = _model()
    answers = fill(model.network, PROMPTS, 6, MASK, banned=model.banned)
    return [(len(prompt), [*prompt, *answer]) for prompt, answer in zip(PROMPTS, answers, strict=True)]


# What is hidden


def test_a_block_is_hidden_in_two_halves_and_all_behind_it():
    rows = [(2 + place % 3, [1] * (2 + place % 3 + 7)) for place in range(300)]
    batch = collate(rows)
    parts = halves(batch, 3, 0.5, torch.Generator().manual_seed(0))
    assert not (parts.first & parts.second).any()
    assert not ((parts.first | parts.second) & parts.later).any()
    starts = []
    for (prompt, _), first, second, later in zip(rows, parts.first, parts.second, parts.later, strict=True):
        active = (first | second).nonzero().flatten()
        start = int(active[0]) - prompt
        end = min(start + 3, 7)
        assert active.tolist() == list(range(prompt + start, prompt + end))
        assert later.nonzero().flatten().tolist() == list(range(prompt + end, prompt + 7))
        starts.append(start)
    assert {start: starts.count(start) // 60 for start in starts} == {0: 1, 3: 1, 6: 1}  # the last one is shorter
    active = parts.first | parts.second
    assert float(parts.first[active].float().mean()) == pytest.approx(0.5, abs=0.06)
    few = halves(batch, 3, 0.1, torch.Generator().manual_seed(0))
    assert float(few.first.float().sum() / active.sum()) == pytest.approx(0.1, abs=0.06)
    whole = halves(batch, 7, 0.5, torch.Generator().manual_seed(0))
    assert torch.equal(whole.first | whole.second, batch.canvas)


def test_every_row_has_a_layout_of_its_own(data):
    parts = halves(collate(data), 6, 0.5, torch.Generator().manual_seed(0))
    offsets = {tuple(row[prompt : prompt + 6].tolist()) for row, (prompt, _) in zip(parts.first, data, strict=True)}
    assert len(offsets) > 20


# What is lowered


def test_the_certainty_is_an_entropy_at_a_temperature():
    logits, labels = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    assert float(certainty(logits, labels, 0.5)) == pytest.approx(0.3653, abs=1e-4)
    assert float(certainty(logits, labels, 1.0)) == pytest.approx(0.5822, abs=1e-4)
    two = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    alone = [float(certainty(two[place : place + 1], labels, 1.0)) for place in range(2)]
    assert float(certainty(two, torch.tensor([0, 0]), 1.0)) == pytest.approx(sum(alone) / 2)


def test_only_what_is_predicted_already_becomes_more_certain():
    logits = torch.tensor([[2.0, 0.5, 0.0], [0.0, 1.0, 0.5]], requires_grad=True)
    certainty(logits, torch.tensor([0, 0]), 0.5).backward()
    assert logits.grad[0].abs().sum() > 0
    assert logits.grad[1].abs().sum() == 0
    wrong = torch.tensor([[2.0, 0.5, 0.0]], requires_grad=True)
    nothing = certainty(wrong, torch.tensor([1]), 0.5)
    assert float(nothing) == 0
    nothing.backward()
    assert wrong.grad.abs().sum() == 0


def test_the_loss_of_a_half_sees_the_rest_of_the_block_and_nothing_behind_it(data):
    model, batch = _model(), collate(data[:8])
    parts = halves(batch, 3, 0.5, torch.Generator().manual_seed(1))
    recipe = replace(RECIPE, beta=2.0, certainty_temperature=0.7)
    rows = []
    for row in range(8):
        shown = batch.tokens[row].masked_fill(parts.first[row] | parts.later[row], MASK)[: batch.lengths[row]]
        chosen = parts.first[row][: batch.lengths[row]]
        logits = model.network.head(model.network(shown[None])[0])[chosen]
        rows.append((logits, batch.tokens[row][: batch.lengths[row]][chosen]))
    logits, labels = (torch.cat(part) for part in zip(*rows, strict=True))
    cost = torch.nn.functional.cross_entropy(logits, labels)
    wanted = cost + 2.0 * certainty(logits, labels, 0.7)
    assert float(view_loss(model, batch, parts.first, parts.later, recipe)) == pytest.approx(float(wanted), abs=1e-4)
    plain = replace(recipe, beta=0.0)
    assert float(view_loss(model, batch, parts.first, parts.later, plain)) == pytest.approx(float(cost), abs=1e-4)
    alone = replace(recipe, imitation=0.0)
    assert float(view_loss(model, batch, parts.first, parts.later, alone)) == pytest.approx(
        float(wanted - cost), abs=1e-4
    )
    both = sum(float(view_loss(model, batch, part, parts.later, recipe)) for part in (parts.first, parts.second))
    drawn = distillation_loss(model, batch, torch.Generator().manual_seed(1), replace(recipe, block=3))
    assert float(drawn) == pytest.approx(both, abs=1e-4)


def test_a_half_may_be_empty(data):
    loss = distillation_loss(_model(), collate(data[:2]), torch.Generator().manual_seed(0), replace(RECIPE, share=1.0))
    assert loss.isfinite()


# Decoding while it trains


def test_by_entropy_it_fills_what_is_certain():
    model = _model()
    alone, forwards = by_entropy(model, PROMPTS[:20], 6, -1.0)
    assert forwards == [6] * 20
    whole, once = by_entropy(model, PROMPTS[:20], 6, 3.0)
    assert once == [1] * 20
    middle, some = by_entropy(model, PROMPTS[:20], 6, 1.3)
    assert 20 < sum(some) < 120
    assert alone != whole
    singly = [by_entropy(model, [prompt], 6, 1.3) for prompt in PROMPTS[:20]]
    assert [tokens[0] for tokens, _ in singly] == middle
    assert [count[0] for _, count in singly] == some
    assert not {MASK, 10} & {token for tokens in (*alone, *whole) for token in tokens}


# The recipe


def test_answers_are_the_model_s_own_and_kept(tmp_path, monkeypatch, data):
    monkeypatch.setattr(dparallel, "TOGETHER", 16)
    model, path = _model(), tmp_path / "answers.jsonl"
    first = own_answers(model, PROMPTS[:20], RECIPE, path)
    assert len(path.read_text().splitlines()) == 3
    assert [(prompt, list(tokens)) for prompt, tokens in first] == data[:20]
    longer = own_answers(
        _model(1), PROMPTS, RECIPE, path
    )  # another model would answer otherwise, if it were asked again
    assert [(p, list(t)) for p, t in longer[:20]] == data[:20]
    assert [(p, list(t)) for p, t in longer] != data
    other = own_answers(model, PROMPTS[:20], replace(RECIPE, canvas=4), path)
    assert {len(tokens) - prompt for prompt, tokens in other} == {4}


def test_it_learns_to_be_certain_of_its_own_answers(data):
    recipe = replace(RECIPE, steps=60, beta=1.0)
    entropies = {}
    for beta in (0.0, 1.0):
        model = _model()
        before = sum(by_entropy(model, PROMPTS, 6, 0.3)[1])
        trainer = DistillationTrainer(model, replace(recipe, beta=beta), data)
        losses = [trainer.advance() for _ in range(25)]
        assert sum(losses[-5:]) < sum(losses[:5])
        assert sum(by_entropy(model, PROMPTS, 6, 0.3)[1]) < before
        batch = collate(data)
        rows = model.network(batch.tokens.masked_fill(batch.canvas, MASK), batch.visible)[batch.canvas]
        entropies[beta] = float(certainty(model.network.head(rows), batch.tokens[batch.canvas], 1.0))
    assert entropies[1.0] < entropies[0.0], entropies


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(data, tmp_path, monkeypatch):
    monkeypatch.setattr(dparallel, "CHECKPOINT_STEPS", 5)
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole, first, second = (DistillationTrainer(_model(), RECIPE, data) for _ in range(3))
    whole.train(tmp_path / "whole", "mine")

    def stop(stage, done, total, note=""):
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.train(tmp_path / "parts", "mine", stop)
    second.train(tmp_path / "parts", "mine")
    assert second.step == 12
    for one, other in zip(whole.weights, second.weights, strict=True):
        assert torch.equal(one, other)
    with pytest.raises(BadInput, match="another recipe"):
        DistillationTrainer(_model(), RECIPE, data).train(tmp_path / "parts", "other")


def test_it_writes_a_model_and_its_card(tmp_path):
    stages = set()
    card = make(
        _model(),
        PROMPTS,
        replace(RECIPE, steps=2),
        tmp_path / "work",
        tmp_path / "model",
        tmp_path / "answers.jsonl",
        {"title": "toy", "base": "a toy"},
        {"masked_diffusion": {"mask_token_id": MASK, "pad_token_ids": [10]}, "tokenizer_folder": "toy"},
        show=lambda *told: stages.add(told[0]),
    )
    assert stages == {"answering", "training"}
    assert json.loads((tmp_path / "model" / "card.json").read_text()) == json.loads(json.dumps(card))
    assert card["data"] == "60 answers of 6 positions that a toy wrote itself, one token a step"
    read = Denoiser.read(tmp_path / "model")
    assert (read.mask, read.banned) == (MASK, (10, MASK))
    assert json.loads((tmp_path / "model" / "config.json").read_text())["tokenizer_folder"] == "toy"
    fresh = _model().network.state_dict()
    assert any(not torch.equal(weight.half().float(), fresh[name].half().float())
               for name, weight in read.network.named_parameters())  # fmt: skip


def test_the_tokenizer_is_shared_with_a_neighbour_and_copied_elsewhere(tmp_path):
    base = ARTIFACTS / "diffusion-lists"
    described = json.loads((base / "config.json").read_text())["masked_diffusion"]
    beside = entries_beside(base, ARTIFACTS / "nothing-there")
    assert beside == {
        "masked_diffusion": described, "eos_token_id": 1, "pad_token_id": 1, "tokenizer_folder": "diffusion-lists"
    }  # fmt: skip
    assert not (ARTIFACTS / "nothing-there").exists()
    alone = entries_beside(base, tmp_path / "model")
    assert alone == {"masked_diffusion": described, "eos_token_id": 1, "pad_token_id": 1}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "model" / name).read_bytes() == (base / name).read_bytes()


def test_metrics_are_by_threshold_and_task():
    model = Denoiser.read(ARTIFACTS / "diffusion-lists")
    found = list_metrics(model, (-1.0, 5.1), 2, 8)
    assert found["-1"]["copy"] == {"accuracy": 1.0, "forwards": 8.0}
    assert found["5.1"]["forwards"] == 1.0
    tasks = [value for value in found["-1"].values() if isinstance(value, dict)]
    assert len(tasks) == 10
    assert found["-1"]["accuracy"] == pytest.approx(sum(task["accuracy"] for task in tasks) / 10)


def test_another_model_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--model", "stories-twin", "--folder", str(tmp_path), "--artifact", "x"])
    assert ended.value.code == 2
    assert "no small masked-diffusion model" in capsys.readouterr().err
