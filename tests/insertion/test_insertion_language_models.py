"""The method: its law of final texts, when it ends, holes, and what it tells."""

from __future__ import annotations

import pytest
import torch

from decodery.engine.events import Finished, Inserted, Token
from decodery.engine.settings import Settings
from decodery.errors import BadPrompt, BadSetting, Refused
from decodery.evaluation.insertion_check import built
from decodery.testing import (
    InserterScorer,
    exact_outputs,
    inserting_language_model,
    random_script,
    text_law,
    total_variation,
)

METHOD = "insertion-language-models"
LETTERS, CLASS, BEGIN, HOLE = 6, 6, 7, 8


def _lm(script=None, threshold=0.6, max_length=64, letters=LETTERS, longest=9):
    scorer = InserterScorer(letters, script or random_script(letters, longest))
    return inserting_language_model(scorer, stop_threshold=threshold, max_length=max_length)


def _growing(until: int, complete: float = 0.9):
    """Surely incomplete before `until` letters, and from then on complete with this probability."""

    def script(text):
        table = torch.randn(len(text) + 1, LETTERS, generator=torch.Generator().manual_seed(len(text)))
        return table, complete if len(text) >= until else 0.1

    return script


@pytest.mark.parametrize("method", [METHOD, f"{METHOD}(gap_top_k=99)"])
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_the_law_of_final_texts_is_the_sum_over_all_orders(method, temperature):
    script = random_script(2, 3, seed=4)
    lm = _lm(script, letters=2)
    settings = Settings(temperature=temperature, max_new_tokens=3, seed=0)
    law = exact_outputs(lm, method, [3], settings, limit=50_000)
    assert total_variation(law, text_law(script, 0.6, 3, temperature)) < 1e-6


def test_another_choice_of_gaps_has_another_law():
    script = random_script(2, 3, seed=4)
    settings = Settings(temperature=1.0, max_new_tokens=3, seed=0)
    for method in (f"{METHOD}(gap_top_k=1)", f"{METHOD}(gaps=rightmost)"):
        law = exact_outputs(_lm(script, letters=2), method, [3], settings, limit=50_000)
        assert sum(law.values()) == pytest.approx(1)
        assert total_variation(law, text_law(script, 0.6, 3)) > 0.01


def test_one_forward_an_insertion_and_one_that_finds_the_text_complete():
    reply = _lm(_growing(5)).generate([1, 2], max_new_tokens=20, temperature=1.0, seed=1)
    assert len(reply.token_ids) == 3  # with the two letters of the prompt they are five
    assert (reply.stats.forwards, reply.finish_reason) == (4, "stop")
    cut = _lm(_growing(50)).generate([1, 2], max_new_tokens=3, temperature=1.0, seed=1)
    assert (len(cut.token_ids), cut.stats.forwards, cut.finish_reason) == (3, 3, "length")


def test_the_threshold_is_reached_from_below():
    lm = _lm(_growing(2, complete=0.75), threshold=0.749)
    assert lm.generate([1, 2], max_new_tokens=4, seed=0).token_ids == []
    for threshold, count in ((0.7, 0), (0.76, 4)):
        reply = lm.generate([1, 2], f"{METHOD}(stop_threshold={threshold})", max_new_tokens=4, seed=0)
        assert len(reply.token_ids) == count


def test_the_first_insertion_of_a_prompt_with_holes_is_made_whatever_the_model_says():
    lm = _lm(_growing(0))
    assert lm.generate([1, 2], max_new_tokens=4, seed=0).token_ids == []
    assert len(lm.generate([1, HOLE, 2], max_new_tokens=4, seed=0).token_ids) == 1
    assert lm.generate([1, HOLE, 2], f"{METHOD}(force_first=false)", max_new_tokens=4, seed=0).token_ids == []
    assert len(lm.generate([1, 2], f"{METHOD}(force_first=true)", max_new_tokens=4, seed=0).token_ids) == 1


def test_lengths_end_a_text():
    lm = _lm(_growing(50))
    assert len(lm.generate([1, 2], f"{METHOD}(max_steps=2)", max_new_tokens=9, seed=0).token_ids) == 2
    # Class, begin and the prompt count.
    assert len(lm.generate([1, 2], f"{METHOD}(max_length=7)", max_new_tokens=9, seed=0).token_ids) == 3
    assert len(_lm(_growing(50), max_length=6).generate([1, 2], max_new_tokens=9, seed=0).token_ids) == 2


def test_the_least_length_and_ignored_ends():
    lm = _lm(_growing(0))
    assert len(lm.generate([1, 2], max_new_tokens=9, min_new_tokens=3, seed=0).token_ids) == 3
    assert len(lm.generate([1, 2], max_new_tokens=9, ignore_eos=True, seed=0).token_ids) == 9


def test_the_rightmost_gap_alone_writes_from_left_to_right():
    reply = _lm(_growing(50)).generate([1], f"{METHOD}(gaps=rightmost)", max_new_tokens=6, temperature=1.0, seed=3)
    assert reply.stats.step_of == [0, 1, 2, 3, 4, 5]
    free = _lm(_growing(50)).generate([1], max_new_tokens=6, temperature=1.0, seed=3)
    assert free.stats.step_of != sorted(free.stats.step_of)


def test_rows_of_a_batch_that_end_at_different_times_equal_solo_runs():
    lm = _lm(threshold=0.8)
    prompts = [[], [1], [1, HOLE, 2], [3, 4, HOLE, 5, HOLE], [2, 2, 2]]
    together = lm.generate(prompts, temperature=1.0, max_new_tokens=8, seed=list(range(5)))
    assert len({reply.stats.forwards for reply in together}) > 2
    for place, prompt in enumerate(prompts):
        alone = lm.generate([prompt], temperature=1.0, max_new_tokens=8, seed=[place])[0]
        assert built(alone) == built(together[place])
        assert alone.token_ids == together[place].token_ids


def test_given_tokens_stay_as_they_are_and_holes_are_of_any_length():
    lm, prompt = _lm(threshold=0.8), [1, 2, HOLE, 3, 4, HOLE, 5]
    lengths = set()
    for seed in range(30):
        reply = lm.generate(prompt, temperature=1.0, max_new_tokens=9, seed=seed)
        tokens, steps = built(reply)
        assert tokens == reply.token_ids
        assert [token for token, step in zip(tokens, steps, strict=True) if step < 0] == [3, 4]
        first, second = reply.stats.details["fills"]
        assert reply.token_ids == [*first, 3, 4, *second]
        lengths.add((len(first), len(second)))
    assert len({one for one, _ in lengths}) > 2
    assert len({two for _, two in lengths}) > 2


def test_an_empty_prompt_is_a_text_that_begins_by_itself():
    lm = _lm(_growing(3))
    assert len(lm.generate("", temperature=1.0, max_new_tokens=6, seed=0).token_ids) == 3
    assert lm.generate([BEGIN], temperature=1.0, max_new_tokens=6, seed=0).stats.forwards == 4


def test_events_tell_of_each_insertion_before_the_text():
    lm = _lm(_growing(4))
    events = list(lm.stream([1, HOLE, 2, HOLE], temperature=1.0, max_new_tokens=6, seed=2))
    kinds = [type(event) for event in events]
    assert kinds == sorted(kinds, key=[Inserted, Token, Finished].index)
    inserted = [event for event in events if isinstance(event, Inserted)]
    assert [event.step for event in inserted] == [-1, 0, 1]
    assert [event.token_id for event in events if isinstance(event, Token)] == built_of(inserted)


def built_of(events):
    tokens = []
    for event in events:
        tokens.insert(event.offset, event.token)
    return tokens


def test_log_probabilities_are_those_of_the_gap_s_row():
    lm = _lm(_growing(50))
    reply = lm.generate([1], temperature=1.0, top_k=2, max_new_tokens=3, logprobs=2, seed=5)
    text = [1]
    for step in range(3):
        place = reply.stats.step_of.index(step)
        offset = sum(other < step for other in reply.stats.step_of[:place])
        row = _growing(50)(tuple(text))[0][offset + 1].log_softmax(-1)
        told = reply.logprobs[place]
        assert told.raw == pytest.approx(float(row[reply.token_ids[place]]), abs=1e-5)
        assert told.top[0][0] == int(row.argmax())
        assert told.processed > told.raw
        text.insert(offset + 1, reply.token_ids[place])


def test_what_is_given_is_certain():
    lm = _lm(_growing(50))
    asked = {"temperature": 1.0, "max_new_tokens": 6, "logprobs": 1, "seed": 5}
    for given in ({}, {"logit_bias": {1: -float("inf")}}):
        reply = lm.generate([HOLE, 1, 2, HOLE], **asked, **given)
        told = dict(zip(reply.stats.step_of, reply.logprobs, strict=True)) | {-1: None}
        assert all(entry.raw < 0 for step, entry in told.items() if step >= 0)
        place = reply.token_ids.index(2, reply.stats.step_of.index(-1))
        assert reply.logprobs[place].raw == reply.logprobs[place].processed == 0.0
        assert reply.logprobs[place].top[0] == (2, 0.0)


@pytest.mark.parametrize(
    ("prompt", "settings", "error", "says"),
    [
        ([1] * 63, {}, BadPrompt, "takes 65 slots"),
        ([HOLE, 1, 2, 3, HOLE], {"max_new_tokens": 3}, BadSetting, "3 tokens of the answer are given"),
        ([1], {"max_new_tokens": 60, "min_new_tokens": 62}, BadSetting, "min_new_tokens"),
        ([1] * 60, {"max_new_tokens": 9, "min_new_tokens": 4}, BadSetting, "cannot be inserted"),
        ([1], {"echo": True, "logprobs": 1}, Refused, "never scored"),
        ([1], {"repetition_penalty": 1.5}, Refused, "no prefix"),
        ([1], {"structured_outputs": {"regex": "a*"}}, Refused, "no prefix"),
    ],
)
def test_what_cannot_be_is_refused_before_work(prompt, settings, error, says):
    with pytest.raises(error, match=says):
        _lm().generate(prompt, **{"max_new_tokens": 8, **settings})


def test_other_methods_say_what_runs_on_such_a_model():
    with pytest.raises(Refused, match="insertion-language-models runs on it"):
        _lm().generate([1], "autoregressive")
    with pytest.raises(Refused, match="is an insertion one"):
        _lm().generate([1], "masked-diffusion")
