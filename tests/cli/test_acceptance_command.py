"""decodery acceptance: what is logged and measured, what is shown, what is refused."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

QUICK = ("--rows", "12", "--temperatures", "0.8", "--drafts", "1,2", "--limit", "1", "--max-new-tokens", "4")


def test_table(command: Any, toy: Any) -> None:
    result = command("acceptance", *QUICK, "--draft", "layers", "--layers", "1")
    assert (result.code, result.err) == (0, "")
    header, *lines = result.out.splitlines()
    assert header.split() == [
        "temperature", "drawn", "drafts", "verifier", "accepted", "computed", "optimum", "gap",
    ]  # fmt: skip
    rows = [line.split("  ") for line in lines if "±" in line]
    assert len(rows) == 2 * 4, "two draft counts; two verifiers with replacement, one without, one of the greedy set"
    assert f"{toy.name} in float32 on" in result.out
    assert "draft layers (1 layers); 12 positions" in result.out


def test_json(command: Any, toy: Any) -> None:
    result = command("acceptance", *QUICK, "--json")
    value = json.loads(result.out)
    assert value["provenance"]["draft"] == "ngram"
    assert value["provenance"]["rows"] == 12
    for row in value["rows"]:
        assert 0 <= row["expected"] <= row["optimum"] + 1e-9 <= 1 + 2e-9
        assert row["gap"] == pytest.approx(row["optimum"] - row["expected"], abs=1e-12)
        if row["drafts"] == 1 and row["verifier"] != "recursive-rejection":
            assert row["gap"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--temperatures", "0"], "temperatures must be above 0"),
        (["--temperatures", "hot"], "--temperatures takes numbers separated by commas, not 'hot'"),
        (["--temperatures", ""], "at least one temperature"),
        (["--drafts", "1,0"], "must lie in 1..64"),
        (["--drafts", "1.5"], "--drafts takes whole numbers"),
        (["--rows", "1"], "rows must be at least 2"),
        (["--layers", "1"], "only with draft=layers"),
        (["--draft", "layers", "--layers", "99"], "leaves nothing to gain"),
        (["--prompts", "nowhere.jsonl"], "nowhere.jsonl cannot be read"),
        (["--trials", "0"], "trials must be at least 1"),
    ],
)
def test_refused(command: Any, toy: Any, arguments: list[str], told: str) -> None:
    result = command("acceptance", *QUICK, *arguments)
    assert (result.code, result.out) == (2, "")
    assert told in result.err
    assert len(result.err.splitlines()) == 1


def test_a_plot_needs_matplotlib(command: Any, toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "matplotlib" else find(name))
    result = command("acceptance", *QUICK, "--plot", str(tmp_path / "plot.png"))
    assert (result.code, result.out) == (2, "")
    assert "pip install 'decodery[bench]'" in result.err
    assert "matplotlib" not in sys.modules or find("matplotlib") is not None


def test_plot(command: Any, toy: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "plot.svg"
    assert command("acceptance", *QUICK, "--temperatures", "0.6,1", "--plot", str(file)).code == 0
    drawn = file.read_text()
    assert drawn.count("errorbar") or "svg" in drawn
    assert file.stat().st_size > 5000
    wrong = command("acceptance", *QUICK, "--plot", str(tmp_path / "plot.txt"))
    assert wrong.code == 2
    assert "is no picture" in wrong.err
    assert len(wrong.err.splitlines()) == 1
