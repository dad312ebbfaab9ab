"""decodery inside transformers: `model.generate(..., custom_generate=decodery.transformers_generate("token-recycling"))`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from decodery.engine.job import Job
from decodery.engine.method import Method, refusal
from decodery.engine.registry import method as as_method
from decodery.engine.scheduler import Scheduler
from decodery.engine.settings import Settings
from decodery.errors import BadPrompt, BadSetting, Refused
from decodery.language_model import LanguageModel
from decodery.models.network import TransformersNetwork

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class _NoText:
    """transformers deals with text itself; here only token ids come and go."""

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return ""


def transformers_generate(method: str | Method = "cascade") -> Callable[..., Any]:
    """A decoding loop for the `custom_generate` argument of transformers' `generate`.

    Everything that `generate` prepared is honoured: its logits processors and warpers shape the law, its stopping
    criteria and end tokens end the output, batches may be padded on the left, num_return_sequences gives several
    samples, and `torch.manual_seed` fixes sampling. Processors and criteria are called with one row at a time, [1, n].
    Beam search and processors that keep state from step to step are refused; a streamer hears of the prompt alone, since
    transformers hands none to loops of others. Raises the errors of `LanguageModel.generate`.
    """
    chosen = as_method(method)
    models: dict[int, LanguageModel] = {}  # lives as long as the loop that is handed out

    def decode(
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> Any:
        _refuse_the_rest(input_ids, logits_processor, generation_config, model_kwargs)
        if id(model) not in models:
            models[id(model)] = LanguageModel(TransformersNetwork(model, type(model).__name__), _NoText())
        lm = models[id(model)]
        ends = generation_config.eos_token_id
        lm.stop_ids = tuple([ends] if isinstance(ends, int) else ends or ())
        mask = model_kwargs.get("attention_mask")
        scheduler = Scheduler()
        jobs = []
        for place, row in enumerate(input_ids):
            seen = torch.ones_like(row, dtype=torch.bool) if mask is None else mask[place].bool()
            prompt = row[seen]
            own = Settings(
                temperature=1.0 if generation_config.do_sample else 0.0,
                processors=_padded([_of_row(p, place, len(input_ids)) for p in logits_processor], row[~seen]),
                stopping_criteria=_padded(stopping_criteria, row[~seen]),
                max_new_tokens=generation_config.max_length - input_ids.shape[1],
                # The user's torch seed decides: each row draws its own.
                seed=int(torch.randint(2**62, ())),
            )
            reason = refusal(chosen, own)
            if reason is not None:
                raise Refused(reason)
            job = Job(lm, prompt.tolist(), own, place)
            chosen.admit(job)
            scheduler.submit(job, chosen)
            jobs.append(job)
        scheduler.run()
        for job in jobs:
            if job.error is not None:
                raise job.error
        width = max(len(job.new_tokens) for job in jobs)
        pad = generation_config.pad_token_id
        filler = pad if pad is not None else (lm.stop_ids[0] if lm.stop_ids else 0)
        rows = [job.new_tokens + [filler] * (width - len(job.new_tokens)) for job in jobs]
        sequences = torch.cat([input_ids, torch.tensor(rows, dtype=input_ids.dtype, device=input_ids.device)], dim=1)
        if generation_config.return_dict_in_generate:
            from transformers.generation.utils import GenerateDecoderOnlyOutput

            return GenerateDecoderOnlyOutput(sequences=sequences)  # type: ignore[arg-type]
        return sequences

    return decode


def _padded(calls: Iterable[Callable[..., Any]], padding: Tensor) -> tuple[Callable[[Tensor, Tensor], Any], ...]:
    """Processors or criteria that see the tokens as in `generate`: behind the padding of their row. They count on it."""

    def behind(call: Callable[..., Any]) -> Callable[[Tensor, Tensor], Any]:
        return lambda ids, scores: call(torch.cat([padding[None].to(ids), ids], dim=1), scores)

    return tuple(behind(call) for call in calls)


def _of_row(processor: Any, place: int, rows: int) -> Any:
    """A processor of transformers as it treats one row of the batch. Some hold something of every row."""
    ignored = getattr(processor, "prompt_ignore_length", None)
    prompts = getattr(processor, "encoder_input_ids", None)
    allowed = getattr(processor, "_prefix_allowed_tokens_fn", None)
    if not isinstance(ignored, Tensor) and not isinstance(prompts, Tensor) and allowed is None:
        return processor
    own = copy.copy(processor)
    if isinstance(ignored, Tensor):
        own.prompt_ignore_length = ignored[place : place + 1]
    if isinstance(prompts, Tensor):
        own.encoder_input_ids = prompts[place * len(prompts) // rows][None]
    if allowed is not None:
        own._prefix_allowed_tokens_fn = lambda _, ids: allowed(place, ids)
    return own


_STATEFUL = (
    "UnbatchedClassifierFreeGuidanceLogitsProcessor",
    "SynthIDTextWatermarkLogitsProcessor",
    "EncoderNoRepeatNGramLogitsProcessor",
)
"""They expect to be called once per step and for the whole batch, which no draft can keep."""


def _refuse_the_rest(
    input_ids: Tensor, logits_processor: Any, generation_config: Any, model_kwargs: Mapping[str, Any]
) -> None:
    """Raise BadSetting or BadPrompt for what `generate` offers and this loop does not."""
    if generation_config.num_beams not in (None, 1):
        raise BadSetting("decodery decodes without beams here; set num_beams=1.")
    for processor in logits_processor:
        if type(processor).__name__ in _STATEFUL:
            raise BadSetting(f"{type(processor).__name__} keeps state from step to step and is not for this loop.")
    for name in ("output_scores", "output_logits", "output_attentions", "output_hidden_states"):
        if getattr(generation_config, name, None):
            raise BadSetting(f"{name} is not for this loop; ask decodery.wrap(model, tokenizer).generate for logprobs.")
    if input_ids.shape[1] == 0 or model_kwargs.get("inputs_embeds") is not None:
        raise BadPrompt("decodery needs the prompt as input_ids, with at least one token.")
    mask = model_kwargs.get("attention_mask")
    if mask is not None and not bool((mask[:, -1] > 0).all() and (mask[:, 1:] >= mask[:, :-1]).all()):
        raise BadPrompt("decodery needs prompts that are padded on the left, each with at least one token.")
