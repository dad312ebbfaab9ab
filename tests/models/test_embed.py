"""Embeddings and mixtures of tokens as input, on networks and on scorers without one."""

from __future__ import annotations

import pytest
import torch

from decodery.models.forward import Forward, Rows
from decodery.models.scorer import Scorer
from decodery.testing import ScriptedScorer, TabularScorer, story_scorer, toy_language_model

TEXT = [3, 1, 2, 0, 1]


def scorers() -> list[Scorer]:
    return [TabularScorer(6), TabularScorer(6, order=None), story_scorer(vocabulary=6), toy_language_model().network]


@pytest.mark.parametrize("scorer", scorers(), ids=lambda scorer: scorer.name)
def test_an_embedded_token_is_that_token(scorer: Scorer) -> None:
    expected = scorer.run([Forward(scorer.new_sequence(), TEXT)])[0].logits
    ids = torch.tensor(TEXT)
    certain = torch.nn.functional.one_hot(ids, scorer.vocabulary).float()
    for rows in (scorer.embed(ids), scorer.embed(certain)):
        sequence = scorer.new_sequence()
        first = scorer.run([Forward(sequence, rows[:3])])[0].logits
        then = scorer.run([Forward(sequence, TEXT[3:])])[0].logits
        assert torch.allclose(torch.cat([first, then]), expected, atol=1e-5)


def test_a_mixture_of_a_network_is_the_sum_of_its_rows() -> None:
    network = toy_language_model().network
    weights = torch.zeros(1, network.vocabulary)
    weights[0, [5, 9, 100]] = torch.tensor([0.5, 0.2, 0.3])
    rows = network.embed(torch.tensor([5, 9, 100]))
    assert torch.allclose(network.embed(weights)[0], weights[0, [5, 9, 100]] @ rows, atol=1e-6)


def test_a_mixture_of_a_scripted_scorer_means_its_laws() -> None:
    scorer = TabularScorer(4, order=None, seed=2)
    mixture = torch.tensor([[0.25, 0.0, 0.75, 0.0]])
    sequence = scorer.new_sequence()
    scorer.run([Forward(sequence, [1, 3])])
    scorer.run([Forward(sequence, scorer.embed(mixture))])
    found = scorer.run([Forward(sequence, [2], logits=Rows.LAST)])[0].logits[0].double().softmax(0)
    expected = 0.25 * scorer.law([1, 3, 0, 2]) + 0.75 * scorer.law([1, 3, 2, 2])
    assert torch.allclose(found, expected, atol=1e-6)


def test_of_more_ways_than_it_reads_a_scripted_scorer_takes_those_of_the_last_mixtures() -> None:
    scorer = TabularScorer(3, order=None, seed=2)
    scorer.ways = 6  # of eight through the three
    sequence = scorer.new_sequence()
    scorer.run([Forward(sequence, [1])])
    for weights in ([0.6, 0.4, 0.0], [0.0, 0.5, 0.5]):
        scorer.run([Forward(sequence, scorer.embed(torch.tensor([weights])))])
    found = (
        scorer.run([Forward(sequence, scorer.embed(torch.tensor([[0.2, 0.0, 0.8]])))])[0].logits[0].double().softmax(0)
    )
    paths = {(0, one, two): 0.5 * share for one in (1, 2) for two, share in ((0, 0.2), (2, 0.8))}
    expected = sum(weight * scorer.law([1, *path]) for path, weight in paths.items())
    assert torch.allclose(found, expected, atol=1e-6)  # type: ignore[arg-type]


def test_only_rows_of_embed_can_be_fed() -> None:
    scorer = ScriptedScorer(lambda prefix: [0.0, 1.0], 2)
    with pytest.raises(AssertionError, match="must come from"):
        scorer.run([Forward(scorer.new_sequence(), torch.zeros(1, 2))])
