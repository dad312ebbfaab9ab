"""Adaptive draft verification (ADED): a tree search over a table of trigrams that drifts toward what the target writes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import log, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from decodery.engine.corpus import read_corpus
from decodery.engine.method import Exactness, parameter
from decodery.engine.parameters import above
from decodery.errors import BadInput
from decodery.speculative.draft import EMPTY, ROOT, Draft
from decodery.speculative.loop import Drafter, SpeculativeMethod

if TYPE_CHECKING:
    from decodery.engine.request import Request
    from decodery.speculative.continuations.trigrams import TrigramStore, TrigramSuccessors, TrigramTable

MOST_NODES = 64
"""No draft has more nodes, whatever the budget."""
TABLE_ENDING = ".npz"
"""Files that end so are tables counted before; others are text."""
LEARNING = {"delta": above(0)}
"""The table changes."""


@dataclass(frozen=True)
class AdaptiveDraftVerification(SpeculativeMethod):
    """Searches a table of trigrams for likely continuations, weighing what is likely against what was rarely tried, and
    raises the weight of what the target really wrote. Needs no training; starts empty or from a corpus."""

    name: ClassVar[str] = "adaptive-draft-verification"
    title: ClassVar[str] = "Adaptive draft verification (ADED)"
    paper: ClassVar[str] = "Liu et al., Adaptive Draft-Verification for LLM Decoding, 2024, arXiv 2407.12021"
    exactness: ClassVar[Exactness] = Exactness.IDENTICAL_TO_PLAIN
    family: ClassVar[str] = "speculative"

    corpus: str = parameter(
        "",
        "a UTF-8 text file, or a table made by decodery.training.trigram_table; empty: begin with nothing",
        names="file",
    )
    top_m: int = parameter(12, "successors kept per pair of tokens", low=1, high=64)
    window: int = parameter(
        16, "last tokens whose trigrams are reinforced in every round", low=3, high=256, only=LEARNING
    )
    delta: float = parameter(0.04, "how much weight a trigram gains each time; 0: the table stays", low=0.0, high=1.0)
    cap: float = parameter(3.0, "most weight that reinforcement gives", low=0.0, high=100.0, only=LEARNING)
    simulations: int = parameter(150, "simulations of the tree search", low=1, high=2000)
    path_keys: int = parameter(4, "pairs of tokens along a searched path, the root's included", low=2, high=16)
    c1: float = parameter(32.0, "constant of the exploration term", low=0.0, high=1000.0, only={"explore": True})
    c2: float = parameter(8.0, "visits after which exploration grows", low=0.1, high=10000.0, only={"explore": True})
    prefixes: int = parameter(24, "most visited prefixes that are drafted", low=1, high=64)
    choices: int = parameter(24, "size of the draft, counted as `budget` says", low=1, high=64)
    budget: str = parameter(
        "paths",
        "what is counted: the distinct tokens of all paths, longest paths dropped first (the original), or tree nodes",
        choices=("paths", "trie"),
    )
    explore: bool = parameter(True, "try what is likely or was rarely tried; without it the search is greedy")
    legacy_score: bool = parameter(False, "score paths as the published code does, by the middle token of each trigram")
    read_prompt: bool = parameter(
        False, "reinforce all trigrams of the prompt once, not only the last ones", only=LEARNING
    )
    persist: bool = parameter(True, "keep the table between requests of a session", only=LEARNING)
    adapt: bool = parameter(True, "verify only as many nodes as pay on this machine")

    @property
    def adaptive(self) -> bool:
        return self.adapt

    @property
    def paced(self) -> bool:
        return self.adaptive

    def admit(self, request: Request) -> None:
        if self.corpus:
            self._table(request)

    def _table(self, request: Request) -> TrigramTable | None:
        """The corpus' table: read or counted once per file and tokenizer, kept as long as the model is."""
        if not self.corpus:
            return None
        from decodery.speculative.continuations.trigrams import TrigramTable, fingerprint

        path, host = Path(self.corpus).expanduser(), request.host
        vocabulary = host.network.vocabulary
        try:
            about = path.stat()
        except OSError as error:
            raise BadInput(f"the corpus {self.corpus} cannot be read: {error.strerror or error}.") from None

        def counted() -> TrigramTable:
            return TrigramTable.count([host.encode(read_corpus(self.corpus))], vocabulary).pruned(self.top_m)

        def read() -> TrigramTable:
            table = TrigramTable.load(path)
            if table.vocabulary != vocabulary or table.tokenizer != fingerprint(host.tokenizer, vocabulary):
                raise BadInput(f"the table {self.corpus} was counted with another tokenizer than this model's.")
            return table.pruned(self.top_m)

        key = (self.name, str(path.resolve()), about.st_mtime_ns, about.st_size, self.top_m)
        return request.remember(key, read if path.suffix == TABLE_ENDING else counted, everywhere=True)

    def store(self, request: Request) -> TrigramStore:
        """The session's table."""
        from decodery.speculative.continuations.trigrams import TrigramStore

        table = self._table(request)

        def fresh() -> TrigramStore:
            return TrigramStore(request.host.network.vocabulary, self.top_m, table)

        if not self.persist:
            return fresh()
        key = (self.name, self.corpus, self.top_m, self.window, self.delta, self.cap, self.read_prompt)
        return request.remember(key, fresh)

    def most_nodes(self) -> int:
        return MOST_NODES

    def drafter(self, request: Request) -> Drafter:
        return TrigramDrafter(self.store(request), self)


class TrigramDrafter(Drafter):
    """Reinforces what was committed, searches, and drafts the most visited prefixes."""

    def __init__(self, store: TrigramStore, options: AdaptiveDraftVerification):
        self.store, self._options = store, options
        self._search = Search(
            store,
            options.path_keys,
            options.c1 if options.explore else None,
            options.c2,
            options.simulations,
            options.legacy_score,
        )
        self._read = not options.read_prompt

    def propose(self, tokens: Sequence[int], depth: int) -> Draft:
        n, options = len(tokens), self._options
        if n < 3:
            return EMPTY
        if options.delta:
            self._learn(tokens)
        self.store.tidy()
        root = self._search.run(tokens[-2], tokens[-1], position=n)
        if root is None:
            return EMPTY
        visits = root.visited(options.prefixes)
        paths = []
        for prefix in visits:  # each is lengthened by the likeliest successor of its last two tokens
            first, second = (tokens[-1], *prefix)[-2:]
            row = self.store.find(first * self.store.vocabulary + second)
            paths.append(prefix if row is None or not row.ids else (*prefix, row.ids[0]))
        paths = list(dict.fromkeys(paths))
        if options.budget == "trie":
            return _tree(paths, visits, options.choices)
        return _tree(within_choices(paths, options.choices), visits, MOST_NODES)

    def _learn(self, tokens: Sequence[int]) -> None:
        """Reinforce the trigrams of the last tokens. All of them are committed: a draft never teaches itself."""
        n, options, store = len(tokens), self._options, self.store
        recent = max(n - options.window, 0)
        places = range(recent if self._read else 0, n - 2)
        self._read = True
        for place in places:
            first, second, third = tokens[place : place + 3]
            store.reinforce(first, second, third, options.delta, options.cap)


class Family:
    """The children of one node of the search tree: all successors of its last two tokens, in the order of the row."""

    __slots__ = ("below", "bonus", "fresh", "gain", "prefix", "row", "totals", "values", "visits")

    def __init__(
        self, row: TrigramSuccessors, prefix: tuple[int, ...], gain: float | None, reached: float, greedy: bool
    ):
        """reached: the score on the way here. greedy: an unvisited child is worth that and its own weight, and is not tried
        for its own sake."""
        size = len(row.ids)
        self.row, self.prefix = row, prefix
        self.gain = gain
        """What each child adds to a path's score; None: its own weight."""
        self.visits = [0] * size
        self.totals = [0.0] * size
        self.values = [reached + weight for weight in row.weights]
        """Mean score of each child; before it was visited, what it is worth to a greedy search."""
        self.bonus = list(row.weights)
        """weight / (1 + visits) of each child."""
        self.below: list[Family | None] = [None] * size
        self.fresh = size if greedy else 0
        """Children before this one were chosen; the last child is visited when the family is made."""

    def choose(self, factor: float) -> int:
        """The child to visit: the first that never was, else the one of most value, the first among equals.

        factor: what multiplies weight / (1 + visits) in the exploration term.
        """
        if self.fresh < len(self.visits) - 1:
            self.fresh += 1
            return self.fresh - 1
        worth = [value + factor * bonus for value, bonus in zip(self.values, self.bonus, strict=True)]
        return worth.index(max(worth))

    def record(self, child: int, score: float) -> None:
        """A simulation went through `child`."""
        count = self.visits[child] = self.visits[child] + 1
        self.totals[child] += score
        self.values[child] = self.totals[child] / count
        self.bonus[child] = self.row.weights[child] / (1 + count)

    def visited(self, most: int) -> dict[tuple[int, ...], int]:
        """The `most` most visited prefixes below here with their visits, most first. Among equals: who came first in the
        tree, level by level."""
        families = [self]
        for family in families:
            families += [below for below in family.below if below is not None]
        found = [
            (count, family.prefix, token)
            for family in families
            for token, count in zip(family.row.ids, family.visits, strict=True)
            if count
        ]
        found.sort(key=lambda entry: -entry[0])
        return {(*prefix, token): count for count, prefix, token in found[:most]}


class Search:
    """Monte-Carlo tree search by PUCT over a table of trigrams.

    A child is worth W / N + (c1 + ln((N_parent + c2 + 1) / c2)) * weight * sqrt(N_parent) / (1 + N), an unvisited one
    infinitely much; weights enter as they are. path_keys: pairs along a path, the root's included. c1: None for a greedy
    search, by W / N alone, which tries nothing for its own sake. legacy: score by the middle token of each trigram.
    Source: ADED, section 3.3; the constants and the roll-out are those of the published drafter.
    """

    def __init__(
        self, store: TrigramStore, path_keys: int, c1: float | None, c2: float, simulations: int, legacy: bool = False
    ):
        self._store, self._depth, self._simulations, self._legacy = store, path_keys - 1, simulations, legacy
        self._greedy = c1 is None
        self._exploration = [
            0.0 if c1 is None else (c1 + log((visits + c2 + 1) / c2)) * sqrt(visits)
            for visits in range(simulations + 1)
        ]

    def run(self, first: int, second: int, position: int) -> Family | None:
        """The searched tree below the pair of last tokens; None where the table does not know it.

        position: address of the roll-outs' random numbers. They are the drafter's own: no draft changes what is written.
        """
        find, size, deepest, legacy = self._store.find, self._store.vocabulary, self._depth, self._legacy
        chance = random.Random(position)
        root: Family | None = None
        for done in range(self._simulations):
            path: list[tuple[Family, int]] = []
            a, b, score, visits, depth = first, second, 1.0, done, 0
            # 1. Selection: down to a node without children, or to the greatest depth.
            family = root
            while family is not None and depth < deepest:
                child = family.choose(self._exploration[visits])
                path.append((family, child))
                score += family.row.weights[child] if family.gain is None else family.gain
                a, b, visits, depth = b, family.row.ids[child], family.visits[child], depth + 1
                family = family.below[child]
            # 2. Expansion: all successors become children, and the last of them is entered.
            if depth < deepest and (row := find(a * size + b)) is not None and row.ids:
                gain = row.weight(b) if legacy else None
                if path:
                    above, child = path[-1]
                    family = above.below[child] = Family(row, (*above.prefix, b), gain, score, self._greedy)
                else:
                    family = root = Family(row, (), gain, score, self._greedy)
                child = len(row.ids) - 1
                path.append((family, child))
                score += row.weights[child] if gain is None else gain
                a, b, depth = b, row.ids[child], depth + 1
            # 3. Roll-out: successors in proportion to their weights.
            while depth < deepest and (row := find(a * size + b)) is not None and row.ids:
                point, child = chance.random() * sum(row.weights), 0
                while point >= row.weights[child] and child + 1 < len(row.ids):
                    point -= row.weights[child]
                    child += 1
                score += row.weight(b) if legacy else row.weights[child]
                a, b, depth = b, row.ids[child], depth + 1
            # 4. Back-propagation.
            for family, child in path:
                family.record(child, score)
            if root is None:
                return None
        return root


def within_choices(paths: list[tuple[int, ...]], budget: int) -> list[tuple[int, ...]]:
    """The paths left when those of most distinct tokens are dropped until all together have at most `budget` of them.
    Among equals the later ones go first."""
    sizes = [len(set(path)) for path in paths]
    total = sum(sizes)
    dropped: set[int] = set()
    for place in sorted(range(len(paths)), key=lambda place: (-sizes[place], -place)):
        if total <= budget:
            break
        dropped.add(place)
        total -= sizes[place]
    return [path for place, path in enumerate(paths) if place not in dropped]


def _tree(paths: Sequence[tuple[int, ...]], visits: dict[tuple[int, ...], int], most: int) -> Draft:
    """The paths merged where they begin alike; while there are more than `most` nodes, the least visited leaf is dropped.

    A node's kind tells its depth and, by powers of two, how often it was visited.
    """
    prefixes = {path[:size] for path in paths for size in range(1, len(path) + 1)}
    # A prefix is visited at least as often as what follows it, so the first ones contain their ancestors.
    ranked = sorted(prefixes, key=lambda prefix: (-visits.get(prefix, 0), len(prefix), prefix))
    kept = sorted(ranked[:most], key=lambda prefix: (len(prefix), prefix))
    places = {(): ROOT, **{prefix: place for place, prefix in enumerate(kept)}}
    return Draft(
        [prefix[-1] for prefix in kept],
        [places[prefix[:-1]] for prefix in kept],
        kinds=[("trigram", len(prefix), visits.get(prefix, 0).bit_length()) for prefix in kept],
    )
