"""USCD: the gate, the contrast by hand, prompts without their examples, and that drafts change nothing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from decodery.engine.request import Request
from decodery.engine.settings import Settings
from decodery.models.forward import Forward, Tree
from decodery.targets.uscd import UncertaintyAwareContrast, spread, without_assertions, without_doctests
from decodery.testing import scripted_language_model, story_scorer, toy_language_model

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


def language_model() -> Any:
    return scripted_language_model(story_scorer(vocabulary=24, surprise=2.0))


def random_rows(count: int, seed: int = 0, wide: int = 30) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, wide, generator=generator) * torch.linspace(0.2, 8, count)[:, None]


def by_hand(own: Tensor, lame: Tensor, rho: float, floor: float, eta: float) -> Tensor:
    """Probabilities of a row, step by step."""
    a, b = own.double().softmax(0), lame.double().softmax(0)
    size = len(a)
    if float(a.std()) > rho / math.sqrt(size):
        return a
    keep = a >= floor / size
    score = torch.where(keep, a - eta * b, 0.0).clamp_min(0)
    return score / score.sum() if float(score.sum()) > 0 else a


@pytest.mark.parametrize(
    ("rho", "floor", "eta"), [(0.895, 2 / 3, 0.7), (0.626, 1 / 3, 0.7), (0.9, 5.0, 0.3), (1.001, 0.0, 1.0)]
)
def test_the_contrast_by_hand(rho: float, floor: float, eta: float) -> None:
    target = UncertaintyAwareContrast(rho=rho, floor=floor, eta=eta)
    own, lame = random_rows(200), random_rows(200, 1)
    found = target.combine([own, lame]).softmax(-1).double()
    expected = torch.stack([by_hand(a, b, rho, floor, eta) for a, b in zip(own, lame, strict=True)])
    assert torch.allclose(found, expected, atol=1e-6)
    unsure = target.unsure(own)
    assert int(unsure.sum()) > 0
    assert torch.equal(target.combine([own, lame])[~unsure], own[~unsure])


def test_a_token_of_just_the_least_probability_counts() -> None:
    """All of a uniform law, at a floor of one share of the vocabulary."""
    own, lame = torch.zeros(1, 4), torch.tensor([[5.0, 0.0, 0.0, 0.0]])
    found = UncertaintyAwareContrast(floor=1.0).combine([own, lame]).softmax(-1).double()
    assert torch.allclose(found[0], by_hand(own[0], lame[0], 0.895, 1.0, 0.7), atol=1e-6)
    assert float(found[0, 0]) < 0.25 < float(found[0, 1])


def test_the_spread_is_the_standard_deviation() -> None:
    for row in random_rows(300):
        law = row.double().softmax(0)
        assert float(spread(row)) == pytest.approx(float(law.std()) * math.sqrt(30), abs=1e-7)
    assert float(spread(torch.zeros(50))) == pytest.approx(0, abs=1e-7)
    certain = torch.full((50,), -1e4)
    certain[3] = 0.0
    assert float(spread(certain)) == pytest.approx(1.0)
    assert float(spread(torch.tensor([-math.inf, 2.0, -math.inf]))) == 1.0, "what has no alternative is certain"
    assert float(spread(torch.tensor([1.0, 1.0]))) == 0.0


def test_impossible_tokens_do_not_count() -> None:
    """A thousand of them change the plain deviation by about a hundredth, and the spread by next to nothing."""
    row = random_rows(3, wide=49152)[2]
    wider = torch.cat([row, torch.full((1000,), -1e9)])
    old, new = (each.double().softmax(0).std() for each in (row, wider))
    assert 0.005 < 1 - float(new / old) < 0.02
    assert abs(float(spread(row)) ** 2 - float(spread(wider)) ** 2) < 1e-6
    forbidden = torch.cat([row, torch.full((1000,), -math.inf)])
    assert float(spread(forbidden)) == float(spread(row))


def test_without_weight_and_floor_or_always_sure_it_is_the_model_itself() -> None:
    rows = [random_rows(50), random_rows(50, 1)]
    plain = UncertaintyAwareContrast(eta=0.0, floor=0.0).combine(rows)
    assert torch.allclose(plain.softmax(-1), rows[0].softmax(-1), atol=1e-6)
    assert torch.equal(UncertaintyAwareContrast(rho=-1.0).combine(rows), rows[0])
    lm = language_model()
    greedy = lm.generate(PROMPT, "autoregressive", max_new_tokens=24).token_ids
    for spec in ("uscd(eta=0, floor=0, lame=bad)", "uscd(rho=-0.5, lame=bad)"):
        assert lm.generate(PROMPT, "autoregressive", max_new_tokens=24, target=spec).token_ids == greedy
    assert lm.generate(PROMPT, "autoregressive", max_new_tokens=24, target="uscd(lame=bad)").token_ids != greedy


def test_a_prompt_without_examples_is_contrasted_with_itself_to_no_effect() -> None:
    rows = random_rows(50)
    target = UncertaintyAwareContrast()
    found, law = target.combine([rows, rows]).softmax(-1), rows.softmax(-1)
    for place in range(50):
        kept = found[place] > 0
        assert int(found[place].argmax()) == int(law[place].argmax())
        assert torch.allclose(found[place][kept], law[place][kept] / law[place][kept].sum(), atol=1e-6)
    lm = language_model()
    greedy = lm.generate(PROMPT, "autoregressive", max_new_tokens=24)
    assert lm.generate(PROMPT, "autoregressive", max_new_tokens=24, target="uscd").token_ids == greedy.token_ids


def test_ever_more_is_contrasted_as_rho_grows() -> None:
    rows = random_rows(200)
    shares = [
        float(UncertaintyAwareContrast(rho=rho).unsure(rows).double().mean())
        for rho in (-0.1, 0.0, 0.3, 0.6, 0.9, 1.001)
    ]
    assert shares == sorted(shares)
    assert shares[0] == shares[1] == 0
    assert shares[-1] == 1
    assert bool(UncertaintyAwareContrast(rho=0.0).unsure(torch.zeros(1, 64))[0])
    assert bool(UncertaintyAwareContrast(rho=1.001).unsure(torch.tensor([[0.0, -1e9]]))[0])


def test_where_the_lame_prompt_leaves_nothing_the_model_decides() -> None:
    own, lame = torch.tensor([[0.3, 0.2, 0.1]]), torch.tensor([[0.3, 0.2, 0.1]])
    assert torch.equal(UncertaintyAwareContrast(eta=1.0).combine([own, lame]), own)


def test_both_prompts_go_on_with_the_same_tokens() -> None:
    """As two texts that are scored by themselves; two rows a token."""
    lm = language_model()
    target = UncertaintyAwareContrast(lame="bad", rho=0.5)
    reply = lm.generate(PROMPT, "autoregressive", max_new_tokens=24, target=target)
    lame, new = lm.encode("bad"), []
    for token in reply.token_ids:
        own, away = lm.network.score([(*PROMPT, *new), (*lame, *new)], True)
        assert token == int(by_hand(own, away, 0.5, 2 / 3, 0.7).argmax())
        new.append(token)
    assert reply.stats.rows == len(PROMPT) + len(lame) + 2 * (len(new) - 1)
    assert reply.stats.forwards == 2 * len(new)


@pytest.mark.parametrize("rho", [0.45, 0.6, 0.9])
def test_deferred_the_lame_prompt_is_read_only_where_it_counts(rho: float) -> None:
    """The same tokens; a forward of it at each contrasted step and none elsewhere; its rows the same but for those behind the
    last of these steps."""
    lm = language_model()
    at_once, later = (
        lm.generate(
            PROMPT, "autoregressive", max_new_tokens=40, target=f"uscd(lame=bad, rho={rho}, deferred={deferred})"
        )
        for deferred in (False, True)
    )
    assert later.token_ids == at_once.token_ids
    count, text, unsure = len(later.token_ids), list(PROMPT), []
    for token in later.token_ids:
        unsure.append(float(spread(lm.network.score([tuple(text)], True)[0])) <= rho)
        text.append(token)
    assert 0 < sum(unsure) < count
    assert at_once.stats.forwards == 2 * count
    assert later.stats.forwards == count + sum(unsure)
    assert at_once.stats.rows == len(PROMPT) + 3 + 2 * (count - 1)
    assert at_once.stats.rows - later.stats.rows == unsure[::-1].index(True)


def test_deferred_scores_are_those_of_reading_both_prompts_at_once() -> None:
    """Step by step, in pieces and as a tree; cut and forked in between; where the lame prompt has missed rows and where not."""
    lm = toy_language_model(layers=2)
    prompt, lame = lm.encode("def total(numbers):"), lm.encode("def x")
    text = lm.encode("return sum(numbers) or numbers[0]  # a comment")
    requests = [
        Request(lm, prompt, Settings.of({"target": f"uscd(lame='def x', rho=0.75, deferred={deferred})"}, 60))
        for deferred in (True, False)
    ]
    behind: list[int] = []

    def compare(sequences: list[Any], tokens: list[int], **arguments: Any) -> None:
        rows = []
        for request, sequence in zip(requests, sequences, strict=True):
            [scores] = request.network.run_pass([Forward(sequence, tokens, **arguments)])
            rows.append(scores.logits.log_softmax(-1))
        assert torch.allclose(*rows, atol=1e-4)
        own, other = sequences[0].members
        behind.append(own.length - len(prompt) - (other.length - len(lame)))

    sequences = [request.new_sequence() for request in requests]
    compare(sequences, prompt)
    for place, token in enumerate(text[:20]):
        compare(sequences, [token])
        if place == 12:
            for sequence in sequences:
                sequence.truncate(len(prompt) + 6)
        if place == 15:
            twins = [sequence.fork() for sequence in sequences]
            compare(twins, text[3:6])
            compare(twins, text[7:8])
    compare(sequences, text[20:26])
    compare(sequences, text[26:30], attend=Tree([-1, 0, 0]))
    for sequence in sequences:
        start = len(sequence.tokens) - 3
        sequence.keep([start, start + 2], start)
    for token in text[30:]:
        compare(sequences, [token])
    assert behind.count(0) > 5
    assert max(behind) > 4


@pytest.mark.parametrize("method", ["prompt-lookup", "cascade", "beam-search(beams=3)"])
def test_deferred_it_goes_with_every_method(method: str) -> None:
    lm = toy_language_model(layers=2)
    prompt = lm.encode("once upon a time there was a cat, and once upon a time")
    at_once, later = (
        lm.generate(prompt, method, max_new_tokens=24, target=f"uscd(lame=once, rho=0.5, deferred={deferred})")
        for deferred in (False, True)
    )
    assert later.token_ids == at_once.token_ids
    assert later.stats.rows <= at_once.stats.rows


def test_a_temperature_comes_after_the_contrast() -> None:
    lm = language_model()
    own, away = lm.network.score([tuple(PROMPT), tuple(lm.encode("bad"))], True)
    mixed = by_hand(own, away, 0.895, 2 / 3, 0.7)
    expected = (mixed.log() / 0.8).softmax(0)
    request = Request(lm, PROMPT, Settings.of({"temperature": 0.8, "target": "uscd(lame=bad)"}, 24))
    [scores] = request.network.run_pass([Forward(request.new_sequence(), PROMPT)])
    assert torch.allclose(request.law.probabilities(scores.logits[-1]).double(), expected, atol=1e-6)


@pytest.mark.parametrize("method", ["cascade", "token-recycling", "prompt-lookup", "draft-model", "spectr"])
def test_drafts_change_nothing(method: str) -> None:
    lm = scripted_language_model(story_scorer(vocabulary=24, surprise=2.0), drafter=story_scorer(seed=1, vocabulary=24))
    settings = {"target": "uscd(lame=bad, rho=0.6)", "max_new_tokens": 24}
    prompts = [PROMPT, [7, 7], [1, 2, 3] * 6]
    plain = lm.generate(prompts, "autoregressive", **settings)
    drafted = lm.generate(prompts, method, **settings)
    assert [reply.token_ids for reply in drafted] == [reply.token_ids for reply in plain]


HUMAN_EVAL = '''def closer(numbers: list, threshold: float) -> bool:
    """ Tell whether two numbers are closer than the threshold.
    >>> closer([1.0, 2.0], 0.5)
    False
    >>> closer([1.0, 2.8,
    ...         3.0], 0.3)
    True

    It is quick.
    """
'''


def test_examples_are_taken_out() -> None:
    assert (
        without_doctests(HUMAN_EVAL)
        == '''def closer(numbers: list, threshold: float) -> bool:
    """ Tell whether two numbers are closer than the threshold.

    It is quick.
    """
'''
    )
    inline = 'def one():\n    """One.\n    >>> one()\n    1\n    """\n'
    assert without_doctests(inline) == 'def one():\n    """One.\n    """\n'
    short = "def one():\n    '''One.\n    >>> one()\n    1'''\n    "
    assert without_doctests(short) == "def one():\n    '''One.\n    '''\n    "
    assert without_doctests("no examples\nat all") == "no examples\nat all"
    mbpp = "Write a function.\nassert f(1) == 2\nassert f(2) == 3\n"
    assert without_assertions(mbpp) == "Write a function.\n"


def test_the_lame_prompt_is_made_of_the_prompt() -> None:
    lm = toy_language_model()
    for text, spec, lame in (
        (HUMAN_EVAL, "uscd", without_doctests(HUMAN_EVAL)),
        ("Go.\nassert f(1) == 2\n", "uscd(remove=assertions)", "Go.\n"),
        ("Go.\nassert f(1) == 2\n", "uscd", "Go.\nassert f(1) == 2\n"),
    ):
        prompt = lm.encode(text)
        given = lm.generate(prompt, "autoregressive", max_new_tokens=12, target=spec)
        [member] = UncertaintyAwareContrast(remove="assertions" if "assertions" in spec else "doctests").members(
            lm, prompt
        )
        assert member.prompt == tuple(lm.encode(lame))
        assert len(given.token_ids) > 0


def test_a_prompt_of_examples_alone_leaves_its_last_token() -> None:
    lm = toy_language_model()
    prompt = lm.encode(">>> one()\n1")
    [member] = UncertaintyAwareContrast().members(lm, prompt)
    assert member.prompt == (prompt[-1],)


def test_each_weight_does_something() -> None:
    rows = [random_rows(60), random_rows(60, 1)]
    plain = UncertaintyAwareContrast().combine(rows)
    for other in (
        UncertaintyAwareContrast(rho=0.3),
        UncertaintyAwareContrast(floor=3.0),
        UncertaintyAwareContrast(eta=0.1),
    ):
        assert not torch.equal(other.combine(rows), plain)
    assert np.isfinite(plain.amax(-1)).all()
