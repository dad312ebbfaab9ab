"""The texts that were drawn under a constraint, as a tree of tokens that bounds how much of a model's mass stays within it.

Park et al., Grammar-Aligned Decoding, NeurIPS 2024, arXiv 2405.21047, section 4. What a constraint leaves of the texts behind a
beginning is its expected future grammaticality. It is not known, but bounded from above: by 1 where nothing was drawn yet,
and at a place that was, by the sum over the tokens that may follow of the probability of each times its own bound.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from decodery._lazy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray

LAW_BYTES = 32 * 2**20
"""Memory of a trie for the laws of its places; where they take more, those of further places are not kept."""
_LOCK = threading.Lock()
"""For all tries, since each holds it for microseconds."""


class Node:
    """A place: the text that leads from the root to it.

    share: probability of its last token behind the others, of the whole vocabulary. bound: of the mass of the texts behind it
    that the constraint allows, from above. rest: mass of the tokens that may follow and were never drawn; None where nothing
    was drawn behind it. law: ids [n] of the tokens that may follow, ascending, and their probabilities [n] float64, where these
    are kept.
    """

    __slots__ = ("bound", "children", "law", "rest", "share")

    def __init__(self, share: float = 1.0, bound: float = 1.0, rest: float | None = None):
        self.share, self.bound, self.rest = share, bound, rest
        self.children: dict[int, Node] | None = None
        self.law: tuple[NDArray[np.int64], NDArray[np.float64]] | None = None


class Trie:
    """The tree of a prompt, a model's law and a constraint.

    draws: how many texts it has learned from. Several draws may read it at once; each change is whole.
    """

    def __init__(self) -> None:
        self.root = Node()
        self.draws, self.nodes = 0, 1
        self._law_bytes = 0

    def arrive(
        self, node: Node, ids: NDArray[np.int64], masses: NDArray[np.float64], keep: bool = False
    ) -> NDArray[np.float64]:
        """The weights [n] that the next token is drawn by, given the tokens that may follow [n] and their probabilities [n].

        ids: ascending. masses: of the whole vocabulary's law, so that their sum is what the constraint leaves here. keep: the
        law of the place, as far as memory allows; see `Node.law`.
        """
        with _LOCK:
            if node.rest is None:
                node.rest = float(masses.sum())
            if keep and node.law is None and self._law_bytes + ids.nbytes + masses.nbytes <= LAW_BYTES:
                node.law = ids, masses
                self._law_bytes += ids.nbytes + masses.nbytes
            weights = masses.copy()
            places, children = _known(node, ids)
            weights[places] *= [child.bound for child in children]
            return weights

    def follow(
        self, node: Node, ids: NDArray[np.int64], masses: NDArray[np.float64], place: int, most: int
    ) -> Node | None:
        """The place behind the token ids[place]; None where it is new and there are `most` places already."""
        token = int(ids[place])
        with _LOCK:
            if node.children is not None and token in node.children:
                return node.children[token]
            if self.nodes >= most:
                return None
            if node.children is None:
                node.children = {}
            child = node.children[token] = Node(float(masses[place]))
            self.nodes += 1
            # A sum of what is left, since a difference would leave rounding behind where nothing is.
            left = np.ones(len(ids), np.bool_)
            left[_known(node, ids)[0]] = False
            node.rest = float(masses[left].sum())
            return child

    def learn(self, path: Sequence[Node]) -> None:
        """Lower the bounds of places, each of which lies behind the one before it, from the last to the first."""
        with _LOCK:
            for node in reversed(path):
                if node.rest is not None:
                    known = (child.share * child.bound for child in (node.children or {}).values())
                    node.bound = min(node.bound, node.rest + math.fsum(known))
            self.draws += 1

    def texts(self) -> Iterator[tuple[tuple[int, ...], float]]:
        """Every text behind which nothing was drawn, with its probability if the next draw is made now.

        Raises ValueError where some of what may follow was never drawn, and so is no text of the trie.
        """
        waiting: list[tuple[Node, tuple[int, ...], float]] = [(self.root, (), 1.0)]
        while waiting:
            node, tokens, mass = waiting.pop()
            if node.rest is None:
                yield tokens, mass
                continue
            if node.rest > 0:
                raise ValueError(f"not all tokens that may follow {tokens} were drawn")
            weights = {token: child.share * child.bound for token, child in (node.children or {}).items()}
            whole = math.fsum(weights.values())
            if whole > 0:
                waiting += [
                    (node.children[token], (*tokens, token), mass * weight / whole)  # type: ignore[index]
                    for token, weight in weights.items()
                ]

    # What is kept on disk

    def as_arrays(self) -> Mapping[str, NDArray[Any]]:
        """The places in an order in which each stands behind its parent; laws are left out."""
        with _LOCK:
            rows: list[tuple[int, int, Node]] = [(-1, -1, self.root)]
            for number, (_, _, node) in enumerate(rows):  # which grows
                rows += [(number, token, child) for token, child in (node.children or {}).items()]
            nodes = [node for _, _, node in rows]
            return {
                "draws": np.array(self.draws),
                "parents": np.array([parent for parent, _, _ in rows], np.int32),
                "tokens": np.array([token for _, token, _ in rows], np.int32),
                "shares": np.array([node.share for node in nodes], np.float64),
                "bounds": np.array([node.bound for node in nodes], np.float64),
                "rests": np.array([np.nan if node.rest is None else node.rest for node in nodes], np.float64),
            }

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Trie:
        """A trie as it was written. Raises ValueError or KeyError where the arrays hold none."""
        columns = [arrays[name] for name in ("parents", "tokens", "shares", "bounds", "rests")]
        parents, _, shares, bounds, rests = columns
        rising = parents[0:1].tolist() == [-1] and bool((parents[1:] < np.arange(1, len(parents))).all())
        if len({len(column) for column in columns}) != 1 or not rising or bool((parents[1:] < 0).any()):
            raise ValueError("these arrays hold no trie")
        in_range = (bounds >= 0) & (bounds <= 1) & (shares >= 0) & (shares <= 1) & ~(rests < 0)
        if not bool(in_range.all()):
            raise ValueError("these arrays hold numbers that are no probabilities")
        trie = cls()
        nodes: list[Node] = []
        for parent, token, share, bound, rest in zip(*(column.tolist() for column in columns), strict=True):
            node = Node(share, bound, None if math.isnan(rest) else rest)
            if nodes:
                above = nodes[parent]
                above.children = above.children or {}
                above.children[token] = node
            nodes.append(node)
        trie.root, trie.nodes, trie.draws = nodes[0], len(nodes), int(arrays["draws"])
        return trie


def _known(node: Node, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[Node]]:
    """Where among `ids` the tokens stand behind which there are places, and these."""
    if not node.children or not len(ids):
        return np.zeros(0, np.int64), []
    tokens = np.fromiter(node.children, np.int64, len(node.children))
    places = np.minimum(ids.searchsorted(tokens), len(ids) - 1)
    there = ids[places] == tokens  # rounding may put a token out of a truncated law that was in it before
    return places[there], [child for child, known in zip(node.children.values(), there, strict=True) if known]
