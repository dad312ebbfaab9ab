"""Modular subset selection: exact privacy, the sampler, unbiased estimates, exact errors, moduli, reports and counts."""

from __future__ import annotations

import math
import pickle
import secrets
from fractions import Fraction
from itertools import combinations
from math import comb, exp

import numpy as np
import pytest
from scipy import stats

from decodery.errors import BadInput
from decodery.speculative.private_frequency_estimation import mechanism as mechanism_module
from decodery.speculative.private_frequency_estimation.mechanism import Counts, Frequencies, Mechanism, Report
from decodery.speculative.private_frequency_estimation.residues import (
    ResidueSystem,
    band,
    choose_moduli,
    primes_between,
)
from decodery.speculative.private_frequency_estimation.simulation import guessed, simulated_counts, simulated_sets
from decodery.speculative.private_frequency_estimation.subset_selection import SubsetSelection

PRIMES = (557, 601, 677, 709, 727)
SHARES = (0.4, 0.4, 0.1, 0.05, 0.05)


def zipf(size: int, exponent: float = 1.1) -> np.ndarray:
    law = np.arange(1, size + 1) ** -exponent
    return law / law.sum()


def chance(key: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=key))


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 2.0, 4.0, 8.0])
@pytest.mark.parametrize("moduli", [(64,), (23, 29, 31), (2,), (5, 7, 11, 13)])
def test_no_report_tells_values_apart_by_more_than_epsilon(epsilon, moduli):
    """By enumeration, in whole numbers: of all pairs of values and every report the ratio is at most exp(epsilon)."""
    size = moduli[0] if len(moduli) == 1 else 31 if len(moduli) == 4 else 64
    mechanism = Mechanism(size, epsilon, moduli, seed=3)
    for residues, block in zip(mechanism.system.residues, mechanism.blocks, strict=True):
        inside, outside = block.probability(True), block.probability(False)
        with_value, without = comb(block.size - 1, block.chosen - 1), comb(block.size - 1, block.chosen)
        # The law of one value's reports is a law, and any two values' laws take these two numbers alone.
        assert inside * with_value + outside * without == 1
        assert with_value + without == comb(block.size, block.chosen)
        ratio = max(inside / outside, outside / inside)
        assert ratio <= Fraction(exp(epsilon)) + Fraction(1, 10**12)
        if block.size > 2 * block.chosen:
            assert float(ratio) == pytest.approx(exp(epsilon), rel=1e-9)  # nothing of the budget is wasted
        assert set(residues.tolist()) == set(range(block.size))


def test_the_likelihood_of_every_report_of_small_domains():
    """The sets themselves, one by one: what `probability` says of them adds up to what `own` and `other` say."""
    block = SubsetSelection(9, 1.0)
    sets = list(combinations(range(9), block.chosen))
    for value in (0, 8):
        law = [block.probability(value in one) for one in sets]
        assert sum(law) == 1
        assert sum(p for p, one in zip(law, sets, strict=True) if value in one) == block.own
        assert sum(p for p, one in zip(law, sets, strict=True) if 4 in one) == block.other


def test_parameters_of_subset_selection():
    block = SubsetSelection(100, 1.0)
    assert block.chosen == round(100 / (math.e + 1)) == 27
    assert float(block.own) == pytest.approx(27 * math.e / (27 * math.e + 73), abs=1e-12)
    assert SubsetSelection(3, 8.0).chosen == 1
    assert SubsetSelection(2, 0.1).chosen == 1
    assert block.bits == math.ceil(math.log2(comb(100, 27)))


def test_the_sampler_draws_as_it_says():
    """Inclusion of the user's value and of all others, over 200,000 draws; chi-square at 0.001."""
    block, draws, value = SubsetSelection(12, 1.0), 200_000, 5
    counts = np.zeros(12)
    for _ in range(draws // 4):
        counts[list(block.draw(value))] += 1
    own, other = float(block.own), float(block.other)
    _held(counts, draws // 4, value, own, other)
    for size in (12, 300):  # both ways in which simulated sets are drawn
        block = SubsetSelection(size, 1.0 if size == 12 else 4.0)
        sets = simulated_sets(block, np.full(draws, value), chance(size))
        assert all(len(set(row)) == block.chosen for row in sets[:500].tolist())
        _held(np.bincount(sets.ravel(), minlength=size), draws, value, float(block.own), float(block.other))


def _held(counts: np.ndarray, draws: int, value: int, own: float, other: float) -> None:
    expected = np.full(len(counts), draws * other)
    expected[value] = draws * own
    rate = np.where(np.arange(len(counts)) == value, own, other)
    squares = (counts - expected) ** 2 / (expected * (1 - rate))
    assert squares[value] < stats.chi2.ppf(0.999, 1)
    # The others have a fixed sum given the first, so they vary a little less than if they were independent.
    assert squares.sum() < stats.chi2.ppf(0.999, len(counts))


def test_real_draws_come_from_the_secure_generator(monkeypatch):
    seen = []
    monkeypatch.setattr(secrets, "randbits", lambda bits: seen.append(bits) or 0)
    block = SubsetSelection(12, 1.0)
    assert 3 in block.draw(3)  # the least number is below every threshold
    assert seen == [64]
    held = int(block.own * 2**64)  # so many of the 2^64 numbers hold the value
    for drawn, holds in ((held - 1, True), (held, False)):
        monkeypatch.setattr(secrets, "randbits", lambda bits, drawn=drawn: drawn)
        assert (3 in block.draw(3)) is holds


def test_blocks_do_not_depend_on_the_value(monkeypatch):
    """Which modulus is asked is drawn without a look at the value."""
    mechanism = Mechanism(200, 1.0, (101, 103, 107), seed=1)
    asked = []
    monkeypatch.setattr(mechanism_module.secrets, "randbelow", lambda count: asked.append(count) or len(asked) % 3)
    blocks = [mechanism.report(value).block for value in (0, 0, 0, 199, 199, 199)]
    assert asked == [3] * 6
    assert blocks == [1, 2, 0, 1, 2, 0]


def test_estimates_are_unbiased():
    size, users, runs = 128, 2000, 300
    law, generator = zipf(size), chance(4)
    mechanism = Mechanism(size, 1.0, (67, 71, 73, 79), seed=2)
    found = []
    for _ in range(runs):
        values = generator.choice(size, users, p=law)
        found.append(simulated_counts(mechanism, values, generator).frequencies().values)
    runs_of = np.array(found)
    scores = (runs_of.mean(axis=0) - law) / (runs_of.std(axis=0, ddof=1) / math.sqrt(runs))
    assert np.abs(scores).max() < 4.5
    assert np.sqrt((scores**2).mean()) == pytest.approx(1, abs=0.1)
    assert runs_of.sum(axis=1).mean() == pytest.approx(1, abs=4.5 * runs_of.sum(axis=1).std() / math.sqrt(runs))
    # The exact error is that of a rare value; those of the head vary a little more.
    exact = mechanism.system.error([block.gain * users / 4 for block in mechanism.blocks])
    assert runs_of.var(axis=0).mean() == pytest.approx(exact, rel=0.15)
    # A ridge draws estimates to zero, and so they are biased.
    ridged = Mechanism(size, 1.0, mechanism.moduli, 2, ridge=5.0)
    counts = simulated_counts(mechanism, generator.choice(size, users, p=law), generator)
    same = Counts(ridged, counts.residues, counts.users)
    assert (same.frequencies().values ** 2).sum() < 0.5 * (counts.frequencies().values ** 2).sum()


def test_chosen_moduli_cost_little_beside_subset_selection():
    """At ten moduli of about 0.55 k the exact error is at most 1.4 times that of subset selection over all values."""
    told = []
    mechanism = Mechanism.choose(1024, 1.0, 10, (0.5, 0.6), tries=6, seed=0, on_progress=lambda *at: told.append(at))
    for epsilon in (1.0, 2.0, 4.0):
        gains = [SubsetSelection(modulus, epsilon).gain / 10 for modulus in mechanism.moduli]
        assert 1 < mechanism.system.error(gains) * SubsetSelection(1024, epsilon).gain < 1.4
    assert np.mean([mechanism.bits(block) for block in range(10)]) <= 0.6 * SubsetSelection(1024, 1.0).bits
    assert told[-1] == (6, 6)


def test_simulated_errors_are_the_exact_ones():
    mechanism = Mechanism(512, 2.0, (281, 307, 331), seed=0)
    generator, law, users = chance(9), zipf(512), 10_000
    errors = []
    for _ in range(5):
        counts = simulated_counts(mechanism, generator.choice(512, users, p=law), generator)
        found = counts.frequencies()
        errors.append(((found.values - law) ** 2).mean())
    assert np.mean(errors) == pytest.approx(found.standard_error**2, rel=0.15)


def test_unequal_shares_need_the_weights():
    system = ResidueSystem(1024, PRIMES)
    gains = [SubsetSelection(modulus, 1.0).gain * share for modulus, share in zip(PRIMES, SHARES, strict=True)]
    assert system.error(gains, [1.0] * 5) / system.error(gains) == pytest.approx(1.68, abs=0.02)
    equal = [SubsetSelection(modulus, 1.0).gain for modulus in PRIMES]
    assert system.error(equal, [1.0] * 5) / system.error(equal) == pytest.approx(1, abs=1e-4)
    # The fit really uses them: simulated with these shares it errs as the weighted formula says.
    mechanism, generator, users = Mechanism(1024, 1.0, PRIMES), chance(1), 40_000
    values = generator.choice(1024, users, p=zipf(1024))
    found = simulated_counts(mechanism, values, generator, np.array(SHARES)).frequencies()
    assert ((found.values - zipf(1024)) ** 2).mean() == pytest.approx(system.error(gains) / users, rel=0.2)


def test_large_systems_are_measured_in_random_directions(monkeypatch):
    from decodery.speculative.private_frequency_estimation import residues

    system = ResidueSystem(1024, PRIMES)
    gains = [SubsetSelection(modulus, 1.0).gain * share for modulus, share in zip(PRIMES, SHARES, strict=True)]
    exact, unweighted = system.error(gains), system.error(gains, [1.0] * 5)
    monkeypatch.setattr(residues, "DIRECT", 10)
    assert system.error(gains) == pytest.approx(exact, rel=0.1)
    assert system.error(gains, [1.0] * 5) == pytest.approx(unweighted, rel=0.1)


@pytest.mark.parametrize(("size", "moduli"), [(500, (251, 257, 263)), (61, (61,)), (90, (41, 43, 47))])
def test_sums_without_a_matrix_are_those_of_the_matrix(size, moduli):
    system, generator = ResidueSystem(size, moduli, seed=5), chance(2)
    matrix = np.concatenate(
        [(system.permutation[None, :] % modulus == np.arange(modulus)[:, None]) for modulus in moduli]
    ).astype(float)
    law, rows = generator.standard_normal(size), generator.standard_normal(sum(moduli))
    assert np.allclose(np.concatenate(system.sums(law)), matrix @ law)
    assert np.allclose(system.spread(np.split(rows, np.cumsum(moduli)[:-1])), matrix.T @ rows)
    weights = generator.random(len(moduli)) + 0.5
    diagonal = np.repeat(weights, moduli)
    assert np.allclose(system.information(weights), matrix.T @ (diagonal[:, None] * matrix))
    assert system.condition(weights) == pytest.approx(np.linalg.cond(matrix.T @ (diagonal[:, None] * matrix)), rel=1e-6)
    by_hand = np.linalg.solve(matrix.T @ (diagonal[:, None] * matrix), matrix.T @ (diagonal * rows))
    assert np.allclose(system.solve(np.split(rows, np.cumsum(moduli)[:-1]), weights), by_hand, atol=1e-6)


def test_permutations_are_fixed_by_their_seed():
    first, same, other = (ResidueSystem(50, (29, 31), seed) for seed in (0, 0, 1))
    assert sorted(first.permutation.tolist()) == list(range(50))
    assert (first.permutation == same.permutation).all()
    assert (first.permutation != other.permutation).any()
    assert first.permutation[:5].tolist() == [0, 9, 4, 29, 27]  # the same on every machine


@pytest.mark.parametrize(
    ("size", "moduli", "words"),
    [
        (1024, (311, 313, 317), "tell at most 939 frequencies apart"),
        (100, (51, 54), "51 and 54 have"),
        (100, (101,), "from 2 to 100"),
        (100, (), "from 2 to 100"),
        (200, (7, 11), "product must be at least 200"),
        (1, (2,), "at least 2 values"),
    ],
)
def test_moduli_that_cannot_do_are_refused(size, moduli, words):
    with pytest.raises(BadInput, match=words):
        ResidueSystem(size, moduli)


def test_choosing_moduli():
    system = choose_moduli(200, 2.0, 3, (0.5, 0.9), tries=3, seed=1)
    assert len(system.moduli) == 3
    assert all(100 <= modulus <= 180 for modulus in system.moduli)
    assert system == choose_moduli(200, 2.0, 3, (0.5, 0.9), tries=3, seed=1)
    assert system.moduli != choose_moduli(200, 2.0, 3, (0.5, 0.9), tries=3, seed=4).moduli
    errors = [
        (lambda s: s.error([SubsetSelection(m, 2.0).gain for m in s.moduli]))(
            choose_moduli(200, 2.0, 3, (0.5, 0.9), tries=tries, seed=1)
        )
        for tries in (1, 12)
    ]
    assert errors[1] < errors[0]
    with pytest.raises(BadInput, match="too few for 3 moduli"):
        choose_moduli(200, 2.0, 3, (0.5, 0.51))
    with pytest.raises(BadInput, match="none of 2 sets"):
        choose_moduli(1000, 2.0, 2, (0.1, 0.2), tries=2)
    assert primes_between(10, 20) == [11, 13, 17, 19]
    assert band(1000, 5, 4.0) == (50.0, 800.0)
    assert band(1000, 2, 4.0) == (125.0, 999)


def test_moduli_that_leave_a_law_open_are_told():
    """Enough rows, and yet not of full rank: sums over 6 and 35 residues of 36 values."""
    assert ResidueSystem(200, (101, 103, 107)).full_rank()
    square = ResidueSystem(36, (35, 6))
    dense = np.linalg.matrix_rank(square.information([1.0, 1.0]))
    assert square.full_rank() == (dense == 36)


def test_few_values_are_hidden_as_they_are():
    mechanism = Mechanism.choose(20, 1.0)
    assert mechanism.moduli == (20,)
    values = np.repeat(np.arange(20), 400)
    found = simulated_counts(mechanism, values, chance()).frequencies()
    assert np.abs(found.values - 0.05).max() < 5 * found.standard_error


def test_reports_as_text():
    mechanism = Mechanism(200, 1.0, (101, 103, 107), seed=1)
    for value in range(0, 200, 17):
        report = mechanism.report(value)
        text = mechanism.encode(report)
        assert mechanism.decode(text) == report
        assert len(text) == 4 * math.ceil(math.ceil(mechanism.bits(report.block) / 8) / 3)
    for block, selection in enumerate(mechanism.blocks):
        last = Report(block, selection.at(comb(selection.size, selection.chosen) - 1))
        assert last.residues == tuple(range(selection.size - selection.chosen, selection.size))
        assert mechanism.decode(mechanism.encode(last)) == last
    small = SubsetSelection(7, 1.0)
    assert [small.rank(small.at(place)) for place in range(comb(7, small.chosen))] == list(range(comb(7, small.chosen)))
    ordered = [tuple(reversed(small.at(place))) for place in range(comb(7, small.chosen))]
    assert ordered == sorted(ordered)


@pytest.mark.parametrize("text", ["?", "AAAA", "", "////" * 11, "A" * 400])
def test_what_is_no_report_is_refused(text):
    mechanism = Mechanism(200, 1.0, (101, 103, 107), seed=1)
    with pytest.raises(BadInput, match=r"base 64|another plan"):
        mechanism.decode(text)


def test_wrong_values_and_parameters():
    mechanism = Mechanism(20, 1.0, (20,))
    for value in (-1, 20):
        with pytest.raises(BadInput, match=r"values are 0\.\.19"):
            mechanism.report(value)
    with pytest.raises(BadInput, match="epsilon must lie in"):
        Mechanism(20, 0.0, (20,))
    with pytest.raises(BadInput, match="ridge must be at least 0"):
        Mechanism(20, 1.0, (20,), ridge=-1.0)
    with pytest.raises(BadInput, match="at least 2"):
        SubsetSelection(1, 1.0)
    with pytest.raises(BadInput, match="at place"):
        SubsetSelection(5, 1.0).at(10**6)


def test_counts_of_several_servers_add_up(tmp_path):
    """Any grouping and order gives the counts of one server; they travel as files and as pickles."""
    mechanism = Mechanism(200, 1.0, (101, 103, 107), seed=1)
    reports = [mechanism.report(value % 200) for value in range(300)]
    whole, parts = Counts(mechanism), [Counts(mechanism) for _ in range(3)]
    for place, report in enumerate(reports):
        whole.add(report)
        parts[place % 3].add(report)
    first = Counts.merged([Counts.merged(parts[:2]), parts[2]])
    second = Counts.merged([pickle.loads(pickle.dumps(part)) for part in reversed(parts)])
    for one in (first, second):
        assert all((a == b).all() for a, b in zip(one.residues, whole.residues, strict=True))
        assert one.users.tolist() == whole.users.tolist()
        assert one.users.sum() == 300
    assert parts[0].users.sum() == 100  # merging changes no part
    assert whole.residues[0].sum() == whole.users[0] * mechanism.blocks[0].chosen
    whole.save(tmp_path / "counts.npz", {"note": "x"})
    read, about = Counts.read(tmp_path / "counts.npz")
    assert read.mechanism == mechanism
    assert about["note"] == "x"
    assert (read.frequencies().values == whole.frequencies().values).all()
    with pytest.raises(BadInput, match="same plan"):
        Counts.merged([whole, Counts(Mechanism(200, 1.0, (101, 103, 107), seed=2))])
    with pytest.raises(BadInput, match="no counts to merge"):
        Counts.merged([])


def test_moduli_without_reports():
    """Those of an empty block are left out; too few blocks tell nothing."""
    mechanism = Mechanism(200, 2.0, (101, 103, 107), seed=1)
    values = chance().integers(0, 200, 3000)
    found = simulated_counts(mechanism, values, chance(), np.array([0.5, 0.5, 0.0])).frequencies()
    assert np.abs(found.values - 1 / 200).max() < 6 * found.standard_error
    with pytest.raises(BadInput, match="too few"):
        simulated_counts(mechanism, values, chance(), np.array([1.0, 0.0, 0.0])).frequencies()
    with pytest.raises(BadInput, match="0 reports are too few"):
        Counts(mechanism).frequencies()


def test_files_that_hold_no_counts(tmp_path):
    with pytest.raises(BadInput, match="cannot be read"):
        Counts.read(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("counts")
    with pytest.raises(BadInput, match="holds no counts"):
        Counts.read(tmp_path / "text.npz")
    mechanism = Mechanism(20, 1.0, (20,))
    Counts(mechanism, [np.zeros(19, dtype=np.int64)], np.zeros(1, dtype=np.int64)).save(tmp_path / "short.npz")
    with pytest.raises(BadInput, match="its own plan"):
        Counts.read(tmp_path / "short.npz")
    with pytest.raises(BadInput, match="format"):
        Mechanism.of({**mechanism.as_dict(), "format": "other"})
    with pytest.raises(BadInput, match="no mechanism"):
        Mechanism.of({"format": mechanism.as_dict()["format"]})
    assert Mechanism.of(mechanism.as_dict()) == mechanism


def test_estimates_as_laws():
    found = Frequencies(np.array([0.7, 0.5, -0.1, 0.05]), 0.1, 10)
    assert found.clipped() == pytest.approx(np.array([0.7, 0.5, 0, 0.05]) / 1.25)
    assert found.projected() == pytest.approx([0.6, 0.4, 0.0, 0.0])
    assert found.threshold(0.05) == pytest.approx(0.1645, abs=1e-4)
    assert Frequencies(np.array([-1.0, -1.0]), 0.1, 1).clipped() == pytest.approx([0.5, 0.5])
    law = np.array([0.2, 0.3, 0.5])
    assert Frequencies(law, 0.1, 1).projected() == pytest.approx(law)


def test_an_attacker_finds_no_more_than_chance_allows():
    """The bound for values that are all equally likely: E / (E + k - 1); both mechanisms give the same, within noise."""
    size, epsilon, users = 512, 4.0, 60_000
    bound = exp(epsilon) / (exp(epsilon) + size - 1)
    uniform, plain = chance(3).integers(0, size, users), SubsetSelection(size, epsilon)
    for moduli in ((size,), (281, 283, 293, 307)):
        mechanism = Mechanism(size, epsilon, moduli, seed=0)
        success = guessed(mechanism, uniform, chance(5))
        noise = success.std() / math.sqrt(users)
        assert success.mean() < bound
        parts = [float(b.own) * b.size / (b.chosen * size) for b in mechanism.blocks]
        assert success.mean() == pytest.approx(np.mean(parts), abs=4 * noise)
        assert success.mean() == pytest.approx(float(plain.own) / plain.chosen, abs=0.03 * bound)


def test_an_attacker_who_guesses_a_residue_first():
    """It finds values of small classes more often than those of large ones; the paper's formula is that of the large."""
    size, epsilon = 512, 4.0
    mechanism = Mechanism(size, epsilon, (281, 283, 293, 307), seed=0)
    natural = np.argsort(mechanism.system.permutation)
    few = guessed(mechanism, np.repeat(natural[:100], 400), chance(1), by_residue=True)
    formula = np.mean([float(b.own) / (b.chosen * math.ceil(size / b.size)) for b in mechanism.blocks])
    assert few.mean() == pytest.approx(formula, abs=4 * few.std() / math.sqrt(len(few)))
    assert guessed(mechanism, np.repeat(natural[:100], 400), chance(1)).mean() > 1.05 * formula
