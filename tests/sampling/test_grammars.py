"""Grammars over tokens: what may come is what can still become a valid text, at any place, in any order."""

from __future__ import annotations

import json
import random
import re
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from letter_constraints import Signs, over_letters

import decodery
from decodery.errors import BadSetting, ConstraintFailed, ScoresNotNumbers
from decodery.sampling.law import Law, LawSettings
from decodery.sampling.structured import grammars
from decodery.sampling.structured.constraint import constraint_of
from decodery.sampling.structured.grammars import Compiled, Grammars
from decodery.testing import scripted_language_model
from decodery.testing.scorers import TabularScorer

WORDS = ("a", "b", "c", "ab", "bc", "abc", "cc", "<end>")
END = 7
PATTERNS = ("(ab|c)*", "a{2,3}b?c*", "(abc|cc){1,2}", "c(a|bc)+", "[ab]*cc")
LONGEST = 6


def allowed(compiled: Compiled, tokens: tuple[int, ...]) -> tuple[set[int], bool]:
    found, ends = compiled.allowed(tokens)
    return set(found.nonzero()[:, 0].tolist()) - {END}, ends


def viable(pattern: str) -> set[str]:
    """All beginnings of matches of up to twice LONGEST signs."""
    found = set()
    for length in range(LONGEST + 5):
        for signs in product("abc", repeat=length):
            text = "".join(signs)
            if re.fullmatch(pattern, text):
                found |= {text[:cut] for cut in range(length + 1)}
    return found


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_may_come_is_what_a_text_can_still_be_completed_from(pattern: str) -> None:
    compiled, beginnings = over_letters(len(WORDS), WORDS, regex=pattern), viable(pattern)
    seen = open_places = 0
    for length in range(4):
        for tokens in product(range(END), repeat=length):
            text = "".join(WORDS[token] for token in tokens)
            if text not in beginnings or len(text) > LONGEST:
                continue
            seen += 1
            follows, ends = allowed(compiled, tokens)
            fitting = {t for t in range(END) if text + WORDS[t] in beginnings}
            if compiled.forced(tokens):  # of what must come, the usual tokens
                assert follows <= fitting
                assert bool(follows) is bool(fitting)
            else:
                open_places += 1
                assert follows == fitting, text
            assert ends is (re.fullmatch(pattern, text) is not None)
            assert compiled.broken(tokens) == ""
    assert seen > 10
    assert open_places > 5


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(PATTERNS), st.integers(0, 2**32))
def test_places_are_found_in_any_order(pattern: str, seed: int) -> None:
    """With few of them kept, so that most are found again from others."""
    chosen, whole = random.Random(seed), over_letters(len(WORDS), WORDS, regex=pattern)
    other, before = over_letters(len(WORDS), WORDS, regex=pattern), grammars.MOST_PLACES
    grammars.MOST_PLACES = 3
    try:
        texts: list[tuple[int, ...]] = [()]
        for _ in range(12):
            tokens = chosen.choice(texts)
            follows, ends = allowed(other, tokens)
            assert (follows, ends) == allowed(whole, tokens)
            texts += [(*tokens, token) for token in sorted(follows)]
            assert len(other._places) <= 3
    finally:
        grammars.MOST_PLACES = before


def test_what_breaks_it_is_told() -> None:
    compiled = over_letters(len(WORDS), WORDS, regex="(ab|c)*")
    assert "doesn't satisfy the grammar" in compiled.broken((0, 0))
    assert compiled.broken((0, 0, 1, 1)) == compiled.broken((0, 0))  # and all that comes after it
    with pytest.raises(ConstraintFailed, match="the output does not keep to structured_outputs"):
        compiled.allowed((0, 0))
    assert compiled.broken((0, 1)) == ""


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    compiled = over_letters(len(WORDS), WORDS, regex="(ab|c)*")
    assert compiled.broken((0, 0))
    assert compiled.may_follow((0,), 1)
    assert capfd.readouterr() == ("", "")


def test_single_tokens_are_asked_about() -> None:
    compiled = over_letters(len(WORDS), WORDS, regex="abc(a|b)cc")
    assert [compiled.may_follow((), token) for token in range(7)] == [True, False, False, True, False, True, False]
    assert compiled.may_follow((0,), 4)
    assert not compiled.may_follow((0, 0), 1)  # behind what breaks it
    assert not compiled.may_end((5, 1))
    assert compiled.may_end((5, 1, 6))
    assert not compiled.may_end((0, 0))


class Bytes(Signs):
    """Tokens whose bytes the tokenizer says; token 1 is half a character."""

    def __init__(self) -> None:
        super().__init__(4)
        said = (b"\xc3", b"\xa4", b"a", b"")
        decode = lambda ids: b"".join(said[token] for token in ids).decode(errors="replace")  # noqa: E731
        self.tokenizer = SimpleNamespace(eos_token_id=3, token_bytes=said.__getitem__, decode=decode)

    def encode(self, text: str) -> list[int]:
        return [0, 1, 2]


class Special(Signs):
    """Token 1 is a special one, though it has a text."""

    def __init__(self) -> None:
        super().__init__(4, ("a", "b", "c", "d"))
        self.tokenizer.all_special_ids = (1,)

    def encode(self, text: str) -> list[int]:
        return [0, 2, 3]


def test_tokens_may_say_bytes_and_special_ones_nothing() -> None:
    found = []
    for speller in (Bytes(), Special()):
        constraint = constraint_of(
            "structured_outputs", {"regex": "(ä|a)a?" if isinstance(speller, Bytes) else "[abc]+"}
        )
        assert constraint is not None
        found.append(Grammars.of(speller).compiled(constraint))
    said, special = found
    assert allowed(said, ()) == ({0, 2}, False)
    assert allowed(said, (0,)) == ({1}, False)
    assert allowed(said, (0, 1)) == ({2}, True)
    assert allowed(special, ()) == ({0, 2}, False)


def test_tokens_that_must_come() -> None:
    """Their usual ones, and nothing else may come."""
    compiled = over_letters(len(WORDS), WORDS, regex="abc(a|b)cc")
    assert compiled.forced(()) == [5]
    assert compiled.forced((0,)) == [4]
    assert compiled.forced((5, 1)) == [6]
    assert compiled.forced((5,)) == []
    assert compiled.forced((1,)) == []  # which breaks it
    for tokens in ((), (0,), (5, 1)):
        assert allowed(compiled, tokens) == ({compiled.forced(tokens)[0]}, False)


@pytest.mark.parametrize("pattern", [*PATTERNS, "abc(a|b)cc", "(ab|abc)(cc|c)", "abcabc|abcab[ab]"])
def test_one_token_is_allowed_as_all_are(pattern: str) -> None:
    """Without the set of all, before it is known and after."""
    known = over_letters(len(WORDS), WORDS, regex=pattern)
    for length in range(4):
        for tokens in product(range(END), repeat=length):
            if known.broken(tokens):
                continue
            follows, _ = allowed(known, tokens)
            fresh = over_letters(len(WORDS), WORDS, regex=pattern)
            assert {token for token in range(END + 1) if fresh.allows(tokens, token)} == follows
            assert {token for token in range(END + 1) if known.allows(tokens, token)} == follows
    with pytest.raises(ConstraintFailed, match="does not keep to structured_outputs"):
        over_letters(len(WORDS), WORDS, regex="ab").allows((2,), 0)


@pytest.mark.parametrize("size", [8, 7])
def test_rows_of_every_kind_are_masked_alike(size: int) -> None:
    words = (*WORDS[: size - 1], "<end>")
    compiled = over_letters(size, words, regex="(ab|c)*")
    for tokens in ((), (0,), (0, 1)):
        may, may_end = compiled.allowed(tokens)
        for row in (torch.arange(float(size)), torch.arange(float(size)).bfloat16(), torch.zeros(size, 2)[:, 0]):
            expected = row.clone().masked_fill(~may, -torch.inf)
            assert compiled.forbid(row, tokens) is may_end
            assert torch.equal(row, expected)


def test_the_likeliest_token_is_looked_at_alone() -> None:
    """Where it may come nothing else is masked; where not, the likeliest of those that may come is taken."""
    compiled = over_letters(len(WORDS), WORDS, regex="(ab|c)*")
    found = Law(LawSettings(structured_outputs=compiled), [1, 2], [END])
    row = torch.tensor([5.0, 9.0, 5.0, 1.0, 0.0, 0.0, 5.0, 2.0])
    assert found.likeliest(row) == 0, "the first of those with the most"
    row[END] = 9.5
    assert found.likeliest(row) == END
    assert found.likeliest(row, (0,)) == 1, "the output may not end there"
    assert found.likeliest(row, (1,)) == END, "behind a rejected draft anything may come"
    assert compiled._start.follows is not None
    assert compiled._places[0,].follows is not None
    quick = over_letters(len(WORDS), WORDS, regex="(ab|c)*")
    Law(LawSettings(structured_outputs=quick), [1, 2], [END]).likeliest(row, (2,))
    assert quick._places[2,].follows is None
    other = Law(LawSettings(structured_outputs=compiled, repetition_penalty=2.0), [6, 2], [END])
    assert other.likeliest(torch.tensor([5.0, 0, 6.0, 0, 0, 0, 0, 0])) == 0, "another step has a say"
    with pytest.raises(ConstraintFailed, match="no token ends the output"):
        Law(LawSettings(structured_outputs=over_letters(8, WORDS, regex="ab")), [1], []).likeliest(row, (3,))
    with pytest.raises(ScoresNotNumbers):
        found.likeliest(torch.full((8,), torch.nan))


def test_steps_that_do_more_than_forbid_do_not_tell_of_one_token() -> None:
    law = Law(LawSettings(repetition_penalty=2.0), [1])
    with pytest.raises(ValueError, match="repetition_penalty does more than to forbid"):
        law.steps[0].allows(law.prefix(), 3)


class Counting(TabularScorer):
    """Notes how many rows each pass had."""

    def __init__(self) -> None:
        super().__init__(8)
        self.passes: list[int] = []

    def run_pass(self, forwards: Any) -> Any:
        self.passes.append(sum(len(forward.tokens) for forward in forwards))
        return super().run_pass(forwards)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("method", ["prompt-lookup", "cascade", "token-recycling", "draft-model(draft=other)", "swift"])
def test_what_must_come_is_drafted(method: str, temperature: float) -> None:
    """The same tokens as without drafts, whatever drafts; fewer passes, but for drafters in the target's own cache."""
    pattern = "abcdefg(ab|cd)fedcba[a-c]"
    outcomes, passes = [], []
    for name in ("autoregressive", method):
        scorer = Counting()
        lm = scripted_language_model(scorer, stop_ids=(END,), drafter=TabularScorer(8, seed=5))
        reply: Any = lm.generate(
            [0, 3], name, structured_outputs={"regex": pattern}, temperature=temperature, seed=1, max_new_tokens=30
        )
        outcomes.append(reply.text)
        passes.append(len(scorer.passes))
        assert re.fullmatch(pattern, reply.text.removesuffix("h"))
    if method != "draft-model(draft=other)" or temperature == 0:
        assert outcomes[0] == outcomes[1]
    assert passes[0] >= 16
    if method != "swift":
        assert passes[1] <= 8


def test_compiled_grammars_are_kept_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammars, "MOST_GRAMMARS", 2)
    known = Grammars.of(Signs(len(WORDS), WORDS))

    def compiled(pattern: str) -> Compiled:
        constraint = constraint_of("structured_outputs", {"regex": pattern})
        assert constraint is not None
        return known.compiled(constraint)

    first, second = compiled("a"), compiled("b")
    assert compiled("a") is first
    compiled("c")  # the second one was used longest ago
    assert compiled("a") is first
    assert compiled("b") is not second


def test_texts_that_no_token_says_are_refused_before_work() -> None:
    with pytest.raises(BadSetting, match="accepts no text that this model's tokens could say"):
        over_letters(len(WORDS), WORDS, regex="[x-z]+")


def test_tokens_without_bytes_are_refused() -> None:
    with pytest.raises(BadSetting, match=r"SimpleNamespace does not say those of token 2; use a tokenizer"):
        over_letters(3, ("a", "b", "\ufffd"), regex="a")


class TooLarge:
    """A matcher whose grammar has become too large."""

    def is_accepting(self) -> bool:
        return False

    def is_stopped(self) -> bool:
        return True

    def is_error(self) -> bool:
        return True

    def compute_bitmask(self) -> bytes:
        raise AssertionError("a matcher that has stopped is not asked")

    def stop_reason(self) -> str:
        return "ParserTooComplex"

    def get_error(self) -> str:
        return "too many items\nand more"


def test_tokens_that_are_understood_otherwise_are_refused() -> None:
    """As where a tokenizer takes the spaces off what each token says by itself."""
    speller = Signs(3, ("a", "b", "c"))
    speller.tokenizer.decode = lambda ids: " ".join("abc"[token] for token in ids)
    with pytest.raises(
        BadSetting, match=r"reads the tokens of this model's SimpleNamespace as '\w+' where it says '\w \w"
    ):
        Grammars.of(speller)


def test_a_tokenizer_that_the_engine_does_not_read_is_refused() -> None:
    speller = Signs(3)
    speller.tokenizer.backend_tokenizer = SimpleNamespace(to_str=lambda: "{}")
    with pytest.raises(BadSetting, match="does not read the tokenizer of this model"):
        Grammars.of(speller)


def test_a_grammar_that_grows_too_large_ends_its_request_alone() -> None:
    compiled = over_letters(len(WORDS), WORDS, regex="[abc]*")
    compiled._places[0, 1] = grammars.Place(TooLarge())  # type: ignore[arg-type]
    with pytest.raises(ConstraintFailed, match=r"too large to follow behind 2 tokens: too many items\.$"):
        compiled.allowed((0, 1))
    assert allowed(compiled, (0,)) == (set(range(END)), True)


# Outputs


def law(compiled: Compiled, output: list[int], row: torch.Tensor, stops: list[int], path: tuple[int, ...] = ()) -> Any:
    found = Law(LawSettings(temperature=1.0, structured_outputs=compiled), [1, 2], stops)
    for token in output:
        found.observe(token, row)
    return found.probabilities(row, path)


def test_the_law_is_the_model_s_among_what_may_come() -> None:
    compiled = over_letters(len(WORDS), WORDS, regex="(ab|c)*")
    row = torch.randn(len(WORDS), generator=torch.Generator().manual_seed(0))
    found = law(compiled, [0], row, [END])
    expected = row.clone()
    expected[[0, 2, 3, 5, 6, END]] = -torch.inf
    assert torch.allclose(found, expected.softmax(0))
    assert torch.allclose(law(compiled, [], row, [END], (0,)), expected.softmax(0))
    at_end = law(compiled, [0, 1], row, [END])
    assert float(at_end[END]) > 0
    assert float(law(compiled, [0, 1], row, [END, 4])[4]) > 0  # any token that ends the output
    assert float(law(compiled, [0], row, [END, 1])[1]) == 0  # and none where it may not end


def test_what_follows_a_rejected_draft_is_left_alone() -> None:
    compiled = over_letters(len(WORDS), WORDS, regex="(ab|c)*")
    row = torch.randn(len(WORDS), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(law(compiled, [0], row, [END], (0, 2)), row.softmax(0))
    with pytest.raises(ConstraintFailed):
        law(compiled, [0, 0], row, [END])


def test_what_is_complete_and_cannot_end_is_said() -> None:
    compiled = over_letters(len(WORDS), WORDS, regex="ab")
    with pytest.raises(
        ConstraintFailed,
        match=r"complete, and no token ends the output; give stop_token_ids, or leave ignore_eos out\.",
    ):
        law(compiled, [3], torch.zeros(len(WORDS)), [])


def test_a_law_without_a_model_refuses() -> None:
    constraint = constraint_of("structured_outputs", {"regex": "a"})
    with pytest.raises(ValueError, match="needs the tokens of a model"):
        Law(LawSettings(structured_outputs=constraint), [1]).scores(torch.zeros(5))


@pytest.mark.parametrize("method", ["autoregressive", "cascade", "prompt-lookup", "beam-search"])
def test_every_output_that_ends_is_a_match(method: str) -> None:
    lm = scripted_language_model(TabularScorer(8), stop_ids=(END,))
    pattern = "a(bc?|d)*"
    sampled: dict[str, Any] = {} if method == "beam-search" else {"temperature": 1.0}
    asked: dict[str, Any] = {
        "structured_outputs": {"regex": pattern},
        "n": 4,
        "seed": 3,
        "max_new_tokens": 30,
        **sampled,
    }
    replies = lm.generate([0, 1, 0, 1], method=method, **asked)
    ended = 0
    for reply in replies if isinstance(replies, list) else [replies]:
        assert reply.error is None
        if reply.finish_reason == "stop":
            ended += 1
            assert re.fullmatch(pattern, reply.text)
    assert ended > 0


@pytest.mark.real_model
def test_real_tokens() -> None:
    """Greedy, by speculation and without: the same tokens, and valid."""
    lm = decodery.load("smollm2-135m")
    said = [{"role": "user", "content": "Give me a person as JSON: name and age."}]
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "maximum": 150}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    replies = [
        lm.chat(said, method=method, structured_outputs={"json": schema}, max_new_tokens=60)
        for method in ("autoregressive", "cascade")
    ]
    assert replies[0].token_ids == replies[1].token_ids
    assert replies[0].finish_reason == "stop"
    told = json.loads(replies[0].text)
    assert set(told) == {"name", "age"}
    assert isinstance(told["age"], int)


FREE = (
    ({"json": {"type": "object", "properties": {"ab": {"type": "integer"}}, "required": ["ab"]}}, '{"ab'),
    ({"json": {"const": "abc"}, "disable_any_whitespace": True}, '"abc"'),
    ({"json": {"type": "array", "items": {"const": "ab"}, "minItems": 1}, "whitespace_pattern": "c?"}, '["ab'),
    ({"regex": "abcc"}, "abcc"),
    ({"choice": ["abc"]}, "abc"),
    ({"grammar": 'start: "abc"'}, "abc"),
    ({"grammar": '%llguidance {"no_forcing": false}\nstart: "abc"'}, "abc"),
    ({"grammar": 'root ::= "abc"'}, "abc"),
)


@pytest.mark.parametrize(("given", "beginning"), FREE)
def test_what_must_come_may_come_in_any_tokens(given: dict[str, Any], beginning: str) -> None:
    """Every token that begins what must come may be the next; and the texts are the same ones."""
    words = (*'abc{}[]":1, ', "ab", "bc", "abc", '{"', '["', "<end>")
    end = len(words) - 1
    compiled = over_letters(len(words), words, **given)
    free = compiled.unforced
    assert str(free) == str(compiled)
    assert free.unforced is not compiled
    place, tokens = 0, ()
    while place < len(beginning):
        rest = beginning[place:]
        fitting = {token for token in range(end) if rest.startswith(words[token])}
        follows = set(free.allowed(tokens)[0].nonzero()[:, 0].tolist())
        assert fitting <= follows
        assert follows == {token for token in range(end) if compiled.may_follow(tokens, token)}
        assert free.may_end(tokens) == compiled.may_end(tokens)
        tokens, place = (*tokens, words.index(rest[0])), place + 1


def test_forcing_leaves_out_ways_to_write_a_text() -> None:
    """So it is another law than that of all tokens."""
    compiled = over_letters(len(WORDS), WORDS, regex="abc")
    assert allowed(compiled.unforced, ())[0] == {0, 3, 5}
    assert allowed(compiled, ())[0] == {5}
