"""Prompts with holes through the server: the answer is the prompt from its first hole on, with the holes filled."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from serving_models import Running, serving

from decodery.testing import LetterTokenizer, SmallLanguageModel, toy_any_order_model

MASK = 23
METHOD = "any-subset-speculative(k=3)"
PROMPT = [0, 1, 2, MASK, MASK, 3, MASK, 4]


def _model() -> SmallLanguageModel:
    lm = toy_any_order_model(canvas=24, sharpness=0.3)
    lm.tokenizer = LetterTokenizer(24)
    return lm


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(lambda name, **options: _model(), models=("holes",)) as running:
        yield running
        running.wait_idle()


def test_a_completion_fills_holes_and_a_stream_says_the_same(server: Running) -> None:
    lm = _model()
    expected = lm.generate(PROMPT, METHOD, seed=2, temperature=1.0)
    asked: Any = {"model": "holes", "prompt": PROMPT, "temperature": 1.0, "seed": 2, "extra_body": {"method": METHOD}}
    reply = server.client().completions.create(**asked)
    assert reply.choices[0].text == expected.text
    assert expected.text[2::2] == "de"
    chunks = server.client().completions.create(**asked, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == expected.text


def test_a_template_longer_than_a_completion_s_default_is_filled_all_the_same(server: Running) -> None:
    prompt = [0, *[MASK, 3] * 12]
    reply = server.client().completions.create(model="holes", prompt=prompt, temperature=0.0, seed=1)
    assert len(reply.choices[0].text) == 24
    with pytest.raises(openai.BadRequestError, match="from its first hole on the prompt has 24"):
        server.client().completions.create(model="holes", prompt=prompt, max_tokens=10)


def test_what_is_given_is_step_0_of_the_canvas(server: Running) -> None:
    body = {"model": "holes", "prompt": PROMPT, "temperature": 1.0, "seed": 2, "method": METHOD}
    headers = {"Authorization": "Bearer test-key"}
    with httpx.stream("POST", f"{server.address}/v1/decodery/events", json=body, headers=headers, timeout=120) as told:
        events = [json.loads(line[6:]) for line in told.iter_lines() if line.startswith("data: {")]
    assert events[0]["canvas"]
    assert events[0]["prompt_tokens"] == 3
    steps = [event for event in events if event["type"] == "unmasked"]
    assert (steps[0]["step"], steps[0]["offsets"], steps[0]["token_ids"]) == (0, [2, 4], [3, 4])
    assert [event["came"] for event in events if event["type"] == "token"] == ["canvas"] * 5
    listed = httpx.get(f"{server.address}/v1/models", headers=headers, timeout=120).json()["data"][0]["decodery"]
    assert listed["kind"] == "an any-order model"
    assert listed["default_method"] == "any-subset-speculative"
    assert listed["methods"] == ["any-subset-autoregressive", "any-subset-speculative"]
