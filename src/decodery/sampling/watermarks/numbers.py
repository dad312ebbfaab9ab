"""Numbers of a key that can be asked for one by one, so that a matrix of length times vocabulary is never stored.

A row has a seed, a hash of the key and the row's address; what a token has there is one output of SplitMix64 (Steele, Lea and
Flood, Fast splittable pseudorandom number generators, 2014), whose outputs are functions of seed and place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from decodery._lazy import np
from decodery.sampling.noise import Noise, Stage

if TYPE_CHECKING:
    from jaxtyping import Float64, UInt64

STEP = 0x9E3779B97F4A7C15
"""SplitMix64's distance between the states of successive outputs."""


def seed_of(key: int, *address: int | str) -> int:
    """64 bits that follow from a key and an address."""
    return Noise(key).key(0, Stage.TARGET, ("watermark", *address)) & 0xFFFFFFFFFFFFFFFF


def words(seeds: UInt64[np.ndarray, "*n"], places: UInt64[np.ndarray, "*n"]) -> UInt64[np.ndarray, "*n"]:
    """SplitMix64's outputs number `places`, from 0, of generators with these seeds; both of at least one dimension."""
    found = seeds + (places + np.uint64(1)) * np.uint64(STEP)
    found ^= found >> np.uint64(30)
    found *= np.uint64(0xBF58476D1CE4E5B9)
    found ^= found >> np.uint64(27)
    found *= np.uint64(0x94D049BB133111EB)
    found ^= found >> np.uint64(31)
    return found


def unit(bits: UInt64[np.ndarray, "*n"]) -> Float64[np.ndarray, "*n"]:
    """64 random bits each as a number in [0, 1), a multiple of 2^-53."""
    return (bits >> np.uint64(11)) * 2.0**-53
