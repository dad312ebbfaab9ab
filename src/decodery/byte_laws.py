"""What models say of the next byte, and of every byte of given texts; nothing is decoded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from decodery.bytewise.mixture import ARITHMETIC, ByteMixture, behind, companion, prompt_of
from decodery.bytewise.reader import ByteReader
from decodery.bytewise.vocabulary import ByteVocabulary
from decodery.engine.asking import Asking
from decodery.engine.prompt_layout import LaidOutPrompt
from decodery.errors import BadPrompt, Refused
from decodery.models.kinds import Kind
from decodery.prompts import Prompt
from decodery.scoring import Reading


class Running(Reading, Protocol):
    """A language model, as far as bytes need it."""

    def run(self, coroutine: Any) -> Any: ...


PIECE = 64
"""Bytes of a text that are scored in one forward."""


@dataclass(frozen=True)
class NextByte:
    """What a model says of the byte after a prompt, whatever tokens the prompt ends in.

    probabilities: [256] float64, of each byte; end: of the end of the text, or of a special token. They sum up to 1. leak: the
    mass that the model gives to tokens which its tokenizer would not have made there, and which was left out. lefts: the
    encodings of beginnings of the prompt that tokens go on from, shortest first, with their log probabilities relative to the
    first, natural. forwards: how often the network was asked.
    """

    probabilities: Float[Tensor, "256"] = field(repr=False)
    end: float
    leak: float
    lefts: list[tuple[list[int], float]] = field(repr=False)
    forwards: int

    def top(self, count: int = 10) -> list[tuple[bytes, float]]:
        """The likeliest bytes with their probabilities, likeliest first."""
        best = self.probabilities.topk(min(count, 256))
        return [(bytes([byte]), value) for byte, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)]


@dataclass(frozen=True)
class ScoredBytes:
    """What a model says of a given text of n bytes.

    text: the bytes. logprobs: [n] float64, of each after those before it, natural; every row sums up to 1. leaks: [n] float64,
    the mass that was left out before each. log_probability: the logarithm of the probability that what follows the prompt
    begins with the text, as the sum over all covers says: that of the logprobs less what leaked. forwards: how often the
    network was asked.
    """

    text: bytes
    logprobs: Float[Tensor, "n"] = field(repr=False)
    leaks: Float[Tensor, "n"] = field(repr=False)
    forwards: int

    @property
    def log_probability(self) -> float:
        return float(self.logprobs.sum() + torch.log1p(-self.leaks).sum())

    @property
    def bits_per_byte(self) -> float:
        """Of the laws that sum up to 1."""
        return -float(self.logprobs.mean()) / math.log(2)


def next_byte(lm: Running, prompt: Prompt | bytes, models: Sequence[str], fast: bool) -> NextByte:
    """See `LanguageModel.next_byte`."""
    readers = _readers(lm, prompt, models, fast)
    mixture = _mixture(lm, readers)
    lm.run(mixture.score())
    row = mixture.row().double().exp()
    found = torch.zeros(256, dtype=torch.float64)
    vocabulary = mixture.vocabulary
    for byte, token in enumerate(vocabulary.byte_tokens):
        if token >= 0:
            found[byte] = row[token]
    reader = mixture.readers[0]
    lefts = [([*reader.head, *(one.token for one in left.path()[1:])], left.log_mass) for left in reader.covers.lefts]
    return NextByte(found, float(1 - found.sum()), mixture.leak, lefts, mixture.forwards)


def score_bytes(
    lm: Running, text: str | bytes, prompt: Prompt | bytes, models: Sequence[str], fast: bool
) -> ScoredBytes:
    """See `LanguageModel.score_bytes`."""
    said = text.encode() if isinstance(text, str) else bytes(text)
    if not said:
        raise BadPrompt("the text is empty; give at least one byte.")
    mixture = _mixture(lm, _readers(lm, prompt, models, fast))
    total = len(said) + max(len(reader.head) + len(reader.covers.text) for reader in mixture.readers)
    if total > lm.network.context:
        raise BadPrompt(
            f"prompt and text may have {total} tokens together, and {lm.name} a context of {lm.network.context}."
        )
    logprobs, leaks = torch.empty(len(said), dtype=torch.float64), torch.empty(len(said), dtype=torch.float64)

    def score() -> Asking[None]:
        for start in range(0, len(said), PIECE):
            piece = said[start : start + PIECE]
            for reader in mixture.readers:
                reader.extend(piece[:-1])
            yield from mixture.score()
            for place, byte in enumerate(piece):
                row = mixture.row(start + place)
                logprobs[start + place], leaks[start + place] = (
                    float(row[mixture.vocabulary.byte_tokens[byte]]),
                    mixture.leak,
                )
            for reader in mixture.readers:
                reader.extend(piece[-1:])
                reader.settle()

    lm.run(score())
    return ScoredBytes(said, logprobs, leaks, mixture.forwards)


def _readers(lm: Running, prompt: Prompt | bytes, models: Sequence[str], fast: bool) -> list[ByteReader]:
    """A reader of the prompt for each model. Raises what `LanguageModel.next_byte` raises."""
    if Kind.NEXT_TOKEN not in lm.network.kinds:
        raise Refused(
            f"{lm.name} is {lm.network.kinds.words}, which gives no byte a probability after those before it."
        )
    if lm.network.chains_only:
        raise Refused(f"bytes need trees of tokens, and {lm.name} keeps a cache of its own for each text.")
    more = b""
    if isinstance(prompt, bytes | bytearray):
        text = bytes(prompt).decode(errors="ignore")
        more = bytes(prompt)[len(text.encode()) :]
        if not bytes(prompt).startswith(text.encode()) or not text:
            raise BadPrompt("a prompt in bytes is UTF-8 of at least one whole sign, but for its last sign.")
        prompt = text
    ids = lm.tokenize(prompt)
    if isinstance(ids, LaidOutPrompt):
        raise Refused("bytes are read from left to right, and this prompt has parts that stand side by side.")
    if len(ids) + len(more) >= lm.network.context:
        raise BadPrompt(f"the prompt has {len(ids)} tokens, but {lm.name} has a context of {lm.network.context}.")
    readers = [ByteReader(ByteVocabulary.of(lm), lm.network.new_sequence(), ids, more, fast)]
    for name in models:
        other = companion(lm, name, "bytes")
        theirs = prompt_of(lm, ids, other)
        readers.append(
            ByteReader(ByteVocabulary.of(other), other.network.new_sequence(), theirs, more or behind(lm, ids), fast)
        )
    return readers


def _mixture(lm: Running, readers: list[ByteReader]) -> ByteMixture:
    return ByteMixture(lm, readers, [1 / len(readers)] * len(readers), ARITHMETIC)
