"""DEL: the target's first layers draft, its others verify; where to exit and how far to draft follows the text."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from decodery._lazy import torch
from decodery.engine.method import Exactness, parameter
from decodery.engine.needs import NEXT_TOKENS, Artifact, MoreThanChains, Requirement, Taps
from decodery.errors import BadParameter, MethodUnavailable
from decodery.models.forward import Forward, Layers, Rows, Scores
from decodery.speculative.del_.exit_choice import PLAIN_INTERVAL, ExitStatistics, Price
from decodery.speculative.draft import EMPTY, Draft, Siblings
from decodery.speculative.loop import Drafter, Round, SpeculativeMethod, whole_pass

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.engine.request import Request
    from decodery.models.scorer import Head
    from decodery.models.sequence import Sequence as CachedSequence
    from decodery.speculative.del_.exits import ExitAdapters

FORBIDDEN = float("-inf")
CHOOSING = ({"exit": None}, {"length": None})
"""Exits are watched, so that one of them or a length can be chosen."""


@dataclass(frozen=True)
class DynamicExit(SpeculativeMethod):
    """The target's first layers draft and the others verify, on one cache. Every verified row shows what each exit would
    have drafted, and the exit and length with the most tokens per layer draft next. Wants exits that were trained."""

    name: ClassVar[str] = "del"
    title: ClassVar[str] = "DEL: dynamic exit layer"
    paper: ClassVar[str] = "Entezari Zarch et al., COLM 2025, arXiv 2504.05598; LayerSkip, arXiv 2404.16710"
    exactness: ClassVar[Exactness] = Exactness.IDENTICAL_TO_SAMPLING
    family: ClassVar[str] = "speculative"
    refuses: ClassVar[Mapping[str, str]] = {
        "target": "its later layers go on from the hidden rows of earlier ones, which several members together do not have"
    }
    needs: ClassVar[tuple[Requirement, ...]] = (
        NEXT_TOKENS,
        MoreThanChains("drafts with the target's first layers"),
        Taps(),
        Artifact("a model trained for early exit, or exit adapters (shipped for smollm2-135m)"),
    )

    exit: int | None = parameter(
        None, "draft with this many layers always", low=1, high=1024, auto="by tokens per layer"
    )
    length: int | None = parameter(None, "tokens drafted per round", low=0, high=64, auto="by `policy`")
    policy: str = parameter(
        "threshold",
        "what ends a draft: a token less likely than the exit's threshold, or the length with the most tokens per layer",
        choices=("threshold", "fixed"),
        only={"length": None},
    )
    max_draft: int = parameter(18, "tokens drafted per round at most", low=1, high=64, only={"length": None})
    exits: str | int = parameter(
        "auto", "layers after which to exit, as 4+5+10; auto: those with adapters, else all", only={"exit": None}
    )
    adapters: str = parameter(
        "auto", "folder of exit adapters; auto: those shipped for model and exits; off: the model's own head"
    )
    omega: float = parameter(0.95, "what a round leaves of the older statistics", low=0.0, high=1.0, only=CHOOSING)
    context: int = parameter(32, "prompt positions that count in the first round", low=0, high=4096, only=CHOOSING)
    cost: str = parameter(
        "measured",
        "what tokens are divided by: layers alone, as published, or also heads and rows on this machine's cost curve",
        choices=("layers", "measured"),
        only=CHOOSING,
    )
    bypass: bool = parameter(True, "decode plainly where that has the most tokens per layer", only={"length": None})
    clip: bool = parameter(True, "do not count what was drafted after a wrong token", only=CHOOSING)

    @property
    def adaptive(self) -> bool:
        return False  # the length is chosen before drafting, since drafting is what costs

    def admit(self, request: Request) -> None:
        adapters = self._adapters(request)
        self._spoken(self._exits(request, adapters), adapters)

    def _adapters(self, request: Request) -> ExitAdapters | None:
        """The exit adapters, read once. Raises MethodUnavailable where they are not there, or are of another model."""
        if self.adapters == "off":
            return None
        from decodery.speculative.del_.exits import ExitAdapters, shipped

        fingerprint = request.host.network.fingerprint()

        def read() -> ExitAdapters | None:
            folder = shipped(fingerprint) if self.adapters == "auto" else Path(self.adapters).expanduser()
            return None if folder is None else ExitAdapters.read(folder)

        found = request.remember(("exit adapters", self.adapters, fingerprint), read, everywhere=True)
        if found is not None and found.fingerprint != fingerprint:
            raise MethodUnavailable(
                f"del: the adapters in {self.adapters} were trained for the model {found.fingerprint}, "
                f"and {request.host.network.name} is {fingerprint}."
            )
        return found

    def _exits(self, request: Request, adapters: ExitAdapters | None) -> tuple[int, ...]:
        """The eligible exits, ascending. Raises MethodUnavailable or BadParameter."""
        network = request.host.network
        exits: tuple[int, ...]
        if self.exit is not None:
            exits = (self.exit,)
        elif self.exits == "auto":
            exits = adapters.exits if adapters else tuple(range(1, network.layers))
        else:
            try:
                exits = tuple(sorted({int(part) for part in str(self.exits).split("+")}))
            except ValueError:
                raise BadParameter(f"del: exits are written as 4+5+10, not {self.exits!r}.") from None
        last = network.layers if self.exit is not None else network.layers - 1
        if not exits or not 1 <= exits[0] <= exits[-1] <= last:
            raise MethodUnavailable(
                f"del: {network.name} has {network.layers} layers, so one can exit after 1 to {network.layers - 1} of them, "
                f"not after {'+'.join(map(str, exits)) or 'none'}."
            )
        return exits

    def _spoken(self, exits: tuple[int, ...], adapters: ExitAdapters | None) -> ExitAdapters | None:
        """The adapters, where they are for all these exits; what ships with decodery steps back for other exits."""
        if adapters is None or set(exits) <= set(adapters.exits):
            return adapters
        if self.adapters == "auto":
            return None
        raise MethodUnavailable(
            f"del: the adapters in {self.adapters} are for the exits {'+'.join(map(str, adapters.exits))}, "
            f"not for {'+'.join(map(str, exits))}."
        )

    def most_nodes(self) -> int:
        return max(self.length or 0, self.max_draft) + 1

    def drafter(self, request: Request) -> ExitDrafter:
        network = request.host.network
        adapters = self._adapters(request)
        exits = self._exits(request, adapters)
        trained = self._spoken(exits, adapters)
        speech = request.remember(
            ("exit head", self.adapters, trained is not None, network.name),
            lambda: Speech(network.head(None if trained is None else trained.tokens), trained, network.vocabulary),
            everywhere=True,
        )
        dynamic = self.exit is None or self.length is None
        return ExitDrafter(request, self, speech, exits, self._price(request, trained, len(exits)) if dynamic else None)

    def _price(self, request: Request, adapters: ExitAdapters | None, exits: int) -> Price:
        network = request.host.network
        if self.cost == "layers":
            return Price(network.layers)
        work = network.work
        full = work.head / work.layer
        draft = full
        if adapters is not None:
            down, up = next(iter(adapters.weights.values()))
            draft = full * len(adapters.tokens) / network.vocabulary + (down.numel() + up.numel()) / work.layer
        return Price(network.layers, draft, full, exits, request.host.cost(network))


@dataclass(frozen=True)
class Speech:
    """How an exit speaks. head: of the whole vocabulary, or of the adapters' tokens."""

    head: Head
    adapters: ExitAdapters | None
    vocabulary: int

    def logits(self, rows: dict[int, Tensor]) -> Tensor:
        """Scores [exits * n, tokens spoken] of rows [n, hidden] of several exits, one exit after the other."""
        if self.adapters is None:
            return self.head(torch.cat(list(rows.values())))
        return self.head(torch.cat([self.adapters.apply(exit, part) for exit, part in rows.items()]))

    def whole(self, row: Tensor) -> Tensor:
        """A row of scores over the whole vocabulary; what is never spoken is impossible."""
        if self.adapters is None:
            return row
        scores = torch.full((self.vocabulary,), FORBIDDEN, device=row.device)
        scores[self.adapters.tokens.to(row.device)] = row
        return scores

    def ids(self, places: Tensor) -> Tensor:
        """Token ids of places in a row of scores."""
        return places if self.adapters is None else self.adapters.tokens.to(places.device)[places]


class ExitDrafter(Drafter):
    """Drafts with the first layers in the target's own cache; `score` takes the same rows through the others.

    During a round the rows of the draft stand in the cache with the keys and values of the first layers alone. The other
    layers write theirs when they verify, before they read them; the loop then keeps the accepted rows, whole in all layers.
    price: None where neither exit nor length is chosen.
    """

    def __init__(
        self, request: Request, method: DynamicExit, speech: Speech, exits: Sequence[int], price: Price | None
    ):
        self._request, self._method, self._speech, self._price = request, method, speech, price
        self.statistics = ExitStatistics(exits, method.omega)
        self._exit, self._length = exits[0], 1 if method.length is None else method.length
        self._first = True
        self._plain_rounds = 0
        self._sequence: CachedSequence | None = None
        self._rows: dict[int, list[Tensor]] = {}
        """Tap -> rows of the layers that have run, of every row of the round."""
        self._drafted: list[int] = []
        self._shadows: tuple[Tensor, Tensor] | None = None
        """Match and confidence [exits, n] of the round's positions."""
        self._before = 0
        """How many of those positions lie in the prompt."""

    def begin(self, sequence: CachedSequence) -> None:
        self._sequence = sequence

    def propose(self, tokens: Sequence[int], depth: int) -> Draft | Generator[Forward, Scores, Draft]:
        method = self._method
        self._rows, self._drafted = {}, []
        length = method.max_draft if method.policy == "threshold" else self._length
        if method.length is not None:
            length = method.length
        elif self._first:
            length = 1
        if method.bypass and method.length is None and self._length == 0:
            length = 0
        return self._grow(tokens, min(length, depth)) if min(length, depth) > 0 else EMPTY

    def _grow(self, tokens: Sequence[int], length: int) -> Generator[Forward, Scores, Draft]:
        request, method, exit = self._request, self._method, self._exit
        assert self._sequence is not None
        threshold = math.nan
        if method.policy == "threshold" and method.length is None and not self._first:
            threshold = self.statistics.threshold(exit)
        q: dict[int, Tensor] = {}
        fed = list(tokens[self._sequence.length :])
        while len(self._drafted) < length:
            yield from self._lower(fed)
            token, sure = self._choose(self._speak(), q)
            if token is None:
                break
            self._drafted.append(token)
            if token in request.stop_ids or sure < threshold:
                break
            fed = [token]
        if not self._drafted:  # the law forbids all that an exit can say: the rows of the first layers are of no use
            self._sequence.truncate(self._sequence.length - len(fed))
            self._rows = {}
            return EMPTY
        parents = list(range(-1, len(self._drafted) - 1))
        kinds = [("exit", exit)] * len(parents)
        if request.law.greedy:
            return Draft(list(self._drafted), parents, kinds=kinds)
        return Draft(list(self._drafted), parents, q, Siblings.WITH_REPLACEMENT, kinds)

    def _lower(self, fed: Sequence[int]) -> Generator[Forward, Scores, None]:
        """Run the first layers on the newest tokens and keep the rows that are needed later."""
        exit = self._exit
        assert self._sequence is not None
        taps = {other - 1 for other in self.statistics.exits if other <= exit} | {exit - 1}
        ask = Forward(self._sequence, fed, layers=Layers(0, exit), taps=tuple(sorted(taps)), logits=Rows.NONE)
        scores = yield ask
        for tap, rows in scores.hidden.items():
            self._rows.setdefault(tap, []).append(rows)

    def _speak(self) -> Tensor:
        """What the exit says after the newest row."""
        self._request.statistics.count(f"{self._request.host.network.name} (exit head)", 1, 0)
        return self._speech.logits({self._exit: self._rows[self._exit - 1][-1][-1:]})[0]

    def _choose(self, row: Tensor, q: dict[int, Tensor]) -> tuple[int | None, float]:
        """The next drafted token and its probability in the exit's raw law; no token where all are forbidden."""
        request, path = self._request, self._drafted
        whole = self._speech.whole(row)
        scores = request.law.drafting.scores(whole, path)
        if not float(scores.max()) > FORBIDDEN:
            return None, 0.0
        if request.law.greedy:
            token = int(scores.argmax())
        else:
            from decodery.sampling.noise import Stage

            law = request.law.drafting.log_probabilities(whole, path).exp()
            q[len(path) - 1] = law
            token = request.noise.choose(law, request.position + len(path), Stage.DRAFT)
        return token, float((whole[token] - row.logsumexp(dim=-1)).exp())

    def score(
        self, sequence: CachedSequence, pending: Sequence[int], draft: Draft
    ) -> Generator[Forward, Scores, Scores]:
        watching = self._watching(len(draft))
        taps = tuple(exit - 1 for exit in self.statistics.exits if exit <= sequence.owner.layers) if watching else ()
        count, last = len(pending) + len(draft), len(pending) - 1
        self._before = min(last, self._method.context) if self._first and watching else 0
        wanted = range(last - self._before, count)
        if not len(draft):
            ask = whole_pass(sequence, pending, draft, taps)
            scores = yield Forward(ask.sequence, ask.tokens, taps=taps, logits=wanted)
            hidden = dict(scores.hidden)
        else:
            # The last drafted token goes through the first layers, too: the target's law after it is needed.
            yield from self._lower([draft.tokens[-1]])
            scores, hidden = yield from self._upper(sequence, count, taps, wanted)
        if watching:
            rows = {exit: hidden[exit - 1][wanted.start :] for exit in self.statistics.exits}
            self._watch(rows, scores.logits)
        else:
            self._shadows = None
        self._first = False
        return Scores(scores.logits[self._before :])

    def _upper(
        self, sequence: CachedSequence, count: int, taps: Sequence[int], wanted: range
    ) -> Generator[Forward, Scores, tuple[Scores, dict[int, Tensor]]]:
        """Take the round's rows, which the first layers have seen, through the others."""
        exit = self._exit
        hidden = {tap: torch.cat(rows) for tap, rows in self._rows.items()}
        entering = hidden[exit - 1]
        if exit == sequence.owner.layers:  # nothing is left to run but the head
            return Scores(sequence.owner.head()(entering[wanted.start :])), hidden
        first = sequence.length - count
        scores = yield Forward(
            sequence,
            entering,
            slots=range(first, first + count),
            layers=Layers(exit),
            taps=tuple(tap for tap in taps if tap >= exit),
            logits=wanted,
        )
        return scores, {**hidden, **scores.hidden}

    def _watching(self, drafted: int) -> bool:
        """Whether this round's rows are shown to all exits."""
        if self._price is None:
            return False
        if drafted:
            self._plain_rounds = 0
            return True
        self._plain_rounds += 1
        return self._first or self._plain_rounds % PLAIN_INTERVAL == 0

    def _watch(self, rows: dict[int, Tensor], logits: Tensor) -> None:
        """What each exit would have drafted at each position of the round, held against the target's likeliest token."""
        exits = len(rows)
        shadows = self._speech.logits(rows)
        self._request.statistics.count(f"{self._request.host.network.name} (exit head)", shadows.shape[0], 0)
        best = shadows.max(dim=-1)
        confidence = (best.values - shadows.logsumexp(dim=-1)).exp().view(exits, -1)
        match = self._speech.ids(best.indices).view(exits, -1) == logits.argmax(dim=-1)[None]
        self._shadows = match.cpu(), confidence.cpu()

    def observe(self, round: Round) -> None:
        if self._shadows is None or self._price is None:
            return
        match, confidence = self._shadows
        if self._method.clip:
            # What comes after a refused token was computed in a context that is not the text.
            kept = self._before + len(round.verdict.path) + 1
            match, confidence = match[:, :kept], confidence[:, :kept]
        self.statistics.update(match, confidence)
        method = self._method
        lengths = range(method.max_draft) if method.length is None else (method.length,)
        exit, length = self.statistics.select(self._price.at(len(self._request.tokens)), lengths)
        self._exit = exit if method.exit is None else method.exit
        if method.length is None:
            self._length = length if method.bypass or length else 1
