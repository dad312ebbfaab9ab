"""The documentation is built without a warning, and every link in the site that comes of it leads somewhere."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("material")
pytest.importorskip("mkdocstrings_handlers.python")
from mkdocs.commands.build import build
from mkdocs.config import load_config

from decodery.engine import registry

ROOT = Path(__file__).parents[1]


class Page(HTMLParser):
    """links: what a page links, without what it shows from elsewhere. shown: what it loads. anchors: places in it."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: list[str] = []
        self.shown: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        told = {name: value or "" for name, value in attributes}
        self.anchors |= {told[name] for name in ("id", "name") if name in told}
        if tag == "a" and "href" in told:
            self.links.append(told["href"])
        elif tag in ("script", "img", "source") and "src" in told:
            self.shown.append(told["src"])
        elif tag == "link" and told.get("rel") in ("stylesheet", "icon"):
            self.shown.append(told["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built strictly: a warning ends it."""
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        patch.chdir(ROOT)
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(site.rglob("*.html")) if path.name != "404.html"}


def test_every_link_leads_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    checked = 0
    for path, page in pages.items():
        for target in page.links + page.shown:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            other = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            other = other / "index.html" if other.is_dir() else other
            assert other.exists(), f"{path.relative_to(site)} links {target}"
            if parts.fragment and other.suffix == ".html":
                assert unquote(parts.fragment) in pages[other].anchors, f"{path.relative_to(site)} links {target}"
            checked += 1
    assert checked > 1000


def test_a_page_for_every_method_and_every_page_in_docs(site: Path) -> None:
    for name in registry.BUILT_IN:
        assert (site / "methods" / f"{name}.html").exists()
    for source in (ROOT / "docs").rglob("*.md"):
        assert (site / source.relative_to(ROOT / "docs")).with_suffix(".html").exists()


def test_nothing_is_loaded_from_elsewhere(pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        assert not [target for target in page.shown if urlsplit(target).netloc], path


def test_words_are_found(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text("utf-8"))
    for word in ("token-recycling", "chunked", "log_probability", "--prefill-chunk"):
        assert any(word in entry["text"] or word in entry["title"] for entry in index["docs"]), word


def test_docstrings_are_shown(site: Path) -> None:
    text = (site / "api.html").read_text("utf-8")
    for said in ("Decode a prompt, or a list of prompts as one packed batch.", "The log probability of every token"):
        assert said in text
