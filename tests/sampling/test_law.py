"""The processed law: each step against transformers' own, penalties by their formulas, prefixes of drafts as committed ones.

Steps that transformers has are compared exactly (equal float32 scores): they are the same operations in the same order.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation import logits_process as theirs

from decodery.sampling import DEFAULT_ORDER, Law, LawSettings

VOCABULARY = 40
PROMPT = [3, 7, 7, 12]
MINUS_INFINITY = float("-inf")


def random_row(seed: int, kind: str = "normal") -> Tensor:
    """Raw scores: "ties" on a grid, "holes" with impossible tokens, "both"."""
    row = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3
    if kind in ("ties", "both"):
        row = row.round()
    if kind in ("holes", "both"):
        row[torch.rand(VOCABULARY, generator=torch.Generator().manual_seed(seed + 1)) < 0.3] = MINUS_INFINITY
        row[seed % VOCABULARY] = 1.0
    return row


rows = st.builds(random_row, st.integers(0, 10_000), st.sampled_from(["normal", "ties", "holes", "both"]))
paths = st.lists(st.integers(0, VOCABULARY - 1), max_size=5)


def law_of(output: Sequence[int] = (), stop_ids: Sequence[int] = (), **settings: Any) -> Law:
    law = Law(LawSettings(**{"temperature": 1.0, **settings}), PROMPT, stop_ids)
    for token in output:
        law.observe(token)
    return law


def ids_of(output: Sequence[int]) -> Tensor:
    return torch.tensor([[*PROMPT, *output]])


# Each step against transformers


@given(rows, st.floats(0.05, 5.0))
def test_temperature(row: Tensor, temperature: float) -> None:
    expected = theirs.TemperatureLogitsWarper(temperature)(ids_of([]), row[None])[0]
    assert torch.equal(law_of(temperature=temperature).scores(row), expected)


@given(rows, st.integers(1, VOCABULARY + 5))
def test_top_k(row: Tensor, top_k: int) -> None:
    expected = theirs.TopKLogitsWarper(top_k)(ids_of([]), row[None])[0]
    assert torch.equal(law_of(top_k=top_k).scores(row), expected)


@given(rows, st.floats(0.01, 0.999))
def test_top_p(row: Tensor, top_p: float) -> None:
    """Which of several equal scores at the border is kept is arbitrary; how many, and of which value, is not."""
    masses = row.sort(descending=True).values.double().softmax(0).cumsum(0)
    assume(float((masses - top_p).abs().min()) > 1e-5)  # beyond the rounding of either side's sums
    expected = theirs.TopPLogitsWarper(top_p)(ids_of([]), row[None])[0]
    found = law_of(top_p=top_p).scores(row)
    assert torch.equal(found.sort().values, expected.sort().values)
    kept = found > MINUS_INFINITY
    assert torch.equal(found[kept], row[kept])
    # The smallest set: without its least likely member it would not reach p.
    mass = row.double().softmax(0)[kept]
    assert mass.sum() >= top_p - 1e-6
    assert mass.sum() - mass.min() < top_p + 1e-6


def test_top_p_keeps_the_lower_ids_among_equals() -> None:
    found = law_of(top_p=0.5).scores(torch.zeros(VOCABULARY))
    assert (found > MINUS_INFINITY).nonzero().flatten().tolist() == list(range(20))


@given(rows, st.floats(0.001, 1.0))
def test_min_p(row: Tensor, min_p: float) -> None:
    expected = theirs.MinPLogitsWarper(min_p)(ids_of([]), row[None])[0]
    assert torch.equal(law_of(min_p=min_p).scores(row), expected)


@given(rows, paths, st.floats(0.1, 4.0))
def test_repetition_penalty(row: Tensor, output: list[int], penalty: float) -> None:
    expected = theirs.RepetitionPenaltyLogitsProcessor(penalty)(ids_of(output), row[None])[0]
    assert torch.equal(law_of(output, repetition_penalty=penalty).scores(row), expected)


@given(rows, paths, st.integers(1, 6), st.sets(st.integers(0, VOCABULARY - 1), max_size=3))
def test_min_new_tokens(row: Tensor, output: list[int], least: int, stop_ids: set[int]) -> None:
    found = law_of(output, sorted(stop_ids), min_new_tokens=least).scores(row)
    expected = row
    if stop_ids:
        processor = theirs.MinNewTokensLengthLogitsProcessor(len(PROMPT), least, sorted(stop_ids))
        expected = processor(ids_of(output), row[None])[0]
    assert torch.equal(found, expected)


def test_a_processor_that_wants_the_end_waits_for_the_least_length() -> None:
    row = torch.arange(VOCABULARY, dtype=torch.float32)

    def prefers(ids: Tensor, scores: Tensor) -> Tensor:
        scores[:, 5] = 1000.0  # in place, as many do
        scores[:, 7] = 999.0
        return scores

    def forces(ids: Tensor, scores: Tensor) -> Tensor:
        forced = torch.full_like(scores, MINUS_INFINITY)
        forced[:, 5] = 0.0
        return forced

    def forbids(ids: Tensor, scores: Tensor) -> Tensor:
        return torch.full_like(scores, MINUS_INFINITY)

    for order in (DEFAULT_ORDER, DEFAULT_ORDER[::-1]):
        for temperature in (0.0, 1.0):
            values = {"min_new_tokens": 2, "temperature": temperature, "order": order}
            early, late = (
                law_of([9], [5], processors=(prefers,), **values),
                law_of([9, 9], [5], processors=(prefers,), **values),
            )
            assert early.scores(row).argmax() == 7
            assert late.scores(row).argmax() == 5
            # Nothing but the end: not heard before, not a token of its own choice.
            found = law_of([9], [5], processors=(forces,), **values).scores(row)
            assert torch.equal(found, law_of([9], [5], **values).scores(row))
            assert law_of([9, 9], [5], processors=(forces,), **values).scores(row).argmax() == 5
            assert (law_of([9], [5], processors=(forbids,), **values).scores(row) == MINUS_INFINITY).all()
    assert torch.equal(row, torch.arange(VOCABULARY, dtype=torch.float32))


@given(rows, paths, st.data())
def test_everything_together_as_generate_does_it(row: Tensor, output: list[int], data: st.DataObject) -> None:
    values = {
        "repetition_penalty": data.draw(st.sampled_from([1.0, 1.3, 0.7])),
        "min_new_tokens": data.draw(st.sampled_from([0, 3])),
        "temperature": data.draw(st.sampled_from([0.7, 1.0, 1.9])),
        "top_k": data.draw(st.sampled_from([0, 3, 10])),
        "top_p": data.draw(st.sampled_from([1.0, 0.83, 0.97])),
        "min_p": data.draw(st.sampled_from([0.0, 0.04])),
    }
    steps: list[Any] = []
    if values["repetition_penalty"] != 1:
        steps.append(theirs.RepetitionPenaltyLogitsProcessor(values["repetition_penalty"]))
    if values["min_new_tokens"]:
        steps.append(theirs.MinNewTokensLengthLogitsProcessor(len(PROMPT), values["min_new_tokens"], [5]))
    if values["temperature"] != 1:
        steps.append(theirs.TemperatureLogitsWarper(values["temperature"]))
    if values["top_k"]:
        steps.append(theirs.TopKLogitsWarper(values["top_k"]))
    before_top_p = theirs.LogitsProcessorList(steps)(ids_of(output), row[None])[0]
    assume(before_top_p.isfinite().any())
    if values["top_p"] < 1:
        masses = before_top_p.sort(descending=True).values.double().softmax(0).cumsum(0)
        assume(float((masses - values["top_p"]).abs().min()) > 1e-5)
        steps.append(theirs.TopPLogitsWarper(values["top_p"]))
    if values["min_p"]:
        steps.append(theirs.MinPLogitsWarper(values["min_p"]))
    expected = theirs.LogitsProcessorList(steps)(ids_of(output), row[None])[0]
    law = law_of(output, [5], **values)
    assert torch.equal(law.scores(row).sort().values, expected.sort().values)
    chances = law.log_probabilities(row).double().exp()
    assert float(chances.sum()) == pytest.approx(1.0, abs=1e-5)


# Steps that transformers lacks, by their formulas


@given(rows, paths, st.floats(-2, 2), st.floats(-2, 2))
def test_presence_and_frequency_penalties_count_the_output_only(
    row: Tensor, output: list[int], presence: float, frequency: float
) -> None:
    found = law_of(output, presence_penalty=presence, frequency_penalty=frequency).scores(row)
    for token in range(VOCABULARY):
        count = output.count(token)
        expected = float(row[token]) - frequency * count - presence * (count > 0)
        assert float(found[token]) == pytest.approx(expected, abs=1e-5)


def test_tokens_of_the_prompt_are_not_penalised_but_for_repetition() -> None:
    row = torch.ones(VOCABULARY)
    assert torch.equal(law_of(presence_penalty=1.5, frequency_penalty=1.0).scores(row), row)
    assert float(law_of(repetition_penalty=2.0).scores(row)[PROMPT[0]]) == 0.5


@given(rows, st.dictionaries(st.integers(0, VOCABULARY - 1), st.floats(-5, 5, width=32), max_size=5))
def test_logit_bias_adds(row: Tensor, bias: dict[int, float]) -> None:
    found = law_of(logit_bias=bias).scores(row)
    expected = row.clone()
    for token, value in bias.items():
        expected[token] = row[token] + value
    assert torch.equal(found, expected)


def test_a_bias_of_minus_infinity_forbids() -> None:
    law = law_of(logit_bias={4: MINUS_INFINITY}, temperature=0.0)
    row = torch.zeros(VOCABULARY)
    row[4] = 10
    row[9] = 1
    assert int(law.scores(row).argmax()) == 9


def test_processors_see_prompt_output_and_path() -> None:
    seen: list[list[int]] = []

    def forbid_last(ids: Tensor, scores: Tensor) -> Tensor:
        assert scores.shape == (1, VOCABULARY)
        seen.append(ids[0].tolist())
        scores = scores.clone()
        scores[0, ids[0, -1]] = MINUS_INFINITY
        return scores

    law = law_of([20], processors=(forbid_last, lambda ids, scores: scores + 1))
    row = torch.zeros(VOCABULARY)
    found = law.scores(row, [21, 22])
    assert seen == [[*PROMPT, 20, 21, 22]]
    assert float(found[22]) == MINUS_INFINITY
    assert float(found[0]) == 1.0


# Order as data


def test_the_order_is_that_of_the_settings() -> None:
    """Bias before temperature is divided by it, after temperature it is not."""
    row = torch.zeros(VOCABULARY)
    order = [name for name in DEFAULT_ORDER if name != "logit_bias"]
    place = order.index("temperature")
    after = (*order[: place + 1], "logit_bias", *order[place + 1 :])
    values: dict[str, Any] = {"temperature": 2.0, "logit_bias": {1: 4.0}}
    assert float(law_of(**values).scores(row)[1]) == 2.0
    assert float(law_of(**values, order=after).scores(row)[1]) == 4.0
    assert law_of(**values).order == ("logit_bias", "temperature")
    assert law_of(**values, order=after).order == ("temperature", "logit_bias")


def test_top_k_and_min_p_in_either_order() -> None:
    """After top-k fewer tokens share the mass, but min-p looks at ratios; before top-p the order does matter."""
    row = torch.tensor([4.0, 3.0, 2.0, 1.0, 0.0])
    for order in itertools.permutations(["top_k", "top_p", "min_p"]):
        rest = tuple(name for name in DEFAULT_ORDER if name not in order)
        law = Law(LawSettings(temperature=1.0, top_k=3, top_p=0.9, order=(*rest, *order)), [0])
        kept = (law.scores(row) > MINUS_INFINITY).nonzero().flatten().tolist()
        # 0.636, 0.234, 0.086 of all; among three 0.665, 0.245, 0.09: two reach 0.9 only after top-k.
        assert kept == ([0, 1] if order.index("top_k") < order.index("top_p") else [0, 1, 2])


def test_neutral_settings_switch_every_step_off() -> None:
    law = law_of()
    assert law.order == ()
    assert not law.uses_prefix
    row = random_row(1)
    assert torch.equal(law.scores(row), row)


@pytest.mark.parametrize(
    ("settings", "uses"),
    [
        ({"repetition_penalty": 1.1}, True),
        ({"presence_penalty": 1.1}, True),
        ({"frequency_penalty": 1.1}, True),
        ({"min_new_tokens": 1}, True),
        ({"processors": (lambda ids, scores: scores,)}, True),
        ({"logit_bias": {1: 1.0}}, False),
        ({"temperature": 0.5, "top_k": 1, "top_p": 0.5, "min_p": 0.5}, False),
    ],
)
def test_which_laws_depend_on_the_prefix(settings: dict[str, Any], uses: bool) -> None:
    assert law_of(**settings).uses_prefix is uses


# Greedy decoding


@given(rows, st.integers(1, 5), st.floats(0.1, 0.9))
def test_greedy_takes_the_lowest_id_among_the_highest(row: Tensor, top_k: int, top_p: float) -> None:
    law = law_of(temperature=0.0, top_k=top_k, top_p=top_p, min_p=0.3)
    assert law.greedy
    assert law.order == ()
    best = min(token for token in range(VOCABULARY) if row[token] == row.max())
    assert int(law.scores(row).argmax()) == best
    point = law.log_probabilities(row).exp()
    assert point.nonzero().flatten().tolist() == [best]
    assert float(point[best]) == 1.0


@pytest.mark.parametrize("width", [1, 7, 129, 5000, 49152])
def test_ties_in_wide_rows_take_the_lowest_id(width: int) -> None:
    row = torch.zeros(width)
    for place in {width - 1, width // 2, width // 3}:
        row[place] = 5.0
    assert int(law_of(temperature=0.0).scores(row).argmax()) == width // 3


def test_greedy_still_applies_what_changes_the_order_of_scores() -> None:
    row = torch.zeros(VOCABULARY)
    row[PROMPT[0]], row[30] = 2.0, 1.5
    assert int(law_of(temperature=0.0, repetition_penalty=2.0).scores(row).argmax()) == 30
    assert int(law_of([30], temperature=0.0, presence_penalty=1.0).scores(row).argmax()) == PROMPT[0]
    assert int(law_of((), [PROMPT[0]], temperature=0.0, min_new_tokens=1).scores(row).argmax()) == 30


@pytest.mark.parametrize("temperature", [1e-3, 1e-6, 1e-30, 1e-44, 1e-300])
def test_however_small_a_temperature_the_law_stays_one(temperature: float) -> None:
    row = random_row(3)
    row[7] = row[9] = row.max() + 1
    chances = law_of(temperature=temperature).log_probabilities(row).exp()
    assert float(chances.sum()) == pytest.approx(1.0)
    assert chances[7] == chances[9] == pytest.approx(0.5)


# Paths


@given(rows, paths, paths, st.data())
@hypothesis_settings(max_examples=200)
def test_a_path_acts_like_committed_tokens(
    row: Tensor, output: list[int], path: list[int], data: st.DataObject
) -> None:
    values = {
        "temperature": data.draw(st.sampled_from([0.0, 0.6, 1.0])),
        "repetition_penalty": data.draw(st.sampled_from([1.0, 1.4])),
        "presence_penalty": data.draw(st.sampled_from([0.0, 0.9])),
        "frequency_penalty": data.draw(st.sampled_from([0.0, 0.5])),
        "min_new_tokens": data.draw(st.integers(0, 8)),
        "top_k": data.draw(st.sampled_from([0, 4])),
        "logit_bias": {2: 1.0},
        "processors": (lambda ids, scores: scores + ids.sum() * torch.arange(VOCABULARY) % 3,),
    }
    drafting, committing = law_of(output, [1, 2], **values), law_of([*output, *path], [1, 2], **values)
    before = drafting.scores(row)
    assert torch.equal(drafting.scores(row, path), committing.scores(row))
    assert torch.equal(drafting.log_probabilities(row, path), committing.log_probabilities(row))
    assert torch.equal(drafting.scores(row), before)  # a path leaves no trace


# The input


@given(rows, paths)
def test_rows_are_never_changed_in_place(row: Tensor, path: list[int]) -> None:
    def rude(ids: Tensor, scores: Tensor) -> Tensor:
        scores[:, 0] = 100.0
        return scores

    before = row.clone()
    for values in (
        {"repetition_penalty": 1.5, "presence_penalty": 0.5, "frequency_penalty": 0.5, "min_new_tokens": 9},
        {"logit_bias": {1: 2.0}},
        {"processors": (rude,)},
        {"temperature": 0.5, "top_k": 3, "top_p": 0.8, "min_p": 0.1},
        {"temperature": 0.0, "repetition_penalty": 2.0},
        {"temperature": 0.0},
        {},
    ):
        law = law_of([4], [6], **values)
        law.scores(row, path)
        law.log_probabilities(row, path)
        assert torch.equal(row, before)


def test_half_precision_rows_are_processed_in_float32() -> None:
    row = random_row(5).bfloat16()
    for values in ({"temperature": 0.7}, {"top_p": 0.9}, {}):
        assert law_of(**values).scores(row).dtype is torch.float32
        assert law_of(**values).log_probabilities(row).dtype is torch.float32
