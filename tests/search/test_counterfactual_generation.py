"""Counterfactual generation: what is set, what is drawn again and with which noise, and what holds of it.

Statistical tests are deterministic (fixed seeds), and their bounds were chosen before looking.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

from decodery.engine.registry import method as as_method
from decodery.engine.settings import Settings
from decodery.errors import BadParameter, Refused
from decodery.language_model import LanguageModel
from decodery.models.forward import Forward, Scores
from decodery.replies import Reply
from decodery.sampling.chance import DrawnSample, Structural, posterior_gumbels
from decodery.sampling.noise import Noise, Stage, gumbel
from decodery.testing import (
    MethodLaws,
    TabularScorer,
    scripted_language_model,
    toy_language_model,
)
from decodery.testing.outputs import finished, new_request

FALSE_ALARM = 1e-4
SAMPLERS = ("token", "rank", "number")
PROMPT = [0, 6, 3]
LENGTH = 12
TRUNCATIONS: tuple[dict[str, Any], ...] = ({}, {"top_p": 0.7}, {"top_k": 3})


def joined(tokens: Sequence[int]) -> str:
    return "+".join(map(str, tokens))


def model(vocabulary: int = 10) -> LanguageModel:
    return scripted_language_model(TabularScorer(vocabulary, order=2, seed=3))


def decoded(lm: LanguageModel, spec: str | None = None, prompt: Sequence[int] = PROMPT, **settings: Any) -> Reply:
    """spec: the parameters of the method; None: plain decoding."""
    given = {"temperature": 0.8, "seed": 5, "max_new_tokens": LENGTH, "chance": "structural", **settings}
    method = "autoregressive" if spec is None else f"counterfactual-generation({spec})"
    reply: Reply = lm.generate(list(prompt), method, **given)
    return reply


def another(token: int, vocabulary: int = 10) -> int:
    return (token + 1) % vocabulary


class TestCounterfactualGeneration(MethodLaws):
    methods = (
        "counterfactual-generation",
        "counterfactual-generation(interventions=0:20)",
        "counterfactual-generation(interventions=0:20, noise=fresh, fresh_seed=8)",
        "counterfactual-generation(noise=fresh)",
    )


# Identity


@pytest.mark.parametrize("law", TRUNCATIONS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_nothing_set_or_what_was_there_anyway_gives_the_factual_text(sampler: str, law: dict[str, Any]) -> None:
    lm = model()
    for seed in range(8):
        settings = {"chance": f"structural(noise={sampler})", "seed": seed, **law}
        tokens = decoded(lm, **settings).token_ids
        assert decoded(lm, "", **settings).token_ids == tokens
        for place in (0, 4, LENGTH - 1):
            same = f"interventions={place}:{tokens[place]}"
            for more in ("", f", factual={joined(tokens)}", f", factual={joined(tokens)}, forced=singly"):
                assert decoded(lm, same + more, **settings).token_ids == tokens


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_on_a_network_the_same_path_gives_the_same_ids_and_another_reading_where_it_is_no_tie(sampler: str) -> None:
    lm = toy_language_model(4)
    compared = 0
    for seed in range(12):
        settings: dict[str, Any] = {
            "chance": f"structural(noise={sampler})", "seed": seed, "prompt": lm.encode("a cat and"), "ignore_eos": True,
        }  # fmt: skip
        tokens = decoded(lm, **settings).token_ids
        for place in (3, 7):
            spec = f"interventions={place}:{tokens[place]}"
            assert decoded(lm, spec, **settings).token_ids == tokens
            assert decoded(lm, f"{spec}, factual={joined(tokens)}, forced=singly", **settings).token_ids == tokens
            read = decoded(lm, f"{spec}, factual={joined(tokens)}", **settings)
            assert len(read.stats.details["margins"]) == LENGTH - place - 1
            if min(read.stats.details["margins"]) > 1e-4:
                assert read.token_ids == tokens
                compared += 1
    assert compared >= 20


def test_margins_are_told_of_draws_with_known_noise_alone() -> None:
    lm = model()
    for spec, settings, count in (
        ("", {}, LENGTH),
        ("interventions=2:1+5:auto", {}, LENGTH - 2),
        ("interventions=2:1, factual=1+2+3", {}, LENGTH - 3),
        ("factual=1+2+3, noise=posterior", {}, 0),
        ("", {"temperature": 0.0}, 0),
        ("", {"chance": "addressed"}, 0),
    ):
        assert len(decoded(lm, spec, **settings).stats.details["margins"]) == count
    assert decoded(lm, "", top_k=1).stats.details["margins"] == [float("inf")] * LENGTH


def test_noise_of_tokens_and_ranks_is_not_of_the_tokens_that_are_left() -> None:
    """A token's number must stay its own whatever a truncation leaves: only a single number may be read along what is left."""
    chances = {kind: Structural(kind).chance(DrawnSample(0, 0, 1, [], 0)) for kind in SAMPLERS}
    assert {kind: chance.by_mass for kind, chance in chances.items()} == {
        "token": False, "rank": False, "number": True,
    }  # fmt: skip
    two = torch.tensor([0.7, 0.3])
    assert all(chance.margin(two, 0) > 0 for chance in chances.values()), "of two tokens, too"


def test_margins_are_those_of_the_draws() -> None:
    """Each draw stays what it is where the law moves by less than its margin, and where it moves by more it need not."""
    lm = model()
    for sampler in SAMPLERS:
        chance = f"structural(noise={sampler})"
        reply = decoded(lm, "interventions=3:2", chance=chance)
        noise: Any = Structural(sampler).chance(DrawnSample(5, 0, 1, [], len(PROMPT)))
        drawn = [place for place in range(LENGTH) if place != 3]
        for place, margin in zip(drawn, reply.stats.details["margins"], strict=True):
            text = (*PROMPT, *reply.token_ids[:place])
            law = (lm.network.score([text[-2:]], True)[0] / 0.8).softmax(-1).double()  # type: ignore[attr-defined]
            token, position = reply.token_ids[place], len(PROMPT) + place
            if sampler == "number":
                number, cumulated = noise.uniform(position, Stage.TARGET), [0.0, *law.cumsum(0).tolist()]
                expected = min(number - cumulated[token], cumulated[token + 1] - number)
            else:
                shares, ids = law.sort(descending=True)
                sums = torch.full((10,), -torch.inf, dtype=torch.float64)
                numbers = noise.gumbels(10, position, Stage.TARGET)
                sums[ids] = shares.log() + (numbers if sampler == "rank" else numbers[ids])
                others = sums.clone()
                others[token] = -torch.inf
                expected = float(sums[token] - others.max())
            assert margin == pytest.approx(expected, abs=1e-5)


# Places


def test_a_place_keeps_its_noise_behind_another_prompt() -> None:
    draws = [
        Structural(sampler)
        .chance(DrawnSample(9, 2, 1, [], length))
        .choose(  # type: ignore[union-attr]
            torch.full((1000,), 0.001), length + 4, Stage.TARGET
        )
        for sampler in SAMPLERS
        for length in (1, 7, 300)
    ]
    assert [draws[i : i + 3].count(draws[i]) for i in (0, 3, 6)] == [3, 3, 3]
    for sampler, drawn in zip(SAMPLERS, draws[::3], strict=True):
        chance = Structural(sampler).chance(DrawnSample(9, 2, 1, [], 1))
        assert chance.choose(torch.full((1000,), 0.001), 5, Stage.TARGET, 0) == drawn
    noise: Any = [Structural().chance(DrawnSample(9, 0, 1, [], length)) for length in (2, 50)]
    keys = [
        [one.key(length + place, Stage.TARGET) for place in range(9)]
        for one, length in zip(noise, (2, 50), strict=True)
    ]
    assert keys[0] == keys[1]
    assert len(set(keys[0])) == 9
    steps = [one.uniform(4, Stage.ORDER) for one in noise]
    assert steps[0] == steps[1] == Noise(9).uniform(4, Stage.ORDER)


def test_samples_and_seeds_have_noise_of_their_own() -> None:
    keys = [
        Structural().chance(DrawnSample(seed, sample, 3, [], 4)).key(6, Stage.TARGET)  # type: ignore[attr-defined]
        for seed in range(3)
        for sample in range(3)
    ]
    assert len(set(keys)) == 9


def test_another_prompt_and_another_law_meet_the_same_noise() -> None:
    lm = model()
    for prompt, changed in (([1, 2, 8, 4, 5], {}), (PROMPT, {"logit_bias": {3: 4.0}})):
        reply = decoded(lm, "", prompt=prompt, **changed)
        noise: Any = Structural().chance(DrawnSample(5, 0, 1, [], 0))
        for place, token in enumerate(reply.token_ids):
            row = lm.network.score([(*prompt, *reply.token_ids[:place])[-2:]], True)[0]  # type: ignore[attr-defined]
            row[3] += 4.0 if changed else 0.0
            assert token == int(((row / 0.8).double() + noise.gumbels(10, place, Stage.TARGET)).argmax())


def test_what_is_set_stands_and_what_follows_meets_the_noise_of_its_place() -> None:
    lm = model()
    tokens = decoded(lm).token_ids
    first, second = another(tokens[2]), another(tokens[6])
    reply = decoded(lm, f"interventions=6:{second}+2:{first}")
    assert reply.token_ids[:3] == [*tokens[:2], first]
    assert reply.token_ids[6] == second
    told = reply.stats.details["interventions"]
    assert [(one["place"], one["token"]) for one in told] == [(2, first), (6, second)]
    assert told[0]["instead"] == tokens[2]
    noise: Any = Structural().chance(DrawnSample(5, 0, 1, [], 0))
    for place in (3, 4, 5, 7, 11):
        row = lm.network.score([(*PROMPT, *reply.token_ids[:place])[-2:]], True)[0]  # type: ignore[attr-defined]
        assert reply.token_ids[place] == int(((row / 0.8).double() + noise.gumbels(10, place, Stage.TARGET)).argmax())


def test_it_goes_on_beyond_the_end_of_the_factual_text_and_may_end_before() -> None:
    lm = model()
    texts = {seed: decoded(lm, stop_token_ids=[4], seed=seed).token_ids for seed in range(30)}
    seed, tokens = next(entry for entry in texts.items() if 4 <= len(entry[1]) < LENGTH)
    spec = f"interventions={len(tokens) - 1}:{another(4)}, factual={joined(tokens)}"
    longer = decoded(lm, spec, stop_token_ids=[4], seed=seed)
    assert len(longer.token_ids) > len(tokens)
    shorter = decoded(lm, "interventions=1:4", stop_token_ids=[4], seed=seed)
    assert len(shorter.token_ids) == 2
    assert shorter.finish_reason == "stop"


class Shifted(Noise):
    """The toy: numbers are drawn in a row, only where a token is drawn."""

    by_mass = False

    def __init__(self) -> None:
        super().__init__(5)
        self.count = 0

    def choose(self, probabilities: torch.Tensor, position: int, stage: Stage, index: Any = 0, path: Any = ()) -> int:
        self.count += 1
        return self.race(probabilities.log(), self.count, stage, index)


def test_noise_in_a_row_breaks_the_identity() -> None:
    """Forced tokens draw nothing, so that everything behind them would meet the noise of another place."""
    lm, texts = model(), []
    tokens = None
    for spec in ("", "factual=FACTUAL, interventions=4:TOKEN"):
        if tokens is not None:
            spec = spec.replace("FACTUAL", joined(tokens)).replace("TOKEN", str(tokens[4]))
        request, method = new_request(
            lm, f"counterfactual-generation({spec})", PROMPT, Settings(temperature=0.8, max_new_tokens=LENGTH, seed=5)
        )
        request.noise = Shifted()
        tokens = finished(request, method).new_tokens
        texts.append(tokens)
    assert texts[0] != texts[1]


# The law


@pytest.mark.parametrize(
    ("sampler", "law", "draws"),
    [
        ("token", {}, 50_000),
        ("token", {"top_p": 0.7}, 8000),
        ("token", {"top_k": 3}, 8000),
        ("rank", {"top_p": 0.7}, 8000),
        ("number", {"top_p": 0.7}, 8000),
    ],
)
def test_the_factual_law_is_the_model_s(sampler: str, law: dict[str, Any], draws: int) -> None:
    """Draws against the processed law (chi-square)."""
    lm = model()
    request, _ = new_request(lm, "autoregressive", PROMPT, Settings(temperature=0.8, **law))
    row = lm.network.score([tuple(PROMPT[-2:])], True)[0]  # type: ignore[attr-defined]
    expected, source = request.law.probabilities(row).double(), Structural(sampler)
    counts = Counter(
        source.chance(DrawnSample(seed, 0, 1, [], 3)).choose(expected, 3, Stage.TARGET) for seed in range(draws)
    )
    held = [place for place in range(10) if float(expected[place]) > 0]
    assert set(counts) <= set(held)
    observed = [counts[place] for place in held]
    shares = (expected[held] / expected[held].sum()).numpy()
    assert scipy.stats.chisquare(observed, draws * shares).pvalue > 0.01 / 5


def test_under_many_seeds_the_counterfactual_token_has_the_law_of_its_prefix() -> None:
    """The factual beginning is forced, so that there is one law."""
    lm = model(4)
    factual, counts = [0, 1, 3], Counter[int]()
    for start in range(0, 6000, 1000):
        replies = lm.generate(
            [[0, 2]] * 1000,
            f"counterfactual-generation(factual={joined(factual)}, interventions=2:2)",
            seed=list(range(start, start + 1000)),
            temperature=1.0, max_new_tokens=4, chance="structural",
        )  # fmt: skip
        for reply in replies:
            assert reply.token_ids[:3] == [0, 1, 2]
            counts[reply.token_ids[3]] += 1
    law = lm.network.score([(1, 2)], True)[0].double().softmax(-1)  # type: ignore[attr-defined]
    assert scipy.stats.chisquare([counts[t] for t in range(4)], 6000 * law.numpy()).pvalue > FALSE_ALARM


def test_gumbel_noise_is_stable_and_the_others_are_not() -> None:
    """20 000 pairs of laws of six tokens. Where no token has gained on the one that was drawn, it is drawn again."""
    generator = np.random.default_rng(0)
    pairs = [torch.from_numpy(generator.dirichlet([1.0] * 6, 2)) for _ in range(20_000)]
    shares = {}
    for sampler in SAMPLERS:
        held = violated = 0
        for seed, (law, other) in enumerate(pairs):
            chance = Structural(sampler).chance(DrawnSample(seed, 0, 1, [], 0))
            token, gains = chance.choose(law, 0, Stage.TARGET), other / law
            if bool((gains <= gains[token]).all()):
                held += 1
                violated += chance.choose(other, 0, Stage.TARGET) != token
        assert 500 < held < 2000
        shares[sampler] = violated / held
    assert shares["token"] == 0
    assert shares["number"] > 0.05
    assert shares["rank"] > 0.05


def test_it_is_nearer_to_the_factual_text_than_a_fresh_sample() -> None:
    lm = scripted_language_model(TabularScorer(10, order=1, seed=3, concentration=0.2))
    near = far = 0
    for seed in range(60):
        factual = decoded(lm, seed=seed).token_ids
        spec = f"interventions=1:{another(factual[1])}"
        same = decoded(lm, spec, seed=seed).token_ids
        fresh = decoded(lm, f"{spec}, noise=fresh, fresh_seed={seed + 1000}", seed=seed).token_ids
        assert fresh[:2] == same[:2]
        near += sum(a == b for a, b in zip(factual[2:], same[2:], strict=True))
        far += sum(a == b for a, b in zip(factual[2:], fresh[2:], strict=True))
    assert near > 1.3 * far


def test_fresh_noise_is_another_for_each_of_its_seeds_and_for_each_request() -> None:
    lm = model()
    texts = {
        (seed, fresh): tuple(decoded(lm, f"interventions=0:5, noise=fresh, fresh_seed={fresh}", seed=seed).token_ids)
        for seed in (1, 2)
        for fresh in (0, 1)
    }
    assert len(set(texts.values())) == 4
    assert texts[1, 1] != tuple(decoded(lm, "interventions=0:5", seed=1).token_ids)
    whole = decoded(lm, "noise=fresh, fresh_seed=1", seed=1).token_ids
    assert whole != decoded(lm, seed=1).token_ids
    assert whole == decoded(lm, f"interventions=0:{whole[0]}, noise=fresh, fresh_seed=1", seed=1).token_ids


def test_greedily_it_is_the_greedy_text_of_the_beginning_that_was_set() -> None:
    lm = model()
    tokens = decoded(lm, temperature=0.0).token_ids
    token = another(tokens[3])
    expected = [*tokens[:3], token]
    expected += decoded(lm, prompt=[*PROMPT, *expected], temperature=0.0, max_new_tokens=LENGTH - 4).token_ids
    for more in ("", f", factual={joined(tokens)}", f", factual={joined(tokens)}, noise=posterior", ", noise=fresh"):
        assert decoded(lm, f"interventions=3:{token}{more}", temperature=0.0).token_ids == expected


# What is set by itself


def test_auto_draws_from_the_nucleus_without_the_factual_token() -> None:
    lm = model()
    tokens = decoded(lm).token_ids
    row = lm.network.score([(*PROMPT, *tokens[:4])[-2:]], True)[0]  # type: ignore[attr-defined]
    law = (row / 0.8).softmax(-1)
    order = law.argsort(descending=True).tolist()
    for nucleus in (0.3, 0.6, 0.8):
        inside, mass = [], 0.0
        for token in order:
            if mass < nucleus:
                inside.append(token)
            mass += float(law[token])
        allowed = set(inside) - {tokens[4]} or {next(token for token in order if token != tokens[4])}
        chosen = set()
        for seed in range(40):
            spec = f"interventions=4:auto, nucleus={nucleus}, intervention_seed={seed}"
            [told] = decoded(lm, spec).stats.details["interventions"]
            assert told["instead"] == tokens[4]
            chosen.add(told["token"])
        assert chosen == allowed
        [known] = decoded(lm, f"interventions=4:auto, nucleus={nucleus}, factual={joined(tokens)}").stats.details[
            "interventions"
        ]
        [drawn] = decoded(lm, f"interventions=4:auto, nucleus={nucleus}, intervention_seed=42").stats.details[
            "interventions"
        ]
        assert known == drawn


def test_auto_takes_the_next_likeliest_where_nothing_is_left() -> None:
    lm = model()
    for settings in ({"temperature": 0.0}, {"top_k": 1}, {"allowed_token_ids": [2]}, {"temperature": 0.01}):
        tokens = decoded(lm, **settings).token_ids
        row = lm.network.score([(*PROMPT, *tokens[:4])[-2:]], True)[0]  # type: ignore[attr-defined]
        best = row.argsort(descending=True).tolist()
        expected = next(token for token in best if token != tokens[4])
        [told] = decoded(lm, "interventions=4:auto", **settings).stats.details["interventions"]
        assert told["token"] == expected


def test_auto_prefers_what_the_settings_allow() -> None:
    lm = model()
    allowed = {"allowed_token_ids": [2, 7], "temperature": 0.0}
    tokens = decoded(lm, **allowed).token_ids
    [told] = decoded(lm, "interventions=4:auto", **allowed).stats.details["interventions"]
    assert {told["token"], tokens[4]} == {2, 7}


def test_each_sample_draws_its_own() -> None:
    lm = model()
    replies: Any = decoded(lm, "interventions=0:auto, factual=1", n=30, max_new_tokens=1)
    assert len({reply.token_ids[0] for reply in replies}) > 1


# Texts whose noise is not known


def test_posterior_noise_gives_the_observed_text_and_is_another_with_each_seed() -> None:
    lm = model()
    text = [3, 1, 4, 1, 5, 9, 2, 6]
    spec = f"factual={joined(text)}, noise=posterior"
    changed = set()
    for seed in range(20):
        for law in TRUNCATIONS[:2]:
            if law:
                text = decoded(lm, seed=100 + seed, **law).token_ids[:8]
                spec = f"factual={joined(text)}, noise=posterior"
            settings = {"seed": seed, "max_new_tokens": 10, **law}
            assert decoded(lm, spec, **settings).token_ids[:8] == text
            assert decoded(lm, f"{spec}, interventions=2:{text[2]}", **settings).token_ids[:8] == text
        text = [3, 1, 4, 1, 5, 9, 2, 6]
        spec = f"factual={joined(text)}, noise=posterior"
        changed.add(tuple(decoded(lm, f"{spec}, interventions=2:7", seed=seed).token_ids))
    assert len(changed) > 10


def test_posterior_noise_over_texts_of_the_model_is_gumbel() -> None:
    """Kolmogorov-Smirnov on each token's noise, and a correlation between two of them, at two places of a tiny model."""
    lm = model(4)
    for place in (0, 1):
        rows = []
        for seed in range(3000):
            before = [] if place == 0 else [seed % 4]
            row = lm.network.score([tuple([*PROMPT, *before][-2:])], True)[0]  # type: ignore[attr-defined]
            law = row.double().log_softmax(-1)
            token = Noise(seed).choose(law.exp(), place, Stage.TARGET)
            numbers = Noise(seed + 100_000).uniforms(5, place, Stage.TARGET)
            noise = posterior_gumbels(law, token, numbers)
            assert int((law + noise).argmax()) == token
            rows.append(noise.numpy())
        columns = np.array(rows).T
        for column in columns:
            assert scipy.stats.kstest(column, "gumbel_r").pvalue > FALSE_ALARM
        for one, other in ((0, 1), (2, 3)):
            assert abs(np.corrcoef(columns[one], columns[other])[0, 1]) < 4 / 3000**0.5


def test_posterior_noise_of_what_a_truncation_left_out_is_not_cut_off() -> None:
    law = torch.tensor([0.6, 0.4, 0.0], dtype=torch.float64).log()
    noise = np.array([posterior_gumbels(law, 0, Noise(seed).uniforms(4, 0, Stage.TARGET))[2] for seed in range(4000)])
    assert scipy.stats.kstest(noise, "gumbel_r").pvalue > FALSE_ALARM


def test_gumbel_numbers() -> None:
    noise = gumbel(Noise(3).uniforms(20_000, 0, Stage.TARGET))
    assert scipy.stats.kstest(noise.numpy(), "gumbel_r").pvalue > FALSE_ALARM
    assert bool(gumbel(torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)).isfinite().all())


# What it costs, and what is refused


def test_what_it_costs() -> None:
    """A factual beginning is read with the prompt; posterior noise takes a forward of the whole text, of which the beginning is
    read once."""
    lm = model()
    tokens = decoded(lm).token_ids
    passes: list[tuple[int, int]] = []
    run_pass = lm.network.run_pass

    def watched(forwards: Sequence[Forward]) -> list[Scores]:
        passes.extend((forward.count, len(forward.logit_rows())) for forward in forwards)
        return run_pass(forwards)

    lm.network.run_pass = watched  # type: ignore[method-assign]
    kept = f"interventions=5:1, factual={joined(tokens)}"
    decoded(lm, kept)
    assert passes == [(3 + 4, 0), *[(1, 1)] * 7]
    passes.clear()
    decoded(lm, kept, logprobs=0)
    assert passes == [(3 + 4, 5), *[(1, 1)] * 7]
    passes.clear()
    decoded(lm, f"{kept}, forced=singly")
    assert passes == [(3, 1), *[(1, 1)] * (LENGTH - 1)]
    passes.clear()
    decoded(lm, f"{kept}, noise=posterior")
    assert passes == [(3 + LENGTH - 1, LENGTH), (3 + 4, 0), *[(1, 1)] * 7]


def test_what_it_keeps() -> None:
    """Posterior noise reads the whole factual text beside what is written."""
    for spec, caches in (("", 1), ("interventions=0:1", 1), ("factual=1+2, noise=posterior", 2)):
        request, method = new_request(
            model(), f"counterfactual-generation({spec})", PROMPT, Settings(temperature=0.8, seed=0)
        )
        assert len(method.caches(request)) == caches


def test_forced_tokens_have_their_own_log_probabilities() -> None:
    lm = model()
    tokens = decoded(lm).token_ids
    spec = f"interventions=5:1, factual={joined(tokens)}"
    found = [decoded(lm, f"{spec}{more}", logprobs=0).logprobs for more in ("", ", forced=singly")]
    assert [one.raw for one in found[0]] == [one.raw for one in found[1]]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("interventions=4", "not '4'|must be str"),
        ("interventions=four:1", "written as place:token"),
        ("interventions=4:1+4:2", "set place 4 twice"),
        ("interventions=4:blue", "written as place:token"),
        ("factual=a+b", "written as ids"),
        ("noise=posterior", "needs the text"),
        ("factual=1+2, interventions=2:1", "no place 2 in a factual text of 2 tokens; the last is 1"),
        ("factual=1+2, interventions=0:1+2:1", "no place 2 in a factual text of 2 tokens"),
        ("nucleus=0.5", "names auto"),
        ("intervention_seed=5, interventions=1:2", "names auto"),
        ("fresh_seed=5", "noise=fresh"),
        ("forced=singly", "factual is given"),
    ],
)
def test_what_cannot_be_read(spec: str, said: str) -> None:
    with pytest.raises(BadParameter, match=said):
        as_method(f"counterfactual-generation({spec})")


def test_what_cannot_be_done() -> None:
    lm = model()
    for spec in ("interventions=1:10", "factual=3+10"):
        with pytest.raises(BadParameter, match="no token 10 among the 10"):
            decoded(lm, spec)
    for spec in ("interventions=12:1", "interventions=0:1+12:1"):
        with pytest.raises(BadParameter, match="place 12 is not written, as max_new_tokens is 12"):
            decoded(lm, spec)
    decoded(lm, "interventions=11:9")
    with pytest.raises(Refused, match="does not run with chance arithmetic"):
        decoded(lm, "interventions=1:2", chance="arithmetic")
    assert decoded(lm, "", chance="arithmetic").token_ids == decoded(lm, chance="arithmetic").token_ids
    with pytest.raises(Refused, match="leaves its token 1 no probability"):
        decoded(lm, "factual=2+3, noise=posterior", allowed_token_ids=[2])
