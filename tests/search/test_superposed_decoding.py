"""Superposed decoding: the search written out over an explicit law, what enters the network, n-grams by brute force, costs."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import byte_level_tokenizer, make_model, random_ids

import decodery
from decodery.engine.registry import method as as_method
from decodery.engine.request import Request
from decodery.engine.settings import Settings
from decodery.errors import BadInput, BadParameter, MethodUnavailable, Refused, ScoresNotNumbers
from decodery.language_model import LanguageModel
from decodery.models.forward import Forward, Rows
from decodery.replies import Reply
from decodery.search.superposed_decoding.method import SuperposedDecoding, SuperposedText, mixed, shares
from decodery.search.superposed_decoding.ngrams import NgramCounts
from decodery.testing import (
    MethodLaws,
    ScriptedScorer,
    SmallLanguageModel,
    TabularScorer,
    scripted_language_model,
    toy_language_model,
    watched,
)

WEIGHTS = (0.01, 0.04, 0.15, 0.18, 0.12)
Entry = tuple[list[int], float]
"""A text and its score."""


def tabular(
    vocabulary: int = 6, seed: int = 0, stop_ids: tuple[int, ...] = ()
) -> tuple[SmallLanguageModel, TabularScorer]:
    scorer = TabularScorer(vocabulary, order=None, seed=seed)
    scorer.ways = 4096
    return scripted_language_model(scorer, stop_ids=stop_ids), scorer


def all_of(lm: LanguageModel, prompt: Sequence[int], spec: str, n: int = 3, **settings: Any) -> list[Reply]:
    given = lm.generate(list(prompt), f"superposed-decoding({spec})", n=n, **{"max_new_tokens": 5, **settings})
    return given if isinstance(given, list) else [given]


class TestSuperposedDecoding(MethodLaws):
    methods = ("superposed-decoding", "superposed-decoding(drafts=4, ngrams=prompt, tau=0.5, first=code)")
    deterministic = True

    def host(self) -> LanguageModel:
        """Of short memory: a scorer without a network looks at every path through the mixtures that it sees."""
        return scripted_language_model(TabularScorer(24, order=2, seed=3))

    def _runs(self) -> Iterator[Any]:
        """A single draft: with several, another length may make another text the best."""
        for prompt in self.prompts(6):
            lm, spec = self.host(), "superposed-decoding(drafts=1)"
            yield spec, lm, prompt, lm.generate(prompt, method=spec, max_new_tokens=24)


# The search, written out


def share_after(text: Sequence[int], run: Sequence[int], token: int) -> float:
    """By brute force: how often a run was followed by a token, of all times that anything followed it."""
    places = [at for at in range(len(text) - len(run)) if list(text[at : at + len(run)]) == list(run)]
    return sum(text[at + len(run)] == token for at in places) / len(places) if places else 0.0


class Written:
    """The algorithm in plain Python, step by step."""

    def __init__(self, scorer: TabularScorer, prompt: list[int], counted: list[int] | None, **values: Any):
        self.scorer, self.prompt, self.counted = scorer, prompt, counted
        self.drafts, self.tau = values.get("drafts", 3), values.get("tau", 0.06)
        self.tokens = values.get("tokens", 3 * self.drafts)
        self.alpha, self.penalty = values.get("alpha", 0.54), values.get("penalty", 200.0)
        self.weights: Sequence[float] = values.get("weights", WEIGHTS)
        self.first = values.get("first", "paper")

    def law(self, history: list[dict[int, float]]) -> dict[int, float]:
        """Logarithms of the kept tokens' shares after the prompt and a history of mixtures."""
        mean = torch.zeros(self.scorer.vocabulary, dtype=torch.float64)
        for path in itertools.product(*(mixture.items() for mixture in history)):
            weight = math.prod(share for _, share in path)
            mean += weight * self.scorer.law([*self.prompt, *(token for token, _ in path)])
        scores = {token: math.log(value) / self.tau for token, value in enumerate(mean.tolist())}
        kept = sorted(scores, key=lambda token: (-scores[token], token))[: self.tokens]
        most = max(scores[token] for token in kept)
        total = most + math.log(sum(math.exp(scores[token] - most) for token in kept))
        return {token: scores[token] - total for token in kept}

    def chosen_by(self, text: list[int], law: dict[int, float]) -> dict[int, float]:
        if self.counted is None or self.alpha == 0:
            return law
        whole, likely = [*self.prompt, *text], dict.fromkeys(law, 0.0)
        for size, weight in enumerate(self.weights, start=1):
            if size <= len(whole):
                for token in law:
                    likely[token] += weight * share_after(self.counted, whole[-size:], token)
        if not any(likely.values()):
            return {token: (1 - self.alpha) * value - self.penalty for token, value in law.items()}
        return {
            token: (1 - self.alpha) * law[token] + self.alpha * math.log(share)
            for token, share in likely.items()
            if share
        }

    def run(self, length: int, ends: Sequence[int] = ()) -> list[Entry]:
        live: list[Entry] = [([], 0.0)]
        finished: list[Entry] = []
        history: list[dict[int, float]] = []
        for step in range(length):
            law, table = self.law(history), []
            alone = step == 0 and self.first == "paper"
            for place, (text, score) in enumerate(live):
                values = law if alone else self.chosen_by(text, law)
                table += [(-(score + value), place, token) for token, value in values.items()]
            best = sorted(table)[: self.drafts if alone else 2 * self.drafts]
            grown = [([*live[place][0], token], -value) for value, place, token in best]
            finished += [entry for entry in grown if entry[0][-1] in ends]
            finished = sorted(finished, key=lambda entry: -entry[1])[: self.drafts]
            live = [entry for entry in grown if entry[0][-1] not in ends][: self.drafts]
            if not live:
                break
            total = sum(math.exp(score - live[0][1]) for _, score in live)
            mixture: Counter[int] = Counter()
            for text, score in live:
                mixture[text[-1]] += math.exp(score - live[0][1]) / total  # type: ignore[assignment]
            history.append(dict(mixture))
        return sorted([*live, *finished], key=lambda entry: -entry[1] / len(entry[0]))


CASES: list[tuple[dict[str, Any], bool, tuple[int, ...]]] = [
    ({}, False, ()),
    ({"drafts": 2, "tau": 0.8}, False, ()),
    ({"drafts": 3, "tau": 0.5, "tokens": 3}, False, (5,)),
    ({"drafts": 3, "tau": 1.0}, False, (2, 5)),
    ({"drafts": 3, "tau": 0.3}, True, ()),
    ({"drafts": 3, "tau": 0.7, "alpha": 0.3}, True, (4,)),
    ({"drafts": 2, "tau": 0.7, "alpha": 1.0, "penalty": 3.0}, True, ()),
    ({"drafts": 3, "tau": 0.7, "first": "code"}, True, (1,)),
    ({"drafts": 4, "tau": 0.4, "weights": (0.4, 0.2)}, True, ()),
    ({"drafts": 3, "tau": 0.6, "alpha": 0.0}, True, ()),
    ({"drafts": 3, "tau": 0.6, "tokens": 3, "penalty": 1.5, "weights": (0.0, 0.3, 0.9)}, True, ()),
]


@pytest.mark.parametrize(("values", "counted", "ends"), CASES, ids=str)
def test_it_is_the_algorithm_written_out(
    values: dict[str, Any], counted: bool, ends: tuple[int, ...], tmp_path: Path
) -> None:
    """Against an explicit law, with n-grams of a text of its own that knows some runs and not others."""
    told = {**values, "weights": "x".join(map(str, values["weights"]))} if "weights" in values else dict(values)
    for seed in range(4):
        lm, scorer = tabular(seed=seed, stop_ids=ends)
        text = np.random.default_rng(seed).integers(0, 6, 40).tolist()
        (tmp_path / "text").write_text(lm.tokenizer.decode(text))
        spec = ", ".join(f"{name}={value}" for name, value in told.items())
        if counted:
            spec += f", ngrams=corpus, corpus='{tmp_path / 'text'}'"
        prompt = [1, 2, seed]
        expected = Written(scorer, prompt, text if counted else None, **values).run(5, ends)
        n = min(values.get("drafts", 3), len(expected))
        replies = all_of(lm, prompt, spec, n)
        assert [reply.token_ids for reply in replies] == [entry[0] for entry in expected[:n]]
        means = [score / len(tokens) for tokens, score in expected]
        assert [reply.score for reply in replies] == pytest.approx(means[:n], abs=1e-5, rel=1e-5)
        assert [reply.weight for reply in replies] == pytest.approx([math.exp(mean) for mean in means[:n]], rel=1e-4)
        drafts = replies[0].stats.details["drafts"]
        assert [draft["tokens"] for draft in drafts] == [entry[0] for entry in expected]
        assert [draft["score"] for draft in drafts] == pytest.approx(
            [entry[1] for entry in expected], abs=1e-5, rel=1e-5
        )
        assert [draft["mean"] for draft in drafts] == pytest.approx(means, abs=1e-5, rel=1e-5)
        assert [draft["text"] for draft in drafts][:n] == [reply.text for reply in replies]


def test_a_prompt_s_own_runs_may_be_counted() -> None:
    for seed in range(4):
        lm, scorer = tabular(seed=seed)
        prompt = np.random.default_rng(seed).integers(0, 6, 12).tolist()
        expected = Written(scorer, prompt, prompt, tau=0.5).run(5)
        replies = all_of(lm, prompt, "tau=0.5, ngrams=prompt")
        assert [reply.token_ids for reply in replies] == [entry[0] for entry in expected]
        other = all_of(lm, prompt, "tau=0.5")
        assert [reply.token_ids for reply in replies] != [reply.token_ids for reply in other]


# What is promised


@pytest.mark.parametrize("tau", [0.06, 1.0, 10.0])
def test_a_single_draft_is_greedy_decoding(tau: float) -> None:
    settings: list[dict[str, Any]] = [
        {},
        {"repetition_penalty": 1.5, "min_new_tokens": 5, "stop_token_ids": [3, 4]},
        {"presence_penalty": 0.8, "logit_bias": {7: 2.0, 2: -math.inf}, "stop": "ab"},
        {"no_repeat_ngram_size": 1},
    ]
    lm = toy_language_model(2)
    for place, chosen in enumerate(settings):
        prompt = random_ids(9, place)
        shared: dict[str, Any] = {"max_new_tokens": 20, **chosen}
        plain = lm.generate(prompt, "autoregressive", **shared)
        for spec in ("drafts=1", "drafts=1, ngrams=prompt, alpha=0"):
            [alone] = all_of(lm, prompt, f"{spec}, tau={tau}", 1, **shared)
            assert (alone.token_ids, alone.text, alone.finish_reason) == (
                plain.token_ids,
                plain.text,
                plain.finish_reason,
            )


@pytest.mark.parametrize("fast", ["off", "fused"])
def test_a_mixture_of_one_token_is_that_token(fast: str) -> None:
    lm = decodery.wrap(make_model("llama", vocab_size=330), byte_level_tokenizer(), name="tiny", fast=fast)
    sequence, network = lm.network.new_sequence(), lm.network
    network.run([Forward(sequence, random_ids(9, 1), logits=Rows.NONE)])
    for token in (3, 200):
        weights = torch.zeros(1, network.vocabulary)
        weights[0, token] = 1.0
        answers = [
            network.run([Forward(sequence.fork(), fed, logits=Rows.LAST)])[0]
            for fed in ([token], network.embed(weights))
        ]
        assert float((answers[0].logits - answers[1].logits).abs().max()) < 1e-5


@pytest.mark.parametrize("drafts", [1, 2, 3, 8])
def test_it_costs_the_forwards_of_one_text(drafts: int) -> None:
    lm = toy_language_model(2)
    for length in (1, 4, 10):
        replies = all_of(lm, random_ids(9, 0), f"drafts={drafts}", drafts, max_new_tokens=length, ignore_eos=True)
        stats = replies[0].stats
        assert (stats.forwards, stats.rounds, stats.rows) == (length, length, 9 + length - 1)
        assert {len(reply.token_ids) for reply in replies} == {length}
        request = Request(lm, random_ids(9, 0), Settings(max_new_tokens=length))
        assert SuperposedDecoding(drafts=drafts).caches(request) == [(lm.network, 9 + length)], (
            "one row a step, one cache"
        )


def entered(lm: LanguageModel, prompt: Sequence[int], spec: str, **settings: Any) -> list[Any]:
    """What entered the network after the prompt: a token, or the weights of a mixture."""
    found: list[Any] = []
    weights: list[torch.Tensor] = []
    embed = lm.network.embed

    def spied(tokens: torch.Tensor) -> torch.Tensor:
        weights.append(tokens)
        return embed(tokens)

    def note(forward: Forward) -> None:
        if forward.sequence.length >= len(prompt):
            assert forward.count == 1
            found.append(weights[-1][0] if isinstance(forward.tokens, torch.Tensor) else forward.tokens[0])

    lm.network.embed = spied  # type: ignore[method-assign]
    with watched(lm.network, note):
        all_of(lm, prompt, spec, **settings)
    return found


def test_shares_sum_to_one_and_equal_tokens_add_theirs() -> None:
    shared = 0
    for seed in range(6):
        lm = toy_language_model(seed)
        for weights in entered(lm, random_ids(9, seed), "drafts=4, tau=0.8", n=1, max_new_tokens=10):
            if isinstance(weights, torch.Tensor):
                assert float(weights.sum()) == pytest.approx(1.0, abs=1e-6)
                assert bool((weights >= 0).all())
                shared += int((weights > 0).sum()) < 4
    assert shared, "no two drafts ever ended alike, so nothing was tried"


def drafts_of(*entries: tuple[list[int], float], **settings: Any) -> list[SuperposedText]:
    found = []
    for tokens, score in entries:
        request = Request(tabular()[0], [0], Settings(max_new_tokens=9, **settings), together=True)
        request.output.commit(tokens, [torch.zeros(6)] * len(tokens))
        found.append(SuperposedText(request.output, score))
    return found


def test_what_enters_for_given_drafts() -> None:
    drafts = drafts_of(([1, 2], -1.0), ([3, 2], -2.0), ([2, 5], -500.0), ([1, 4], -1.5))
    powers = [math.exp(-1.0), math.exp(-2.0), math.exp(-500.0), math.exp(-1.5)]
    assert shares(drafts).tolist() == pytest.approx([power / sum(powers) for power in powers])
    far = drafts_of(([1, 2], -10_000.0), ([3, 4], -10_000.0 + math.log(3)))
    assert shares(far).tolist() == pytest.approx([0.25, 0.75])
    asked: list[torch.Tensor] = []

    class Owner:
        vocabulary = 6

        def embed(self, tokens: torch.Tensor) -> torch.Tensor:
            asked.append(tokens)
            return tokens

    mixed(Owner(), drafts)  # type: ignore[arg-type]
    expected = [0, 0, powers[0] + powers[1], 0, powers[3], powers[2]]
    assert asked[0].tolist()[0] == pytest.approx([value / sum(powers) for value in expected])
    assert mixed(Owner(), drafts[:2]) == [2]  # type: ignore[arg-type]
    assert len(asked) == 1


def test_all_texts_differ_from_the_first_step_on() -> None:
    for seed, spec in itertools.product(
        range(4), ("drafts=6, tau=0.9", "drafts=6, tau=0.9, ngrams=prompt, first=code")
    ):
        lm = toy_language_model(seed)
        for length in range(1, 8):
            [reply] = all_of(
                lm, random_ids(30, seed), spec, 1, max_new_tokens=length, stop_token_ids=list(range(0, 260, 7))
            )
            texts = [tuple(draft["tokens"]) for draft in reply.stats.details["drafts"]]
            assert len(set(texts)) == len(texts)
            assert len(texts) > 1


def test_without_ngrams_all_drafts_rank_the_next_tokens_alike() -> None:
    method = SuperposedDecoding(drafts=3, tau=0.7)
    drafts = drafts_of(([1, 2], -0.5), ([3, 4], -1.25), ([5, 0], -7.0))
    row = torch.randn(6, generator=torch.Generator().manual_seed(0))
    found = {(id(d), token): score for d, token, score in method._continued(drafts, row, None, False)}
    for token in {token for _, token in found}:
        values = [found[id(draft), token] - draft.score for draft in drafts]
        assert values == pytest.approx([values[0]] * 3, abs=1e-12)
    method = SuperposedDecoding(drafts=3, tau=0.7, ngrams="prompt", weights="0.3x0.5")
    counts = NgramCounts.of([1, 2, 3, 3, 4, 0, 5, 0, 1], 3, 6)
    other = [score - d.score for d, token, score in method._continued(drafts, row, counts, False) if token in (0, 3)]
    assert len({round(value, 9) for value in other}) > 1


def test_equals_go_by_draft_and_then_by_token() -> None:
    method = SuperposedDecoding(drafts=2, tau=1.0)
    one, two = drafts_of(([1], -1.0), ([2], -1.0))
    ranked = method._continued([one, two], torch.zeros(6), None, False)
    assert [(draft, token) for draft, token, _ in ranked] == [(d, token) for d in (one, two) for token in range(6)]


def test_each_draft_goes_on_by_the_law_of_its_own_text() -> None:
    """What may not be repeated is another token for each."""
    drafts = drafts_of(([1, 2], -1.0), ([3, 4], -1.0), no_repeat_ngram_size=1)
    found = SuperposedDecoding(drafts=2, tau=1.0)._continued(drafts, torch.zeros(6), None, False)
    assert {token for draft, token, _ in found if draft is drafts[0]} == {3, 4, 5}
    assert {token for draft, token, _ in found if draft is drafts[1]} == {1, 2, 5}


def test_where_an_ngram_knows_one_token_the_others_are_none() -> None:
    method = SuperposedDecoding(drafts=2, tau=1.0, ngrams="prompt", weights="0.5")
    drafts, counts = drafts_of(([1], -1.0), ([2], -1.0)), NgramCounts.of([1, 3, 1, 4], 2, 6)
    found = method._continued(drafts, torch.zeros(6), counts, False)
    assert [token for draft, token, _ in found if draft is drafts[0]] == [3, 4]
    assert [token for draft, token, _ in found if draft is drafts[1]] == list(range(6)), "none follows, and all go on"


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
def test_shares_are_those_of_a_brute_force_count(size: int) -> None:
    """Ten thousand tokens; runs that occur, that do not, and that end the text."""
    random = np.random.default_rng(7)
    text = (random.integers(0, 12, 10_000) * random.integers(0, 2, 10_000)).tolist()
    counts = NgramCounts.of(text, 6, 12)
    ids = np.array([0, 3, 11, 5])
    ends = [*random.integers(size, 10_000, 12).tolist(), 10_000]
    contexts = [text[end - size + 1 : end] for end in ends] + [
        random.integers(0, 12, size - 1).tolist() for _ in range(8)
    ]
    known = 0
    for context in contexts:
        found = counts.probabilities(context, ids)
        assert found.tolist() == [share_after(text, context, token) for token in ids.tolist()]
        known += bool(found.any())
    assert known > 0


def test_shares_are_weighed_as_they_are_and_short_texts_have_fewer() -> None:
    text = [0, 1, 2, 0, 1, 3, 0, 1, 2]
    counts, ids = NgramCounts.of(text, 3, 4), np.array([1, 2, 3])
    assert len(counts.runs) == 2, "of two tokens and of three"
    assert counts.interpolated([1], ids, (0.5, 0.25)).tolist() == pytest.approx([0, 0.5 * 2 / 3, 0.5 / 3])
    assert counts.interpolated([0, 1], ids, (0.5, 0.25)).tolist() == pytest.approx([0, 0.75 * 2 / 3, 0.75 / 3])
    assert counts.interpolated([3, 1], ids, (0.5, 0.25)).tolist() == pytest.approx([0, 0.5 * 2 / 3, 0.5 / 3])
    for short in ([], [1]):
        assert NgramCounts.of(short, 3, 4).interpolated([1, 1], ids, (0.5, 0.25)).tolist() == [0, 0, 0]


def test_a_corpus_is_counted_once_and_again_where_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("abcabdabcabe" * 3)
    lm, _ = tabular()
    for _ in range(2):
        all_of(lm, [0, 1], f"ngrams=corpus, corpus='{path}'")
        all_of(lm, [0, 1], f"ngrams=corpus, corpus='{path}', alpha=0")
    counted = [key for _, key in lm.memory if key[0] == "superposed-decoding"]  # type: ignore[index, misc]
    assert len(counted) == 1
    path.write_text("aaaa")
    all_of(lm, [0, 1], f"ngrams=corpus, corpus='{path}'")
    all_of(lm, [0, 1], f"ngrams=corpus, corpus='{path}', weights=0.5")
    assert len(lm.memory) == 3
    assert {len(counts.runs) for counts in lm.memory.values()} == {5, 1}, "as long as there are weights, and no longer"


# With settings and others


def test_settings_hold_for_each_draft_by_its_own_text() -> None:
    lm = toy_language_model(3)
    [reply] = all_of(
        lm, random_ids(9, 2), "drafts=4, tau=0.9", 1, max_new_tokens=10, no_repeat_ngram_size=1, ignore_eos=True
    )
    for draft in reply.stats.details["drafts"]:
        assert len(set(draft["tokens"])) == 10
    biased = all_of(lm, random_ids(9, 2), "drafts=4", 4, logit_bias={70: 1000.0})
    assert all(70 in reply.token_ids for reply in biased)


def test_a_draft_that_may_not_go_on_leaves_the_others() -> None:
    """Each text may hold a token once: when none is left, there is nothing to give."""
    lm, _ = tabular(3, stop_ids=(2,))
    settings = {"no_repeat_ngram_size": 1, "max_new_tokens": 3}
    texts = {tuple(reply.token_ids) for reply in all_of(lm, [0], "drafts=2, tau=1", 2, **settings)}
    assert texts == {(2,), (1, 2)}
    with pytest.raises(ScoresNotNumbers):
        all_of(tabular(3)[0], [0, 1], "drafts=2", 2, **settings)


def test_scores_that_are_not_numbers() -> None:
    for value in (math.nan, math.inf):
        lm = scripted_language_model(ScriptedScorer(lambda prefix, value=value: [0.0, value, 1.0], 3))  # type: ignore[misc]
        with pytest.raises(ScoresNotNumbers):
            all_of(lm, [0], "")


def test_it_runs_on_targets_of_one_network() -> None:
    lm = toy_language_model(2)
    prompt, target = random_ids(9, 0), "guidance(scale=2.0)"
    plain = lm.generate(prompt, "autoregressive", target=target, max_new_tokens=8)
    [alone] = all_of(lm, prompt, "drafts=1", 1, target=target, max_new_tokens=8)
    assert alone.token_ids == plain.token_ids
    guided = all_of(lm, prompt, "", target=target, max_new_tokens=8)
    assert [r.token_ids for r in guided] != [r.token_ids for r in all_of(lm, prompt, "", max_new_tokens=8)]
    assert guided[0].stats.models[lm.network.name].forwards == 2 * 8
    lm.companions["other"] = toy_language_model(5)
    with pytest.raises(MethodUnavailable, match="feeds mixtures of tokens, but what enters"):
        all_of(lm, prompt, "", target="ensemble(models=other)")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("drafts=4, tokens=3", "tokens must be at least drafts, which are 4"),
        ("ngrams=corpus", "name its file with corpus="),
        ("ngrams=prompt, weights=0.1xa", "numbers of at least 0 joined by x"),
        ("ngrams=prompt, weights='0.1x-1'", "numbers of at least 0 joined by x"),
        ("ngrams=prompt, weights=''", "numbers of at least 0 joined by x"),
        ("ngrams=prompt, weights=infx1", "numbers of at least 0 joined by x"),
        ("ngrams=prompt, weights='nan'", "numbers of at least 0 joined by x"),
        ("alpha=0.3", "does something only where ngrams is not none"),
        ("ngrams=prompt, corpus=a", "does something only with ngrams=corpus"),
    ],
)
def test_what_does_not_go_together(spec: str, message: str) -> None:
    with pytest.raises(BadParameter, match=message):
        as_method(f"superposed-decoding({spec})")


def test_what_is_refused(tmp_path: Path) -> None:
    lm, _ = tabular()
    with pytest.raises(Refused, match="at most as many texts as drafts, which are 3, and n is 4"):
        all_of(lm, [1], "", 4)
    with pytest.raises(Refused, match="has found 1 texts where n=2 were asked for"):
        all_of(lm, [1], "", 2, logit_bias=dict.fromkeys((0, 1, 2, 3, 4), -math.inf))
    for name, value in {"temperature": 0.7, "top_k": 2, "top_p": 0.5, "min_p": 0.1}.items():
        with pytest.raises(Refused, match=f"does not run with {name}: drafts are not drawn"):
            all_of(lm, [1], "", **{name: value})
    with pytest.raises(Refused, match="does not run with logprobs: its rows follow a mixture"):
        all_of(lm, [1], "", logprobs=0)
    with pytest.raises(BadInput, match="cannot be read: No such file"):
        all_of(lm, [1], f"ngrams=corpus, corpus='{tmp_path / 'none'}'")
    with pytest.raises(BadInput, match="cannot be read: Is a directory"):
        all_of(lm, [1], f"ngrams=corpus, corpus='{tmp_path}'")
