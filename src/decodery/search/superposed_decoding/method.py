"""Superposed decoding: several drafts of a short text from one row per step.

What enters the network is the mean of the drafts' last tokens, so all of them are continued by one law; counts of n-grams,
which know each draft's own context, say what fits which draft.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from decodery._lazy import np, torch
from decodery.engine.corpus import read_corpus
from decodery.engine.method import Decoding, Exactness, Method, parameter
from decodery.engine.parameters import not_one_of
from decodery.errors import BadInput, BadParameter, MethodUnavailable, Refused
from decodery.models.forward import Forward, Rows
from decodery.sampling.forbidding import highest

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from decodery.engine.output import Output
    from decodery.engine.request import Request
    from decodery.models.owner import Owner
    from decodery.search.superposed_decoding.ngrams import NgramCounts

DRAWS_NOTHING = "drafts are not drawn; leave it out, and tau says how sharp the law is that they are chosen by"
SHARED_ROWS = "its rows follow a mixture of drafts and are no draft's own; score the texts with `LanguageModel.score`"
COUNTED = {"ngrams": not_one_of("none")}
"""There are n-grams."""


@dataclass(frozen=True, eq=False)
class SuperposedText:
    """A text on its way. score: the sum over its tokens of what they were chosen by, in nats."""

    output: Output
    score: float

    @property
    def mean(self) -> float:
        """The score per token."""
        return self.score / len(self.output.new_tokens)


@dataclass(frozen=True)
class SuperposedDecoding(Method):
    """Several short continuations for the passes of one: their last tokens enter the network as one mixture, and all are
    continued by the one law that comes out, together with n-gram counts of each draft's own last tokens."""

    name: ClassVar[str] = "superposed-decoding"
    title: ClassVar[str] = "Superposed decoding"
    paper: ClassVar[str] = (
        "Shen et al., Superposed Decoding: Multiple Generations from a Single Autoregressive Inference Pass, NeurIPS 2024, "
        "arXiv 2405.18400 (github RAIVNLab/SuperposedDecoding)"
    )
    exactness: ClassVar[Exactness] = Exactness.APPROXIMATE
    family: ClassVar[str] = "search"
    together: ClassVar[bool] = True
    refuses: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("temperature", "top_k", "top_p", "min_p"), DRAWS_NOTHING),
        "logprobs": SHARED_ROWS,
    }

    drafts: int = parameter(
        3, "texts that are written side by side; 1 without n-grams is greedy decoding", low=1, high=64
    )
    tau: float = parameter(0.06, "temperature of the law, applied before tokens are kept", low=0.001, high=10.0)
    tokens: int | None = parameter(
        None, "likeliest tokens that are kept, at least as many as drafts", low=1, auto="three for each draft"
    )
    ngrams: str = parameter(
        "none",
        "whose runs of tokens are counted: nobody's, the prompt's, or a file's",
        choices=("none", "prompt", "corpus"),
    )
    corpus: str = parameter("", "a UTF-8 text file, which is counted once", only={"ngrams": "corpus"}, names="file")
    alpha: float = parameter(
        0.54, "weight of the n-grams against the law, in logarithms; 0: none", low=0.0, high=1.0, only=COUNTED
    )
    weights: float | str = parameter(
        "0.01x0.04x0.15x0.18x0.12",
        "of runs of 2, 3, … tokens, joined by x; they need not sum to 1",
        only=COUNTED,
    )
    penalty: float = parameter(
        200.0, "nats taken off all tokens of a draft of which no n-gram knows any", low=0.0, only=COUNTED
    )
    first: str = parameter(
        "paper",
        "what chooses the first tokens: the law alone, or, as in the official code, the n-grams too",
        choices=("paper", "code"),
        only=COUNTED,
    )

    def check(self) -> None:
        if self.tokens is not None and self.tokens < self.drafts:
            raise BadParameter(
                f"{self.name}: tokens must be at least drafts, which are {self.drafts}, so that each begins with another one; "
                f"it is {self.tokens}."
            )
        if self.ngrams == "corpus" and not self.corpus:
            raise BadParameter(f"{self.name}: ngrams=corpus counts a text; name its file with corpus=.")
        if not self.run_weights or any(not 0 <= weight < math.inf for weight in self.run_weights):
            raise BadParameter(
                f"{self.name}: weights are numbers of at least 0 joined by x, as in 0.1x0.4, not {self.weights!r}."
            )

    @property
    def run_weights(self) -> tuple[float, ...]:
        """Of runs of 2, 3, … tokens; none where they are no numbers."""
        try:
            return tuple(float(part) for part in str(self.weights).split("x"))
        except ValueError:
            return ()

    def admit(self, request: Request) -> None:
        if request.n > self.drafts:
            raise Refused(
                f"{self.name} gives at most as many texts as drafts, which are {self.drafts}, and n is {request.n}."
            )
        try:
            request.network.embed(torch.zeros(1, dtype=torch.long))
        except ValueError as error:
            raise MethodUnavailable(f"{self.name} feeds mixtures of tokens, but {error}.") from error
        self._counted(request)

    def decode(self, request: Request) -> Decoding:
        counts = self._counted(request)
        sequence = request.new_sequence()
        yield from request.score_prompt(sequence)
        root = request.output.fork()
        # A greedy law is a point mass; drafts are what it is the greatest of.
        root.law = request.law_with(temperature=1.0)
        live, finished = [SuperposedText(root, 0.0)], list[SuperposedText]()
        fed: list[int] | Tensor = request.tokens[sequence.length :]
        while live and live[0].output.finish_reason is None:
            scores = yield Forward(sequence, fed, logits=Rows.LAST)
            request.statistics.rounds += 1
            begins = live[0].output is root
            alone = begins and self.first == "paper"
            chosen = self._continued(live, scores.logits[0], None if alone else counts, bool(finished))
            live = []
            # A single draft ends where it ends: a second candidate would go on in its place.
            for draft, token, score in chosen[: self.drafts if alone or self.drafts == 1 else 2 * self.drafts]:
                output = draft.output.fork()
                output.commit([token], scores.logits, rounds=0)
                over = output.finish_reason == "stop"
                if over or len(live) < self.drafts:
                    (finished if over else live).append(SuperposedText(output, score))
            kept = [*live, *finished]
            request.considered([draft.output.new_tokens for draft in kept], [draft.score for draft in kept])
            finished = sorted(finished, key=lambda draft: -draft.score)[: self.drafts]
            if live:
                fed = mixed(sequence.owner, live)
        self._concluded(request, [*live, *finished])

    def _continued(
        self, live: Sequence[SuperposedText], row: Tensor, counts: NgramCounts | None, may_end: bool
    ) -> list[tuple[SuperposedText, int, float]]:
        """All continuations of the drafts by a kept token, with the score that each would have, best first; among equals those
        of earlier drafts, then those of lower tokens.

        row: [vocabulary] raw scores. may_end: there are finished texts, so that nothing need go on. Raises ScoresNotNumbers.
        """
        alike = not live[0].output.law.steps  # then the law is the same for all
        laws = [self._kept(live[0].output, row)] * len(live) if alike else [self._kept(d.output, row) for d in live]
        if all(len(ids) == 0 for ids, _ in laws) and not may_end:
            live[0].output.law.check(-math.inf, row)
        found = []
        for place, (draft, (ids, law)) in enumerate(zip(live, laws, strict=True)):
            if counts is not None:
                law = self.combined(law, counts.interpolated(draft.output.tokens, ids, self.run_weights))
            values = (draft.score + law).tolist()
            found += [
                (-value, place, token) for token, value in zip(ids.tolist(), values, strict=True) if value > -math.inf
            ]
        return [(live[place], token, -value) for value, place, token in sorted(found)]

    def _kept(self, output: Output, row: Tensor) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The likeliest tokens after a text and the logarithm of their shares at the temperature: [n] and [n]."""
        scores = output.law.scores(row)
        largest = float(scores.max())
        if not largest < math.inf:
            output.law.check(math.nan, row)
        count = 3 * self.drafts if self.tokens is None else self.tokens
        ids = highest(scores, count)
        left = scores[ids].double() / self.tau
        there = left > -math.inf
        return ids[there].numpy(force=True), left[there].log_softmax(dim=-1).numpy(force=True)

    def combined(self, law: NDArray[np.float64], shares: NDArray[np.float64]) -> NDArray[np.float64]:
        """What tokens are chosen by, given logarithms of the law [n] and shares by n-grams [n]: minus infinity where no n-gram
        knows the token but one knows another; a penalty where none knows any."""
        if not shares.any():
            return (1 - self.alpha) * law - self.penalty
        with np.errstate(divide="ignore"):
            return np.asarray((1 - self.alpha) * law + self.alpha * np.log(shares))

    def _counted(self, request: Request) -> NgramCounts | None:
        """The n-grams: of a file counted once per file and model, of a prompt once per request. None: there are none."""
        from decodery.search.superposed_decoding.ngrams import NgramCounts

        if self.ngrams == "none" or self.alpha == 0:
            return None
        longest, host = len(self.run_weights) + 1, request.host
        vocabulary = host.network.vocabulary
        if self.ngrams == "prompt":
            return NgramCounts.of(request.prompt, longest, vocabulary)
        path = Path(self.corpus).expanduser()
        try:
            about = path.stat()
        except OSError as error:
            raise BadInput(f"the corpus {self.corpus} cannot be read: {error.strerror or error}.") from None
        key = (self.name, str(path.resolve()), about.st_mtime_ns, about.st_size, longest)
        return request.remember(
            key, lambda: NgramCounts.of(host.encode(read_corpus(self.corpus)), longest, vocabulary), everywhere=True
        )

    def _concluded(self, request: Request, found: Sequence[SuperposedText]) -> None:
        """End the request with the texts of the lowest perplexity by what they were chosen by: one over a text's weight."""
        if len(found) < request.n:
            raise Refused(
                f"{self.name} has found {len(found)} texts where n={request.n} were asked for, since the settings allow no "
                "more; ask for fewer."
            )
        ranked = sorted(found, key=lambda draft: -draft.mean)
        request.statistics.details["drafts"] = [
            {"tokens": draft.output.new_tokens, "text": draft.output.text, "score": draft.score, "mean": draft.mean}
            for draft in ranked
        ]
        for draft in ranked:
            draft.output.score = draft.mean
        request.conclude([(draft.output, math.exp(draft.mean)) for draft in ranked[: request.n]])


def shares(live: Sequence[SuperposedText]) -> NDArray[np.float64]:
    """How much each draft counts in the mixture: exp(score), over the sum of all."""
    scores = np.array([draft.score for draft in live])
    powers = np.exp(scores - scores.max())
    return np.asarray(powers / powers.sum())


def mixed(owner: Owner, live: Sequence[SuperposedText]) -> list[int] | Tensor:
    """What enters the network: the drafts' last tokens by their shares, those of equal tokens added, as a row [1, hidden]; the
    token itself where all are the same."""
    last = [draft.output.tokens[-1] for draft in live]
    if len(set(last)) == 1:
        return last[:1]
    weights = torch.zeros(1, owner.vocabulary, dtype=torch.float64)
    weights.index_put_((torch.tensor(0), torch.tensor(last)), torch.from_numpy(shares(live)), accumulate=True)
    return owner.embed(weights.float())
