"""Weights in four and eight bits: found where they are exact, left alone where they are not, and the same scores bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_native import make
from tiny_models import random_ids
from torch import Tensor, nn

from decodery.errors import BadSetting
from decodery.models.forward import Forward, tree_mask
from decodery.models.native.network import NativeNetwork
from decodery.models.native.weights import EXACT, Weights
from decodery.models.pages import large
from decodery.models.paths import network_for

pytestmark = pytest.mark.usefixtures("native_decoder")
CENTRED, FOUR, EIGHT, PLAIN = (form.bytes for form in EXACT)


def four_bits(weight: Tensor) -> Tensor:
    """The weights nearest to these that GGUF's Q4_1 can hold: scale and least weight in half precision per 32 inputs."""
    blocks = weight.float().reshape(-1, 32)
    least = blocks.amin(1, keepdim=True)
    scale = ((blocks.amax(1, keepdim=True) - least) / 15).half().float()
    numbers = torch.where(scale > 0, (blocks - least) / scale, 0.0).round().clamp(0, 15)
    return (numbers * scale + least.half().float()).reshape(weight.shape).bfloat16()


def centred(weight: Tensor, ends: int = -8) -> Tensor:
    """The weights nearest to these that GGUF's Q4_0 can hold: a scale per 32 inputs. ends: the number of the weight farthest
    from zero; files of other makers have it elsewhere than at -8."""
    blocks = weight.float().reshape(-1, 32)
    scale = (blocks.gather(1, blocks.abs().argmax(1, keepdim=True)) / ends).half().float()
    numbers = torch.where(scale != 0, blocks / scale, 0.0).round().clamp(-8, 7)
    return (numbers * scale).reshape(weight.shape).bfloat16()


def eight_bits(weight: Tensor) -> Tensor:
    """The same of Q8_0: a scale per 32 inputs."""
    blocks = weight.float().reshape(-1, 32)
    scale = (blocks.abs().amax(1, keepdim=True) / 127).half().float()
    numbers = torch.where(scale > 0, blocks / scale, 0.0).round().clamp(-128, 127)
    return (numbers * scale).reshape(weight.shape).bfloat16()


def form_of(weight: Tensor) -> int:
    return int(Weights("packed", large(2 * weight.numel())).pack(weight).bytes)


def quantised(family: str, most: Callable[[Tensor], Tensor] = four_bits) -> Any:
    """A model whose matrices but the head are rounded by `most`."""
    model = make(family)
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                module.weight.copy_((eight_bits if name == "lm_head" else most)(module.weight))
    return model


@pytest.mark.parametrize("spread", [1e-2, 0.1, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_grid_of_quantised_weights_is_found(spread: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(64, 96, generator=generator) * spread
    assert form_of(centred(weight)) == form_of(centred(weight, 7)) == form_of(centred(weight, -5)) == CENTRED
    assert form_of(four_bits(weight)) == FOUR
    assert form_of(eight_bits(weight)) == EIGHT
    assert form_of(weight.bfloat16()) == PLAIN


def test_blocks_without_variety() -> None:
    weight = four_bits(torch.randn(32, 64, generator=torch.Generator().manual_seed(0)))
    weight[3, :32] = 0.0
    weight[5, 32:] = 0.25
    weight[7, :32] = torch.tensor([-0.5, 0.5]).repeat(16)
    assert form_of(weight) == FOUR
    assert form_of(torch.zeros(16, 32, dtype=torch.bfloat16)) == CENTRED


def test_one_weight_off_the_grid_is_enough_to_leave_a_matrix_alone() -> None:
    weight = four_bits(torch.randn(32, 64, generator=torch.Generator().manual_seed(1)))
    weight[9, 40] = weight[9].abs().max() * 1.37
    weight[9, 41] = weight[9, 40] * 0.517
    assert form_of(weight) == PLAIN


@pytest.mark.parametrize("most", [four_bits, centred])
@pytest.mark.parametrize("family", ["llama", "qwen2", "llama-biases"])
def test_scores_are_the_same_bits(family: str, most: Callable[[Tensor], Tensor]) -> None:
    model = quantised(family, most)
    packed, native = NativeNetwork.of(model, family, precision="packed"), NativeNetwork.of(model, family)
    assert (packed.path, native.path) == ("packed", "native")
    same_scores(packed, native)


@pytest.mark.parametrize("most", [four_bits, centred, eight_bits])
def test_scores_are_the_same_bits_on_any_processor(processor: str, most: Callable[[Tensor], Tensor]) -> None:
    model = quantised("llama", most)
    same_scores(NativeNetwork.of(model, processor, precision="packed"), NativeNetwork.of(model, processor))


def same_scores(packed: NativeNetwork, native: NativeNetwork) -> None:
    prompt, ids = random_ids(45, 1, 200), random_ids(273, 2, 200)
    sequences = [network.new_sequence() for network in (packed, native)]
    for network, sequence in zip((packed, native), sequences, strict=True):
        network.run([Forward(sequence, prompt)])
    for count in (1, 2, 5, 16, 17, 31, 32, 33, 80, 258, 273):
        rows = [s.owner.run([Forward(s, ids[:count])])[0].logits for s in sequences]
        assert torch.equal(*rows), count
        for sequence in sequences:
            sequence.truncate(len(prompt))
    parents = [-1, -1, 0, 0, 1, 2, 4]
    mask = tree_mask(len(prompt), 1, parents)
    positions = [45 + depth for depth in (0, 1, 1, 2, 2, 2, 3, 3)]
    rows = [s.owner.run([Forward(s, ids[:8], positions, mask)])[0].logits for s in sequences]
    assert torch.equal(*rows)


def test_a_model_that_cannot_be_packed_says_so_and_runs_natively() -> None:
    model = make("llama")
    assert network_for(model, "llama").path == "native"
    with pytest.raises(BadSetting, match="do not fit into four or eight bits"):
        network_for(model, "llama", fast="packed")
    assert network_for(quantised("llama"), "llama", fast="packed").path == "packed"
    assert network_for(quantised("llama"), "llama", fast="exact").path == "packed"
    assert network_for(quantised("llama"), "llama", fast="integer").path == "integer"
    assert network_for(quantised("llama"), "llama").path == "integer"
    with pytest.raises(BadSetting, match="do not fit into four or eight bits"):
        network_for(model, "llama", fast="integer")
    assert network_for(model, "llama", fast="exact").path == "native"
