"""Any-subset speculative decoding through the engine: its bound, its first token, its cache, and what it refuses."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from decodery.any_order.any_subset_speculative import judged
from decodery.any_order.joint_density import joint_density
from decodery.any_order.order import DecodingOrder
from decodery.engine.events import Drafted, Unmasked
from decodery.engine.method import Exactness
from decodery.engine.registry import method as as_method
from decodery.errors import BadParameter
from decodery.evaluation.check import check_method
from decodery.testing import ScriptedChance, toy_any_order_model

PROMPTS = [[1, 2, 3], [7, 4, 4, 9], [11]]
SEEDS = range(25)
MASK = 23
HOLES = [3, MASK, 5, MASK, MASK, 1, MASK]


def _drafts(reply):
    """Of every iteration in which a draft was judged: the draft, and what was written."""
    events = [event for event in reply.events if isinstance(event, Drafted | Unmasked)]
    return [
        (one.tokens, other.tokens)
        for one, other in pairwise(events)
        if isinstance(one, Drafted) and isinstance(other, Unmasked)
    ]


@pytest.mark.parametrize("k", [2, 3, 5, 8])
def test_there_are_never_more_forwards_than_tokens(k):
    lm, equal = toy_any_order_model(canvas=11, sharpness=0.3), []
    for seed in SEEDS:
        reply = lm.generate(PROMPTS[seed % 3], f"any-subset-speculative(k={k})", seed=seed, temperature=1.0)
        drafts = _drafts(reply)
        assert reply.error is None
        assert len(reply.token_ids) == 11
        assert reply.stats.forwards == 2 * len(drafts) + (11 - sum(len(written) for _, written in drafts))
        assert reply.stats.forwards <= 11
        assert all(2 <= len(written) <= k for _, written in drafts)
        assert (reply.stats.forwards == 11) == all(len(written) == 2 for _, written in drafts)
        equal.append(reply.stats.forwards == 11)
    assert all(equal) if k == 2 else not all(equal)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_first_token_is_never_rejected(temperature):
    lm = toy_any_order_model(canvas=12, sharpness=0.3)
    for seed in SEEDS:
        reply = lm.generate(PROMPTS[seed % 3], "any-subset-speculative", seed=seed, temperature=temperature)
        assert reply.stats.details["first_token_gap"] < 1e-5
        for draft, written in _drafts(reply):
            assert written[0] == draft[0]
            assert written[:-1] == draft[: len(written) - 1]
        assert reply.stats.details["iterations"] == len(_drafts(reply))
        assert reply.stats.details["tokens_of_iterations"] == sum(len(written) for _, written in _drafts(reply))
        assert reply.stats.drafted == sum(len(draft) for draft, _ in _drafts(reply))


@pytest.mark.parametrize("draft", ["self", "ngram"])
@pytest.mark.parametrize("prompt", [PROMPTS[1], HOLES, [MASK, 2, MASK, MASK]])
def test_what_is_kept_changes_no_token(draft, prompt):
    """With the same draws in float64, where rounding decides nothing."""
    lm = toy_any_order_model(canvas=12, sharpness=0.3, dtype=torch.float64)
    rows = {}
    for cache in ("ranks", "none"):
        method = f"any-subset-speculative(draft={draft}, cache={cache})"
        rows[cache] = [lm.generate(prompt, method, seed=seed, temperature=1.0) for seed in range(12)]
    for kept, alone in zip(rows["ranks"], rows["none"], strict=True):
        assert kept.token_ids == alone.token_ids
        assert kept.stats.forwards == alone.stats.forwards
        assert kept.stats.rows < alone.stats.rows


@pytest.mark.parametrize("draft", ["self", "ngram"])
def test_greedy_output_is_that_of_plain_decoding(draft):
    lm = toy_any_order_model(canvas=12)
    for prompt in (*PROMPTS, HOLES):
        plain = lm.generate(prompt, "any-subset-autoregressive")
        assert lm.generate(prompt, f"any-subset-speculative(draft={draft})").token_ids == plain.token_ids


def test_drafts_of_neighbours_take_one_forward_each_and_a_lone_token_is_judged():
    lm = toy_any_order_model(canvas=9, sharpness=0.3)
    for seed in SEEDS:
        reply = lm.generate([1, 2, 3], "any-subset-speculative(k=3, draft=ngram)", seed=seed, temperature=1.0)
        drafts = _drafts(reply)
        assert reply.stats.forwards == len(drafts) == reply.stats.details["look_ups"] <= 9
        assert sum(len(written) for _, written in drafts) == 9
        assert drafts[0][0][0] in {1, 2, 3}  # nothing has followed 3, so any known token
        assert all(len(draft) <= 3 for draft, _ in drafts)


def test_the_first_position_of_all_is_drafted_by_the_model():
    lm = toy_any_order_model(canvas=9, sharpness=0.3)
    for seed in SEEDS:
        reply = lm.generate([MASK] * 6, "any-subset-speculative(k=2, draft=ngram)", seed=seed, temperature=1.0)
        iterations = reply.stats.details["iterations"]
        assert reply.stats.details["look_ups"] == iterations - 1
        assert reply.stats.forwards == iterations + 1
    lone = lm.generate([MASK, 4, 5], "any-subset-speculative(draft=ngram)", seed=0, temperature=1.0)
    assert (lone.stats.forwards, lone.stats.details["iterations"], lone.stats.details["look_ups"]) == (1, 0, 0)


def test_a_network_that_sees_more_than_its_masks_is_found_out(monkeypatch):
    """As with masks under which decided tokens see each other both ways: neither the first token nor the density survives."""
    lm = toy_any_order_model(canvas=12, sharpness=0.3, dtype=torch.float64)
    text = [1, 2, 3, 9, 8, 7, 6]
    plain = lm.generate([1, 2, 3], "any-subset-autoregressive(gen_length=4)", seed=3, temperature=1.0, logprobs=0)
    assert plain.logprobs is not None
    written = [1, 2, 3, *plain.token_ids]
    stepwise = sum(told.raw for told in plain.logprobs)
    assert abs(float(lm.run(joint_density(lm, written, range(3, 7))).sum()) - stepwise) < 1e-4
    honest = lm.run(joint_density(lm, text, range(3, 7)))
    usual = DecodingOrder.forward

    def both_ways(self: Any, sequence: Any, tokens: Any, ranks: Any, mask: Any, joint: bool) -> Any:
        forward = usual(self, sequence, tokens, ranks, mask, joint)
        forward.attend[: len(tokens) - sequence.length, : len(tokens)] = True
        return forward

    monkeypatch.setattr(DecodingOrder, "forward", both_ways)
    assert float((lm.run(joint_density(lm, text, range(3, 7))) - honest).abs().max()) > 0.01
    # What is kept cannot see later tokens, whatever masks say: so all rows are computed anew.
    with pytest.raises(RuntimeError, match="is no any-order model"):
        lm.generate([1, 2, 3], "any-subset-speculative(cache=none)", seed=3, temperature=1.0)


def _law(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_a_verdict_takes_one_decision_at_a_time():
    p, q = _law([0.5, 0.5], [0.8, 0.2], [1.0, 0.0]), _law([0.5, 0.5], [0.4, 0.6], [0.0, 1.0])

    def verdict(script: list[Any], tokens: list[int], r_atol: float = 0.0) -> tuple[int, int | None]:
        return judged(p, q, tokens, ScriptedChance(script), [4, 5, 6], r_atol, certain=1)

    decisions: list[Any] = []
    assert verdict(decisions, [1, 0, 0]) == (2, 1)  # accepted, then rejected for sure
    assert [decision.branches for decision in decisions] == [[(1, 0.5), (0, 0.5)], [(0, 1.0)], [(1, 1.0)]]
    decisions = []
    assert verdict(decisions, [1, 0, 0], 0.25) == (3, None)
    assert [decision.branches[0] for decision in decisions] == [(1, 0.75), (1, 0.25)]
    decisions = []
    assert judged(p, q, [1, 1, 0], ScriptedChance(decisions), [4, 5, 6]) == (2, 1)
    assert len(decisions) == 4  # the first token is judged as well, and taken


class Never:
    """A chance that accepts nothing."""

    def accept(self, probability: float, position: int, index: Any = 0) -> bool:
        return False

    def choose(self, *_: Any, **__: Any) -> int:
        raise AssertionError("nothing is left to draw from")


def test_a_token_that_cannot_be_replaced_stands():
    p = _law([0.5, 0.5], [0.8, 0.2])
    assert judged(p, p.clone(), [0, 1], Never(), [0, 1]) == (2, None)  # type: ignore[arg-type]


def test_slack_makes_it_approximate():
    assert as_method("any-subset-speculative").exactness is Exactness.IDENTICAL_TO_SAMPLING
    assert as_method("any-subset-speculative(r_atol=0.1)").exactness is Exactness.APPROXIMATE
    for refused in ("k=1", "r_atol=1.5", "draft=none"):
        with pytest.raises(BadParameter):
            as_method(f"any-subset-speculative({refused})")


@pytest.mark.parametrize("spec", ["any-subset-autoregressive", "any-subset-speculative(k=3)"])
def test_it_passes_the_check(spec):
    report = check_method(toy_any_order_model(canvas=6), spec, prompts=3)
    assert report.passed
    assert len(report.parts) == 6
    assert all(part.passed for part in report.parts)


def test_the_check_refutes_what_promises_too_much(monkeypatch):
    chosen = as_method("any-subset-speculative(k=3, r_atol=0.5)")
    object.__setattr__(chosen, "exactness", Exactness.IDENTICAL_TO_SAMPLING)
    report = check_method(toy_any_order_model(canvas=6), chosen, prompts=2)
    assert not report.passed
    assert [part.passed for part in report.parts if part.name.startswith("law")] == [False] * 3
