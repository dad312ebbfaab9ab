"""Best of n and self-consistency: the very samples of other methods, and the decision among them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decodery.engine import registry
from decodery.engine.autoregressive import Autoregressive
from decodery.engine.events import Token
from decodery.engine.registry import method as as_method
from decodery.engine.settings import Settings
from decodery.errors import BadParameter, Refused
from decodery.language_model import LanguageModel
from decodery.models.forward import Forward
from decodery.search.self_consistency import SelfConsistency
from decodery.search.tries import Try
from decodery.search.votes import count
from decodery.testing import scripted_language_model, story_scorer
from decodery.testing.outputs import new_request

PROMPT = [0, 1, 2, 3, 0, 1]
SETTINGS: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 8, "seed": 4, "stop_token_ids": [3, 9, 14]}
INNER = ("autoregressive", "token-recycling", "draft-model(draft=other, length=2)")


def model() -> LanguageModel:
    return scripted_language_model(story_scorer(), drafter=story_scorer(surprise=0.5, name="other"))


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("chance", ["addressed", "arithmetic"])
def test_the_tries_are_the_samples_of_the_other_method(inner: str, chance: str) -> None:
    if chance == "arithmetic" and inner != INNER[0]:
        pytest.skip("one source beside one method is enough")
    plain = model().generate(PROMPT, inner, n=5, logprobs=0, chance=chance, **SETTINGS)
    found = model().generate(PROMPT, f"best-of-n(samples=5, method='{inner}')", n=5, chance=chance, **SETTINGS)
    totals = {tuple(r.token_ids): sum(entry.raw for entry in r.logprobs) for r in plain}
    ranked = sorted(plain, key=lambda r: -totals[tuple(r.token_ids)] / len(r.token_ids))
    assert [r.token_ids for r in found] == [r.token_ids for r in ranked]
    assert [r.text for r in found] == [r.text for r in ranked]
    assert [r.finish_reason for r in found] == [r.finish_reason for r in ranked]
    for reply in found:
        total = totals[tuple(reply.token_ids)]
        assert reply.score == pytest.approx(total / len(reply.token_ids), abs=1e-5)
        assert reply.weight == pytest.approx(math.exp(total), rel=1e-4)
    told = found[0].stats.details["tries"]
    assert [entry["log_probability"] for entry in told] == pytest.approx([totals[tuple(r.token_ids)] for r in plain])


def test_the_order_is_by_the_mean_or_by_the_total() -> None:
    different = 0
    for seed in range(4):
        settings = SETTINGS | {"seed": seed}
        one = model().generate(PROMPT, "best-of-n(samples=6, by=total)", n=6, **settings)
        scores = [reply.score for reply in one]
        assert scores == sorted(scores, reverse=True)
        assert [math.log(reply.weight) for reply in one] == pytest.approx(scores, abs=1e-4)
        other = model().generate(PROMPT, "best-of-n(samples=6)", n=6, **settings)
        different += [r.token_ids for r in one] != [r.token_ids for r in other]
    assert different


def test_all_tries_share_passes_and_all_are_counted() -> None:
    passes: list[int] = []
    lm = model()
    run_pass = lm.network.run_pass
    lm.network.run_pass = lambda forwards: passes.append(len(forwards)) or run_pass(forwards)  # type: ignore[method-assign]
    settings = SETTINGS | {"stop_token_ids": []}
    reply = lm.generate(PROMPT, "best-of-n(samples=4)", **settings)
    assert passes == [4] * 8
    assert reply.stats.forwards == 32
    assert reply.stats.new_tokens == 8
    passes.clear()
    apart = lm.generate(PROMPT, "best-of-n(samples=4, at_once=2)", **settings)
    assert passes == [2] * 16
    assert apart.token_ids == reply.token_ids


def test_what_tries_keep() -> None:
    """As many texts as share passes."""
    for spec, texts in (("samples=4", 4), ("samples=4, at_once=2", 2), ("samples=4, at_once=9", 4)):
        request, method = new_request(model(), f"best-of-n({spec})", PROMPT, Settings.of(SETTINGS, 24))
        alone = as_method("autoregressive").caches(request)
        assert [rows for _, rows in method.caches(request)] == [rows for _, rows in alone * texts]


@dataclass(frozen=True)
class Ceasing(Autoregressive):
    """Returns after a token, before its output is over."""

    name: ClassVar[str] = "test-ceasing"

    def decode(self, request: Any) -> Any:
        scores = yield Forward(request.new_sequence(), request.prompt)
        request.commit([3], scores.logits[[-1]])


def test_a_try_that_ends_before_its_text_does_is_an_error() -> None:
    registry.register(Ceasing)
    try:
        with pytest.raises(RuntimeError, match="test-ceasing returned before its output was over"):
            model().generate(PROMPT, "best-of-n(method=test-ceasing)", **(SETTINGS | {"stop_token_ids": []}))
    finally:
        del registry._classes[Ceasing.name]


def test_log_probabilities_are_told_where_they_are_asked_for_alone() -> None:
    without = model().generate(PROMPT, "best-of-n", **SETTINGS)
    assert without.logprobs is None
    assert all(event.logprobs is None for event in without.events if isinstance(event, Token))
    told = model().generate(PROMPT, "best-of-n", logprobs=2, echo=True, **SETTINGS)
    assert told.token_ids == without.token_ids
    assert len(told.logprobs) == len(told.token_ids)
    assert all(len(entry.top) == 2 for entry in told.logprobs)
    assert len(told.prompt_logprobs) == len(PROMPT) - 1
    assert told.text == told.text[: len(PROMPT)] + without.text


def test_a_stream_tells_the_chosen_text_alone() -> None:
    stream = model().stream(PROMPT, "self-consistency(samples=5, answer=text)", n=2, **SETTINGS)
    told = {0: "", 1: ""}
    for event in stream:
        told[event.output] += getattr(event, "text", "")
    assert [told[0], told[1]] == [reply.text for reply in stream.replies()]


def test_packed_with_others_it_gives_what_it_gives_alone() -> None:
    prompts, methods = (
        [PROMPT, [5], PROMPT],
        ["best-of-n", "autoregressive", "self-consistency(samples=3, answer=text)"],
    )
    settings = SETTINGS | {"seed": [1, 2, 3]}
    packed = model().generate(prompts, methods, **settings)
    for place, (prompt, method) in enumerate(zip(prompts, methods, strict=True)):
        alone = model().generate(prompt, method, **(SETTINGS | {"seed": place + 1}))
        assert packed[place].token_ids == alone.token_ids


# Votes

LETTERS = {"temperature": 1.0, "max_new_tokens": 1, "seed": 2}


@pytest.mark.parametrize("seed", range(3))
def test_the_answer_of_most_samples_wins(seed: int) -> None:
    settings: dict[str, Any] = LETTERS | {"seed": seed}
    plain = [reply.text for reply in model().generate(PROMPT, "autoregressive", n=9, **settings)]
    replies = model().generate(PROMPT, "self-consistency(samples=9, answer=text)", n=9, **settings)
    details = replies[0].stats.details
    votes = {text: plain.count(text) for text in plain}
    best = max(votes.values())
    assert replies[0].text == next(text for text in plain if votes[text] == best)
    assert details["votes"] == votes
    assert replies[0].weight == details["consensus"] == best / 9
    firsts = [reply.text for reply in replies[: len(votes)]]
    assert sorted(firsts) == sorted(votes), "the texts of all answers come before a second text of any"
    assert sorted(reply.text for reply in replies) == sorted(plain)


def test_votes_may_weigh_what_their_texts_are_worth() -> None:
    spec = "self-consistency(samples=9, answer=text, votes=likelihood)"
    reply = model().generate(PROMPT, spec, **LETTERS)
    details = reply.stats.details
    expected: dict[str, float] = {}
    for one in details["tries"]:
        expected[one["text"]] = expected.get(one["text"], 0) + math.exp(one["log_probability"] / one["tokens"])
    assert details["votes"] == pytest.approx(expected)
    assert reply.text == max(expected, key=lambda text: expected[text])
    assert reply.weight == pytest.approx(max(expected.values()) / sum(expected.values()))


def test_who_has_no_answer_abstains() -> None:
    reply = model().generate(PROMPT, "self-consistency(samples=3, answer=math)", **LETTERS)
    assert reply.stats.details["abstained"] == 3
    assert reply.stats.details["answer"] is None
    assert (reply.weight, reply.stats.details["consensus"]) == (0.0, 0.0)
    assert reply.text == reply.stats.details["tries"][0]["text"]


def test_a_text_of_each_answer_comes_first_and_who_abstains_last() -> None:
    texts = ["none", "A", "B", "A", "none", "B", "C"]
    tries: Any = [Try(n, SimpleNamespace(text=text, new_tokens=[1]), -1.0) for n, text in enumerate(texts)]  # type: ignore[arg-type]
    request: Any = SimpleNamespace(statistics=SimpleNamespace(details={}))
    ranked = SelfConsistency(samples=7, answer="letter").ranked(request, tries)
    assert [one.number for one, _, _ in ranked] == [1, 2, 6, 3, 5, 0, 4]
    assert [weight for _, _, weight in ranked] == [0.4, 0.4, 0.2, 0.4, 0.4, 0.0, 0.0]
    assert request.statistics.details["abstained"] == 2


def test_stopping_early_changes_cost_and_no_answer() -> None:
    spared = 0
    for seed in range(5):
        settings: dict[str, Any] = LETTERS | {"seed": seed}
        spec = "self-consistency(samples=9, answer=text, at_once=1, stop_when_decided={})"
        whole = model().generate(PROMPT, spec.format(False), **settings)
        early = model().generate(PROMPT, spec.format(True), **settings)
        assert early.text == whole.text
        spared += len(whole.stats.details["tries"]) - len(early.stats.details["tries"])
        drawn = len(early.stats.details["tries"])
        assert early.stats.forwards == drawn
        several = model().generate(PROMPT, spec.format(True), n=drawn, **settings)
        several = several if isinstance(several, list) else [several]
        assert len(several[0].stats.details["tries"]) == drawn, "as many as are asked for, and decided"
    assert spared > 0


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", None]), st.integers(1, 4)), min_size=1, max_size=8),
)
def test_a_weight_is_so_many_votes(runs: list[tuple[str | None, int]]) -> None:
    """Whole weights count as that many runs in the place of one."""
    weighed = count({(0, i): a for i, (a, _) in enumerate(runs)}, {(0, i): float(w) for i, (_, w) in enumerate(runs)})
    several = [(i, a) for i, (a, w) in enumerate(runs) for _ in range(w)]
    counted = count({(0, place): a for place, (_, a) in enumerate(several)})
    assert weighed.winner == counted.winner
    assert dict(weighed.histogram) == dict(counted.histogram)
    assert weighed.consensus == pytest.approx(counted.consensus)


# What is refused


@pytest.mark.parametrize("name", ["best-of-n", "self-consistency"])
def test_what_cannot_be_is_refused(name: str) -> None:
    lm = model()
    with pytest.raises(Refused, match="at temperature 0 all are one"):
        lm.generate(PROMPT, name)
    with pytest.raises(Refused, match="at most as many texts as samples, which are 2, and n is 3"):
        lm.generate(PROMPT, f"{name}(samples=2)", n=3, temperature=1.0)
    for inner in ("beam-search", "masked-diffusion", "best-of-n"):
        with pytest.raises(BadParameter, match=f"{inner} cannot draw the tries"):
            as_method(f"{name}(method={inner})")
    with pytest.raises(BadParameter, match="does something only with votes=equal"):
        as_method("self-consistency(votes=likelihood, stop_when_decided=True)")
