"""What steps that forbid tokens share, on rows that numpy works on and on others; what texts repeat, and what prefixes tell."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from law_cases import FORBIDDEN, law_of, rows

from decodery.sampling.forbidding import falling, few, forbid_below, highest, keep_highest, kth_highest, on_cpu
from decodery.sampling.repetition import repetitions

DTYPES = (torch.float32, torch.float64)


def test_numpy_works_on_float32_alone() -> None:
    assert on_cpu(torch.zeros(3))
    assert not on_cpu(torch.zeros(3, dtype=torch.float64))
    assert not on_cpu(torch.zeros(3, device="meta"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 4, 59, 60])
def test_values_by_rank(dtype: torch.dtype, count: int) -> None:
    given = rows(20).to(dtype)
    before = given.clone()
    ordered = [sorted(row.tolist(), reverse=True) for row in given]
    assert falling(given).tolist() == ordered
    least = kth_highest(given, count)
    assert least.tolist() == [row[count - 1] for row in ordered]
    assert torch.equal(given, before)
    expected = [
        [x if x >= low else FORBIDDEN for x in row] for row, low in zip(given.tolist(), least.tolist(), strict=True)
    ]
    assert forbid_below(given, least).tolist() == expected
    assert given.tolist() == expected, "in place"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 4, 59, 60, 70])
def test_the_highest_are_kept_the_lower_ids_among_equals(dtype: torch.dtype, count: int) -> None:
    for row in rows(20, holes=False).to(dtype):
        best = sorted(range(60), key=lambda token, row=row: (-float(row[token]), token))[:count]
        assert highest(row, count).tolist() == best
        expected = [float(x) if token in best else FORBIDDEN for token, x in enumerate(row.tolist())]
        keep_highest(row, count)
        assert row.tolist() == expected


@pytest.mark.parametrize(("there", "found"), [(0, False), (1, True), (2, True), (3, False), (16, False)])
def test_few_are_some_but_no_more_than_an_eighth(there: int, found: bool) -> None:
    values = torch.full((16,), FORBIDDEN)
    values[16 - there :] = 1.0
    ids = few(values, FORBIDDEN)
    assert (ids is not None) == found
    if ids is not None:
        assert np.array_equal(ids, np.arange(16 - there, 16))


def test_a_text_of_one_token_repeats_nothing() -> None:
    assert repetitions([], 3) == repetitions([1], 3) == repetitions([1, 1], 0) == {}
    assert repetitions([1, 1], 1) == repetitions([1, 1], 5) == {1: 1}


class TestPrefix:
    def test_a_path_counts_as_output(self) -> None:
        law = law_of([3, 7, 7])
        for token in (7, 5):
            law.observe(token)
        assert (list(law.prefix().tokens), law.prefix().new_tokens) == ([3, 7, 7, 7, 5], 2)
        assert dict(law.prefix().counts()) == {3: 0, 7: 1, 5: 1}
        along = law.prefix([5, 3, 9, 9])
        assert (list(along.tokens), along.new_tokens) == ([3, 7, 7, 7, 5, 5, 3, 9, 9], 6)
        assert dict(along.counts()) == {3: 1, 7: 1, 5: 2, 9: 2}
        ids, counts = along.output_counts(torch.zeros(2))
        assert dict(zip(ids.tolist(), counts.tolist(), strict=True)) == {3: 1.0, 7: 1.0, 5: 2.0, 9: 2.0}
        assert (along.tokens[-1], along.tokens[4:7], len(along.tokens)) == (9, [5, 5, 3], 9)
        assert dict(law.prefix().counts()) == {3: 0, 7: 1, 5: 1}, "a path leaves no trace"

    def test_a_law_without_a_state_drafts_with_itself(self) -> None:
        law = law_of(top_k=3)
        assert law.drafting is law
        stateful = law_of(mirostat=2)
        assert stateful.drafting is not stateful
