"""Weights that are rounded to blocks of eight or four bits when a model is loaded: `decodery.load(..., quantize="q8_0")`.

Rounded as GGUF's Q8_0 and Q4_0 are, bit for bit: 32 neighbours of a row are whole multiples of one scale. The native code
rounds each matrix straight into the form in which passes read it; whoever else wants the weights gets the rounded ones.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from decodery.errors import BadSetting
from decodery.models.gguf.dequantisation import dequantise
from decodery.models.native.build import library
from decodery.models.native.compiling import NotBuilt
from decodery.models.weight_source import Blocks, ModelWeights

if TYPE_CHECKING:
    from decodery.models.layout import Layout
    from decodery.models.weight_source import NumberSource, WeightSource

KINDS = {"q8_0": 8, "q4_0": 2}
"""GGUF's numbers of what weights can be rounded to, by the words for it."""
NUMBERS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 30}
"""And those of numbers that are rounded."""
BYTES = {8: 34, 2: 18}
"""Of a block of 32."""


def check(quantize: str, fast: str | bool) -> None:
    """Raise BadSetting where a word is none of KINDS, goes with another path, or this machine cannot run what comes of it."""
    if quantize not in KINDS:
        raise BadSetting(f"quantize must be {' or '.join(KINDS)}, not {quantize!r}.")
    if fast not in (True, "auto", "integer"):
        raise BadSetting(
            f"quantize={quantize!r} is for the integer path alone; give fast='auto' or 'integer', not {fast!r}."
        )
    try:
        library()
    except NotBuilt as reason:
        raise BadSetting(
            f"quantize={quantize!r} needs the compiled decoder, which cannot run here ({reason}); leave quantize out."
        ) from None


def check_model(quantize: str, name: str, config: Mapping[str, Any], bidirectional: bool) -> None:
    """Raise BadSetting where a model's passes are those of canvases, or somebody else has quantised it. config: what its
    `config.json` holds."""
    if bidirectional:
        raise BadSetting(
            f"{name} is a masked-diffusion model, whose canvases do not run on the integer path; "
            f"leave out quantize={quantize!r}."
        )
    if config.get("quantization_config"):
        raise BadSetting(f"the weights of {name} are quantised already; leave out quantize={quantize!r}.")


class Rounded:
    """A source whose matrices are rounded: embedding and head to eight bits, since errors there reach every token, all others
    as `quantize` says. What the files hold quantised keeps their numbers."""

    def __init__(self, source: NumberSource, layout: Layout, quantize: str):
        self.quantize = quantize
        self._source = source
        most = {layout.embedding, layout.head}
        self._kinds = {
            name: KINDS["q8_0" if name in most else quantize] for name, shape in layout.shapes() if len(shape) == 2
        }

    def names(self) -> Iterable[str]:
        return self._source.names()

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        numbers = self._source.numbers(name) if name in self._kinds else None
        if numbers is None:
            return self._source.tensor(name, dtype)
        blocks = in_blocks(numbers, self._kinds[name])
        return dequantised(blocks, self._kinds[name], numbers.shape[-1], dtype)

    def blocks(self, name: str) -> Blocks | None:
        """Of what is to be rounded the numbers, and what to."""
        numbers = self._source.numbers(name) if name in self._kinds else None
        if numbers is None:
            return self._source.blocks(name)
        return Blocks(NUMBERS[numbers.dtype], numbers.contiguous(), numbers.shape[-1], self._kinds[name])

    def release(self, name: str) -> None:
        self._source.release(name)


def in_blocks(numbers: Tensor, kind: int) -> Tensor:
    """A matrix [outputs, inputs] of float32, float16 or bfloat16 as the blocks of a kind, 8 for Q8_0 or 2 for Q4_0: uint8
    [outputs, bytes of a row]. Raises ValueError where inputs are no multiple of 32, a number is not finite, or so large that
    half precision has no scale for it."""
    outputs, inputs = numbers.shape
    if inputs % 32:
        raise ValueError(f"rows of {inputs} numbers do not divide into blocks of 32")
    given = numbers.contiguous()
    blocks = torch.empty(outputs, inputs // 32 * BYTES[kind], dtype=torch.uint8)
    if not library().decodery_round(given.data_ptr(), outputs, inputs, NUMBERS[given.dtype], kind, blocks.data_ptr()):
        raise ValueError(NO_SCALE)
    return blocks


NO_SCALE = "it holds numbers that are not finite, or so large that half precision has no scale for them"


def dequantised(blocks: Tensor, kind: int, inputs: int, dtype: torch.dtype) -> Tensor:
    """The numbers [outputs, inputs] of blocks."""
    numbers = torch.empty(len(blocks), inputs, dtype=dtype)
    dequantise(blocks, kind, numbers)
    return numbers


def with_weights(model: nn.Module, source: WeightSource) -> Any:
    """A copy of a model of the usual kind that has the weights of a source; those that are the same are shared."""
    taken: dict[int, Any] = {}
    for name, weight in model.named_parameters():
        rounded = source.tensor(name, weight.dtype)
        same = rounded.data_ptr() == weight.data_ptr()
        taken[id(weight)] = weight if same else nn.Parameter(rounded, requires_grad=False)
    return copy.deepcopy(model, taken)


def rounded(model: Any, quantize: str) -> Any:
    """A copy of a model of the usual kind with the weights that `quantize` makes of its own."""
    from decodery.models.recognition import recognised

    return with_weights(model, Rounded(ModelWeights(model), recognised(model), quantize))


def way(path: str, quantize: str | None) -> str:
    """What the outcomes of confirmations are kept by."""
    return path if quantize is None else f"{path}-{quantize}"
