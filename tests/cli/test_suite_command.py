"""decodery suite parallelbench: what is measured, on a tiny random model."""

import json
from functools import partial
from pathlib import Path

import pytest

from decodery.errors import BadSetting
from decodery.evaluation.parallelbench import oracle, suite
from decodery.evaluation.parallelbench.published import make_items, write_items
from decodery.evaluation.parallelbench.tasks import make_samples
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
    arguments = ["suite", "parallelbench", "--model", str(folder), "--samples", "2", "--tasks"]
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["other"], "no suite"),
        (["--tasks", "juggling"], "no task of the suite"),
        (["--samples", "0"], "at least one sample"),
        (["--batch-size", "0"], "one request at a time"),
        (["--published", "nowhere"], "is no folder"),
        (["--tasks", "samsum"], "needs its published file"),
        (["--full", "--methods", "masked-diffusion"], "give one of them"),
        (["--methods", "masked-difusion"], "did you mean"),
        (["--plot", "nowhere/x.png"], "cannot be written"),
        (["--prompts", "x.jsonl"], "No such option: --prompts"),
        (["--repeats", "2"], "No such option: --repeats"),
        (["--max-new-tokens", "9"], "No such option: --max-new-tokens"),
        (["--warmup", "2"], "No such option: --warmup"),
        (["--against", "transformers"], "No such option: --against"),
    ],
)
def test_what_is_wrong_is_said(command, folder, arguments, message):
    result = command("suite", "--model", str(folder), *arguments)
    assert result.code == 2
    assert message in result.err
    assert len(result.err.splitlines()) == 1


@pytest.fixture
def asked(monkeypatch):
    """What the suite is asked for; nothing is measured."""
    asked = {}

    def run_suite(lm, entrants, tasks, *, on_progress, **settings):
        asked.update(settings, model=lm.name, entrants=[entrant.spec for entrant in entrants], tasks=tasks)
        raise BadSetting("asked.")

    monkeypatch.setattr(suite, "run_suite", run_suite)
    return asked


DEFAULTS = {"samples": 100, "batch_size": 25, "canvas": None, "temperature": 0.0, "seed": None}
DEFAULTS |= {"published": None, "analysis": False}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {}),
        (["--seed", "0"], {"seed": 0}),
        (["--seed", "5"], {"seed": 5}),
        (["--batch-size", "1"], {"batch_size": 1}),
        (["--samples", "3"], {"samples": 3}),
        (["--canvas", "12"], {"canvas": 12}),
        (["--published", "folder"], {"published": Path("folder")}),
        (["--analysis"], {"analysis": True}),
        (["--temperature", "0.5"], {"temperature": 0.5}),
        (["--tasks", "copy, sudoku"], {"tasks": ("copy", "sudoku")}),
        (["--methods", "masked-diffusion(rule=threshold), localleap"],
         {"entrants": ["masked-diffusion(steps={steps})", "masked-diffusion(rule=threshold)", "localleap"]}),
        (["--full"], {"entrants": [entrant.spec for entrant in suite.default_entrants(full=True)]}),
    ],
)  # fmt: skip
def test_every_option_arrives(command, folder, asked, arguments, expected):
    assert "asked." in command("suite", "--model", str(folder), *arguments).err
    usual = {"entrants": [entrant.spec for entrant in suite.default_entrants()], "tasks": ()}
    assert asked == {**DEFAULTS, **usual, "model": folder.name, **expected}


def test_the_analysis_is_printed(command, folder, monkeypatch):
    few = partial(oracle.oracle_curve, ("copy",), oracle.DECODERS[:1], samples=2)
    monkeypatch.setattr(suite, "oracle_curve", few)
    arguments = ["suite", "--model", str(folder), "--samples", "2", "--analysis", "--tasks", "copy"]
    result = command(*arguments, "--methods", "masked-diffusion(rule=threshold)")
    assert (result.code, result.err) == (0, "")
    assert "bits lost" in result.out
    assert "surest first" in result.out


def test_published_tasks_are_looked_for_in_a_folder(command, folder, tmp_path):
    write_items(make_items("waiting_line_copy", 2), tmp_path / "waiting_line_copy.jsonl")
    arguments = ["suite", "--model", str(folder), "--published", str(tmp_path), "--tasks", "waiting_line_copy"]
    result = command(*arguments)
    assert result.code == 2
    assert "has no tokens for 'You'" in result.err, "the small model reads words of its own only"


def test_draws_and_samples_follow_the_seed_that_was_given(folder):
    """None: each task's own samples, and draws of 0; a number, 0 as well: samples of that seed, and draws of it."""
    import decodery

    lm = decodery.load(str(folder))
    seeds, drawn = [], []
    generate = lm.generate

    def spied(prompts, *, seed, **more):
        seeds.append(seed)
        drawn.append(prompts)
        return generate(prompts, seed=seed, **more)

    lm.generate = spied
    for seed in (None, 0, 7):
        suite.run_suite(lm, suite.given_entrants([])[:1], ["copy"], samples=3, batch_size=2, seed=seed)
    assert seeds == [[0, 1], [2], [0, 1], [2], [7, 8], [9]]
    assert drawn[:2] == [[sample.prompt for sample in part] for part in _parts(None)]
    assert drawn[2:4] == [[sample.prompt for sample in part] for part in _parts(0)]
    assert drawn[4:] == [[sample.prompt for sample in part] for part in _parts(7)]
    assert drawn[:2] != drawn[2:4]


def _parts(seed):
    samples = make_samples("copy", 3, seed=seed)
    return samples[:2], samples[2:]


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
        return suite.SampleOutcome(right, "", 8, 8, forwards, 80)

    entrants = [suite.SuiteEntrant("threshold", str(t), "", threshold=t) for t in (0.5, 0.9)]
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
