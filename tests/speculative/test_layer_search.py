"""The search for sublayers that can be spared: candidates, the rules of its end, and the Gaussian process behind it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from decodery.speculative.swift import layer_search
from decodery.speculative.swift.layer_search import (
    CLIMBS,
    LENGTH_SCALES,
    NOISE,
    STARTS,
    GaussianProcess,
    LayerSearch,
    LayerSet,
    matchness,
    matern,
)


def additive(seed: int = 0, layers: int = 30) -> dict[str, np.ndarray]:
    """A model in which each sublayer that is left out costs its own share of matchness."""
    generator = np.random.Generator(np.random.Philox(key=seed))
    return {name: generator.gamma(0.5, 0.05, layers) for name in ("attention", "mlp")}


def score(costs: dict[str, np.ndarray], chosen: LayerSet) -> float:
    lost = sum(float(costs[name][layer]) for name in ("attention", "mlp") for layer in getattr(chosen, name))
    return max(0.0, 1.0 - lost)


def run(search: LayerSearch, costs: dict[str, np.ndarray]) -> list[float]:
    """Search to the end; the best score after each candidate."""
    best = []
    while search.optimising:
        candidate = search.candidate()
        search.register(candidate, score(costs, candidate))
        best.append(search.best_score)
    return best


def test_the_first_set_is_every_second_layer():
    search = LayerSearch(8, 0.45)
    assert search.current == LayerSet(frozenset({1, 3, 5}), frozenset({1, 3, 5})), "not the last layer, which is odd"
    assert search.dimensions == 12
    assert search.size == int(12 * 0.45)


@pytest.mark.parametrize("whole", [False, True])
def test_candidates_have_the_size_and_spare_the_ends(whole):
    search = LayerSearch(10, 0.3, bayes_interval=4, whole_layers=whole)
    seen = set()
    for _ in range(40):
        candidate = search.candidate()
        search.register(candidate, 0.1 + 0.01 * len(seen))
        assert len(candidate) == search.size * (2 if whole else 1)
        assert not {0, 9} & (candidate.attention | candidate.mlp)
        if whole:
            assert candidate.attention == candidate.mlp
        seen.add(candidate)
    assert len(seen) > 10


def test_too_few_layers_leave_nothing_to_search():
    for layers in (1, 2):
        search = LayerSearch(layers, 0.5)
        assert not search.optimising
        assert len(search.current) == 0
    assert LayerSearch(3, 0.01).size == 1, "a set of nothing would always win"


def test_only_a_better_set_is_adopted_and_the_best_never_falls():
    search = LayerSearch(12, 0.3)
    sets = [search.candidate() for _ in range(4)]
    for candidate, value, current, best, tolerance in zip(
        sets, (0.3, 0.3, 0.2, 0.5), (0, 0, 0, 3), (0.3, 0.3, 0.3, 0.5), (0, 1, 2, 0), strict=True
    ):
        search.register(candidate, value)
        assert search.current == sets[current]
        assert (search.best_score, search.tolerance) == (best, tolerance)
    best = run(LayerSearch(30, 0.15, max_score=1.0), additive())
    assert best == sorted(best)


def test_where_the_search_ends():
    costs = additive()
    assert len(run(LayerSearch(30, 0.3, max_iterations=17), costs)) == 17
    stale = LayerSearch(30, 0.3, max_tolerance=5)
    run(stale, dict.fromkeys(costs, np.ones(30)))
    assert stale.iterations == 6
    good = LayerSearch(30, 0.1, max_score=0.2)
    run(good, costs)
    assert good.best_score > 0.2
    assert good.iterations < 20
    just = LayerSearch(30, 0.1, max_score=0.2)
    just.register(just.candidate(), 0.2)
    assert just.optimising, "the score is to be exceeded"


def test_the_same_seed_searches_alike():
    first, again, other = (
        [search.candidate() for _ in range(5)] for search in (LayerSearch(12, 0.3, seed=s) for s in (1, 1, 2))
    )
    assert first == again != other


def test_the_gaussian_process_is_the_textbook_one():
    generator = np.random.Generator(np.random.Philox(key=3))
    points, scores = generator.random((9, 4)), generator.random(9)
    process = GaussianProcess(points, scores)
    kernel = np.array([[_matern(np.linalg.norm(a - b), process.scale) for b in points] for a in points])
    new = generator.random((5, 4))
    cross = np.array([[_matern(np.linalg.norm(a - b), process.scale) for b in points] for a in new])
    inverse = np.linalg.inv(kernel + 1e-2 * np.eye(9))
    mean = scores.mean() + cross @ inverse @ (scores - scores.mean())
    spread = scores.std() * np.sqrt(1 - np.einsum("ij,jk,ik->i", cross, inverse, cross))
    found = process.predict(new)
    np.testing.assert_allclose(found[0], mean, rtol=1e-8)
    np.testing.assert_allclose(found[1], spread, rtol=1e-8)
    value, gradient = process.promise(new[0])
    assert value == pytest.approx((mean[0] - scores.mean() + 2.5 * spread[0]) / scores.std())
    for place in range(4):
        step = np.zeros(4)
        step[place] = 1e-6
        slope = (process.promise(new[0] + step)[0] - process.promise(new[0] - step)[0]) / 2e-6
        assert gradient[place] == pytest.approx(slope, rel=1e-4, abs=1e-7)
    best = process.promising(generator)
    assert best.min() >= 0
    assert best.max() <= 1
    assert process.promise(best)[0] >= max(process.promise(point)[0] for point in generator.random((300, 4)))


def test_the_length_scale_is_the_likeliest():
    """Of those that are tried, by the marginal likelihood of the standardised scores, written out."""
    chosen = set()
    for seed in range(6):
        generator = np.random.Generator(np.random.Philox(key=seed))
        points = generator.random((12, 3))
        scores = np.sin(points.sum(axis=1) * (1 + seed)) + 0.05 * generator.random(12)
        standard = (scores - scores.mean()) / scores.std()

        def likelihood(scale: float, points: np.ndarray = points, standard: np.ndarray = standard) -> float:
            kernel = np.array([[_matern(np.linalg.norm(a - b), scale) for b in points] for a in points])
            noisy = kernel + NOISE * np.eye(12)
            return float(-standard @ np.linalg.solve(noisy, standard) / 2 - np.linalg.slogdet(noisy)[1] / 2)

        found = GaussianProcess(points, scores).scale
        assert found == max(LENGTH_SCALES, key=likelihood)
        chosen.add(found)
    assert len(chosen) > 1


def test_climbing_begins_where_the_promise_is_highest(monkeypatch):
    generator = np.random.Generator(np.random.Philox(key=3))
    process = GaussianProcess(generator.random((9, 4)), generator.random(9))
    starts = []

    def stays(function, start, **_):
        starts.append(start)
        return type("Found", (), {"fun": function(start)[0], "x": start})

    monkeypatch.setattr(layer_search, "minimize", stays)
    best = process.promising(np.random.Generator(np.random.Philox(key=1)))
    points = np.random.Generator(np.random.Philox(key=1)).random((STARTS, 4))
    promises = [process.promise(point)[0] for point in points]
    highest = np.argsort(promises)[::-1][:CLIMBS]
    np.testing.assert_array_equal(starts, points[highest])
    np.testing.assert_array_equal(best, points[highest[0]])


def _matern(distance: float, scale: float) -> float:
    x = np.sqrt(5) * distance / scale
    return float((1 + x + x * x / 3) * np.exp(-x))


def test_the_kernel_falls_from_one():
    values = matern(np.array([0.0, 0.5, 1.0, 4.0]), 1.0)
    assert values[0] == 1
    assert list(values) == sorted(values, reverse=True)
    assert values[2] == pytest.approx(0.5239941088)  # (1 + sqrt 5 + 5/3) e^(-sqrt 5)


def test_the_process_finds_better_sets_than_chance():
    """With one candidate in 25, as published, on five seeds."""
    bayes = [run(LayerSearch(30, 0.3, 25, 120, 999, 1.0, seed), additive(seed))[-1] for seed in range(5)]
    chance = [run(LayerSearch(30, 0.3, 0, 120, 999, 1.0, seed), additive(seed))[-1] for seed in range(5)]
    assert np.mean(bayes) > np.mean(chance) + 0.05


def test_finer_sets_match_better_than_whole_layers():
    """At equal numbers of sublayers left out."""
    fine = [run(LayerSearch(30, 0.3, 25, 100, 999, 1.0, seed), additive(seed))[-1] for seed in range(5)]
    whole = [run(LayerSearch(30, 0.3, 25, 100, 999, 1.0, seed, True), additive(seed))[-1] for seed in range(5)]
    assert LayerSearch(30, 0.3).size == 2 * LayerSearch(30, 0.3, whole_layers=True).size
    assert np.mean(fine) > np.mean(whole)


def test_matchness():
    assert matchness([1, 2, 3, 4], [1, 0, 3, 4]) == 0.75


def test_a_set_is_kept_for_its_model(tmp_path):
    path = tmp_path / "set.json"
    chosen = LayerSet(frozenset({1, 5}), frozenset({2}))
    chosen.write(path, 0.75, "abc")
    assert json.loads(path.read_text()) == {"attention": [1, 5], "mlp": [2], "score": 0.75, "model": "abc"}
    assert LayerSet.read(path, "abc") == (chosen, 0.75)
    with pytest.raises(ValueError, match="found for the model abc"):
        LayerSet.read(path, "xyz")
    for broken in ("{}", "[]", '{"attention": 3, "mlp": [], "score": 1, "model": "abc"}', "no json"):
        path.write_text(broken)
        with pytest.raises(ValueError, match=r"."):
            LayerSet.read(path, "abc")
