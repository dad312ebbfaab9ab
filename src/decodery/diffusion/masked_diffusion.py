"""The base decoders of masked-diffusion models under one name: the rules of LLaDA, Dream, MDLM and Fast-dLLM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from decodery.diffusion.base import Claim, StepwiseMethod
from decodery.diffusion.laws import RANKS
from decodery.diffusion.loop import model_of
from decodery.diffusion.unmasking import dream
from decodery.diffusion.unmasking.fast_dllm import Factor, Threshold
from decodery.diffusion.unmasking.llada import Quota
from decodery.diffusion.unmasking.mdlm import Ancestral
from decodery.engine.method import Exactness, parameter
from decodery.errors import BadParameter

if TYPE_CHECKING:
    from decodery.diffusion.unmasking.base import Rule
    from decodery.engine.request import Request

WITHOUT_BLOCKS = (*dream.ALGORITHMS, "ancestral")
"""Rules published without blocks."""
WITH_QUOTA = ("low_confidence", "random")
RULES = ("low_confidence", "random", "threshold", "factor", *WITHOUT_BLOCKS)
BY_LAW = ("low_confidence", "threshold", "factor")
"""Rules that can choose positions by their laws alone, if they are told to."""


@dataclass(frozen=True)
class MaskedDiffusionDecoding(StepwiseMethod):
    """Fill a canvas of masks with a bidirectional model: by default one token per step, the surest first, in blocks."""

    name: ClassVar[str] = "masked-diffusion"
    title: ClassVar[str] = "Masked-diffusion decoding"
    paper: ClassVar[str] = (
        "Nie et al., Large Language Diffusion Models, 2025, arXiv 2502.09992; rules also of arXiv 2508.15487, 2406.07524 "
        "and 2505.22618"
    )
    exactness: ClassVar[Exactness] = Exactness.APPROXIMATE

    rule: str = parameter("low_confidence", "which masked positions are filled in a step", choices=RULES)
    steps: int | None = parameter(
        None,
        "steps for the whole canvas",
        low=1,
        auto="one per position",
        only={"rule": (*WITH_QUOTA, *WITHOUT_BLOCKS)},
    )
    value_independent: bool = parameter(
        False,
        "positions are chosen by their law and not by the token drawn from it: exact at one token per step",
        only={"rule": BY_LAW},
    )
    rank: str = parameter(
        "entropy",
        "what positions are ranked by",
        choices=RANKS,
        only={"rule": "low_confidence", "value_independent": True},
    )
    threshold: float = parameter(
        0.9, "confidence at which a token is filled in; above 1: one per step", low=0.0, only={"rule": "threshold"}
    )
    factor: float = parameter(
        1.0, "of the rule factor; towards 0: one token per step", low=0.0, only={"rule": "factor"}
    )
    tokens_per_step: int | None = parameter(
        None, "a fixed number of tokens per step", low=1, auto="as steps say", only={"rule": WITH_QUOTA, "steps": None}
    )
    alg_temp: float = parameter(0.0, "temperature of the choice of positions", low=0.0, only={"rule": dream.RANKED})
    end_tokens: str = parameter(
        "free",
        "end tokens are free, come last (of the rule low_confidence), or are banned",
        choices=("free", "last", "banned"),
    )

    def check(self) -> None:
        if self.end_tokens == "last" and self.rule != "low_confidence":
            raise BadParameter(f"{self.name}: end_tokens=last does something only with rule=low_confidence.")

    def block(self, length: int) -> int:
        if self.block_length is None and self.rule in WITHOUT_BLOCKS:
            return length
        return super().block(length)

    def forbidden(self, request: Request) -> tuple[int, ...]:
        return model_of(request).end_token_ids if self.end_tokens == "banned" else ()

    def claims(self) -> tuple[Claim, ...]:
        one_by_one = self.varied(rule="low_confidence", value_independent=False, steps=None, end_tokens="free")
        exact = one_by_one.varied(value_independent=True, cache="none", cfg_scale=0.0)
        return (
            Claim(
                "a threshold above 1 is one token per step",
                one_by_one.varied(rule="threshold", threshold=1.01),
                one_by_one,
            ),
            Claim("a factor of 0 is one token per step", one_by_one.varied(rule="factor", factor=0.0), one_by_one),
            Claim("one token per step, at a position chosen by its law alone, is exact sampling", exact),
        )

    def unmasking(self, request: Request) -> Rule:
        if self.rule == "threshold":
            return Threshold(self.value_independent, self.threshold)
        if self.rule == "factor":
            return Factor(self.value_independent, self.factor)
        if self.rule == "ancestral":
            return Ancestral()
        if self.rule in dream.ALGORITHMS:
            return dream.TimeGrid(self.rule, self.alg_temp)
        late = model_of(request).end_token_ids if self.end_tokens == "last" else ()
        if self.rule == "random":
            return Quota("random", tokens=self.tokens_per_step)
        return Quota(self.rank if self.value_independent else "confidence", late, self.tokens_per_step)
