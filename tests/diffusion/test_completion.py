"""Canvases that are held to a constraint: what may come where, by enumeration, and what comes of it."""

from __future__ import annotations

import itertools
import math
import re

import pytest
import torch
from letter_constraints import over_letters

from decodery.diffusion.canvas import Canvas
from decodery.diffusion.completion import Completion
from decodery.diffusion.laws import Laws
from decodery.diffusion.unmasking.base import Commit
from decodery.engine.settings import Settings
from decodery.errors import BadSetting, Refused
from decodery.models.masked_diffusion import MaskedDiffusion
from decodery.sampling.law import Law, LawSettings
from decodery.sampling.noise import Noise
from decodery.testing import (
    TabularDenoiser,
    denoising_language_model,
    exact_outputs,
    total_variation,
    toy_diffusion_model,
)

WORDS = ("a", "ab", "b", "ba", "c", ".", "_", "x")
END, PAD, MASK = 5, 6, 7
MODEL = MaskedDiffusion(MASK, end_token_ids=(END,), filling_token_ids=(PAD,))
LENGTH = 4


def _balanced(text):
    return re.fullmatch("a*cb*", text) and text.count("a") == text.count("b")


LANGUAGES = {
    "regex": ({"regex": "(ab)*c?"}, re.compile("(ab)*c?").fullmatch),
    "choice": ({"choice": ["abba", "c", "bab"]}, re.compile("abba|c|bab").fullmatch),
    "grammar": ({"grammar": 'start: "a" start "b" | "c"'}, _balanced),
    "right-linear": ({"grammar": 'start: "a" start | "b" x\nx: "c" start | "a"'}, re.compile("(a|bc)*ba").fullmatch),
    "left-linear": ({"grammar": 'start: start "a" | x "b"\nx: start "c" | "a"'}, re.compile("ab(a|cb)*").fullmatch),
}


def completion(most=LENGTH, least=0, ends=(END,), pads=(), banned=(MASK,), **given):
    return Completion(over_letters(8, WORDS, **given).automaton, most, least, ends=ends, pads=pads, banned=banned)


def canvas_of(*tokens):
    """A canvas with these tokens, None where it is masked."""
    canvas = Canvas((), len(tokens), MODEL)
    filled = [offset for offset, token in enumerate(tokens) if token is not None]
    canvas.fill(filled, [tokens[offset] for offset in filled], 0)
    return canvas


def text_of(tokens, most=LENGTH, ends=(END,)):
    """The text that the first positions say, and the offset of its end token."""
    end = next((offset for offset in range(most) if tokens[offset] in ends), None)
    return tokens[: most if end is None else end], end


def fits(tokens, accepts, least=0, banned=(MASK,), ends=(END,)):
    text, end = text_of(tokens, ends=ends)
    if not {*banned}.isdisjoint(tokens) or (end is not None and end < least) or {END, PAD} & {*text}:
        return False
    return bool(accepts("".join(WORDS[token] for token in text)))


def canvases():
    """Some canvases with few and many open positions."""
    yield (None,) * LENGTH
    for offset, token in itertools.product(range(LENGTH), (0, 1, 4, END)):
        yield tuple(token if place == offset else None for place in range(LENGTH))
    yield (0, None, None, 2)
    yield (None, 4, None, END)


@pytest.mark.parametrize("name", LANGUAGES)
@pytest.mark.parametrize("least", [0, 2])
def test_what_may_come_is_what_can_be_completed(name, least):
    given, accepts = LANGUAGES[name]
    held = completion(least=least, **given)
    assert held.told["nesting"] is None or name == "grammar"
    whole = [tokens for tokens in itertools.product(range(7), repeat=LENGTH) if fits(tokens, accepts, least)]
    assert whole
    tried = 0
    for filled in canvases():
        left = [tokens for tokens in whole if all(f in (None, t) for f, t in zip(filled, tokens, strict=True))]
        if not left:
            continue
        tried += 1
        masked = [offset for offset, token in enumerate(filled) if token is None]
        rows = held.allowed(canvas_of(*filled), masked)
        for row, offset in zip(rows, masked, strict=True):
            expected = {tokens[offset] for tokens in left}
            assert {*row.nonzero()[:, 0].tolist()} - {MASK} == expected, (filled, offset)
    assert tried > 4


def test_a_text_without_end_tokens_fills_the_canvas():
    held = completion(ends=(), regex="(ab)*c?")
    whole = [
        t for t in itertools.product(range(5), repeat=LENGTH) if re.fullmatch("(ab)*c?", "".join(WORDS[i] for i in t))
    ]
    rows = held.allowed(canvas_of(*[None] * LENGTH), range(LENGTH))
    for offset, row in enumerate(rows):
        assert {*row.nonzero()[:, 0].tolist()} == {tokens[offset] for tokens in whole}


def test_behind_the_longest_text_everything_is_free():
    rows = completion(most=2, regex="ab").allowed(canvas_of(*[None] * 3), range(3))
    assert rows[2].all()
    assert not rows[1][4]


def test_behind_a_pad_only_pads_come():
    held = completion(pads=(PAD,), regex="ab")
    assert held.allowed(canvas_of(1, PAD, None, None), [2, 3]).nonzero().tolist() == [[0, PAD], [1, PAD]]
    assert held.allowed(canvas_of(1, None, PAD, None), [1]).nonzero()[:, 1].tolist() == [END, PAD]


def test_what_is_banned_counts_as_impossible():
    rows = completion(banned=(MASK, 1), regex="(ab)*c?").allowed(canvas_of(*[None] * LENGTH), [0])
    assert rows.nonzero()[:, 1].tolist() == [0, 4, END]  # "ab" as one token never comes
    with pytest.raises(BadSetting, match="fits on 4 positions"):
        completion(banned=(MASK, 0, 1, 4, END), regex="(ab)*c?")


def test_a_language_that_does_not_fit_is_refused():
    with pytest.raises(BadSetting, match="fits on 2 positions"):
        completion(most=2, regex="c{3}")
    with pytest.raises(BadSetting, match="fits on 4 positions and takes at least 3"):
        completion(least=3, regex="c")


def _laws(scores, seed=0, temperature=1.0):
    law = Law(LawSettings(temperature=temperature), (), ())
    return Laws(range(len(scores)), scores, law, Noise(seed), 0)


def test_what_is_filled_together_can_stand_together():
    held = completion(regex="(ab|ba)c")
    scores = torch.zeros(LENGTH, 8)
    scores[~held.allowed(canvas_of(*[None] * LENGTH), range(LENGTH))] = -math.inf
    given = (0, 0, 4, END)
    for temperature in (0.0, 1.0):
        settled = held.settled(canvas_of(*[None] * LENGTH), Commit((0, 1, 2, 3), given), _laws(scores, 0, temperature))
        assert fits(settled.tokens, lambda text: text in ("abc", "bac"))
        assert settled.tokens[0] == 0, "what can stand is left as it is"
    assert held.settled(canvas_of(*[None] * LENGTH), Commit((3, 1), (END, 2)), _laws(scores)) == Commit(
        (3, 1), (END, 2)
    )


def test_a_token_that_is_drawn_again_has_the_law_of_what_is_left():
    held = completion(most=2, regex="a(a|b|c)|bx")
    scores = torch.tensor([0.1, 0.0, 1.2, 0.0, 0.4, -9.0, 0.0, 2.0]).expand(2, 8).clone()
    scores[:, MASK] = -math.inf
    open_canvas = canvas_of(None, None)
    drawn = torch.zeros(8)
    for seed in range(2000):
        settled = held.settled(open_canvas, Commit((0, 1), (0, 7)), _laws(scores, seed))
        drawn[settled.tokens[1]] += 1
    law = torch.full((8,), -math.inf)
    law[[0, 2, 4]] = scores[1, [0, 2, 4]]
    assert total_variation(dict(enumerate((drawn / 2000).tolist())), dict(enumerate(law.softmax(0).tolist()))) < 0.04


REGEX = {"regex": "a(b|c)*a|bb"}


def test_the_law_is_the_models_restricted_and_renormalised_step_by_step():
    """One token a step at the surest position by its law: what comes follows from the laws of the steps alone."""
    oracle = TabularDenoiser.random(3, 3, 1)
    settings = Settings(temperature=1.0, max_new_tokens=3, seed=0, structured_outputs=_constraint(REGEX))
    spec = "masked-diffusion(value_independent=True,block_length=1)"
    found = exact_outputs(denoising_language_model(oracle), spec, [0, 1], settings)
    whole = [
        t for t in itertools.product(range(3), repeat=3) if re.fullmatch(REGEX["regex"], "".join("abc"[i] for i in t))
    ]
    expected = {}
    joint = oracle.law()
    for text in whole:
        mass = 1.0
        for offset in range(3):
            law = {}
            for outcome, probability in joint.items():
                if outcome[:offset] == text[:offset]:
                    law[outcome[offset]] = law.get(outcome[offset], 0.0) + probability
            may = {t[offset] for t in whole if t[:offset] == text[:offset]}
            mass *= law[text[offset]] / sum(law[token] for token in may)
        expected[text] = mass
    assert total_variation(found, expected) < 1e-5


def _constraint(given):
    from decodery.sampling.structured.constraint import constraint_of

    return constraint_of("structured_outputs", given)


METHODS = (
    "masked-diffusion", "masked-diffusion(tokens_per_step=4)", "masked-diffusion(rule=threshold,threshold=0.05)",
    "masked-diffusion(rule=ancestral)", "masked-diffusion(rule=entropy,steps=3)", "masked-diffusion(cfg_scale=1.0)",
    "masked-diffusion(cache=dual,block_length=4)", "freedave", "freedave(layout=tree)",
    "localleap(threshold=0.1,relaxed_threshold=0.1)",
    "hex", "sched", "adablock", "freecache",
)  # fmt: skip


@pytest.mark.parametrize("spec", METHODS)
def test_what_comes_is_in_the_language(spec):
    shift = METHODS.index(spec) % 2 == 1
    lm = toy_diffusion_model(shift=shift, stop_ids=(22,))
    nested = {"grammar": 'start: "a" start "b" | "c" | "e" "f"* "e"'}
    for seed, given in enumerate(({"regex": "(ab+c|k[d-g]*)+"}, nested)):
        reply = lm.generate([3, 1, 4], spec, temperature=1.0, seed=seed, structured_outputs=given)
        text = "".join(chr(ord("a") + token) for token in reply.token_ids if token != 22)
        known = "(ab+c|k[d-g]*)+" if "regex" in given else "(?P<a>a*)(c|ef*e)(b*)"
        match = re.fullmatch(known, text)
        assert match, text
        assert "regex" in given or len(match["a"]) == len(match[3])


def test_drafted_states_are_those_of_the_static_decoder():
    lm = toy_diffusion_model()
    asked = {"temperature": 1.0, "seed": 5, "structured_outputs": {"regex": "(ab+c|k[d-g]*)+"}}
    static = lm.generate([3, 1, 4], "masked-diffusion(block_length=4)", **asked)
    drafted = lm.generate([3, 1, 4], "freedave(block_length=4)", **asked)
    assert static.token_ids == drafted.token_ids
    assert static.stats.step_of == drafted.stats.step_of


def test_a_constraint_that_allows_all_leaves_every_token_as_it_is():
    lm = toy_diffusion_model()
    free = lm.generate([3, 1, 4], "masked-diffusion(tokens_per_step=3)", temperature=1.0, seed=2)
    held = lm.generate(
        [3, 1, 4],
        "masked-diffusion(tokens_per_step=3)",
        temperature=1.0,
        seed=2,
        structured_outputs={"regex": "(?s:.)*"},
    )
    assert (held.token_ids, held.stats.step_of) == (free.token_ids, free.stats.step_of)
    assert "constraint" in held.stats.details
    assert "constraint" not in free.stats.details


def test_log_probabilities_are_those_of_what_may_come():
    lm = toy_diffusion_model()
    reply = lm.generate([3], "masked-diffusion", structured_outputs={"regex": "abcabcabcabc"}, logprobs=1)
    assert reply.text == "abcabcabcabc"
    assert [one.processed for one in reply.logprobs] == pytest.approx([0.0] * 12)


def test_what_canvases_cannot_be_held_to_is_refused_by_name():
    lm = toy_diffusion_model()
    cases = {
        "the predicate": ({"predicate": lambda text: True}, Refused),
        "states; at most 4096": ({"regex": "(a|b)*a(a|b){12}"}, Refused),
        "fits on 12 positions": ({"regex": "a{13}"}, BadSetting),
    }
    for said, (given, error) in cases.items():
        with pytest.raises(error, match=re.escape(said)):
            lm.generate([3], "masked-diffusion", structured_outputs=given)
