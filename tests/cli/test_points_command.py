"""Low-discrepancy samples and texts of points from the command line: the same as from Python, and refusals in one sentence."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("qmcpy")
OPTIONS = ["--temperature", "1", "--seed", "3", "--max-new-tokens", "6"]
SETTINGS: dict[str, Any] = {"max_new_tokens": 6, "temperature": 1.0, "seed": 3}


@pytest.mark.parametrize("chance", ["qmcpy", "qmcpy(points=net, randomize=nus, dimensions=2)"])
def test_tries_are_read_from_points(command: Any, toy: Any, chance: str) -> None:
    result = command("generate", "Once", "--method", "best-of-n(samples=4)", "--chance", chance, *OPTIONS)
    expected = toy.generate("Once", "best-of-n(samples=4)", chance=chance, **SETTINGS)
    assert (result.code, result.out) == (0, expected.text + "\n")


def test_an_estimate_is_told(command: Any, toy: Any) -> None:
    spec = "qmcpy(replications=2, samples=8, of=tokens)"
    result = command("generate", "Once", "--method", spec, *OPTIONS, "--json")
    told = json.loads(result.out)
    expected = toy.generate("Once", spec, **SETTINGS)
    assert told["text"] == expected.text
    assert told["stats"]["details"]["estimate"] == expected.stats.details["estimate"]


def test_a_text_comes_back_and_its_point_decodes_to_it(command: Any, toy: Any) -> None:
    more = ["--temperature", "1", "--max-new-tokens", "3", "--json"]
    told = json.loads(command("generate", "Once", "--method", "ariel(text='a b', dimensions=2)", *more).out)
    assert told["text"] == "a b"
    point = told["stats"]["details"]["ariel"]["point"]
    again = json.loads(command("generate", "Once", "--method", f"ariel(point='{point}', dimensions=2)", *more).out)
    assert again["token_ids"] == told["token_ids"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            ["--method", "best-of-n(samples=3)", "--chance", "qmcpy(points=net)"],
            "a power of 2 of points, and 3 is none",
        ),
        (["--chance", "qmcpy(points=sobol)"], "points must be one of lattice, net"),
        (["--method", "ariel(text='a b c d e f g h')"], "from 1 to 6 tokens, which is max_new_tokens"),
        (["--method", "ariel(point='2', dimensions=1)"], "a number from 0 to 1 for each of the 1 dimensions"),
        (["--method", "qmcpy(least=3)"], "least must be a power of 2, not 3"),
    ],
)
def test_what_cannot_be_is_refused_with_a_sentence(command: Any, toy: Any, options: list[str], says: str) -> None:
    result = command("generate", "Once", *options, *OPTIONS)
    assert result.code == 2
    assert says in result.err
    assert result.out == ""
