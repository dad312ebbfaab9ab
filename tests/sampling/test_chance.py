"""Sources of chance: each draws from the right law, and keeps what it promises beyond that.

Statistical tests are deterministic (fixed seeds), and their bounds were chosen before looking: each fails for a right source
with probability 1e-4 at most.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import scipy.stats
import torch

from decodery.engine.method import Exactness
from decodery.engine.needs import NEXT_TOKENS
from decodery.engine.registry import find, names
from decodery.engine.scheduler import Scheduler
from decodery.engine.settings import Settings
from decodery.errors import BadSetting, Refused
from decodery.sampling import Noise, Stage
from decodery.sampling.chance import Arithmetic, DrawnSample, GumbelRace, Keyed, Recording, Replay, Source, sources
from decodery.sampling.noise import Draw, unrolled
from decodery.testing import goodness_of_fit, scripted_language_model
from decodery.testing.outputs import finished, new_request
from decodery.testing.scorers import TabularScorer

FALSE_ALARM = 1e-4
PROMPT = [0, 1, 2, 0, 1]
LENGTH = 3
BY_NAME = sorted(sources())
DETERMINISTIC = ("prompt-lookup", "suffix-automaton", "token-recycling", "cascade")
"""Methods whose drafts are not drawn: the same tokens as plain decoding, whatever draws."""


def model(vocabulary: int = 4) -> tuple[Any, TabularScorer]:
    scorer = TabularScorer(vocabulary, order=None, seed=3, layers=3)
    scorer.early = drafter = scorer.blurred(0.9)
    return scripted_language_model(scorer, drafter=drafter), scorer


def many(lm: Any, method: str, sources: Sequence[Any], length: int) -> Counter[tuple[int, ...]]:
    """Counts of the outputs of one request with each of these sources, of another seed each, in one packed batch."""
    scheduler, requests = Scheduler(), []
    for seed, source in enumerate(sources):
        settings = Settings.of({"temperature": 1.0, "max_new_tokens": length, "seed": seed, "chance": source}, 9)
        request, chosen = new_request(lm, method, PROMPT, settings)
        scheduler.submit(request, chosen)
        requests.append(request)
    scheduler.run()
    return Counter(tuple(request.new_tokens) for request in requests)


def one(lm: Any, method: str, seed: int, source: Any, length: int = LENGTH, **more: Any) -> tuple[int, ...]:
    settings = Settings.of(
        {"temperature": 1.0, "max_new_tokens": length, "seed": seed, "chance": source, **more}, lm.network.vocabulary
    )
    return tuple(finished(*new_request(lm, method, PROMPT, settings)).new_tokens)


def independent(source: str, number: int) -> str | Source:
    """The source, for sample `number` of independent ones: the key of a keyed source plays the part of the seed."""
    return Keyed(number, 2, number % 2 == 0) if source == "keyed" else source


# The law


@pytest.mark.parametrize("method", ["autoregressive", "prompt-lookup"])
@pytest.mark.parametrize("source", BY_NAME)
def test_the_joint_law_of_a_text_is_the_model_s(source: str, method: str) -> None:
    """Chi-square over all texts of three tokens. Contexts of two tokens that come again would meet the same keyed draw, and
    in so short a text of a prompt like this they may: those texts are left to the test of single draws."""
    lm, scorer = model()
    length = 1 if source == "keyed" else LENGTH
    counts = many(lm, method, [independent(source, seed) for seed in range(600)], length)
    law = scorer.joint(PROMPT, length, Settings(temperature=1.0))
    assert goodness_of_fit(counts, law).p_value > FALSE_ALARM / (2 * len(BY_NAME))


@pytest.mark.parametrize("source", BY_NAME)
def test_single_draws_follow_the_probabilities(source: str) -> None:
    law = torch.tensor([0.0, 0.05, 0.3, 0.0, 0.15, 0.5, 0.0], dtype=torch.float64)
    counts = [0] * len(law)
    for number in range(4_000):
        made = independent(source, number)
        kind = sources()[made]() if isinstance(made, str) else made  # type: ignore[call-arg]
        chance = kind.chance(DrawnSample(number, 0, 1, [1, 2, 3], 3))
        counts[chance.choose(law, 3, Stage.TARGET)] += 1
    assert all(count == 0 for count, mass in zip(counts, law.tolist(), strict=True) if mass == 0)
    held = [(count, 4_000 * mass) for count, mass in zip(counts, law.tolist(), strict=True) if mass > 0]
    assert scipy.stats.chisquare(*map(list, zip(*held, strict=True))).pvalue > FALSE_ALARM / len(BY_NAME)


# Who runs with whom


@pytest.mark.parametrize("method", DETERMINISTIC)
@pytest.mark.parametrize("source", BY_NAME)
def test_speculation_without_drawn_drafts_gives_the_same_tokens(source: str, method: str) -> None:
    lm, _ = model()
    for seed in range(3):
        chosen = independent(source, seed)
        assert one(lm, method, seed, chosen, 12) == one(lm, "autoregressive", seed, chosen, 12)


@pytest.mark.parametrize(
    "method",
    [
        name
        for name in names()
        if find(name).exactness is Exactness.IDENTICAL_TO_SAMPLING and NEXT_TOKENS in find(name).needs
    ],
)
@pytest.mark.usefixtures("toy_adapters")
def test_drawn_drafts_are_refused_where_the_source_serves_the_target_alone(method: str) -> None:
    lm, _ = model()
    for source in ("arithmetic", "keyed", Recording(Arithmetic())):
        with pytest.raises(Refused, match=f"{method} does not run with chance"):
            one(lm, method, 0, source)
    assert one(lm, method, 0, "arithmetic", temperature=0.0) == one(lm, method, 0, "addressed", temperature=0.0)


@pytest.mark.parametrize("method", ["draft-model", "recursive-speculative-decoding", "spectr", "swift"])
def test_drawn_drafts_keep_the_law_under_races(method: str) -> None:
    lm, scorer = model(3)
    counts = many(lm, method, ["gumbel"] * 400, 2)
    law = scorer.joint(PROMPT, 2, Settings(temperature=1.0))
    assert goodness_of_fit(counts, law).p_value > FALSE_ALARM / 4


def test_a_draw_that_a_source_does_not_serve_is_refused() -> None:
    law = torch.tensor([0.5, 0.5])
    for source in (Arithmetic(), Keyed(3)):
        chance = source.chance(DrawnSample(0, 0, 1, [1, 2], 2))
        for stage in (Stage.DRAFT, Stage.RESIDUAL, Stage.ORDER):
            with pytest.raises(Refused, match=source.target_only):
                chance.choose(law, 2, stage)
        with pytest.raises(Refused, match=source.target_only):
            chance.accept(0.5, 2)
        assert chance.choose(law, 2, Stage.LAW, ("step", 0)) in (0, 1)


def test_a_keyed_draw_without_all_the_tokens_before_it_is_refused() -> None:
    chance = Keyed(3).chance(DrawnSample(0, 0, 1, [1, 2], 2))
    law = torch.tensor([0.5, 0.5])
    with pytest.raises(Refused, match="needs the 4 tokens before a draw, and was told 3"):
        chance.choose(law, 4, Stage.TARGET, path=[7])
    chance.choose(law, 4, Stage.TARGET, path=[7, 8])


def test_an_arithmetic_draw_out_of_order_is_refused() -> None:
    chance = Arithmetic().chance(DrawnSample(0, 0, 1, [1, 2], 2))
    with pytest.raises(Refused, match="at position 4"):
        chance.choose(torch.tensor([0.5, 0.5]), 4, Stage.TARGET, path=[0, 1])


@pytest.mark.parametrize("source", [Keyed(3), Replay((Draw(0, Stage.TARGET, 0, 0.5),))])
def test_samples_that_would_all_be_the_same_are_refused(source: Source) -> None:
    with pytest.raises(BadSetting, match=f"chance {source.name} does not run with n=2"):
        Settings.of({"chance": source, "n": 2}, 10)


# Arithmetic samples


def _means(source: str, runs: int, count: int) -> list[float]:
    """The mean, over `count` samples, of a number that a text stands for; once for each seed."""
    lm, _ = model()
    found = []
    for seed in range(runs):
        replies = lm.generate(PROMPT, seed=seed, n=count, temperature=1.0, max_new_tokens=LENGTH, chance=source)
        found.append(statistics.fmean(sum(reply.token_ids) for reply in replies))
    return found


def test_means_over_arithmetic_samples_vary_less() -> None:
    """A one-sided F test; the means themselves agree (z test)."""
    even, plain = _means("arithmetic", 40, 16), _means("addressed", 40, 16)
    ratio = statistics.variance(even) / statistics.variance(plain)
    assert scipy.stats.f(39, 39).cdf(ratio) < FALSE_ALARM
    error = (statistics.variance(even) / 40 + statistics.variance(plain) / 40) ** 0.5
    assert abs(statistics.fmean(even) - statistics.fmean(plain)) < 3.9 * error


def test_arithmetic_samples_of_one_law_are_evenly_spread() -> None:
    """Of n samples, n times a token's probability, rounded up or down, begin with it."""
    law = torch.tensor([0.1, 0.25, 0.65])
    for seed in range(20):
        counts = Counter(
            Arithmetic().chance(DrawnSample(seed, number, 40, [0], 1)).choose(law, 1, Stage.TARGET)
            for number in range(40)
        )
        assert all(abs(counts[token] - 40 * float(law[token])) <= 1 for token in range(3))


def test_an_arithmetic_number_does_not_run_out_of_digits() -> None:
    """Long texts are as random at their end as at their beginning."""
    law = torch.tensor([0.25, 0.75])
    ends: Counter[int] = Counter()
    for seed in range(300):
        chance = Arithmetic().chance(DrawnSample(seed, 0, 1, [], 0))
        drawn = [chance.choose(law, position, Stage.TARGET) for position in range(120)]
        ends[drawn[-1]] += 1
    assert scipy.stats.binomtest(ends[1], 300, 0.75).pvalue > FALSE_ALARM


def test_a_forked_number_goes_its_own_way() -> None:
    law = torch.tensor([0.3, 0.3, 0.4])
    first = Arithmetic().chance(DrawnSample(5, 0, 1, [], 0))
    first.choose(law, 0, Stage.TARGET)
    second = first.fork([])
    ahead = [first.choose(law, position, Stage.TARGET) for position in range(1, 9)]
    assert [second.choose(law, position, Stage.TARGET) for position in range(1, 9)] == ahead


# Keyed draws


@pytest.mark.parametrize("race", [True, False])
def test_the_owner_of_a_key_finds_its_draws_again(race: bool) -> None:
    source = Keyed(99, 3, race)
    lm, _ = model()
    tokens = [*PROMPT, *one(lm, "autoregressive", 0, source, 12)]
    for place in range(len(PROMPT), len(tokens)):
        position, index = source.address(tokens[:place])
        law = lm.network.score([tuple(tokens[:place])], True)[0].softmax(-1)
        if race:
            numbers = unrolled(source.noise().key(position, Stage.TARGET, index), len(law))
            assert tokens[place] == int((numbers.log() / law).argmax())
        else:
            number = source.noise().uniform(position, Stage.TARGET, index)
            assert tokens[place] == int((law.double().cumsum(0) > number).nonzero()[0])


def test_a_key_by_context_forgets_what_lies_before_its_window_and_a_key_by_place_the_text() -> None:
    context, place = Keyed(1, 2), Keyed(1, 0)
    assert context.address([1, 2, 3]) == context.address([9, 9, 2, 3]) != context.address([2, 4])
    assert place.address([1, 2, 3], 1) == place.address([5, 5], 0) != place.address([1, 2, 3], 2)
    lm, _ = model()
    assert one(lm, "autoregressive", 0, Keyed(1), 8) == one(lm, "autoregressive", 5, Keyed(1), 8)
    assert len({one(lm, "autoregressive", 0, Keyed(key), 8) for key in range(12)}) > 6


# Recorded runs


@pytest.mark.parametrize("method", ["autoregressive", "prompt-lookup", "draft-model", "spectr"])
@pytest.mark.parametrize("source", ["addressed", "gumbel"])
def test_a_recorded_run_is_replayed(source: str, method: str) -> None:
    lm, _ = model()
    recording = Recording(Settings.of({"chance": source}, 10).chance)
    tokens = one(lm, method, 7, recording, 10)
    [run] = recording.runs
    assert one(lm, method, 1234, Replay(tuple(run)), 10) == tokens
    assert one(lm, method, 7, source, 10) == tokens


@pytest.mark.parametrize("source", [Arithmetic(), Keyed(4, 2, False), Keyed(4, 2, True)])
def test_draws_of_the_target_alone_are_replayed_by_plain_decoding(source: Source) -> None:
    lm, _ = model()
    recording = Recording(source)
    tokens = one(lm, "autoregressive", 7, recording, 10)
    assert one(lm, "token-recycling", 0, Replay(tuple(recording.runs[0])), 10) == tokens


def test_a_counterfactual_run_meets_the_same_draws() -> None:
    """Another prompt, of another length; where its laws are the same, so are its tokens."""
    lm, _ = model()
    recording = Recording(GumbelRace())
    one(lm, "autoregressive", 7, recording, 6)
    run = Replay(tuple(recording.runs[0]))
    other = Settings(temperature=1.0, max_new_tokens=6, seed=0, chance=run)
    tokens = finished(*new_request(lm, "autoregressive", [2, 2, 1], other)).new_tokens
    for place, draw in enumerate(recording.runs[0]):
        assert (draw.position, draw.stage) == (place, Stage.TARGET)
        law = lm.network.score([(2, 2, 1, *tokens[:place])], True)[0].softmax(-1)
        assert tokens[place] == int((unrolled(int(draw.number), len(law)).log() / law).argmax())


def test_a_run_that_ends_too_soon_or_does_not_fit_is_an_error() -> None:
    lm, _ = model()
    recording, races = Recording(), Recording(GumbelRace())
    one(lm, "autoregressive", 7, recording, 4)
    one(lm, "autoregressive", 7, races, 4)
    with pytest.raises(BadSetting, match="no draw for target at token 5; it holds 4 draws"):
        one(lm, "autoregressive", 7, Replay(tuple(recording.runs[0])), 6)
    with pytest.raises(BadSetting, match="no draw"):
        one(lm, "draft-model", 7, Replay(tuple(recording.runs[0])), 4)
    chance = Replay((Draw(0, Stage.ACCEPT, 0, 5), Draw(0, Stage.TARGET, 0, 0.5))).chance(DrawnSample(0, 0, 1, [], 0))
    with pytest.raises(BadSetting, match="raced"):
        chance.accept(0.5, 0)
    with pytest.raises(BadSetting, match="where a race is asked for"):
        chance.race(torch.zeros(3), 0, Stage.TARGET)
    with pytest.raises(BadSetting, match="record one"):
        Replay()


# Addresses


def test_addresses_of_any_length_are_apart() -> None:
    noise = Noise(3)
    indices: list[Any] = [
        0,
        1,
        (),
        (0,),
        (0, 0),
        ("0",),
        (0, "0"),
        ("00",),
        (10,),
        (1, 0),
        ("a", "b"),
        ("ab",),
        (-1,),
        (2**70,),
    ]
    drawn = [noise.uniform(5, Stage.DRAFT, index) for index in indices]
    assert len(set(drawn)) == len(drawn)
    assert noise.uniform(5, Stage.DRAFT, (2**70,)) == drawn[-1]
    many = [noise.uniform(0, Stage.DRAFT, (node, rank)) for node in range(80) for rank in range(80)]
    assert len(set(many)) == len(many)
    assert scipy.stats.kstest(many, "uniform").pvalue > FALSE_ALARM
