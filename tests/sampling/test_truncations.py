"""Steps that truncate: against transformers where it has them, else against their published rule."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
import transformers.generation.logits_process as theirs
from law_cases import FORBIDDEN, VOCABULARY, kept, law_of, near, rows

from decodery.sampling import Noise, Stage

# Against transformers


@pytest.mark.parametrize("epsilon", [1e-4, 0.01, 0.2, 0.9])
def test_cutoffs_are_those_of_transformers(epsilon: float) -> None:
    compared = 0
    for row in rows(300):
        law = row.double().softmax(0)
        eta = min(epsilon, math.sqrt(epsilon) * math.exp(-float(torch.special.entr(law).sum())))
        if near(law, epsilon, 1e-6) or near(law, eta, 1e-7):
            continue
        compared += 1
        ids = torch.zeros(1, 1, dtype=torch.long)
        assert torch.equal(
            law_of(epsilon_cutoff=epsilon).scores(row), theirs.EpsilonLogitsWarper(epsilon)(ids, row[None])[0]
        )
        assert torch.equal(law_of(eta_cutoff=epsilon).scores(row), theirs.EtaLogitsWarper(epsilon)(ids, row[None])[0])
    assert compared > 200


@pytest.mark.parametrize("share", [0.1, 0.4, 0.9])
@pytest.mark.parametrize("wide", [40, 300])
def test_top_h_is_that_of_transformers(share: float, wide: int) -> None:
    """Of equal scores at the border either side keeps as many; which ones is arbitrary there, and the lower ids here."""
    compared = 0
    for row in rows(200, wide=wide, holes=False):
        law = row.topk(min(100, wide)).values.double().softmax(0)
        sums = torch.special.entr(law).cumsum(0)
        if near(sums[:-1], share * float(sums[-1])):
            continue
        compared += 1
        expected = theirs.TopHLogitsWarper(share)(torch.zeros(1, 1, dtype=torch.long), row[None])[0]
        assert torch.equal(law_of(top_h=share).scores(row).sort().values, expected.sort().values)
    assert compared > 150


def test_top_h_of_all_keeps_the_hundred_likeliest() -> None:
    row = rows(3, wide=300, holes=False)[1]
    assert len(kept(law_of(top_h=1.0).scores(row))) == 100
    assert kept(law_of(top_h=0.35).scores(torch.zeros(10))) == [0, 1, 2]


def test_allowed_tokens_are_what_is_not_suppressed() -> None:
    for row in rows(30):
        suppressed = [token for token in range(VOCABULARY) if token not in (3, 4, 50)]
        expected = theirs.SuppressTokensLogitsProcessor(suppressed)(torch.zeros(1, 1, dtype=torch.long), row[None])[0]
        assert torch.equal(law_of(allowed_token_ids=(50, 3, 4, 3)).scores(row), expected)


# Rules that transformers lacks


def test_top_n_sigma_keeps_what_is_near_the_highest() -> None:
    for row, n in itertools.product(rows(60), (0.3, 1.0, 2.5)):
        there = row[row > FORBIDDEN].double()
        least = float(there.max()) - n * float(((there - there.mean()) ** 2).mean().sqrt())
        if near(row.double(), least):
            continue
        expected = [token for token in kept(row) if float(row[token]) >= least]
        assert kept(law_of(top_n_sigma=n).scores(row)) == expected
        hot = law_of(top_n_sigma=n, temperature=3.0).scores(row)
        assert kept(hot) == expected  # the same at any temperature


def _tail_free(law: Sequence[float], z: float) -> int:
    """How many tokens are left, by the rule as it is published: sorted probabilities, absolute second differences, each as a
    share of all, summed up; the first place, but for the very first, where the sum exceeds z is where the tail begins."""
    ordered = sorted(law, reverse=True)
    if len(ordered) <= 2:
        return len(ordered)
    first = [a - b for a, b in itertools.pairwise(ordered)]
    second = [abs(a - b) for a, b in itertools.pairwise(first)]
    total = sum(second)
    shares = [one / total if total > 1e-6 else 1 / len(second) for one in second]
    reached = 0.0
    for place, share in enumerate(shares):
        reached += share
        if reached > z and place >= 1:
            return place
    return len(ordered)


@pytest.mark.parametrize("z", [0.1, 0.5, 0.8, 0.97])
def test_tail_free_cuts_where_the_curvature_ends(z: float) -> None:
    compared = 0
    for row in rows(150):
        law = row[row > FORBIDDEN].softmax(0).double()
        bends = law.sort(descending=True).values.diff().diff().abs()
        if near(bends.cumsum(0) / bends.sum(), z, 1e-6):
            continue
        compared += 1
        expected = row.sort(descending=True).values[: _tail_free(law.tolist(), z)]
        found = law_of(tail_free=z).scores(row)
        assert torch.equal(found[kept(found)].sort(descending=True).values, expected)
    assert compared > 120
    assert kept(law_of(tail_free=0.5).scores(torch.tensor([1.0, 5.0]))) == [0, 1]


def test_xtc_leaves_the_least_likely_of_the_top_choices() -> None:
    row = torch.tensor([0.3, 0.3, 0.15, 0.15, 0.06, 0.04]).log()
    always = law_of(xtc_probability=1.0)
    assert kept(always.scores(row)) == [3, 4, 5]  # of the two at 0.15 the one of the higher id stays
    assert kept(law_of(xtc_probability=1.0, xtc_threshold=0.05).scores(row)) == [4, 5]
    assert kept(law_of(xtc_probability=1.0, xtc_threshold=0.31).scores(row)) == list(range(6))
    lonely = torch.tensor([0.8, 0.1, 0.1]).log()
    assert kept(law_of(xtc_probability=1.0, xtc_threshold=0.2).scores(lonely)) == [0, 1, 2]
    assert law_of(xtc_probability=1.0, temperature=0.0).likeliest(row) == 3


def test_xtc_decides_by_draws_of_its_own() -> None:
    """As often as it is asked to, the same however often the law is asked for, and not by the draw of the token."""
    row = torch.tensor([0.5, 0.4, 0.1]).log()
    decided = []
    for seed in range(4000):
        law = law_of(chance=Noise(seed), xtc_probability=0.3, xtc_threshold=0.2)
        first = kept(law.scores(row))
        assert kept(law.scores(row)) == first
        decided.append(first == [1, 2])
    assert abs(sum(decided) / 4000 - 0.3) < 5 * math.sqrt(0.3 * 0.7 / 4000)
    drawn = [Noise(seed).uniform(1, Stage.TARGET) < 0.3 for seed in range(4000)]
    together = sum(a and b for a, b in zip(decided, drawn, strict=True)) / 4000
    assert abs(together - 0.09) < 5 * math.sqrt(0.09 * 0.91 / 4000)
