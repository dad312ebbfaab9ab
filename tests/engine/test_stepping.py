"""Rules that pick token by token: with a look ahead, with mixtures fed, on a target, and prompts read in their own order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scripted_requests import Scripted, new_request, run

from decodery.engine.method import Decoding, Method
from decodery.engine.prompt_layout import PromptLayout
from decodery.engine.registry import method as as_method
from decodery.engine.request import Request
from decodery.engine.stepping import Choice, Picker, step_by_step
from decodery.models.forward import Forward, Rows, Scores
from decodery.models.heads import HeadNetwork
from decodery.models.sequence import Sequence
from decodery.testing import ScriptedScorer, TabularScorer, scripted_language_model, story_scorer


class Likeliest(Picker):
    def pick(self, request: Request, sequence: Sequence, scores: Scores) -> Choice:
        return Choice(request.draw(scores.logits[0]))


class BestPair(Picker):
    """Of the three likeliest tokens the one that begins the likeliest pair."""

    def pick(self, request: Request, sequence: Sequence, scores: Scores) -> Any:
        law = scores.logits[0].log_softmax(0)
        tokens = law.topk(3).indices.tolist()
        answers = yield tuple(Forward(sequence.fork(), [token]) for token in tokens)
        best = [float(law[token] + a.logits[0].log_softmax(0).max()) for token, a in zip(tokens, answers, strict=True)]
        return Choice(tokens[best.index(max(best))])


class Soft(Picker):
    """Feeds the whole law as a mixture, and says its likeliest token."""

    def pick(self, request: Request, sequence: Sequence, scores: Scores) -> Choice:
        law = scores.logits[0].softmax(0)
        return Choice(int(law.argmax()), sequence.owner.embed(law[None]))


def by_rule(rule: type[Picker]) -> Method:
    return Scripted(lambda request: step_by_step(request, rule()))


def test_the_plainest_rule_is_plain_decoding() -> None:
    lm = scripted_language_model(story_scorer())
    for settings in ({}, {"temperature": 1.0, "seed": 3}, {"target": "guidance(scale=2)"}):
        mine, plain = new_request(lm, [1, 2, 3], **settings), new_request(lm, [1, 2, 3], 1, **settings)
        run((mine, by_rule(Likeliest)), (plain, "autoregressive"))
        assert mine.new_tokens == plain.new_tokens


def test_a_rule_may_look_ahead() -> None:
    scorer = TabularScorer(5, order=None, seed=4)
    lm = scripted_language_model(scorer)
    request = new_request(lm, [0, 1], max_new_tokens=6)
    run((request, by_rule(BestPair)))
    text = [0, 1]
    for token in request.new_tokens:
        law = scorer.law(text)
        pairs = {t: float(law[t] * scorer.law([*text, t]).max()) for t in law.topk(3).indices.tolist()}
        assert token == max(pairs, key=pairs.__getitem__)
        text.append(token)
    assert request.statistics.models[scorer.name].forwards == 6 * 4


def test_a_rule_may_feed_mixtures() -> None:
    scorer = TabularScorer(3, order=None, seed=1)
    request = new_request(scripted_language_model(scorer), [2], max_new_tokens=2)
    run((request, by_rule(Soft)))
    first = scorer.law([2])
    second = sum(float(first[token]) * scorer.law([2, token]) for token in range(3))
    assert request.new_tokens == [int(first.argmax()), int(second.argmax())]  # type: ignore[union-attr]


def layout(parts: list[int]) -> PromptLayout:
    """A first token, `parts` side by side, and two last tokens."""
    count, longest = 3 + sum(parts), max(parts)
    visible = torch.ones(count, count, dtype=torch.bool).tril()
    positions, row = [0], 1
    for size in parts:
        visible[row : row + size, 1:row] = False
        positions += range(1, 1 + size)
        row += size
    return PromptLayout([*positions, longest + 1, longest + 2], visible)


@pytest.mark.parametrize("name", ["autoregressive", "prompt-lookup", "cascade", "token-recycling"])
def test_a_prompt_may_be_read_as_a_set(name: str) -> None:
    """Two parts at the same positions, blind to each other: their order does not matter, in any method."""
    scorer = ScriptedScorer(lambda prefix: [(hash((prefix, token)) % 997) / 100 for token in range(9)], 9, causal=False)
    lm = scripted_language_model(scorer)
    method = as_method(name)

    def decode(request: Request) -> Decoding:
        first = 2 if request.prompt[1] == 5 else 3
        request.layout = layout([first, 5 - first])
        yield from method.decode(request)

    one, other = new_request(lm, [0, 5, 6, 1, 2, 3, 7, 8]), new_request(lm, [0, 1, 2, 3, 5, 6, 7, 8], 1)
    in_order = new_request(lm, [0, 1, 2, 3, 5, 6, 7, 8], 2)
    run((one, Scripted(decode)), (other, Scripted(decode)), (in_order, method))
    assert one.error is None
    assert one.new_tokens == other.new_tokens
    assert one.new_tokens != in_order.new_tokens


def test_a_layout_must_end_in_one_row_that_sees_all() -> None:
    whole = torch.ones(3, 3, dtype=torch.bool).tril()
    PromptLayout([0, 0, 1], whole)
    for positions, visible in (
        ([0, 0, 2], whole),
        ([0, 1], whole),
        ([0, 0, 1], whole.T),
        ([0, 0, 1], torch.eye(3).bool()),
    ):
        with pytest.raises(ValueError, match="row"):
            PromptLayout(positions, visible)


def test_heads_are_packed_like_networks() -> None:
    head = HeadNetwork(torch.nn.Linear(4, 3), 4, 3, "head")
    rows = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    asks = [Forward(head.new_sequence(), rows[:2]), Forward(head.new_sequence(), rows[2:], logits=Rows.LAST)]
    [first, last] = head.run_pass(asks)
    expected = head.module(rows)
    assert torch.allclose(first.logits, expected[:2])
    assert torch.allclose(last.logits, expected[4:])
    with pytest.raises(ValueError, match=r"hidden rows .* and no token ids"):
        head.check(Forward(head.new_sequence(), [1]))
