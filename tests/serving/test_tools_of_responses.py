"""Calls of functions on /v1/responses, by the official client: whole and streamed, chosen and refused."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from serving_models import Running

TOOLS: Any = [
    {
        "type": "function",
        "name": "paint",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"colour": {"enum": ["red", "green"]}, "coats": {"enum": [1, 2]}},
            "required": ["colour", "coats"],
            "additionalProperties": False,
        },
    },
    {"type": "function", "name": "stop_it", "description": "No more."},
]
ASKED: dict[str, Any] = {
    "model": "toy",
    "input": "Paint it.",
    "tools": TOOLS,
    "temperature": 1.0,
    "max_output_tokens": 300,
}


def more(**extra: Any) -> dict[str, Any]:
    return {"extra_body": {"stop_token_ids": [256], **extra}}


def fits(call: Any) -> None:
    assert (call.type, call.status) == ("function_call", "completed")
    assert call.call_id.startswith("call_")
    arguments = json.loads(call.arguments)
    if call.name == "stop_it":
        assert arguments == {}
    else:
        assert call.name == "paint"
        assert arguments["colour"] in ("red", "green")
        assert arguments["coats"] in (1, 2)


def test_a_call_that_must_be_made(server: Running) -> None:
    names = set()
    for seed in range(4):
        response = server.client().responses.create(
            **ASKED, tool_choice="required", parallel_tool_calls=False, **more(seed=seed)
        )
        assert (response.status, response.parallel_tool_calls, response.tool_choice) == ("completed", False, "required")
        [call] = response.output
        fits(call)
        names.add(call.name)  # type: ignore[union-attr]
        assert [tool.name for tool in response.tools] == ["paint", "stop_it"]  # type: ignore[union-attr]
    assert names == {"paint", "stop_it"}


def test_several_calls_and_one_by_its_name(server: Running) -> None:
    counts = []
    for seed in range(6):
        response = server.client().responses.create(**ASKED, tool_choice="required", **more(seed=seed))
        assert response.parallel_tool_calls
        counts.append(len(response.output))
        for call in response.output[: -1 if response.status == "incomplete" else None]:
            fits(call)
        assert len({call.id for call in response.output}) == len(response.output)
    assert max(counts) > 1
    named: Any = {"type": "function", "name": "stop_it"}
    [call] = server.client().responses.create(**ASKED, tool_choice=named, **more(seed=0)).output
    assert (call.name, call.arguments) == ("stop_it", "{}")  # type: ignore[union-attr]


def test_a_stream_says_the_same(server: Running) -> None:
    asked = {**ASKED, "tool_choice": "required", **more(seed=3)}
    whole = server.client().responses.create(**asked)
    kinds: list[str] = []
    numbers: list[int] = []
    arguments: dict[int, str] = {}
    done: list[Any] = []
    final: Any = None
    for event in server.client().responses.create(**asked, stream=True):
        kinds.append(event.type)
        numbers.append(event.sequence_number)
        if event.type == "response.output_item.added":
            assert event.item.status == "in_progress"
            assert event.output_index == len(arguments)
            arguments[event.output_index] = ""
        if event.type in ("response.function_call_arguments.delta", "response.output_text.delta"):
            arguments[event.output_index] += event.delta
        if event.type == "response.function_call_arguments.done":
            assert event.arguments == arguments[event.output_index]
        if event.type == "response.output_item.done":
            done.append(event.item)
        if event.type in ("response.completed", "response.incomplete"):
            final = event.response
    assert numbers == list(range(len(numbers)))
    assert kinds[:3] == ["response.created", "response.in_progress", "response.output_item.added"]
    own = {"id", "call_id"}
    assert [item.to_dict() | dict.fromkeys(own) for item in done] == [
        item.to_dict() | dict.fromkeys(own) for item in whole.output
    ]
    calls = [item for item in done if item.type == "function_call"]
    assert len(calls) >= 1
    assert all(item.type == "function_call" for item in done[:-1]), "a call that is cut off within its mark is text"
    assert [item.id for item in final.output] == [item.id for item in done]
    paints = sum(call.name == "paint" for call in calls)
    assert paints
    pieces = kinds.count("response.function_call_arguments.delta")
    assert pieces >= len(calls) + 2 * paints, "arguments come as they are written"
    assert final.status == whole.status


@pytest.mark.parametrize("choice", ["auto", "none"])
def test_text_is_an_answer_too(server: Running, choice: Any) -> None:
    asked: Any = {**ASKED, "max_output_tokens": 12, "tool_choice": choice, **more(seed=0)}
    response = server.client().responses.create(**asked)
    assert response.status == "incomplete"
    [message] = response.output
    assert message.type == "message"
    assert response.output_text
    said = ""
    for event in server.client().responses.create(**asked, stream=True):
        if event.type == "response.output_text.delta":
            said += event.delta
    assert said == response.output_text


def test_calls_and_answers_come_back_as_input(server: Running) -> None:
    talk: Any = [
        {"role": "user", "content": "Paint it."},
        {"type": "function_call", "call_id": "call_1", "name": "stop_it", "arguments": "{}"},
        {"type": "function_call", "call_id": "call_2", "name": "paint", "arguments": '{"coats": 1}'},
        {"type": "function_call_output", "call_id": "call_1", "output": "done"},
        {"type": "function_call_output", "call_id": "call_2", "output": [{"type": "input_text", "text": "red"}]},
    ]
    same: Any = [
        {"role": "user", "content": "Paint it."},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "stop_it", "arguments": "{}"}},
                {"id": "call_2", "type": "function", "function": {"name": "paint", "arguments": '{"coats": 1}'}},
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "done"},
        {"role": "tool", "tool_call_id": "call_2", "content": "red"},
    ]
    nested = [
        {"type": "function", "function": {k: v for k, v in tool.items() if k not in ("type", "strict")}}
        for tool in TOOLS
    ]
    client = server.client()
    response = client.responses.create(
        **{**ASKED, "input": talk, "max_output_tokens": 12}, tool_choice="none", **more(seed=1)
    )
    chat: Any = client.chat.completions.create(
        model="toy", messages=same, tools=nested, tool_choice="none", temperature=1.0, max_tokens=12, **more(seed=1)
    )
    assert response.output_text == chat.choices[0].message.content
    assert response.usage is not None
    assert response.usage.input_tokens == chat.usage.prompt_tokens


@pytest.mark.parametrize(
    ("asked", "field", "said"),
    [
        ({"tools": [{"type": "function", "name": "?"}]}, "tools", "with the name"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice", "there are no tools"),
        ({"tool_choice": {"type": "function", "name": "go"}}, "tool_choice", "names 'go'"),
        ({"text": {"format": {"type": "json_object"}}}, "text", "do not go together"),
        ({"include": ["message.output_text.logprobs"]}, "include", "do not stand beside calls"),
        ({"input": [{"type": "reasoning"}]}, "input", "function_call_output"),
        (
            {"input": [{"type": "function_call", "call_id": "c", "name": "paint", "arguments": "[1]"}]},
            "input",
            "are a JSON object",
        ),
    ],
)
def test_refused(server: Running, asked: Any, field: str, said: str) -> None:
    with pytest.raises(openai.BadRequestError, match=said) as refused:
        server.client().responses.create(**{**ASKED, **asked})
    assert refused.value.param == field


def test_a_format_that_asks_for_text_goes_with_tools(server: Running) -> None:
    text: Any = {"format": {"type": "text"}}
    [call] = (
        server.client()
        .responses.create(**ASKED, text=text, tool_choice="required", parallel_tool_calls=False, **more(seed=1))
        .output
    )
    fits(call)
