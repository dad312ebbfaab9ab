"""decodery frequencies: from a plan over reports and servers to a table, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from decodery.speculative.private_frequency_estimation.cells import Cells
from decodery.speculative.private_frequency_estimation.mechanism import Counts, Mechanism
from decodery.speculative.private_frequency_estimation.table import FrequencyTable

CHOICE = ("--moduli", "3", "--least", "0.5", "--most", "0.9", "--tries", "2")


@pytest.fixture
def files(command: Any, toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plan of single tokens, reports of thirty users, and what two servers counted."""
    monkeypatch.chdir(tmp_path)
    told = command("frequencies", "plan", "--epsilon", "8", "--out", "tokens.json", *CHOICE, "--json")
    assert (told.code, told.err) == (0, "")
    assert json.loads(told.out)["values"] == toy.network.vocabulary
    for user in range(30):
        Path(f"user{user}.txt").write_text("the cat sat" if user % 3 else "a dog")
    names = [f"user{user}.txt" for user in range(30)]
    for server, some in (("first", names[:20]), ("second", names[20:])):
        result = command("frequencies", "report", "tokens.json", *some, "--out", f"{server}.txt")
        assert result.code == 0
        assert "reports" in result.out
        counted = command("frequencies", "count", "tokens.json", f"{server}.txt", "--out", f"{server}.npz", "--json")
        assert json.loads(counted.out) == {"reports": len(some)}
    return tmp_path


def test_the_whole_way(command: Any, toy: Any, files: Path) -> None:
    merged = command("frequencies", "merge", "first.npz", "second.npz", "--out", "counts.npz", "--json")
    assert json.loads(merged.out) == {"reports": 30}
    found = json.loads(command("frequencies", "estimate", "counts.npz", "--top", "3", "--json").out)
    assert found["reports"] == 30
    assert len(found["top"]) <= 3
    assert found["threshold"] == pytest.approx(2.326 * found["standard_error"], rel=1e-3)
    assert all(one["share"] > found["threshold"] for one in found["top"])
    sure = json.loads(command("frequencies", "estimate", "counts.npz", "--alpha", "0.5", "--json").out)
    assert sure["threshold"] == pytest.approx(0, abs=1e-9)
    assert sure["significant"] > found["significant"]

    shape = ("--after", "counts.npz", "--contexts", "4", "--successors", "5")
    planned = command("frequencies", "plan", *shape, "--out", "pairs.json")
    assert planned.code == 0
    assert "21 values, epsilon 4, moduli 21" in planned.out
    plan = json.loads(Path("pairs.json").read_text())
    assert len(plan["cells"]["contexts"]) == 4
    assert len(plan["cells"]["successors"][0]) == 5
    reports = command("frequencies", "report", "pairs.json", "user1.txt", "user2.txt").out
    assert len(reports.split()) == 2
    Path("pairs.txt").write_text(reports)
    command("frequencies", "count", "pairs.json", "pairs.txt", "--out", "pairs.npz")
    shown = command("frequencies", "estimate", "pairs.npz", "--out", "table.npz", "--alpha", "0.4")
    assert shown.code == 0
    assert "2 reports; standard error" in shown.out
    assert FrequencyTable.read(Path("table.npz")).contexts.tolist() == plan["cells"]["contexts"]
    written = command("generate", "a", "--method", "private-frequency-estimation(table=table.npz)", "-n", "4")
    plain = command("generate", "a", "--method", "autoregressive", "-n", "4")
    assert (written.code, written.out) == (0, plain.out)


def test_reports_are_hidden_and_counted_once_each(command: Any, toy: Any, files: Path) -> None:
    one, two = (json.loads(command("frequencies", "report", "tokens.json", "user1.txt", "--json").out) for _ in "ab")
    assert len(one["reports"]) == 1
    mechanism = Mechanism.of(json.loads(Path("tokens.json").read_text()))
    assert mechanism.epsilon == 8
    counts, about = Counts.read(Path("first.npz"))
    assert counts.users.sum() == 20
    assert Cells.of(about["cells"]).vocabulary == toy.network.vocabulary
    assert {mechanism.decode(told["reports"][0]).block for told in (one, two)} <= {0, 1, 2}


def test_seeds_choose_moduli_and_permutation(command: Any, files: Path) -> None:
    command("frequencies", "plan", "--out", "other.json", *CHOICE, "--seed", "5")
    first, other = (json.loads(Path(name).read_text()) for name in ("tokens.json", "other.json"))
    assert (first["seed"], other["seed"]) == (0, 5)
    assert first["moduli"] != other["moduli"]
    assert len(other["moduli"]) == 3
    assert all(0.5 <= m / other["size"] <= 0.9 for m in other["moduli"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "--out", "x", "--epsilon", "0", "--moduli", "3"], "epsilon must lie in"),
        (["plan", "--out", "x", "--moduli", "900"], "too few for 900"),
        (["plan", "--out", "x", "--least", "0.1", "--most", "0.2", "--moduli", "2", "--tries", "1"], "none of 1 sets"),
        (["plan", "--out", "/nowhere/x"], "cannot be written"),
        (["plan", "--out", "x", "--after", "user1.txt"], "holds no counts"),
        (["plan", "--out", "x", "--after", "first.npz", "--contexts", "0"], "1 to 4096 contexts"),
        (["plan", "--out", "x", "--after", "first.npz", "--successors", "0"], "at least 1 successor"),
        (["report", "user1.txt", "user1.txt"], "is no plan"),
        (["report", "tokens.json", "none.txt"], "cannot be read"),
        (["report", "tokens.json", "empty.txt"], "nothing to report"),
        (["report", "elsewhere.json", "user1.txt"], "of the tokens of another model"),
        (["report", "broken.json", "user1.txt"], "hides 20 values, and names"),
        (["report", "halved.json", "user1.txt"], "no plan that can be used"),
        (["count", "tokens.json", "user1.txt", "--out", "x"], "line 1 of user1.txt is no report"),
        (["merge", "first.npz", "user1.txt", "--out", "x"], "holds no counts"),
        (["merge", "first.npz", "others.npz", "--out", "x"], "counts other things"),
        (["estimate", "empty.npz"], "too few"),
        (["estimate", "bare.npz"], "does not say what it counts"),
        (["estimate", "first.npz", "--alpha", "1"], "--alpha must lie between"),
        (["estimate", "first.npz", "--top", "-1"], "--top must be at least 0"),
        (["estimate", "first.npz", "--out", "table.npz"], "of single tokens"),
    ],
)
def test_bad_input(command: Any, files: Path, arguments: list[str], message: str) -> None:
    Path("empty.txt").write_text("")
    plan = json.loads(Path("tokens.json").read_text())
    Path("elsewhere.json").write_text(json.dumps({**plan, "cells": {**plan["cells"], "tokenizer": "other"}}))
    Path("broken.json").write_text(json.dumps({**plan, "size": 20, "moduli": [20]}))
    Path("halved.json").write_text(json.dumps({**plan, "moduli": plan["moduli"][:1]}))
    mechanism = Mechanism.of(plan)
    Counts(mechanism).save(Path("empty.npz"), {"cells": plan["cells"]})
    Counts(mechanism).save(Path("bare.npz"))
    Counts(mechanism).save(Path("others.npz"), {"cells": {**plan["cells"], "tokenizer": "other"}})
    result = command("frequencies", *arguments)
    assert result.code == 2
    assert message in result.err.replace("\n", " ")


def test_the_group_alone_shows_its_help(command: Any) -> None:
    result = command("frequencies")
    assert result.code == 0
    assert "estimate" in result.out
    assert "Example" in result.out
