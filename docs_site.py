"""What `mkdocs build` makes besides the pages in docs/: pages of files that stand elsewhere, and the navigation of the methods.

The README is the first page, so nothing is written twice. Links between these files are rewritten to the pages; one that
leads to a source file becomes its path.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from decodery.engine import registry
from decodery.evaluation.readme import FAMILIES

ROOT = Path(__file__).parent
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
    "benchmarks/engines/README.md": "engines.md",
}
"""Files of the repository -> pages."""
BESIDE = "settings, targets, recipes"
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill in the methods, by family."""
    assert config.nav is not None
    for entry in config.nav:
        if "Methods" in entry:
            entry["Methods"] = [{"All methods": "methods/index.md"}, *_by_family(), {BESIDE: _beside()}]
    return config


def _by_family() -> list[dict[str, Any]]:
    entries = registry.methods()
    return [
        {family: [{entry.name: f"methods/{entry.name}.md"} for entry in entries if entry.family == family]}
        for family in dict.fromkeys(entry.family for entry in entries)
    ]


def _beside() -> list[dict[str, str]]:
    """Published systems that are no method of their own but a setting, a target or a recipe."""
    known = {entry.name for entry in registry.methods()}
    pages = sorted((ROOT / "docs" / "methods").glob("*.md"))
    return [{page.stem: f"methods/{page.name}"} for page in pages if page.stem not in known]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of files that stand elsewhere, and the list of methods."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text("utf-8")
        files.append(File.generated(config, page, content=linked(text, posixpath.dirname(source), page)))
    files.append(File.generated(config, "methods/index.md", content=methods_page()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links of a page in docs/ that lead out of it."""
    if page.file.abs_src_path is None or not Path(page.file.abs_src_path).is_relative_to(config.docs_dir):
        return markdown
    source = posixpath.join("docs", page.file.src_uri)
    return linked(markdown, posixpath.dirname(source), page.file.src_uri)


def linked(text: str, folder: str, page: str) -> str:
    """The text of a file in a folder of the repository as that of a page: its links lead to pages, or are paths of sources."""

    def link(match: re.Match[str]) -> str:
        words, target = match.groups()
        name, mark, anchor = target.partition("#")
        if not name or ":" in name:
            return match.group()
        path = posixpath.normpath(posixpath.join(folder, name))
        if path == "docs/methods":
            path = "docs/methods/index.md"
        known = PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if known is None:
            return f"{words} (`{path}`)"
        return f"[{words}]({posixpath.relpath(known, posixpath.dirname(page) or '.')}{mark}{anchor})"

    return LINK.sub(link, text)


def methods_page() -> str:
    """All methods, with what each guarantees and needs."""
    lines = ["# Methods", ""]
    entries = registry.methods()
    for family in dict.fromkeys(entry.family for entry in entries):
        about = f": {FAMILIES[family]}" if family in FAMILIES else ""
        lines += [f"## {family}", "", f"{family}{about}.", ""]
        lines += ["| method | guarantee | needs | source |", "|---|---|---|---|"]
        for entry in entries:
            if entry.family == family:
                cells = (
                    f"[`{entry.name}`]({entry.name}.md)",
                    entry.exactness,
                    "; ".join(entry.wanted) or "nothing",
                    entry.paper,
                )
                lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    lines += [f"## {BESIDE}", "", "Published systems that any method can be combined with, or that train a model:", ""]
    lines += [f"- [{name}]({name}.md)" for page in _beside() for name in page]
    return "\n".join(lines)
