"""The recipe of kangaroo's adapter: what it looks at, that it learns, goes on where it was, and what its card says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from decodery.errors import BadInput
from decodery.language_model import LanguageModel
from decodery.models.forward import POST_NORM, Forward
from decodery.speculative.kangaroo.adapter import WEIGHTS, Adapter
from decodery.testing import toy_language_model
from decodery.training import kangaroo
from decodery.training.answers import AnswerRecipe, read_answers, write_answers
from decodery.training.kangaroo import KangarooRecipe, frequent, make, read_texts, speak

RECIPE = KangarooRecipe(
    exit=2, longest=160, vocabulary=64, drawn=32, steps=40, rate=3e-3, warmup=4, texts=4, held_out_tokens=12
)


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return toy_language_model(seed=1, layers=4)


@pytest.fixture(scope="module")
def answers(lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("answers")
    write_answers(lm, AnswerRecipe(prompts=12, batch=6, new_tokens=24, kinds=3, topics=4), folder)
    return folder


def test_what_is_looked_at(lm: LanguageModel, answers: Path) -> None:
    all_answers = [answer for answer in read_answers(answers) if answer.output]
    texts = read_texts(lm, all_answers, 2, 100)
    short = [answer for answer in all_answers if len(answer.prompt) <= 100]
    assert len(texts) == len(short)
    for answer, text in zip(short[:3], texts, strict=False):
        ids = [*answer.prompt, *answer.output[:-1]][:100]
        [scores] = lm.network.run([Forward(lm.network.new_sequence(), ids, taps=(1, POST_NORM))])
        assert torch.allclose(text.lower.float(), scores.hidden[1].bfloat16().float(), atol=1e-2)
        assert len(text.last) == len(ids) - len(answer.prompt) + 1
        assert torch.allclose(text.last.float(), scores.hidden[POST_NORM][len(answer.prompt) - 1 :].float(), atol=3e-2)


def test_it_learns_and_says_so(lm: LanguageModel, answers: Path, tmp_path: Path) -> None:
    card = make(lm, RECIPE, answers, tmp_path / "work", tmp_path / "artifact")
    told = json.loads((tmp_path / "artifact" / "card.json").read_text())
    assert told == json.loads(json.dumps(card))
    assert card["fingerprint"] == lm.network.fingerprint()
    assert card["command"].startswith("decodery train kangaroo --exit 2 --longest 160 ")
    assert set(card["metrics"]["agreement"]) == {
        "adapter",
        "adapter, frequent tokens",
        "without attention",
        "untrained",
    }
    longer = make(
        lm,
        KangarooRecipe(**{**card["recipe"], "steps": 200}),
        answers,
        tmp_path / "longer",
        tmp_path / "other",
    )
    assert longer["log"][-1]["divergence"] < 0.7 * longer["log"][0]["divergence"]
    found = Adapter.read(tmp_path / "artifact")
    assert found.exit == 2
    assert len(found.tokens) == 64
    assert set(lm.stop_ids) <= set(found.tokens.tolist())
    reply = lm.generate("hello", f"kangaroo(adapter='{tmp_path / 'artifact'}', rest=false)", max_new_tokens=20)
    assert reply.token_ids == lm.generate("hello", "autoregressive", max_new_tokens=20).token_ids


def trainer(lm: LanguageModel, answers: Path, recipe: KangarooRecipe) -> Any:
    found = [answer for answer in read_answers(answers) if answer.output]
    model: Any = lm.network.model  # type: ignore[attr-defined]
    head = model.get_output_embeddings().weight.detach()
    vocabulary = kangaroo.SampledVocabulary(head, found, recipe.vocabulary, recipe.drawn)
    return kangaroo.KangarooTrainer(model, recipe, read_texts(lm, found, recipe.exit, recipe.longest), vocabulary)


def test_it_goes_on_where_it_was(
    lm: LanguageModel, answers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kangaroo, "CHECKPOINT_STEPS", 3)
    whole, broken, resumed = (trainer(lm, answers, KangarooRecipe(**{**vars(RECIPE), "steps": 8})) for _ in range(3))
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    whole.train(tmp_path / "one")
    with pytest.raises(KeyboardInterrupt):
        broken.train(tmp_path / "two", lambda stage, done, total, note="": stop(done))
    resumed.train(tmp_path / "two")
    for one, other in zip(whole.learnt, resumed.learnt, strict=True):
        assert torch.equal(one, other)
    with pytest.raises(BadInput, match="checkpoint of another recipe"):
        trainer(lm, answers, RECIPE).train(tmp_path / "two")


def stop(done: int) -> None:
    if done == 5:
        raise KeyboardInterrupt


def test_where_it_begins(lm: LanguageModel, answers: Path) -> None:
    first = lm.network.model.base_model.layers[2]  # type: ignore[attr-defined]
    own = trainer(lm, answers, RECIPE).adapter
    assert torch.equal(own.get_parameter(WEIGHTS["queries"]), first.self_attn.q_proj.weight)
    assert torch.equal(own.get_parameter(WEIGHTS["norm"]), first.input_layernorm.weight)
    random = trainer(lm, answers, KangarooRecipe(**{**vars(RECIPE), "random_start": True})).adapter
    assert not torch.equal(random.get_parameter(WEIGHTS["queries"]), first.self_attn.q_proj.weight)
    other = trainer(lm, answers, KangarooRecipe(**{**vars(RECIPE), "random_start": True, "seed": 1})).adapter
    assert not torch.equal(random.get_parameter(WEIGHTS["queries"]), other.get_parameter(WEIGHTS["queries"]))


def test_the_rate_rises_and_falls(lm: LanguageModel, answers: Path) -> None:
    found = trainer(lm, answers, RECIPE)
    rates = []
    for found.step in range(RECIPE.steps + 1):
        rates.append(found.rate())
    assert rates[0] == pytest.approx(RECIPE.rate / RECIPE.warmup)
    assert max(rates) == pytest.approx(RECIPE.rate)
    assert rates[-1] == pytest.approx(RECIPE.least_rate)
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_gradients_are_clipped(lm: LanguageModel, answers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clipped: list[float] = []
    monkeypatch.setattr(torch.nn.utils, "clip_grad_value_", lambda weights, most: clipped.append(most))
    trainer(lm, answers, RECIPE).advance()
    assert clipped == [RECIPE.clip]


def test_only_the_adapter_is_trained(lm: LanguageModel, answers: Path) -> None:
    found = trainer(lm, answers, RECIPE)
    before = {name: weight.clone() for name, weight in found.adapter.named_parameters()}
    found.advance()
    changed = {name for name, weight in found.adapter.named_parameters() if not torch.equal(weight, before[name])}
    assert changed == set(WEIGHTS.values())


def test_texts_beside_each_other_are_read_as_alone(lm: LanguageModel, answers: Path) -> None:
    found = trainer(lm, answers, RECIPE)
    some = sorted(found.texts[:4], key=lambda text: len(text.lower))
    with torch.no_grad():
        together = speak(found.adapter, some)
        alone = [speak(found.adapter, [text])[0] for text in some]
    for one, other, text in zip(together, alone, some, strict=True):
        assert one.shape == text.last.shape
        assert torch.allclose(one, other, atol=5e-2)


def test_frequent_tokens(answers: Path) -> None:
    found = read_answers(answers)
    counts: dict[int, int] = {}
    for answer in found:
        for token in answer.output:
            counts[token] = counts.get(token, 0) + 1
    rare = next(token for token in range(200) if token not in counts)
    tokens = frequent(found, 5, 260, [rare]).tolist()
    assert tokens == sorted(tokens)
    assert rare in tokens
    assert {max(counts, key=lambda token: counts[token])} <= set(tokens)
