"""An autoregressive model as the start of a masked-diffusion model: DiffuLLaMA's adaptation (arXiv 2410.17891, section 3).

The model keeps its alignment: the row before a position predicts it, so its head and what it knows stay of use. What changes
is who sees whom, at once or over the first steps, and that one token means "hidden".
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from decodery.errors import BadInput

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LowRank(nn.Module):
    """A frozen linear map and a trained one of low rank beside it (Hu et al., arXiv 2106.09685); it begins as no change."""

    def __init__(self, base: nn.Linear, rank: int, generator: torch.Generator):
        super().__init__()
        self.base = base.requires_grad_(False)
        down = torch.randn(rank, base.in_features, generator=generator) * base.in_features**-0.5
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, rows: Tensor) -> Tensor:
        changed: Tensor = self.base(rows) + (rows @ self.down.T.to(rows.dtype)) @ self.up.T.to(rows.dtype)
        return changed

    def merged(self) -> nn.Linear:
        """One linear map that gives the same."""
        with torch.no_grad():
            self.base.weight += (self.up @ self.down).to(self.base.weight)
        return self.base


def add_low_rank(model: nn.Module, rank: int, generator: torch.Generator) -> None:
    """Freeze a model, and put trained maps of low rank beside all seven projections of each layer."""
    model.requires_grad_(False)
    for module in list(model.modules()):
        for name in PROJECTIONS:
            if isinstance(inner := getattr(module, name, None), nn.Linear):
                setattr(module, name, LowRank(inner, rank, generator))


def merge_low_rank(model: nn.Module) -> None:
    """Make the trained maps part of the model's own."""
    for module in list(model.modules()):
        for name in PROJECTIONS:
            if isinstance(inner := getattr(module, name, None), LowRank):
                setattr(module, name, inner.merged())


class AdaptedModel(nn.Module):
    """A causal model of transformers, run with full attention.

    mask_token: an id that no text holds; its embedding is a weight of its own, which is trained even where all else is
    frozen. rank: of the trained maps beside all seven projections of a layer; None trains all weights.
    """

    shift = True

    def __init__(self, model: Any, mask_token: int, rank: int | None = None, seed: int = 0):
        super().__init__()
        self.model, self.mask_token, self.rank = model, mask_token, rank
        self._open = 1.0
        self._generator = torch.Generator().manual_seed(seed)
        embedding = model.get_input_embeddings().weight
        self.mask_row = nn.Parameter(embedding.detach().float().mean(dim=0))
        if rank is not None:
            add_low_rank(model, rank, self._generator)

    def anneal(self, step: int, steps: int) -> None:
        """Let each position see what follows it with probability (step + 1) / steps from now on; always where steps is 0."""
        self._open = min(1.0, (step + 1) / steps) if steps else 1.0

    def forward(self, tokens: Tensor, visible: Tensor | None = None, causal: bool = False) -> Tensor:
        """Hidden rows [batch, length, width] after the last norm. visible: bool, broadcast to [batch, 1, length, length]."""
        length, device = tokens.shape[1], tokens.device
        before = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        if causal:
            seen = before
        elif self._open < 1.0:
            drawn = torch.rand(length, length, generator=self._generator).to(device) < self._open
            seen = before | drawn
        else:
            seen = torch.ones_like(before)
        allowed = seen[None, None] if visible is None else seen[None, None] & visible
        allowed = allowed.expand(tokens.shape[0], 1, length, length)
        embedded = self.model.get_input_embeddings()(tokens)
        hidden = (tokens == self.mask_token)[..., None]
        embedded = torch.where(hidden, self.mask_row.to(embedded.dtype), embedded)
        bias = torch.zeros(allowed.shape, dtype=embedded.dtype, device=device)
        bias = bias.masked_fill(~allowed, torch.finfo(embedded.dtype).min)
        output = self.model.base_model(inputs_embeds=embedded, attention_mask=bias, use_cache=False)
        rows: Tensor = output.last_hidden_state
        return rows

    def head(self, rows: Tensor) -> Tensor:
        """Logits [..., vocabulary] float32 of hidden rows."""
        logits: Tensor = self.model.get_output_embeddings()(rows)
        return logits.float()

    def write(self, folder: Path, dtype: torch.dtype = torch.bfloat16, **entries: Any) -> None:
        """Write the checkpoint, low ranks merged and the mask's row in its place, with further `entries` in config.json.

        The network cannot be trained on afterwards.
        """
        merge_low_rank(self.model)
        with torch.no_grad():
            self.model.get_input_embeddings().weight[self.mask_token] = self.mask_row
        self.model.to(dtype).save_pretrained(folder)
        path = folder / "config.json"
        config = {**json.loads(path.read_text("utf-8")), **entries}
        path.write_text(json.dumps(config, indent=1) + "\n", "utf-8")


def reserved_token(tokenizer: Any) -> int:
    """A special token of the tokenizer that texts do not use, to stand for "hidden": one named mask, else the last of the
    special tokens that is neither a begin, an end, a pad, an unknown nor a turn of a conversation.

    Raises BadInput where there is none.
    """
    if tokenizer.mask_token_id is not None:
        return int(tokenizer.mask_token_id)
    used = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}
    template = tokenizer.chat_template or ""
    free = [
        place
        for place, token in sorted(tokenizer.added_tokens_decoder.items())
        if token.special and place not in used and token.content not in template
    ]
    if not free:
        raise BadInput("the tokenizer has no reserved token that could stand for the mask.")
    return int(free[-1])
