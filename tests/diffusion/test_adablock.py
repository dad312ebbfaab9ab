"""AdaBlock: where blocks end, what stays as it was, and what its delimiters are."""

from __future__ import annotations

import itertools

import pytest
import torch
from canvas_outcomes import PROMPT, assert_alone_as_in_a_batch, assert_check_decides_the_claims, decoded

from decodery.diffusion.adablock import PUBLISHED, DelimitedBlocks, delimiter_ids
from decodery.diffusion.canvas import Canvas
from decodery.diffusion.laws import Laws
from decodery.engine.events import Unmasked
from decodery.engine.registry import method as as_method
from decodery.engine.settings import Settings
from decodery.errors import BadParameter
from decodery.models.masked_diffusion import MaskedDiffusion
from decodery.sampling.law import Law, LawSettings
from decodery.sampling.noise import Noise
from decodery.testing import (
    ScriptedDenoiser,
    SmallLanguageModel,
    TabularDenoiser,
    confident,
    denoising_language_model,
    exact_outputs,
    total_variation,
    toy_diffusion_model,
    watched,
)
from decodery.testing.outputs import new_request

LENGTH = 28
"""A quarter of it, the window, is seven."""
DELIMITER = 1
EAGER = "delimiters=2+5+9+14, delimiter_threshold=0.05, window=0.5"
"""On the toy network: some blocks end at a delimiter, and some do not."""


def _sevens(delimiters, length=LENGTH, sure=0.95, start=0):
    """A denoiser that is sure of everything but of the delimiters, given by offset."""
    confidences = [delimiters.get(offset, sure) for offset in range(length)]
    tokens = [DELIMITER if offset in delimiters else 0 for offset in range(length)]
    return denoising_language_model(
        ScriptedDenoiser(length, 5, lambda canvas: confident(length, 5, confidences, tokens))
    )


def _block_ends(delimiters, length=LENGTH, fallback=4, **parameters):
    written = "".join(f", {name}={value}" for name, value in parameters.items())
    method = f"adablock(delimiters='{DELIMITER}', block_length={fallback}{written})"
    return _sevens(delimiters, length).generate([0], method).stats.block_ends


# Limits


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize("never", ["delimiter_threshold=inf", "delimiter_threshold=1.01", "delimiters='22'"])
def test_without_delimiters_it_is_threshold_decoding_in_fixed_blocks(cache, never):
    lm, moved = toy_diffusion_model(), 0
    never = never if "delimiters" in never else f"{never}, delimiters=2+5+9+14"
    for start in range(5):
        prompt, shared = [*PROMPT, start], f"block_length=5, cache={cache}"
        static = lm.generate(prompt, f"masked-diffusion(rule=threshold, threshold=0.6, {shared})")
        found = lm.generate(prompt, f"adablock({never}, threshold=0.6, {shared})")
        assert decoded(found) == decoded(static)
        assert found.stats.block_ends == [5, 10, 12]
        moved += lm.generate(prompt, f"adablock({EAGER}, threshold=0.6, {shared})").stats.block_ends != [5, 10, 12]
    assert moved > 0


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_without_delimiters_and_certainty_one_token_per_step(cache):
    lm = toy_diffusion_model()
    shared = f"block_length=4, cache={cache}"
    static = lm.generate(PROMPT, f"masked-diffusion({shared})")
    found = lm.generate(PROMPT, f"adablock(threshold=1.01, delimiter_threshold=inf, {shared})")
    assert decoded(found) == decoded(static)
    assert found.stats.forwards == 12


# Where blocks end


def test_the_surest_delimiter_ends_the_block_and_not_the_first():
    assert _block_ends({6: 0.8, 2: 0.5})[0] == 7
    assert _block_ends({6: 0.5, 2: 0.8})[0] == 3


def test_equally_sure_delimiters_the_leftmost():
    assert _block_ends({5: 0.6, 3: 0.6})[0] == 4


def test_a_delimiter_that_is_not_sure_enough_does_not():
    assert _block_ends({6: 0.29, 2: 0.25}) == [4, 8, 12, 16, 20, 24, 28]
    assert _block_ends({6: 0.31, 2: 0.25})[0] == 7
    assert _block_ends({6: 0.8}, delimiter_threshold=0.85)[0] == 4


def test_a_delimiter_that_is_exactly_as_sure_as_it_must_be_does():
    scores = torch.full((2, 5), -torch.inf)
    scores[0, [DELIMITER, DELIMITER + 1]] = 0.0
    scores[1, 0] = 0.0
    laws = Laws(range(2), scores, Law(LawSettings(temperature=0.0), [0]), Noise(0), 1)
    for threshold, end in ((0.5, 1), (0.51, 2)):
        schedule = DelimitedBlocks(2, frozenset({DELIMITER}), threshold, 1.0)
        assert schedule.end(Canvas([0], 2, MaskedDiffusion(5)), 0, laws) == end


def test_a_delimiter_outside_the_window_does_not():
    assert _block_ends({6: 0.8})[0] == 7
    assert _block_ends({7: 0.8})[:2] == [4, 8]  # seen from the second block's start, as its fourth
    assert _block_ends({9: 0.8})[:2] == [4, 10]
    assert _block_ends({7: 0.8}, window=0.3)[0] == 8


def test_the_end_of_the_canvas_ends_the_last_block():
    assert _block_ends({}, length=10) == [4, 8, 10]
    assert _block_ends({}, length=3, fallback=8) == [3]


def test_blocks_may_be_longer_and_shorter_than_usual():
    assert _block_ends({6: 0.8, 12: 0.8, 14: 0.8}, fallback=4) == [7, 13, 15, 19, 23, 27, 28]
    assert _block_ends({6: 0.8, 12: 0.8, 14: 0.8}, fallback=16) == [7, 13, 15, 28]


def test_the_window_may_grow_with_what_is_generated():
    canvas = Canvas([0], LENGTH, MaskedDiffusion(5))
    schedule = DelimitedBlocks(4, frozenset({DELIMITER}), base="generated")
    for start, width in ((0, 1), (4, 1), (8, 2), (20, 5)):
        for offset in range(start, LENGTH):
            tokens = [DELIMITER if place == offset else 0 for place in range(start, LENGTH)]
            scores = confident(LENGTH - start, 5, [0.8] * (LENGTH - start), tokens).float()
            laws = Laws(range(start, LENGTH), scores, Law(LawSettings(temperature=0.0), [0]), Noise(0), 1)
            expected = offset + 1 if offset < start + width else min(start + 4, LENGTH)
            assert schedule.end(canvas, start, laws) == expected
    assert _block_ends({5: 0.8})[0] == 6
    assert _block_ends({5: 0.8}, window_base="generated")[0] == 4


def test_visible_tokens_are_no_candidates():
    canvas = Canvas([0], LENGTH, MaskedDiffusion(5))
    canvas.fill([3], [DELIMITER], 0)
    scores = confident(LENGTH - 1, 5, [0.8] * (LENGTH - 1)).float()
    laws = Laws(canvas.masked(), scores, Law(LawSettings(temperature=0.0), [0]), Noise(0), 1)
    assert DelimitedBlocks(6, frozenset({DELIMITER})).end(canvas, 0, laws) == 6


def test_the_delimiter_must_still_win_its_place():
    """It ends the block, but is filled in only once the rule takes it."""
    steps = _sevens({6: 0.8}).generate([0], f"adablock(delimiters='{DELIMITER}')").stats.step_of
    assert steps[:6] == [0] * 6
    assert steps[6] == 1


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_blocks_cover_the_canvas_and_every_position_is_filled_once(cache, temperature):
    lm = toy_diffusion_model()
    reply = lm.generate(PROMPT, f"adablock({EAGER}, block_length=5, cache={cache})", temperature=temperature, seed=1)
    offsets = [offset for event in reply.events if isinstance(event, Unmasked) for offset in event.offsets]
    assert sorted(offsets) == list(range(12))
    ends = [0, *reply.stats.block_ends]
    assert ends[-1] == 12
    assert all(a < b for a, b in itertools.pairwise(ends))
    steps = reply.stats.step_of
    for (a, b), (c, d) in itertools.pairwise(itertools.pairwise(ends)):
        assert max(steps[a:b]) < min(steps[c:d])


def test_it_stops_at_the_block_with_the_end():
    tokens = [0] * LENGTH
    tokens[5], tokens[9] = DELIMITER, 3
    lm = denoising_language_model(
        ScriptedDenoiser(LENGTH, 5, lambda canvas: confident(LENGTH, 5, [0.95] * LENGTH, tokens)), stop_ids=(3,)
    )
    reply = lm.generate([0], f"adablock(delimiters='{DELIMITER}', block_length=4)")
    assert reply.stats.block_ends == [6, 10]
    assert len(reply.token_ids) == 10
    assert reply.finish_reason == "stop"
    assert reply.stats.forwards == 2


# Cost and caches


def test_the_forward_that_ends_the_block_is_also_the_first_that_fills_it():
    assert _sevens({}, length=8).generate([0], "adablock(block_length=8)").stats.forwards == 1
    reply = _sevens({6: 0.95, 12: 0.95}).generate([0], f"adablock(delimiters='{DELIMITER}', block_length=5)")
    assert reply.stats.block_ends == [7, 13, 18, 23, 28]
    assert reply.stats.forwards == 5


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_with_one_layer_the_caches_are_exact(cache):
    lm, lengths = toy_diffusion_model(layers=1), set()
    for start in range(6):
        plain = lm.generate([*PROMPT, start], f"adablock({EAGER}, threshold=0.6, block_length=5)")
        cached = lm.generate([*PROMPT, start], f"adablock({EAGER}, threshold=0.6, block_length=5, cache={cache})")
        assert decoded(cached) == decoded(plain)
        assert cached.stats.block_ends == plain.stats.block_ends
        assert cached.stats.rows < plain.stats.rows
        lengths |= {b - a for a, b in itertools.pairwise([0, *plain.stats.block_ends])}
    assert len(lengths) >= 3


def test_the_dual_cache_computes_the_block_alone():
    lm, sizes = toy_diffusion_model(), []
    with watched(lm.network, lambda forward: sizes.append(forward.count)):
        reply = lm.generate(PROMPT, f"adablock({EAGER}, threshold=1.01, block_length=5, cache=dual)")
    expected = []
    for start, end in itertools.pairwise([0, *reply.stats.block_ends]):
        expected += [17, *[end - start] * (end - start - 1)]
    assert sizes == expected


@pytest.mark.parametrize("shift_row", ["carry", "compute"])
def test_shifted_models_run_with_every_cache(shift_row):
    lm = toy_diffusion_model(layers=1, shift=True)
    plain = lm.generate(PROMPT, f"adablock({EAGER}, block_length=5)")
    for cache in ("prefix", "dual"):
        found = lm.generate(PROMPT, f"adablock({EAGER}, block_length=5, cache={cache}, shift_row={shift_row})")
        assert -1 not in found.stats.step_of
        assert found.stats.block_ends[-1] == 12
        if shift_row == "compute":
            assert decoded(found) == decoded(plain)


# Other rules, and chance


def test_any_rule_fills_the_blocks():
    lm = toy_diffusion_model()
    samplers = (
        "localleap(radius=2)",
        "masked-diffusion",
        "masked-diffusion(rule=factor)",
        "masked-diffusion(rule=entropy)",
    )
    for sampler in samplers:
        method = as_method(f"adablock(sampler='{sampler}', {EAGER}, block_length=5, cache=prefix)")
        assert as_method(method.spec()) == method
        reply = lm.generate(PROMPT, method)
        assert -1 not in reply.stats.step_of
    leap = lm.generate(
        PROMPT, f"adablock(sampler='localleap(threshold=0.6, radius=0, relaxed_threshold=0.1)', {EAGER})"
    )
    assert decoded(leap) == decoded(lm.generate(PROMPT, f"adablock(threshold=0.6, {EAGER})"))


def test_steps_are_shared_out_among_blocks_of_any_length():
    lm = toy_diffusion_model()
    for steps in (1, 5, 7, 12):
        reply = lm.generate(PROMPT, f"adablock(sampler=masked-diffusion, steps={steps}, block_length=5, {EAGER})")
        assert len(set(reply.stats.step_of)) <= max(steps, len(reply.stats.block_ends))
    assert len(set(reply.stats.step_of)) == 12


@pytest.mark.parametrize(
    "filling",
    [
        "threshold=0.0",
        "sampler='localleap(threshold=0.0, relaxed_threshold=0.0)'",
        "sampler=masked-diffusion, steps=1",
        "sampler='masked-diffusion(rule=maskgit_plus)', steps=1",
    ],
)
def test_at_a_temperature_the_delimiter_is_the_token_that_is_drawn(filling):
    """All of a block is drawn at once: a block that was cut short ends with a delimiter, whichever rule draws."""
    flat = confident(12, 5, [0.3] * 12, [DELIMITER if offset == 7 else 0 for offset in range(12)])
    lm = denoising_language_model(ScriptedDenoiser(12, 5, lambda canvas: flat))
    cut = {"drawn": 0, "likeliest": 0}
    wrong = {"drawn": 0, "likeliest": 0}
    for boundary, seed in itertools.product(cut, range(20)):
        reply = lm.generate(
            [0],
            f"adablock({filling}, delimiter_threshold=0.0, window=1.0, delimiters='1', block_length=12, "
            f"boundary={boundary})",
            temperature=1.0,
            seed=seed,
        )
        assert reply.stats.forwards == len(reply.stats.block_ends)
        for end in reply.stats.block_ends[:-1]:
            cut[boundary] += 1
            wrong[boundary] += reply.token_ids[end - 1] != DELIMITER
    assert min(cut.values()) > 10
    assert wrong["drawn"] == 0
    assert wrong["likeliest"] > 0


def test_a_boundary_that_looks_at_no_draw_keeps_an_exact_sampler_exact():
    oracle = TabularDenoiser.random(seed=5)
    lm = denoising_language_model(oracle)
    spec = (
        "adablock(sampler='masked-diffusion(value_independent=True)', boundary=likeliest, delimiters='1', "
        "delimiter_threshold=0.1, window=1.0, block_length=2)"
    )
    law = exact_outputs(lm, spec, [0, 1], Settings(temperature=1.0, max_new_tokens=8, seed=0))
    assert total_variation(law, oracle.law()) < 1e-6


def test_a_row_alone_and_in_a_batch():
    spec = f"adablock({EAGER}, block_length=5, cache=dual)"
    assert_alone_as_in_a_batch(spec, 1.0)


# Delimiters


class Words:
    """A tokenizer of these texts."""

    texts = ("a", "\n", ")\n", "\n\n", "\n)", ".", ", ", "1.5", "<mask>", "<end>\n")

    def __len__(self):
        return len(self.texts)

    def decode(self, token_ids, skip_special_tokens=False):
        return "".join(self.texts[token] for token in token_ids)


def _worded():
    scorer = ScriptedDenoiser(4, 8, lambda canvas: torch.zeros(4, 8))
    scorer.vocabulary = 10
    return SmallLanguageModel(scorer, Words(), (9,), diffusion=MaskedDiffusion(8, False, (9,), (), 4))


def test_delimiters_are_the_tokens_whose_text_contains_the_sign():
    lm = _worded()
    assert delimiter_ids(lm, "\n") == {1, 2, 3, 4}
    assert delimiter_ids(lm, "\n", "ends") == {1, 2, 3}
    for given, expected in {
        "newline": {1, 2, 3, 4},
        "comma": {6},
        "period": {5, 7},
        "newline+comma+period": {1, 2, 3, 4, 5, 6, 7},
        "3+7": {3, 7},
        "comma+0": {0, 6},
        "newline, delimiter_match=ends": {1, 2, 3},
    }.items():
        method = as_method(f"adablock(delimiters={given})")
        request, _ = new_request(lm, method, [0], Settings(seed=0))
        assert method.delimiter_set(request) == expected
    request, _ = new_request(lm, "adablock", [0], Settings(seed=0))
    assert as_method("adablock").delimiter_set(request) == {1, 2, 3, 4}


@pytest.mark.parametrize(("vocabulary", "expected"), [(12, {1, 2, 3, 4}), (3, {1, 2})])
def test_delimiters_are_tokens_of_model_and_tokenizer(vocabulary, expected):
    """Many models have rows behind their tokenizer's last token, and some tokenizers tokens behind the model's last row."""
    lm = _worded()
    lm.network.vocabulary = vocabulary
    assert delimiter_ids(lm, "\n") == expected


def test_the_published_lists():
    assert PUBLISHED["llada"] == (198,)
    assert (len(set(PUBLISHED["dream"])), sum(PUBLISHED["dream"])) == (24, 116454)
    with pytest.raises(BadParameter, match="no token 68327"):
        _worded().generate([0], "adablock(delimiters=dream)")


def test_delimiters_that_do_not_exist_are_refused_and_by_default_blocks_have_the_usual_length():
    lm = toy_diffusion_model()  # its tokens are letters
    assert lm.generate(PROMPT, "adablock(block_length=5)").stats.block_ends == [5, 10, 12]
    for given, reason in {
        "newline": "no token of toy-diffusion-0 has a newline",
        "'99'": "no token 99",
        "colon": "not 'colon'",
    }.items():
        with pytest.raises(BadParameter, match=reason):
            lm.generate(PROMPT, f"adablock(delimiters={given})")


def test_what_belongs_to_the_method_is_not_given_to_its_sampler():
    for spec, reason in {
        "adablock(sampler='localleap(block_length=4)')": "give block_length to adablock itself",
        "adablock(sampler=localleap, threshold=0.8)": "only with sampler=auto",
        "adablock(sampler=autoregressive)": "cannot be the sampler",
        "adablock(steps=6)": "steps=6 does nothing",
        "adablock(sampler='masked-diffusion(rule=factor)', steps=6)": "steps=6 does nothing",
        "adablock(sampler=localleap, steps=6)": "steps=6 does nothing",
    }.items():
        with pytest.raises(BadParameter, match=reason):
            as_method(spec)


@pytest.mark.parametrize(
    "spec",
    [
        "adablock",
        "adablock(delimiters='1+2', delimiter_threshold=0.05, block_length=5)",
        "adablock(sampler='localleap(radius=2)', cache=prefix, block_length=4)",
    ],
)
def test_check_decides_its_claims(spec):
    assert_check_decides_the_claims(spec)


@pytest.mark.parametrize(("share", "temperature", "ends_there"), [(0.25, 0.2, False), (0.35, 2.0, True)])
def test_a_delimiter_is_as_sure_as_the_model_s_own_law_says(share, temperature, ends_there):
    """At a low temperature the processed law is above the threshold of 0.3, at a high one below it; neither counts."""
    reply = _sevens({5: share}).generate(
        [0],
        f"adablock(delimiters='{DELIMITER}', block_length=4, boundary=likeliest)",
        temperature=temperature,
        seed=0,
    )
    assert reply.stats.block_ends[0] == (6 if ends_there else 4)
