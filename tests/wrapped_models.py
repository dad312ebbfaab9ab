"""What the tests of the public calls share: a tiny network under a real tokenizer, and a method that fails."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any, ClassVar

from tiny_models import byte_level_tokenizer, make_model

import decodery
from decodery.engine.method import Decoding, Exactness, Method
from decodery.engine.request import Request
from decodery.language_model import LanguageModel
from decodery.models.forward import Forward

METHODS = ("autoregressive", "token-recycling", "prompt-lookup", "draft-model(layers=1)")


@cache
def tiny_model() -> Any:
    return make_model("llama", vocab_size=330, eos_token_id=0)


def endless_language_model() -> LanguageModel:
    """A real tokenizer over a tiny network whose text never ends by itself."""
    wrapped = decodery.wrap(tiny_model(), byte_level_tokenizer(), name="tiny")
    wrapped.stop_ids = ()
    return wrapped


@dataclasses.dataclass(frozen=True)
class Failing(Method):
    """Commits some tokens, then fails."""

    name: ClassVar[str] = "failing"
    title: ClassVar[str] = "Failing"
    paper: ClassVar[str] = "none"
    exactness: ClassVar[Exactness] = Exactness.APPROXIMATE
    family: ClassVar[str] = "testing"

    def decode(self, request: Request) -> Decoding:
        scores = yield Forward(request.new_sequence(), request.prompt)
        request.commit([70, 71], scores.logits[[-1, -1]])
        raise ZeroDivisionError("the method's own error")
