"""Logged laws, and what verifiers accept on them."""

from __future__ import annotations

import time

import numpy as np
import pytest

from decodery.errors import BadInput, MethodUnavailable
from decodery.evaluation.acceptance import LawPair, acceptance_report, analyse, log_laws, observe
from decodery.evaluation.questions import Question
from decodery.speculative.draft import Siblings
from decodery.speculative.draft_model import DraftModel
from decodery.testing import TabularScorer, scripted_language_model


def _model():
    scorer = TabularScorer(8, order=2, seed=3)
    return scripted_language_model(scorer, drafter=scorer.blurred(0.5))


class TestLogging:
    def test_the_laws_are_those_of_target_and_draft(self):
        """Of order one, so that few laws exist and each logged one must be among them."""
        scorer = TabularScorer(5, order=1, seed=3)
        drafter = scorer.blurred(0.5)
        lm = scripted_language_model(scorer, drafter=drafter)
        pairs = log_laws(lm, DraftModel(draft="other"), [[0], [1, 2]], 60, temperature=1.0, max_new_tokens=7)
        assert len(pairs) == 60
        both = [(scorer.law([token]).numpy(), drafter.law([token]).numpy()) for token in range(5)]
        seen = set()
        for pair in pairs:
            near = [np.abs(pair.p - p).max() + np.abs(pair.q - q).max() < 1e-5 for p, q in both]
            assert sum(near) == 1, "target and draft are logged at the same position"
            seen.add(near.index(True))
        assert len(seen) >= 4

    def test_both_laws_are_truncated(self):
        pairs = log_laws(_model(), DraftModel(draft="other"), [[0]], 20, temperature=0.8, support=3)
        assert all(np.count_nonzero(pair.p) == np.count_nonzero(pair.q) == 3 for pair in pairs)
        assert all(3 <= len(pair.p) <= 6 for pair in pairs)

    def test_ties_do_not_widen_the_support(self):
        """A law of counts gives every unseen token the same mass."""
        lm = scripted_language_model(TabularScorer(40, order=1, seed=3))
        pairs = log_laws(lm, DraftModel(draft="ngram-text"), [[0]], 10, temperature=1.0, support=5, max_new_tokens=10)
        assert all(np.count_nonzero(pair.q) == np.count_nonzero(pair.p) == 5 for pair in pairs)

    def test_repeated_prompts_give_other_text(self):
        pairs = log_laws(_model(), DraftModel(draft="other"), [[0, 1]], 40, temperature=1.0, max_new_tokens=4)
        assert len({pair.p.tobytes() for pair in pairs}) > 10

    def test_counts_learn_along(self):
        """A draft law of counts changes with the text: at later visits of a token it is another."""
        lm = scripted_language_model(TabularScorer(4, order=1, seed=3))
        pairs = log_laws(lm, DraftModel(draft="ngram-text"), [[0]], 40, temperature=1.0, max_new_tokens=40)
        assert len({pair.q.tobytes() for pair in pairs}) > 20

    def test_positions_without_a_draft_law_are_left_out(self):
        """The draft model's context ends after four tokens."""
        lm = _model()
        lm.drafter.context = 4
        assert len(log_laws(lm, DraftModel(draft="other"), [[0, 1]], 20, temperature=1.0, max_new_tokens=9)) == 20
        with pytest.raises(BadInput, match="other cannot draft anywhere in these texts"):
            log_laws(lm, DraftModel(draft="other"), [[0, 1, 2, 3, 4]], 20, temperature=1.0)

    def test_text_has_no_law_to_log(self):
        with pytest.raises(MethodUnavailable, match="a draft that is text has no draft law"):
            log_laws(_model(), DraftModel(draft="other", vocabulary="text"), [[0]], 2, temperature=1.0)


def _pairs(count: int, size: int = 30) -> list[LawPair]:
    generator = np.random.Generator(np.random.Philox(key=1))
    return [LawPair(*(generator.dirichlet([0.5] * size) for _ in range(2))) for _ in range(count)]


class TestAnalysis:
    def test_observed_agrees_with_computed(self):
        """Each verifier, run on drawn drafts, accepts what its formula says; z-scores of nine fixed comparisons."""
        pairs = _pairs(60)
        found = analyse(pairs, (1, 3), trials=25)
        for key, accepted in found.accepted.items():
            expected = found.expected[key]
            error = np.sqrt((expected * (1 - expected)).sum() / 25) / len(pairs)
            assert accepted.mean() == pytest.approx(expected.mean(), abs=4 * error + 2e-3), key

    def test_nothing_exceeds_the_optimum(self):
        found = analyse(_pairs(20), (1, 2, 3, 8))
        for (kind, verifier, n), expected in found.expected.items():
            # Recursive rejection without replacement is itself an estimate.
            slack = 0.1 if (kind, verifier) == (Siblings.WITHOUT_REPLACEMENT, "recursive-rejection") else 1e-9
            assert (expected <= found.optimum[kind, n] + slack).all()
            assert expected.mean() <= found.optimum[kind, n].mean() + 1e-9

    def test_the_same_seed_gives_the_same_numbers(self):
        [pair] = _pairs(1)
        for kind in (Siblings.WITH_REPLACEMENT, Siblings.WITHOUT_REPLACEMENT, Siblings.GREEDY):
            assert observe(pair, kind, 3, 20, 5, 0) == observe(pair, kind, 3, 20, 5, 0)

    def test_certain_and_disjoint_laws(self):
        same, other = np.array([1.0, 0.0]), np.array([0.0, 1.0])
        found = analyse([LawPair(same, same), LawPair(same, other)], (1, 2, 8))
        for values in (*found.optimum.values(), *found.expected.values(), *found.accepted.values()):
            assert values.tolist() == [1.0, 0.0]


def test_five_hundred_rows_take_less_than_a_minute():
    """Twenty rows of 1000 tokens in a twenty-fifth of the time, on one core."""
    generator = np.random.Generator(np.random.Philox(key=2))
    pairs = []
    for _ in range(20):
        q = generator.normal(0, 3, 1000)
        p, q = (np.exp(row) for row in (q + generator.normal(0, 2, 1000), q))
        pairs.append(LawPair(p / p.sum(), q / q.sum()))
    start = time.process_time()
    analyse(pairs)
    assert time.process_time() - start < 60 * 20 / 500


def test_report():
    questions = [Question(str(i), "qa", ("abc",)) for i in range(2)]
    report = acceptance_report(
        _model(), DraftModel(draft="other"), questions, temperatures=(0.7, 1.0), counts=(1, 2), rows=30
    )
    assert len(report.rows) == 2 * 2 * 4
    one = report.row(0.7, 1, "with replacement", "k-seq")
    assert one.expected == pytest.approx(one.optimum)
    assert one.optimum_error > 0
    assert report.row(1.0, 2, "greedy set", "greedy-set").gap == 0
    assert len(report.table()) == 1 + len(report.rows)
    assert report.as_dict()["provenance"]["analysis_seconds"] > 0
    with pytest.raises(KeyError):
        report.row(0.1, 1, "with replacement", "k-seq")
