"""Calls of functions over HTTP, by the official client: whole and streamed, chosen and refused."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from serving_models import Running

TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "paint",
            "parameters": {
                "type": "object",
                "properties": {"colour": {"enum": ["red", "green"]}, "coats": {"enum": [1, 2]}},
                "required": ["colour", "coats"],
                "additionalProperties": False,
            },
        },
    },
    {"type": "function", "function": {"name": "stop_it", "description": "No more."}},
]
SAID: Any = [{"role": "user", "content": "Paint it."}]
ASKED: dict[str, Any] = {
    "model": "toy",
    "messages": SAID,
    "tools": TOOLS,
    "temperature": 1.0,
    "max_tokens": 300,
    "extra_body": {"stop_token_ids": [256]},
}
ONE: Any = {"tool_choice": "required", "parallel_tool_calls": False}


def fits(call: Any) -> None:
    arguments = json.loads(call.function.arguments)
    assert call.type == "function"
    assert call.id.startswith("call_")
    if call.function.name == "stop_it":
        assert arguments == {}
    else:
        assert call.function.name == "paint"
        assert arguments["colour"] in ("red", "green")
        assert arguments["coats"] in (1, 2)


def test_calls_that_must_be_made(server: Running) -> None:
    answer = server.client().chat.completions.create(**ASKED, **ONE, n=4, seed=3)
    for choice in answer.choices:
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        [call] = choice.message.tool_calls or []
        fits(call)
    ids = [call.id for choice in answer.choices for call in choice.message.tool_calls or []]
    assert len(set(ids)) == 4
    assert (
        len({choice.message.tool_calls[0].function.name for choice in answer.choices if choice.message.tool_calls}) == 2
    )


def test_several_calls(server: Running) -> None:
    answer = server.client().chat.completions.create(**ASKED, tool_choice="required", n=8, seed=5)
    counts = []
    for choice in answer.choices:
        calls = choice.message.tool_calls or []
        counts.append(len(calls))
        if choice.finish_reason == "tool_calls":
            for call in calls:
                fits(call)
    assert max(counts) > 1


def test_a_function_by_its_name(server: Running) -> None:
    named: Any = {"type": "function", "function": {"name": "stop_it"}}
    [choice] = server.client().chat.completions.create(**ASKED, tool_choice=named).choices
    [call] = choice.message.tool_calls or []
    assert (call.function.name, call.function.arguments, choice.finish_reason) == ("stop_it", "{}", "stop")


@pytest.mark.parametrize("choice", ["auto", "none", None])
def test_text_is_an_answer_too(server: Running, choice: Any) -> None:
    given = {} if choice is None else {"tool_choice": choice}
    [answer] = server.client().chat.completions.create(**{**ASKED, "max_tokens": 12}, **given, seed=0).choices
    assert answer.message.tool_calls is None
    assert answer.message.content
    assert answer.finish_reason == "length"


def test_a_stream_says_the_same(server: Running) -> None:
    asked = {**ASKED, **ONE, "seed": 3, "n": 2}
    whole = server.client().chat.completions.create(**asked)
    names: dict[int, str] = {}
    arguments: dict[int, str] = {0: "", 1: ""}
    ends: dict[int, Any] = {}
    pieces = 0
    for chunk in server.client().chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            assert not choice.delta.content
            ends[choice.index] = choice.finish_reason or ends.get(choice.index)
            for call in choice.delta.tool_calls or []:
                assert call.index == 0
                if call.id:
                    assert call.function.arguments == ""
                    names[choice.index] = call.function.name
                else:
                    arguments[choice.index] += call.function.arguments
                    pieces += 1
    for choice in whole.choices:
        [call] = choice.message.tool_calls or []
        assert (names[choice.index], arguments[choice.index]) == (call.function.name, call.function.arguments)
        assert ends[choice.index] == "tool_calls"
    assert pieces > 2, "arguments come as they are written"


def test_a_stream_of_text_beside_tools(server: Running) -> None:
    asked: Any = {**ASKED, "max_tokens": 12, "seed": 2, "logprobs": True}
    [whole] = server.client().chat.completions.create(**asked).choices
    said, tokens = "", 0
    for chunk in server.client().chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            said += choice.delta.content or ""
            tokens += len(choice.logprobs.content or []) if choice.logprobs else 0
    assert (said, tokens) == (whole.message.content, 12)


def test_an_answer_of_a_tool_is_part_of_the_conversation(server: Running) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "stop_it", "arguments": "{}"}}
    talk: Any = [
        *SAID,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "done"},
    ]
    asked = {**ASKED, "messages": talk, "max_tokens": 5, "tool_choice": "none"}
    answer = server.client().chat.completions.create(**{**asked, "extra_body": {"return_token_ids": True}})
    prompt = server.lm().tokenizer.decode(answer.model_extra["prompt_token_ids"])
    assert '<tool_call>\n{"name": "stop_it", "arguments": {}}\n</tool_call>' in prompt
    assert "<tool_response>\ndone\n</tool_response>" in prompt
    assert "You may call functions" not in prompt


@pytest.mark.parametrize(
    ("more", "field", "said"),
    [
        ({"tools": [{"type": "function", "function": {"name": "?"}}]}, "tools", "with the name"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice", "there are no tools"),
        ({"tool_choice": {"type": "function", "function": {"name": "go"}}}, "tool_choice", "names 'go'"),
        ({"response_format": {"type": "json_object"}}, "response_format", "do not go together"),
        ({"functions": [{"name": "f"}]}, "functions", "use tools"),
    ],
)
def test_refused(server: Running, more: Any, field: str, said: str) -> None:
    with pytest.raises(openai.BadRequestError, match=said) as refused:
        server.client().chat.completions.create(**{**ASKED, **more})
    assert refused.value.param == field


def test_a_format_goes_with_tools_that_are_not_called(server: Running) -> None:
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "c", "schema": {"enum": ["red", "green"]}}}
    [choice] = server.client().chat.completions.create(**ASKED, tool_choice="none", response_format=wanted).choices
    assert json.loads(choice.message.content or "") in ("red", "green")
