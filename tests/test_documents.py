"""The documents are true: tables are those of the results, paths and modules exist, links lead somewhere, nothing is typed."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from decodery.evaluation import experiment_files
from experiments.__main__ import everything

ROOT = Path(__file__).parents[1]
PAGES = [*experiment_files.pages(ROOT), ROOT / "CONTRIBUTING.md"]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
EXPERIMENTS = everything()
FENCE = re.compile(r"^```.*?^```", re.S | re.M)
GENERATED = re.compile(r"<!-- ([\w.:-]+) -->.*?<!-- /\1 -->", re.S)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PATHS = re.compile(r"`((?:src|docs|tests|benchmarks|experiments|results)/[\w./-]*[\w/])`")
MODULES = re.compile(r"\b((?:decodery|experiments)(?:\.[a-z_][a-z_0-9]*)+)")
MEASURED = re.compile(
    r"\d+\.\d+ ?x\b|\d ?%|\b\d+(?:\.\d+)? (?:ms|tokens/s|tokens per second|MiB|GB/s)\b|\d ± \d|(?<=\s)\.\d\d"
)
SOURCE_FILES = re.compile(r"(?<![\w./<-])([a-z_][a-z_0-9]*\.(?:py|c|h))\b")
SOURCE_NAMES = {
    path.name for folder in ("src", "tests", "benchmarks", "experiments") for path in (ROOT / folder).rglob("*.*")
} | {path.name for path in ROOT.glob("*.py")}
SOURCES = ("The paper", "Published", "The published", "The papers", "The authors")
"""How a paragraph begins that tells what others have measured."""


def text_of(page: Path) -> str:
    return page.read_text("utf-8")


def slug(title: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    kept = re.sub(r"[^\w\- ]", "", title.strip().lower())
    return kept.replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {slug(line.lstrip("#")) for line in FENCE.sub("", text_of(page)).splitlines() if line.startswith("#")}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_tables_are_those_of_the_results(page: Path) -> None:
    text = text_of(page)
    assert experiment_files.written(ROOT, text) == text, (
        f"{page.name} is out of date; run: python -m experiments tables"
    )
    for _, name, study in experiment_files.MARK.findall(text):
        known = EXPERIMENTS[name].studies if name in EXPERIMENTS else experiment_files.RACES[name]
        assert name not in EXPERIMENTS or study in known, f"{page.name} shows {name}.{study}, which no experiment makes"


def test_every_study_has_its_place() -> None:
    shown = {(name, study) for page in PAGES for _, name, study in experiment_files.MARK.findall(text_of(page))}
    missing = {(name, study) for name, e in EXPERIMENTS.items() for study in e.studies} - shown
    assert missing == set()


def test_every_results_file_has_its_experiment() -> None:
    for path in (ROOT / "results").glob("*.json"):
        tables = experiment_files.read(ROOT, path.stem)
        if path.stem in experiment_files.RACES:
            continue
        assert set(tables) <= set(EXPERIMENTS[path.stem].studies)
        for table in tables.values():
            told = table["made"]
            assert told["command"].startswith(f"python -m experiments run {path.stem}")
            assert len(told["commit"]) == 40
            assert told["processor"]
            assert told["seeds"]
            assert {claim["holds"] for claim in table["claims"]} <= {"yes", "no", "not resolved"}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_what_an_experiment_measures_exists(name: str) -> None:
    for module in EXPERIMENTS[name].measures:
        assert experiment_files.digest(module)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(FENCE.sub("", text_of(page))):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        other = (page.parent / name).resolve() if name else page
        assert other.exists(), f"{page.name} links {target}"
        if anchor:
            assert anchor in anchors(other), f"{page.name} links {target}; {other.name} has {sorted(anchors(other))}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_paths_and_modules_exist(page: Path) -> None:
    text = GENERATED.sub("", text_of(page))
    for path in PATHS.findall(text):
        assert (ROOT / path).exists(), f"{page.name} names {path}"
    for name in MODULES.findall(text):
        assert named(name), f"{page.name} names {name}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_source_files_and_rooms_exist(page: Path) -> None:
    """Those named without a path, too; and in the tree of the architecture, the rooms."""
    text = GENERATED.sub("", text_of(page))
    for name in set(SOURCE_FILES.findall(text)):
        assert name in SOURCE_NAMES, f"{page.name} names {name}"
    for fence in FENCE.findall(text):
        if fence.startswith("```\nsrc/decodery/"):
            for room in re.findall(r"^ +([a-z_]+)/(?= )", fence, re.M):
                assert any((ROOT / "src").rglob(room)), f"{page.name} has a room {room}"


def named(dotted: str) -> bool:
    """Whether a module, or an attribute of one, is called so. An entry-point group counts as well."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            spec = importlib.util.find_spec(".".join(parts[:length]))
        except (ModuleNotFoundError, ImportError):
            continue
        if spec is None:
            continue
        if length == len(parts):
            return True  # not imported: it may need an extra that is not installed
        value = importlib.import_module(".".join(parts[:length]))
        for part in parts[length:]:
            if not hasattr(value, part):
                return False
            value = getattr(value, part)
        return True
    return False


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_tables_have_as_many_cells_as_their_heads(page: Path) -> None:
    for head, row in rows(text_of(page)):
        assert cells(row) == cells(head), f"{page.name}: {row}"


def rows(text: str) -> Iterator[tuple[str, str]]:
    head = None
    for line in FENCE.sub("", text).splitlines():
        if line.startswith("|"):
            head = head or line
            yield head, line
        else:
            head = None


def cells(row: str) -> int:
    return len(re.split(r"(?<!\\)\|", row.strip())) - 2


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "models.md"], ids=lambda page: page.name)
def test_no_measured_number_is_typed(page: Path) -> None:
    """Of speeds, shares, times and deviations. What a source has measured stands in a paragraph that begins with it."""
    text = FENCE.sub("", GENERATED.sub("", text_of(page)))
    for paragraph in re.split(r"\n\s*\n", text):
        if paragraph.startswith(SOURCES):
            continue
        found = MEASURED.search(re.sub(r"`[^`]*`", "", paragraph))
        assert found is None, f"{page.name} types {found.group()!r}: {paragraph[:200]}"
