"""decodery audit: verdicts on files, refusals in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def lines(path: Path, entries: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return str(path)


def words(count: int, seed: int, listed: str = "cat sat mat dog ran hid") -> list[str]:
    draws = np.random.Generator(np.random.Philox(key=seed))
    return [" ".join(draws.choice(listed.split(), 5)) for _ in range(count)]


@pytest.fixture(autouse=True)
def _few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forest of 100 trees takes most of a second."""
    monkeypatch.setattr("decodery.audit.shift.TREES", 10)


@pytest.fixture
def halves(tmp_path: Path) -> str:
    return lines(tmp_path / "t.jsonl", [{"text": t, "member": p % 2 == 0} for p, t in enumerate(words(40, 1))])


def test_a_claim_is_audited(command: Any, toy: Any, halves: str, tmp_path: Path) -> None:
    result = command("audit", "membership", halves)
    assert (result.code, result.err) == (0, "")
    assert "no sign of membership" in result.out
    assert "words alone, 99 %" in result.out
    assert "Left out: zlib:" in result.out
    out = tmp_path / "report.json"
    told = command("audit", "membership", halves, "--json", "--scores", "loss,min-k", "--out", str(out))
    assert (told.code, told.err) == (0, "")
    found = json.loads(told.out)
    assert [score["name"] for score in found["scores"]] == ["loss", "min-k"]
    assert (found["members"], found["others"], found["verdict"]) == (20, 20, "no sign of membership")
    assert len(json.loads(out.read_text())["values"]["loss"]) == 40


def test_a_shift_is_said_first(command: Any, toy: Any, tmp_path: Path) -> None:
    texts = [*words(20, 2), *words(20, 3, "sun sea sky ship sand surf")]
    path = lines(tmp_path / "t.jsonl", [{"text": t, "member": p < 20} for p, t in enumerate(texts)])
    result = command("audit", "membership", path, "--scores", "loss")
    assert result.code == 0
    assert "shift, not membership" in result.out.splitlines()[1]


def test_everything_that_scores_need_can_be_given(command: Any, toy: Any, tmp_path: Path, monkeypatch: Any) -> None:
    halves = lines(tmp_path / "few.jsonl", [{"text": t, "member": p % 2 == 0} for p, t in enumerate(words(12, 8))])
    more = lines(tmp_path / "more.jsonl", [{"text": t} for t in words(3, 4)])
    monkeypatch.setattr(toy, "companion", lambda name: toy)
    given = ["--reference", "itself", "--shots", more, "--member-shots", more, "--background", more]
    asked = "ratio,con-recall,recall,dc-pdd,samia,pac"
    result = command(
        "audit", "membership", halves, *given, "--json", "--scores", asked, "--samples", "2", "--continued", "40"
    )
    assert (result.code, result.err) == (0, "")
    scores = {score["name"]: score for score in json.loads(result.out)["scores"]}
    assert set(scores) == set(asked.split(","))
    assert scores["ratio"]["auc"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    other = command("audit", "membership", halves, "--json", "--scores", "pac", "--seed", "1")
    assert json.loads(other.out)["scores"][0]["auc"] != scores["pac"]["auc"]


def test_dates_make_members(command: Any, toy: Any, tmp_path: Path) -> None:
    entries = [{"text": t, "date": f"2023-{1 + p % 4:02}-{1 + p % 28:02}"} for p, t in enumerate(words(80, 5))]
    path = lines(tmp_path / "t.jsonl", entries)
    result = command("audit", "membership", path, "--cutoff", "2023-03-01", "--scores", "loss")
    assert result.code == 0
    assert "jump at the cut-off" in result.out
    assert "months" in result.out
    told = json.loads(command("audit", "membership", path, "--cutoff", "2023-03-01", "--window", "2", "--json").out)
    assert (told["members"], told["others"]) == (40, 40)
    assert [(w["months"], w["members"]) for w in told["windows"]] == [(1, 20), (3, 40), (6, 40), (12, 40)]
    assert told["windows"][0]["shift"]["low"] <= 0.5


def test_texts_are_cut_and_copies_left_out(command: Any, toy: Any, tmp_path: Path) -> None:
    texts = words(40, 6)
    entries = [
        {"text": f"{a} {b} {a}", "member": p % 2 == 0} for p, (a, b) in enumerate(zip(texts, texts[::-1], strict=True))
    ]
    path = lines(tmp_path / "t.jsonl", [*entries, {"text": entries[0]["text"], "member": False}])
    told = json.loads(command("audit", "membership", path, "--json", "--scores", "loss").out)
    assert (told["members"], told["others"]) == (20, 20)
    told = json.loads(command("audit", "membership", path, "--json", "--scores", "loss", "--overlap", "1").out)
    assert (told["members"], told["others"]) == (20, 21)
    told = json.loads(command("audit", "membership", path, "--json", "--scores", "loss", "--words", "6").out)
    assert (told["members"], told["others"]) == (40, 40)
    assert "documents" in told["scores"][0]
    told = json.loads(
        command("audit", "membership", path, "--json", "--scores", "loss", "--words", "6", "--pieces", "1").out
    )
    assert (told["members"], told["others"]) == (20, 20)


def test_texts_are_split_at_random(command: Any, tmp_path: Path) -> None:
    path, out = lines(tmp_path / "t.jsonl", [{"text": t} for t in words(11, 7)]), tmp_path / "split.jsonl"
    result = command("audit", "split", path, "--out", str(out), "--seed", "3")
    assert result.code == 0
    assert "5 members and 6 others" in result.out
    entries = [json.loads(line) for line in out.read_text().splitlines()]
    assert sum(entry["member"] for entry in entries) == 5
    told = command("audit", "split", path, "--out", str(out), "--seed", "4", "--json")
    assert json.loads(told.out) == {"members": 5, "others": 6, "seed": 4}
    assert [json.loads(line) for line in out.read_text().splitlines()] != entries


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cutoff", "soon"], "--cutoff is a date such as 2023-02-28"),
        (["--cutoff", "2023-01-01"], "no date such as"),
        (["--overlap", "2"], "--overlap is a share"),
        (["--words", "0"], "--words must be at least 1"),
        (["--window", "0"], "--window must be at least 1"),
        (["--scores", "magic"], "no membership score 'magic'"),
        (["--scores", "ratio"], "it needs reference"),
        (["--shots", "missing.jsonl"], "cannot be read"),
        (["--out", "/nowhere/report.json"], "cannot be written"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(
    command: Any, toy: Any, halves: str, options: list[str], message: str
) -> None:
    result = command("audit", "membership", halves, *options)
    assert (result.code, result.out) == (2, "")
    assert message in result.err


def test_a_missing_library_is_named(command: Any, toy: Any, halves: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "statsmodels.stats.multitest", None)
    result = command("audit", "membership", halves)
    assert result.code == 2
    assert "pip install 'decodery[audit]'" in result.err


def test_the_verb_alone_helps(command: Any) -> None:
    result = command("audit")
    assert result.code == 0
    assert "membership" in result.out
    assert "split" in result.out


def test_hidden_texts_are_looked_for(command: Any, toy: Any, tmp_path: Path) -> None:
    file, out = tmp_path / "scan.jsonl", tmp_path / "report.json"
    given = ["audit", "hidden-text", "--scan", str(file), "--confirm", "8", "--threshold", "0.5", "--batch", "300"]
    result = command(*given)
    assert (result.code, result.err) == (0, "")
    assert "of 259 tokens score above 0.5 behind 'document'" in result.out
    assert "0.2% " in result.out or "leaves 0.2%" in result.out
    asked = [
        *given,
        "--json",
        "--secret",
        "ab cd",
        "--samples",
        "3",
        "--sampled",
        "4",
        "--top-k",
        "5",
        "--out",
        str(out),
    ]
    told = command(*asked)
    assert (told.code, told.err) == (0, "")
    report = json.loads(told.out)
    assert report == json.loads(out.read_text())
    assert {attack["samples"] for attack in report["attacks"]} == {3}
    assert {len(one["ids"]) for one in report["candidates"]} == {8}
    assert [one["start"] for one in report["secret"]] == ["a", " "]
    assert len(file.read_text().splitlines()) == 260
    shown = command(*asked[: asked.index("--json")], *asked[asked.index("--secret") :])
    assert "of the secret printed" in shown.out
    assert "0 of 3" in shown.out
    other = command("audit", "hidden-text", "--json", "--prefix", "user", "--length", "2", "--confirm", "1")
    assert json.loads(other.out)["prefix"] == "user"
    assert command(*given, "--length", "2").code == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--length", "0"], "--length must be at least 1, not 0"),
        (["--samples", "0"], "--samples must be at least 1, not 0"),
        (["--threshold", "2"], "--threshold is a mean of probabilities, from 0 to 1, not 2"),
        (["--prefix", "nobody"], "no prefix 'nobody'; it has document, nothing"),
        (["--scan", "/nowhere/scan.jsonl"], "/nowhere/scan.jsonl cannot be written"),
    ],
)
def test_wrong_scans_are_refused(command: Any, toy: Any, options: list[str], said: str) -> None:
    result = command("audit", "hidden-text", *options)
    assert result.code == 2
    assert said in result.err
