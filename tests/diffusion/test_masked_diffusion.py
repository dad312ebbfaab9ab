"""The base decoders of masked-diffusion models: what is exact, what the published rules commit, what everything costs."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from canvas_outcomes import acting

from decodery.diffusion.caches import BlockPrefixCache, DualCache
from decodery.diffusion.laws import RANKS, Laws
from decodery.diffusion.loop import Denoising
from decodery.diffusion.masked_diffusion import RULES
from decodery.diffusion.state import Plan
from decodery.diffusion.unmasking.base import CanvasStep
from decodery.diffusion.unmasking.dream import TimeGrid, share
from decodery.diffusion.unmasking.fast_dllm import Factor, Threshold
from decodery.diffusion.unmasking.llada import Quota, quota
from decodery.engine.events import Token, Unmasked
from decodery.engine.registry import method as as_method
from decodery.engine.settings import Settings
from decodery.errors import BadParameter, BadPrompt, Refused
from decodery.models.forward import Attend, Forward
from decodery.sampling.law import Law, LawSettings
from decodery.sampling.noise import Noise
from decodery.testing import (
    ScriptedDenoiser,
    TabularDenoiser,
    confident,
    denoising_language_model,
    exact_outputs,
    goodness_of_fit,
    sampled_outputs,
    total_variation,
    toy_diffusion_model,
    watched,
)
from decodery.testing.outputs import finished, new_request

PROMPT = [3, 1, 4, 1, 5]
DREAM_RANKS = {"maskgit_plus": "max_probability", "entropy": "entropy", "topk_margin": "margin"}
HEX_RANKS = {"low_confidence": "max_probability", "entropy": "entropy", "margin": "margin"}
SAMPLING = Settings(temperature=1.0, max_new_tokens=64, seed=0)


def _canvas(reply):
    """What stands where, and since which step: all that a decoder decides."""
    tokens = {}
    for event in reply.events:
        if isinstance(event, Unmasked):
            tokens.update(zip(event.offsets, event.tokens, strict=True))
    return tokens, reply.stats.step_of


def _law_of(spec, oracle):
    return exact_outputs(denoising_language_model(oracle), spec, [0, 1], SAMPLING)


# Exactness, decided by enumerating all branches


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("seed", [0, 1])
def test_one_token_per_step_ranked_without_a_look_at_it_is_exact(rank, seed):
    oracle = TabularDenoiser.random(seed=seed)
    law = _law_of(f"masked-diffusion(value_independent=True, rank={rank})", oracle)
    assert total_variation(law, oracle.law()) < 1e-6


def test_random_order_and_blocks_are_exact_too():
    oracle = TabularDenoiser.random(seed=2)
    for spec in ("rule=random", "value_independent=True, block_length=1", "value_independent=True, block_length=2"):
        assert total_variation(_law_of(f"masked-diffusion({spec})", oracle), oracle.law()) < 1e-6


def test_two_tokens_per_step_are_not():
    for seed in range(3):
        oracle = TabularDenoiser.random(length=4, vocabulary=2, seed=seed)
        law = _law_of("masked-diffusion(value_independent=True, steps=2)", oracle)
        assert total_variation(law, oracle.law()) > 0.05


def test_low_confidence_remasking_at_a_temperature_is_not_even_one_by_one():
    for seed in range(2):
        oracle = TabularDenoiser.random(seed=seed)
        assert total_variation(_law_of("masked-diffusion", oracle), oracle.law()) > 0.2


def test_real_noise_has_the_law_too():
    oracle = TabularDenoiser.random(seed=3)
    lm = denoising_language_model(oracle)
    counts = sampled_outputs(lm, "masked-diffusion(value_independent=True)", [0, 1], SAMPLING, 1500)
    assert goodness_of_fit(counts, oracle.law()).p_value > 0.01
    # The control: the same counts are not those of the rule that looks at its tokens.
    wrong = sampled_outputs(lm, "masked-diffusion", [0, 1], SAMPLING, 300)
    assert goodness_of_fit(wrong, oracle.law()).p_value < 1e-6


def test_the_shifted_oracle_gives_the_same_law():
    oracle = TabularDenoiser.random(seed=1, shift=True)
    for cache in ("none", "prefix", "dual"):
        spec = f"masked-diffusion(value_independent=True, block_length=2, cache={cache}, shift_row=compute)"
        assert total_variation(_law_of(acting(spec), oracle), oracle.law()) < 1e-6


@pytest.mark.parametrize("method", ["masked-diffusion", "adablock", "sched", "freecache", "localleap"])
def test_a_row_before_the_block_is_computed_only_where_scores_are_shifted(method):
    """Elsewhere there is no such row, so the parameter could not act."""
    spec = acting(f"{method}(block_length=4, cache=freecache, shift_row=compute)")
    with pytest.raises(BadParameter, match="shift_row=compute does something only with a shifted model, and toy-"):
        toy_diffusion_model().generate(PROMPT, spec)
    assert toy_diffusion_model(shift=True).generate(PROMPT, spec).token_ids


# Limits of the rules


@pytest.mark.parametrize("limit", ["rule=threshold, threshold=1.01", "rule=factor, factor=0.0"])
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_rules_that_are_never_sure_fill_one_token_per_step(limit, cache):
    lm = toy_diffusion_model()
    shared = f"block_length=4, cache={cache}"
    static = lm.generate(PROMPT, f"masked-diffusion({shared})")
    found = lm.generate(PROMPT, f"masked-diffusion({limit}, {shared})")
    assert _canvas(found) == _canvas(static)
    assert found.stats.forwards == static.stats.forwards == 12


def test_a_block_as_long_as_the_canvas_is_none_and_blocks_of_one_go_left_to_right():
    lm = toy_diffusion_model()
    whole = lm.generate(PROMPT, "masked-diffusion(block_length=12)")
    assert _canvas(lm.generate(PROMPT, "masked-diffusion(block_length=500)")) == _canvas(whole)
    assert whole.stats.step_of != sorted(whole.stats.step_of)
    assert lm.generate(PROMPT, "masked-diffusion(block_length=1)").stats.step_of == list(range(12))


def test_blocks_are_filled_one_after_the_other():
    lm = toy_diffusion_model()
    steps = lm.generate(PROMPT, "masked-diffusion(block_length=5)").stats.step_of
    assert max(steps[:5]) < min(steps[5:10])
    assert max(steps[5:10]) < min(steps[10:])


@pytest.mark.parametrize("masks", range(1, 20))
def test_the_quota_adds_up(masks):
    for steps in range(1, 25):
        counts = [quota(masks, steps, step) for step in range(steps)]
        assert sum(counts) == masks
        assert max(counts) - min(counts) <= 1


def _laws(confidences, temperature=0.0, tokens=None, seed=0):
    scores = confident(len(confidences), 5, confidences, tokens).float()
    return Laws(range(len(confidences)), scores, Law(LawSettings(temperature=temperature), [0]), Noise(seed), 1)


def _step(count, in_block=0, planned=1, number=0):
    return CanvasStep(number, in_block, planned, count, 0, count, planned)


def test_the_threshold_takes_all_that_reach_it_and_always_the_surest():
    rule = Threshold(threshold=0.9)
    assert rule.choose(_laws([0.95, 0.8, 0.91, 0.6]), _step(4)).offsets == (0, 2)
    assert rule.choose(_laws([0.5, 0.8, 0.8, 0.6]), _step(4)).offsets == (1,)  # among equals the lowest


@pytest.mark.parametrize("factor", [0.25, 0.5, 1.0, 2.0])
def test_the_factor_takes_the_largest_number_that_fits(factor):
    generator = torch.Generator().manual_seed(int(factor * 100))
    for _ in range(50):
        confidences = (1 - torch.rand(6, generator=generator, dtype=torch.float64) ** 3 * 0.7).tolist()
        ranked = sorted(range(6), key=lambda i: -confidences[i])
        fitting = [n for n in range(1, 7) if (n + 1) * (1 - confidences[ranked[n - 1]]) < factor]
        chosen = Factor(factor=factor).choose(_laws(confidences), _step(6)).offsets
        # Scores are float32: probabilities at the very border are not drawn here.
        assert set(chosen) == set(ranked[: max(fitting, default=1)])


def test_product_argmax_is_joint_argmax_where_fast_dllm_proves_it():
    """Theorem 1: no violation where every marginal exceeds 1 - eps with (n + 1) eps <= 1; outside there are many."""
    generator = torch.Generator().manual_seed(0)
    inside = outside = broken = 0
    for trial in range(3000):
        n = 2 + trial % 3
        weights = torch.rand([3] * n, generator=generator, dtype=torch.float64).clamp_min(1e-9).log().neg()
        peak = tuple(torch.randint(3, (n,), generator=generator).tolist())
        weights[peak] += float(torch.rand(1, generator=generator)) * 12 * 3**n / 3
        joint = weights / weights.sum()
        marginals = [joint.sum([a for a in range(n) if a != axis]) for axis in range(n)]
        product = tuple(int(m.argmax()) for m in marginals)
        together = tuple(int(i) for i in torch.unravel_index(joint.argmax(), joint.shape))
        if (n + 1) * (1 - min(float(m.max()) for m in marginals)) < 1:
            inside += 1
            assert product == together
        else:
            outside += 1
            broken += product != together
    assert inside > 300
    assert broken > 0.05 * outside


def test_dream_s_times_truncate_and_end_complete():
    """With more steps than positions, early steps commit nothing; they cost no forward either."""
    lm = toy_diffusion_model()
    reply = lm.generate(PROMPT, "masked-diffusion(rule=entropy, steps=24)")
    counts, left = [], 12
    for step in range(24):
        counts.append(left if step == 23 else int(left * share(step, 24, 1e-3)))
        left -= counts[-1]
    assert 0 in counts[:12]
    assert [reply.stats.step_of.count(step) for step in range(24)] == counts
    assert reply.stats.forwards == sum(count > 0 for count in counts)


def test_the_share_of_a_step_is_that_of_the_grid():
    times = torch.linspace(1, 1e-3, 11, dtype=torch.float64)
    for step in range(10):
        assert share(step, 10, 1e-3) == pytest.approx(float(1 - times[step + 1] / times[step]))


def test_origin_frees_each_position_by_itself():
    """Enumerated: the first of two steps frees each position with the probability of the grid."""
    rule, laws = TimeGrid("origin"), _laws([0.5] * 4)
    freed = share(0, 2, 1e-3)
    counts = [0] * 5
    for seed in range(2000):
        laws.chance = Noise(seed)
        counts[len(rule.choose(laws, _step(4, planned=2)).offsets)] += 1
    expected = {k: math.comb(4, k) * freed**k * (1 - freed) ** (4 - k) for k in range(5)}
    assert (
        goodness_of_fit({(k,): count for k, count in enumerate(counts)}, {(k,): p for k, p in expected.items()}).p_value
        > 0.01
    )


def test_alg_temp_draws_positions_and_vanishes_towards_the_ranks():
    laws = _laws([0.9, 0.3, 0.6, 0.5])
    sharp = TimeGrid("topk_margin", alg_temp=1e-3)
    assert sharp.choose(laws, _step(4, planned=4, in_block=1)) == TimeGrid("topk_margin").choose(
        laws, _step(4, planned=4, in_block=1)
    )
    seen = set()
    for number in range(60):
        commit = TimeGrid("topk_margin", alg_temp=1.0).choose(laws, _step(4, planned=4, in_block=1, number=number))
        seen.add(commit.offsets)
    assert seen == {(0,), (1,), (2,), (3,)}


def test_ancestral_steps_that_free_nothing_cost_no_forward():
    lm = toy_diffusion_model()
    reply = lm.generate(PROMPT, "masked-diffusion(rule=ancestral, steps=60)", temperature=1.0, seed=5)
    used = set(reply.stats.step_of)
    assert -1 not in used
    assert reply.stats.forwards == len(used) < 60


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_position_is_filled_once_and_the_prompt_stays(rule, temperature):
    lm = toy_diffusion_model()
    fed = []
    with watched(lm.network, lambda forward: fed.append(list(forward.tokens)[: len(PROMPT)])):
        reply = lm.generate(PROMPT, f"masked-diffusion(rule={rule}, block_length=6)", temperature=temperature, seed=2)
    offsets = [offset for event in reply.events if isinstance(event, Unmasked) for offset in event.offsets]
    assert sorted(offsets) == list(range(12))
    assert all(prompt == PROMPT for prompt in fed)
    assert 23 not in reply.token_ids  # the mask
    assert reply.finish_reason == "length"


def test_filling_twice_or_with_the_mask_is_an_error():
    lm = toy_diffusion_model()
    request, method = new_request(lm, "masked-diffusion", PROMPT, Settings(seed=0))
    canvas = Denoising(request, method.plan(request)).canvas
    canvas.fill([1], [4], 0)
    with pytest.raises(ValueError, match="not masked"):
        canvas.fill([1], [4], 1)
    with pytest.raises(ValueError, match="reserved"):
        canvas.fill([2], [23], 1)


# Caches


class Compared(Denoising):
    """Beside each forward one over everything, with a fresh cache: how far off the cached one is."""

    def score(self, start, end, offsets=None):
        laws = yield from super().score(start, end, offsets)
        fresh = Forward(
            self.request.new_sequence(),
            list(self.canvas.tokens),
            attend=Attend.FULL,
            slots=range(len(self.canvas.tokens)),
        )
        scores = yield fresh
        rows = scores.logits[[self.canvas.prompt + offset - self.model.shift for offset in laws.offsets]]
        rows[:, list(self.model.reserved)] = -float("inf")
        off = (laws.scores - rows)[:, :-1].abs().max()
        self.drift.append((end is None, float(off)))
        return laws


def _drift(layers, cache, shift=False, shift_row="carry"):
    lm = toy_diffusion_model(layers=layers, shift=shift)
    request, method = new_request(lm, "masked-diffusion(block_length=4)", PROMPT, Settings(seed=0))
    plan = method.plan(request)
    run = Compared(request, Plan(plan.rule, 12, 12, plan.blocks, cache, shift_row=shift_row))
    run.drift = []

    class Ours(type(method)):
        def decode(self, request):
            yield from run.run()

    finished(request, Ours())
    assert len(run.drift) == 12
    return run.drift


@pytest.mark.parametrize("cache", [BlockPrefixCache, DualCache])
def test_caches_are_exact_with_one_layer_and_stale_with_two(cache):
    assert all(off < 1e-4 for _, off in _drift(1, cache()))
    two = _drift(2, cache())
    assert all(off < 1e-4 for opening, off in two if opening)
    assert max(off for opening, off in two if not opening) > 0.01


@pytest.mark.parametrize("cache", [BlockPrefixCache, DualCache])
def test_the_row_before_a_block_of_a_shifted_model(cache):
    """Computed, it is exact with one layer; carried over, it is as stale as the opening forward."""
    assert all(off < 1e-4 for _, off in _drift(1, cache(), shift=True, shift_row="compute"))
    carried = _drift(1, cache(), shift=True)
    assert all(off < 1e-4 for opening, off in carried if opening)


@pytest.mark.parametrize("rule", ["low_confidence", "threshold"])
def test_token_forwards_of_the_caches(rule):
    lm = toy_diffusion_model()
    for cache, each in (("none", 17), ("dual", 4)):
        stats = lm.generate(
            PROMPT, acting(f"masked-diffusion(rule={rule}, threshold=0.4, block_length=4, cache={cache})")
        ).stats
        assert stats.rows == 17 * 3 + each * (stats.forwards - 3)
    stats = lm.generate(PROMPT, "masked-diffusion(block_length=4, cache=prefix)").stats
    assert stats.rows == sum(17 + 3 * (17 - 5 - start) for start in (0, 4, 8))


# The shift


def test_a_shifted_model_s_first_position_is_read_off_the_prompt_s_last_row():
    lm = toy_diffusion_model(shift=True)
    tokens = [*PROMPT, *[23] * 12]
    [scores] = lm.network.run([Forward(lm.network.new_sequence(), tokens, attend=Attend.FULL)])
    raw = scores.logits[:, :23]
    reply = lm.generate(PROMPT, "masked-diffusion(block_length=1)")
    assert reply.token_ids[0] == int(raw[len(PROMPT) - 1].argmax())
    plain = toy_diffusion_model(shift=False).generate(PROMPT, "masked-diffusion(block_length=1)")
    assert plain.token_ids[0] == int(raw[len(PROMPT)].argmax()) != reply.token_ids[0]


# Guidance, ends, settings


def test_guidance_counts_double_and_mixes_two_forwards():
    lm = toy_diffusion_model()
    reply = lm.generate(PROMPT, "masked-diffusion(block_length=1, cfg_scale=1.5)")
    assert (reply.stats.forwards, reply.stats.rows) == (24, 24 * 17)
    rows = []
    for prompt in (PROMPT, [23] * len(PROMPT)):
        [scores] = lm.network.run([Forward(lm.network.new_sequence(), [*prompt, *[23] * 12], attend=Attend.FULL)])
        rows.append(scores.logits[len(PROMPT), :23])
    assert reply.token_ids[0] == int((rows[1] + 2.5 * (rows[0] - rows[1])).argmax())


def _with_end(length=8, end=2, at=2):
    """A denoiser whose text ends early, and which fills the end first."""
    confidences = [0.6 + 0.02 * place for place in range(length)]
    tokens = [0] * length
    tokens[at], confidences[at] = end, 0.99
    return denoising_language_model(
        ScriptedDenoiser(length, 4, lambda canvas: confident(length, 4, confidences, tokens)), stop_ids=(end,)
    )


def test_the_end_stops_at_a_complete_block():
    lm = _with_end()
    replies = {
        stop: lm.generate([0], f"masked-diffusion(block_length=4, early_stop={stop})")
        for stop in ("never", "block", "prefix")
    }
    assert {tuple(reply.token_ids) for reply in replies.values()} == {(0, 0, 2)}
    assert {reply.finish_reason for reply in replies.values()} == {"stop"}
    assert replies["never"].stats.forwards == 8
    assert replies["block"].stats.forwards == 4
    # The surest position of the block is its last one but the end; the text before the end is complete after the fourth.
    assert replies["prefix"].stats.forwards <= 4
    assert replies["block"].stats.step_of[:4] == replies["never"].stats.step_of[:4]
    ignored = lm.generate([0], "masked-diffusion(block_length=4)", ignore_eos=True)
    assert len(ignored.token_ids) == 8


def test_end_tokens_may_come_last_or_never():
    lm = _with_end()
    free = lm.generate([0], "masked-diffusion(block_length=8)", ignore_eos=True)
    last = lm.generate([0], "masked-diffusion(block_length=8, end_tokens=last)", ignore_eos=True)
    assert free.stats.step_of[2] == 0
    assert last.stats.step_of[2] == 7
    assert 2 not in lm.generate([0], "masked-diffusion(end_tokens=banned)").token_ids


def test_min_new_tokens_moves_the_end():
    assert 2 not in _with_end().generate([0], "masked-diffusion", min_new_tokens=4).token_ids[:4]


def test_settings_of_the_law_hold_at_every_position():
    lm = toy_diffusion_model()
    greedy = lm.generate(PROMPT, "masked-diffusion(value_independent=True, block_length=1)")
    for law in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        sampled = lm.generate(
            PROMPT, "masked-diffusion(value_independent=True, block_length=1)", temperature=1.0, seed=4, **law
        )
        assert sampled.token_ids == greedy.token_ids
    biased = lm.generate(PROMPT, logit_bias={7: 100.0})
    assert set(biased.token_ids) == {7}


def test_a_result_does_not_depend_on_its_neighbours():
    lm = toy_diffusion_model()
    prompts = [PROMPT, [2, 7], [9, 9, 9, 1]]
    for rule in ("low_confidence", "random", "origin", "maskgit_plus"):
        spec = f"masked-diffusion(rule={rule}, block_length=6)"
        together = lm.generate(prompts, spec, temperature=1.0, seed=[1, 2, 3])
        alone = [lm.generate(p, spec, temperature=1.0, seed=s) for p, s in zip(prompts, (1, 2, 3), strict=True)]
        assert [_canvas(reply) for reply in together] == [_canvas(reply) for reply in alone]


def test_log_probabilities_are_those_of_the_forward_that_filled_the_position():
    lm = toy_diffusion_model()
    reply = lm.generate(PROMPT, "masked-diffusion(block_length=1)", logprobs=1)
    for place, (token, told) in enumerate(zip(reply.token_ids, reply.logprobs, strict=True)):
        tokens = [*PROMPT, *reply.token_ids[:place], *[23] * (12 - place)]
        [scores] = lm.network.run([Forward(lm.network.new_sequence(), tokens, attend=Attend.FULL)])
        row = scores.logits[len(PROMPT) + place, :23].log_softmax(-1)
        assert told.raw == pytest.approx(float(row[token]), abs=1e-4)
        assert told.top[0][0] == int(row.argmax())


def test_steps_that_do_not_divide_and_canvases_that_do_not_fit_are_refused():
    lm = toy_diffusion_model()
    with pytest.raises(BadParameter, match="do not divide"):
        lm.generate(PROMPT, "masked-diffusion(block_length=4, steps=7)")
    with pytest.raises(BadPrompt, match="canvas 600"):
        lm.generate(PROMPT, "masked-diffusion(gen_length=600)")
    with pytest.raises(Refused, match="left to right"):
        lm.generate(PROMPT, repetition_penalty=1.2)


def test_stop_strings_and_max_new_tokens_cut_the_text():
    lm = toy_diffusion_model()
    whole = lm.generate(PROMPT)
    cut = lm.generate(PROMPT, "masked-diffusion(gen_length=12)", max_new_tokens=5)
    assert cut.token_ids == whole.token_ids[:5]
    assert cut.finish_reason == "length"
    stopped = lm.generate(PROMPT, stop=[whole.text[3:5]])
    assert whole.text.startswith(stopped.text)
    assert len(stopped.text) <= 3
    assert stopped.finish_reason == "stop"


def test_events_tell_the_filling_before_the_text():
    lm = toy_diffusion_model()
    events = list(lm.stream(PROMPT, "masked-diffusion(block_length=4)"))
    first_token = next(place for place, event in enumerate(events) if isinstance(event, Token))
    assert sum(isinstance(event, Unmasked) for event in events[:first_token]) == 4
    text = "".join(event.text for event in events if isinstance(event, Token))
    assert text == lm.generate(PROMPT, "masked-diffusion(block_length=4)").text


def test_value_dependent_tokens_are_drawn_anew_each_step_and_others_once():
    """A fixed table of noise: where the choice does not look at the token, the token of a position does not depend on when
    it is drawn."""
    lm = denoising_language_model(ScriptedDenoiser(4, 6, lambda canvas: torch.zeros(4, 6)))
    tables = {
        tuple(lm.generate([0], f"masked-diffusion({spec})", temperature=1.0, seed=9).token_ids)
        for spec in ("value_independent=True", "rule=random", "rule=entropy", "rule=threshold, value_independent=True")
    }
    assert len(tables) == 1


def test_a_rule_that_fills_nothing_is_told_apart_from_one_that_waits():
    class Idle(Quota):
        def choose(self, laws, step):
            from decodery.diffusion.unmasking.base import Commit

            return Commit()

    lm = toy_diffusion_model()
    request, method = new_request(lm, "masked-diffusion", PROMPT, Settings(seed=0))

    class Ours(type(method)):
        def unmasking(self, request):
            return Idle()

    with pytest.raises(RuntimeError, match="fills nothing"):
        finished(request, Ours())


def test_all_combinations_run():
    lm = toy_diffusion_model(shift=True)
    for rule, cache, cfg, stop in itertools.product(RULES, ("none", "dual"), (0.0, 1.0), ("block", "prefix")):
        spec = f"masked-diffusion(rule={rule}, cache={cache}, cfg_scale={cfg}, early_stop={stop}, block_length=6)"
        assert as_method(as_method(spec).spec()) == as_method(spec)
        assert len(lm.generate(PROMPT, spec, temperature=0.8, top_k=5, seed=1).token_ids) == 12


def test_each_rank_puts_another_position_first():
    """Of three laws one has the highest probability, one the widest margin, one the least entropy; rules rank by the name
    they are given, on the model's own law or, Dream's, on the processed one."""
    table = torch.tensor([[0.62, 0.19, 0.19, 1e-9], [0.52, 0.48, 1e-9, 1e-9], [0.6, 0.4 / 3, 0.4 / 3, 0.4 / 3]]).log()
    lm = denoising_language_model(ScriptedDenoiser(3, 4, lambda canvas: table))
    own = {"max_probability": 0, "entropy": 1, "margin": 2}
    specs = {f"masked-diffusion(value_independent=True, rank={rank})": first for rank, first in own.items()}
    specs["masked-diffusion(value_independent=True)"] = own["entropy"]
    specs["masked-diffusion"] = own["max_probability"]
    specs |= {f"masked-diffusion(rule={rule})": own[rank] for rule, rank in DREAM_RANKS.items()}
    specs |= {
        f"hex(block_length=3, seeds=1, temperature=0, order={order})": own[rank] for order, rank in HEX_RANKS.items()
    }
    for spec, first in specs.items():
        steps = lm.generate([0], spec).stats.step_of
        assert [offset for offset, step in enumerate(steps) if step == min(steps)] == [first], spec
