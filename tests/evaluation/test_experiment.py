"""Experiments: intervals that cover, paired differences, decided claims, results files, tables of pages, stale code."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from decodery.errors import BadInput
from decodery.evaluation import experiment_files as files
from decodery.evaluation.experiment import (
    NO,
    OPEN,
    YES,
    Arm,
    Experiment,
    Figure,
    PublishedClaim,
    Study,
    measure,
    once_per_item,
)
from decodery.evaluation.intervals import percentiles, resamples, wilson

RIGHT = Figure("accuracy", "right", form=".0%", share=True)
MEAN = Figure("mean", "value")
RATE = Figure("rate", "tokens", per="seconds")


def study(values: dict[str, list[float]], figures=(MEAN,), claims=(), key="value") -> Study:
    """Arms whose measurements are given."""
    count = len(next(iter(values.values())))
    arms = [Arm(name, lambda item, own=own: {key: own[item]}) for name, own in values.items()]
    return Study("Given numbers.", list(range(count)), arms, figures, claims)


class TestIntervals:
    def test_wilson_is_the_published_formula(self):
        assert wilson(8, 10) == (pytest.approx(0.4901, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
        assert wilson(0, 10) == (0.0, pytest.approx(0.2775, abs=1e-4))
        assert wilson(10, 10) == (pytest.approx(0.7225, abs=1e-4), 1.0)
        with pytest.raises(ValueError, match="nothing"):
            wilson(0, 0)

    def test_resamples_are_the_same_each_time_and_begin_with_the_sample(self):
        weights = resamples(7)
        assert (weights[0] == 1).all()
        assert (weights.sum(axis=1) == 7).all()
        assert (weights == resamples(7)).all()

    def test_the_bootstrap_covers_the_mean(self):
        """Of 300 samples of 40 at least 90 % of the intervals hold the true mean: 95 % less three standard errors and the small
        sample's bias."""
        generator = np.random.Generator(np.random.Philox(key=1))
        weights = resamples(40)
        held = 0
        for _ in range(300):
            values = generator.normal(3.0, 1.0, 40)
            low, high = percentiles(weights @ values / 40) or (0.0, 0.0)
            held += low <= 3.0 <= high
        assert held >= 270


class TestFigures:
    def test_a_ratio_is_one_of_totals(self):
        given = Study("", [0, 1], [Arm("a", lambda i: {"tokens": 10.0 * (i + 1), "seconds": 1.0 + i * 4})], [RATE])
        assert measure(given).estimate("a", RATE).value == 30 / 6

    def test_only_items_that_have_a_number_count(self):
        given = Study("", [0, 1, 2], [Arm("a", lambda i: {"value": 4.0} if i else {"other": 1.0})], [MEAN])
        assert measure(given).estimate("a", MEAN).value == 4.0
        assert measure(given).estimate("a", Figure("x", "missing")) is None

    def test_a_median_is_one_of_the_items(self):
        found = measure(study({"a": [1.0, 2.0, 100.0]}))
        assert found.estimate("a", Figure("x", "value", middle=True)).value == 2.0

    def test_against_is_paired(self):
        """Every item takes one arm twice the other's time, however much items differ: the ratio has no spread."""
        spread = list(np.geomspace(1, 1000, 30))
        figure = Figure("speed", "value", against="slow")
        found = measure(study({"slow": spread, "fast": [2 * v for v in spread]}, (figure,)))
        estimate = found.estimate("fast", figure)
        assert (estimate.value, estimate.low, estimate.high) == tuple(pytest.approx(2.0) for _ in range(3))

    def test_a_derived_figure_sees_all_arms(self):
        less = Figure("less", derive=lambda look, arm: look(arm, "mean") - look("a", "mean"))
        found = measure(study({"a": [1.0, 2.0], "b": [4.0, 5.0]}, (MEAN, less)))
        estimate = found.estimate("b", less)
        assert (estimate.value, estimate.low, estimate.high) == (3.0, 3.0, 3.0)

    def test_one_item_has_no_interval(self):
        assert measure(study({"a": [1.0]})).estimate("a", MEAN).low is None


class TestClaims:
    def decided(self, claim: PublishedClaim, figures=(MEAN,), **values: list[float]) -> str:
        found = measure(study(values, figures))
        return found.verdict(claim).holds

    def test_a_paired_difference_decides(self):
        noise = list(np.random.Generator(np.random.Philox(key=2)).normal(0, 50, 40))
        better = [value + 1 + 0.1 * (place % 3) for place, value in enumerate(noise)]
        assert self.decided(PublishedClaim("", "mean", "a", "b"), a=better, b=noise) == YES
        assert self.decided(PublishedClaim("", "mean", "b", "a"), a=better, b=noise) == NO
        assert self.decided(PublishedClaim("", "mean", "b", "a", above=False), a=better, b=noise) == YES
        assert self.decided(PublishedClaim("", "mean", "a", "b", above=False), a=better, b=noise) == NO

    def test_what_the_interval_holds_is_open(self):
        generator = np.random.Generator(np.random.Philox(key=3))
        one, other = (list(generator.normal(0, 1, 20)) for _ in range(2))
        assert self.decided(PublishedClaim("", "mean", "a", "b"), a=one, b=other) == OPEN
        assert self.decided(PublishedClaim("", "mean", "a", 100.0), a=one) == NO
        assert self.decided(PublishedClaim("", "mean", "a", -100.0), a=one) == YES

    def test_every_item_or_none(self):
        every = PublishedClaim("", "accuracy", "a", every=True)
        figures = (Figure("accuracy", "value", share=True),)
        assert self.decided(every, figures, a=[1.0] * 5) == YES
        assert self.decided(every, figures, a=[1.0] * 4 + [0.0]) == NO

    def test_items_that_all_say_the_same_decide_no_share(self):
        figures = (Figure("accuracy", "value", share=True),)
        assert self.decided(PublishedClaim("", "accuracy", "a", 0.9), figures, a=[1.0] * 5) == OPEN
        assert self.decided(PublishedClaim("", "accuracy", "a", "b"), figures, a=[1.0] * 5, b=[1.0] * 5) == OPEN

    def test_one_item_resolves_nothing(self):
        assert self.decided(PublishedClaim("", "mean", "a", 0.0), a=[5.0]) == OPEN


def test_arms_take_turns_and_see_the_items_in_order():
    seen: list[tuple[int, str]] = []

    def arm(name: str) -> Arm:
        return Arm(name, lambda item: seen.append((item, name)) or {"value": 1.0})

    measure(Study("", [0, 1, 2], [arm("a"), arm("b")], [MEAN]))
    assert seen == [(0, "a"), (0, "b"), (1, "b"), (1, "a"), (2, "a"), (2, "b")]


def test_names_of_arms_differ():
    arm = Arm("a", lambda item: {"value": 1.0})
    with pytest.raises(ValueError, match="different names"):
        measure(Study("", [0], [arm, arm], [MEAN]))


@pytest.mark.parametrize(
    "claim",
    [PublishedClaim("", "mean", "b"), PublishedClaim("", "mean", "a", "b"), PublishedClaim("", "other", "a")],
    ids=["arm", "than", "figure"],
)
def test_what_a_claim_names_is_there_before_anything_is_measured(claim):
    def fail(item):
        raise AssertionError("measured")

    with pytest.raises(ValueError, match="has no arm or figure"):
        measure(Study("", [0], [Arm("a", fail)], [MEAN], [claim]))


def test_work_that_arms_share_is_done_once_for_each_item():
    done: list[int] = []
    shared = once_per_item(lambda item: done.append(item) or item * 10)
    assert [shared(1), shared(1), shared(2), shared(2), shared(1)] == [10, 10, 20, 20, 10]
    assert done == [1, 2, 1]


@dataclass(frozen=True)
class Settings:
    samples: int = 2
    seed: int = 7
    questions: str = "/some/where/question.jsonl"


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Experiment]:
    """An experiment on a package of its own, which may change."""
    (tmp_path / "measured.py").write_text('"""Measured."""\n\nimport os\n\n\ndef rule(x):\n    return x + 1\n')
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "__init__.py").write_text("")
    (tmp_path / "experiments" / "toy.py").write_text("EXPERIMENT = None\n")
    (tmp_path / "README.md").write_text("# Page\n\n<!-- table:toy.first -->\n<!-- /table:toy.first -->\n\nEnd\n")
    (tmp_path / "docs").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in imported():
        monkeypatch.delitem(sys.modules, name)

    def first(settings: Settings) -> Study:
        claims = [
            PublishedClaim("b beats a", "accuracy", "b", "a"),
            PublishedClaim("b is right", "accuracy", "b", every=True),
        ]
        given = {"a": [0.0, 1.0, 0.0, 1.0], "b": [1.0] * 4}
        return study(given, (Figure("accuracy", "value", form=".0%", share=True),), claims)

    yield Experiment("toy", "A toy", "nobody", ("measured",), Settings(), {"first": first, "second": first})
    for name in imported():
        del sys.modules[name]


def imported() -> list[str]:
    """Modules that have a name of the experiment's files."""
    return [name for name in sys.modules if name.split(".")[0] in ("experiments", "measured")]


def run(experiment: Experiment, root: Path) -> None:
    given = experiment.studies["first"](experiment.settings)
    table = {
        **files.table_of(measure(given)),
        "made": files.made(experiment, given, ["--questions", "/a/b.jsonl"], root),
    }
    files.write(root, "toy", experiment.title, experiment.source, {"first": table})


class TestFiles:
    def test_a_results_file_says_how_it_was_made(self, experiment, tmp_path):
        run(experiment, tmp_path)
        whole = json.loads((tmp_path / "results" / "toy.json").read_text())
        table = whole["tables"]["first"]
        assert whole["experiment"] == "toy"
        assert table["items"] == 4
        assert table["made"]["seeds"] == [7]
        assert table["made"]["command"] == "python -m experiments run toy --questions b.jsonl"
        assert table["made"]["settings"]["questions"] == "question.jsonl"
        assert {"commit", "changed", "date", "processor", "cores", "load", "versions"} <= set(table["made"])
        assert "/some/where" not in json.dumps(whole)
        assert [claim["holds"] for claim in table["claims"]] == [OPEN, YES]  # four items tell little
        assert table["rows"][1] == ["b", [1.0, pytest.approx(0.5101, abs=1e-4), 1.0]]

    def test_pages_get_the_tables(self, experiment, tmp_path):
        page = tmp_path / "README.md"
        assert files.write_pages(tmp_path) == [page]
        assert "*Not run in this version:* `python -m experiments run toy --studies first`" in page.read_text()
        run(experiment, tmp_path)
        assert files.write_pages(tmp_path) == [page]
        assert files.write_pages(tmp_path) == []
        text = page.read_text()
        assert "| `a` | 50% [15%, 85%] |" in text
        assert "| b is right | accuracy of `b`, of every item | yes |" in text
        assert text.endswith("<!-- /table:toy.first -->\n\nEnd\n")

    def test_a_table_that_does_not_end_is_told(self, tmp_path):
        with pytest.raises(ValueError, match="is missing"):
            files.written(tmp_path, "<!-- table:toy.first -->\n")

    def test_a_study_that_is_run_again_leaves_the_others(self, experiment, tmp_path):
        run(experiment, tmp_path)
        files.write(tmp_path, "toy", "A toy", "nobody", {"second": files.read(tmp_path, "toy")["first"]})
        assert set(files.read(tmp_path, "toy")) == {"first", "second"}

    def test_a_broken_file_is_refused(self, tmp_path):
        (tmp_path / "results").mkdir()
        (tmp_path / "results" / "toy.json").write_text("[]")
        with pytest.raises(BadInput, match="is no results file"):
            files.read(tmp_path, "toy")


class TestStale:
    def stale(self, experiment, root):
        return {study: changed for _, study, changed in files.stale(root, {"toy": experiment})}

    def test_what_was_not_run_is_listed(self, experiment, tmp_path):
        assert self.stale(experiment, tmp_path) == {"first": [], "second": []}
        run(experiment, tmp_path)
        assert self.stale(experiment, tmp_path) == {"second": []}

    def test_code_that_changed_is_named(self, experiment, tmp_path):
        run(experiment, tmp_path)
        (tmp_path / "measured.py").write_text("def rule(x):\n    return x + 2\n")
        assert self.stale(experiment, tmp_path)["first"] == ["measured"]

    def test_comments_docstrings_imports_and_layout_do_not_count(self, experiment, tmp_path):
        run(experiment, tmp_path)
        (tmp_path / "measured.py").write_text(
            '"""Else."""\nimport sys\n\n# why\ndef rule( x ):\n    "said"\n    return (x+1)\n'
        )
        assert "first" not in self.stale(experiment, tmp_path)

    def test_a_module_that_is_gone_is_told(self):
        with pytest.raises(ModuleNotFoundError, match=r"decodery\.no_such"):
            files.digest("decodery.no_such")
