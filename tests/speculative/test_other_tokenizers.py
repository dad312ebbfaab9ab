"""Draft models of another tokenizer: by the tokens that both have, and as text."""

from __future__ import annotations

from functools import cache

import pytest
from piece_tokenizer import PieceTokenizer
from tiny_models import byte_level_tokenizer, make_model, sentence_piece_tokenizer

import decodery
from decodery.engine.settings import Settings
from decodery.engine.vocabularies import SharedTokens, Tokens
from decodery.errors import BadParameter, MethodUnavailable
from decodery.models import store
from decodery.testing import (
    SmallLanguageModel,
    TabularScorer,
    exact_outputs,
    goodness_of_fit,
    sampled_outputs,
    total_variation,
    toy_diffusion_model,
)
from decodery.testing.outputs import new_request

ROUNDING = 1e-5
PLAIN = "autoregressive"
METHODS = (
    "draft-model(draft=other, length=2)",
    "draft-model(draft=other, length=2, width=2)",
    "spectr(draft=other, drafts=2, length=2)",
    "optimal-multi-draft(draft=other, widths=2x1)",
    "optimal-multi-draft(draft=other, widths=2x1, mode=with-replacement)",
    "recursive-speculative-decoding(draft=other, width=2, length=2)",
    "recursive-speculative-decoding(draft=other, tree=branching, branching=2x1)",
)
"""All that draw from a draft law."""
SHARING = [method.replace("draft=other", "draft=other, vocabulary=shared") for method in METHODS]
TEXT = "draft-model(draft=other, length=3, vocabulary=text)"
TARGET, DRAFT = PieceTokenizer("a", "b", "ab", "<end>"), PieceTokenizer("<s>", "b", "a", "bb", "ba", begin="<s>")
"""Both say a and b, in other ids; "ab" and "ba" merge across the border of a draft."""


def two_tokenizers(target=TARGET, draft=DRAFT, seed=5):
    """Laws over the whole prefix, so that a wrong law is another one everywhere."""
    scorer = TabularScorer(len(target), order=None, seed=seed)
    lm = SmallLanguageModel(scorer, target, stop_ids=(3,))
    lm.companions["other"] = SmallLanguageModel(TabularScorer(len(draft), order=None, seed=8, name="other"), draft)
    return lm, scorer


@pytest.mark.parametrize(
    "settings", [{"temperature": 0.7, "repetition_penalty": 1.5}, {"temperature": 1.0, "top_p": 0.8}]
)
@pytest.mark.parametrize("method", [*SHARING, TEXT])
def test_the_law_holds_with_another_tokenizer(method, settings):
    """Enumerated through the whole engine, with an end token that the draft model does not have."""
    lm, scorer = two_tokenizers()
    count = 3 if method in (SHARING[0], TEXT) else 2
    checked = Settings(**settings, max_new_tokens=count, seed=0)
    found = exact_outputs(lm, method, [0, 1], checked)
    assert total_variation(found, scorer.joint([0, 1], count, checked, (3,))) < ROUNDING


@pytest.mark.parametrize("method", [SHARING[0], SHARING[5], TEXT])
def test_the_law_holds_with_another_tokenizer_and_real_noise(method):
    lm, scorer = two_tokenizers()
    settings = Settings(temperature=0.8, top_p=0.9, max_new_tokens=3, seed=1)
    fit = goodness_of_fit(
        sampled_outputs(lm, method, [0, 1, 2], settings, 600), scorer.joint([0, 1, 2], 3, settings, (3,))
    )
    assert fit.p_value > 1e-6


def test_a_text_that_was_drafted_is_followed_token_by_token():
    """The target's own draws are those of plain decoding, at any temperature."""
    lm, _ = two_tokenizers()
    drafted = 0
    for seed in range(20):
        settings = {"temperature": 1.0, "seed": seed, "max_new_tokens": 20}
        reply = lm.generate([0, 1], method=TEXT, **settings)
        assert reply.token_ids == lm.generate([0, 1], method=PLAIN, **settings).token_ids
        drafted += reply.stats.drafted
    assert drafted > 0


def reciting(tokenizer, text, name):
    """A scorer that goes on with `text` token by token, as its tokenizer splits it, wherever a beginning of it stands."""

    def law(prefix):
        said = tokenizer.decode(prefix, skip_special_tokens=True)
        known = text.startswith(said) and len(said) < len(text)
        rest = tokenizer.encode(text[len(said) :], add_special_tokens=False) if known else [0]
        return [1.0 if token == rest[0] else 0.0 for token in range(len(tokenizer))]

    return TabularScorer(len(tokenizer), order=None, given=law, name=name)


class TestAcceptance:
    """Where both models say the same text, all that can be said is accepted: nothing is lost at borders."""

    WORDS = PieceTokenizer("a", "b", "c", " ", " a", "ab", " abc", "<end>")
    LETTERS = PieceTokenizer("<s>", "c", "b", "a", " ", begin="<s>")
    STORY = "ab abc a cab abc ba abc abc b abcab"

    def stats(self, target, draft, spec, **settings):
        lm = SmallLanguageModel(reciting(target, self.STORY, "target"), target)
        lm.companions["other"] = SmallLanguageModel(reciting(draft, self.STORY, "other"), draft)
        prompt = target.encode("ab", add_special_tokens=False)
        count = len(target.encode(self.STORY, add_special_tokens=False)) - len(prompt)
        reply = lm.generate(prompt, method=f"draft-model(draft=other, {spec})", max_new_tokens=count, **settings)
        assert lm.tokenizer.decode([*prompt, *reply.token_ids]) == self.STORY
        return reply.stats

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_all_of_a_text_that_both_say_is_accepted(self, temperature):
        stats = self.stats(self.LETTERS, self.WORDS, "vocabulary=text, length=4", temperature=temperature, seed=1)
        assert stats.accepted == stats.drafted
        assert stats.rounds <= -(-stats.new_tokens // 4) + 1
        stats = self.stats(self.WORDS, self.WORDS, "vocabulary=shared, length=4", temperature=temperature, seed=1)
        assert stats.accepted == stats.drafted
        assert stats.rounds == -(-stats.new_tokens // 5)

    def test_the_draft_model_writes_longer_tokens_than_the_target_has(self):
        stats = self.stats(self.LETTERS, self.WORDS, "vocabulary=text, length=6")
        assert stats.models["other"].forwards < stats.drafted, "a token of the draft model is several of the target's"
        assert stats.models["other"].rows < 3 * stats.new_tokens

    def test_the_draft_model_writes_shorter_tokens_than_the_target_has(self):
        stats = self.stats(self.WORDS, self.LETTERS, "vocabulary=text, length=6")
        assert stats.accepted > 0.5 * stats.new_tokens

    def test_shared_tokens_are_not_enough_where_a_word_is_none(self):
        stats = self.stats(self.WORDS, self.LETTERS, "vocabulary=shared, length=2")
        assert 0 < stats.accepted < stats.drafted


@pytest.mark.parametrize("spec", ["vocabulary=text", "vocabulary=shared, width=2"])
@pytest.mark.parametrize("exchanged", [False, True])
def test_greedy_output_holds_with_real_tokenizers(spec, exchanged):
    """Networks of two families: byte-level tokens and pieces, each drafting for the other."""
    pair = [_small("llama", byte_level_tokenizer(), 330), _small("gpt2", sentence_piece_tokenizer(), 300)]
    target, draft = reversed(pair) if exchanged else pair
    target.companions["other"] = draft
    method = f"draft-model(draft=other, {spec})"
    drafted = 0
    for prompt in ("the quick brown fox", "the", "größer 東京 🙂", [1, 0, 90, 91, 0]):
        plain = target.generate(prompt, method=PLAIN, max_new_tokens=16, ignore_eos=True)
        reply = target.generate(prompt, method=method, max_new_tokens=16, ignore_eos=True)
        assert reply.token_ids == plain.token_ids
        drafted += reply.stats.drafted
    assert drafted > 0


@cache
def _small(family, tokenizer, size):
    return decodery.wrap(make_model(family, vocab_size=size, eos_token_id=0), tokenizer, name=family)


def test_auto_is_same_or_shared():
    """The same request gives what the word that auto stands for gives."""
    for target, draft, word in ((TARGET, TARGET, "same"), (TARGET, DRAFT, "shared")):
        lm, _ = two_tokenizers(target, draft)
        settings = {"temperature": 1.0, "seed": 2, "max_new_tokens": 12, "ignore_eos": True}
        auto = lm.generate([0, 1], method="draft-model(draft=other)", **settings)
        named = lm.generate([0, 1], method=f"draft-model(draft=other, vocabulary={word})", **settings)
        assert auto.token_ids == named.token_ids
        assert auto.stats.drafted == named.stats.drafted > 0


def test_how_a_draft_model_reads_is_decided_once():
    lm, _ = two_tokenizers()
    draft = lm.companions["other"].tokenizer
    calls = 0

    class Counted(PieceTokenizer):
        def __len__(self):
            nonlocal calls
            calls += 1
            return super().__len__()

    lm.companions["other"].tokenizer = Counted(*draft.pieces, begin="<s>")
    for _ in range(5):
        lm.generate([0, 1], method="draft-model(draft=other)", max_new_tokens=4)
    assert calls == 1 + 1, "once to compare, once for what tokens say"


def test_more_memory_is_set_aside_for_a_tokenizer_that_needs_more_tokens():
    lm, _ = two_tokenizers()
    settings = Settings(max_new_tokens=96, seed=0)
    rows = {}
    for spec, size in (("vocabulary=shared", 1 << 16), ("vocabulary=text", 1 << 16), ("vocabulary=shared", 50)):
        lm.companions["other"].network.context = size
        request, chosen = new_request(lm, f"draft-model(draft=other, {spec})", [0, 1, 2, 1], settings)
        rows[spec, size] = [count for _, count in chosen.caches(request)]
    assert rows == {
        ("vocabulary=shared", 1 << 16): [104, 156],
        ("vocabulary=text", 1 << 16): [104, 156],
        ("vocabulary=shared", 50): [104, 50],
    }


@pytest.mark.parametrize(
    ("spec", "error", "reason"),
    [
        (
            "vocabulary=same",
            MethodUnavailable,
            "draft-model: vocabulary=same needs a draft model with the target's tokenizer, but token 0 is 'a' to tabular and "
            "'<s>' to other; vocabulary=shared does without.",
        ),
        (
            "vocabulary=text, width=2",
            BadParameter,
            "draft-model: width=2 does something only where vocabulary is not text, and here it is vocabulary=text.",
        ),
        (
            "vocabulary=bytes",
            BadParameter,
            "draft-model: vocabulary must be one of auto, same, shared, text, not 'bytes'.",
        ),
    ],
)
def test_what_another_tokenizer_cannot_do_is_refused(spec, error, reason):
    lm, _ = two_tokenizers()
    with pytest.raises(error) as told:
        lm.generate([0], method=f"draft-model(draft=other, {spec})", max_new_tokens=4)
    assert str(told.value) == reason


@pytest.mark.parametrize("method", ["spectr", "optimal-multi-draft", "recursive-speculative-decoding"])
def test_methods_that_need_laws_do_not_offer_text(method):
    with pytest.raises(BadParameter, match="vocabulary must be one of auto, same, shared, not 'text'"):
        two_tokenizers()[0].generate([0], method=f"{method}(draft=other, vocabulary=text)", max_new_tokens=4)


def test_vocabularies_without_a_token_in_common_draft_text_alone():
    lm, _ = two_tokenizers(TARGET, PieceTokenizer("aa", "bb", "ba"))
    for spec in ("", ", vocabulary=shared"):
        with pytest.raises(MethodUnavailable, match="draft-model: no token says the same to tabular and to other"):
            lm.generate([0], method=f"draft-model(draft=other{spec})", max_new_tokens=4)
    assert len(lm.generate([0, 0, 1, 1], method=TEXT, max_new_tokens=4, ignore_eos=True).token_ids) == 4


def test_a_draft_model_without_a_tokenizer_is_taken_at_its_word_alone():
    lm, scorer = two_tokenizers()
    lm.companions["other"].tokenizer = None
    with pytest.raises(
        MethodUnavailable, match="other has no tokenizer that could tell what its tokens say; vocabulary=same"
    ):
        lm.generate([0], method="draft-model(draft=other)", max_new_tokens=4)
    settings = Settings(temperature=1.0, max_new_tokens=2, seed=0)
    found = exact_outputs(lm, "draft-model(draft=other, vocabulary=same)", [0], settings)
    assert total_variation(found, scorer.joint([0], 2, settings, (3,))) < ROUNDING


def test_a_masked_diffusion_model_cannot_draft():
    lm, _ = two_tokenizers()
    lm.companions["other"] = toy_diffusion_model()
    with pytest.raises(MethodUnavailable, match="is a masked-diffusion model, and a draft model is a causal one"):
        lm.generate([0], method="draft-model(draft=other)", max_new_tokens=4)


def test_a_text_that_the_draft_model_cannot_say_is_not_drafted_for():
    """Its tokenizer has no token for "b", and none for what is unknown."""
    lm, _ = two_tokenizers(TARGET, PieceTokenizer("a", "aa"))
    for spec in ("shared", "text"):
        method = f"draft-model(draft=other, vocabulary={spec})"
        reply = lm.generate([0, 0, 1], method=method, max_new_tokens=8, ignore_eos=True)
        assert reply.stats.drafted == 0
        assert reply.token_ids == lm.generate([0, 0, 1], method=PLAIN, max_new_tokens=8, ignore_eos=True).token_ids


@pytest.mark.real_model
class TestGemmaAndSmolLM2:
    """Tokenizers that differ in kind and in size, 262144 pieces and 49152 byte-level tokens, and models that know English.

    Needs `decodery pull gemma3-270m`, of more than a gigabyte, which no test fetches.
    """

    @pytest.fixture(scope="class")
    def models(self):
        if not (store.home() / "models" / "gemma3-270m").is_dir():
            pytest.skip("gemma3-270m is not here")
        names = ("smollm2-135m", "gemma3-270m")
        loaded = {name: decodery.load(name, dtype="float32") for name in names}
        for one, other in (names, reversed(names)):
            loaded[one].companions[other] = loaded[other]
        return loaded

    @pytest.mark.parametrize("vocabulary", ["auto", "text"])
    @pytest.mark.parametrize(
        ("target", "draft"),
        [("smollm2-135m", "gemma3-270m"), ("gemma3-270m", "smollm2-135m")],
        ids=["gemma drafts", "smol drafts"],
    )
    def test_each_drafts_for_the_other(self, models, target, draft, vocabulary):
        lm = models[target]
        method = f"draft-model(draft={draft}, vocabulary={vocabulary})"
        accepted = 0
        for prompt in (
            "The days of the week are Monday, Tuesday,",
            "Tokyo is written 東京 and 🙂 is a smile.\nParis is",
        ):
            plain = lm.generate(prompt, method=PLAIN, max_new_tokens=12)
            reply = lm.generate(prompt, method=method, max_new_tokens=12)
            assert reply.token_ids == plain.token_ids
            accepted += reply.stats.accepted
        assert accepted >= 6, "at least every fourth token"

    def test_what_they_share(self, models):
        one, other = (Tokens(models[name]) for name in ("smollm2-135m", "gemma3-270m"))
        shared = SharedTokens.by_words(one, other)
        assert len(shared) > 30000
        for word in (" the", "\n", "ing", "é", " Paris"):
            [ours], [theirs] = one.encode_within(word), other.encode_within(word)
            assert shared.to_draft[ours] == theirs
