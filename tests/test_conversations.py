"""Conversations with parts, tools and their answers: through templates that read them, and refused by name by the others."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
from tiny_models import byte_level_tokenizer, make_model

import decodery
from decodery import BadPrompt, LanguageModel
from decodery.testing import ByteTokenizer, toy_language_model

PLAIN = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}<assistant>"
"""The usual small template: prints what it is given, whatever it is."""
DROPS = (
    "{% for m in messages %}{% if m.role in ['user', 'assistant'] %}<{{ m.role }}>{{ m.content or '' }}{% endif %}"
    "{% endfor %}"
)
"""Leaves out what it does not know, without a word."""
FULL = """{% if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}
{% endfor %}</tools>{% endif %}{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{%
elif m.content %}{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif %}{%
if m.reasoning %}<think>{{ m.reasoning }}</think>{% endif %}{% for call in m.tool_calls or [] %}{% set f = call.function %}
<call>{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}</call>{% endfor %}
{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"""
"""Reads everything, in the way of Qwen and Llama 3."""

WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "Tells it.", "parameters": {"type": "object", "properties": {}}},
}
ASK = {"role": "user", "content": "Rain in Ulm?"}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Ulm"}}}],
}
ANSWER = {"role": "tool", "tool_call_id": "1", "content": "12 degrees"}
PARTS = {"role": "user", "content": [{"type": "text", "text": "Rain in "}, {"type": "text", "text": "Ulm?"}]}


@cache
def _lm(template: str) -> LanguageModel:
    tokenizer = type(byte_level_tokenizer())(
        tokenizer_object=byte_level_tokenizer().backend_tokenizer, eos_token="<end>", chat_template=template
    )
    return decodery.wrap(make_model("llama", vocab_size=330), tokenizer, name="tiny")


def rendered(template: str, messages: list[Any], tools: Any = None) -> str:
    lm = _lm(template)
    text: str = lm.tokenizer.decode(lm.tokenize(messages, tools))
    return text


def own(template: str, messages: list[Any], tools: Any = None) -> str:
    """What transformers renders."""
    tokenizer = _lm(template).tokenizer
    text: str = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False)
    return text


@pytest.mark.parametrize(
    ("messages", "tools"),
    [
        ([ASK], None),
        ([PARTS], None),
        ([{"role": "system", "content": "Be short."}, PARTS], None),
        ([ASK], [WEATHER]),
        ([ASK, CALL, ANSWER], [WEATHER]),
        ([ASK, {**CALL, "content": "Let me see."}, ANSWER, {"role": "assistant", "content": "Warm."}, ASK], None),
        ([ASK, {"role": "assistant", "content": "No.", "reasoning": "It is dry."}, ASK], None),
        ([ASK, CALL, {**ANSWER, "name": "weather"}], [WEATHER]),
    ],
    ids=str,
)
def test_a_template_that_reads_them_gets_them(messages: list[Any], tools: Any) -> None:
    assert rendered(FULL, messages, tools) == own(FULL, messages, tools)


def test_parts_are_one_text() -> None:
    assert rendered(FULL, [PARTS]) == rendered(FULL, [ASK])


@pytest.mark.parametrize(
    ("template", "messages", "tools", "named"),
    [
        (PLAIN, [PARTS], None, "contents in parts"),
        (PLAIN, [ASK], [WEATHER], "tools"),
        (PLAIN, [ASK, CALL, ANSWER], None, "tool_calls"),
        (PLAIN, [{**ASK, "name": "Eva"}], None, "'name'"),
        (PLAIN, [{**ASK, "weight": 0}], None, "'weight'"),
        (DROPS, [ASK, CALL, ANSWER], None, "tool_calls"),
        (DROPS, [ASK, {"role": "assistant", "content": "Wait."}, ANSWER], None, "role 'tool'"),
        (DROPS, [{"role": "system", "content": "Be short."}, ASK], None, "role 'system'"),
        (DROPS, [{"role": "critic", "content": "No."}, ASK], None, "role 'critic'"),
    ],
    ids=str,
)
def test_what_a_template_would_drop_is_refused_by_name(
    template: str, messages: list[Any], tools: Any, named: str
) -> None:
    with pytest.raises(BadPrompt, match=rf"template of tiny does not take .*{named}") as caught:
        _lm(template).tokenize(messages, tools)
    assert "\n" not in str(caught.value)


def test_thoughts_before_former_answers_may_be_left_out() -> None:
    """As Qwen 3 does on purpose: only those of the last answer are read."""
    template = PLAIN.replace("{{ m['content'] }}", "{{ m.thoughts if loop.last }}{{ m['content'] }}")
    said = {"role": "assistant", "content": "No.", "thoughts": "It is dry."}
    assert rendered(template, [ASK, said, ASK]) == rendered(PLAIN, [ASK, {**said, "thoughts": ""}, ASK])
    with pytest.raises(BadPrompt, match="'thought'"):
        _lm(template).tokenize([ASK, {**said, "thought": "x"}, ASK])


def test_templates_that_refuse_say_so_themselves() -> None:
    template = "{{ raise_exception('Only users.\nNo tools.') }}"
    with pytest.raises(BadPrompt, match=r"refuses this conversation: Only users\. No tools\.$"):
        _lm(template).tokenize([ASK], [WEATHER])
    with pytest.raises(BadPrompt, match="has no chat template"):
        decodery.wrap(make_model("llama", vocab_size=330), byte_level_tokenizer(), name="tiny").tokenize([ASK])
    with pytest.raises(BadPrompt, match="does not take these tools"):
        toy_language_model().tokenize([ASK], [WEATHER])


class Prints(ByteTokenizer):
    """Its template writes whatever it finds, also what is not there."""

    def apply_chat_template(self, messages: Any, add_generation_prompt: bool = False, tokenize: bool = False) -> str:
        return "".join(f"<{m['role']}>{m['content']}{m.get('tool_calls', '')}" for m in messages)


def test_a_content_that_is_not_there_is_not_called_none() -> None:
    toy = toy_language_model()
    lm = LanguageModel(toy.network, Prints())
    text = Prints().decode(lm.tokenize([ASK, CALL]))
    assert "None" in Prints().apply_chat_template([ASK, CALL])
    assert text == Prints().apply_chat_template([ASK, {**CALL, "content": ""}])
    without = {key: value for key, value in CALL.items() if key != "content"}
    assert rendered(FULL, [ASK, without]) == own(FULL, [ASK, CALL])


def test_arguments_as_text_are_what_they_say() -> None:
    """As OpenAI sends them; templates would write them as a string within the JSON."""
    function = {"name": "weather", "arguments": '{"city": "Ulm"}'}
    as_text = {**CALL, "tool_calls": [{"id": "1", "type": "function", "function": function}]}
    assert rendered(FULL, [ASK, as_text, ANSWER]) == own(FULL, [ASK, CALL, ANSWER])


def test_a_function_is_a_tool() -> None:
    def weather(city: str) -> str:
        """Tells the weather.

        Args:
            city: Where.
        """
        return city

    assert rendered(FULL, [ASK], [weather]) == own(FULL, [ASK], [weather])
    assert '"city"' in rendered(FULL, [ASK], [weather])

    def undocumented(city):  # type: ignore[no-untyped-def]
        return city

    with pytest.raises(BadPrompt, match="does not take these tools"):
        rendered(FULL, [ASK], [undocumented])


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": []},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
        {"role": "user", "content": [{"type": "text"}]},
        {"role": "user", "content": ["Hello"]},
        {"role": "user", "content": [{"type": "text", "text": 5}]},
        {"role": "user", "content": {"type": "text", "text": "x"}},
        {"role": "assistant", "content": None},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "assistant", "content": None, "tool_calls": ["weather"]},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"arguments": {}}}]},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "a", "arguments": "{"}}]},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "a", "arguments": "[1]"}}]},
        {"role": "user", "content": None, "tool_calls": CALL["tool_calls"]},
        {"role": 5, "content": "x"},
    ],
    ids=str,
)
def test_malformed_messages_are_refused_with_one_sentence(message: Mapping[str, Any]) -> None:
    with pytest.raises(BadPrompt) as caught:
        _lm(FULL).tokenize([message])
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tools", ["weather", WEATHER, [5], ["weather"], [{}], [{"type": "function"}], 5], ids=str)
def test_malformed_tools_are_refused(tools: Any) -> None:
    with pytest.raises(BadPrompt, match="tool"):
        _lm(FULL).tokenize([ASK], tools)


def test_tools_go_with_a_conversation_through_every_call() -> None:
    lm = _lm(FULL)
    expected = tuple(lm.tokenize([ASK], [WEATHER]))
    assert lm.generate([ASK], tools=[WEATHER], max_new_tokens=1).prompt_token_ids == expected
    assert lm.chat("Rain in Ulm?", tools=[WEATHER], max_new_tokens=1).prompt_token_ids == expected
    batch = lm.generate([[ASK], [ASK]], tools=[WEATHER], max_new_tokens=1)
    assert [reply.prompt_token_ids for reply in batch] == [expected] * 2
    stream = lm.stream([ASK], tools=[WEATHER], max_new_tokens=1)
    assert stream.replies()[0].prompt_token_ids == expected
    assert lm.generate([ASK], tools=[], max_new_tokens=1).prompt_token_ids == tuple(lm.tokenize([ASK]))
    for prompt in ("the", [40, 41]):
        with pytest.raises(BadPrompt, match="tools go with a conversation"):
            lm.generate(prompt, tools=[WEATHER])
