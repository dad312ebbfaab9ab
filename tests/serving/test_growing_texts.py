"""Texts that grow by insertions over HTTP: the stream of events, and holes of unknown length."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from serving_models import Running, serving

from decodery.engine.events import Inserted, Token
from decodery.serving.events import Followed
from decodery.testing import InserterScorer, inserting_language_model, random_script

LM = inserting_language_model(InserterScorer(6, random_script(6, 9)), stop_threshold=0.85)
ASKED: dict[str, Any] = {"max_tokens": 8, "temperature": 1.0, "seed": 3}
HOLES = "aibci"
"""A text with two holes, as the tokenizer of letters writes them."""


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(lambda name, **options: LM, models=("growing",)) as running:
        yield running


def test_insertions_are_told_as_they_come_and_then_the_tokens_with_their_steps(server: Running) -> None:
    body = {"model": "growing", "prompt": HOLES, **ASKED}
    reply = LM.generate(HOLES, max_new_tokens=8, temperature=1.0, seed=3)
    told = []
    with httpx.stream("POST", f"{server.address}/v1/decodery/events", json=body, timeout=60) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                told.append(json.loads(line.removeprefix("data: ")))
    assert told[0]["canvas"]
    grown: list[tuple[int, int]] = []
    for event in told:
        if event["type"] == "inserted":
            grown.insert(event["offset"], (event["token_id"], event["step"]))
            assert event["token"] == LM.tokenizer.decode([event["token_id"]])
    tokens = [event for event in told if event["type"] == "token"]
    assert grown == [(event["token_id"], event["step"]) for event in tokens]
    assert [event["token_id"] for event in tokens] == reply.token_ids
    assert [event["offset"] for event in tokens] == list(range(len(tokens)))
    assert {event["came"] for event in tokens} == {"inserted"}
    assert [event["step"] for event in tokens] == reply.stats.step_of
    assert sorted(reply.stats.step_of)[:2] == [-1, -1]


def test_a_suffix_leaves_a_hole_between_two_texts(server: Running) -> None:
    client = server.client()
    expected = LM.generate("abicd", max_new_tokens=8, temperature=1.0, seed=3)
    reply = client.completions.create(model="growing", prompt="ab", suffix="cd", **ASKED)
    assert reply.choices[0].text == expected.text
    other = client.completions.create(model="growing", prompt="ab", suffix="cd", max_tokens=2, temperature=1.0, seed=3)
    assert (len(other.choices[0].text), other.choices[0].finish_reason) == (2, "length")


def test_what_cannot_be_is_told(server: Running) -> None:
    with pytest.raises(openai.BadRequestError, match="no prefix"):
        server.client().completions.create(model="growing", prompt="ab", presence_penalty=1.0, **ASKED)


def test_cells_move_when_something_is_inserted_before_them() -> None:
    text = Followed()
    for step, (offset, token) in enumerate([(0, 5), (0, 6), (1, 5)]):
        text.insert(Inserted(0, step, offset, token))
    told = [text.came(Token(0, place, token, "", False)) for place, token in enumerate((6, 5, 5))]
    assert [(one["came"], one["offset"], one["step"]) for one in told] == [
        ("inserted", 0, 1), ("inserted", 1, 2), ("inserted", 2, 0),
    ]  # fmt: skip
