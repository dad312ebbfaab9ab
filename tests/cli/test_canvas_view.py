"""decodery generate --show: the canvas as it fills, in a pipe and as a page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

METHOD = "masked-diffusion(block_length=4)"


@pytest.fixture
def canvas(monkeypatch: pytest.MonkeyPatch) -> Any:
    from decodery.testing import toy_diffusion_model

    lm = toy_diffusion_model()
    monkeypatch.setattr("decodery.loading.load", lambda name, **options: lm)
    return lm


def test_a_line_per_step_into_a_pipe(command: Any, canvas: Any) -> None:
    result = command("generate", "abc", "--show", "--method", METHOD, "--seed", "1")
    reply = canvas.generate("abc", METHOD, seed=1)
    *steps, text = result.out.splitlines()
    assert (result.code, text) == (0, reply.text)
    assert len(steps) == 12
    for number, line in enumerate(steps):
        assert line.split()[:3] == ["step", str(number), "+1"]
        cells = line.split()[3:]
        assert [cell != "░░" for cell in cells] == [step <= number for step in reply.stats.step_of]
    assert "".join(steps[-1].split()[3:]) == reply.text


def test_the_page_holds_every_step_and_nothing_from_elsewhere(command: Any, canvas: Any, tmp_path: Path) -> None:
    page = tmp_path / "filling.html"
    result = command("generate", "a<b>", "--show-html", str(page), "--method", METHOD)
    text = page.read_text()
    [data] = re.findall(r"const data = (.*);\n", text)
    steps = json.loads(data)
    reply = canvas.generate("a<b>", METHOD)
    assert steps["length"] == 12
    told = {offset: (step["step"], cell) for step in steps["steps"] for offset, cell, _ in step["cells"]}
    assert [told[offset] for offset in range(12)] == list(zip(reply.stats.step_of, reply.text, strict=True))
    assert "http" not in text
    assert result.out == reply.text + "\n"


def test_without_show_the_text_streams(command: Any, canvas: Any) -> None:
    assert command("generate", "abc").out == canvas.generate("abc").text + "\n"
    value = json.loads(command("generate", "abc", "--json", "--method", METHOD).out)
    assert sorted(value["stats"]["step_of"]) == list(range(12))
    assert value["stats"]["forwards"] == 12


def test_what_cannot_be_shown_is_refused(command: Any, canvas: Any, toy: Any, tmp_path: Path) -> None:
    result = command("generate", "abc", "--show-html", str(tmp_path / "page"))  # the causal toy was put in place last
    assert result.code == 2
    assert "causal model" in result.err
    assert command("generate", "abc", "--show-html", str(tmp_path / "page"), "--n", "2").code == 2
    assert command("generate", "abc", "--show", "--json").code == 2


def test_a_canvas_is_one_text(command: Any, canvas: Any) -> None:
    result = command("generate", "abc", "--show", "--n", "2")
    assert result.code == 2
    assert "follows one canvas" in result.err
