"""Divergences over part of a vocabulary: values, gradients, and that drawn tokens stand for those that were not."""

from __future__ import annotations

import pytest
import torch

from decodery.training import distillation
from decodery.training.answers import OwnAnswer
from decodery.training.distillation import PartOfVocabulary, SampledVocabulary, divergence


def some(rows: int = 7, hidden: int = 5, tokens: int = 40) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(rows, hidden, generator=generator).requires_grad_(),
        torch.randn(rows, hidden, generator=generator),
        torch.randn(tokens, hidden, generator=generator),
    )


@pytest.mark.parametrize("chunk", [2, 128])
def test_value_and_gradient_are_those_of_torch(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distillation, "CHUNK", chunk)
    rows, target, head = some()
    correction = torch.linspace(0, 1, len(head))
    found = divergence(rows, target, PartOfVocabulary(head, correction))
    (3 * found).backward()
    own = rows.detach().clone().requires_grad_()
    laws = [(one @ head.T + correction).log_softmax(dim=-1) for one in (own, target)]
    expected = torch.nn.functional.kl_div(laws[0], laws[1], log_target=True, reduction="batchmean")
    (3 * expected).backward()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert rows.grad is not None
    assert own.grad is not None
    assert torch.allclose(rows.grad, own.grad, atol=1e-5)


def test_frequent_tokens_are_always_looked_at_and_others_stand_for_their_like() -> None:
    _, target, head = some(tokens=400)
    answers = [OwnAnswer([], [3] * 5 + [7] * 4 + [9] * 3 + [20], 0.0)]
    vocabulary = SampledVocabulary(head, answers, 3, 50)
    assert vocabulary.covered == pytest.approx(12 / 13)
    whole = torch.logsumexp(target @ head.T, dim=-1)
    masses = []
    for seed in range(200):
        part = vocabulary.part(torch.Generator().manual_seed(seed))
        assert torch.equal(part.weights[:3], head[[3, 7, 9]])
        assert len(part.weights) == 53
        assert part.correction[:3].tolist() == [0, 0, 0]
        scores = target @ part.weights.T + part.correction
        masses.append((torch.logsumexp(scores, dim=-1) - whole).exp())
    assert torch.allclose(torch.stack(masses).mean(dim=0), torch.ones(len(target)), atol=0.15), "the mass is unbiased"


def test_where_all_are_looked_at_nothing_is_corrected() -> None:
    _, _, head = some()
    answers = [OwnAnswer([], [1, 2], 0.0)]
    part = SampledVocabulary(head, answers, 30, 10).part(torch.Generator())
    assert sorted(part.weights.sum(dim=1).tolist()) == sorted(head.sum(dim=1).tolist())
    assert not part.correction.any()
