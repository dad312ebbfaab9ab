"""SWIFT: the target without some of its attentions and feed-forwards drafts; which ones is found out while decoding."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from decodery._lazy import torch
from decodery.engine.method import Exactness, parameter
from decodery.engine.needs import NEXT_TOKENS, MoreThanChains, Requirement
from decodery.errors import MethodUnavailable
from decodery.models.forward import Forward, Rows, Slots
from decodery.speculative.budget import best_chain
from decodery.speculative.draft import EMPTY, ROOT, Draft, Siblings
from decodery.speculative.loop import Drafter, Round, SpeculativeMethod

if TYPE_CHECKING:
    from collections.abc import Hashable

    from torch import Tensor

    from decodery.engine.cost import CostCurve
    from decodery.engine.request import Request
    from decodery.models.forward import Scores
    from decodery.models.scorer import Work
    from decodery.models.sequence import Sequence as CachedSequence
    from decodery.speculative.swift.layer_search import LayerSearch, LayerSet

CONFIDENCES = (0.95, 0.8, 0.5, -1.0)
"""Lower ends of the bands of confidence."""
GREEDY_WIDTHS, SAMPLED_WIDTHS = (3, 5, 8, 10), (1, 3, 5, 10)
"""Nodes per step of the draft in each band."""
SMALL = 1e9
"""Models with fewer multiplications per token have few layers to spare and get other defaults."""
PROBE = 16
"""Where drafting does not pay, one token is drafted every so many positions, to notice when it does."""
PRIOR = 2.0
"""Weight, in observations, of what is assumed of a layer set's acceptance before it drafts."""
MEMORY = 64.0
"""Counts are halved when they reach this, so that old text is forgotten."""
SEARCHING = {"layer_set": "", "optimise": True}
"""Sets are searched for; a stored one, and the one to begin with, are what they are."""
WORTH_TRYING = 1.1
"""Speed-up that drafts without a single wrong token would have to bring, for drafting and the search to be tried at all."""


@dataclass(frozen=True)
class Swift(SpeculativeMethod):
    """The target drafts for itself with some attentions and feed-forwards left out, which costs no training and no memory.
    Which ones can be spared is searched for while decoding. Pays on large models; where it cannot, it decodes plainly."""

    name: ClassVar[str] = "swift"
    title: ClassVar[str] = "SWIFT"
    paper: ClassVar[str] = "Xia et al., On-the-Fly Self-Speculative Decoding, ICLR 2025, arXiv 2410.06916"
    exactness: ClassVar[Exactness] = Exactness.IDENTICAL_TO_SAMPLING
    family: ClassVar[str] = "speculative"
    needs: ClassVar[tuple[Requirement, ...]] = (
        NEXT_TOKENS,
        MoreThanChains("drafts with some of the target's layers"),
    )

    skip_ratio: float | None = parameter(
        None,
        "share of the eligible attentions and feed-forwards left out",
        low=0.0,
        high=1.0,
        auto="0.45; 0.1 below a billion parameters",
        only=SEARCHING,
    )
    layer_set: str = parameter("", "file with a stored set, which is used as it is; empty: search", names="file")
    optimise: bool = parameter(True, "search for a better set while decoding", only={"layer_set": ""})
    whole_layers: bool = parameter(
        False, "leave out attention and feed-forward of a layer together only", only=SEARCHING
    )
    context_window: int = parameter(32, "tokens by which a set is scored", low=1, high=1024, only=SEARCHING)
    opt_interval: int = parameter(1, "rounds per candidate", low=1, high=1024, only=SEARCHING)
    bayes_interval: int = parameter(
        25, "every so many candidates one is of the Gaussian process; 0: none", low=0, only=SEARCHING
    )
    max_opt_iterations: int | None = parameter(
        None,
        "candidates after which the search ends",
        low=1,
        auto="1000; 200 below a billion parameters",
        only=SEARCHING,
    )
    max_tolerance: int | None = parameter(
        None,
        "candidates without a better one after which it ends",
        low=1,
        auto="300; 60 below a billion parameters",
        only=SEARCHING,
    )
    max_score: float | None = parameter(
        None,
        "score beyond which the search ends",
        low=0.0,
        high=1.0,
        auto="0.95; 0.9 below a billion parameters",
        only=SEARCHING,
    )
    stop_threshold: float = parameter(0.8, "drafting ends after a token less likely than this", low=0.0, high=1.0)
    max_steps: int | None = parameter(
        None, "tokens on the main path of a draft", low=1, high=64, auto="25; 6 below a billion parameters"
    )
    top_k: int | None = parameter(
        None, "alternatives per step at most", low=1, high=10, auto="10; 4 below a billion parameters"
    )
    bypass: bool = parameter(True, "decode plainly where drafting does not pay on this machine")
    search_seed: int = parameter(0, "seed of the random candidates", low=0, only=SEARCHING)

    @property
    def adaptive(self) -> bool:
        return self.bypass

    def admit(self, request: Request) -> None:
        self._stored(request)

    def _stored(self, request: Request) -> tuple[LayerSet, float] | None:
        from decodery.speculative.swift.layer_search import LayerSet

        if not self.layer_set:
            return None
        network = request.host.network
        try:
            found, score = LayerSet.read(Path(self.layer_set).expanduser(), network.fingerprint())
            found.layers().indices(network.layers)
        except (OSError, ValueError) as error:
            raise MethodUnavailable(f"swift: the layer set {self.layer_set} cannot be used: {error}.") from None
        return found, score

    def most_nodes(self) -> int:
        return max(self.context_window, (self.max_steps or 25) * (self.top_k or 10))

    def drafter(self, request: Request) -> SkippingDrafter:
        network = request.host.network
        work = network.work
        small = network.layers * work.layer + work.head < SMALL

        def fresh() -> SwiftState:
            from decodery.speculative.swift.layer_search import LayerSearch

            search = LayerSearch(
                network.layers,
                (0.1 if small else 0.45) if self.skip_ratio is None else self.skip_ratio,
                self.bayes_interval,
                self.max_opt_iterations or (200 if small else 1000),
                self.max_tolerance or (60 if small else 300),
                (0.9 if small else 0.95) if self.max_score is None else self.max_score,
                self.search_seed,
                self.whole_layers,
            )
            stored = self._stored(request)
            if stored is not None:
                search.current, search.best_score = stored
            if stored is not None or not self.optimise:
                search.optimising = False
            return SwiftState(search)

        # What is drafted at random for a seed must not depend on other requests, so a sampled request searches alone.
        state = request.remember(("swift", self.spec()), fresh) if request.law.greedy else fresh()
        widths = GREEDY_WIDTHS if request.law.greedy else SAMPLED_WIDTHS
        return SkippingDrafter(
            request,
            state,
            steps=self.max_steps or (6 if small else 25),
            widths=tuple(min(width, self.top_k or (4 if small else 10)) for width in widths),
            threshold=self.stop_threshold,
            window=self.context_window,
            interval=self.opt_interval,
            pay=Pay(request.host.cost(network), work, network.layers) if self.bypass else None,
        )


@dataclass(frozen=True)
class Pay:
    """What drafting without some sublayers costs and brings. cost: of the whole network, by rows."""

    cost: CostCurve
    work: Work
    layers: int

    def at(self, context: int) -> Pay:
        """The same after `context` cached tokens."""
        return replace(self, cost=self.cost.at(context))

    def step(self, chosen: LayerSet) -> float:
        """Seconds of a one-row forward without a set; time is taken to go with multiplications."""
        return self.cost(1) * self._share(len(chosen.attention), len(chosen.mlp))

    def _share(self, attention: int, mlp: int) -> float:
        total = self.layers * self.work.layer + self.work.head
        return 1 - (attention * self.work.attention + mlp * self.work.feed_forward) / total

    def ceiling(self, search: LayerSearch, steps: int) -> float:
        """The speed-up that the set would bring if it were always right; during a search the best set of its size."""
        if not search.optimising:
            return best_chain(1.0, self.cost, self.step(search.current), steps)[1]
        mlp = min(search.size, search.eligible)
        attention = mlp if search.whole_layers else search.size - mlp
        return best_chain(1.0, self.cost, self.cost(1) * self._share(attention, mlp), steps)[1]


class SwiftState:
    """What is kept between the requests of a session: the search, and how often the current set's tokens were right."""

    def __init__(self, search: LayerSearch):
        self.search = search
        self._counted: LayerSet | None = None
        self._right = self._tried = 0.0

    def rate(self) -> float:
        """Estimated chance that a token of the main path is accepted where the one before was."""
        self._start()
        return self._right / self._tried

    def observe(self, chosen: LayerSet, right: int, tried: int) -> None:
        """So many tokens drafted with a set were right."""
        self._start()
        if chosen == self._counted:
            self._right += right
            self._tried += tried
            if self._tried > MEMORY:
                self._right, self._tried = self._right / 2, self._tried / 2

    def _start(self) -> None:
        """Counts are of one set. Before it drafts, its matchness is the best guess; where that is unknown it is believed in,
        since a wrong belief is soon found out and a missed chance is not."""
        if self._counted != self.search.current:
            self._counted = self.search.current
            known = self.search.best_score or 1.0
            self._right, self._tried = known * PRIOR, PRIOR


class SkippingDrafter(Drafter):
    """Drafts in the target's own cache, behind the committed rows, and takes its rows out again.

    steps: longest main path. widths: nodes per step by band of confidence. threshold: drafting ends after a token whose
    probability, before temperature and truncation, is lower. window, interval: of the search. pay: None where drafts are
    made whether they pay or not.
    """

    def __init__(
        self,
        request: Request,
        state: SwiftState,
        *,
        steps: int,
        widths: Sequence[int],
        threshold: float,
        window: int,
        interval: int,
        pay: Pay | None,
    ):
        self._request, self._state, self._steps, self._widths = request, state, steps, widths
        self._threshold, self._window, self._interval, self._pay = threshold, window, interval, pay
        self._sequence: CachedSequence | None = None
        self._rounds = 0
        self._chain: list[int] = []
        self._chosen = state.search.current

    def begin(self, sequence: CachedSequence) -> None:
        self._sequence = sequence

    def propose(self, tokens: Sequence[int], depth: int) -> Draft | Generator[Forward, Scores, Draft]:
        self._chain = []
        self._rounds += 1
        sequence, search = self._sequence, self._state.search
        assert sequence is not None
        if not sequence.length:
            return EMPTY  # the prompt goes through the whole model first
        if self._pay is not None and self._pay.at(len(tokens)).ceiling(search, self._steps) < WORTH_TRYING:
            return EMPTY
        return self._search_and_draft(sequence, tokens, depth)

    def _search_and_draft(
        self, sequence: CachedSequence, tokens: Sequence[int], depth: int
    ) -> Generator[Forward, Scores, Draft]:
        yield from self._search(sequence)
        steps = min(depth, self._steps)
        if self._pay is not None:
            pay = self._pay.at(len(tokens))
            step = pay.step(self._state.search.current)
            if not best_chain(self._state.rate(), pay.cost, step, self._steps)[0]:
                steps = min(steps, 1) if self._request.position % PROBE == 0 else 0
        return (yield from self._grow(sequence, tokens, steps)) if steps else EMPTY

    def _search(self, sequence: CachedSequence) -> Generator[Forward, Scores, None]:
        """Score one candidate on the first tokens of the output: one forward that sees the prompt's rows alone."""
        search, output = self._state.search, self._request.new_tokens[: self._window + 1]
        # The search keeps its own guard on the length: a shorter text has too few tokens to compare.
        if not search.optimising or len(self._request.new_tokens) <= self._window + 1 or self._rounds % self._interval:
            return
        from decodery.speculative.swift.layer_search import matchness

        candidate = search.candidate()
        prompt, fed = len(self._request.prompt), output[:-1]
        mask = torch.zeros(len(fed), sequence.length + len(fed), dtype=torch.bool)
        mask[:, :prompt] = True
        mask[:, sequence.length :] = torch.ones(len(fed), len(fed), dtype=torch.bool).tril_()
        first = sequence.positions[prompt - 1] + 1
        positions = range(first, first + len(fed))
        scores = yield Forward(sequence, fed, positions, mask, Slots.NOWHERE, candidate.layers())
        search.register(candidate, matchness(scores.logits.argmax(dim=-1).tolist(), output[1:]))

    def _grow(self, sequence: CachedSequence, tokens: Sequence[int], steps: int) -> Generator[Forward, Scores, Draft]:
        # The set may be exchanged by another request of the session while this one drafts.
        self._chosen = self._state.search.current
        layers = self._chosen.layers()
        start = sequence.length
        fed = list(tokens[start:])
        drawn: list[int] = []
        parents: list[int] = []
        kinds: list[Hashable] = []
        q: dict[int, Tensor] = {}
        parent = ROOT
        for _ in range(steps):
            scores = yield Forward(sequence, fed, layers=layers, logits=Rows.LAST)
            children, confidence, band = self._children(scores.logits[0], parent, q)
            if not children:
                break
            parents += [parent] * len(children)
            kinds += [("swift", band, rank) for rank in range(len(children))]
            parent = len(drawn)
            drawn += children
            self._chain.append(children[0])
            if confidence < self._threshold or children[0] in self._request.stop_ids:
                break
            fed = [children[0]]
        sequence.truncate(start)
        if self._request.law.greedy or not drawn:
            return Draft(drawn, parents, kinds=kinds)
        return Draft(drawn, parents, q, Siblings.WITHOUT_REPLACEMENT, kinds)

    def _children(self, row: Tensor, parent: int, q: dict[int, Tensor]) -> tuple[list[int], float, int]:
        """The nodes of one step, the first's probability in the raw law, and the band it lies in."""
        request, path = self._request, self._chain
        raw = row.float().softmax(dim=-1)
        if request.law.greedy:
            best = request.law.drafting.scores(row, path).topk(min(max(self._widths), row.shape[0]))
            children = [
                t for t, score in zip(best.indices.tolist(), best.values.tolist(), strict=True) if score > -1e38
            ]
            if not children:
                return [], 0.0, 0
            confidence = float(raw[children[0]])
            band = _band(confidence)
            return children[: self._widths[band]], confidence, band
        from decodery.sampling.noise import Stage

        law = request.law.drafting.log_probabilities(row, path).exp()
        q[parent] = law
        position = request.position + len(path)
        rest = law.clone()
        children = [request.noise.choose(rest, position, Stage.DRAFT, 0)]
        confidence = float(raw[children[0]])
        band = _band(confidence)
        # How many are drawn may depend on the first: given it, the others are judged by what it left, whatever their number.
        for rank in range(1, self._widths[band]):
            rest[children[-1]] = 0
            if not float(rest.sum()) > 0:
                break
            children.append(request.noise.choose(rest, position, Stage.DRAFT, rank))
        return children, confidence, band

    def observe(self, round: Round) -> None:
        right = 0
        for drafted, token in zip(self._chain, round.emitted, strict=False):
            if drafted != token:
                break
            right += 1
        self._state.observe(self._chosen, right, min(right + 1, len(self._chain)))


def _band(confidence: float) -> int:
    return next(band for band, low in enumerate(CONFIDENCES) if confidence > low)
