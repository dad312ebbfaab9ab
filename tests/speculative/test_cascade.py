"""The cascade: its sources, how it weighs them, how far it grows, and the laws of every drafter."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import decodery
from decodery.engine.cost import CostCurve
from decodery.engine.registry import method
from decodery.errors import BadInput, BadParameter, MethodUnavailable
from decodery.speculative.cascade.method import Cascade
from decodery.speculative.cascade.sources import ORDERS, Answer, Copied, Mixture, Recycled, Tabled
from decodery.speculative.continuations.successors import SuccessorTable
from decodery.testing import DrafterLaws, scripted_language_model, story_scorer


class TestCascade(DrafterLaws):
    methods = ("cascade", "cascade(nodes=6, persist=False)", "cascade(sources=copied, depth=3)")
    samples = 1000


def table(vocabulary: int = 50) -> SuccessorTable:
    context = np.array([[9, 1, 2], [9, 1, 2], [0, 3, 2], [0, 4, 5]])
    ids = np.array([[7, 8], [8, 9], [7, 1], [6, 0]])
    shares = np.array([[0.9, 0.1], [0.6, 0.3], [1.0, 0.0], [0.5, 0.5]], dtype=np.float32)
    return SuccessorTable.average(context, ids, shares, vocabulary, "words")


class TestSuccessorTable:
    def test_it_averages_laws(self) -> None:
        for run in ([1, 2], [9, 1, 2]):
            ids, shares, count = table().after(run)
            assert (ids, count) == ([7, 8, 9], 2)
            assert shares == pytest.approx([0.45, 0.35, 0.15], abs=1 / 255)
        ids, shares, count = table().after([2])
        assert (ids, count) == ([7, 8, 9], 3)
        assert shares == pytest.approx([1.9 / 3, 0.7 / 3, 0.1], abs=1 / 255)
        assert table().after([2, 1]) == table().after([0]) == ([], [], 0)
        assert table().after([0, 3, 2]) == ([], [], 0), "seen once"

    def test_a_vocabulary_whose_runs_fit_no_key_is_refused(self) -> None:
        with pytest.raises(ValueError, match="need less than 2097152"):
            table(vocabulary=1 << 21)

    def test_it_survives_a_file(self, tmp_path: Path) -> None:
        path = tmp_path / "table.npz"
        table().save(path)
        again = SuccessorTable.read(path)
        for run in ([5], [1, 2], [9, 1, 2]):
            assert again.after(run) == table().after(run) != ([], [], 0)
        assert (again.vocabulary, again.tokenizer) == (50, "words")

    @given(st.integers(1, 60), st.integers(0, 2**32 - 1))
    @settings(max_examples=30, deadline=None)
    def test_against_a_dictionary(self, rows: int, seed: int) -> None:
        generator = np.random.Generator(np.random.Philox(key=seed))
        context = generator.integers(0, 3, (rows, 3))
        ids = np.stack([generator.permutation(6)[:3] for _ in range(rows)])
        shares = generator.dirichlet([1, 1, 1], rows).astype(np.float32)
        made = SuccessorTable.average(context, ids, shares, 6, kept=(6, 6, 6), seen=(1, 1, 2))
        for length in (1, 2, 3):
            runs = [tuple(row) for row in context[:, 3 - length :].tolist()]
            for run in itertools.product(range(3), repeat=length):
                expected: dict[int, float] = {}
                for other, names, parts in zip(runs, ids.tolist(), shares.tolist(), strict=True):
                    if other == run:
                        for name, part in zip(names, parts, strict=True):
                            expected[name] = expected.get(name, 0.0) + part / runs.count(run)
                names, parts, count = made.after(run)
                if runs.count(run) < (2 if length == 3 else 1):
                    assert (names, parts, count) == ([], [], 0)
                    continue
                assert count == runs.count(run)
                assert dict(zip(names, parts, strict=True)) == pytest.approx(
                    {name: part for name, part in expected.items() if name in names}, abs=1 / 255
                )
                assert all(part < 1 / 255 for name, part in expected.items() if name not in names)

    @pytest.mark.parametrize("content", [b"", b"no archive"])
    def test_other_files_are_refused(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "other.npz"
        path.write_bytes(content)
        with pytest.raises(BadInput, match="is no table of successors"):
            SuccessorTable.read(path)


class TestSources:
    @given(st.lists(st.integers(0, 3), min_size=1, max_size=60))
    @settings(max_examples=60, deadline=None)
    def test_copied_against_a_search(self, text: list[int]) -> None:
        source = Copied()
        for end in range(1, len(text) + 1):
            source.read(text[:end])
        answers: list[Answer] = []
        source.answers(tuple(text[-ORDERS[-1] :]), answers)
        expected = {}
        for order in ORDERS:
            if order <= len(text):
                run = text[-order:]
                found = [text[i + order] for i in range(len(text) - order) if text[i : i + order] == run][-3:]
                if found:
                    expected[order] = found
        assert [label[1] for label, _, _ in answers] == list(expected)  # type: ignore[index]
        for (_, ids, parts), found in zip(answers, expected.values(), strict=True):
            shares: dict[int, float] = {}
            for token, share in zip(ids, parts, strict=True):
                shares[token] = shares.get(token, 0.0) + share
            assert shares == pytest.approx({token: found.count(token) / len(found) for token in found})

    def test_recycled_keeps_the_last_scores(self) -> None:
        source = Recycled()
        source.learn(1, 2, [5, 6], [0.7, 0.3])
        source.learn(3, 2, [7, 9], [0.9, 0.001])
        answers: list[Answer] = []
        source.answers((9, 1, 2), answers)
        assert [(label, ids) for label, ids, _ in answers] == [(("recycled", 1), [7]), (("recycled", 2), [5, 6])]
        answers.clear()
        source.answers((4, 8), answers)
        assert not answers

    def test_recycled_forgets_the_oldest_when_full(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("decodery.speculative.cascade.sources.MOST_ROWS", 20)
        source = Recycled()
        for token in range(100):
            source.learn(token, token + 1, [0], [1.0])
        assert len(source._rows) <= 20
        answers: list[Answer] = []
        source.answers((99, 100), answers)
        assert len(answers) == 2

    def test_tabled(self) -> None:
        source = Tabled(table())
        for _ in range(2):  # the second time from memory
            answers: list[Answer] = []
            source.answers((0, 1, 2), answers)
            assert [label for label, _, _ in answers] == [("table", 1, 3), ("table", 2, 2)]
            source.answers((5, 9, 1, 2), answers)
            assert [label for label, _, _ in answers[2:]] == [("table", 1, 3), ("table", 2, 2), ("table", 3, 2)]


class TestMixture:
    def test_a_law_sums_to_one_at_most(self) -> None:
        mixture = Mixture()
        answers = [(("copied", 4, 1), [3], (1.0,)), (("table", 1, 0), [3, 5], (0.5, 0.25))]
        law = dict(mixture.law(answers))
        assert law[3] > law[5] > 0
        assert sum(law.values()) <= 1
        # A weak source alone does not claim much.
        assert dict(mixture.law(answers[1:]))[3] < 0.2

    def test_it_learns_which_source_is_right(self) -> None:
        mixture = Mixture()
        answers = [(("copied", 2, 1), [3], (1.0,)), (("recycled", 2), [5], (1.0,))]
        before = dict(mixture.law(answers))
        assert before[5] > before[3]
        for _ in range(200):
            mixture.learn(answers, 3)
        after = dict(mixture.law(answers))
        assert after[3] > 0.7 > after[5]

    def test_a_token_that_nobody_named_teaches_nothing(self) -> None:
        mixture = Mixture()
        answers = [(("copied", 2, 1), [3], (1.0,)), (("recycled", 2), [5], (1.0,))]
        before = dict(mixture.law(answers))
        mixture.learn(answers, 9)
        assert dict(mixture.law(answers)) == before


def test_together_the_sources_need_hardly_more_rounds_than_the_best_alone() -> None:
    """The cascade is not told which of them is the best on this text; it has to find out."""
    rounds = {}
    for sources in ("copied", "recycled", "copied+recycled"):
        lm = scripted_language_model(story_scorer())
        reply = lm.generate([1, 2, 3], Cascade(sources=sources, nodes=12), max_new_tokens=120)
        rounds[sources] = reply.stats.rounds
    assert rounds["copied+recycled"] <= 1.1 * min(rounds["copied"], rounds["recycled"])
    assert rounds["copied+recycled"] <= max(rounds["copied"], rounds["recycled"]) < 120


def test_what_was_learned_stays_in_the_session() -> None:
    lm = scripted_language_model(story_scorer())
    first, second = (lm.generate([1, 2, 3], "cascade(nodes=12)", max_new_tokens=60).stats.rounds for _ in range(2))
    assert second < first
    forgetful = scripted_language_model(story_scorer())
    spec = "cascade(nodes=12, persist=False)"
    first, second = (forgetful.generate([1, 2, 3], spec, max_new_tokens=60).stats.rounds for _ in range(2))
    assert second == first


def test_it_stops_drafting_where_rows_are_dear(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row costs a whole pass: no draft can pay, so none is sent, and the sources are asked, and rows ranked for
    them, ever more rarely."""
    lm = scripted_language_model(story_scorer())
    monkeypatch.setattr(lm, "cost", lambda network: CostCurve((1, 2), (1.0, 2.0)))
    looks: list[int] = []
    ask = Copied.answers
    monkeypatch.setattr(Copied, "answers", lambda self, tail, into: (looks.append(1), ask(self, tail, into))[1])
    ranked: list[int] = []
    rank = lm.network.top
    monkeypatch.setattr(lm.network, "top", lambda logits, k: (ranked.append(1), rank(logits, k))[1])
    reply = lm.generate([1, 2, 3], "cascade", max_new_tokens=100)
    assert reply.stats.drafted == 0
    assert reply.stats.forwards == 100
    assert len(looks) < 60  # a request that never rests looks at least once a token
    assert len(ranked) < 60


@pytest.mark.parametrize("sources", ["", "copied+guessed", "+"])
def test_unknown_sources_are_refused(sources: str) -> None:
    with pytest.raises(BadParameter, match="sources are copied, recycled and table"):
        method(f"cascade(sources={sources!r})")


def test_a_table_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.npz"
    table(vocabulary=12345).save(path)
    lm = scripted_language_model(story_scorer())
    with pytest.raises(MethodUnavailable, match="is of a model with 12345 tokens"):
        lm.generate([1, 2], Cascade(table=str(path)), max_new_tokens=2)


def test_a_table_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    lm = scripted_language_model(story_scorer())
    path = tmp_path / "table.npz"
    table(vocabulary=lm.network.vocabulary).save(path)
    with pytest.raises(MethodUnavailable, match="was made with another tokenizer"):
        lm.generate([1, 2], Cascade(table=str(path)), max_new_tokens=2)


def test_the_shipped_table_is_of_the_default_model() -> None:
    path = Path(decodery.__file__).parent / "artifacts" / "successors-smollm2-135m.npz"
    held = SuccessorTable.read(path)
    assert held.vocabulary == 49152
    assert len(held.runs) == 3
    assert all(len(run.keys) > 20_000 for run in held.runs)
    assert all((np.diff(run.keys) > 0).all() for run in held.runs)
