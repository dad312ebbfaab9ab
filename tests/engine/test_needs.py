"""What a method needs and a model has: declared on both sides, and refused in one sentence where they do not meet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from decodery.engine.autoregressive import Autoregressive
from decodery.engine.method import parameter
from decodery.engine.needs import MASKED_POSITIONS, NEXT_TOKENS, Artifact, Companion, MoreThanChains, Taps
from decodery.engine.registry import MethodInfo, conform, find
from decodery.errors import MethodUnavailable, Refused
from decodery.models.kinds import WORDS, Kind
from decodery.testing import TabularDenoiser, TabularScorer, denoising_language_model, scripted_language_model


@dataclass(frozen=True)
class Needy(Autoregressive):
    name: ClassVar[str] = "needy"
    guide: str = parameter("other", "who guides")


def _causal() -> Any:
    return scripted_language_model(TabularScorer(4), drafter=TabularScorer(4, name="other"))


def _denoiser() -> Any:
    return denoising_language_model(TabularDenoiser.random())


def test_scorers_declare_what_they_score() -> None:
    assert _causal().network.kinds is Kind.NEXT_TOKEN
    lm = _denoiser()
    assert lm.network.kinds is Kind.MASKED_POSITIONS
    assert lm.network.masked is lm.diffusion
    assert (str(lm.network.device), lm.network.timed, lm.network.parameters) == ("cpu", False, 0)
    assert set(WORDS) == set(Kind)


def test_a_kind_that_is_missing() -> None:
    assert NEXT_TOKENS.missing(Needy, _causal()) is None
    assert MASKED_POSITIONS.missing(Needy, _denoiser()) is None
    assert NEXT_TOKENS.missing(Needy, _denoiser()) == (
        "needy decodes with a causal model, and denoiser is a masked-diffusion model; masked-diffusion runs on it."
    )
    assert MASKED_POSITIONS.missing(Needy, _causal()) == (
        "needy decodes with a masked-diffusion model, and tabular is a causal one; cascade runs on it."
    )


def test_trees_taps_and_companions_that_are_missing() -> None:
    lm = _causal()
    trees = MoreThanChains("draws trees")
    assert trees.missing(Needy, lm) is None
    lm.network.chains_only = True
    assert str(trees.missing(Needy, lm)).startswith("needy draws trees, and tabular keeps a cache of its own")
    assert Taps().missing(Needy, lm) is None
    lm.network.hidden = None
    assert Taps().missing(Needy, lm) == "needy: tabular has no hidden rows to go on from."
    guide = Companion("guide", "a guide", Kind.MASKED_POSITIONS)
    assert guide.missing(Needy(), lm) == (
        "needy: the guide must be a masked-diffusion model, and other is a causal model."
    )
    assert Companion("guide", "a guide").missing(Needy(), lm) is None
    assert Artifact("a trained head").missing(Needy(), lm) is None


def test_what_is_missing_is_an_error_before_work() -> None:
    class Tapping(Needy):
        needs = (NEXT_TOKENS, Taps())

    lm = _causal()
    lm.network.hidden = None
    with pytest.raises(MethodUnavailable, match="no hidden rows"):
        lm.generate([0], Tapping(), max_new_tokens=1)
    with pytest.raises(Refused, match="is a masked-diffusion model"):
        _denoiser().generate([0], Needy())


def test_needs_are_no_prose() -> None:
    class Wordy(Needy):
        needs = ("a larger machine",)  # type: ignore[assignment]

    with pytest.raises(ValueError, match="not words"):
        conform(Wordy)
    guided = MethodInfo.of(find("guided-diffusion"))
    assert guided.wanted == ["a masked-diffusion model", "a causal model with its tokenizer"]
    assert [need.words for need in guided.extras] == ["a causal model with its tokenizer"]
    assert guided.suits(Kind.MASKED_POSITIONS)
    assert not guided.suits(Kind.NEXT_TOKEN)
