"""Puts the registry's method table into the README: `python -m decodery.evaluation.readme [README.md]`."""

from __future__ import annotations

import sys
from pathlib import Path

from decodery.engine import registry


def replace(text: str, mark: str, content: str) -> str:
    """The text with `content` between `<!-- mark -->` and `<!-- /mark -->`. Raises ValueError where they are missing."""
    opening, closing = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    before, found, rest = text.partition(opening)
    _, end, after = rest.partition(closing)
    if not found or not end:
        raise ValueError(f"{opening} … {closing} is missing")
    return f"{before}{opening}\n{content}\n{closing}{after}"


if __name__ == "__main__":
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "README.md")
    path.write_text(replace(path.read_text(), "methods", registry.markdown_table()))
