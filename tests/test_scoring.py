"""Given texts are scored as transformers scores them: alone, packed, behind a prompt, in pieces, on every kind of network."""

from __future__ import annotations

import math
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from tiny_models import byte_level_tokenizer, make_model, random_ids, reference_logits, sentence_piece_tokenizer

import decodery
from decodery.engine.request import PROMPT_CHUNK
from decodery.errors import BadPrompt, BadSetting, NotEnoughMemory, Refused, ScoresNotNumbers
from decodery.language_model import LanguageModel
from decodery.models.forward import POST_NORM
from decodery.scoring import AT_ONCE, Scored
from decodery.testing import (
    ByteTokenizer,
    LetterTokenizer,
    ScriptedScorer,
    SmallLanguageModel,
    TabularScorer,
    scripted_language_model,
    toy_diffusion_model,
)

TEXTS = ["the quick brown fox", "größer, 東京 and 🙂🙃", "a", "the quick brown dog jumps " * 40]
PROMPT = "over the lazy dog; "
BOUND = 1e-3


@cache
def model(family: str = "llama") -> Any:
    return make_model(family, vocab_size=330, eos_token_id=0)


@cache
def wrapped(family: str = "llama", fast: str = "off") -> LanguageModel:
    return decodery.wrap(model(family), byte_level_tokenizer(), name="tiny", fast=fast)


def reference(ids: list[int], family: str = "llama") -> torch.Tensor:
    """Log probabilities of tokens 1, 2, … of a text, by transformers."""
    law = reference_logits(model(family), ids).log_softmax(-1)
    return law[:-1].gather(1, torch.tensor(ids)[1:, None])[:, 0]


def assert_scored(scored: Scored, prompt: list[int], ids: list[int], family: str = "llama") -> None:
    expected = reference([*prompt, *ids], family)[max(len(prompt) - 1, 0) :]
    found = scored.logprobs if prompt else scored.logprobs[1:]
    assert scored.token_ids == ids
    assert scored.logprobs.dtype == torch.float32
    assert prompt or bool(scored.logprobs[0].isnan())
    torch.testing.assert_close(found, expected, atol=BOUND, rtol=0)
    assert scored.log_probability == pytest.approx(float(expected.double().sum()), abs=BOUND * len(ids))


@pytest.mark.parametrize(
    ("family", "fast"), [("llama", "off"), ("llama", "fused"), ("gemma2", "off"), ("gpt2", "off"), ("mistral", "off")]
)
@pytest.mark.parametrize("prompt", [None, PROMPT])
def test_scores_are_those_of_transformers(family: str, fast: str, prompt: str | None) -> None:
    lm = wrapped(family, fast)
    before = [] if prompt is None else lm.encode(prompt)
    listed = [lm.encode(text) for text in TEXTS]
    assert len(listed[3]) > PROMPT_CHUNK
    for texts in (TEXTS, listed):
        for scored, ids in zip(lm.score(texts, prompt), listed, strict=True):
            assert_scored(scored, before, ids, family)
            assert scored.prompt_tokens == len(before)
    single = lm.score(TEXTS[0], prompt)
    assert_scored(single, before, listed[0], family)


def test_a_model_with_a_cache_of_its_own() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        own = MambaForCausalLM(MambaConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, state_size=4)).eval()
    lm = decodery.wrap(own, LetterTokenizer(99), name="own")
    assert lm.network.chains_only
    prompt, texts = random_ids(9, 1), [random_ids(count, count) for count in (1, 7, 30)]
    for scored, ids in zip(lm.score(texts, prompt, top=2), texts, strict=True):
        law = reference_logits(own, [*prompt, *ids]).log_softmax(-1)[len(prompt) - 1 : -1]
        torch.testing.assert_close(scored.logprobs, law[torch.arange(len(ids)), torch.tensor(ids)], atol=BOUND, rtol=0)
    with pytest.raises(Refused, match="leave taps out"):
        lm.score(texts, taps=[0])


@pytest.mark.parametrize("prompt", [None, PROMPT])
def test_alternatives_and_hidden_rows(prompt: str | None) -> None:
    lm = wrapped()
    before = [] if prompt is None else lm.encode(prompt)
    for scored in lm.score(TEXTS, prompt, top=3, taps=[0, 2, POST_NORM]):
        ids, count = scored.token_ids, len(scored.token_ids)
        with torch.inference_mode():
            output = model()(torch.tensor([[*before, *ids]]), output_hidden_states=True, use_cache=False)
        known = 0 if before else 1
        law = output.logits[0].float().log_softmax(-1)[max(len(before) - 1, 0) : -1]
        assert scored.top_ids.shape == scored.top_logprobs.shape == (count, 3)
        torch.testing.assert_close(scored.top_logprobs[known:], law.topk(3).values, atol=BOUND, rtol=0)
        torch.testing.assert_close(law.gather(1, scored.top_ids[known:]), law.topk(3).values, atol=BOUND, rtol=0)
        if not before:
            assert scored.top_ids[0].tolist() == [-1] * 3
        for tap, layer in ((0, 1), (2, 3), (POST_NORM, -1)):
            rows = output.hidden_states[layer][0, len(before) :]
            torch.testing.assert_close(scored.hidden[tap], rows, atol=BOUND, rtol=0)


def test_sums_are_the_probabilities_of_texts() -> None:
    """All texts of three tokens over an explicit law: what it gives them, and together 1."""
    scorer = TabularScorer(4, order=None, seed=3)
    lm = scripted_language_model(scorer)
    texts = [list(text) for text in product(range(4), repeat=3)]
    joint = scorer.joint([2, 0], 3)
    found = {tuple(s.token_ids): math.exp(s.log_probability) for s in lm.score(texts, [2, 0])}
    assert found == pytest.approx(joint, rel=1e-4)
    assert sum(found.values()) == pytest.approx(1.0, abs=1e-4)


def test_a_prompt_is_scored_once_and_scores_are_asked_for_in_bounded_pieces() -> None:
    lm = wrapped()
    texts = [random_ids(count, seed, 330) for seed, count in enumerate((40, 200, 300, 3, 90, 130, 130, 130))]
    prompt = random_ids(100, 5, 330)
    rows, logits = 0, []
    run_pass = lm.network.run_pass

    def counted(forwards: Any) -> Any:
        nonlocal rows
        rows += sum(forward.count for forward in forwards)
        logits.append(sum(len(forward.logit_rows()) for forward in forwards))
        return run_pass(forwards)

    lm.network.run_pass = counted  # type: ignore[method-assign]
    try:
        scored = lm.score(texts, prompt)
    finally:
        del lm.network.run_pass
    assert rows == len(prompt) + sum(len(text) - 1 for text in texts)
    assert max(logits) <= AT_ONCE
    assert len(logits) < sum(-(-len(text) // PROMPT_CHUNK) for text in texts)
    for one, text in zip(scored, texts, strict=True):
        assert_scored(one, prompt, text)


def test_texts_beyond_a_border_are_read_whole() -> None:
    """Where the scores of a long text are others than those of its beginning, it is not read in pieces, nor behind a shared
    prompt."""

    class Bordered(TabularScorer):
        @property
        def border(self) -> int | None:
            return 150

    texts, prompt = [random_ids(count, count, 6) for count in (20, 140, 200)], random_ids(30, 2, 6)
    plain, scorer = TabularScorer(6, seed=2), Bordered(6, seed=2)
    expected = scripted_language_model(plain).score(texts, prompt, taps=[0])
    asked: list[int] = []
    run_pass = scorer.run_pass
    scorer.run_pass = lambda forwards: asked.extend(f.count for f in forwards) or run_pass(forwards)  # type: ignore[func-returns-value, method-assign, assignment]
    for one, other in zip(scripted_language_model(scorer).score(texts, prompt, taps=[0]), expected, strict=True):
        assert torch.equal(one.logprobs, other.logprobs)
        assert torch.equal(scorer.head()(one.hidden[0]), plain.head()(other.hidden[0]))
    assert sorted(asked) == [20, 30, 170, 230]


def test_texts_may_be_scored_within_a_small_budget() -> None:
    lm = decodery.wrap(model(), byte_level_tokenizer(), name="tiny", kv_budget=wrapped().network.cache_bytes(128))
    texts = [random_ids(100, seed, 330) for seed in range(4)]
    for scored, text in zip(lm.score(texts), texts, strict=True):
        assert_scored(scored, [], text)
    with pytest.raises(NotEnoughMemory):
        lm.score([random_ids(129, 1, 330)])


# Tokens and characters


@pytest.mark.parametrize("tokenizer", [byte_level_tokenizer, sentence_piece_tokenizer])
def test_every_token_has_its_part_of_the_text(tokenizer: Any) -> None:
    lm = SmallLanguageModel(ScriptedScorer(lambda prefix: torch.zeros(330), 330), tokenizer())
    for text in ["the quick brown fox", "größer, 東京 and 🙂🙃 stop", " the end. ", "🙂"]:
        scored = lm.score(text, "the ")
        assert scored.text.strip() == text.strip()
        assert "".join(scored.text[start:end] for start, end in scored.spans) == scored.text
        ends = [0, *(end for _, end in scored.spans)]
        assert [start for start, _ in scored.spans] == ends[:-1]
        assert ends[-1] == len(scored.text)
    lm = SmallLanguageModel(ScriptedScorer(lambda prefix: torch.zeros(260), 260), ByteTokenizer())
    assert lm.score("aü<|end|>🙂b", "x").spans == [
        (0, 1),
        (1, 1),
        (1, 2),
        (2, 2),
        (2, 2),
        (2, 2),
        (2, 2),
        (2, 3),
        (3, 4),
    ]
    assert lm.score([0x61, 0xC3], [1]).spans == [(0, 1), (1, 2)]


# What is refused


@pytest.mark.parametrize(
    ("texts", "prompt", "message"),
    [
        ("", None, "empty"),
        ("", "a", "empty"),
        (["a", ""], "a", "text 2 of 2: .*empty"),
        (["a", [1, 999]], None, "text 2 of 2: .*999"),
        ([[1], [2], [3.5]], None, "text 3 of 3: "),
        (["a", [1] * 600], None, "text 2 of 2: the text has 600 tokens, but tiny has a context of 512"),
        ([[1] * 300], [1] * 300, "behind a prompt of 300 together 600, but"),
        (["a"], "", "empty"),
        (7, None, "."),
    ],
)
def test_bad_texts_are_named(texts: Any, prompt: Any, message: str) -> None:
    with pytest.raises(BadPrompt, match=message):
        wrapped().score(texts, prompt)


@pytest.mark.parametrize(
    "wrong", [{"top": -1}, {"top": True}, {"top": 1.5}, {"taps": [4]}, {"taps": [-2]}, {"taps": ["a"]}]
)
def test_bad_settings_are_refused(wrong: Any) -> None:
    with pytest.raises(BadSetting, match=next(iter(wrong))):
        wrapped().score("a", **wrong)


def test_a_masked_diffusion_model_refuses() -> None:
    with pytest.raises(Refused, match="masked-diffusion model, which gives no token a probability"):
        toy_diffusion_model().score("a")


def test_scores_that_are_no_numbers_are_told() -> None:
    def script(prefix: tuple[int, ...]) -> torch.Tensor:
        return torch.full((10,), torch.nan) if 9 in prefix else torch.arange(10.0)

    lm = scripted_language_model(ScriptedScorer(script, 10))
    with pytest.raises(ScoresNotNumbers, match="text 2 of 2: the network's scores of token 3 are not numbers"):
        lm.score([[1, 2, 3], [1, 9, 3]])
    assert lm.score([]) == []
