"""Draws that follow from the key of a watermark; `sampling/watermarks/keys.py` says which there are.

A sequence key begins at a random entry, which follows from the seed of the request and not from the key, so that texts under
one key do not begin alike. The draw of place t of an output is a function of the law and of entry (begin + t) mod length,
whatever was drafted, batched or shared, so speculation that verifies by drawing gives the very tokens of plain decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from decodery._lazy import torch
from decodery.errors import Refused
from decodery.sampling.chance.base import DrawnSample, Source, refuse_other_draws
from decodery.sampling.chance.keyed import Keyed
from decodery.sampling.noise import Chance, Index, Noise, Stage, fastest, inverse
from decodery.sampling.watermarks.keys import ContextKey, ExponentialKey, InverseKey, SequenceKey, WatermarkKey

if TYPE_CHECKING:
    from torch import Tensor


class SequenceChance:
    """Draws of one text by a sequence key. prompt: where the output begins; begin: the entry of its first token; own: for
    decisions of steps of the law, which nobody has to find again."""

    def __init__(self, source: Watermarked, prompt: int, begin: int, own: Noise):
        assert isinstance(source.key, SequenceKey)
        self._source, self._key, self._prompt, self._begin, self._own = source, source.key, prompt, begin, own

    def choose(
        self, probabilities: Tensor, position: int, stage: Stage, index: Index = 0, path: Sequence[int] = ()
    ) -> int:
        """Raises Refused for draws other than the target's tokens, and beyond the end of the key."""
        if stage is Stage.LAW:
            return self._own.choose(probabilities, position, stage, index)
        if stage is not Stage.TARGET or index != 0:
            raise refuse_other_draws(self._source, f"draws for {stage.name.lower()}")
        place = position - self._prompt
        if not 0 <= place < self._key.length:
            raise Refused(f"the watermark has {self._key.length} entries, and none for token {place + 1} of a text.")
        entry = (self._begin + place) % self._key.length
        if isinstance(self._key, ExponentialKey):
            return fastest(probabilities.log(), torch.from_numpy(self._key.row(entry)))
        assert isinstance(self._key, InverseKey)
        order = self._key.order()
        shuffled = probabilities.detach().cpu()[torch.from_numpy(order)]
        return int(order[inverse(shuffled, self._key.number(entry))[0]])

    def race(self, log_weights: Tensor, position: int, stage: Stage, index: Index = 0, path: Sequence[int] = ()) -> int:
        """As `choose`, of log weights."""
        return self.choose(log_weights.double().softmax(-1), position, stage, index, path)

    def accept(self, probability: float, position: int, index: Index = 0) -> bool:
        """Raises Refused."""
        raise refuse_other_draws(self._source, "decisions on drafts")

    def fork(self, text: Sequence[int]) -> SequenceChance:
        return self


@dataclass(frozen=True)
class Watermarked(Source):
    """The draws of a key that is in the draws."""

    key: WatermarkKey

    name = "watermark"
    summary = "Draws that follow from the key of a watermark."
    by_name: ClassVar[bool] = False
    target_only = "the mark is in the target's own tokens, drawn one by one"
    plain_only = "the mark is found where every token was drawn as plain sampling draws it"

    def chance(self, sample: DrawnSample) -> Chance:
        if isinstance(self.key, ContextKey):
            return Keyed(self.key.key, self.key.window).chance(sample)
        assert isinstance(self.key, SequenceKey)
        own = Noise(sample.seed, sample.number)
        # The prompt is a part of the address: requests with the same seed do not all begin at one entry.
        share = own.uniform(sample.prompt, Stage.TARGET, ("watermark", *sample.text[: sample.prompt]))
        return SequenceChance(self, sample.prompt, int(share * self.key.length), own)

    def refuses_samples(self, count: int) -> str | None:
        return Keyed().refuses_samples(count) if isinstance(self.key, ContextKey) else None
