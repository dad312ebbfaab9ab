"""Decoding a model of rainbow padding: its pads are predicted, end the text where no end token does, and are never shown."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from statistics import fmean

import pytest

import decodery
from decodery.engine.events import Token
from decodery.engine.registry import methods
from decodery.engine.settings import Settings
from decodery.errors import ModelNotReadable
from decodery.models.masked_diffusion import MaskedDiffusion
from decodery.testing import ScriptedDenoiser, confident, denoising_language_model
from decodery.testing.outputs import finished, new_request
from decodery.training.rainbow_padding import K, is_right, questions

A, B, END, PAD, PAD2 = 0, 1, 2, 3, 4
VOCABULARY = 6


def _writes(tokens, confidences=None, stop_ids=(END,)):
    """A model that is sure of these tokens, whatever it sees; from left to right, if nothing else is said."""
    length = len(tokens)
    shares = confidences or [0.99 - 0.01 * offset for offset in range(length)]
    scripted = ScriptedDenoiser(length, VOCABULARY, lambda canvas: confident(length, VOCABULARY, shares, tokens))
    lm = denoising_language_model(scripted, stop_ids=stop_ids)
    scripted.masked = dataclasses.replace(lm.diffusion, filling_token_ids=(PAD, PAD2))
    return lm


CANVASES = {
    "end": ([A, B, END, PAD, PAD2, PAD], [A, B, END], False, 0),
    "no end": ([A, B, PAD, PAD2, PAD, PAD2], [A, B], True, 0),
    "no end, and words behind a pad": ([A, PAD, B, A, PAD, B], [A], True, 0),
    "stray": ([A, PAD, B, PAD2, END, PAD], [A, B, END], False, 2),
    "nothing but pads": ([PAD, PAD2, PAD, PAD2, PAD, PAD2], [], True, 0),
    "neither": ([A, B, A, B, A, B], [A, B, A, B, A, B], False, 0),
}
SPECS = (
    "masked-diffusion",
    "masked-diffusion(block_length=2)",
    "masked-diffusion(block_length=3, early_stop=prefix)",
    "masked-diffusion(early_stop=never)",
    "masked-diffusion(rule=threshold)",
    "freedave(block_length=3)",
    "freedave(eager=True, block_length=2)",
    "freecache(block_length=2)",
    "localleap",
    "dparallel",
    "approximate-joint-sampling(layer=off, block_length=3)",
    "adablock(delimiters='5')",
    "sched",
    "hex(block_lengths=1x3, seeds=1, temperature=0)",
)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("kind", CANVASES)
def test_what_is_read_off_a_canvas(spec, kind):
    tokens, expected, no_end, stray = CANVASES[kind]
    reply = _writes(tokens).generate([A], spec)
    assert reply.token_ids == expected
    assert reply.text == "".join("abcdef"[token] for token in expected if token != END)
    assert reply.finish_reason == ("length" if kind == "neither" else "stop")
    assert reply.stats.details["padding"] == {"no_end": no_end, "stray": stray}
    assert [event.token_id for event in reply.events if isinstance(event, Token)] == expected


def test_all_methods_of_canvases_are_tried_or_need_a_second_model():
    tried = {spec.partition("(")[0] for spec in SPECS}
    diffusion = {method.name for method in methods() if method.family == "diffusion"}
    assert diffusion - tried == {"guided-diffusion", "freedave-plus-plus"}


def test_an_end_that_was_written_first_makes_pads_before_it_stray():
    """The end is the surest: when the first pad is filled it is known already, and decoding goes on over the pad."""
    lm = _writes([A, PAD, B, END, PAD, PAD2], [0.5, 0.6, 0.7, 0.99, 0.8, 0.8])
    for early_stop in ("block", "prefix", "never"):
        reply = lm.generate([A], f"masked-diffusion(early_stop={early_stop})")
        assert reply.token_ids == [A, B, END]
        assert reply.stats.details["padding"] == {"no_end": False, "stray": 1}


def test_nothing_is_published_beyond_a_pad_before_an_end_is_known():
    lm = _writes([A, PAD, B, A, END, PAD])
    request, method = new_request(lm, "masked-diffusion(block_length=2)", [A], Settings(seed=0))
    seen = []
    original = request.output.unmasked

    def spied(step, offsets, tokens):
        seen.append(list(request.new_tokens))
        original(step, offsets, tokens)

    request.output.unmasked = spied
    finished(request, method)
    assert seen == [[], [], [A], [A], [A], [A]]
    assert request.new_tokens == [A, B, A, END]


def test_drafted_tokens_are_counted_where_they_are_shown():
    lm = _writes([A, PAD, B, A, B, END])
    reply = lm.generate([A], "freedave(block_length=6, draft_steps=8)")
    assert reply.token_ids == [A, B, A, B, END]
    assert reply.stats.accepted + reply.stats.bonus == 5
    assert reply.stats.accepted >= 3


def test_the_end_may_be_ignored_and_pads_are_still_not_shown():
    reply = _writes([A, PAD, B, END, PAD, A]).generate([A], ignore_eos=True)
    assert reply.token_ids == [A, B, END, A]
    assert reply.finish_reason == "length"


def test_least_lengths_hold_off_pads_like_end_tokens():
    lm = _writes([PAD, PAD2, PAD, PAD2, PAD, PAD2])
    for least in (0, 1, 3, 6):
        reply = lm.generate([A], "masked-diffusion", min_new_tokens=least)
        assert len(reply.token_ids) == least


def test_log_probabilities_are_those_of_the_tokens_that_are_shown():
    lm = _writes([A, PAD, B, END, PAD, PAD2])
    reply = lm.generate([A], "masked-diffusion", logprobs=1)
    assert [pair[0][0] for pair in (one.top for one in reply.logprobs)] == reply.token_ids == [A, B, END]


def test_votes_are_on_what_is_read():
    reply = _writes([A, PAD, B, END, PAD, A]).generate([A], "hex(block_lengths=2x3, seeds=1, temperature=0)")
    assert reply.stats.details["votes"] == {"ab": 2}
    empty = _writes([PAD] * 6).generate([A], "hex(block_lengths=2x3, seeds=1, temperature=0)")
    assert empty.stats.details["abstained"] == 2
    assert all(run["collapsed"] for run in empty.stats.details["runs"])


def test_exits_and_frozen_tails_take_pads_for_the_end():
    """A pad is no content: it does not count in the mean of SchED, and FreeCache freezes a tail of them."""
    lm = _writes([A, B, END, PAD, PAD2, PAD], [0.9, 0.9, 0.5, 0.99, 0.99, 0.99])
    told = lm.generate([A], "sched(ends=left_out, threshold_high=4.2, threshold_low=4.2)")
    counted = lm.generate([A], "sched(threshold_high=4.2, threshold_low=4.2)")
    # log(0.9 / 0.02) is 3.8 and log(0.99 / 0.002) is 6.2: with 1.6 for the end the mean over the five left is 4.3.
    assert counted.stats.forwards == 2
    assert told.stats.forwards == 6
    shapes = [lm.generate([A], f"freecache(cache=freecache, shrink={shrink})").stats.rows for shrink in (False, True)]
    assert shapes[1] < shapes[0]


# The model's description


def test_pads_are_read_from_the_configuration():
    entry = {"mask_token_id": 0, "end_token_ids": [1], "pad_token_ids": [5], "canvas": 8}
    config = {"vocab_size": 10, "masked_diffusion": entry, "rainbow_padding": {"pad_token_ids": [2, 3, 4], "k": 3}}
    found = MaskedDiffusion.of(config)
    assert found.filling_token_ids == (2, 3, 4)
    assert not set(found.reserved) & {2, 3, 4}, "they may be predicted"
    assert MaskedDiffusion.of(config | {"rainbow_padding": {}}).filling_token_ids == ()
    for kind in ("llada", "Dream"):
        assert MaskedDiffusion.of({"model_type": kind} | config).filling_token_ids == (2, 3, 4)
    for wrong in ([0], [1], [5], [10], ["x"], [[1]]):
        with pytest.raises(ModelNotReadable, match=r"rainbow_padding|0\.\.9"):
            MaskedDiffusion.of(config | {"rainbow_padding": {"pad_token_ids": wrong}})
    with pytest.raises(ModelNotReadable, match="rainbow_padding"):
        MaskedDiffusion.of(json.loads(json.dumps(config)) | {"rainbow_padding": [2, 3]})


# The arm that comes with the package

ARM = Path(decodery.__file__).parent / "artifacts" / "diffusion-rainbow"


@pytest.fixture(scope="module")
def arm():
    if not (ARM / "card.json").is_file():
        pytest.skip("the model diffusion-rainbow is not part of this copy")
    return decodery.load("diffusion-rainbow", dtype="float32")


@pytest.mark.parametrize("blocks", [1, 12])
def test_the_trained_arm_writes_whole_answers_and_no_pad_is_shown(arm, blocks):
    """On a canvas of 96 an arm with end tokens stops after two or three words if there are no blocks."""
    pads, canvas = set(arm.diffusion.filling_token_ids), 96
    assert len(pads) == K
    problems = questions(6, 3)
    prompts = [f"{problem.question()} =" for problem in problems]
    spec = f"masked-diffusion(rule=threshold, gen_length={canvas}, block_length={canvas // blocks})"
    replies = arm.generate(prompts, spec, max_new_tokens=canvas)
    for reply in replies:
        assert not pads & set(reply.token_ids)
        assert reply.finish_reason == "stop"
    assert fmean(len(reply.token_ids) for reply in replies) > 30
    assert any(is_right(problem, reply.text) for problem, reply in zip(problems, replies, strict=True))


def test_the_arm_is_small(arm):
    assert sum(file.stat().st_size for file in ARM.iterdir()) < 2_000_000
