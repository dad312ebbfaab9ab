"""What all diffusion methods share: parameters of canvas, blocks, guidance and cache, and what they refuse."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from decodery.diffusion.blocks import BlockSchedule, FixedBlocks
from decodery.diffusion.caches import BlockPrefixCache, CacheRegime, DualCache, EveryRow
from decodery.diffusion.completion import Completion
from decodery.diffusion.freecache.cache import FREEZE, FreeCache
from decodery.diffusion.loop import CONSTRAINT, Denoising, model_of
from decodery.diffusion.state import Plan
from decodery.engine.method import Decoding, Method, parameter
from decodery.engine.needs import MASKED_POSITIONS, Requirement
from decodery.engine.parameters import not_one_of
from decodery.errors import BadParameter, BadPrompt, BadSetting, Refused
from decodery.sampling.steps import steps

if TYPE_CHECKING:
    from decodery.diffusion.unmasking.base import Rule
    from decodery.engine.request import Request
    from decodery.models.scorer import Scorer
    from decodery.sampling.structured.grammars import Compiled

BLOCK = 32
"""Published block length."""
NO_PREFIX = "a canvas is not filled from left to right, so a position has no prefix of its own to count"
REGIMES: dict[str, type[CacheRegime]] = {"none": EveryRow, "prefix": BlockPrefixCache, "dual": DualCache}


@dataclass(frozen=True)
class Claim:
    """Something a method says of itself, or of a variant of it, that an experiment can decide.

    says: in words. method: that which is run. same_as: the decoder whose canvas, and order of filling it, are to be the same;
    None: the law is to be the joint law of the model. temperature: of the comparison.
    """

    says: str
    method: Method
    same_as: Method | None = None
    temperature: float = 0.0


@dataclass(frozen=True)
class DiffusionMethod(Method):
    """Base of methods that fill a canvas. A subclass gives `unmasking`, and may give blocks and a cache of its own."""

    family: ClassVar[str] = "diffusion"
    needs: ClassVar[tuple[Requirement, ...]] = (MASKED_POSITIONS,)
    refuses: ClassVar[Mapping[str, str]] = {
        **{
            step.settings()[0].name: NO_PREFIX
            for step in sorted(steps().values(), key=lambda step: step.place)
            if step.reads_prefix and not step.counts_only and step.name != CONSTRAINT
        },
        "target": "a canvas has guidance of its own, cfg_scale",
    }

    gen_length: int | None = parameter(
        None, "positions of the canvas", low=1, auto="the model's canvas, at most max_new_tokens"
    )
    block_length: int | None = parameter(
        None, "positions of a block; blocks are filled from left to right", low=1, auto="32, at most the canvas"
    )
    cache: str = parameter("none", "which keys and values are reused", choices=(*REGIMES, "freecache"))
    freeze: str = parameter(FREEZE[0], "when a finished block is frozen", choices=FREEZE, only={"cache": "freecache"})
    shrink: bool = parameter(False, "end tokens at the canvas's end are frozen too", only={"cache": "freecache"})
    cfg_scale: float = parameter(0.0, "classifier-free guidance; above 0 every step costs two forwards", low=0.0)
    early_stop: str = parameter("block", "when an end token ends the decoding", choices=("block", "prefix", "never"))
    shift_row: str = parameter(
        "carry",
        "the row before a block of a shifted model, where the cache spares it",
        choices=("carry", "compute"),
        only={"cache": not_one_of("none")},
    )

    def canvas_parameters(self) -> dict[str, Any]:
        """The values of the parameters above, which every method of canvases has."""
        return {item.name: getattr(self, item.name) for item in DiffusionMethod.parameters()}

    def planned(self, length: int) -> int:
        """Steps for a whole canvas of `length`, for rules that plan them."""
        return length

    @abstractmethod
    def unmasking(self, request: Request) -> Rule:
        """The unmasking rule of a request."""

    def block(self, length: int) -> int:
        """The block length on a canvas of `length`."""
        return min(self.block_length or BLOCK, length)

    def blocks(self, request: Request, length: int) -> BlockSchedule:
        """The block schedule of a request with a canvas of `length`."""
        return FixedBlocks(self.block(length))

    def regime(self, request: Request) -> CacheRegime:
        """A fresh cache regime."""
        if self.cache == "freecache":
            return FreeCache(self.freeze, self.shrink)
        return REGIMES[self.cache]()

    def forbidden(self, request: Request) -> tuple[int, ...]:
        """Tokens that no law may give, beside the reserved ones."""
        return ()

    def length(self, request: Request) -> int:
        """The length of a request's canvas."""
        return self.gen_length or min(model_of(request).canvas, request.settings.max_new_tokens)

    def plan(self, request: Request) -> Plan:
        """How a request's canvas is decoded."""
        length = self.length(request)
        return Plan(
            rule=self.unmasking(request),
            length=length,
            steps=self.planned(length),
            blocks=self.blocks(request, length),
            cache=self.regime(request),
            cfg_scale=self.cfg_scale,
            early_stop=self.early_stop,
            shift_row=self.shift_row,
            forbidden=self.forbidden(request),
            completion=self.completion(request),
        )

    def completion(self, request: Request) -> Completion | None:
        """What a request's canvas is held to; None: any text. Raises Refused where no canvas can be, and BadSetting where no
        text fits on this one."""
        settings, model = request.settings, model_of(request)
        constraint: Compiled | None = settings.structured_outputs
        if constraint is None:
            return None
        banned = {*model.reserved, *self.forbidden(request)}
        if settings.allowed_token_ids is not None:
            banned |= {*range(request.host.network.vocabulary)} - {*settings.allowed_token_ids}
        length = self.length(request)
        return Completion(
            constraint.automaton,
            min(length, settings.max_new_tokens),
            settings.min_new_tokens,
            ends=request.stop_ids,
            pads=model.filling_token_ids,
            banned=banned,
        )

    def admit(self, request: Request) -> None:
        length, prompt, settings = self.length(request), len(request.prompt), request.settings
        if self.shift_row != "carry" and not model_of(request).shift:
            raise BadParameter(
                f"{self.name}: shift_row={self.shift_row} does something only with a shifted model, and "
                f"{request.host.network.name} is none."
            )
        if prompt + length > request.host.network.context:
            raise BadPrompt(
                f"the prompt has {prompt} tokens and the canvas {length}, together {prompt + length}, but "
                f"{request.host.network.name} has a context of {request.host.network.context}."
            )
        completion = self.completion(request)
        if completion is not None:
            request.statistics.details["constraint"] = completion.told
        if length < settings.min_new_tokens:
            raise BadSetting(
                f"min_new_tokens is {settings.min_new_tokens}, but the canvas has only {length} positions."
            )
        if settings.echo and settings.logprobs is not None:
            raise Refused(
                f"{self.name} does not run with echo and logprobs together: a canvas is filled behind a given prompt, whose "
                "own tokens are never scored."
            )

    def caches(self, request: Request) -> list[tuple[Scorer, int]]:
        rows = len(request.prompt) + self.length(request)
        return [(request.host.network, rows)] * (2 if self.cfg_scale else 1)

    def decode(self, request: Request) -> Decoding:
        yield from Denoising(request, self.plan(request)).run()

    def claims(self) -> tuple[Claim, ...]:
        """What this method says of itself, for `decodery check` to decide by experiment."""
        return ()


@dataclass(frozen=True)
class StepwiseMethod(DiffusionMethod):
    """Base of methods that can be told how many steps a canvas takes."""

    steps: int | None = parameter(None, "steps for the whole canvas", low=1, auto="one per position")

    def planned(self, length: int) -> int:
        return self.steps or length

    def check_steps(self, length: int) -> None:
        """Raise BadParameter where the steps that were asked for cannot be shared out among the blocks of a canvas."""
        if self.steps is not None:
            block = self.block(length)
            if length % block or self.steps % (length // block):
                raise BadParameter(
                    f"{self.name}: {self.steps} steps do not divide into a canvas of {length} with blocks of {block}; "
                    "the block length must divide the canvas, and the number of blocks the steps."
                )

    def admit(self, request: Request) -> None:
        super().admit(request)
        self.check_steps(self.length(request))
