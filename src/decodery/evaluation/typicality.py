"""How typical a text is of a model: how far the surprise of its tokens lies from the entropy where they come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from decodery.models.forward import Forward

if TYPE_CHECKING:
    from decodery.language_model import LanguageModel

CHUNK = 128
"""Rows that are scored at a time; each needs a vocabulary of numbers."""


@dataclass(frozen=True)
class Typicality:
    """Of each token of a text, in nats: its surprise, and the entropy of the model's own law there; and whether it is the
    likeliest."""

    surprises: tuple[float, ...]
    entropies: tuple[float, ...]
    likeliest: tuple[bool, ...]

    @property
    def deviations(self) -> tuple[float, ...]:
        """How far each surprise is from the entropy."""
        return tuple(abs(s - e) for s, e in zip(self.surprises, self.entropies, strict=True))

    @property
    def deviation(self) -> float:
        """Their mean."""
        return sum(self.deviations) / len(self.deviations)

    def local(self, epsilon: float) -> float:
        """The share of tokens that deviate by less than epsilon: the text's local typicality (Meister et al. 2022)."""
        return sum(one < epsilon for one in self.deviations) / len(self.deviations)


def typicality(lm: LanguageModel, prompt: Sequence[int], tokens: Sequence[int]) -> Typicality:
    """Of a text behind a prompt, both token ids of at least one token."""
    text, sequence = [*prompt, *tokens], lm.network.new_sequence()
    surprises: list[float] = []
    entropies: list[float] = []
    likeliest: list[bool] = []
    with lm.working():
        if len(prompt) > 1:
            lm.network.run([Forward(sequence, text[: len(prompt) - 1], logits=())])
        while sequence.length < len(text) - 1:
            start = sequence.length
            [scores] = lm.network.run([Forward(sequence, text[start : min(start + CHUNK, len(text) - 1)])])
            laws = scores.logits.double().log_softmax(dim=-1)
            follows = torch.tensor(text[start + 1 : start + 1 + len(laws)], device=laws.device)
            surprises += (-laws.gather(1, follows[:, None])[:, 0]).tolist()
            entropies += torch.special.entr(laws.exp()).sum(dim=-1).tolist()
            likeliest += (scores.logits.argmax(dim=-1) == follows).tolist()
    return Typicality(tuple(surprises), tuple(entropies), tuple(likeliest))
