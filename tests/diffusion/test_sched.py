"""SchED: when everything that is left is filled at once, and when nothing changes."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from canvas_outcomes import PROMPT, acting, assert_alone_as_in_a_batch, assert_check_decides_the_claims, decoded

from decodery.diffusion.sched.margins import Calibration, Thresholds, margins, quality_penalised_speed
from decodery.engine.registry import method as as_method
from decodery.engine.settings import Settings
from decodery.errors import BadParameter, Refused
from decodery.models.forward import Attend, Forward
from decodery.testing import ScriptedDenoiser, denoising_language_model, toy_diffusion_model, toy_language_model
from decodery.testing.outputs import finished, new_request
from decodery.training.exit_thresholds import calibrate, first_margins, main

NEVER = "threshold_high=inf, threshold_low=inf"
ALWAYS = "threshold_high=-inf, threshold_low=-inf"
SAMPLERS = (
    "masked-diffusion",
    "masked-diffusion(rule=random)",
    "masked-diffusion(rule=entropy)",
    "masked-diffusion(rule=origin)",
    "masked-diffusion(rule=ancestral)",
    "masked-diffusion(rule=threshold, threshold=0.6)",
    "localleap(threshold=0.6, relaxed_threshold=0.3)",
    "adablock(delimiters=2+5+9+14, delimiter_threshold=0.05, threshold=0.6)",
)


def _observed(lm, spec, prompt=PROMPT):
    """The decisions of a request, and its request."""
    request, method = new_request(lm, spec, prompt, Settings(seed=0))
    kept = {}

    class Ours(type(method)):
        def unmasking(self, request):
            kept["rule"] = super().unmasking(request)
            return kept["rule"]

    finished(request, Ours(**{p.name: getattr(method, p.name) for p in method.parameters()}))
    return kept["rule"].decisions, request


def _scripted(table, length=6, stop_ids=()):
    """A denoiser with these margins, by the number of masks that are left, for each offset: a number, or (number, token)."""

    def script(canvas):
        rows = torch.zeros(length, 6)
        for offset, entry in enumerate(table(sum(token < 0 for token in canvas), canvas)):
            margin, token = entry if isinstance(entry, tuple) else (entry, offset % 3)
            rows[offset, token] = margin
        return rows

    return denoising_language_model(ScriptedDenoiser(length, 6, script), stop_ids=stop_ids)


# Limits


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_exit_that_never_fires_leaves_the_sampler_as_it_is(sampler, temperature):
    lm = toy_diffusion_model()
    for canvas in ("block_length=4", "block_length=6, cache=prefix", "steps=24, block_length=12"):
        if "steps" in canvas and "adablock" in sampler:
            continue
        bracket = f"{sampler[:-1]}, {canvas})" if sampler.endswith(")") else f"{sampler}({canvas})"
        plain = lm.generate(PROMPT, acting(bracket), temperature=temperature, seed=3)
        found = lm.generate(PROMPT, f"sched(sampler='{sampler}', {NEVER}, {canvas})", temperature=temperature, seed=3)
        assert decoded(found) == decoded(plain)
        assert found.text == plain.text


@pytest.mark.parametrize("region", ["canvas", "block"])
def test_with_the_dual_cache_too_in_the_region_it_scores(region):
    lm = toy_diffusion_model()
    spec = f"sched({NEVER}, block_length=4, cache=dual, region={region})"
    if region == "canvas":
        with pytest.raises(BadParameter, match="dual cache"):
            as_method(spec)
    else:
        plain = lm.generate(PROMPT, "masked-diffusion(block_length=4, cache=dual)")
        assert decoded(lm.generate(PROMPT, spec)) == decoded(plain)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_exit_that_always_fires_fills_everything_by_the_first_forward(sampler):
    lm = toy_diffusion_model()
    [scores] = lm.network.run([Forward(lm.network.new_sequence(), [*PROMPT, *[23] * 12], attend=Attend.FULL)])
    likeliest = scores.logits[len(PROMPT) :, :23].argmax(-1).tolist()
    for temperature in (0.0, 1.0):
        found = lm.generate(
            PROMPT, f"sched(sampler='{sampler}', {ALWAYS}, stability_gate=False)", temperature=temperature, seed=2
        )
        assert found.token_ids == likeliest
        assert found.stats.forwards == 1
        assert set(found.stats.step_of) == {0}


def test_with_the_gate_it_takes_one_forward_more():
    steady = _scripted(lambda left, canvas: [1.0] * 6)
    found = steady.generate([0], f"sched({ALWAYS})")
    assert found.stats.forwards == 2
    assert sorted(found.stats.step_of) == [0, 1, 1, 1, 1, 1]
    for patience in (1, 2):
        assert steady.generate([0], f"sched({ALWAYS}, patience={patience})").stats.forwards == 2 + patience


def test_the_gate_compares_steps_and_not_steps_of_a_block():
    """The first step of a block has one before it, that of another block; only the very first step has none."""
    steady = _scripted(lambda left, canvas: [1.0] * 6)
    assert steady.generate([0], f"sched({ALWAYS}, block_length=1)").stats.forwards == 2
    # Of the block alone, its first step shows nothing that was seen before.
    found = steady.generate([0], f"sched({ALWAYS}, block_length=3, region=block)")
    assert sorted(found.stats.step_of) == [0, 1, 1, 2, 3, 3]
    found = steady.generate([0], f"sched({ALWAYS}, block_length=3, region=block, max_change=1.0)")
    assert sorted(found.stats.step_of) == [0, 1, 1, 2, 2, 2]


def test_the_gate_waits_for_tokens_that_still_change():
    """The last offset changes its mind in every step but the fourth."""

    def table(left, canvas):
        return [*[5.0] * 5, (0.1, {6: 1, 5: 2, 4: 1, 3: 1, 2: 2, 1: 1}[left])]

    lm = _scripted(table)
    assert lm.generate([0], f"sched({ALWAYS})").stats.forwards == 4
    assert lm.generate([0], f"sched({ALWAYS}, max_change=0.2)").stats.forwards == 2  # one of five changes
    assert lm.generate([0], f"sched({ALWAYS}, max_change=0.19)").stats.forwards == 4
    assert lm.generate([0], f"sched({ALWAYS}, stability_gate=False)").stats.forwards == 1
    # The threshold and the gate must agree in the same step.
    assert lm.generate([0], f"sched({ALWAYS}, patience=1)").stats.forwards == 6


# The thresholds


@pytest.mark.parametrize("shape", ["linear", "cosine", "exponential"])
def test_the_thresholds_fall_from_high_to_low(shape):
    for slope in (1.0, 4.0, 16.0):
        thresholds = Thresholds(7.5, 2.5, shape, slope)
        values = [thresholds.at(step, 33) for step in range(33)]
        assert values[0] == 7.5
        assert values[-1] == pytest.approx(2.5 + 5 * math.exp(-slope) if shape == "exponential" else 2.5)
        assert all(a >= b for a, b in itertools.pairwise(values))
        assert thresholds.at(50, 33) == values[-1]
    middle = {"linear": 5.0, "cosine": 5.0, "exponential": 2.5 + 5 * math.exp(-8.0)}
    assert Thresholds(7.5, 2.5, shape, 16.0).at(16, 33) == pytest.approx(middle[shape])
    assert Thresholds(7.5, 2.5, "cosine").at(8, 33) > Thresholds(7.5, 2.5, "linear").at(8, 33)


def test_a_larger_slope_falls_faster():
    for step in range(1, 33):
        values = [Thresholds(7.5, 2.5, "exponential", slope).at(step, 33) for slope in (1.0, 2.0, 4.0, 8.0)]
        assert all(a > b for a, b in itertools.pairwise(values))


def test_a_request_s_thresholds_are_those_of_its_parameters():
    lm = _scripted(lambda left, canvas: [1.0] * 6)
    for slope in (1.0, 4.0, 9.0):
        spec = f"sched(shape=exponential, slope={slope}, threshold_high=9, threshold_low=8)"
        decisions, _ = _observed(lm, spec, [0])
        expected = Thresholds(9, 8, "exponential", slope)
        assert [one.threshold for one in decisions] == [expected.at(step, 6) for step in range(6)]


def test_prophet_s_three_phases():
    values = [Thresholds(shape="prophet").at(step, 12) for step in range(12)]
    expected = [7.5 if (step + 1) / 12 < 1 / 3 else 5.0 if (step + 1) / 12 < 2 / 3 else 2.5 for step in range(12)]
    assert values == expected
    assert values.count(7.5) == 3


def test_one_planned_step_counts_as_the_last():
    assert Thresholds(7.5, 2.5, "linear").at(0, 1) == 2.5


# The margins


def test_margins_are_those_of_raw_scores():
    scores = torch.tensor([[1.0, 4.5, 2.0], [-float("inf"), 0.0, 0.25]])
    assert margins(scores).tolist() == [2.5, 0.25]
    lm = toy_diffusion_model()
    for settings in ({}, {"temperature": 0.5, "seed": 1}, {"temperature": 2.0, "seed": 1, "top_k": 3}):
        request, method = new_request(lm, "sched", PROMPT, Settings(**settings))
        rule = method.unmasking(request)
        plain = first_margins(lm, PROMPT, 12)

        class Ours(type(method)):
            def unmasking(self, request, rule=rule):
                return rule

        finished(request, Ours())
        assert rule.decisions[0].mean == pytest.approx(sum(plain) / 12, abs=1e-4)


def test_visible_positions_do_not_count():
    """The first one filled gets a huge margin afterwards; what is masked has small ones."""

    def table(left, canvas):
        return [(1000.0 if token >= 0 else 1.0) + 0.01 * (offset == 0) for offset, token in enumerate(canvas)]

    decisions, request = _observed(_scripted(table), "sched(threshold_high=2.0, threshold_low=2.0)")
    assert request.statistics.forwards == 6
    assert [round(d.mean, 1) for d in decisions] == [1.0] * 6
    assert not any(d.fires for d in decisions)


def test_the_mean_is_over_all_blocks_and_the_exit_fills_all_of_them():
    def table(left, canvas):
        return [1.0, 1.0, 1.0, 9.0, 9.0, 9.0]

    lm = _scripted(table)
    spec = "sched(threshold_high=5.0, threshold_low=5.0, block_length=3, stability_gate=False"
    decisions, request = _observed(lm, f"{spec})")
    assert [d.mean for d in decisions] == [5.0]
    assert request.statistics.step_of == [0] * 6
    decisions, request = _observed(lm, f"{spec}, region=block)")
    assert [d.mean for d in decisions] == [1.0, 1.0, 1.0, 9.0]
    assert request.statistics.step_of == [0, 1, 2, 3, 3, 3]
    assert request.statistics.forwards == 4


def test_positions_that_become_end_tokens_can_be_left_out():
    def table(left, canvas):
        return [(1.0, 0), (1.0, 0), *[(20.0, 4)] * 4]

    lm = _scripted(table, stop_ids=(4,))
    decisions, _ = _observed(lm, "sched(threshold_high=5.0, threshold_low=5.0, stability_gate=False)")
    assert decisions[0].fires
    assert (decisions[0].mean, decisions[0].without_ends) == (pytest.approx(82 / 6), 1.0)
    decisions, _ = _observed(lm, "sched(threshold_high=5.0, threshold_low=5.0, stability_gate=False, ends=left_out)")
    assert decisions[0].mean == 1.0
    assert not decisions[0].fires
    # Where nothing but end tokens is left, they decide.
    everything = _scripted(lambda left, canvas: [(20.0, 4)] * 6, stop_ids=(4,))
    decisions, _ = _observed(everything, "sched(threshold_high=5.0, threshold_low=5.0, ends=left_out)")
    assert decisions[1].fires


@pytest.mark.parametrize("shape", ["linear", "cosine", "exponential", "prophet"])
def test_lower_thresholds_never_exit_later(shape):
    lm = toy_diffusion_model()
    levels = sorted(sum(values) / 12 for values in (first_margins(lm, [*PROMPT, first], 12) for first in range(8)))
    distinct = set()
    for first in range(8):
        previous = 0
        for high, low in (
            (-9.0, -9.0),
            (levels[0], 0.0),
            (levels[2], 0.0),
            (levels[5], levels[0]),
            (levels[7], levels[5]),
        ):
            spec = f"sched(shape={shape}, threshold_high={max(high, low)}, threshold_low={low})"
            exit_step = max(lm.generate([*PROMPT, first], spec).stats.step_of)
            assert exit_step >= previous
            previous = exit_step
            distinct.add(exit_step)
    assert len(distinct) > 2


def test_progress_counts_planned_steps():
    """With twice the steps, half of which commit nothing, the threshold falls half as fast."""
    lm = _scripted(lambda left, canvas: [1.0] * 6)
    spec = "sched(sampler='masked-diffusion(rule=entropy)', threshold_high=2.0, threshold_low=0.0, block_length=6"
    decisions, _ = _observed(lm, f"{spec}, steps=12)")
    assert [d.threshold for d in decisions] == pytest.approx([2 - 2 * step / 11 for step in range(len(decisions))])
    assert decisions[-1].threshold <= 1.0 < decisions[-2].threshold
    assert [d.step for d in decisions] == list(range(7))


# Requests


def _two_tempers():
    """Behind prompts of one token margins are large, behind others small."""

    class Tempers(ScriptedDenoiser):
        def score(self, prompt, canvas):
            rows = torch.zeros(6, 6)
            rows[:, 0] = 9.0 if len(prompt) == 1 else 1.0
            return rows

    return denoising_language_model(Tempers(6, 6, lambda canvas: canvas))


@pytest.mark.parametrize("shape", ["linear", "prophet"])
def test_a_row_exits_on_its_own_and_in_joint_mode_with_the_others(shape):
    lm = _two_tempers()
    spec = f"sched(shape={shape}, threshold_high=4.0, threshold_low=4.0"
    calm, other = [1], [1, 2]
    apart = [lm.generate(prompt, f"{spec})").stats.forwards for prompt in (calm, other)]
    together = [reply.stats.forwards for reply in lm.generate([calm, other], f"{spec})")]
    assert apart == together == [2 if shape == "linear" else 1, 6]
    # Pooled, the mean of 9 and 1 is above 4, so that both exit; with two of the small ones it is below.
    for prompts, expected in (([calm, other], True), ([calm, other, other], False), ([calm], True), ([other], False)):
        replies = lm.generate(prompts, f"{spec}, average=joint)")
        assert [reply.stats.forwards for reply in replies] == [apart[0] if expected else 6] * len(prompts)


def test_joint_mode_pools_what_is_masked_and_forgets_who_is_done():
    """One row has an end token in its first block and is over early; the other then decides alone."""

    class Ends(ScriptedDenoiser):
        def score(self, prompt, canvas):
            rows = torch.zeros(6, 6)
            rows[:, 5 if len(prompt) == 1 else 0] = 0.5 if len(prompt) == 1 else 3.0
            return rows

    lm = denoising_language_model(Ends(6, 6, lambda canvas: canvas), stop_ids=(5,))
    spec = "sched(threshold_high=2.0, threshold_low=2.0, average=joint, block_length=2)"
    first, second = lm.generate([[1], [1, 2]], spec)
    assert first.stats.forwards == 2
    assert second.stats.forwards == 3  # 3.0 and 0.5 are below 2.0 on average, 3.0 alone is not
    assert second.stats.step_of == [0, 1, 2, 2, 2, 2]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_alone_and_in_a_batch(temperature):
    spec = "sched(threshold_high=4.0, threshold_low=1.0, block_length=6)"
    assert_alone_as_in_a_batch(spec, temperature)


def test_what_a_setting_bans_is_not_filled_in_at_the_exit():
    lm = toy_diffusion_model()
    plain = lm.generate(PROMPT, f"sched({ALWAYS}, stability_gate=False)")
    banned = plain.token_ids[0]
    found = lm.generate(PROMPT, f"sched({ALWAYS}, stability_gate=False)", logit_bias={banned: -math.inf})
    assert banned not in found.token_ids


# Calibration and the measure


def test_calibration_takes_percentiles_of_the_first_step(tmp_path):
    lm = toy_diffusion_model()
    prompts = [[first, second] for first in range(5) for second in range(10)]
    means = torch.tensor([sum(first_margins(lm, prompt, 12)) / 12 for prompt in prompts], dtype=torch.float64)
    found = calibrate(lm, prompts)
    assert (found.high, found.low) == (
        pytest.approx(float(means.quantile(0.9))),
        pytest.approx(float(means.quantile(0.3))),
    )
    assert found.prompts == 50
    positions = calibrate(lm, prompts, of="positions")
    assert positions.high > found.high  # single positions are spread wider than their means
    file = tmp_path / "thresholds.json"
    found.write(file)
    assert Calibration.read(file) == found
    method = as_method(f"sched(calibration='{file}')")
    assert method.thresholds(lm.name) == Thresholds(found.high, found.low)
    assert as_method(f"sched(calibration='{file}', threshold_low=0.0)").thresholds(lm.name).low == 0.0
    lower = as_method(f"sched(threshold_high={found.high}, threshold_low={found.low})")
    assert decoded(lm.generate(PROMPT, method)) == decoded(lm.generate(PROMPT, lower))
    with pytest.raises(BadParameter, match="was made for toy-diffusion-0"):
        toy_diffusion_model(seed=1).generate(PROMPT, method)
    file.write_text("{}")
    with pytest.raises(BadParameter, match="cannot be read"):
        lm.generate(PROMPT, method)


def test_calibration_from_the_command_line(tmp_path, monkeypatch, capsys):
    lm = toy_diffusion_model()
    monkeypatch.setattr("decodery.loading.load", lambda name: lm)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("ab", "cd", "ae")))
    main(["--model", "toy", "--prompts", str(prompts), "--output", str(tmp_path / "found.json")])
    found = Calibration.read(tmp_path / "found.json")
    assert found == calibrate(lm, [[0, 1], [2, 3], [0, 4]])
    assert f"threshold_high={found.high:.3f}" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["--model", "toy", "--prompts", str(tmp_path / "no"), "--output", str(tmp_path / "found.json")])
    assert stopped.value.code == 2
    assert "cannot be read" in capsys.readouterr().err


def test_causal_models_have_no_first_step():
    with pytest.raises(Refused, match="causal"):
        calibrate(toy_language_model(), [[1, 2]])


def test_quality_penalised_speed():
    assert quality_penalised_speed(1.0, 0.8, 0.8) == 1.0  # the baseline
    assert quality_penalised_speed(4.0, 0.8, 0.8) == 4.0
    assert quality_penalised_speed(4.0, 0.4, 0.8) == 0.25
    assert quality_penalised_speed(4.0, 0.4, 0.8, gamma=1.0) == 2.0


def test_thresholds_that_rise_or_are_half_infinite_are_refused():
    for spec in ("threshold_high=1.0", "threshold_high=inf", "threshold_low=-inf"):
        with pytest.raises(BadParameter, match="cannot fall"):
            as_method(f"sched({spec})")
    for spec in (NEVER, ALWAYS, "shape=prophet", "sampler='adablock(delimiters=2+5)', shape=exponential, slope=8.0"):
        method = as_method(f"sched({spec})")
        assert as_method(method.spec()) == method


@pytest.mark.parametrize(
    "spec",
    [
        "sched",
        "sched(sampler='masked-diffusion(rule=entropy)', threshold_high=3.0, threshold_low=0.0)",
        "sched(sampler=adablock, region=block, cache=dual)",
    ],
)
def test_check_decides_its_claims(spec):
    assert_check_decides_the_claims(spec)


def test_the_gate_looks_across_the_border_of_blocks():
    """In blocks of one every step is the first of its block; the tokens have not changed since the step before all the same."""
    steady = _scripted(lambda left, canvas: [1.0] * 6)
    for region, forwards in (("canvas", 2), ("block", 6)):
        assert steady.generate([0], f"sched({ALWAYS}, block_length=1, region={region})").stats.forwards == forwards
    assert steady.generate([0], f"sched({ALWAYS}, block_length=1, patience=1)").stats.forwards == 3


def test_only_requests_of_one_call_are_in_company():
    lm, spec = _two_tempers(), "sched(threshold_high=4.0, threshold_low=4.0, average=joint)"
    one, other = as_method(spec), as_method(spec)
    assert one == other
    assert one._company(lm.network) is one._company(lm.network)
    assert one._company(lm.network) is not other._company(lm.network)
    assert one._company(lm.network) is not one._company(_two_tempers().network)
    kept = set(lm.memory)
    for _ in range(3):
        assert [reply.stats.forwards for reply in lm.generate([[1], [1, 2]], spec)] == [2, 2]
    assert set(lm.memory) == kept, "nothing is left behind by a call"
