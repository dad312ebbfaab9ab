"""The README and the methods' pages say what the registry says; the README's commands exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from decodery.engine import registry
from decodery.evaluation.readme import rewritten

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
SECTIONS = ("## Idea", "## When to use it", "## Guarantee", "## Numbers")


def test_generated_parts_are_up_to_date() -> None:
    for path, text in rewritten(ROOT).items():
        assert path.read_text() == text, f"{path} is out of date; run: python -m decodery.evaluation.readme"


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_each_method_has_a_page(name: str) -> None:
    text = (ROOT / "docs" / "methods" / f"{name}.md").read_text()
    assert text.startswith("# ")
    for section in SECTIONS:
        assert section in text, f"{name} lacks {section}"


def test_the_two_commands_are_shown() -> None:
    text = README.read_text()
    assert "make run" in text
    assert "make test" in text
