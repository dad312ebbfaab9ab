"""Results of experiments: a JSON file each, the tables of the documents that are made of them, and which of them are stale.

`results/<slug>.json` holds every study of an experiment with how it was made. In a page, `<!-- table:slug.study -->` begins a
table and `<!-- /table:slug.study -->` ends it; what stands between is written by `write_pages`, and nothing else writes
measured numbers into pages.
"""

from __future__ import annotations

import ast
import datetime
import hashlib
import importlib.util
import json
import math
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from decodery.errors import BadInput
from decodery.evaluation.experiment import Estimate, Experiment, Outcomes, Study
from decodery.evaluation.provenance import machine, provenance
from decodery.evaluation.readme import replace

MARK = re.compile(r"<!-- (table:([\w-]+)\.([\w-]+)) -->")
RACES = {"engines": "python benchmarks/engines/run.py", "load": "python benchmarks/load.py --results"}
"""Results that are not made by an experiment but between programs in processes of their own, and the commands for them."""
Table = dict[str, Any]
"""A study as it stands in a results file: about, head, rows, claims, made."""


def table_of(outcomes: Outcomes) -> dict[str, Any]:
    """What was measured, for JSON: numbers to six digits, intervals of 95 %."""
    study = outcomes.study
    return {
        "about": study.about,
        "items": len(study.items),
        "head": [study.arms_are, *(figure.name for figure in study.figures)],
        "forms": [(figure.form, figure.unit) for figure in study.figures],
        "rows": [
            [arm.name, *(_plain(outcomes.estimate(arm.name, figure)) for figure in study.figures)] for arm in study.arms
        ],
        "claims": [
            {
                "says": verdict.claim.says,
                "figure": verdict.claim.figure,
                "arm": verdict.claim.arm,
                "than": None if verdict.claim.every else verdict.claim.than,
                "difference": _plain(verdict.difference),
                "holds": verdict.holds,
            }
            for verdict in map(outcomes.verdict, study.claims)
        ],
    }


def _plain(estimate: Estimate | None) -> list[float | None] | None:
    if estimate is None:
        return None
    return [
        None if v is None or math.isnan(v) else float(f"{v:.6g}") for v in (estimate.value, estimate.low, estimate.high)
    ]


def made(experiment: Experiment, study: Study, options: Sequence[str], root: Path) -> dict[str, Any]:
    """How a table was made. options: of the command, as they were given."""
    modules = (f"experiments.{experiment.slug}", *experiment.measures)
    files = [str(path) for name in modules for path in _files(name)]
    settings = {name: _shown(value) for name, value in asdict(experiment.settings).items()}
    return {
        "command": command(experiment.slug, options),
        **here(root, files),
        "seeds": [value for name, value in settings.items() if name in ("seed", "seeds")],
        "settings": settings,
        "model": None if study.lm is None else provenance(study.lm, whole=False),
        "modules": {name: digest(name) for name in modules},
    }


def here(root: Path, files: Sequence[str]) -> dict[str, Any]:
    """The commit, whether these files differ from it, the time, and the machine."""
    return {
        "commit": _git(root, "rev-parse", "HEAD"),
        "changed": bool(_git(root, "status", "--porcelain", "--", *files)),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **machine(),
    }


def command(slug: str, options: Sequence[str] = ()) -> str:
    """The command that makes a results file. Of paths only the last part is told."""
    if slug in RACES:
        return RACES[slug]
    return f"python -m experiments run {slug} {shlex.join(_shown(option) for option in options)}".strip()


def _shown(value: Any) -> Any:
    return Path(value).name if isinstance(value, Path) or (isinstance(value, str) and "/" in value) else value


def _git(root: Path, *arguments: str) -> str:
    """What git says; nothing where this is no repository."""
    found = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    return found.stdout.strip()


def digest(name: str) -> str:
    """Of a module's code, or of all modules of a package; comments, docstrings, imports and layout do not count. Raises
    ModuleNotFoundError where there is none."""
    return hashlib.sha256("\n".join(map(_code, _files(name))).encode()).hexdigest()[:16]


def _files(name: str) -> list[Path]:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"there is no module {name}, whose code an experiment measures")
    origin = Path(spec.origin)
    return sorted(origin.parent.rglob("*.py")) if origin.name == "__init__.py" else [origin]


def _code(path: Path) -> str:
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [part for part in body if not _silent(part)]  # type: ignore[attr-defined]
    return ast.unparse(tree)


def _silent(node: ast.AST) -> bool:
    said = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    return said or isinstance(node, ast.Import | ast.ImportFrom)


def file_of(root: Path, slug: str) -> Path:
    """Where the results of an experiment stand."""
    return root / "results" / f"{slug}.json"


def read(root: Path, slug: str) -> dict[str, Table]:
    """The tables of an experiment by name; none where it was not run. Raises BadInput where its file is broken."""
    path = file_of(root, slug)
    if not path.is_file():
        return {}
    try:
        tables: dict[str, Table] = json.loads(path.read_text("utf-8"))["tables"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path} is no results file: {error}.") from None
    return tables


def write(root: Path, slug: str, title: str, source: str, tables: Mapping[str, Table]) -> None:
    """Keep tables; those of other studies that are there already stay."""
    path = file_of(root, slug)
    path.parent.mkdir(exist_ok=True)
    whole = {"experiment": slug, "title": title, "source": source, "tables": {**read(root, slug), **tables}}
    path.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", "utf-8")


def stale(root: Path, experiments: Mapping[str, Experiment]) -> Iterator[tuple[str, str, list[str]]]:
    """Slug, study and the modules that changed since, of every table whose code is not what it was; no module where the study
    was not run. Modules that were only renamed have not changed."""
    for slug, experiment in experiments.items():
        tables = read(root, slug)
        now = {name: digest(name) for name in (f"experiments.{slug}", *experiment.measures)}
        for study in experiment.studies:
            if study not in tables:
                yield slug, study, []
                continue
            then = set(tables[study]["made"]["modules"].values())
            changed = [name for name, value in now.items() if value not in then]
            if changed:
                yield slug, study, changed


def number(cell: Sequence[float | None] | str | None, form: str, unit: str = "") -> str:
    """A cell as it is written: the number, and its interval where it has one."""
    if cell is None or isinstance(cell, str):
        return cell or ""
    value, low, high = (None if part is None else f"{part:{form}}{unit}" for part in cell)
    return f"{value}" if low is None or low == high else f"{value} [{low}, {high}]"


def markdown(slug: str, study: str, table: Table | None) -> str:
    """A table for a page: its rows, how it was made, and what the source says beside what was found. A study that was not run
    says so, with its command."""
    if table is None:
        return f"*Not run in this version:* `{command(slug, ('--studies', study))}`"
    lines = [_row(table["head"]), "|" + "---|" * len(table["head"])]
    for name, *cells in table["rows"]:
        lines.append(_row([f"`{name}`", *(number(c, *f) for c, f in zip(cells, table["forms"], strict=True))]))
    lines += ["", _about(table)]
    if table["claims"]:
        lines += ["", "| the source says | here | direction holds |", "|---|---|---|"]
        lines += [_row([claim["says"], _difference(claim), claim["holds"]]) for claim in table["claims"]]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _difference(claim: Mapping[str, Any]) -> str:
    of = f"{claim['figure']} of `{claim['arm']}`"
    if claim["than"] is None:
        return f"{of}, of every item"
    than = f"`{claim['than']}`" if isinstance(claim["than"], str) else f"{claim['than']:g}"
    return f"{of} less {than}: {number(claim['difference'], '+.3g')}"


def _about(table: Table) -> str:
    told = table["made"]
    model = told.get("model")
    ran = (
        "" if not model else f" {model['model']}, {model['dtype']}{', path ' + model['path'] if model['path'] else ''};"
    )
    busy = "" if told.get("load") is None else f", {told['load']:.1f} processes waiting for them on average"
    return (
        f"*{table['about']} {table['items']} items;{ran} {told['processor']}, {told['cores']} cores{busy}; "
        f"commit {told['commit'][:7]}{', changed' if told['changed'] else ''}, {told['date'][:10]}. Brackets: 95 %.* "
        f"`{told['command']}`"
    )


def pages(root: Path) -> list[Path]:
    """The documents that may hold tables."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def written(root: Path, text: str) -> str:
    """A page with its tables as the results files have them. Raises ValueError where a table does not end."""
    for mark, slug, study in MARK.findall(text):
        text = replace(text, mark, markdown(slug, study, read(root, slug).get(study)))
    return text


def write_pages(root: Path) -> list[Path]:
    """Write the tables of all pages; those that changed."""
    changed = []
    for page in pages(root):
        before = page.read_text("utf-8")
        after = written(root, before)
        if after != before:
            page.write_text(after, "utf-8")
            changed.append(page)
    return changed
