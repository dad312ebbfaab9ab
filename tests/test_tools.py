"""Calls of functions: what a prompt says of them, what a text may be, and what is read out of it."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from letter_constraints import Signs

import decodery
from decodery.errors import BadPrompt, BadSetting
from decodery.sampling.structured.constraint import constraint_of
from decodery.sampling.structured.grammars import Compiled, Grammars
from decodery.tools import CLOSE, OPEN, Call, CallReader, Tools, read_calls

WEATHER = {
    "name": "weather",
    "description": "The weather of a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "unit": {"enum": ["C", "F"]}},
        "required": ["city", "unit"],
        "additionalProperties": False,
    },
}
NOW = {"name": "now"}
TOOLS = [{"type": "function", "function": one} for one in (WEATHER, NOW)]
BYTES = tuple(chr(code) if 32 <= code < 127 or code == 10 else f"é{code}" for code in range(128))


def compiled(tools: Tools) -> Compiled:
    """Over single signs."""
    constraint = constraint_of("tools", tools.constraint())
    assert constraint is not None
    return Grammars.of(Signs(len(BYTES), BYTES)).compiled(constraint)


def fits(tools: Tools, text: str) -> bool:
    """Whether an output may be this and end there."""
    return compiled(tools).may_end(tuple(text.encode()))


def written(name: str, **arguments: Any) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments)}}}\n</tool_call>'


PARIS, TIME = written("weather", city="Paris", unit="C"), written("now")


@pytest.mark.parametrize(
    ("choice", "parallel", "text", "good"),
    [
        ("auto", None, "It rains.", True),
        ("auto", None, PARIS, True),
        ("auto", None, f"Let me see.\n{PARIS}", True),
        ("auto", None, f"{PARIS}\n{TIME}", True),
        ("auto", None, f"{PARIS}\nThere.", True),
        ("auto", None, "Let me see.\n<tool_call>\nwell", False),
        ("auto", None, PARIS.replace("C", "K"), False),
        ("auto", None, PARIS.replace("weather", "whether"), False),
        ("auto", None, "a <tool_call is a word", True),
        ("required", None, PARIS, True),
        ("required", None, f"{PARIS}\n{TIME}\n{PARIS}", True),
        ("required", None, "It rains.", False),
        ("required", None, "", False),
        ("required", None, written("weather", city="Paris"), False),
        ("required", False, PARIS, True),
        ("required", False, f"{PARIS}\n{TIME}", False),
        ("required", None, written("now", zone=1), False),
        ({"type": "function", "function": {"name": "now"}}, None, TIME, True),
        ({"type": "function", "function": {"name": "now"}}, None, PARIS, False),
        ({"type": "function", "name": "now"}, None, f"{TIME}\n{TIME}", False),
    ],
)
def test_what_may_be_written(choice: Any, parallel: bool | None, text: str, good: bool) -> None:
    assert fits(Tools.of(TOOLS, choice, parallel), text) is good


def test_one_call_is_no_more() -> None:
    """After it there may be text, in which the marks of a call come to nothing."""
    one, many = (Tools.of(TOOLS, "auto", parallel) for parallel in (False, True))
    assert fits(one, PARIS)
    assert fits(many, f"{PARIS}{PARIS}")
    assert [fits(tools, f"{PARIS}\n<tool_call>\n{{") for tools in (one, many)] == [True, False]


@pytest.mark.parametrize("tools", [Tools.of(TOOLS, "none"), Tools.of([], None), Tools.of([], "auto")])
def test_without_calls_there_is_no_constraint(tools: Tools) -> None:
    assert (tools.constraint(), tools.offered, tools.choice) == (None, (), "none")


def test_what_is_offered() -> None:
    assert [one["name"] for one in Tools.of(TOOLS).offered] == ["weather", "now"]
    named = Tools.of(TOOLS, {"type": "function", "function": {"name": "now"}})
    assert (named.offered, named.named, Tools.of(TOOLS, "required").named) == ((NOW,), True, False)


@pytest.mark.parametrize(
    ("tools", "choice", "said"),
    [
        ("f", None, "tools must be a list of functions"),
        ([{"type": "web_search"}], None, r"tools holds \{'type': 'web_search'\}; a tool is"),
        ([{"type": "function", "function": {"name": "a b"}}], None, "with the name 'a b'; 1 to 64 of"),
        ([{"type": "function", "function": {}}], None, "with the name None"),
        ([{"type": "function", "function": {"name": "f", "parameters": 3}}], None, "parameters are no JSON schema: 3"),
        ([{"type": "function", "function": {"name": "f", "code": "x"}}], None, "function f with 'code'"),
        ([TOOLS[1], TOOLS[1]], None, "two functions with the name now"),
        (TOOLS, "always", "tool_choice is auto, none, required or"),
        (
            TOOLS,
            {"type": "function", "function": {"name": "later"}},
            "names 'later', which is not among .*: weather, now",
        ),
        (TOOLS, ["auto"], "tool_choice is auto"),
        ([], "required", "tool_choice is required, and there are no tools"),
    ],
)
def test_what_is_refused(tools: Any, choice: Any, said: str) -> None:
    with pytest.raises(BadSetting, match=said):
        Tools.of(tools, choice)


def test_schemas_that_are_not_read_are_named() -> None:
    odd = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"format": "odd"}}}}}]
    with pytest.raises(BadSetting, match=r"tools cannot be kept to: .*odd"):
        constraint_of("tools", Tools.of(odd, "required").constraint())


class TestPrompt:
    def asked(self, template: str, tools: Tools, messages: Any) -> Any:
        seen: list[Any] = []

        def tokenize(prompt: Any, tools: Any, method: Any) -> list[int]:
            seen.append((prompt, tools, method))
            return [1, 2]

        lm: Any = SimpleNamespace(tokenizer=SimpleNamespace(chat_template=template), tokenize=tokenize)
        assert tools.prompt(lm, messages, "cascade") == [1, 2]
        return seen[0]

    TALK = (
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Rain?"},
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [{"id": "1", "function": {"name": "now", "arguments": '{"a":1}'}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "noon"},
    )

    def test_a_template_that_knows_the_marks_gets_the_tools(self) -> None:
        messages, tools, method = self.asked("… <tool_call> …", Tools.of(TOOLS), self.TALK)
        assert (messages, method) == (list(self.TALK), "cascade")
        assert [tool["function"]["name"] for tool in tools] == ["weather", "now"]
        assert self.asked("… <tool_call> …", Tools.of(TOOLS, "none"), self.TALK)[1] is None

    def test_for_another_everything_is_said_in_words(self) -> None:
        [system, user, call, answer], tools, _ = self.asked("plain", Tools.of(TOOLS), self.TALK)
        assert tools is None
        assert system["content"].startswith("Be short.\n\nYou may call functions")
        assert '"The weather of a city"' in system["content"]
        assert '"name": "now"' in system["content"]
        assert user == self.TALK[1]
        assert call == {
            "role": "assistant",
            "content": 'I look.\n<tool_call>\n{"name": "now", "arguments": {"a": 1}}\n</tool_call>',
        }
        assert answer == {"role": "user", "content": "<tool_response>\nnoon\n</tool_response>"}

    def test_a_system_message_is_made_where_there_is_none(self) -> None:
        messages, _, _ = self.asked("plain", Tools.of(TOOLS), self.TALK[1:2])
        assert [message["role"] for message in messages] == ["system", "user"]
        assert messages[0]["content"].startswith("You may call functions")
        assert self.asked("plain", Tools.of(TOOLS, "none"), self.TALK[:2])[0] == list(self.TALK[:2])

    @pytest.mark.parametrize("arguments", ["{a", "[1]", '"a"'])
    def test_arguments_that_are_no_object(self, arguments: str) -> None:
        wrong = {"role": "assistant", "tool_calls": [{"function": {"name": "now", "arguments": arguments}}]}
        with pytest.raises(BadPrompt, match=re.escape(f"a JSON object; these are {arguments!r}")):
            self.asked("plain", Tools.of(TOOLS), [wrong])

    def test_contents_in_parts(self) -> None:
        parts = {"role": "tool", "content": [{"type": "text", "text": "no"}, {"type": "text", "text": "on"}]}
        assert self.asked("plain", Tools.of(TOOLS, "none"), [parts])[0][0]["content"].split() == [
            "<tool_response>", "noon", "</tool_response>",
        ]  # fmt: skip


TEXTS = [
    ("It rains.", "It rains.", []),
    (PARIS, "", [Call("weather", '{"city": "Paris", "unit": "C"}')]),
    (f"I look.\n{PARIS}\n{TIME}", "I look.\n", [Call("weather", '{"city": "Paris", "unit": "C"}'), Call("now", "{}")]),
    (f"{TIME}\nDone <b>", "Done <b>", [Call("now", "{}")]),
    (PARIS[:-23], "", [Call("weather", '{"city": "Paris", "un')]),
    ("a <tool_ca", "a <tool_ca", []),
    (f"{OPEN}" + '{"name": "weat', "", []),
    (written("f", a="}\n</tool")[: -len(CLOSE) - 1], "", [Call("f", '{"a": "}\\n</tool"')]),
]


@pytest.mark.parametrize(("text", "said", "calls"), TEXTS)
def test_calls_are_read_out_of_a_text(text: str, said: str, calls: list[Call]) -> None:
    assert read_calls(text) == (said, calls)


@given(st.sampled_from(TEXTS), st.lists(st.integers(0, 200)))
def test_a_text_in_pieces_says_the_same(case: Any, cuts: list[int]) -> None:
    text, said, calls = case
    found: list[Any] = []
    reader = CallReader(
        lambda more: found.append(more), lambda name: found.append([name]), lambda more: found[-1].append(more)
    )
    ends = [*sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    for start, end in zip([0, *ends], ends, strict=False):
        reader.read(text[start:end])
    reader.read("", last=True)
    assert "".join(one for one in found if isinstance(one, str)) == said
    assert [Call(one[0], "".join(one[1:])) for one in found if not isinstance(one, str)] == calls


@pytest.mark.parametrize(("text", "said", "calls"), TEXTS)
def test_a_text_sign_by_sign_says_the_same(text: str, said: str, calls: list[Call]) -> None:
    """The line break behind a call comes after its mark, and is none of the text."""
    told: list[str] = []
    found: list[list[str]] = []
    reader = CallReader(told.append, lambda name: found.append([name]), lambda more: found[-1].append(more))
    for sign in text:
        reader.read(sign)
    reader.read("", last=True)
    assert ("".join(told), [Call(name, "".join(parts)) for name, *parts in found]) == (said, calls)


def test_a_text_is_told_as_soon_as_it_is_certain() -> None:
    told: list[str] = []
    reader = CallReader(told.append, lambda name: told.append(f"call {name}"), told.append)
    for piece in ("It <", "b> ", "<tool_call>", '\n{"name": "f", "argum', 'ents": {"a"', ": 1}", "}\n</tool_", "call>"):
        reader.read(piece)
    assert told == ["It ", "<b> ", "call f", '{"a"', ": 1", "}"]


@pytest.mark.real_model
@pytest.mark.parametrize("choice", ["required", "auto"])
def test_a_model_without_tools_in_its_template_can_be_made_to_call(choice: str) -> None:
    lm = decodery.load("smollm2-135m")
    tools = Tools.of(TOOLS, choice, parallel=False)
    said = [{"role": "user", "content": "What is the weather in Paris, in degrees Celsius?"}]
    wanted = {"structured_outputs": tools.constraint(), "max_new_tokens": 80}
    replies: Any = [lm.generate(tools.prompt(lm, said), method, **wanted) for method in ("autoregressive", "cascade")]
    assert replies[0].token_ids == replies[1].token_ids
    if choice == "required":
        _, [call] = read_calls(replies[0].text)
        assert call.name in ("weather", "now")
        json.loads(call.arguments)
        assert replies[1].stats.forwards < len(replies[1].token_ids) / 2, "what must come is drafted"
