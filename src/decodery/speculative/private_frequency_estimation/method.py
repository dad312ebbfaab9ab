"""Private frequency estimation: drafts from a table that was counted without seeing anybody's text."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from decodery.engine.method import Exactness, parameter
from decodery.engine.parameters import GIVEN
from decodery.errors import BadInput
from decodery.speculative.draft import EMPTY, ROOT, Draft
from decodery.speculative.loop import Drafter, SpeculativeMethod
from decodery.speculative.prompt_lookup import NgramDrafter

if TYPE_CHECKING:
    from decodery.engine.request import Request
    from decodery.speculative.private_frequency_estimation.table import FrequencyTable

LOOKED_UP = 10
"""Tokens that are copied from earlier in the text."""


@dataclass(frozen=True)
class PrivateFrequencyEstimation(SpeculativeMethod):
    """Drafts what often follows the last token in texts of users, by a table of privately reported frequencies; and where the
    running text has its last tokens a second time, what followed them there."""

    name: ClassVar[str] = "private-frequency-estimation"
    title: ClassVar[str] = "Private frequency estimation (ModularSubsetSelection)"
    paper: ClassVar[str] = (
        "Arcolezi, Private Frequency Estimation Via Residue Number Systems, AAAI 2026, arXiv 2511.11569"
    )
    exactness: ClassVar[Exactness] = Exactness.IDENTICAL_TO_PLAIN
    family: ClassVar[str] = "speculative"

    table: str = parameter(
        "", "a table made by `decodery frequencies estimate`; empty: the running text alone", names="file"
    )
    alpha: float = parameter(
        0.01,
        "chance of drafting a pair that no user has: estimates must exceed that quantile of the noise",
        low=1e-9,
        high=0.5,
        only={"table": GIVEN},
    )
    depth: int = parameter(3, "most tokens of a path from the table", low=1, high=16, only={"table": GIVEN})
    width: int = parameter(2, "successors that are tried of each token", low=1, high=16, only={"table": GIVEN})
    nodes: int = parameter(6, "most tokens of a draft from the table", low=1, high=64, only={"table": GIVEN})
    max_ngram: int = parameter(
        3, "longest run of last tokens that is looked up in the running text; 0: none is", low=0, high=16
    )
    adapt: bool = parameter(True, "verify only as many drafted tokens as pay on this machine")

    @property
    def adaptive(self) -> bool:
        return self.adapt

    @property
    def paced(self) -> bool:
        return self.adaptive

    def most_nodes(self) -> int:
        return max(self.nodes, LOOKED_UP)

    def admit(self, request: Request) -> None:
        self.read(request)

    def read(self, request: Request) -> FrequencyTable | None:
        """The table, read once and kept as long as the model is. Raises BadInput for one of another tokenizer."""
        if not self.table:
            return None
        from decodery.speculative.continuations.trigrams import fingerprint
        from decodery.speculative.private_frequency_estimation.table import FrequencyTable

        path, host = Path(self.table).expanduser(), request.host
        try:
            about = path.stat()
        except OSError as error:
            raise BadInput(f"the table {self.table} cannot be read: {error.strerror or error}.") from None

        def fresh() -> FrequencyTable:
            table, vocabulary = FrequencyTable.read(path), host.network.vocabulary
            known = table.tokenizer == fingerprint(host.tokenizer, vocabulary)
            if table.vocabulary != vocabulary or not known:
                raise BadInput(f"the table {self.table} counts tokens of another tokenizer than this model's.")
            return table

        key = (self.name, str(path.resolve()), about.st_mtime_ns, about.st_size)
        return request.remember(key, fresh, everywhere=True)

    def drafter(self, request: Request) -> Drafter:
        return FrequencyDrafter(self.read(request), self)


class FrequencyDrafter(Drafter):
    """Looks the last tokens up in the running text, then in the table."""

    def __init__(self, table: FrequencyTable | None, options: PrivateFrequencyEstimation):
        self._table, self._options = table, options
        self._text = NgramDrafter(options.max_ngram, LOOKED_UP, "first", False) if options.max_ngram else None

    def propose(self, tokens: Sequence[int], depth: int) -> Draft:
        if self._text is not None and len(found := self._text.propose(tokens, depth)):
            return found
        return EMPTY if self._table is None else self._tree(self._table, tokens[-1], min(depth, self._options.depth))

    def _tree(self, table: FrequencyTable, last: int, depth: int) -> Draft:
        """The likeliest paths of the table: a token's part is its share among the listed successors of the one before."""
        options = self._options
        drafted: list[int] = []
        parents: list[int] = []
        found_first = itertools.count()
        waiting: list[tuple[float, int, int, int, int]] = []  # (less the path's part, when found, parent, depth, token)

        def extend(node: int, token: int, part: float, level: int) -> None:
            if level >= depth:
                return
            found = table.after(token, options.alpha, options.width)
            total = sum(estimate for _, estimate in found)
            for successor, estimate in found:
                heapq.heappush(waiting, (-part * estimate / total, next(found_first), node, level, successor))

        extend(ROOT, last, 1.0, 0)
        kinds: list[tuple[str, int, int]] = []
        while waiting and len(drafted) < options.nodes:
            part, _, parent, level, token = heapq.heappop(waiting)
            drafted.append(token)
            parents.append(parent)
            kinds.append(("frequencies", level, int(-part * 4)))
            extend(len(drafted) - 1, token, -part, level + 1)
        return Draft(drafted, parents, kinds=kinds) if drafted else EMPTY
