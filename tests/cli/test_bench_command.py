"""decodery bench: what is measured on what, and where the numbers go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from decodery.cli.options import split_specs
from decodery.evaluation import benchmark


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the benchmark is asked for; then it measures one short question, so that tests are quick."""
    asked: dict[str, Any] = {}
    run = benchmark.run_benchmark

    def run_benchmark(lm: Any, methods: list[str], questions: list[Any], *, on_progress: Any, **settings: Any) -> Any:
        asked.update(methods=methods, questions=questions, settings=settings)
        few = {**settings, "max_new_tokens": 4, "against": (), "repeats": 1, "batch_size": 1}
        return run(lm, methods[:2], questions[:1], on_progress=on_progress, **few)

    monkeypatch.setattr(benchmark, "run_benchmark", run_benchmark)
    return asked


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    file = tmp_path / "question.jsonl"
    rows = [
        {"question_id": i, "category": ("qa", "summarization", "rag")[i % 3], "turns": [f"Question {i}?"]}
        for i in range(9)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_defaults(command: Any, toy: Any, asked: dict[str, Any]) -> None:
    result = command("bench", "--limit", "1", "--categories", "qa")
    assert (result.code, result.err) == (0, "")
    header, *rows = result.out.splitlines()
    assert header.split()[:2] == ["method", "tokens/s"]
    assert [row.split("  ")[0] for row in rows[:3]] == ["autoregressive", "bare forward", "prompt-lookup"]
    assert f"{toy.name} in float32 on" in result.out
    assert "1 questions (" in result.out
    assert set(asked["methods"]) >= {"autoregressive", "prompt-lookup", "suffix-automaton", "token-recycling"}
    assert "draft-model" not in asked["methods"]  # it needs something
    settings = {
        "max_new_tokens": 128, "temperature": 0.0, "repeats": 1, "warmup": 1, "batch_size": 1, "against": (), "seed": 0,
    }  # fmt: skip
    assert asked["settings"] == settings


def test_options_arrive(command: Any, toy: Any, asked: dict[str, Any], questions: Path) -> None:
    result = command(
        "bench", "--methods", "prompt-lookup(length=5, max_ngram=2), token-recycling", "--methods", "autoregressive",
        "--prompts", str(questions), "--limit", "2", "--categories", "qa, summarization", "--max-new-tokens", "9",
        "--temperature", "0.5", "--repeats", "3", "--warmup", "0", "--batch-size", "4", "--against", "transformers",
        "--seed", "8",
    )  # fmt: skip
    assert (result.code, result.err) == (0, "")
    assert asked["methods"] == ["prompt-lookup(length=5, max_ngram=2)", "token-recycling", "autoregressive"]
    assert [question.category for question in asked["questions"]] == ["qa", "summarization"] * 2
    assert asked["settings"] == {
        "max_new_tokens": 9, "temperature": 0.5, "repeats": 3, "warmup": 0, "batch_size": 4,
        "against": ("transformers",), "seed": 8,
    }  # fmt: skip


def test_files(command: Any, toy: Any, asked: Any, questions: Path, tmp_path: Path) -> None:
    table, report = tmp_path / "speeds.csv", tmp_path / "report.json"
    result = command("bench", "--prompts", str(questions), "--csv", str(table), "--out", str(report), "--json")
    assert table.read_text().startswith("method,category,")
    value = json.loads(result.out)
    assert json.loads(report.read_text()) == value
    assert {row["method"] for row in value["rows"]} == {"autoregressive", "bare forward", "prompt-lookup"}
    assert value["provenance"]["model"] == toy.name


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--methods", "prompt-lokup"], "did you mean prompt-lookup"),
        (["--methods", "prompt-lookup(length=0)"], "1..64"),
        (["--categories", "none"], "there is no category 'none'"),
        (["--prompts", "nowhere.jsonl"], "nowhere.jsonl cannot be read"),
        (["--warmup", "-1"], "warmup must be at least 0"),
        (["--against", "pencils"], "'pencils' is no engine"),
        (["--csv", "nowhere/speeds.csv"], "nowhere/speeds.csv cannot be written"),
        (["--repeats", "often"], "--repeats"),
        (["--suite", "parallelbench"], "No such option: --suite"),
        (["--plot", "curves.png"], "No such option: --plot"),
    ],
)
def test_refused(
    command: Any,
    toy: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = command("bench", *arguments)
    assert (result.code, result.out) == (2, "")
    assert told in result.err
    assert len(result.err.splitlines()) == 1


def test_a_file_that_cannot_be_written_is_told_before_the_work(
    command: Any, toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "run_benchmark", lambda *_, **__: pytest.fail("measured"))
    for option in ("--csv", "--out"):
        assert command("bench", option, str(tmp_path / "nowhere" / "file")).code == 2
    monkeypatch.undo()
    kept = tmp_path / "kept.csv"
    kept.write_text("earlier numbers")
    assert command("bench", "--csv", str(kept), "--warmup", "-1").code == 2
    assert kept.read_text() == "earlier numbers"


def test_commas_between_brackets_separate_nothing() -> None:
    assert split_specs(" a(b=1, c=2),d ,, e") == ["a(b=1, c=2)", "d", "e"]
