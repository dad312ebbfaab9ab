"""Logits processors of transformers' `generate`, asked about one row of the batch at a time, and about drafts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence, Sized
from typing import Any, TypeAlias

import torch
from torch import Tensor

from decodery.errors import BadSetting

Chain: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(tokens of a row without padding [1, n], scores [1, vocabulary]) -> scores [1, vocabulary]."""


def chains(processors: Sequence[Any], padding: Sequence[Tensor], steady: bool) -> list[tuple[Chain, ...]]:
    """For each row of the batch the processors as they treat it: none, or a single call of all of them.

    padding: each row's padding [k], behind which they see its tokens, as in `generate`; they count on it. steady: raise
    BadSetting from processors that change themselves when they are called; they would take drafts for the text.
    """
    if not processors:
        return [() for _ in padding]
    return [(_chain(processors, place, padding, steady),) for place in range(len(padding))]


def _chain(processors: Sequence[Any], place: int, padding: Sequence[Tensor], steady: bool) -> Chain:
    calls = [_of_row(processor, place, len(padding), steady) for processor in processors]

    def chain(ids: Tensor, scores: Tensor) -> Tensor:
        # They hold tensors where the prompt is, which need not be where the model is.
        before, device = padding[place], scores.device
        padded = torch.cat([before[None], ids.to(before)], dim=1)
        scores = scores.to(before.device)
        for call in calls:
            scores = call(padded, scores)
        return scores.to(device)

    return chain


def _of_row(processor: Any, place: int, rows: int, steady: bool) -> Chain:
    if type(processor).__module__.startswith("transformers."):
        own: Chain = _own(processor, place, rows)
        return own
    call: Chain = _unchanged(processor) if steady else processor
    if rows == 1:
        return call
    # It may hold something for each row of the batch: it is shown one, and its answer for this place is taken.
    return lambda ids, scores: call(ids.repeat(rows, 1), scores.repeat(rows, 1))[place][None]


def _own(processor: Any, place: int, rows: int) -> Any:
    """A processor of transformers as it treats one row of the batch. Some hold something of every row."""
    ignored = getattr(processor, "prompt_ignore_length", None)
    prompts = getattr(processor, "encoder_input_ids", None)
    allowed = getattr(processor, "_prefix_allowed_tokens_fn", None)
    ngrams = getattr(processor, "generated_ngrams", None)
    if not isinstance(ignored, Tensor) and not isinstance(prompts, Tensor) and allowed is None and ngrams is None:
        return processor
    own = copy.copy(processor)
    if isinstance(ignored, Tensor):
        own.prompt_ignore_length = ignored[place : place + 1]
    if isinstance(prompts, Tensor):
        own.encoder_input_ids = prompts[place * len(prompts) // rows][None]
    if allowed is not None:
        own._prefix_allowed_tokens_fn = lambda _, ids: allowed(place, ids)
    if ngrams is not None:
        own.generated_ngrams, own.batch_size = [ngrams[place * len(ngrams) // rows]], 1
    return own


def _unchanged(processor: Any) -> Chain:
    """A processor that is told off where it changes itself: it counts calls, or follows the text from call to call."""

    def call(ids: Tensor, scores: Tensor) -> Tensor:
        before = _attributes(processor)
        answer: Tensor = processor(ids, scores)
        for name, (value, count) in _attributes(processor).items():
            old, old_count = before.get(name, (None, 0))
            if old is None or (_same(old, value) and old_count == count):  # what was None is made once, and stays
                continue
            raise BadSetting(
                f"logits_processor: {type(processor).__name__} changes its {name} when it is called, and drafts are no "
                'steps of the text; use transformers_generate("autoregressive") for one text at a time.'
            )
        return answer

    return call


def _attributes(processor: Any) -> dict[str, tuple[Any, int]]:
    """Each attribute, and what tells that it was changed in place: a tensor's version, the number of things in a container."""
    return {
        name: (value, value._version if isinstance(value, Tensor) else len(value) if isinstance(value, Sized) else 0)
        for name, value in getattr(processor, "__dict__", {}).items()
    }


def _same(old: Any, new: Any) -> bool:
    return old is new or (isinstance(old, int | float | str) and type(old) is type(new) and old == new)
