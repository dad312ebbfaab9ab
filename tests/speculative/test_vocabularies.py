"""What tokens of two tokenizers say, and which of them say the same."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from piece_tokenizer import PieceTokenizer
from tiny_models import byte_level_tokenizer, sentence_piece_tokenizer
from tokenizers import AddedToken, Tokenizer, normalizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from decodery.engine.vocabularies import SharedTokens, Tokens, difference
from decodery.testing import ByteTokenizer, SmallLanguageModel, TabularScorer


def tokens_of(tokenizer, vocabulary=None, name="model") -> Tokens:
    scorer = TabularScorer(vocabulary or len(tokenizer), name=name)
    return Tokens(SmallLanguageModel(scorer, tokenizer))


def changed(tokenizer, change) -> PreTrainedTokenizerFast:
    """A tokenizer like this one but for what `change` does to a copy of it."""
    raw = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    change(raw)
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>")


BYTE_LEVEL, SENTENCE_PIECE = tokens_of(byte_level_tokenizer()), tokens_of(sentence_piece_tokenizer())


@pytest.mark.parametrize("tokens", [BYTE_LEVEL, SENTENCE_PIECE], ids=["byte level", "sentence piece"])
class TestTheMiddleOfAText:
    @given(text=st.text(alphabet="the quick\n.é🙂", max_size=20))
    def test_there_and_back(self, tokens, text):
        assert tokens.decode_within(tokens.encode_within(text)) == text

    def test_a_space_is_kept_where_a_whole_text_loses_it(self, tokens):
        assert tokens.decode_within(tokens.encode_within(" the")) == " the"
        assert tokens.encode_within(" the") != tokens.encode_within("the")

    def test_special_tokens_say_nothing(self, tokens):
        end = tokens.tokenizer.eos_token_id
        assert tokens.special(end) == "<end>"
        assert tokens.decode_within([end]) == ""
        assert tokens.decode_within([end], special=True) == "<end>"
        assert tokens.special(tokens.encode_within("q")[0]) is None


def test_whole_texts_of_sentence_piece_begin_with_a_space_that_is_not_said():
    assert SENTENCE_PIECE.decode(SENTENCE_PIECE.encode("the")) == "the"
    assert SENTENCE_PIECE.decode_within(SENTENCE_PIECE.encode("the")) == " the"
    assert SENTENCE_PIECE.encode_within(" the") == SENTENCE_PIECE.encode("the")


def test_what_a_text_begins_with():
    assert BYTE_LEVEL.begin() == []

    def begin(raw):
        raw.post_processor = TemplateProcessing(single="<user> $A <end>", special_tokens=[("<user>", 1), ("<end>", 0)])

    assert tokens_of(changed(byte_level_tokenizer(), begin)).begin() == [1]
    assert tokens_of(PieceTokenizer("a", "<s>", begin="<s>")).begin() == [1]
    assert tokens_of(PieceTokenizer("b", "<s>", begin="<s>")).begin() == [], "a tokenizer that cannot say the sample"


def test_a_text_that_cannot_be_said_has_no_tokens():
    tokens = tokens_of(PieceTokenizer("a", "b", "ab"))
    assert tokens.encode("abz") == []
    assert tokens.encode_within("b") == [1], "what would merge with an anchor is read alone"
    assert tokens_of(PieceTokenizer("a", "b", "ab"), vocabulary=2).encode("ab") == [], "a token that is not scored"


# The same


def test_padding_and_tokens_on_top_make_no_difference():
    longer = changed(byte_level_tokenizer(), lambda raw: raw.add_special_tokens(["<more>"]))
    assert difference(tokens_of(byte_level_tokenizer(), 400), tokens_of(longer, 350)) is None
    assert difference(tokens_of(longer), tokens_of(byte_level_tokenizer())) is None
    assert difference(tokens_of(ByteTokenizer()), tokens_of(ByteTokenizer(), 300)) is None


def test_tokens_of_which_one_network_has_no_row_are_not_compared():
    other = changed(byte_level_tokenizer(), lambda raw: raw.add_tokens(["<one>"]))
    another = changed(byte_level_tokenizer(), lambda raw: raw.add_tokens(["<another>"]))
    size = len(byte_level_tokenizer())
    assert difference(tokens_of(other, size), tokens_of(another)) is None
    told = difference(tokens_of(other, name="left"), tokens_of(another, name="right"))
    assert told == f"token {size} is '<one>' to left and '<another>' to right"


def test_special_tokens_may_be_renamed():
    reserved = changed(byte_level_tokenizer(), lambda raw: raw.add_special_tokens(["<reserved>"]))
    renamed = changed(byte_level_tokenizer(), lambda raw: raw.add_special_tokens(["<turn>"]))
    spoken = changed(byte_level_tokenizer(), lambda raw: raw.add_tokens(["turn"]))
    assert difference(tokens_of(reserved), tokens_of(renamed)) is None
    assert difference(tokens_of(reserved), tokens_of(spoken)) is not None


def test_other_tokens_are_told():
    told = difference(
        tokens_of(PieceTokenizer("a", "b"), name="left"), tokens_of(PieceTokenizer("a", "c"), name="right")
    )
    assert told == "token 1 is 'b' to left and 'c' to right"


def test_the_same_tokens_may_be_used_otherwise():
    def normalise(raw):
        raw.normalizer = normalizers.NFC()

    told = difference(
        tokens_of(byte_level_tokenizer(), name="left"), tokens_of(changed(byte_level_tokenizer(), normalise))
    )
    assert told is not None
    assert told.startswith("left and model split")


# Shared


def test_shared_tokens_say_the_same():
    shared = SharedTokens.by_words(BYTE_LEVEL, SENTENCE_PIECE)
    said = dict(zip(shared.target.tolist(), shared.draft.tolist(), strict=True))
    for ours, theirs in said.items():
        words = [BYTE_LEVEL.special(ours) or BYTE_LEVEL.decode_within([ours])]
        words.append(SENTENCE_PIECE.special(theirs) or SENTENCE_PIECE.decode_within([theirs]))
        assert words[0] == words[1]
    assert said[BYTE_LEVEL.tokenizer.eos_token_id] == SENTENCE_PIECE.tokenizer.eos_token_id, "written the same"
    letters = [BYTE_LEVEL.encode_within(letter)[0] for letter in "abcxyz"]
    assert [SENTENCE_PIECE.tokenizer.convert_ids_to_tokens(said[token]) for token in letters] == list("abcxyz"), (
        "the letter, not its byte"
    )


@pytest.mark.parametrize("pieces", ["~ba", "ab~", "a~b"])
def test_of_two_tokens_that_say_the_same_the_one_that_is_written_is_shared(pieces):
    """As of a letter and its byte, which stand in any order."""

    class SaidTwice(PieceTokenizer):
        def decode(self, token_ids, skip_special_tokens=False):
            return super().decode(token_ids, skip_special_tokens).replace("~", "a")

    words = tokens_of(SaidTwice(*pieces)).words()
    assert words == {("text", "a"): pieces.index("a"), ("text", "b"): pieces.index("b")}


def test_parts_of_characters_are_shared_where_they_are_written_the_same():
    """The bytes of a character are no text: two byte-level tokenizers share them, one of bytes as words does not."""

    def more(raw):
        raw.add_tokens([AddedToken("Hallo")])

    shared = SharedTokens.by_words(BYTE_LEVEL, tokens_of(changed(byte_level_tokenizer(), more)))
    assert len(shared) == len(byte_level_tokenizer())
    parts = BYTE_LEVEL.encode("東")
    assert len(parts) > 1
    assert [shared.to_draft[token] for token in parts] == parts
    assert not set(parts) & set(SharedTokens.by_words(BYTE_LEVEL, SENTENCE_PIECE).to_draft)


def test_a_law_is_said_in_the_target_s_tokens():
    target, draft = tokens_of(PieceTokenizer("a", "b", "ab", "c")), tokens_of(PieceTokenizer("c", "bb", "a"), 5)
    shared = SharedTokens.by_words(target, draft)
    assert shared.to_draft == {0: 2, 3: 0}
    assert shared.scores(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])).tolist() == [3.0, -math.inf, -math.inf, 1.0]
    padded = SharedTokens.by_number(4, 2)
    assert padded.scores(torch.tensor([1.0, 2.0])).tolist() == [1.0, 2.0, -math.inf, -math.inf]
    assert SharedTokens.by_number(2, 3).scores(torch.tensor([1.0, 2.0, 3.0])).tolist() == [1.0, 2.0]
