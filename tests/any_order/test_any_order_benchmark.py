"""The benchmark on an any-order model: plain decoding is one token per forward, of a token's row and a query's."""

from __future__ import annotations

from decodery.evaluation.benchmark import run_benchmark
from decodery.evaluation.questions import Question
from decodery.testing import toy_any_order_model, watched

QUESTIONS = [Question("1", "qa", ("abc",)), Question("2", "qa", ("hgfed",))]
FAST = "any-subset-speculative(k=3)"


def test_speculation_is_measured_against_one_token_per_forward():
    lm = toy_any_order_model(canvas=10)
    rows: list[int] = []
    with watched(lm.network, lambda forward: rows.append(forward.count)):
        report = run_benchmark(lm, [FAST], QUESTIONS, max_new_tokens=10, warmup=0)
    plain, bare, fast = (report.row(name) for name in ("any-subset-autoregressive", "bare forward", FAST))
    assert plain.forwards == plain.new_tokens == bare.forwards == 20
    assert fast.identical == 1.0
    assert fast.forwards < plain.forwards
    # Of each text plain decoding and its bare forwards have the prompt's rows once, and a query in each.
    assert rows.count(2) >= 2 * (9 + 9)
    assert rows.count(4) >= 2
    assert rows.count(6) >= 2
