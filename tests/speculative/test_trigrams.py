"""The table of trigrams against counting by hand, its file, and the bounded, drifting copy of a session."""

from __future__ import annotations

import numpy as np
import pytest

from decodery.speculative.continuations.trigrams import TrigramStore, TrigramSuccessors, TrigramTable


class TestTable:
    def test_it_counts(self):
        table = TrigramTable.count([[1, 2, 3, 1, 2, 4, 1, 2, 3], [1, 2], [5]], 10)
        assert table.row(12) == ([3, 4], pytest.approx([2 / 3, 1 / 3]))
        assert table.row(23) == ([1], [1.0])
        assert table.row(99) is None
        assert table.row(11) is None
        assert len(table) == 5
        assert len(TrigramTable.count([[1, 2, 3, 1, 2, 4, 1, 2, 3]], 10, at_least=2)) == 1
        assert len(TrigramTable.count([], 10)) == 0

    def test_it_is_pruned_to_the_likeliest(self):
        generator = np.random.Generator(np.random.Philox(key=2))
        text = generator.integers(0, 5, 2000).tolist()
        table = TrigramTable.count([text], 5)
        small = table.pruned(2)
        for key in range(25):
            ids, weights = table.row(key)
            counts = {w: sum(tuple(text[i : i + 3]) == (key // 5, key % 5, w) for i in range(1998)) for w in range(5)}
            assert ids == sorted(counts, key=lambda w: (-counts[w], w))
            assert weights == pytest.approx([counts[w] / sum(counts.values()) for w in ids])
            assert small.row(key) == (ids[:2], weights[:2])

    def test_a_saved_table_is_the_table(self, tmp_path):
        table = TrigramTable.count([[1, 2, 3, 1, 2, 4]], 10, tokenizer="abc")
        table.save(tmp_path / "table.npz")
        again = TrigramTable.load(tmp_path / "table.npz")
        assert (again.vocabulary, again.tokenizer) == (10, "abc")
        assert [again.row(key) for key in range(100)] == [table.row(key) for key in range(100)]

    def test_a_token_outside_is_an_error(self):
        with pytest.raises(ValueError, match=r"outside of 0\.\.9"):
            TrigramTable.count([[1, 2, 10]], 10)


class TestStore:
    def test_weights_grow_to_the_cap_in_order(self):
        row = TrigramSuccessors([5, 7], [0.5, 0.5])
        row.add(7, 0.04, 3.0, 12)
        assert row.ids == [7, 5]
        row.add(5, 0.04, 3.0, 12)
        assert row.ids == [5, 7], "equal weights go by id"
        for _ in range(200):
            row.add(9, 0.04, 3.0, 12)
        assert (row.ids[0], row.weights[0]) == (9, 3.0)
        assert row.weight(9) == 3.0
        assert row.weight(8) == 0.0

    def test_a_lower_id_comes_first_among_equals_alone(self):
        row = TrigramSuccessors([9, 7, 5], [0.9, 0.5, 0.25])
        row.add(5, 0.125, 3.0, 12)
        assert (row.ids, row.weights) == ([9, 7, 5], [0.9, 0.5, 0.375])
        row.add(5, 0.125, 3.0, 12)
        assert (row.ids, row.weights) == ([9, 5, 7], [0.9, 0.5, 0.5])
        row.add(3, 2.0, 3.0, 12)
        assert (row.ids, row.weights) == ([3, 9, 5, 7], [2.0, 0.9, 0.5, 0.5])

    def test_rows_are_pruned_again(self):
        row = TrigramSuccessors([], [])
        for token in range(1000):
            row.add(token, 0.1 + token / 1000, 3.0, 12)
            assert len(row.ids) <= 24
        assert row.ids[0] == 999

    def test_memory_is_bounded(self, monkeypatch):
        monkeypatch.setattr("decodery.speculative.continuations.trigrams.READ_ROWS", 5)
        monkeypatch.setattr("decodery.speculative.continuations.trigrams.CHANGED_ROWS", 10)
        store = TrigramStore(100, 12, TrigramTable.count([list(range(50))], 100))
        for key in range(0, 9999, 101):
            store.find(key)
        for token in range(40):
            store.reinforce(token, 60, 61, 0.04, 3.0)
            store.tidy()
        assert len(store._rows) <= 10
        assert store.find(39 * 100 + 60).ids == [61], "the latest are kept"
        assert store.find(1).ids == [2], "and the table can be read again"

    def test_of_too_many_changed_rows_the_older_half_goes(self, monkeypatch):
        monkeypatch.setattr("decodery.speculative.continuations.trigrams.CHANGED_ROWS", 10)
        store = TrigramStore(100, 12)
        for token in range(11):
            store.reinforce(token, 60, 61, 0.04, 3.0)
        store.tidy()
        assert [token for token in range(11) if store.find(token * 100 + 60)] == [5, 6, 7, 8, 9, 10]
        for token in range(11, 15):  # the count begins anew with what is left
            store.reinforce(token, 60, 61, 0.04, 3.0)
            store.tidy()
        assert [token for token in range(15) if store.find(token * 100 + 60)] == list(range(5, 15))
