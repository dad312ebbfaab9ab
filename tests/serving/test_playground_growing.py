"""The playground with a text that grows by insertions, in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playground_browser import Playground, start_browser
from serving_models import KEY, serving

from decodery.testing import InserterScorer, inserting_language_model, random_script

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
LM: Any = inserting_language_model(InserterScorer(6, random_script(6, 9)), stop_threshold=0.85)
HOLES = "aibci"
"""A text with two holes, as the tokenizer of letters writes them."""


def test_a_text_that_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = start_browser(tmp_path)
    try:
        monkeypatch.setenv("DECODERY_API_KEY", KEY)
        with serving(lambda name, **options: LM, models=("growing",)) as server:
            page = Playground(driver, server.address)
            page.open(KEY)
            page.screen(1280, 1000)
            page.write(page.field("max_new_tokens"), "8")
            page.prompt(HOLES)
            page.click("#run")
            page.wait(lambda: page.text("#status").startswith("Done") or page.text("#failure"))
            assert page.text("#failure") == "", page.text("#failure")
            reply = LM.generate(HOLES, max_new_tokens=8, seed=1)
            assert page.said() == reply.text
            assert page.text(".filling h4") == "The text as it grew"
            assert [cell.text for cell in page.all(".cell.filled")] == list(reply.text)
            assert len(page.all(".cell.given")) == 2
            slider = page.one(".filling input[type=range]")
            assert slider.get_attribute("max") == str(len(reply.token_ids))
            slider.send_keys(webdriver.Keys.HOME)
            assert page.all(".cell") == []
            for _ in range(3):
                slider.send_keys(webdriver.Keys.ARROW_RIGHT)
            first = [letter for letter, step in zip(reply.text, reply.stats.step_of, strict=True) if step < 1]
            assert [cell.text for cell in page.all(".cell")] == first
            assert page.text(".filling output") == f"3 of {len(reply.token_ids)}, 3 tokens"
            assert len(page.all(".token.inserted")) == len(reply.token_ids)
            assert "by the step that inserted it" in page.text(".legend")
            assert page.faults() == []
    finally:
        driver.quit()
