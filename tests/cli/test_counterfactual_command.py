"""decodery generate --record, and decodery counterfactual: runs that are written, and replayed with changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from decodery.evaluation.edit_distance import distance_after
from decodery.recorded_run import RecordedRun

LAW = ("--temperature", "0.9", "--seed", "3", "--max-new-tokens", "14", "--ignore-eos")


@pytest.fixture
def run(tmp_path: Path, command: Any, toy: Any) -> Path:
    path = tmp_path / "run.json"
    result = command("generate", "a cat sat", *LAW, "--record", str(path))
    assert (result.code, result.err) == (0, "")
    return path


def told(result: Any) -> Any:
    assert (result.code, result.err) == (0, "")
    return json.loads(result.out)


def test_a_run_is_recorded_as_it_was(command: Any, toy: Any, run: Path, tmp_path: Path) -> None:
    recorded = RecordedRun.read(run)
    settings: Any = {"temperature": 0.9, "seed": 3, "max_new_tokens": 14, "ignore_eos": True}
    expected = toy.generate("a cat sat", chance="structural", **settings)
    assert recorded.tokens == tuple(expected.token_ids)
    assert recorded.prompt == tuple(expected.prompt_token_ids)
    assert recorded.settings == {**settings, "chance": "structural"}
    other = tmp_path / "other.json"
    shown = told(command("generate", "a cat sat", *LAW, "--record", str(other), "--json"))
    assert RecordedRun.read(other) == recorded
    assert shown["token_ids"] == list(recorded.tokens)
    result = command("generate", "a cat sat", *LAW, "--record", str(other), "--chance", "structural(noise=rank)")
    assert result.code == 0
    assert RecordedRun.read(other).settings["chance"] == "structural(noise=rank)"


def test_without_a_change_the_run_itself_comes(command: Any, run: Path) -> None:
    recorded = RecordedRun.read(run)
    found = told(command("counterfactual", str(run), "--json"))
    assert found["factual"]["token_ids"] == found["counterfactual"]["token_ids"] == list(recorded.tokens)
    assert found["distance"] == 0
    assert found["factual"]["text"] == found["counterfactual"]["text"]
    assert found["factual"]["finish_reason"] == "length"
    result = command("counterfactual", str(run))
    factual, counterfactual = result.out.split("\ncounterfactual: ")
    assert factual.removeprefix("factual: ") == counterfactual.removesuffix("\n")


def test_tokens_are_set_by_text_by_id_and_by_themselves(command: Any, toy: Any, run: Path) -> None:
    recorded = RecordedRun.read(run)
    found = told(command("counterfactual", str(run), "--at", "2=xy", "--at", "7:65", "--json"))
    expected = recorded.replay(toy, f"2:{ord('x')}+3:{ord('y')}+7:65")
    now = found["counterfactual"]["token_ids"]
    assert now == expected.token_ids
    assert found["distance"] == pytest.approx(distance_after(recorded.tokens, now, 3))
    for options, parameters in (
        ([], {}),
        (["--nucleus", "0.3", "--intervention-seed", "9"], {"nucleus": 0.3, "intervention_seed": 9}),
        (["--noise", "fresh", "--fresh-seed", "4"], {"noise": "fresh", "fresh_seed": 4}),
        (["--noise", "posterior"], {"noise": "posterior"}),
        (["--forced", "singly"], {"forced": "singly"}),
    ):
        found = told(command("counterfactual", str(run), "--at", "2", *options, "--json"))
        assert found["counterfactual"]["token_ids"] == recorded.replay(toy, "2:auto", **parameters).token_ids
        assert found["counterfactual"]["method"] == recorded.replay(toy, "2:auto", **parameters).method


def test_another_prompt_and_another_law(command: Any, toy: Any, run: Path) -> None:
    recorded = RecordedRun.read(run)
    for options, arguments in (
        (["--prompt", "two dogs"], {"prompt": "two dogs"}),
        (["--prompt", "two dogs", "--chat"], {"prompt": [{"role": "user", "content": "two dogs"}]}),
        (["--temperature", "0.3", "--top-k", "4"], {"changes": {"temperature": 0.3, "top_k": 4}}),
    ):
        found = told(command("counterfactual", str(run), *options, "--json"))
        assert found["counterfactual"]["token_ids"] == recorded.replay(toy, **arguments).token_ids  # type: ignore[arg-type]
        assert found["changed"] == arguments.get("changes", {})


def test_another_way_of_computing_is_told(command: Any, run: Path) -> None:
    for field, value in (("path", "slow"), ("dtype", "float8")):
        text = run.read_text()
        run.write_text(json.dumps(json.loads(text) | {field: value}))
        result = command("counterfactual", str(run))
        assert result.code == 0
        assert value in result.err
        assert "near ties" in result.err
        run.write_text(text)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--at", "two"], "--at is written as"),
        (["--at", "2=\udc80"], "not valid Unicode"),
        (["--at", "99"], "no place 99"),
        (["--chat"], "give another prompt"),
        (["--seed", "4"], "seed makes the noise"),
        (["--noise", "loud"], "noise must be one of same, fresh, posterior"),
        (["--fresh-seed", "4"], "noise=fresh"),
        (["--prompt", ""], "empty"),
    ],
)
def test_what_is_refused(command: Any, run: Path, options: list[str], said: str) -> None:
    result = command("counterfactual", str(run), *options)
    assert result.code == 2
    assert said in result.err
    assert result.out == ""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-n", "2"], "not of n=2"),
        (["--chance", "gumbel"], "not with gumbel"),
        (["--method", "beam-search"], "beam-search does not give the very tokens"),
        (["--show"], "--record keeps one run"),
        (["--prompts", "some.jsonl"], "--record keeps one run"),
    ],
)
def test_what_cannot_be_recorded(command: Any, toy: Any, tmp_path: Path, options: list[str], said: str) -> None:
    prompt = [] if "--prompts" in options else ["a"]
    result = command("generate", *prompt, "--record", str(tmp_path / "run.json"), *options)
    assert result.code == 2
    assert said in result.err
    assert not (tmp_path / "run.json").exists()
    result = command("generate", "a", "--record", str(tmp_path / "nowhere" / "run.json"))
    assert result.code == 2
    assert "cannot be written" in result.err
