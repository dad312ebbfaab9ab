"""Approximate joint sampling (ADJUST): several tokens of a forward, drawn one after the other through a small trained layer.

Enabling Approximate Joint Sampling in Diffusion LMs, 2025, arXiv 2509.22738, and the authors' code.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from decodery._lazy import torch
from decodery.diffusion.base import Claim, StepwiseMethod
from decodery.diffusion.laws import Laws, descending
from decodery.diffusion.loop import Denoising
from decodery.diffusion.masked_diffusion import MaskedDiffusionDecoding
from decodery.diffusion.unmasking.base import Asking, CanvasStep, Commit
from decodery.diffusion.unmasking.dream import LAST_TIME, share
from decodery.diffusion.unmasking.llada import Quota
from decodery.engine.method import Decoding, Exactness, parameter
from decodery.engine.needs import MASKED_POSITIONS, Artifact, Requirement
from decodery.errors import BadParameter, MethodUnavailable
from decodery.models.forward import POST_NORM, Forward

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.diffusion.approximate_joint_sampling.layer import SamplerNetwork, TrainedLayer
    from decodery.diffusion.canvas import Canvas
    from decodery.diffusion.state import Plan
    from decodery.engine.request import Request
    from decodery.models.forward import Scores

log = logging.getLogger("decodery")

LAYER = "sampler layer"
"""Its name among the networks of a reply's statistics."""


@dataclass(frozen=True)
class StepSizes:
    """How many tokens a step draws: always `tokens`, or, where that is None, what the grid of times says. most: never more than
    these, since the layer has not learned to go further; None: as many as asked."""

    tokens: int | None
    most: int | None

    def at(self, step: CanvasStep, masked: int) -> int:
        """Of a step with `masked` masked offsets in its block."""
        wanted = self.tokens
        if wanted is None:
            last = step.in_block >= step.planned - 1
            wanted = masked if last else int(masked * share(step.in_block, step.planned, LAST_TIME))
        if self.most is not None and self.most < wanted:
            log.info("approximate-joint-sampling: %d tokens in place of %d, for which no layer is", self.most, wanted)
            wanted = self.most
        return min(wanted, masked)


class JointDenoising(Denoising):
    """A canvas whose steps draw one token after the other. sampler: what tells the laws after each of them; None: they stay
    those of the forward, but for what a constraint takes."""

    def __init__(self, request: Request, plan: Plan, sizes: StepSizes, sampler: SamplerNetwork | None):
        super().__init__(request, plan)
        self.sizes, self.sampler = sizes, sampler
        if sampler is not None:
            self.taps = (POST_NORM,)
        self.rows = torch.empty(0)
        """What enters the head at each position of prompt and canvas, [length, width], as the last forwards left it."""
        self._drawn_by: dict[int, Tensor] = {}

    def keep_rows(self, rows: range, answers: Sequence[Scores]) -> None:
        if not self.taps:
            return
        new = self.guided([answer.hidden[POST_NORM] for answer in answers]).float()
        if not len(self.rows):
            self.rows = new.clone()
        else:
            self.rows[rows.start : rows.stop] = new

    def choose(self, laws: Laws) -> Asking[Commit]:
        laws = laws.within(self.state.start, self.state.end)
        step = self.state.step()
        count, trial = self.sizes.at(step, len(laws)), self.canvas.copy()
        drawn: dict[int, int] = {}
        rows = torch.cat((self.rows[:1], self.rows[:-1])) if self.model.shift else self.rows
        while len(drawn) < count:
            if drawn:
                rows, laws = yield from self._after(trial, rows, laws)
            place = descending(laws.rank("entropy", filtered=True))[0]  # before its token is drawn
            offset, [token] = laws.offsets[place], laws.draw([place])
            trial.fill([offset], [token], step.number)
            drawn[offset] = token
            self._drawn_by[offset] = laws.scores[place]
        return Commit(tuple(drawn), tuple(drawn.values()))

    def _after(self, trial: Canvas, rows: Tensor, laws: Laws) -> Asking[tuple[Tensor, Laws]]:
        """Rows and laws after one more token. laws: those it was drawn from."""
        left = [place for place, offset in enumerate(laws.offsets) if trial.step_of[offset] < 0]
        offsets = [laws.offsets[place] for place in left]
        if self.sampler is None:
            return rows, self.held(trial, offsets)(laws.scores[left])
        embedded = self.request.host.network.embed(torch.tensor(trial.tokens)).to(rows.device, rows.dtype)
        scores = yield Forward(
            self.sampler.new_sequence(),
            torch.cat((embedded, rows), dim=-1),
            logits=[trial.prompt + offset for offset in offsets],
            taps=(POST_NORM,),
        )
        return scores.hidden[POST_NORM], self.held(trial, offsets)(scores.logits)

    def fill(self, commit: Commit, laws: Laws | None = None) -> None:
        if self.request.reads_rows:
            self.canvas.rows.update(self._drawn_by)
        self._drawn_by = {}
        super().fill(commit)


@dataclass(frozen=True)
class ApproximateJointSampling(StepwiseMethod):
    """Draw several tokens of a forward one after the other: a small trained layer tells after each of them what the model would
    say next. With one token per step it is exact sampling."""

    name: ClassVar[str] = "approximate-joint-sampling"
    title: ClassVar[str] = "Approximate joint sampling"
    paper: ClassVar[str] = "Enabling Approximate Joint Sampling in Diffusion LMs (ADJUST), 2025, arXiv 2509.22738"
    exactness: ClassVar[Exactness] = Exactness.APPROXIMATE
    example: ClassVar[str] = "approximate-joint-sampling(layer=off)"
    needs: ClassVar[tuple[Requirement, ...]] = (
        MASKED_POSITIONS,
        Artifact("a sampler layer trained for the model"),
    )

    tokens_per_step: int = parameter(
        2, "tokens drawn after each forward, at most one more than the layer's depth", low=1, only={"steps": None}
    )
    steps: int | None = parameter(
        None, "steps for the whole canvas, sized by Dream's grid of times", low=1, auto="tokens_per_step decides"
    )
    layer: str = parameter(
        "auto",
        "folder of the trained layer; auto: one that ships for the model; off: none, all tokens of a step by its forward alone",
        names="file",
    )

    def block(self, length: int) -> int:
        return min(self.block_length or length, length)

    @property
    def needs_layer(self) -> bool:
        """Whether a step may draw a second token, and by a layer."""
        return self.layer != "off" and (self.steps is not None or self.tokens_per_step > 1)

    def admit(self, request: Request) -> None:
        super().admit(request)
        if not self.needs_layer:
            return
        most = self.trained(request).depth + 1
        if self.steps is None and self.tokens_per_step > most:
            raise BadParameter(
                f"{self.name}: the layer was trained for {most} tokens per step at most, not for {self.tokens_per_step}."
            )

    def trained(self, request: Request) -> TrainedLayer:
        """The layer, read once. Raises MethodUnavailable where it is not there, or is another model's."""
        from decodery.diffusion.approximate_joint_sampling.layer import TrainedLayer, shipped

        network = request.host.network
        fingerprint = network.fingerprint()

        def read() -> TrainedLayer:
            folder = shipped(fingerprint) if self.layer == "auto" else Path(self.layer).expanduser()
            if folder is None:
                raise MethodUnavailable(
                    f"{self.name}: no sampler layer ships for {network.name}; decodery train sampler-layer makes one, and "
                    "layer names its folder."
                )
            return TrainedLayer.read(folder)

        found = request.remember((LAYER, self.layer, fingerprint), read, everywhere=True)
        if found.fingerprint != fingerprint:
            raise MethodUnavailable(
                f"{self.name}: the layer in {self.layer} was trained for the model {found.fingerprint}, and {network.name} is "
                f"{fingerprint}."
            )
        return found

    def sampler(self, request: Request) -> SamplerNetwork | None:
        """What tells the laws after a further token; None where none is needed."""
        if not self.needs_layer:
            return None
        from decodery.diffusion.approximate_joint_sampling.layer import SamplerNetwork

        network, trained = request.host.network, self.trained(request)

        def make() -> SamplerNetwork:
            module = trained.module.to(network.device)
            head = network.head(normed=False)
            return SamplerNetwork(module, module.shape.width, head, network.vocabulary, LAYER)

        return request.remember(("sampler network", self.layer, trained.fingerprint), make, everywhere=True)

    def most(self, request: Request) -> int | None:
        """The most tokens of a step; None: as many as asked."""
        return self.trained(request).depth + 1 if self.needs_layer else None

    def unmasking(self, request: Request) -> Quota:
        """What fills the canvas where no step draws a second token; `JointDenoising` chooses in its place."""
        return Quota("entropy", tokens=1)

    def decode(self, request: Request) -> Decoding:
        sizes = StepSizes(self.tokens_per_step if self.steps is None else None, self.most(request))
        yield from JointDenoising(request, self.plan(request), sizes, self.sampler(request)).run()

    def claims(self) -> tuple[Claim, ...]:
        one = self.varied(tokens_per_step=1, steps=None)
        canvas = {**one.canvas_parameters(), "block_length": self.block_length or WHOLE}
        plain = MaskedDiffusionDecoding(value_independent=True, **canvas)
        exact = one.varied(cache="none", cfg_scale=0.0)
        return (
            Claim("one token per step is drawing one by one, where the law has the lowest entropy", one, plain),
            Claim("the same at a temperature", one, plain, temperature=1.0),
            Claim("one token per step is exact sampling", exact),
        )


WHOLE = 1 << 30
"""A block length that no canvas exceeds."""
