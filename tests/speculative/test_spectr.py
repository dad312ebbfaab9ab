"""SpecTr: the sequence level through the whole engine, and what sharing prefixes saves. The test of K-SEQ itself is in
test_multi_draft_verifiers.py, the factor's in test_transport.py."""

from __future__ import annotations

import pytest
import torch

from decodery.engine.registry import method as as_method
from decodery.engine.settings import Settings
from decodery.errors import BadParameter
from decodery.models.forward import Forward
from decodery.speculative.draft import Draft, Siblings
from decodery.speculative.verifiers import KSeq
from decodery.testing import (
    DrafterLaws,
    TabularScorer,
    exact_outputs,
    scripted_language_model,
    story_scorer,
    total_variation,
    watched,
)


class TestSpectr(DrafterLaws):
    methods = ("spectr", "spectr(drafts=2, length=2, draft=other)")
    samples = 600

    def test_sampled_law_is_that_of_plain_decoding_exactly(self):
        """Two drafts of up to two tokens; more have very many outcomes."""
        for method, length in (("spectr(drafts=2, length=2, draft=other)", 3), ("spectr(drafts=2)", 2)):
            settings = Settings(temperature=1.0, top_p=0.8, max_new_tokens=length, seed=0)
            lm, scorer = self.tabular_host(3, stop_ids=(2,))
            self.assert_exact(lm, scorer, method, settings, stop_ids=(2,))


@pytest.mark.parametrize(
    "spec",
    [
        "spectr(drafts=3, draft=other)",
        "spectr(drafts=3, draft=other, rho=drafts)",
        "spectr(drafts=3, draft=other, verifier=recursive-rejection)",
        "spectr(drafts=2, draft=other, verifier=transport-plan)",
    ],
)
def test_the_law_of_two_tokens_with_every_verifier(spec):
    scorer = TabularScorer(3, order=None, seed=5)
    lm = scripted_language_model(scorer, drafter=scorer.blurred(0.8))
    settings = Settings(temperature=0.7, repetition_penalty=1.5, max_new_tokens=2, seed=0)
    found = exact_outputs(lm, spec, [0, 1], settings)
    assert total_variation(found, scorer.joint([0, 1], 2, settings)) < 1e-5


@pytest.mark.parametrize("temperature", [0.0, 0.8, 1.5])
def test_one_draft_is_speculative_sampling_token_by_token(temperature):
    """The same draws at the same addresses, the same tests: the same text and the same rounds."""
    for seed in range(10):
        both = []
        for spec in ("spectr(drafts=1, length=4, draft=other)", "draft-model(length=4, draft=other)"):
            lm = scripted_language_model(story_scorer(), drafter=story_scorer(surprise=0.5, name="other"))
            reply = lm.generate([3, seed], method=spec, temperature=temperature, seed=seed, max_new_tokens=40)
            both.append((reply.token_ids, reply.stats.rounds, reply.stats.accepted, reply.stats.drafted))
        assert both[0] == both[1]


def _efficiency(spec: str, requests: int = 25) -> float:
    """Tokens per round of the target, over requests of 40 tokens of an explicit law and a draft model for it."""
    scorer = TabularScorer(12, order=2, seed=1, concentration=0.5)
    lm = scripted_language_model(scorer, drafter=scorer.blurred(0.4))
    stats = [
        lm.generate([1, 2], method=spec, temperature=1.0, max_new_tokens=40, seed=seed).stats
        for seed in range(requests)
    ]
    return sum(s.new_tokens for s in stats) / sum(s.rounds for s in stats)


def test_more_drafts_accept_more():
    """Differences are several times their standard error of about 0.05."""
    one, two, four, eight = (_efficiency(f"spectr(drafts={k}, length=3, draft=other)") for k in (1, 2, 4, 8))
    assert two > one + 0.1
    assert four > two + 0.1
    assert eight > four


def test_rho_is_the_factor_of_k_seq_and_the_best_one_accepts_more():
    drawn, certain = (Draft([0], [-1], *more) for more in (({-1: torch.ones(2)}, Siblings.WITH_REPLACEMENT), ()))
    for rho, best in (("best", True), ("drafts", False)):
        method = as_method(f"spectr(rho={rho})")
        judge = method.judge(drawn, False)
        assert isinstance(judge, KSeq)
        assert judge.best_factor == best
        assert not isinstance(method.judge(drawn, True), KSeq)
        assert not isinstance(method.judge(certain, False), KSeq)
    best, count = (_efficiency(f"spectr(drafts=4, draft=other, rho={rho})") for rho in ("best", "drafts"))
    assert best > count + 0.1


def test_equal_prefixes_are_scored_once():
    """A certain draft law draws the same sequence every time: one path is scored, however many drafts there are."""
    certain = TabularScorer(4, order=1, given=lambda prefix: [0.0, 1.0, 0.0, 0.0])
    lm = scripted_language_model(TabularScorer(4, order=1, seed=2), drafter=certain)
    rows = []

    def watch(forward: Forward) -> None:
        rows.append(forward.count)

    with watched(lm.network, watch):
        reply = lm.generate([0], method="spectr(drafts=5, length=3, draft=other)", temperature=1.0, max_new_tokens=30)
    assert max(rows) <= 4, "the last committed token and three drafted ones"
    assert reply.stats.drafted > 3


def test_greedy_decoding_branches_into_different_tokens():
    """Five draws from a certain law would be one; the likeliest tokens are five."""
    lm = scripted_language_model(story_scorer(), drafter=story_scorer(surprise=0.5, name="other"))
    plain = lm.generate([1, 2], method="autoregressive", max_new_tokens=30)
    narrow, wide = (lm.generate([1, 2], method=f"spectr(drafts={k}, draft=other)", max_new_tokens=30) for k in (1, 5))
    assert narrow.token_ids == wide.token_ids == plain.token_ids
    assert wide.stats.rounds <= narrow.stats.rounds


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("spectr(verifier=greedy-set)", "the drafts are drawn with replacement; use k-seq or recursive-rejection or"),
        ("spectr(verifier=transport-plan)", "vocabularies of up to 16 tokens, not 24"),
        ("spectr(rho=drafts, verifier=recursive-rejection)", "only with verifier=auto or k-seq"),
        ("spectr(drafts=0)", "must lie in"),
        ("spectr(verifier=guess)", "must be one of"),
    ],
)
def test_what_does_not_fit_is_refused_before_work(spec, reason):
    lm = scripted_language_model(story_scorer())
    forwards = []
    with watched(lm.network, forwards.append), pytest.raises(BadParameter, match=reason):
        lm.generate([1], method=spec, max_new_tokens=4, temperature=1.0)
    assert not forwards


def test_what_it_asks_for() -> None:
    assert as_method("spectr(drafts=3, length=5)").most_nodes() == 15
    assert as_method("spectr(drafts=1)").chain_setting == ""
    assert as_method("spectr(drafts=2)").chain_setting == "drafts=1"
