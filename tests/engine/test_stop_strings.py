"""Stop strings of, with and without special tokens: against a search through all places."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from text_tokenizers import llama

from decodery.engine.text import REPLACEMENT, TextStream
from decodery.testing import ByteTokenizer

END, USER = 256, 257
SPECIALS = ("<|end|>", "<|user|>")
tokens = st.lists(st.sampled_from([*b"ab|>\n", END, USER]), max_size=14)
stops = st.lists(
    st.lists(st.sampled_from([*SPECIALS, "a", "b", "ab", "|", ">", "|>", "end", "\n"]), min_size=1, max_size=3).map(
        "".join
    ),
    min_size=1,
    max_size=3,
)


def by_all_places(ids: Sequence[int], stop: Sequence[str], least: int = 0) -> tuple[str, int] | None:
    """The text before the stop string that is complete first, the longest of those, and how many tokens it took.

    A token is a unit: its sign, or the text of a special token, which the text may also be read without.
    """
    units = [(ByteTokenizer().decode([token]), token >= 256) for token in ids]
    found: list[tuple[int, int]] = []
    for skip in (False, True):
        kept = [(place, text) for place, (text, special) in enumerate(units) if not (skip and special)]
        for first in range(len(kept)):
            for last in range(first + 1, len(kept) + 1):
                if "".join(text for _, text in kept[first:last]) in stop and kept[last - 1][0] + 1 >= least:
                    found.append((kept[last - 1][0] + 1, kept[first][0]))
    if not found:
        return None
    end, start = min(found)
    return "".join(text for text, special in units[:start] if not special), end


@given(tokens, stops, st.integers(0, 6))
def test_the_text_ends_where_a_search_through_all_places_ends_it(ids: list[int], stop: list[str], least: int) -> None:
    stream = TextStream(ByteTokenizer(), stop)
    expected = by_all_places(ids, stop, least)
    visible = "".join(chr(token) for token in ids if token < 256)
    shown = ""
    for count, token in enumerate(ids, start=1):
        shown += stream.push(token, may_stop=count >= least)
        assert visible.startswith(shown)
        assert (stream.stopped_by is not None) == (expected is not None and count >= expected[1])
        if stream.stopped_by is not None:
            break
    shown += stream.finish()
    assert shown == stream.text == (visible if expected is None else expected[0])


@pytest.mark.parametrize("stop", ["<|end|>", "<|end|>\n", "b<|end|>", "b<|end|>\n", "<|end|><|user|>", "<|user|>b"])
def test_special_tokens_within_a_stop_string(stop: str) -> None:
    tokenizer = ByteTokenizer()
    stream = TextStream(tokenizer, [stop])
    shown = "".join(stream.push(token) for token in [*tokenizer.encode(f"xa{stop}"), *b"more"])
    assert shown + stream.finish() == "xa"
    assert stream.stopped_by == stop


@pytest.mark.parametrize("stop", ["|", "end", "<|", ">x", "a<|en"])
def test_a_part_of_a_special_token_is_no_text(stop: str) -> None:
    stream = TextStream(ByteTokenizer(), [stop])
    shown = "".join(stream.push(token) for token in [*b"a", END, *b"x"])
    assert (shown + stream.finish(), stream.stopped_by) == ("ax", None)


def test_the_text_of_a_special_token_spelled_in_letters() -> None:
    stream = TextStream(ByteTokenizer(), ["<|end|>"])
    assert "".join(stream.push(token) for token in b"a<|end|>b") + stream.finish() == "a"


def test_a_token_that_is_not_shown_completes_a_stop_string() -> None:
    """The token that ends a turn may be a word; the stop string is complete with it all the same."""
    stream = TextStream(ByteTokenizer(), ["xy"])
    assert [stream.push(0x61), stream.push(0x78), stream.push(0x79, shown=False)] == ["a", "", ""]
    assert stream.finish() == ""
    assert (stream.text, stream.stopped_by) == ("a", "xy")


def bytes_of(text: str) -> list[int]:
    ids: list[int] = llama().convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in text.encode()])
    return ids


def test_within_a_run_of_bytes_a_stop_string_ends_at_once() -> None:
    """Though text of the run is not shown before the run is over: a line break is such a token in Llama 2."""
    stream = TextStream(llama(), ["\n", "ü"])
    assert [stream.push(token) for token in bytes_of("🙂\n")] == ["", "", "", "", "🙂"]
    assert stream.stopped_by == "\n"


@pytest.mark.parametrize("stop", ["\n</s>", "</s>\n", "🙂</s>"])
def test_special_tokens_beside_bytes(stop: str) -> None:
    tokenizer = llama()
    stream = TextStream(tokenizer, [stop])
    before, after = stop.split("</s>")
    ids = [*bytes_of("é" + before), tokenizer.eos_token_id, *bytes_of(after)]
    for token in ids:
        assert stream.stopped_by is None
        stream.push(token)
    assert (stream.stopped_by, stream.text) == (stop, "é")


def test_bytes_that_turn_out_to_be_no_text_match_nothing() -> None:
    tokenizer = llama()
    stream = TextStream(tokenizer, ["éé", "x"])
    ids = [*bytes_of("é"), tokenizer.convert_tokens_to_ids("<0xC3>"), tokenizer.convert_tokens_to_ids("m")]
    assert "".join(stream.push(token) for token in ids) + stream.finish() == REPLACEMENT * 3 + "m"


def test_a_stop_string_that_the_prompts_last_character_begins() -> None:
    half = bytes_of("🙂")
    stream = TextStream(llama(), ["🙂"], context=half[:2])
    assert [stream.push(token) for token in half[2:]] == ["", ""]
    assert (stream.stopped_by, stream.text) == ("🙂", "")


@pytest.mark.parametrize(
    ("ids", "stop", "shown", "by"),
    [
        # Begun before a special token that it does not hold: held back all the same.
        ([*b"xa", END, *b"bb"], ["abb"], ["x", "", "", "", ""], "abb"),
        ([*b"xa", END, *b"bx"], ["abb", "<|end|>bb"], ["x", "", "", "", "abx"], None),
        # Complete at the same place: the one that begins first, with special tokens or without.
        ([END, *b"ab"], ["<|end|>ab", "b"], ["", "", ""], "<|end|>ab"),
        ([*b"a", END, *b"b"], ["ab", "<|end|>b"], ["", "", ""], "ab"),
        ([*b"a", END, *b"b"], ["b", "<|end|>b"], ["a", "", ""], "<|end|>b"),
        ([END, USER, *b"a"], ["<|user|>a", "<|end|><|user|>a"], ["", "", ""], "<|end|><|user|>a"),
    ],
)
def test_in_the_text_and_in_the_tokens_at_once(
    ids: list[int], stop: list[str], shown: list[str], by: str | None
) -> None:
    stream = TextStream(ByteTokenizer(), stop)
    assert [stream.push(token) for token in ids] == shown
    assert stream.stopped_by == by


def test_the_one_that_is_complete_first_within_a_token() -> None:
    class Words:
        def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
            words = ["a", "bcd"] if skip_special_tokens else ["a", "bcd", "<end>"]
            return "".join(words[token] for token in token_ids if token < len(words))

    for stop, text, by in (
        (["bc", "<end>bcd"], "a", "bc"),
        (["<end>b", "bcd"], "a", "<end>b"),
        (["c", "<end>bcd"], "ab", "c"),
    ):
        stream = TextStream(Words(), stop)
        for token in (0, 2, 1):
            stream.push(token)
        assert (stream.text, stream.stopped_by) == (text, by)


def test_an_unseen_token_behind_held_back_text_keeps_its_place() -> None:
    """The text alone could still begin the string; with what stands behind it, it cannot."""
    stream = TextStream(ByteTokenizer(), ["b<|user|>"])
    shown = "".join(stream.push(token) for token in (98, 256, 257)) + stream.finish()
    assert stream.stopped_by is None
    assert shown == "b"
