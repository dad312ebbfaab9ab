"""Words that must not come (vLLM's bad_words, transformers' bad_words_ids)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from decodery.sampling.forbidding import FORBIDDEN
from decodery.sampling.phrases import Phrases, Words
from decodery.sampling.settings import setting
from decodery.sampling.steps.base import Step

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.sampling.prefix import Prefix


@dataclass(frozen=True)
class BadWords(Step):
    """Forbids the last token of each, where those before it have just been said, by prompt or output.

    A word given as text is forbidden as the tokenizer writes it at the beginning of a text and behind a space.
    """

    bad_words: Phrases = setting(  # noqa: RUF009 (a dataclass field like the others)
        (),
        Words(),
        "Words that must not come, as text or as lists of token ids; may be repeated.",
        aliases=("bad_words_ids",),
        option=("--bad-word",),
    )

    name = "bad_words"
    place = 136
    places: ClassVar[Mapping[str, float]] = {"vllm": 50}
    reads_prefix = True

    def apply(self, rows: Tensor, prefixes: Sequence[Prefix]) -> Tensor:
        words = Words.ids(self.name, self.bad_words)
        for scores, prefix in zip(rows, prefixes, strict=True):
            text = prefix.tokens
            for *before, last in words:
                if len(before) <= len(text) and list(text[len(text) - len(before) :]) == before:
                    scores[last] = FORBIDDEN
        return rows
