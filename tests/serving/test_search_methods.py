"""Sets and superposed drafts over HTTP."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from serving_models import Running

from decodery.serving.fields import CHAT, COMPLETIONS, RESPONSES

ONE = "Say:<|start_2d|> a long one<|split_2d|> two<|end_2d|> So:"
OTHER = "Say:<|start_2d|> two<|split_2d|> a long one<|end_2d|> So:"
BODY = {"max_tokens": 8, "seed": 3, "temperature": 0.7, "model": "toy"}


def post(server: Running, path: str, body: Any) -> httpx.Response:
    return httpx.post(server.address + path, json=body, timeout=120)


@pytest.mark.parametrize("path", [CHAT.path, COMPLETIONS.path, RESPONSES.path])
def test_sets_are_read_on_every_route(server: Running, path: str) -> None:
    found = []
    for text in (ONE, OTHER):
        prompt: Any = {
            CHAT.path: {"messages": [{"role": "user", "content": text}]},
            COMPLETIONS.path: {"prompt": text},
            RESPONSES.path: {"input": text},
        }[path]
        body = {**BODY, **prompt, "method": "set-based-prompting"}
        if path == RESPONSES.path:
            body["max_output_tokens"] = body.pop("max_tokens")
        answer = post(server, path, body)
        assert answer.status_code == 200, answer.text
        told = answer.json()
        found.append(told["output"][0]["content"] if path == RESPONSES.path else told["choices"])
    assert found[0] == found[1]


def test_the_reading_is_that_of_the_model_itself(server: Running) -> None:
    """As a set, as given and side by side, and what is wrong with a prompt."""
    expected = server.lm().generate(ONE, "set-based-prompting", max_new_tokens=8, temperature=0.7, seed=3)
    body = {**BODY, "prompt": ONE, "method": "set-based-prompting"}
    told = post(server, COMPLETIONS.path, body).json()
    assert told["choices"][0]["text"] == expected.text
    assert told["usage"]["prompt_tokens"] == len("Say: a long one two So:")
    bad = post(server, COMPLETIONS.path, {**body, "prompt": "a<|start_2d|>b"})
    assert bad.status_code == 400
    assert "does not end" in bad.json()["error"]["message"]
    assert bad.json()["error"]["param"] == "prompt"


def test_superposed_drafts_are_the_choices(server: Running) -> None:
    body = {**BODY, "prompt": "Once upon", "n": 3, "temperature": 0}
    body["method"] = "superposed-decoding(drafts=4, tau=0.8, ngrams=prompt)"
    refused = post(server, COMPLETIONS.path, {**body, "temperature": 0.7})
    assert refused.status_code == 400
    assert "does not run with temperature" in refused.json()["error"]["message"]
    answer = post(server, COMPLETIONS.path, body)
    assert answer.status_code == 200, answer.text
    expected = server.lm().generate("Once upon", body["method"], n=3, max_new_tokens=8)
    assert [choice["text"] for choice in answer.json()["choices"]] == [reply.text for reply in expected]
    body["method"] = "superposed-decoding(ngrams=corpus, corpus=/etc/hostname)"
    hidden = post(server, COMPLETIONS.path, body)
    assert hidden.status_code == 400
    assert "corpus names a file of the server" in hidden.json()["error"]["message"]
