"""The methods in bytes: their laws, what they cost, what they refuse; and the laws that are told without decoding."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from decodery.bytewise.byte_level_probabilities import ByteLevelProbabilities
from decodery.bytewise.mixture import behind, prompt_of
from decodery.bytewise.reader import ByteReader
from decodery.bytewise.vocabulary import ByteVocabulary
from decodery.engine.registry import method as as_method
from decodery.engine.settings import Settings
from decodery.errors import BadParameter, BadPrompt, ConstraintFailed, MethodUnavailable, Refused
from decodery.evaluation.byte_languages import spaced, two_letters
from decodery.evaluation.bytes_check import LANGUAGES, _enumerated, as_bytes, expected, language_and_model
from decodery.evaluation.check import check_method
from decodery.models.forward import Forward, Rows
from decodery.testing import SmallLanguageModel, toy_diffusion_model, toy_language_model
from decodery.testing.goodness import total_variation
from decodery.testing.outputs import exact_outputs
from decodery.testing.scorers import TabularScorer

SPECS = [
    "byte-level-probabilities",
    "byte-level-probabilities(fast=True)",
    "byte-level-probabilities(until=boundary)",
    "byte-level-probabilities(models=other)",
    "byte-level-probabilities(models=other, weights=3+1)",
    "byte-level-probabilities(models=other, mean=logarithms)",
    "byte-draft-model(draft=other, length=1)",
    "byte-draft-model(draft=other, length=3)",
]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", LANGUAGES)
def test_texts_have_exactly_the_law_of_bytes(spec: str, name: str) -> None:
    """By enumeration of every decision; plain decoding, whose prompt's last token excludes texts, is far off."""
    method = as_method(spec)
    part = _enumerated(method, name, 0, expected(method)[name])
    assert part.passed
    assert part.numbers["plain"] > 0.3


def test_check_decides_it() -> None:
    _, lm, _ = language_and_model("look-ahead")
    report = check_method(lm, "byte-level-probabilities(until=boundary)", samples=200)
    assert report.passed
    assert len(report.parts) == 4
    assert all(part.passed for part in report.parts)


def test_one_pass_a_byte() -> None:
    """One forward for what stays of the prompt, one for what is open at its end, and one for each further byte; with drafts
    one for several bytes."""
    _, lm, prompt = language_and_model("two letters")
    for seed in range(6):
        reply: Any = lm.generate(
            prompt, method="byte-level-probabilities", temperature=1.0, max_new_tokens=16, seed=seed
        )
        written = len(reply.token_ids)  # the end too
        assert reply.stats.details["byte_forwards"] == reply.stats.forwards <= 1 + written
        assert 0 <= abs(reply.stats.details["leak"]) < 1e-6
        assert reply.stats.details["most_leak"] < 1e-6
        drafted: Any = lm.generate(
            prompt, method="byte-draft-model(draft=other, length=3)", temperature=1.0, max_new_tokens=16, seed=seed
        )
        assert drafted.stats.models["language"].forwards <= 2 + len(drafted.token_ids) - drafted.stats.accepted
        healed: Any = lm.generate(
            prompt, method="byte-level-probabilities(until=boundary)", temperature=1.0, max_new_tokens=16, seed=seed
        )
        assert healed.stats.details["byte_forwards"] == 2


def test_drafts_change_no_greedy_text() -> None:
    for name in LANGUAGES:
        _, lm, prompt = language_and_model(name)
        plain: Any = lm.generate(prompt, method="byte-level-probabilities", temperature=0.0, max_new_tokens=8)
        for length in (1, 2, 5):
            drafted: Any = lm.generate(
                prompt, method=f"byte-draft-model(draft=other, length={length})", temperature=0.0, max_new_tokens=8
            )
            assert drafted.token_ids == plain.token_ids


def test_an_ensemble_of_a_model_with_itself_is_the_model() -> None:
    language, lm, prompt = language_and_model("look-ahead")
    lm.companions["twin"] = language.model("twin")
    alone, twice = lm.next_byte(prompt), lm.next_byte(prompt, models=["twin"])
    assert torch.allclose(alone.probabilities, twice.probabilities, atol=1e-6)
    assert alone.end == pytest.approx(twice.end, abs=1e-6)
    assert twice.forwards == 2 * alone.forwards


def test_an_ensemble_loses_no_more_than_its_members_on_the_average() -> None:
    """Convexity, for every text of a language, in models of different tokens."""
    language, lm, _ = language_and_model("two letters")
    other = lm.companions["other"]
    begin = [language.tokenizer.bos_token_id]
    theirs = [other.tokenizer.bos_token_id]
    for text in [text for text in language.encodings if text]:
        both = lm.score_bytes(text, begin, models=["other"])
        each = lm.score_bytes(text, begin).bits_per_byte, other.score_bytes(text, theirs).bits_per_byte
        assert both.bits_per_byte <= sum(each) / 2 + 1e-5


def test_scores_of_given_bytes() -> None:
    """They sum up to the probability of a beginning, and are the next byte's own, one by one."""
    language, lm, _ = language_and_model("look-ahead")
    law, begin = language.law(), [language.tokenizer.bos_token_id]
    for text in ("aé", " a ", "  é"):
        scored = lm.score_bytes(text, begin)
        mass = sum(own for one, own in law.items() if one.startswith(text.encode()))
        assert scored.log_probability == pytest.approx(math.log(mass), abs=1e-4)
        assert scored.text == text.encode()
        assert len(scored.logprobs) == len(scored.leaks) == len(scored.text)
        first = lm.next_byte(begin).probabilities[scored.text[0]]
        assert float(scored.logprobs[0].exp()) == pytest.approx(float(first), abs=1e-6)
        assert scored.bits_per_byte == pytest.approx(-float(scored.logprobs.mean()) / math.log(2))


def test_what_is_told_of_the_next_byte() -> None:
    language, lm, prompt = language_and_model("two letters")
    found = lm.next_byte(prompt)
    assert float(found.probabilities.sum()) + found.end == pytest.approx(1)
    assert [byte for byte, value in found.top(2)] == sorted(
        (b"a", b"b"), key=lambda b: -float(found.probabilities[b[0]])
    )
    assert len(found.top(300)) == 256
    assert [ids for ids, _ in found.lefts] == [[language.tokenizer.bos_token_id], prompt]
    assert found.lefts[0][1] == 0 > found.lefts[1][1]


def test_prompts_in_bytes_may_end_inside_a_sign() -> None:
    _, lm, _ = language_and_model("look-ahead")
    found = lm.next_byte(b"a\xc3")
    assert float(found.probabilities[0xA9]) == pytest.approx(1)
    assert lm.next_byte(b"a").top(3) == lm.next_byte("a").top(3)
    for wrong in (b"\xc3", b"\xa9a", b""):
        with pytest.raises(BadPrompt, match="UTF-8"):
            lm.next_byte(wrong)
    with pytest.raises(BadPrompt, match="empty"):
        lm.score_bytes("", "a")


def test_a_prompt_in_another_model_s_tokens() -> None:
    language, lm, _ = language_and_model("two letters")
    other = lm.companions["other"]
    begin, end = language.tokenizer.all_special_ids
    theirs = other.tokenizer
    ids = [*language.tokenizer.encode("aba"), end, *language.tokenizer.encode("ab", add_special_tokens=False)]
    assert prompt_of(lm, ids, other) == [*theirs.encode("aba"), theirs.eos_token_id, *theirs.encode("ab", False)]
    assert prompt_of(lm, [begin], other) == [theirs.bos_token_id]
    spaces = spaced(2).model()
    vocabulary = ByteVocabulary.of(spaces)
    partial = [spaces.tokenizer.bos_token_id, vocabulary.tokens[b"a"][0], vocabulary.byte_tokens[0xC3]]
    assert behind(spaces, partial) == b"\xc3"
    assert behind(spaces, partial[:2]) == b""
    assert spaces.tokenizer.decode(prompt_of(spaces, partial, spaces)[1:]) == "a"


def test_special_tokens_begin_anew() -> None:
    """A special token that ends nothing is drawn as it stands, and what follows is read behind it."""
    tokenizer = two_letters(2).tokenizer
    size = len(tokenizer)
    begin, end = tokenizer.all_special_ids

    def given(prefix: Any) -> list[float]:
        row = [0.0] * size
        if list(prefix).count(begin) < 2 and len(prefix) > 1:
            row[begin] = 1.0
        else:
            row[tokenizer.get_vocab()["ab" if prefix[-1] == begin and len(prefix) > 1 else "a"]] = 1.0
        return row

    lm = SmallLanguageModel(TabularScorer(size, order=None, given=given), tokenizer, [end])
    lm.companions["other"] = lm
    a, b = (tokenizer.get_vocab()[sign] for sign in "ab")
    for spec in ("byte-level-probabilities", "byte-draft-model(draft=other, length=2)"):
        reply: Any = lm.generate([begin], method=spec, temperature=0.0, max_new_tokens=4)
        assert reply.token_ids == [a, begin, a, b]


def test_leaks_are_told() -> None:
    """A model that does not know its tokenizer gives mass to tokens that cannot come; it is left out and told."""
    language = two_letters(2)
    lm = SmallLanguageModel(
        TabularScorer(len(language.tokenizer), order=2), language.tokenizer, [language.tokenizer.eos_token_id]
    )
    lm.companions["other"] = lm
    for spec in ("byte-level-probabilities", "byte-draft-model(draft=other)"):
        reply: Any = lm.generate("a", method=spec, temperature=1.0, seed=2, max_new_tokens=12)
        assert reply.stats.details["most_leak"] >= reply.stats.details["leak"] > 0.01
    assert lm.next_byte("a").leak > 0.001
    fast: Any = lm.generate(
        "a", method="byte-level-probabilities(fast=True)", temperature=1.0, seed=2, max_new_tokens=12
    )
    assert fast.stats.details["leak"] < reply.stats.details["leak"]


def test_logprobs_and_stop_strings_are_those_of_bytes() -> None:
    _, lm, prompt = language_and_model("look-ahead")
    reply: Any = lm.generate(
        prompt, method="byte-level-probabilities", temperature=1.0, seed=1, max_new_tokens=4, logprobs=2
    )
    first = lm.next_byte(prompt)
    byte = ByteVocabulary.of(lm).said[reply.token_ids[0]]
    own = float(first.probabilities[byte[0]]) if byte else first.end
    assert reply.logprobs[0].raw == pytest.approx(math.log(own), abs=1e-4)
    for until in ("end", "boundary"):
        healed: Any = lm.generate(
            prompt,
            method=f"byte-level-probabilities(until={until})",
            temperature=1.0,
            seed=5,
            max_new_tokens=6,
            logprobs=0,
            stop=["é"],
        )
        assert "é" not in healed.text


def test_a_long_text_forgets_what_is_over() -> None:
    """The cache holds little more than the tokens of the text, and streamed laws stay those from scratch."""
    lm = toy_language_model()
    vocabulary = ByteVocabulary.of(lm)
    reader = ByteReader(vocabulary, lm.network.new_sequence(), lm.tokenize("hello"))
    for byte in b" there, this is a text" * 4:
        lm.run(reader.score())
        reader.settle()
        reader.extend(bytes([byte]))
        assert len(reader.covers.lefts) <= 3
    lm.run(reader.score())
    fresh = lm.next_byte(("hello" + " there, this is a text" * 4).encode())
    found = reader.law()
    assert np.allclose(found.masses / found.total, fresh.probabilities.numpy(), atol=1e-4)
    assert reader.sequence.length <= 5 + 22 * 4 + 8


def test_at_a_certain_boundary_bytes_and_tokens_agree() -> None:
    """Of a model of bytes every boundary is certain: the law of the next byte is that of the next token, and nothing leaks."""
    lm = toy_language_model()
    for text in ("hello 5", "a", "naïve "):
        ids = lm.tokenize(text)

        def ask(ids: list[int] = ids) -> Any:
            scores = yield Forward(lm.network.new_sequence(), ids, logits=Rows.LAST)
            return scores.logits[0].double().softmax(0)

        law, found = lm.run(ask()), lm.next_byte(text)
        assert 0.5 * float((law[:256] - found.probabilities).abs().sum()) < abs(found.leak) + 1e-4
        assert found.leak == pytest.approx(0, abs=1e-9)
        assert found.end == pytest.approx(float(law[256:].sum()), abs=1e-6)
    language, small, _ = language_and_model("look-ahead")
    law = language.law()
    prompt = [language.tokenizer.bos_token_id]
    texts: Any = as_bytes(
        small, exact_outputs(small, "autoregressive", prompt, Settings(temperature=1.0, max_new_tokens=16, seed=0))
    )
    assert total_variation(texts, law) < 1e-3


def test_what_is_refused() -> None:
    _, lm, prompt = language_and_model("look-ahead")
    with pytest.raises(BadParameter, match="weights are 2 positive numbers"):
        ByteLevelProbabilities(models="other", weights="1+-2")
    with pytest.raises(BadParameter, match="weights are 3 positive numbers"):
        ByteLevelProbabilities(models="x+y", weights="1+2")
    with pytest.raises(BadParameter):
        ByteLevelProbabilities(models="other", until="boundary")
    with pytest.raises(Refused, match="structured_outputs"):
        lm.generate(prompt, method="byte-level-probabilities", structured_outputs={"regex": "a"}, temperature=1.0)
    with pytest.raises(ConstraintFailed, match="no probability"):
        lm.next_byte([prompt[0], *lm.encode("aaaa")])
    with pytest.raises(Refused, match="masked-diffusion"):
        toy_diffusion_model().next_byte("a")
    diffusing = toy_diffusion_model()
    lm.companions["canvas"] = diffusing
    with pytest.raises(MethodUnavailable, match="causal"):
        lm.generate(prompt, method="byte-level-probabilities(models=canvas)")
    with pytest.raises(BadPrompt, match="context"):
        toy_language_model(context=8).next_byte("a long prompt")
    with pytest.raises(BadPrompt, match="context"):
        toy_language_model(context=8).score_bytes("a long text", "a")
