"""Models that share another one's embedding, and the recipe that makes a sibling: what it learns, keeps and writes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import tiny_gguf
import torch

import decodery
from decodery.errors import BadInput, ModelNotReadable
from decodery.language_model import LanguageModel
from decodery.models import catalogue, store
from decodery.models.forward import POST_NORM
from decodery.models.shared_embedding import LAYERS, embedding_of, write_layers
from decodery.testing import toy_language_model
from decodery.training import sibling
from decodery.training.answers import AnswerRecipe, OwnAnswer, hidden_rows, write_answers
from decodery.training.sibling import SiblingRecipe, SiblingTrainer, agreement, learnt, make, rows_of, small_copy

RECIPE = SiblingRecipe(
    layers=(1,), feed_forward=64, frequent=100, drawn=50, steps=6, rate=3e-3, rows=200, warmup=2, held_out_tokens=4
)
ANSWERS = AnswerRecipe(prompts=6, temperatures=(0.0, 1.0), answers=1, new_tokens=12, batch=3)


@pytest.fixture
def lm(home: Path, tmp_path: Path, gguf_bytes: bytes) -> LanguageModel:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf_bytes)
    return decodery.load(path, dtype="float32")


def shrunk(lm: LanguageModel, folder: Path) -> torch.nn.Module:
    """A sibling that nothing was taught, in a folder."""
    small = small_copy(lm.network.model, (1,), 64)  # type: ignore[attr-defined]
    assert lm.folder is not None
    write_layers(learnt(small), small.config.to_dict(), lm.folder, folder)
    return small.eval()


def test_a_sibling_is_read_as_it_was_written(lm: LanguageModel, tmp_path: Path) -> None:
    small = shrunk(lm, tmp_path / "small")
    assert (tmp_path / "small" / LAYERS).stat().st_size < 90_000
    assert sorted(path.name for path in (tmp_path / "small").iterdir()) == ["config.json", LAYERS]
    loaded = decodery.load(tmp_path / "small", dtype="float32")
    assert loaded.network.layers == 1
    ids = lm.tokenize("the 12 the")
    assert loaded.tokenize("the 12 the") == ids
    with torch.no_grad():
        expected = small(torch.tensor([ids])).logits[0]
        found = loaded.network.model(torch.tensor([ids])).logits[0]  # type: ignore[attr-defined]
    assert torch.allclose(found, expected, atol=0.02 * float(expected.abs().max()))
    shared = loaded.network.model.get_input_embeddings().weight  # type: ignore[attr-defined]
    assert torch.equal(shared, lm.network.model.get_input_embeddings().weight)  # type: ignore[attr-defined]
    plain = lm.generate("the", "autoregressive", max_new_tokens=12).token_ids
    reply = lm.generate("the", f"draft-model(draft='{tmp_path / 'small'}')", max_new_tokens=12)
    assert reply.token_ids == plain
    assert reply.stats.drafted > 0


def test_it_is_installed_once_and_again_when_a_file_has_changed(lm: LanguageModel, tmp_path: Path) -> None:
    folder = tmp_path / "small"
    shrunk(lm, folder)
    place = store.resolve(str(folder))
    before = (place / "config.json").stat().st_mtime_ns
    assert store.resolve(str(folder)) == place
    assert store.resolve(place.name) == place
    assert (place / "config.json").stat().st_mtime_ns == before
    shrunk(lm, folder)
    assert store.resolve(place.name) == place
    assert (place / "config.json").stat().st_mtime_ns != before


def test_one_that_comes_with_the_package_is_listed_once(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "ARTIFACTS", tmp_path / "artifacts")
    shrunk(lm, tmp_path / "artifacts" / "small")
    (tmp_path / "artifacts" / "small" / "card.json").write_text(json.dumps({"title": "Small"}))
    assert decodery.load("small").network.layers == 1
    assert [model.name for model in store.known_models() if "small" in model.name] == ["small"]


def test_what_does_not_fit_together_is_told(lm: LanguageModel, tmp_path: Path) -> None:
    folder = tmp_path / "small"
    small = shrunk(lm, folder)
    assert embedding_of(folder) == lm.folder.name  # type: ignore[union-attr]
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 96}))
    with pytest.raises(ModelNotReadable, match=r"needs an embedding of .* and width 96; that of tiny-.* has .* and 64"):
        store.resolve(str(folder))
    with pytest.raises(BadInput, match="of a GGUF file of a Llama alone"):
        write_layers(learnt(small), small.config.to_dict(), folder, tmp_path / "another")  # type: ignore[operator]
    assert embedding_of(tmp_path) is None


class TestSmallCopy:
    def test_it_has_the_layers_and_the_strongest_units(self) -> None:
        model = toy_language_model(layers=3, hidden=16).network.model  # type: ignore[attr-defined]
        small = small_copy(model, (2, 0), 8)
        assert small.config.num_hidden_layers == 2
        for own, layer in enumerate((2, 0)):
            theirs, ours = model.model.layers[layer], small.model.layers[own]
            assert torch.equal(ours.self_attn.q_proj.weight, theirs.self_attn.q_proj.weight)
            strength = theirs.mlp.down_proj.weight.norm(dim=0) * theirs.mlp.up_proj.weight.norm(dim=1)
            units = strength.topk(8).indices.sort().values
            assert torch.equal(ours.mlp.up_proj.weight, theirs.mlp.up_proj.weight[units])
            assert torch.equal(ours.mlp.down_proj.weight, theirs.mlp.down_proj.weight[:, units])
        assert {name for name, weight in small.named_parameters() if not weight.requires_grad} == {
            "model.embed_tokens.weight",
            "lm_head.weight",
        }

    def test_what_a_model_has_not_is_refused(self) -> None:
        model = toy_language_model(layers=2, hidden=16).network.model  # type: ignore[attr-defined]
        with pytest.raises(BadInput, match="among 0 to 1"):
            small_copy(model, (2,), 8)
        with pytest.raises(BadInput, match="between 1 and 32"):
            small_copy(model, (0,), 33)


@pytest.fixture(scope="module")
def taught() -> tuple[LanguageModel, list[OwnAnswer], torch.Tensor]:
    """A toy, some of its answers, and the rows that they were chosen from."""
    lm = toy_language_model(seed=1, layers=2, hidden=16, mixing=1.5)
    answers = [
        OwnAnswer(list(reply.prompt_token_ids), list(reply.token_ids), 1.0)
        for reply in lm.generate(["a b", "hello", "x y z", "so"] * 6, max_new_tokens=24, temperature=1.0, seed=2)
    ]
    return lm, answers, hidden_rows(lm, answers, (POST_NORM,))[POST_NORM]


def trainer_of(taught: tuple[LanguageModel, list[OwnAnswer], torch.Tensor], recipe: SiblingRecipe) -> SiblingTrainer:
    lm, answers, rows = taught
    return SiblingTrainer(lm.network.model, recipe, answers, rows)  # type: ignore[attr-defined]


class TestTraining:
    recipe = dataclasses.replace(RECIPE, layers=(0,), feed_forward=32, frequent=160, rows=300, rate=1e-2)

    def test_it_learns(self, taught: tuple[LanguageModel, list[OwnAnswer], torch.Tensor]) -> None:
        trainer = trainer_of(taught, dataclasses.replace(self.recipe, average=0.9))
        before = trainer.agreement(taught[1], taught[2])
        losses = [trainer.advance() for _ in range(60)]
        assert np.mean(losses[-5:]) < 0.6 * losses[0]
        assert trainer.agreement(taught[1], taught[2]) > before + 0.1

    def test_a_step_takes_texts_of_like_length(
        self, taught: tuple[LanguageModel, list[OwnAnswer], torch.Tensor]
    ) -> None:
        trainer = trainer_of(taught, self.recipe)
        for step in range(5):
            chosen = trainer.batch(step)
            lengths = [len(answer.prompt) + len(answer.output) for answer, _ in chosen]
            assert len(lengths) * max(lengths) <= 300 < (len(lengths) + 3) * max(lengths)
            for answer, end in chosen:
                place = next(i for i, other in enumerate(taught[1]) if other is answer)
                assert end == sum(len(other.output) for other in taught[1][: place + 1])

    def test_interrupted_it_goes_on_where_it_was_and_may_be_longer(
        self,
        taught: tuple[LanguageModel, list[OwnAnswer], torch.Tensor],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(sibling, "CHECKPOINT_STEPS", 3)
        held_out = taught[1][:4], taught[2][: sum(len(answer.output) for answer in taught[1][:4])]
        folders = [tmp_path / name for name in ("whole", "parts")]
        for folder in folders:
            folder.mkdir()
        whole = trainer_of(taught, self.recipe)
        whole.train(folders[0], held_out)
        trainer_of(taught, dataclasses.replace(self.recipe, steps=4)).train(folders[1], held_out)
        again = trainer_of(taught, self.recipe)
        again.train(folders[1], held_out)
        for left, right in zip(whole.averaged.parameters(), again.averaged.parameters(), strict=True):
            assert torch.equal(left, right)
        assert [entry["step"] for entry in again.log] == [3, 4, 6]
        assert again.log[-1]["agreement"] == whole.log[-1]["agreement"]
        with pytest.raises(BadInput, match="another recipe"):
            trainer_of(taught, dataclasses.replace(self.recipe, decay=0.5)).train(folders[1], held_out)

    @pytest.mark.parametrize(
        "change",
        [
            {"rate": 1e-3},
            {"warmup": 5},
            {"decay": 0.9},
            {"average": 0.1},
            {"rows": 100},
            {"frequent": 50},
            {"drawn": 20},
            {"seed": 1},
        ],
    )
    def test_each_setting_matters(
        self, taught: tuple[LanguageModel, list[OwnAnswer], torch.Tensor], change: dict[str, float]
    ) -> None:
        weights = []
        for recipe in (self.recipe, dataclasses.replace(self.recipe, **change)):
            trainer = trainer_of(taught, recipe)
            for _ in range(4):
                trainer.advance()
            weights.append(torch.cat([weight.flatten() for weight in trainer.averaged.parameters()]))
        assert not torch.equal(*weights)


def test_rows_are_kept_by_whole_pieces(
    taught: tuple[LanguageModel, list[OwnAnswer], torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sibling, "PIECE", 5)
    lm, answers, rows = taught
    assert torch.equal(rows_of(lm, answers[:13], tmp_path).float(), rows[: _outputs(answers[:13])].bfloat16().float())
    assert len(list(tmp_path.iterdir())) == 2
    torch.save(torch.zeros(_outputs(answers[:5]), 16), tmp_path / "rows-000000.pt")
    found = rows_of(lm, answers, tmp_path)
    assert not found[: _outputs(answers[:5])].any(), "what is there is not computed again"
    assert len(found) == len(rows)


def _outputs(answers: list[OwnAnswer]) -> int:
    return sum(len(answer.output) for answer in answers)


def test_agreement_is_the_share_of_equal_likeliest_tokens(
    taught: tuple[LanguageModel, list[OwnAnswer], torch.Tensor],
) -> None:
    lm, answers, _ = taught
    assert agreement(lm, lm, answers) == 1.0
    other = toy_language_model(seed=1, layers=1, hidden=16, mixing=1.5)
    best = [
        (hidden_rows(one, answers, (POST_NORM,))[POST_NORM] @ one.network.model.lm_head.weight.T).argmax(-1)
        for one in (lm, other)
    ]  # type: ignore[attr-defined]
    assert agreement(lm, other, answers) == pytest.approx(float((best[0] == best[1]).float().mean()))


def test_the_whole_recipe(lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "decodery.training.answers.load_questions", lambda: [type("Question", (), {"turns": ("the",)})()]
    )
    monkeypatch.setattr("decodery.training.answers.all_prompts", lambda recipe: ["the", "12", "the 1", "he", "x" * 999])
    assert len(write_answers(lm, ANSWERS, tmp_path / "answers")) == 4, "what is too long is left out"
    card = make(lm, RECIPE, tmp_path / "answers", tmp_path / "work", tmp_path / "small", command="made so")
    assert json.loads((tmp_path / "small" / "card.json").read_text()) == json.loads(json.dumps(card))
    assert (card["model"], card["command"], card["recipe"]["steps"]) == (lm.name, "made so", 6)
    small = decodery.load(tmp_path / "small")
    assert card["fingerprint"] == small.network.fingerprint()
    assert 0 <= card["metrics"]["agreement"] <= 1
    assert small.network.layers == 1
    with pytest.raises(BadInput, match="no folder, so that its embedding cannot be shared"):
        make(toy_language_model(), RECIPE, tmp_path / "answers", tmp_path / "work", tmp_path / "none")
    assert small.network.hidden == tiny_gguf.HIDDEN
