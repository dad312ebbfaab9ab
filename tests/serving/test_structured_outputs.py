"""Structured outputs over HTTP, by the official client: in the words of OpenAI and of vLLM, on every route."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from serving_models import Running

from decodery.sampling.settings import Whole, setting
from decodery.sampling.structured import rules

SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}, "sure": {"type": "boolean"}},
    "required": ["colour", "sure"],
    "additionalProperties": False,
}
TIGHT = {"json": SCHEMA, "disable_any_whitespace": True}
"""Without white space, of which a model of random weights makes too much."""
END: Any = {"stop_token_ids": [256]}
"""The toy model has no end token of its own."""
SAID: Any = [{"role": "user", "content": "Which colour?"}]


def valid(text: str) -> None:
    told = json.loads(text)
    assert told["colour"] in ("red", "green")
    assert isinstance(told["sure"], bool)
    assert len(told) == 2


@pytest.mark.parametrize("method", ["autoregressive", "cascade"])
def test_a_schema_in_a_chat(server: Running, method: str) -> None:
    client = server.client()
    answer = client.chat.completions.create(
        model="toy",
        messages=SAID,
        temperature=1.0,
        seed=4,
        max_tokens=200,
        n=3,
        extra_body={"structured_outputs": TIGHT, "method": method, **END},
    )
    assert [choice.finish_reason for choice in answer.choices] == ["stop"] * 3
    for choice in answer.choices:
        valid(choice.message.content or "")


def test_response_format_is_the_same(server: Running) -> None:
    client, texts = server.client(), []
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "colour", "schema": {"enum": ["red", "green"]}}}
    ours = {"structured_outputs": {"json": {"enum": ["red", "green"]}}}
    for more in ({"response_format": wanted, "extra_body": END}, {"extra_body": {**ours, **END}}):
        answer = client.chat.completions.create(
            model="toy", messages=SAID, temperature=1.0, seed=4, max_tokens=50, **more
        )
        texts.append(answer.choices[0].message.content)
    assert texts[0] == texts[1]
    assert texts[0] in ('"red"', '"green"')


def test_a_stream_and_a_prompt(server: Running) -> None:
    client = server.client()
    pieces = client.completions.create(
        model="toy",
        prompt="A number:",
        max_tokens=20,
        stream=True,
        extra_body={"structured_outputs": {"regex": "[0-9]{3}-x"}, **END},
    )
    text = "".join(piece.choices[0].text for piece in pieces if piece.choices)
    assert re.fullmatch("[0-9]{3}-x", text)


def test_the_responses_route(server: Running) -> None:
    form: Any = {"format": {"type": "json_schema", "name": "colour", "schema": {"enum": ["red"]}}}
    client = server.client()
    answer = client.responses.create(
        model="toy", input="Which colour?", text=form, max_output_tokens=30, extra_body=END
    )
    assert answer.output_text == '"red"'
    assert answer.text is not None
    assert answer.text.format is not None
    assert answer.text.format.type == "json_schema"
    free: Any = {"format": {"type": "text"}}
    plain = client.responses.create(model="toy", input="Which?", text=free, max_output_tokens=3)
    assert plain.output_text != '"red"'


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"json": {"type": "string", "format": "foo"}}, "Unknown format: foo"),
        ({"regex": "("}, "unclosed group"),
        ({"grammar": "start: x"}, "unknown name"),
    ],
)
def test_what_cannot_be_kept_to_is_refused_by_name(server: Running, given: Any, message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        server.client().chat.completions.create(model="toy", messages=SAID, extra_body={"structured_outputs": given})
    assert caught.value.param == "structured_outputs"


def test_no_code_comes_over_the_network(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registered rule by its name, and nothing else that would be code."""
    monkeypatch.setattr(rules.REGISTRY, "known", dict(rules.REGISTRY.known))
    rules.register_rule(FewWords)
    client = server.client()
    answer = client.chat.completions.create(
        model="toy",
        messages=SAID,
        temperature=1.0,
        seed=4,
        max_tokens=12,
        extra_body={"structured_outputs": {"regex": "[a-z ]+", "rule": {"name": "few-words", "most": 1}}, **END},
    )
    assert " " not in (answer.choices[0].message.content or "").strip()
    refused: list[tuple[Any, str]] = [
        ({"predicate": "lambda text: True"}, "name a registered rule instead"),
        ({"rule": "os.system"}, "there is no rule 'os.system'"),
        ({"potential": "len"}, "name a registered rule instead"),
        ({"rule": {"name": "few-words", "most": "__import__('os')"}}, "most must be a whole number"),
    ]
    for given, message in refused:
        with pytest.raises(openai.BadRequestError, match=re.escape(message)):
            client.chat.completions.create(
                model="toy", messages=SAID, max_tokens=5, extra_body={"structured_outputs": given, **END}
            )


@dataclass(frozen=True)
class FewWords(rules.TextRule):
    """At most so many words."""

    most: int = setting(None, Whole(1), "Most words.")

    name = "few-words"

    def begins(self, text: str) -> bool:
        return len(text.split()) <= self.most
