"""ReAGent: planted networks whose deciding token is known, its steps and counts; its baselines and metrics by naive ones."""

from __future__ import annotations

import json
import math
import re
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import byte_level_tokenizer, make_model, random_ids, reference_logits

import decodery
from decodery.audit import baselines
from decodery.audit import faithfulness as faithfulness_module
from decodery.audit.attribution import WAYS, attribute, replacer_of
from decodery.audit.baselines import ATTENTION, Inside, occlusion, random_weights, shares
from decodery.audit.faithfulness import distance, faithfulness
from decodery.audit.reagent import Importance, ReagentSettings, reagent
from decodery.audit.replacers import (
    GroupReplacer,
    InferentialReplacer,
    MaskedReplacer,
    Replacer,
    UniformReplacer,
    parts_of_speech,
)
from decodery.engine.asking import Asking
from decodery.errors import BadInput, MethodUnavailable, ModelNotReadable, Refused
from decodery.language_model import LanguageModel
from decodery.models.forward import Forward
from decodery.testing import ScriptedScorer, TabularScorer, scripted_language_model

TARGET, SIZE = 3, 8


@cache
def tiny() -> LanguageModel:
    return decodery.wrap(make_model("llama", vocab_size=330), byte_level_tokenizer(), name="tiny")


def planted(length: int, place: int, fall: float, top: float = 0.9) -> ScriptedScorer:
    """A network that gives the target the probability `top`, or `fall` less where the token at `place` is another than 1."""

    def script(prefix: tuple[int, ...]) -> torch.Tensor:
        chance = top if len(prefix) == length and prefix[place] == 1 else top - fall
        law = torch.full((SIZE,), (1 - chance) / (SIZE - 1), dtype=torch.float64)
        law[TARGET] = chance
        return law.log()

    return ScriptedScorer(script, SIZE)


def ask(network: Any, context: list[int], replacer: Replacer | None = None, **settings: Any) -> Importance:
    lm = scripted_language_model(network)
    found: Importance = lm.run(
        reagent(network, context, TARGET, replacer or UniformReplacer(), ReagentSettings(**settings))
    )
    return found


# The search


def test_the_deciding_token_takes_all_the_weight() -> None:
    """Without the test that stops a chain, at r = 0.3: above 0.9 within 200 steps, for contexts up to 50 tokens."""
    for length, fall, seed in ((50, 0.2, 1), (30, 0.9, 2), (10, 0.2, 3)):
        place = length // 2
        found = ask(planted(length, place, fall), [1] * length, tolerance=0, steps=200, chains=1, seed=seed)
        assert found.weights.shape == (length,)
        assert found.weights[place] > 0.9
        assert found.weights.min() >= 0
        assert found.weights.sum() == pytest.approx(1, abs=1e-6)
        assert (found.converged, found.steps, found.forwards) == (False, 200, 201)
        assert not found.stopped.any()


def first_above(masked_only: bool, seed: int, length: int = 20, place: int = 9, fall: float = 0.2) -> int:
    """Steps until the deciding token has 0.9 of the weight, on the planted law itself. masked_only: the ablation, where tokens
    that were not replaced stay where they are."""
    chance = np.random.Generator(np.random.Philox(key=seed))
    state = chance.random(length)
    for step in range(1, 2000):
        mask = chance.random(length) < 0.3
        down = fall if mask[place] else 0.0
        signed = np.where(mask, down, 0.0 if masked_only else -down)
        state += np.log((0.5 + 0.5 * signed) / (0.5 - 0.5 * signed))
        weights = np.exp(state - state.max())
        if weights[place] / weights.sum() > 0.9:
            return step
    raise AssertionError("never")


def test_lowering_the_others_is_what_makes_it_quick() -> None:
    """The ablation needs half as many steps again; and the method itself needs as many as the simulation of the whole rule."""
    whole, ablated = (np.mean([first_above(flag, seed) for seed in range(120)]) for flag in (False, True))
    assert ablated >= 1.5 * whole
    needed = []
    for seed in range(12):
        for steps in range(10, 200, 5):
            if ask(planted(20, 9, 0.2), [1] * 20, tolerance=0, steps=steps, chains=1, seed=seed).weights[9] > 0.9:
                needed.append(steps)
                break
    assert np.mean(needed) == pytest.approx(whole, rel=0.3)


def test_a_chain_that_stopped_has_the_deciding_token_among_its_highest() -> None:
    """The target is among the k likeliest just where the token is kept."""

    def script(prefix: tuple[int, ...]) -> torch.Tensor:
        law = torch.arange(SIZE, 0, -1.0)
        law[TARGET] = 10.0 if prefix[12] == 1 else -10.0
        return law

    found = ask(ScriptedScorer(script, SIZE), [1] * 20, chains=8, steps=100, seed=4)
    assert found.converged
    assert found.stopped.all()
    kept = math.ceil(0.3 * 20)
    for weights in found.chains:
        assert 12 in np.argsort(-weights)[:kept]
    assert 12 in found.rationale
    assert found.forwards == 1 + 2 * found.steps


def test_forwards_are_one_and_two_a_step() -> None:
    batches: list[int] = []

    class Counted(ScriptedScorer):
        def run_pass(self, forwards: Any) -> Any:
            batches.append(len(forwards))
            return super().run_pass(forwards)

    network = planted(10, 4, 0.5)
    counted = Counted(network._script, SIZE)
    found = ask(counted, [1] * 10, chains=3, steps=7, tolerance=1, kept=0.1, least=1, seed=5)
    assert found.forwards == 1 + 2 * found.steps == len(batches)
    assert batches[0] == 1
    assert batches[1:3] == [3, 3]
    assert sorted(batches[1:], reverse=True) == batches[1:]  # chains that have stopped ask no more
    batches.clear()
    found = ask(counted, [1] * 10, chains=3, steps=7, tolerance=0)
    assert batches == [1, *[3] * 7]


def test_when_chains_stop_at_once_and_when_never() -> None:
    network, context = planted(10, 4, 0.85), [1] * 10
    everything = ask(network, context, tolerance=SIZE)
    assert (everything.steps, everything.converged) == (1, True)
    kept = ask(network, context, tolerance=1, kept=1.0)
    assert (kept.steps, kept.converged) == (1, True)

    def last(prefix: tuple[int, ...]) -> torch.Tensor:
        return torch.tensor([5.0, 4.0, 3.0, -9.0, 2.0, 1.0, 0.5, 0.2])

    never = ask(ScriptedScorer(last, SIZE), context, kept=1.0, steps=20)
    assert (never.steps, never.converged) == (20, False)
    np.testing.assert_allclose(never.weights, never.chains.mean(0))
    # Of equals the lowest ids are first: the target, number 3, is the fourth of eight.
    level = ScriptedScorer(lambda prefix: torch.zeros(SIZE), SIZE)
    assert ask(level, context, tolerance=4, steps=3).steps == 1
    assert not ask(level, context, tolerance=3, steps=3).converged


def test_only_chains_that_stopped_count() -> None:
    for seed in range(20):
        found = ask(planted(12, 5, 0.85), [1] * 12, tolerance=1, kept=0.1, least=2, steps=3, chains=6, seed=seed)
        if 0 < found.stopped.sum() < 6:
            np.testing.assert_allclose(found.weights, found.chains[found.stopped].mean(0))
            assert not np.allclose(found.weights, found.chains.mean(0))
            return
    raise AssertionError("no run where some chains stopped and others did not")


def test_chance_is_that_of_the_seed_and_the_first_token_stays() -> None:
    seen: set[tuple[int, ...]] = set()
    network = planted(10, 4, 0.5)

    def script(prefix: tuple[int, ...]) -> torch.Tensor:
        seen.add(prefix)
        return torch.as_tensor(network._script(prefix))

    watched = ScriptedScorer(script, SIZE)
    one, two = (ask(watched, [2, *[1] * 9], seed=7, steps=9) for _ in range(2))
    assert np.array_equal(one.weights, two.weights)
    assert not np.array_equal(one.weights, ask(watched, [2, *[1] * 9], seed=8, steps=9).weights)
    assert all(prefix[0] == 2 for prefix in seen)
    assert {prefix[1] for prefix in seen} > {1}


def test_what_really_changed_is_counted() -> None:
    class Same(Replacer):
        """Proposes what is there, but at one place."""

        def reading(self, network: Any, context: Any) -> Asking[Any]:
            yield from ()
            proposed = np.array(context)
            proposed[3] = 5
            return lambda chains, chance: np.tile(proposed, (chains, 1))

    found = ask(planted(6, 4, 0.5), [1] * 6, Same(), tolerance=0, replaced=1.0, steps=4, chains=2)
    assert found.changed == 8
    assert ask(
        planted(6, 4, 0.5), [1] * 6, Same(), tolerance=0, replaced=0.5, steps=200, chains=2
    ).changed == pytest.approx(200, abs=40)


def test_a_certain_fall_is_not_infinite() -> None:
    def script(prefix: tuple[int, ...]) -> torch.Tensor:
        law = torch.full((SIZE,), -torch.inf)
        law[TARGET if prefix[2] == 1 else 0] = 0.0
        return law

    found = ask(ScriptedScorer(script, SIZE), [1] * 5, tolerance=0, steps=30)
    assert np.isfinite(found.weights).all()
    assert found.weights[2] > 0.99


def test_votes_make_the_rationale() -> None:
    found = ask(planted(12, 5, 0.5), [1] * 12, tolerance=0, steps=2, chains=4, votes=1, seed=9)
    highest = [set(np.argsort(-weights, kind="stable")[:4]) for weights in found.chains]
    counts = {place: sum(place in one for one in highest) for place in range(12)}
    assert set(found.rationale) == {place for place, count in counts.items() if count >= 1}
    stricter = ask(planted(12, 5, 0.5), [1] * 12, tolerance=0, steps=2, chains=4, votes=3, seed=9)
    assert set(stricter.rationale) == {place for place, count in counts.items() if count >= 3} != set(found.rationale)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"replaced": 0.0}, "replaced is a share"),
        ({"kept": 1.5}, "kept is a share"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"chains": 0}, "chains must"),
        ({"least": 0}, "least must"),
        ({"votes": 0}, "votes must"),
        ({"tolerance": -1}, "tolerance must not be negative"),
    ],
)
def test_settings_out_of_range_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        ReagentSettings(**settings)


def test_contexts_and_targets_that_cannot_be_are_refused() -> None:
    with pytest.raises(BadInput, match="at least two tokens"):
        ask(planted(1, 0, 0.5), [1])
    lm = scripted_language_model(planted(4, 2, 0.5))
    with pytest.raises(BadInput, match="no token of"):
        lm.run(reagent(lm.network, [1] * 4, SIZE, UniformReplacer()))


# Replacers


def drawn(replacer: Replacer, network: Any, context: list[int], chains: int = 400) -> np.ndarray:
    lm = scripted_language_model(network)

    def read() -> Asking[Any]:
        return (yield from replacer.reading(network, context))

    return np.asarray(lm.run(read())(chains, np.random.Generator(np.random.Philox(key=1))))


def test_uniform_tokens_are_all_others_alike() -> None:
    found = drawn(UniformReplacer(), TabularScorer(SIZE), [0, 3, 7], 4000)
    for place, own in enumerate((0, 3, 7)):
        counts = np.bincount(found[:, place], minlength=SIZE)
        assert counts[own] == 0
        others = np.delete(counts, own)
        assert ((others - 4000 / 7) ** 2 / (4000 / 7)).sum() < 22.5  # chi-squared, 6 degrees, 0.1 %


def test_groups_are_kept() -> None:
    groups = ["a", "b", "a", "b", "a", "c", "b", "b"]
    found = drawn(GroupReplacer(groups), TabularScorer(SIZE), [0, 1, 5])
    assert set(found[:, 0]) == {2, 4}
    assert set(found[:, 1]) == {3, 6, 7}
    assert set(found[:, 2]) == set(range(SIZE)) - {5}  # alone in its group
    with pytest.raises(BadInput, match="8 tokens have a group"):
        drawn(GroupReplacer(groups), TabularScorer(9), [0, 1])


def test_parts_of_speech_are_those_of_the_tagger(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    tagger = types.ModuleType("nltk")
    tagger.pos_tag = lambda words: [(words[0], "NN" if words[0].isalpha() else ".")]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nltk", tagger)
    assert parts_of_speech([" cat", "dog", ".", " "]) == ["NN", "NN", ".", "."]

    def missing(words: list[str]) -> Any:
        raise LookupError("Resource not found")

    tagger.pos_tag = missing  # type: ignore[attr-defined]
    with pytest.raises(MethodUnavailable, match="pip install nltk"):
        parts_of_speech(["a"])


def test_inferential_tokens_are_the_networks_own() -> None:
    context = random_ids(9, 2, 330)

    def read() -> Asking[Any]:
        return (yield from InferentialReplacer().reading(tiny().network, context))

    found = tiny().run(read())(2, np.random.Generator(np.random.Philox(key=1)))
    law = reference_logits(tiny().network.model, context)
    assert found.shape == (2, 9)
    assert (found[0] == found[1]).all()
    assert found[0, 0] == context[0]
    for place in range(1, 9):
        best = next(token for token in law[place - 1].topk(2).indices.tolist() if token != context[place])
        assert found[0, place] == best


@pytest.fixture(scope="module")
def masked_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    import copy

    from transformers import RobertaConfig, RobertaForMaskedLM

    folder = tmp_path_factory.mktemp("masked")
    tokenizer = copy.deepcopy(byte_level_tokenizer())
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    tokenizer.model_max_length = 32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = RobertaConfig(
            vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
            max_position_embeddings=66, pad_token_id=1,
        )  # fmt: skip
        RobertaForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_masked_model_gives_one_token_of_the_networks(masked_folder: str) -> None:
    lm = tiny()
    replacer = MaskedReplacer(masked_folder, lm.tokenizer.decode, lm.encode)
    context = lm.encode("the quick brown fox")
    for place in range(len(context)):
        found = replacer._instead(context, place)
        own = lm.tokenizer.decode([context[place]])
        assert found != context[place]
        assert lm.tokenizer.decode([found])[:1].isspace() == own[:1].isspace()
    # The likeliest candidate is taken: against the masked model's own law.
    ids = replacer.tokenizer("the quick <mask> fox", return_tensors="pt").input_ids
    masked = int((ids[0] == replacer.tokenizer.mask_token_id).nonzero()[0, 0])
    with torch.no_grad():
        order = replacer.model(input_ids=ids).logits[0, masked].argsort(descending=True).tolist()
    wanted = [replacer.tokenizer.decode([c]).strip() for c in order if c not in replacer.tokenizer.all_special_ids]
    place = next(p for p, token in enumerate(context) if lm.tokenizer.decode([token]) == " brown")
    spelled = [lm.encode(f" {text}") for text in wanted]
    assert replacer._instead(context, place) == next(s[0] for s in spelled if len(s) == 1 and s[0] != context[place])
    replacer.encode = lambda text: [1, 2]
    assert replacer._instead(context, 1) == context[1]
    with pytest.raises(BadInput, match="reads 32"):
        replacer._instead(context * 20, 1)
    with pytest.raises(ModelNotReadable, match="no masked language model"):
        MaskedReplacer(f"{masked_folder}/none", lm.tokenizer.decode, lm.encode)


# Baselines


def test_occlusion_is_the_fall_without_each_token() -> None:
    context, target = random_ids(7, 3, 330), 11
    found = tiny().run(occlusion(tiny().network, context, target))
    model = tiny().network.model

    def chance(ids: list[int]) -> float:
        return float(reference_logits(model, ids)[-1].double().softmax(0)[target])

    falls = np.array([max(0.0, chance(context) - chance(context[:p] + context[p + 1 :])) for p in range(7)])
    np.testing.assert_allclose(found, falls / falls.sum(), atol=1e-4)
    with pytest.raises(BadInput, match="at least two"):
        tiny().run(occlusion(tiny().network, [1], target))


def test_integrated_gradients_add_up_to_the_difference() -> None:
    """Completeness: their sum is the probability less that after embeddings of zeros."""
    # A large epsilon, or norms make a cliff next to zero that no number of points resolves.
    model = make_model("llama", vocab_size=330, rms_norm_eps=1.0)
    smooth = decodery.wrap(model, byte_level_tokenizer(), name="smooth")
    inside, context, target = Inside(smooth), random_ids(6, 4, 330), 5
    with torch.no_grad():
        rows = model.get_input_embeddings()(torch.tensor([context]))
        ends = [float(model(inputs_embeds=each).logits[0, -1].softmax(0)[target]) for each in (rows, 0 * rows)]
    found = inside.attributions(context, target, 1000)
    assert float(found.sum()) == pytest.approx(ends[0] - ends[1], abs=2e-3)
    shared = inside.weights("integrated-gradients", context, target)
    np.testing.assert_allclose(shared, shares(inside.attributions(context, target).abs().numpy()), rtol=1e-5)


def test_gradient_times_input_is_the_derivative() -> None:
    inside, context, target = Inside(tiny()), random_ids(6, 5, 330), 9
    rows = inside._rows(context).clone()

    def chance(moved: torch.Tensor) -> float:
        with torch.no_grad():
            return float(inside.model(inputs_embeds=moved[None]).logits[0, -1].double().softmax(0)[target])

    slopes = []
    for place in range(6):
        up, down = rows.clone(), rows.clone()
        up[place] *= 1.002
        down[place] *= 0.998
        slopes.append(abs(chance(up) - chance(down)))
    np.testing.assert_allclose(inside.weights("gradient-input", context, target), shares(np.array(slopes)), atol=0.02)


def test_attention_is_what_the_last_token_looks_at() -> None:
    inside, context = Inside(tiny()), random_ids(5, 6, 330)
    with torch.no_grad():
        model = make_model("llama", vocab_size=330)
        layers = [a[0].mean(0).double() for a in model(torch.tensor([context]), output_attentions=True).attentions]
    np.testing.assert_allclose(inside.weights("attention-last", context, 0), layers[-1][-1], atol=1e-5)
    np.testing.assert_allclose(inside.weights("attention-mean", context, 0), torch.stack(layers).mean(0)[-1], atol=1e-5)
    passed = torch.eye(5, dtype=torch.float64)
    for layer in layers:
        passed = (layer + torch.eye(5)) / 2 @ passed
    np.testing.assert_allclose(inside.weights("attention-rollout", context, 0), passed[-1], atol=1e-5)
    with pytest.raises(BadInput, match="no attribution"):
        inside.weights("magic", context, 0)
    with pytest.raises(Refused, match="fast='off'"):
        Inside(scripted_language_model(TabularScorer(6)))


def test_shares_and_random_weights_are_laws() -> None:
    np.testing.assert_allclose(shares(np.array([1.0, 3.0])), [0.25, 0.75])
    np.testing.assert_allclose(shares(np.zeros(4)), [0.25] * 4)
    weights = random_weights(50, np.random.Generator(np.random.Philox(key=1)))
    assert weights.sum() == pytest.approx(1)
    assert weights.max() / weights.min() <= math.e


# Faithfulness


def test_the_distance_is_the_published_one() -> None:
    one, other = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert distance(one, other) == pytest.approx(math.sqrt(2))
    assert distance(one, one) == 0
    half = torch.tensor([0.5, 0.5], dtype=torch.float64)
    assert distance(one, half) == pytest.approx(((1 - 0.5**0.5) ** 2 + 0.5) / 2**0.5)


def test_the_metrics_at_their_ends() -> None:
    """Keep everything: sufficient in full, and nothing is missed. Keep nothing: the other way round."""
    context = random_ids(6, 7, 330)
    weights = [np.ones(6), np.zeros(6), np.full(6, 0.5)]
    whole, none, half = tiny().run(
        faithfulness(tiny().network, context, weights, np.random.Generator(np.random.Philox(key=1)), 4)
    )
    assert whole.soft_ns == pytest.approx(1, abs=1e-4)
    assert none.soft_ns == pytest.approx(0, abs=1e-4)
    assert none.soft_nc == pytest.approx(0, abs=1e-4)  # 1 - w keeps all
    law, zero = (
        torch.as_tensor(reference_logits(tiny().network.model, context))[-1].double().softmax(0),
        tiny().network.model(inputs_embeds=torch.zeros(1, 6, 32)).logits[0, -1].double().softmax(0).detach(),
    )
    assert whole.soft_nc == pytest.approx(distance(zero, law) / distance(zero, law), abs=1e-4)
    assert half.soft_nc > 0.05


def test_the_metrics_are_means_over_masks_of_single_numbers() -> None:
    context, draws = random_ids(4, 8, 330), 3
    weights = np.array([0.7, 0.1, 0.1, 0.1])
    found = tiny().run(
        faithfulness(tiny().network, context, [weights], np.random.Generator(np.random.Philox(key=2)), draws)
    )
    noise = np.random.Generator(np.random.Philox(key=2)).random((draws, 4, 32))
    model = tiny().network.model
    with torch.no_grad():
        rows = model.get_input_embeddings()(torch.tensor(context))

        def law(each: torch.Tensor) -> torch.Tensor:
            return model(inputs_embeds=each[None]).logits[0, -1].double().softmax(0)

        full, room = law(rows), distance(law(0 * rows), law(rows))
        enough, without = [], []
        for one in torch.from_numpy(noise):
            for kept, into in ((torch.from_numpy(weights), enough), (1 - torch.from_numpy(weights), without)):
                into.append(distance(law(rows * (one < kept[:, None])), full))
    assert found[0].soft_ns == pytest.approx(np.mean([max(0, room - d) / room for d in enough]), abs=1e-3)
    assert found[0].soft_nc == pytest.approx(np.mean(without) / room, abs=1e-3)


def test_better_weights_are_more_faithful() -> None:
    """Weights on what a network looks at, against weights on what it does not: a network of the last token alone."""
    lm = decodery.wrap(make_model("llama", vocab_size=330, num_hidden_layers=1), byte_level_tokenizer(), name="one")
    with torch.no_grad():
        lm.network.model.model.layers[0].self_attn.o_proj.weight.zero_()
    lm = decodery.wrap(lm.network.model, byte_level_tokenizer(), name="one")
    context, last, first = random_ids(5, 9, 330), np.eye(5)[4], np.eye(5)[0]
    chance = np.random.Generator(np.random.Philox(key=3))
    right, wrong = lm.run(faithfulness(lm.network, context, [last, first], chance, 4))
    assert right.soft_ns == pytest.approx(1, abs=1e-3)
    assert right.soft_nc > 0.5
    assert wrong.soft_ns == pytest.approx(0, abs=1e-3)
    assert wrong.soft_nc == pytest.approx(0, abs=1e-3)


def test_where_no_embedding_matters_nothing_is_said() -> None:
    task = faithfulness(tiny().network, [1, 2, 3], [np.ones(3)], np.random.Generator(np.random.Philox(key=1)), 1)
    asked = next(task)
    assert len(asked) == 4
    assert all(isinstance(forward, Forward) for forward in asked)
    from decodery.models.forward import Scores

    with pytest.raises(StopIteration) as over:
        task.send([Scores(torch.zeros(1, 9)) for _ in asked])
    assert over.value.value is None


# Reports


@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_a_row_for_each_new_token(way: str) -> None:
    lm = tiny()
    continuation = lm.encode(" dog;")
    report = attribute(lm, "the quick brown fox", continuation, way, settings=ReagentSettings(steps=3, chains=2))
    before = len(lm.tokenize("the quick brown fox"))
    assert report.prompt_tokens == before
    assert report.ids[before:] == tuple(continuation)
    assert "".join(report.texts) == "the quick brown fox dog;"
    for place, row in enumerate(report.rows, before):
        assert row.place == place == len(row.weights)
        assert row.weights.sum() == pytest.approx(1, abs=1e-6)
        assert row.weights.min() >= 0
        assert (row.converged is None) == (way != "reagent")
    again = attribute(lm, "the quick brown fox", continuation, way, settings=ReagentSettings(steps=3, chains=2))
    assert all(np.array_equal(a.weights, b.weights) for a, b in zip(report.rows, again.rows, strict=True))
    told = report.as_dict()
    assert json.loads(json.dumps(told)) == told
    assert ("rationale" in told["rows"][0]) == (way == "reagent")


def test_ways_agree_with_their_parts() -> None:
    lm = tiny()
    ids = lm.tokenize("the quick brown fox")
    settings = ReagentSettings(steps=5, chains=2, seed=3)
    report = attribute(
        lm, "the quick brown", ids[len(lm.tokenize("the quick brown")) :], "reagent", UniformReplacer(), settings
    )
    row = report.rows[-1]
    direct = lm.run(
        reagent(lm.network, list(report.ids[: row.place]), report.ids[row.place], UniformReplacer(), settings)
    )
    assert np.array_equal(row.weights, direct.weights)
    assert (row.converged, row.rationale, row.steps) == (direct.converged, direct.rationale, direct.steps)
    assert WAYS[4:7] == ATTENTION


def test_the_page_holds_all_weights_and_no_markup_of_texts() -> None:
    lm = tiny()
    report = attribute(
        lm, "<b>the & quick", lm.encode(" fox"), "reagent", settings=ReagentSettings(steps=1, chains=1, tolerance=0)
    )
    page = report.as_html()
    assert "<b>the" not in page
    assert "&lt;" in page
    assert "&amp;" in page
    told = re.search(r"const weights = (\{.*?\}), loose = (\[.*?\]);", page)
    assert told is not None
    weights = json.loads(told[1])
    assert list(weights) == [str(row.place) for row in report.rows]
    np.testing.assert_allclose(weights[str(report.rows[0].place)], report.rows[0].weights, atol=1e-4)
    assert json.loads(told[2]) == [row.place for row in report.rows]
    assert page.count("<span id=") == len(report.texts)
    assert page.count("class=new") == len(report.rows)
    assert "http" not in page


def test_what_cannot_be_attributed_is_refused() -> None:
    with pytest.raises(BadInput, match="no attribution 'magic'"):
        attribute(tiny(), "a b", [1], "magic")
    with pytest.raises(BadInput, match="no token to attribute"):
        attribute(tiny(), "a b", [])
    with pytest.raises(BadInput, match="context of 512"):
        attribute(tiny(), "a b", [1] * 600)
    for name, kind in (("inferential", InferentialReplacer), ("uniform", UniformReplacer)):
        assert isinstance(replacer_of(name, tiny()), kind)
    with pytest.raises(BadInput, match="did you mean"):
        replacer_of("unifrom", tiny())
    with pytest.raises(BadInput, match="needs the folder"):
        replacer_of("masked", tiny())


def test_the_defaults_are_the_papers_sizes() -> None:
    assert (faithfulness_module.DRAWS, baselines.PATH) == (10, 50)
    assert ReagentSettings() == ReagentSettings(
        replaced=0.3, tolerance=3, kept=0.3, least=3, steps=300, chains=5, votes=2, seed=0
    )
