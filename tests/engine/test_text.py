"""Streamed text: whole characters only, nothing lost, nothing of a stop string, wherever tokens end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import text_tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import byte_level_tokenizer, sentence_piece_tokenizer

from decodery.engine.text import REPLACEMENT, Decoder, TextStream
from decodery.testing import ByteTokenizer

ALPHABET = "ab c.,the\n éß東京🙂👩‍👩‍👧e\u0301\u200d\u00a0"
texts = st.text(st.sampled_from(ALPHABET), max_size=20) | st.text(max_size=12)


def byte_ids(text: str, draw: Callable[[st.SearchStrategy[int]], int]) -> list[int]:
    """One token per byte; what looks like a special token is text."""
    return list(text.encode())


def merged_ids(text: str, draw: Callable[[st.SearchStrategy[int]], int]) -> list[int]:
    """Byte-level BPE over the text's bytes cut at random places, also within characters."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    signs = bytes_to_unicode()
    letters = "".join(signs[byte] for byte in text.encode())
    model = byte_level_tokenizer().backend_tokenizer.model
    ids: list[int] = []
    while letters:
        size = draw(st.integers(1, 6))
        ids += [token.id for token in model.tokenize(letters[:size])]
        letters = letters[size:]
    return ids


def piece_ids(text: str, draw: Callable[[st.SearchStrategy[int]], int]) -> list[int]:
    """SentencePiece: unknown characters become several tokens of a byte each."""
    ids: list[int] = sentence_piece_tokenizer().encode(text)
    return ids


KINDS = {
    "bytes": (ByteTokenizer, byte_ids),
    "byte-level": (byte_level_tokenizer, merged_ids),
    "sentence pieces": (sentence_piece_tokenizer, piece_ids),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def stream(tokenizer: Decoder, ids: Sequence[int], stop: Sequence[str] = (), context: Sequence[int] = ()) -> list[str]:
    """What becomes visible with each token, and at the end."""
    stream = TextStream(tokenizer, stop, context)
    deltas = [stream.push(token) for token in ids]
    deltas.append(stream.finish())
    assert "".join(deltas) == stream.text
    return deltas


def cut(text: str, stop: Sequence[str]) -> str:
    """The text before the stop string that is complete first, the longest of those that end there."""
    for end in range(len(text) + 1):
        ending = [word for word in stop if text[:end].endswith(word)]
        if ending:
            return text[: end - max(map(len, ending))]
    return text


@kinds
@given(st.data())
def test_deltas_together_are_the_whole(kind: str, data: st.DataObject) -> None:
    make, encode = KINDS[kind]
    text = data.draw(texts, label="text")
    ids = encode(text, data.draw)
    deltas = stream(make(), ids)
    assert "".join(deltas) == make().decode(ids, skip_special_tokens=True) == text
    # A character is shown when it is complete; nothing that is later replaced.
    assert REPLACEMENT in text or not any(REPLACEMENT in delta for delta in deltas)


@kinds
@given(st.data())
def test_text_after_a_prompt_is_what_the_whole_adds(kind: str, data: st.DataObject) -> None:
    make, encode = KINDS[kind]
    prompt = encode(data.draw(texts, label="prompt"), data.draw)
    text = data.draw(texts, label="text")
    ids = encode(text, data.draw)
    decode = make().decode
    expected = decode([*prompt, *ids], skip_special_tokens=True)[len(decode(prompt, skip_special_tokens=True)) :]
    assert "".join(stream(make(), ids, context=prompt)) == expected


@given(st.lists(st.integers(0, 329), max_size=20))
def test_any_tokens_at_all(ids: list[int]) -> None:
    """Also bytes that are no text, and special tokens, which are not shown."""
    tokenizer = byte_level_tokenizer()
    ids = [token for token in ids if token < len(tokenizer)]
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


def test_characters_of_several_tokens_appear_whole() -> None:
    tokenizer = ByteTokenizer()
    assert stream(tokenizer, tokenizer.encode("é🙂x")) == ["", "é", "", "", "", "🙂", "x", ""]


def test_an_incomplete_character_is_shown_at_the_end() -> None:
    assert stream(ByteTokenizer(), [*b"ab", 0xF0, 0x9F]) == ["a", "b", "", "", REPLACEMENT]


def test_spaces_between_prompt_and_output() -> None:
    tokenizer = sentence_piece_tokenizer()
    prompt, word = tokenizer.encode("a"), tokenizer.encode("the")
    assert tokenizer.decode(word) == "the"  # alone, a word has no space before it
    assert "".join(stream(tokenizer, word, context=prompt)) == " the"
    assert "".join(stream(tokenizer, word)) == "the"


def test_special_tokens_are_not_shown() -> None:
    tokenizer = byte_level_tokenizer()
    ids = [*tokenizer.encode("a"), tokenizer.eos_token_id, *tokenizer.encode("b")]
    assert "".join(stream(tokenizer, ids)) == "ab"


# Random tokens of tokenizers of every kind


def test_llama_keeps_spaces_and_characters() -> None:
    """Words after special tokens, runs of bytes longer than the window, characters that the prompt begins."""
    tokenizer = text_tokenizers.llama()
    ids = tokenizer.convert_tokens_to_ids
    start, tool, hello, world = ids("<s>"), ids("<|tool|>"), ids("▁hello"), ids("▁world")
    signs = [ids(f"<0x{byte:02X}>") for byte in "강🙂갂갃간".encode()]
    assert "".join(stream(tokenizer, [hello, tool, world], context=[start, hello])) == " hello world"
    assert "".join(stream(tokenizer, [world], context=[hello, *[start] * 40])) == " world"
    for place in (3, 7, 10, 13):
        assert "".join(stream(tokenizer, [*signs[place:], world], context=signs[:place])).endswith("간 world")
    assert "".join(stream(tokenizer, [*signs[3:], world], context=[hello, *signs[:3]])) == "🙂갂갃간 world"
    assert "".join(stream(tokenizer, signs[5:7], context=[hello, *signs[3:5]])) == "🙂"


def pushed(tokenizer: Any, ids: Sequence[int], prompt: Sequence[int] = ()) -> str:
    return "".join(stream(tokenizer, ids, context=prompt))


every_kind = pytest.mark.parametrize("kind", text_tokenizers.KINDS)


@every_kind
@settings(max_examples=60)
@given(st.data())
def test_any_tokens_split_anywhere_are_what_the_whole_says(kind: str, data: st.DataObject) -> None:
    tokenizer = text_tokenizers.KINDS[kind]()
    anything = st.integers(0, len(tokenizer) - 1)
    few = data.draw(st.lists(anything, min_size=1, max_size=5), label="few")
    ids = data.draw(st.lists(st.sampled_from(few), max_size=40) | st.lists(anything, max_size=40), label="ids")
    place = data.draw(st.integers(0, len(ids)), label="place")
    assert pushed(tokenizer, ids) == text_tokenizers.whole(tokenizer, ids)
    prompt, output = ids[:place], ids[place:]
    assert pushed(tokenizer, output, prompt) == text_tokenizers.said_after(tokenizer, prompt, output)


NASTY = (
    *(
        "👩‍👩‍👧",
        "❤️",
        "👍🏽",
        "각",
        "ㄱㅏ",
        "e\u0301",
        "a\u0300\u0316",
        "\u0000",
        "\ufffd",
        "\ufeff",
        "\u200d",
        "\u202e",
        "עברית",
    ),
    *(" " * 9, "\n\n", "\r\n", "\t", "\u00a0", "\u3000", "नि", "ไทย", "𝒳", "I've", "don't", "x ' y", " .", "word"),
)


@pytest.mark.parametrize("kind", ["byte-level", "llama", "gemma", "diffusion-stories"])
@settings(max_examples=60)
@given(st.data())
def test_nasty_texts_split_within_characters(kind: str, data: st.DataObject) -> None:
    tokenizer = text_tokenizers.KINDS[kind]()
    text = data.draw(st.lists(st.sampled_from(NASTY) | st.text(max_size=3), max_size=8).map("".join), label="text")
    ids = tokenizer.encode(text)
    place = data.draw(st.integers(0, len(ids)), label="place")
    assert pushed(tokenizer, ids) == text_tokenizers.whole(tokenizer, ids)
    prompt, output = ids[:place], ids[place:]
    assert pushed(tokenizer, output, prompt) == text_tokenizers.said_after(tokenizer, prompt, output)


@pytest.mark.parametrize("kind", ["byte-level", "llama", "diffusion-lists"])
@pytest.mark.parametrize("repeated", [True, False])
def test_a_token_costs_the_same_after_many(kind: str, repeated: bool) -> None:
    """Counted in tokens decoded: whatever comes, even bytes that never become a character."""
    tokenizer = text_tokenizers.KINDS[kind]()
    decoded = 0

    class Counting:
        convert_ids_to_tokens = staticmethod(tokenizer.convert_ids_to_tokens)
        backend_tokenizer = tokenizer.backend_tokenizer

        def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
            nonlocal decoded
            decoded += len(token_ids)
            return str(tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens))

    count = 2000
    ids = [5 + 251] * count if repeated else [place % (len(tokenizer) - 5) + 5 for place in range(count)]
    ids = [token % len(tokenizer) for token in ids]
    "".join(stream(Counting(), ids))
    assert decoded < 40 * count


# Stop strings


@kinds
@given(st.data())
def test_the_text_ends_before_the_first_complete_stop_string(kind: str, data: st.DataObject) -> None:
    make, encode = KINDS[kind]
    text = data.draw(st.text(st.sampled_from("ab c🙂é"), max_size=25), label="text")
    stop = data.draw(st.lists(st.text(st.sampled_from("ab c🙂é"), min_size=1, max_size=4), min_size=1, max_size=3))
    ids = encode(text, data.draw)
    found = TextStream(make(), stop)
    shown = ""
    for token in ids:
        shown += found.push(token)
        # What is visible never runs into a stop string that may still become complete.
        assert cut(text, stop).startswith(shown)
        if found.stopped_by is not None:
            break
    shown += found.finish()
    assert shown == found.text == cut(text, stop)
    assert (found.stopped_by is not None) == any(word in text for word in stop)


def test_where_tokens_end_does_not_matter_for_the_cut() -> None:
    """Two stop strings of which the longer begins first and ends last."""
    for ids in ([b"abcdef"], [b"abcd", b"ef"], [b"a", b"bc", b"def"]):

        class Words:
            def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
                return b"".join(ids[token] for token in token_ids).decode()  # noqa: B023

        assert "".join(stream(Words(), range(len(ids)), ["abcdef", "cd"])) == "ab"


def test_a_stop_string_across_tokens_is_held_back_and_then_cut() -> None:
    tokenizer = ByteTokenizer()
    assert stream(tokenizer, tokenizer.encode("x STOP y"), ["STOP"]) == ["x", " ", *[""] * 7]
    assert stream(tokenizer, tokenizer.encode("x STa"), ["STOP"]) == ["x", " ", "", "", "STa", ""]


def test_held_text_is_released_at_the_end() -> None:
    tokenizer = ByteTokenizer()
    assert stream(tokenizer, tokenizer.encode("x STO"), ["STOP"]) == ["x", " ", "", "", "", "STO"]


def test_a_repeated_beginning_of_a_stop_string() -> None:
    tokenizer = ByteTokenizer()
    assert "".join(stream(tokenizer, tokenizer.encode("aaab!"), ["aab"])) == "a"
    assert "".join(stream(tokenizer, tokenizer.encode("ababac!"), ["abac"])) == "ab"


def test_a_stop_string_that_an_incomplete_character_completes() -> None:
    """Only at the end does it become clear that a character stays incomplete; the sign in its place may be a stop."""
    found = TextStream(ByteTokenizer(), [REPLACEMENT])
    found.push(0x61)
    assert found.push(0xF0) == ""
    assert found.stopped_by is None
    assert found.finish() == ""
    assert found.text == "a"


def test_nothing_becomes_visible_after_a_stop() -> None:
    found = TextStream(ByteTokenizer(), ["b"])
    assert [found.push(token) for token in b"abcd"] == ["a", "", "", ""]
    assert found.finish() == ""
    assert found.stopped_by == "b"
