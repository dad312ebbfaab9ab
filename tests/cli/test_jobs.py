"""Jobs over files of prompts: their results in a file, and going on where one ended."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from decodery.cli.jobs import LineDecoder, Results
from decodery.cli.prompts import Line
from decodery.errors import BadInput


def entry(number: int, **more: Any) -> dict[str, Any]:
    return {"line": number, "text": f"text {number}", **more}


def told(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


class TestResults:
    def test_a_line_is_written_once(self, tmp_path: Path) -> None:
        path = tmp_path / "out.jsonl"
        with Results(path) as results:
            results.write(2, [entry(2, text="ü")])
            results.write(1, [entry(1)])
            results.write(2, [entry(2, text="again")])
            assert results.done == {1, 2}
            assert len(told(path)) == 2, "at once, not at the end"
        assert told(path) == [entry(2, text="ü"), entry(1)]
        assert "ü" in path.read_text("utf-8")

    def test_a_job_goes_on_behind_what_is_there(self, tmp_path: Path) -> None:
        path = tmp_path / "out.jsonl"
        path.write_text(json.dumps(entry(1)) + "\n" + json.dumps(entry(3)) + "\n" + '{"line": 4, "te')
        with Results(path) as results:
            assert results.done == {1, 3}
            results.write(4, [entry(4)])
        assert told(path) == [entry(1), entry(3), entry(4)]

    def test_lines_without_all_of_their_texts_are_done_again(self, tmp_path: Path) -> None:
        path = tmp_path / "out.jsonl"
        there = [entry(1, sample=0), entry(1, sample=1), entry(2, sample=0), {"line": 3, "error": "no"}]
        path.write_text("".join(json.dumps(one) + "\n" for one in there))
        with Results(path, samples=2) as results:
            assert results.done == {1, 3}
        assert told(path) == [*there[:2], there[3]]
        assert sorted(child.name for child in tmp_path.iterdir()) == ["out.jsonl"]

    @pytest.mark.parametrize("text", ["hello\n", '{"text": "x"}\n', "[1]\n", '{"line": "one"}\n'])
    def test_another_file_is_not_written_to(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "notes.txt"
        path.write_text(text)
        with pytest.raises(BadInput, match=r"line 1 of .*notes.txt is no result of a job; give --output another file"):
            Results(path)
        assert path.read_text() == text

    def test_a_place_that_cannot_be_written(self, tmp_path: Path) -> None:
        with pytest.raises(BadInput):
            Results(tmp_path / "nowhere" / "out.jsonl")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    lines = [{"prompt": f"text {number}", "id": f"n{number}"} for number in range(5)] + [{"prompt": ""}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_results_go_to_the_file_in_the_same_form(command: Any, toy: Any, prompts: Path, tmp_path: Path) -> None:
    asked = ("generate", "--prompts", str(prompts), "--max-new-tokens", "4", "--seed", "3", "--batch-size", "2")
    printed = command(*asked)
    out = tmp_path / "out.jsonl"
    kept = command(*asked, "--output", str(out))
    assert (printed.code, kept.code, kept.out) == (2, 2, "")
    lines = [json.loads(line) for line in printed.out.splitlines()]
    for one in (*lines, *(found := told(out))):
        one.pop("stats", None)
    assert found == lines
    assert [one["line"] for one in found] == [1, 2, 3, 4, 5, 6]


def test_what_is_there_is_not_decoded_again(
    command: Any, toy: Any, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text(json.dumps(entry(2)) + "\n" + json.dumps(entry(4))[:9])
    decoded: list[Any] = []
    stream = toy.stream
    monkeypatch.setattr(toy, "stream", lambda prompt, *a, **k: decoded.append(prompt) or stream(prompt, *a, **k))
    asked = ("generate", "--prompts", str(prompts), "--max-new-tokens", "4", "--output", str(out))
    assert command(*asked).code == 2
    assert [one["line"] for one in told(out)] == [2, 1, 3, 4, 5, 6]
    assert told(out)[0] == entry(2)
    assert "text 1" not in [prompt for prompt in decoded if isinstance(prompt, str)]
    decoded.clear()
    assert command(*asked).code == 0, "nothing is left to do, and so nothing fails"
    assert decoded == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--output", "x.jsonl", "hello"), "--output keeps the results of --prompts"),
        (("--prompts", "p", "--ray"), "--ray goes with --output FILE"),
        (("--prompts", "p", "--output", "o", "--workers", "2"), "--workers with --ray"),
        (("--prompts", "p", "--output", "o", "--ray", "--workers", "0"), "--workers must be at least 1, not 0"),
    ],
)
def test_refused_jobs(command: Any, arguments: tuple[str, ...], said: str) -> None:
    result = command("generate", *arguments)
    assert (result.code, len(result.err.splitlines())) == (2, 1)
    assert said in result.err


def test_lines_are_decoded_elsewhere(monkeypatch: pytest.MonkeyPatch, toy: Any) -> None:
    given: list[Any] = []
    monkeypatch.setattr("decodery.loading.load", lambda **model: given.append(model) or toy)
    decode = LineDecoder({"name": "m", "dtype": "auto"}, "file", "prompt-lookup", {"max_new_tokens": 3, "seed": 1})
    lines = [Line(7, "hello", labels={"id": "a"}), Line(9, error="it is empty")]
    result = decode({"item": [pickle.dumps(line) for line in lines]})
    assert given == [{"name": "m", "dtype": "auto"}]
    assert result["number"] == [7, 9]
    [[first], [second]] = [json.loads(entries) for entries in result["results"]]
    assert (first["line"], first["id"], first["method"], len(first["token_ids"])) == (7, "a", "prompt-lookup", 3)
    assert second == {"line": 9, "error": "it is empty"}
