"""A cascade of drafting sources under one budget: copied text, recycled scores, a table, mixed by how well each does."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from decodery.engine.cost import CONTEXT_STEP, CostCurve
from decodery.engine.method import Exactness, parameter
from decodery.engine.parameters import Where
from decodery.errors import BadParameter, MethodUnavailable
from decodery.models.catalogue import ARTIFACTS
from decodery.speculative.cascade.sources import (
    LONGEST,
    Answer,
    Copied,
    Mixture,
    Recycled,
    Source,
    Sureness,
    Tabled,
    Tail,
    level,
)
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
NODE_SECONDS = 30e-6
"""What a node costs outside of the pass: to be looked up, packed, ranked and remembered."""
ROUND_SECONDS = 5e-4
"""What any draft costs outside of the pass, however small. Requests that share a pass wait for each other's."""
BRANCHING = 1.3
"""Below a node that is reached less often than this times the least, nothing is looked for."""
LONGEST_REST = 8


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
                    f"{network.vocabulary}; make one with python -m decodery.training.successors."
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
        self._request, self._cost, self._sources, self._mixture, self._right = request, cost, sources, mixture, right
        self._nodes, self._depth = nodes, depth
        self.rank = RECYCLED
        self._copied = next((source for source in sources if isinstance(source, Copied)), None)
        self._recycled = next((source for source in sources if isinstance(source, Recycled)), None)
        self._answers: dict[int, list[Answer]] = {}
        """What the sources said after each node that was looked at, in this round."""
        self._rest = self._resting = 0
        self._poor = False
        """Whether the last look found nothing that would pay."""
        self._rounds: dict[tuple[int, int], list[float]] = {}
        """Seconds of a round by company and context."""

    def propose(self, tokens: Sequence[int], depth: int) -> Draft:
        if self._copied is not None:
            self._copied.read(tokens)
        self._answers, self._poor = {}, False
        if self._resting > 0:  # drafting has not paid lately: look again a little later
            self._resting -= 1
            return EMPTY
        depth = min(depth, self._depth)
        drafted: list[int] = []
        parents: list[int] = []
        kinds: list[int] = []
        # Entries: minus the estimated chance to be reached, a tie breaker, token, parent, kind, tail, depth.
        heap: list[tuple[float, int, int, int, int, Tail, int]] = []
        count = 0
        sources, law, chances = self._sources, self._mixture.law, self._right.chances()

        def look(tail: Tail, node: int, deep: int, chance: float) -> None:
            nonlocal count
            answers = self._answers[node] = []
            for source in sources:
                source.answers(tail, answers)
            for token, own in law(answers, floor / (4 * chance)):
                kind = level(own)
                reached = chance * chances[kind]
                if reached >= floor:
                    count += 1
                    heapq.heappush(heap, (-reached, count, token, node, kind, tail, deep + 1))

        floor, expected, stops = LEAST, 1.0, self._request.stop_ids
        chains_only = self._request.host.network.chains_only
        seconds, plain = self._seconds(self._request.company)
        look(tuple(tokens[-LONGEST:]), ROOT, 0, 1.0)
        while heap and len(drafted) < self._nodes:
            reached, _, token, parent, kind, tail, deep = heapq.heappop(heap)
            node = len(drafted)
            if chains_only and parent != node - 1:
                continue
            # What a further node costs as a share of the round, averaged over the next few.
            floor = max(LEAST, expected * (seconds[node + 4] - seconds[node]) / (4 * seconds[node]))
            if -reached < floor:
                break
            expected -= reached
            drafted.append(token)
            parents.append(parent)
            kinds.append(kind)
            if deep < depth and -reached > BRANCHING * floor and token not in stops:
                look((*tail, token)[-LONGEST:], node, deep, -reached)
        self._poor = expected * plain <= seconds[len(drafted)]
        return EMPTY if self._poor else Draft(drafted, parents, kinds=kinds)

    def _seconds(self, company: int) -> tuple[list[float], float]:
        """Seconds of a round by the number of nodes (of each request, where several share the pass), and of a plain step."""
        if self._cost is None:
            return [1.0] * (self._nodes + 5), 1.0
        context = len(self._request.tokens)
        cost, key = self._cost.at(context), (company, -(-context // CONTEXT_STEP))
        if key not in self._rounds:
            self._rounds[key] = [
                cost(company * (1 + nodes)) + company * (ROUND_SECONDS + nodes * NODE_SECONDS)
                for nodes in range(self._nodes + 5)
            ]
        return self._rounds[key], cost(company)

    def observe(self, round: Round) -> None:
        if self._poor:
            self._rest = min(LONGEST_REST, 2 * self._rest + 1)
            self._resting = self._rest
        elif len(round.draft):
            self._rest = 0
        self._right.observe(round.draft, round.emitted)
        for node, token in zip((ROOT, *round.verdict.path), round.emitted, strict=True):
            self._mixture.learn(self._answers.get(node, ()), token)
        # Where there are logits and no ranking, to rank them costs more than a drafter that rests gets of it.
        if self._recycled is None or (self._resting and round.ranking is None):
            return
        ranking = round.ranking or self._request.host.network.top(round.logits, RECYCLED)
        ids, shares = ranking
        draft, last = round.draft, round.tokens[-1]
        before = round.tokens[-2] if len(round.tokens) > 1 else -1
        # Rows of the accepted path come last, so that they stay where a pair occurs twice.
        accepted = round.verdict.path
        self._recycled.learn(before, last, ids[0], shares[0])
        for node in (*(node for node in range(len(draft)) if node not in accepted), *accepted):
            parent = draft.parents[node]
            above = last if parent == ROOT else draft.tokens[parent]
            self._recycled.learn(above, draft.tokens[node], ids[node + 1], shares[node + 1])
