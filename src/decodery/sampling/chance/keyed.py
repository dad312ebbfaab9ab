"""Draws that follow from a key and the tokens before them, or their position: what watermarks are made of.

Who knows the key can compute every draw again from the text alone (`Keyed.address`). Aaronson 2022 (races by context);
Kirchenbauer et al. 2023, arXiv 2301.10226 (context windows); Kuditipudi et al. 2023, arXiv 2307.15593 (by position).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from decodery.errors import Refused
from decodery.sampling.chance.base import DrawnSample, Source, refuse_other_draws
from decodery.sampling.noise import Chance, Index, Noise, Stage, fastest, inverse, unrolled
from decodery.sampling.prefix import Joined
from decodery.sampling.settings import Flag, Whole, setting

if TYPE_CHECKING:
    from torch import Tensor


class KeyedNoise(Noise):
    """Noise of a key, whose addresses are what stands before a position. text: the committed tokens; own: for decisions of
    steps of the law, which nobody has to find again."""

    by_mass = False

    def __init__(self, source: Keyed, text: Sequence[int], prompt: int, own: Noise):
        super().__init__(source.key)
        self._source, self._text, self._prompt, self._own = source, text, prompt, own

    def choose(
        self, probabilities: Tensor, position: int, stage: Stage, index: Index = 0, path: Sequence[int] = ()
    ) -> int:
        """Raises Refused for draws other than the target's tokens, and where the tokens before the position are not all
        there."""
        if stage is Stage.LAW:
            return self._own.choose(probabilities, position, stage, index)
        if stage is not Stage.TARGET or index != 0:
            raise refuse_other_draws(self._source, f"draws for {stage.name.lower()}")
        before = Joined(self._text, path)
        if len(before) != position:
            raise Refused(
                f"chance {self._source.name} needs the {position} tokens before a draw, and was told {len(before)}."
            )
        address = self._source.address(before, self._prompt)
        if self._source.race:
            key = self.key(address[0], stage, address[1])
            self.note(position, stage, index, key)
            return fastest(probabilities.log(), unrolled(key, len(probabilities)))
        number = self.uniform(address[0], stage, address[1])
        self.note(position, stage, index, number)
        return inverse(probabilities, number)[0]

    def race(self, log_weights: Tensor, position: int, stage: Stage, index: Index = 0, path: Sequence[int] = ()) -> int:
        """As `choose`, of log weights."""
        return self.choose(log_weights.double().softmax(-1), position, stage, index, path)

    def accept(self, probability: float, position: int, index: Index = 0) -> bool:
        """Raises Refused."""
        raise refuse_other_draws(self._source, "decisions on drafts")

    def fork(self, text: Sequence[int]) -> Self:
        other = type(self)(self._source, text, self._prompt, self._own)
        other.record = self.record
        return other


@dataclass(frozen=True)
class Keyed(Source):
    """Draws as a function of a key and of the text or the position."""

    key: int = setting(0, Whole(0, 2**63 - 1), "The secret number that all draws follow from.")
    window: int = setting(4, Whole(0, 1024), "So many last tokens decide a draw; 0: its place in the output does.")
    race: bool = setting(True, Flag(), "By a Gumbel race; otherwise by inverse transform.")

    name = "keyed"
    summary = (
        "Draws follow from a key and the last tokens, or the place in the output, so that its owner finds them again."
    )
    target_only = "its owner finds the target's own draws again from the text, and no others"

    def chance(self, sample: DrawnSample) -> Chance:
        return KeyedNoise(self, sample.text, sample.prompt, Noise(sample.seed, sample.number))

    def refuses_samples(self, count: int) -> str | None:
        return "samples with the same key and text are all the same" if count > 1 else None

    def noise(self) -> Noise:
        """The noise that the draws are taken from: for those who look for them."""
        return Noise(self.key)

    def address(self, before: Sequence[int], prompt: int = 0) -> tuple[int, tuple[int | str, ...]]:
        """Position and index, within `noise()` and Stage.TARGET, of the draw after these tokens. prompt: how many of them
        are the prompt's, which matters where places in the output decide."""
        if self.window == 0:
            return len(before) - prompt, ("place",)
        return 0, ("context", *before[max(len(before) - self.window, 0) :])
