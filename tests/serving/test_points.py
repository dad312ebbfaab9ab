"""Low-discrepancy samples and texts of points through a server: the same as from Python, with what they tell."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from serving_models import Running, toy

pytest.importorskip("qmcpy")
BODY: dict[str, Any] = {"model": "toy", "prompt": "abc", "max_tokens": 6, "temperature": 1.0, "seed": 3}
SETTINGS: dict[str, Any] = {"max_new_tokens": 6, "temperature": 1.0, "seed": 3}


def post(server: Running, **body: Any) -> httpx.Response:
    return httpx.post(server.address + "/v1/completions", json={**BODY, **body}, timeout=120)


def texts(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [choice["text"] for choice in answer.json()["choices"]]


@pytest.mark.parametrize(
    "chance", ["qmcpy", "qmcpy(points=halton, randomize=nus, dimensions=2, replications=2, shuffle=True)"]
)
def test_samples_of_a_request_are_read_from_points(server: Running, chance: str) -> None:
    lm = toy()
    expected = lm.generate("abc", "autoregressive", n=4, chance=chance, **SETTINGS)
    assert texts(post(server, n=4, chance=chance, method="autoregressive")) == [reply.text for reply in expected]
    assert len({reply.text for reply in expected}) == 4


def test_an_estimate_is_told(server: Running) -> None:
    spec = "qmcpy(replications=2, samples=8, of=tokens, points=net, kernel=True)"
    answer = post(server, n=2, method=spec)
    told = answer.json()["decodery"]
    expected = toy().generate("abc", spec, n=2, **SETTINGS)
    assert texts(answer) == [reply.text for reply in expected]
    [details] = told["metrics"]["details"]
    assert details["estimate"] == expected[0].stats.details["estimate"]
    assert told["exactness"] == "identical-to-sampling"


def test_a_text_comes_back_and_its_point_decodes_to_it(server: Running) -> None:
    first = post(server, method="ariel(text=xyz, dimensions=2)", max_tokens=3)
    assert texts(first) == ["xyz"]
    told = first.json()["decodery"]
    assert told["exactness"] == "quality-changing"
    [details] = told["metrics"]["details"]
    again = post(server, method=f"ariel(point='{details['ariel']['point']}', dimensions=2)", max_tokens=3)
    assert texts(again) == ["xyz"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"chance": "qmcpy(points=net)", "n": 3}, "has a power of 2 of points, and 3 is none"),
        ({"method": "ariel(point=high)"}, "point must be random, or a number from 0 to 1"),
        ({"method": "qmcpy(of=contains)"}, "needs the text that is looked for"),
        ({"method": "qmcpy(replications=2, least=1)", "n": 3}, "and n is 3"),
    ],
)
def test_what_cannot_be_is_refused_with_a_sentence(server: Running, body: dict[str, Any], says: str) -> None:
    answer = post(server, **body)
    assert answer.status_code == 400
    assert says in answer.json()["error"]["message"]
