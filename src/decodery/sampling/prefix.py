"""What a step of the law may know of the tokens before its row, without copies of the text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, overload

from decodery._lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.sampling.law_settings import LawSettings


class Joined(Sequence[int]):
    """A text and what follows it, as one sequence; neither is copied."""

    __slots__ = ("_path", "_text")

    def __init__(self, text: Sequence[int], path: Sequence[int]):
        self._text, self._path = text, path

    def __len__(self) -> int:
        return len(self._text) + len(self._path)

    def __iter__(self) -> Iterator[int]:
        yield from self._text
        yield from self._path

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> list[int]: ...
    def __getitem__(self, place: int | slice) -> int | list[int]:
        length = len(self._text)
        if isinstance(place, slice):
            wanted = range(length + len(self._path))[place]
            if wanted.step == 1:  # which most are
                after = (max(wanted.start - length, 0), max(wanted.stop - length, 0))
                return [*self._text[wanted.start : wanted.stop], *self._path[slice(*after)]]
            return [self[index] for index in wanted]
        place = range(length + len(self._path))[place]
        return self._text[place] if place < length else self._path[place - length]


class Named(Protocol):
    """A step of the law, as far as its name."""

    name: ClassVar[str]


class Observing(Protocol):
    """What a prefix needs of the law whose text it begins with."""

    settings: LawSettings
    tokens: list[int]
    prompt_length: int
    seen: dict[int, int]
    stop_ids: list[int]
    special_ids: Sequence[int]

    def decision(self, step: str, position: int, index: int, probability: float) -> bool: ...


class Prefix:
    """What stands before a row: the committed text and a path of tokens behind it."""

    __slots__ = ("_law", "_path", "_states")

    def __init__(self, law: Observing, path: Sequence[int], states: Mapping[str, Any]):
        self._law, self._path, self._states = law, path, states

    @property
    def tokens(self) -> Sequence[int]:
        """Prompt, output and path."""
        return Joined(self._law.tokens, self._path) if self._path else self._law.tokens

    @property
    def new_tokens(self) -> int:
        """How many of them the prompt does not hold."""
        return len(self._law.tokens) - self._law.prompt_length + len(self._path)

    @property
    def drafted(self) -> int:
        """How many of these are not committed."""
        return len(self._path)

    @property
    def stop_ids(self) -> list[int]:
        """The tokens that end the output."""
        return self._law.stop_ids

    @property
    def special_ids(self) -> Sequence[int]:
        """The tokens that are no text."""
        return self._law.special_ids

    @property
    def least(self) -> int:
        """How many new tokens there must be before the output may end."""
        least: int = self._law.settings.min_new_tokens
        return least

    @property
    def temperature(self) -> float:
        """That of the settings."""
        temperature: float = self._law.settings.temperature
        return temperature

    def counts(self) -> Mapping[int, int]:
        """Token -> occurrences in output and path; 0 for tokens of the prompt alone."""
        if not self._path:
            return self._law.seen
        counts = dict(self._law.seen)
        for token in self._path:
            counts[token] = counts.get(token, 0) + 1
        return counts

    def output_counts(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens of output and path [m] int64, and how often each occurs [m] in the type of `like`."""
        counts = {token: count for token, count in self.counts().items() if count}
        ids = torch.tensor(list(counts), dtype=torch.long, device=like.device)
        return ids, torch.tensor(list(counts.values()), dtype=like.dtype, device=like.device)

    def state(self, step: Named) -> Any:
        """The state of a stateful step after these tokens."""
        return self._states[step.name]

    def accept(self, step: Named, probability: float, index: int = 0) -> bool:
        """A random decision of a step, at an address of its own: the same however often the law of this position is asked for.
        index: tells apart several of one position."""
        return self._law.decision(step.name, len(self.tokens), index, probability)
