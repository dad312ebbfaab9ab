"""Both statistics against the recursion as it is printed, one cell after the other."""

from __future__ import annotations

import numpy as np
import pytest

from decodery.provenance import alignment
from decodery.provenance.alignment import edit, simple


def reference_edit(costs: np.ndarray, text: np.ndarray, block: int, gap: float) -> float:
    length, best = costs.shape[1], np.inf
    for first in range(len(text) - block + 1):
        for entry in range(length):
            table = np.zeros((block + 1, block + 1))
            table[:, 0] = table[0] = np.arange(block + 1) * gap
            for i in range(1, block + 1):
                for j in range(1, block + 1):
                    beside = table[i - 1, j - 1] + costs[text[first + i - 1], (entry + j - 1) % length]
                    table[i, j] = min(table[i - 1, j] + gap, table[i, j - 1] + gap, beside)
            best = min(best, table[block, block])
    return best


def reference_simple(costs: np.ndarray, text: np.ndarray, block: int) -> float:
    length = costs.shape[1]
    return min(
        sum(float(costs[text[first + i], (entry + i) % length]) for i in range(block))
        for first in range(len(text) - block + 1)
        for entry in range(length)
    )


def given(signed: bool, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    rng = np.random.default_rng(seed)
    tables = [rng.random((4, 9)).astype(np.float32) for _ in range(3)]
    return [np.log(1 - table) if signed else table for table in tables], rng.integers(0, 4, 8)


@pytest.mark.parametrize("block", [1, 3, 8])
@pytest.mark.parametrize(("signed", "gap"), [(True, 0.0), (False, 0.4), (True, 0.7), (False, 0.0)])
def test_the_edit_statistic_is_the_printed_recursion(block: int, signed: bool, gap: float) -> None:
    tables, text = given(signed, block)
    expected = [reference_edit(table, text, block, gap) for table in tables]
    assert edit(tables, text, block, gap) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("block", [1, 3, 8])
def test_the_simple_statistic_is_the_least_sum(block: int) -> None:
    for signed in (True, False):
        tables, text = given(signed, block)
        expected = [reference_simple(table, text, block) for table in tables]
        assert simple(tables, text, block) == pytest.approx(expected, abs=1e-5)


def test_keys_by_the_portion_are_keys_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    tables, text = given(True, 1)
    together = edit(tables, text, 5, 0.1), simple(tables, text, 5)
    monkeypatch.setattr(alignment, "AT_ONCE", 18)  # two of them, then one
    assert np.array_equal(together[0], edit(tables, text, 5, 0.1))
    assert np.array_equal(together[1], simple(tables, text, 5))


def test_a_text_that_is_as_long_as_the_key_goes_round_about() -> None:
    costs = np.ones((3, 3), np.float32)
    costs[[0, 1, 2], [2, 0, 1]] = 0  # the text begins at the last entry
    text = np.arange(3)
    assert simple([costs], text, 3)[0] == 0
    assert edit([costs], text, 3, 0.9)[0] == 0


def test_what_is_left_out_costs_the_gap() -> None:
    """Four tokens, the second of which was put in: it is left out, and so is the entry at the end."""
    costs = np.full((4, 6), 5.0, np.float32)
    costs[[0, 2, 3], [1, 2, 3]] = 0
    assert edit([costs], np.array([0, 1, 2, 3]), 4, 0.4)[0] == pytest.approx(0.8)
    assert simple([costs], np.array([0, 1, 2, 3]), 4)[0] == 10.0
