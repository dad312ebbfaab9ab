"""The README's method table is made from the registry; its commands exist."""

from __future__ import annotations

from pathlib import Path

from decodery.engine import registry

README = Path(__file__).parents[1] / "README.md"


def test_the_method_table_is_the_registry() -> None:
    text = README.read_text()
    table = text.split("<!-- methods -->")[1].split("<!-- /methods -->")[0].strip()
    assert table == registry.markdown_table(), "run: python -m decodery.evaluation.readme"


def test_the_two_commands_are_shown() -> None:
    text = README.read_text()
    assert "make run" in text
    assert "make test" in text
