"""The laws of masked positions: what temperature and filters make of a model's own law, and how positions are ranked."""

from __future__ import annotations

import pytest
import torch

from decodery.diffusion.laws import RANKS, Laws, descending, highest
from decodery.errors import ScoresNotNumbers
from decodery.sampling.law import Law, LawSettings
from decodery.sampling.noise import Noise

SCORES = torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.5, 0.5, 0.4, 0.3], [3.0, 2.9, -5.0, -5.0]])


def _laws(committed=0, offsets=(0, 2, 5), prompt=2, **settings):
    law = Law(LawSettings(**{"temperature": 1.0, **settings}), [0] * prompt, [3])
    for token in range(committed):
        law.observe(token)
    return Laws(offsets, SCORES, law, Noise(0), prompt, committed, 4)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_tokens_are_drawn_from_the_law_at_the_request_s_temperature(temperature):
    expected = (SCORES.double() / temperature).log_softmax(-1)
    assert torch.allclose(_laws(temperature=temperature).processed, expected)
    # The same by the law's steps, which filters take part in.
    assert torch.allclose(_laws(temperature=temperature, top_k=4).processed, expected)
    assert torch.allclose(_laws(temperature=temperature).raw, SCORES.double().log_softmax(-1))


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_a_draw_has_the_processed_law(temperature):
    counts = torch.zeros(4)
    for seed in range(1000):
        laws = _laws(temperature=temperature)
        laws.chance = Noise(seed)
        counts[laws.draw([0])[0]] += 1
    expected = (SCORES[0] / temperature).softmax(-1)
    # Four standard deviations of each of four shares: refuted by chance once in some thousands.
    assert ((counts / 1000 - expected).abs() <= 4 * (expected * (1 - expected) / 1000).sqrt() + 1e-3).all()


def test_settings_count_the_tokens_before_each_position():
    """A stop token is forbidden before the fifth token, whatever has been committed of the canvas."""
    for committed in (0, 2):
        stop = _laws(committed, offsets=(3, 4, 5), min_new_tokens=5).processed[:, 3]
        assert (stop > -1e30).tolist() == [False, False, True]


def test_ranks_by_hand():
    probabilities = SCORES.double().softmax(-1)
    top = probabilities.sort(descending=True).values
    expected = {
        "entropy": (probabilities * probabilities.log()).sum(-1),
        "margin": top[:, 0] - top[:, 1],
        "max_probability": top[:, 0].log(),
    }
    assert set(expected) == set(RANKS)
    for by, values in expected.items():
        assert torch.allclose(_laws(temperature=0.5).rank(by), values), by
        sharper = _laws(temperature=0.5).rank(by, filtered=True)
        assert torch.allclose(sharper, Laws((0, 2, 5), SCORES * 2, _laws().law, Noise(0), 2).rank(by)), by
    with pytest.raises(ValueError, match="no rank 'surest'"):
        _laws().rank("surest")


def test_the_confidence_of_a_token_is_the_model_s_own_unless_it_is_asked_for_the_filtered_law():
    laws = _laws(temperature=0.5)
    own, filtered = SCORES.double().log_softmax(-1), (SCORES.double() * 2).log_softmax(-1)
    assert torch.allclose(laws.confidence([0, 1, 1]), own[range(3), [0, 1, 1]])
    assert torch.allclose(laws.confidence([0, 1, 1], filtered=True), filtered[range(3), [0, 1, 1]])


def test_parts_are_the_same_laws_at_fewer_offsets():
    laws = _laws(temperature=0.7)
    drawn = laws.draw(range(3), 7)
    for part, places in ((laws.at([0, 2]), [0, 2]), (laws.within(1, 5), [1]), (laws.within(2, 6), [1, 2])):
        assert part.offsets == [laws.offsets[place] for place in places]
        assert torch.equal(part.processed, laws.processed[places])
        assert part.draw(range(len(places)), 7) == [drawn[place] for place in places]
        assert part.number == 4
    assert laws.within(0, 6) is laws


def test_equal_ranks_go_to_the_lowest_place():
    rank = torch.tensor([1.0, 3.0, 2.0, 3.0, 2.0])
    assert descending(rank) == [1, 3, 2, 4, 0]
    assert [highest(rank, count) for count in (1, 2, 3)] == [[1], [1, 3], [1, 2, 3]]


def test_scores_that_are_not_numbers_are_told_by_position():
    laws = Laws([0, 4], torch.tensor([[0.0, 1.0], [float("nan"), 0.0]]), Law(LawSettings(), [0]), Noise(0), 1)
    with pytest.raises(ScoresNotNumbers, match="position 5 of the answer"):
        _ = laws.raw
