"""The field `watermark`, and /v1/decodery/detect."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from serving_models import Running

from decodery.provenance.watermark import detect
from decodery.sampling.watermarks.keys import ExponentialKey, key_of

KEY = {"scheme": "exp", "key": 123456789, "vocabulary": 260, "length": 64}
BODY = {"model": "toy", "prompt": "abcabc", "max_tokens": 50, "temperature": 1, "seed": 2, "return_token_ids": True}


def post(server: Running, body: Any, path: str = "/v1/decodery/detect") -> httpx.Response:
    return httpx.post(server.address + path, json=body, timeout=120)


@pytest.fixture(scope="module")
def marked(server: Running) -> list[int]:
    answer = post(server, {**BODY, "watermark": KEY}, "/v1/completions")
    assert answer.status_code == 200, answer.text
    assert str(KEY["key"]) not in answer.text
    tokens: list[int] = answer.json()["choices"][0]["token_ids"]
    return tokens


def test_a_mark_is_the_same_however_it_is_drafted_and_found_by_the_server(server: Running, marked: list[int]) -> None:
    drafted = post(server, {**BODY, "watermark": KEY, "method": "cascade", "n": 2}, "/v1/completions").json()["choices"]
    assert drafted[0]["token_ids"] == marked != drafted[1]["token_ids"]
    for tokens in (marked, drafted[1]["token_ids"]):
        found = post(server, {"model": "toy", "token_ids": tokens, "watermark": KEY, "statistic": "simple"}).json()
        assert (found["object"], found["verdict"], found["p_value"]) == ("decodery.detection", "detected", 0.005)
        expected = detect(tokens, key_of(KEY), statistic="simple")
        assert found == {"object": "decodery.detection", **expected.as_dict(), "sentence": expected.sentence}


def test_texts_are_read_without_special_tokens(server: Running) -> None:
    options: dict[str, Any] = {
        "statistic": "edit", "block": 4, "gap": 0.1, "resamples": 299, "seed": 3, "significance": 0.02,
    }  # fmt: skip
    found = post(server, {"text": "some words", "watermark": KEY, **options}).json()
    expected = detect(list(b"some words"), ExponentialKey(123456789, 260, 64), **options)
    assert found == {"object": "decodery.detection", **expected.as_dict(), "sentence": expected.sentence}
    judged = post(server, {"text": "ab", "watermark": KEY, "probabilities": [1.0, 1]}).json()
    assert judged["verdict"] == "undetectable"


@pytest.mark.parametrize(
    ("param", "said", "more"),
    [
        ("watermark", "watermark, the key, is missing", {"watermark": None}),
        ("watermark", "the key is for 5 tokens, but this model scores 260", {"watermark": {**KEY, "vocabulary": 5}}),
        ("watermark", "must be a key, as an object", {"watermark": "/etc/passwd"}),
        ("text", "give text or token_ids", {"text": None}),
        ("text", "give text or token_ids", {"token_ids": [1]}),
        ("text", "text must be a string", {"text": 5}),
        ("text", "has no tokens", {"text": ""}),
        ("text", "the text has 65 tokens, more than the 64 entries", {"text": "a" * 65}),
        ("token_ids", "must be a list of numbers", {"text": None, "token_ids": ["a"]}),
        ("token_ids", "holds 260", {"text": None, "token_ids": [260]}),
        ("probabilities", "must be a list of numbers", {"probabilities": [True]}),
        ("statistic", "must be one of edit, simple", {"statistic": "sum"}),
        ("resamples", "this would take long", {"resamples": 99_999, "text": "a" * 64, "statistic": "edit"}),
        ("resamples", "must be at least 0 and at most 99999", {"resamples": 100_000}),
        ("gammma", "'gammma' is no field of /v1/decodery/detect", {"gammma": 1}),
        ("model", "model", {"model": "none"}),
    ],
)
def test_bad_requests_name_the_field(server: Running, param: str, said: str, more: dict[str, Any]) -> None:
    answer = post(server, {"text": "words", "watermark": KEY, **more})
    assert answer.status_code in (400, 404), answer.text
    error = answer.json()["error"]
    assert said in error["message"]
    assert error["param"] == param


def test_a_watermark_that_cannot_be_honoured_is_refused(server: Running) -> None:
    for said, more in (
        ("watermark exp needs a temperature above 0", {"temperature": 0}),
        ("does not run with watermark", {"method": "best-of-n"}),
        ("the watermark has 64 entries, and max_new_tokens is 65", {"max_tokens": 65}),
        ("watermark must be a key, as an object", {"watermark": "key.json"}),
    ):
        answer = post(server, {**BODY, "watermark": KEY, **more}, "/v1/completions")
        assert answer.status_code == 400, answer.text
        assert said in answer.json()["error"]["message"]
