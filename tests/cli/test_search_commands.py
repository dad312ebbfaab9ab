"""Sets and superposed drafts from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ONE = "Say:<|start_2d|> a long one<|split_2d|> two<|end_2d|> So:"
OTHER = "Say:<|start_2d|> two<|split_2d|> a long one<|end_2d|> So:"
SHORT = ("--max-new-tokens", "8")


def test_sets_are_read_from_arguments_conversations_and_lines(command: Any, toy: Any, tmp_path: Path) -> None:
    expected = toy.generate(ONE, "set-based-prompting", max_new_tokens=8)
    for text in (ONE, OTHER):
        result = command("generate", text, "--method", "set-based-prompting", "--json", *SHORT)
        told = json.loads(result.out)
        assert (result.code, told["token_ids"]) == (0, expected.token_ids)
        assert told["stats"]["prompt_tokens"] == len("Say: a long one two So:")
        chat = command("generate", "--chat", text, "--method", "set-based-prompting", *SHORT)
        assert chat.out == toy.chat(ONE, method="set-based-prompting", max_new_tokens=8).text + "\n"
    lines = tmp_path / "lines.jsonl"
    lines.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in (ONE, OTHER, "no set")))
    result = command("generate", "--prompts", str(lines), "--method", "set-based-prompting", *SHORT)
    assert [json.loads(line)["token_ids"] for line in result.out.splitlines()[:2]] == [expected.token_ids] * 2


def test_marks_that_are_wrong_are_told_in_one_sentence(command: Any, toy: Any) -> None:
    result = command("generate", "a<|start_2d|>b", "--method", "set-based-prompting")
    assert (result.code, result.out) == (2, "")
    assert result.err.count("\n") == 1
    assert "a set begins with <|start_2d|> and does not end" in result.err


def test_check_tells_whether_order_matters(command: Any, toy: Any) -> None:
    given = ("--prompts", "1", "--max-new-tokens", "3", "--samples", "100", "--json")
    result = command("check", "set-based-prompting", *given)
    [part] = [part for part in json.loads(result.out)["parts"] if part["name"] == "same for every order"]
    assert (result.code, part["passed"], part["difference"]) == (0, True, 0.0)


def test_superposed_drafts(command: Any, toy: Any, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("once upon a time " * 9)
    spec = f"superposed-decoding(drafts=4, tau=0.8, ngrams=corpus, corpus='{tmp_path / 'text'}')"
    expected = [reply.text for reply in toy.generate("Once upon", spec, n=3, max_new_tokens=8)]
    result = command("generate", "Once upon", "--method", spec, "--n", "3", "--json", *SHORT)
    assert result.code == 0
    assert [json.loads(line)["text"] for line in result.out.splitlines()] == expected
    refused = command("generate", "Once upon", "--method", "superposed-decoding(drafts=2)", "--n", "3")
    assert refused.code == 2
    assert "at most as many texts as drafts, which are 2, and n is 3" in refused.err
    checked = command("check", "superposed-decoding(drafts=1)", "--prompts", "2", "--samples", "100", "--json")
    [cold, *_] = json.loads(checked.out)["parts"]
    assert (checked.code, cold["identical"]) == (0, 2)
