"""Clients that people use on top of OpenAI's own, over HTTP: LiteLLM and LangChain.

Where they are not installed, the tests skip: pip install "decodery[clients]".
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from serving_models import KEY, PATIENCE, Running, toy

from decodery.language_model import LanguageModel

TALK: Any = [{"role": "user", "content": "hello there"}]
METHOD = "token-recycling(k=4)"
SAMPLED: Any = {"max_tokens": 24, "temperature": 0.8, "seed": 11}


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return toy()


@pytest.fixture
def litellm(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # which it would fetch at import
    return pytest.importorskip("litellm")


@pytest.fixture
def langchain(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("LANGSMITH_TRACING", "false")
    return pytest.importorskip("langchain_openai")


def told(server: Running, **more: Any) -> dict[str, Any]:
    """What each call of LiteLLM says."""
    return {
        "model": "openai/toy", "api_base": f"{server.address}/v1", "api_key": KEY, "num_retries": 0, "timeout": PATIENCE,
        "extra_body": {"method": METHOD}, **SAMPLED, **more,
    }  # fmt: skip


def test_litellm_whole_streamed_and_several(server: Running, lm: LanguageModel, litellm: Any) -> None:
    expected = lm.generate(TALK, METHOD, n=2, **SAMPLED)
    reply = litellm.completion(messages=TALK, n=2, **told(server))
    assert [choice.message.content for choice in reply.choices] == [one.text for one in expected]
    assert [choice.finish_reason for choice in reply.choices] == ["length", "length"]
    assert reply.usage.completion_tokens == 48
    texts = ["", ""]
    for chunk in litellm.completion(messages=TALK, n=2, stream=True, **told(server)):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [one.text for one in expected]


def test_litellm_stop_logprobs_completions_and_async(server: Running, lm: LanguageModel, litellm: Any) -> None:
    expected = lm.generate(TALK, METHOD, logprobs=2, **SAMPLED)
    stop = expected.text[10:12]
    reply = litellm.completion(messages=TALK, stop=[stop], logprobs=True, top_logprobs=2, **told(server))
    assert reply.choices[0].message.content == expected.text[: expected.text.index(stop)]
    assert reply.choices[0].finish_reason == "stop"
    values = [entry.logprob for entry in reply.choices[0].logprobs.content]
    assert values == pytest.approx([entry.raw for entry in expected.logprobs][: len(values)], abs=1e-4)
    plain = lm.generate("hello", METHOD, **SAMPLED).text
    told_here = {**told(server), "model": "text-completion-openai/toy"}
    assert litellm.text_completion(prompt="hello", **told_here).choices[0].text == plain

    async def asked() -> list[str]:
        replies = await asyncio.gather(*(litellm.acompletion(messages=TALK, **told(server, seed=i)) for i in range(4)))
        return [one.choices[0].message.content for one in replies]

    alone = [lm.generate(TALK, METHOD, **{**SAMPLED, "seed": i}).text for i in range(4)]
    assert asyncio.run(asked()) == alone


def test_litellm_errors_are_of_its_own_kinds(server: Running, litellm: Any) -> None:
    with pytest.raises(litellm.BadRequestError, match="no-such-method"):
        litellm.completion(messages=TALK, **told(server, extra_body={"method": "no-such-method"}))
    with pytest.raises(litellm.NotFoundError, match="no model 'toys'"):
        litellm.completion(messages=TALK, **told(server, model="openai/toys"))
    with pytest.raises(litellm.Timeout):
        litellm.completion(messages=TALK, **told(server, max_tokens=4000, timeout=0.3))
    server.wait_idle()


@pytest.fixture
def chat(server: Running, langchain: Any) -> Any:
    """Makes a chat model of LangChain."""

    def make(**more: Any) -> Any:
        options = {"extra_body": {"method": METHOD}, "max_retries": 0, "timeout": PATIENCE, **SAMPLED, **more}
        return langchain.ChatOpenAI(model="toy", base_url=f"{server.address}/v1", api_key=KEY, **options)

    return make


def test_langchain_invoke_stream_and_batch(lm: LanguageModel, chat: Any) -> None:
    expected = lm.generate(TALK, METHOD, **SAMPLED)
    reply = chat().invoke("hello there")
    assert reply.content == expected.text
    assert reply.response_metadata["finish_reason"] == "length"
    assert reply.usage_metadata["output_tokens"] == 24
    assert "".join(chunk.content for chunk in chat(stream_usage=True).stream("hello there")) == expected.text
    talks = ["hello there", "you", "and me"]
    alone = [lm.generate([{"role": "user", "content": said}], METHOD, **SAMPLED).text for said in talks]
    assert [one.content for one in chat().batch(talks)] == alone

    async def asked() -> list[str]:
        return [one.content for one in await chat().abatch(talks)]

    assert asyncio.run(asked()) == alone


def test_langchain_conversations_stop_and_logprobs(lm: LanguageModel, chat: Any) -> None:
    from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

    spoken = [{"role": "system", "content": "Be short."}, *TALK, {"role": "assistant", "content": "yes?"}, *TALK]
    expected = lm.generate(spoken, METHOD, logprobs=0, **SAMPLED)
    kinds: Any = {"system": SystemMessage, "user": HumanMessage, "assistant": AIMessage}
    messages = [kinds[message["role"]](message["content"]) for message in spoken]
    reply = chat(logprobs=True).invoke(messages)
    assert reply.content == expected.text
    values = [entry["logprob"] for entry in reply.response_metadata["logprobs"]["content"]]
    assert values == pytest.approx([entry.raw for entry in expected.logprobs], abs=1e-4)
    stop = expected.text[5:8]
    assert chat().invoke(messages, stop=[stop]).content == expected.text[: expected.text.index(stop)]


def test_langchain_by_the_other_routes(server: Running, lm: LanguageModel, langchain: Any, chat: Any) -> None:
    settings = {"temperature": 0.8, "seed": None, "max_tokens": 24, "extra_body": {"method": METHOD, "seed": 11}}
    reply = chat(**settings, use_responses_api=True).invoke("hello there")
    assert reply.text == lm.generate(TALK, METHOD, **SAMPLED).text
    llm = langchain.OpenAI(
        model="toy",
        base_url=f"{server.address}/v1",
        api_key=KEY,
        max_retries=0,
        extra_body={"method": METHOD},
        **SAMPLED,
    )
    expected = lm.generate("hello", METHOD, **SAMPLED).text
    assert llm.invoke("hello") == expected
    assert "".join(llm.stream("hello")) == expected


def test_langchain_is_told_what_is_refused(chat: Any) -> None:
    import openai

    with pytest.raises(openai.BadRequestError, match="temperature"):
        chat(temperature=-1).invoke("hello")


def test_langchain_s_tools_are_called(chat: Any) -> None:
    colour = {"type": "object", "properties": {"colour": {"enum": ["red", "green"]}}, "required": ["colour"]}
    tool = {"type": "function", "function": {"name": "paint", "parameters": {**colour, "additionalProperties": False}}}
    bound = chat(max_tokens=300, extra_body={"stop_token_ids": [256]}).bind_tools([tool], tool_choice="paint")
    [call] = bound.invoke("paint it").tool_calls
    assert call["name"] == "paint"
    assert call["args"]["colour"] in ("red", "green")


def test_instructor(server: Running) -> None:
    """A class of Pydantic by a call of a function, and by a schema."""
    instructor = pytest.importorskip("instructor")
    from typing import Literal

    from pydantic import BaseModel, ConfigDict

    class Paint(BaseModel):
        model_config = ConfigDict(extra="forbid")
        colour: Literal["red", "green"]
        coats: Literal[1, 2]

    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
        client = instructor.from_openai(server.client(), mode=mode)
        found = client.chat.completions.create(
            model="toy",
            messages=[{"role": "user", "content": "Paint it."}],
            response_model=Paint,
            max_tokens=400,
            logit_bias={"9": -100, "10": -100, "13": -100, "32": -100},  # or it writes white space without end
            max_retries=0,
            temperature=1.0,
            seed=2,
            extra_body={"stop_token_ids": [256]},
        )
        assert found.colour in ("red", "green")
        assert found.coats in (1, 2)


@pytest.fixture(autouse=True)
def idle(server: Running) -> Iterator[None]:
    yield
    server.wait_idle()
