"""A text that grows by insertions: its slots, their places, and which gaps may be filled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from decodery.errors import BadPrompt

if TYPE_CHECKING:
    from decodery.models.insertions import Insertions


class GrowingText:
    """Slots in the order in which they came; each owns the gap to its right. Slots are appended and never moved, places are.

    The first slot is the class, which owns no gap. The prompt's tokens follow, with the begin slot before them or, where the
    model was trained so, behind them. A prompt without holes leaves one gap open, at its end; with holes those are open and no
    others.
    """

    def __init__(self, prompt: Sequence[int], model: Insertions):
        """Raises BadPrompt where the prompt holds special tokens of the layout where none may be."""
        self.tokens: list[int] = [model.class_token_id]
        """Of each slot."""
        self.frozen: list[bool] = []
        """Whether a slot's gap stays empty."""
        self.step_of: list[int]
        """The step that inserted each slot's token, counted from 0; -1 of given ones."""
        self.holes: list[tuple[int, int | None]] = []
        """Of each hole of the prompt the slots left and right of it; None: it is open to the end."""
        body = _stripped(prompt, model)
        if not model.begin_behind_prompt:
            body = [model.begin_token_id, *body]
        elif model.begin_token_id not in body:
            body = [*body, model.begin_token_id]
        if model.class_token_id in body or body.count(model.begin_token_id) > 1:
            raise BadPrompt(
                "the prompt holds a token that stands before or behind prompts, in a place where it cannot be."
            )
        opened = []
        for token in body:
            if token == model.hole_token_id:
                opened.append(len(self.tokens) - 1)
            else:
                self.tokens.append(token)
        first = self.tokens.index(model.begin_token_id)
        if opened and opened[0] < first:
            raise BadPrompt("a hole stands before the token that begins the answer, where nothing can be inserted.")
        self.given_holes = bool(opened)
        """Whether the prompt had holes."""
        self.places = list(range(len(self.tokens)))
        """Where each slot stands now."""
        for left in dict.fromkeys(opened or [len(self.tokens) - 1]):
            self.holes.append((left, left + 1 if left + 1 < len(self.tokens) else None))
        owners = {left for left, _ in self.holes}
        self.frozen = [slot not in owners for slot in range(len(self.tokens))]
        self.step_of = [-1] * len(self.tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def open(self) -> list[int]:
        """The slots whose gaps may be filled, in the order in which they came."""
        return [slot for slot, frozen in enumerate(self.frozen) if not frozen]

    @property
    def rightmost(self) -> int:
        """The open slot that stands farthest to the right."""
        return max(self.open, key=self.places.__getitem__)

    def insert(self, slot: int, token: int, step: int) -> int:
        """Insert a token into a slot's gap. Returns its offset in the answer. Raises ValueError where the gap is frozen."""
        if self.frozen[slot]:
            raise ValueError(f"the gap of slot {slot} is frozen, so nothing is inserted there")
        place = self.places[slot]
        self.places = [other + (other > place) for other in self.places]
        self.tokens.append(token)
        self.places.append(place + 1)
        self.frozen.append(False)
        self.step_of.append(step)
        return place - self.places[self.holes[0][0]]

    def ordered(self) -> list[int]:
        """All slots, as the text reads."""
        return sorted(range(len(self.tokens)), key=self.places.__getitem__)

    def between(self, left: int, right: int | None) -> list[int]:
        """The slots between two slots, as the text reads; right is None for all behind `left`."""
        end = len(self.tokens) if right is None else self.places[right]
        return self.ordered()[self.places[left] + 1 : end]

    @property
    def answer(self) -> list[int]:
        """The slots of the answer, as it reads: from the first hole's beginning to the last one's end, what is given between
        them too."""
        return self.between(self.holes[0][0], self.holes[-1][1])

    @property
    def fills(self) -> list[list[int]]:
        """The tokens that stand in each hole."""
        return [[self.tokens[slot] for slot in self.between(*hole)] for hole in self.holes]


def _stripped(prompt: Sequence[int], model: Insertions) -> list[int]:
    """A prompt without the slots at its front that a tokenizer may have put there."""
    front = {model.class_token_id} if model.begin_behind_prompt else {model.class_token_id, model.begin_token_id}
    start = next((place for place, token in enumerate(prompt) if token not in front), len(prompt))
    return list(prompt[start:])
