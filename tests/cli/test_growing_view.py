"""decodery generate --show on an insertion language model: the text as it grows, in a pipe and as a page."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

HOLE = "i"
"""How the tokenizer of letters writes the hole."""


@pytest.fixture
def growing(monkeypatch: pytest.MonkeyPatch) -> Any:
    from decodery.testing import InserterScorer, inserting_language_model, random_script

    lm = inserting_language_model(InserterScorer(6, random_script(6, 9)), stop_threshold=0.85)
    monkeypatch.setattr("decodery.loading.load", lambda name, **options: lm)
    return lm


def test_a_line_per_insertion_into_a_pipe(command: Any, growing: Any) -> None:
    asked = {"max_new_tokens": 8, "temperature": 1.0, "seed": 1}
    reply = growing.generate(f"a{HOLE}bc{HOLE}", **asked)
    result = command("generate", f"a{HOLE}bc{HOLE}", "--show", "--max-new-tokens", "8", "-t", "1", "--seed", "1")
    *steps, text = result.out.splitlines()
    assert (result.code, text) == (0, reply.text)
    assert [line.split()[1] for line in steps] == ["-1", "-1", *map(str, range(len(steps) - 2))]
    lines = [line.split()[3:] for line in steps]
    assert [len(line) for line in lines] == list(range(1, len(steps) + 1))
    assert lines[1] == ["b", "c"]
    for before, after in pairwise(lines):
        assert any(after[:place] + after[place + 1 :] == before for place in range(len(after)))
    assert "".join(lines[-1]) == reply.text


def test_the_page_grows_and_holds_nothing_from_elsewhere(command: Any, growing: Any, tmp_path: Path) -> None:
    page = tmp_path / "growing.html"
    command("generate", f"a{HOLE}bc{HOLE}", "--show-html", str(page), "--max-new-tokens", "6", "--seed", "1")
    text = page.read_text()
    [data] = re.findall(r"const data = (.*);\n", text)
    told = json.loads(data)
    assert told["grows"]
    assert "<title>A text growing</title>" in text
    cells: list[str] = []
    for step in told["steps"]:
        [[offset, cell, colour]] = step["cells"]
        cells.insert(offset, cell)
        assert (colour == "#8b93a1") == (step["step"] < 0), "what is given is grey"
    reply = growing.generate(f"a{HOLE}bc{HOLE}", max_new_tokens=6, seed=1)
    assert "".join(cells) == reply.text
    assert told["length"] == len(cells)
    assert "http" not in text


def test_several_texts_are_not_drawn(command: Any, growing: Any) -> None:
    result = command("generate", "ab", "--show", "--n", "2")
    assert result.code == 2
    assert "follows one canvas or text, so of an insertion model it goes without --n" in result.err


def test_without_show_the_text_comes_when_it_is_whole(command: Any, growing: Any) -> None:
    asked = {"max_new_tokens": 5, "seed": 1}
    assert (
        command("generate", "abc", "--max-new-tokens", "5", "--seed", "1").out
        == growing.generate("abc", **asked).text + "\n"
    )
    value = json.loads(command("generate", f"a{HOLE}b", "--json", "--max-new-tokens", "5", "--seed", "1").out)
    reply = growing.generate(f"a{HOLE}b", **asked)
    assert value["stats"]["details"]["fills"] == reply.stats.details["fills"] == [reply.token_ids]
    assert value["stats"]["step_of"] == reply.stats.step_of
