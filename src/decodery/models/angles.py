"""Rotary angles that depend on the length of the text: longrope and dynamic NTK.

transformers takes the length from the highest position of a pass, so that a request would get the angles of its longest
neighbour. Here each row has a length of its own: that of the prompt for the prompt's rows, that of the text up to the row for
later ones, as it is when transformers generates. Beyond the border that the configuration names, the angles are others; keys
that are cached already stay as they are, or the text is read again where the family does so (Phi-3 and its kind).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from collections.abc import Sequence as Listing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from decodery.models.attention import Pack, current_pack
from decodery.models.forward import Attend, Forward, Scores, Slots

if TYPE_CHECKING:
    pass

BY_LENGTH = ("longrope", "dynamic")
REREADING = "prepare_inputs_for_generation"
"""The part of a model that drops its cache at the border, where it does."""


@dataclass(frozen=True, slots=True)
class Angles:
    """How angles depend on the length.

    border: texts of more tokens have others than shorter ones. stepwise: those beyond the border depend on the very length
    (dynamic NTK). rereads: a text that grows over the border is read again. farthest: the longest text that they are made for.
    """

    border: int
    stepwise: bool
    rereads: bool
    farthest: int

    @classmethod
    def of(cls, model: Any) -> Angles | None:
        """None where the angles depend on positions alone. Raises ValueError where kinds of layers have different borders."""
        modules = [module for module in model.modules() if _kinds(module)]
        if not modules:
            return None
        borders = {border for module in modules for border in _borders(module)}
        if len(borders) != 1:
            raise ValueError(f"its rotary angles change at several lengths, {sorted(borders)}")
        stepwise = any("dynamic" in kind for module in modules for kind in _kinds(module))
        own = inspect.unwrap(getattr(type(model), REREADING))
        rereads = "original_max_position_embeddings" in (*own.__code__.co_names, *own.__code__.co_consts)
        border = borders.pop()
        factor = max((_factor(module) for module in modules), default=1.0) if stepwise else 1.0
        return cls(border, stepwise, rereads and not stepwise, int(border * factor))

    def regime(self, length: int) -> int:
        """Texts of lengths of one regime have the same angles."""
        return length if self.stepwise and length > self.border else int(length > self.border)

    def room(self, cached: int, length: int, most: int) -> int:
        """See `Scorer.room`; most: where nothing is in the way."""
        if length > self.border:
            read_again = self.rereads and 0 < cached <= self.border
            return 0 if read_again or (self.stepwise and not cached) else most
        return self.border - length if self.rereads or not cached else most


def _kinds(module: nn.Module) -> list[str]:
    """The kinds of rotary angles of a module that depend on the length."""
    kinds = getattr(module, "rope_type", None)
    named = kinds.values() if isinstance(kinds, dict) else [kinds] if isinstance(kinds, str) else []
    return [kind for kind in named if any(word in kind for word in BY_LENGTH)]


def _borders(module: Any) -> set[int]:
    parameters = getattr(module.config, "rope_parameters", None) or {}
    found = set()
    for kind in [parameters, *(value for value in parameters.values() if isinstance(value, dict))]:
        if kind.get("rope_type") == "longrope":
            found.add(int(kind["original_max_position_embeddings"]))
        elif "dynamic" in str(kind.get("rope_type")):
            found.add(int(getattr(module, "original_max_seq_len", module.config.max_position_embeddings)))
    return found


def _factor(module: Any) -> float:
    parameters = module.config.rope_parameters
    kinds = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    return max(float(kind.get("factor") or 1.0) for kind in kinds)


def lengths_of(angles: Angles, forward: Forward) -> list[int]:
    """The length of the text to which each row belongs."""
    sequence, positions = forward.sequence, list(forward.row_positions())
    read = sequence.read if sequence.length else max(positions) + 1
    return [max(read, position + 1) for position in positions]


def crosses(angles: Angles, forward: Forward) -> bool:
    """Whether a forward has rows of several regimes, or follows rows that were cached in another one."""
    regimes = {angles.regime(length) for length in lengths_of(angles, forward)}
    return len(regimes) > 1 or (forward.sequence.length > 0 and regimes != {forward.sequence.regime})


def note(angles: Angles, forward: Forward) -> None:
    """Remember in which regime a sequence's rows are cached, after a pass."""
    sequence = forward.sequence
    sequence.read_by = sequence.read_by or forward.layers
    if sequence.length:
        sequence.regime = angles.regime(max(sequence.read, sequence.next_position))


def read_again(angles: Angles, forward: Forward, run_pass: Callable[[Listing[Forward]], list[Scores]]) -> Scores:
    """Score rows of which some lie beyond the border: those before it, then the whole text in the angles of its length.

    Raises ValueError for anything but tokens that are appended, each seeing all before it.
    """
    sequence = forward.sequence
    plain = forward.attend is Attend.CAUSAL and forward.slots is Slots.APPEND
    same = sequence.read_by in (None, forward.layers)
    known = [*sequence.tokens, *(() if isinstance(forward.tokens, Tensor) else forward.tokens)]
    positions = [*sequence.positions, *forward.row_positions()]
    if not plain or not same or min(known) < 0 or positions != list(range(len(known))):
        raise ValueError(
            f"the text grows over {angles.border} tokens, where all of it is read again with other rotary angles, and its rows "
            "are no plain text"
        )
    wanted = list(forward.logit_rows())
    answers: list[Scores] = []
    start, base = 0, sequence.length
    lengths = lengths_of(angles, forward)
    while start < forward.count:
        stop = start + 1
        while stop < forward.count and angles.regime(lengths[stop]) == angles.regime(lengths[start]):
            stop += 1
        again = sequence.length if sequence.regime != angles.regime(lengths[start]) else 0
        read = sequence.read
        if again:
            sequence.truncate(0)
        tokens = known[base + start - again : base + stop]
        rows = [row - start + again for row in wanted if start <= row < stop]
        [scores] = run_pass([Forward(sequence, tokens, layers=forward.layers, taps=forward.taps, logits=rows)])
        answers.append(Scores(scores.logits, {tap: hidden[again:] for tap, hidden in scores.hidden.items()}))
        if again:
            sequence.read = read
        note(angles, forward)
        start = stop
    hidden = {tap: torch.cat([scores.hidden[tap] for scores in answers]) for tap in forward.taps}
    return Scores(torch.cat([scores.logits for scores in answers]), hidden)


def by_row(model: nn.Module, angles: Angles) -> None:
    """Let the rotary modules of a model give each row of the current pass the angles of its own length."""
    for module in model.modules():
        if _kinds(module):
            module.forward = _by_row(module, module.forward, angles)


def _by_row(module: Any, original: Callable[..., tuple[Tensor, Tensor]], angles: Angles) -> Callable[..., Any]:
    def forward(x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        lengths = _lengths(current_pack(), angles)
        if len(lengths) != position_ids.shape[-1]:
            raise ValueError("its rotary angles are asked for other rows than those of the pass")
        groups: dict[int, list[int]] = {}
        for row, length in enumerate(lengths):
            groups.setdefault(angles.regime(length), []).append(row)
        cosines: list[Tensor] = []
        sines: list[Tensor] = []
        order: list[int] = []
        for rows in groups.values():
            # The length is told as the position of a row more.
            last = torch.tensor([[lengths[rows[0]] - 1]], device=position_ids.device)
            for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
                setattr(module, name, 0)  # nothing is left of other lengths
            asked = torch.cat([position_ids[:, rows], last], dim=1)
            cosine, sine = original(x, asked, *args, **kwargs)
            cosines.append(cosine[:, :-1])
            sines.append(sine[:, :-1])
            order.extend(rows)
        places = torch.tensor(order, device=position_ids.device).argsort()
        return torch.cat(cosines, dim=1)[:, places], torch.cat(sines, dim=1)[:, places]

    return forward


def _lengths(pack: Pack, angles: Angles) -> Listing[int]:
    if pack.probing:
        return [1]
    return [length for segment in pack.segments for length in lengths_of(angles, segment.forward)]
