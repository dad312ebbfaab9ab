"""Insertion language models: a text grows by one token per forward, at the place that the model chooses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from decodery._lazy import torch
from decodery.engine.method import Decoding, Exactness, Method, parameter
from decodery.engine.needs import INSERTIONS, Requirement
from decodery.errors import BadPrompt, BadSetting, Refused
from decodery.insertion.cells import GapCells
from decodery.insertion.growing_text import GrowingText
from decodery.models.forward import Attend, Forward, Rows, Slots
from decodery.sampling.steps import steps

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.engine.request import Request
    from decodery.models.insertions import Insertions
    from decodery.models.scorer import Scorer

NO_PREFIX = "a text that grows anywhere has no prefix that stays as it is"
FREE, RIGHTMOST = "free", "rightmost"
OTHERS = -1e9
"""The score of tokens that are not those given; finite, so that settings which forbid the given one leave a law."""


@dataclass(frozen=True)
class InsertionLanguageModels(Method):
    """Insert one token per forward into any open gap, until the model says that nothing is missing."""

    name: ClassVar[str] = "insertion-language-models"
    title: ClassVar[str] = "Insertion language models"
    paper: ClassVar[str] = (
        "Patel et al., Insertion Language Models: Sequence Generation with Arbitrary-Position Insertions, 2025, "
        "arXiv 2505.05755"
    )
    exactness: ClassVar[Exactness] = Exactness.QUALITY_CHANGING
    family: ClassVar[str] = "insertion"
    needs: ClassVar[tuple[Requirement, ...]] = (INSERTIONS,)
    refuses: ClassVar[Mapping[str, str]] = {
        **{
            step.settings()[0].name: NO_PREFIX
            for step in sorted(steps().values(), key=lambda step: step.place)
            if step.reads_prefix and not step.counts_only
        },
        "target": "an insertion language model has a head of its own for gaps",
    }

    stop_threshold: float | None = parameter(
        None, "probability of a complete text at which it is over", low=0.0, high=1.0, auto="the model's"
    )
    gap_top_k: int | None = parameter(
        None,
        "the gap is chosen first, among so many likeliest ones, then its token",
        low=1,
        auto="gap and token are drawn together",
    )
    gaps: str = parameter(FREE, "which open gaps are filled: any, or only the rightmost", choices=(FREE, RIGHTMOST))
    max_steps: int | None = parameter(None, "insertions at most", low=1, auto="max_new_tokens")
    max_length: int | None = parameter(
        None, "slots of the text at most, those of the layout and the prompt counted", low=3, auto="the model's"
    )
    force_first: bool | None = parameter(
        None, "the first insertion is made whatever the model says of completeness", auto="in prompts with holes"
    )

    def admit(self, request: Request) -> None:
        model, settings = model_of(request), request.settings
        text = GrowingText(request.prompt, model)
        longest = self._longest(request)
        if len(text) >= longest:
            raise BadPrompt(
                f"the prompt takes {len(text)} slots, and a text of {request.host.network.name} has at most {longest}."
            )
        given = len(text.answer)
        if given >= settings.max_new_tokens:
            raise BadSetting(
                f"max_new_tokens is {settings.max_new_tokens}, but {given} tokens of the answer are given between the holes."
            )
        if settings.min_new_tokens > min(settings.max_new_tokens, self._budget(text, request) + given):
            raise BadSetting(f"min_new_tokens is {settings.min_new_tokens}, but so many tokens cannot be inserted.")
        if settings.echo and settings.logprobs is not None:
            raise Refused(
                f"{self.name} does not run with echo and logprobs together: the tokens of a prompt are never scored."
            )

    def caches(self, request: Request) -> list[tuple[Scorer, int]]:
        text = GrowingText(request.prompt, model_of(request))
        return [(request.host.network, len(text) + self._budget(text, request))]

    def decode(self, request: Request) -> Decoding:
        model, output, settings = model_of(request), request.output, request.settings
        text = GrowingText(request.prompt, model)
        sequence, last = request.new_sequence(), request.network.layers - 1
        answer = text.answer
        rows: dict[int, Tensor] = {}
        for offset, slot in enumerate(answer):
            output.inserted(-1, offset, text.tokens[slot])
            if request.reads_rows:
                rows[slot] = certain(text.tokens[slot], request.host.network.vocabulary)
        threshold = model.stop_threshold if self.stop_threshold is None else self.stop_threshold
        forced = text.given_holes if self.force_first is None else self.force_first
        forwards, reason = 0, "length"
        for step in range(self._budget(text, request)):
            scores = yield Forward(
                sequence,
                text.tokens,
                positions=text.places,
                attend=Attend.FULL,
                slots=Slots.NOWHERE,
                taps=(last,),
                logits=Rows.NONE,
            )
            forwards += 1
            logits, stop = model.head(scores.hidden[last])
            ignored = settings.ignore_eos or len(answer) + step < settings.min_new_tokens or (forced and step == 0)
            if not ignored and model.completeness(stop) >= threshold:
                reason = "stop"
                break
            slots = text.open if self.gaps == FREE else [text.rightmost]
            table = logits[slots].cpu()
            table[:, list(model.never_inserted)] = -float("inf")
            cells = GapCells(table, request.law, step)
            position = len(request.prompt) + step
            if self.gap_top_k is None:
                gap, token = cells.joint_choice(request.noise, position)
            else:
                gap, token = cells.staged_choice(request.noise, position, self.gap_top_k)
            if request.reads_rows:
                rows[len(text)] = table[gap]
            output.inserted(step, text.insert(slots[gap], token, step), token)
        if text.given_holes:
            request.statistics.details["fills"] = text.fills
        slots, empty = text.answer, torch.empty(0)
        request.commit(
            [text.tokens[slot] for slot in slots], [rows.get(slot, empty) for slot in slots], rounds=forwards
        )
        output.finish(reason)

    def _longest(self, request: Request) -> int:
        """Slots that a text of this request may have."""
        own = model_of(request).max_length if self.max_length is None else self.max_length
        return min(own, request.host.network.context)

    def _budget(self, text: GrowingText, request: Request) -> int:
        """Insertions that this request may make into a text as the prompt gives it."""
        most = request.settings.max_new_tokens - len(text.answer)
        if self.max_steps is not None:
            most = min(most, self.max_steps)
        return min(most, self._longest(request) - len(text))


def certain(token: int, vocabulary: int) -> Tensor:
    """Scores [vocabulary] of a token that is given: it was not chosen among others."""
    row = torch.full((vocabulary,), OTHERS)
    row[token] = 0.0
    return row


def model_of(request: Request) -> Insertions:
    """The description of the request's insertion language model."""
    network = request.host.network
    if network.insertions is None:
        raise ValueError(f"{network.name} is no insertion language model")
    return network.insertions
