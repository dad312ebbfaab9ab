"""A prompt that is not read from left to right: parts side by side, as a set.

Order enters a causal network by two doors, positions and the mask between parts. Where the parts of a set all begin at the same
position and do not see each other, exchanging two of them permutes the cache's rows and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from decodery._lazy import torch
from decodery.errors import BadPrompt, Refused
from decodery.models.forward import Forward, Rows

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.models.scorer import Scorer
    from decodery.models.sequence import Sequence as CachedSequence

START, SPLIT, END = "<|start_2d|>", "<|split_2d|>", "<|end_2d|>"
"""The marks around and between the parts of a set in a text, as McIlroy-Young et al. write them. They are never tokenised."""

Tokens: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class PartSet:
    """A set within a prompt: its parts, none of them empty, in the order in which they were given."""

    parts: tuple[Tokens, ...]


@dataclass(frozen=True, eq=False)
class PromptLayout:
    """Positions and visibility of a prompt's rows.

    positions: [n] position ids. visible: [n, n] bool; row i sees column j. Every row sees itself and nothing behind it; the
    last one, which the output hangs on, sees all and stands one position after the row before it. Raises ValueError otherwise.
    """

    positions: Sequence[int]
    visible: Tensor

    def __post_init__(self) -> None:
        count = len(self.positions)
        if tuple(self.visible.shape) != (count, count) or count < 2:
            raise ValueError(f"{count} rows need a mask [{count}, {count}], not {list(self.visible.shape)}")
        if not bool(self.visible.diagonal().all()) or bool(self.visible.triu(1).any()):
            raise ValueError("every row must see itself, and none may see a row behind it")
        if not bool(self.visible[-1].all()) or self.positions[-1] != self.positions[-2] + 1:
            raise ValueError("the last row must see all rows, and stand one position after the row before it")

    @property
    def usual(self) -> bool:
        """Whether it is that of every prompt: rows one after the other, each seeing all before it."""
        count = len(self.positions)
        return list(self.positions) == list(range(count)) and int(self.visible.sum()) == count * (count + 1) // 2

    def opening(self, sequence: CachedSequence, prompt: Sequence[int]) -> Forward:
        """The forward of all rows of the prompt, token ids, but the last, which is like any row after them."""
        before = len(self.positions) - 1
        visible = self.visible[:before, :before]
        return Forward(sequence, prompt[:before], self.positions[:before], visible, logits=Rows.NONE)

    def check(self, network: Scorer, length: int) -> None:
        """Raise Refused where a network cannot read it and then write up to `length` rows in all."""
        if network.chains_only:
            raise Refused(
                f"{network.name} reads tokens one after the other, and so no set whose parts stand side by side."
            )
        if network.border is not None and length > network.border:
            raise Refused(
                f"{network.name} reads texts of more than {network.border} tokens in another way, and prompt and output have "
                f"{length}; it reads sets in shorter ones alone."
            )


class LaidOutPrompt(list[int]):
    """Token ids of a prompt, and how they are read. Whatever decodes or scores with a prompt takes it."""

    def __init__(self, ids: Sequence[int], layout: PromptLayout):
        super().__init__(ids)
        self.layout = layout


@dataclass(frozen=True)
class Arrangement:
    """How the parts of a set are ordered, and what is edited: who sees whom, and the positions.

    order: "canonical", whatever order they were given in, so that the numbers are the same to the last bit; "given"; or
    "reversed". Canonical is by length and then by token ids: the longest comes last, so that the row before the text behind the
    set has the position before it. attention: parts do not see each other. positions: all begin at the same one. Both make the
    order mean nothing; one alone, or neither, is there to compare with.
    """

    order: str = "canonical"
    attention: bool = True
    positions: bool = True

    def ordered(self, parts: Sequence[Tokens]) -> Sequence[Tokens]:
        """The parts of a set in the order in which they are read."""
        if self.order == "canonical":
            return sorted(parts, key=lambda part: (len(part), part))
        return parts[::-1] if self.order == "reversed" else parts

    def laid_out(self, pieces: Sequence[Tokens | PartSet]) -> list[int]:
        """The prompt of plain pieces and sets: a LaidOutPrompt, or plain token ids where it is read as every prompt is.

        McIlroy-Young et al. 2024, section 3: the parts of a set begin at the position behind what stands before it, and what
        stands behind it begins after the longest of them. Raises BadPrompt where too little stands behind the last set.
        """
        if not pieces or isinstance(pieces[-1], PartSet) or not pieces[-1]:
            raise BadPrompt(
                "the prompt ends with a set; let a text follow it, such as a question, whose last token sees all of its parts."
            )
        ids: list[int] = []
        positions: list[int] = []
        places: list[tuple[int, int]] = []  # of each row: the number of its set, or -1, and of its part
        for number, piece in enumerate(pieces):
            inside = isinstance(piece, PartSet)
            start = max(positions, default=-1) + 1
            for place, part in enumerate(self.ordered(piece.parts) if isinstance(piece, PartSet) else (piece,)):
                begin = start if self.positions else len(ids)
                ids += part
                positions += range(begin, begin + len(part))
                places += [(number if inside else -1, place)] * len(part)
        visible = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
        if self.attention:
            sets, parts = torch.tensor(places).T
            visible &= ~((sets[:, None] == sets) & (sets >= 0) & (parts[:, None] != parts))
        if len(ids) < 2:
            return ids
        if positions[-1] != positions[-2] + 1:
            raise BadPrompt(
                "a single token stands behind a set whose last part is not its longest; give it another one, or take the order "
                f"canonical instead of {self.order}."
            )
        layout = PromptLayout(positions, visible)
        return ids if layout.usual else LaidOutPrompt(ids, layout)
