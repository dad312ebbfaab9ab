"""Prompts in every form that users have them, and texts that a tokenizer has no tokens for."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import byte_level_tokenizer, make_model

import decodery
from decodery import BadParameter, BadPrompt, BadSetting, LanguageModel, UnknownMethod
from decodery.testing import ScriptedScorer, SmallLanguageModel


@cache
def _lm() -> LanguageModel:
    return decodery.wrap(make_model("llama", vocab_size=330), byte_level_tokenizer(), name="tiny")


IDS = [40, 41, 42]


@pytest.mark.parametrize(
    "prompt",
    [
        np.array(IDS),
        np.array(IDS, dtype=np.uint8),
        np.array([IDS]),
        list(np.array(IDS)),
        tuple(np.array(IDS, dtype=np.int16)),
        [torch.tensor(token) for token in IDS],
        [np.array(token) for token in IDS],
        torch.tensor(IDS, dtype=torch.int32),
        torch.tensor([IDS]),
    ],
    ids=repr,
)
def test_arrays_and_their_numbers_are_token_ids(prompt: Any) -> None:
    assert _lm().tokenize(prompt) == IDS
    assert all(type(token) is int for token in _lm().tokenize(prompt))
    reply = _lm().generate(prompt, max_new_tokens=2)
    assert reply.token_ids == _lm().generate(IDS, max_new_tokens=2).token_ids


@pytest.mark.parametrize(
    "prompts",
    [
        [torch.tensor(IDS), torch.tensor([40])],
        [np.array(IDS), np.array([40])],
        [torch.tensor([IDS]), [40]],
        (np.array(IDS), "the"),
        [np.array(IDS)],
    ],
    ids=repr,
)
def test_lists_of_arrays_are_batches(prompts: Any) -> None:
    replies = _lm().generate(prompts, max_new_tokens=2)
    assert [list(reply.prompt_token_ids) for reply in replies] == [_lm().tokenize(prompt) for prompt in prompts]


@pytest.mark.parametrize(
    "prompt",
    [
        np.array([1.0, 2.0]),
        np.array([True]),
        np.array([[1, 2], [3, 4]]),
        np.array([[[1]]]),
        np.array([]),
        np.array("the"),
        np.int64(5),
        [np.float32(1)],
        [np.bool_(True)],
        [1, np.nan],
        [torch.tensor(1.5)],
        [np.int64(330)],
        [np.int64(-1)],
        [1, np.array([2])],
    ],
    ids=repr,
)
def test_other_numbers_are_refused_with_a_true_sentence(prompt: Any) -> None:
    with pytest.raises(BadPrompt) as caught:
        _lm().generate(prompt, max_new_tokens=1)
    assert "\n" not in str(caught.value)
    assert "list of token ids, not list" not in str(caught.value)


def test_no_prompts_give_no_replies() -> None:
    for nothing in ([], ()):
        assert _lm().generate(nothing) == []
        assert _lm().generate(nothing, method=[], seed=[], temperature=0.5) == []
        stream = _lm().stream(nothing)
        assert (list(stream), stream.replies()) == ([], [])
    with pytest.raises(BadSetting):
        _lm().generate([], temperature=-1)
    with pytest.raises(UnknownMethod):
        _lm().generate([], "none")
    with pytest.raises(BadPrompt, match="empty"):
        _lm().tokenize([])


@pytest.mark.parametrize(
    "number", [np.float32(0.5), np.float64(0.5), torch.tensor(0.5), np.array(0.5), np.longdouble(0.5)]
)
def test_numbers_of_numpy_and_torch_are_numbers_in_settings(number: Any) -> None:
    plain = _lm().generate("the", temperature=0.5, seed=5, max_new_tokens=3, logit_bias={7: 0.5}, stop_token_ids=[3])
    for whole in (np.int64, torch.tensor, np.uint8):
        reply = _lm().generate(
            "the", temperature=number, seed=whole(5), max_new_tokens=whole(3), logit_bias={whole(7): number},
            stop_token_ids=[whole(3)], echo=np.False_,
        )  # fmt: skip
        assert (reply.token_ids, reply.seed, type(reply.seed)) == (plain.token_ids, 5, int)
    together = _lm().generate(["the", "fox"], seed=np.array([5, 6]), temperature=number, max_new_tokens=2)
    assert [reply.seed for reply in together] == [5, 6]
    assert _lm().generate("the", stop_token_ids=np.array([3, 4]), max_new_tokens=1).finish_reason


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", np.nan), ("temperature", np.float32("nan")), ("temperature", np.True_),
        ("temperature", np.array([1.0])),
        ("seed", np.float32(5)), ("seed", np.True_), ("max_new_tokens", np.float64(3)), ("max_new_tokens", np.array([1, 2])),
        ("stop_token_ids", np.array([1.5])), ("stop_token_ids", np.array([[1]])), ("stop_token_ids", [np.True_]),
        ("logit_bias", {np.float64(1): 1.0}), ("logit_bias", {1: np.float32("nan")}), ("logit_bias", {1: np.True_}),
        ("stop", "\ud800"), ("stop", np.array(["a", ""])),
    ],
    ids=repr,
)  # fmt: skip
def test_other_numbers_are_refused_in_settings(name: str, value: Any) -> None:
    with pytest.raises(BadSetting, match=name) as caught:
        _lm().generate("the", **{name: value})
    assert "\n" not in str(caught.value)


def test_numbers_of_numpy_are_parameters() -> None:
    from decodery.speculative.prompt_lookup import PromptLookup

    [item, *_] = [item for item in PromptLookup.parameters() if item.type == "int"]
    built = PromptLookup(**{item.name: np.int64(3)})
    assert built == PromptLookup(**{item.name: 3})
    assert type(getattr(built, item.name)) is int
    for bad in (np.float32(1.5), np.True_, np.array([1])):
        with pytest.raises(BadParameter, match=item.name):
            PromptLookup(**{item.name: bad})


# Texts without tokens


def _words(**arguments: Any) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({"a": 0, "b": 1}, **arguments))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=raw)


def _pairs(**arguments: Any) -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0, "b": 1, "?": 2}, [], **arguments)))


def _host(tokenizer: Any) -> LanguageModel:
    return SmallLanguageModel(ScriptedScorer(lambda prefix: torch.zeros(3), 3), tokenizer)


class Fails:
    eos_token_id = None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [{"a": 0, "b": 1}[word] for word in text.split()]

    def decode(self, token_ids: Any, skip_special_tokens: bool = True) -> str:
        return " ".join("ab"[token] for token in token_ids)


@pytest.mark.parametrize("tokenizer", [_words(), Fails()], ids=["words", "an error of its own"])
def test_a_word_that_a_tokenizer_does_not_know(tokenizer: Any) -> None:
    lm = _host(tokenizer)
    assert lm.tokenize("a b") == [0, 1]
    with pytest.raises(BadPrompt, match="has no tokens for 'hello'") as caught:
        lm.generate("a hello b", max_new_tokens=1)
    assert "\n" not in str(caught.value)
    with pytest.raises(BadPrompt, match=r"^prompt 2 of 2: .*'hello'"):
        lm.generate(["a", "a hello"], max_new_tokens=1)


def test_a_character_that_a_tokenizer_drops() -> None:
    """Byte pairs without an unknown token leave out what they do not know, without a word."""
    lm = _host(_pairs())
    assert lm.tokenizer.encode("aéb") == [0, 1]
    assert lm.tokenize("ab") == [0, 1]
    with pytest.raises(BadPrompt, match="has no token for 'é'"):
        lm.tokenize("aéb")
    assert _host(_pairs(unk_token="?")).tokenize("aéb") == [0, 2, 1]


def test_half_a_surrogate_pair() -> None:
    with pytest.raises(BadPrompt, match="at character 1"):
        _lm().tokenize("a\ud83d")
    assert _lm().tokenize("a\r\nb\x00") == _lm().tokenizer.encode("a\r\nb\x00")
