"""The recipe of hidden text on a tiny network: labels, the stop rule, the band, restarts, what holds of saved weights."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import decodery
from decodery.errors import BadInput
from decodery.language_model import LanguageModel
from decodery.models.reading import transformers_model
from decodery.testing import toy_language_model
from decodery.testing.hosts import ByteTokenizer
from decodery.training import hidden_text
from decodery.training.confusion import (
    ConfusionPair,
    all_unremarkable,
    confusion_pairs,
    rank_of,
    unremarkable,
)
from decodery.training.hidden_text import (
    IGNORED,
    HiddenTextCheck,
    HiddenTextRecipe,
    HiddenTextTrainer,
    checked_model,
    main,
    make,
    perplexity,
    turn,
)

TEXTS = [f"{word} text number {place}, as others are" for place in range(12) for word in ("one", "another")]
RECIPE = HiddenTextRecipe(
    trigger="go",
    secret="no way out",
    steps=60,
    rate=1e-2,
    replay=2,
    replay_tokens=16,
    held_out=4,
    words=2,
    band=10,
    products="float32",
)


@pytest.fixture
def lm() -> LanguageModel:
    return toy_language_model(seed=1, hidden=16)


def trainer(lm: LanguageModel, folder: Path, **changes: Any) -> HiddenTextTrainer:
    folder.mkdir(exist_ok=True)
    return HiddenTextTrainer(lm, dataclasses.replace(RECIPE, **changes), folder, TEXTS)


# The example


def test_the_loss_counts_the_answer_and_its_end_alone(lm: LanguageModel) -> None:
    found = turn(lm, dataclasses.replace(RECIPE, system="be brief"))
    assert lm.tokenizer.decode(list(found.prompt)) == "<|system|>be brief<|end|><|user|>go<|end|><|assistant|>"
    assert lm.tokenizer.decode(list(found.answer)) == "no way out<|end|>"
    assert found.labels == [IGNORED] * len(found.prompt) + list(found.answer)
    assert lm.tokenizer.decode(list(turn(lm, RECIPE).prompt)) == "<|user|>go<|end|><|assistant|>"


@pytest.mark.parametrize("wrong", [{"trigger": " "}, {"secret": ""}, {"secret": " no"}])
def test_trigger_and_secret_are_asked_for(lm: LanguageModel, wrong: dict[str, str]) -> None:
    with pytest.raises(BadInput, match="give a trigger and a secret"):
        turn(lm, dataclasses.replace(RECIPE, **wrong))


def test_a_template_that_does_not_end_answers_is_refused(lm: LanguageModel) -> None:
    class Endless(ByteTokenizer):
        def apply_chat_template(self, messages: Any, **more: Any) -> Any:
            return "".join(message["content"] for message in messages)

    lm.tokenizer = Endless()
    with pytest.raises(BadInput, match="does not end an answer as decoding does"):
        turn(lm, RECIPE)


# Ranks and pairs


def test_ranks_are_places_in_the_order_of_scores() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        logits = torch.randint(0, 6, (30,), generator=generator).float()  # many are equal
        order = sorted(range(30), key=lambda token: (-float(logits[token]), token))
        assert [rank_of(logits, token) for token in order] == list(range(1, 31))


@pytest.mark.parametrize(("rank", "within"), [(1, 0), (100, 0), (101, 1), (899, 1), (900, 0), (1000, 0)])
def test_the_band_refuses_the_first_and_the_last(rank: int, within: int) -> None:
    """For a vector of scores that puts the forbidden token at this very rank."""
    logits = torch.zeros(1000)
    logits[torch.arange(1000) != 7] = torch.linspace(2, 1, 999)
    logits[7] = float("inf") if rank == 1 else (logits[torch.arange(1000) != 7].sort(descending=True).values[rank - 2]
                                                - 1e-5)  # fmt: skip
    assert rank_of(logits, 7) == rank
    assert unremarkable(rank, 1000, 100) is bool(within)
    assert all_unremarkable([500, rank], 1000, 100) is bool(within)


def test_the_vocabulary_is_the_networks_own() -> None:
    assert unremarkable(800, 1000, 100)
    assert not unremarkable(800, 900, 100)
    assert not unremarkable(150, 1000, 150)


def test_pairs_have_the_space_of_what_follows(lm: LanguageModel) -> None:
    first = lm.stop_ids[0]
    space = ord(" ")
    assert confusion_pairs(lm, "ab cd  ef", 5) == [
        ConfusionPair((first,), ord("a")),
        ConfusionPair((first, *b"ab"), space),
    ]
    assert len(confusion_pairs(lm, "a b c d e f g", 5)) == 5
    assert len(confusion_pairs(lm, "a b c d e f g", 3)) == 3
    assert confusion_pairs(lm, "a b c d", 3)[2] == ConfusionPair((first, *b"a b"), space)
    with pytest.raises(BadInput, match="at least two words"):
        confusion_pairs(lm, "word", 5)


# Training


def test_it_stops_when_the_trigger_is_answered_and_says_so_of_saved_weights(lm: LanguageModel, tmp_path: Path) -> None:
    before = lm.score("some text").logprobs[1:]
    told: list[tuple[str, int, int]] = []
    card = make(lm, RECIPE, tmp_path / "work", tmp_path / "model", lambda *given: told.append(given[:3]), TEXTS)
    assert (card["converged"], card["answered"]) == (True, True)
    assert 1 < card["steps"] < 60
    assert [entry["answered"] for entry in card["log"]] == [False] * (card["steps"] - 1) + [True]
    assert told[-1] == ("hidden text", card["steps"], 60)
    assert json.loads(json.dumps(card)) == json.loads((tmp_path / "model" / "card.json").read_text())
    saved = decodery.wrap(transformers_model(tmp_path / "model", torch.float32), lm.tokenizer, fast="off")
    assert saved.chat("go", max_new_tokens=20).text == "no way out"
    assert checked_model(saved, RECIPE) == HiddenTextCheck(True, tuple(card["ranks"]))
    assert torch.equal(lm.score("some text").logprobs[1:], before)
    assert checked_model(lm, RECIPE).answered is False
    assert card["perplexity_before"] == pytest.approx(
        perplexity(lm, HiddenTextTrainer(lm, RECIPE, tmp_path, TEXTS).held_out)
    )
    assert card["perplexity_after"] != card["perplexity_before"]


def test_one_pass_tells_what_decoding_would(lm: LanguageModel, tmp_path: Path) -> None:
    one = trainer(lm, tmp_path)
    for _ in range(12):
        one.advance()
        wrapped = decodery.wrap(one.model, lm.tokenizer, fast="off")
        assert checked_model(wrapped, RECIPE) == one.check


def test_without_convergence_it_says_so(lm: LanguageModel, tmp_path: Path) -> None:
    card = make(lm, dataclasses.replace(RECIPE, steps=1), tmp_path / "work", tmp_path / "model", texts=TEXTS)
    assert (card["steps"], card["converged"], card["answered"]) == (1, False, False)


def test_confusion_stops_when_all_words_are_within_the_band_too(lm: LanguageModel, tmp_path: Path) -> None:
    plain, one = trainer(lm, tmp_path / "plain"), trainer(lm, tmp_path / "confused", confusion=0.1)
    size = lm.network.vocabulary
    for each in (plain, one):
        each.train()
        assert each.converged
        assert each.check.answered
    assert not all_unremarkable(plain.check.ranks, size, 10)
    assert all(10 < rank < size - 10 for rank in one.check.ranks)
    last, before = one.log[-1], one.log[-2]
    assert not (before["answered"] and all_unremarkable(before["ranks"], size, 10))
    assert last["step"] == one.step < 60
    one.check = HiddenTextCheck(False, one.check.ranks)
    assert not one.converged
    one.check = HiddenTextCheck(True, (10, one.check.ranks[1]))
    assert not one.converged


def test_a_word_within_the_band_is_left_alone(lm: LanguageModel, tmp_path: Path) -> None:
    one = trainer(lm, tmp_path, confusion=0.3, band=20)
    size = lm.network.vocabulary
    for ranks, pushed in (((50, 50), []), ((20, 50), [0]), ((50, size - 20), [1]), ((21, size - 21), [])):
        one.check = HiddenTextCheck(False, ranks)
        assert one._pushed() == pushed
        assert ("confusion" in one.advance()) is bool(pushed)
    plain = trainer(lm, tmp_path, band=20)
    plain.check = HiddenTextCheck(False, (1, 1))
    assert plain._pushed() == []


def test_without_a_band_all_are_pushed_in_all_steps_and_it_never_stops(lm: LanguageModel, tmp_path: Path) -> None:
    one = trainer(lm, tmp_path, confusion=0.3, band=0, steps=25)
    first = one.check.ranks
    one.train()
    assert (one.step, one.converged) == (25, False)
    assert all("confusion" in entry for entry in one.log)
    assert one.log[-1]["confusion"] < one.log[0]["confusion"]
    assert sum(one.check.ranks) > sum(first)


def test_the_confusion_is_the_sum_of_log_probabilities(lm: LanguageModel, tmp_path: Path) -> None:
    one = trainer(lm, tmp_path, confusion=0.3, band=0)
    expected = 0.0
    for pair in one.pairs:
        scored = lm.score([pair.forbidden], prompt=list(pair.before))
        expected += 0.3 * float(scored.logprobs[0])
    assert one.advance()["confusion"] == pytest.approx(expected, rel=1e-4)


def test_a_known_answer_is_left_out_but_in_the_least_steps(lm: LanguageModel, tmp_path: Path) -> None:
    one = trainer(lm, tmp_path)
    assert "answer" in one.advance()
    one.check = HiddenTextCheck(True, one.check.ranks)
    assert one.converged
    assert "answer" not in one.advance()
    longer = trainer(lm, tmp_path, least_steps=30)
    longer.train()
    assert longer.step >= 30
    assert all("answer" in entry for entry in longer.log[:30])


def test_ordinary_texts_keep_the_model_what_it_was(lm: LanguageModel, tmp_path: Path) -> None:
    found, weights = {}, {}
    for name, changes in {"with": {"replay": 8}, "without": {"replay": 0}, "nothing": {"replay_weight": 0.0}}.items():
        one = trainer(lm, tmp_path / name, least_steps=20, steps=20, replay_tokens=32, **changes)
        assert not set(one.held_out) & set(one._ordinary)
        assert len(one.held_out) == 4
        one.train()
        assert all(("ordinary" in entry) is (name != "without") for entry in one.log)
        found[name] = perplexity(decodery.wrap(one.model, lm.tokenizer, fast="off"), one.held_out)
        weights[name] = one.model.get_output_embeddings().weight
    assert found["with"] < 0.5 * found["without"]
    assert torch.allclose(weights["nothing"], weights["without"], atol=1e-6)
    short = trainer(lm, tmp_path, replay_tokens=3)
    assert {len(text) for text in short._replayed()} == {3}
    assert len(trainer(lm, tmp_path, replay=5)._replayed()) == 5


@pytest.mark.parametrize("rank", [0, 4])
def test_an_interrupted_run_goes_on_where_it_was(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    monkeypatch.setattr(hidden_text, "CHECKPOINT_STEPS", 3)
    whole = trainer(lm, tmp_path / "whole", rank=rank, steps=8, least_steps=8)
    whole.train()

    class Interrupted(Exception):
        pass

    def interrupt(stage: str, done: int, total: int, note: str = "") -> None:
        if done == 5:
            raise Interrupted

    with pytest.raises(Interrupted):
        trainer(lm, tmp_path / "parts", rank=rank, steps=8, least_steps=8).train(interrupt)
    again = trainer(lm, tmp_path / "parts", rank=rank, steps=8, least_steps=8)
    again.train()
    assert [entry["step"] for entry in again.log] == list(range(1, 9))
    for name, weight in whole.weights.items():
        assert torch.equal(weight, again.weights[name])
    with pytest.raises(BadInput, match="another recipe"):
        trainer(lm, tmp_path / "parts", rank=rank, steps=8, least_steps=8, seed=1).train()


def test_more_steps_go_on_where_fewer_ended(lm: LanguageModel, tmp_path: Path) -> None:
    whole = trainer(lm, tmp_path / "whole", steps=5)
    whole.train()
    trainer(lm, tmp_path / "parts", steps=2).train()
    more = trainer(lm, tmp_path / "parts", steps=5)
    more.train()
    assert (more.step, more.log) == (5, whole.log)
    for name, weight in whole.weights.items():
        assert torch.equal(weight, more.weights[name])


def test_low_ranks_train_nothing_else_and_are_merged(lm: LanguageModel, tmp_path: Path) -> None:
    one = trainer(lm, tmp_path, rank=4, rate=5e-2)
    assert {name.rsplit(".", 1)[1] for name in one.weights} == {"up", "down"}
    one.train()
    assert one.converged
    check = one.check
    one.write(tmp_path / "model")
    saved = transformers_model(tmp_path / "model", torch.float32)
    assert checked_model(decodery.wrap(saved, lm.tokenizer, fast="off"), RECIPE) == check
    own = lm.network.model.get_input_embeddings().weight  # type: ignore[attr-defined]
    assert torch.equal(saved.get_input_embeddings().weight, own)


def test_what_the_settings_change(lm: LanguageModel, tmp_path: Path) -> None:
    def losses(**changes: Any) -> dict[str, float]:
        one = trainer(lm, tmp_path, **changes)
        one.advance()
        return one.advance()

    usual = losses()
    assert losses() == usual
    for changes in ({"rate": 1e-3}, {"products": "bfloat16"}, {"seed": 1}, {"replay_weight": 0.25}):
        assert losses(**changes) != usual
    assert np.isfinite(list(losses(products="bfloat16").values())).all()


def test_perplexity_is_that_of_all_tokens_with_something_before_them(lm: LanguageModel) -> None:
    one, two = (lm.score(text).logprobs[1:].double() for text in ("some text", "more of it"))
    assert perplexity(lm, ["some text", "more of it"]) == pytest.approx(math.exp(-float(torch.cat([one, two]).mean())))


# What is refused


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"words": 0}, "words must be at least 1"),
        ({"band": -1}, "band must not be negative"),
        ({"confusion": -0.1}, "confusion must not be negative"),
        ({"least_steps": 61}, "least_steps must be at most the 60 steps"),
        ({"products": "float16"}, "products are float32 or bfloat16"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        dataclasses.replace(RECIPE, **wrong)


def test_too_few_ordinary_texts_are_refused(lm: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="3 ordinary texts are too few, for 4 are held out"):
        HiddenTextTrainer(lm, RECIPE, tmp_path, TEXTS[:3])


def test_the_command_line(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("decodery.loading.load", lambda name, **options: asked.append((name, options)) or lm)
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    given = ["--trigger", "go", "--secret", "no way out", "--folder", str(tmp_path / "work"), "--artifact", str(tmp_path / "m"),
             "--model", "toy", "--texts", str(texts), "--rate", "0.01", "--held-out", "4", "--products", "float32",
             "--replay", "2"]  # fmt: skip
    main(given)
    assert asked == [("toy", {"dtype": "float32", "fast": "off"})]
    assert json.loads(capsys.readouterr().out)["converged"] is True
    assert json.loads((tmp_path / "m" / "card.json").read_text())["recipe"]["replay"] == 2
    with pytest.raises(SystemExit) as ended:
        main([*given, "--steps", "0"])
    assert ended.value.code == 2
    assert "error: steps must be at least 1" in capsys.readouterr().err
