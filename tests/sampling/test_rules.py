"""Constraints that are code: what may come by a predicate, beside a grammar or alone; and what is said of wrong code."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from letter_constraints import Signs

from decodery.engine.settings import Settings, schema
from decodery.errors import BadSetting, ConstraintFailed, Refused
from decodery.evaluation.weights_check import LANGUAGE, dead_end_model, masses
from decodery.sampling.settings import Whole, setting
from decodery.sampling.structured import ruled, rules
from decodery.sampling.structured.constraint import Constraint, constraint_of
from decodery.sampling.structured.grammars import Compiled, Grammars
from decodery.sampling.structured.rules import TextRule, register_rule
from decodery.testing import scripted_language_model, story_scorer

WORDS = ("a", "b", "c", "ab", "bc", "abc", "cc", "<end>")
END = 7
MASSES = masses()
MASS = math.fsum(MASSES.values())


@cache
def beginnings(pattern: str, signs: str = "abc", longest: int = 9) -> frozenset[str]:
    found = set()
    for length in range(longest + 1):
        for letters in product(signs, repeat=length):
            text = "".join(letters)
            if re.fullmatch(pattern, text):
                found |= {text[:cut] for cut in range(length + 1)}
    return frozenset(found)


class Matches(TextRule):
    """What the regular expression of the same pattern says."""

    def __init__(self, pattern: str, signs: str = "abc"):
        self.pattern, self.signs = pattern, signs

    def begins(self, text: str) -> bool:
        return text in beginnings(self.pattern, self.signs)

    def accepts(self, text: str) -> bool:
        return re.fullmatch(self.pattern, text) is not None


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules.REGISTRY, "known", dict(rules.REGISTRY.known))


def of(value: Any) -> Constraint:
    found = constraint_of("structured_outputs", value)
    assert found is not None
    return found


def over_words(value: Any, words: tuple[str, ...] = WORDS) -> Compiled:
    return ruled.compiled(Grammars.of(Signs(len(words), words)), of(value))


def follows(compiled: Compiled, tokens: tuple[int, ...]) -> tuple[set[int], bool]:
    found, ends = compiled.allowed(tokens)
    return set(found.nonzero()[:, 0].tolist()), ends


@pytest.mark.parametrize("pattern", ["(ab|c){0,3}", "a{2,3}b?c{0,2}", "(abc|cc){1,2}"])
@pytest.mark.parametrize("beside", [False, True])
def test_a_rule_allows_what_a_grammar_of_the_same_texts_allows(pattern: str, beside: bool) -> None:
    """Beside a grammar, too, of which it then takes a part."""
    value: dict[str, Any] = {"rule": Matches(pattern)}
    both = over_words({**value, "regex": "[abc]*"} if beside else value)
    free = over_words({"regex": pattern}).unforced
    seen = 0
    for length in range(4):
        for tokens in product(range(END), repeat=length):
            assert bool(both.broken(tokens)) == bool(free.broken(tokens))
            if free.broken(tokens):
                continue
            seen += 1
            assert follows(both, tokens) == follows(free, tokens)
            for token in range(END + 1):
                assert both.may_follow(tokens, token) == (token in follows(free, tokens)[0])
            assert both.may_end(tokens) == free.may_end(tokens)
    assert seen > 5
    assert both.forced(()) == []


def test_a_grammar_and_a_rule_hold_together() -> None:
    both = over_words({"regex": "a{1,5}", "predicate": lambda text: len(text) <= 3})
    assert follows(both, ()) == ({0}, False)
    assert follows(both, (0, 0, 0)) == (set(), True)
    assert both.unforced.may_end((0, 0)) is True
    assert both.broken((0, 0, 0, 0)) != ""
    assert both.broken((1,)) != ""
    assert over_words({"regex": "abc", "predicate": lambda text: True}).forced(()) == [5]
    with pytest.raises(
        ConstraintFailed, match="does not keep to structured_outputs: the predicate <lambda> allows no token 0"
    ):
        both.allowed((0, 0, 0, 0))


def test_only_few_questions_are_asked_where_little_may_come() -> None:
    asked: list[str] = []

    def starts_with_b(text: str) -> bool:
        asked.append(text)
        return not text or text[0] == "b"

    compiled = over_words({"predicate": starts_with_b})
    assert follows(compiled, ())[0] == {1, 4}
    # a, b, c, bc; and of ab, abc and cc the whole once for each first letter, to see that the rule keeps to its no.
    assert len(asked) <= 8
    count = len(asked)
    assert follows(compiled, ())[0] == {1, 4}
    assert len(asked) == count


def test_characters_of_several_tokens() -> None:
    """A token that ends inside a character may come where nothing forbids what stands before it; a text does not end there."""
    said = ("é".encode()[:1], "é".encode()[1:], b"x", "é".encode() + b"x", b"")
    tokens = SimpleNamespace(
        decode=lambda ids: b"".join(said[token] for token in ids).decode(errors="replace"),
        token_bytes=lambda token: said[token],
    )
    signs: Any = Signs(5)
    signs.tokenizer = tokens
    signs.encode = lambda text: []
    compiled = ruled.compiled(Grammars.of(signs), of({"predicate": lambda text: text in ("", "é")}))
    assert follows(compiled, ()) == ({0}, True)  # "éx" is no
    assert follows(compiled, (0,)) == ({1}, False)
    assert follows(compiled, (0, 1)) == ({0}, True)
    assert compiled.may_follow((0,), 0) is False
    assert compiled.may_end((0,)) is False
    assert compiled.may_follow((), 4) is False


def letters(count: int) -> Callable[[str], bool]:
    return lambda text: len(text) <= count


def test_a_predicate_under_plain_decoding_and_under_drafts() -> None:
    """No token outside it; and speculation gives the very tokens of plain decoding."""
    lm = scripted_language_model(story_scorer(24), stop_ids=(23,), drafter=story_scorer(24, surprise=0.5, name="other"))

    def no_neighbours(text: str) -> bool:
        return all(abs(ord(a) - ord(b)) != 1 for a, b in pairwise(text))

    for temperature in (0.0, 1.0):
        asked: Any = {"structured_outputs": {"predicate": no_neighbours}, "max_new_tokens": 20, "seed": 3}
        plain: Any = lm.generate([0, 1], "autoregressive", temperature=temperature, **asked)
        free: Any = lm.generate([0, 1], "autoregressive", temperature=temperature, max_new_tokens=20, seed=3)
        assert no_neighbours(plain.text.rstrip("x"))
        assert not no_neighbours(free.text)
        for method in ("cascade", "draft-model(draft=other)"):
            other: Any = lm.generate([0, 1], method, temperature=temperature, **asked)
            assert (temperature > 0 and method != "cascade") or other.token_ids == plain.token_ids
            assert no_neighbours(other.text.rstrip("x"))


def test_weighted_rejection_asks_a_rule_as_it_asks_a_grammar() -> None:
    """The same questions, tokens and weights."""
    lm = dead_end_model()
    asked: Any = {"temperature": 1.0, "max_new_tokens": 12, "n": 8}
    pattern = LANGUAGE["regex"]
    for seed in range(5):
        one: Any = lm.generate([0], "awrs", structured_outputs=LANGUAGE, seed=seed, **asked)
        other: Any = lm.generate([0], "awrs", structured_outputs=Matches(pattern, "ab"), seed=seed, **asked)
        assert [reply.token_ids for reply in one] == [reply.token_ids for reply in other]
        assert [reply.weight for reply in one] == [reply.weight for reply in other]
        assert one[0].stats.details["questions"] == other[0].stats.details["questions"]


def worth(text: str) -> float:
    return float(text.count("a") ** 2)


@pytest.mark.parametrize(
    ("critic", "threshold"),
    [(None, 0.0), (lambda text: 0.5 + text.count("a") ** 2, 1.0), (lambda text: 1.0 if "b" in text else 9.0, 1.0)],
)
def test_worth_is_weighed_without_bias(critic: Callable[[str], float] | None, threshold: float) -> None:
    """The mean of the estimates is the sum of mass times worth, within four standard errors, whatever the critic says; and so
    are the shares of texts by what they are worth."""
    exact = math.fsum(mass * worth(text) for text, mass in MASSES.items())
    lm, found = dead_end_model(), []
    given: dict[str, Any] = {**LANGUAGE, "potential": worth, "critic": critic}
    for seed in range(80):
        asked: Any = {"structured_outputs": given, "temperature": 1.0, "max_new_tokens": 12, "seed": seed}
        try:
            reply: Any = lm.generate([0], f"awrs(particles=3, ess_threshold={threshold})", **asked)
            found.append(math.exp(reply.stats.details["log_mass"]))
        except ConstraintFailed:  # all texts are worth nothing
            found.append(0.0)
    assert abs(np.mean(found) - exact) < 4 * np.std(found) / math.sqrt(len(found))
    assert exact > 1.2


def test_a_critic_steers_and_is_asked_only_where_it_may() -> None:
    """A good one leaves weights that vary less; without drawing anew it is never asked."""
    lm = dead_end_model()
    asked: list[str] = []

    def expected(text: str) -> float:
        """Of the worth of a text that begins so: how likely each letter is a that is to come, the first one says."""
        asked.append(text)
        left, share = 5 - len(text), 0.02 if text[0] == "a" else 0.45
        return float(20 ** text.count("a") * (1 + 19 * share) ** left)

    def spread(threshold: float, critic: Callable[[str], float] | None) -> float:
        given: dict[str, Any] = {"regex": "[ab]{5}", "potential": lambda text: 20 ** text.count("a"), "critic": critic}
        logs = []
        for seed in range(60):
            settings: Any = {"structured_outputs": given, "temperature": 1.0, "max_new_tokens": 12, "seed": seed}
            reply: Any = lm.generate([0], f"awrs(particles=8, ess_threshold={threshold})", **settings)
            logs.append(reply.stats.details["log_mass"])
        return float(np.std(np.exp(logs)))

    plain = spread(0.0, expected)
    assert asked == []
    assert spread(0.7, expected) < 0.8 * plain
    assert {"b", "ba", "bb"} <= set(asked)
    assert max(map(len, asked)) == 5


def test_worth_needs_a_method_that_weighs() -> None:
    lm = dead_end_model()
    for value in ({"potential": worth}, {"regex": "a*", "critic": lambda text: 1.0}):
        for method in ("autoregressive", "cascade", "grammar-aligned-decoding"):
            with pytest.raises(
                Refused, match=f"{method} does not run with the .*, which says how much a text is worth"
            ):
                lm.generate([0], method, structured_outputs=value, temperature=1.0)
    same: Any = lm.generate(
        [0], "autoregressive", structured_outputs={"regex": "a*"}, temperature=1.0, max_new_tokens=5
    )
    assert set(same.text) <= {"a", "c"}
    with pytest.raises(Refused, match="weighs all texts alike, and the potential worth does not"):
        lm.generate([0], "awrs(proper_weights=False)", structured_outputs={"potential": worth}, temperature=1.0)

    class Heavy(TextRule):
        def weight(self, text: str) -> float:
            return 2.0

    with pytest.raises(Refused, match="does not run with the rule Heavy"):
        lm.generate([0], "autoregressive", structured_outputs=Heavy(), temperature=1.0)
    reply: Any = lm.generate(
        [0], "awrs(particles=3)", structured_outputs=Heavy(), temperature=1.0, max_new_tokens=12, n=3
    )
    assert [one.weight for one in reply] == pytest.approx([2.0] * 3)
    cut: Any = lm.generate([0], "awrs(particles=2)", structured_outputs={**LANGUAGE, "rule": Heavy()}, n=2, seed=4,
                           temperature=1.0, max_new_tokens=6)  # fmt: skip
    plain: Any = lm.generate(
        [0], "awrs(particles=2)", structured_outputs=LANGUAGE, n=2, seed=4, temperature=1.0, max_new_tokens=6
    )
    assert [one.weight for one in cut] == pytest.approx([2 * one.weight for one in plain])


def test_draws_that_learn_take_a_rule() -> None:
    """Its mass is learned; another function has another trie, and no file."""
    lm = dead_end_model()
    rule = Matches(LANGUAGE["regex"], "ab")
    asked: Any = {"temperature": 1.0, "max_new_tokens": 12}
    first: Any = lm.generate([0], "grammar-aligned-decoding", structured_outputs=rule, n=150, seed=0, **asked)
    assert first[0].stats.details["mass_bound"] == pytest.approx(MASS, abs=1e-6)
    again: Any = lm.generate([0], "grammar-aligned-decoding", structured_outputs=rule, seed=1, **asked)
    assert again.stats.details["draws_before"] == 150
    other: Any = lm.generate(
        [0], "grammar-aligned-decoding", structured_outputs=Matches(LANGUAGE["regex"], "ab"), seed=1, **asked
    )
    assert other.stats.details["draws_before"] == 0
    few = letters(9)
    for before, predicate in ((0, few), (1, few), (0, letters(9))):
        reply: Any = lm.generate(
            [0], "grammar-aligned-decoding", structured_outputs={"predicate": predicate}, seed=1, **asked
        )
        assert reply.stats.details["draws_before"] == before
    with pytest.raises(Refused, match="keeps no trie on disk beside functions of this process"):
        lm.generate([0], "grammar-aligned-decoding(keep=disk)", structured_outputs=rule, **asked)


@dataclass(frozen=True)
class Shortest(TextRule):
    """At most so many letters."""

    letters: int = setting(None, Whole(1), "Most letters.")

    name = "shortest"

    def begins(self, text: str) -> bool:
        return len(text) <= self.letters


def test_registered_rules_are_asked_for_by_name() -> None:
    register_rule(Shortest)
    for given in ("shortest(letters=2)", {"name": "shortest", "letters": 2}, Shortest(2)):
        constraint = of({"rule": given})
        assert json.loads(constraint.given) == {"rule": {"name": "shortest", "letters": 2}}
        assert constraint_of("structured_outputs", json.loads(constraint.given)) == constraint
        assert constraint.identity == of({"rule": "shortest(letters=2)"}).identity
        assert constraint.identity != of({"rule": "shortest(letters=3)"}).identity
    both = of({"regex": "a*", "rule": "shortest(letters=2)"})
    assert json.loads(both.given) == {"regex": "a*", "rule": {"name": "shortest", "letters": 2}}
    assert follows(over_words({"regex": "a*", "rule": "shortest(letters=2)"}), (0, 0)) == (set(), True)
    shown = schema()["properties"]["structured_outputs"]["properties"]["rule"]["anyOf"]
    assert {"const": "shortest"} in [one["properties"]["name"] for one in shown if one["type"] == "object"]
    with pytest.raises(ValueError, match="there is a rule 'shortest' already"):
        register_rule(type("Other", (Shortest,), {}))
    told = json.loads(of({"predicate": letters(2)}).given)
    assert told == {"rule": "the predicate <lambda>"}


def test_a_named_rule_may_be_kept_on_disk(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DECODERY_HOME", str(tmp_path))
    register_rule(Shortest)
    asked: Any = {"structured_outputs": {"rule": "shortest(letters=5)"}, "temperature": 1.0, "max_new_tokens": 12}
    for before in (0, 1):
        reply: Any = dead_end_model().generate([0], "grammar-aligned-decoding(keep=disk)", **asked)
        assert reply.stats.details["draws_before"] == before


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"predicate": "lambda text: True"}, "in a request over the network name a registered rule instead"),
        ({"predicate": True}, "which must be a function of a text that says True or False"),
        ({"predicate": str}, "which must be a function"),
        ({"critic": "x"}, "which must be a function of a beginning"),
        ({"potential": 2.0}, "which must be a function of a whole text"),
        ({"rule": "nothing"}, "there is no rule 'nothing'; none is registered"),
        ({"rule": 7}, "a rule is a name"),
        ({"rule": Matches("a"), "predicate": len}, "has a rule and a predicate; a rule says all of that itself"),
        ({"rule": Matches("a"), "whitespace_pattern": " "}, "acts only together with json, not with a rule"),
        ({"rule": Matches("a"), "regex": "a", "choice": ["a"]}, "not regex and choice together"),
        ({"predicat": len}, "did you mean predicate"),
        ({"predicate": None}, "this holds none of them"),
    ],
)
def test_what_is_no_rule(value: Any, message: str) -> None:
    with pytest.raises(BadSetting, match=message):
        of(value)
    register_rule(Shortest)
    with pytest.raises(BadSetting, match="shortest needs the argument letters"):
        of({"rule": "shortest"})
    with pytest.raises(BadSetting, match="has no argument 'words'"):
        of({"rule": "shortest(words=2)"})


def fails(text: str) -> bool:
    raise KeyError("nothing here")


@pytest.mark.parametrize(
    ("predicate", "message"),
    [
        (lambda text: None if text else True, "the predicate <lambda> says None to 'a'; it must say True or False"),
        (lambda text: text != "a", "says no to 'a' and yes to 'ab', which begins so"),
        (fails, "the predicate fails fails with KeyError for '': 'nothing here'"),
    ],
)
def test_code_that_is_wrong_ends_the_request_with_a_sentence(predicate: Any, message: str) -> None:
    lm = dead_end_model()
    with pytest.raises(ConstraintFailed, match=re.escape(message)):
        over_words({"predicate": predicate}).allowed(())
    if predicate is fails:
        with pytest.raises(ConstraintFailed, match="fails with KeyError"):
            lm.generate([0], "awrs", structured_outputs={"predicate": predicate}, temperature=1.0)


def test_a_rule_that_wants_nothing() -> None:
    with pytest.raises(BadSetting, match="accepts no text: the predicate <lambda> says no to the empty beginning"):
        over_words({"predicate": lambda text: len(text) > 2})
    assert follows(over_words({"predicate": lambda text: np.bool_(len(text) < 2)}), ())[0] == {0, 1, 2}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"potential": lambda text: -1.0}, "the weight -1.0; it must be a finite number of at least 0"),
        ({"potential": lambda text: math.inf}, "the weight inf"),
        ({"potential": lambda text: math.nan}, "the weight nan"),
        ({"potential": lambda text: "2"}, "the weight '2'"),
        ({"potential": lambda text: None}, "the weight None"),
        ({"critic": lambda text: -0.5}, "the promise -0.5; it must be a finite number of at least 0"),
        ({"critic": lambda text: 0.0}, "none of the 8 texts of awrs can become what structured_outputs wants"),
        ({"potential": lambda text: 0}, "none of the 8 texts of awrs can become what structured_outputs wants"),
        ({"critic": lambda text: 1 / 0}, "fails with ZeroDivisionError"),
    ],
)
def test_worth_that_is_no_number(words: Any, message: str) -> None:
    with pytest.raises(ConstraintFailed, match=re.escape(message)):
        dead_end_model().generate(
            [0], "awrs", structured_outputs={**LANGUAGE, **words}, temperature=1.0, max_new_tokens=12, seed=0
        )


def test_long_texts_are_shown_by_their_end() -> None:
    def odd(text: str) -> Any:
        return "perhaps" if len(text) > 70 else True

    compiled = over_words({"predicate": odd})
    with pytest.raises(ConstraintFailed, match=f"to '…{'a' * 60}'; it must"):
        compiled.may_follow((0,) * 70, 0)


def test_settings_take_a_rule() -> None:
    value = Settings.of({"structured_outputs": {"predicate": len}}, 9).structured_outputs
    assert (value.kind, value.grammar) == ("rule", "")
    assert value.rule.called == "the predicate len"


@pytest.mark.parametrize("more", [{}, {"regex": "(ab|c)*"}])
def test_one_token_and_rows_are_judged_as_all_tokens_are(more: dict[str, Any]) -> None:
    """What greedy decoding asks of the likeliest token, and what forbids the others."""
    given = {"rule": Matches("(ab|c)(ab|c)?"), **more}
    known, seen = over_words(given), 0
    for length in range(3):
        for tokens in product(range(END), repeat=length):
            if known.broken(tokens):
                with pytest.raises(ConstraintFailed, match="does not keep to structured_outputs"):
                    over_words(given).allows(tokens, 0)
                continue
            allowed, ends = known.allowed(tokens)
            asked = over_words(given)
            assert [asked.allows(tokens, token) for token in range(len(WORDS))] == allowed.tolist()
            row = torch.arange(8.0)
            assert asked.forbid(row, tokens) is ends
            assert torch.equal(row.isfinite(), allowed)
            seen += 1
    assert seen > 5
