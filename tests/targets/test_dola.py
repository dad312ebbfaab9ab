"""DoLa: contrasted layers by definition on a network, which layer is chosen, and that drafts change nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny_models import byte_level_tokenizer, make_model, random_ids
from torch import Tensor

import decodery
from decodery.errors import BadParameter, BadSetting, MethodUnavailable
from decodery.language_model import LanguageModel
from decodery.models.forward import Forward
from decodery.targets.dola import ContrastedLayers
from decodery.testing import scripted_language_model, story_scorer, toy_language_model

TEXT = "once upon a time there was a cat, and once upon a"


def rows_of(lm: LanguageModel, text: Sequence[int], taps: Sequence[int]) -> list[Tensor]:
    """The scores after a whole text, of the last layer and of tapped ones."""
    [scores] = lm.network.run([Forward(lm.network.new_sequence(), list(text), taps=tuple(taps))])
    head = lm.network.head()
    return [scores.logits[-1].double(), *(head(scores.hidden[tap][-1:])[0].double() for tap in taps)]


def divergence(one: Tensor, other: Tensor, exchanged: bool) -> float:
    """Of two laws: half the relative entropies to their mean, or of their mean to them."""
    middle, total = (one + other) / 2, 0.0
    for law in (one, other):
        a, b = (middle, law) if exchanged else (law, middle)
        total += float((a * (a / b).log()).sum()) / 2
    return total


def by_hand(rows: Sequence[Tensor], alpha: float, exchanged: bool) -> tuple[int, int]:
    """The likeliest token, and which layer was contrasted."""
    last, *earlier = (row.softmax(0) for row in rows)
    differences = [divergence(last, each, exchanged) for each in earlier]
    chosen = differences.index(max(differences))
    scores = (last / earlier[chosen]).log()
    scores[last < alpha * last.max()] = -math.inf
    return int(scores.argmax()), chosen


@pytest.mark.parametrize(
    ("spec", "depths", "alpha"),
    [
        ("dola(norm=True)", (2,), 0.1),
        ("dola(layers=high, norm=True)", (3, 5), 0.1),
        ("dola(layers=1+4+5, alpha=0.02, norm=True)", (1, 4, 5), 0.02),
        ("dola(layers=1+4+5, alpha=0.02, divergence=code, norm=True)", (1, 4, 5), 0.02),
        ("dola(layers=3, alpha=0.6, norm=True)", (3,), 0.6),
    ],
)
def test_it_is_what_its_definition_says(spec: str, depths: tuple[int, ...], alpha: float) -> None:
    lm = toy_language_model(layers=6, mixing=1.2)
    prompt = lm.encode(TEXT)
    reply = lm.generate(prompt, "autoregressive", max_new_tokens=16, target=spec)
    text, chosen = list(prompt), set()
    for token in reply.token_ids:
        rows = rows_of(lm, text, [depth - 1 for depth in depths])
        expected, layer = by_hand(rows, alpha, "code" in spec)
        assert token == expected
        chosen.add(layer)
        text.append(token)
    assert reply.stats.forwards == len(reply.token_ids)
    assert reply.stats.rows == len(prompt) + len(reply.token_ids) - 1
    assert reply.token_ids != lm.generate(prompt, "autoregressive", max_new_tokens=16).token_ids


def theirs(model: Any, prompt: Sequence[int], count: int, layers: Sequence[int]) -> list[int]:
    """transformers' algorithm (`custom_generate="transformers-community/dola"`), greedily: the head alone reads earlier layers,
    and the divergence has its arguments exchanged."""
    new: list[int] = []
    while len(new) < count:
        with torch.inference_mode():
            told = model(torch.tensor([[*prompt, *new]]), output_hidden_states=True)
            last = told.logits[0, -1].double()
            earlier = torch.stack([model.lm_head(told.hidden_states[n][0, -1]).double() for n in layers])
        middle = (last.softmax(-1) + earlier.softmax(-1)) / 2
        divergences = [
            torch.nn.functional.kl_div(last.log_softmax(-1), m, reduction="sum")
            + torch.nn.functional.kl_div(e.log_softmax(-1), m, reduction="sum")
            for m, e in zip(middle, earlier, strict=True)
        ]
        own, base = last.log_softmax(-1), earlier[int(torch.stack(divergences).argmax())].log_softmax(-1)
        new.append(int((own - base).masked_fill(own < own.max() + math.log(0.1), -math.inf).argmax()))
    return new


@pytest.mark.parametrize("fast", ["off", "fused"])
@pytest.mark.parametrize("layers", [(1, 2, 3), (2,)])
def test_without_the_norm_it_is_that_of_transformers(fast: str, layers: tuple[int, ...]) -> None:
    model = make_model("llama", vocab_size=330, num_hidden_layers=4, tie_word_embeddings=False)
    with torch.no_grad():  # a final norm that changes something
        model.model.norm.weight.mul_(torch.linspace(0.3, 3.0, len(model.model.norm.weight)))
    lm = decodery.wrap(model, byte_level_tokenizer(), name="tiny", fast=fast)
    target = f"dola(layers={'+'.join(map(str, layers))}, divergence=code)"
    differ = 0
    for seed in range(3):
        prompt = random_ids(9, seed)
        found, normed = (
            lm.generate(prompt, "autoregressive", max_new_tokens=16, ignore_eos=True, target=spec).token_ids
            for spec in (target, target.replace("divergence", "norm=True, divergence"))
        )
        assert found == theirs(model, prompt, 16, layers)
        differ += found != normed
    assert differ


def test_the_layer_is_chosen_at_each_position() -> None:
    lm = toy_language_model(layers=6, mixing=1.2)
    rows = [
        torch.stack(r).float()
        for r in zip(*(rows_of(lm, lm.encode(TEXT)[: n + 3], (0, 2, 4)) for n in range(30)), strict=True)
    ]
    target = ContrastedLayers(layers="1+3+5")
    last, *earlier = (row.log_softmax(-1) for row in rows)
    found = target.chosen(last, earlier)
    expected = [by_hand([row[place].double() for row in rows], 0.1, False)[1] for place in range(30)]
    assert found.tolist() == expected
    assert len(set(expected)) > 1


@pytest.mark.parametrize("divergence", ["paper", "code"])
@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.6, 1.0])
def test_rows_by_hand(alpha: float, divergence: str) -> None:
    """With a token that the last layer forbids, which stays forbidden."""
    rows = list(3 * torch.randn(4, 40, 9, generator=torch.Generator().manual_seed(1)))
    rows[0][:, 4] = -math.inf
    found = ContrastedLayers(alpha=alpha, divergence=divergence).combine(rows)
    for place in range(40):
        last, *earlier = (row[place].double().softmax(0) for row in rows)
        held = (last >= alpha * last.max() * (1 - 1e-6)) & (last > 0)
        possible = [(last / each).log() for each in earlier]
        row, kept = found[place].double(), found[place].isfinite()
        assert torch.equal(kept, held)
        assert any(torch.allclose(row[kept], each[kept], atol=1e-5) for each in possible)


def test_the_two_divergences_choose_differently_somewhere() -> None:
    generator = torch.Generator().manual_seed(0)
    last, *earlier = (torch.randn(200, 12, generator=generator).mul(2).log_softmax(-1) for _ in range(4))
    paper, code = (ContrastedLayers(divergence=which).chosen(last, earlier) for which in ("paper", "code"))
    assert 0 < int((paper != code).sum()) < 100


def test_the_layers_of_a_half() -> None:
    class Deep:
        name, layers = "deep", 30

    assert ContrastedLayers().taps(Deep()) == tuple(range(1, 14, 2))  # type: ignore[arg-type]
    assert ContrastedLayers(layers="high").taps(Deep()) == tuple(range(14, 29, 2))  # type: ignore[arg-type]
    Deep.layers = 48
    assert ContrastedLayers().taps(Deep()) == tuple(range(1, 19, 2))  # type: ignore[arg-type]
    assert ContrastedLayers(layers="high").taps(Deep()) == tuple(range(27, 47, 2))  # type: ignore[arg-type]
    Deep.layers = 40
    assert ContrastedLayers().taps(Deep()) == tuple(range(1, 19, 2))  # type: ignore[arg-type]
    assert ContrastedLayers(layers="high").taps(Deep()) == tuple(range(19, 39, 2))  # type: ignore[arg-type]
    Deep.layers = 41
    assert ContrastedLayers(layers="high").taps(Deep()) == tuple(range(20, 40, 2))  # type: ignore[arg-type]
    Deep.layers = 44
    assert ContrastedLayers().taps(Deep()) == tuple(range(1, 19, 2))  # type: ignore[arg-type]
    assert ContrastedLayers(layers="high").taps(Deep()) == tuple(range(23, 43, 2))  # type: ignore[arg-type]


def test_a_network_of_few_layers_has_one_in_its_middle() -> None:
    class Shallow:
        name, layers = "shallow", 3

    for count, low, high in ((1, (0,), (0,)), (2, (0,), (0,)), (3, (0,), (1,)), (4, (1,), (1,)), (5, (1,), (1, 3))):
        Shallow.layers = count
        assert ContrastedLayers().taps(Shallow()) == low  # type: ignore[arg-type]
        assert ContrastedLayers(layers="high").taps(Shallow()) == high  # type: ignore[arg-type]
    assert ContrastedLayers(layers="3+1+3").taps(Shallow()) == (0, 2)  # type: ignore[arg-type]
    for layers in ("0+1", "5", "1+5"):
        with pytest.raises(BadParameter, match="has 5 layers, so layers are 1 to 4"):
            ContrastedLayers(layers=layers).taps(Shallow())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "method", ["cascade", "token-recycling", "draft-model(draft=layers, layers=1)", "swift", "prompt-lookup"]
)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_drafts_change_nothing(method: str, temperature: float) -> None:
    lm = toy_language_model(layers=4)
    prompt = lm.encode(TEXT)
    if temperature and method.startswith(("draft-model", "swift")):
        pytest.skip("drafts that are drawn give the law, not the tokens")
    settings = {"target": "dola(layers=1+2+3)", "max_new_tokens": 24, "temperature": temperature, "seed": 2}
    plain = lm.generate(prompt, "autoregressive", **settings)
    assert lm.generate(prompt, method, **settings).token_ids == plain.token_ids


def test_what_cannot_be_contrasted_is_refused() -> None:
    lm = toy_language_model(layers=3)
    with pytest.raises(BadSetting, match="layers are low, high, or numbers"):
        lm.generate("a", target="dola(layers=middle)")
    with pytest.raises(BadParameter, match="has 3 layers, so layers are 1 to 2"):
        lm.generate("a", target="dola(layers=2+3)")
    blind = scripted_language_model(story_scorer())
    blind.network.hidden = None
    with pytest.raises(MethodUnavailable, match="no hidden rows to read its layers from"):
        blind.generate([1, 2], target="dola")
