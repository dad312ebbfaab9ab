"""Counterfactual text and soft thinking over HTTP: the answers are those of the library, and what cannot be done is a 4xx."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from serving_models import KEY, Running

COMPLETIONS = "/v1/completions"
BASE: dict[str, Any] = {
    "model": "toy", "prompt": "a cat sat", "max_tokens": 10, "seed": 3, "temperature": 0.9, "return_token_ids": True,
    "ignore_eos": True,
}  # fmt: skip


def post(server: Running, **body: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {KEY}"}
    return httpx.post(server.address + COMPLETIONS, json={**BASE, **body}, headers=headers, timeout=120)


def ids(server: Running, **body: Any) -> list[int]:
    answer = post(server, **body)
    assert answer.status_code == 200, answer.text
    found: list[int] = answer.json()["choices"][0]["token_ids"]
    return found


def test_a_run_is_replayed_from_its_seed(server: Running) -> None:
    factual = ids(server, chance="structural", method="autoregressive")
    method = "counterfactual-generation(interventions=3:{})"
    assert ids(server, chance="structural", method=method.format(factual[3])) == factual
    changed = ids(server, chance="structural", method=method.format(65))
    assert changed[:4] == [*factual[:3], 65]
    library = server.lm().generate(
        "a cat sat", method.format(65), chance="structural", max_new_tokens=10, seed=3, temperature=0.9, ignore_eos=True
    )
    assert changed == library.token_ids
    assert ids(server, chance="structural", method="counterfactual-generation", top_k=1) == ids(server, top_k=1)
    other = ids(server, chance="structural(noise=rank)", method="autoregressive")
    assert other != factual


def test_soft_thinking(server: Running) -> None:
    spec = "soft-thinking(steps=4, noise=both)"
    answer = post(server, method=spec).json()
    library = server.lm().generate("a cat sat", spec, max_new_tokens=10, seed=3, temperature=0.9, ignore_eos=True)
    assert answer["choices"][0]["token_ids"] == library.token_ids
    [details] = answer["decodery"]["metrics"]["details"]
    assert len(details["thinking"]) == 4
    assert details["ended"] == "steps"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"method": "counterfactual-generation(interventions=3)"}, "interventions"),
        ({"method": "counterfactual-generation(interventions=30:1)"}, "place 30 is not written"),
        ({"method": "counterfactual-generation(interventions=3:99999)"}, "no token 99999"),
        ({"method": "counterfactual-generation(noise=posterior)"}, "needs the text"),
        ({"chance": "structural(noise=loud)"}, "noise must be one of token, rank, number"),
        ({"method": "soft-thinking(tau=1, noise=vanilla)"}, "noise=gumbel or both"),
        ({"method": "soft-thinking", "chance": "arithmetic"}, "does not run with chance arithmetic"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_sentence(server: Running, body: dict[str, Any], said: str) -> None:
    answer = post(server, **body)
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]
