"""Guided diffusion: a small causal model says how far the tokens that a diffusion model drafts hang together.

FlashDLM, 2025, arXiv 2505.21467, section 3.3. The guide supplies no token. What is filled is the longest run of drafts that it
would have been content with, or one draft where it is content with none; so the canvas is filled strictly from left to right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from decodery.diffusion.base import Claim, DiffusionMethod
from decodery.diffusion.loop import Denoising, model_of
from decodery.diffusion.masked_diffusion import MaskedDiffusionDecoding
from decodery.diffusion.unmasking.base import Asking, CanvasStep, Commit, Rule
from decodery.engine.method import Decoding, Exactness, parameter
from decodery.engine.needs import MASKED_POSITIONS, Companion, Requirement
from decodery.engine.parameters import unused
from decodery.errors import BadPrompt, Refused
from decodery.models.forward import Forward, Rows
from decodery.models.kinds import Kind

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.diffusion.canvas import Canvas
    from decodery.diffusion.completion import Completion
    from decodery.diffusion.laws import Laws
    from decodery.engine.host import Host
    from decodery.engine.request import Request
    from decodery.models.scorer import Scorer
    from decodery.sampling.noise import Chance

GATES = ("deterministic", "topk", "relative", "threshold", "stochastic")


@dataclass(frozen=True)
class GuideGate:
    """Whether the guide is content with a drafted token.

    kind: "deterministic" where it is the guide's likeliest, "topk" where it is among the `top_k` likeliest, "relative" where it
    is at least `ratio` times as likely as the likeliest, "threshold" where it has at least this probability, "stochastic"
    with the probability min(1, guide's / diffusion model's). ends: tokens that end the text, to the diffusion model, and
    guide_ends: to the guide; any of these stands for any of those.
    """

    kind: str = "deterministic"
    top_k: int = 5
    ratio: float = 0.5
    threshold: float = 0.1
    ends: frozenset[int] = frozenset()
    guide_ends: frozenset[int] = frozenset()

    def accepts(self, row: Tensor, token: int, own: float, chance: Chance, position: int, step: int) -> bool:
        """row: the guide's raw scores [vocabulary]. own: log probability of the token to the diffusion model. position,
        step: the address of the draw."""
        meant = self.guide_ends if token in self.ends and self.guide_ends else {token}
        same = [other for other in meant if other < row.shape[0]]
        if not same:
            return False
        if self.kind in ("deterministic", "topk"):
            first = 1 if self.kind == "deterministic" else self.top_k
            return any(_rank(row, other) < first for other in same)
        law = row.double().softmax(-1)
        probability = float(law[same].sum())
        if self.kind == "relative":
            return probability >= self.ratio * float(law.max())
        if self.kind == "threshold":
            return probability >= self.threshold
        return chance.accept(min(1.0, probability / own) if own > 0 else 1.0, position, step)


def _rank(row: Tensor, token: int) -> int:
    """How many tokens come before this one; among equals the lowest id comes first."""
    return int((row > row[token]).sum()) + int((row[:token] == row[token]).sum())


class GuidedRule(Rule):
    """The rule of one request: it holds the guide's cache, which ends one token before the first mask whenever a round begins.

    chunk: drafts that the guide judges in one forward; it sees the next ones where it was content with all of these.
    """

    whole_canvas: ClassVar[bool] = True

    def __init__(self, request: Request, guide: Scorer, gate: GuideGate, chunk: int):
        self.request, self.gate, self.chunk = request, gate, chunk
        self.sequence = request.new_sequence(guide)
        self.canvas: Canvas | None = None
        """The canvas that is being filled; the method puts it here."""
        self.completion: Completion | None = None
        """What it is held to, likewise."""
        self.accepted: list[int] = []
        """Per round, how many drafts the guide was content with; where none, one was filled nevertheless."""
        request.statistics.details["accepted"] = self.accepted

    def choose(self, laws: Laws, step: CanvasStep) -> Asking[Commit]:
        assert self.canvas is not None
        if laws.offsets[0] != self.canvas.complete_until():
            raise ValueError("the first mask was not scored, and a guided canvas is filled from left to right")
        clean = self.canvas.tokens[: self.canvas.prompt + laws.offsets[0]]
        drafts = laws.draw(range(len(laws)), step.number + 1)  # what was rejected is drafted afresh
        if self.completion is not None:  # the guide judges what can stand together
            whole = Commit(tuple(laws.offsets), tuple(drafts))
            drafts = list(self.completion.settled(self.canvas, whole, laws).tokens)
        offsets, tokens = self._run(laws.offsets, drafts)
        if self.sequence.length < len(clean) - 1:  # the prompt
            yield Forward(self.sequence, clean[self.sequence.length : -1], logits=Rows.NONE)
        own = dict(zip(laws.offsets, laws.confidence(drafts).exp().tolist(), strict=True))
        accepted = yield from self._accepted(clean, offsets, tokens, own, step)
        self.accepted.append(accepted)
        length = max(accepted, 1)
        self.sequence.truncate(min(self.sequence.length, len(clean) + length - 1))
        filled = {
            offset: token for offset, token in zip(offsets[:length], tokens[:length], strict=True) if offset in own
        }
        return Commit(tuple(filled), tuple(filled.values()))

    def _run(self, masked: Sequence[int], drafts: Sequence[int]) -> tuple[list[int], list[int]]:
        """Offsets and tokens from the first mask on without a gap, up to the first that ends the text: the draft where an
        offset is masked, and what stands there where it is not."""
        assert self.canvas is not None
        drafted = dict(zip(masked, drafts, strict=True))
        offsets: list[int] = []
        tokens: list[int] = []
        for offset in range(masked[0], self.canvas.length):
            if offset not in drafted and self.canvas.step_of[offset] < 0:
                break  # not scored: behind the rows that the cache regime computes
            offsets.append(offset)
            tokens.append(drafted.get(offset, self.canvas.answer[offset]))
            if tokens[-1] in self.request.stop_ids:
                break
        return offsets, tokens

    def _accepted(
        self,
        clean: Sequence[int],
        offsets: Sequence[int],
        tokens: Sequence[int],
        own: dict[int, float],
        step: CanvasStep,
    ) -> Asking[int]:
        """How many of the run the guide is content with."""
        assert self.canvas is not None
        text, accepted = [*clean, *tokens], 0
        while accepted < len(tokens):
            until = min(accepted + self.chunk, len(tokens))
            pending = text[self.sequence.length : len(clean) + until - 1]
            asked = range(len(pending) - (until - accepted), len(pending))
            scores = yield Forward(self.sequence, pending, logits=list(asked))
            for row, place in zip(scores.logits, range(accepted, until), strict=True):
                offset = offsets[place]
                position = self.canvas.prompt + offset
                if offset in own and not self.gate.accepts(
                    row, tokens[place], own[offset], self.request.noise, position, step.number
                ):
                    return place
            accepted = until
        return accepted


@dataclass(frozen=True)
class GuidedDiffusion(DiffusionMethod):
    """Draft the whole canvas in one forward, let a small causal model read the draft, and fill it up to where that model
    would have gone on otherwise. All tokens are the diffusion model's."""

    name: ClassVar[str] = "guided-diffusion"
    title: ClassVar[str] = "Guided diffusion"
    paper: ClassVar[str] = "FlashDLM: efficient KV caching and guided diffusion, 2025, arXiv 2505.21467"
    exactness: ClassVar[Exactness] = Exactness.QUALITY_CHANGING
    needs: ClassVar[tuple[Requirement, ...]] = (
        MASKED_POSITIONS,
        Companion("guide", "a causal model with its tokenizer", Kind.NEXT_TOKEN, beside="diffusion-stories"),
    )

    cache: str = parameter(
        "freecache", "which keys and values are reused", choices=("none", "prefix", "dual", "freecache")
    )
    shrink: bool = unused(
        False
    )  # filled from left to right, a canvas has no end tokens at its end before it is complete
    early_stop: str = parameter("prefix", "when an end token ends the decoding", choices=("block", "prefix", "never"))
    guide: str = parameter("stories-twin", "the causal model that judges the drafts: a name or a folder")
    gate: str = parameter("deterministic", "when the guide is content with a draft", choices=GATES)
    top_k: int = parameter(5, "among how many of the guide's likeliest tokens", low=1, only={"gate": "topk"})
    ratio: float = parameter(0.5, "share of the guide's highest probability", low=0.0, only={"gate": "relative"})
    threshold: float = parameter(0.1, "least probability to the guide", low=0.0, only={"gate": "threshold"})
    chunk: int = parameter(32, "drafts that the guide judges in one forward", low=1)

    def admit(self, request: Request) -> None:
        super().admit(request)
        partner = request.host.companion(self.guide)
        request.remember(("guide", self.guide), lambda: self._check(request, partner), everywhere=True)
        guide = partner.network
        total = len(request.prompt) + self.length(request)
        if total > guide.context:
            raise BadPrompt(
                f"prompt and canvas have {total} tokens together, but the guide {self.guide} has a context of "
                f"{guide.context}."
            )
        if max(request.prompt) >= guide.vocabulary:
            raise BadPrompt(
                f"the prompt holds token {max(request.prompt)}, which the guide {self.guide} does not know."
            )

    def _check(self, request: Request, partner: Host) -> bool:
        """Raise Refused where this model cannot be the guide."""
        model, host = model_of(request), request.host
        special = {*model.reserved, *model.end_token_ids, *partner.stop_ids}
        for token in range(host.network.vocabulary):
            if token in special:
                continue
            theirs = None
            if token < partner.network.vocabulary:
                theirs = _written(partner, token)
            if _written(host, token) != theirs:
                raise Refused(
                    f"{self.name}: token {token} is {_written(host, token)!r} to {host.network.name} and "
                    f"{'nothing' if theirs is None else repr(theirs)} to {self.guide}; the guide needs the same tokenizer."
                )
        return True

    def caches(self, request: Request) -> list[tuple[Scorer, int]]:
        own = super().caches(request)
        return [*own, (request.host.companion(self.guide).network, own[0][1])]

    def unmasking(self, request: Request) -> GuidedRule:
        partner = request.host.companion(self.guide)
        ends, guide_ends = frozenset(model_of(request).end_token_ids), frozenset(partner.stop_ids)
        gate = GuideGate(self.gate, self.top_k, self.ratio, self.threshold, ends, guide_ends)
        return GuidedRule(request, partner.network, gate, self.chunk)

    def claims(self) -> tuple[Claim, ...]:
        never = self.varied(gate="relative", ratio=2.0, cache="none")
        plain = MaskedDiffusionDecoding(self.gen_length, 1, cfg_scale=self.cfg_scale)
        return (Claim("where the guide is never content, this is greedy decoding from left to right", never, plain),)

    def decode(self, request: Request) -> Decoding:
        plan = self.plan(request)
        denoising = Denoising(request, plan)
        assert isinstance(plan.rule, GuidedRule)
        plan.rule.canvas, plan.rule.completion = denoising.canvas, plan.completion
        yield from denoising.run()


def _written(model: Any, token: int) -> str | None:
    """How a model's tokenizer writes a token; None for one that it does not have."""
    tokenizer = model.tokenizer
    if token >= len(tokenizer):
        return None
    convert = getattr(tokenizer, "convert_ids_to_tokens", None)
    written: str | None = tokenizer.decode([token]) if convert is None else convert(token)
    return written
