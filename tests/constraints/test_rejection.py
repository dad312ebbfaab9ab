"""Tokens drawn by rejection: the law of masking, and weights whose expectation is what the constraint leaves, by enumeration
and by counts."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats

from decodery.constraints import rejection
from decodery.constraints.rejection import Drawn, drawn, first_legal
from decodery.sampling.noise import Chance, Stage
from decodery.testing import enumerate_outcomes

LAW = torch.tensor([0.35, 0.25, 0.20, 0.12, 0.08], dtype=torch.float64)
LEGAL = {1, 3}
MASS = 0.37


class Scripted:
    """Draws from a chance whose decisions are all enumerated."""

    def __init__(self, chance: Chance):
        self._chance = chance

    def pick(self, masses: torch.Tensor, index: tuple[int, ...]) -> int:
        return self._chance.choose(masses, 0, Stage.DRAFT, index)

    def accept(self, probability: float, index: tuple[int, ...]) -> bool:
        return self._chance.accept(probability, 0, index)


class Random:
    """Draws from numpy."""

    def __init__(self, seed: int):
        self._numbers = np.random.default_rng(seed)

    def pick(self, masses: torch.Tensor, index: tuple[int, ...]) -> int:
        sums = np.cumsum(masses.numpy())
        return int(np.searchsorted(sums, self._numbers.random() * sums[-1], side="right"))

    def accept(self, probability: float, index: tuple[int, ...]) -> bool:
        return bool(self._numbers.random() < probability)


def enumerated(run: Callable[[Scripted], Drawn]) -> tuple[dict[int | None, float], dict[float, float]]:
    """Of each token the expectation of the weight where it is drawn; and the law of the weight."""
    outcomes = enumerate_outcomes(lambda chance: (lambda one: (one.token, one.weight))(run(Scripted(chance))))
    expected: dict[int | None, float] = defaultdict(float)
    weights: dict[float, float] = defaultdict(float)
    for (token, weight), probability in outcomes.items():
        expected[token] += probability * weight
        weights[weight] += probability
    return dict(expected), dict(weights)


def variance(weights: dict[float, float]) -> float:
    mean = math.fsum(w * p for w, p in weights.items())
    return math.fsum(p * (w - mean) ** 2 for w, p in weights.items())


def proper(expected: dict[int | None, float]) -> None:
    assert expected.pop(None, 0.0) == 0.0
    assert expected == pytest.approx({1: 0.25, 3: 0.12}, abs=1e-12)


def test_the_paper_s_estimator_is_unbiased() -> None:
    """Exact variance .0773 with one further order; more of them lower it, and their average stays unbiased."""
    expected, weights = enumerated(lambda draws: drawn(LAW, LEGAL.__contains__, draws, "traces"))
    proper(expected)
    assert variance(weights) == pytest.approx(0.0773, abs=5e-5)
    expected, fewer = enumerated(lambda draws: drawn(LAW, LEGAL.__contains__, draws, "traces", traces=2))
    proper(expected)
    assert variance(fewer) < 0.9 * variance(weights)


def test_tempting_averages_are_biased() -> None:
    """One estimate from the counts of two orders together gives .3871, so the test above can tell."""

    def tempting(draws: Scripted) -> Drawn:
        left, asked = LAW.clone(), rejection.Questions(LEGAL.__contains__)
        token, rejected = rejection._walk(left, asked, draws, 0)  # type: ignore[arg-type]
        kept = 1.0 - float(LAW[rejected].sum()) if rejected else 1.0
        more = sum(len(rejection._walk(left.clone(), asked, draws, 1 + trace)[1]) for trace in range(2))  # type: ignore[arg-type]
        return Drawn(token, 2 * kept / (len(rejected) + more + 2), 0)

    expected, _ = enumerated(tempting)
    assert sum(expected.values()) == pytest.approx(0.3871, abs=5e-5)


@pytest.mark.parametrize("most", [None, 1, 2, 3])
def test_the_estimator_of_one_order_is_unbiased(most: int | None) -> None:
    """With finite budgets too: what gives 0 is balanced."""
    expected, weights = enumerated(lambda draws: drawn(LAW, LEGAL.__contains__, draws, "recursive", max_rejects=most))
    proper(expected)
    if most is None:
        assert variance(weights) == pytest.approx(0.0609, abs=5e-5)
    if most == 3:
        assert weights[0.0] == pytest.approx(0.08, abs=0.01)


@pytest.mark.parametrize(
    ("passes", "most", "spread", "zeros"),
    [(2, None, 0.079, None), (4, None, 0.030, None), (2, 2, None, 0.40), (4, 3, None, 0.25)],
)
def test_the_estimator_of_several_passes_is_unbiased(
    passes: int, most: int | None, spread: float | None, zeros: float | None
) -> None:
    """By 15,000 draws: .37 within four standard errors, and the card's variances within 5 %."""
    draws, count = Random(5), 15_000
    found = [
        drawn(LAW, LEGAL.__contains__, draws, "geometric", max_accepts=passes, max_rejects=most) for _ in range(count)
    ]
    weights = np.array([one.weight for one in found])
    assert abs(weights.mean() - MASS) < 4 * weights.std() / math.sqrt(count)
    for token, mass in ((1, 0.25), (3, 0.12)):
        own = np.array([one.weight * (one.token == token) for one in found])
        assert abs(own.mean() - mass) < 4 * own.std() / math.sqrt(count)
    if spread is not None:
        assert weights.var() == pytest.approx(spread, rel=0.05)
    if zeros is not None:
        assert (weights == 0).mean() == pytest.approx(zeros, abs=0.02)


@pytest.mark.parametrize("way", ["first", "traces", "recursive", "geometric"])
def test_tokens_have_the_law_of_masking(way: str) -> None:
    """Chi-square over 64 tokens of which 30 % are legal, alpha 0.001."""
    law = torch.rand(64, generator=torch.Generator().manual_seed(1), dtype=torch.float64) ** 3
    law /= law.sum()
    legal = set(np.random.default_rng(2).choice(64, 19, replace=False).tolist())
    draws, count = Random(6), 6_000
    found = np.zeros(64)
    for _ in range(count):
        one = (
            first_legal(law, legal.__contains__, draws)
            if way == "first"
            else drawn(law, legal.__contains__, draws, way)
        )
        assert one.token is not None
        found[one.token] += 1
    kept = sorted(legal)
    expected = law[kept].numpy() / law[kept].sum().item() * count
    large = expected >= 5
    cells = np.append(found[kept][large], found[kept][~large].sum())
    wanted = np.append(expected[large], expected[~large].sum())
    assert found.sum() == found[kept].sum()
    assert stats.chisquare(cells[wanted > 0], wanted[wanted > 0]).pvalue > 0.001


@pytest.mark.parametrize("way", ["traces", "recursive", "geometric", "auto"])
def test_where_nothing_is_legal_the_weight_is_nothing(way: str) -> None:
    asked: list[int] = []

    def never(token: int) -> bool:
        asked.append(token)
        return False

    assert drawn(LAW, never, Random(0), way) == Drawn(None, 0.0, len(asked))
    assert len(set(asked)) == len(asked)
    assert first_legal(LAW, never, Random(0)).weight == 0.0


def test_the_only_token_is_certain() -> None:
    """Tokens without probability are never asked about."""
    law = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    for way in ("traces", "recursive", "geometric", "auto"):
        assert drawn(law, {1}.__contains__, Random(0), way) == Drawn(1, 1.0, 1)
    assert first_legal(law, {1}.__contains__, Random(0)) == Drawn(1, 1.0, 1)


def test_how_often_the_constraint_is_asked() -> None:
    """Of one order: the illegal ones before the first legal one, and one more; never a token twice."""
    for seed in range(300):
        plain = first_legal(LAW, LEGAL.__contains__, Random(seed))
        for way in ("recursive", "traces"):
            one = drawn(LAW, LEGAL.__contains__, Random(seed), way)
            assert one.questions <= 3 + 2
            assert one.questions >= 2 or way == "traces"
        assert plain.questions <= 3 + 1


def test_what_is_left_to_the_choice() -> None:
    """Several accepts, or a likely token: passes; else one order."""
    likely = torch.tensor([0.7, 0.1, 0.1, 0.1], dtype=torch.float64)
    for law, passes, expected in ((LAW, 2, "recursive"), (LAW, 3, "geometric"), (likely, 2, "geometric")):
        own = [drawn(law, {0, 1}.__contains__, Random(seed), "auto", passes) for seed in range(40)]
        assert own == [drawn(law, {0, 1}.__contains__, Random(seed), expected, passes) for seed in range(40)]


def test_mass_that_is_nearly_gone_is_not_divided_by() -> None:
    law = torch.tensor([1 - 1e-7, 1e-7], dtype=torch.float64)
    for way in ("recursive", "geometric"):
        weights = {drawn(law, {1}.__contains__, Random(seed), way).weight for seed in range(50)}
        assert weights == {0.0}
