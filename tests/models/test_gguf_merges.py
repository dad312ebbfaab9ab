"""Merges from scores do what SentencePiece does: the best union first, of equals the one furthest left."""

from __future__ import annotations

import itertools

import pytest
from gguf_in_memory import CONTROL, UNUSED, USER_DEFINED, sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from decodery.errors import ModelNotReadable
from decodery.models.gguf.merges import merges_from_scores
from decodery.models.gguf.tokenizer import build_tokenizer
from decodery.models.gguf.vocabulary import Vocabulary


def joined(text: str, scores: dict[str, float]) -> list[str]:
    """What SentencePiece makes of `text`, letter by letter, as its paper and its code say."""
    pieces = list(text)
    while True:
        unions = [(scores[a + b], -i) for i, (a, b) in enumerate(itertools.pairwise(pieces)) if a + b in scores]
        if not unions:
            return pieces
        place = -max(unions)[1]
        pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]


LETTERS = "ab▁"
words = st.text(st.sampled_from(LETTERS), min_size=2, max_size=5)
texts = st.text(st.sampled_from("ab "), min_size=1, max_size=16)


def tokens_of(scores: dict[str, float], text: str) -> list[str]:
    tokenizer = build_tokenizer(sentencepiece(scores, add_space_prefix=False, add_bos_token=False))
    return tokenizer.encode(text).tokens


@settings(max_examples=150, deadline=None)
@given(order=st.lists(words, unique=True, max_size=10), text=texts)
def test_scores_that_differ(order: list[str], text: str) -> None:
    scores = {word: -float(rank) for rank, word in enumerate(order)}
    assert tokens_of(scores, text) == joined(text.replace(" ", "▁"), scores)


@settings(max_examples=300, deadline=None)
@given(scores=st.dictionaries(words, st.integers(-3, 0), max_size=7), text=texts)
def test_equal_scores_are_followed_or_refused(scores: dict[str, float], text: str) -> None:
    try:
        tokens = tokens_of(scores, text)
    except ModelNotReadable:
        return  # which vocabularies these are, the tests below say
    assert tokens == joined(text.replace(" ", "▁"), scores)


def test_of_two_equals_the_left_one_is_joined_whatever_their_order_in_the_file() -> None:
    assert tokens_of({"bc": -1.0, "ab": -1.0}, "abc") == ["ab", "c"]
    assert tokens_of({"ab": -1.0, "bc": -1.0}, "abc") == ["ab", "c"]


@pytest.mark.parametrize("count", range(1, 70))
def test_runs_of_spaces_with_one_score(count: int) -> None:
    # Llama's vocabulary gives all its runs, up to sixteen, the worst score.
    runs = {"▁" * length: -1e9 for length in (2, 4, 8, 5, 16, 6, 12, 13, 10, 14, 3, 9, 7, 11, 15, 1)}
    assert tokens_of({"ab": -1.0, **runs}, "ab" + " " * count) == joined("ab" + "▁" * count, {"ab": -1.0, **runs})


@pytest.mark.parametrize(
    "scores",
    [
        {"ab": -1.0, "ba": -1.0},  # "aba": either may come first, as the text has it
        {"ab": -1.0, "aba": -1.0, "bb": -1.0},  # a part of another of the same score
        {"ab": -1.0, "bb": -1.0, "abb": 0.0},  # a part of a better one
    ],
)
def test_scores_that_no_list_of_merges_can_follow(scores: dict[str, float]) -> None:
    with pytest.raises(ModelNotReadable, match=r"x.gguf gives several tokens the same score \('\w+' is one\)"):
        build_tokenizer(sentencepiece(scores))


def test_a_file_without_scores_says_nothing_about_words() -> None:
    file = sentencepiece({"ab": 0.0, "aba": 0.0, "ba": 0.0})
    del file.metadata["tokenizer.ggml.scores"]
    with pytest.raises(ModelNotReadable, match="the same score"):
        build_tokenizer(file)


def test_who_takes_part() -> None:
    more = {"<xy>": CONTROL, "xy": USER_DEFINED, "yz": UNUSED, "▁▁": USER_DEFINED, "x▁": CONTROL}
    vocabulary = Vocabulary.read(sentencepiece({"ab": -1.0}, more))
    assert merges_from_scores(vocabulary) == [("a", "b"), ("y", "z"), ("x", "▁"), ("▁", "▁")]
