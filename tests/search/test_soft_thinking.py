"""Soft thinking: the weights of mixtures, what is fed and what is written, when thinking ends, and the probes.

Statistical tests are deterministic (fixed seeds), and their bounds were chosen before looking.
"""

from __future__ import annotations

import itertools
import math
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
from decodery.models.forward import Forward, Rows, Scores
from decodery.replies import Reply
from decodery.sampling.noise import Noise, Stage
from decodery.search.soft_thinking.probes import Threads, divergence, lens_overlaps, mixture, threads
from decodery.search.soft_thinking.weights import dirichlet, gumbel_softmax, heaviest
from decodery.testing import MethodLaws, TabularScorer, scripted_language_model, toy_language_model
from decodery.testing.outputs import finished, new_request

FALSE_ALARM = 1e-4
LAW = torch.tensor([0.4, 0.05, 0.0, 0.3, 0.15, 0.1])
PROMPT = [0, 6, 3]
RECOMMENDED: dict[str, Any] = {"temperature": 0.6, "top_k": 30, "top_p": 0.95}
NOISES = ("vanilla", "dirichlet", "gumbel", "both")


def toy() -> LanguageModel:
    return toy_language_model(4)


def decoded(lm: LanguageModel, spec: str = "", prompt: Sequence[int] = PROMPT, **settings: Any) -> Reply:
    given = {**RECOMMENDED, "seed": 5, "max_new_tokens": 12, "ignore_eos": True, **settings}
    reply: Reply = lm.generate(list(prompt), f"soft-thinking({spec})", **given)
    return reply


def told(reply: Reply) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = reply.stats.details["thinking"]
    return found


class TestSoftThinking(MethodLaws):
    methods = (
        "soft-thinking",
        "soft-thinking(noise=dirichlet, steps=3, components=2)",
        "soft-thinking(noise=both, steps=2)",
    )

    def host(self) -> LanguageModel:
        """Mixtures are read as all that they might be, so that the story must be short-sighted."""
        return scripted_language_model(TabularScorer(24, order=2, seed=1))


# Weights


def test_the_heaviest_are_kept() -> None:
    ids, weights = heaviest(LAW, 3)
    assert ids.tolist() == [0, 3, 4]
    assert weights.tolist() == pytest.approx([0.4 / 0.85, 0.3 / 0.85, 0.15 / 0.85])
    assert heaviest(LAW, 30)[0].tolist() == [0, 3, 4, 5, 1]
    assert heaviest(torch.tensor([0.25, 0.25, 0.5, 0.0]), 2)[0].tolist() == [2, 0]
    assert heaviest(LAW, 1)[1].tolist() == [1.0]


def gumbels(temperature: float, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Orders and weights of `count` draws around the law without its impossible token."""
    law = LAW[LAW > 0].double()
    law = law / law.sum()
    return [gumbel_softmax(law, Noise(seed).uniforms(5, 0, Stage.TARGET), temperature) for seed in range(count)]


def test_the_written_token_is_a_draw_of_the_law_at_every_temperature() -> None:
    """50 000 draws (chi-square), and the very same tokens whatever the temperature of the softmax."""
    firsts = [int(order[0]) for order, _ in gumbels(0.5, 50_000)]
    law = LAW[LAW > 0].double().numpy()
    counts = Counter(firsts)
    assert scipy.stats.chisquare([counts[t] for t in range(5)], 50_000 * law / law.sum()).pvalue > FALSE_ALARM
    for temperature in (0.0, 1e-3, 0.1, 2.0, 50.0):
        assert [int(order[0]) for order, _ in gumbels(temperature, 500)] == firsts[:500]


def test_weights_stand_in_order_and_sum_to_one() -> None:
    for temperature in (0.0, 0.1, 0.5, 2.0):
        for order, weights in gumbels(temperature, 50):
            assert sorted(order.tolist()) == list(range(5))
            assert float(weights.sum()) == pytest.approx(1)
            assert weights.tolist() == sorted(weights.tolist(), reverse=True)
    for _, weights in gumbels(0.0, 20):
        assert weights.tolist() == [1, 0, 0, 0, 0]


def test_gumbel_weights_are_those_of_the_formula() -> None:
    law, numbers = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), Noise(1).uniforms(3, 0, Stage.TARGET)
    order, weights = gumbel_softmax(law, numbers, 0.7)
    scores = ((law.log() - (-numbers.log()).log()) / 0.7).softmax(0)
    assert torch.allclose(weights, scores[order])


def test_entropy_grows_with_the_temperature_at_the_same_noise() -> None:
    def entropy(weights: torch.Tensor) -> float:
        return float(torch.special.entr(weights).sum())

    rows = [[entropy(weights) for _, weights in gumbels(tau, 300)] for tau in (0.0, 0.05, 0.1, 0.5, 1.0, 2.0, 10.0)]
    for low, high in itertools.pairwise(rows):
        assert all(a <= b + 1e-12 for a, b in zip(low, high, strict=True))
        assert sum(low) < sum(high)


def test_dirichlet_weights_have_the_law_for_mean_and_their_variance() -> None:
    """Bounds are five standard errors; before the heaviest are taken."""
    count = 6000
    for concentration in (1.0, 4.0):
        drawn = torch.stack([dirichlet(LAW, concentration, Noise(seed).key(0, Stage.TARGET)) for seed in range(count)])
        variance = LAW * (1 - LAW) / (concentration + 1)
        error = 5 * (variance / count).sqrt()
        assert bool(((drawn.mean(0) - LAW).abs() <= error + 1e-12).all())
        assert drawn.var(0).tolist() == pytest.approx(variance.tolist(), rel=0.1, abs=1e-12)
        assert bool((drawn[:, 2] == 0).all())
    cut = torch.stack([heaviest(row, 2)[1][0] for row in drawn])
    assert float(cut.mean()) > 0.6


def test_a_law_that_is_not_normalised_is_for_dirichlet_weights() -> None:
    one = dirichlet(LAW, 4.0, 3)
    assert torch.allclose(one, dirichlet(5 * LAW, 4.0, 3))
    assert bool((dirichlet(torch.tensor([1.0, 1e-8, 1e-7]), 4.0, 3)[1:] == 0).all())


def test_where_every_gamma_is_too_small_one_token_is_drawn() -> None:
    drawn = torch.stack([dirichlet(LAW, 1e-9, Noise(seed).key(0, Stage.TARGET)) for seed in range(3000)])
    assert bool((drawn.max(1).values == 1).all())
    counts = drawn.sum(0)[LAW > 0].numpy()
    law = LAW[LAW > 0].double().numpy()
    assert scipy.stats.chisquare(counts, 3000 * law / law.sum()).pvalue > FALSE_ALARM


def test_gumbel_noise_stays_random_where_dirichlet_noise_fades() -> None:
    """The mean divergence between weights and law over 10 000 draws: the paper's argument for Gumbel noise."""
    law = LAW[LAW > 0].double()

    def distance(weights: torch.Tensor) -> float:
        entropy = torch.special.entr(torch.stack([(weights + law) / 2, weights, law])).sum(-1)
        return float(entropy[0] - entropy[1:].mean())

    for temperature in (0.1, 0.5, 1.0, 2.0, 20.0):
        total = 0.0
        for order, weights in gumbels(temperature, 10_000 if temperature == 0.5 else 1000):
            placed = torch.zeros(5, dtype=torch.float64)
            placed[order] = weights
            total += distance(placed) / (10_000 if temperature == 0.5 else 1000)
        assert total > 0.01
    means = []
    for concentration in (1.0, 10.0, 100.0, 10_000.0):
        drawn = [dirichlet(LAW, concentration, Noise(seed).key(0, Stage.TARGET))[LAW > 0] for seed in range(1000)]
        means.append(float(np.mean([distance(weights) for weights in drawn])))
    assert means == sorted(means, reverse=True)
    assert means[-1] < 1e-4


# What is written and fed


def test_one_component_without_noise_is_greedy_decoding() -> None:
    lm = toy()
    prompt = lm.encode("a cat sat")
    greedy = lm.generate(prompt, "autoregressive", max_new_tokens=24, ignore_eos=True).token_ids
    reply = decoded(lm, "noise=vanilla, components=1", prompt, max_new_tokens=24)
    assert reply.token_ids == greedy
    for noise in NOISES:
        assert decoded(lm, f"noise={noise}", prompt, max_new_tokens=24, temperature=0.0).token_ids == greedy


@pytest.mark.parametrize("chance", ["gumbel", "structural"])
def test_a_temperature_of_zero_is_a_race_of_the_kept_tokens(chance: str) -> None:
    """Inputs and transcript: those of sampling of the heaviest tokens under the same noise."""
    lm, passes = toy(), []
    prompt = lm.encode("a cat sat")
    _spy(lm, passes)
    for seed in range(6):
        settings = {"seed": seed, "top_k": 8, "chance": chance}
        soft = decoded(lm, "tau=0, components=8", prompt, **settings)
        seen, passes[:] = list(passes), []
        plain = lm.generate(
            prompt, "autoregressive", max_new_tokens=12, ignore_eos=True, temperature=0.6, top_p=0.95, **settings
        )
        assert soft.token_ids == plain.token_ids
        assert seen == passes
        assert all(kind == "ids" for kind, *_ in seen)
        passes.clear()


def _spy(lm: LanguageModel, passes: list[Any]) -> None:
    run_pass = lm.network.run_pass

    def watched(forwards: Sequence[Forward]) -> list[Scores]:
        for forward in forwards:
            soft = isinstance(forward.tokens, torch.Tensor)
            passes.append(("rows" if soft else "ids", torch.as_tensor(forward.tokens).tolist()))
        return run_pass(forwards)

    lm.network.run_pass = watched  # type: ignore[method-assign]


@pytest.mark.parametrize("noise", NOISES)
def test_what_is_fed_is_the_mixture_that_is_told(noise: str) -> None:
    lm, passes = toy(), []
    prompt = lm.encode("a cat sat")
    _spy(lm, passes)
    reply = decoded(lm, f"noise={noise}, components=6, steps=7", prompt, top_p=0.99, temperature=1.0)
    steps = told(reply)
    assert len(steps) == 7
    assert passes[0] == ("ids", prompt)
    assert sum(len(step["ids"]) > 1 for step in steps) > 3
    for step, token, (kind, fed) in zip(steps, reply.token_ids, passes[1:], strict=False):
        assert step["ids"][0] == token
        assert 1 <= len(step["ids"]) <= 6
        assert step["weights"] == sorted(step["weights"], reverse=True)
        assert sum(step["weights"]) == pytest.approx(1)
        if len(step["ids"]) == 1:
            assert (kind, fed) == ("ids", [token])
            continue
        rows = lm.network.embed(torch.tensor(step["ids"]))
        expected = (torch.tensor(step["weights"])[:, None] * rows).sum(0)
        assert kind == "rows"
        assert torch.allclose(torch.tensor(fed[0]), expected, atol=1e-5)
    assert [kind for kind, _ in passes[8:]] == ["ids"] * 4
    assert len(passes) == len(reply.token_ids) == reply.stats.forwards


def test_the_law_is_truncated_before_noise_comes_to_it() -> None:
    """Weights of vanilla thinking are the processed law's; drawn ones stay within its support."""
    lm = toy()
    prompt = lm.encode("a cat sat")
    request, _ = new_request(lm, "autoregressive", prompt, Settings(temperature=0.6, top_k=5, top_p=0.9))
    row = lm.network.run([Forward(lm.network.new_sequence(), prompt, logits=Rows.LAST)])[0].logits[0]
    law = request.law.probabilities(row)
    support = set(law.nonzero()[:, 0].tolist())
    assert 1 < len(support) <= 5
    [step, *_] = told(decoded(lm, "noise=vanilla, components=30", prompt, top_k=5, top_p=0.9))
    assert set(step["ids"]) == support
    assert step["weights"] == pytest.approx([float(law[token]) for token in step["ids"]], abs=1e-6)
    assert step["entropy"] == pytest.approx(float(torch.special.entr((row / 0.6).softmax(0)).sum()), rel=1e-5)
    for noise in NOISES[1:]:
        for seed in range(10):
            [step, *_] = told(decoded(lm, f"noise={noise}", prompt, top_k=5, top_p=0.9, seed=seed))
            assert set(step["ids"]) <= support


def test_vanilla_thinking_is_deterministic_and_noise_explores() -> None:
    lm = toy()
    prompt = lm.encode("a cat sat")
    for noise in NOISES:
        texts = {tuple(decoded(lm, f"noise={noise}", prompt, seed=seed).token_ids) for seed in range(6)}
        assert (len(texts) == 1) == (noise == "vanilla")


def test_drawing_only_what_is_written_explores_nothing() -> None:
    """The toy: whatever is written, what is fed is the law's mixture; the next law is vanilla's under the same history."""
    lm = toy()
    prompt = lm.encode("a cat sat")
    vanilla = told(decoded(lm, "noise=vanilla", prompt, max_new_tokens=2, temperature=1.0))
    for seed in range(4):
        drawn = told(decoded(lm, "noise=gumbel", prompt, seed=seed, max_new_tokens=2, temperature=1.0))
        assert drawn[0]["entropy"] == vanilla[0]["entropy"]
        assert drawn[1]["entropy"] != pytest.approx(vanilla[1]["entropy"], rel=1e-4)
    toyish = mixture(lm.network, vanilla[0]["ids"], vanilla[0]["weights"])
    sequence = lm.network.new_sequence()
    lm.network.run([Forward(sequence, prompt)])
    row = lm.network.run([Forward(sequence, toyish)])[0].logits[0]
    assert vanilla[1]["entropy"] == pytest.approx(float(torch.special.entr(row.softmax(0)).sum()), rel=1e-4)


def test_a_mixture_of_one_token_is_that_token() -> None:
    lm = toy()
    prompt = lm.encode("a cat sat on")
    rows = []
    for tokens in (prompt[-1:], mixture(lm.network, prompt[-1:], [1.0])):
        sequence = lm.network.new_sequence()
        lm.network.run([Forward(sequence, prompt[:-1])])
        rows.append(lm.network.run([Forward(sequence, tokens)])[0].logits)
    assert float((rows[0] - rows[1]).abs().max()) < 1e-5


def test_a_batch_of_both_modes_gives_what_each_gives_alone() -> None:
    lm = toy()
    prompts = [lm.encode(text) for text in ("a cat sat", "the", "two dogs ran", "once upon")]
    methods = ["soft-thinking", "autoregressive", "soft-thinking(steps=3)", "soft-thinking(noise=vanilla, steps=6)"]
    settings: dict[str, Any] = {**RECOMMENDED, "max_new_tokens": 12, "ignore_eos": True, "logprobs": 0}
    packed = lm.generate(prompts, methods, seed=[1, 2, 3, 4], **settings)
    for prompt, method, seed, reply in zip(prompts, methods, (1, 2, 3, 4), packed, strict=True):
        alone = lm.generate(prompt, method, seed=seed, **settings)
        assert reply.token_ids == alone.token_ids
        assert reply.stats.forwards == alone.stats.forwards == 12
        for one, other in zip(reply.logprobs, alone.logprobs, strict=True):
            assert abs(one.raw - other.raw) < 1e-4


def test_noise_has_its_addresses() -> None:
    """Other seeds, samples and positions draw other weights; what was recorded is replayed."""
    from decodery.sampling.chance import Recording, Replay

    lm = toy()
    prompt = lm.encode("a cat sat")
    for noise in NOISES[1:]:
        recording = Recording()
        reply = decoded(lm, f"noise={noise}", prompt, chance=recording)
        again = decoded(lm, f"noise={noise}", prompt, chance=Replay(tuple(recording.runs[0])), seed=99)
        assert told(again) == told(reply)
        assert len(recording.runs[0]) == (24 if noise == "both" else 12)
        samples: Any = decoded(lm, f"noise={noise}", prompt, n=2)
        assert told(samples[0]) != told(samples[1])


# When thinking ends


def tabular(vocabulary: int = 10) -> LanguageModel:
    return scripted_language_model(TabularScorer(vocabulary, order=2, seed=3))


def test_after_the_steps_tokens_are_drawn_as_ever() -> None:
    lm, passes = toy(), []
    prompt = lm.encode("a cat sat")
    _spy(lm, passes)
    for steps in (0, 1, 5, 12):
        passes.clear()
        reply = decoded(lm, f"steps={steps}", prompt, temperature=1.0)
        assert len(told(reply)) == min(steps, 12)
        assert all(kind == "ids" for kind, _ in passes[1 + steps :])
        assert reply.stats.details["ended"] == ("steps" if steps < 12 else None)
    plain = lm.generate(prompt, "autoregressive", max_new_tokens=12, ignore_eos=True, seed=5, **RECOMMENDED)
    assert decoded(lm, "steps=0", prompt).token_ids == plain.token_ids


def test_the_end_is_fed_as_tokens_where_it_is_written_and_where_the_steps_are_over() -> None:
    lm, passes = toy(), []
    prompt = lm.encode("a cat sat")
    free = decoded(lm, "", prompt, temperature=1.0).token_ids
    for size in (1, 2):
        end = lm.tokenizer.decode(free[4 : 4 + size])
        assert lm.encode(end) == free[4 : 4 + size]
        _spy(lm, passes)
        reply = decoded(lm, f"end={end!r}", prompt, temperature=1.0)
        written = next(i for i in range(12) if free[i : i + size] == free[4 : 4 + size])
        assert reply.token_ids[: written + size] == free[: written + size]
        assert reply.stats.details["ended"] == "end"
        assert len(told(reply)) == written + size
        assert passes[written + size] == ("ids", [free[written + size - 1]])
        assert [kind for kind, _ in passes[written + size :]] == ["ids"] * (12 - written - size)
        del lm.network.run_pass
        passes.clear()
    _spy(lm, passes)
    reply = decoded(lm, "end='@#', steps=3", prompt, temperature=1.0)
    assert reply.token_ids[:3] == free[:3]
    assert reply.token_ids[3:5] == lm.encode("@#")
    assert passes[4:6] == [("ids", [token]) for token in lm.encode("@#")]
    assert reply.stats.details["ended"] == "steps"
    assert len(told(reply)) == 3
    assert len(reply.token_ids) == 12


def test_an_end_token_ends_the_output_while_thinking() -> None:
    lm = tabular()
    for seed in range(40):
        reply = decoded(lm, "", stop_token_ids=[4], seed=seed)
        if reply.finish_reason == "stop":
            assert reply.token_ids.index(4) == len(reply.token_ids) - 1
            assert told(reply)[-1]["ids"][0] == 4
            return
    pytest.fail("no text ended")


@pytest.mark.parametrize("unit", ["nats", "share"])
def test_a_run_of_low_entropy_ends_thinking(unit: str) -> None:
    lm = toy()
    prompt = lm.encode("a cat sat")
    free = told(decoded(lm, f"cold_steps=1, cold_entropy=0, cold_unit={unit}", prompt, max_new_tokens=30))
    entropies = [step["entropy"] for step in free]
    if unit == "share":
        nats = [step["entropy"] for step in told(decoded(lm, "", prompt, max_new_tokens=30))]
        assert entropies == pytest.approx([value / math.log(lm.network.vocabulary) for value in nats])
    threshold = sorted(entropies)[18]
    for count in (1, 2, 3):
        run, expected = 0, None
        for place, entropy in enumerate(entropies):
            run = run + 1 if entropy < threshold else 0
            if run == count:
                expected = place
                break
        assert expected is not None
        spec = f"cold_steps={count}, cold_entropy={threshold!r}, cold_unit={unit}"
        reply = decoded(lm, f"{spec}, end='\\x02'", prompt, max_new_tokens=30)
        assert len(told(reply)) == expected
        assert reply.token_ids[expected] == 2
        assert reply.stats.details["ended"] == "cold"


def test_greedily_every_step_is_certain() -> None:
    lm = toy()
    reply = decoded(lm, "cold_steps=3", lm.encode("a cat"), temperature=0.0)
    assert len(told(reply)) == 2
    assert [step["entropy"] for step in told(reply)] == [0.0, 0.0]


# Probes


def test_divergences() -> None:
    one, other = torch.tensor([2.0, -torch.inf, 1.0]), torch.tensor([-torch.inf, 3.0, -torch.inf])
    assert divergence(one, one) == pytest.approx(0, abs=1e-12)
    assert divergence(one, other) == divergence(other, one) == pytest.approx(math.log(2))
    laws = torch.tensor([[0.5, 0.5], [0.9, 0.1]], dtype=torch.float64)
    middle = laws.mean(0)
    expected = sum(float((law * (law / middle).log()).sum()) / 2 for law in laws)
    assert divergence(*laws.log().float()) == pytest.approx(expected, rel=1e-5)


def test_threads_are_measured_from_the_same_cache() -> None:
    lm = toy()
    prompt = lm.encode("a cat sat")
    reply = decoded(lm, "noise=vanilla, components=4", prompt, temperature=1.0, max_new_tokens=6)
    found = lm.run(threads(lm.network, prompt, told(reply)))
    assert len(found) == sum(len(step["ids"]) > 1 for step in told(reply)) > 3
    sequence, expected = lm.network.new_sequence(), []
    lm.network.run([Forward(sequence, prompt)])
    for step in told(reply):
        rows = []
        for place in range(2):
            fork = sequence.fork()
            rows.append(lm.network.run([Forward(fork, [step["ids"][place]])])[0].logits[0])
        row = lm.network.run([Forward(sequence, mixture(lm.network, step["ids"], step["weights"]))])[0].logits[0]
        expected.append((divergence(row, rows[0]), divergence(row, rows[1]), divergence(*rows)))
    for one, three in zip(found, expected, strict=True):
        assert (one.to_first, one.to_second, one.first_to_second) == pytest.approx(three, abs=1e-5)
    certain = lm.run(threads(lm.network, prompt, [{"ids": [5], "weights": [1.0]}]))
    assert certain == []
    [pure] = lm.run(threads(lm.network, prompt, [{"ids": [5, 9], "weights": [1.0, 0.0]}]))
    assert isinstance(pure, Threads)
    assert pure.to_first == pytest.approx(0, abs=1e-6)
    assert pure.to_second == pytest.approx(pure.first_to_second, abs=1e-5)


def test_the_lens_reads_each_layer_of_a_mixture() -> None:
    lm = toy_language_model(1, layers=3)
    prompt = lm.encode("a cat sat")
    for share, place in ((1.0, 0), (0.0, 1)):
        found = lm.run(lens_overlaps(lm.network, prompt, 70, 90, share=share))
        assert len(found) == 3
        assert [pair[place] for pair in found] == [1.0] * 3
        assert all(pair[1 - place] < 1 for pair in found)
    mixed = lm.run(lens_overlaps(lm.network, prompt, 70, 90, top=20))
    assert all(0 <= value <= 1 for pair in mixed for value in pair)
    heads = []
    for tokens in (mixture(lm.network, [70, 90], [0.6, 0.4]), [70], [90]):
        sequence = lm.network.new_sequence()
        lm.network.run([Forward(sequence, prompt)])
        [scores] = lm.network.run([Forward(sequence, tokens, taps=(1,))])
        heads.append(set(lm.network.head()(scores.hidden[1])[0].topk(20).indices.tolist()))
    assert mixed[1] == (len(heads[0] & heads[1]) / 20, len(heads[0] & heads[2]) / 20)


# Where it runs


def test_a_contrast_of_prompts_feeds_both_and_several_models_are_refused() -> None:
    lm = toy()
    prompt = lm.encode("a cat sat")
    guided = decoded(lm, "", prompt, target="guidance(scale=1.5)")
    assert told(guided) != told(decoded(lm, "", prompt))
    assert any(len(step["ids"]) > 1 for step in told(guided))
    lm.companions["other"] = toy_language_model(5)
    with pytest.raises(Refused, match=r"feeds mixtures of embeddings: what enters .* cannot enter"):
        decoded(lm, "", prompt, target="ensemble(models=other)")


def test_what_is_refused() -> None:
    lm = toy()
    with pytest.raises(Refused, match="does not run with chance arithmetic"):
        decoded(lm, "", chance="arithmetic")
    decoded(lm, "", chance="arithmetic", temperature=0.0)
    for spec, said in (
        ("tau=0.2, noise=vanilla", "noise=gumbel or both"),
        ("concentration=2, noise=gumbel", "noise=dirichlet or both"),
        ("cold_entropy=0.5", "cold_steps is above 0"),
        ("cold_unit=share", "cold_steps is above 0"),
        ("components=0", "components must lie in"),
        ("tau=-1", "tau must lie in"),
        ("steps=-1", "steps must lie in"),
    ):
        with pytest.raises(BadParameter, match=said):
            as_method(f"soft-thinking({spec})")
    lm.encode = lambda text: []  # type: ignore[method-assign]
    with pytest.raises(BadParameter, match="no tokens for the end 'zz'"):
        decoded(lm, "end=zz", [1, 2])


def test_a_chance_without_vectors_of_noise_is_refused() -> None:
    from decodery.testing.enumeration import enumerate_outcomes

    lm = tabular(3)

    def run(chance: Any, spec: str) -> tuple[int, ...]:
        request, method = new_request(lm, spec, [0, 1], Settings(temperature=1.0, max_new_tokens=2))
        request.noise = chance
        return tuple(finished(request, method).new_tokens)

    with pytest.raises(Refused, match="draws vectors of noise"):
        enumerate_outcomes(lambda chance: run(chance, "soft-thinking"))
    law = enumerate_outcomes(lambda chance: run(chance, "soft-thinking(noise=vanilla, steps=1)"))
    assert sum(law.values()) == pytest.approx(1)
    assert len({tokens[0] for tokens in law}) == 1
