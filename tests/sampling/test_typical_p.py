"""Locally typical sampling: what its card and its paper say, and transformers' own."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
import transformers.generation.logits_process as theirs
from law_cases import FORBIDDEN, VOCABULARY, kept, law_of, near, rows

from decodery.sampling import Noise, Stage
from decodery.sampling.steps.typical_p import TypicalP


@pytest.mark.parametrize("p", [0.2, 0.5, 0.95])
def test_typical_is_that_of_transformers(p: float) -> None:
    """The same tokens, where no sum lies at the border: theirs is of float32."""
    compared = 0
    for row in rows(1000, holes=False):
        law = row.double().log_softmax(0)
        distances = (-law - torch.special.entr(law.exp()).sum()).abs()
        if near(law.exp()[distances.sort().indices].cumsum(0), p):
            continue
        compared += 1
        expected = theirs.TypicalLogitsWarper(p)(torch.zeros(1, 1, dtype=torch.long), row[None])[0]
        assert kept(law_of(typical_p=p).scores(row)) == kept(expected)
    assert compared > 900


@pytest.mark.parametrize("least", [1, 2, 5])
def test_typical_keeps_as_many_as_are_asked_for(least: int) -> None:
    for row in rows(60, holes=False, seed=1) + torch.linspace(0, 0.01, VOCABULARY):
        expected = theirs.TypicalLogitsWarper(0.05, min_tokens_to_keep=least)(torch.zeros(1, 1).long(), row[None])[0]
        found = law_of(typical_p=0.05, typical_min_keep=least).scores(row)
        assert kept(found) == kept(expected)
        assert len(kept(found)) >= least


def test_typical_by_hand() -> None:
    row = torch.tensor([0.6, 0.2, 0.1, 0.1]).log()
    assert kept(law_of(typical_p=0.15).scores(row)) == [1]  # the second token alone, and not the likeliest
    assert kept(law_of(typical_p=0.21).scores(row)) == [0, 1]
    assert kept(law_of(typical_p=0.15, temperature=0.0).scores(row)) == [1]  # greedy decoding takes it too
    assert kept(law_of(top_p=0.15).scores(row)) == [0]


def test_all_tokens_of_a_uniform_law_are_typical() -> None:
    for wide in (7, 5000):
        for p in (0.01, 0.5, 0.99):
            assert len(kept(law_of(typical_p=p).scores(torch.zeros(wide)))) == wide


def test_typical_off_leaves_rows_as_they_are() -> None:
    for row in rows(10):
        assert torch.equal(law_of(typical_p=1.0).scores(row), row)
        assert law_of(typical_p=1.0).order == ()


@pytest.mark.parametrize("p", [0.2, 0.5, 0.9])
def test_what_is_typical_reaches_the_mass_and_would_not_without_its_farthest(p: float) -> None:
    """Ten thousand laws of a Dirichlet, some of which have ties."""
    generator = np.random.default_rng(3)
    for law in generator.dirichlet([0.3] * 12, 3400):
        law = np.maximum(np.round(law, 2), 1e-3) if law[0] > 0.3 else np.maximum(law, 1e-9)
        row = torch.tensor(law).log().float()
        exact = row.double().softmax(0)
        found = kept(law_of(typical_p=p).scores(row))
        distances = (-exact.log() - torch.special.entr(exact).sum()).abs()
        inside = distances[found]
        assert float(exact[found].sum()) >= p - 1e-6
        nearer = [token for token in found if float(distances[token]) < float(inside.max()) - 1e-6]
        assert float(exact[nearer].sum()) < p + 1e-6
        assert all(token in found for token in range(12) if float(distances[token]) < float(inside.max()) - 1e-6)


@pytest.mark.parametrize("wide", [5000, 49152])
def test_wide_rows_are_sorted_at_the_border_alone(wide: int) -> None:
    """With the same outcome as a sort of all, but where a sum lies within 1e-9 of the mass."""
    for seed, p in itertools.product(range(6), (0.2, 0.5, 0.95)):
        row = rows(6, seed, wide)[seed]
        law = row.log_softmax(0)
        entropy = float(torch.special.entr(law.exp().double()).sum())
        distances = (-law - entropy).abs()
        order = distances.argsort(stable=True)
        sums = law.exp()[order].double().cumsum(0)
        if float((sums - p).abs().min()) < 1e-9:
            continue
        border = distances[order[min(int((sums < p).sum()), wide - 1)]]
        expected = (distances <= border) & (row > FORBIDDEN)
        assert kept(law_of(typical_p=p).scores(row)) == expected.nonzero()[:, 0].tolist()
        assert TypicalP(p).active


def test_draws_follow_the_typical_law() -> None:
    """A chi-square test of 50 000 draws at 1e-4."""
    row = torch.tensor([2.0, 1.5, 1.0, 0.5, 0.0, -1.0])
    law = law_of(typical_p=0.6).log_probabilities(row).exp()
    assert 1 < len(kept(law.log())) < 6
    noise = Noise(5)
    counts = Counter(noise.choose(law, place, Stage.TARGET) for place in range(50_000))
    assert set(counts) == set(kept(law.log()))
    statistic = sum(
        (counts[token] - 50_000 * float(law[token])) ** 2 / (50_000 * float(law[token])) for token in counts
    )
    from scipy.stats import chi2

    assert chi2.sf(statistic, len(counts) - 1) > 1e-4
