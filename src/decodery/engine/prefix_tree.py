"""Texts by their beginnings: which of many shares the longest with another, found in one walk along it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Value = TypeVar("Value")


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first tokens two texts share."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while low + 1 < high:  # the first `low` agree, the first `high` do not
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low


@dataclass(slots=True, eq=False)
class _Node(Generic[Value]):
    """The tokens on the way here from the node before, the value of a text that ends here, if one does, and what may follow."""

    tokens: Sequence[int] = ()
    values: list[Value] = field(default_factory=list)
    after: dict[int, _Node[Value]] = field(default_factory=dict)


class PrefixTree(Generic[Value]):
    """A value for each of many texts."""

    def __init__(self) -> None:
        self._root: _Node[Value] = _Node()

    def _walk(self, text: Sequence[int]) -> Iterator[tuple[_Node[Value], int]]:
        """The nodes on the way along a text that are reached, at least in part, each with how many tokens agree up to there."""
        node, agreed = self._root, 0
        yield node, 0
        while agreed < len(text) and text[agreed] in node.after:
            node = node.after[text[agreed]]
            shared = common(node.tokens, text[agreed : agreed + len(node.tokens)])
            agreed += shared
            yield node, agreed
            if shared < len(node.tokens):
                return

    def nearest(self, text: Sequence[int]) -> tuple[Value, int] | None:
        """The value of a text that shares the longest beginning with this one, and how long that is; None where none does."""
        *_, (node, agreed) = self._walk(text)
        if not agreed:
            return None
        while not node.values:
            node = next(iter(node.after.values()))
        return node.values[0], agreed

    def along(self, text: Sequence[int]) -> list[Value]:
        """The values of all texts that this one begins with, the shortest first."""
        found, length = [], 0
        for node, agreed in self._walk(text):
            length += len(node.tokens)
            if agreed == length:
                found += node.values
        return found

    def get(self, text: Sequence[int]) -> Value | None:
        """The value of this very text."""
        node = self._at(text)
        return node.values[0] if node is not None and node.values else None

    def _at(self, text: Sequence[int]) -> _Node[Value] | None:
        path = list(self._walk(text))
        whole = path[-1][1] == len(text) == sum(len(node.tokens) for node, _ in path)
        return path[-1][0] if whole else None

    def put(self, text: Sequence[int], value: Value) -> None:
        """Give a text a value, in the place of the one that it had."""
        path = list(self._walk(text))
        node, agreed = path[-1]
        missing = sum(len(node.tokens) for node, _ in path) - agreed
        if missing:  # the text leaves within the way to the node: it gets a node there
            shared = len(node.tokens) - missing
            between: _Node[Value] = _Node(node.tokens[:shared])
            path[-2][0].after[node.tokens[0]] = between
            node.tokens = node.tokens[shared:]
            between.after[node.tokens[0]] = node
            node = between
        if agreed < len(text):
            node.after[text[agreed]] = _Node(text[agreed:], [value])
        else:
            node.values = [value]

    def remove(self, text: Sequence[int]) -> None:
        """Forget a text. Raises KeyError where it has no value."""
        path = [node for node, _ in self._walk(text)]
        node = self._at(text)
        if node is None or not node.values:
            raise KeyError(f"no value for this text of {len(text)} tokens")
        node.values = []
        if node.after or len(path) == 1:
            self._join(path)
        else:
            del path[-2].after[node.tokens[0]]
            self._join(path[:-1])

    @staticmethod
    def _join(path: list[_Node[Value]]) -> None:
        """Join the last node with the only one after it, where no text ends there."""
        node = path[-1]
        if len(path) > 1 and not node.values and len(node.after) == 1:
            [after] = node.after.values()
            after.tokens = [*node.tokens, *after.tokens]
            path[-2].after[node.tokens[0]] = after
