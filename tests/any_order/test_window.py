"""Orders, what a forward shows to whom, windows with holes, and counts of neighbours."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from decodery.any_order.context_ngrams import ContextNgrams
from decodery.any_order.joint_density import joint_density
from decodery.any_order.order import DecodingOrder
from decodery.diffusion.likelihood_bound import likelihood_bound
from decodery.engine.events import Unmasked
from decodery.errors import BadPrompt, BadSetting, Refused
from decodery.models.kinds import Kind
from decodery.testing import TabularOrders, any_order_language_model, toy_any_order_model, toy_diffusion_model
from decodery.testing.outputs import watched

MASK, END = 23, 9
PLAIN = "any-subset-autoregressive"


def test_given_positions_come_first_and_all_ascend():
    order = DecodingOrder([5, 0], [3, 1, 4])
    assert order.positions == [0, 5, 1, 3, 4]
    assert order.targets == [1, 3, 4]


@pytest.mark.parametrize("joint", [True, False])
def test_who_sees_whom(joint):
    """Given tokens each other, later ones those before them, queries what is before their rank, or before the first one's."""
    lm = toy_any_order_model()
    order = DecodingOrder([0, 5], [1, 3, 4])
    forward = order.forward(lm.network.new_sequence(), [10, 11, 12, 13], range(3, 5), MASK, joint)
    assert list(forward.tokens) == [10, 11, 12, 13, MASK, MASK]
    assert list(forward.row_positions()) == [0, 5, 1, 3, 3, 4]
    assert list(forward.logit_rows()) == [4, 5]
    seen: Any = forward.attend
    assert [[column for column, there in enumerate(row) if there] for row in seen.tolist()] == [
        [0, 1], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 4], [0, 1, 2, 3, 5] if joint else [0, 1, 2, 5],
    ]  # fmt: skip


def test_rows_that_are_kept_are_not_asked_again():
    lm = toy_any_order_model()
    order, sequence = DecodingOrder([0, 5], [1, 3, 4]), lm.network.new_sequence()
    [whole] = lm.network.run([order.forward(lm.network.new_sequence(), [10, 11, 12, 13], range(3, 5), MASK, True)])
    first = order.forward(sequence, [10, 11], range(2, 3), MASK, False)
    lm.network.run([first])
    sequence.truncate(2)
    second = order.forward(sequence, [10, 11, 12, 13], range(3, 5), MASK, True)
    assert list(second.tokens) == [12, 13, MASK, MASK]
    [scores] = lm.network.run([second])
    assert torch.allclose(scores.logits, whole.logits, atol=1e-5)


def test_forwards_and_rows_are_counted():
    """One by one after two tokens: a query and what has no row yet, or all that is known."""
    lm = toy_any_order_model(canvas=3)
    for spec, rows in ((PLAIN, 3 + 2 + 2), (f"{PLAIN}(cache=none)", 3 + 4 + 5)):
        stats = lm.generate([1, 2], spec).stats
        assert (stats.forwards, stats.rounds, stats.rows) == (3, 3, rows)
    stats = lm.generate([1, 2], "any-subset-speculative(k=2)", seed=1, temperature=1.0).stats
    assert (stats.forwards, stats.rounds) == (3, 3)


def test_tokens_that_are_missing_or_ahead_are_errors():
    lm, order = toy_any_order_model(), DecodingOrder([0], [1, 2, 3])
    with pytest.raises(ValueError, match="1 tokens"):
        order.forward(lm.network.new_sequence(), [4], range(1, 3), MASK, True)
    order.forward(lm.network.new_sequence(), [4], range(1, 3), MASK, False)
    sequence = lm.network.new_sequence()
    lm.network.run([order.forward(sequence, [4, 5, 6], range(3, 4), MASK, True)])
    with pytest.raises(ValueError, match="too many"):
        order.forward(sequence, [4, 5, 6, 7], range(2, 4), MASK, True)


# Holes


@pytest.mark.parametrize("method", [PLAIN, "any-subset-speculative(k=2)"])
def test_what_is_given_stands_and_every_hole_is_filled(method):
    lm = toy_any_order_model(sharpness=0.3)
    reply = lm.generate([3, 4, MASK, 5, MASK, MASK, 1], method, seed=1, temperature=1.0)
    assert reply.prompt_token_ids == (3, 4)
    assert [reply.token_ids[place] for place in (1, 4)] == [5, 1]
    assert MASK not in reply.token_ids
    assert len(reply.token_ids) == 5
    assert reply.finish_reason == "length"
    filled = [(event.step, event.offsets, event.tokens) for event in reply.events if isinstance(event, Unmasked)]
    assert filled[0] == (0, (1, 4), (5, 1))
    assert [offset for _, offsets, _ in filled[1:] for offset in offsets] == [0, 2, 3]
    assert reply.stats.step_of[1] == 0
    assert reply.text == lm.tokenizer.decode(reply.token_ids)


def test_text_goes_on_behind_holes_where_that_is_asked_for():
    lm = toy_any_order_model(canvas=6)
    assert len(lm.generate([3, MASK, 5], PLAIN).token_ids) == 2
    reply = lm.generate([3, MASK, 5], f"{PLAIN}(gen_length=4)")
    assert len(reply.token_ids) == 6
    assert reply.token_ids[1] == 5
    assert len(lm.generate([3], PLAIN).token_ids) == 6
    assert len(lm.generate([3], PLAIN, max_new_tokens=4).token_ids) == 4
    assert len(lm.generate([3], f"{PLAIN}(gen_length=9)", max_new_tokens=7).token_ids) == 7


def test_no_end_comes_before_given_text():
    """But it may come behind it, and ends the text there."""
    lm = toy_any_order_model(canvas=6, stop_ids=(END,))
    bias = {END: 100.0}
    reply = lm.generate([3, MASK, MASK, 5, MASK], PLAIN, logit_bias=bias)
    assert END not in reply.token_ids[:3]
    assert reply.token_ids[3] == END
    assert reply.finish_reason == "stop"
    early = lm.generate([3], "any-subset-speculative(k=3)", logit_bias=bias, ignore_eos=False)
    assert (early.token_ids, early.finish_reason, early.stats.forwards) == ([END], "stop", 2)
    late = lm.generate([3], PLAIN, logit_bias=bias, min_new_tokens=3)
    assert late.token_ids.index(END) == 3


def test_samples_and_prompts_with_and_without_holes_share_passes():
    lm = toy_any_order_model(canvas=5, sharpness=0.3)
    prompts = [[3, MASK, 5, MASK], [4, 4], [MASK, MASK]]
    together = lm.generate(prompts, "any-subset-speculative", seed=[1, 2, 3], temperature=1.0)
    alone = [
        lm.generate(prompt, "any-subset-speculative", seed=seed, temperature=1.0)
        for prompt, seed in zip(prompts, (1, 2, 3), strict=True)
    ]
    assert [reply.token_ids for reply in together] == [reply.token_ids for reply in alone]
    assert len({tuple(r.token_ids) for r in lm.generate([4], PLAIN, n=8, seed=1, temperature=1.0)}) > 1


def test_a_prompt_is_split_by_models_of_any_order_alone():
    assert toy_any_order_model().split_at_hole([1, MASK, 2]) == ([1], (MASK, 2))
    assert toy_any_order_model().split_at_hole([1, 2]) == ([1, 2], ())
    assert toy_diffusion_model().split_at_hole([1, MASK, 2]) == ([1, MASK, 2], ())


@pytest.mark.parametrize(
    ("prompt", "given", "error", "said"),
    [
        ([1, MASK, 2, MASK], {"max_new_tokens": 2}, BadSetting, "max_new_tokens is 2, but from its first hole on"),
        ([1], {"max_new_tokens": 600}, BadPrompt, "have 601 positions together"),
        ([1, MASK, 2], {"logprobs": 0}, Refused, "text behind a hole"),
        ([1, 2], {"logprobs": 0, "echo": True}, Refused, "echo and logprobs"),
        ([1, MASK], {"min_new_tokens": 2}, BadSetting, "the canvas has only 1 positions"),
        ([1], {"structured_outputs": {"regex": "a*"}}, Refused, "behind a hole"),
        ([1], {"repetition_penalty": 2.0}, Refused, "no prefix of its own"),
    ],
)
def test_what_cannot_be_is_refused_before_work(prompt, given, error, said):
    lm = toy_any_order_model(canvas=600)
    forwards: list[object] = []
    with watched(lm.network, forwards.append), pytest.raises(error, match=re.escape(said)):
        lm.generate(prompt, "any-subset-speculative", **{"max_new_tokens": 128, **given})
    assert not forwards


def test_a_reserved_token_is_no_given_text():
    lm = toy_any_order_model()
    assert lm.diffusion is not None
    object.__setattr__(lm.diffusion, "pad_token_ids", (7,))
    with pytest.raises(BadPrompt, match="token 7 is reserved"):
        lm.generate([1, MASK, 7])
    for seed in range(20):
        assert 7 not in lm.generate([1], PLAIN, seed=seed, temperature=3.0).token_ids


def test_log_probabilities_are_those_of_plain_decoding():
    lm = toy_any_order_model(canvas=8)
    plain, fast = (lm.generate([1, 2], method, logprobs=2) for method in (PLAIN, "any-subset-speculative(k=3)"))
    assert plain.token_ids == fast.token_ids
    for one, other in zip(plain.logprobs, fast.logprobs, strict=True):
        assert one.raw == pytest.approx(other.raw, abs=1e-5)
        assert [token for token, _ in one.top] == [token for token, _ in other.top]


def test_the_default_decodes_and_other_kinds_are_told_of():
    lm = toy_any_order_model(canvas=5)
    assert lm.network.kinds is Kind.ANY_ORDER
    assert lm.default_method == "any-subset-speculative"
    assert lm.generate([1]).method.startswith("any-subset-speculative")
    with pytest.raises(Refused, match="decodes with an any-order model, and toy-diffusion-0 is a masked"):
        toy_diffusion_model().generate([1], "any-subset-speculative")
    with pytest.raises(Refused, match="is an any-order one; any-subset-speculative runs on it"):
        lm.generate([1], "masked-diffusion")
    with pytest.raises(Refused, match="is an any-order model"):
        lm.score("ab")
    with pytest.raises(Refused, match="is an any-order model"):
        lm.next_byte("ab")
    with pytest.raises(Refused, match="use joint_density"):
        lm.run(likelihood_bound(lm, [1, 2]))


# Density


def test_the_joint_density_is_the_sum_of_all_steps():
    oracle = TabularOrders.random(4, 3, 1)
    lm = any_order_language_model(oracle)
    text = [0, 1, 2, 0, 1, 2]
    found = lm.run(joint_density(lm, text, [5, 2, 3]))
    assert float(found.sum()) == pytest.approx(
        float((oracle.joint[2, 0, 1, 2] / oracle.joint[:, :, 1, :].sum()).log()), abs=1e-5
    )
    apart = lm.run(joint_density(lm, text, [5, 2, 3], joint=False))
    assert float(apart[2]) == pytest.approx(
        float((oracle.joint[:, :, 1, 2].sum() / oracle.joint[:, :, 1, :].sum()).log()), abs=1e-5
    )


@pytest.mark.parametrize("hidden", [[], [6], [-1], [2, 2]])
def test_positions_of_a_density_are_checked(hidden):
    lm = any_order_language_model(TabularOrders.random(4, 3, 1))
    with pytest.raises(BadPrompt, match="hidden positions"):
        lm.run(joint_density(lm, [0, 1, 2, 0, 1, 2], hidden))


def test_other_texts_and_models_have_no_density():
    lm = any_order_language_model(TabularOrders.random(4, 3, 1))
    with pytest.raises(BadPrompt, match="reserved"):
        lm.run(joint_density(lm, [0, 1, 3], [2]))
    with pytest.raises(BadPrompt, match="has 7 tokens"):
        lm.run(joint_density(lm, [0] * 7, [2]))
    other = toy_diffusion_model()
    with pytest.raises(Refused, match="a joint density needs an any-order one"):
        other.run(joint_density(other, [0, 1], [1]))


# Neighbours


def test_every_pair_counts_once_on_whichever_side_it_becomes_known():
    ngrams = ContextNgrams(5)
    with pytest.raises(ValueError, match="nothing is known"):
        ngrams.law(0)
    for position, token in ((0, 1), (2, 3), (1, 2), (4, 1), (3, 4)):  # 1 2 3 4 1
        ngrams.know(position, token)
    with pytest.raises(ValueError, match="position 3"):
        ngrams.know(3, 4)
    for left, right in ((1, 2), (2, 3), (3, 4), (4, 1)):
        assert ngrams.law(left).tolist() == [float(token == right) for token in range(5)]
    assert ngrams.law(0).tolist() == [0, 0.4, 0.2, 0.2, 0.2]  # nothing has followed it
    ngrams.know(5, 3)
    assert ngrams.law(1).tolist() == [0, 0, 0.5, 0.5, 0]
