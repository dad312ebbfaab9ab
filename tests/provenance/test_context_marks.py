"""Marks that go by the last tokens: gumbel, kgw and synthid, at both ends.

Seeds are fixed; tests of a law fail for a right program with probability 1e-3 at most.
"""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from marked_texts import laws, unmarked

from decodery.engine.settings import Settings
from decodery.errors import Refused
from decodery.provenance.context import _number
from decodery.provenance.watermark import detect
from decodery.sampling import Law, LawSettings, Noise, Stage
from decodery.sampling.chance import Keyed
from decodery.sampling.noise import unrolled
from decodery.sampling.watermarks.keys import ContextKey, GreenKey, TournamentKey, WatermarkKey
from decodery.testing import goodness_of_fit, scripted_language_model
from decodery.testing.scorers import TabularScorer

FALSE_ALARM = 1e-3
V = 64
SCHEMES: list[type[WatermarkKey]] = [ContextKey, GreenKey, TournamentKey]


def written(key: WatermarkKey, of: torch.Tensor, seed: int = 0) -> list[int]:
    """A text, token t from law t, behind a prompt of five tokens."""
    text = [1, 2, 3, 4, 5]
    law = Law(LawSettings(temperature=1.0, watermark=key), text)
    chance: Any = Keyed(key.key, key.window) if isinstance(key, ContextKey) else Noise(seed)
    if isinstance(chance, Keyed):
        from decodery.sampling.chance import DrawnSample

        chance = chance.chance(DrawnSample(seed, 0, 1, law.tokens, 5))
    for place, own in enumerate(of):
        law.observe(chance.choose(law.probabilities(own.log().float()), 5 + place, Stage.TARGET))
    return law.tokens[5:]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_mark_is_found_and_another_key_finds_none(scheme: type[WatermarkKey]) -> None:
    own, other = [], []
    for seed in range(40):
        text = written(scheme(seed, V), laws(60, V, 3.0, seed), seed)
        own.append(detect(text, scheme(seed, V)).p_value)
        other.append(detect(text, scheme(10**6 + seed, V), significance=0.05).p_value)
    assert statistics.median(own) <= 0.005
    assert scipy.stats.binomtest(sum(p <= 0.1 for p in other), 40, 0.1, "greater").pvalue > FALSE_ALARM


@pytest.mark.parametrize("scheme", SCHEMES)
def test_p_values_of_unmarked_texts_are_valid(scheme: type[WatermarkKey]) -> None:
    """Texts of few tokens, in which contexts come again."""
    of = laws(40, 6, 1.2, 0)
    found = [detect(unmarked(of, seed), scheme(seed, 6), seed=seed).p_value for seed in range(400)]
    for level in (0.05, 0.2):
        assert scipy.stats.binomtest(sum(p <= level for p in found), 400, level, "greater").pvalue > FALSE_ALARM
    if scheme is ContextKey:  # whose law is continuous
        assert scipy.stats.kstest(found, "uniform").pvalue > FALSE_ALARM


def test_what_stands_there_again_is_counted_once() -> None:
    text = [1, 2, 3, 4, 9, 1, 2, 3, 4, 9, 1, 2, 3, 4, 8]
    assert detect(text, ContextKey(5, V)).counted == 6
    assert detect(text, GreenKey(5, V)).counted == 6
    assert detect(text, TournamentKey(5, V)).counted == 5  # of a context that comes again the first token alone
    for scheme, least in ((ContextKey, 5), (GreenKey, 2), (TournamentKey, 5)):
        detect(text[:least], scheme(5, V))
        with pytest.raises(Refused, match=f"the text has {least - 1} tokens, and the key goes by the last {least - 1}"):
            detect(text[: least - 1], scheme(5, V))


# Gumbel


def test_the_number_of_a_token_is_that_of_the_race() -> None:
    key, source = ContextKey(7, 300), Keyed(7, 4)
    position, index = source.address([4, 3, 2, 1])
    numbers = unrolled(source.noise().key(position, Stage.TARGET, index), 300)
    assert [_number(key, (4, 3, 2, 1), token) for token in range(300)] == numbers.tolist()


def test_a_gumbel_mark_is_a_sum_of_gamma_s_law() -> None:
    text = unmarked(laws(30, V, 3.0, 1), 1)
    seen = detect(text, ContextKey(7, V))
    numbers = [_number(ContextKey(7, V), tuple(text[place - 4 : place]), text[place]) for place in range(4, 30)]
    assert seen.value == pytest.approx(-np.log(1 - np.array(numbers)).sum())
    assert seen.p_value == scipy.stats.gamma.sf(seen.value, 26)
    assert (seen.resamples, seen.seed, seen.statistic) == (0, None, "context")


# Green lists


def test_green_tokens_are_a_share_and_gain_the_bias() -> None:
    key, row = GreenKey(3, 41, share=0.3, bias=1.5), torch.linspace(-1, 1, 41)
    green = key.green([7])
    assert green.sum() == key.greens == 12
    law = Law(LawSettings(temperature=1.0, watermark=key), [2, 7])
    assert torch.allclose(law.scores(row), row + 1.5 * torch.from_numpy(green))
    assert law.order == ("watermark",)
    assert (key.green([8]) != green).any()
    assert (GreenKey(4, 41, share=0.3).green([7]) != green).any()
    assert torch.equal(law.scores(row, path=[9, 7]), law.scores(row))
    wide = Law(LawSettings(temperature=1.0, watermark=GreenKey(3, 41, window=2)), [2, 7])
    assert not torch.equal(wide.scores(row, path=[9, 7]), wide.scores(row))
    shares = np.mean([GreenKey(secret, 41).green([7]) for secret in range(1500)], axis=0)
    assert np.abs(shares - 10 / 41).max() < 4 * (0.25 * 0.75 / 1500) ** 0.5


def test_greens_are_binomial() -> None:
    text = unmarked(laws(50, V, 3.0, 2), 1)
    key = GreenKey(9, V)
    greens = {(one, two) for one, two in itertools.pairwise(text) if key.green([one])[two]}
    count = len(set(itertools.pairwise(text)))
    seen = detect(text, key)
    assert seen.value == len(greens) / count
    assert seen.p_value == scipy.stats.binom.sf(len(greens) - 1, count, 0.25)


# Tournaments


def tournament_law(key: TournamentKey, row: torch.Tensor, text: list[int]) -> torch.Tensor:
    return Law(LawSettings(temperature=1.0, watermark=key), text).probabilities(row)


def test_a_tournament_s_law_is_that_of_who_wins_it() -> None:
    """Every field of four candidates, with fair coins where both have the same bit."""
    key, law = TournamentKey(5, 4, layers=2), torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    bits = key.bits([1, 2, 3, 4])
    expected = np.zeros(4)

    def duel(first: np.ndarray, second: np.ndarray, layer: int) -> np.ndarray:
        """The law of the winner of two who have these laws."""
        won = np.zeros(4)
        for one, two in itertools.product(range(4), repeat=2):
            mass, ahead = first[one] * second[two], int(bits[one] >> layer & 1) - int(bits[two] >> layer & 1)
            won[one] += mass * (1.0, 0.5, 0.0)[1 - ahead]
            won[two] += mass * (0.0, 0.5, 1.0)[1 - ahead]
        return won

    for field in itertools.product(range(4), repeat=4):
        sure = np.eye(4)[list(field)]
        mass = float(law[list(field)].prod())
        expected += mass * duel(duel(sure[0], sure[1], 0), duel(sure[2], sure[3], 0), 1)
    found = tournament_law(key, law.log().float(), [1, 2, 3, 4])
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert not np.allclose(found, law, atol=0.02)


def test_a_tournament_is_that_of_transformers() -> None:
    from transformers import SynthIDTextWatermarkLogitsProcessor

    theirs = SynthIDTextWatermarkLogitsProcessor(5, list(range(30)), 64, 0, 1024, torch.device("cpu"))
    key, row = TournamentKey(5, 40), torch.randn(40, generator=torch.Generator().manual_seed(1))
    bits = torch.from_numpy(
        (key.bits([1, 2, 3, 4])[:, None] >> np.arange(30, dtype=np.uint64) & np.uint64(1)).astype(int)
    )
    expected = theirs.update_scores(row[None], bits[None]).softmax(-1)[0]
    assert torch.allclose(tournament_law(key, row, [1, 2, 3, 4]), expected, atol=1e-5)


def test_averaged_over_keys_a_tournament_keeps_the_law() -> None:
    law = torch.tensor([0.45, 0.3, 0.15, 0.1])
    found = torch.stack([tournament_law(TournamentKey(secret, 4), law.log(), [1, 2, 3, 0]) for secret in range(800)])
    error = found.std(0) / 800**0.5
    assert (((found.mean(0) - law) / error).abs() < 3.9).all()
    assert float((found > 0.999).any(1).float().mean()) > 0.5  # thirty rounds leave hardly anything to chance


def test_what_is_forbidden_wins_nothing_and_contexts_that_come_again_leave_the_law_alone() -> None:
    key, row = TournamentKey(5, 6, window=2), torch.linspace(0, 1, 6)
    law = Law(LawSettings(temperature=1.0, watermark=key, logit_bias={5: -float("inf")}), [3, 1, 2])
    assert float(law.probabilities(row)[5]) == 0.0
    held = Law(LawSettings(temperature=1.0, watermark=key), [3, 1, 2])
    first = held.probabilities(row)
    assert not torch.allclose(first, row.softmax(0))
    for token in (4, 1, 2):  # the prompt's own last tokens were the context of the first token
        held.observe(token)
    assert torch.allclose(held.probabilities(row), row.softmax(0))
    assert torch.allclose(Law(held.settings, [3, 1, 2]).probabilities(row, path=[4, 1, 2]), row.softmax(0))
    assert torch.allclose(
        Law(held.settings, [1, 2, 3, 1, 2]).probabilities(row), first
    )  # within the prompt it does not count
    short = Law(LawSettings(temperature=1.0, watermark=TournamentKey(5, 6, window=4)), [2])
    assert not torch.allclose(short.probabilities(row), row.softmax(0))
    assert not torch.allclose(short.probabilities(row, path=[2]), row.softmax(0))


@pytest.mark.parametrize("window", [1, 4])
def test_the_joint_law_of_a_text_with_tournaments_is_the_model_s(window: int) -> None:
    """Over keys, also where contexts come again within the text, which would meet the same bits."""
    scorer = TabularScorer(3, order=None, seed=3)
    lm, counts = scripted_language_model(scorer), Counter[tuple[int, ...]]()
    for secret in range(250):
        reply = lm.generate(
            [0, 1, 2], "autoregressive", temperature=1.0, max_new_tokens=4, seed=secret,
            watermark=TournamentKey(secret, 3, window, layers=8),
        )  # fmt: skip
        counts[tuple(reply.token_ids)] += 1
    law = scorer.joint([0, 1, 2], 4, Settings(temperature=1.0))
    assert goodness_of_fit(counts, law).p_value > FALSE_ALARM


@pytest.mark.parametrize("key", [GreenKey(3, 4), TournamentKey(3, 4, window=2)], ids=lambda key: key.scheme)
@pytest.mark.parametrize("method", ["prompt-lookup", "token-recycling", "cascade"])
def test_steps_follow_drafts(key: WatermarkKey, method: str) -> None:
    lm = scripted_language_model(TabularScorer(4, order=None, seed=3))
    given: Any = {"temperature": 1.0, "max_new_tokens": 16, "watermark": key, "n": 3, "seed": 4}
    plain = lm.generate([0, 1, 2, 0, 1], "autoregressive", **given)
    assert [r.token_ids for r in lm.generate([0, 1, 2, 0, 1], method, **given)] == [r.token_ids for r in plain]
    without = lm.generate([0, 1, 2, 0, 1], "autoregressive", **{**given, "watermark": None})
    assert [r.token_ids for r in plain] != [r.token_ids for r in without]


def test_resamples_of_bits_decide_how_small_a_p_value_may_be() -> None:
    key = TournamentKey(8, V)
    text = written(key, laws(60, V, 3.0, 5))
    assert detect(text, key).p_value == 1 / 200
    assert detect(text, key, resamples=9999).p_value == 1 / 10_000
    nothing = unmarked(laws(60, V, 3.0, 5), 3)
    assert detect(nothing, key, seed=1).p_value != detect(nothing, key, seed=2).p_value
