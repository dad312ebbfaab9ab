"""The sampled law of a method on tiny models whose law is known: the second half of `decodery check`.

The models are tables over three to five tokens, with a draft model of their own. Enumeration decides the law to the rounding
of float32, whatever the sample size; the chi-square test decides it with the real noise, which enumeration assumes to be
independent.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

from decodery.engine.method import Method
from decodery.engine.settings import Settings
from decodery.evaluation.check_parts import CheckPart, Progress, attempt, undecided
from decodery.language_model import LanguageModel
from decodery.sampling.chance import Addressed, Source
from decodery.testing.edges import impossible_tokens
from decodery.testing.goodness import goodness_of_fit, total_variation
from decodery.testing.hosts import scripted_language_model
from decodery.testing.outputs import exact_outputs, finished, new_request, sampled_outputs
from decodery.testing.scorers import TabularScorer

TABLES = "on a tabular model"
LENGTH = 3
"""Tokens whose joint law is tested."""
STOP = 2
"""A token that ends the output in some of the tests."""
ROUNDING = 1e-5
"""Total variation that float32 may bring about; a fault brings about a thousand times as much."""
LEAVES = 3_000
"""Most ways in which the random decisions of a request may fall, to be enumerated; where there are more, the law of fewer
tokens is."""
ENUMERATED, SAMPLED = 3, 5
"""Vocabularies."""
SHARED, REQUESTS = 16, 60
"""Samples of a request, of each set of points, and requests, in which it is seen whether samples are spread."""
EARLIER = ([0, 1], [1, 0, 1], [2, 1, 0])
"""What the session has decoded before, so that methods that learn have learned something."""

LAWS: dict[str, tuple[Settings, tuple[int, ...]]] = {
    "temperature 0.7": (Settings(temperature=0.7, max_new_tokens=LENGTH), ()),
    "temperature 1, with a stop token": (Settings(temperature=1.0, max_new_tokens=LENGTH), (STOP,)),
    "top-p 0.9": (Settings(temperature=1.0, top_p=0.9, max_new_tokens=LENGTH), ()),
    "repetition penalty 1.5, no stop before 2 tokens": (
        Settings(temperature=0.7, repetition_penalty=1.5, min_new_tokens=2, max_new_tokens=LENGTH),
        (STOP,),
    ),
}
"""The laws that are tested: name -> settings, stop tokens."""

PROMPT = [0, 1, 2, 0, 1]
"""Repeats itself, so that lookup methods have something to copy."""


def law_parts(
    lm: LanguageModel,
    method: Method,
    samples: int,
    significance: float,
    seed: int,
    tell: Progress,
    chance: Source | None = None,
) -> list[CheckPart]:
    """The experiments on tabular models. lm: only its number of layers is used, for methods that name some. chance: where draws
    come from, but for the enumeration, which takes every draw; None: the default."""
    source = chance or Addressed()
    layers = max(3, lm.network.layers)
    parts = [attempt("no impossible tokens", partial(_impossible, method, layers), TABLES)]
    tell("law by enumeration", 0, len(LAWS))
    for place, name in enumerate(LAWS):
        parts.append(attempt(f"law by enumeration, {name}", partial(_enumerated, method, layers, name, seed), TABLES))
        tell("law by enumeration", place + 1, len(LAWS))
    each = -(-samples // len(LAWS))
    for name in LAWS:
        label = f"law by sampling, {name}"

        def progress(done: int, total: int, label: str = label) -> None:
            tell(label, done, total)

        experiment = partial(_sampled, method, layers, name, each, significance / len(LAWS), seed, progress, source)
        parts.append(attempt(label, experiment, TABLES))
    if source.spread:
        spread = partial(_spread, method, layers, significance, seed, source)
        parts.append(attempt(f"samples are spread, {source.name}", spread, TABLES))
    if not method.exactness.same_law:
        parts = [undecided(method.exactness, part) if part.passed is not None else part for part in parts]
    return parts


def _model(vocabulary: int, layers: int, stop_ids: tuple[int, ...]) -> tuple[LanguageModel, TabularScorer]:
    """A model whose law depends on the whole prefix, and a draft model that agrees with it as little as is realistic.

    The seed is one where every planted fault moves the law far (`tests/exactness/test_check.py`); for a sound method all
    seeds are alike.
    """
    scorer = TabularScorer(vocabulary, order=None, seed=3, layers=layers)
    scorer.early = drafter = scorer.blurred(0.9)
    return scripted_language_model(scorer, stop_ids=stop_ids, drafter=drafter), scorer


def _prompt(vocabulary: int) -> list[int]:
    return [token % vocabulary for token in PROMPT]


def _enumerated(method: Method, layers: int, name: str, seed: int) -> CheckPart:
    settings, stop_ids = LAWS[name]
    lm, scorer = _model(ENUMERATED, layers, stop_ids)
    prompt = _prompt(ENUMERATED)
    for length in range(LENGTH, 0, -1):
        settings = dataclasses.replace(settings, seed=seed, max_new_tokens=length)
        try:
            law = exact_outputs(lm, method, prompt, settings, EARLIER, LEAVES)
        except RuntimeError:
            continue
        distance = total_variation(law, scorer.joint(prompt, length, settings, stop_ids))
        numbers = {"total_variation": distance, "outcomes": len(law), "length": length}
        said = f"the first {length} tokens are off their exact law by {distance:.2g} (rounding: up to {ROUNDING:g})"
        return CheckPart("", distance < ROUNDING, said, numbers)
    return CheckPart("", None, f"not enumerated: a single token already takes more than {LEAVES} runs")


def _sampled(
    method: Method,
    layers: int,
    name: str,
    samples: int,
    significance: float,
    seed: int,
    progress: Callable[[int, int], None],
    source: Source,
) -> CheckPart:
    settings, stop_ids = LAWS[name]
    settings = dataclasses.replace(settings, seed=seed, chance=source)
    lm, scorer = _model(SAMPLED, layers, stop_ids)
    prompt = _prompt(SAMPLED)
    for earlier in EARLIER:
        finished(*new_request(lm, method, earlier, Settings(max_new_tokens=8, seed=seed)))
    counts = sampled_outputs(lm, method, prompt, settings, samples, progress)
    fit = goodness_of_fit(counts, scorer.joint(prompt, LENGTH, settings, stop_ids))
    numbers: dict[str, Any] = {**dataclasses.asdict(fit), "significance": significance}
    said = (
        f"{samples} samples: chi-square {fit.statistic:.1f} on {fit.degrees} degrees, p = {fit.p_value:.3g} "
        f"(refuted below {significance:g}); total variation {fit.total_variation:.4f}, "
        f"{fit.expected_total_variation:.4f} expected of noise"
    )
    if fit.impossible:
        said += f"; {fit.impossible} outputs are impossible under the law"
    return CheckPart("", fit.p_value >= significance, said, numbers)


def _spread(method: Method, layers: int, significance: float, seed: int, source: Source) -> CheckPart:
    """Whether the share of a first token varies less over the samples of a request than over independent ones would."""
    from scipy.stats import chi2

    lm, scorer = _model(SAMPLED, layers, ())
    prompt, count = _prompt(SAMPLED), SHARED * getattr(source, "replications", 1)
    settings = Settings(temperature=1.0, max_new_tokens=1, n=count, chance=source)
    law = scorer.joint(prompt, 1, settings)
    (token,) = min(law, key=lambda text: abs(law[text] - 0.5))
    shares = []
    for place in range(REQUESTS):
        own = dataclasses.replace(settings, seed=seed + place)
        drawn = [finished(*new_request(lm, method, prompt, own, number)).new_tokens[0] for number in range(count)]
        shares.append(drawn.count(token) / count)
    independent = law[(token,)] * (1 - law[(token,)]) / count
    ratio = statistics.variance(shares) / independent
    p_value = float(chi2.cdf((REQUESTS - 1) * ratio, REQUESTS - 1))
    numbers = {"variance_ratio": ratio, "p_value": p_value, "significance": significance}
    said = (
        f"over {count} samples of a request the share of a first token has {ratio:.3f} times the variance that it would have "
        f"over independent ones (p = {p_value:.3g} if it were the same)"
    )
    return CheckPart("", p_value < significance, said, numbers)


def _impossible(method: Method, layers: int) -> CheckPart:
    bad, committed = impossible_tokens(method, layers)
    said = f"{bad} of {committed} tokens have probability 0 where every random number is the smallest or the largest"
    return CheckPart("", bad == 0, said, {"tokens": committed, "impossible": bad})
