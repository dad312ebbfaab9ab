"""decodery inside transformers: `model.generate(..., custom_generate=decodery.transformers_generate("token-recycling"))`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from decodery.engine.job import Job
from decodery.engine.method import Method
from decodery.engine.registry import method as as_method
from decodery.engine.scheduler import Scheduler
from decodery.engine.settings import Settings
from decodery.errors import BadSetting
from decodery.language_model import LanguageModel
from decodery.models.network import TransformersNetwork

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class _NoText:
    """transformers deals with text itself; here only token ids come and go."""

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return ""


def transformers_generate(method: str | Method = "token-recycling") -> Callable[..., Any]:
    """A decoding loop for the `custom_generate` argument of transformers' `generate`.

    Everything that `generate` prepared is honoured: its logits processors and warpers shape the law, its stopping
    criteria and end tokens end the output, batches may be padded on the left, num_return_sequences gives several
    samples, and `torch.manual_seed` fixes sampling. Beam search and streamers are not for this loop. Raises the errors
    of `LanguageModel.generate`.
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
        if generation_config.num_beams not in (None, 1):
            raise BadSetting("decodery decodes without beams here; set num_beams=1.")
        if id(model) not in models:
            models[id(model)] = LanguageModel(TransformersNetwork(model, type(model).__name__), _NoText())
        lm = models[id(model)]
        ends = generation_config.eos_token_id
        lm.stop_ids = tuple([ends] if isinstance(ends, int) else ends or ())
        mask = model_kwargs.get("attention_mask")
        settings = Settings(
            temperature=1.0 if generation_config.do_sample else 0.0,
            processors=(logits_processor,) if len(logits_processor) else (),
            stopping_criteria=(stopping_criteria,) if len(stopping_criteria) else (),
            max_new_tokens=generation_config.max_length - input_ids.shape[1],
        )
        scheduler = Scheduler()
        jobs = []
        for place, row in enumerate(input_ids):
            prompt = row if mask is None else row[mask[place].bool()]
            # The user's torch seed decides: each row draws its own.
            own = Settings(**{**settings.__dict__, "seed": int(torch.randint(2**62, ()))})
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
