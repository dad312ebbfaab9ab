"""The public calls: prompts in, replies and events out; what cannot work is refused before work starts."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import pytest
import torch
from tiny_models import byte_level_tokenizer, make_model, reference_logits
from wrapped_models import METHODS, Failing, endless_language_model, tiny_model

import decodery
from decodery.engine.events import Finished, Token
from decodery.engine.method import Exactness
from decodery.errors import (
    BadParameter,
    BadPrompt,
    BadSetting,
    MethodUnavailable,
    ModelNotReadable,
    Refused,
    UnknownMethod,
)
from decodery.language_model import LanguageModel
from decodery.replies import Reply
from decodery.testing import toy_language_model

CONTEXT = 512


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return endless_language_model()


@pytest.fixture(scope="module")
def toy() -> LanguageModel:
    return toy_language_model()


# Replies


def test_a_reply_says_everything(lm: LanguageModel) -> None:
    reply = lm.generate("the quick", "prompt-lookup(length=3)", max_new_tokens=6, temperature=0.9, top_k=50, seed=11)
    assert isinstance(reply, Reply)
    assert reply.prompt_token_ids == tuple(lm.tokenizer.encode("the quick"))
    assert len(reply.token_ids) == 6
    assert reply.text == lm.tokenizer.decode([*reply.prompt_token_ids, *reply.token_ids])[len("the quick") :]
    assert (reply.finish_reason, reply.seed, reply.model) == ("length", 11, "tiny")
    assert reply.method == "prompt-lookup(length=3)"
    assert reply.exactness is Exactness.IDENTICAL_TO_PLAIN
    assert reply.order == ("temperature", "top_k")
    assert (reply.logprobs, reply.prompt_logprobs, reply.error) == (None, None, None)
    assert reply.stats.new_tokens == 6
    assert isinstance(reply.events[-1], Finished)
    assert [event.token_id for event in reply.events if isinstance(event, Token)] == reply.token_ids


@pytest.mark.parametrize("method", METHODS)
def test_greedy_replies_are_those_of_the_model(lm: LanguageModel, method: str) -> None:
    ids = lm.tokenizer.encode("over the lazy")
    for _ in range(20):
        ids.append(int(reference_logits(tiny_model(), ids)[-1].argmax()))
    assert lm.generate("over the lazy", method, max_new_tokens=20).token_ids == ids[-20:]


def test_a_stop_token_ends_and_is_not_shown() -> None:
    wrapped = decodery.wrap(tiny_model(), byte_level_tokenizer())
    plain = wrapped.generate("the", "autoregressive", max_new_tokens=8, ignore_eos=True)
    end = plain.token_ids[4]
    wrapped.stop_ids = (end,)
    for method in METHODS:
        reply = wrapped.generate("the", method, max_new_tokens=8)
        assert reply.finish_reason == "stop"
        assert reply.token_ids == plain.token_ids[: plain.token_ids.index(end) + 1]
        assert reply.text == wrapped.tokenizer.decode(reply.token_ids[:-1], skip_special_tokens=True)


def test_stop_tokens_come_from_model_and_tokenizer() -> None:
    model = make_model("llama", vocab_size=330)
    model.generation_config.eos_token_id = [7, 3]
    assert decodery.wrap(model, byte_level_tokenizer()).stop_ids == (0, 3, 7)
    model.generation_config.eos_token_id = 9
    assert decodery.wrap(model, byte_level_tokenizer()).stop_ids == (0, 9)
    model.generation_config.eos_token_id = None
    assert decodery.wrap(model, byte_level_tokenizer()).stop_ids == (0,)


def test_echo_puts_the_prompt_before_the_text(lm: LanguageModel) -> None:
    plain = lm.generate("the end", max_new_tokens=5)
    echoed = lm.generate("the end", max_new_tokens=5, echo=True)
    assert echoed.text == "the end" + plain.text
    assert echoed.token_ids == plain.token_ids
    assert echoed.prompt_logprobs is None


@pytest.mark.parametrize("method", METHODS)
def test_log_probabilities_are_the_models_own(lm: LanguageModel, method: str) -> None:
    reply = lm.generate("the quick brown", method, max_new_tokens=9, logprobs=2, echo=True, temperature=0.7, seed=3)
    ids = [*reply.prompt_token_ids, *reply.token_ids]
    raw = reference_logits(tiny_model(), ids).log_softmax(-1)
    processed = (reference_logits(tiny_model(), ids) / 0.7).log_softmax(-1)
    assert reply.logprobs is not None
    assert reply.prompt_logprobs is not None
    start = len(reply.prompt_token_ids)
    assert len(reply.prompt_logprobs) == start - 1
    assert len(reply.logprobs) == 9
    for place, entry in enumerate([*reply.prompt_logprobs, *reply.logprobs], start=1):
        assert entry.raw == pytest.approx(float(raw[place - 1, ids[place]]), abs=1e-4)
        assert [token for token, _ in entry.top] == raw[place - 1].topk(2).indices.tolist()
        if place >= start:
            assert entry.processed == pytest.approx(float(processed[place - 1, ids[place]]), abs=1e-4)


def test_a_seed_is_drawn_named_and_can_be_used_again(lm: LanguageModel) -> None:
    first = lm.generate("the", max_new_tokens=12, temperature=1.0)
    second = lm.generate("the", max_new_tokens=12, temperature=1.0)
    assert first.seed != second.seed
    assert first.token_ids != second.token_ids
    assert lm.generate("the", max_new_tokens=12, temperature=1.0, seed=first.seed).token_ids == first.token_ids


def test_methods_that_promise_it_draw_the_same_tokens(lm: LanguageModel) -> None:
    replies = [lm.generate("dog", m, max_new_tokens=15, temperature=1.0, seed=4).token_ids for m in METHODS[:3]]
    assert replies[0] == replies[1] == replies[2]


# Batches and samples


def test_a_batch_gives_what_each_prompt_gives_alone(lm: LanguageModel) -> None:
    prompts: list[Any] = ["the", "jumps over the lazy dog", [40, 41, 42], "fox"]
    methods = ["autoregressive", "token-recycling", "prompt-lookup", "draft-model(layers=1)"]
    seeds = [1, 2, None, 4]
    together = lm.generate(prompts, methods, seed=seeds, max_new_tokens=10, temperature=0.8)
    assert len(together) == 4
    for prompt, method, seed, reply in zip(prompts, methods, seeds, together, strict=True):
        assert reply.method == method
        assert seed is None or reply.seed == seed
        alone = lm.generate(prompt, method, seed=reply.seed, max_new_tokens=10, temperature=0.8)
        assert alone.token_ids == reply.token_ids
        assert alone.text == reply.text


def test_one_method_and_seed_for_all(lm: LanguageModel) -> None:
    replies = lm.generate(["the", "the"], "autoregressive", seed=5, temperature=1.0, max_new_tokens=6)
    assert replies[0].token_ids == replies[1].token_ids
    assert lm.generate(("the", "fox"), max_new_tokens=1)[1].prompt_token_ids == tuple(lm.tokenizer.encode("fox"))
    assert len(lm.generate(["the"], max_new_tokens=1)) == 1


@pytest.mark.parametrize(
    ("prompt", "arguments"),
    [
        (["the", "fox"], {"method": ["autoregressive"]}),
        (["the", "fox"], {"method": ["autoregressive"] * 3}),
        (["the", "fox"], {"seed": [1]}),
        ("the", {"method": ["autoregressive"]}),
        ("the", {"seed": [1]}),
    ],
)
def test_lists_that_do_not_match_the_prompts(lm: LanguageModel, prompt: Any, arguments: Any) -> None:
    with pytest.raises(BadSetting, match="as many prompts"):
        lm.generate(prompt, **arguments)


def test_samples_differ_and_are_reproducible(lm: LanguageModel) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 10, "temperature": 1.0, "seed": 6}
    samples = lm.generate("the", n=4, **settings)
    assert len({tuple(reply.token_ids) for reply in samples}) == 4
    again = lm.generate("the", n=4, **settings)
    assert [reply.token_ids for reply in again] == [reply.token_ids for reply in samples]
    # The first sample is that of a request for one; more samples do not change the earlier ones.
    assert lm.generate("the", **settings).token_ids == samples[0].token_ids
    assert [r.token_ids for r in lm.generate("the", n=2, **settings)] == [r.token_ids for r in samples[:2]]


def test_a_batch_of_samples_is_a_list_of_lists(lm: LanguageModel) -> None:
    replies = lm.generate(["the", "fox"], n=2, max_new_tokens=3, temperature=1.0, seed=[7, 8])
    assert [[reply.seed for reply in group] for group in replies] == [[7, 7], [8, 8]]
    assert [event.request for group in replies for reply in group for event in reply.events[:1]] == [0, 1, 2, 3]


def test_an_error_within_a_batch_is_that_of_its_reply(lm: LanguageModel) -> None:
    replies = lm.generate(["the", "fox"], [Failing(), "autoregressive"], max_new_tokens=4)
    assert isinstance(replies[0].error, ZeroDivisionError)
    assert (replies[0].finish_reason, replies[0].token_ids) == ("error", [70, 71])
    assert (replies[1].finish_reason, replies[1].error) == ("length", None)
    assert replies[1].token_ids == lm.generate("fox", "autoregressive", max_new_tokens=4).token_ids
    with pytest.raises(ZeroDivisionError, match="own error"):
        lm.generate("the", Failing(), max_new_tokens=4)
    with pytest.raises(ZeroDivisionError):
        lm.generate("the", Failing(), n=2, max_new_tokens=4)


# Prompts


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        [""],
        [[]],
        ["the", []],
        None,
        5,
        [None],
        [True, False],
        [1.5],
        [3, "a"],
        [330],
        [-1],
        {"role": "user", "content": "hello"},
        torch.tensor([]),
        torch.tensor([1.0]),
        torch.tensor([True]),
        torch.tensor([[1, 2], [3, 4]]),
        torch.tensor(3),
        torch.tensor([400]),
        b"bytes",
    ],
    ids=repr,
)
def test_prompts_that_are_none(lm: LanguageModel, prompt: Any) -> None:
    with pytest.raises(BadPrompt):
        lm.generate(prompt, max_new_tokens=1)


def test_prompts_in_every_form(lm: LanguageModel) -> None:
    ids = lm.tokenizer.encode("the fox")
    expected = lm.generate("the fox", max_new_tokens=3).token_ids
    for prompt in (ids, tuple(ids), torch.tensor(ids), torch.tensor([ids])):
        assert lm.generate(prompt, max_new_tokens=3).token_ids == expected


def test_a_prompt_must_leave_room_in_the_context(lm: LanguageModel) -> None:
    prompt = [5] * (CONTEXT - 4)
    assert len(lm.generate(prompt, max_new_tokens=4).token_ids) == 4
    with pytest.raises(BadPrompt, match=rf"{CONTEXT - 4} tokens.*together {CONTEXT + 1}.*context of {CONTEXT}"):
        lm.generate(prompt, max_new_tokens=5)
    with pytest.raises(BadPrompt, match="context"):
        lm.stream(["the", prompt], max_new_tokens=5)


# What is refused


def test_bad_requests_are_refused_before_work(lm: LanguageModel) -> None:
    @dataclasses.dataclass(frozen=True)
    class Choosy(Failing):
        name: ClassVar[str] = "choosy"
        refuses: ClassVar[dict[str, str]] = {"logprobs": "it has none."}

    cases: list[tuple[type[Exception], dict[str, Any]]] = [
        (UnknownMethod, {"method": "no-such-method"}),
        (BadParameter, {"method": "prompt-lookup(length=0)"}),
        (BadParameter, {"method": 5}),
        (BadSetting, {"temperature": -1}),
        (BadSetting, {"no_such_setting": 1}),
        (BadSetting, {"seed": "x"}),
        (BadSetting, {"logit_bias": {330: 1.0}}),
        (Refused, {"method": Choosy(), "logprobs": 1}),
        (MethodUnavailable, {"method": "draft-model(layers=99)"}),
    ]
    for error, arguments in cases:
        for call in (lm.generate, lm.stream):
            with pytest.raises(error):
                call("the", **arguments)
        with pytest.raises(error):
            lm.generate(["fox", "the"], **arguments)


def test_a_tokenizer_larger_than_the_model_is_refused() -> None:
    with pytest.raises(ModelNotReadable, match=r"has 325 tokens but small scores only 99"):
        decodery.wrap(make_model("llama"), byte_level_tokenizer(), name="small")


# Conversations


def test_a_conversation_goes_through_the_template(toy: LanguageModel) -> None:
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hello"}]
    text = "<|system|>Be short.<|end|><|user|>Hello<|end|><|assistant|>"
    reply = toy.generate(messages, max_new_tokens=5)
    assert list(reply.prompt_token_ids) == toy.tokenizer.encode(text)
    assert toy.chat(messages, max_new_tokens=5).token_ids == reply.token_ids
    single = toy.chat("Hello", max_new_tokens=2)
    assert list(single.prompt_token_ids) == toy.tokenizer.encode("<|user|>Hello<|end|><|assistant|>")
    batch = toy.generate([messages, "Hello", messages[1:]], max_new_tokens=2)
    assert batch[0].token_ids == reply.token_ids[:2]
    assert batch[2].token_ids == single.token_ids


def test_special_tokens_of_a_real_template_are_not_doubled() -> None:
    tokenizer = type(byte_level_tokenizer())(
        tokenizer_object=byte_level_tokenizer().backend_tokenizer, eos_token="<end>"
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
        "<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
    )
    wrapped = decodery.wrap(tiny_model(), tokenizer)
    reply = wrapped.chat("the fox", max_new_tokens=1)
    user, end = tokenizer.convert_tokens_to_ids(["<user>", "<end>"])
    assert list(reply.prompt_token_ids) == [user, *tokenizer.encode("the fox"), end]
    with pytest.raises(BadPrompt, match="refuses this conversation"):
        wrapped.chat([{"role": "tool", "content": "x"}])


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user"}],
        [{"content": "hello"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": "x", "name": "me"}],
        [{"role": "user", "content": "x"}, "hello"],
        [{}],
    ],
    ids=str,
)
def test_malformed_messages(toy: LanguageModel, messages: Any) -> None:
    with pytest.raises(BadPrompt):
        toy.generate(messages)


def test_a_model_without_a_template_cannot_chat(lm: LanguageModel) -> None:
    with pytest.raises(BadPrompt, match="tiny has no chat template"):
        lm.chat("hello")


# Memory


def test_what_methods_remember_can_be_forgotten(toy: LanguageModel) -> None:
    toy.forget()
    toy.generate("abcabc", "token-recycling", max_new_tokens=3)
    toy.generate("abcabc", "token-recycling", max_new_tokens=3, session="mine")
    sessions = {place[0] for place in toy.memory}  # type: ignore[index]
    assert sessions == {"default", "mine"}
    toy.forget("mine")
    assert {place[0] for place in toy.memory} == {"default"}  # type: ignore[index]
    toy.forget()
    assert toy.memory == {}


# Loading


def test_loading_a_folder(tmp_path: Any) -> None:
    tiny_model().save_pretrained(tmp_path / "mine")
    byte_level_tokenizer().save_pretrained(tmp_path / "mine")
    expected = decodery.wrap(tiny_model(), byte_level_tokenizer()).generate("the fox", max_new_tokens=8).token_ids
    for fast in (False, True):
        loaded = decodery.load(tmp_path / "mine", dtype="float32", device="cpu", fast=fast)
        assert loaded.name == "mine"
        assert loaded.generate("the fox", max_new_tokens=8).token_ids == expected
    drafted = loaded.generate("the fox", f"draft-model(draft={tmp_path / 'mine'})", max_new_tokens=8)
    assert drafted.token_ids == expected
    assert drafted.stats.accepted > 0
    assert decodery.load(str(tmp_path / "mine"), dtype=torch.bfloat16).network.dtype is torch.bfloat16  # type: ignore[attr-defined]
    for arguments, message in (
        ({"dtype": "float8"}, "dtype must be"),
        ({"device": "abacus"}, "device 'abacus'"),
        ({"threads": 0}, "threads"),
    ):
        with pytest.raises(BadSetting, match=message):
            decodery.load(tmp_path / "mine", **arguments)  # type: ignore[arg-type]


def test_a_masked_diffusion_model_of_transformers_is_wrapped_as_it_is_loaded(tmp_path: Any) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = decodery.load("diffusion-lists")
    model, tokenizer = (kind.from_pretrained(loaded.folder) for kind in (AutoModelForCausalLM, AutoTokenizer))
    prompt, settings = "reverse : K D A =", {"method": "masked-diffusion(steps=16)", "max_new_tokens": 16}
    expected = loaded.generate(prompt, **settings).token_ids
    assert decodery.wrap(model.float(), tokenizer).generate(prompt, **settings).token_ids == expected
    # A configuration that does not say what the model is can be helped out.
    del model.config.masked_diffusion
    with pytest.raises(Refused, match="masked-diffusion"):
        decodery.wrap(model, tokenizer).generate(prompt, **settings)
    helped = decodery.wrap(model, tokenizer, diffusion=loaded.diffusion)
    assert helped.generate(prompt, **settings).token_ids == expected


def test_tiny_models_are_computed_in_float32() -> None:
    assert decodery.load("diffusion-lists").network.dtype == torch.float32
