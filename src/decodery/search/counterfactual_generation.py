"""What a model had written, had a token been another, all chance being the same.

Chatzi, Corvelo Benz, Straitouri, Tsirtsis & Gomez-Rodriguez, Counterfactual Token Generation in Large Language Models, 2024,
arXiv 2409.17027. The noise is that of the request (`sampling/chance/structural.py`); what is done with it is here.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from decodery._lazy import torch
from decodery.engine.method import Decoding, Exactness, Method, parameter
from decodery.engine.parameters import GIVEN, Where
from decodery.errors import BadParameter, Refused
from decodery.models.forward import Forward, Rows
from decodery.sampling.chance import PlacedNoise, posterior_gumbels
from decodery.sampling.noise import Chance, Noise, Numbers, Stage

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.engine.request import Request
    from decodery.models.forward import Scores
    from decodery.models.scorer import Scorer

AUTO = "auto"
"""An intervention that chooses its token itself."""
AUTOMATIC = Where(lambda value: AUTO in str(value), f"names {AUTO}")
POSTERIOR = ("posterior",)
"""Index of the draws that noise of an observed text is made of."""


@dataclass(frozen=True)
class CounterfactualGeneration(Method):
    """Set tokens at places of the output and go on with the noise that each place has anyway: what is written after it differs
    from the text without the intervention only where the law has changed enough."""

    name: ClassVar[str] = "counterfactual-generation"
    title: ClassVar[str] = "Counterfactual token generation"
    paper: ClassVar[str] = (
        "Chatzi et al., Counterfactual Token Generation in Large Language Models, 2024, arXiv 2409.17027 (CLeaR 2025)"
    )
    exactness: ClassVar[Exactness] = Exactness.QUALITY_CHANGING
    family: ClassVar[str] = "search"
    example: ClassVar[str] = "counterfactual-generation(interventions=2:auto)"

    interventions: str = parameter(
        "",
        "tokens that are set, as place:token+place:token; places of the output from 0, a token's id, or auto: another one that "
        "is likely there",
    )
    factual: int | str = parameter(
        "", "ids of the text as it was, as 5+8+2; what stands before the first intervention is taken from it"
    )
    noise: str = parameter(
        "same",
        "noise after the first intervention: of the request; fresh: another, for comparison; posterior: drawn given the "
        "factual text, where its own is not known",
        choices=("same", "fresh", "posterior"),
    )
    fresh_seed: int = parameter(0, "which fresh noise", only={"noise": "fresh"})
    nucleus: float = parameter(
        0.9, "mass of the likeliest tokens that auto draws from", low=0.0, high=1.0, only={"interventions": AUTOMATIC}
    )
    intervention_seed: int = parameter(42, "seed of what auto draws", only={"interventions": AUTOMATIC})
    forced: str = parameter(
        "together",
        "how the factual beginning is read: in one pass, or token by token as it was written, which rounds alike on every path",
        choices=("together", "singly"),
        only={"factual": GIVEN},
    )

    def check(self) -> None:
        self.places, self.tokens  # noqa: B018 (reading them tells what is wrong with them)
        if self.noise == "posterior" and not self.tokens:
            raise BadParameter(f"{self.name}: noise=posterior needs the text that it is given by; name it as factual.")
        last = max(self.places, default=-1)
        if self.tokens and last >= len(self.tokens):
            raise BadParameter(
                f"{self.name}: there is no place {last} in a factual text of {len(self.tokens)} tokens; the last is "
                f"{len(self.tokens) - 1}."
            )

    @property
    def places(self) -> dict[int, int | None]:
        """Place of the output -> the token that is set there; None: one that is chosen there."""
        found: dict[int, int | None] = {}
        for part in self.interventions.split("+") if self.interventions else ():
            place, _, token = part.partition(":")
            if not (place.isdecimal() and (token.isdecimal() or token == AUTO)):
                raise BadParameter(
                    f"{self.name}: interventions are written as place:token+place:token, such as 4:123+9:{AUTO}, not {part!r}."
                )
            if int(place) in found:
                raise BadParameter(f"{self.name}: interventions set place {int(place)} twice.")
            found[int(place)] = None if token == AUTO else int(token)
        return found

    @property
    def tokens(self) -> list[int]:
        """The factual text."""
        parts = str(self.factual).split("+") if self.factual != "" else []
        if not all(part.isdecimal() for part in parts):
            raise BadParameter(f"{self.name}: factual is written as ids with + between them, not {self.factual!r}.")
        return [int(part) for part in parts]

    def admit(self, request: Request) -> None:
        source, vocabulary = request.settings.chance, request.network.vocabulary
        if source.target_only and self != type(self)():
            raise Refused(f"{self.name} does not run with chance {source.name}: {source.target_only}.")
        if self.noise == "posterior" and not isinstance(request.noise, Numbers):
            raise Refused(f"{self.name}: chance {source.name} has no numbers to draw posterior noise from.")
        for token in (*self.tokens, *(token for token in self.places.values() if token is not None)):
            if token >= vocabulary:
                raise BadParameter(f"{self.name}: there is no token {token} among the {vocabulary} of the model.")
        last = max(self.places, default=-1)
        if last >= request.settings.max_new_tokens:
            raise BadParameter(
                f"{self.name}: place {last} is not written, as max_new_tokens is {request.settings.max_new_tokens}."
            )

    def caches(self, request: Request) -> list[tuple[Scorer, int]]:
        return super().caches(request) * (2 if self.noise == "posterior" else 1)

    def decode(self, request: Request) -> Decoding:
        observed = (yield from self._observed(request)) if self.noise == "posterior" else []
        first = min(self.places, default=0)
        if self.noise == "fresh" and not self.places:
            request.noise = self._fresh(request)
        told: list[dict[str, Any]] = []
        margins: list[float] = []
        request.statistics.details.update(interventions=told, margins=margins)
        sequence = request.new_sequence()
        yield from request.score_prompt(sequence)
        pending, kept = list(request.tokens[sequence.length :]), self.tokens[:first]
        if kept and self.forced == "together":
            rows = range(len(pending) - 1, len(pending) + len(kept) - 1) if request.reads_rows else ()
            scores: Scores = yield Forward(sequence, [*pending, *kept[:-1]], logits=list(rows))
            if request.commit(kept, scores.logits):
                return
            pending, kept = kept[-1:], []
        while True:
            scores = yield Forward(sequence, pending, logits=Rows.LAST)
            row, place = scores.logits[0], len(request.new_tokens)
            if place < len(kept):
                token = kept[place]
            elif place in self.places:
                token, instead = self._intervention(request, row, place)
                told.append({"place": place, "token": token, "instead": instead})
            else:
                token = self._drawn(request, row, observed, place)
                if isinstance(request.noise, PlacedNoise) and not observed and not request.law.greedy:
                    margins.append(request.noise.margin(request.law.probabilities(row), request.position))
            if request.commit([token], scores.logits):
                return
            if place == first and place in self.places and self.noise == "fresh":
                request.noise = self._fresh(request)
            pending = [token]

    def _drawn(self, request: Request, row: Tensor, observed: Sequence[Tensor], place: int) -> int:
        """The token of a place that nobody sets."""
        if not observed or request.law.greedy:
            return request.draw(row)
        law = request.law.log_probabilities(row).double().cpu()
        if place >= len(observed):
            return request.noise.race(law, request.position, Stage.TARGET)
        return int((law + observed[place]).argmax())

    def _fresh(self, request: Request) -> Chance:
        """Noise that has nothing to do with the request's own, and is another for each seed of that."""
        own = request.settings.seed
        assert own is not None
        return request.chance(seed=Noise(own).key(self.fresh_seed, Stage.TARGET, ("fresh",)))

    def _intervention(self, request: Request, row: Tensor, place: int) -> tuple[int, int]:
        """The token that is set, and the one that would stand there otherwise."""
        tokens, token = self.tokens, self.places[place]
        instead = tokens[place] if tokens else request.draw(row)
        return (self._another(request, row, place, instead) if token is None else token), instead

    def _another(self, request: Request, row: Tensor, place: int, instead: int) -> int:
        """A likely token other than this: drawn from the nucleus of the law, or the likeliest where it holds no other."""
        scores = request.law.scores(row).double().cpu()
        scores[instead] = -torch.inf
        if not bool(scores.isfinite().any()):  # the settings leave one token alone
            scores = row.double().cpu()
            scores[instead] = -torch.inf
        likeliest = int(scores.argmax())
        if request.law.greedy:
            return likeliest
        law = request.law.probabilities(row).double().cpu()
        shares, ids = law.sort(descending=True, stable=True)
        inside = ids[shares.cumsum(0) - shares < self.nucleus]
        masses = torch.zeros_like(law)
        masses[inside] = law[inside]
        masses[instead] = 0
        if not float(masses.sum()) > 0:
            return likeliest
        return Noise(self.intervention_seed, request.sample).choose(masses, place, Stage.TARGET)

    def _observed(self, request: Request) -> Generator[Forward, Scores, list[Tensor]]:
        """Noise [vocabulary] of each place, drawn given that the factual text came; none in greedy decoding."""
        if request.law.greedy:
            return []
        tokens, noise, prompt = self.tokens, request.noise, request.prompt
        assert isinstance(noise, Numbers)
        rows = range(len(prompt) - 1, len(prompt) + len(tokens) - 1)
        scores = yield Forward(request.new_sequence(), [*prompt, *tokens[:-1]], logits=list(rows))
        found = []
        for place, (row, token) in enumerate(zip(scores.logits, tokens, strict=True)):
            law = request.law.log_probabilities(row, tokens[:place]).double().cpu()
            if not bool(law[token].isfinite()):
                raise Refused(
                    f"{self.name}: the factual text does not come from this law, which leaves its token {place} no probability."
                )
            numbers = noise.uniforms(len(law) + 1, len(prompt) + place, Stage.TARGET, POSTERIOR)
            found.append(posterior_gumbels(law, token, numbers))
        return found
