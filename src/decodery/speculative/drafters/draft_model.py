"""A smaller model drafts: speculative sampling as first published."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from decodery._lazy import torch
from decodery.engine.method import Exactness, parameter
from decodery.errors import MethodUnavailable
from decodery.models.forward import ALL_LAYERS, Forward, Layers
from decodery.speculative.draft import EMPTY, ROOT, Draft, Siblings
from decodery.speculative.loop import Drafter, Round, SpeculativeMethod

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.engine.cost import CostCurve
    from decodery.engine.job import Job
    from decodery.models.forward import Scores
    from decodery.models.network import Scorer


@dataclass(frozen=True)
class DraftModel(SpeculativeMethod):
    """A smaller model with the same tokenizer proposes tokens, the target verifies them with the rejection rule.
    Without `model`, the target's own first layers stand in, which costs no memory but agrees with it less."""

    name: ClassVar[str] = "draft-model"
    title: ClassVar[str] = "Speculative sampling with a draft model"
    paper: ClassVar[str] = "Leviathan et al., ICML 2023, arXiv 2211.17192; Chen et al., 2023, arXiv 2302.01318"
    exactness: ClassVar[Exactness] = Exactness.IDENTICAL_TO_SAMPLING
    family: ClassVar[str] = "speculative"
    needs: ClassVar[tuple[str, ...]] = ("a smaller model with the target's tokenizer, or the target's first layers",)

    model: str = parameter("", "name, folder or repository of the draft model; empty: the target's first layers")
    layers: int | None = parameter(None, "how many first layers draft", low=1, high=1024, auto="a third of them")
    length: int | None = parameter(4, "tokens drafted per round", low=1, high=32, auto="what pays, from its acceptance")
    width: int = parameter(1, "draws after the last committed token; more than one makes a tree", low=1, high=16)

    @property
    def adaptive(self) -> bool:
        return False  # the length is chosen before drafting, since drafting is what costs

    def admit(self, job: Job) -> None:
        self._network(job)

    def _network(self, job: Job) -> tuple[Scorer, Layers]:
        target = job.host.network
        if not self.model:
            count = max(1, target.layers // 3) if self.layers is None else self.layers
            if count >= target.layers:
                raise MethodUnavailable(
                    f"draft-model: layers={count} leaves nothing to gain, since {target.name} has {target.layers}."
                )
            return target, Layers(0, count)
        if self.layers is not None:
            raise MethodUnavailable("draft-model: give either model or layers; layers are the target's own.")
        network = job.host.companion(self.model)
        if network.vocabulary != target.vocabulary:
            raise MethodUnavailable(
                f"draft-model: {self.model} has {network.vocabulary} tokens and {target.name} has {target.vocabulary}; "
                "a draft model needs the target's own tokenizer."
            )
        return network, ALL_LAYERS

    def drafter(self, job: Job) -> NetworkDrafter:
        network, layers = self._network(job)
        share = len(layers.indices(network.layers)) / network.layers
        curves = (job.host.cost(job.host.network), job.host.cost(network)) if self.length is None else None
        return NetworkDrafter(job, network, layers, self.length, self.width, curves, share)


class NetworkDrafter(Drafter):
    """Draws chains from a network's processed law; in greedy decoding takes its likeliest tokens.

    curves: cost of target and draft network, to choose the length by; share: part of the draft network that runs.
    The draft network's cache follows the committed text: accepted nodes stay, the rest is dropped.
    """

    def __init__(
        self,
        job: Job,
        network: Scorer,
        layers: Layers,
        length: int | None,
        width: int,
        curves: tuple[CostCurve, CostCurve] | None,
        share: float,
    ):
        self._job, self._layers, self._length, self._width = job, layers, length, width
        self._curves, self._share = curves, share
        self._sequence = job.new_sequence(network)
        self._slots: dict[int, int] = {}
        """Node of the current draft -> its row in the draft network's cache."""
        self._start = 0
        self._accepted, self._tried = 2.0, 4.0

    def _depth(self) -> int:
        """The chain length with the most expected tokens per second, (1 - a^(g+1)) / (1 - a) over the round's cost."""
        if self._curves is None:
            assert self._length is not None
            return self._length
        target, own = self._curves
        rate = self._accepted / self._tried
        step = own(1) * self._share
        best, best_rate, expected, gain = 0, 1.0 / target(1), 1.0, 1.0
        for length in range(1, 17):
            gain *= rate
            expected += gain
            per_second = expected / (target(1 + length) + length * step)
            if per_second > best_rate:
                best, best_rate = length, per_second
        # A draft of one now and then keeps the estimate alive.
        return best if best or self._job.position % 16 else 1

    def propose(self, tokens: Sequence[int], depth: int) -> Draft | Generator[Forward, Scores, Draft]:
        return self._grow(tokens, min(depth, self._depth()))

    def _grow(self, tokens: Sequence[int], depth: int) -> Generator[Forward, Scores, Draft]:
        self._start, self._slots = len(tokens), {}
        if depth < 1:
            return EMPTY
        sequence = self._sequence
        drawn: list[int] = []
        parents: list[int] = []
        q: dict[int, Tensor] = {}
        pending = tokens[sequence.length :]
        scores = yield Forward(sequence, pending, layers=self._layers, logits=(len(pending) - 1,))
        frontier = {ROOT: scores.logits[0]}
        for level in range(1, depth + 1):
            fresh: list[int] = []
            for parent, row in frontier.items():
                path = self._path(drawn, parents, parent)
                for token in self._children(parent, row, path, q, self._width if parent == ROOT else 1):
                    # Nothing follows a stop token, so it is not scored.
                    if token not in self._job.stop_ids:
                        fresh.append(len(drawn))
                    drawn.append(token)
                    parents.append(parent)
            if level == depth or not fresh:
                break
            scores = yield self._ask(drawn, parents, fresh, level)
            frontier = dict(zip(fresh, scores.logits, strict=True))
        if self._job.law.greedy:
            return Draft(drawn, parents)
        return Draft(drawn, parents, q, Siblings.WITH_REPLACEMENT)

    def _children(self, parent: int, row: Tensor, path: list[int], q: dict[int, Tensor], count: int) -> list[int]:
        job = self._job
        if job.law.greedy:
            return job.law.scores(row, path).topk(count).indices.tolist()
        law = job.law.log_probabilities(row, path).exp()
        q[parent] = law
        position = job.position + len(path)
        from decodery.sampling.noise import Stage

        # The draft has noise of its own: the verifier's draws must not depend on it. `parent` tells chains apart.
        return [job.noise.choose(law, position, Stage.DRAFT, (parent + 1) * 64 + i) for i in range(count)]

    @staticmethod
    def _path(drawn: list[int], parents: list[int], node: int) -> list[int]:
        path: list[int] = []
        while node != ROOT:
            path.append(drawn[node])
            node = parents[node]
        return path[::-1]

    def _ask(self, drawn: list[int], parents: list[int], fresh: list[int], depth: int) -> Forward:
        """Score the newest level: each node sees the committed text, its ancestors and itself."""
        sequence = self._sequence
        mask = torch.zeros(len(fresh), sequence.length + len(fresh), dtype=torch.bool)
        mask[:, : self._start] = True
        for row, node in enumerate(fresh):
            self._slots[node] = sequence.length + row
            ancestor = node
            while ancestor != ROOT:
                mask[row, self._slots[ancestor]] = True
                ancestor = parents[ancestor]
        positions = [sequence.positions[self._start - 1] + depth] * len(fresh)
        return Forward(sequence, [drawn[node] for node in fresh], positions, mask, layers=self._layers)

    def observe(self, round: Round) -> None:
        accepted = len(round.verdict.path)
        if len(round.draft):
            self._accepted += accepted
            self._tried += accepted + (1 if accepted < max(round.draft.depths()) else 0)
        rows = [self._slots[node] for node in round.verdict.path if node in self._slots]
        if self._sequence.length > self._start:
            self._sequence.keep(rows, self._start)
