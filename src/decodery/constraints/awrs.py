"""Adaptive weighted rejection sampling, and sequential Monte Carlo over texts with its weights."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from decodery._lazy import np, torch
from decodery.constraints.rejection import ESTIMATORS, Drawn, drawn, first_legal
from decodery.engine.memory import Room
from decodery.engine.method import Decoding, Exactness, Method, parameter
from decodery.errors import BadParameter, ConstraintFailed, Refused
from decodery.models.forward import Forward, Rows
from decodery.sampling.noise import Stage
from decodery.sampling.structured.ruled import Ruled

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from decodery.engine.output import Output
    from decodery.engine.request import Request
    from decodery.models.scorer import Scorer
    from decodery.models.sequence import Sequence as CachedSequence
    from decodery.sampling.structured.grammars import Compiled

WEIGHTED = {"proper_weights": True}
MOST = 256
"""Particles."""


@dataclass(eq=False)
class Particle:
    """A text on its way. log_weight: of its importance weight, minus infinity where it is dead."""

    output: Output
    sequence: CachedSequence | None
    log_weight: float = 0.0
    promise: float = 0.0
    """Logarithm of what the critic says of it, which is a part of its weight until it has ended."""

    @property
    def live(self) -> bool:
        """Whether it goes on."""
        return self.output.finish_reason is None and self.log_weight > -math.inf

    def fork(self) -> Particle:
        """Another one that goes on from here."""
        sequence = self.sequence.fork() if self.sequence is not None else None
        return Particle(self.output.fork(), sequence, self.log_weight, self.promise)


class At:
    """The draws of a particle at its next position."""

    def __init__(self, output: Output, number: int):
        self._noise, self._position, self._number = output.noise, output.position, number

    def pick(self, masses: Tensor, index: tuple[int, ...]) -> int:
        """An entry of `masses`, in proportion to them."""
        return self._noise.choose(masses, self._position, Stage.DRAFT, (self._number, *index))

    def accept(self, probability: float, index: tuple[int, ...]) -> bool:
        """True with this probability."""
        return self._noise.accept(probability, self._position, (self._number, *index))


@dataclass(frozen=True)
class AdaptiveWeightedRejection(Method):
    """Draw each token without replacement until structured_outputs allows it, weigh texts by how much it left them, and let
    those that are headed for dead ends make room for others."""

    name: ClassVar[str] = "awrs"
    title: ClassVar[str] = "Adaptive weighted rejection sampling"
    paper: ClassVar[str] = (
        "Lipkin et al., Fast Controlled Generation from Language Models with Adaptive Weighted Rejection Sampling, COLM 2025, "
        "arXiv 2504.05410 (github genlm/genlm-control)"
    )
    exactness: ClassVar[Exactness] = Exactness.APPROXIMATE
    family: ClassVar[str] = "constraints"
    together: ClassVar[bool] = True
    weighs: ClassVar[bool] = True

    particles: int = parameter(8, "texts that are drawn side by side", low=1, high=MOST)
    ess_threshold: float = parameter(
        0.5,
        "texts are drawn anew by their weights where the effective number of them falls below this share; 0: never",
        low=0.0,
        high=1.0,
        only=WEIGHTED,
    )
    resampling: str = parameter(
        "stratified", "how they are drawn anew", choices=("stratified", "multinomial"), only=WEIGHTED
    )
    proper_weights: bool = parameter(
        True, "weigh texts by what the constraint leaves at each token; False: all alike, as masking does"
    )
    estimator: str = parameter(
        "auto",
        "what estimates the weight: one order of tokens (recursive), several passes (geometric), the paper's further orders "
        "(traces), or as the official code chooses (auto)",
        choices=ESTIMATORS,
        only=WEIGHTED,
    )
    max_accepts: int = parameter(2, "passes of the geometric estimator", low=2, high=64, only=WEIGHTED)
    max_rejects: int | None = parameter(
        None, "tokens that may be rejected before a text is given up; auto: all of them", low=1, only=WEIGHTED
    )
    traces: int = parameter(1, "further orders", low=1, high=64, only={"estimator": "traces"})

    def check(self) -> None:
        if self.max_rejects is not None and self.estimator == "traces":
            raise BadParameter(
                f"{self.name}: max_rejects goes with the other estimators; traces reject all that is illegal."
            )
        if self.max_accepts != 2 and self.estimator in ("recursive", "traces"):
            raise BadParameter(f"{self.name}: max_accepts acts with the estimators geometric and auto alone.")

    def admit(self, request: Request) -> None:
        source = request.settings.chance
        if source.target_only:
            raise Refused(f"{self.name} does not run with chance {source.name}: {source.target_only}.")
        constraint: Compiled | None = request.settings.structured_outputs
        rule = None if constraint is None else constraint.constraint.rule
        if rule is not None and rule.weighs and not self.proper_weights:
            raise Refused(f"{self.name} with proper_weights=False weighs all texts alike, and {rule.called} does not.")
        if request.law.greedy:
            raise Refused(f"{self.name} draws its texts, and at temperature 0 all are one; set a temperature.")
        if request.n > self.particles:
            raise Refused(
                f"{self.name} gives at most as many texts as particles, which are {self.particles}, and n is {request.n}."
            )

    def caches(self, request: Request) -> list[tuple[Scorer, int]]:
        rows = len(request.prompt) + request.settings.max_new_tokens
        return [(request.network, rows), *[Room(request.network, rows, len(request.prompt))] * self.particles]  # type: ignore[list-item]

    def decode(self, request: Request) -> Decoding:
        constraint: Compiled | None = request.settings.structured_outputs
        sequence = request.new_sequence()
        yield from request.score_prompt(sequence)
        scores = yield Forward(sequence, request.tokens[sequence.length :], logits=Rows.LAST)
        first = request.output.fork()
        # The law of the other settings; the constraint is asked about single tokens instead.
        first.law = request.law_with(structured_outputs=None)
        particles = [Particle(first.fork(), sequence.fork()) for _ in range(self.particles)]
        del sequence
        rows = [scores.logits[0]] * self.particles
        details = request.statistics.details
        details.update(questions=0, resampled=0)
        while True:
            request.statistics.rounds += 1
            live = [number for number, one in enumerate(particles) if one.live]
            for number, row in zip(live, rows, strict=True):
                details["questions"] += self._step(request, particles[number], number, row, constraint)
            if all(one.log_weight == -math.inf for one in particles):
                raise ConstraintFailed(
                    f"none of the {self.particles} texts of {self.name} can become what structured_outputs wants; give more "
                    "particles, more max_new_tokens, or say in the prompt what is wanted."
                )
            if any(one.live for one in particles) and self._scarce(particles):
                mean = mean_log_weight(particles)
                chosen = drawn_by_weight(request, particles, self.resampling, len(particles))
                particles = [particles[number].fork() for number in chosen]  # finished ones take part
                for one in particles:
                    one.log_weight = mean
                details["resampled"] += 1
            live = [number for number, one in enumerate(particles) if one.live]
            if not live:
                break
            asks = []
            for place, number in enumerate(live):
                own = particles[number].sequence
                assert own is not None
                asks.append(Forward(own, particles[number].output.tokens[-1:], logits=Rows.LAST, joined=place > 0))
            answers = yield tuple(asks)
            rows = [answer.logits[0] for answer in answers]
        self._concluded(request, particles)

    def _step(self, request: Request, particle: Particle, number: int, row: Tensor, constraint: Compiled | None) -> int:
        """Draw a particle's next token, from raw scores [vocabulary], and weigh it. How often the constraint was asked."""
        output = particle.output
        law = output.law.probabilities(row).double()
        law /= law.sum()
        tokens = tuple(output.new_tokens)

        def legal(token: int) -> bool:
            if constraint is None:
                return True
            return constraint.may_end(tokens) if token in request.stop_ids else constraint.may_follow(tokens, token)

        ends = sorted(request.stop_ids)
        if output.remaining == 1 and constraint is not None and ends:
            # There is no room for more: the text ends here, and weighs what ending weighs.
            left = torch.zeros_like(law)
            left[ends] = law[ends]
            mass = float(left.sum()) if constraint.may_end(tokens) else 0.0
            found = Drawn(At(output, number).pick(left, (2,)) if mass > 0 else None, mass, 1)
        elif self.proper_weights:
            found = drawn(
                law, legal, At(output, number), self.estimator, self.max_accepts, self.max_rejects, self.traces
            )
        else:
            found = first_legal(law, legal, At(output, number))
        if found.token is None or found.weight <= 0:
            particle.log_weight, particle.sequence = -math.inf, None
            return found.questions
        particle.log_weight += math.log(found.weight)
        if output.commit([found.token], row[None], rounds=0):
            particle.sequence = None
        if isinstance(constraint, Ruled) and constraint.rule.weighs:
            self._valued(particle, constraint, request.stop_ids)
        return found.questions

    def _valued(self, particle: Particle, constraint: Ruled, stop_ids: Collection[int]) -> None:
        """Put what a beginning promises in the place of what it promised a token before, and of a text that has ended what it
        is worth. So the weight of a text is unbiased whatever the critic says, which only steers the drawing anew; without that
        it is not asked."""
        tokens = tuple(particle.output.new_tokens)
        if tokens and tokens[-1] in stop_ids:
            tokens = tokens[:-1]
        if particle.output.finish_reason is not None:
            particle.log_weight += logarithm(constraint.weight(tokens)) - particle.promise
        elif self.ess_threshold > 0:
            promise = logarithm(constraint.promise(tokens))
            particle.log_weight += promise - particle.promise
            particle.promise = promise

    def _scarce(self, particles: Sequence[Particle]) -> bool:
        """Whether few texts carry most of the weight: the square of its sum over the sum of its squares is how many."""
        weights = relative(particles)
        return bool(weights.sum() ** 2 / (weights**2).sum() < self.ess_threshold * len(particles))

    def _concluded(self, request: Request, particles: Sequence[Particle]) -> None:
        """Give all texts with their weights where as many are wanted; else texts drawn by weight, each of the mean weight."""
        mean = mean_log_weight(particles)
        request.statistics.details.update(
            log_mass=mean,
            particles=[
                {"text": one.output.text, "tokens": one.output.new_tokens, "log_weight": one.log_weight}
                for one in particles
            ],
        )
        if request.n == len(particles):
            request.conclude([(one.output, math.exp(one.log_weight)) for one in particles])
            return
        chosen = drawn_by_weight(request, particles, "stratified", request.n, (1,))
        request.conclude([(particles[number].output.fork(), math.exp(mean)) for number in chosen])


def logarithm(worth: float) -> float:
    """That of 0 is minus infinity."""
    return math.log(worth) if worth > 0 else -math.inf


def drawn_by_weight(
    request: Request, particles: Sequence[Particle], way: str, count: int, index: tuple[int, ...] = ()
) -> list[int]:
    """The numbers of `count` particles, drawn by their weights, some perhaps several times. index: of the draws' addresses."""
    position = max(one.output.position for one in particles)
    weights = relative(particles)
    parts = strata(torch.from_numpy(weights / weights.sum()), way, count)
    return [request.noise.choose(part, position, Stage.ORDER, (*index, place)) for place, part in enumerate(parts)]


def relative(particles: Sequence[Particle]) -> NDArray[np.float64]:
    """The weights, the largest being 1."""
    logarithms = np.array([one.log_weight for one in particles])
    return np.asarray(np.exp(logarithms - logarithms.max()))


def mean_log_weight(particles: Sequence[Particle]) -> float:
    """The logarithm of the mean weight: of the mass of the texts that the constraint allows, estimated without bias."""
    largest = max(one.log_weight for one in particles)
    return largest + math.log(float(relative(particles).mean()))


def strata(shares: Tensor, way: str, count: int) -> list[Tensor]:
    """The masses that each of `count` draws is drawn from, such that each entry is drawn by its share on the average.
    Stratified: the j-th from the j-th part of the shares laid end to end, so that the numbers vary less."""
    if way == "multinomial":
        return [shares] * count
    ends = shares.cumsum(0)
    starts = ends - shares
    return [(ends.clamp(max=(j + 1) / count) - starts.clamp(min=j / count)).clamp(min=0) for j in range(count)]
