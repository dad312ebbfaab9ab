"""Ensembles: both means by hand, on rows and through decoding with models of several names."""

from __future__ import annotations

import pytest
import torch

from decodery.models.forward import Forward, Rows
from decodery.targets.ensemble import Ensemble
from decodery.testing import scripted_language_model, story_scorer

PROMPT = [3, 1, 4, 1, 5]


def by_hand(rows: list[torch.Tensor], mean: str) -> torch.Tensor:
    """Log probabilities [vocabulary]; of a product of experts up to a constant."""
    laws = [row.double().softmax(-1) for row in rows]
    if mean == "logarithms":
        return sum(law.log() for law in laws) / len(laws)  # type: ignore[return-value]
    return (sum(laws) / len(laws)).log()  # type: ignore[no-any-return, arg-type, call-overload]


@pytest.mark.parametrize("mean", ["probabilities", "logarithms"])
def test_both_means_by_hand(mean: str) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [2 * torch.randn(5, 9, generator=generator) for _ in range(3)]
    found = Ensemble(models="a+b", mean=mean).combine(rows)
    assert torch.allclose(found.double(), by_hand(rows, mean), atol=1e-5)


@pytest.mark.parametrize("mean", ["probabilities", "logarithms"])
def test_each_named_model_has_its_voice(mean: str) -> None:
    lm = scripted_language_model(story_scorer(surprise=2.0))
    for seed, name in enumerate(("one", "two"), start=1):
        lm.companions[name] = scripted_language_model(story_scorer(seed=seed, surprise=2.0, name=name))
    reply = lm.generate(
        PROMPT, "autoregressive", max_new_tokens=20, target=f"ensemble(models='one + two', mean={mean})"
    )
    networks = [lm.network, *(lm.companions[name].network for name in ("one", "two"))]
    text = list(PROMPT)
    for token in reply.token_ids:
        rows = [n.run([Forward(n.new_sequence(), text, logits=Rows.LAST)])[0].logits[0] for n in networks]
        assert token == int(by_hand(rows, mean).argmax())
        text = [*text, token]
    assert reply.token_ids != lm.generate(PROMPT, "autoregressive", max_new_tokens=20).token_ids
