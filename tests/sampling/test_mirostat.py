"""Mirostat, whose state follows the text, and dynamic temperature."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from law_cases import FORBIDDEN, VOCABULARY, kept, law_of, rows
from torch import Tensor

from decodery.sampling import Noise, Stage

# Mirostat: a state along the text


def _mirostat(version: int, laws: Sequence[Tensor], tokens: Sequence[int], tau: float, eta: float) -> list[list[int]]:
    """The tokens that are allowed before each of `tokens`, by the published algorithms."""
    allowed, found = 2 * tau, []
    for law, token in zip(laws, tokens, strict=True):
        order = sorted(range(len(law)), key=lambda t: -float(law[t]))
        if version == 2:
            left = [t for t in order if -math.log2(float(law[t])) <= allowed] or order[:1]
        else:
            m = min(100, len(law))
            steps = [math.log((i + 2) / (i + 1)) for i in range(m - 1)]
            falls = [math.log(float(law[order[i]]) / float(law[order[i + 1]])) for i in range(m - 1)]
            slope = sum(a * b for a, b in zip(steps, falls, strict=True)) / sum(a * a for a in steps)
            excess = slope - 1
            k = (excess * 2**allowed / (1 - len(law) ** -excess)) ** (1 / slope)
            left = order[: max(1, int(min(k, len(law))))]
        found.append(sorted(left))
        share = float(law[token]) / sum(float(law[t]) for t in left)
        allowed -= eta * (-math.log2(share) - tau)
    return found


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("tau", "eta"), [(1.0, 0.1), (3.0, 0.5), (2.0, 1.0)])
def test_mirostat_is_that_of_the_paper(version: int, tau: float, eta: float) -> None:
    raw = rows(12, seed=3, holes=False) + torch.linspace(0, 0.01, VOCABULARY)  # no ties
    law = law_of(mirostat=version, mirostat_tau=tau, mirostat_eta=eta, chance=Noise(2))
    tokens, seen = [], []
    for place, row in enumerate(raw):
        allowed = law.log_probabilities(row).exp()
        seen.append(kept(allowed.log()))
        tokens.append(Noise(2).choose(allowed, place, Stage.TARGET))
        law.observe(tokens[-1], row)
    assert seen == _mirostat(version, raw.double().softmax(-1), tokens, tau, eta)
    assert len({len(one) for one in seen}) > 1


def test_mirostat_brings_the_surprise_to_what_is_wanted() -> None:
    """Over long texts, whatever the network says; greedy decoding has none."""
    row = rows(8, seed=1, holes=False)[2]
    for version, tau in itertools.product((1, 2), (1.0, 3.0)):
        law, noise, surprises = law_of(mirostat=version, mirostat_tau=tau), Noise(1), []
        for place in range(600):
            log = law.log_probabilities(row)
            token = noise.choose(log.exp(), place, Stage.TARGET)
            surprises.append(-float(log[token]) / math.log(2))
            law.observe(token, row)
        assert abs(np.mean(surprises) - tau) < 0.3
    assert law_of(mirostat=2, temperature=0.0).order == ()


def test_mirostat_one_of_a_flat_law_and_of_two_tokens() -> None:
    assert len(kept(law_of(mirostat=1, mirostat_tau=1.0).scores(torch.zeros(50)))) == 1
    assert len(kept(law_of(mirostat=1, mirostat_tau=9.0).scores(torch.zeros(50)))) == 50
    sharp = torch.tensor([FORBIDDEN, 3.0, FORBIDDEN])
    assert kept(law_of(mirostat=1).scores(sharp)) == [1]
    # An excess of 0, where the formula is 0 / 0: probabilities 1 / rank.
    assert 1 <= len(kept(law_of(mirostat=1, mirostat_tau=2.0).scores(-torch.arange(1, 50).float().log()))) < 49


# Dynamic temperature


@pytest.mark.parametrize(("middle", "spread", "power"), [(1.0, 0.5, 1.0), (0.7, 0.7, 2.0), (0.4, 0.9, 0.5)])
def test_dynamic_temperature_follows_the_entropy(middle: float, spread: float, power: float) -> None:
    for row in rows(40):
        left = row[row > FORBIDDEN].double()
        entropy = float(torch.special.entr(left.softmax(0)).sum()) / math.log(len(left))
        low = max(0.0, middle - spread)
        expected = (row.double() / (low + (middle + spread - low) * entropy**power)).softmax(0)
        law = law_of(temperature=middle, dynatemp_range=spread, dynatemp_exponent=power)
        assert torch.allclose(law.probabilities(row).double(), expected, atol=1e-5)


def test_dynamic_temperature_of_a_certain_law_and_of_none() -> None:
    certain = torch.tensor([FORBIDDEN, 3.0, FORBIDDEN])
    assert law_of(temperature=0.5, dynatemp_range=0.5).probabilities(certain).tolist() == [0, 1, 0]
    sharp = torch.tensor([900.0, 0.0, 0.0])
    assert law_of(temperature=0.5, dynatemp_range=0.5).probabilities(sharp).tolist() == [1, 0, 0]
    assert law_of(temperature=0.0, dynatemp_range=0.5).order == ()
