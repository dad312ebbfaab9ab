"""What a draft model reads of a text that the target's tokenizer has split, and how its cache follows."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from piece_tokenizer import PieceTokenizer
from tiny_models import byte_level_tokenizer, sentence_piece_tokenizer

from decodery.engine.vocabularies import SharedTokens, Tokens
from decodery.models.forward import Forward
from decodery.speculative.draft_laws.transcript import STRETCH, OtherTokens, SameTokens, Transcript
from decodery.testing import SmallLanguageModel, TabularScorer

TEXT = "the quick brown fox jumps over the lazy dog. "


def tokens_of(tokenizer) -> Tokens:
    return Tokens(SmallLanguageModel(TabularScorer(len(tokenizer)), tokenizer))


BYTE_LEVEL, SENTENCE_PIECE = tokens_of(byte_level_tokenizer()), tokens_of(sentence_piece_tokenizer())
BOTH = [(BYTE_LEVEL, SENTENCE_PIECE), (SENTENCE_PIECE, BYTE_LEVEL)]
both = pytest.mark.parametrize(("target", "draft"), BOTH, ids=["read as pieces", "read as bytes"])


def reading(target, draft) -> OtherTokens:
    return OtherTokens(target, draft, SharedTokens.by_words(target, draft).to_draft)


@both
@settings(max_examples=25)
@given(text=st.text(alphabet="the quick.\n é", min_size=1, max_size=30))
def test_a_text_is_read_as_its_own_tokenizer_splits_it(target, draft, text):
    ids = reading(target, draft).read(target.encode(text))
    assert ids == draft.encode(target.decode(target.encode(text)))


@both
@settings(max_examples=25)
@given(pieces=st.lists(st.sampled_from(["the", " the", " quick", " ", "\n", ".", "x", "é", " 🙂"]), max_size=150))
def test_the_text_may_come_in_any_steps(target, draft, pieces):
    """What is read in the end says the text, and what was settled stays."""
    tokens = target.encode("q")
    growing = reading(target, draft)
    settled: list[int] = []
    ids: list[int] | None = []
    for piece in pieces:
        tokens += target.encode_within(piece)
        ids = growing.read(tokens)
        assert ids is not None
        assert ids[: len(settled)] == settled
        settled = ids[: growing.settled]
    if pieces:
        assert draft.decode(ids) == target.decode(tokens)
        assert len(ids) - len(settled) < 5 * (STRETCH + len(target.encode_within(pieces[-1])) + 40)


@both
def test_a_long_text_is_settled_at_words(target, draft):
    tokens = target.encode(TEXT * 20)
    growing = reading(target, draft)
    for count in range(1, len(tokens) + 1):
        growing.read(tokens[:count])
    assert growing.ids == draft.encode(TEXT * 20)
    assert len(growing.ids) - growing.settled < 2 * STRETCH


def test_an_incomplete_character_is_read_by_its_parts_or_not_at_all():
    tokens = BYTE_LEVEL.encode("the 東")
    assert reading(BYTE_LEVEL, SENTENCE_PIECE).read(tokens[:-1]) is None
    whole = reading(BYTE_LEVEL, SENTENCE_PIECE)
    assert whole.read(tokens[:-1]) is None
    assert whole.read(tokens) == SENTENCE_PIECE.encode("the 東")
    again = reading(BYTE_LEVEL, BYTE_LEVEL)
    assert again.read(tokens[:-1]) == tokens[:-1]
    assert again.read(tokens) == tokens


def test_the_sign_for_what_cannot_be_read_is_a_character_too():
    text = "the \ufffd\ufffd dog"
    growing = reading(BYTE_LEVEL, SENTENCE_PIECE)
    read = [growing.read(BYTE_LEVEL.encode(text)[: count + 1]) for count in range(len(BYTE_LEVEL.encode(text)))]
    assert read[-1] == SENTENCE_PIECE.encode(text)
    assert reading(BYTE_LEVEL, SENTENCE_PIECE).read(BYTE_LEVEL.encode("東")[:1] * 9) is not None, "never a character"


def test_special_tokens_are_said_where_both_have_them():
    target = tokens_of(PieceTokenizer("a", "b", "ab", "<user>", "<end>"))
    draft = tokens_of(PieceTokenizer("<s>", "b", "a", "ba", "<end>", begin="<s>"))
    assert reading(target, draft).read([3, 0, 1, 4, 1, 0, 3, 1]) == [0, 2, 1, 4, 3, 1]


# The cache


class Follower:
    """A draft model's cache, fed with what the transcript says is missing."""

    def __init__(self, reading, context=1 << 16):
        self.scorer = TabularScorer(400, context=context)
        self.sequence = self.scorer.new_sequence()
        self.transcript = Transcript(reading, self.sequence)

    def follow(self, tokens) -> int | None:
        pending = self.transcript.pending(tokens)
        if pending is None:
            return None
        self.scorer.run([Forward(self.sequence, pending)])
        assert self.sequence.tokens == self.transcript.rendering.ids
        return len(pending)

    def draft(self, token):
        self.scorer.run([Forward(self.sequence, [token])])


@both
def test_the_cache_follows_without_reading_the_text_again(target, draft):
    tokens = target.encode(TEXT * 10)
    follower = Follower(reading(target, draft))
    fed = []
    for count in range(40, len(tokens) + 1):
        fed.append(follower.follow(tokens[:count]))
        follower.draft(count % 300)  # which the next text does not bear out
    assert fed[0] > 5
    assert max(fed[1:]) <= 8, "the last word or two"
    assert sum(fed) < len(fed) + 3 * len(follower.sequence.tokens)


def test_what_was_drafted_and_is_borne_out_is_not_read_again():
    follower = Follower(reading(BYTE_LEVEL, BYTE_LEVEL))
    tokens = BYTE_LEVEL.encode(TEXT)
    follower.follow(tokens[:4])
    for token in tokens[4:8]:
        follower.draft(token)
    assert follower.follow(tokens[:9]) == 1


def test_nothing_goes_wrong_while_the_text_cannot_be_read():
    """The text grows by a whole stretch, and settles, while the cache stands still before an incomplete character."""
    tokens = BYTE_LEVEL.encode("the quick 東")
    follower = Follower(reading(BYTE_LEVEL, SENTENCE_PIECE))
    follower.follow(tokens[:3])
    for token in (7, 8, 9):
        follower.draft(token)
    assert follower.follow(tokens[:-1]) is None
    longer = tokens[:-1] + BYTE_LEVEL.encode_within(TEXT * 5) + tokens[-3:-1]
    assert follower.follow(longer) is None
    assert follower.follow([*longer, *BYTE_LEVEL.encode_within(" the")]) > 10


def test_the_last_token_is_always_fed():
    """Of a text whose new tokens say nothing to the draft model, too: it is asked what comes next."""
    follower = Follower(SameTokens(10))
    assert follower.follow([1, 2, 3]) == 3
    assert follower.follow([1, 2, 3, 11]) == 1
    assert follower.follow([1, 2, 3, 11, 4]) == 1
    assert Follower(SameTokens(10)).follow([11, 12]) is None


def test_a_text_longer_than_the_context_is_not_read():
    follower = Follower(SameTokens(10), context=4)
    assert follower.follow([1, 2, 3, 4]) == 4
    assert follower.follow([1, 2, 3, 4, 5]) is None
