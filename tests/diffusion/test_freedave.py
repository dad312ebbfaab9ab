"""FreeDave: every state is one of the static decoder's, and most of their forwards are made together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from canvas_outcomes import acting

import decodery
from decodery.diffusion.blocks import FixedBlocks
from decodery.diffusion.caches import BlockPrefixCache
from decodery.diffusion.drafting import Drafting
from decodery.diffusion.freedave import FreeDave
from decodery.diffusion.masked_diffusion import RULES
from decodery.diffusion.state import Plan
from decodery.diffusion.unmasking.llada import Quota
from decodery.engine.events import Unmasked
from decodery.engine.registry import method as as_method
from decodery.engine.settings import Settings
from decodery.errors import BadParameter
from decodery.evaluation import diffusion_check
from decodery.evaluation.check import check_method
from decodery.evaluation.parallelbench.tasks import make_samples
from decodery.language_model import LanguageModel
from decodery.models.forward import Slots
from decodery.replies import Reply
from decodery.testing import (
    ScriptedDenoiser,
    TabularDenoiser,
    confident,
    denoising_language_model,
    exact_outputs,
    total_variation,
    toy_diffusion_model,
    watched,
)
from decodery.testing.outputs import finished, new_request

PROMPTS = [[1, 2, 3], [7, 4, 4, 9], [11]]
CACHES = ("none", "prefix", "dual")


def _steps(reply):
    """What is filled, in order: all that a decoder decides."""
    assert reply.error is None
    steps = [(event.step, event.offsets, event.tokens) for event in reply.events if isinstance(event, Unmasked)]
    return steps, reply.token_ids, reply.finish_reason, reply.stats.step_of


_hosts: list[LanguageModel] = []
_known: dict[tuple[str, ...], list[Reply]] = {}


def _both(lm, spec, settings=None, prompts=PROMPTS):
    """Replies of a drafting method and of its static decoder. The latter's are kept: they do not depend on how one drafts."""
    method = as_method(spec)
    settings = {"ignore_eos": True, **(settings or {})}
    replies = []
    for given in (method, method.static()):
        key = (str(id(lm)), given.spec(), str(settings), str(prompts))
        if given is method or key not in _known:
            _hosts.append(lm)  # so that no other one gets its id
            _known[key] = [lm.generate(prompt, given, seed=3, **settings) for prompt in prompts]
        replies.append(_known[key])
    return replies


def _same(lm, spec, settings=None, prompts=PROMPTS):
    """Total forwards of both, after they were found identical."""
    drafted, static = _both(lm, spec, settings, prompts)
    for one, other in zip(drafted, static, strict=True):
        assert _steps(one) == _steps(other), spec
        assert one.stats.forwards <= other.stats.forwards, spec
    return sum(reply.stats.forwards for reply in drafted), sum(reply.stats.forwards for reply in static)


# Identity


@pytest.mark.parametrize("tokens_per_step", [1, 2])
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("shift", [False, True])
def test_the_canvas_and_the_order_of_commits_are_the_static_decoder_s(shift, cache, tokens_per_step):
    lm = toy_diffusion_model(seed=8, canvas=14, shift=shift)
    base = f"block_length=8, cache={cache}, tokens_per_step={tokens_per_step}"
    saved = 0
    for draft_steps in (1, 2, 4, 8):
        for layout in ("batch", "tree"):
            forwards, static = _same(lm, f"freedave({base}, draft_steps={draft_steps}, layout={layout})")
            saved += static - forwards
            if draft_steps == 1:
                assert forwards == static
    assert saved > 0


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_the_row_before_a_block_of_a_shifted_model_may_be_computed(cache):
    lm = toy_diffusion_model(seed=5, canvas=12, shift=True)
    replies = {}
    for layout in ("batch", "tree"):
        for shift_row in ("carry", "compute"):
            spec = acting(f"freedave(block_length=4, cache={cache}, layout={layout}, shift_row={shift_row})")
            _same(lm, spec)
            replies[shift_row] = [reply.token_ids for reply in _both(lm, spec)[0]]
    assert replies["carry"] != replies["compute"], "the setting does something"


def test_drafts_may_be_forwarded_one_by_one():
    _same_but_single(toy_diffusion_model(seed=5, canvas=12, shift=True), "block_length=6, cache=dual, layout=single")


def _same_but_single(lm, parameters, settings=None):
    drafted, static = _both(lm, f"freedave({parameters})", settings)
    assert [_steps(reply) for reply in drafted] == [_steps(reply) for reply in static]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_any_rule_of_the_static_decoder_may_be_drafted(rule, temperature):
    """Also at a temperature: the noise of a draw is that of its address."""
    lm = toy_diffusion_model(seed=4, canvas=10)
    forwards, static = _same(lm, acting(f"freedave(rule={rule}, steps=5)"), {"temperature": temperature}, PROMPTS[:2])
    assert forwards <= static


@pytest.mark.parametrize("layout", ["batch", "tree"])
@pytest.mark.parametrize("rank", ["entropy", "margin", "max_probability"])
def test_a_fixed_table_of_noise_gives_the_static_decoder_s_draws(rank, layout):
    lm = toy_diffusion_model(seed=6, canvas=12)
    spec = f"freedave(value_independent=True, rank={rank}, layout={layout})"
    total = [0, 0]
    for temperature, top_p in ((1.0, 1.0), (0.5, 0.8)):
        counts = _same(lm, spec, {"temperature": temperature, "top_p": top_p})
        total = [a + b for a, b in zip(total, counts, strict=True)]
    assert total[0] < total[1]
    greedy, sampled = (_both(lm, spec, {"temperature": t})[0] for t in (0.0, 1.0))
    assert [reply.token_ids for reply in greedy] != [reply.token_ids for reply in sampled]


def test_one_token_per_step_is_exact_sampling():
    oracle = TabularDenoiser.random(seed=1)
    settings = Settings(temperature=1.0, max_new_tokens=64, seed=0)
    law = exact_outputs(denoising_language_model(oracle), "freedave(value_independent=True)", [0, 1], settings)
    assert total_variation(law, oracle.law()) < 1e-6


def test_a_rule_that_draws_positions_is_drafted_without_asking_for_its_draws():
    """Chance that may be asked only once is left to the decoder; so the drafts are guesses, and the law is the same."""
    lm = denoising_language_model(TabularDenoiser.random(length=3, vocabulary=2, seed=1))
    settings = Settings(temperature=1.0, max_new_tokens=3, seed=0)
    for rule in ("random", "origin"):
        laws = [
            exact_outputs(lm, f"{method}(rule={rule})", [0, 1], settings) for method in ("freedave", "masked-diffusion")
        ]
        assert total_variation(*laws) < 1e-6


def test_guidance_is_drafted_with_both_canvases():
    lm = toy_diffusion_model(seed=7, canvas=10)
    for layout in ("batch", "tree"):
        for cache in ("none", "dual"):
            _same(lm, f"freedave(cfg_scale=1.0, block_length=5, layout={layout}, cache={cache})", prompts=PROMPTS[:2])


@pytest.mark.parametrize("early_stop", ["block", "prefix", "never"])
@pytest.mark.parametrize("eager", [False, True])
def test_it_stops_where_the_static_decoder_stops(early_stop, eager):
    """Stop rules see the states that the static decoder visits, and no others."""
    lm = toy_diffusion_model(seed=8, canvas=16, stop_ids=(5, 9, 2, 17))
    spec = f"freedave(block_length=4, early_stop={early_stop}, eager={eager})"
    prompts = [[token] for token in range(6)]
    forwards, static = _same(lm, spec, {"ignore_eos": False}, prompts)
    assert forwards < static
    reasons = {reply.finish_reason for reply in _both(lm, spec, {"ignore_eos": False}, prompts)[0]}
    assert "stop" in reasons
    _same(lm, spec, {"ignore_eos": False, "min_new_tokens": 6, "top_p": 0.9, "temperature": 0.7}, prompts[:4])
    _same(lm, spec, {"max_new_tokens": 7}, prompts[:2])


def test_log_probabilities_are_those_of_the_static_decoder():
    lm = toy_diffusion_model(seed=9, canvas=10)
    drafted, static = _both(lm, "freedave(block_length=5)", {"logprobs": 2, "temperature": 1.0})
    for one, other in zip(drafted, static, strict=True):
        for a, b in zip(one.logprobs, other.logprobs, strict=True):
            assert a.raw == pytest.approx(b.raw, abs=1e-4)
            assert a.processed == pytest.approx(b.processed, abs=1e-4)


def test_a_request_does_not_depend_on_its_neighbours():
    lm = toy_diffusion_model(seed=10, canvas=12)
    for layout in ("batch", "tree"):
        method = f"freedave(block_length=6, cache=dual, layout={layout})"
        together = lm.generate(PROMPTS, method, seed=[1, 2, 3], temperature=1.0)
        for prompt, seed, reply in zip(PROMPTS, (1, 2, 3), together, strict=True):
            assert _steps(lm.generate(prompt, method, seed=seed, temperature=1.0)) == _steps(reply)


def test_equal_confidences_fall_alike_in_draft_and_target():
    """Saturated laws are all ties; the lowest offset comes first in both."""
    lm = denoising_language_model(ScriptedDenoiser(8, 4, lambda canvas: confident(8, 4, [1.0 - 1e-12] * 8)))
    [reply], [static] = _both(lm, "freedave", prompts=[[0]])
    assert reply.stats.step_of == list(range(8))
    assert _steps(reply) == _steps(static)
    assert reply.stats.forwards == 3


# Counts


def _independent(length):
    """Neither tokens nor their order depend on the canvas."""
    shares = [0.5 + 0.4 * (place * 7 % length) / length for place in range(length)]
    return denoising_language_model(
        ScriptedDenoiser(length, 4, lambda canvas: confident(length, 4, shares, [place % 4 for place in range(length)]))
    )


def _changing(length):
    """After each token the likeliest position is at the other end of the canvas, so no guess beyond the next is right."""

    def script(canvas):
        filled = sum(token >= 0 for token in canvas)
        ascending = [0.9 - 0.05 * place for place in range(length)]
        return confident(length, 4, ascending if filled % 2 == 0 else ascending[::-1])

    return denoising_language_model(ScriptedDenoiser(length, 4, script))


def _formula(masks, draft_steps):
    free = masks % draft_steps == 1 or draft_steps == 1
    return 1 + -(-masks // draft_steps) - free


@pytest.mark.parametrize("layout", ["batch", "tree"])
def test_forwards_where_the_order_depends_on_nothing(layout):
    lm, prompt = _independent(9), [0, 1]
    found = []
    for draft_steps in (1, 2, 3, 4, 8):
        [reply], [static] = _both(lm, f"freedave(draft_steps={draft_steps}, layout={layout})", prompts=[prompt])
        assert _steps(reply) == _steps(static)
        found.append(reply.stats.forwards)
        assert reply.stats.rounds == reply.stats.forwards
        # Every state but the complete one is forwarded once: as many rows as the static decoder computes.
        assert reply.stats.rows == static.stats.rows == 9 * 11
    assert found == [9, 5, 4, 3, 2]
    for masks in range(1, 9):
        for draft_steps in range(1, 9):
            [reply], _ = _both(_independent(masks), f"freedave(draft_steps={draft_steps})", prompts=[prompt])
            assert reply.stats.forwards == _formula(masks, draft_steps)


def test_forwards_where_every_guess_is_wrong():
    lm = _changing(9)
    for draft_steps in (1, 2, 4, 8):
        [reply], [static] = _both(lm, f"freedave(draft_steps={draft_steps})", prompts=[[0, 1]])
        assert _steps(reply) == _steps(static)
        assert reply.stats.forwards == 9
        assert reply.stats.accepted == 0


@pytest.mark.parametrize("cache", CACHES)
def test_blocks_and_caches_are_counted(cache):
    """Three blocks of 6: each is opened by one forward of everything, and two rounds of 4 and 1 states follow."""
    [reply], [static] = _both(_independent(18), f"freedave(block_length=6, cache={cache})", prompts=[[0, 1]])
    assert _steps(reply) == _steps(static)
    assert (reply.stats.forwards, static.stats.forwards) == (9, 18)
    rows = {"none": [20, 20, 20], "prefix": [18, 12, 6], "dual": [6, 6, 6]}[cache]
    assert reply.stats.rows == static.stats.rows == 3 * 20 + 5 * sum(rows)
    assert reply.stats.accepted == 3 * 3
    assert reply.stats.bonus == 3 * 3


def test_one_by_one_counts_every_forward():
    [reply], [static] = _both(_independent(9), "freedave(layout=single)", prompts=[[0, 1]])
    assert _steps(reply) == _steps(static)
    assert reply.stats.forwards == 9


def test_guidance_counts_double():
    for layout in ("batch", "tree"):
        [reply], [static] = _both(_independent(9), f"freedave(cfg_scale=0.5, layout={layout})", prompts=[[0, 1]])
        assert (reply.stats.forwards, static.stats.forwards) == (6, 18)
        assert reply.stats.rows == static.stats.rows


def test_on_a_trained_like_model_it_saves_forwards():
    """The toy networks are not sure of much; still many a guess is right."""
    lm = toy_diffusion_model(seed=3, canvas=24)
    forwards, static = _same(lm, "freedave(cache=dual)")
    assert forwards < 0.8 * static


# Layouts


class _BothLayouts(Drafting):
    """Asks in both layouts, and remembers how far the answers are apart, as a share of the highest score."""

    apart: list[float] = []  # noqa: RUF012

    def round(self, laws):
        answers, state = [], self.state
        canvases = [self.canvas, *(draft.state.canvas for draft in self.guess(laws))]
        for self.layout in ("tree", "batch"):
            copies = self._copies_for(len(canvases))
            asks = [self.ask(state.start, state.end, None, *pair) for pair in zip(canvases, copies, strict=True)]
            answers.append((yield from (self._side_by_side if self.layout == "tree" else self._as_batch)(asks)))
        for one, other in zip(*answers, strict=True):
            assert len(one) == len(other) == (2 if self.plan.cfg_scale else 1)
            for a, b in zip(one, other, strict=True):
                if a.logits.numel():
                    self.apart.append(float((a.logits - b.logits).abs().max() / b.logits.abs().max()))
        return (yield from super().round(laws))


@dataclass(frozen=True)
class _InBothLayouts(FreeDave):
    name = "both-layouts"
    drafting = _BothLayouts


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("cfg_scale", [0.0, 1.0])
@pytest.mark.parametrize("shift", [False, True])
def test_a_copy_in_the_tree_sees_what_a_row_of_the_batch_sees(cache, cfg_scale, shift):
    _BothLayouts.apart.clear()
    lm = toy_diffusion_model(seed=11, canvas=12, shift=shift)
    method = _InBothLayouts(cache=cache, cfg_scale=cfg_scale, block_length=6)
    for prompt in PROMPTS:
        assert lm.generate(prompt, method).error is None
    assert len(_BothLayouts.apart) > 20
    assert max(_BothLayouts.apart) < 1e-5


@pytest.mark.parametrize("cfg_scale", [0.0, 1.0])
def test_memory_is_set_aside_for_all_states_that_are_forwarded_together(cfg_scale):
    """In a tree the rows of all states stand behind those of the cache; in a batch each state has a cache of its own."""
    lm, rows, sides = toy_diffusion_model(canvas=12), len(PROMPTS[0]) + 12, 2 if cfg_scale else 1
    for layout, expected in (("tree", [(lm.network, 4 * rows)]), ("batch", [(lm.network, rows)] * 3)):
        spec = f"freedave(layout={layout}, draft_steps=3, cfg_scale={cfg_scale})"
        request, method = new_request(lm, spec, PROMPTS[0], Settings(seed=0))
        assert sorted(rows for _, rows in method.caches(request)) == sorted(rows for _, rows in expected * sides)
        seen = []
        with watched(lm.network, seen.append):
            lm.generate(PROMPTS[0], spec)
        assert len({id(forward.sequence) for forward in seen}) == (3 if layout == "batch" else 1) * sides
        used = [forward.count + (rows if layout == "tree" else 0) for forward in seen]
        assert max(used[sides:]) == expected[0][1]


def test_copies_of_the_cache_up_to_64_positions_and_a_tree_beyond():
    lm = toy_diffusion_model(canvas=12)
    for length, caches in ((64, 4), (65, 1)):
        request, method = new_request(lm, f"freedave(gen_length={length})", PROMPTS[0], Settings(seed=0))
        assert len(method.caches(request)) == caches


def test_a_tree_leaves_the_cache_as_it_was_and_a_batch_writes_its_own_copies():
    lm = toy_diffusion_model(seed=12, canvas=12)
    forwards = {}
    for layout in ("batch", "tree"):
        seen = forwards.setdefault(layout, [])
        with watched(lm.network, seen.append):
            assert lm.generate([1, 2], f"freedave(block_length=6, cache=dual, layout={layout})").error is None
    drafts = [forward for forward in forwards["tree"] if forward.slots is Slots.NOWHERE]
    assert {forward.count % 6 for forward in drafts} == {0}
    assert all(forward.sequence is drafts[0].sequence for forward in forwards["tree"])
    assert len({id(forward.sequence) for forward in forwards["batch"]}) > 2


# Eager drafts


def test_eager_drafts_cross_blocks():
    lm = _independent(18)
    [reply], [static] = _both(lm, "freedave(block_length=6, eager=True)", prompts=[[0, 1]])
    assert _steps(reply) == _steps(static)
    # One chain over the whole canvas: what a single block of 18 would take.
    assert reply.stats.forwards == _formula(18, 4) == 6
    assert reply.stats.rows == static.stats.rows
    [longer], _ = _both(lm, "freedave(block_length=3, eager=True, draft_steps=16)", prompts=[[0, 1]])
    assert longer.stats.forwards == 3
    [pairs], [static] = _both(lm, "freedave(block_length=4, tokens_per_step=3, eager=True)", prompts=[[0, 1]])
    assert _steps(pairs) == _steps(static)
    assert pairs.stats.forwards == 1 + -(-9 // 4) - (9 % 4 == 1)
    for pairs in ("tokens_per_step=2", "steps=9"):  # blocks of one step: drafts reach over as many blocks as steps
        [reply], [static] = _both(lm, f"freedave(block_length=2, {pairs}, eager=True)", prompts=[[0, 1]])
        assert _steps(reply) == _steps(static)
        assert reply.stats.forwards == _formula(9, 4)


@pytest.mark.parametrize("shift", [False, True])
def test_eager_drafts_change_nothing_but_the_forwards(shift):
    lm = toy_diffusion_model(seed=13, canvas=12, shift=shift)
    for layout in ("batch", "tree"):
        for tokens_per_step in (1, 2):
            spec = f"freedave(block_length=3, tokens_per_step={tokens_per_step}, layout={layout}, eager="
            forwards, static = _same(lm, f"{spec}True)")
            assert forwards < _same(lm, f"{spec}False)")[0] <= static


def test_eager_drafts_are_refused_where_the_cache_is_refreshed():
    for cache in ("prefix", "dual"):
        with pytest.raises(BadParameter, match=f"cache={cache}"):
            as_method(f"freedave(eager=True, cache={cache})")
    # And rightly so: the next block's first forward would have other keys and values.
    lm = toy_diffusion_model(seed=14, canvas=12)
    plan = Plan(Quota(), 12, 12, FixedBlocks(4))
    answers = {}
    for eager in (False, True):
        request, _ = new_request(lm, "freedave", [1, 2], Settings(temperature=0.0, seed=0, max_new_tokens=12))
        answers[eager] = _run(request, Drafting(request, replace(plan, cache=BlockPrefixCache()), 4, "batch", eager))
    assert answers[False] != answers[True]


def _run(request, denoising):
    class _Method:
        together = False

        def caches(self, request):
            return []

        def decode(self, request):
            yield from denoising.run()

    finished(request, _Method())
    return request.new_tokens, request.statistics.step_of


# FreeDave++


def _in_pairs(length):
    """The surest position is above the threshold, and the next two are once it is filled."""

    def script(canvas):
        shares = [0.5] * length
        hidden = [place for place in range(length) if canvas[place] < 0]
        for rank, place in enumerate(hidden):
            shares[place] = 0.99 if rank < 3 else 0.6 - 0.01 * rank
        return confident(length, 4, shares)

    return denoising_language_model(ScriptedDenoiser(length, 4, script))


def test_the_drafts_around_a_threshold_are_its_set_and_then_one_more_each():
    lm = _in_pairs(10)
    request, method = new_request(lm, "freedave-plus-plus", [0], Settings(temperature=0.0, seed=0))
    drafting = Drafting(request, method.plan(request), 4, "batch", subset=True)
    filled = []
    original = drafting.round

    def spied(laws):
        canvases = [drafting.canvas, *(draft.state.canvas for draft in drafting.guess(laws))]
        filled.append([sum(step >= 0 for step in canvas.step_of) for canvas in canvases])
        return original(laws)

    drafting.round = spied
    _run(request, drafting)
    assert filled[0] == [3, 4, 5, 6]


def test_a_draft_within_the_target_is_jumped_to():
    """The threshold rule fills 3, 3, 3, 1. The draft with 3 more lies within its second step and its laws are known, so one
    forward is saved; the exact rule finds no draft that fills 3 at once."""
    lm = _in_pairs(10)
    plain = lm.generate([0], "masked-diffusion(rule=threshold, threshold=0.95)")
    merged = lm.generate([0], "freedave-plus-plus")
    exact = lm.generate([0], "freedave(rule=threshold, threshold=0.95)")
    assert [plain.stats.step_of.count(step) for step in range(4)] == [3, 3, 3, 1]
    assert _steps(exact) == _steps(plain)
    assert (plain.stats.forwards, exact.stats.forwards, merged.stats.forwards) == (4, 4, 3)
    assert merged.token_ids == plain.token_ids


def test_plus_plus_takes_fewer_forwards_than_its_rule():
    total = [0, 0]
    for seed in range(3):
        lm = toy_diffusion_model(seed=seed, canvas=16)
        for spec in ("rule=threshold, threshold=0.6", "rule=factor, factor=2.0"):
            for prompt in PROMPTS:
                for place, name in enumerate(("freedave-plus-plus", "masked-diffusion")):
                    reply = lm.generate(prompt, f"{name}({spec}, block_length=8)")
                    assert sorted(reply.stats.step_of)[0] == 0
                    total[place] += reply.stats.forwards
    assert total[0] < total[1]


def test_plus_plus_drafts_around_threshold_rules_only():
    with pytest.raises(BadParameter, match="threshold, factor"):
        as_method("freedave-plus-plus(rule=entropy)")
    with pytest.raises(BadParameter, match="tokens_per_step"):
        as_method("freedave(rule=threshold, tokens_per_step=2)")


# The promise, and faults that break it


class _AgainstItself(Drafting):
    """Verifies a draft against the forward that it was made from, which of course agrees."""

    def accepted(self, commit, drafts):
        return 1 if drafts else 0


class _LastUnverified(Drafting):
    """Accepts the last draft if it follows from the one before, whether or not that one was verified."""

    def round(self, laws):
        mine = yield from super().round(laws)
        self.right = False
        if len(self.known) > 1:
            before, its_laws = self.known[-2]
            state = before.state.copy()
            last = self.known[-1][0]
            self.right = state.advance(its_laws) == last.commit and state.number == last.state.number
        return mine

    def accepted(self, commit, drafts):
        hits = super().accepted(commit, drafts)
        return hits or (len(drafts) if drafts and self.right else 0)


class _TokensAlone(Drafting):
    """Compares tokens at the positions that a draft reveals, and not which positions the target would reveal."""

    def choose(self, laws):
        self.at_hand = laws
        return super().choose(laws)

    def accepted(self, commit, drafts):
        if not drafts:
            return 0
        likeliest = dict(zip(self.at_hand.offsets, self.at_hand.best.tolist(), strict=True))
        return int(all(likeliest[offset] == token for offset, token in drafts[0].commit.filled.items()))


class _ExtraForward(Drafting):
    """Drafts from a forward of its own in every round."""

    def round(self, laws):
        fresh = yield from self.score(self.state.start, self.state.end)
        del fresh
        return (yield from super().round(laws))


def _faulty(kind):
    @dataclass(frozen=True)
    class Faulty(FreeDave):
        name = f"fault{kind.__name__}"
        drafting = kind

    return Faulty


@pytest.mark.parametrize("fault", [_AgainstItself, _LastUnverified, _TokensAlone])
def test_a_planted_fault_gives_another_canvas(fault):
    lm = toy_diffusion_model(seed=3, canvas=12)
    faulty, static = _both(lm, _faulty(fault)())
    assert any(_steps(one) != _steps(other) for one, other in zip(faulty, static, strict=True))
    _same(lm, "freedave")


def test_check_refutes_a_planted_fault(monkeypatch):
    monkeypatch.setattr(diffusion_check, "ORACLES", ((2, 2, 0),))
    report = check_method(toy_diffusion_model(seed=3, canvas=8), _faulty(_AgainstItself)(), prompts=2)
    assert not report.passed
    assert any(part.passed is False for part in report.parts if part.name == "claim: the canvas of the static decoder")


def test_a_drafting_forward_of_its_own_shows_in_the_count():
    lm = _independent(9)
    for draft_steps in (1, 2, 4):
        reply = lm.generate([0, 1], _faulty(_ExtraForward)(draft_steps=draft_steps))
        assert reply.stats.forwards > 1.4 * _formula(9, draft_steps)
    reply = lm.generate([0, 1], _faulty(_ExtraForward)(draft_steps=1))
    assert reply.stats.forwards == 2 * 9 - 1


@pytest.mark.parametrize("spec", ["freedave(block_length=4)", "freedave-plus-plus(block_length=4)"])
def test_check_decides_it(spec, monkeypatch):
    monkeypatch.setattr(diffusion_check, "ORACLES", ((2, 2, 0),))  # of the sizes of its own it takes long
    report = check_method(toy_diffusion_model(seed=3, canvas=8), spec, prompts=2)
    assert report.passed
    claims = [part for part in report.parts if part.name.startswith("claim")]
    assert len(claims) == (1 if "plus" in spec else 10)
    assert all(part.passed for part in claims)


def test_in_other_dtypes_drafts_forwarded_one_by_one_are_still_the_static_decoder_s():
    """Rounding depends on how many rows share a product; alone, every forward has as many as the static decoder's."""
    lm = toy_diffusion_model(seed=15, canvas=12, dtype=torch.bfloat16)
    _same_but_single(lm, "cache=dual, block_length=6, layout=single")


# On the trained model

LISTS = Path(decodery.__file__).parent / "artifacts" / "diffusion-lists"
EASY = ("copy", "reverse", "sort")
"""Tasks whose answers may be guessed in parallel."""


@pytest.fixture(scope="module")
def lists():
    if not (LISTS / "config.json").is_file():
        pytest.skip("the model diffusion-lists is not part of this copy")
    return decodery.load("diffusion-lists", dtype="float32")


@pytest.mark.parametrize("task", EASY)
def test_on_the_lists_it_is_identical_and_fills_more_than_one_and_a_half_per_forward(lists, task):
    """Lists of six items on a canvas of 8, four draft steps: the reference point is 3.3 to 4.8 forwards instead of 8."""
    prompts = [lists.tokenize(sample.prompt) for sample in make_samples(task, 6, lengths=[6])]
    forwards, static = 0, 0
    for cache in CACHES:
        settings = {"temperature": 0.0, "max_new_tokens": 8, "ignore_eos": True}
        forwards, static = _same(lists, f"freedave(cache={cache}, early_stop=never)", settings, prompts)
        assert static == 8 * len(prompts)
        assert static / forwards > 1.5
