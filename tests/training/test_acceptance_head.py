"""The recipe of acceptance heads: labels, mixed texts, the weighted loss and its correction, restarts, and the whole of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from decodery.errors import BadInput
from decodery.models.forward import POST_NORM, Forward, Layers
from decodery.speculative.specdec_pp.acceptance import AcceptanceHead, TrainedHead, corrected
from decodery.testing import toy_language_model
from decodery.training import acceptance_head
from decodery.training.acceptance_head import (
    DraftingNetwork,
    Examples,
    HeadRecipe,
    all_examples,
    examples_of,
    labels,
    make,
    mixed,
    parts,
    quality,
    train_head,
    weighted_auc,
    weighted_loss,
)
from decodery.training.answers import AnswerRecipe, read_answers, write_answers

RECIPE = HeadRecipe(
    layers=1, texts=24, blocks=1, epochs=2, batch=64, thresholds=(0.3, 0.9), tuning_texts=2, tuning_tokens=6
)


@pytest.fixture(scope="module")
def lm():
    return toy_language_model(seed=1, layers=2, hidden=16)


@pytest.fixture(scope="module")
def answers(lm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("answers")
    recipe = AnswerRecipe(prompts=24, answers=1, temperatures=(1.0,), new_tokens=10, batch=12)
    write_answers(lm, recipe, folder)
    return folder


def test_labels_are_the_chances_of_acceptance() -> None:
    p, q = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.2, 0.2, 0.6]])
    for token, expected in ((0, 1.0), (1, 1.0), (2, 1 / 3)):
        shifted = q.log() + 3.0  # scores, not probabilities
        assert float(labels(p.log(), shifted, torch.tensor([token]))) == pytest.approx(expected)


def test_the_share_of_the_target_s_tokens() -> None:
    texts, drawn = torch.zeros(4000, dtype=torch.long), torch.ones(4000, dtype=torch.long)
    for share in (0.0, 0.15, 1.0):
        mix = mixed(texts, drawn, share, torch.Generator().manual_seed(0))
        assert float((mix == 0).float().mean()) == pytest.approx(share, abs=0.02)


def test_a_head_without_features_converges_to_the_shifted_label() -> None:
    """The optimum of the weighted loss is a / (a + w (1 - a)); the correction gives a back."""
    generator = torch.Generator().manual_seed(0)
    for weight in (1.0, 6.0):
        accepted = torch.rand(3000, generator=generator) ** 0.5
        mean = float(accepted.mean())
        head = AcceptanceHead(1, 0)
        optimizer = torch.optim.LBFGS(head.parameters(), max_iter=60)
        rows = torch.ones(3000, 1)

        def closure(head=head, optimizer=optimizer, rows=rows, accepted=accepted, weight=weight):
            optimizer.zero_grad()
            loss = weighted_loss(head(rows), accepted, weight)
            loss.backward()
            return loss

        optimizer.step(closure)
        raw = head(rows[:1]).softmax(dim=-1)[0, 1].detach()
        assert float(raw) == pytest.approx(mean / (mean + weight * (1 - mean)), abs=1e-3)
        assert float(corrected(raw, weight)) == pytest.approx(mean, abs=1e-3)


def test_the_loss_is_normalised_by_its_weights() -> None:
    scores, accepted = torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.tensor([0.25, 0.5])
    reject, accept = -scores.log_softmax(dim=-1).T
    summed = sum(6 * (1 - a) * r + a * c for a, r, c in zip(accepted, reject, accept, strict=True))
    assert float(weighted_loss(scores, accepted, 6.0)) == pytest.approx(float(summed) / (6 * 1.25 + 0.75))


def test_auc_of_soft_labels() -> None:
    told = torch.tensor([0.1, 0.9, 0.5])
    assert weighted_auc(told, torch.tensor([0.0, 1.0, 1.0])) == 1.0
    assert weighted_auc(told, torch.tensor([1.0, 0.0, 0.0])) == 0.0
    assert weighted_auc(told, torch.tensor([0.5, 0.5, 0.5])) == pytest.approx(0.5)


def test_rows_are_those_of_the_drafter_s_own_tokens(lm, answers: Path) -> None:
    """With no share of the target's tokens, all places count; each row is that of a text of drawn tokens up to and with its
    own."""
    some = read_answers(answers)[:3]
    drafting = DraftingNetwork(lm.network, Layers(0, 1))
    recipe = dataclasses.replace(RECIPE, share=0.0)
    found = examples_of(lm, drafting, some, 7, recipe)
    assert found.texts.tolist() == [7 + place for place, answer in enumerate(some) for _ in answer.output]
    assert bool(((found.accepted > 0) & (found.accepted <= 1)).all())
    # The tokens were drawn from the drafter's laws after the target's text, by the number of the answer.
    generator = torch.Generator().manual_seed(7)
    answer = some[0]
    read = [*answer.prompt, *answer.output[:-1]]
    ask = Forward(lm.network.new_sequence(), read, layers=Layers(0, 1), logits=range(len(answer.prompt) - 1, len(read)))
    laws = lm.network.run([ask])[0].logits.softmax(dim=-1)
    drawn = torch.multinomial(laws, 1, generator=generator)[:, 0].tolist()
    ask = Forward(lm.network.new_sequence(), [*answer.prompt, *drawn], layers=Layers(0, 1), taps=(POST_NORM,))
    rows = lm.network.run([ask])[0].hidden[POST_NORM][len(answer.prompt) :]
    assert torch.allclose(found.rows[: len(drawn)].float(), rows, atol=2e-3)
    mostly = examples_of(lm, drafting, some, 7, dataclasses.replace(RECIPE, share=0.9))
    assert len(mostly.rows) < 0.5 * len(found.rows)


def test_examples_are_kept_piece_by_piece(lm, answers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptance_head, "PIECE", 5)
    some = read_answers(answers)[:8]
    drafting = DraftingNetwork(lm.network, Layers(0, 1))
    whole = all_examples(lm, drafting, some, RECIPE, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["examples-000000.pt", "examples-000005.pt"]
    monkeypatch.setattr(acceptance_head, "examples_of", None)
    again = all_examples(lm, drafting, some, RECIPE, tmp_path)
    assert torch.equal(again.rows, whole.rows)
    assert torch.equal(again.accepted, whole.accepted)


def some_examples(count: int = 300) -> Examples:
    """The first number of a row tells the label."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(count, 8, generator=generator)
    return Examples(rows.half(), torch.sigmoid(3 * rows[:, 0] + 1), torch.zeros(count, dtype=torch.long))


def test_a_head_learns_and_goes_on_where_it_was(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, epochs=12, rate=1e-2)
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = train_head(some_examples(), recipe, tmp_path / "whole")
    told = quality(whole, some_examples(), recipe.rejection_weight)
    assert told["auc"] > 0.75
    assert told["brier"] < 0.85 * told["brier_base"]

    class Interrupted(Exception):
        pass

    def interrupt(stage: str, done: int, total: int, note: str = "") -> None:
        if done == 7:
            raise Interrupted

    with pytest.raises(Interrupted):
        train_head(some_examples(), recipe, tmp_path / "parts", interrupt)
    again = train_head(some_examples(), recipe, tmp_path / "parts")
    for left, right in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(left, right)
    with pytest.raises(BadInput, match="another recipe"):
        train_head(some_examples(), dataclasses.replace(recipe, rate=1e-3), tmp_path / "parts")


@pytest.mark.parametrize(
    "change", [{"blocks": 2}, {"rejection_weight": 1.0}, {"epochs": 3}, {"rate": 1e-4}, {"batch": 30}, {"seed": 1}]
)
def test_each_setting_of_training_matters(tmp_path: Path, change: dict[str, float]) -> None:
    found = []
    for name, recipe in (("one", RECIPE), ("other", dataclasses.replace(RECIPE, **change))):
        (tmp_path / name).mkdir()
        found.append(
            torch.cat([w.flatten() for w in train_head(some_examples(), recipe, tmp_path / name).parameters()])
        )
    assert found[0].shape != found[1].shape or not torch.equal(*found)


def test_parts_share_no_answer() -> None:
    training, choosing, measuring = parts(100)
    assert (training, choosing, measuring) == (range(80), range(80, 90), range(90, 100))


def test_the_whole_recipe(lm, answers: Path, tmp_path: Path) -> None:
    card = make(lm, "none", RECIPE, answers, tmp_path / "work", tmp_path / "head", command="made so")
    assert json.loads((tmp_path / "head" / "card.json").read_text()) == json.loads(json.dumps(card))
    found = TrainedHead.read(tmp_path / "head")
    assert found.threshold == card["threshold"] in RECIPE.thresholds
    rates = card["tokens_per_second_of_passes"]
    assert rates[str(found.threshold)] == max(rates.values())
    assert (found.target, found.draft, found.layers) == (lm.network.fingerprint(),) * 2 + (1,)
    assert (found.rejection_weight, card["command"], card["blocks"]) == (6.0, "made so", "distinct")
    reply = lm.generate("a b", f"specdec-pp(layers=1, head='{tmp_path / 'head'}')", max_new_tokens=12)
    assert reply.token_ids == lm.generate("a b", "autoregressive", max_new_tokens=12).token_ids
    with pytest.raises(BadInput, match="work of another recipe"):
        make(lm, "none", dataclasses.replace(RECIPE, share=0.5), answers, tmp_path / "work", tmp_path / "head")
    few = tmp_path / "few"
    write_answers(lm, AnswerRecipe(prompts=3, answers=1, temperatures=(1.0,), new_tokens=3), few)
    with pytest.raises(BadInput, match="holds 3 answers at temperature 1; at least 10 are needed"):
        make(lm, "none", RECIPE, few, tmp_path / "another", tmp_path / "head")


@pytest.mark.parametrize("change", [{"share": 1.5}, {"rejection_weight": 0.0}, {"blocks": -1}])
def test_what_cannot_be_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(BadInput):
        dataclasses.replace(RECIPE, **change)
