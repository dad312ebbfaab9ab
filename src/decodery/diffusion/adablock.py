"""AdaBlock: a block ends where the model is about to write a delimiter, so that it covers one semantic step.

Lu et al., AdaBlock-dLLM: Semantic-Aware Diffusion LLM Inference via Adaptive Block Size, 2025, arXiv 2509.26432, and the
official code. Without a sure enough delimiter in the window, a block has its usual length.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from decodery.diffusion.base import BLOCK, Claim, DiffusionMethod, StepwiseMethod
from decodery.diffusion.blocks import BlockSchedule
from decodery.diffusion.laws import descending
from decodery.diffusion.masked_diffusion import MaskedDiffusionDecoding
from decodery.diffusion.wrapping import WrappingMethod
from decodery.engine.method import Exactness, parameter
from decodery.engine.parameters import Where
from decodery.engine.spelling import WrittenTokens
from decodery.errors import BadParameter

if TYPE_CHECKING:
    from decodery.diffusion.canvas import Canvas
    from decodery.diffusion.laws import Laws
    from decodery.engine.host import Host
    from decodery.engine.request import Request

SIGNS = {"newline": "\n", "comma": ",", "period": "."}
PUBLISHED = {
    "llada": (198,),
    "dream": (
        198, 271, 280, 319, 340, 382, 401, 532, 624, 630, 692, 698, 921, 1248, 1837, 1939, 2219, 2533, 3276, 3876, 4894,
        5267, 14750, 68327,
    ),
}  # fmt: skip
"""The token ids of the official code, by the tokenizer they belong to."""
THRESHOLD = 0.9
"""Published threshold of the rule that fills the blocks."""


@dataclass(frozen=True)
class DelimitedBlocks(BlockSchedule):
    """A block ends with the delimiter that is predicted with the highest confidence within the window, if that reaches
    `threshold`; otherwise after `fallback` positions.

    window: share of the canvas, at least one position; of what is generated so far with base "generated". drawn: the
    predicted token is the one that a rule draws at this step, and not the likeliest (the same in greedy decoding).
    """

    looks_ahead: ClassVar[bool] = True

    fallback: int
    delimiters: frozenset[int]
    threshold: float = 0.3
    window: float = 0.25
    base: str = "length"
    drawn: bool = True

    def end(self, canvas: Canvas, start: int, laws: Laws | None) -> int:
        assert laws is not None, "the schedule looks ahead"
        found = self.delimiter(canvas, start, laws)
        return min(start + self.fallback, canvas.length) if found is None else found + 1

    def delimiter(self, canvas: Canvas, start: int, laws: Laws) -> int | None:
        """The offset of the delimiter that ends the block; None where there is none."""
        if not self.delimiters or self.threshold > 1:
            return None
        width = max(1, int(self.window * (canvas.length if self.base == "length" else start)))
        ahead = laws.within(start, start + width)
        if not len(ahead):
            return None
        tokens = ahead.draw(range(len(ahead)), laws.number + 1) if self.drawn else ahead.best.tolist()
        confidence = ahead.confidence(tokens)
        candidates = [place for place, token in enumerate(tokens) if token in self.delimiters]
        if not candidates:
            return None
        surest = candidates[descending(confidence[candidates])[0]]
        if float(confidence[surest]) < (math.log(self.threshold) if self.threshold > 0 else -math.inf):
            return None
        return ahead.offsets[surest]


def delimiter_ids(host: Host, sign: str, match: str = "contains") -> frozenset[int]:
    """The tokens of a model's tokenizer whose text contains the sign, or (match "ends") ends with it; without the model's
    reserved and end tokens."""
    model = host.network.masked
    assert model is not None
    special = {*model.reserved, *model.end_token_ids}
    texts = ((token, text) for token, text in enumerate(WrittenTokens(host).written()) if token not in special)
    return frozenset(token for token, text in texts if (text.endswith(sign) if match == "ends" else sign in text))


@dataclass(frozen=True)
class AdaBlock(WrappingMethod):
    """Fill blocks that end at predicted line breaks, each with as many tokens per step as the model is sure of."""

    name: ClassVar[str] = "adablock"
    title: ClassVar[str] = "AdaBlock"
    paper: ClassVar[str] = (
        "Lu et al., AdaBlock-dLLM: Semantic-Aware Diffusion LLM Inference via Adaptive Block Size, 2025, arXiv 2509.26432"
    )
    exactness: ClassVar[Exactness] = Exactness.QUALITY_CHANGING

    sampler: str | None = parameter(
        None,
        "whose rule fills the blocks: a method such as localleap, in quotes if with parameters",
        auto="masked-diffusion with the rule threshold",
        names="method",
    )
    threshold: float | None = parameter(
        None, "confidence at which a token is filled in", low=0.0, auto="0.9", only={"sampler": None}
    )
    delimiter_threshold: float = parameter(
        0.3, "confidence of a delimiter that ends a block (0.5 for Dream); inf: never", low=0.0
    )
    delimiters: str | None = parameter(
        None,
        "what ends a block: newline, comma, period, llada, dream (published ids) or token ids, joined by +",
        auto="newline, where the tokenizer has one",
    )
    delimiter_match: str = parameter(
        "contains",
        "which tokens are delimiters: those that contain the sign, or end with it",
        choices=("contains", "ends"),
        only={"delimiters": Where(lambda given: bool({*(given or "newline").split("+")} & {*SIGNS}), "name a sign")},
    )
    window: float = parameter(0.25, "where a delimiter is looked for, as a share of the canvas", low=0.0, high=1.0)
    window_base: str = parameter(
        "length",
        "of what the window is a share: the canvas, or what is generated so far",
        choices=("length", "generated"),
    )
    boundary: str = parameter(
        "drawn",
        "which tokens may be delimiters at a temperature: those drawn, or the likeliest",
        choices=("drawn", "likeliest"),
    )

    def default_sampler(self) -> DiffusionMethod:
        threshold = THRESHOLD if self.threshold is None else self.threshold
        return MaskedDiffusionDecoding(rule="threshold", threshold=threshold)

    def check(self) -> None:
        for part in self._parts():
            if part not in SIGNS and part not in PUBLISHED and not part.isdecimal():
                raise BadParameter(
                    f"adablock: delimiters are {', '.join((*SIGNS, *PUBLISHED))} or token ids, joined by +, not {part!r}."
                )

    def _parts(self) -> list[str]:
        return [part.strip() for part in (self.delimiters or "newline").split("+")]

    def delimiter_set(self, request: Request) -> frozenset[int]:
        """The delimiters' token ids. Raises BadParameter where a named sign has none, or an id is no token."""
        host, ids = request.host, set[int]()
        for part in self._parts():
            if part in SIGNS:
                make = functools.partial(delimiter_ids, host, SIGNS[part], self.delimiter_match)
                found = request.remember(("adablock", part, self.delimiter_match), make, everywhere=True)
                if not found and self.delimiters is not None:
                    raise BadParameter(
                        f"adablock: no token of {host.network.name} has a {part}; name other delimiters."
                    )
            else:
                found = frozenset(PUBLISHED.get(part) or (int(part),))
                if max(found) >= host.network.vocabulary:
                    raise BadParameter(f"adablock: {host.network.name} has no token {max(found)}, named by delimiters.")
            ids |= found
        return frozenset(ids)

    def claims(self) -> tuple[Claim, ...]:
        fixed = self.inner().varied(block_length=self.block_length or BLOCK)
        never = self.varied(delimiter_threshold=math.inf)
        return (
            Claim("without sure delimiters its blocks are fixed", never, fixed),
            Claim("the same at a temperature", never, fixed, temperature=1.0),
        )

    def block(self, length: int) -> int:
        return DiffusionMethod.block(self, length)

    def blocks(self, request: Request, length: int) -> DelimitedBlocks:
        return DelimitedBlocks(
            self.block(length),
            self.delimiter_set(request),
            self.delimiter_threshold,
            self.window,
            self.window_base,
            self.boundary == "drawn",
        )

    def wrapped(self, inner: DiffusionMethod) -> DiffusionMethod:
        found = super().wrapped(inner)
        if self.steps is not None and not (isinstance(found, StepwiseMethod) and found.steps):
            raise BadParameter(
                f"{self.name}: steps={self.steps} does nothing, since its sampler {inner.spec()} plans none."
            )
        return found

    def admit(self, request: Request) -> None:
        DiffusionMethod.admit(self, request)
        self.delimiter_set(request)
