"""Guided diffusion: the guide says how far, the diffusion model says what; both caches follow the text."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from canvas_outcomes import acting, assert_claims_hold

from decodery.diffusion.guided_diffusion import GATES, GuidedRule, GuideGate
from decodery.diffusion.loop import Denoising
from decodery.diffusion.unmasking.base import Commit
from decodery.engine.events import Unmasked
from decodery.engine.settings import Settings
from decodery.errors import BadPrompt, Refused
from decodery.models.forward import Attend, Forward
from decodery.sampling.noise import Noise
from decodery.testing import (
    LetterTokenizer,
    ScriptedDenoiser,
    ScriptedScorer,
    SmallLanguageModel,
    TabularDenoiser,
    TabularScorer,
    confident,
    denoising_language_model,
    exact_outputs,
    total_variation,
    toy_diffusion_model,
    watched,
)
from decodery.testing.outputs import finished, new_request

PROMPT = [3, 1, 4, 1, 5]
LENGTH, MASK, VOCABULARY = 12, 23, 24
PROMPTS = [[(seed * 7 + place * 5) % 20 for place in range(2 + seed % 4)] for seed in range(10)]


def _repeater(seed=0):
    """A causal network that mostly expects the last token again, as the toy denoiser's drafts have it: it often agrees."""
    network = toy_diffusion_model(seed).network
    for name, weight in network.model.named_parameters():
        if "layers" in name and weight.dim() == 2:
            weight.data *= 0.3
    network.model.lm_head.weight.data = network.model.model.embed_tokens.weight.data.clone()
    network.name, network.masked = "repeater", None
    return network


def _toy(guide=None, **more):
    lm = toy_diffusion_model(1, **more)
    lm.drafter = _repeater() if guide is None else guide
    return lm


def _scripted_guide(script, vocabulary=VOCABULARY):
    return ScriptedScorer(script, vocabulary, name="guide")


def _one_hot(token, vocabulary=VOCABULARY):
    row = torch.zeros(vocabulary)
    row[token] = 5.0
    return row


def _steps(reply):
    """Per step the offsets that it filled and their tokens."""
    return [(event.offsets, event.tokens) for event in reply.events if isinstance(event, Unmasked)]


# The two ends


@pytest.mark.parametrize("gate", ["gate=threshold, threshold=0.0", "gate=relative, ratio=0.0", "gate=topk, top_k=24"])
def test_a_guide_that_always_agrees_fills_the_canvas_in_one_forward(gate):
    lm = _toy()
    reply = lm.generate(PROMPT, f"guided-diffusion({gate})")
    assert reply.stats.forwards == 1
    assert reply.stats.step_of == [0] * LENGTH
    assert reply.stats.details["accepted"] == [LENGTH]
    together = lm.generate(PROMPT, "masked-diffusion(block_length=12, steps=1)")
    assert reply.token_ids == together.token_ids


@pytest.mark.parametrize("cfg_scale", [0.0, 1.0])
def test_a_guide_that_never_agrees_leaves_greedy_decoding_from_left_to_right(cfg_scale):
    lm = _toy(_scripted_guide(lambda prefix: _one_hot(MASK)))  # expects what no draft can be
    for prompt in PROMPTS[:4]:
        reply = lm.generate(prompt, f"guided-diffusion(cache=none, cfg_scale={cfg_scale})")
        plain = lm.generate(prompt, f"masked-diffusion(block_length=1, cfg_scale={cfg_scale})")
        assert reply.token_ids == plain.token_ids
        assert reply.stats.step_of == list(range(LENGTH))
        assert reply.stats.models["toy-diffusion-1"].forwards == LENGTH * (2 if cfg_scale else 1)
        assert reply.stats.details["accepted"] == [0] * LENGTH


@pytest.mark.parametrize("spec", ["guided-diffusion", "guided-diffusion(cfg_scale=1.0, chunk=3)"])
def test_what_it_says_of_itself_holds(spec):
    assert_claims_hold(_toy(), spec)


# Who says what


@pytest.mark.parametrize("chunk", [3, 32])
def test_accepted_tokens_are_the_guide_s_greedy_choice(chunk):
    """Recomputed by a full forward of the guide alone, over prompt and canvas, with a fresh cache."""
    lm = _toy()
    guide, counts = lm.drafter, {"accepted": 0, "progress": 0}
    for prompt in PROMPTS:
        reply = lm.generate(prompt, f"guided-diffusion(chunk={chunk})")
        text = [*prompt, *reply.token_ids]
        [scores] = guide.run([Forward(guide.new_sequence(), text)])
        expected = scores.logits.argmax(-1).tolist()
        assert len(reply.stats.details["accepted"]) == len(_steps(reply))
        for accepted, (offsets, tokens) in zip(reply.stats.details["accepted"], _steps(reply), strict=True):
            assert len(offsets) == max(accepted, 1)
            for offset, token in zip(offsets, tokens, strict=True):
                agrees = expected[len(prompt) + offset - 1] == token
                assert agrees == (accepted > 0)
                counts["accepted" if accepted else "progress"] += 1
    assert min(counts.values()) > 20


@pytest.mark.parametrize("gate", GATES)
def test_every_token_is_the_diffusion_model_s_likeliest_when_it_is_filled(gate):
    """Replayed: the canvas as it was before each step, through the network alone."""
    lm = _toy()
    for prompt in PROMPTS[:4]:
        reply = lm.generate(prompt, acting(f"guided-diffusion(gate={gate}, cache=none, top_k=3, ratio=0.8)"), seed=3)
        canvas = [*prompt, *[MASK] * LENGTH]
        for offsets, tokens in _steps(reply):
            [scores] = lm.network.run([Forward(lm.network.new_sequence(), canvas, attend=Attend.FULL)])
            for offset, token in zip(offsets, tokens, strict=True):
                assert token == int(scores.logits[len(prompt) + offset, :MASK].argmax())
            for offset, token in zip(offsets, tokens, strict=True):
                canvas[len(prompt) + offset] = token
        order = [offset for offsets, _ in _steps(reply) for offset in offsets]
        assert order == list(range(LENGTH))


# Caches


def test_the_guide_s_cache_ends_one_token_before_the_first_mask_when_a_round_begins():
    lm = _toy()
    lengths = set()
    for prompt in PROMPTS:
        seen, prefills = [], []

        def watch(forward, prompt=prompt, seen=seen, prefills=prefills):
            sequence = forward.sequence
            if not forward.logit_rows():
                prefills.append(forward.count)
                return
            assert sequence.tokens == [*prompt, *sequence.tokens[len(prompt) :]][: sequence.length]
            seen.append((sequence.length, sequence.tokens[len(prompt) :]))

        with watched(lm.drafter, watch):
            reply = lm.generate(prompt, "guided-diffusion(chunk=32)")
        filled = [0, *itertools.accumulate(len(offsets) for offsets, _ in _steps(reply))]
        assert [length for length, _ in seen] == [len(prompt) + count - 1 for count in filled[:-1]]
        assert all(tokens == reply.token_ids[: max(len(tokens), 0)] for _, tokens in seen)
        assert prefills == [len(prompt) - 1]
        lengths |= {length for length, _ in seen}
    assert len(lengths) > 5


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("cache", ["none", "freecache"])
def test_chunks_change_nothing(gate, cache):
    for prompt in PROMPTS[:3]:
        replies = [
            _LM.generate(
                prompt, acting(f"guided-diffusion(gate={gate}, cache={cache}, top_k=4, chunk={chunk})"), seed=5
            )
            for chunk in (1, 4, 32)
        ]
        assert len({tuple(reply.token_ids) for reply in replies}) == 1
        assert len({tuple(reply.stats.step_of) for reply in replies}) == 1
        calls = [reply.stats.models["repeater"].forwards for reply in replies]
        assert calls == sorted(calls, reverse=True)


_LM = _toy()


def test_a_chunk_is_scored_only_where_the_one_before_was_accepted_whole():
    lm = _toy(_scripted_guide(lambda prefix: _one_hot(2 if len(prefix) < 10 else MASK)))
    network = ScriptedDenoiser(LENGTH, MASK, lambda canvas: confident(LENGTH, MASK, [0.9] * LENGTH, [2] * LENGTH))
    network.masked, lm.network = lm.diffusion, network
    counts = []
    with watched(lm.drafter, lambda forward: counts.append(forward.count)):
        reply = lm.generate(PROMPT, "guided-diffusion(chunk=2, gen_length=12)")
    # The guide agrees on five tokens; then each round has one chunk, whose first row it rejects.
    assert reply.stats.details["accepted"][:2] == [5, 0]
    assert counts[:4] == [4, 2, 2, 2]
    assert counts[4:] == [2] * 6 + [1]


@pytest.mark.parametrize("cache", ["freecache", "prefix", "dual"])
@pytest.mark.parametrize("shift", [False, True])
def test_cached_forwards_decide_the_same_where_one_layer_makes_them_exact(cache, shift):
    lm = _toy(layers=1, shift=shift)
    for prompt in PROMPTS[:5]:
        shared = "block_length=4, shift_row=compute" if shift else "block_length=4"
        one = lm.generate(prompt, f"guided-diffusion({shared}, cache={cache})")
        if cache == "dual":  # its forwards see no drafts behind the block
            assert one.stats.step_of == sorted(one.stats.step_of)
            continue
        none = lm.generate(prompt, "guided-diffusion(block_length=4, cache=none)")
        assert one.token_ids == none.token_ids
        assert one.stats.step_of == none.stats.step_of
        assert one.stats.rows <= none.stats.rows


def test_what_both_models_cost_is_counted():
    lm = _toy()
    reply = lm.generate(PROMPT, "guided-diffusion")
    rounds = len(reply.stats.details["accepted"])
    models = reply.stats.models
    assert models["toy-diffusion-1"].forwards == rounds
    assert models["repeater"].forwards == rounds + 1  # and the prompt
    assert reply.stats.as_dict()["details"] == {"accepted": reply.stats.details["accepted"]}


# The end of the text


def _ending(at, end, guide_script, stop_ids=(2,)):
    tokens = [0, 1, 0, 1, 0, 1, 0, 1]
    tokens[at] = end
    lm = denoising_language_model(
        ScriptedDenoiser(8, 4, lambda canvas: confident(8, 4, [0.9] * 8, tokens)), stop_ids=stop_ids
    )
    lm.drafter = _scripted_guide(guide_script, 5)
    return lm


@pytest.mark.parametrize("chunk", [4, 32])
@pytest.mark.parametrize("early_stop", ["prefix", "block"])
def test_what_is_drafted_behind_an_end_token_is_discarded(chunk, early_stop):
    expected = [0, 1, 0, 2]
    lm = _ending(3, 2, lambda prefix: _one_hot([*expected, 0, 0, 0, 0, 0][len(prefix) - 2], 5))
    reply = lm.generate([0, 1], f"guided-diffusion(chunk={chunk}, early_stop={early_stop}, block_length=4)")
    assert reply.token_ids == expected
    assert reply.finish_reason == "stop"
    assert reply.stats.step_of == [0, 0, 0, 0, -1, -1, -1, -1]
    assert reply.stats.details["accepted"] == [4]
    ignored = lm.generate([0, 1], f"guided-diffusion(chunk={chunk})", ignore_eos=True)
    assert len(ignored.token_ids) == 8


def test_an_end_token_filled_for_the_sake_of_progress_ends_the_text_too():
    lm = _ending(2, 2, lambda prefix: _one_hot([0, 1, 0, 1][len(prefix) - 2], 5))
    reply = lm.generate([0, 1], "guided-diffusion")
    assert reply.token_ids == [0, 1, 2]
    assert reply.stats.details["accepted"] == [2, 0]


def test_end_tokens_of_both_models_mean_the_same():
    """Token 2 ends the diffusion model's texts, token 3 the guide's."""
    lm = _ending(3, 2, lambda prefix: _one_hot([0, 1, 0, 3][len(prefix) - 2], 5))
    lm.companions["guide"] = SmallLanguageModel(lm.drafter, LetterTokenizer(5), [3])
    assert lm.generate([0, 1], "guided-diffusion(guide=guide)").stats.details["accepted"] == [4]
    lm.companions["guide"] = SmallLanguageModel(lm.drafter, LetterTokenizer(5), [4])
    assert lm.generate([0, 1], "guided-diffusion(guide=guide)").stats.details["accepted"] == [3, 0]


# Gates


def _accepts(gate, row, token, own=0.5, **more):
    return gate.accepts(torch.tensor(row, dtype=torch.float32).log(), token, own, Noise(0), 3, 0, **more)


def test_gates_by_hand():
    row = [0.4, 0.05, 0.3, 0.25]
    passed = {
        "deterministic": [0],
        "topk": [0, 2],
        "relative": [0, 2, 3],
        "threshold": [0, 2, 3],
    }
    for kind, tokens in passed.items():
        gate = GuideGate(kind, top_k=2, ratio=0.6, threshold=0.1)
        assert [token for token in range(4) if _accepts(gate, row, token)] == tokens
    assert not _accepts(GuideGate("relative", ratio=0.7), row, 3)
    assert not _accepts(GuideGate("threshold", threshold=0.26), row, 3)
    assert [token for token in range(4) if _accepts(GuideGate("relative", ratio=1.0), row, token)] == [0]
    assert _accepts(GuideGate("threshold", threshold=0.5), [0.5, 0.5], 0)
    assert not any(_accepts(GuideGate(kind), row, 4) for kind in GATES), "a token behind the guide's last one"


def test_among_equals_the_lowest_token_comes_first():
    row = [0.3, 0.3, 0.3, 0.1]
    assert [token for token in range(4) if _accepts(GuideGate(), row, token)] == [0]
    assert [token for token in range(4) if _accepts(GuideGate("topk", top_k=2), row, token)] == [0, 1]


def test_the_stochastic_gate_accepts_at_the_ratio_of_the_probabilities():
    row, gate = torch.tensor([0.2, 0.8]).log(), GuideGate("stochastic")
    for token, own, chance in ((0, 0.8, 0.25), (1, 0.8, 1.0), (0, 0.1, 1.0), (0, 0.4, 0.5)):
        accepted = sum(gate.accepts(row, token, own, Noise(seed), 3, 1) for seed in range(2000))
        # Four standard deviations: refuted by chance once in 16 000.
        assert abs(accepted - 2000 * chance) <= 4 * (2000 * chance * (1 - chance)) ** 0.5
    assert gate.accepts(row, 0, 0.0, Noise(0), 3, 1), "less likely to the diffusion model than any number says"


def test_end_tokens_pool_their_probability():
    gate = GuideGate("threshold", threshold=0.5, ends=frozenset({0}), guide_ends=frozenset({1, 2}))
    assert _accepts(gate, [0.1, 0.3, 0.3, 0.3], 0)
    assert not _accepts(gate, [0.1, 0.3, 0.3, 0.3], 1)
    assert not GuideGate().accepts(torch.zeros(4), 9, 0.5, Noise(0), 0, 0)  # a token that the guide does not have


def test_sampled_drafts_are_those_of_the_processed_law_from_left_to_right():
    """A guide that never agrees leaves the diffusion model's own law, which is exact in this order."""
    oracle = TabularDenoiser.random(length=2, seed=2)
    lm = denoising_language_model(oracle)
    lm.drafter = TabularScorer(4, order=1)
    settings = Settings(temperature=1.0, max_new_tokens=8, seed=0)
    spec = "guided-diffusion(gate=relative, ratio=2.0)"
    assert total_variation(exact_outputs(lm, spec, [0, 1], settings), oracle.law()) < 1e-6
    together = exact_outputs(lm, "guided-diffusion(gate=threshold, threshold=0.0)", [0, 1], settings)
    assert total_variation(together, oracle.law()) > 0.05


# What stands there already


@pytest.mark.parametrize("agrees", [True, False])
def test_visible_tokens_are_passed_through(agrees):
    lm = _toy(_scripted_guide(lambda prefix: _one_hot(7 if agrees else MASK)))
    tokens = [7] * LENGTH
    network = ScriptedDenoiser(LENGTH, MASK, lambda canvas: confident(LENGTH, MASK, [0.9] * LENGTH, tokens))
    network.masked, lm.network = lm.diffusion, network
    request, method = new_request(lm, "guided-diffusion", PROMPT, Settings(seed=0, max_new_tokens=LENGTH))
    plan = method.plan(request)
    denoising = Denoising(request, plan)
    plan.rule.canvas = denoising.canvas
    denoising.fill(Commit((2, 3), (11, 11)))

    @dataclass(frozen=True)
    class Prepared(type(method)):
        name: ClassVar[str] = "prepared"

        def decode(self, request):
            yield from denoising.run()

    finished(request, Prepared())
    assert request.new_tokens == [7, 7, 11, 11, *[7] * 8]
    assert request.statistics.step_of[2:4] == [0, 0]
    if agrees:  # past the visible ones in the same round
        assert set(request.statistics.step_of[:2] + request.statistics.step_of[4:]) == {1}
    else:
        assert request.statistics.step_of == [1, 2, 0, 0, *range(3, 11)]


def test_a_first_mask_that_was_not_scored_is_an_error():
    lm = _toy()
    request, method = new_request(lm, "guided-diffusion", PROMPT, Settings(seed=0))
    rule = method.unmasking(request)
    assert isinstance(rule, GuidedRule)
    denoising = Denoising(request, method.plan(request))
    rule.canvas = denoising.canvas
    scoring = denoising.score(0, None, offsets=[1, 2])
    [forward] = next(scoring)
    try:
        scoring.send(lm.network.run([forward]))
    except StopIteration as stop:
        laws = stop.value
    with pytest.raises(ValueError, match="first mask was not scored"):
        next(rule.choose(laws, None))


# Who may guide


def test_the_guide_needs_the_same_tokenizer():
    lm = toy_diffusion_model()

    class Other(LetterTokenizer):
        def decode(self, token_ids, skip_special_tokens=False):
            return "".join(chr(0x61 + (t + (t > 20)) % 24) for t in token_ids)

    lm.companions["other"] = SmallLanguageModel(_repeater(), Other(VOCABULARY))
    with pytest.raises(Refused, match="token 21 is 'v' to toy-diffusion-0 and 'w' to other"):
        lm.generate(PROMPT, "guided-diffusion(guide=other)")
    lm.companions["small"] = SmallLanguageModel(_scripted_guide(lambda prefix: torch.zeros(9), 9), LetterTokenizer(9))
    with pytest.raises(Refused, match="token 9 is 'j' to toy-diffusion-0 and nothing to small"):
        lm.generate(PROMPT, "guided-diffusion(guide=small)")
    # A row that the tokenizer has no token for: nothing to both.
    lm.companions["short"] = SmallLanguageModel(_repeater(), LetterTokenizer(22))
    with pytest.raises(Refused, match="token 22 is 'w' to toy-diffusion-0 and nothing to short"):
        lm.generate(PROMPT, "guided-diffusion(guide=short)")
    lm.tokenizer = LetterTokenizer(22)
    assert lm.generate(PROMPT, "guided-diffusion(guide=short)").stats.forwards > 0


def test_the_guide_need_not_know_the_mask():
    lm = toy_diffusion_model()
    lm.companions["guide"] = SmallLanguageModel(
        _scripted_guide(lambda prefix: torch.zeros(MASK), MASK), LetterTokenizer(MASK)
    )
    assert len(lm.generate(PROMPT, "guided-diffusion(guide=guide)").token_ids) == LENGTH
    with pytest.raises(BadPrompt, match="does not know"):
        lm.generate([MASK], "guided-diffusion(guide=guide)")


def test_the_guide_must_be_causal_and_long_enough():
    lm = toy_diffusion_model()
    lm.companions["another"] = toy_diffusion_model(seed=1)
    with pytest.raises(Refused, match="must be a causal model, and another is a masked-diffusion model"):
        lm.generate(PROMPT, "guided-diffusion(guide=another)")
    lm.drafter = ScriptedScorer(lambda prefix: torch.zeros(VOCABULARY), VOCABULARY, context=10)
    with pytest.raises(BadPrompt, match="17 tokens together, but the guide stories-twin has a context of 10"):
        lm.generate(PROMPT, "guided-diffusion")


def test_neighbours_change_nothing():
    alone = [_LM.generate(prompt, "guided-diffusion(gate=stochastic)", temperature=0.7, seed=9) for prompt in PROMPTS]
    packed = _LM.generate(PROMPTS, "guided-diffusion(gate=stochastic)", temperature=0.7, seed=9)
    assert [reply.token_ids for reply in alone] == [reply.token_ids for reply in packed]
    assert [reply.stats.step_of for reply in alone] == [reply.stats.step_of for reply in packed]
