"""How likely a masked-diffusion model finds a given text: a lower bound, by hiding parts of the text at random.

Such a model gives no token a probability after those before it, and the sum over all orders in which a text could be
written is out of reach. What can be estimated is the expected log probability of a text that is written token by token in
a uniformly random order. By Jensen's inequality it is at most the log of the probability over all orders (Uria et al.,
arXiv 1310.1757; Sahoo et al., arXiv 2406.07524). The estimator is that of LLaDA (Nie et al., arXiv 2502.09992, section 2.4
and its script for log likelihoods): hide exactly m of n tokens, with m spread evenly over 1..n, and weigh what is found by
n / m.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from decodery._lazy import torch
from decodery.engine.host import Host
from decodery.errors import BadPrompt, BadSetting, Refused
from decodery.models.forward import Attend, Forward
from decodery.models.kinds import Kind
from decodery.sampling.noise import Noise, Stage

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.engine.task import Asking

SAMPLES = 128
"""Hidings of a text; LLaDA's number."""
AT_ONCE = 1024
"""Rows of scores that are asked for at a time, each with a vocabulary of floats."""


@dataclass(frozen=True)
class LikelihoodBound:
    """An estimate of a lower bound of a text's log probability, natural. forwards: what it took.

    The estimate has the bound as its mean; one estimate may lie above it.
    """

    log_probability: float
    forwards: int


def likelihood_bound(
    lm: Host, tokens: Sequence[int], prompt: Sequence[int] = (), *, samples: int = SAMPLES, seed: int = 0
) -> Asking[LikelihoodBound]:
    """A coroutine for `LanguageModel.run`: the bound of a text behind a prompt, of the raw scores without reserved tokens.

    tokens, prompt: token ids. samples: in how many ways tokens are hidden. With samples=1 and a text of one token, it is that
    token's log probability. seed: of these. Raises Refused where the model is of another kind, BadPrompt where there is no
    text, it is too long, or a shifted model would have to predict the very first token, and BadSetting.
    """
    model = lm.network.masked
    if model is not None and model.any_order:
        raise Refused(f"{lm.network.name} is an any-order model, whose log probabilities are exact: use joint_density.")
    if model is None or Kind.MASKED_POSITIONS not in lm.network.kinds:
        raise Refused(f"{lm.network.name} is a causal model, whose log probabilities are exact: use score.")
    if samples < 1:
        raise BadSetting(f"samples must be at least 1, not {samples}.")
    if not tokens:
        raise BadPrompt("the text is empty; give at least one token.")
    if not prompt and model.shift:
        raise BadPrompt(
            f"{lm.network.name} predicts each token from the row before it; give a prompt of at least one token."
        )
    total = len(prompt) + len(tokens)
    if total > lm.network.context:
        raise BadPrompt(
            f"prompt and text have {total} tokens, but {lm.network.name} has a context of {lm.network.context}."
        )
    return _estimate(lm, list(prompt), list(tokens), samples, Noise(seed))


def hidings(count: int, samples: int, noise: Noise) -> list[list[int]]:
    """Which of `count` positions are hidden each time, ascending. How many are hidden is spread evenly over 1..count from a
    random start, as uniform draws would be in the mean; which ones is uniform among those of that number."""
    start = noise.uniform(0, Stage.ORDER)
    found = []
    for sample in range(samples):
        hidden = 1 + int((start + sample / samples) % 1.0 * count)
        order = noise.uniforms(count, 0, Stage.ORDER, ("which", sample)).argsort()
        found.append(sorted(order[:hidden].tolist()))
    return found


def _estimate(lm: Host, prompt: list[int], tokens: list[int], samples: int, noise: Noise) -> Asking[LikelihoodBound]:
    model = lm.network.masked
    assert model is not None
    count, total = len(tokens), 0.0
    text = torch.tensor(tokens)
    chosen = hidings(count, samples, noise)
    size = max(1, AT_ONCE // count)
    for start in range(0, samples, size):
        part = chosen[start : start + size]
        asks = []
        for hidden in part:
            shown = text.clone()
            shown[hidden] = model.mask_token_id
            rows = [len(prompt) + place - model.shift for place in hidden]
            asks.append(
                Forward(
                    lm.network.new_sequence(),
                    [*prompt, *shown.tolist()],
                    attend=Attend.FULL,
                    slots=range(len(prompt) + count),
                    logits=rows,
                )
            )
        answers = yield tuple(asks)
        for hidden, answer in zip(part, answers, strict=True):
            total += count / len(hidden) * _log_probability(answer.logits, text[hidden], model.reserved)
    return LikelihoodBound(total / samples, samples)


def _log_probability(scores: Tensor, wanted: Tensor, reserved: Sequence[int]) -> float:
    """The sum over rows of raw scores [m, vocabulary] of the log probability of the token wanted [m] in each."""
    law = scores.double()
    law[:, list(reserved)] = -math.inf
    return float(law.log_softmax(1).gather(1, wanted[:, None].to(law.device)).sum())
