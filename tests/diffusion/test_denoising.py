"""What others build on: runs in step, canvases on trial, schedules that look ahead, rules that run a network."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from tiny_models import make_model

from decodery.diffusion.blocks import BlockSchedule
from decodery.diffusion.laws import highest
from decodery.diffusion.loop import Denoising
from decodery.diffusion.masked_diffusion import RULES, WITHOUT_BLOCKS, MaskedDiffusionDecoding
from decodery.diffusion.state import Plan
from decodery.diffusion.unmasking.base import Commit, Rule
from decodery.diffusion.unmasking.llada import Quota
from decodery.engine.asking import together
from decodery.engine.registry import method as as_method
from decodery.engine.settings import Settings
from decodery.errors import BadParameter, BadPrompt, BadSetting, Refused
from decodery.models.forward import Attend, Forward
from decodery.models.paths import network_for
from decodery.sampling.noise import Noise
from decodery.testing import toy_diffusion_model, watched
from decodery.testing.outputs import finished, new_request

PROMPT = [3, 1, 4]
SETTINGS = Settings(temperature=1.0, seed=0)


def _run(decode, lm=None, settings=SETTINGS):
    """A request decoded by a function of (request, plan)."""

    class Ours(MaskedDiffusionDecoding):
        def decode(self, request):
            yield from decode(request, self.plan(request))
            request.finish("length")  # where the function fills no whole canvas

    request, method = new_request(lm or toy_diffusion_model(), Ours(), PROMPT, settings)
    return finished(request, method)


def test_runs_in_step_equal_runs_alone_and_one_of_them_is_concluded():
    lm = toy_diffusion_model()
    canvases = {}

    def several(request, plan):
        runs = [Denoising(request, plan, Noise(seed), request.output.fork()) for seed in (5, 6, 7)]
        canvases["together"] = [(c.tokens, c.step_of) for c in (yield from together([run.run() for run in runs]))]
        request.conclude([(runs[1].output, 1.0)])

    request = _run(several, lm)
    alone = [lm.generate(PROMPT, temperature=1.0, seed=seed) for seed in (5, 6, 7)]
    assert canvases["together"] == [([*PROMPT, *reply.token_ids], reply.stats.step_of) for reply in alone]
    assert request.new_tokens == alone[1].token_ids
    assert request.statistics.step_of == alone[1].stats.step_of
    assert request.statistics.forwards == 36


@pytest.mark.parametrize("cache", ["none", "dual"])
def test_trials_in_forks_are_scored_as_the_canvas_itself_would_be(cache):
    """What a decoder that drafts its own next canvases needs: several trials in one step, each in a fork."""
    method = MaskedDiffusionDecoding(block_length=4, cache=cache)

    def decode(request, plan):
        run = Denoising(request, method.plan(request))
        opening = yield from run.next_block()
        trials = []
        for token in (4, 5):
            trial = run.canvas.copy()
            trial.fill([1], [token], 0)
            trials.append((trial, [sequence.fork() for sequence in run.sequences]))
        asks = [run.ask(0, 4, canvas=trial, sequences=forks) for trial, forks in trials]
        first, second = yield tuple(forward for ask in asks for forward in ask.forwards)
        laws = [asks[0].laws([first]), asks[1].laws([second])]
        run.fill(Commit((1,), (5,)), opening)
        own = yield from run.score(0, 4)
        assert own.offsets == laws[1].offsets == [0, 2, 3]
        torch.testing.assert_close(own.scores, laws[1].scores)
        assert (own.scores - laws[0].scores)[:, :-1].abs().max() > 1e-3
        yield from run.run(own)

    _run(decode)


@dataclass(frozen=True)
class UpToTheSurest(BlockSchedule):
    """A block ends at the surest position of the next five."""

    looks_ahead = True
    seen: list = field(default_factory=list)

    def end(self, canvas, start, laws):
        window = laws.within(start, start + 5)
        [place] = highest(window.rank("max_probability"), 1)
        self.seen.append((start, window.offsets[place] + 1))
        return window.offsets[place] + 1


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_a_schedule_may_look_at_the_opening_forward(cache):
    schedule = UpToTheSurest()

    def decode(request, plan):
        regime = MaskedDiffusionDecoding(cache=cache).regime(request)
        yield from Denoising(request, Plan(Quota(), 12, 12, schedule, regime)).run()

    request = _run(decode, settings=Settings(seed=0))
    ends = [0, *(end for _, end in schedule.seen)]
    assert [start for start, _ in schedule.seen] == ends[:-1]
    assert ends[-1] == 12
    assert request.statistics.forwards == 12  # none is spent between the choice of a block and its first commit
    steps = request.statistics.step_of
    for start, end in schedule.seen:
        assert sorted(steps[start:end]) == list(range(start, end))


class AsksAnother(Rule):
    """Fills the whole canvas at once, with the tokens of another forward of its own."""

    whole_canvas = True

    def __init__(self, request):
        self.request = request

    def choose(self, laws, step):
        sequence = self.request.new_sequence()
        scores = yield Forward(sequence, [1] * len(laws), attend=Attend.FULL)
        return Commit.at(laws, range(len(laws)), scores.logits[:, :-1].argmax(-1).tolist())


def test_a_rule_may_run_a_network_and_fill_beyond_its_block():
    def decode(request, plan):
        yield from Denoising(request, Plan(AsksAnother(request), 12, 12, plan.blocks)).run()

    request = _run(decode)
    assert request.statistics.step_of == [0] * 12
    assert request.statistics.forwards == 2


def test_canvases_on_the_native_path_if_it_is_asked_for():
    shape = {
        "hidden_size": 192, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 3,
        "num_key_value_heads": 1, "head_dim": 64, "vocab_size": 208,
    }  # fmt: skip
    model = make_model("llama", **shape).to(torch.bfloat16)
    tokens = [(7 * i) % 200 for i in range(40)]
    answers = {}
    for path in ("off", "fused", "native"):
        try:
            network = network_for(model, path, path)
        except BadSetting as reason:
            pytest.skip(str(reason))
        sequence = network.new_sequence()
        [whole] = network.run([Forward(sequence, tokens, attend=Attend.FULL, slots=range(40))])
        part = Forward(sequence, [9] * 8, attend=Attend.FULL, slots=range(16, 24))
        answers[path] = torch.cat([whole.logits, network.run([part])[0].logits])
    for path in ("fused", "native"):
        difference = (answers[path] - answers["off"]).square().mean().sqrt() / answers["off"].std()
        assert difference < 0.1, path
    assert network_for(model, "auto", "auto", bidirectional=True).path == "fused"


# What is refused, set aside and told


def test_a_canvas_that_just_fits_the_context_is_decoded():
    lm = toy_diffusion_model()
    room = lm.network.context - len(PROMPT)
    lm.network.context = len(PROMPT) + 12
    assert room > 12
    assert len(lm.generate(PROMPT, "masked-diffusion(gen_length=12)").token_ids) == 12
    with pytest.raises(BadPrompt, match="canvas 13, together 16"):
        lm.generate(PROMPT, "masked-diffusion(gen_length=13)")


def test_as_many_new_tokens_as_the_canvas_has_may_be_asked_for():
    lm = toy_diffusion_model()
    assert len(lm.generate(PROMPT, "masked-diffusion(gen_length=5)", min_new_tokens=5).token_ids) == 5
    with pytest.raises(BadSetting, match="canvas has only 5"):
        lm.generate(PROMPT, "masked-diffusion(gen_length=5)", min_new_tokens=6)


def test_an_echo_is_text_and_has_no_scores():
    lm = toy_diffusion_model()
    plain = lm.generate(PROMPT, "masked-diffusion")
    assert lm.generate(PROMPT, "masked-diffusion", echo=True).text.endswith(plain.text)
    assert len(lm.generate(PROMPT, "masked-diffusion", logprobs=1).logprobs) == 12
    with pytest.raises(Refused, match="echo and logprobs together"):
        lm.generate(PROMPT, "masked-diffusion", echo=True, logprobs=1)


def test_memory_is_set_aside_for_prompt_and_canvas_and_twice_with_guidance():
    for more, sides in (("", 1), (", cfg_scale=0.5", 2)):
        lm, seen = toy_diffusion_model(), []
        request, method = new_request(lm, f"masked-diffusion(gen_length=7{more})", PROMPT, SETTINGS)
        assert method.caches(request) == [(lm.network, len(PROMPT) + 7)] * sides
        with watched(lm.network, seen.append):
            finished(request, method)
        assert len({id(forward.sequence) for forward in seen}) == sides
        assert {forward.count for forward in seen} == {len(PROMPT) + 7}


@pytest.mark.parametrize("early_stop", ["prefix", "block", "never"])
def test_every_forward_is_a_round_and_positions_that_stay_masked_have_no_step(early_stop):
    lm = toy_diffusion_model()
    reply = lm.generate(PROMPT, f"masked-diffusion(block_length=4, early_stop={early_stop})")
    assert reply.stats.rounds == reply.stats.forwards == 12
    end = reply.token_ids[2]
    lm = toy_diffusion_model(stop_ids=(end,))
    ended = lm.generate(PROMPT, f"masked-diffusion(block_length=4, early_stop={early_stop})")
    assert ended.token_ids == reply.token_ids[: len(ended.token_ids)]
    assert ended.finish_reason == "stop"
    assert ended.stats.rounds == ended.stats.forwards == sum(step >= 0 for step in ended.stats.step_of)
    assert (-1 in ended.stats.step_of) == (early_stop != "never")
    assert set(ended.stats.step_of) - {-1} == set(range(ended.stats.forwards))


def test_rules_without_blocks_see_the_whole_canvas_unless_they_are_given_some():
    for rule in RULES:
        whole = rule in WITHOUT_BLOCKS
        assert MaskedDiffusionDecoding(rule=rule).block(100) == (100 if whole else 32)
        assert MaskedDiffusionDecoding(rule=rule).block(20) == 20
        assert MaskedDiffusionDecoding(rule=rule, block_length=16).block(100) == 16


@pytest.mark.parametrize("method", ["hex", "freedave", "guided-diffusion", "sched", "adablock", "autoregressive"])
def test_only_methods_of_a_rule_and_blocks_are_wrapped(method):
    """The others decode in a way of their own, of which the wrapping method would lose all but rule and blocks."""
    wrappable = method in ("sched", "adablock")
    for wrapping in ("adablock", "sched"):
        if wrappable:
            assert as_method(f"{wrapping}(sampler={method})").sampler == method
        else:
            with pytest.raises(BadParameter, match=f"{method} is not made of a rule and blocks alone"):
                as_method(f"{wrapping}(sampler={method})")
