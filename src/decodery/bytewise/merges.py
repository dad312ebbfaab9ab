"""Byte pair encoding read backwards: which tokens may stand side by side.

A sequence of tokens within one pre-token is what the tokenizer makes of its bytes if and only if every adjacent pair is:
merges happen where two tokens meet, in the order of their ranks, so a border that lasts does not depend on what is farther
away. So the rule is one of pairs: at no time of the two tokens' making may their last and first parts have been merged. Phan
et al., ICLR 2025, arXiv 2410.09303; Hayase et al., arXiv 2506.14123.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from decodery._lazy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray

NEVER = 1 << 40
"""A rank after all others."""
KEPT = 512
"""Tokens whose neighbours are remembered, the least recently used forgotten first."""


class Merges:
    """The merges of a vocabulary.

    vocabulary: written token -> id. merges: pairs of written tokens, in the order of their ranks; the written tokens must be
    the two parts side by side, as they are without prefixes of continued words.
    """

    def __init__(self, vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]]):
        self.size = 1 + max(vocabulary.values(), default=0)
        found = [
            (vocabulary[one], vocabulary[other], vocabulary[one + other], rank)
            for rank, (one, other) in enumerate(merges)
            if one in vocabulary and other in vocabulary and one + other in vocabulary
        ]
        table = np.array(found, dtype=np.int64).reshape(-1, 4)
        self._left, self._right, self._made, self._rank = (np.ascontiguousarray(column) for column in table.T)
        keys = self._left * self.size + self._right
        # Of a pair that is listed twice, the last rank counts, as in tokenizers' own table.
        by_key = np.lexsort((-self._rank, keys))
        keys = keys[by_key]
        first = np.ones(len(keys), dtype=bool)
        first[1:] = keys[1:] != keys[:-1]
        self._keys, self._key_rank = keys[first], self._rank[by_key][first]
        lengths = np.zeros(self.size, dtype=np.int64)
        for written, token in vocabulary.items():
            lengths[token] = len(written)
        self.parts = np.full((self.size, 2), -1, dtype=np.int64)
        """Token -> the two tokens that it was last merged from; -1 for one that is a single sign."""
        self.born = np.full(self.size, -1, dtype=np.int64)
        """Token -> the rank of that merge; -1 for a single sign."""
        self.reachable = lengths == 1
        """Whether the tokenizer makes the token of its own bytes."""
        self._derive(lengths)
        self._index()
        self._known: OrderedDict[int, NDArray[np.int64]] = OrderedDict()

    @property
    def in_order(self) -> bool:
        """Whether every merge comes after those that make its parts, so that ranks are times."""
        latest = np.full(self.size, -1, dtype=np.int64)
        np.maximum.at(latest, self._made, self._rank)
        return bool((self._rank > np.maximum(latest[self._left], latest[self._right])).all())

    def may_meet(self, left: int, right: int) -> bool:
        """Whether two tokens of one pre-token stay two."""
        return bool(self._apart(np.array([left]), np.array([right]), np.array([NEVER]))[0])

    def merged_with(self, left: int) -> NDArray[np.int64]:
        """The tokens that cannot follow `left` within a pre-token, rising."""
        if left in self._known:
            self._known.move_to_end(left)
            return self._known[left]
        found: list[NDArray[np.int64]] = []
        part, limit = left, NEVER
        while part >= 0:
            for place in range(self._begins[part], self._begins[part + 1]):
                rank = self._rank[self._by_left[place]]
                if rank >= limit:
                    break
                first = self._right[self._by_left[place]]
                start, stop = self._spine_begins[first], self._spine_begins[first + 1]
                found.append(self._spine_token[start:stop][self._spine_limit[start:stop] >= rank])
            limit, part = int(self.born[part]), int(self.parts[part, 1])
        tokens = np.unique(np.concatenate(found)) if found else np.empty(0, dtype=np.int64)
        self._known[left] = tokens
        if len(self._known) > KEPT:
            self._known.popitem(last=False)
        return tokens

    def _derive(self, lengths: NDArray[np.int64]) -> None:
        """Which merge makes each token of its own bytes, shorter tokens first."""
        made = lengths[self._made]
        for length in np.unique(made):
            here = np.flatnonzero(made == length)
            here = here[self.reachable[self._left[here]] & self.reachable[self._right[here]]]
            here = here[self._apart(self._left[here], self._right[here], self._rank[here])]
            token = self._made[here]
            self.parts[token, 0], self.parts[token, 1] = self._left[here], self._right[here]
            self.born[token], self.reachable[token] = self._rank[here], True

    def _apart(self, left: NDArray[np.int64], right: NDArray[np.int64], limit: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether pairs of tokens [n] stay apart until the rank `limit` [n]: back in time, merge by merge, no merge across the
        border comes before the one that was undone last. Among merges of one rank the leftmost is first."""
        one, other, limit = left.copy(), right.copy(), limit.copy()
        apart, going = np.ones(len(one), dtype=bool), np.arange(len(one))
        while len(going):
            across = self._ranks(one[going], other[going])
            apart[going[across < limit[going]]] = False
            born, born_other = self.born[one[going]], self.born[other[going]]
            going = going[(across >= limit[going]) & (np.maximum(born, born_other) >= 0)]
            born, born_other = self.born[one[going]], self.born[other[going]]
            undo = born > born_other
            first, second = going[undo], going[~undo]
            limit[first], limit[second] = born[undo], born_other[~undo] + 1
            one[first], other[second] = self.parts[one[first], 1], self.parts[other[second], 0]
        return apart

    def _ranks(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.int64]:
        """The ranks of the merges of pairs [n]; NEVER where there is none."""
        if not len(self._keys):
            return np.full(len(left), NEVER)
        keys = left * self.size + right
        places = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(self._keys[places] == keys, self._key_rank[places], NEVER)

    def _index(self) -> None:
        """Merges by their left part, and tokens by the parts that they have ever begun with."""
        self._by_left = np.lexsort((self._rank, self._left))
        self._begins = np.searchsorted(self._left[self._by_left], np.arange(self.size + 1))
        part, limit = np.arange(self.size), np.full(self.size, NEVER)
        tokens = np.flatnonzero(self.reachable)
        spines = []
        while len(tokens):
            spines.append(np.stack([part[tokens], tokens, limit[tokens]]))
            limit[tokens], part[tokens] = self.born[part[tokens]], self.parts[part[tokens], 0]
            tokens = tokens[part[tokens] >= 0]
        spine = np.concatenate(spines, axis=1) if spines else np.empty((3, 0), dtype=np.int64)
        spine = spine[:, np.argsort(spine[0], kind="stable")]
        self._spine_token, self._spine_limit = spine[1], spine[2]
        self._spine_begins = np.searchsorted(spine[0], np.arange(self.size + 1))
