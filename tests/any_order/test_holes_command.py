"""Prompts with holes through the command line, on a tiny model: the answer is the prompt from its first hole on, filled."""

from __future__ import annotations

import json
from typing import Any

import pytest

from decodery.testing import LetterTokenizer, SmallLanguageModel, toy_any_order_model

MASK = 23
METHOD = "any-subset-speculative(k=3)"


class Holes(LetterTokenizer):
    """Writes the mask as <mask>, and reads it."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        pieces = text.split("<mask>")
        ids = super().encode(pieces[0])
        for piece in pieces[1:]:
            ids += [MASK, *super().encode(piece)]
        return ids


@pytest.fixture
def lm(monkeypatch: pytest.MonkeyPatch) -> SmallLanguageModel:
    made = toy_any_order_model(canvas=8, sharpness=0.3)
    made.tokenizer = Holes(24)
    monkeypatch.setattr("decodery.loading.load", lambda name, **options: made)
    return made


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Any:
    from decodery.cli.main import main

    def run(*arguments: str) -> tuple[Any, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        captured = capsys.readouterr()
        return ended.value.code, captured.out if not ended.value.code else captured.err

    return run


def test_the_command_fills_holes(lm: SmallLanguageModel, call: Any) -> None:
    given = ("--method", METHOD, "--seed", "1", "--temperature", "1")
    reply = lm.generate("abc<mask><mask>d<mask>e", METHOD, seed=1, temperature=1.0)
    assert len(reply.text) == 5
    assert (reply.text[2], reply.text[4]) == ("d", "e")
    assert call("generate", "abc<mask><mask>d<mask>e", *given) == (0, reply.text + "\n")
    assert call("generate", "abc<mask><mask>d<mask>e", "--echo", *given) == (0, f"abc{reply.text}\n")
    code, out = call("generate", "abc<mask><mask>d<mask>e", "--json", *given)
    told = json.loads(out)
    assert (code, told["text"], told["stats"]["step_of"][2]) == (0, reply.text, 0)
    assert told["stats"]["details"]["iterations"] == reply.stats.details["iterations"]
    code, shown = call("generate", "abc<mask><mask>d<mask>e", "--show", *given)
    first, *_, last = shown.splitlines()
    assert first == "step   0  +2   ░░ ░░ d ░░ e"
    assert last == reply.text
    code, said = call("generate", "abc<mask>de", "--max-new-tokens", "2")
    assert code == 2
    assert "from its first hole on the prompt has 3 tokens" in said


def test_the_command_checks_it(lm: SmallLanguageModel, call: Any) -> None:
    code, said = call("check", "any-subset-autoregressive", "--model", "toy", "--prompts", "2")
    assert code == 0
    assert "law by enumeration, in holes" in said
