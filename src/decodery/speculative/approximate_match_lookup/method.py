"""Approximate-match lookup: copies from where the last tokens occurred before, up to a few differences."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import TYPE_CHECKING, Any, ClassVar

from decodery.engine.corpus import read_corpus
from decodery.engine.method import Exactness, parameter
from decodery.engine.parameters import GIVEN
from decodery.errors import BadParameter
from decodery.speculative.draft import EMPTY, ROOT, Draft
from decodery.speculative.loop import Drafter, Round, SpeculativeMethod

if TYPE_CHECKING:
    from decodery.engine.cost import CostCurve
    from decodery.engine.request import Request
    from decodery.speculative.approximate_match_lookup.matching import Lags, NgramIndex

SESSION_TOKENS = 8192
"""How much of a session's earlier texts is looked into."""
BETWEEN_TEXTS = -1
"""Stands between the texts of a session; equals no token."""
ALIGNED_TOKENS = 64
"""How many aligned tokens are searched for consistent substitutions."""
SEEN_TWICE = 2
"""A substitution is believed when it was seen so often."""


@dataclass(frozen=True)
class ApproximateMatchLookup(SpeculativeMethod):
    """Copies what followed the place that agrees best with the last tokens, where exact lookup demands full agreement: a
    renamed entity or a changed number does not stop it. Needs no training; looks into this request's own text and, if
    given, into earlier texts of the session and a corpus."""

    name: ClassVar[str] = "approximate-match-lookup"
    title: ClassVar[str] = "Approximate-match lookup"
    paper: ClassVar[str] = "Chan et al., Text-to-Pattern Hamming Distances, FOCS 2023, arXiv 2310.13174 (the matching)"
    exactness: ClassVar[Exactness] = Exactness.IDENTICAL_TO_PLAIN
    family: ClassVar[str] = "speculative"

    window: int = parameter(8, "last tokens whose mismatches are counted", low=1, high=256)
    mismatches: int | None = parameter(
        None,
        "most mismatches in the window",
        low=0,
        high=256,
        auto="half the window where places are ranked by them, else any number",
    )
    anchor: int = parameter(1, "last tokens that must agree exactly", low=0, high=16)
    rank: str = parameter(
        "decayed",
        "what tells the best place: mismatches weighted by age, mismatches in the window, or the exact run",
        choices=("decayed", "mismatches", "run"),
    )
    decay: float = parameter(
        0.75, "weight of a mismatch against one a token later", low=0.0, high=0.99, only={"rank": "decayed"}
    )
    length: int = parameter(8, "most tokens to copy", low=1, high=64)
    places: int = parameter(1, "places to copy from: one gives a chain, more a tree", low=1, high=16)
    nodes: int = parameter(8, "most nodes of the tree", low=1, high=64)
    wrap: bool = parameter(False, "repeat a period that is shorter than the copy, instead of cutting it")
    policy: str = parameter(
        "cost",
        "who decides how much is verified: the measured cost, running means by class of match, or nobody",
        choices=("cost", "class", "none"),
    )
    substitute: bool = parameter(False, "apply consistent replacements of the aligned text to the copy")
    persist: bool = parameter(False, "also look into earlier texts of the session")
    corpus: str = parameter("", "a UTF-8 text file to copy from as well; its index is built on first use", names="file")
    corpus_window: int = parameter(
        16, "last tokens that are looked for in the corpus", low=1, high=256, only={"corpus": GIVEN}
    )
    corpus_mismatches: int = parameter(
        3, "most mismatches of them in the corpus", low=0, high=64, only={"corpus": GIVEN}
    )

    def check(self) -> None:
        if self.mismatches is not None and self.mismatches > self.window:
            raise BadParameter(f"{self.name}: mismatches must not exceed the window of {self.window}.")
        if self.corpus_mismatches >= self.corpus_window:
            raise BadParameter(f"{self.name}: corpus_mismatches must be below the corpus_window.")

    @property
    def adaptive(self) -> bool:
        return self.policy == "cost"

    @property
    def paced(self) -> bool:
        return self.adaptive

    @property
    def most_mismatches(self) -> int:
        """How many mismatches in the window a place may have."""
        if self.mismatches is not None:
            return self.mismatches
        return self.window // 2 if self.rank == "mismatches" else self.window

    def admit(self, request: Request) -> None:
        if self.corpus:
            self._index(request)

    def _index(self, request: Request) -> NgramIndex | None:
        """The corpus' index: built once per file and tokenizer, kept as long as the model is."""
        if not self.corpus:
            return None
        from decodery.speculative.approximate_match_lookup.matching import NgramIndex

        text = read_corpus(self.corpus)
        size = self.corpus_window // (self.corpus_mismatches + 1)
        key = (self.name, size, hashlib.sha256(text.encode()).hexdigest())
        return request.remember(key, lambda: NgramIndex(size, request.host.encode(text)), everywhere=True)

    def most_nodes(self) -> int:
        return self.nodes

    def drafter(self, request: Request) -> Drafter:
        earlier: list[int] = []
        if self.persist:
            texts = request.remember((self.name, "texts"), list[list[int]])
            earlier = _joined(texts)
            texts.append(request.tokens)
        policy = None
        if self.policy == "class":
            policy = request.remember((self.spec(), "classes"), LengthByClass)
            policy.cost = request.host.cost(request.host.network)
        return AlignmentDrafter(self, earlier, self._index(request), policy)


def _joined(texts: list[list[int]]) -> list[int]:
    """The latest texts in a row, at most SESSION_TOKENS; older ones are forgotten."""
    total, kept = 0, len(texts)
    while kept and total + len(texts[kept - 1]) + 1 <= SESSION_TOKENS:
        kept -= 1
        total += len(texts[kept]) + 1
    del texts[:kept]
    return [token for text in texts for token in (*text, BETWEEN_TEXTS)]


@dataclass(frozen=True, slots=True)
class Alignment:
    """Somewhere to copy from.

    decayed, mismatches, run: how well it agrees with the last tokens. age: tie-break, lower is nearer to the text's end.
    source, start: the copy is source[start:]. period: after how many tokens the copy meets the text's end (None: never).
    origin: "own" or "corpus".
    """

    decayed: float
    mismatches: int
    run: int
    age: int
    source: Any
    start: int
    period: int | None
    origin: str

    @property
    def kind(self) -> tuple[str, int, int]:
        """The class of the match: where, how long an exact run (up to 8), how many mismatches (0, 1, 2-3, 4-7, 8 or more)."""
        return self.origin, min(self.run, 8), min(self.mismatches.bit_length(), 4)


class AlignmentDrafter(Drafter):
    """The tree of what followed the best-agreeing places.

    earlier: tokens to look into that are not this request's own. policy: the running means that decide the length, or None
    where all is proposed.
    """

    def __init__(
        self,
        options: ApproximateMatchLookup,
        earlier: Sequence[int] = (),
        corpus: NgramIndex | None = None,
        policy: LengthByClass | None = None,
    ):
        from decodery.speculative.approximate_match_lookup.matching import Lags

        self._options, self._corpus, self._policy = options, corpus, policy
        self._most = options.most_mismatches
        self._earlier = len(earlier)
        self.lags: Lags = Lags(options.window, options.decay, earlier)
        self._proposed: tuple[str, int, int] | None = None

    def read(self, tokens: Sequence[int]) -> None:
        """Take in the tokens that came since the last call."""
        self.lags.extend(tokens[len(self.lags) - self._earlier :])

    def propose(self, tokens: Sequence[int], depth: int) -> Draft:
        self.read(tokens)
        self._proposed = None
        best = self._best(tokens)
        length = min(self._options.length, depth)
        if best and self._policy is not None:
            length = min(length, self._policy.length(best[0].kind, self._options.length, len(tokens)))
            if length:
                self._proposed = best[0].kind
        if not best or length < 1:
            return EMPTY
        return self._tree([(place, self._copy(place, max(length // (r + 1), 1))) for r, place in enumerate(best)])

    def observe(self, round: Round) -> None:
        if self._policy is not None and self._proposed is not None and len(round.draft):
            self._policy.observe(self._proposed, len(round.verdict.path))

    def _best(self, tokens: Sequence[int]) -> list[Alignment]:
        """The places to copy from, best first."""
        options = self._options
        candidates = self._own_places()
        if self._corpus is not None and len(tokens) >= options.corpus_window:
            candidates += self._corpus_places(self._corpus, tokens[-options.corpus_window :])
            candidates.sort(key=self._order)
        return candidates[: options.places]

    def _order(self, place: Alignment) -> tuple[float, ...]:
        if self._options.rank == "run":
            return -place.run, place.age
        first = place.decayed if self._options.rank == "decayed" else place.mismatches
        return first, -place.run, place.age

    def _own_places(self) -> list[Alignment]:
        """The best of the request's own text and what stands before it, best first."""
        import numpy as np

        lags, options = self.lags, self._options
        near = np.flatnonzero((lags.runs >= options.anchor) & (lags.mismatches <= self._most))
        # A text of the session ends in a sign that is no token; nothing is copied from there.
        near = near[lags.text[len(lags) - near - 1] != BETWEEN_TEXTS]
        runs = -lags.runs[near]
        if options.rank == "run":
            order = np.lexsort((near, runs))
        else:
            order = np.lexsort((near, runs, lags.decayed[near] if options.rank == "decayed" else lags.mismatches[near]))
        return [
            Alignment(
                decayed=float(lags.decayed[entry]),
                mismatches=int(lags.mismatches[entry]),
                run=int(lags.runs[entry]),
                age=int(entry),
                source=lags.text,
                start=len(lags) - int(entry) - 1,
                period=int(entry) + 1,
                origin="own",
            )
            for entry in near[order[: options.places]]
        ]

    def _corpus_places(self, corpus: NgramIndex, pattern: Sequence[int]) -> list[Alignment]:
        import numpy as np

        options, size = self._options, len(pattern)
        starts, _ = corpus.near(pattern, options.corpus_mismatches)
        starts = starts[starts + size < len(corpus)]
        if not len(starts):
            return []
        text = corpus.text()
        # Youngest token first, so that column j is j tokens before the end.
        differs = (text[starts[:, None] + np.arange(size)] != np.asarray(pattern))[:, ::-1]
        decayed = differs @ options.decay ** np.arange(size) + options.decay**size / (1 - options.decay)
        runs = np.where(differs.any(axis=1), differs.argmax(axis=1), size)
        counts = differs[:, : options.window].sum(axis=1)
        return [
            Alignment(
                float(decayed[i]),
                int(counts[i]),
                int(runs[i]),
                len(self.lags) + i,
                text,
                int(starts[i]) + size,
                None,
                "corpus",
            )
            for i in np.flatnonzero(runs >= options.anchor).tolist()
        ]

    def _copy(self, place: Alignment, length: int) -> list[int]:
        """The tokens that followed `place`, at most `length`."""
        copied: list[int] = place.source[place.start : place.start + length].tolist()
        if self._options.wrap and place.period is not None and place.period < length:
            copied = [copied[i % place.period] for i in range(length)]
        if BETWEEN_TEXTS in copied:
            copied = copied[: copied.index(BETWEEN_TEXTS)]
        if self._options.substitute:
            text = self.lags.text[self._earlier :]
            aligned = min(len(text), place.start, ALIGNED_TOKENS)
            old = place.source[place.start - aligned : place.start].tolist()
            replaced = substitutions(old, text[len(text) - aligned :].tolist())
            copied = [replaced.get(token, token) for token in copied]
        return copied

    def _tree(self, copies: Sequence[tuple[Alignment, Sequence[int]]]) -> Draft:
        """The copies merged where they begin alike; better places first, up to the allowed number of nodes."""
        tokens: list[int] = []
        parents: list[int] = []
        kinds: list[tuple[object, ...]] = []
        known: dict[tuple[int, int], int] = {}
        for rank, (place, copied) in enumerate(copies):
            parent = ROOT
            for distance, token in enumerate(copied):
                node = known.get((parent, token))
                if node is None:
                    if len(tokens) == self._options.nodes:
                        break
                    node = known[parent, token] = len(tokens)
                    tokens.append(token)
                    parents.append(parent)
                    kinds.append((*place.kind, min(rank, 3), min(distance, 4)))
                parent = node
        return Draft(tokens, parents, kinds=kinds) if tokens else EMPTY


def substitutions(old: Sequence[int], new: Sequence[int]) -> Mapping[int, int]:
    """What consistently stands in the place of an old token: seen at least twice, and nothing else ever did, also not the
    token itself. old, new: aligned tokens."""
    seen: dict[int, dict[int, int]] = {}
    for a, b in zip(old, new, strict=True):
        seen.setdefault(a, {}).setdefault(b, 0)
        seen[a][b] += 1
    pairs = ((a, *next(iter(others.items()))) for a, others in seen.items() if len(others) == 1)
    return {a: b for a, b, count in pairs if a != b and b != BETWEEN_TEXTS and count >= SEEN_TWICE}


@dataclass
class LengthByClass:
    """How far to copy, from running means by class of match.

    A class is asked for 1 + ceil(1.5 * mean accepted length) tokens, and for none while its first token is right more rarely
    than a second row costs; every 16th refusal is waived, to keep learning. cost: of a forward by rows.
    """

    rate: ClassVar[float] = 0.1
    retry: ClassVar[int] = 16
    first_guess: ClassVar[tuple[float, float]] = (2.0, 0.5)
    """Mean accepted length and share of right first tokens of a class that was never seen."""

    cost: CostCurve | None = None
    _means: dict[object, tuple[float, float]] = field(default_factory=dict)
    _refused: int = 0

    def length(self, kind: object, most: int, context: int = 0) -> int:
        """How many tokens to propose after a text of `context` tokens; 0 to propose nothing."""
        accepted, right = self._means.get(kind, self.first_guess)
        price = 0.0
        if self.cost is not None:
            cost = self.cost.at(context)
            price = cost(2) / cost(1) - 1
        if right < price:
            self._refused = (self._refused + 1) % self.retry
            if self._refused:
                return 0
        return min(most, 1 + ceil(1.5 * accepted))

    def observe(self, kind: object, accepted: int) -> None:
        """Learn how many tokens of a proposal were accepted."""
        length, right = self._means.get(kind, self.first_guess)
        self._means[kind] = (
            length + self.rate * (accepted - length),
            right + self.rate * ((accepted > 0) - right),
        )
