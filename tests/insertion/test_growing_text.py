"""A text that grows: where its slots stand, which gaps are open, and what a prompt may hold."""

from __future__ import annotations

import random

import pytest

from decodery.errors import BadPrompt
from decodery.insertion.growing_text import GrowingText
from decodery.models.insertions import Insertions
from decodery.testing.inserters import split_rows

CLASS, BEGIN, HOLE = 20, 21, 22


def _model(behind: bool = False) -> Insertions:
    return Insertions(CLASS, BEGIN, HOLE, (), behind, 0.5, 64, split_rows)


def _read(text: GrowingText) -> list[int]:
    return [text.tokens[slot] for slot in text.ordered()]


def test_a_prompt_without_holes_leaves_one_gap_open_at_its_end():
    text = GrowingText([3, 4], _model())
    assert _read(text) == [CLASS, BEGIN, 3, 4]
    assert (text.open, text.answer, text.fills, text.given_holes) == ([3], [], [[]], False)


def test_the_begin_slot_stands_behind_the_prompt_where_the_model_was_trained_so():
    text = GrowingText([3, 4], _model(behind=True))
    assert _read(text) == [CLASS, 3, 4, BEGIN]
    assert text.open == [3]
    given = GrowingText([3, 4, BEGIN, 5, HOLE, 6], _model(behind=True))
    assert _read(given) == [CLASS, 3, 4, BEGIN, 5, 6]
    assert given.open == [4]


def test_the_empty_text_is_legal():
    text = GrowingText([], _model())
    assert (_read(text), text.open) == ([CLASS, BEGIN], [1])


def test_slots_that_a_tokenizer_put_in_front_are_not_doubled():
    assert _read(GrowingText([CLASS, BEGIN, 3], _model())) == [CLASS, BEGIN, 3]
    assert _read(GrowingText([CLASS, 3, BEGIN], _model(behind=True))) == [CLASS, 3, BEGIN]


@pytest.mark.parametrize(
    ("prompt", "behind"),
    [([3, CLASS], False), ([3, BEGIN], False), ([3, BEGIN, 4, BEGIN], True), ([3, CLASS, BEGIN], True)],
)
def test_tokens_of_the_layout_are_refused_elsewhere(prompt, behind):
    with pytest.raises(BadPrompt, match="cannot be"):
        GrowingText(prompt, _model(behind))


def test_a_hole_before_the_begin_slot_is_refused():
    with pytest.raises(BadPrompt, match="before the token that begins the answer"):
        GrowingText([3, HOLE, 4], _model(behind=True))


def test_several_holes_are_filled_in_any_order():
    text = GrowingText([HOLE, 3, 4, HOLE, HOLE, 5], _model())
    assert text.open == [1, 3]
    assert text.holes == [(1, 2), (3, 4)]
    assert [text.tokens[slot] for slot in text.answer] == [3, 4]
    assert text.insert(3, 7, 0) == 2
    assert text.insert(1, 8, 1) == 0
    assert text.insert(5, 9, 2) == 4
    assert _read(text) == [CLASS, BEGIN, 8, 3, 4, 7, 9, 5]
    assert text.fills == [[8], [7, 9]]
    assert [text.tokens[slot] for slot in text.answer] == [8, 3, 4, 7, 9]
    assert text.step_of == [-1, -1, -1, -1, -1, 0, 1, 2]


def test_a_hole_at_the_end_stays_open_to_the_end():
    text = GrowingText([3, HOLE, 4, HOLE], _model())
    assert text.holes == [(2, 3), (3, None)]
    text.insert(3, 9, 0)
    assert text.fills == [[], [9]]


def test_a_frozen_gap_takes_nothing():
    text = GrowingText([3, HOLE, 4], _model())
    for slot in (0, 1, 3):
        with pytest.raises(ValueError, match="frozen"):
            text.insert(slot, 5, 0)


def test_places_stay_without_gaps_or_repeats_and_what_is_given_keeps_its_order():
    generator = random.Random(0)
    for _ in range(100):
        prompt = [generator.choice([1, 2, 3, HOLE]) for _ in range(generator.randrange(6))]
        text = GrowingText(prompt, _model())
        expected = _read(text)
        given = list(expected)
        for step in range(generator.randrange(12)):
            slot, token = generator.choice(text.open), generator.randrange(4, 9)
            place = text.places[slot]
            first = text.places[text.holes[0][0]]
            assert text.insert(slot, token, step) == place - first
            expected.insert(place + 1, token)
            assert sorted(text.places) == list(range(len(text)))
            assert _read(text) == expected
            assert text.rightmost == max(text.open, key=lambda slot: text.places[slot])
        assert [token for token in expected if token < 4 or token > 9] == given
