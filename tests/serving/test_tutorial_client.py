"""The client of docs/tutorial.md gets from a server what the page has shown before."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from serving_models import serving

import decodery

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"


def test_the_tutorials_client() -> None:
    text = PAGE.read_text("utf-8")
    *_, last = re.findall(r"^```python\n(.*?)^```$", text, re.S | re.M)
    names: dict[str, Any] = {}
    exec(compile(last, PAGE.name, "exec", dont_inherit=True), names)
    [words] = re.findall(r"^decodery serve (.*)$", text, re.M)
    models = tuple(word for word in words.split() if word != "--model")
    with serving(decodery.load, models=models) as server:
        said = names["story"](server.address)
        server.wait_idle()
    assert said == decodery.load("stories-twin").generate("Once upon a time", "prompt-lookup", max_new_tokens=16).text
