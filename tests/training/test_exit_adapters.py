"""The recipe of exit adapters, whole, on a tiny network: what it learns, that it goes on where it was, and what it writes."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from decodery.errors import BadInput, MethodUnavailable
from decodery.models import catalogue
from decodery.speculative.del_.exits import ExitAdapters, shipped
from decodery.testing import toy_language_model
from decodery.training.exit_adapters import (
    AdapterRecipe,
    AdapterTrainer,
    HiddenRows,
    frequent_tokens,
    main,
    make,
    rows_of_exits,
    written_texts,
)
from decodery.training.prompts import ASKS, TOPICS, varied_prompts

RECIPE = AdapterRecipe(
    exits=(1, 2),
    width=16,
    vocabulary=100,
    texts=8,
    tokens_per_text=24,
    steps=60,
    rate=1e-2,
    batch=32,
    held_out_tokens=4,
)


@pytest.fixture
def lm():
    return toy_language_model(seed=1, layers=3, hidden=16, mixing=2.0)


class TestPrompts:
    def test_they_differ_and_are_the_same_again(self):
        prompts = varied_prompts(200, seed=3)
        assert len(set(prompts)) == 200
        assert prompts == varied_prompts(200, seed=3) != varied_prompts(200, seed=4)
        assert not any("{" in prompt for prompt in prompts)
        with pytest.raises(ValueError, match="prompts, not"):
            varied_prompts(len(ASKS) * len(TOPICS) + 1)

    def test_none_is_a_question_that_is_measured_on(self):
        from decodery.evaluation.questions import load_questions

        asked = {turn for question in load_questions() for turn in question.turns}
        assert not asked & set(varied_prompts(len(ASKS) * len(TOPICS)))


def test_hidden_rows_are_those_that_chose_the_output(lm, tmp_path):
    texts = written_texts(lm, RECIPE, tmp_path)
    assert len(texts) == 8
    assert all(len(text.output) <= 24 for text in texts)
    assert written_texts(lm, RECIPE, tmp_path) == texts
    rows = rows_of_exits(lm, texts, (1, 2))
    assert len(rows) == sum(len(text.output) for text in texts)
    head = lm.network.model.get_output_embeddings().weight
    best = (rows.last @ head.T).argmax(dim=-1).tolist()
    assert best == [token for text in texts for token in text.output], "the first batch is greedy"


def test_the_adapters_learn(lm, tmp_path):
    recipe = dataclasses.replace(RECIPE, steps=200)
    texts = written_texts(lm, recipe, tmp_path)
    rows = rows_of_exits(lm, texts, recipe.exits)
    tokens = frequent_tokens(lm, texts, rows, recipe.vocabulary)
    assert tokens.tolist() == sorted(set(tokens.tolist()))
    assert set(lm.stop_ids) <= set(tokens.tolist())
    written = {token for text in texts for token in text.output}
    assert written <= set(tokens.tolist())
    trainer = AdapterTrainer(lm, recipe, rows, tokens)
    head = lm.network.model.get_output_embeddings().weight.detach()
    before = trainer.agreement(rows, head)
    assert all(before[e]["adapted"] == before[e]["raw, draft vocabulary"] for e in recipe.exits)
    first = trainer.advance()
    for _ in range(199):
        last = trainer.advance()
    after = trainer.agreement(rows, head)
    for exit in recipe.exits:
        assert last[exit] < 0.7 * first[exit]
        assert after[exit]["adapted"] > before[exit]["adapted"] + 0.1
        assert after[exit]["raw"] == before[exit]["raw"]


def test_interrupted_it_goes_on_where_it_was(lm, tmp_path, monkeypatch):
    from decodery.training import exit_adapters

    monkeypatch.setattr(exit_adapters, "CHECKPOINT_STEPS", 5)
    generator = torch.Generator().manual_seed(0)
    rows = HiddenRows(
        {e: torch.randn(50, 16, generator=generator) for e in (1, 2)}, torch.randn(50, 16, generator=generator)
    )
    recipe, tokens = dataclasses.replace(RECIPE, steps=12), torch.arange(100)
    whole = AdapterTrainer(lm, recipe, rows, tokens)
    (tmp_path / "whole").mkdir()
    whole.train(tmp_path / "whole")

    class Interrupted(Exception):
        pass

    def interrupt(stage: str, done: int, total: int) -> None:
        if done == 8:
            raise Interrupted

    (tmp_path / "parts").mkdir()
    with pytest.raises(Interrupted):
        AdapterTrainer(lm, recipe, rows, tokens).train(tmp_path / "parts", interrupt)
    again = AdapterTrainer(lm, recipe, rows, tokens)
    again.train(tmp_path / "parts")
    for exit in recipe.exits:
        for left, right in zip(whole.weights[exit], again.weights[exit], strict=True):
            assert torch.equal(left, right)
    assert [entry["step"] for entry in again.log] == [5, 10, 12]
    with pytest.raises(BadInput, match="another recipe"):
        AdapterTrainer(lm, dataclasses.replace(recipe, seed=1), rows, tokens).train(tmp_path / "parts")


def test_the_artifact_and_its_card(lm, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "decodery.training.answers.load_questions", lambda: [type("Question", (), {"turns": ("Why?",)})()]
    )
    stages: set[str] = set()
    card = make(
        lm, RECIPE, tmp_path / "work", tmp_path / "exit-adapters-toy", lambda stage, done, total: stages.add(stage)
    )
    assert stages == {"answers", "hidden rows", "training"}
    assert json.loads((tmp_path / "exit-adapters-toy" / "card.json").read_text()) == json.loads(json.dumps(card))
    assert set(card["agreement"]) == {"1", "2"}
    assert card["log"][-1]["step"] == 60
    adapters = ExitAdapters.read(tmp_path / "exit-adapters-toy")
    assert adapters.exits == (1, 2)
    assert len(adapters.tokens) == 100
    monkeypatch.setattr(catalogue, "ARTIFACTS", tmp_path)
    assert shipped(lm.network.fingerprint()) == tmp_path / "exit-adapters-toy"
    assert shipped("another") is None
    # The method finds them by the model's fingerprint, and its output stays that of plain decoding.
    plain = lm.generate("hello", method="autoregressive", max_new_tokens=30, ignore_eos=True)
    reply = lm.generate("hello", method="del(bypass=False)", max_new_tokens=30, ignore_eos=True)
    assert reply.token_ids == plain.token_ids
    assert any("2 of 3 layers" in name or "1 of 3 layers" in name for name in reply.stats.models)
    with pytest.raises(MethodUnavailable):
        ExitAdapters.read(tmp_path)


def test_the_command_line_explains_itself(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    for option in ("--model", "--folder", "--artifact", "--steps", "--exits", "--seed"):
        assert option in said


class TestShipped:
    """What comes with decodery for smollm2-135m."""

    def test_they_are_small_and_their_card_is_whole(self):
        folders = sorted(catalogue.ARTIFACTS.glob("exit-adapters-*"))
        assert folders, "no adapters are shipped"
        for folder in folders:
            assert sum(path.stat().st_size for path in folder.iterdir()) < 6_000_000
            card = json.loads((folder / "card.json").read_text())
            adapters = ExitAdapters.read(folder)
            assert adapters.fingerprint == card["fingerprint"]
            assert tuple(card["recipe"]["exits"]) == adapters.exits
            assert len(adapters.tokens) == card["recipe"]["vocabulary"]
            for exit in adapters.exits:
                numbers = card["agreement"][str(exit)]
                assert numbers["adapted"] > 2 * numbers["raw"]
