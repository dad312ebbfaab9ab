"""decodery watermark, generate --watermark and detect: a key is made, spent and looked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from decodery.sampling.watermarks.keys import ExponentialKey, GreenKey, read_key

LETTERS = [option for token in range(97, 123) for option in ("--allowed-token-id", str(token))]
LAW = ("--temperature", "2", "--max-new-tokens", "60", "--seed", "3", *LETTERS)


@pytest.fixture
def key(tmp_path: Path, command: Any, toy: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("decodery.loading.load_tokenizer", lambda name, progress=None: toy.tokenizer)
    path = tmp_path / "key.json"
    ExponentialKey(11, toy.network.vocabulary, 64).write(path)
    return str(path)


@pytest.fixture
def marked(tmp_path: Path, command: Any, key: str) -> str:
    result = command("generate", "a cat sat", *LAW, "--watermark", key)
    assert (result.code, len(result.out)) == (0, 61)
    (tmp_path / "marked.txt").write_text(result.out)
    return str(tmp_path / "marked.txt")


def told(result: Any) -> Any:
    assert (result.code, result.err) == (0, "")
    return json.loads(result.out)


def test_a_new_key_is_secret_and_for_the_model_s_tokens(tmp_path: Path, command: Any, toy: Any) -> None:
    path = tmp_path / "key.json"
    result = command("watermark", str(path), "--length", "64")
    assert (result.code, "exponential minimum sampling" in result.out) == (0, True)
    made = read_key(path)
    assert (made.vocabulary, made.longest) == (toy.network.vocabulary, 64)
    assert str(made.key) not in result.out


def test_a_key_of_each_scheme(tmp_path: Path, command: Any, toy: Any) -> None:
    path = str(tmp_path / "green.json")
    assert command("watermark", path, "--scheme", "kgw", "--share", "0.5", "--bias", "3", "--window", "2").code == 0
    made = read_key(Path(path))
    assert made == GreenKey(made.key, toy.network.vocabulary, 2, 0.5, 3.0)
    again = command("watermark", path)
    assert (again.code, "exists already" in again.err) == (2, True)
    assert command("watermark", str(tmp_path / "it.json"), "--scheme", "synthid", "--layers", "9").code == 0
    assert read_key(tmp_path / "it.json").layers == 9  # type: ignore[attr-defined]
    wrong = command("watermark", str(tmp_path / "x.json"), "--layers", "9")
    assert (wrong.code, "a key of exp has no 'layers'" in wrong.err) == (2, True)
    assert not (tmp_path / "x.json").exists()


def test_a_mark_is_found(command: Any, key: str, marked: str, toy: Any) -> None:
    found = told(command("detect", marked, "--key", key, "--json"))
    assert (found["verdict"], found["p_value"], found["tokens"], found["statistic"]) == ("detected", 0.005, 60, "edit")
    options = ("--key", key, "--json", "--resamples", "999", "--statistic", "simple", "--block", "50")
    more = told(command("detect", "-", *options, stdin=Path(marked).read_text()))
    assert (more["p_value"], more["block"], more["resamples"]) == (0.001, 50, 999)
    assert found["value"] != told(command("detect", marked, "--key", key, "--json", "--gap", "0.2"))["value"]
    shown = command("detect", marked, "--key", key)
    assert shown.out.startswith("detected\nThe text carries the mark of this key.\np = 0.005; exp, edit -")
    assert shown.out.endswith("; 60 tokens; 199 fresh keys\n")


def test_a_text_without_the_mark_is_said_to_have_none(command: Any, key: str, tmp_path: Path) -> None:
    result = command("generate", "a cat sat", *LAW)
    (tmp_path / "plain.txt").write_text(result.out)
    arguments = ("detect", str(tmp_path / "plain.txt"), "--key", key, "--statistic", "simple")
    shown = command(*arguments)
    assert shown.out.startswith("not detected\nNo mark was found. Predictable text")
    assert "; bound 1\n" in shown.out
    judged = command(*arguments, "--with-model", "--prompt", "a cat sat")
    assert judged.out.startswith("not detected\nNo mark was found, and a text like this one would show it")
    assert (
        told(command(*arguments, "--seed", "5", "--json"))["p_value"] != told(command(*arguments, "--json"))["p_value"]
    )
    lax = told(command(*arguments, "--significance", "1", "--json"))
    assert (lax["verdict"], lax["temperature"]) == ("detected", None)


def test_greedy_text_is_undetectable(
    command: Any, key: str, toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is written it is refused, and where it is read it is said why nothing is found."""
    refused = command("generate", "a cat sat", "--watermark", key)
    assert (refused.code, "watermark exp needs a temperature above 0" in refused.err) == (2, True)
    tokens = toy.generate("a cat sat", max_new_tokens=40).token_ids
    monkeypatch.setattr(
        "decodery.prompts.PromptReader.encode", lambda self, text, **more: tokens
    )  # no text has these bytes
    monkeypatch.setattr(toy, "tokenize", lambda prompt: list(b"a cat sat"))
    (tmp_path / "greedy.txt").write_text("as the tokens say")
    result = command("detect", str(tmp_path / "greedy.txt"), "--key", key, "--with-model", "--prompt", "a cat sat")
    assert result.out.startswith("undetectable\nNo mark can be found: the text is too predictable")
    assert "likeliest at a temperature of 0.02, potential 0.01 a token; with the mark p = 1" in result.out


def test_what_is_wrong_is_one_sentence(command: Any, key: str, marked: str, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("a" * 65)
    (tmp_path / "bad.json").write_text("[]")
    for said, arguments in (
        ("the text has 65 tokens, more than the 64 entries of the key", (str(tmp_path / "long.txt"), "--key", key)),
        ("must be a key, as an object", (marked, "--key", str(tmp_path / "bad.json"))),
        ("cannot be read: No such file", (marked, "--key", str(tmp_path / "none.json"))),
        ("cannot be read: No such file", (str(tmp_path / "none.txt"), "--key", key)),
        ("--prompt is for --with-model", (marked, "--key", key, "--prompt", "x")),
        ("statistic must be one of edit, simple", (marked, "--key", key, "--statistic", "sum")),
        ("Missing option '--key'", (marked,)),
    ):
        result = command("detect", *arguments)
        assert (result.code, result.out) == (2, "")
        assert said in result.err
        assert result.err.count("\n") == 1
    result = command("generate", "a", "--temperature", "1", "--max-new-tokens", "65", "--watermark", key)
    assert (result.code, "the watermark has 64 entries, and max_new_tokens is 65" in result.err) == (2, True)
