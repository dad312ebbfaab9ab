"""The guides do what they say: their Python and their commands are run, and print what the page shows.

In these pages a fence of `python` or `sh` is run, in order, all of a page in one program; a fence of `text` behind it is what
it prints, where a line `…` is any lines and an `…` within a line any characters. `bash` is not run: it installs or serves.
Where the output has changed on purpose: DECODERY_UPDATE_API=1 pytest tests/test_guides.py.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from decodery.cli.main import main
from decodery.engine import registry

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ("tutorial.md", "own-model.md", "own-drafter.md", "prove-lossless.md", "tune.md")
FENCE = re.compile(r"^```(python|sh|text)\n(.*?)^```$", re.S | re.M)
ANY = "…"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in; methods that a page registers are gone afterwards."""
    monkeypatch.chdir(tmp_path)
    before = dict(registry._classes)
    yield tmp_path
    registry._classes.clear()
    registry._classes.update(before)


def commands(text: str) -> list[list[str]]:
    """The commands of a fence; a backslash joins lines."""
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip() and not line.startswith("#")]


def run(kind: str, text: str, names: dict[str, Any], page: str) -> str:
    """What a fence prints. AssertionError where a command fails."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        if kind == "python":
            exec(compile(text, page, "exec", dont_inherit=True), names)
        else:
            for words in commands(text):
                assert words[0] == "decodery", f"{page} runs {words[0]}"
                with pytest.raises(SystemExit) as ended:
                    main(words[1:])
                assert not ended.value.code, f"{page}: {shlex.join(words)} fails: {out.getvalue()}"
    return "\n".join(line.rstrip() for line in out.getvalue().strip("\n").splitlines())


def matches(shown: str, printed: str) -> bool:
    """Whether a page shows what was printed."""
    parts = [".*" if line == ANY else ".*?".join(map(re.escape, line.split(ANY))) for line in shown.splitlines()]
    return re.fullmatch("\n".join(parts), printed, re.S) is not None


@pytest.mark.parametrize("name", PAGES)
def test_a_guide_does_what_it_says(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.setenv("COLUMNS", "120")
    page = DOCS / name
    text = page.read_text("utf-8")
    names: dict[str, Any] = {"__name__": "__main__"}
    printed, written, end = None, [], 0
    for fence in FENCE.finditer(text):
        kind, body = fence.groups()
        if kind != "text":
            printed = run(kind, body, names, name)
            continue
        assert printed is not None, f"{name} shows the output of nothing"
        assert body.strip() != ANY, f"{name} shows nothing of what {fence.start()} prints"
        right = matches(body.rstrip("\n"), printed)
        written += [text[end : fence.start(2)], body if right else f"{printed}\n"]
        end = fence.end(2)
        if not os.environ.get("DECODERY_UPDATE_API"):
            assert right, f"{name} shows\n{body}but this is printed:\n{printed}"
        printed = None
    assert end, f"{name} shows nothing"
    if os.environ.get("DECODERY_UPDATE_API"):
        page.write_text("".join([*written, text[end:]]), "utf-8")


def test_what_a_page_may_leave_open() -> None:
    assert matches("a\n…\nd", "a\nb\nc\nd")
    assert matches("in … seconds", "in 0.31 seconds")
    assert not matches("a\n…\nd", "a\nb\nc")
    assert not matches("a.b", "axb")
