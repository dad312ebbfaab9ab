"""Which tokens may follow which, against tokenizers themselves: every short sequence, with what may come behind it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from decodery.bytewise.encodings import START
from decodery.bytewise.splits import completions
from decodery.bytewise.vocabulary import ByteVocabulary
from decodery.errors import MethodUnavailable
from decodery.evaluation.byte_languages import PairTokenizer, spaced
from decodery.testing import SmallLanguageModel
from decodery.testing.scorers import TabularScorer

BEHIND = ("", "a", "b", " ", "\n", "é", "ü", "5", "!", " a", " é", " ü", "s", "re", "'", "  ", "<b>")


class Backed:
    """A tokenizer of the package `tokenizers` as models have it."""

    chat_template = None
    eos_token_id = None
    all_special_ids = ()

    def __init__(self, backend: Tokenizer):
        self.backend_tokenizer = backend

    def __len__(self) -> int:
        return int(self.backend_tokenizer.get_vocab_size())

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        ids: list[int] = self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> str:
        text: str = self.backend_tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        return text


def vocabulary_of(tokenizer: Any) -> ByteVocabulary:
    return ByteVocabulary.of(SmallLanguageModel(TabularScorer(len(tokenizer)), tokenizer))


def pieces() -> Backed:
    """As SentencePiece: a mark for spaces, single bytes for signs without a token, and tokens that are taken out first."""
    space = "\u2581"
    merges = [(space, "a"), ("a", "b"), (space + "a", "b"), ("a", "a"), ("é", "a")]
    words = [f"<0x{byte:02X}>" for byte in range(256)] + [space, "a", "b", "é", "<", ">", "5", "s", "!", "r", "e", "'"]
    words += [one + other for one, other in merges]
    backend = Tokenizer(
        models.BPE({word: place for place, word in enumerate(words)}, merges, byte_fallback=True, unk_token=None)
    )
    backend.normalizer = normalizers.Replace(" ", space)
    backend.decoder = decoders.Sequence([decoders.Replace(space, " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_tokens([AddedToken(text, normalized=False) for text in ("\n", "\n\n", "  ", "<b>")])
    return Backed(backend)


def looking_ahead(pattern: str) -> Backed:
    """Byte-level, behind an expression of another family."""
    tokenizer = PairTokenizer(
        "", [("Ġ", "Ġ"), ("Ġ", "a"), ("Ã", "©"), ("'", "s"), ("r", "e"), ("'", "re"), ("a", "a")], True
    )
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return Backed(tokenizer.backend_tokenizer)


LLAMA = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SMOL = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CASES: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "pieces": (pieces, ["a", "b", " ", " a", " ab", "aa", "é", "éa", "\n", "\n\n", "  ", "<b>", "<", ">"]),
    "gpt-2": (lambda: spaced(1).tokenizer, ["a", " ", "  ", " a", " aa", "é", "éa", "\n", "'", "s", "5", "!"]),
    "smollm": (lambda: looking_ahead(SMOL), ["a", " ", "  ", " a", "é", "\n", "'", "'s", "s", "re", "'re", "5", "!"]),
    "llama-3": (lambda: looking_ahead(LLAMA), ["a", " ", "  ", " a", "é", "\n", "'", "'s", "s", "5", "!"]),
}


@pytest.mark.parametrize("name", CASES)
def test_sequences_are_those_of_the_tokenizer(name: str) -> None:
    """Of every sequence of three tokens: it is allowed where the tokenizer begins some text so, and nowhere else. The mask of
    all tokens says what the question about one says."""
    make, words = CASES[name]
    tokenizer = make()
    vocabulary = vocabulary_of(tokenizer)
    tokens = [vocabulary.tokens[word.encode()][-1] for word in words]
    real: set[tuple[int, ...]] = set()
    for length in (1, 2, 3):
        for ids in itertools.product(tokens, repeat=length):
            text = vocabulary.bytes_of(ids).decode()
            if any(tuple(tokenizer.encode(text + more, add_special_tokens=False)[:length]) == ids for more in BEHIND):
                real.add(ids)
    wrong = []
    for length in (1, 2, 3):
        for ids in itertools.product(tokens, repeat=length):
            if (vocabulary.fault(ids) == "") != (ids in real):
                wrong.append([vocabulary.said[token] for token in ids])
    assert not wrong, wrong[:10]
    for ids in itertools.product(tokens, repeat=1):
        place = vocabulary.after(START, ids[0])
        mask = vocabulary.follows(place)
        assert [bool(mask[token]) for token in tokens] == [vocabulary.encoding.allows(place, token) for token in tokens]


def test_bytes_for_signs_without_a_token() -> None:
    """ü has none, and is two bytes; é has one, and its bytes are never made."""
    vocabulary = vocabulary_of(pieces())
    first, e_acute, u_umlaut = 0xC3, 0xA9, 0xBC
    place = vocabulary.after(START, first)
    assert vocabulary.encoding.allows(START, first)
    assert vocabulary.encoding.allows(place, u_umlaut)
    assert not vocabulary.encoding.allows(place, e_acute)
    assert not vocabulary.encoding.allows(START, u_umlaut)
    assert not vocabulary.encoding.allows(START, ord("a"))
    assert not vocabulary.encoding.allows(place, vocabulary.tokens[b"a"][-1])
    mask = vocabulary.follows(place)
    assert sorted(np.flatnonzero(mask)) == [byte for byte in range(0x80, 0xC0) if byte != e_acute]
    assert vocabulary.byte_tokens[ord("a")] == vocabulary.tokens[b"a"][-1] != ord("a")
    assert vocabulary.spell("aü".encode()) == [vocabulary.tokens[b"a"][-1], first, u_umlaut]


def test_a_space_that_is_written_as_another_sign_needs_no_token_of_its_byte() -> None:
    """The token of the byte 0x20 never comes: " a" would have a second encoding, and be counted twice."""
    vocabulary = vocabulary_of(pieces())
    place = vocabulary.place([])
    for byte, comes in ((0x20, False), (ord("a"), False), (ord("z"), True)):
        assert vocabulary.said[byte] == bytes([byte])
        assert bool(vocabulary.follows(place)[byte]) is comes
        assert vocabulary.encoding.allows(place, byte) is comes


def test_signs_that_begin_with_some_bytes() -> None:
    assert set(completions(b"\xc3")) == {chr(number) for number in range(0xC0, 0x100)}
    assert "…" in set(completions(b"\xe2\x80"))
    assert all(sign.encode().startswith(b"\xf0\x9f") for sign in completions(b"\xf0\x9f"))


def test_what_is_misunderstood_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer that does not merge what its merges say, and one whose tokens say something else."""

    class Apart:
        """Gives every sign by itself."""

        def __init__(self, backend: Any):
            self._backend = backend

        def __getattr__(self, name: str) -> Any:
            return getattr(self._backend, name)

        def encode(self, text: str, add_special_tokens: bool = True) -> Any:
            return SimpleNamespace(ids=[token for sign in text for token in self._backend.encode(sign).ids])

    monkeypatch.setattr("decodery.bytewise.vocabulary.SAMPLES", ("aa",))
    tokenizer: Any = spaced(1).tokenizer
    tokenizer.backend_tokenizer = Apart(tokenizer.backend_tokenizer)
    with pytest.raises(MethodUnavailable, match=r"is not understood: it puts token .* behind b'a'"):
        vocabulary_of(tokenizer)
    tokenizer = spaced(1).tokenizer
    tokenizer.backend_tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("a", "b")])
    with pytest.raises(MethodUnavailable, match="is not understood: its tokens say 'bb' and not 'aa'"):
        vocabulary_of(tokenizer)
