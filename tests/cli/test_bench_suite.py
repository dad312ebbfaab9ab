"""decodery bench --suite parallelbench: what is measured, on a tiny random model."""

import json

import pytest

from decodery.errors import BadSetting
from decodery.evaluation.parallelbench import suite
from decodery.evaluation.parallelbench.words import END, MASK, vocabulary, write_tokenizer
from decodery.training.networks import Shape, SmallLlama


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model with the suite's words."""
    folder = tmp_path_factory.mktemp("model")
    words = vocabulary()
    described = {"mask_token_id": words[MASK], "end_token_ids": [words[END]], "pad_token_ids": [], "canvas": 8}
    SmallLlama(Shape(len(words), 16, 1, 1)).write(folder, masked_diffusion=described, eos_token_id=words[END])
    write_tokenizer(folder)
    return folder


def test_the_suite_measures_prints_and_draws(command, folder, tmp_path):
    arguments = ["bench", "--suite", "parallelbench", "--model", str(folder), "--limit", "2", "--categories"]
    arguments += ["copy,sudoku", "--methods", "masked-diffusion(steps={steps}), masked-diffusion(rule=threshold)"]
    result = command(*arguments, "--plot", str(tmp_path / "curves.png"), "--out", str(tmp_path / "report.json"))
    assert (result.code, result.err) == (0, "")
    assert "copy" in result.out
    assert "all tasks" in result.out
    assert "not measured" in result.out
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert {row["task"] for row in rows} == {"copy", "sudoku", suite.OVERALL}
    first = next(row for row in rows if row["task"] == "copy" and row["setting"] == "1")
    assert first["tokens_per_forward"] == 1
    assert first["speed_up"] == 1
    assert 0 <= first["accuracy"] <= 1


def test_the_analysis_is_printed(command, folder, monkeypatch):
    from functools import partial

    from decodery.evaluation.parallelbench import oracle

    few = partial(oracle.oracle_curve, ("copy",), oracle.DECODERS[:1], samples=2)
    monkeypatch.setattr(suite, "oracle_curve", few)
    arguments = ["bench", "--suite", "parallelbench", "--model", str(folder), "--limit", "2", "--analysis"]
    result = command(*arguments, "--categories", "copy", "--methods", "masked-diffusion(rule=threshold)")
    assert (result.code, result.err) == (0, "")
    assert "bits lost" in result.out
    assert "surest first" in result.out


def test_published_tasks_are_looked_for_in_a_folder(command, folder, tmp_path):
    from decodery.evaluation.parallelbench.published import make_items, write_items

    write_items(make_items("waiting_line_copy", 2), tmp_path / "waiting_line_copy.jsonl")
    arguments = ["bench", "--suite", "parallelbench", "--model", str(folder), "--published", str(tmp_path)]
    result = command(*arguments, "--categories", "waiting_line_copy")
    assert result.code == 2
    assert "has no tokens for 'You'" in result.err, "the small model reads words of its own only"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--analysis"], "belong to a suite"),
        (["--suite", "parallelbench", "--published", "nowhere"], "is no folder"),
        (["--suite", "parallelbench", "--categories", "samsum"], "needs its published file"),
        (["--suite", "other"], "no suite"),
        (["--plot", "x.png"], "belong to a suite"),
        (["--suite", "parallelbench", "--categories", "juggling"], "no task of the suite"),
    ],
)
def test_what_is_wrong_is_said(command, folder, arguments, message):
    result = command("bench", "--model", str(folder), *arguments)
    assert result.code != 0
    assert message in result.err


def test_settings_become_specs_of_a_canvas():
    entrants = suite.default_entrants()
    first = entrants[0]
    assert first.on(16) == "masked-diffusion(steps=16)"
    assert suite.quotas("x", "masked-diffusion(steps={steps})", (3,))[0].on(16) == "masked-diffusion(steps=6)"
    assert len(suite.default_entrants(full=True)) > len(entrants)
    assert {entrant.series for entrant in suite.given_entrants(["masked-diffusion"])} == {
        suite.REFERENCE_SERIES,
        "masked-diffusion",
    }


def test_the_oracle_takes_the_loosest_right_threshold_of_each_sample():
    def outcome(right, forwards):
        return suite.Outcome(right, "", 8, 8, forwards, 80)

    entrants = [suite.Entrant("threshold", str(t), "", threshold=t) for t in (0.5, 0.9)]
    outcomes = {
        (0, "copy"): [outcome(True, 1), outcome(False, 1), outcome(False, 2)],
        (1, "copy"): [outcome(True, 4), outcome(True, 5), outcome(False, 6)],
    }
    row = suite._oracle(entrants, ["copy"], outcomes)[0]
    assert row.accuracy == pytest.approx(2 / 3)
    assert row.forwards == pytest.approx((1 + 5 + 6) / 3)


def test_only_models_with_a_mask_are_measured():
    from decodery.testing import toy_language_model

    with pytest.raises(BadSetting, match="no masked-diffusion model"):
        suite.run_suite(toy_language_model(), suite.default_entrants(), ["copy"], samples=1)
