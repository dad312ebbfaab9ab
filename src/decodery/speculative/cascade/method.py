"""A cascade of drafting sources under one budget: copied text, recycled scores, a table, mixed by how well each does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from decodery.engine.cost import CostCurve
from decodery.engine.method import Exactness, parameter
from decodery.engine.parameters import Where
from decodery.errors import BadParameter, MethodUnavailable
from decodery.models.catalogue import ARTIFACTS
from decodery.speculative.cascade.growing import Growing, Prices, Rest
from decodery.speculative.cascade.sources import LONGEST, Answer, Copied, Mixture, Recycled, Source, Sureness, Tabled
from decodery.speculative.continuations.successors import SuccessorTable
from decodery.speculative.draft import EMPTY, ROOT, Draft
from decodery.speculative.loop import Drafter, Round, SpeculativeMethod

if TYPE_CHECKING:
    from decodery.engine.request import Request

SOURCES = ("copied", "recycled", "table")
RECYCLED = 8
"""Successors kept of each verified row."""
LEAST = 0.01
"""Nodes that are reached less often are not even proposed."""
MOST_NODES = 48
BRANCHING = 1.3
"""Below a node that is reached less often than this times the least, nothing is looked for."""


@dataclass(frozen=True)
class Cascade(SpeculativeMethod):
    """Grows one draft tree from several sources, best first: text copied from this request, the target's own earlier
    scores, and a table of what the model writes. Each source counts as much as it has been right; the tree is as large as
    pays."""

    name: ClassVar[str] = "cascade"
    title: ClassVar[str] = "Cascade of drafting sources"
    paper: ClassVar[str] = (
        "decodery's own, of the ideas of SAM Decoding, arXiv 2411.10666, and Token Recycling, 2408.08696"
    )
    exactness: ClassVar[Exactness] = Exactness.IDENTICAL_TO_PLAIN
    family: ClassVar[str] = "speculative"

    sources: str = parameter("copied+recycled+table", "which sources take part, of copied, recycled and table")
    table: str = parameter(
        "auto",
        "a table of successors (.npz); auto: the one that ships for the model, if any",
        only={"sources": Where(lambda words: "table" in words.split("+"), "name table")},
        names="file",
    )
    nodes: int | None = parameter(
        None, "nodes of the draft tree", low=1, high=64, auto="as many as pay on this machine, up to 48"
    )
    depth: int = parameter(16, "longest path of the tree", low=1, high=32)
    persist: bool = parameter(True, "keep what was learned between requests of a session")

    def check(self) -> None:
        unknown = [word for word in self._words() if word not in SOURCES]
        if unknown or not self._words():
            raise BadParameter(
                f"cascade: sources are {', '.join(SOURCES[:-1])} and {SOURCES[-1]}, joined by +, not {self.sources!r}."
            )

    def _words(self) -> list[str]:
        return [word.strip() for word in self.sources.split("+") if word.strip()]

    @property
    def adaptive(self) -> bool:
        return False  # the tree is grown as far as pays; there is nothing to cut

    @property
    def paced(self) -> bool:
        return self.nodes is None

    def admit(self, request: Request) -> None:
        self._table(request)

    def _table(self, request: Request) -> Tabled | None:
        if "table" not in self._words():
            return None
        network = request.host.network
        path = Path(self.table).expanduser()
        if self.table == "auto":
            path = ARTIFACTS / f"successors-{network.name}.npz"
            if not path.exists():
                return None

        def read() -> Tabled:
            from decodery.speculative.continuations.trigrams import fingerprint

            table = SuccessorTable.read(path)
            if table.vocabulary != network.vocabulary:
                raise MethodUnavailable(
                    f"cascade: {path} is of a model with {table.vocabulary} tokens, but {network.name} has "
                    f"{network.vocabulary}; make one with decodery train successors."
                )
            if self.table != "auto" and table.tokenizer not in (
                "",
                fingerprint(request.host.tokenizer, network.vocabulary),
            ):
                raise MethodUnavailable(f"cascade: {path} was made with another tokenizer than that of {network.name}.")
            return Tabled(table)

        return request.remember(("cascade", "table", str(path)), read, everywhere=True)

    def most_nodes(self) -> int:
        return self.nodes or MOST_NODES

    def drafter(self, request: Request) -> Drafter:
        words = self._words()
        copied = Copied() if "copied" in words else None
        recycled: Recycled | None = None
        if "recycled" in words:
            recycled = request.remember(("cascade", "recycled"), Recycled) if self.persist else Recycled()
        table = self._table(request)
        sources: list[Source] = [source for source in (copied, recycled, table) if source is not None]
        mixture = request.remember(("cascade", "mixture", self.sources), Mixture) if self.persist else Mixture()
        cost = request.host.cost(request.host.network) if self.nodes is None else None
        right = request.remember(("cascade", "sureness"), Sureness) if self.persist else Sureness()
        nodes = self.nodes or MOST_NODES
        stability = request.host.network.stability
        if self.nodes is None and stability is not None:
            nodes = min(nodes, stability.rows - 1)
        return CascadeDrafter(request, cost, sources, mixture, right, nodes, self.depth)


class CascadeDrafter(Drafter):
    """Grows a tree best first by the mixture of its sources.

    cost: the tree ends where a further node would not pay on this curve; None: at `nodes`. right: how often nodes of which
    the mixture was so sure were right. nodes: at most so many; depth: of the longest path.
    """

    def __init__(
        self,
        request: Request,
        cost: CostCurve | None,
        sources: Sequence[Source],
        mixture: Mixture,
        right: Sureness,
        nodes: int,
        depth: int,
    ):
        self._request, self._sources, self._mixture, self._right = request, sources, mixture, right
        self._most, self._depth = nodes, depth
        self._prices = Prices(cost, nodes)
        self._rest = Rest()
        self.rank, self.guided = RECYCLED, True
        self._copied = next((source for source in sources if isinstance(source, Copied)), None)
        self._recycled = next((source for source in sources if isinstance(source, Recycled)), None)
        self._answers: dict[int, list[Answer]] = {}
        """What the sources said after each node that was looked at, in this round."""

    def propose(self, tokens: Sequence[int], depth: int) -> Draft:
        if self._copied is not None:
            self._copied.read(tokens)
        request = self._request
        if not self._rest.over() and not (request.law.guides and request.law.forced()):
            return EMPTY
        price = self._prices.at(request.company, len(request.tokens))
        growing = Growing(self._sources, self._mixture, self._right.chances(), request.law)
        self._answers = growing.answers
        deepest, stops, chains_only = min(depth, self._depth), request.stop_ids, request.host.network.chains_only
        # floor: nodes that are reached less often do not pay. expected: tokens of the round.
        floor, expected = LEAST, 1.0
        growing.look(ROOT, tuple(tokens[-LONGEST:]), 0, 1.0, floor)
        while len(growing) < self._most and (best := growing.best()) is not None:
            if chains_only and best.parent != len(growing) - 1:
                continue
            floor = max(LEAST, expected * price.of_a_node(len(growing)))
            if best.reached < floor:
                break
            expected += best.reached
            node = growing.add(best)
            if best.depth < deepest and best.reached > BRANCHING * floor and best.token not in stops:
                growing.look(node, (*best.tail, best.token)[-LONGEST:], best.depth, best.reached, floor)
        pays = price.pays(len(growing), expected)
        self._rest.learn(pays)
        return growing.draft() if pays else EMPTY

    def observe(self, round: Round) -> None:
        self._right.observe(round.draft, round.emitted)
        for node, token in zip((ROOT, *round.verdict.path), round.emitted, strict=True):
            self._mixture.learn(self._answers.get(node, ()), token)
        self._answers = {}
        # Where there are logits and no ranking, to rank them costs more than a drafter that rests gets of it.
        if self._recycled is not None and (round.ranking is not None or not self._rest.lasts):
            ids, shares = round.ranking or self._request.host.network.top(round.logits, RECYCLED)
            self._recycle(self._recycled, round, ids, shares)

    def _recycle(
        self, recycled: Recycled, round: Round, ids: Sequence[list[int]], shares: Sequence[list[float]]
    ) -> None:
        """Remember the target's likeliest tokens after each verified node."""
        draft, last = round.draft, round.tokens[-1]
        recycled.learn(round.tokens[-2] if len(round.tokens) > 1 else -1, last, ids[0], shares[0])
        # Rows of the accepted path come last, so that they stay where a pair occurs twice.
        accepted = round.verdict.path
        for node in (*(node for node in range(len(draft)) if node not in accepted), *accepted):
            parent = draft.parents[node]
            above = last if parent == ROOT else draft.tokens[parent]
            recycled.learn(above, draft.tokens[node], ids[node + 1], shares[node + 1])
