"""Hamming distances at every alignment: all forms against brute force, and each form's own promise."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decodery.speculative.approximate_match_lookup.matching import (
    Lags,
    NgramIndex,
    approximate,
    direct,
    hashed_bounded,
    heavy_light,
    jumped,
    k_bounded,
)
from decodery.speculative.approximate_match_lookup.matching.distances import correlation, rounded
from decodery.speculative.suffix_automaton.automaton import Match, SuffixAutomaton


def brute_force(text: list[int], pattern: list[int]) -> list[int]:
    return [
        sum(a != b for a, b in zip(pattern, text[i:], strict=False))
        for i in range(max(len(text) - len(pattern) + 1, 0))
    ]


def _zipf(generator: np.random.Generator, size: int) -> list[int]:
    return np.minimum(generator.zipf(1.3, size), 49151).tolist()


def _cases() -> dict[str, tuple[list[int], list[int]]]:
    """Random, Zipf, constant and all-distinct texts; patterns of one token, of all the text, longer, cut out of it, and long
    enough for frequent symbols (more than sqrt(m log2 m) of one sort)."""
    generator = np.random.Generator(np.random.Philox(key=3))
    texts = {
        "random": generator.integers(0, 4, 300).tolist(),
        "zipf": _zipf(generator, 300),
        "constant": [7] * 300,
        "distinct": generator.permutation(300).tolist(),
        "short": [5, 6, 5],
    }
    cases = {}
    for name, text in texts.items():
        for m in (1, 2, 7, 64, 200, 300, 301):
            noise = generator.integers(0, 3, m) == 0
            own = [*text, *text, *text][50 : 50 + m] if len(text) >= 300 else [5, 9, 6] * m
            pattern = np.where(noise, generator.integers(0, 9, m), np.array(own[:m])).tolist()
            cases[f"{name} m={m}"] = (text, pattern)
    return cases


CASES = _cases()


@pytest.mark.parametrize("case", CASES)
def test_every_exact_form_is_brute_force(case):
    text, pattern = CASES[case]
    expected = brute_force(text, pattern)
    assert direct(text, pattern).tolist() == expected
    assert heavy_light(text, pattern).tolist() == expected
    assert heavy_light(text, pattern, pack2=True).tolist() == expected
    for k in {0, 1, len(pattern) // 8, len(pattern)}:
        bounded = np.minimum(expected, k + 1).tolist()
        assert k_bounded(text, pattern, k).tolist() == bounded
        assert jumped(text, pattern, k).tolist() == bounded
        for buckets in (1, 3, 64):  # with one bucket everything matches, and all is verified
            assert hashed_bounded(text, pattern, k, buckets=buckets).tolist() == bounded


@given(
    st.lists(st.integers(0, 2), max_size=40), st.lists(st.integers(0, 2), min_size=1, max_size=12), st.integers(0, 5)
)
def test_small_texts(text, pattern, k):
    expected = brute_force(text, pattern)
    for form in (direct, heavy_light, lambda t, p: heavy_light(t, p, pack2=True)):
        assert form(text, pattern).tolist() == expected
    bounded = [min(d, k + 1) for d in expected]
    for form in (k_bounded, jumped, hashed_bounded):
        assert form(text, pattern, k).tolist() == bounded


def test_without_mismatches_it_is_exact_search():
    text = [1, 2, 3, 1, 2, 1, 2, 3]
    assert np.flatnonzero(k_bounded(text, [1, 2, 3], 0) == 0).tolist() == [0, 5]
    assert np.flatnonzero(jumped(text, [1, 2, 3], 0) == 0).tolist() == [0, 5]


def test_colliding_hashes_are_noticed():
    """With base 0 a hash is that of the last symbol alone, so that nearly everything collides; with base 1 of the sum."""
    generator = np.random.Generator(np.random.Philox(key=8))
    text, pattern = generator.integers(0, 3, 400).tolist(), generator.integers(0, 3, 20).tolist()
    expected = np.array(brute_force(text, pattern))
    for base in (0, 1):
        for k in (2, 10):
            bounded = jumped(text, pattern, k, base=base)
            near = bounded <= k
            assert near.any() or not (expected <= k).any()
            assert (bounded[near] == expected[near]).all(), "a reported distance is wrong"
            assert (bounded == np.minimum(expected, k + 1)).all()


def test_an_empty_pattern_is_an_error():
    with pytest.raises(ValueError, match="at least one token"):
        direct([1, 2], [])


def test_a_grown_index_is_an_index_of_the_whole():
    generator = np.random.Generator(np.random.Philox(key=1))
    text, pattern = generator.integers(0, 3, 200).tolist(), generator.integers(0, 3, 9).tolist()
    index = NgramIndex(3)
    for end in range(1, 201):
        index.extend(text[len(index) : end])
        places, distances = index.near(pattern, 2)
        expected = brute_force(text[:end], pattern)
        assert dict(zip(places.tolist(), distances.tolist(), strict=True)) == {
            place: d for place, d in enumerate(expected) if d <= 2
        }
    with pytest.raises(ValueError, match="too short"):
        index.near(pattern, 3)


class TestApproximate:
    @pytest.mark.parametrize("kind", ["random", "zipf", "distinct"])
    @pytest.mark.parametrize(("eps", "delta"), [(0.25, 0.01), (0.5, 0.1)])
    def test_it_never_exceeds_and_rarely_falls_short(self, kind, eps, delta):
        text, pattern = CASES[f"{kind} m=64"]
        expected = np.array(brute_force(text, pattern))
        enough = []
        for seed in range(50):
            estimate = approximate(text, pattern, eps, delta, seed=seed)
            assert (estimate <= expected).all()
            enough.append((estimate >= (1 - eps) * expected).mean())
        assert np.mean(enough) >= 1 - delta

    def test_one_repetition_would_not_do(self):
        """The control: estimates from few letters and a single repetition fall short far more often."""
        from decodery.speculative.approximate_match_lookup.matching.hashed import hashed

        text, pattern = (np.array(part) for part in CASES["distinct m=64"])
        expected = direct(text, pattern)
        short = [(direct(*hashed(text, pattern, 4, seed)) < 0.75 * expected).mean() for seed in range(20)]
        assert np.mean(short) > 0.2


def test_a_transform_that_lost_its_digits_is_an_error():
    with pytest.raises(ArithmeticError, match="off a whole number"):
        rounded(np.array([1.0, 2.4]))


@pytest.mark.parametrize("n", [5, 64, 1000, 5000])
@pytest.mark.parametrize("m", [1, 3, 5])
def test_a_long_correlation_does_not_wrap_round(n, m):
    generator = np.random.Generator(np.random.Philox(key=n + m))
    text, pattern = generator.integers(0, 9, n).astype(float), generator.integers(0, 9, m).astype(float)
    expected = np.correlate(text, pattern, "valid")
    assert rounded(correlation(text, pattern)).tolist() == expected.tolist()


texts = st.lists(st.integers(0, 2), min_size=1, max_size=40)


class TestLags:
    @settings(max_examples=60)
    @given(texts, st.integers(1, 9), st.sampled_from([0.0, 0.6, 0.75]), st.integers(0, 5))
    def test_every_entry_is_its_definition(self, text, window, decay, earlier):
        lags = Lags(window, decay, text[:earlier])
        lags.extend(text[earlier:])
        n = len(text)
        assert lags.text.tolist() == text

        def differs(place: int, lag: int) -> bool:
            return place < earlier or place - lag < 0 or text[place] != text[place - lag]

        for lag in range(1, n):
            places = range(n - 1, n - 1 - window, -1)
            assert lags.mismatches[lag - 1] == sum(differs(place, lag) for place in places)
            agreeing = next(j for j in range(n + 1) if differs(n - 1 - j, lag))
            assert lags.runs[lag - 1] == agreeing
            expected = sum(decay**j * differs(n - 1 - j, lag) for j in range(n)) + decay**n / (1 - decay)
            assert lags.decayed[lag - 1] == pytest.approx(expected)

    @pytest.mark.parametrize("case", [name for name in CASES if name.endswith("m=64")])
    def test_shifted_to_alignments_they_are_the_distances(self, case):
        text, _ = CASES[case]
        for window in (1, 8, 64):
            lags = Lags(window, 0.75)
            lags.extend(text)
            if len(text) < window:
                continue
            # Lag l compares the last `window` tokens with the alignment at n - window - l.
            distances = direct(text, text[-window:])[:-1]
            assert lags.mismatches[: len(text) - window].tolist() == distances[::-1].tolist()

    @given(texts)
    def test_the_longest_run_is_the_suffix_automaton_s(self, text):
        lags, automaton, match = Lags(8, 0.75), SuffixAutomaton(), Match()
        for token in text:
            automaton.advance(match, token)
            automaton.append(token)
            lags.push(token)
            assert lags.runs.max(initial=0) == match.length

    def test_a_token_costs_little_and_memory_is_linear(self):
        generator = np.random.Generator(np.random.Philox(key=5))
        lags = Lags(8, 0.75)
        lags.extend(_zipf(generator, 8192))
        times = []
        for token in _zipf(generator, 200):
            start = time.perf_counter()
            lags.push(token)
            times.append(time.perf_counter() - start)
        assert sorted(times)[len(times) // 2] < 0.5e-3
        assert lags.bytes <= 2 * (8192 + 200) * (8 + 4 + 4 + 8)
