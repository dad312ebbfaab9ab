"""Steps that look at what a text repeats, and at words: against transformers or their description."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers.generation.logits_process as theirs
from hypothesis import given
from hypothesis import strategies as st
from law_cases import law_of, rows, texts

from decodery.engine.settings import Settings
from decodery.errors import BadSetting
from decodery.sampling.phrases import Breakers, Words
from decodery.sampling.repetition import repetitions
from decodery.testing import (
    LetterTokenizer,
    SmallLanguageModel,
    TabularScorer,
    exact_outputs,
    scripted_language_model,
    story_scorer,
    total_variation,
)


@given(texts, st.integers(1, 6))
def test_no_ngram_twice_as_in_transformers(text: list[int], size: int) -> None:
    row = rows(3, wide=6, holes=False)[1]
    expected = theirs.NoRepeatNGramLogitsProcessor(size)(torch.tensor([text]), row[None])[0]
    assert torch.equal(law_of(text, no_repeat_ngram_size=size).scores(row), expected)


@given(texts, st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4), min_size=1, max_size=8))
def test_bad_words_are_those_of_transformers(text: list[int], words: list[list[int]]) -> None:
    """On texts that are longer than the words: a shorter one is not looked at there."""
    row = rows(3, wide=6, holes=False)[1]
    expected = theirs.NoBadWordsLogitsProcessor(words)(torch.tensor([text]), row[None])[0]
    assert torch.equal(law_of(text, bad_words=tuple(map(tuple, words))).scores(row), expected)


def _dry(text: list[int], multiplier: float, base: float, allowed: int, last_n: int, breakers: list[list[int]]) -> dict:
    """By the description: for each token the longest end of the text, behind the last breaker, that stood before it earlier."""
    text = text if last_n < 0 else text[len(text) - min(last_n, len(text)) :]
    if len(text) <= allowed:
        return {}
    limit = len(text)
    for start in reversed(range(len(text))):  # the breaker that begins last
        ends = [start + len(b) for b in breakers if text[start : start + len(b)] == b]
        if ends:
            limit = len(text) - max(ends)
            break
    penalties = {}
    for token in set(text):
        if [token] in breakers:
            continue
        longest = 0
        for place in range(1, len(text)):
            if text[place] == token:
                length = 0
                while length < min(place, limit) and text[place - 1 - length] == text[len(text) - 1 - length]:
                    length += 1
                longest = max(longest, length)
        if longest >= allowed:
            penalties[token] = multiplier * base ** (longest - allowed)
    return penalties


@given(
    texts,
    st.sampled_from([1.0, 1.75, 3.0]),
    st.integers(1, 4),
    st.sampled_from([-1, 0, 3, 8]),
    st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=2), max_size=3),
)
def test_dry_penalises_what_would_go_on(
    text: list[int], base: float, allowed: int, last_n: int, breakers: list[list[int]]
) -> None:
    row = rows(3, wide=6, holes=False)[1]
    found = law_of(
        text,
        dry_multiplier=0.8,
        dry_base=base,
        dry_allowed_length=allowed,
        dry_penalty_last_n=last_n,
        dry_sequence_breakers=tuple(map(tuple, breakers)),
    ).scores(row)
    expected = row.clone()
    for token, penalty in _dry(text, 0.8, base, allowed, last_n, breakers).items():
        expected[token] -= penalty
    assert torch.allclose(found, expected, atol=1e-5)


def test_dry_stays_a_number_however_long_a_repetition_is() -> None:
    found = law_of([1] * 400, dry_multiplier=1.0, dry_base=2.0, dry_sequence_breakers=()).scores(torch.zeros(4))
    assert found.isfinite().all()
    assert float(found[1]) < -1e37


@given(texts, st.integers(1, 9))
def test_repetitions_are_those_that_a_scan_finds(text: list[int], longest: int) -> None:
    expected: dict[int, int] = {}
    for place in range(1, len(text)):
        length = 0
        while length < min(place, longest) and text[place - 1 - length] == text[-1 - length]:
            length += 1
        if length:
            expected[text[place]] = max(length, expected.get(text[place], 0))
    assert repetitions(text, longest) == expected


# Words


class Pieces(LetterTokenizer):
    """Tokens 0 to 25 are letters; the others are pieces of text."""

    pieces = (" ", "\n", ".\n", '"', 'a"', " the", "en", "end", "d")

    def __init__(self) -> None:
        super().__init__(26 + len(self.pieces))

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return "".join(chr(97 + t) if t < 26 else self.pieces[t - 26] for t in token_ids)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [26 if sign == " " else 27 if sign == "\n" else 29 if sign == '"' else ord(sign) - 97 for sign in text]


class Spelled:
    def __init__(self) -> None:
        self.tokenizer = Pieces()

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def written(self) -> list[str]:
        return [self.tokenizer.decode([token]) for token in range(len(self.tokenizer))]

    def remember(self, key: Any, make: Any) -> Any:
        return make()


def test_words_are_found_at_the_beginning_and_behind_a_space() -> None:
    spelled = Words().spelled(("ab", (7, 8), " c"), Spelled())
    assert spelled == ((0, 1), (26, 0, 1), (7, 8), (26, 2))


def test_breakers_are_found_wherever_tokens_say_them() -> None:
    assert Breakers().spelled(("\n",), Spelled()) == ((27,), (28,))
    assert Breakers().spelled(('"', (7,)), Spelled()) == ((29,), (30,), (7,))
    # "end": tokens that hold it, and those that end as it begins, with the rest behind them.
    assert set(Breakers().spelled(("end",), Spelled())) == {(33,), (32, 3), (4, 13, 3), (31, 13, 3)}


def test_texts_become_tokens_before_a_request_runs() -> None:
    scorer = story_scorer(24, surprise=0.0)
    lm = SmallLanguageModel(scorer, LetterTokenizer(24))
    plain = lm.generate([1, 2, 3], "autoregressive", max_new_tokens=12)
    word = plain.text[4:6]
    for method in ("autoregressive", "prompt-lookup", "token-recycling", "cascade"):
        found = lm.generate([1, 2, 3], method, max_new_tokens=12, bad_words=word)
        assert word not in found.text
        assert found.text[:5] == plain.text[:5]
        assert (
            found.token_ids == lm.generate([1, 2, 3], max_new_tokens=12, bad_words_ids=[plain.token_ids[4:6]]).token_ids
        )
    with pytest.raises(ValueError, match="bad_words holds the text 'ab'; a law by itself has no tokenizer"):
        law_of(bad_words=("ab",)).scores(torch.zeros(5))


def test_the_default_breakers_of_dry_reach_the_tokenizer() -> None:
    tokenizer = Pieces()
    lm = SmallLanguageModel(TabularScorer(len(tokenizer), order=1, given=lambda prefix: [1.0] * 35), tokenizer)
    # a b c a b: "c" would go on; with a line break between, nothing would.
    settings: dict[str, Any] = {
        "max_new_tokens": 1,
        "dry_multiplier": 5.0,
        "logprobs": 35,
        "temperature": 1.0,
        "seed": 0,
    }
    for prompt, repeated in (([0, 1, 2, 0, 1], True), ([0, 1, 2, 0, 28, 1], False)):
        reply = lm.generate(prompt, "autoregressive", logit_bias={2: 20.0}, **settings)
        [told] = reply.logprobs
        assert reply.token_ids == [2]
        assert (told.processed < math.log(1 - 1e-6)) is repeated


# They compose


@pytest.mark.parametrize(
    "settings",
    [
        {"typical_p": 0.5},
        {"xtc_probability": 0.5, "xtc_threshold": 0.1},
        {"mirostat": 2, "mirostat_tau": 1.2, "mirostat_eta": 0.5},
        {"dry_multiplier": 1.0, "dry_allowed_length": 1, "dry_sequence_breakers": ((2,),), "top_h": 0.9},
        {"dynatemp_range": 0.5, "tail_free": 0.8, "no_repeat_ngram_size": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("method", ["draft-model", "token-recycling", "spectr"])
def test_the_law_of_drafted_output_is_that_of_plain_output(settings: dict[str, Any], method: str) -> None:
    """Enumerated, with draws of the steps themselves."""
    scorer = TabularScorer(3, order=None, seed=5)
    lm = scripted_language_model(scorer, drafter=scorer.blurred())
    given = Settings(temperature=1.0, max_new_tokens=2, seed=0, **settings)
    plain = exact_outputs(lm, "autoregressive", [0, 1], given)
    drafted = exact_outputs(lm, method, [0, 1], given)
    assert total_variation(plain, drafted) < 1e-5


def test_settings_that_name_texts_are_checked() -> None:
    with pytest.raises(BadSetting, match="bad_words needs non-empty texts"):
        Settings.of({"bad_words": [""]}, 10)
