"""awrs: texts weighted without bias, by enumerated languages; and the search over texts that is made of it."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from decodery.constraints import rejection
from decodery.constraints.awrs import AdaptiveWeightedRejection, strata
from decodery.errors import BadParameter, ConstraintFailed, Refused
from decodery.evaluation.check import check_method
from decodery.evaluation.weights_check import LANGUAGE, dead_end_model, masses, run_weights
from decodery.replies import Reply
from decodery.sampling.structured.grammars import Compiled
from decodery.testing import SmallLanguageModel

MASSES = masses()
MASS = math.fsum(MASSES.values())
TEXTS = list(MASSES)
POSTERIOR = {text: mass / MASS for text, mass in MASSES.items()}
"""The law of the language, which has a dead end."""
model = dead_end_model


def run(lm: SmallLanguageModel, seed: int, spec: str, **settings: Any) -> list[Reply]:
    asked = {"structured_outputs": LANGUAGE, "temperature": 1.0, "max_new_tokens": 12, "seed": seed, **settings}
    given: Any = lm.generate([0], method=spec, **asked)
    return list(given) if isinstance(given, list) else [given]


def distance(law: Mapping[str, float]) -> float:
    return 0.5 * sum(abs(law.get(text, 0.0) - POSTERIOR.get(text, 0.0)) for text in {*law, *POSTERIOR})


def averaged(laws: Sequence[Mapping[str, float]]) -> Mapping[str, float]:
    return {text: sum(law.get(text, 0.0) for law in laws) / len(laws) for text in TEXTS}


@pytest.mark.parametrize(
    ("spec", "runs"),
    [
        ("awrs(particles=1)", 500),
        ("awrs(particles=8)", 120),
        ("awrs(particles=8, resampling=multinomial, ess_threshold=1.0)", 120),
        ("awrs(particles=4, estimator=traces, traces=2)", 150),
        ("awrs(particles=4, estimator=geometric, max_accepts=3)", 150),
        ("awrs(particles=4, estimator=recursive, max_rejects=1)", 200),
    ],
)
def test_the_mass_of_the_language_is_estimated_without_bias(spec: str, runs: int) -> None:
    """The mean of the estimates within four standard errors of P(L) = .550000072; a run in which all die counts as 0."""
    assert pytest.approx(0.550000072, abs=1e-9) == MASS
    lm, found = model(), []
    for seed in range(runs):
        try:
            found.append(run_weights(lm, spec, seed)[1])
        except ConstraintFailed:
            found.append(0.0)
    error = np.std(found) / math.sqrt(runs)
    assert abs(np.mean(found) - MASS) < 4 * error + 1e-6


def test_more_particles_are_nearer_to_the_language_s_law() -> None:
    """Mean distance of single runs falls (.96, .69, .25 for 1, 8, 64), and the average of runs of 32 is near."""
    lm = model()
    means = {}
    for particles, runs in ((1, 40), (8, 30), (64, 10)):
        laws = [run_weights(lm, f"awrs(particles={particles})", seed)[0] for seed in range(runs)]
        means[particles] = np.mean([distance(law) for law in laws])
    assert means[1] > 0.9
    assert means[1] > means[8] + 0.1
    assert means[8] > means[64] + 0.2
    laws = [run_weights(lm, "awrs(particles=32)", seed)[0] for seed in range(40)]
    assert distance(averaged(laws)) < 0.15


def test_without_weights_it_is_masking() -> None:
    """Local constrained decoding is .45 away, since it enters the dead end with the whole probability of its first token."""
    lm = model()
    laws = [run_weights(lm, "awrs(particles=32, proper_weights=False)", seed)[0] for seed in range(30)]
    assert distance(averaged(laws)) == pytest.approx(0.45, abs=0.05)
    masked = [
        run(lm, seed, "autoregressive", n=32) for seed in range(8)
    ]  # the same law as masking's own, token by token
    dead = np.mean([reply.text.startswith("a") for replies in masked for reply in replies])
    assert dead == pytest.approx(0.45, abs=0.1)


def test_texts_are_given_by_weight() -> None:
    """One text of a run has nearly the language's law; as many as particles come with their own weights."""
    lm = model()
    first = Counter(run(lm, seed, "awrs(particles=16)")[0].text.removesuffix("c") for seed in range(80))
    assert first["a" * 5] / 80 < 0.1
    replies = run(lm, 3, "awrs(particles=4, ess_threshold=0.0)", n=4)
    [alone] = run(lm, 3, "awrs(particles=4, ess_threshold=0.0)")
    told = alone.stats.details["particles"]
    assert [reply.text for reply in replies] == [one["text"] for one in told]
    assert [reply.weight for reply in replies] == pytest.approx([math.exp(one["log_weight"]) for one in told])
    assert alone.weight == pytest.approx(math.exp(alone.stats.details["log_mass"]))
    some = run(lm, 3, "awrs(particles=8)", n=3)
    assert len({reply.weight for reply in some}) == 1


def test_resampling_keeps_the_weight_and_follows_it() -> None:
    shares = torch.tensor([0.5, 0.3, 0.0, 0.2], dtype=torch.float64)
    for way in ("stratified", "multinomial"):
        masses = strata(shares, way, 4)
        mean = sum(one / one.sum() for one in masses) / 4
        assert torch.allclose(torch.as_tensor(mean), shares)
    first, last = strata(shares, "stratified", 4)[0], strata(shares, "stratified", 4)[3]
    assert (first > 0).tolist() == [True, False, False, False]
    assert (last > 0).tolist() == [False, True, False, True]
    assert len(strata(shares, "stratified", 2)) == 2
    lm = model()
    assert run(lm, 0, "awrs(particles=8, ess_threshold=0.0)")[0].stats.details["resampled"] == 0
    often = run(lm, 0, "awrs(particles=8, ess_threshold=1.0)")[0].stats.details
    assert often["resampled"] > 0
    assert len({round(one["log_weight"], 9) for one in often["particles"]}) >= 1


def test_at_the_last_place_a_text_ends_or_is_dead() -> None:
    """Five letters and the end fit into six tokens; five tokens have no room for it, so nothing is left."""
    lm = model()
    for reply in run(lm, 1, "awrs(particles=4)", n=4, max_new_tokens=6):
        assert re.fullmatch("a{5}|b[ab]{4}", reply.text.removesuffix("c"))
        assert reply.finish_reason == "stop"
    with pytest.raises(ConstraintFailed, match="none of the 4 texts of awrs can become what structured_outputs wants"):
        run(lm, 1, "awrs(particles=4)", max_new_tokens=5)


def test_one_forward_a_token_and_particle() -> None:
    lm = model()
    stats = run(lm, 2, "awrs(particles=4)")[0].stats
    # The prompt once, then five letters behind the first one and no row for the end.
    assert stats.rounds == 6
    assert stats.forwards == 6
    assert stats.rows == 1 + 4 * 5


def test_the_seed_decides() -> None:
    lm = model()
    one, same, other = (run(lm, seed, "awrs(particles=8)", n=8) for seed in (7, 7, 8))
    assert [reply.text for reply in one] == [reply.text for reply in same]
    assert [reply.text for reply in one] != [reply.text for reply in other]


def test_questions_are_few() -> None:
    """At most the illegal tokens and two more, of three; masking asks about all of them, always."""
    told = run(model(), 5, "awrs(particles=8, estimator=recursive)")[0].stats.details
    assert 8 * 6 <= told["questions"] <= 8 * 6 * 3


def test_every_question_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where texts are drawn anew, and some are copied and others dropped."""
    asked: list[int] = []
    for name in ("may_follow", "may_end"):
        whole = getattr(Compiled, name)
        monkeypatch.setattr(Compiled, name, lambda *given, whole=whole: asked.append(1) or whole(*given))
    told = run(model(), 5, "awrs(particles=8, estimator=recursive, ess_threshold=1.0)")[0].stats.details
    assert told["resampled"] > 0
    assert told["questions"] == len(asked)


def test_without_a_constraint_all_weigh_one() -> None:
    replies = run(model(), 4, "awrs(particles=4)", structured_outputs=None, n=4)
    assert [reply.weight for reply in replies] == [1.0] * 4


def test_other_settings_shape_the_law_that_is_weighed() -> None:
    """With top_k=1 the model writes b only: one text, whose mass is 1."""
    [reply] = run(model(), 4, "awrs(particles=4)", top_k=1)
    assert reply.text.removesuffix("c") == "bbbbb"
    assert reply.stats.details["log_mass"] == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("spec", "settings", "error", "message"),
    [
        ("awrs", {"temperature": 0.0}, Refused, "at temperature 0 all are one; set a temperature"),
        ("awrs(particles=2)", {"n": 3}, Refused, "as many texts as particles, which are 2, and n is 3"),
        ("awrs", {"chance": "arithmetic"}, Refused, "does not run with chance arithmetic"),
        ("awrs(estimator=traces, max_rejects=3)", {}, BadParameter, "max_rejects goes with the other estimators"),
        ("awrs(estimator=recursive, max_accepts=3)", {}, BadParameter, "max_accepts acts with the estimators"),
        ("awrs(proper_weights=False, max_rejects=3)", {}, BadParameter, "proper_weights"),
    ],
)
def test_what_cannot_be_is_refused(spec: str, settings: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run(model(), 0, spec, **settings)


def test_memory_is_that_of_the_prompt_once() -> None:
    lm = model()
    request = lm.prepare([0, 1, 1], "awrs(particles=5)", temperature=1.0, max_new_tokens=6).entries[0][0]
    rows = [entry[1] for entry in AdaptiveWeightedRejection(particles=5).caches(request)]
    assert rows == [9] * 6


def test_check_decides_over_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = model()
    report = check_method(lm, "awrs(particles=4)", prompts=["a"], max_new_tokens=8)
    [part] = report.parts
    assert (report.passed, part.name, part.numbers["runs"]) == (True, "weights", 200)
    assert abs(part.numbers["mean"] - MASS) < 4 * part.numbers["error"]
    assert part.numbers["mass"] == MASS
    whole = rejection._recursive
    monkeypatch.setattr(
        rejection, "_recursive", lambda *given: (lambda found: (found[0], found[1] * 1.05))(whole(*given))
    )
    assert not check_method(lm, "awrs(particles=4, estimator=recursive)", prompts=["a"], max_new_tokens=8).passed
    [part] = check_method(lm, "awrs(proper_weights=False)", prompts=["a"], max_new_tokens=8).parts
    assert part.passed is None
