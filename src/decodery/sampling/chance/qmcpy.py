"""Low-discrepancy samples: the n texts are read from points that are spread more evenly than independent ones.

Arithmetic sampling (Vilnis et al. 2023, arXiv 2210.15458) with the point sets and randomisations of QMCPy (Sorokin, QMCPy: A
Python Software for Randomized Low-Discrepancy Sequences, Quasi-Monte Carlo, and Fast Kernel Methods, 2025). Every randomised
point is uniform, so each sample has exactly the processed law; together they cover the space of texts evenly.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

from decodery._lazy import np
from decodery.errors import BadSetting, MethodUnavailable
from decodery.sampling.chance.arithmetic import Code
from decodery.sampling.chance.base import DrawnSample, Source
from decodery.sampling.noise import Chance, Noise, Stage
from decodery.sampling.settings import Flag, OneOf, Whole, setting

if TYPE_CHECKING:
    from jaxtyping import Float64

RANDOMISATIONS: dict[str, dict[str, str]] = {
    "lattice": {"shift": "SHIFT"},
    "net": {"lms-ds": "LMS DS", "ds": "DS", "nus": "NUS"},
    "halton": {"lms-dp": "LMS DP", "dp": "DP", "nus": "NUS"},
    "kronecker": {"shift": "SHIFT"},
    "independent": {},
}
"""Set of points -> its randomisations here and in QMCPy, the default first. Those that leave the first point at 0 are not
among them: that sample would always begin with the same token."""
AUTO = "auto"


@dataclass(frozen=True)
class LowDiscrepancy(Source):
    """The n samples are read from n points: `replications` sets of n / replications points, each randomised by itself.

    Sample i is point i // replications of set i % replications, in an order in which the first points of a larger set are the
    smaller set. Sets are those of a seed and a prompt, so prompts do not share them.
    """

    points: str = setting("lattice", OneOf(tuple(RANDOMISATIONS)), "The set of points.")
    randomize: str = setting(
        AUTO,
        OneOf((AUTO, *dict.fromkeys(word for words in RANDOMISATIONS.values() for word in words))),
        "How the set is randomised; auto: by QMCPy's default for it.",
    )
    dimensions: int = setting(1, Whole(1, 1024), "Coordinates of a point, which tokens read in turn.")
    replications: int = setting(1, Whole(1, 1024), "Sets that are randomised independently, for error bars.")
    shuffle: bool = setting(
        False, Flag(), "Each position has an order of the tokens of its own, the same for all samples."
    )

    name = "qmcpy"
    summary = "The n samples are read from a randomised low-discrepancy set: lattice, digital net, Halton or Kronecker points."
    target_only: ClassVar[str] = "a sample is a point that is read along the text, a token of the target at a time"

    def __post_init__(self) -> None:
        known = RANDOMISATIONS.get(self.points, {})
        if self.randomize != AUTO and self.randomize not in known:
            words = ", ".join(known) or "nothing"
            raise BadSetting(
                f"chance {self.name}: points={self.points} are randomised by {words}, not by {self.randomize}."
            )

    @property
    def spread(self) -> bool:
        return self.points != "independent"

    def chance(self, sample: DrawnSample) -> Chance:
        """Raises MethodUnavailable where the points need QMCPy and it is not there."""
        sets = self.sets(sample.seed, sample.text[: sample.prompt], sample.of)
        start = sets[sample.number % self.replications, sample.number // self.replications]
        shuffle = sample.seed if self.shuffle else None
        return Code(self, start.tolist(), sample.prompt, Noise(sample.seed, sample.number), shuffle)

    def sets(self, seed: int, prompt: Sequence[int], count: int) -> Float64[np.ndarray, "replications n dimensions"]:
        """The points in [0, 1) of `count` samples of a prompt. Raises MethodUnavailable as `chance`."""
        return points(self, Noise(seed).key(0, Stage.TARGET, ("points", *prompt)), count)

    def refuses_samples(self, count: int) -> str | None:
        if count > 1 and count % self.replications:
            return f"n must be a multiple of its {self.replications} replications"
        size = -(-count // self.replications)
        spread = self.points == "net" or (self.points == "lattice" and self.dimensions > 1)
        if spread and size & (size - 1):
            return f"a {self.points} has a power of 2 of points, and {size} is none"
        return None

    def in_qmcpy(self, seed: Any) -> Any:
        """QMCPy's generator of the sets. Raises MethodUnavailable where the package is not there."""
        module = imported()
        kind = {
            "lattice": module.Lattice,
            "net": module.DigitalNetB2,
            "halton": module.Halton,
            "kronecker": module.Kronecker,
        }[self.points]
        known = RANDOMISATIONS[self.points]
        word = known[next(iter(known)) if self.randomize == AUTO else self.randomize]
        make: Callable[..., Any] = kind
        return make(self.dimensions, replications=self.replications, seed=seed, randomize=word)


def imported() -> Any:
    """The package. Raises MethodUnavailable where it is not there."""
    try:
        import qmcpy
    except ImportError:
        raise MethodUnavailable(
            "chance qmcpy: its sets other than a lattice of one dimension come from the package qmcpy, which is not here; "
            "pip install 'decodery[qmcpy]'."
        ) from None
    return qmcpy


@lru_cache(maxsize=16)
def points(source: LowDiscrepancy, key: int, count: int) -> Float64[np.ndarray, "replications n dimensions"]:
    """The sets of `count` samples, in [0, 1), randomised by a key. All samples of a prompt ask for the same."""
    sets, size = source.replications, -(-count // source.replications)
    if source.points == "independent":
        found = np.random.Generator(np.random.Philox(key=key)).random((size, sets, source.dimensions)).swapaxes(0, 1)
    elif source.points == "lattice" and source.dimensions == 1:
        found = shifted_lattice(np.random.Generator(np.random.Philox(key=key)).random(sets), size)[..., None]
    else:
        with warnings.catch_warnings():  # of numbers of points that are no powers, which some sets take
            warnings.simplefilter("ignore")
            found = source.in_qmcpy(key)(size)
    found = np.minimum(found, 1 - 2.0**-53)
    found.setflags(write=False)
    return found


def shifted_lattice(shifts: Float64[np.ndarray, "replications"], size: int) -> Float64[np.ndarray, "replications size"]:
    """i / size + shift mod 1, the lattice of one dimension; where size is a power of 2 in the order of reversed bits, as QMCPy
    has it, else from left to right."""
    line = np.arange(size)
    if size & (size - 1) == 0:
        bits = size.bit_length() - 1
        line = sum((line >> bit & 1) << (bits - 1 - bit) for bit in range(bits)) + np.zeros(size, dtype=np.int64)
    return (line / size + np.asarray(shifts)[:, None]) % 1.0
