"""/v1/decodery/events: every event, when it came, and how each token came."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import httpx
import pytest
from serving_models import Running, toy

import decodery
from decodery.engine import registry
from decodery.engine.autoregressive import Autoregressive
from decodery.engine.events import Branched, Drafted, Token, Unmasked
from decodery.models.forward import Forward
from decodery.serving.events import Followed

PATH = "/v1/decodery/events"
BODY = {"model": "toy", "prompt": "abcabcabcabc", "max_tokens": 24, "temperature": 0, "seed": 1}
REPEATING = {**BODY, "method": "prompt-lookup", "logit_bias": {"97": 50, "98": 50, "99": 50}}
SECRET = "the method's own secret"


@dataclass(frozen=True)
class Raising(Autoregressive):
    """Commits a token, then fails."""

    name: ClassVar[str] = "test-raising-late"

    def decode(self, request: Any) -> Any:
        scores = yield Forward(request.new_sequence(), request.prompt)
        request.commit([70], scores.logits[[-1]])
        raise ZeroDivisionError(SECRET)


@pytest.fixture
def raising() -> Iterator[str]:
    registry.register(Raising)
    try:
        yield Raising.name
    finally:
        del registry._classes[Raising.name]


def events(server: Running, body: Any) -> list[dict[str, Any]]:
    """The events of a request, whose stream must end as streams do."""
    with httpx.stream("POST", server.address + PATH, json=body, timeout=120) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        text = "".join(answer.iter_text())
    *frames, last, rest = text.split("\n\n")
    assert (last, rest) == ("data: [DONE]", "")
    told = []
    for frame in frames:
        name, data = frame.split("\n")
        told.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {told[-1]['type']}"
    return told


def of(told: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in told if event["type"] == kind]


def test_the_stream_tells_what_the_library_tells(server: Running) -> None:
    told = events(server, REPEATING)
    reply = toy().generate(
        "abcabcabcabc", "prompt-lookup", max_new_tokens=24, logit_bias={97: 50.0, 98: 50.0, 99: 50.0}
    )
    assert [event["token_id"] for event in of(told, "token")] == reply.token_ids
    assert "".join(event["visible"] for event in told if "visible" in event) == reply.text
    assert [event["index"] for event in of(told, "token")] == list(range(24))
    [begun], [finished], [done] = of(told, "begun"), of(told, "finished"), of(told, "done")
    assert (told[0], told[-2:]) == (begun, [finished, done])
    assert begun == {
        "type": "begun", "model": "toy", "method": "prompt-lookup", "exactness": "identical-to-plain", "seed": 1,
        "order": ["logit_bias"], "texts": 1, "canvas": False, "prompt_tokens": 12,
    }  # fmt: skip
    numbers = finished["statistics"]
    for name in ("new_tokens", "forwards", "rounds", "drafted", "accepted", "bonus", "prompt_tokens"):
        assert numbers[name] == getattr(reply.stats, name), name
    assert numbers["seconds"] > numbers["first_token_seconds"] > 0
    assert finished["reason"] == "length"
    assert finished["decodery"]["metrics"]["num_forward"] == reply.stats.forwards
    assert done["usage"]["completion_tokens"] == 24
    assert finished["decodery"]["seed"] == 1


def test_how_each_token_came(server: Running) -> None:
    told = events(server, REPEATING)
    [finished] = of(told, "finished")
    came = [event["came"] for event in of(told, "token")]
    assert came.count("drafted") == finished["statistics"]["accepted"] > 0
    assert came.count("bonus") + came.count("plain") == finished["statistics"]["bonus"]
    assert sum(len(event["tokens"]) for event in of(told, "drafted")) == finished["statistics"]["drafted"]
    draft: Any = None
    last = -1
    for event in told:
        if event["type"] == "drafted":
            draft, last = event, -1
            assert event["tokens"] == [chr(token) for token in event["token_ids"]]
        elif event["type"] == "token" and event["came"] == "drafted":
            node = event["node"]
            assert (draft["token_ids"][node], draft["parents"][node]) == (event["token_id"], last)
            last = node
        elif event["type"] == "token":
            assert event["came"] == ("plain" if draft is None else "bonus")
            draft = None


def test_what_a_search_considers_is_told_while_it_does(server: Running) -> None:
    told = events(server, {**BODY, "method": "beam-search(beams=3)", "max_tokens": 8})
    reply = toy().generate("abcabcabcabc", "beam-search(beams=3)", max_new_tokens=8)
    expected = [event for event in reply.events if isinstance(event, Branched)]
    found = of(told, "branched")
    assert [tuple(event["token_ids"]) for event in found] == [event.tokens for event in expected]
    assert [tuple(event["parents"]) for event in found] == [event.parents for event in expected]
    assert [event["scores"] for event in found] == [pytest.approx(event.scores, abs=1e-4) for event in expected]
    assert all(len(event["tokens"]) == len(event["token_ids"]) for event in found)
    assert [event["pass"] for event in found] == sorted({event["pass"] for event in found})
    kinds = [event["type"] for event in told]
    assert kinds.index("token") > len(kinds) - 1 - kinds[::-1].index("branched")
    # The text is a path of the tree.
    nodes = [(token, parent) for event in expected for token, parent in zip(event.tokens, event.parents, strict=True)]
    node = -1
    for token in reply.token_ids:
        node = nodes.index((token, node))


def test_when_events_came(server: Running) -> None:
    told = [event for event in events(server, REPEATING) if "seconds" in event]
    assert [e["seconds"] for e in told] == sorted(e["seconds"] for e in told)
    passes = [event["pass"] for event in of(told, "token")]
    assert passes == sorted(passes)
    [finished] = of(told, "finished")
    assert len(set(passes)) == finished["statistics"]["rounds"]
    assert 0 < told[0]["seconds"] <= told[-1]["seconds"] < 120
    assert told[-1]["seconds"] == pytest.approx(finished["statistics"]["seconds"], abs=0.5)


def test_plain_decoding_drafts_nothing(server: Running) -> None:
    told = events(server, {**BODY, "method": "autoregressive"})
    assert {event["type"] for event in told} == {"begun", "token", "finished", "done"}
    assert {event["came"] for event in of(told, "token")} == {"plain"}


def test_probabilities_where_they_are_asked_for(server: Running) -> None:
    plain = events(server, {**BODY, "method": "autoregressive", "temperature": 0.5})
    assert {str(event["logprobs"]) for event in of(plain, "token")} == {"None"}
    told = events(server, {**BODY, "method": "autoregressive", "temperature": 0.5, "top_k": 2, "logprobs": 3})
    reply = toy().generate(
        "abcabcabcabc", "autoregressive", max_new_tokens=24, temperature=0.5, top_k=2, logprobs=3, seed=1
    )
    for event, entry in zip(of(told, "token"), reply.logprobs, strict=True):
        assert event["logprobs"]["raw"] == pytest.approx(entry.raw)
        assert event["logprobs"]["processed"] == pytest.approx(entry.processed)
        assert [token for _, token, _ in event["logprobs"]["top"]] == [token for token, _ in entry.top]
        assert [value for _, _, value in event["logprobs"]["top"]] == pytest.approx([v for _, v in entry.top])
        assert all(said == server.lm().tokenizer.decode([token]) for said, token, _ in event["logprobs"]["top"])


def test_a_canvas_and_the_steps_that_its_text_comes_from(server: Running) -> None:
    asked = {"model": "diffusion-stories", "prompt": "Once upon a time", "max_tokens": 32, "temperature": 0, "seed": 2}
    told = events(server, asked)
    reply = decodery.load("diffusion-stories").generate("Once upon a time", max_new_tokens=32, seed=2)
    assert [event["token_id"] for event in of(told, "token")] == reply.token_ids
    cells: dict[int, tuple[int, int]] = {}
    for event in of(told, "unmasked"):
        assert event["length"] == len(reply.stats.step_of)
        assert len(event["offsets"]) == len(event["tokens"]) == len(event["token_ids"]) > 0
        for offset, token in zip(event["offsets"], event["token_ids"], strict=True):
            cells[offset] = (token, event["step"])
    assert [cells[offset][1] for offset in sorted(cells)] == [step for step in reply.stats.step_of if step >= 0]
    assert told[0]["canvas"]
    before = -1
    for event in of(told, "token"):
        assert event["came"] == "canvas"
        assert event["offset"] > before
        assert cells[event["offset"]] == (event["token_id"], event["step"])
        before = event["offset"]


def test_cells_that_are_no_text_are_passed_over() -> None:
    text = Followed()
    text.fill(Unmasked(0, 0, (3, 1), (9, 5), 4))
    text.fill(Unmasked(0, 1, (0, 2), (5, 7), 4))
    told = [text.came(Token(0, i, token, "", False)) for i, token in enumerate((5, 5, 9))]
    assert [(one["offset"], one["step"]) for one in told] == [(0, 1), (1, 0), (3, 0)]
    assert text.came(Token(0, 3, 9, "", False)) == {"came": "canvas", "offset": None, "step": None}


def test_nodes_that_an_accepted_token_is() -> None:
    text = Followed()
    text.begin(Drafted(0, (4, 5, 5, 6), (-1, 0, -1, 2)))
    assert text.came(Token(0, 0, 5, "", True)) == {"came": "drafted", "node": 2}
    assert text.came(Token(0, 1, 6, "", True)) == {"came": "drafted", "node": 3}
    assert text.came(Token(0, 2, 8, "", False)) == {"came": "bonus"}
    assert text.came(Token(0, 3, 8, "", False)) == {"came": "plain"}
    assert text.came(Token(0, 4, 8, "", True)) == {"came": "drafted", "node": None}
    text.begin(Drafted(0, (4,), (-1,)))
    assert text.came(Token(0, 5, 4, "", True)) == {"came": "drafted", "node": 0}


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [("hello", 5), (list(b"hello"), 5), ([{"role": "user", "content": "hello"}], None)],
)
def test_what_a_prompt_may_be(server: Running, prompt: Any, tokens: int | None) -> None:
    told = events(server, {**BODY, "prompt": prompt, "max_tokens": 3})
    expected = tokens or len(server.lm().tokenize(prompt))
    assert told[0]["prompt_tokens"] == expected
    assert of(told, "finished")[0]["statistics"]["new_tokens"] == 3


def test_several_texts_are_told_apart(server: Running) -> None:
    told = events(server, {**BODY, "n": 2, "temperature": 1, "method": "autoregressive"})
    replies = toy().generate("abcabcabcabc", "autoregressive", n=2, temperature=1.0, seed=1, max_new_tokens=24)
    for place, reply in enumerate(replies):
        mine = [event["token_id"] for event in of(told, "token") if event["text"] == place]
        assert mine == reply.token_ids
    assert told[0]["texts"] == 2
    assert len(of(told, "finished")) == 2


def test_what_is_wrong_is_said_before_the_stream_or_within_it(server: Running, raising: str) -> None:
    answer = httpx.post(server.address + PATH, json={**BODY, "top_p": 0})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "top_p")
    for field, value in (("stream", False), ("echo", True)):
        answer = httpx.post(server.address + PATH, json={**BODY, field: value})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)
    told = events(server, {**BODY, "method": raising})
    assert [event["type"] for event in told] == ["begun", "token", "finished", "error"]
    assert told[2]["reason"] == "error"
    assert "failed inside the server" in told[3]["error"]["message"]
    assert SECRET not in json.dumps(told)
