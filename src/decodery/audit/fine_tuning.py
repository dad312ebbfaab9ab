"""A copy of a model that has seen some texts for sure: the positive control of an audit, and what the probe learns from."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from decodery.audit.evidence import Tell, silent
from decodery.errors import BadInput, Refused
from decodery.training.adaptation import add_low_rank, merge_low_rank

if TYPE_CHECKING:
    from decodery.language_model import LanguageModel

IGNORED = -100
"""Label of a place that has no loss."""


@dataclass(frozen=True)
class FineTuning:
    """AdamW over whole texts, the rate constant. batch: texts of a step. rank: of matrices of low rank that are trained
    instead of all weights, where it is not 0. clip: most norm of a gradient. mixed: products in bfloat16, weights in
    float32."""

    epochs: int = 3
    rate: float = 5e-5
    batch: int = 8
    rank: int = 0
    clip: float = 1.0
    mixed: bool = True
    seed: int = 0


def fine_tuned(
    lm: LanguageModel,
    texts: Sequence[Sequence[int]],
    how: FineTuning | None = None,
    tell: Tell = silent,
    dtype: torch.dtype = torch.float32,
    fast: str = "off",
) -> LanguageModel:
    """A copy of a model that was trained on texts, in float32; the model stays as it is.

    texts: token ids, at least two each. dtype, fast: of the copy, as for `decodery.wrap`. Raises Refused where the path has
    no modules of transformers, BadInput where a text is too short.
    """
    from decodery.loading import wrap

    how = how or FineTuning()
    if min(map(len, texts), default=0) < 2:
        raise BadInput("a text to train on needs at least two tokens.")
    model = trainable_copy(lm)
    if how.rank:
        add_low_rank(model, how.rank, torch.Generator().manual_seed(how.seed))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=how.rate)
    draws = np.random.Generator(np.random.Philox(key=how.seed))
    order = np.concatenate([draws.permutation(len(texts)) for _ in range(how.epochs)])
    steps = range(0, len(order), how.batch)
    device = next(model.parameters()).device
    for step, start in enumerate(steps):
        tell("training", step, len(steps))
        ids, labels = padded([texts[place] for place in order[start : start + how.batch]], device)
        optimizer.zero_grad()
        with torch.enable_grad(), torch.autocast(device.type, torch.bfloat16, enabled=how.mixed):
            # Padding comes last and a causal model looks back alone, so no mask is wanted.
            logits = model(input_ids=ids, use_cache=False).logits
            loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained, how.clip)
        optimizer.step()
    merge_low_rank(model)
    model = model.requires_grad_(False).eval().to(dtype)
    return wrap(model, lm.tokenizer, name=f"{lm.name}, fine-tuned", fast=fast)


def trainable_copy(lm: LanguageModel) -> Any:
    """A copy of a model's modules in float32, all of whose weights are trained. Raises Refused where its path has none."""
    model = getattr(lm.network, "model", None)
    if not isinstance(model, nn.Module):
        raise Refused(f"fine-tuning needs the modules of {lm.name}, which its path lacks; load it with fast='off'.")
    return copy.deepcopy(model).float().requires_grad_(True).train()


def padded(texts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and labels, [texts, longest] each."""
    longest = max(map(len, texts))
    ids = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts], device=device)
    labels = torch.tensor([[*text, *[IGNORED] * (longest - len(text))] for text in texts], device=device)
    return ids, labels
