"""Scores that are not numbers, or forbid every token, end their own request with a reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import make_model
from torch import Tensor

import decodery
from decodery.errors import ScoresNotNumbers
from decodery.sampling.law import Law, LawSettings
from decodery.testing import LetterTokenizer

NAN, INFINITE = float("nan"), float("inf")
METHODS = ("autoregressive", "prompt-lookup", "token-recycling", "draft-model(draft=layers)", "cascade", "spectr")
SAMPLED = {"temperature": 1.0, "seed": 1}


@pytest.fixture(scope="module")
def lm() -> Any:
    return decodery.wrap(make_model("llama"), LetterTokenizer(99))


class Spoils:
    """A processor that spoils the scores of one request's third token."""

    def __init__(self, value: float, everything: bool = True):
        self.value, self.everything = value, everything

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        if ids[0, 0] == 7 and ids.shape[1] == 12:
            scores = scores.clone()
            scores[:, slice(None) if self.everything else 50] = self.value
        return scores


@pytest.mark.parametrize("law", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("value", "everything", "told"),
    [
        (NAN, True, "are not numbers"),
        (NAN, False, "are not numbers"),
        (-INFINITE, True, "forbid every token"),
    ],
)
def test_a_step_of_the_settings(
    lm: Any, method: str, law: dict[str, Any], value: float, everything: bool, told: str
) -> None:
    """The request ends in the round of its third token, its neighbour goes on as if nothing were."""
    arguments: Any = {"method": method, "max_new_tokens": 6, "ignore_eos": True, **law}
    prompts = [[7] + [3, 4] * 4 + [5], [8] + [3, 4] * 4 + [5]]
    expected = lm.generate(prompts, **arguments)
    spoilt, fine = lm.generate(prompts, **arguments, processors=[Spoils(value, everything)])
    assert isinstance(spoilt.error, ScoresNotNumbers)
    assert str(spoilt.error) == f"the scores of token 3 {told} after the step processors of the settings"
    committed = spoilt.token_ids
    assert len(committed) == 2 or (len(committed) < 2 and method != "autoregressive")
    assert committed == expected[0].token_ids[: len(committed)]
    assert fine.error is None
    assert fine.token_ids == expected[1].token_ids


def test_infinity_may_force_a_token_where_the_highest_score_wins(lm: Any) -> None:
    arguments: Any = {"max_new_tokens": 4, "ignore_eos": True, "processors": [Spoils(INFINITE, everything=False)]}
    assert lm.generate([7] + [3, 4] * 4 + [5], **arguments).token_ids[2] == 50
    with pytest.raises(ScoresNotNumbers, match="token 3 are infinite after the step processors"):
        lm.generate([7] + [3, 4] * 4 + [5], **arguments, **SAMPLED)


@pytest.fixture(scope="module")
def overflowing() -> Any:
    model = make_model("llama")
    with torch.no_grad():
        for layer in model.model.layers[1:]:
            layer.mlp.gate_proj.weight.mul_(30.0)
            layer.mlp.down_proj.weight.mul_(3000.0)
    return model.to(torch.float16)


@pytest.mark.parametrize("law", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("method", METHODS)
def test_a_network_that_overflows(overflowing: Any, method: str, law: dict[str, Any]) -> None:
    lm = decodery.wrap(overflowing, LetterTokenizer(99), name="large")
    with pytest.raises(ScoresNotNumbers) as told:
        lm.generate([5, 6, 7] * 3, method=method, max_new_tokens=4, **law)
    assert str(told.value) == (
        "the network's scores of token 1 are not numbers: it begins in layer 2 of 4 of large, in float16: "
        "float16 ends at 65504; bfloat16 or float32 would do."
    )


@pytest.mark.parametrize("where", ["layer", "head"])
def test_weights_that_are_not_numbers(where: str) -> None:
    model = make_model("llama")
    lm = decodery.wrap(model, LetterTokenizer(99), name="spoilt")
    with torch.no_grad():
        (model.model.layers[2].mlp.up_proj if where == "layer" else model.lm_head).weight[3] = NAN
    place = "in layer 3 of 4" if where == "layer" else "after the last layer"
    with pytest.raises(
        ScoresNotNumbers, match=f"token 1 are not numbers: it begins {place} of spoilt, in float32: its weights"
    ):
        lm.generate([5, 6, 7], max_new_tokens=4)


def test_what_the_law_says_of_a_row() -> None:
    row = torch.tensor([0.5, 2.0, -1.0])
    greedy, sampled = Law(LawSettings(), [1]), Law(LawSettings(temperature=1.0), [1])
    assert greedy.likeliest(row) == 1
    for law in (greedy, sampled):
        for spoilt in (torch.tensor([0.5, NAN, 1.0]), torch.full((3,), -INFINITE)):
            with pytest.raises(ScoresNotNumbers, match="the network's scores of token 1") as told:
                law.log_probabilities(spoilt)
            assert told.value.raw
    with pytest.raises(ScoresNotNumbers, match="the network's scores of token 1 are infinite"):
        sampled.log_probabilities(torch.tensor([0.5, INFINITE, 1.0]))
    assert sampled.log_probabilities(torch.tensor([-INFINITE, 1.0, 1.0])).exp().tolist() == pytest.approx([0, 0.5, 0.5])
