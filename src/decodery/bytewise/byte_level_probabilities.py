"""Exact byte-level probabilities of models of tokens, and what becomes possible with them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from decodery._lazy import torch
from decodery.bytewise.mixture import ARITHMETIC, GEOMETRIC, ByteMixture, behind, companion, prompt_of
from decodery.bytewise.reader import ROOM, SLACK, ByteReader
from decodery.bytewise.vocabulary import ByteVocabulary
from decodery.engine.method import Decoding, Exactness, Method, parameter
from decodery.engine.needs import NEXT_TOKENS, MoreThanChains, Requirement
from decodery.engine.parameters import GIVEN
from decodery.errors import BadParameter, MethodUnavailable, Refused
from decodery.models.forward import Forward, Rows
from decodery.sampling.noise import Stage

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.bytewise.covers import Left
    from decodery.engine.host import Host
    from decodery.engine.request import Request
    from decodery.models.scorer import Scorer

END, BOUNDARY = "end", "boundary"


@dataclass(frozen=True)
class ByteLevelProbabilities(Method):
    """Draw bytes, each with exactly the probability that the model gives it over all ways in which tokens may cover the text; a
    prompt that ends inside a word goes on as if the word were whole. until=boundary draws one token so, and then tokens."""

    name: ClassVar[str] = "byte-level-probabilities"
    title: ClassVar[str] = "Exact byte-level probabilities"
    paper: ClassVar[str] = (
        "Phan et al., Exact Byte-Level Probabilities from Tokenized Language Models for FIM-Tasks and Model Ensembles, "
        "ICLR 2025, arXiv 2410.09303; Hayase et al., arXiv 2506.14123"
    )
    exactness: ClassVar[Exactness] = Exactness.APPROXIMATE
    family: ClassVar[str] = "bytes"
    needs: ClassVar[tuple[Requirement, ...]] = (
        NEXT_TOKENS,
        MoreThanChains("reads a text as trees of tokens"),
    )
    refuses: ClassVar = {
        "structured_outputs": "a grammar asks for the usual tokens of what must come, and here a token is a byte",
    }

    until: str = parameter(
        END,
        "how far bytes are drawn: to the end of the text, or to the boundary of the token that covers the end of the prompt",
        choices=(END, BOUNDARY),
    )
    fast: bool = parameter(
        False, "do not leave out tokens that the tokenizer would not have made there, as the paper's faster variant"
    )
    models: str = parameter(
        "",
        "names or folders of further models, with + between them and any tokenizers: an ensemble",
        only={"until": END},
    )
    weights: str = parameter(
        "", "of the model and the further ones, with + between them; nothing: all alike", only={"models": GIVEN}
    )
    mean: str = parameter(
        ARITHMETIC,
        "what an ensemble averages",
        choices=(ARITHMETIC, GEOMETRIC),
        only={"models": GIVEN},
    )

    def check(self) -> None:
        if self.weights:
            self.shares()

    def shares(self) -> list[float]:
        """The weights of the models, summing up to 1. Raises BadParameter."""
        count = 1 + len(self.named())
        if not self.weights:
            return [1 / count] * count
        try:
            given = [float(one) for one in self.weights.split("+")]
        except ValueError:
            given = []
        if len(given) != count or any(not (weight > 0 and math.isfinite(weight)) for weight in given):
            raise BadParameter(
                f"{self.name}: weights are {count} positive numbers joined by +, the model's first, not {self.weights!r}."
            )
        return [weight / sum(given) for weight in given]

    def named(self) -> list[str]:
        """The further models."""
        return [name.strip() for name in self.models.split("+")] if self.models else []

    def admit(self, request: Request) -> None:
        check_bytes(request, self.name)
        for name in self.named():
            companion(request.host, name, self.name)

    def caches(self, request: Request) -> list[tuple[Scorer, int]]:
        rows = len(request.prompt) + request.settings.max_new_tokens + extra_rows(request.host)
        others = [companion(request.host, name, self.name) for name in self.named()]
        # Another tokenizer seldom takes more than half as many tokens again.
        return [(request.network, rows), *((one.network, min(rows + rows // 2, one.network.context)) for one in others)]

    def decode(self, request: Request) -> Decoding:
        vocabulary = ByteVocabulary.of(request.host)
        sequence = request.new_sequence()
        yield from request.score_prompt(sequence)
        reader = ByteReader(vocabulary, sequence, request.prompt, fast=self.fast)
        if self.until == BOUNDARY:
            yield from self._to_the_boundary(request, reader)
            return
        readers = [reader]
        for name in self.named():
            other = companion(request.host, name, self.name)
            readers.append(member(request, other, self.fast))
        mixture = ByteMixture(request.host, readers, self.shares(), self.mean)
        told = Leaks(request)
        while True:
            yield from mixture.score()
            row = mixture.row()
            mixture.settle()
            told.take(mixture)
            token = request.draw(row)
            if request.commit([token], row[None]):
                return
            if vocabulary.said[token]:
                mixture.extend([token])
            else:
                mixture.special(token)

    def _to_the_boundary(self, request: Request, reader: ByteReader) -> Decoding:
        """Draw the token that covers the prompt's end, among all that may, and then go on with tokens."""
        vocabulary = reader.vocabulary
        yield from reader.score()
        row, ways = covering(reader, request.network.vocabulary)
        mass = float(row.exp().sum())
        request.statistics.details.update(leak=1.0 - mass, byte_forwards=reader.forwards)
        first = request.draw(row)
        options = ways[first]
        masses = torch.tensor([one.mass for one in options], dtype=torch.float64)
        if request.law.greedy:
            chosen = options[int(masses.argmax())]
        else:
            chosen = options[request.noise.choose(masses, request.position, Stage.ORDER)]
        written = [first, *vocabulary.spell(chosen.rest[len(vocabulary.said[first]) :])] if chosen.rest else [first]
        rows = [row, *(_certain(token, len(row)) for token in written[1:])]
        sequence = reader.after(chosen.left)
        if request.commit(written, rows):
            return
        token = chosen.token
        while True:
            scores = yield Forward(sequence, [token], logits=Rows.LAST)
            token = request.draw(scores.logits[0])
            if request.commit([token], scores.logits):
                return


@dataclass(frozen=True)
class Way:
    """A token that covers the prompt's end. rest: its bytes behind the prompt; nothing for a special one."""

    left: Left
    token: int
    mass: float
    rest: bytes


def covering(reader: ByteReader, size: int) -> tuple[Tensor, dict[int, list[Way]]]:
    """The law of what is written first behind a prompt, as raw scores [size] float32 over tokens, and for each token the
    covers that begin with it. Of a token that begins within the prompt only the rest is written, as the usual token of its
    bytes."""
    vocabulary = reader.vocabulary
    masses = torch.zeros(size, dtype=torch.float64)
    ways: dict[int, list[Way]] = {}
    for beyond in reader.covers.beyond():
        if not beyond.skipped:
            masses.index_add_(0, torch.from_numpy(beyond.tokens), torch.from_numpy(beyond.masses))
            for token, mass in zip(beyond.tokens.tolist(), beyond.masses.tolist(), strict=True):
                if mass > 0:
                    ways.setdefault(token, []).append(Way(beyond.left, token, mass, vocabulary.said[token]))
            continue
        for token, mass in zip(beyond.tokens.tolist(), beyond.masses.tolist(), strict=True):
            rest = vocabulary.said[token][beyond.skipped :]
            first = vocabulary.spell(rest)[0]
            masses[first] += mass
            ways.setdefault(first, []).append(Way(beyond.left, token, mass, rest))
    return masses.log().float(), ways


class Leaks:
    """What is told of a request: the mass that was lost to impossible tokens, and how often models were asked."""

    def __init__(self, request: Request):
        self._details, self._sum, self._most, self._count = request.statistics.details, 0.0, 0.0, 0

    def take(self, mixture: ByteMixture) -> None:
        self._sum, self._most, self._count = self._sum + mixture.leak, max(self._most, mixture.leak), self._count + 1
        self._details.update(leak=self._sum / self._count, most_leak=self._most, byte_forwards=mixture.forwards)


def check_bytes(request: Request, name: str) -> None:
    """Raise MethodUnavailable or Refused where a request cannot be decoded in bytes."""
    vocabulary = ByteVocabulary.of(request.host)
    if request.layout is not None:
        raise Refused(f"{name} reads prompts from left to right, and this one has parts that stand side by side.")
    wanted = {byte for said in vocabulary.tokens for byte in said}
    silent = sorted(byte for byte in wanted if vocabulary.byte_tokens[byte] < 0)
    if silent:
        raise MethodUnavailable(
            f"{name}: {request.host.network.name} has no token for the byte {silent[0]} alone, which some of its tokens hold."
        )


def extra_rows(host: Host) -> int:
    """Rows of a cache beside those of prompt and bytes: of left encodings that may go on, or are not tidied up yet."""
    return SLACK + ROOM + 2 * ByteVocabulary.of(host).longest


def member(request: Request, other: Host, fast: bool) -> ByteReader:
    """Another model's reader of a request's prompt."""
    prompt = prompt_of(request.host, request.prompt, other)
    more = behind(request.host, request.prompt)
    return ByteReader(ByteVocabulary.of(other), request.new_sequence(other.network), prompt, more, fast)


def _certain(token: int, size: int) -> Tensor:
    row = torch.full((size,), -math.inf)
    row[token] = 0.0
    return row
