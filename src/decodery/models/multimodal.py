"""The language model within a multimodal one: which of the weights are its own, and whether it computes the same alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from decodery.errors import ModelNotReadable, reason

_ROWS = 12
"""Tokens on which the language model is compared with the whole: enough for a mask or a position to show."""
_CLOSE = {torch.float32: 1e-3, torch.float64: 1e-3}
"""How far apart scores may be, in standard deviations of a row's."""


@dataclass(frozen=True, eq=False)
class Multimodal:
    """A multimodal model without weights.

    model: a transformers model on the meta device. place: the name of the language model in it. others: names of its other
    parts.
    """

    model: Any
    place: str
    others: frozenset[str]

    @classmethod
    def around(cls, config: Any, text: Any, folder: Path) -> Multimodal:
        """The model of a configuration. text: the language model's class, as a causal one.

        Raises ModelNotReadable where there is no class for it, or it holds no such language model.
        """
        from transformers import AutoModelForImageTextToText, AutoModelForMultimodalLM

        family = next(
            (f for f in (AutoModelForImageTextToText, AutoModelForMultimodalLM) if type(config) in f._model_mapping),
            None,
        )
        if family is None:
            raise ModelNotReadable(
                f"{folder} is {config.model_type}, a model of several parts that transformers has no class for."
            )
        with torch.device("meta"):
            model = family.from_config(config)
            alone = text._from_config(config.get_text_config(decoder=True))
        place = next(
            (name for name, part in model.named_modules() if type(part) in (type(alone), type(alone.base_model))), ""
        )
        if not place:
            raise ModelNotReadable(f"{folder} is {type(model).__name__}, whose language model is none that runs alone.")
        owners = [model, model.base_model]
        names = {name for owner in owners for name, _ in owner.named_children()}
        names |= {name for owner in owners for name, _ in owner.named_parameters(recurse=False)}
        return cls(model, place, frozenset(names - set(place.split(".")) - {model.base_model_prefix, "lm_head"}))

    def text_name(self, name: str) -> str | None:
        """What a weight of the whole is called in the language model alone; None where it belongs to another part."""
        segments, inner = name.split("."), self.place.split(".")[-1]
        if inner in segments[:2]:
            segments.remove(inner)
            return ".".join(segments)
        return None if self.others & set(segments[:2]) else name

    def check_same(self, text: nn.Module, folder: Path) -> None:
        """Raise ModelNotReadable unless the whole, with this language model in its place, scores text as it does alone."""
        owner: Any = text
        part = owner if isinstance(self.model.get_submodule(self.place), type(owner)) else owner.base_model
        parent, _, name = self.place.rpartition(".")
        setattr(self.model.get_submodule(parent), name, part)
        if part is not owner:
            self.model.set_output_embeddings(owner.get_output_embeddings())
        size = owner.get_input_embeddings().weight.shape[0]
        ids = torch.arange(10, 10 + _ROWS)[None] % size
        try:
            with torch.inference_mode():
                scores, whole = (
                    owner(ids, use_cache=False).logits[0],
                    self.model.eval()(input_ids=ids, use_cache=False).logits[0],
                )
        except Exception as error:  # its forward may want whatever it wants
            raise ModelNotReadable(
                f"{folder} is {type(self.model).__name__}, whose language model cannot be compared with it: {reason(error)}."
            ) from error
        apart = float((scores.float() - whole.float()).abs().max() / scores.float().std())
        if not apart <= _CLOSE.get(scores.dtype, 0.05):
            raise ModelNotReadable(
                f"{folder} is {type(self.model).__name__}, which scores text otherwise than its language model alone does, and "
                "decodery runs language models alone."
            )
