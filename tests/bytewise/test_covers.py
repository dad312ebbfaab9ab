"""Covers of texts: sums over them are the laws of bytes, by enumeration of all texts of small languages."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import pytest

from decodery.bytewise.covers import Covers
from decodery.bytewise.encodings import START
from decodery.bytewise.reader import ByteReader, split
from decodery.bytewise.vocabulary import ByteVocabulary
from decodery.errors import BadPrompt, ConstraintFailed, MethodUnavailable
from decodery.evaluation.byte_languages import ByteLanguage, PairTokenizer, spaced, two_letters
from decodery.testing import SmallLanguageModel


def beginnings(law: Mapping[bytes, float]) -> dict[bytes, float]:
    """The probability that a text begins so, for all beginnings."""
    found: dict[bytes, float] = {}
    for text, mass in law.items():
        for length in range(len(text) + 1):
            found[text[:length]] = found.get(text[:length], 0.0) + mass
    return found


def reader_of(lm: SmallLanguageModel, text: bytes, fast: bool = False) -> ByteReader:
    vocabulary = ByteVocabulary.of(lm)
    reader = ByteReader(vocabulary, lm.network.new_sequence(), [lm.tokenizer.bos_token_id], text, fast)
    lm.run(reader.score())
    return reader


LANGUAGES = {"two letters": two_letters, "look-ahead": spaced}


@pytest.mark.parametrize("name", LANGUAGES)
def test_the_covers_of_every_beginning_have_its_probability(name: str) -> None:
    """To 1e-6, which float32 scores allow: the sum over covers, and every next byte and end, for beginnings of all lengths, cut
    within signs too."""
    language = LANGUAGES[name](6)
    lm, masses = language.model(), beginnings(language.law())
    law = language.law()
    for text, mass in list(masses.items())[:: 1 if name == "two letters" else 9]:
        reader = reader_of(lm, text)
        assert math.exp(reader.covers.log_mass()) == pytest.approx(mass, rel=1e-5, abs=1e-9)
        if mass < 1e-7:
            continue
        found = reader.law()
        for byte in range(256):
            assert found.masses[byte] == pytest.approx(masses.get(text + bytes([byte]), 0.0) / mass, abs=1e-5)
        assert found.specials.sum() == pytest.approx(law.get(text, 0.0) / mass, abs=1e-5)
        assert abs(found.leak) < 1e-5


@pytest.mark.parametrize("name", LANGUAGES)
def test_in_float64_to_twelve_digits(name: str) -> None:
    """The sums alone, with the language's own probabilities in place of a network's float32 scores."""
    import torch

    language = LANGUAGES[name](5)
    lm, masses = language.model(), beginnings(language.law())
    vocabulary = ByteVocabulary.of(lm)
    for text in list(masses)[::3]:
        covers = Covers(vocabulary, START)
        covers.extend(text)
        for left in list(covers.unscored):
            path = tuple(one.token for one in left.path()[1:])
            row = torch.full((len(vocabulary.said),), -math.inf, dtype=torch.float64)
            for token, share in language._follow.get(path, {}).items():
                row[token] = math.log(share)
            if path not in language._follow:
                row[language.tokenizer.eos_token_id] = 0.0
            covers.score(left, row)
        assert math.exp(covers.log_mass()) == pytest.approx(masses[text], abs=1e-12)


def test_streamed_and_from_scratch_agree() -> None:
    """Byte after byte, with what is forgotten on the way, as at once: chain rule and rows of the cache."""
    for make in LANGUAGES.values():
        language = make(6)
        lm = language.model()
        for text in list(language.encodings)[-60::4]:
            said = text.encode()
            streamed = reader_of(lm, b"")
            total = 0.0
            for place, byte in enumerate(said):
                law = streamed.law()
                if law.masses[byte] < 1e-6:
                    break
                total += math.log(law.masses[byte])
                streamed.settle()
                streamed.extend(bytes([byte]))
                lm.run(streamed.score())
                whole = reader_of(lm, said[: place + 1])
                assert total == pytest.approx(whole.covers.log_mass(), abs=1e-4)
                assert streamed.law().masses == pytest.approx(whole.law().masses, abs=1e-5)
                assert streamed.forwards <= 1 + (place + 1)


def test_the_tokens_of_the_prompt_alone_are_wrong() -> None:
    """After the token a, b cannot come, for ab is a token; the text ab is common all the same. And the encoding of the text
    alone, without covers, is not its probability."""
    language = two_letters(7)
    lm, masses = language.model(), beginnings(language.law())
    a, b = (language.tokenizer.get_vocab()[sign] for sign in "ab")
    assert language._follow[(a,)].get(b, 0.0) == 0
    reader = reader_of(lm, b"a")
    assert reader.law().masses[ord("b")] == pytest.approx(masses[b"ab"] / masses[b"a"], abs=1e-6)
    assert masses[b"ab"] > 0.01
    [whole] = [left for left in reader.covers.lefts if left.end == 1]
    assert math.exp(whole.log_mass) < masses[b"a"] - 0.01


def test_pairs_decide_on_all_sequences() -> None:
    """9,330 sequences of up to five tokens: a sequence is what the tokenizer makes of its bytes where all pairs are, and the
    token abab is never made."""
    language = two_letters(2)
    lm = language.model()
    vocabulary = ByteVocabulary.of(lm)
    words = language.tokenizer.get_vocab()
    tokens = [words[word] for word in ("a", "b", "ab", "aba", "bb", "abab")]
    assert [vocabulary.said[token] for token in vocabulary.encoding.unreachable] == [b"abab"]  # type: ignore[attr-defined]
    assert words["abab"] not in vocabulary.order
    count = 0
    for length in range(1, 6):
        for ids in itertools.product(tokens, repeat=length):
            count += 1
            text = vocabulary.bytes_of(ids).decode()
            real = tuple(language.tokenizer.encode(text, add_special_tokens=False)) == ids
            assert (vocabulary.fault(ids) == "") == real
    assert count == 9330


def test_two_left_encodings_at_a_run_of_spaces() -> None:
    """[a, two spaces] and [a, space, space]: which of them it is depends on what follows. The test of the text alone misses the
    second, and is off by several per cent."""
    language = spaced(6)
    lm, masses = language.model(), beginnings(language.law())
    vocabulary = ByteVocabulary.of(lm)
    covers = Covers(vocabulary, START)
    covers.extend(b"a  ")
    lefts = {tuple(vocabulary.said[one.token] for one in left.path()[1:]) for left in covers.lefts if left.end == 3}
    assert lefts == {(b"a", b"  "), (b"a", b" ", b" ")}
    off = []
    for text in ("a  ", "  ", "é  ", "a  é"):
        naive = 0.0
        for cut in range(len(text)):
            left = tuple(language.tokenizer.encode(text[:cut], add_special_tokens=False))
            for token, share in language._follow.get(left, {}).items():
                said = vocabulary.said[token]
                kept = language.tokenizer.encode(
                    (vocabulary.bytes_of(left) + said).decode(errors="ignore"), add_special_tokens=False
                )
                if said.startswith(text[cut:].encode()) and said and tuple(kept) == (*left, token):
                    own = math.prod(language._follow[left[:place]][one] for place, one in enumerate(left))
                    naive += own * share
        off.append(abs(naive - masses[text.encode()]) / masses[text.encode()])
    assert max(off) > 0.03


def test_fast_mode_keeps_what_cannot_be() -> None:
    """Of a model without leaks nothing changes; of one that leaks, what was lost stays in."""
    language = two_letters(6)
    lm = language.model()
    for text in (b"a", b"ab", b"abab"):
        slow, fast = reader_of(lm, text), reader_of(lm, text, fast=True)
        assert fast.law().masses == pytest.approx(slow.law().masses, abs=1e-6)
    from decodery.testing.scorers import TabularScorer

    leaking = SmallLanguageModel(TabularScorer(len(language.tokenizer), order=2), language.tokenizer, lm.stop_ids)
    slow, fast = reader_of(leaking, b"aa"), reader_of(leaking, b"aa", fast=True)
    assert slow.law().leak > fast.law().leak + 1e-3
    text, total, kept = b"abba", 0.0, 0.0
    reader = reader_of(leaking, b"")
    for byte in text:
        law = reader.law()
        total += math.log(law.masses[byte])
        kept += math.log(law.masses[byte] / law.total) + math.log(1 - law.leak)
        reader.extend(bytes([byte]))
        leaking.run(reader.score())
    assert total == pytest.approx(kept, abs=1e-9)
    assert total == pytest.approx(reader_of(leaking, text).covers.log_mass(), abs=1e-4)


def test_going_back() -> None:
    """A text that is cut goes on as if nothing had been behind."""
    for make in LANGUAGES.values():
        lm = make(6).model()
        reader = reader_of(lm, b"a")
        reader.settle()
        reader.extend(b"  a" if make is spaced else b"bab")
        lm.run(reader.score())
        assert reader.read != b""
        reader.cut(1)
        reader.extend(b"a")
        lm.run(reader.score())
        fresh = reader_of(lm, b"a" + reader.read)
        assert reader.law().masses == pytest.approx(fresh.law().masses, abs=1e-5)
        assert len(reader.sequence.tokens) <= 2 + len(reader.covers.lefts) + 8


def test_where_a_prompt_may_stay() -> None:
    language = two_letters(3)
    vocabulary = ByteVocabulary.of(language.model())
    begin, end = language.tokenizer.all_special_ids
    ids = language.tokenizer.encode("abbb")
    assert ids[0] == begin
    assert split(vocabulary, [*ids, end]) == len(ids) + 1
    assert split(vocabulary, ids) == 1
    assert split(vocabulary, [language.tokenizer.get_vocab()["a"]]) == 1
    with pytest.raises(BadPrompt, match="at least one token"):
        split(vocabulary, [])
    spaces = ByteVocabulary.of(spaced(2).model())
    tokenizer = spaced(2).tokenizer
    prompt = tokenizer.encode("aéa a")
    # No token goes across the border before the space.
    assert spaces.bytes_of(prompt[split(spaces, prompt) :]) == b" a"


def test_an_impossible_text_is_refused() -> None:
    lm = two_letters(2).model()
    reader = reader_of(lm, b"abab")
    with pytest.raises(ConstraintFailed, match="no probability"):
        reader.law()


def test_tokenizers_that_are_not_understood_are_refused() -> None:
    from tokenizers import models, normalizers

    class Pieces:
        eos_token_id = None

        def __len__(self) -> int:
            return 2

        def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
            return "".join(("a", "ab")[token] for token in ids)

    from decodery.testing.scorers import TabularScorer

    with pytest.raises(MethodUnavailable, match="its token b'a' begins b'ab'"):
        ByteVocabulary.of(SmallLanguageModel(TabularScorer(2), Pieces()))
    tokenizer = PairTokenizer("ab", [("a", "b")])
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(MethodUnavailable, match="changes texts first"):
        ByteVocabulary.of(SmallLanguageModel(TabularScorer(len(tokenizer)), tokenizer))
    tokenizer = PairTokenizer("ab", [("a", "b")])
    tokenizer.backend_tokenizer.model = models.WordLevel({"a": 0, "b": 1}, unk_token="a")
    with pytest.raises(MethodUnavailable, match="WordLevel"):
        ByteVocabulary.of(SmallLanguageModel(TabularScorer(len(tokenizer)), tokenizer))


def test_the_law_of_a_language_is_one() -> None:
    for make in LANGUAGES.values():
        language: ByteLanguage = make(4)
        assert sum(language.law().values()) == pytest.approx(1.0)
