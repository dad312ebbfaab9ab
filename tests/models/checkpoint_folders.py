"""Checkpoint folders written by the tests, with weights changed on the way, and the scores of the intact ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tiny_models import byte_level_tokenizer, random_ids, reference_logits
from torch import Tensor

import decodery
from decodery.models.forward import Forward

Weights = dict[str, Tensor]
IDS = random_ids(24)


def write(folder: Path, model: Any, change: Callable[[Weights], Weights] | None = None, **config: Any) -> Path:
    """`model` as transformers saves it, with a tokenizer; then its weights changed, and entries of its configuration."""
    if model.config.vocab_size < len(byte_level_tokenizer()):
        model.resize_token_embeddings(len(byte_level_tokenizer()), mean_resizing=False)
    model.save_pretrained(folder)
    byte_level_tokenizer().save_pretrained(folder)
    if change is not None:
        weights = change(load_file(folder / "model.safetensors"))
        save_file({name: weight.clone() for name, weight in weights.items()}, folder / "model.safetensors")
    if config:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def computed(folder: Path, **settings: Any) -> Tensor:
    """Our logits of IDS with the model of a folder."""
    lm = decodery.load(folder, **{"dtype": "float32", "fast": "off", **settings})
    [scores] = lm.network.run([Forward(lm.network.new_sequence(), IDS)])
    return scores.logits


def assert_computes(folder: Path, model: Any, **settings: Any) -> None:
    """The folder's model scores as `model` does."""
    torch.testing.assert_close(computed(folder, **settings), reference_logits(model, IDS), rtol=1e-4, atol=1e-4)
