"""Low-discrepancy samples: each has the exact law, together they are spread, and how good their means are is known.

Statistical tests are deterministic (fixed seeds), and their bounds were chosen before looking.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from functools import cache
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

from decodery.engine.settings import Settings
from decodery.errors import BadSetting, MethodUnavailable, Refused
from decodery.sampling import Stage
from decodery.sampling.chance import Arithmetic, DrawnSample, LowDiscrepancy, Recording, Replay
from decodery.sampling.chance.arithmetic import permutation
from decodery.sampling.chance.qmcpy import RANDOMISATIONS, points, shifted_lattice
from decodery.sampling.estimates import FastKernel, of_replications
from decodery.testing import goodness_of_fit, scripted_language_model
from decodery.testing.outputs import finished, new_request
from decodery.testing.scorers import TabularScorer

qmcpy = pytest.importorskip("qmcpy")
PROMPT = [2, 0]
VOCABULARY, LENGTH = 4, 3
ALL = [(points, how) for points, ways in RANDOMISATIONS.items() for how in (*ways, "auto")]
Text = tuple[int, ...]


@cache
def law_after(text: Text) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng([7, *text]).dirichlet([0.8] * VOCABULARY))


def probability(text: Text) -> float:
    return math.prod(float(law_after(text[:place])[token]) for place, token in enumerate(text))


EXACT = {text: probability(text) for text in product(range(VOCABULARY), repeat=LENGTH)}


def decoded(source: Any, seed: int, number: int, of: int, length: int = LENGTH) -> Text:
    chance = source.chance(DrawnSample(seed, number, of, PROMPT, len(PROMPT)))
    text: Text = ()
    for place in range(length):
        text += (chance.choose(law_after(text), len(PROMPT) + place, Stage.TARGET),)
    return text


def batches(source: Any, seeds: int, count: int, length: int = LENGTH) -> list[list[Text]]:
    """The texts of `count` samples, of each seed."""
    return [[decoded(source, seed, number, count, length) for number in range(count)] for seed in range(seeds)]


# Each sample


@pytest.mark.parametrize(("kind", "how"), ALL)
def test_each_sample_by_itself_has_the_exact_law(kind: str, how: str) -> None:
    """Chi-square over all texts, of each of four places in the set alone; 20 000 randomisations of the default."""
    sets = 1000
    source = LowDiscrepancy(points=kind, randomize=how, replications=sets)
    counts: list[Counter[Text]] = [Counter() for _ in range(4)]
    for seed in range(20 if (kind, how) == ("lattice", "auto") else 2):
        for number in range(4 * sets):
            counts[number // sets][decoded(source, seed, number, 4 * sets)] += 1
    assert all(goodness_of_fit(found, EXACT).p_value > 1e-4 for found in counts)


@pytest.mark.parametrize("more", [{"dimensions": 3}, {"points": "net", "shuffle": True}])
def test_more_coordinates_and_orders_of_the_tokens_leave_the_law(more: dict[str, Any]) -> None:
    source = LowDiscrepancy(replications=500, **more)
    counts = Counter(decoded(source, seed, number, 1000) for seed in range(8) for number in range(500, 1000))
    assert goodness_of_fit(counts, EXACT).p_value > 1e-4


def test_tokens_read_the_coordinates_in_turn() -> None:
    source = LowDiscrepancy(points="net", dimensions=2)
    law = torch.tensor([0.5, 0.5])
    for seed in range(20):
        [[point]] = source.sets(seed, PROMPT, 1)
        chance = source.chance(DrawnSample(seed, 0, 1, PROMPT, len(PROMPT)))
        bits = [chance.choose(law, len(PROMPT) + place, Stage.TARGET) for place in range(6)]
        for coordinate in (0, 1):
            own = bits[coordinate::2]
            assert own == [int(point[coordinate] * 2 ** (place + 1)) % 2 for place in range(3)]


def test_a_forked_point_goes_its_own_way() -> None:
    source = LowDiscrepancy(dimensions=2, shuffle=True, points="net")
    first = source.chance(DrawnSample(5, 0, 1, PROMPT, len(PROMPT)))
    laws = [law_after((place,)) for place in range(8)]
    first.choose(laws[0], 2, Stage.TARGET)
    second = first.fork([])
    ahead = [first.choose(law, place + 3, Stage.TARGET) for place, law in enumerate(laws)]
    assert [second.choose(law, place + 3, Stage.TARGET) for place, law in enumerate(laws)] == ahead


def test_the_order_of_the_tokens_is_one_for_all_samples_and_another_for_each_position() -> None:
    seed = 3
    assert permutation(seed, 5, 40).tolist() == permutation(seed, 5, 40).tolist() != permutation(seed, 6, 40).tolist()
    assert sorted(permutation(seed, 5, 40).tolist()) == list(range(40))
    law = torch.full((8,), 1 / 8)
    plain, mixed = (
        [s.chance(DrawnSample(1, n, 8, PROMPT, 2)).choose(law, 2, Stage.TARGET) for n in range(8)]
        for s in (LowDiscrepancy(), LowDiscrepancy(shuffle=True))
    )
    assert sorted(plain) == sorted(mixed) == list(range(8))
    assert plain != mixed


# Together


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("count", [8, 12])
def test_every_prefix_has_its_share_of_the_samples(count: int, shuffle: bool) -> None:
    """Less than one off for a lattice, at every depth, whatever the number; independent samples violate it."""
    source, off = LowDiscrepancy(shuffle=shuffle), 0
    for texts in batches(source, 40, count):
        for depth in range(1, LENGTH + 1):
            found = Counter(text[:depth] for text in texts)
            for prefix in product(range(VOCABULARY), repeat=depth):
                assert abs(found[prefix] - count * probability(prefix)) < 1 + 1e-9
    for texts in batches(LowDiscrepancy(points="independent"), 40, count):
        found = Counter(text[:1] for text in texts)
        off += any(abs(found[(token,)] - count * probability((token,))) >= 1 for token in range(VOCABULARY))
    assert off > 20


def test_the_variance_of_a_first_token_is_as_small_as_computed() -> None:
    """Of N lattice points one more or one less than N p: f (1 - f) / N^2 with the fraction f of N p; here 4 N p (1 - p) or more
    times less than independent ones, within the F interval of 400 sets each."""
    count, sets = 16, 400
    token = next(t for t in range(VOCABULARY) if 0.2 <= float(law_after(())[t]) <= 0.8)
    share = float(law_after(())[token])
    fraction = count * share % 1
    expected = count * share * (1 - share) / (fraction * (1 - fraction))
    assert expected >= 10

    def variance(kind: str) -> float:
        found = batches(LowDiscrepancy(points=kind), sets, count, 1)
        return float(np.var([np.mean([text[0] == token for text in texts]) for texts in found], ddof=1))

    assert variance("lattice") == pytest.approx(fraction * (1 - fraction) / count**2, rel=0.25)
    ratio = variance("independent") / variance("lattice")
    low, high = scipy.stats.f.ppf([1e-4, 1 - 1e-4], sets - 1, sets - 1)
    assert low < ratio / expected < high


def test_there_are_as_many_different_texts_as_computed() -> None:
    """The sum of min(1, N p) for a lattice, which is more than the sum of 1 - (1 - p)^N."""
    count = 8
    even = sum(min(1.0, count * p) for p in EXACT.values())
    independent = sum(1 - (1 - p) ** count for p in EXACT.values())
    assert even > independent + 0.5
    for kind, expected in (("lattice", even), ("independent", independent)):
        found = [len(set(texts)) for texts in batches(LowDiscrepancy(points=kind), 300, count)]
        assert abs(np.mean(found) - expected) < 4 * np.std(found) / math.sqrt(300)


def test_means_are_unbiased() -> None:
    """Mean log probability over 200 sets, beside independent samples and the truth: within three standard errors."""
    truth = sum(p * math.log(p) for p in EXACT.values() if p > 0)
    found = {}
    for kind in ("lattice", "net", "independent"):
        means = [np.mean([math.log(probability(text)) for text in texts])
                 for texts in batches(LowDiscrepancy(points=kind), 200, 8)]  # fmt: skip
        found[kind] = float(np.mean(means)), float(np.std(means, ddof=1)) / math.sqrt(200)
        assert abs(found[kind][0] - truth) < 3 * found[kind][1]
    for kind in ("lattice", "net"):
        error = math.hypot(found[kind][1], found["independent"][1])
        assert abs(found[kind][0] - found["independent"][0]) < 3 * error


def test_prompts_do_not_share_their_sets() -> None:
    source = LowDiscrepancy(points="net")
    one, other = source.sets(4, [1, 2], 8), source.sets(4, [1, 3], 8)
    assert not np.intersect1d(one, other).size
    assert np.array_equal(one, LowDiscrepancy(points="net").sets(4, [1, 2], 8))
    assert not np.intersect1d(one, source.sets(5, [1, 2], 8)).size


# The sets


@pytest.mark.parametrize(("kind", "how"), ALL)
def test_a_larger_set_begins_with_the_smaller_one(kind: str, how: str) -> None:
    source = LowDiscrepancy(points=kind, randomize=how, replications=3)
    assert np.array_equal(points(source, 9, 24), points(source, 9, 48)[:, :8])
    assert points(source, 9, 24).shape == (3, 8, 1)


@pytest.mark.parametrize(("kind", "how"), ALL)
def test_replications_are_different_sets_within_the_unit_interval(kind: str, how: str) -> None:
    """No randomisation leaves a point where it is: the first one is uniform, too."""
    found = points(LowDiscrepancy(points=kind, randomize=how, replications=500), 1, 1000)
    assert found.min() >= 0
    assert found.max() < 1
    assert scipy.stats.kstest(found[:, 0, 0], "uniform").pvalue > 1e-4
    assert len(np.unique(found[:, 0, 0])) == 500


def test_sample_numbers_run_through_the_sets() -> None:
    source = LowDiscrepancy(points="net", replications=2)
    sets, law = source.sets(3, PROMPT, 8), torch.full((1024,), 1 / 1024, dtype=torch.float64)
    for number in range(8):
        token = source.chance(DrawnSample(3, number, 8, PROMPT, 2)).choose(law, 2, Stage.TARGET)
        assert token == int(sets[number % 2, number // 2, 0] * 1024)


def test_the_lattice_of_one_dimension_is_qmcpy_s() -> None:
    """In the same order for the same shift, and for every other number evenly from left to right."""
    theirs = qmcpy.Lattice(1, seed=1, randomize="FALSE")(16)[:, 0]
    assert np.array_equal(shifted_lattice(np.array([0.0, 0.3]), 16), np.stack([theirs, (theirs + 0.3) % 1]))
    linear = np.sort(qmcpy.Lattice(1, seed=1, randomize="FALSE", order="LINEAR")(16)[:, 0])
    assert np.array_equal(np.sort(theirs), linear)
    assert shifted_lattice(np.array([0.5]), 5)[0] == pytest.approx([0.5, 0.7, 0.9, 0.1, 0.3])


@pytest.mark.parametrize(("kind", "how"), [pair for pair in ALL if pair[0] not in ("independent", "lattice")])
def test_sets_are_qmcpy_s(kind: str, how: str) -> None:
    make = {"net": qmcpy.DigitalNetB2, "halton": qmcpy.Halton, "kronecker": qmcpy.Kronecker}[kind]
    word = {"auto": {}}.get(how, {"randomize": RANDOMISATIONS[kind].get(how)})
    theirs = make(2, replications=3, seed=11, **word)(8)
    assert np.array_equal(points(LowDiscrepancy(kind, how, 2, 3), 11, 24), theirs)


def test_no_point_is_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a generator gives: a token of the law has no part there."""
    monkeypatch.setattr(LowDiscrepancy, "in_qmcpy", lambda self, seed: lambda size: np.ones((1, size, 1)))
    assert set(points(LowDiscrepancy(points="halton"), 123, 4).ravel().tolist()) == {1 - 2.0**-53}
    points.cache_clear()


def test_samples_that_follow_from_each_other_say_so() -> None:
    assert {kind: LowDiscrepancy(points=kind).spread for kind in RANDOMISATIONS} == {
        "lattice": True, "net": True, "halton": True, "kronecker": True, "independent": False,
    }  # fmt: skip


def test_a_lattice_of_more_dimensions_is_qmcpy_s() -> None:
    theirs = qmcpy.Lattice(3, replications=2, seed=11)(8)
    assert np.array_equal(points(LowDiscrepancy(dimensions=3, replications=2), 11, 16), theirs)


def test_without_qmcpy_there_is_the_lattice_and_one_clear_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "qmcpy", None)
    points.cache_clear()
    assert points(LowDiscrepancy(replications=2), 77, 16).shape == (2, 8, 1)
    with pytest.raises(MethodUnavailable, match=r"pip install 'decodery\[qmcpy\]'\.$"):
        points(LowDiscrepancy(points="halton"), 77, 16)
    lm = scripted_language_model(TabularScorer(4, order=None, seed=3))
    with pytest.raises(MethodUnavailable, match="not here"):
        lm.generate([0, 1], "autoregressive", chance="qmcpy(points=net)", temperature=1.0)


def test_importing_the_package_waits_until_it_is_used() -> None:
    import subprocess

    code = "import sys, decodery.sampling.chance, decodery.search.qmcpy; sys.exit('qmcpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Through the engine


def language_model() -> Any:
    return scripted_language_model(TabularScorer(6, order=None, seed=3))


SETTINGS: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 12, "seed": 4}


@pytest.mark.parametrize("spec", ["qmcpy", "qmcpy(points=net, dimensions=3, replications=2, shuffle=True)"])
def test_samples_are_what_each_is_alone_and_cost_what_others_do(spec: str) -> None:
    lm = language_model()
    replies = lm.generate(PROMPT, "autoregressive", n=8, chance=spec, **SETTINGS)
    plain = language_model().generate(PROMPT, "autoregressive", n=8, **SETTINGS)
    for number, (reply, other) in enumerate(zip(replies, plain, strict=True)):
        settings = Settings.of({**SETTINGS, "n": 8, "chance": spec}, 6)
        request, method = new_request(language_model(), "autoregressive", PROMPT, settings, number)
        assert finished(request, method).new_tokens == reply.token_ids
        assert reply.stats.forwards == other.stats.forwards
    assert len({tuple(reply.token_ids) for reply in replies}) == 8


def test_the_lattice_is_arithmetic_sampling() -> None:
    """The same evenly spread numbers as the plain source, shifted by another one and in another order."""
    law = torch.full((1 << 16,), 2.0**-16, dtype=torch.float64)

    def first(source: Any) -> list[int]:
        return sorted(source.chance(DrawnSample(2, n, 8, PROMPT, 2)).choose(law, 2, Stage.TARGET) for n in range(8))

    mine, theirs = first(LowDiscrepancy()), first(Arithmetic())
    assert {b - a for a, b in pairwise(mine)} <= {8191, 8192, 8193}
    assert mine != theirs


@pytest.mark.parametrize("spec", ["qmcpy", "qmcpy(shuffle=True)"])
def test_a_recorded_sample_is_replayed(spec: str) -> None:
    recording = Recording(Settings.of({"chance": spec}, 6).chance)
    reply = language_model().generate(PROMPT, "autoregressive", chance=recording, **SETTINGS)
    again = language_model().generate(
        PROMPT, "autoregressive", chance=Replay(tuple(recording.runs[0])), **(SETTINGS | {"seed": 99})
    )
    assert again.token_ids == reply.token_ids


def test_what_cannot_be_is_refused() -> None:
    lm = language_model()
    for spec, n, why in (
        ("qmcpy(replications=3)", 8, "n must be a multiple of its 3 replications"),
        ("qmcpy(replications=3)", 2, "n must be a multiple of its 3 replications"),
        ("qmcpy(replications=0)", 1, "replications"),
        ("qmcpy(replications=1025)", 1, "replications"),
        ("qmcpy(dimensions=0)", 1, "dimensions"),
        ("qmcpy(dimensions=1025)", 1, "dimensions"),
        ("qmcpy(points=net)", 12, "a net has a power of 2 of points, and 12 is none"),
        ("qmcpy(dimensions=2, replications=2)", 24, "a lattice has a power of 2 of points, and 12 is none"),
    ):
        with pytest.raises(BadSetting, match=why):
            lm.generate(PROMPT, "autoregressive", chance=spec, n=n, temperature=1.0)
    for spec in ("qmcpy(replications=3)", "qmcpy(points=halton)"):
        assert lm.generate(PROMPT, "autoregressive", chance=spec, n=1, **SETTINGS).token_ids
    for spec in ("qmcpy(points=halton)", "qmcpy", "qmcpy(points=halton, dimensions=2)", "qmcpy(replications=1)"):
        assert len(lm.generate(PROMPT, "autoregressive", chance=spec, n=12, **SETTINGS)) == 12
    for most in ("replications=1024", "dimensions=1024"):
        Settings.of({"chance": f"qmcpy({most})"}, 6)
    with pytest.raises(BadSetting, match="points=net are randomised by lms-ds, ds, nus, not by shift"):
        LowDiscrepancy(points="net", randomize="shift")
    with pytest.raises(BadSetting, match="points must be one of lattice, net"):
        lm.generate(PROMPT, "autoregressive", chance="qmcpy(points=sobol)", temperature=1.0)
    with pytest.raises(Refused, match="does not run with chance qmcpy"):
        lm.generate(PROMPT, "draft-model", chance="qmcpy", temperature=1.0)


# Error bars


def chain_values(source: Any, seed: int, sets: int, count: int) -> Any:
    """[sets, count] log probabilities of texts of a chain over many states, read from the points directly."""
    generator = np.random.default_rng(0)
    table = generator.dirichlet([0.3] * 50, size=50)
    edges = table.cumsum(1)
    codes = source.sets(seed, [0], sets * count)[..., 0].copy()
    state, total = np.zeros(codes.shape, dtype=int), np.zeros(codes.shape)
    fresh = np.random.default_rng([seed, 5])
    for place in range(20):
        below = edges[state]
        token = np.minimum((below <= codes[..., None]).sum(-1), 49)
        share = table[state, token]
        before = np.take_along_axis(below, token[..., None], -1)[..., 0] - share
        total += np.log(share)
        codes = np.clip((codes - before) / share, 0, 1 - 2**-53)
        if place % 8 == 7:  # the digits of a double are spent
            codes = fresh.random(codes.shape)
        state = token
    return total


def test_intervals_of_replications_cover_the_expectation() -> None:
    """400 trials with 16 sets of 16 points; the deviation within a set is no such thing, and told beside it."""
    source = LowDiscrepancy(replications=16)
    trials = [chain_values(source, seed, 16, 16) for seed in range(400)]
    truth = float(np.mean(trials))
    covered = [(e := of_replications(values)).low <= truth <= e.high for values in trials]
    assert 0.90 <= np.mean(covered) <= 0.99
    within = [values.std(ddof=1) / 16 for values in trials]
    between = [of_replications(values).error for values in trials]
    assert np.mean(between) < np.mean(within)  # which would be too wide


def test_an_interval_is_student_s() -> None:
    values = np.array([[1.0, 3.0], [2.0, 4.0], [6.0, 6.0]])
    found = of_replications(values, 0.9)
    means = [2.0, 3.0, 6.0]
    low, high = scipy.stats.t.interval(0.9, 2, np.mean(means), scipy.stats.sem(means))
    assert (found.value, found.error) == pytest.approx((11 / 3, scipy.stats.sem(means)))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.half_width == pytest.approx((high - low) / 2)
    with pytest.raises(BadSetting, match="at least 2 replications"):
        of_replications(np.ones((1, 8)))


# Fast kernels


@pytest.mark.parametrize("alpha", [1, 2])
@pytest.mark.parametrize("dimensions", [1, 2])
@pytest.mark.parametrize(("kind", "how"), [("lattice", "shift"), ("net", "lms-ds"), ("net", "ds"), ("net", "nus")])
def test_transforms_are_the_dense_matrix(kind: str, how: str, dimensions: int, alpha: int) -> None:
    source = LowDiscrepancy(kind, how, dimensions)
    [places] = points(source, 3, 64)
    if how == "nus" and alpha > 1:
        with pytest.raises(BadSetting, match="kernel of smoothness 1, not 2"):
            FastKernel(source, places, alpha)
        return
    kernel = FastKernel(source, places, alpha)
    vector = np.random.default_rng(1).normal(size=64)
    dense = kernel.dense()
    assert np.allclose(kernel.times(vector), dense @ vector, rtol=1e-9, atol=1e-9)
    assert np.allclose(dense @ kernel.solve(vector), vector, rtol=1e-9, atol=1e-9)
    assert np.allclose(np.sort(kernel.spectrum), np.linalg.eigvalsh(dense), rtol=1e-9, atol=1e-9)
    assert kernel.spectrum[0] == pytest.approx(float((dense @ np.ones(64))[0]))
    if (kind, dimensions, alpha) == ("net", 1, 1):  # 1 + 6 (1/6 - 2^(floor(log2(x xor z)) - 1))
        digits = (places[:, 0] * 2.0**53).astype(np.uint64)
        apart = (digits[5] ^ digits[9]) / 2.0**53
        assert dense[5, 9] == pytest.approx(1 + 6 * (1 / 6 - 2.0 ** (math.floor(math.log2(apart)) - 1)))


def test_transforms_are_what_they_are_called() -> None:
    """Hadamard's matrix over the root, its own inverse; and Fourier's of the points in the order of reversed bits."""
    vector = np.random.default_rng(2).normal(size=64)
    assert np.allclose(qmcpy.fwht(vector), scipy.linalg.hadamard(64) @ vector / 8)
    assert np.allclose(qmcpy.fwht(qmcpy.fwht(vector)), vector)
    order = (shifted_lattice(np.zeros(1), 64)[0] * 64).astype(int)
    assert np.allclose(qmcpy.fftbr(vector), np.fft.fft(vector[order]) / 8)
    assert np.allclose(qmcpy.ifftbr(qmcpy.fftbr(vector)), vector)


@pytest.mark.parametrize("kind", ["lattice", "net"])
def test_the_error_from_one_set_is_that_of_the_process(kind: str) -> None:
    """Generalised least squares with the dense matrix: an unknown constant and the kernel without its own."""
    source = LowDiscrepancy(points=kind)
    [places] = points(source, 3, 32)
    kernel, values = FastKernel(source, places), np.random.default_rng(4).normal(size=32)
    varying, ones = kernel.dense() - 1.0, np.ones(32)
    precision = np.linalg.pinv(varying)
    residual = values - values.mean()
    scale = residual @ precision @ residual / 31
    assert kernel.error(values) == pytest.approx(math.sqrt(scale / (ones @ precision @ ones)))
    assert kernel.error(np.full(32, 3.0)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("kind", ["lattice", "net"])
def test_the_error_from_one_set_is_of_the_size_of_the_error(kind: str) -> None:
    """Of a function with jumps, over 200 sets: neither far too small nor useless."""
    source = LowDiscrepancy(points=kind, replications=200)
    sets = points(source, 7, 200 * 16)
    values = (sets < 0.3) * 1.0 + (sets > 0.77) * 0.5 + np.sin(9 * sets)
    true = float(np.std(values[..., 0].mean(axis=1)))
    told = float(np.mean([FastKernel(source, own).error(found[:, 0]) for own, found in zip(sets, values, strict=True)]))
    assert true < told < 2.5 * true
    independent = float(values.std()) / 4
    assert told < independent


def test_two_replications_and_two_points_are_enough() -> None:
    """By hand: half the distance of two means, times Student's factor of one degree of freedom; two points apart from each
    other in a process of which they know nothing but the difference."""
    told = of_replications(np.array([[1.0, 3.0], [5.0, 7.0]]))
    assert (told.value, told.error) == (4.0, pytest.approx(2.0))
    assert told.half_width == pytest.approx(2.0 * math.tan(0.475 * math.pi))
    source = LowDiscrepancy()
    [places] = points(source, 3, 2)
    assert FastKernel(source, places).error(np.array([1.0, 2.0])) > 0


def test_sets_without_a_fast_kernel_are_refused() -> None:
    for source, count in ((LowDiscrepancy(points="halton"), 16), (LowDiscrepancy(), 12), (LowDiscrepancy(), 1)):
        with pytest.raises(BadSetting, match=f"points of a net or a lattice, not {count} of"):
            FastKernel(source, points(source, 1, count)[0])
