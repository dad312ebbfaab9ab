"""Targets: contrasts and ensembles are scored as their definitions say, in every method, and cost what they cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from scripted_requests import new_request, run

from decodery.errors import BadPrompt, BadSetting, MethodUnavailable, Refused
from decodery.language_model import LanguageModel
from decodery.models.forward import Forward, Rows
from decodery.testing import TabularScorer, goodness_of_fit, scripted_language_model, story_scorer, toy_language_model

VOCABULARY = 24
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
NEGATIVE = "bad"
SPECS = [
    "guidance(scale=2)",
    f"guidance(scale=1.5, negative={NEGATIVE})",
    "contrast(amateur=other)",
    "ensemble(models=other+other)",
]
LOSSLESS = [
    "prompt-lookup",
    "suffix-automaton",
    "token-recycling",
    "cascade",
    "adaptive-draft-verification",
    "draft-model",
    "recursive-speculative-decoding",
    "spectr",
    "optimal-multi-draft",
    "swift(layers=none)",
]


def language_model() -> LanguageModel:
    return scripted_language_model(
        story_scorer(vocabulary=VOCABULARY, surprise=2.0),
        drafter=story_scorer(seed=1, vocabulary=VOCABULARY, surprise=2.0, name="other"),
    )


def by_hand(lm: LanguageModel, spec: str, prompt: Sequence[int], count: int) -> list[int]:
    """Greedy tokens, each from whole texts scored anew."""

    def row(network: Any, text: Sequence[int]) -> torch.Tensor:
        from decodery.models.forward import Forward, Rows

        return (
            network.run([Forward(network.new_sequence(), list(text), logits=Rows.LAST)])[0]
            .logits[0]
            .double()
            .log_softmax(0)
        )

    new: list[int] = []
    while len(new) < count:
        mine = row(lm.network, [*prompt, *new])
        if spec.startswith("guidance"):
            scale = 2.0 if "scale=2" in spec else 1.5
            before = lm.encode(NEGATIVE) if "negative" in spec else prompt[-1:]
            away = row(lm.network, [*before, *new])
            law = away + scale * (mine - away)
        elif spec.startswith("contrast"):
            law = 1.5 * mine - 0.5 * row(lm.companion("other").network, [*prompt, *new])
            law[mine.exp() < 0.1 * mine.exp().max()] = -torch.inf
        else:
            law = (mine.exp() + 2 * row(lm.companion("other").network, [*prompt, *new]).exp()) / 3
        new.append(int(law.argmax()))
    return new


@pytest.mark.parametrize("spec", SPECS)
def test_plain_decoding_follows_the_definition(spec: str) -> None:
    lm = language_model()
    reply = lm.generate(PROMPT, "autoregressive", max_new_tokens=20, target=spec)
    assert reply.token_ids == by_hand(lm, spec, PROMPT, 20)
    assert reply.token_ids != lm.generate(PROMPT, "autoregressive", max_new_tokens=20).token_ids


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("method", LOSSLESS[:-1])
def test_methods_are_lossless_on_a_target(spec: str, method: str) -> None:
    lm = language_model()
    texts = [PROMPT, [7, 7], [1, 2, 3] * 8]
    plain = lm.generate(texts, "autoregressive", max_new_tokens=24, target=spec)
    drafted = lm.generate(texts, method, max_new_tokens=24, target=spec)
    assert [reply.token_ids for reply in drafted] == [reply.token_ids for reply in plain]


@pytest.mark.parametrize("spec", SPECS[:3])
def test_sampled_output_is_the_same_with_and_without_drafts(spec: str) -> None:
    lm = language_model()
    settings: dict[str, Any] = {
        "max_new_tokens": 24,
        "temperature": 0.8,
        "top_p": 0.95,
        "seed": 5,
        "target": spec,
        "n": 3,
    }
    plain = lm.generate(PROMPT, "autoregressive", **settings)
    for method in ("cascade", "prompt-lookup", "token-recycling"):
        drafted = lm.generate(PROMPT, method, **settings)
        assert [reply.token_ids for reply in drafted] == [reply.token_ids for reply in plain]


@pytest.mark.parametrize("method", ["draft-model", "spectr"])
def test_random_drafts_leave_the_law_of_a_target(method: str) -> None:
    """A chi-square test at 1e-4 over the 16 pairs of first tokens, against the law by definition."""
    scorer = TabularScorer(4, order=None, seed=3)
    lm = scripted_language_model(scorer, drafter=scorer.blurred())
    prompt, scale, count = [0, 1, 2], 1.7, 1000
    expected: dict[tuple[int, ...], float] = {}
    for first in range(4):
        for second in range(4):
            mass = 1.0
            for path, token in (((), first), ((first,), second)):
                mine, away = scorer.law([*prompt, *path]).log(), scorer.law([prompt[-1], *path]).log()
                mass *= float((away + scale * (mine - away)).softmax(0)[token])
            expected[first, second] = mass
    found: Counter[tuple[int, ...]] = Counter()
    for seed in range(count // 500):
        replies = lm.generate(
            prompt, method, max_new_tokens=2, temperature=1, seed=seed, n=500, target=f"guidance(scale={scale})"
        )
        found.update(tuple(reply.token_ids) for reply in replies)
    assert goodness_of_fit(found, expected).p_value > 1e-4


def test_members_are_counted_and_packed_with_others() -> None:
    """Guidance costs two forwards a token, of one network, and shares its passes with requests that have no target."""
    scorer = story_scorer(vocabulary=VOCABULARY, surprise=2.0)
    lm = scripted_language_model(scorer)
    passes: list[int] = []
    run_pass = scorer.run_pass
    scorer.run_pass = lambda forwards: (passes.append(len(forwards)), run_pass(forwards))[1]  # type: ignore[method-assign]
    guided, plain = new_request(lm, PROMPT, target="guidance"), new_request(lm, PROMPT[1:], 1)
    run((guided, "autoregressive"), (plain, "autoregressive"))
    assert passes == [3] * 12
    assert guided.statistics.models[scorer.name].forwards == 24
    assert plain.statistics.models[scorer.name].forwards == 12


@pytest.mark.parametrize(("spec", "own", "other"), [("contrast(amateur=other, alpha=0)", 1, 1), ("guidance", 2, 0)])
def test_beams_are_one_batch_of_each_member(spec: str, own: int, other: int) -> None:
    """Of a network that is scored after two prompts two; as many rows as beams each."""
    lm = language_model()
    reply = lm.generate(PROMPT, "beam-search(beams=4)", max_new_tokens=8, target=spec, ignore_eos=True)
    assert reply.stats.models[lm.network.name].forwards == 8 * own
    rows = len(PROMPT) + 7 * 4
    assert reply.stats.models[lm.network.name].rows == (rows if own == 1 else rows + 1 + 7 * 4)
    if other:
        assert reply.stats.models["other"].forwards == 8
        assert reply.stats.models["other"].rows == rows


@pytest.mark.parametrize(
    "method", ["autoregressive", "cascade", "token-recycling", "swift", "draft-model(draft=layers, layers=1)"]
)
def test_a_network_is_guided_as_by_definition(method: str) -> None:
    lm = toy_language_model(layers=3)
    prompt = lm.encode("once upon a time there was a cat, and once upon a time there was a dog")
    reply = lm.generate(prompt, method, max_new_tokens=24, target=f"guidance(scale=1.5, negative={NEGATIVE})")
    assert reply.token_ids == by_hand(lm, "guidance(negative)", prompt, 24)[: len(reply.token_ids)]
    assert len(reply.token_ids) == 24 or reply.finish_reason == "stop"


def test_what_cannot_be_scored_is_refused() -> None:
    lm = language_model()
    with pytest.raises(BadSetting, match="target: there is no 'guidanc'; did you mean"):
        lm.generate(PROMPT, target="guidanc(scale=2)")
    with pytest.raises(BadSetting, match="must be text such as"):
        lm.generate(PROMPT, target=3)
    with pytest.raises(BadSetting, match="needs an amateur"):
        lm.generate(PROMPT, target="contrast")
    with pytest.raises(BadSetting, match="needs other models"):
        lm.generate(PROMPT, target="ensemble")
    with pytest.raises(BadSetting, match="scale must lie in"):
        lm.generate(PROMPT, target="guidance(scale=-1)")
    with pytest.raises(Refused, match=r"del .*hidden rows"):
        lm.generate(PROMPT, "del", target="guidance")
    odd = scripted_language_model(story_scorer(vocabulary=VOCABULARY), drafter=story_scorer(vocabulary=9, name="short"))
    with pytest.raises(MethodUnavailable, match="same tokenizer, but short has 9 tokens"):
        odd.generate(PROMPT, target="contrast(amateur=short)")


def test_a_longer_negative_prompt_shortens_the_context() -> None:
    scorer = story_scorer(vocabulary=VOCABULARY)
    scorer.context = 40
    lm = scripted_language_model(scorer)
    assert len(lm.generate(PROMPT, max_new_tokens=30, target="guidance").token_ids) == 30
    with pytest.raises(BadPrompt, match="context of"):
        lm.generate(PROMPT, max_new_tokens=30, target=f"guidance(negative={'long' * 5})")


def test_prompt_scores_stay_those_of_the_model() -> None:
    lm = language_model()
    plain = lm.generate(PROMPT, "autoregressive", echo=True, logprobs=0, max_new_tokens=1)
    guided = lm.generate(PROMPT, "autoregressive", echo=True, logprobs=0, max_new_tokens=1, target="guidance(scale=3)")
    assert guided.prompt_logprobs == plain.prompt_logprobs
    assert guided.logprobs != plain.logprobs


def test_a_text_cut_within_its_prompt_is_scored_as_if_it_were_new() -> None:
    """A member behind a prompt of its own, shorter or longer, keeps no row of what stood behind the cut."""
    for negative in ("", NEGATIVE, NEGATIVE * 4):
        lm = language_model()
        request = new_request(lm, PROMPT, target=f"guidance(scale=2, negative={negative!r})")
        sequence = request.new_sequence()
        text, other = [*PROMPT, 5, 6, 7], [*PROMPT, 8, 9]
        request.network.run_pass([Forward(sequence, text)])
        for cut in (len(PROMPT), 5, 0):
            sequence.truncate(cut)
            found = request.network.run_pass([Forward(sequence, other[cut:], logits=Rows.LAST)])[0].logits
            fresh = request.network.run_pass([Forward(request.new_sequence(), other, logits=Rows.LAST)])[0].logits
            assert torch.equal(found, fresh)
