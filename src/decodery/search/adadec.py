"""AdaDec: greedy decoding that pauses where the law is uncertain, looks ahead from the likeliest tokens, and takes the one
whose continuation is likeliest.

He et al., Towards Better Code Generation: Adaptive Decoding with Uncertainty Guidance, 2025, arXiv 2506.08980.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from decodery._lazy import torch
from decodery.engine.method import Decoding, Exactness, Method, parameter
from decodery.engine.parameters import above
from decodery.models.catalogue import ARTIFACTS
from decodery.models.forward import Forward, Rows
from decodery.sampling.forbidding import FORBIDDEN, highest
from decodery.search.beams import WIDEST, Beam, BeamGroup, Ending, concluded

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.engine.output import Output
    from decodery.engine.request import Request
    from decodery.models.forward import Scores
    from decodery.models.scorer import Scorer
    from decodery.models.sequence import Sequence as CachedSequence

GREEDY = "it is a deterministic rule, which draws nothing"
QWEN = 1.321
"""The threshold that the authors learned for Qwen3-0.6B, the smallest of their models."""


@dataclass(eq=False)
class Continuation:
    """One way in which a candidate goes on. tokens: the candidate and what follows. extension: log probability of those of the
    latter that count, which are `length`. over: the text ends with it."""

    sequence: CachedSequence
    tokens: list[int]
    extension: float = 0.0
    length: int = 0
    over: bool = False


@dataclass(eq=False)
class Branch:
    """A candidate and its likeliest continuations. own: log probability of the candidate. following: the raw scores
    [vocabulary] behind it. asked: steps in which some continuation was scored."""

    token: int
    own: float
    continuations: list[Continuation]
    following: Tensor | None = None
    asked: int = 0

    @property
    def total(self) -> float:
        """Log probability of the candidate and of its likeliest continuation."""
        return self.own + max(one.extension for one in self.continuations)

    @property
    def length(self) -> int:
        """Tokens of the longest continuation."""
        return max(one.length for one in self.continuations)

    @property
    def score(self) -> float:
        """Mean log probability of the candidate and its continuation."""
        return self.total / (self.length + 1)


@dataclass(frozen=True)
class AdaptiveDecoding(Method):
    """Decode greedily while the entropy is low; where it is not, extend each of the likeliest tokens by a few, and commit the
    token of the best mean log probability."""

    name: ClassVar[str] = "adadec"
    title: ClassVar[str] = "AdaDec"
    paper: ClassVar[str] = (
        "He et al., Towards Better Code Generation: Adaptive Decoding with Uncertainty Guidance, 2025, arXiv 2506.08980 "
        "(github SYSUSELab/AdaDec)"
    )
    exactness: ClassVar[Exactness] = Exactness.QUALITY_CHANGING
    family: ClassVar[str] = "search"
    refuses: ClassVar[Mapping[str, str]] = {"temperature": GREEDY}

    threshold: float | None = parameter(
        None,
        "entropy of the model's own law, in nats, from which it pauses; `decodery train adadec-threshold` learns a model's",
        low=0.0,
        auto=f"what was learned for the model, shipped for smollm2-135m; {QWEN}, the authors' for Qwen3-0.6B, for others",
    )
    learned: str = parameter(
        "code", "the texts that the threshold was learned from", choices=("code", "prose"), only={"threshold": None}
    )
    candidates: int = parameter(3, "tokens that are tried", low=1)
    lookahead: int = parameter(5, "most tokens behind each of them", low=0)
    until: str = parameter(
        "end",
        "what ends a text beside its end token; function: a line that is not indented, as behind a function's body",
        choices=("end", "function"),
    )
    mode: str = parameter(
        "engine",
        "engine: a continuation that ends stops there; reference: as in the official code, which goes on adding to its score",
        choices=("engine", "reference"),
    )
    reuse: bool = parameter(True, "the scores behind the token that wins are not computed again", only={"beams": 1})
    beams: int = parameter(
        1,
        "texts that grow side by side, each pausing by itself; its candidates have as many continuations",
        low=1,
        high=WIDEST,
    )
    scale: float = parameter(
        1.0, "what mean log probabilities are multiplied by, which compete with sums", low=0.0, only={"beams": above(1)}
    )

    def caches(self, request: Request) -> list[tuple[Scorer, int]]:
        rows = len(request.prompt) + request.settings.max_new_tokens
        branches = self.beams * (self.candidates * self.beams + (self.beams > 1))
        return [*super().caches(request), *[(request.network, rows + self.lookahead)] * branches]

    def decode(self, request: Request) -> Decoding:
        details = request.statistics.details
        details.update(pauses=[], steps=0, threshold=self._threshold(request))
        return self._single(request) if self.beams == 1 else self._search(request)

    def pauses(self, entropy: float, threshold: float, position: int) -> bool:
        """Whether it pauses before the token of this position."""
        return entropy >= threshold

    def _threshold(self, request: Request) -> float:
        if self.threshold is not None:
            return self.threshold
        fingerprint = request.host.network.fingerprint()
        key = "adadec", fingerprint, self.learned
        found: float | None = request.remember(
            key, lambda: shipped_threshold(fingerprint, self.learned), everywhere=True
        )
        return QWEN if found is None else found

    def _single(self, request: Request) -> Decoding:
        details, sequence = request.statistics.details, request.new_sequence()
        details["reused"] = 0
        yield from request.score_prompt(sequence)
        pending, row = list(request.tokens[sequence.length :]), None
        while True:
            if row is None:
                scores: Scores = yield Forward(sequence, pending, logits=Rows.LAST)
                row = scores.logits[0]
            details["steps"] += 1
            token, following = request.law.likeliest(row), None
            if self.pauses(entropy := _entropy(row), details["threshold"], request.position):
                [branches] = yield from self._look_ahead(request, [(request.output, sequence, row)])
                best = self._paused(request, request.output, branches, entropy)
                token = best.token
                if self.reuse and best.following is not None:
                    sequence, following = best.continuations[0].sequence, best.following
                    sequence.truncate(request.position + 1)
            if request.commit([token], row[None]):
                return
            if self._leaves(request, request.output):
                return
            pending, row = [token], following
            details["reused"] += following is not None

    def _search(self, request: Request) -> Decoding:
        """Several beams. Those that pause offer their candidates by scaled means, the others all tokens by sums."""
        details, sequence, output = request.statistics.details, request.new_sequence(), request.output.fork()
        yield from request.score_prompt(sequence)
        # A greedy law is a point mass; beams compare what it is the greatest of.
        output.law = request.law_with(temperature=1.0)
        ending = Ending(0.0, False, request.settings.max_new_tokens)
        finishes = lambda output: self._leaves(request, output)  # noqa: E731
        group = BeamGroup(self.beams, ending, Beam(output, sequence), len(request.stop_ids), finishes)
        scores = yield Forward(sequence, request.tokens[sequence.length :], logits=Rows.LAST)
        rows = [scores.logits[0]]
        del sequence, output  # who holds a cache makes others copy what they write
        while True:
            request.statistics.rounds += 1
            details["steps"] += 1
            own = [row.float().log_softmax(dim=-1) for row in rows]
            offered = [_log_law(beam.output, row) for beam, row in zip(group.live, rows, strict=True)]
            taken, entropies = list(offered), [_entropy(row) for row in rows]
            position = group.live[0].output.position
            pausing = [
                place for place, entropy in enumerate(entropies) if self.pauses(entropy, details["threshold"], position)
            ]
            found = yield from self._look_ahead(
                request, [(group.live[place].output, group.live[place].sequence, rows[place]) for place in pausing]
            )
            for place, branches in zip(pausing, found, strict=True):
                self._paused(request, group.live[place].output, branches, entropies[place])
                taken[place] = torch.full_like(offered[place], FORBIDDEN)
                for branch in branches:
                    taken[place][branch.token] = self.scale * branch.score
            found.clear()  # who holds a cache makes others copy what they write
            group.choose(own, offered, taken)
            request.considered([beam.output.new_tokens for beam in group.chosen], [beam.total for beam in group.chosen])
            if group.over:
                break
            answers = yield tuple(
                Forward(beam.sequence, beam.output.tokens[-1:], logits=Rows.LAST, joined=place > 0)  # type: ignore[arg-type]
                for place, beam in enumerate(group.live)
            )
            rows = [answer.logits[0] for answer in answers]
        concluded(request, group.finished, self.name)

    def _paused(self, request: Request, output: Output, branches: Sequence[Branch], entropy: float) -> Branch:
        """Tell of a pause, and give the branch of the best score, the first of equals."""
        scores = [branch.score for branch in branches]
        best = branches[scores.index(max(scores))]
        before = output.new_tokens
        request.considered([[*before, *branch.continuations[0].tokens] for branch in branches], scores)
        request.statistics.details["pauses"].append(
            {
                "position": len(request.prompt) + request.statistics.details["steps"] - 1,
                "entropy": entropy,
                "candidates": [branch.token for branch in branches],
                "lengths": [branch.length for branch in branches],
                "asked": max(branch.asked for branch in branches),
                "scores": scores,
                "sums": [branch.total for branch in branches],
                "chosen": best.token,
            }
        )
        return best

    def _look_ahead(
        self, request: Request, places: Sequence[tuple[Output, CachedSequence | None, Tensor]]
    ) -> Generator[tuple[Forward, ...], tuple[Scores, ...], list[list[Branch]]]:
        """The branches of texts of one length, given the sequence of each and the raw scores [vocabulary] behind it."""
        groups = [self._branches(request, *place) for place in places]
        room = min(request.network.context - output.position - 1 for output, _, _ in places) if places else 0
        for _ in range(min(self.lookahead, room)):
            going = [
                one
                for group in groups
                for branch in group
                for one in branch.continuations
                if not one.over or self.mode == "reference"
            ]
            if not going:
                break
            answers = yield tuple(
                Forward(one.sequence, one.tokens[-1:], logits=Rows.LAST, joined=place > 0)
                for place, one in enumerate(going)
            )
            rows = {id(one): answer.logits[0] for one, answer in zip(going, answers, strict=True)}
            for (output, _, _), group in zip(places, groups, strict=True):
                for branch in group:
                    self._extend(request, output, branch, rows)
        return groups

    def _branches(self, request: Request, output: Output, sequence: CachedSequence | None, row: Tensor) -> list[Branch]:
        assert sequence is not None
        logarithms, branches = _log_law(output, row), []
        for token in highest(logarithms, self.candidates).tolist():
            if logarithms[token] > FORBIDDEN:
                first = Continuation(sequence.fork(), [token])
                first.over = self.mode == "engine" and self._ends(request, output, first.tokens)
                branches.append(Branch(token, float(logarithms[token]), [first]))
        return branches

    def _extend(self, request: Request, output: Output, branch: Branch, rows: Mapping[int, Tensor]) -> None:
        """Go on with the likeliest continuations, given the raw scores [vocabulary] behind each that goes on."""
        options: list[tuple[float, Continuation, int | None]] = []
        for one in branch.continuations:
            row = rows.get(id(one))
            if row is None:
                options.append((one.extension, one, None))
                continue
            if branch.following is None:
                branch.following = row
            logarithms = _log_law(output, row, one.tokens)
            options += [
                (one.extension + float(logarithms[token]), one, token)
                for token in highest(logarithms, self.beams).tolist()
                if logarithms[token] > FORBIDDEN
            ]
        branch.asked += any(id(one) in rows for one in branch.continuations)
        taken: set[int] = set()
        branch.continuations = []
        for total, one, token in sorted(options, key=lambda option: -option[0])[: self.beams]:
            if token is None:
                branch.continuations.append(one)
                continue
            sequence = one.sequence.fork() if id(one) in taken else one.sequence
            taken.add(id(one))
            tokens = [*one.tokens, token]
            over = one.over or self._ends(request, output, tokens)
            branch.continuations.append(Continuation(sequence, tokens, total, one.length + (not one.over), over))

    def _ends(self, request: Request, output: Output, tokens: Sequence[int]) -> bool:
        """Whether the text is over with the last of these tokens. The official code knows no end token in its look-ahead."""
        if self.mode == "engine" and tokens[-1] in request.stop_ids:
            return True
        return self.until == "function" and ends_function(_decoded(request, [*output.new_tokens, *tokens]))

    def _leaves(self, request: Request, output: Output) -> bool:
        """End a text that has left the function's body."""
        if self.until == "function" and ends_function(_decoded(request, output.new_tokens), behind=True):
            output.finish("stop")
            return True
        return False


BLANK_LINES = 4


def ends_function(text: str, behind: bool = False) -> bool:
    """Whether the text of a completion has left the function's body: a line that is neither blank nor begins with a space or
    tab, or four blank lines at its end. behind: outside of the look-ahead a last line that ends in "Human" counts too."""
    lines = text.split("\n")
    if any(line.strip() and line[0] not in " \t" for line in lines):
        return True
    if len(lines) >= BLANK_LINES and not any(line.strip() for line in lines[-BLANK_LINES:]):
        return True
    return behind and lines[-1].rstrip().endswith("Human")


def _decoded(request: Request, tokens: Sequence[int]) -> str:
    return request.host.tokenizer.decode(list(tokens), skip_special_tokens=True)


def _log_law(output: Output, row: Tensor, path: Sequence[int] = ()) -> Tensor:
    """Log probabilities [vocabulary] of the processed law, as if it were drawn from. Raises ScoresNotNumbers."""
    scores = output.law.scores(row, path)
    output.law.check(float(scores.max()), row, path)
    return scores.log_softmax(dim=-1)


def shipped_threshold(fingerprint: str, kind: str) -> float | None:
    """The threshold that ships for the network of this fingerprint and texts of this kind, if there is one."""
    for path in sorted(ARTIFACTS.glob("adadec-*.json")):
        card = json.loads(path.read_text("utf-8"))
        if card["fingerprint"] == fingerprint:
            return float(card["metrics"][kind]["threshold"])
    return None


def _entropy(row: Tensor) -> float:
    return float(torch.special.entr(row.double().softmax(dim=-1)).sum())
