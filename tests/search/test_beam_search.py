"""Beam search: transformers' own texts, order and scores, and the search written out over an explicit law."""

from __future__ import annotations

import itertools
import math
from functools import cache
from typing import Any

import pytest
import torch
from tiny_models import byte_level_tokenizer, make_model, random_ids

import decodery
from decodery.engine.memory import Room
from decodery.engine.registry import method as as_method
from decodery.engine.settings import Settings
from decodery.errors import BadParameter, Refused, ScoresNotNumbers
from decodery.language_model import LanguageModel
from decodery.models.forward import Forward
from decodery.search.beams import Ending
from decodery.testing import MethodLaws, ScriptedScorer, TabularScorer, scripted_language_model, watched
from decodery.testing.outputs import new_request

TOKENS = 14
Found = list[tuple[list[int], float]]
"""Texts with their scores, best first."""


@cache
def model() -> Any:
    """Less sure of itself than a trained one, so that beams meet many near choices."""
    return make_model("llama", vocab_size=330)


@cache
def wrapped() -> LanguageModel:
    return decodery.wrap(model(), byte_level_tokenizer(), name="tiny", fast="off")


def theirs(prompt: list[int], ends: list[int], beams: int, n: int = 1, **arguments: Any) -> Found:
    """What transformers' generate finds."""
    shared = {"do_sample": False, "max_new_tokens": TOKENS, "return_dict_in_generate": True, "output_scores": True}
    shared |= {"num_beams": beams, "num_return_sequences": n, "eos_token_id": ends or None, "pad_token_id": 329}
    made = model().generate(torch.tensor([prompt]), **(shared | arguments))
    found = []
    for row, score in zip(made.sequences[:, len(prompt) :].tolist(), made.sequences_scores.tolist(), strict=True):
        length = next((place + 1 for place, token in enumerate(row) if token in ends), len(row))
        found.append((row[:length], score))
    return found


def ours(prompt: list[int], ends: list[int], method: str, n: int = 1, **settings: Any) -> Found:
    shared = {"ignore_eos": True, "stop_token_ids": ends, "max_new_tokens": TOKENS, "n": n}
    replies = wrapped().generate(prompt, method, **(shared | settings))
    return [(reply.token_ids, reply.score) for reply in (replies if n > 1 else [replies])]


@cache
def common_tokens(place: int, count: int) -> list[int]:
    """Tokens that the likeliest texts after a prompt hold, so that they end some of them when they are end tokens."""
    texts = theirs(random_ids(9, place), [], 8, 8)
    middle = [token for text, _ in texts for token in text[3:8]]
    return sorted(dict.fromkeys(middle), key=lambda token: -middle.count(token))[:count]


def assert_same(found: Found, expected: Found) -> None:
    assert [text for text, _ in found] == [text for text, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-4, rel=1e-6)


EARLY = (False, True, "never")


@pytest.mark.parametrize("early", EARLY)
@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0, -1.0])
@pytest.mark.parametrize("beams", [2, 4, 8])
def test_it_is_that_of_generate(beams: int, penalty: float, early: bool | str) -> None:
    ended = 0
    for place, ends in enumerate((0, 1, 3)):
        prompt, stop = random_ids(9, place), common_tokens(place, ends)
        n = 1 if ends == 0 else beams
        spec = f"beam-search(beams={beams}, length_penalty={penalty}, early_stopping={early})"
        expected = theirs(prompt, stop, beams, n, length_penalty=penalty, early_stopping=early)
        assert_same(ours(prompt, stop, spec, n), expected)
        ended += sum(len(text) < TOKENS for text, _ in expected)
    assert ended or penalty == 2.0, "no text has ended, so nothing was tried"


@pytest.mark.parametrize(
    "arguments",
    [
        {"repetition_penalty": 1.3},
        {"min_new_tokens": 7},
        {"repetition_penalty": 0.8, "min_new_tokens": 4},
        {"max_new_tokens": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("beams", [2, 4])
def test_processors_shape_the_scores_as_in_generate(beams: int, arguments: dict[str, Any]) -> None:
    for place in range(3):
        prompt, stop = random_ids(9, place), common_tokens(place, 2)
        expected = theirs(prompt, stop, beams, beams, **arguments)
        assert_same(ours(prompt, stop, f"beam-search(beams={beams})", beams, **arguments), expected)


def test_stop_strings_end_texts_as_in_generate() -> None:
    tokenizer, ended = byte_level_tokenizer(), 0
    for place in range(4):
        prompt = random_ids(9, place)
        likely = theirs(prompt, [], 4)[0][0]
        stop = tokenizer.decode([next(t for t in likely[3:] if tokenizer.decode([t]).isascii())])
        expected = theirs(prompt, [], 4, 4, stop_strings=[stop], tokenizer=tokenizer)
        found = ours(prompt, [], "beam-search", 4, stop=stop)
        lengths = [len(text) for text, _ in found]
        assert [text for text, _ in found] == [text[:n] for (text, _), n in zip(expected, lengths, strict=True)]
        assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-4, rel=1e-6)
        ended += sum(length < TOKENS for length in lengths)
    assert ended


def test_prompts_in_one_batch_are_those_alone_and_generate_s() -> None:
    prompts = [random_ids(9, 0), random_ids(3, 1), random_ids(30, 2)]
    batch = wrapped().generate(prompts, "beam-search", n=2, max_new_tokens=TOKENS, ignore_eos=True)
    for prompt, replies in zip(prompts, batch, strict=True):
        assert_same([(reply.token_ids, reply.score) for reply in replies], theirs(prompt, [], 4, 2))


# Without a network


def tabular(
    vocabulary: int = 5, seed: int = 0, stop_ids: tuple[int, ...] = (), concentration: float = 1.0
) -> tuple[LanguageModel, TabularScorer]:
    scorer = TabularScorer(vocabulary, order=None, seed=seed, concentration=concentration)
    return scripted_language_model(scorer, stop_ids=stop_ids), scorer


def likelihood(scorer: TabularScorer, prompt: list[int], text: tuple[int, ...]) -> float:
    return sum(math.log(float(scorer.law([*prompt, *text[:place]])[token])) for place, token in enumerate(text))


@pytest.mark.parametrize("seed", range(5))
def test_as_many_beams_as_beginnings_find_the_likeliest_text_of_all(seed: int) -> None:
    """V = 5, T = 4: with 125 beams nothing is dropped before the last token."""
    lm, scorer = tabular(seed=seed)
    every = {text: likelihood(scorer, [1, 2], text) for text in itertools.product(range(5), repeat=4)}
    best = sorted(every, key=lambda text: -every[text])[:7]
    replies = lm.generate([1, 2], "beam-search(beams=125, length_penalty=0)", n=7, max_new_tokens=4)
    assert [tuple(reply.token_ids) for reply in replies] == best
    assert [reply.score for reply in replies] == pytest.approx([every[text] for text in best], abs=1e-4, rel=1e-6)
    assert [reply.weight for reply in replies] == pytest.approx([math.exp(every[text]) for text in best], rel=1e-4)


def test_with_one_beam_it_is_greedy_decoding() -> None:
    laws = MethodLaws()
    for prompt in laws.prompts(20):
        settings: dict[str, Any] = {"max_new_tokens": 20, "stop_token_ids": [3], "presence_penalty": 0.8}
        plain = laws.host().generate(prompt, "autoregressive", logprobs=0, **settings)
        alone = laws.host().generate(prompt, "beam-search(beams=1)", logprobs=0, **settings)
        assert alone.token_ids == plain.token_ids
        assert [entry.raw for entry in alone.logprobs] == pytest.approx([entry.raw for entry in plain.logprobs])


def test_each_step_is_one_forward_and_each_beam_a_row() -> None:
    lm, _ = tabular(6)
    for beams, length in ((1, 5), (3, 7), (5, 2)):
        stats = lm.generate([1, 2, 3], f"beam-search(beams={beams})", max_new_tokens=length).stats
        assert (stats.forwards, stats.rounds) == (length, length)
        assert stats.rows == 3 + beams * (length - 1)


def test_beams_share_the_rows_of_the_prompt() -> None:
    """At every step the sequences that are scored hold what they have in common once."""
    from decodery.models.key_value_cache import bytes_held

    steps: dict[int, list[Any]] = {}
    prompt, network = random_ids(200, 3), wrapped().network

    def note(forward: Forward) -> None:
        steps.setdefault(forward.sequence.length, []).append(forward.sequence.cache)

    with watched(network, note):
        wrapped().generate(prompt, "beam-search(beams=8)", n=8, max_new_tokens=6, ignore_eos=True)
    caches = steps[max(steps)]
    assert len(caches) == 8
    assert bytes_held(caches) <= network.cache_bytes(256) + 8 * network.cache_bytes(64), (
        "each holds one block of its own"
    )


def test_what_it_keeps() -> None:
    """The prompt once, and each beam its own tokens."""
    lm, _ = tabular()
    request, method = new_request(lm, "beam-search(beams=3)", [1, 2, 3], Settings(max_new_tokens=9))
    prompt, *beams = method.caches(request)
    assert prompt == (lm.network, 12)
    assert beams == [Room(lm.network, 12, 3)] * 3


@pytest.mark.parametrize(
    ("penalty", "early", "now", "possible"),
    [
        (0.0, False, -6.0, -6.0), (1.0, False, -2.0, -2.0), (2.0, False, -2 / 3, -2 / 3), (-1.0, False, -18.0, -18.0),
        (1.0, "never", -2.0, -0.6), (0.0, "never", -6.0, -6.0), (-1.0, "never", -18.0, -18.0), (1.0, True, -2.0, -2.0),
    ],
)  # fmt: skip
def test_what_a_beam_is_and_may_still_be_ranked_by(
    penalty: float, early: bool | str, now: float, possible: float
) -> None:
    """A sum of -6 over three tokens of at most ten; where long texts are favoured, it may stay what it is to the end."""
    ending = Ending(penalty, early, 10)
    assert ending.ranked(-6.0, 3) == pytest.approx(now)
    assert ending.best_possible(-6.0, 3) == pytest.approx(possible)


def test_log_probabilities_and_weights_are_the_model_s() -> None:
    lm, scorer = tabular(6, stop_ids=(5,))
    for reply in lm.generate([1], "beam-search", n=4, max_new_tokens=6, logprobs=1):
        expected = likelihood(scorer, [1], tuple(reply.token_ids))
        assert sum(entry.raw for entry in reply.logprobs) == pytest.approx(expected, abs=1e-4, rel=1e-6)
        assert sum(entry.processed for entry in reply.logprobs) == pytest.approx(expected, abs=1e-4, rel=1e-6)
        assert math.log(reply.weight) == pytest.approx(expected, abs=1e-4, rel=1e-6)
        assert reply.score == pytest.approx(expected / len(reply.token_ids), abs=1e-4, rel=1e-6)


@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p", "min_p"])
def test_what_shapes_a_draw_is_refused(name: str) -> None:
    lm, _ = tabular()
    value = {"temperature": 0.7, "top_k": 2, "top_p": 0.5, "min_p": 0.1}[name]
    with pytest.raises(Refused, match=f"beam-search does not run with {name}: beams are not drawn"):
        lm.generate([1], "beam-search", **{name: value})


def test_more_texts_than_there_are_is_an_error() -> None:
    lm, _ = tabular()
    with pytest.raises(Refused, match="at most as many texts as beams, which are 2, and n is 3"):
        lm.generate([1], "beam-search(beams=2)", n=3)
    only = dict.fromkeys((0, 1, 2, 3), -math.inf)
    with pytest.raises(Refused, match="has found 1 texts where n=2 were asked for"):
        lm.generate([1], "beam-search(beams=2)", n=2, max_new_tokens=3, logit_bias=only)
    batch = lm.generate([[1], [2]], ["beam-search", "autoregressive"], n=2, max_new_tokens=3, logit_bias=only)
    assert [reply.error is None for group in batch for reply in group] == [False, False, True, True]


@pytest.mark.parametrize("value", ["always", 0, 1.5])
def test_early_stopping_is_one_of_three(value: Any) -> None:
    with pytest.raises(BadParameter, match="early_stopping must be"):
        as_method(f"beam-search(early_stopping={value})")


def test_scores_that_are_no_numbers_end_the_request() -> None:
    for law in ([math.nan, 0.0, 0.0], [math.inf, 0.0, 0.0], [-math.inf] * 3):
        lm = scripted_language_model(ScriptedScorer(lambda prefix, law=law: law, 3))
        with pytest.raises(ScoresNotNumbers):
            lm.generate([1], "beam-search", max_new_tokens=4)


def test_a_beam_that_may_not_go_on_leaves_the_others_alone() -> None:
    def no_way_on_after_two(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.fill_(-math.inf) if int(ids[0, -1]) == 2 else scores

    lm, _ = tabular()
    settings: dict[str, Any] = {"n": 3, "max_new_tokens": 5, "processors": [no_way_on_after_two]}
    for reply in lm.generate([1], "beam-search(beams=5)", **settings):
        assert 2 not in reply.token_ids[:-1]
        assert len(reply.token_ids) == 5
