"""CNTP: how many tries, where they end, which one is kept, what it costs, and that one try is plain sampling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from decodery.engine.registry import method as as_method
from decodery.engine.settings import Settings
from decodery.errors import BadParameter, Refused
from decodery.language_model import LanguageModel
from decodery.replies import Reply
from decodery.sampling.law import Law
from decodery.search.cautious_next_token import CautiousNextToken, Trial
from decodery.search.punctuation import clause_ends
from decodery.testing import (
    LetterTokenizer,
    MethodLaws,
    SmallLanguageModel,
    TabularScorer,
    exact_outputs,
    total_variation,
    toy_language_model,
)
from decodery.testing.outputs import new_request

PIECES = ("a", "b", ".", ", ", "c)", "\n", "d", ")e", "!  ", "f")
ENDS = {2, 3, 4, 5, 8}
ALWAYS = "low=0, high=1e-9"
"""All tries wherever there is a choice."""


class Pieces(LetterTokenizer):
    def __init__(self) -> None:
        super().__init__(len(PIECES))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [PIECES.index(sign) for sign in text if sign in PIECES] or [9]

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return "".join(PIECES[token] for token in token_ids)


def law_after(prefix: tuple[int, ...]) -> list[float]:
    """Ends of clauses are rare, so that there are clauses."""
    law = np.random.default_rng(prefix).dirichlet([1.0] * 10)
    law[list(ENDS)] *= 0.25
    return [float(share) for share in law]


def language_model(stops: tuple[int, ...] = ()) -> SmallLanguageModel:
    return SmallLanguageModel(TabularScorer(10, order=2, given=law_after), Pieces(), stops)


def decoded(spec: str = "", lm: LanguageModel | None = None, prompt: Sequence[int] = (0, 6), **settings: Any) -> Reply:
    given = {"temperature": 1.0, "top_p": 0.95, "seed": 4, "max_new_tokens": 40, **settings}
    reply: Reply = (lm or language_model()).generate(list(prompt), f"cautious-next-token({spec})", **given)
    return reply


def events_of(reply: Reply) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = reply.stats.details["events"]
    return found


class TestCautiousNextToken(MethodLaws):
    methods = ("cautious-next-token", "cautious-next-token(trials=3, marks=reference, longest=5, score=raw)")


def test_ends_of_clauses() -> None:
    assert clause_ends(language_model(), "text") == ENDS
    assert clause_ends(language_model(), "reference") == {
        2,
        5,
        9,
    }  # "." and a line break; the others are written with f


@pytest.mark.parametrize("rule", ["paper", "code"])
def test_tries_grow_with_the_entropy(rule: str) -> None:
    method = CautiousNextToken(trials=10, rule=rule)
    counts = [method.tries(entropy) for entropy in np.linspace(0, 3, 500)]
    assert counts == sorted(counts)
    assert set(counts) == set(range(1, 11))
    assert method.tries(0.01) == method.tries(0.0) == 1
    assert method.tries(1.5) == method.tries(9.0) == 10
    at = {"paper": (0.2, 2, 1), "code": (1 / 9, 2, 1)}[rule]
    share = at[0] * 1.49 + 0.01
    assert (method.tries(share + 1e-6), method.tries(share - 1e-3)) == at[1:]
    assert all(CautiousNextToken(trials=1, rule=rule).tries(entropy) == 1 for entropy in (0.0, 1.0, 5.0))


def test_one_try_is_plain_sampling() -> None:
    lm = language_model((5,))
    for seed in range(12):
        settings: dict[str, Any] = {"temperature": 0.9, "top_k": 6, "seed": seed, "max_new_tokens": 30}
        plain = lm.generate([1, 2], "autoregressive", repetition_penalty=1.2, **settings)
        for spec in ("trials=1", "low=50, high=60"):
            one = lm.generate([1, 2], f"cautious-next-token({spec})", repetition_penalty=1.2, **settings)
            assert one.token_ids == plain.token_ids
            assert one.stats.rows == plain.stats.rows


def test_greedy_decoding_is_sure_of_everything() -> None:
    lm = language_model()
    assert decoded("", lm, temperature=0.0).token_ids == decoded("trials=1", lm, temperature=0.0).token_ids


def test_tries_are_nested_and_the_best_gets_no_worse() -> None:
    """Fifty beginnings: the first tries are the same whatever their number."""
    lm, means = language_model(), []
    for count in (2, 5, 10):
        found = []
        for seed in range(50):
            [event, *_] = events_of(decoded(f"trials={count}, {ALWAYS}", lm, seed=seed, max_new_tokens=5))
            assert len(event["lengths"]) == count
            found.append(event)
        means.append(found)
    for few, more in ((0, 1), (1, 2)):
        for small, large in zip(means[few], means[more], strict=True):
            count = len(small["lengths"])
            assert large["lengths"][:count] == small["lengths"]
            assert large["perplexities"][:count] == small["perplexities"]
            assert min(large["perplexities"]) <= min(small["perplexities"])
        assert sum(min(e["perplexities"]) for e in means[more]) < sum(min(e["perplexities"]) for e in means[few])


def test_tries_differ() -> None:
    [event, *_] = events_of(decoded(f"trials=10, {ALWAYS}"))
    assert len(set(event["perplexities"])) > 5


@pytest.mark.parametrize("spec", ["", "marks=text, trials=4", "longest=3", "rule=code, choice=sum"])
def test_what_is_appended_ends_where_a_clause_does(spec: str) -> None:
    longest, whole, cut = 3 if "longest" in spec else 64, 0, 0
    for seed in range(10):
        reply = decoded(spec, language_model((9,)), seed=seed)
        for event in events_of(reply):
            start = event["position"] - 2
            clause = reply.token_ids[start : start + event["appended"]]
            assert event["appended"] == event["lengths"][event["kept"]]
            assert not ENDS.intersection(clause[:-1])
            assert max(event["lengths"]) <= longest
            cut += max(event["lengths"]) == longest
            over = start + len(clause) == len(reply.token_ids)
            assert clause[-1] in ENDS or over or len(clause) == longest
            whole += clause[-1] in ENDS
    assert whole > 0
    assert (cut > 0) is ("longest" in spec)


def test_the_ten_marks_of_the_official_code_end_clauses_in_place_of_others() -> None:
    inside = ended = 0
    for seed in range(6):
        reply = decoded("marks=reference", seed=seed)
        for event in events_of(reply):
            start = event["position"] - 2
            *before, last = reply.token_ids[start : start + event["appended"]]
            assert not {2, 5, 9}.intersection(before)
            inside += bool((ENDS - {2, 5}).intersection(before))
            ended += last == 9
    assert inside > 0
    assert ended > 0


@pytest.mark.parametrize("score", ["processed", "raw"])
def test_the_try_of_the_lowest_perplexity_is_kept(score: str) -> None:
    """Recomputed from the text alone."""
    lm, prompt = language_model(), [0, 6]
    settings = {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.3}
    reply = decoded(f"score={score}", lm, prompt, **settings)
    assert len(events_of(reply)) > 3
    for event in events_of(reply):
        assert event["kept"] == event["perplexities"].index(min(event["perplexities"]))
        law = Law(Settings(**settings), prompt)
        surprise, text = 0.0, list(prompt)
        for place, token in enumerate(reply.token_ids[: event["position"] - 2 + event["appended"]]):
            [row] = lm.network.score([tuple(text)], True)  # type: ignore[attr-defined]
            own = row.log_softmax(0) if score == "raw" else law.log_probabilities(row)
            if place + 2 >= event["position"]:
                surprise -= float(own[token])
            law.observe(token, row)
            text.append(token)
        perplexity = math.exp(surprise / event["appended"])
        assert event["perplexities"][event["kept"]] == pytest.approx(perplexity, rel=1e-4)


def test_by_sum_never_keeps_a_longer_try_than_by_perplexity() -> None:
    lm, shorter = language_model(), 0
    for seed in range(20):
        [event, *_] = events_of(decoded(f"trials=8, {ALWAYS}", lm, seed=seed, max_new_tokens=9))
        sums = [n * math.log(p) for n, p in zip(event["lengths"], event["perplexities"], strict=True)]
        by_sum = event["lengths"][sums.index(min(sums))]
        by_perplexity = event["lengths"][event["kept"]]
        assert by_sum <= by_perplexity
        shorter += by_sum < by_perplexity
        [other, *_] = events_of(decoded(f"trials=8, {ALWAYS}, choice=sum", lm, seed=seed, max_new_tokens=9))
        assert other["lengths"] == event["lengths"]
        assert other["appended"] == by_sum
    assert shorter > 0


def test_without_a_choice_the_law_is_that_of_plain_sampling() -> None:
    """Enumerated, with every draw of every try."""
    lm = SmallLanguageModel(TabularScorer(3, order=None, seed=5), Small(), (2,))
    settings = Settings(temperature=1.0, max_new_tokens=2, seed=0)
    law = exact_outputs(lm, f"cautious-next-token(trials=2, {ALWAYS}, choice=first)", [0, 1], settings)
    assert total_variation(law, exact_outputs(lm, "autoregressive", [0, 1], settings)) < 1e-5
    chosen = exact_outputs(lm, f"cautious-next-token(trials=2, {ALWAYS})", [0, 1], settings)
    assert total_variation(law, chosen) > 0.01


class Small(LetterTokenizer):
    def __init__(self) -> None:
        super().__init__(3)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return "".join("a.b"[token] for token in token_ids)


@pytest.mark.parametrize("spec", ["", "rule=code", "longest=4", f"trials=3, {ALWAYS}"])
def test_what_it_costs(spec: str) -> None:
    """Each token of a try is fed but its last, and what is appended is fed to its end; the very last token of all is not."""
    for seed in range(6):
        reply = decoded(spec, seed=seed)
        events, stats = events_of(reply), reply.stats
        single = len(reply.token_ids) - sum(event["appended"] for event in events)
        tried = sum(sum(length - 1 for length in event["lengths"]) + 1 for event in events)
        assert stats.rows == 2 + single + tried - 1
        passes = sum(max(event["lengths"]) for event in events)
        assert stats.forwards == stats.rounds == 1 + single + passes - 1
        assert len(events) > 0


def test_what_it_keeps() -> None:
    """The text, and that of each try."""
    for trials, caches in ((1, 1), (2, 3), (10, 11)):
        request, method = new_request(language_model(), f"cautious-next-token(trials={trials})", [0, 6], Settings())
        assert len(method.caches(request)) == caches


def test_perplexities() -> None:
    trial: Any = Trial(None, None, ("", 0, 0), tokens=[1, 2], surprise=2 * math.log(5))  # type: ignore[arg-type]
    assert trial.perplexity == pytest.approx(5.0)
    trial.surprise = 2 * 699.0
    assert trial.perplexity == pytest.approx(math.exp(699.0))
    trial.surprise = 2 * 710.0
    assert trial.perplexity == math.inf


def test_the_cache_goes_on_as_if_the_text_were_new() -> None:
    lm = toy_language_model(layers=2)
    prompt = lm.encode("once upon a time, there was a cat. and then")
    reply = lm.generate(prompt, "cautious-next-token", temperature=0.8, seed=1, max_new_tokens=40, logprobs=0)
    assert events_of(reply)
    [scores] = lm.run([_whole(lm, [*prompt, *reply.token_ids])])
    for place, token in enumerate(reply.token_ids):
        expected = scores[len(prompt) - 1 + place].log_softmax(0)[token]
        assert reply.logprobs[place].raw == pytest.approx(float(expected), abs=1e-4)


def _whole(lm: LanguageModel, text: list[int]) -> Any:
    from decodery.models.forward import Forward

    scores = yield Forward(lm.network.new_sequence(), text)
    return scores.logits


def test_a_token_of_the_best_clause_alone_is_another_method() -> None:
    reply = decoded("commit=token")
    assert all(event["appended"] == 1 for event in events_of(reply))
    assert reply.token_ids != decoded("").token_ids
    assert len(events_of(reply)) > len(events_of(decoded("")))


def test_nothing_is_told_before_it_is_chosen() -> None:
    from decodery.engine.events import Token

    lm = language_model()
    told = [e.token_id for e in lm.stream([0, 6], "cautious-next-token", temperature=1.0, seed=4, max_new_tokens=20)
            if isinstance(e, Token)]  # fmt: skip
    assert told == lm.generate([0, 6], "cautious-next-token", temperature=1.0, seed=4, max_new_tokens=20).token_ids


def test_states_and_draws_of_steps_go_with_each_try() -> None:
    """What is kept under mirostat has the law of its own path: the perplexities are those of a walk along it."""
    lm = language_model()
    settings: dict[str, Any] = {"temperature": 1.0, "mirostat": 2, "mirostat_tau": 1.5, "mirostat_eta": 0.4}
    reply = decoded("trials=4", lm, top_p=1.0, **settings)
    law, text = Law(Settings(**settings), [0, 6]), [0, 6]
    costs = []
    for token in reply.token_ids:
        [row] = lm.network.score([tuple(text)], True)  # type: ignore[attr-defined]
        costs.append(-float(law.log_probabilities(row)[token]))
        law.observe(token, row)
        text.append(token)
    for event in events_of(reply):
        start = event["position"] - 2
        mean = sum(costs[start : start + event["appended"]]) / event["appended"]
        assert event["perplexities"][event["kept"]] == pytest.approx(math.exp(mean), rel=1e-4)


def test_what_does_not_go_together() -> None:
    with pytest.raises(BadParameter, match="high must be above low"):
        as_method("cautious-next-token(low=0.5, high=0.5)")
    with pytest.raises(Refused, match="does not run with chance arithmetic"):
        decoded("trials=2", chance="arithmetic")
    assert decoded("", temperature=0.0, chance="arithmetic").token_ids
    assert torch.tensor(decoded("trials=1", chance="arithmetic").token_ids).shape == (40,)
