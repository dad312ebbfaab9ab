"""`python -m experiments`: lists, runs, refuses; an experiment that needs no model, from its command to its page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import experiments.__main__ as command


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where results and pages go."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("<!-- table:spectr.law -->\n<!-- /table:spectr.law -->\n")
    monkeypatch.setattr(command, "ROOT", tmp_path)
    return tmp_path


def test_an_experiment_from_the_command_to_the_page(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["run", "spectr", "--studies", "law", "--samples", "150", "--repeats", "2", "--seed", "5"]) == 0
    assert "the output has the target's law" in capsys.readouterr().out
    table = json.loads((root / "results" / "spectr.json").read_text())["tables"]["law"]
    assert table["items"] == 2
    assert table["made"]["settings"]["samples"] == 150
    assert table["made"]["seeds"] == [5]
    assert [claim["holds"] for claim in table["claims"]] == ["yes"] * 3
    assert command.main(["tables"]) == 0
    assert capsys.readouterr().out == "README.md\n"
    assert "chi-square / degrees" in (root / "README.md").read_text()
    assert command.main(["stale"]) == 0
    told = capsys.readouterr().out
    assert "spectr.drafts: not run" in told
    assert "spectr.law" not in told


def test_list(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["list"]) == 0
    told = capsys.readouterr().out
    for slug, experiment in command.everything().items():
        assert f"{slug}: {experiment.title}" in told
    assert "law (not run)" in told


def test_an_unknown_experiment_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["run", "hexx"]) == 2
    assert capsys.readouterr().err == "error: there is no experiment 'hexx'; did you mean hex?\n"


@pytest.mark.parametrize(
    "given", [["run", "hex", "--samples", "x"], ["run", "hex", "--studies", "no"], ["list", "more"], []]
)
def test_wrong_options_are_refused(given: list[str], root: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(given)
    assert stopped.value.code == 2
    assert not (root / "results").exists()


def test_every_experiment_is_named_as_its_file() -> None:
    for slug, experiment in command.everything().items():
        assert experiment.slug == slug
        assert experiment.studies
        assert experiment.measures


@pytest.mark.parametrize("slug", sorted(command.everything()))
def test_every_number_of_an_experiment_is_an_option(slug: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["run", slug, "--help"])
    assert ended.value.code == 0
    assert "--studies" in capsys.readouterr().out
