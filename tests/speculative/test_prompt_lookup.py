"""Prompt lookup against a brute-force reading of its rule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decodery.speculative.draft import EMPTY
from decodery.speculative.prompt_lookup import NgramDrafter
from decodery.testing import DrafterLaws, ScriptedScorer, scripted_language_model


class TestPromptLookup(DrafterLaws):
    methods = (
        "prompt-lookup",
        "prompt-lookup(max_ngram=1, length=3, pick=last, adapt=False)",
        "prompt-lookup(pick=longest, require_full=True, length=4)",
    )
    samples = 1000


texts = st.lists(st.integers(0, 2), min_size=1, max_size=30)


def _brute_force(text: list[int], max_ngram: int, length: int, pick: str, require_full: bool) -> list[int]:
    """Compare the last g tokens with every window before them, for g from max_ngram down."""
    best: list[int] = []
    for size in range(min(max_ngram, len(text) - 1), 0, -1):
        suffix = text[-size:]
        starts = [i for i in range(len(text) - size) if text[i : i + size] == suffix]
        copies = [text[i + size : i + size + length] for i in starts]
        if require_full:
            copies = [copy for copy in copies if len(copy) == length]
        if not copies:
            continue
        copy = copies[-1] if pick == "last" else copies[0]
        if pick != "longest":
            return copy
        if len(copy) > len(best):
            best = copy
        if len(best) == length:
            break
    return best


@pytest.mark.parametrize("pick", ["first", "last", "longest"])
@pytest.mark.parametrize("require_full", [False, True])
@given(text=texts, max_ngram=st.integers(1, 4), length=st.integers(1, 6))
def test_it_copies_what_the_rule_says(pick, require_full, text, max_ngram, length):
    draft = NgramDrafter(max_ngram, length, pick, require_full).propose(text, depth=100)
    assert list(draft.tokens) == _brute_force(text, max_ngram, length, pick, require_full)
    assert draft.is_chain


@pytest.mark.parametrize("pick", ["first", "last"])
@given(text=texts, cuts=st.sets(st.integers(1, 29)))
def test_reading_bit_by_bit_is_reading_at_once(pick, text, cuts):
    piecewise = NgramDrafter(3, 5, pick, False)
    for cut in sorted(cuts):
        if cut < len(text):
            piecewise.propose(text[:cut], depth=5)
    at_once = NgramDrafter(3, 5, pick, False)
    assert list(piecewise.propose(text, depth=5).tokens) == list(at_once.propose(text, depth=5).tokens)


def test_depth_cuts_the_copy():
    text = [1, 2, 3, 4, 5, 1, 2]
    assert NgramDrafter(3, 10, "first", False).propose(text, depth=2).tokens == [3, 4]


def test_nothing_is_found_in_new_text():
    assert NgramDrafter(3, 10, "first", False).propose([1, 2, 3], depth=5) is EMPTY
    assert NgramDrafter(3, 10, "first", False).propose([1], depth=5) is EMPTY


def test_the_original_is_blind_near_the_end():
    """A text that repeats with period 2: there is something to copy, but never ten tokens before the text ends."""
    text = [7, 8, 7, 8, 7]
    assert NgramDrafter(3, 10, "first", True).propose(text, depth=10) is EMPTY
    assert list(NgramDrafter(3, 10, "first", False).propose(text, depth=10).tokens) == [8, 7]


def echo_scorer(period: int, vocabulary: int = 20) -> ScriptedScorer:
    """Always repeats the token that stood `period` places before."""

    def script(prefix: tuple[int, ...]) -> list[float]:
        return [5.0 if token == prefix[-period] else 0.0 for token in range(vocabulary)]

    return ScriptedScorer(script, vocabulary)


@pytest.mark.parametrize("method", ["prompt-lookup", "suffix-automaton", "prompt-lookup(pick=last)"])
def test_a_prompt_repeated_twice_is_copied(method):
    text = [3, 14, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6]
    lm = scripted_language_model(echo_scorer(len(text)))
    reply = lm.generate([*text, *text], method=method, max_new_tokens=60)
    assert reply.token_ids == [*text, *text, *text]
    assert reply.stats.acceptance_length > 3


def test_acceptance_is_remembered_by_the_length_of_the_match():
    draft = NgramDrafter(3, 10, "first", False).propose([1, 2, 3, 9, 1, 2, 3], depth=10)
    assert draft.kinds[:2] == [("lookup", 3, 0), ("lookup", 3, 1)]
    deep = NgramDrafter(2, 20, "first", False).propose([*range(14), 0, 1], depth=20)
    assert deep.kinds == [("lookup", 2, min(place, 8)) for place in range(len(deep))]
    assert len(deep) == 14


def test_of_equal_copies_the_longer_match_counts() -> None:
    """Both runs lead to the same place, near the end of the text."""
    draft = NgramDrafter(2, 10, "longest", False).propose([1, 2, 3, 1, 2], depth=10)
    assert (draft.tokens, draft.kinds[0]) == ([3, 1, 2], ("lookup", 2, 0))
