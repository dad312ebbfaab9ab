"""The official client against a real server: its answers are those of `lm.generate`."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from serving_models import Running, toy, wait_for

import decodery
from decodery.language_model import LanguageModel

TALK: Any = [{"role": "user", "content": "hello there"}]
SAMPLED: dict[str, Any] = {"max_tokens": 24, "temperature": 0.8, "seed": 11}
METHODS = ("autoregressive", "cascade", "token-recycling(k=4)", "prompt-lookup", "draft-model(layers=1)")


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return toy()


@pytest.mark.parametrize("method", METHODS)
def test_a_chat_is_what_generate_gives(server: Running, lm: LanguageModel, method: str) -> None:
    expected = lm.generate(TALK, method, **SAMPLED)
    reply = server.client().chat.completions.create(
        model="toy", messages=TALK, extra_body={"method": method, "return_token_ids": True}, **SAMPLED
    )
    [choice] = reply.choices
    assert choice.message.content == expected.text
    assert choice.token_ids == expected.token_ids  # type: ignore[attr-defined]
    assert choice.finish_reason == expected.finish_reason
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (len(expected.prompt_token_ids), 24)
    told: Any = reply.decodery  # type: ignore[attr-defined]
    assert (told["method"], told["exactness"]) == (expected.method, str(expected.exactness))
    assert (told["seed"], told["order"]) == (11, list(expected.order))
    assert told["metrics"]["num_forward"] == expected.stats.forwards
    assert told["provenance"]["path"] == lm.network.path
    assert told["provenance"]["dtype"] == "float32"


def test_a_content_may_be_one_part_of_text(server: Running, lm: LanguageModel) -> None:
    """So clients write all contents, also to models whose chat templates take texts alone; two parts remain two parts."""
    parts: Any = [{"type": "text", "text": "hello there"}]
    create = server.client().chat.completions.create
    reply = create(model="toy", messages=[{"role": "user", "content": parts}], **SAMPLED)
    assert reply.choices[0].message.content == lm.generate(TALK, **SAMPLED).text
    with pytest.raises(openai.BadRequestError, match="contents in parts"):
        create(model="toy", messages=[{"role": "user", "content": parts * 2}], **SAMPLED)


@pytest.mark.parametrize("method", METHODS)
def test_a_stream_adds_up_to_the_same(server: Running, lm: LanguageModel, method: str) -> None:
    expected = lm.generate(TALK, method, n=2, **SAMPLED)
    texts, reasons, told, usage = ["", ""], {}, {}, []
    for chunk in server.client().chat.completions.create(
        model="toy", messages=TALK, n=2, stream=True, stream_options={"include_usage": True},
        extra_body={"method": method}, **SAMPLED,
    ):  # fmt: skip
        usage += [chunk.usage] if chunk.usage else []
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
                told[choice.index] = chunk.decodery  # type: ignore[attr-defined]
    assert texts == [reply.text for reply in expected]
    assert reasons == {0: "length", 1: "length"}
    assert told[1]["metrics"]["num_forward"] == expected[1].stats.forwards
    assert [(u.prompt_tokens, u.completion_tokens) for u in usage] == [(len(expected[0].prompt_token_ids), 48)]


def test_completions_of_several_prompts(server: Running, lm: LanguageModel) -> None:
    expected = lm.generate(["hello", "you"], n=2, echo=True, logprobs=2, **SAMPLED)
    reply = server.client().completions.create(
        model="toy", prompt=["hello", "you"], n=2, echo=True, logprobs=2, **SAMPLED
    )
    flat = [one for group in expected for one in group]
    assert [choice.text for choice in reply.choices] == [one.text for one in flat]
    for choice, one in zip(reply.choices, flat, strict=True):
        assert choice.logprobs is not None
        values, top = choice.logprobs.token_logprobs, choice.logprobs.top_logprobs
        raw = [entry.raw for entry in (*one.prompt_logprobs, *one.logprobs)]
        assert values is not None
        assert values[0] is None
        assert values[1:] == pytest.approx(raw, abs=1e-4)
        assert "".join(choice.logprobs.tokens or ()) == one.text
        assert choice.logprobs.text_offset == list(range(len(one.text)))
        assert top is not None
        assert top[0] is None
        assert all(2 <= len(entry) <= 3 for entry in top[1:])
    streamed = [""] * 4
    offsets: list[list[int]] = [[], [], [], []]
    for chunk in server.client().completions.create(
        model="toy", prompt=["hello", "you"], n=2, echo=True, logprobs=2, stream=True, **SAMPLED
    ):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
            offsets[choice.index] += (choice.logprobs.text_offset or []) if choice.logprobs else []
    assert streamed == [one.text for one in flat]
    assert offsets == [list(range(len(one.text))) for one in flat]


def test_prompts_may_be_token_ids(server: Running, lm: LanguageModel) -> None:
    client, ids = server.client(), lm.tokenize("hello")
    texts = [
        client.completions.create(model="toy", prompt=prompt, temperature=0).choices[0].text
        for prompt in ("hello", ids, [ids])
    ]
    assert texts == [lm.generate("hello", max_new_tokens=16).text] * 3  # 16, as at OpenAI


def test_log_probabilities_of_a_chat(server: Running, lm: LanguageModel) -> None:
    expected = lm.generate(TALK, logprobs=3, **SAMPLED)
    reply = server.client().chat.completions.create(
        model="toy", messages=TALK, logprobs=True, top_logprobs=3, **SAMPLED
    )
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [entry.logprob for entry in logprobs.content] == pytest.approx(
        [entry.raw for entry in expected.logprobs], abs=1e-4
    )
    for entry, token in zip(logprobs.content, expected.token_ids, strict=True):
        assert entry.bytes == ([token] if token < 128 else list(lm.tokenizer.decode([token]).encode()))
    assert [len(entry.top_logprobs) for entry in logprobs.content] == [3] * 24
    plain = server.client().chat.completions.create(model="toy", messages=TALK, logprobs=True, **SAMPLED)
    assert plain.choices[0].logprobs is not None
    assert plain.choices[0].logprobs.content is not None
    assert plain.choices[0].logprobs.content[0].top_logprobs == []


def test_stop_strings_tokens_and_bias(server: Running, lm: LanguageModel) -> None:
    text = lm.generate(TALK, **SAMPLED).text
    create = server.client().chat.completions.create
    for stop in (text[10:12], [text[10:12], "nothing of it"]):
        reply = create(model="toy", messages=TALK, stop=stop, **SAMPLED)
        assert reply.choices[0].message.content == text[: text.index(text[10:12])]
        assert reply.choices[0].finish_reason == "stop"
    token = lm.generate(TALK, **SAMPLED).token_ids[5]
    reply = create(model="toy", messages=TALK, extra_body={"stop_token_ids": [token]}, **SAMPLED)
    assert reply.choices[0].message.content == text[: text.index(chr(token))]
    reply = create(model="toy", messages=TALK, logit_bias={"65": 100}, **SAMPLED)
    assert reply.choices[0].message.content == "A" * 24


def test_responses(server: Running, lm: LanguageModel) -> None:
    told: Any = {"model": "toy", "temperature": 0.8, "max_output_tokens": 24, "extra_body": {"seed": 11}}
    spoken = [{"role": "system", "content": "Be short."}, *TALK]
    expected = lm.generate(spoken, **SAMPLED)
    client = server.client()
    inputs: Any = ("hello there", TALK, [{"role": "user", "content": [{"type": "input_text", "text": "hello there"}]}])
    for given in inputs:
        reply = client.responses.create(input=given, instructions="Be short.", **told)
        assert reply.output_text == expected.text
        assert (reply.status, reply.temperature, reply.max_output_tokens) == ("incomplete", 0.8, 24)
        assert reply.usage is not None
        assert reply.usage.output_tokens == 24
    text, kinds, numbers = "", [], []
    for event in client.responses.create(input="hello there", instructions="Be short.", stream=True, **told):
        kinds.append(event.type)
        numbers.append(event.sequence_number)
        if event.type == "response.output_text.delta":
            text += event.delta
        if event.type == "response.incomplete":
            assert event.response.output_text == expected.text
    assert text == expected.text
    assert numbers == list(range(len(numbers)))
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert kinds[-1] == "response.incomplete"
    logged = client.responses.create(
        input="hello there", include=["message.output_text.logprobs"], top_logprobs=2, **told
    )
    part: Any = logged.output[0].content[0]  # type: ignore[union-attr]
    assert len(part.logprobs) == 24
    assert len(part.logprobs[0].top_logprobs) == 2


def test_a_canvas_comes_block_by_block(server: Running) -> None:
    lm = decodery.load("diffusion-stories")
    wanted: Any = {"max_tokens": 16, "temperature": 0, "seed": 5}
    method = "masked-diffusion(block_length=4)"
    expected = lm.generate("Once upon a time", method, **wanted)
    create = server.client().completions.create
    reply = create(model="diffusion-stories", prompt="Once upon a time", extra_body={"method": method}, **wanted)
    assert reply.choices[0].text == expected.text
    metrics = reply.decodery["metrics"]  # type: ignore[attr-defined]
    assert metrics["num_forward"] == expected.stats.forwards
    assert metrics["tokens_per_forward"] == pytest.approx(len(expected.token_ids) / expected.stats.forwards)
    chunks = [
        chunk.choices[0].text
        for chunk in create(
            model="diffusion-stories", prompt="Once upon a time", extra_body={"method": method}, stream=True, **wanted
        )
    ]
    assert "".join(chunks) == expected.text
    assert 1 < len([chunk for chunk in chunks if chunk]) <= 5  # blocks, not tokens


def test_what_a_reply_tells_of_drafts(server: Running, lm: LanguageModel) -> None:
    repeating = "abcabcabcabcabcabc"
    arguments: Any = {"max_tokens": 40, "temperature": 0}
    expected = lm.generate(repeating, "prompt-lookup", logit_bias={"97": 50, "98": 50, "99": 50}, **arguments)
    reply = server.client().completions.create(
        model="toy", prompt=repeating, logit_bias={"97": 50, "98": 50, "99": 50},
        extra_body={"method": "prompt-lookup"}, **arguments,
    )  # fmt: skip
    told = reply.decodery["metrics"]["speculative_decoding"]  # type: ignore[attr-defined]
    assert expected.stats.drafted > expected.stats.accepted > 0
    assert told["num_draft_tokens"] == expected.stats.drafted
    assert told["num_accepted_draft_tokens"] == expected.stats.accepted
    assert told["draft_acceptance_rate"] == expected.stats.accepted / expected.stats.drafted
    assert told["mean_acceptance_length"] == pytest.approx(1 + expected.stats.accepted / told["num_spec_steps"])
    assert sum(told["acceptance_histogram"]) == told["num_spec_steps"]
    assert sum(a * count for a, count in enumerate(told["acceptance_histogram"])) == expected.stats.accepted
    assert told["per_step_accepted"] is None


def test_async_and_many_at_once(server: Running, lm: LanguageModel) -> None:
    async def all_of_them() -> list[str]:
        async with server.async_client() as client:

            async def one(seed: int) -> str:
                if seed % 2:
                    stream = await client.completions.create(
                        model="toy", prompt="hello", max_tokens=12, seed=seed, stream=True
                    )
                    return "".join([chunk.choices[0].text async for chunk in stream])
                reply = await client.completions.create(model="toy", prompt="hello", max_tokens=12, seed=seed)
                return reply.choices[0].text

            return await asyncio.gather(*(one(seed) for seed in range(12)))

    expected = lm.generate(["hello"] * 12, seed=list(range(12)), temperature=1.0, max_new_tokens=12)
    assert asyncio.run(all_of_them()) == [reply.text for reply in expected]


def test_a_client_that_waits_no_longer_is_cancelled(server: Running) -> None:
    before = server.cancelled()
    with pytest.raises(openai.APITimeoutError):
        server.client(timeout=0.3).completions.create(model="toy", prompt="hello", max_tokens=4000)
    server.wait_idle()
    assert server.cancelled() == before + 1


def test_a_stream_that_is_closed_is_cancelled_at_once(server: Running) -> None:
    before = server.cancelled()
    stream = server.client().completions.create(model="toy", prompt="hello", max_tokens=4000, stream=True)
    next(iter(stream))
    scheduler = server.service.models.loaded["toy"].engine.scheduler
    assert scheduler.active == 1
    assert server.lm().budget.held > 0
    stream.close()
    wait_for(lambda: not scheduler.active and not server.lm().budget.held)
    server.wait_idle()
    assert server.cancelled() == before + 1


def test_models_are_listed(server: Running) -> None:
    client = server.client()
    assert [model.id for model in client.models.list()] == ["toy", "diffusion-stories"]
    model = client.models.retrieve("toy")
    assert model.decodery["default_method"] == "cascade"  # type: ignore[attr-defined]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("toys")
    with pytest.raises(openai.NotFoundError, match="no model 'toys'") as refused:
        client.completions.create(model="toys", prompt="hello")
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError, match="makes no embeddings"):
        client.embeddings.create(model="toy", input="hello")
