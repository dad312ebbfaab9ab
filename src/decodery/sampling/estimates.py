"""Means over low-discrepancy samples and how far off they may be: by independent randomisations, or from a single one by a fast
kernel.

Samples of one set depend on each other, so the deviation within a set says nothing of the error of its mean. That of means of
several sets, randomised independently, does (Student's t; CubQMCRepStudentT of QMCPy stops by it). From one set alone the
error follows from a Gaussian process over the code, whose matrix the transforms of QMCPy turn into a diagonal (Sorokin 2025;
Jagadeeswaran and Hickernell, Fast automatic Bayesian cubature using lattice sampling, 2019, arXiv 1809.09803).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from decodery._lazy import np
from decodery.errors import BadSetting
from decodery.sampling.chance.qmcpy import LowDiscrepancy, imported

if TYPE_CHECKING:
    from jaxtyping import Float64


@dataclass(frozen=True)
class MeanEstimate:
    """A mean with its standard error and the interval that covers the expectation with the wanted confidence."""

    value: float
    error: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Of the interval."""
        return (self.high - self.low) / 2


def of_replications(values: Float64[np.ndarray, "replications n"], confidence: float = 0.95) -> MeanEstimate:
    """The mean of the means of independently randomised sets, with Student's interval of replications - 1 degrees of freedom.

    It needs means that take many values. Raises BadSetting where there is one set alone.
    """
    from scipy.stats import t

    means = np.asarray(values, dtype=np.float64).mean(axis=1)
    count = len(means)
    if count < 2:
        raise BadSetting("an error bar needs at least 2 replications, which differ, and there is 1.")
    value, error = float(means.mean()), float(means.std(ddof=1)) / math.sqrt(count)
    reach = error * float(t.ppf((1 + confidence) / 2, count - 1))
    return MeanEstimate(value, error, value - reach, value + reach)


class FastKernel:
    """The matrix of a kernel over the points of one set, which two fast transforms make a diagonal: products in O(n log n).

    source: whose points they are; the kernel is invariant to digital shifts for a net, and to shifts for a lattice. points [n,
    dimensions]: float64 in [0, 1), n a power of 2, in the order of the set. alpha: smoothness; 1 suits values that jump, as all
    that follows from a text does. Raises BadSetting for sets without such a kernel, MethodUnavailable without QMCPy.
    """

    def __init__(self, source: LowDiscrepancy, points: Float64[np.ndarray, "n dimensions"], alpha: int = 1):
        count, dimensions = points.shape
        if source.points not in ("net", "lattice") or count < 2 or count & (count - 1):
            raise BadSetting(
                f"a fast kernel needs 2, 4, 8, … points of a net or a lattice, not {count} of points={source.points}."
            )
        if source.randomize == "nus" and alpha > 1:
            raise BadSetting(
                f"points that are scrambled by nus go with a kernel of smoothness 1, not {alpha}; take randomize=lms-ds."
            )
        module = imported()
        if source.points == "net":
            self._kernel: Any = module.KernelDigShiftInvar(dimensions, alpha=alpha, t=53)
            self._forth = self._back = module.fwht
        else:
            self._kernel = module.KernelShiftInvar(dimensions, alpha=alpha)
            self._forth, self._back = module.fftbr, module.ifftbr
        self._points = points
        column = self._kernel(points, points[:1])
        self.spectrum: Any = np.real(math.sqrt(count) * self._forth(column))
        """[n] float64, the eigenvalues. The first is that of equal values."""

    def dense(self) -> Float64[np.ndarray, "n n"]:
        """The matrix itself, in O(n^2)."""
        matrix: Any = self._kernel(self._points[:, None], self._points[None])
        return matrix

    def times(self, vector: Float64[np.ndarray, "n"]) -> Float64[np.ndarray, "n"]:
        """The matrix times a vector."""
        return np.real(self._back(self._forth(vector) * self.spectrum))

    def solve(self, vector: Float64[np.ndarray, "n"]) -> Float64[np.ndarray, "n"]:
        """What the matrix makes this vector of."""
        return np.real(self._back(self._forth(vector) / self.spectrum))

    def error(self, values: Float64[np.ndarray, "n"]) -> float:
        """The standard error of the mean of values at the points, from this one set.

        The value as a function of the code is an unknown constant plus a Gaussian process, whose covariance is the kernel
        without its constant part, in the scale that makes the values likeliest. Equal values leave the mean what it is.
        """
        count = len(values)
        powers = np.abs(self._forth(np.asarray(values, dtype=np.float64)))[1:] ** 2
        scale = float((powers / self.spectrum[1:]).mean())
        return math.sqrt(scale * max(float(self.spectrum[0]) - count, 0.0) / count)
