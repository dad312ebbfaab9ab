"""decodery traps: from making to detection, and back to the documents as they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def files(command: Any, toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Traps, documents of 30 words, and a toy whose companion is itself."""
    toy.stop_ids = (0,)
    monkeypatch.setattr(toy, "companion", lambda name: toy)
    sizes = ("--length", "6", "--count", "8", "--buckets", "1", "--lowest", "1", "--highest", "900")
    drawn = ("--repetitions", "1,3", "--batch", "32")
    result = command("traps", "make", "--out", str(tmp_path / "traps.jsonl"), *sizes, *drawn, "--json")
    assert (result.code, result.err) == (0, "")
    assert json.loads(result.out)["members"] == json.loads(result.out)["twins"] == 4
    texts = [{"text": f"text {place} " + " ".join(f"w{n}" for n in range(28))} for place in range(6)]
    (tmp_path / "documents.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    return tmp_path


def test_the_whole_way(command: Any, files: Path) -> None:
    paths = [
        str(files / name)
        for name in ("traps.jsonl", "documents.jsonl", "published.jsonl", "record.jsonl", "again.jsonl")
    ]
    traps, documents, published, record, again = paths
    result = command("traps", "inject", traps, documents, "--out", published, "--record", record, "--least-words", "20")
    assert (result.code, result.err) == (0, "")
    assert "copies: 8" in result.out
    assert Path(published).read_text() != Path(documents).read_text()
    told = command("traps", "remove", published, "--record", record, "--out", again, "--json")
    assert json.loads(told.out) == {"documents": 6, "traps": 4, "copies": 8}
    assert [json.loads(line) for line in Path(again).read_text().splitlines()] == [
        json.loads(line) for line in Path(documents).read_text().splitlines()
    ]
    shown = command("traps", "detect", traps, "--reference", "itself")
    assert shown.code == 0
    assert "0.500 (0.500 to 0.500)" in shown.out
    plain, behind = (
        json.loads(command("traps", "detect", traps, "--reference", "itself", "--json", *more).out)
        for more in ((), ("--published", published, "--record", record, "--context", "9"))
    )
    assert [cell["repetitions"] for cell in plain["cells"]] == [1, 3]
    assert plain["cells"][0]["areas"]["loss"] != behind["cells"][0]["areas"]["loss"] or plain != behind


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["make", "--out", "x", "--repetitions", "a"], "--repetitions are numbers"),
        (["make", "--out", "/nowhere/x"], "cannot be written"),
        (["make", "--out", "x", "--count", "3"], "take a multiple of"),
        (["inject", "traps.jsonl", "documents.jsonl", "--out", "o", "--record", "r"], "need a document each"),
        (["remove", "documents.jsonl", "--record", "missing", "--out", "o"], "cannot be read"),
        (["detect", "traps.jsonl", "--reference", "x", "--record", "r"], "go together"),
        (["detect", "traps.jsonl", "--reference", "x", "--context", "0"], "--context must be at least 1"),
    ],
)
def test_what_is_wrong_is_said(
    command: Any, files: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(files)
    result = command("traps", *arguments)
    assert (result.code, result.out) == (2, "")
    assert message in result.err


def test_the_verb_alone_helps_with_traps(command: Any) -> None:
    result = command("traps")
    assert result.code == 0
    assert all(verb in result.out for verb in ("make", "inject", "remove", "detect"))
