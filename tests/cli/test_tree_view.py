"""decodery generate --show of a causal model: the texts of a search, or samples, as a tree."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from decodery.cli import tree_view
from decodery.cli.tree_view import TextTree
from decodery.engine.events import Branched, Event, Finished, Token
from decodery.engine.statistics import Statistics
from decodery.testing import LetterTokenizer

SHORT = ("--max-new-tokens", "6")


def grown(*events: Event) -> list[str]:
    """The lines of a tree."""
    tree = TextTree(LetterTokenizer(26).decode)
    for event in events:
        tree.take(event)
    return [line.plain for line in tree.lines()]


def said(text: str, output: int = 0) -> list[Event]:
    """A whole text."""
    tokens = [Token(output, place, ord(sign) - 97, sign, False, output=output) for place, sign in enumerate(text)]
    return [*tokens, Finished(output, "", "length", Statistics(), output)]


def test_beams_part_where_they_differ() -> None:
    found = grown(
        Branched(0, (0, 1), (-1, -1), (-0.5, -1.0)),
        Branched(0, (2, 3, 2), (0, 0, 1), (-0.75, -2.0, -1.5)),
        Branched(0, (4,), (2,), (-1.25,)),
        *said("ace"),
    )
    assert found == [
        "(prompt)",
        "├─ bc  -1.50",
        "a",
        "├─ d  -2.00",
        "ce  the text, -1.25",
    ]


def test_samples_share_what_they_have_in_common() -> None:
    assert grown(*said("abc"), *said("abd", 1), *said("x", 2), *said("abc", 3)) == [
        "(prompt)",
        "├─ ab",
        "│  ├─ c  text 1, text 4",
        "│  └─ d  text 2",
        "└─ x  text 3",
    ]
    assert grown(*said("abc")) == ["abc  the text"]
    assert grown() == []
    # A text may go on where another has ended.
    assert grown(*said("ab"), *said("abc", 1)) == ["ab  text 1", "c  text 2"]


def tree_of(lines: list[str]) -> set[str]:
    """The texts from the root to the end of every line."""
    found, path = set(), {0: ""}
    for line in lines:
        guides = re.match(r"(?:│  |   )*(├─ |└─ )?", line)
        assert guides is not None
        depth, text = len(guides.group()) // 3, re.sub(r"  (the text|text \d|-?\d).*$", "", line[guides.end() :])
        if text == "(prompt)":
            continue
        # What hangs on a line goes on from it; what stands below with no guide of its own goes on from the last that did.
        path[depth] = (path[depth - 1] if guides.group(1) else path[depth]) + text
        path = {level: own for level, own in path.items() if level <= depth}
        path[depth + 1] = ""
        found.add(path[depth])
    return found


@pytest.mark.parametrize("method", ["beam-search(beams=3)", "diverse-beam-search(beams=4)", "adadec(threshold=0)"])
def test_a_search_into_a_pipe(command: Any, toy: Any, method: str) -> None:
    result = command("generate", "Once upon", "--show", "--method", method, *SHORT)
    reply = toy.generate("Once upon", method, max_new_tokens=6)
    *lines, text = result.out.splitlines()
    assert (result.code, text) == (0, reply.text)
    considered = [event for event in reply.events if isinstance(event, Branched)]
    assert len(considered) > 2
    texts: list[list[int]] = []
    for event in considered:
        for token, parent in zip(event.tokens, event.parents, strict=True):
            texts.append([*(texts[parent] if parent >= 0 else []), token])
    leaves = [one for one in texts if not any(other[:-1] == one for other in texts)]
    expected = {toy.tokenizer.decode(one).replace("\n", "⏎") for one in leaves}
    told = tree_of(lines)
    assert expected <= told
    assert reply.text in told
    assert sum("the text" in line for line in lines) == 1


def test_samples_into_a_pipe(command: Any, toy: Any) -> None:
    result = command("generate", "Once", "--show", "--n", "3", "--temperature", "2", "--seed", "1", *SHORT)
    replies = toy.generate("Once", n=3, temperature=2.0, seed=1, max_new_tokens=6)
    lines = result.out.splitlines()
    texts = [reply.text for reply in replies]
    assert result.out.endswith("\n---\n".join(texts) + "\n")
    tree = lines[: len(lines) - sum(text.count("\n") + 1 for text in texts) - 2]
    assert {text.replace("\n", "⏎") for text in texts} <= tree_of(tree)
    for number in (1, 2, 3):
        assert sum(f"text {number}" in line for line in tree) == 1


def test_on_a_terminal_the_tree_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(tree_view, "output", lambda: Console(file=screen, force_terminal=True, width=80))
    seen = []

    def events() -> Any:
        yield Branched(0, (0, 1), (-1, -1), (-0.5, -1.0))
        seen.append(screen.getvalue())
        yield from said("ab")

    tree_view.follow(events(), TextTree(LetterTokenizer(26).decode))
    assert "├─" in seen[0]
    assert "-0.50" in seen[0]
    assert "the text" not in seen[0]
    assert "the text" in screen.getvalue()


def test_controls_in_texts_are_harmless() -> None:
    tree = TextTree(lambda tokens: "a\x1b[2J\nb\tc")
    tree.take(Branched(0, (0,), (-1,), (0.0,)))
    [line] = tree.lines()
    assert line.text == "a�[2J⏎b⇥c"
