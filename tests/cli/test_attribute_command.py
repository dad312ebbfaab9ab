"""decodery attribute: tables, JSON, pages, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

QUICK = ("--steps", "3", "--chains", "2")


def test_what_the_model_writes_is_attributed(command: Any, toy: Any, tmp_path: Path) -> None:
    page = tmp_path / "why.html"
    result = command("attribute", "a cat", *QUICK, "--max-new-tokens", "3", "--html", str(page))
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0].split() == ["token", "depends", "most", "on", "converged"]
    assert lines[1].split()[-1] in ("yes", "no")
    assert "By reagent under" in result.out
    assert page.read_text().startswith("<!doctype html>")
    told = json.loads(command("attribute", "a cat", *QUICK, "--max-new-tokens", "3", "--json").out)
    written = toy.generate("a cat", temperature=0, max_new_tokens=3).token_ids
    assert told["token_ids"][told["prompt_tokens"] :] == written
    assert [len(row["weights"]) for row in told["rows"]] == [row["place"] for row in told["rows"]]


def test_a_continuation_may_be_given_and_the_seed_decides(command: Any, toy: Any) -> None:
    def told(*options: str) -> Any:
        result = command("attribute", "a cat", *QUICK, "--continuation", " sat", "--json", *options)
        assert (result.code, result.err) == (0, "")
        return json.loads(result.out)

    found = told()
    assert "".join(found["tokens"][found["prompt_tokens"] :]) == " sat"
    assert told() == found
    assert told("--seed", "1") != found
    assert told("--replacer", "uniform") != found
    for option in (("--replaced", "0.9"), ("--tolerance", "200"), ("--kept", "1"), ("--least", "5"), ("--votes", "1")):
        assert told(*option) != found, option
    occluded = told("--by", "occlusion")
    assert "converged" not in occluded["rows"][0]
    assert np.sum(occluded["rows"][0]["weights"]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--by", "magic"], "no attribution 'magic'"),
        (["--replacer", "magic"], "no replacer 'magic'"),
        (["--replacer", "masked"], "needs the folder"),
        (["--steps", "0"], "steps must be at least 1"),
        (["--html", "/nowhere/why.html"], "cannot be written"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(command: Any, toy: Any, options: list[str], message: str) -> None:
    result = command("attribute", "a cat", *options)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
