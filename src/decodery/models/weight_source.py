"""Where a network's weights come from: files, tensor by tensor, in the form in which they lie there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from decodery.models.layout import Layout


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """A matrix [outputs, inputs] as a quantised file holds it.

    kind: the file's name of the form, as `gguf.GGMLQuantizationType` numbers it. rows: uint8 [outputs, bytes of a row], a view
    of the mapped file where its rows already stand in the network's own order. inputs: numbers in a row. rounded: of a matrix
    of numbers, float32, float16 or bfloat16 [outputs, inputs], the kind of blocks that they are to be rounded to; else 0.
    """

    kind: int
    rows: Tensor
    inputs: int
    rounded: int = 0


class WeightSource(Protocol):
    """The weights of a network by the names that its transformers model gives them. Nothing is kept: who asks, holds.

    Blocks may be views of a mapped file, whose pages are in memory once they were read: `release` lets them go.
    """

    def names(self) -> Iterable[str]:
        """All weights that the files hold."""
        ...

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        """A weight as numbers. Raises KeyError for a name that is not there."""
        ...

    def blocks(self, name: str) -> Blocks | None:
        """A quantised matrix as it lies in the file; None where it is not quantised, or is more than rows of one tensor of the
        file in another order."""
        ...

    def release(self, name: str) -> None:
        """Nobody looks at the blocks of a weight any more."""
        ...


class NumberSource(WeightSource, Protocol):
    """A source that tells numbers from what its files hold quantised."""

    def numbers(self, name: str) -> Tensor | None:
        """A weight in the dtype of its file: float32, float16 or bfloat16, and float32 where that is another; None where the
        file holds it quantised."""
        ...


class Checked:
    """A source whose weights have the shapes that a layout wants: raises ValueError where one has another."""

    def __init__(self, source: WeightSource, layout: Layout):
        self._source, self._shapes = source, dict(layout.shapes())
        odd = {*source.names()} ^ set(self._shapes)
        if odd:
            raise ValueError(f"its weights are not those of its layout: {min(odd)}")

    def names(self) -> Iterable[str]:
        return self._shapes

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        weight = self._source.tensor(name, dtype)
        self._check(name, tuple(weight.shape))
        return weight

    def blocks(self, name: str) -> Blocks | None:
        blocks = self._source.blocks(name)
        if blocks is not None:
            self._check(name, (len(blocks.rows), blocks.inputs))
        return blocks

    def release(self, name: str) -> None:
        self._source.release(name)

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        if shape != self._shapes[name]:
            raise ValueError(f"{name} has the shape {list(shape)}, not {list(self._shapes[name])}")


class ModelWeights:
    """The weights of a model that is in memory."""

    def __init__(self, model: nn.Module):
        self._weights = {name: weight.detach() for name, weight in model.named_parameters()}

    def names(self) -> Iterable[str]:
        return self._weights

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        return self._weights[name].to(dtype)

    def numbers(self, name: str) -> Tensor:
        return self._weights[name]

    def blocks(self, name: str) -> Blocks | None:
        return None

    def release(self, name: str) -> None:
        pass
