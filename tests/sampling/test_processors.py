"""Processors by name: what they do, how they are asked for, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import named_processors  # noqa: F401  registers some
import pytest
import torch
from torch import Tensor

from decodery.engine.settings import Settings, schema
from decodery.errors import BadSetting
from decodery.sampling import processors as named
from decodery.sampling.settings import Whole, setting
from decodery.testing import toy_language_model

VOCABULARY = 9


def scores_after(spec: Any, *tokens: int) -> list[float]:
    [processor] = Settings.of({"processors": [spec]}, VOCABULARY).processors
    return processor(torch.tensor([tokens]), torch.zeros(1, VOCABULARY))[0].tolist()  # type: ignore[no-any-return]


def allowed(scores: list[float]) -> list[int]:
    return [token for token, score in enumerate(scores) if score == 0.0]


def test_no_run_comes_twice() -> None:
    assert allowed(scores_after("no-repeat-ngram(size=2)", 1, 2, 3, 1)) == [0, 1, 3, 4, 5, 6, 7, 8]
    assert allowed(scores_after({"name": "no-repeat-ngram", "size": 3}, 1, 2, 3, 1)) == list(range(VOCABULARY))
    assert allowed(scores_after({"name": "no-repeat-ngram", "size": 3}, 1, 2, 3, 1, 2)) == [0, 1, 2, 4, 5, 6, 7, 8]
    assert allowed(scores_after({"name": "no-repeat-ngram", "size": 1}, 1, 2)) == [0, 3, 4, 5, 6, 7, 8]
    assert allowed(scores_after({"name": "no-repeat-ngram", "size": 4}, 1, 2)) == list(range(VOCABULARY))


def test_no_run_comes_twice_in_a_text() -> None:
    lm = toy_language_model(4)
    arguments: dict[str, Any] = {"method": "cascade", "max_new_tokens": 80}

    def runs(reply: Any) -> list[tuple[int, ...]]:
        text = [*reply.prompt_token_ids, *reply.token_ids]
        return list(pairwise(text))

    free, held = (
        runs(lm.generate("abcab", **arguments, **more)) for more in ({}, {"processors": "no-repeat-ngram(size=2)"})
    )
    assert len(set(free)) < len(free)
    assert held.count((97, 98)) == 2  # the prompt's own
    assert len(set(held)) == len(held) - 1


def test_only_some_tokens_or_none_of_them() -> None:
    assert allowed(scores_after({"name": "allowed-tokens", "token_ids": [2, 5]}, 1)) == [2, 5]
    assert allowed(scores_after({"name": "forbidden-tokens", "token_ids": [2, 5]}, 1)) == [0, 1, 3, 4, 6, 7, 8]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("no-repeat-ngrams(size=2)", "did you mean no-repeat-ngram"),
        ("no-repeat-ngram", "needs the argument size"),
        ("no-repeat-ngram(size=0)", "size must be at least 1"),
        ({"name": "no-repeat-ngram", "length": 2}, "no argument 'length'"),
        ({"name": "allowed-tokens", "token_ids": [VOCABULARY]}, "tokens are 0 to 8"),
        ({"name": "allowed-tokens", "token_ids": []}, "at least one token"),
        ({"size": 3}, "a processor is a name"),
        (7, "a processor is a name"),
        ("no-repeat-ngram(size", "cannot read"),
    ],
)
def test_what_is_refused(given: Any, says: str) -> None:
    with pytest.raises(BadSetting, match=says):
        Settings.of({"processors": [given]}, VOCABULARY)


def test_functions_stay_as_they_are() -> None:
    def same(ids: Tensor, scores: Tensor) -> Tensor:
        return scores

    assert Settings.of({"logits_processor": same}, VOCABULARY).processors == (same,)
    assert Settings.of({"processors": []}, VOCABULARY).processors == ()


def test_one_of_another_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named.REGISTRY, "known", dict(named.REGISTRY.known))

    @named.register_processor
    @dataclass(frozen=True)
    class Shift(named.NamedProcessor):
        by: int = setting(1, Whole(0), "How far.")
        name = "shift"

        def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
            return scores + self.by

    assert scores_after("shift(by=3)", 1) == [3.0] * VOCABULARY
    with pytest.raises(ValueError, match="already"):
        named.register_processor(type("Other", (Shift,), {}))
    choices = schema()["properties"]["processors"]["items"]["anyOf"]
    assert {"const": "shift"} in [one["properties"]["name"] for one in choices if one["type"] == "object"]
