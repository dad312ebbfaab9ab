"""One or several models as one, in bytes: scores over the target's tokens of single bytes, whatever the members' tokens are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from decodery._lazy import np, torch
from decodery.bytewise.reader import ByteReader
from decodery.bytewise.vocabulary import ByteVocabulary
from decodery.engine.asking import together
from decodery.engine.vocabularies import Tokens
from decodery.errors import BadPrompt, MethodUnavailable
from decodery.models.kinds import Kind

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from decodery.bytewise.covers import ByteLaw
    from decodery.engine.asking import Asking
    from decodery.engine.host import Host

ARITHMETIC, GEOMETRIC = "probabilities", "logarithms"
"""What is averaged."""


def companion(host: Host, name: str, asker: str) -> Host:
    """Another model of next tokens, of any tokenizer whose bytes are known. Raises MethodUnavailable."""
    other = host.companion(name)
    if Kind.NEXT_TOKEN not in other.network.kinds:
        raise MethodUnavailable(
            f"{asker}: {other.network.name} is {other.network.kinds.words}, and bytes need a causal one."
        )
    ByteVocabulary.of(other)
    return other


def prompt_of(host: Host, prompt: Sequence[int], other: Host) -> list[int]:
    """A prompt in another model's tokens. Of special tokens those stay that both have, written the same.

    Bytes at its end that are no whole sign are left out; see `behind`. Raises BadPrompt where nothing is left.
    """
    vocabulary, ours, theirs = ByteVocabulary.of(host), Tokens(host), Tokens(other)
    shared = {written: token for token, written in theirs.written().items() if not ByteVocabulary.of(other).said[token]}
    found, said = theirs.begin(), b""
    for token in [*prompt, -1]:
        if token >= 0 and vocabulary.said[token]:
            said += vocabulary.said[token]
            continue
        found += other.encode(_whole(said).decode(errors="replace"))
        said = b""
        written = None if token < 0 else ours.special(token)
        if written in shared and [shared[written]] != found[-1:]:
            found.append(shared[written])
    if not found:
        raise BadPrompt(f"nothing of the prompt can be said in tokens of {other.network.name}.")
    return found


def behind(host: Host, prompt: Sequence[int]) -> bytes:
    """The bytes at the end of a prompt that are no whole sign."""
    vocabulary, said = ByteVocabulary.of(host), b""
    for token in prompt[::-1][:4]:
        said = vocabulary.said[token] + said
        if not vocabulary.said[token]:
            break
    return said[len(_whole(said)) :]


class ByteMixture:
    """The next-byte law of models that read the same text.

    host: the target, whose tokens stand for bytes. readers: of each model; the first one's special tokens are the target's own
    where it is alone and `own`; else all special tokens count as the end. weights: of each, summing up to
    1. mean: what is averaged.
    """

    def __init__(
        self,
        host: Host,
        readers: Sequence[ByteReader],
        weights: Sequence[float] = (1.0,),
        mean: str = ARITHMETIC,
        own: bool = True,
    ):
        self.vocabulary = ByteVocabulary.of(host)
        self.readers = list(readers)
        self._weights, self._mean, self._size = weights, mean, host.network.vocabulary
        self._alone = own and len(readers) == 1
        self._end = next(iter(sorted(host.stop_ids)), -1)
        byte_tokens = np.array(self.vocabulary.byte_tokens)
        self._bytes = np.flatnonzero(byte_tokens >= 0)
        self._tokens = byte_tokens[self._bytes]
        self.leak = 0.0
        """Of the last row: the mean mass that its models gave to impossible tokens."""

    def score(self) -> Asking[None]:
        """Have all models score what is new, in the same passes."""
        yield from together([reader.score() for reader in self.readers])

    def row(self, length: int | None = None) -> Tensor:
        """Log probabilities of the next byte or special token as raw scores [vocabulary] float32 of the target, all other
        tokens at minus infinity. length: after so many bytes behind the prompt; None: after all."""
        row = np.full(self._size, -math.inf)
        laws = [reader.law(length) for reader in self.readers]
        self.leak = sum(law.leak for law in laws) / len(laws)
        with np.errstate(divide="ignore"):
            if self._alone:
                row[self.vocabulary.special] = np.log(laws[0].specials / laws[0].total)
                row[self._tokens] = np.log(laws[0].masses[self._bytes] / laws[0].total)
                return torch.from_numpy(row.astype(np.float32))
            shares = np.stack([self._share(law) for law in laws])
            weights = np.array(self._weights)[:, None]
            geometric = self._mean == GEOMETRIC
            mixed = (weights * np.log(shares)).sum(0) if geometric else np.log((weights * shares).sum(0))
        row[self._tokens] = mixed[self._bytes]
        if self._end >= 0:
            row[self._end] = mixed[256]
        return torch.from_numpy(row.astype(np.float32))

    def possible(self, length: int | None = None) -> bool:
        """Whether all models give the text some probability, as far as `length` bytes behind the prompt. Once it is scored."""
        return all(reader.possible(length) for reader in self.readers)

    def extend(self, tokens: Sequence[int]) -> None:
        """The text goes on with tokens of the target: of bytes, and a special one at the end at most."""
        said = self.vocabulary.bytes_of(tokens)
        for reader in self.readers:
            reader.extend(said)

    def cut(self, length: int) -> None:
        """Keep `length` bytes behind what was settled last."""
        for reader in self.readers:
            reader.cut(reader.settled + length)

    def settle(self) -> None:
        """Nothing of the text so far will be taken back."""
        for reader in self.readers:
            reader.settle()

    def special(self, token: int) -> None:
        """A special token of the target that ends nothing: the text begins anew behind it."""
        [reader] = self.readers
        whole = [left for left in reader.covers.lefts if left.end == len(reader.covers.text)]
        self.readers = [reader.restart(max(whole, key=lambda left: left.log_mass), token)]

    @property
    def forwards(self) -> int:
        """How often the models were asked, all together."""
        return sum(reader.forwards for reader in self.readers)

    def _share(self, law: ByteLaw) -> NDArray[np.float64]:
        found = np.append(law.masses, law.specials.sum() if self._end >= 0 else 0.0)
        found[:256][[byte for byte in range(256) if self.vocabulary.byte_tokens[byte] < 0]] = 0.0
        shares: NDArray[np.float64] = found / found.sum()
        return shares


def _whole(data: bytes) -> bytes:
    """Some bytes of a text without an incomplete sign at their end."""
    for missing in range(1, min(3, len(data)) + 1):
        lead = data[-missing]
        if lead >= 0xC0:
            length = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
            return data[:-missing] if length > missing else data
        if lead < 0x80:
            break
    return data
