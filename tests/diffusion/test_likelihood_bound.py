"""The bound of a masked-diffusion model's likelihood: its mean by enumeration, that it is a bound, transformers' scores."""

from __future__ import annotations

import math
from itertools import combinations, permutations
from typing import Any

import pytest
import torch

from decodery.diffusion import likelihood_bound as module
from decodery.diffusion.likelihood_bound import LikelihoodBound, hidings, likelihood_bound
from decodery.errors import BadPrompt, BadSetting, Refused
from decodery.sampling.noise import Noise
from decodery.testing import (
    ScriptedDenoiser,
    TabularDenoiser,
    denoising_language_model,
    toy_diffusion_model,
    toy_language_model,
)

LENGTH = 3


def bound(lm: Any, tokens: list[int], prompt: Any = (), **more: Any) -> LikelihoodBound:
    found: LikelihoodBound = lm.run(likelihood_bound(lm, tokens, prompt, **more))
    return found


def law_of(lm: Any, tokens: list[int], prompt: list[int], hidden: list[int]) -> dict[int, float]:
    """Position -> log probability of its token, where those of `hidden` are masked: transformers' modules for real networks,
    the table for denoisers."""
    masked = [lm.diffusion.mask_token_id if place in hidden else token for place, token in enumerate(tokens)]
    rows = lm.network.score(tuple(prompt), tuple(masked)).log_softmax(-1)
    return {place: float(rows[place, tokens[place]]) for place in hidden}


def exact_bound(lm: Any, tokens: list[int], prompt: list[int]) -> float:
    """The mean over all orders."""
    orders = list(permutations(range(len(tokens))))
    total = 0.0
    for order in orders:
        for place, position in enumerate(order):
            total += law_of(lm, tokens, prompt, sorted(order[place:]))[position]
    return total / len(orders)


def enumerated(monkeypatch: pytest.MonkeyPatch, lm: Any, tokens: list[int], prompt: Any = ()) -> float:
    """The mean of the estimator over everything that may be hidden: each number is equally likely, then each set of it."""
    means = []
    for count in range(1, len(tokens) + 1):
        sets = [list(chosen) for chosen in combinations(range(len(tokens)), count)]
        monkeypatch.setattr(module, "hidings", lambda *_, sets=sets: sets)
        means.append(bound(lm, tokens, prompt, samples=len(sets)).log_probability)
    return sum(means) / len(means)


@pytest.mark.parametrize("shift", [False, True])
def test_of_a_consistent_model_its_mean_is_the_log_probability(monkeypatch: pytest.MonkeyPatch, shift: bool) -> None:
    """All orders then give a text the same probability, so the bound is tight."""
    scorer = TabularDenoiser.random(LENGTH, seed=3, shift=shift)
    lm = denoising_language_model(scorer)
    for tokens, probability in list(scorer.law().items())[::5]:
        found = enumerated(monkeypatch, lm, list(tokens), [1])
        assert found == pytest.approx(math.log(probability), abs=1e-5)


def inconsistent() -> Any:
    """Laws that depend on what is shown in a way that no joint law has."""

    def script(canvas: tuple[int, ...]) -> list[list[float]]:
        return [
            [
                math.sin(7.0 * place + 3.0 * token + 5.0 * sum((i + 2) * t for i, t in enumerate(canvas))) * 2
                for token in range(3)
            ]
            for place in range(LENGTH)
        ]

    return denoising_language_model(ScriptedDenoiser(LENGTH, 3, script))


def test_its_mean_is_that_over_all_orders_and_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = inconsistent()
    for tokens in ([0, 1, 2], [2, 2, 0]):
        exact = exact_bound(lm, tokens, [])
        assert enumerated(monkeypatch, lm, tokens) == pytest.approx(exact, abs=1e-5)
        orders = list(permutations(range(LENGTH)))
        paths = [
            sum(law_of(lm, tokens, [], sorted(order[place:]))[position] for place, position in enumerate(order))
            for order in orders
        ]
        assert exact < math.log(sum(map(math.exp, paths)) / len(orders)) - 1e-3


def test_what_is_hidden_is_spread_evenly() -> None:
    counts = [len(hidden) for hidden in hidings(8, 64, Noise(1))]
    assert sorted(counts) == sorted(list(range(1, 9)) * 8)
    first = [0] * 5
    numbers = [0] * 5
    for seed in range(2000):
        [hidden] = hidings(5, 1, Noise(seed))
        numbers[len(hidden) - 1] += 1
        if len(hidden) == 1:
            first[hidden[0]] += 1
    for count, total in ((numbers, 2000), (first, sum(first))):
        # Each is a binomial with p = 1/5; five standard deviations.
        assert all(abs(one - total / 5) < 5 * math.sqrt(total * 0.16) for one in count)


def test_estimates_have_the_bound_as_their_mean() -> None:
    lm, tokens = inconsistent(), [0, 1, 2]
    values = torch.tensor([bound(lm, tokens, samples=2, seed=seed).log_probability for seed in range(200)])
    assert abs(float(values.mean()) - exact_bound(lm, tokens, [])) < 4 * float(values.std()) / math.sqrt(200)
    assert bound(lm, tokens, samples=5, seed=9) == bound(lm, tokens, samples=5, seed=9)
    assert bound(lm, tokens, samples=5, seed=9) != bound(lm, tokens, samples=5, seed=8)


@pytest.mark.parametrize("shift", [False, True])
def test_a_real_network(shift: bool) -> None:
    """One hidden token of a text of one: transformers' own scores, behind a prompt that is never hidden."""
    lm = toy_diffusion_model(1, shift=shift)
    prompt, token = [3, 1, 4, 1, 5], 9
    found = bound(lm, [token], prompt, samples=1)
    model: Any = lm.network.model  # type: ignore[attr-defined]
    ids = torch.tensor([[*prompt, lm.diffusion.mask_token_id]])  # type: ignore[union-attr]
    with torch.inference_mode():
        seen = torch.zeros(1, 1, 6, 6)
        logits = model(ids, attention_mask=seen, use_cache=False).logits[0, 5 - shift].double()
    logits = logits.clone()
    logits[lm.diffusion.mask_token_id] = -math.inf  # type: ignore[union-attr]
    assert found.log_probability == pytest.approx(float(logits.log_softmax(0)[token]), abs=1e-4)
    assert found.forwards == 1


def test_a_text_that_may_not_be_written_has_no_probability() -> None:
    lm = toy_diffusion_model(1)
    assert bound(lm, [1, 23, 2], samples=4).log_probability == -math.inf


def test_what_is_refused() -> None:
    causal, lm, shifted = toy_language_model(1), toy_diffusion_model(1), toy_diffusion_model(1, shift=True)
    with pytest.raises(Refused, match="use score"):
        likelihood_bound(causal, [1, 2])
    with pytest.raises(BadPrompt, match="the text is empty"):
        likelihood_bound(lm, [])
    with pytest.raises(BadSetting, match="at least 1, not 0"):
        likelihood_bound(lm, [1], samples=0)
    with pytest.raises(BadPrompt, match="context of 512"):
        likelihood_bound(lm, [1] * 500, [2] * 13)
    with pytest.raises(BadPrompt, match="give a prompt"):
        likelihood_bound(shifted, [1])
