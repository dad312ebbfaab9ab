"""Steps of the law: what each declares is true by experiment, for every registered step; states, draws, orders, and many
rows at once.

`EXAMPLES` gives a value that switches each step on. Whatever else a step declares is read from it, so a new step only adds a
line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from letter_constraints import over_letters
from torch import Tensor

from decodery.engine.draws import foresee
from decodery.engine.settings import Settings, declared, schema, table
from decodery.errors import BadSetting, ScoresNotNumbers
from decodery.sampling import Law, LawSettings, Noise
from decodery.sampling.prefix import Joined, Prefix
from decodery.sampling.settings import Real, setting
from decodery.sampling.steps import PRESETS, StatefulStep, Step, default_order, register, steps, unregister
from decodery.sampling.steps.top_p import TopP
from decodery.sampling.watermarks.keys import GreenKey
from decodery.testing import enumerate_outcomes, exact_outputs, scripted_language_model, total_variation
from decodery.testing.scorers import TabularScorer

VOCABULARY = 40
PROMPT = [3, 7, 7, 12]
STOPS = [5]
FORBIDDEN = float("-inf")


def _leans_on_the_last(ids: Tensor, scores: Tensor) -> Tensor:
    return scores + (ids[0, -1] * torch.arange(scores.shape[1]) % 7)


EXAMPLES: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 1.7},
    "presence_penalty": {"presence_penalty": 2.0},
    "frequency_penalty": {"frequency_penalty": 1.5},
    "logit_bias": {"logit_bias": {0: 30.0, 4: FORBIDDEN}},
    "min_new_tokens": {"min_new_tokens": 3},
    "processors": {"processors": (_leans_on_the_last,)},
    "temperature": {"temperature": 0.5},
    "top_k": {"top_k": 4},
    "top_p": {"top_p": 0.7},
    "min_p": {"min_p": 0.2},
    "typical_p": {"typical_p": 0.2},
    "top_n_sigma": {"top_n_sigma": 1.0},
    "top_h": {"top_h": 0.4},
    "tail_free": {"tail_free": 0.6},
    "epsilon_cutoff": {"epsilon_cutoff": 0.05},
    "eta_cutoff": {"eta_cutoff": 0.1},
    "xtc": {"xtc_probability": 0.5},
    "dry": {"dry_multiplier": 2.0, "dry_allowed_length": 1, "dry_sequence_breakers": ((30,),)},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "bad_words": {"bad_words": ((4,), (2, 2, 9), (30, 0))},
    "allowed_token_ids": {"allowed_token_ids": (1, 2, 3, 5, 30)},
    "mirostat": {"mirostat": 2, "mirostat_tau": 4.0, "mirostat_eta": 0.5},
    "dynamic_temperature": {"dynatemp_range": 0.7},
    "momentum_decoding": {"momentum_alpha": 0.2},
    "watermark": {"watermark": GreenKey(7, VOCABULARY)},
    "structured_outputs": {"structured_outputs": over_letters(VOCABULARY, regex="([^AB][^DE])*")},
}
ALL = sorted(steps())


def law_of(output: Sequence[int] = (), **settings: Any) -> Law:
    law = Law(LawSettings(**{"temperature": 1.0, **settings}), PROMPT, STOPS, Noise(1))
    for token in output:
        law.observe(token, rows(2, seed=len(law.tokens))[1])
    return law


def rows(count: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    """Raw scores [count, VOCABULARY]; stop tokens are likely, so that forbidding them shows."""
    found = torch.randn(count, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * scale
    found[::3, STOPS[0]] = 20.0
    return found


# What every step declares


@pytest.mark.parametrize("name", ALL)
def test_every_step_has_an_example_that_does_something(name: str) -> None:
    law = law_of([2, 2], **EXAMPLES[name])
    assert law.order == (name,)
    assert any(not torch.equal(law.scores(row), row) for row in rows(30))


@pytest.mark.parametrize("name", ALL)
def test_the_neutral_value_changes_nothing(name: str) -> None:
    first = steps()[name].settings()[0]
    law = law_of([2, 2], **{first.name: first.neutral})
    assert law.order == ()
    step: Any = steps()[name](**{first.name: first.neutral})
    assert not step.active


@pytest.mark.parametrize("name", ALL)
def test_whether_it_reads_the_prefix(name: str) -> None:
    """Over texts that differ in what was said and in length, with the same row."""
    texts = [[], [2], [2, 2], [9, 30], [30, 9, 14, 14]]
    changed = False
    for row in rows(20):
        found = [law_of(text, **EXAMPLES[name]).scores(row) for text in texts]
        changed |= any(not torch.equal(found[0], other) for other in found)
    assert changed is law_of(**EXAMPLES[name]).uses_prefix


@pytest.mark.parametrize("name", ALL)
def test_whether_it_keeps_the_likeliest_token(name: str) -> None:
    kept = True
    for seed in range(20):
        for row in rows(10, seed, scale=1.0):
            law = law_of([2, 2], **EXAMPLES[name])
            kept &= int(law.scores(row).argmax()) == int(row.argmax())
    assert kept is steps()[name].keeps_argmax
    assert (name in law_of(**{**EXAMPLES[name], "temperature": 0.0}).order) is not kept


@pytest.mark.parametrize("name", ALL)
def test_many_rows_at_once_are_each_row_alone(name: str) -> None:
    """To the last bit, whatever stands before each row."""
    texts = [[], [2], [2, 2], [9, 30], [30, 9, 14, 14]] * 3
    laws = [law_of(text, **EXAMPLES[name]) for text in texts]
    many = rows(len(texts))
    expected = [law.log_probabilities(row) for law, row in zip(laws, many, strict=True)]
    foresee(zip(laws, many, strict=True))
    for law, row, alone in zip(laws, many, expected, strict=True):
        assert torch.equal(law.log_probabilities(row), alone)
        assert torch.equal(law.log_probabilities(row.clone()), alone)  # another row is looked at for itself
        law.observe(1, row)
    assert torch.equal(many, rows(len(texts)))


@pytest.mark.parametrize("name", ALL)
def test_whether_it_makes_rows(name: str) -> None:
    law, given = law_of([2, 2], **EXAMPLES[name]), rows(6)
    law.steps[0].apply(given, [law.prefix()] * 6)
    if steps()[name].makes_rows:
        assert torch.equal(given, rows(6))


@pytest.mark.parametrize("name", ALL)
def test_its_settings_are_declared_once_and_reach_everybody(name: str) -> None:
    """Settings, schema and table follow from the step."""
    described = schema()["properties"]
    for own in steps()[name].settings():
        assert declared()[own.name] == own
        assert f"| `{own.name}` |" in table()
        assert (own.name in described) is (own.kind.schema() is not None)
        for alias in own.aliases:
            assert (alias in described) is (own.name in described)


@pytest.mark.parametrize("wide", [129, 5000, 49152])
@pytest.mark.parametrize("k", [1, 7, 50, 3000])
def test_top_k_keeps_all_from_the_kth_on(wide: int, k: int) -> None:
    for kind in range(3):
        row = torch.randn(wide, generator=torch.Generator().manual_seed(kind))
        row = [row, row.round(), torch.where(row > 1, row, FORBIDDEN)][kind]
        least = float(row.sort(descending=True).values[min(k, wide) - 1])
        assert torch.equal(law_of(top_k=k).scores(row), torch.where(row < least, FORBIDDEN, row))


@pytest.mark.parametrize("scale", [0.5, 3.0, 20.0])
@pytest.mark.parametrize("p", [0.3, 0.9, 0.99])
def test_top_p_of_sharp_and_flat_rows(scale: float, p: float) -> None:
    """As language models give them: a few tokens far above the rest. Most are settled among the likeliest tokens alone."""
    few, step = 0, TopP(p)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        row = torch.randn(49152, generator=generator) * 2
        row[torch.randint(49152, (30,), generator=generator)] += torch.rand(30, generator=generator) * scale + 10
        ordered, ids = row.sort(descending=True, stable=True)
        mass = ordered.softmax(dim=-1).cumsum(dim=-1)
        assert torch.equal(law_of(top_p=p).scores(row), row.index_fill(0, ids[1:][mass[:-1] >= p], FORBIDDEN))
        few += step._of_few(row) is not None
    assert few >= (0 if p == 0.99 else 15)


@pytest.mark.parametrize("settings", [{}, {"top_p": 0.9}, {"top_k": 40}, {"min_p": 0.1}, {"top_k": 1}])
def test_what_is_kept_is_the_law(settings: dict[str, Any]) -> None:
    for seed in range(5):
        row = torch.randn(5000, generator=torch.Generator().manual_seed(seed)) * 4
        law = law_of(**settings)
        ids, kept = law.kept(row)
        probabilities = law.probabilities(row)
        assert (ids is None) is (settings == {})
        assert torch.equal(probabilities if ids is None else probabilities[ids], kept)
        assert float(probabilities.sum()) == pytest.approx(1.0, abs=1e-5)
        assert torch.allclose(probabilities, law.log_probabilities(row).exp(), rtol=1e-5, atol=0)
    for spoilt in (0, 17):
        row[spoilt] = float("nan")
        with pytest.raises(ScoresNotNumbers):
            law.kept(row)


@pytest.mark.parametrize("wide", [129, 5000, 49152])
@pytest.mark.parametrize("p", [0.01, 0.5, 0.95, 0.9999])
def test_top_p_is_that_of_a_stable_sort(wide: int, p: float) -> None:
    """Also among equals, in flat rows, and where tokens are forbidden."""
    for kind in range(4):
        row = torch.randn(wide, generator=torch.Generator().manual_seed(kind)) * 3
        row = [row, row.round(), torch.zeros(wide), torch.where(row > 1, row, FORBIDDEN)][kind]
        ordered, ids = row.sort(descending=True, stable=True)
        mass = ordered.softmax(dim=-1).cumsum(dim=-1)
        drop = torch.zeros_like(mass, dtype=torch.bool)
        drop[1:] = mass[:-1] >= p
        assert torch.equal(law_of(top_p=p).scores(row), row.index_fill(0, ids[drop], FORBIDDEN))


def test_one_bad_row_spoils_no_other() -> None:
    """A processor that breaks down, in a round of several requests, is met by its own request alone."""

    def breaks(ids: Tensor, scores: Tensor) -> Tensor:
        if ids.shape[1] == 5:
            raise ZeroDivisionError
        return scores

    good, bad = law_of(processors=(breaks,)), law_of([1], processors=(breaks,))
    first, second = rows(2)
    foresee([(good, first), (bad, second)])
    assert torch.equal(good.log_probabilities(first), first.log_softmax(-1))
    with pytest.raises(ZeroDivisionError):
        bad.log_probabilities(second)


# Orders


def test_presets_name_every_step_once() -> None:
    for preset in (None, *PRESETS):
        assert sorted(default_order(preset)) == ALL


def test_presets_are_those_of_the_libraries() -> None:
    def among(preset: str, *names: str) -> tuple[str, ...]:
        return tuple(name for name in Settings.of({"order": preset}, 100).order if name in names)

    assert among("hf", "temperature", "top_k", "top_p", "min_p") == ("temperature", "top_k", "top_p", "min_p")
    assert among("hf", "logit_bias", "repetition_penalty") == ("logit_bias", "repetition_penalty")
    assert among("vllm", "temperature", "top_k", "top_p", "min_p") == ("temperature", "min_p", "top_k", "top_p")
    assert among("vllm", "logit_bias", "repetition_penalty") == ("logit_bias", "repetition_penalty")
    assert among("vllm", "presence_penalty", "frequency_penalty") == ("frequency_penalty", "presence_penalty")
    truncations = ("top_h", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
    assert among("hf", "temperature", *truncations) == ("temperature", *truncations)
    before = ("repetition_penalty", "no_repeat_ngram_size", "bad_words", "min_new_tokens", "processors", "temperature")
    assert among("hf", *before) == before
    first = ("allowed_token_ids", "bad_words", "min_new_tokens", "logit_bias", "repetition_penalty")
    assert among("vllm", *first) == first
    chain = ("logit_bias", "repetition_penalty", "dry", "top_n_sigma", "top_k", "typical_p", "top_p", "min_p", "xtc",
             "dynamic_temperature", "temperature", "mirostat")  # fmt: skip
    assert among("llama.cpp", *chain) == chain
    # By default it is typical first, so that the entropy is that of the whole law.
    assert default_order().index("temperature") < default_order().index("typical_p") < default_order().index("top_k")


def test_temperature_last_truncates_the_law_before_it() -> None:
    row = torch.tensor([2.0, 1.0, 0.0])
    kept = {
        preset: int(
            (
                Law(Settings.of({"order": preset, "temperature": 3.0, "top_p": 0.85}, 3), [0]).scores(row) > FORBIDDEN
            ).sum()
        )
        for preset in ("hf", "llama.cpp")
    }
    assert kept == {"hf": 3, "llama.cpp": 2}


# Steps of another package: one with a state, one that draws


@dataclass(frozen=True)
class Surprise(StatefulStep):
    """Like mirostat: allows tokens up to a surprise, which follows the surprise of what was taken."""

    surprise: float = setting(0.0, Real(0.0), "Nats of surprise that are wanted.")
    surprise_rate: float = setting(0.5, Real(0.0, 1.0), "How fast the allowance follows.")

    name = "surprise"
    place = 350

    def begin(self, prompt: Sequence[int]) -> float:
        return 2 * self.surprise

    def advance(self, state: float, scores: Tensor, token: int) -> float:
        return state - self.surprise_rate * (-float(scores.log_softmax(-1)[token]) - self.surprise)

    def apply(self, rows: Tensor, prefixes: Sequence[Prefix]) -> Tensor:
        for row, prefix in zip(rows, prefixes, strict=True):
            law = row.log_softmax(-1)
            row[(-law > prefix.state(self)) & (law < law.max())] = FORBIDDEN
        return rows


@dataclass(frozen=True)
class Coin(Step):
    """By chance, per position, the likeliest token is forbidden."""

    coin: float = setting(0.0, Real(0.0, 1.0), "How often.")

    name = "coin"
    place = 360
    draws = True

    def apply(self, rows: Tensor, prefixes: Sequence[Prefix]) -> Tensor:
        for row, prefix in zip(rows, prefixes, strict=True):
            if prefix.accept(self, self.coin):
                row[row.argmax()] = FORBIDDEN
        return rows


@pytest.fixture
def others() -> Iterator[None]:
    register(Surprise)
    register(Coin)
    yield
    unregister(Surprise)
    unregister(Coin)


def test_steps_of_others_join_settings_and_order(others: None) -> None:
    given = Settings.of({"surprise": 1, "surprise_rate": 0.25, "temperature": 1}, 100)
    assert (given.surprise, given.surprise_rate, given.coin) == (1.0, 0.25, 0.0)
    assert given.order.index("surprise") < given.order.index("coin")
    assert "surprise_rate" in schema()["properties"]
    with pytest.raises(BadSetting, match="surprise_rate acts only together with surprise"):
        Settings.of({"surprise_rate": 0.25}, 100)
    with pytest.raises(BadSetting, match="coin must be at least 0 and at most 1"):
        Settings.of({"coin": 2}, 100)
    with pytest.raises(ValueError, match="registered already"):
        register(Coin)


def test_a_step_that_is_not_whole_is_refused_when_it_is_registered() -> None:
    """And not in the middle of a request."""

    @dataclass(frozen=True)
    class Unbegun(StatefulStep):
        unbegun: float = setting(0.0, Real(0.0), "Has a state and never says where it begins.")
        name = "unbegun"
        place = 350

        def advance(self, state: float, scores: Tensor, token: int) -> float:
            return state

        def apply(self, rows: Tensor, prefixes: Sequence[Prefix]) -> Tensor:
            return rows

    class Standing(Unbegun):
        name = "standing"
        advance = StatefulStep.advance

        def begin(self, prompt: Sequence[int]) -> float:
            return 0.0

    @dataclass(frozen=True)
    class Stateless(Step):
        stateless: float = setting(0.0, Real(0.0), "Says where a state begins, and has none.")
        name = "stateless"
        begin = Surprise.begin
        apply = Surprise.apply

    class Idle(Step):
        name = "idle"
        place = 350
        settings = Coin.settings

    for step, reason in (
        (Unbegun, "unbegun has no begin"),
        (Standing, "standing has no advance"),
        (Stateless, "stateless has begin, which is never asked for"),
        (Idle, "idle has no apply"),
    ):
        with pytest.raises(ValueError, match=reason):
            register(step)
    assert sorted(default_order()) == ALL


def test_a_step_that_is_forgotten_again_is_no_setting() -> None:
    with pytest.raises(BadSetting, match="'coin' is not a setting"):
        Settings.of({"coin": 0.5}, 100)
    with pytest.raises(AttributeError):
        _ = Settings().coin


def _by_hand(row_of: Any, tokens: Sequence[int], wanted: float, rate: float) -> list[Tensor]:
    """The laws after each beginning of `tokens`, with the state written out."""
    state, found = 2 * wanted, []
    for place in range(len(tokens) + 1):
        law = row_of(tokens[:place]).log_softmax(-1)
        law = law.masked_fill((-law > state) & (law < law.max()), FORBIDDEN).log_softmax(-1)
        found.append(law)
        if place < len(tokens):
            state -= rate * (-float(law[tokens[place]]) - wanted)
    return found


@given(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=6), st.integers(0, 6))
def test_states_follow_the_text_and_paths_and_are_rolled_back(tokens: list[int], committed: int) -> None:
    register(Surprise)
    try:
        committed = min(committed, len(tokens))

        def row_of(before: Sequence[int]) -> Tensor:
            return rows(1, seed=hash(tuple(before)) % 10_000, scale=1.0)[0]

        expected = _by_hand(row_of, tokens, 2.0, 0.5)
        law = law_of(surprise=2.0)
        for place in range(committed):
            assert torch.allclose(law.log_probabilities(row_of(tokens[:place])), expected[place], atol=1e-5)
            law.observe(tokens[place], row_of(tokens[:place]))
        fork = law.fork()
        for place in range(committed, len(tokens) + 1):  # a path, from its root down
            found = law.log_probabilities(row_of(tokens[:place]), tokens[committed:place])
            assert torch.allclose(found, expected[place], atol=1e-5)
        # Another path, and the path again: what was looked at leaves no trace.
        law.log_probabilities(row_of([*tokens[:committed], 0]), [])
        again = law.log_probabilities(row_of(tokens[:committed]))
        assert torch.allclose(again, expected[committed], atol=1e-5)
        for place in range(committed, len(tokens)):  # a fork goes its own way
            fork.observe(tokens[place], row_of(tokens[:place]))
        assert torch.allclose(fork.log_probabilities(row_of(tokens)), expected[-1], atol=1e-5)
        assert torch.allclose(law.log_probabilities(row_of(tokens[:committed])), expected[committed], atol=1e-5)
        with pytest.raises(ValueError, match="rows it has not seen"):
            fork.log_probabilities(row_of([]), [1, 2, 3])
    finally:
        unregister(Surprise)


@pytest.mark.parametrize("method", ["autoregressive", "prompt-lookup", "draft-model", "swift", "spectr(drafts=2)"])
def test_methods_keep_the_law_of_a_state(others: None, method: str) -> None:
    """The exact law of a whole request, with the state, is the law written out: also where drafts were verified or thrown
    away."""
    scorer = TabularScorer(3, order=None, seed=3, layers=3)
    scorer.early = drafter = scorer.blurred(0.9)
    lm = scripted_language_model(scorer, drafter=drafter)
    settings = Settings(temperature=1.0, surprise=0.6, max_new_tokens=2, seed=0)
    found = exact_outputs(lm, method, [0, 1, 2, 0, 1], settings)

    def row_of(before: Sequence[int]) -> Tensor:
        row: Tensor = scorer.score([(0, 1, 2, 0, 1, *before)], True)[0]
        return row

    expected: dict[tuple[int, ...], float] = {}
    for first in range(3):
        for second in range(3):
            laws = _by_hand(row_of, [first, second], 0.6, 0.5)
            expected[first, second] = float(laws[0][first].exp() * laws[1][second].exp())
    assert total_variation(found, {k: v for k, v in expected.items() if v > 0}) < 1e-5
    assert len({round(v, 6) for v in expected.values()}) > 2


@pytest.mark.parametrize("method", ["autoregressive", "prompt-lookup", "draft-model"])
def test_methods_keep_the_law_of_a_step_that_draws(others: None, method: str) -> None:
    """A position's decision is one decision, however often its law is looked at."""
    scorer = TabularScorer(3, order=None, seed=3)
    lm = scripted_language_model(scorer, drafter=scorer.blurred(0.9))
    settings = Settings(temperature=1.0, coin=0.25, max_new_tokens=2, seed=0)
    found = exact_outputs(lm, method, [0, 1, 2, 0, 1], settings)

    def law(before: Sequence[int]) -> list[float]:
        row = scorer.score([(0, 1, 2, 0, 1, *before)], True)[0]
        without = row.index_fill(0, row.argmax(), FORBIDDEN)
        return (0.75 * row.softmax(-1) + 0.25 * without.softmax(-1)).tolist()

    expected = {(a, b): law([])[a] * law([a])[b] for a in range(3) for b in range(3)}
    assert total_variation(found, expected) < 1e-5


def test_a_decision_has_its_probability_and_an_address_of_its_own(others: None) -> None:
    law = enumerate_outcomes(lambda chance: _coins(chance))
    assert law == pytest.approx({(a, b): (0.25 if a else 0.75) * (0.25 if b else 0.75) for a in (0, 1) for b in (0, 1)})


def _coins(chance: Any) -> tuple[int, int]:
    """Whether the likeliest token is forbidden at two positions; each law is looked at twice."""
    law = Law(LawSettings(temperature=1.0, coin=0.25), PROMPT, (), chance)
    found = []
    for _ in range(2):
        row = rows(1)[0]
        once = law.scores(row)
        assert torch.equal(once, law.scores(row))
        found.append(int(once[row.argmax()] == FORBIDDEN))
        law.observe(1)
    return found[0], found[1]


# Views of a text


@given(st.lists(st.integers(0, 9)), st.lists(st.integers(0, 9)), st.integers(-12, 12), st.integers(-12, 12))
def test_a_text_and_a_path_read_as_one(text: list[int], path: list[int], start: int, stop: int) -> None:
    joined, whole = Joined(text, path), text + path
    assert list(joined) == whole
    assert len(joined) == len(whole)
    assert joined[start:stop] == whole[start:stop]
    assert [joined[place] for place in range(-len(whole), len(whole))] == whole + whole
