"""`decodery check` on insertion language models: the method passes, planted faults are caught."""

from __future__ import annotations

import dataclasses

import pytest

from decodery.errors import BadSetting
from decodery.evaluation import insertion_check
from decodery.evaluation.benchmark import run_benchmark
from decodery.evaluation.check import check_method
from decodery.evaluation.questions import Question
from decodery.insertion.cells import GapCells
from decodery.insertion.growing_text import GrowingText
from decodery.testing import InserterScorer, inserting_language_model, random_script


@pytest.fixture(autouse=True)
def _smaller(monkeypatch):
    monkeypatch.setattr(insertion_check, "TINY", ((2, 3, 1), (3, 2, 2)))


def _lm():
    return inserting_language_model(InserterScorer(6, random_script(6, 9)), stop_threshold=0.7)


def _report(method="insertion-language-models", **more):
    return check_method(_lm(), method, **{"prompts": 4, **more})


def _refuted(report):
    return [part.name for part in report.parts if part.passed is False]


def test_the_method_keeps_what_it_claims():
    report = _report()
    assert report.passed
    assert all(part.passed for part in report.parts)
    names = [part.name for part in report.parts]
    assert sum(name.startswith("claim: ") for name in names) == 2
    assert names[:4] == [
        "text at temperature 0", "text at temperature 1", "filled holes at temperature 0", "filled holes at temperature 1",
    ]  # fmt: skip
    assert max(report.parts[-1].numbers["total_variation"]) < 1e-5
    assert report.parts[0].numbers["forwards"] > 4


def test_no_law_is_promised_where_gaps_are_left_out():
    report = _report("insertion-language-models(gap_top_k=1)")
    assert report.passed
    assert report.parts[-1].passed is None
    assert max(report.parts[-1].numbers["total_variation"]) > 0.01


def test_own_prompts_are_read():
    report = check_method(_lm(), "insertion-language-models", prompts=["ab", "c"])
    assert report.parts[0].numbers["prompts"] == 2
    with pytest.raises(BadSetting, match="at least 1"):
        _report(prompts=0)


def test_a_softmax_of_each_gap_by_itself_is_caught(monkeypatch):
    monkeypatch.setattr(
        GapCells, "joint", lambda self: self.scores.double().softmax(-1).flatten().log().log_softmax(-1)
    )
    assert "law of final texts by enumeration" in _refuted(_report())


def test_a_token_at_the_wrong_place_is_caught(monkeypatch):
    insert = GrowingText.insert
    monkeypatch.setattr(GrowingText, "insert", lambda self, *given: max(insert(self, *given) - 1, 0))
    assert any("events do not build" in part.detail for part in _report().parts)


def test_given_tokens_that_move_are_caught(monkeypatch):
    monkeypatch.setattr(GrowingText, "answer", property(lambda self: self.between(*self.holes[0])))
    assert any("holes" in name for name in _refuted(_report()))


def test_a_token_that_never_may_be_inserted_is_caught():
    """The method is told that one letter less may be inserted than it inserts."""
    lm = _lm()
    reply = lm.generate([1, 2], temperature=1.0, max_new_tokens=6, seed=1)
    inserted = reply.token_ids[0]
    assert insertion_check._faults(lm, [1, 2], reply) == []
    lm.network.insertions = dataclasses.replace(lm.network.insertions, reserved=(inserted,))
    assert insertion_check._faults(lm, [1, 2], reply) == ["a token was inserted that never may be"]


def test_a_forward_too_many_is_caught():
    lm = _lm()
    reply = lm.generate([1, 2], temperature=1.0, max_new_tokens=6, seed=1)
    reply.stats.models[lm.network.name].forwards += 1
    assert "forwards for" in insertion_check._faults(lm, [1, 2], reply)[0]


def test_the_benchmark_compares_with_as_many_forwards_alone():
    questions = [Question(str(i), "letters", (text,)) for i, text in enumerate(("abcd", "fed"))]
    lm = inserting_language_model(InserterScorer(6, random_script(6, 12)), stop_threshold=0.95)
    report = run_benchmark(lm, ["insertion-language-models(gap_top_k=1)"], questions, max_new_tokens=6)
    names = {row.method for row in report.rows}
    assert names == {"insertion-language-models", "bare forward", "insertion-language-models(gap_top_k=1)"}
    plain, bare = report.row("insertion-language-models"), report.row("bare forward")
    assert plain.identical == 1.0
    assert bare.forwards == plain.forwards > 4
