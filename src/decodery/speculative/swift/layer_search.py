"""Which attentions and feed-forwards a model can do without: sets of them, and the search for a good one.

A set is scored by its matchness: the share of a text's tokens that the model without the set still predicts. Candidates are
random, and now and then the one that a Gaussian process thinks best. Source: SWIFT, arXiv 2410.06916, section 4.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

from decodery.models.forward import Layers

Vector = NDArray[np.float64]
KAPPA = 2.5
"""How many standard deviations of doubt count as promise."""
NOISE = 1e-2
"""Variance of a score's noise, in variances of the scores."""
LENGTH_SCALES = tuple(float(scale) for scale in np.geomspace(0.3, 30.0, 12))
STARTS, CLIMBS = 512, 3
"""Random points that the acquisition is tried at, and from how many of the best it is climbed."""


@dataclass(frozen=True)
class LayerSet:
    """Layers whose attention, and layers whose feed-forward, are left out."""

    attention: frozenset[int] = frozenset()
    mlp: frozenset[int] = frozenset()

    def layers(self) -> Layers:
        """What a forward without them runs."""
        return Layers(skip_attention=self.attention, skip_mlp=self.mlp)

    def __len__(self) -> int:
        return len(self.attention) + len(self.mlp)

    def write(self, path: Path, score: float, fingerprint: str) -> None:
        """Keep the set, with its matchness and the fingerprint of its model."""
        entry = {"attention": sorted(self.attention), "mlp": sorted(self.mlp), "score": score, "model": fingerprint}
        path.write_text(json.dumps(entry) + "\n", "utf-8")

    @classmethod
    def read(cls, path: Path, fingerprint: str) -> tuple[LayerSet, float]:
        """A kept set and its score. Raises OSError where it cannot be read, ValueError where it is no set of this model."""
        entry = json.loads(path.read_text("utf-8"))
        try:
            found = cls(frozenset(map(int, entry["attention"])), frozenset(map(int, entry["mlp"])))
            score, model = float(entry["score"]), entry["model"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"it holds no layer set: {error!r}") from None
        if model != fingerprint:
            raise ValueError(f"its set was found for the model {model}, and this one is {fingerprint}")
        return found, score


class LayerSearch:
    """Looks for the set of a given size with the highest matchness.

    layers: of the model; its first and last are never touched. skip_ratio: share of the eligible sublayers in a set.
    bayes_interval: every so many candidates one comes from the Gaussian process; 0: none does. max_iterations, max_tolerance:
    the search is over after so many candidates, or so many in a row without a better one. max_score: it is over once this is
    exceeded. seed: of the random candidates. whole_layers: a set takes attention and feed-forward of a layer together.
    """

    def __init__(
        self,
        layers: int,
        skip_ratio: float,
        bayes_interval: int = 25,
        max_iterations: int = 1000,
        max_tolerance: int = 300,
        max_score: float = 0.95,
        seed: int = 0,
        whole_layers: bool = False,
    ):
        self.eligible = max(0, layers - 2)
        self.whole_layers, self.seed = whole_layers, seed
        self.dimensions = self.eligible if whole_layers else 2 * self.eligible
        # At least one: a set of nothing predicts everything and saves nothing.
        self.size = max(1, int(self.dimensions * skip_ratio)) if self.dimensions else 0
        self.bayes_interval, self.max_iterations = bayes_interval, max_iterations
        self.max_tolerance, self.max_score = max_tolerance, max_score
        odd = frozenset(layer for layer in range(1, layers - 1) if layer % 2)
        self.current = LayerSet(odd, odd)
        """The best set so far; at first every second layer."""
        self.best_score = 0.0
        self.iterations = self.tolerance = 0
        self.optimising = self.size > 0
        self._points: list[Vector] = []
        self._scores: list[float] = []

    def candidate(self) -> LayerSet:
        """The next set to be scored."""
        self.iterations += 1
        if self.bayes_interval and self.iterations % self.bayes_interval == 0 and len(self._points) > 1:
            process = GaussianProcess(np.array(self._points), np.array(self._scores))
            vector = process.promising(self._generator())
        else:
            vector = self._generator().random(self.dimensions)
        return self._set_of(vector)

    def register(self, candidate: LayerSet, score: float) -> None:
        """A candidate has been scored."""
        self._points.append(self._vector_of(candidate))
        self._scores.append(score)
        if score > self.best_score:
            self.current, self.best_score, self.tolerance = candidate, score, 0
            if score > self.max_score:
                self.optimising = False
        else:
            self.tolerance += 1
        if self.tolerance > self.max_tolerance or self.iterations >= self.max_iterations:
            self.optimising = False

    def _generator(self) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=[self.seed, self.iterations]))

    def _set_of(self, vector: Vector) -> LayerSet:
        """The sublayers with the largest coordinates: attention of layer 1, 2, …, then feed-forward of layer 1, 2, …"""
        chosen = np.argsort(-vector, kind="stable")[: self.size].tolist()
        attention = frozenset(place + 1 for place in chosen if place < self.eligible)
        if self.whole_layers:
            return LayerSet(attention, attention)
        return LayerSet(attention, frozenset(place - self.eligible + 1 for place in chosen if place >= self.eligible))

    def _vector_of(self, candidate: LayerSet) -> Vector:
        vector = np.zeros(self.dimensions)
        vector[[layer - 1 for layer in candidate.attention]] = 1.0
        if not self.whole_layers:
            vector[[self.eligible + layer - 1 for layer in candidate.mlp]] = 1.0
        return vector


class GaussianProcess:
    """A Gaussian process with a Matern-5/2 kernel over the unit cube, its length scale fitted by marginal likelihood.

    points: [n, dimensions]; scores: [n], standardised inside.
    """

    def __init__(self, points: Vector, scores: Vector):
        self.points = points
        self.mean, self.spread = float(scores.mean()), float(scores.std()) or 1.0
        targets = (scores - self.mean) / self.spread
        distances = _distances(points, points)
        best = -math.inf
        for scale in LENGTH_SCALES:
            factor = cho_factor(matern(distances, scale) + NOISE * np.eye(len(points)), lower=True)
            weights = cho_solve(factor, targets)
            likelihood = -0.5 * float(targets @ weights) - float(np.log(np.diag(factor[0])).sum())
            if likelihood > best:
                best, self.scale, self._factor, self._weights = likelihood, scale, factor, weights

    def predict(self, points: Vector) -> tuple[Vector, Vector]:
        """Mean and standard deviation [m] of the score at points [m, dimensions]."""
        kernel = matern(_distances(points, self.points), self.scale)
        variance = 1.0 - np.einsum("ij,ji->i", kernel, cho_solve(self._factor, kernel.T))
        return self.mean + self.spread * (kernel @ self._weights), self.spread * np.sqrt(np.maximum(variance, 1e-12))

    def promise(self, point: Vector) -> tuple[float, Vector]:
        """The upper confidence bound at one point, in standardised scores, and its gradient."""
        distances = _distances(point[None], self.points)[0]
        kernel = matern(distances, self.scale)
        slope = (
            -5.0 / (3.0 * self.scale**2) * (1 + _root5(distances, self.scale)) * np.exp(-_root5(distances, self.scale))
        )
        gradients = slope[:, None] * (point - self.points)
        inner = cho_solve(self._factor, kernel)
        deviation = math.sqrt(max(1.0 - float(kernel @ inner), 1e-12))
        value = float(kernel @ self._weights) + KAPPA * deviation
        return value, gradients.T @ self._weights - KAPPA / deviation * (gradients.T @ inner)

    def promising(self, generator: np.random.Generator) -> Vector:
        """The point of the unit cube with the highest upper confidence bound, as far as climbing finds it."""
        size = self.points.shape[1]
        starts = generator.random((STARTS, size))
        mean, deviation = self.predict(starts)
        order = np.argsort(-(mean + KAPPA * deviation), kind="stable")[:CLIMBS]
        best_point, best = starts[order[0]], -math.inf
        for start in starts[order]:
            found = minimize(
                lambda point: tuple(-part for part in self.promise(point)),
                start,
                jac=True,
                method="L-BFGS-B",
                bounds=[(0.0, 1.0)] * size,
                options={"maxiter": 50},
            )
            if -float(found.fun) > best:
                best, best_point = -float(found.fun), found.x
        return best_point


def matern(distances: Vector, scale: float) -> Vector:
    """The Matern-5/2 kernel of distances."""
    root = _root5(distances, scale)
    return (1 + root + root**2 / 3) * np.exp(-root)


def _root5(distances: Vector, scale: float) -> Vector:
    return math.sqrt(5.0) * distances / scale


def _distances(left: Vector, right: Vector) -> Vector:
    squares = (left**2).sum(1)[:, None] + (right**2).sum(1)[None] - 2 * left @ right.T
    return np.sqrt(np.maximum(squares, 0.0))


def matchness(predicted: Sequence[int], text: Sequence[int]) -> float:
    """Share of the tokens of a text that were predicted."""
    return sum(a == b for a, b in zip(predicted, text, strict=True)) / len(text)
