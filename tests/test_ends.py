"""How outputs end, by every kind of method, at once and streamed: stop strings with special tokens, and the least length."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from tiny_models import byte_level_tokenizer, make_model
from torch import Tensor

import decodery
from decodery import BadSetting, LanguageModel, Refused
from decodery.engine.events import Finished, Token

METHODS = ["autoregressive", "prompt-lookup", "token-recycling", "cascade", "draft-model(layers=1)", "suffix-automaton"]
METHODS += ["spectr", "optimal-multi-draft", "recursive-speculative-decoding"]


@cache
def _lm() -> LanguageModel:
    return decodery.wrap(make_model("llama", vocab_size=330), byte_level_tokenizer())


def says(prompt: Sequence[int], output: Sequence[int]) -> Any:
    """A processor under which any network says these tokens; where a draft asks for more, the last one again."""

    def only(ids: Tensor, scores: Tensor) -> Tensor:
        place = min(ids.shape[1] - len(prompt), len(output) - 1)
        return torch.full_like(scores, float("-inf")).index_fill(1, torch.tensor([output[place]]), 0.0)

    return only


TEXT = "the fox<user>\nthe fox<user>\nthe dog"
"""Repeats itself, so that drafts come true and several tokens are committed at once."""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("stop", "shown", "tokens"),
    [
        ("<user>", "the fox", "the fox<user>"),
        ("<user>\n", "the fox", "the fox<user>\n"),
        ("fox<user>", "the ", "the fox<user>"),
        ("<user>\nthe d", "the fox\nthe fox", "the fox<user>\nthe fox<user>\nthe d"),
        ("\nthe dog<user>", "the fox\nthe fox\nthe dog", TEXT),
        ("user", "the fox\nthe fox\nthe dog", TEXT),
    ],
)
def test_stop_strings_with_special_tokens(method: str, stop: str, shown: str, tokens: str) -> None:
    lm = _lm()
    encode = lm.tokenizer.encode
    prompt, output = encode("the quick fox<user>\n"), encode(TEXT)
    settings: dict[str, Any] = {"stop": [stop, "zz"], "max_new_tokens": len(output), "temperature": 1.0, "seed": 2}
    stream = lm.stream([prompt, prompt], method, processors=[says(prompt, output)], n=2, **settings)
    streamed = ["", "", "", ""]
    for event in stream:
        if isinstance(event, Token | Finished):
            streamed[event.request] += event.text
    for reply, text in zip(stream.replies(), streamed, strict=True):
        assert reply.text == text == shown
        assert reply.finish_reason == ("stop" if tokens != TEXT else "length")
        # The stop string ends within the last token.
        assert lm.tokenizer.decode(reply.token_ids[:-1]) < tokens <= lm.tokenizer.decode(reply.token_ids)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_ends_an_output_before_the_least_length(method: str) -> None:
    lm = _lm()
    prompt = lm.tokenizer.encode("the quick fox")
    end = lm.tokenizer.eos_token_id
    plain = lm.generate(prompt, method, max_new_tokens=24, ignore_eos=True)
    for stop in (list("abcdefghijklmnopqrstuvwxyz "), [plain.text[3]]):
        reply = lm.generate(prompt, method, stop=stop, min_new_tokens=15, max_new_tokens=24)
        assert len(reply.token_ids) >= 15

    def wants_the_end(ids: Tensor, scores: Tensor) -> Tensor:
        return torch.full_like(scores, float("-inf")).index_fill(1, torch.tensor([end]), 0.0)

    for wanted in (
        {"processors": [wants_the_end]},
        {"logit_bias": {end: 1e9}},
        {"stopping_criteria": [lambda i, s: True]},
    ):
        for temperature in (0.0, 1.0):
            reply = lm.generate(
                prompt, method, min_new_tokens=15, max_new_tokens=24, temperature=temperature, seed=1, **wanted
            )
            assert reply.finish_reason == "stop"
            assert len(reply.token_ids) == (16 if "stopping_criteria" not in wanted else 15)
            assert end not in reply.token_ids[:15]


@cache
def _lists() -> LanguageModel:
    return decodery.load("diffusion-lists")


def test_a_canvas_ends_at_special_tokens_too() -> None:
    lm = _lists()
    plain = lm.generate("reverse : K D A =", max_new_tokens=32)
    assert plain.finish_reason == "stop"
    for stop in ("<end>", "K<end>", f"{plain.text[-3:]}<end>"):
        reply = lm.generate("reverse : K D A =", ignore_eos=True, stop=stop, max_new_tokens=32)
        assert reply.finish_reason == "stop"
        assert reply.text == plain.text.removesuffix(stop.removesuffix("<end>"))


def test_a_canvas_keeps_the_least_length_or_refuses_it() -> None:
    lm = _lists()
    reply = lm.generate("reverse : K D A =", min_new_tokens=9, stop=["A", "D", "K"], max_new_tokens=32)
    assert len(reply.token_ids) >= 9
    with pytest.raises(BadSetting, match="min_new_tokens is 20, but the canvas has only 8 positions"):
        lm.generate("reverse : K D A =", "masked-diffusion(gen_length=8, block_length=8)", min_new_tokens=20)


@pytest.mark.parametrize("method", ["masked-diffusion", "freedave", "freecache", "hex", "localleap"])
def test_a_canvas_has_no_scores_of_its_prompt(method: str) -> None:
    with pytest.raises(Refused, match="echo and logprobs together"):
        _lists().generate("reverse : K D A =", method, echo=True, logprobs=0, max_new_tokens=32)
    assert (
        _lists()
        .generate("reverse : K D A =", method, echo=True, max_new_tokens=32)
        .text.startswith("reverse : K D A =")
    )


@pytest.mark.parametrize("echo", [True, False])
def test_a_character_that_the_prompt_begins(echo: bool) -> None:
    lm = _lm()
    ids = [token for byte in "🙂".encode() for token in lm.tokenizer.convert_tokens_to_ids([_letter(byte)])]
    prompt = [*lm.tokenizer.encode("the "), *ids[:2]]
    reply = lm.generate(
        prompt, processors=[says(prompt, [*ids[2:], *ids])], max_new_tokens=6, ignore_eos=True, echo=echo
    )
    assert reply.text == ("the " if echo else "") + "🙂🙂"


def _letter(byte: int) -> str:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letter: str = bytes_to_unicode()[byte]
    return letter
