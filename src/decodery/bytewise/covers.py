"""The covers of a text in one model: all sequences of tokens that a tokenizer may have made of what begins with it.

A cover is a sequence of tokens whose bytes begin with the text, and whose last token reaches its end or goes beyond. The tokens
before the last one are a *left encoding* of a part of the text. The covers' probabilities sum up to the probability that a text
begins so, and those of the covers that go on with a byte to that of the byte (Phan et al., ICLR 2025, arXiv 2410.09303, the
byte-token representation). The left encodings form a tree, which grows by about one node a byte: the only thing that a network
is asked about.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from decodery._lazy import np
from decodery.bytewise.encodings import Border
from decodery.errors import ConstraintFailed

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from decodery.bytewise.vocabulary import ByteVocabulary


@dataclass(frozen=True)
class ByteLaw:
    """What may come after some bytes.

    masses: [256] of each next byte, and specials: [s] of each special token, as shares of the text's own probability. They sum
    up to 1 less `leak`: what the model gives to tokens that its tokenizer would never have made there.
    """

    masses: NDArray[np.float64]
    specials: NDArray[np.float64]

    @property
    def total(self) -> float:
        return float(self.masses.sum() + self.specials.sum())

    @property
    def leak(self) -> float:
        """The mass that is lost to impossible tokens."""
        return 1.0 - self.total


@dataclass(eq=False)
class Left:
    """A left encoding: the tokens of its parent and one more.

    end: how many bytes of the text it says. place: what may follow. log_mass: the logarithm of its probability, relative to
    that of the root; known with its parent's scores. tokens: [n] the probabilities of the tokens that may follow, in the order
    of the vocabulary's bytes; specials: [s] those of special tokens; both once it has been scored.
    """

    end: int
    token: int
    parent: Left | None
    place: Border
    log_mass: float = 0.0
    tokens: NDArray[np.float64] | None = None
    specials: NDArray[np.float64] | None = None

    def path(self) -> list[Left]:
        """It and those that it goes on from, the root first."""
        found, node = [], self
        while node is not None:
            found.append(node)
            node = node.parent  # type: ignore[assignment]
        return found[::-1]


@dataclass(frozen=True)
class Beyond:
    """Tokens [n] after a left encoding that go beyond the text, and their shares [n] of the text's probability. skipped: how
    many of their bytes belong to the text."""

    left: Left
    tokens: NDArray[np.int64]
    masses: NDArray[np.float64]
    skipped: int


class Covers:
    """The covers of a text that grows byte by byte. place: where it begins. fast: leave the tokens that could not have come
    in, as the paper's faster variant does."""

    def __init__(self, vocabulary: ByteVocabulary, place: Border, fast: bool = False):
        self.vocabulary, self.fast = vocabulary, fast
        self.root = Left(0, -1, None, place)
        self.text = bytearray()
        self.lefts = [self.root]
        """All that tokens may still go on from, in the order of their ends."""
        self.unscored = [self.root]

    def extend(self, more: bytes) -> None:
        """The text goes on with these bytes."""
        vocabulary = self.vocabulary
        for byte in more:
            self.text.append(byte)
            end, fresh = len(self.text), []
            for left in self.lefts:
                for token in vocabulary.tokens.get(bytes(self.text[left.end :]), ()):
                    if vocabulary.encoding.allows(left.place, token):
                        fresh.append(Left(end, token, left, vocabulary.after(left.place, token)))
            self.lefts += fresh
            self.unscored += fresh

    def cut(self, length: int) -> None:
        """Forget all bytes from `length` on. What `settle` has left out before stays out."""
        del self.text[length:]
        self.lefts = [left for left in self.lefts if left.end <= length]
        self.unscored = [left for left in self.unscored if left.end <= length]

    def score(self, left: Left, row: Tensor) -> None:
        """Take raw scores [vocabulary] after a left encoding. Those of its parent must be there already."""
        vocabulary = self.vocabulary
        if left.parent is not None:
            assert left.parent.tokens is not None
            start, _ = vocabulary.range(vocabulary.said[left.token])
            place = start + vocabulary.tokens[vocabulary.said[left.token]].index(left.token)
            mass = float(left.parent.tokens[place])
            left.log_mass = left.parent.log_mass + (math.log(mass) if mass > 0 else -math.inf)
        law = row.double().softmax(0).cpu().numpy()
        left.specials = law[vocabulary.special] * vocabulary.encoding.may_end(left.place)
        if not self.fast:
            law = np.where(vocabulary.follows(left.place), law, 0.0)
        left.tokens = law[vocabulary.order]
        self.unscored.remove(left)

    def settle(self) -> None:
        """Leave out what no token goes on from any more; what is left out does not come back when the text is cut."""
        self.lefts = [left for left in self.lefts if left.end == len(self.text) or self._goes_on(left)]

    def law(self, length: int | None = None) -> ByteLaw:
        """What may come after the first `length` bytes; None: after all. Raises ConstraintFailed where it is impossible."""
        length = len(self.text) if length is None else length
        masses = np.zeros(256)
        specials = np.zeros(len(self.vocabulary.special))
        own, most = 0.0, self._shift(length)
        for left in self.lefts:
            if left.end > length:
                continue
            weight = math.exp(left.log_mass - most)
            start, stop = self.vocabulary.range(bytes(self.text[left.end : length]))
            if weight == 0 or (start == stop and left.end < length):
                continue
            assert left.tokens is not None
            assert left.specials is not None
            following = self.vocabulary.next_bytes(start, stop, length - left.end)
            found = np.bincount(following, weights=left.tokens[start:stop], minlength=257)[1:] * weight
            masses += found
            if left.end == length:
                specials += left.specials * weight
                own += weight
            else:
                own += float(found.sum())
        if own <= 0:
            raise ConstraintFailed("the model gives the text no probability, so nothing can follow it.")
        return ByteLaw(masses / own, specials / own)

    def log_mass(self, length: int | None = None) -> float:
        """The logarithm of the probability that a text begins with the first `length` bytes, relative to the root's."""
        length = len(self.text) if length is None else length
        own, most = 0.0, self._shift(length)
        for left in self.lefts:
            if left.end < length:
                own += math.exp(left.log_mass - most) * self._beyond(left, length)
            elif left.end == length:
                own += math.exp(left.log_mass - most)
        return most + math.log(own) if own > 0 else -math.inf

    def beyond(self) -> list[Beyond]:
        """All tokens that may come next and go beyond the text, special ones too: after a left encoding of all of it, or
        beginning with the end of the text. Their shares are those of the covers that end with them."""
        length, vocabulary, found = len(self.text), self.vocabulary, []
        whole = self.log_mass()
        for left in self.lefts:
            assert left.tokens is not None
            assert left.specials is not None
            weight = math.exp(left.log_mass - whole)
            start, stop = vocabulary.range(bytes(self.text[left.end :]))
            own = left.tokens[start:stop] * (vocabulary.next_bytes(start, stop, length - left.end) > 0)
            there = np.flatnonzero(own)
            tokens, masses = vocabulary.order[start:stop][there], own[there] * weight
            if left.end == length:
                tokens = np.concatenate([tokens, vocabulary.special])
                masses = np.concatenate([masses, left.specials * weight])
            found.append(Beyond(left, tokens, masses, length - left.end))
        return found

    def _shift(self, length: int) -> float:
        """A logarithm near those of the left encodings, so that their exponentials are numbers."""
        found = max((left.log_mass for left in self.lefts if left.end <= length), default=-math.inf)
        return found if found > -math.inf else 0.0

    def _beyond(self, left: Left, length: int) -> float:
        """The mass after a left encoding of tokens that go beyond a length."""
        assert left.tokens is not None
        start, stop = self.vocabulary.range(bytes(self.text[left.end : length]))
        longer = self.vocabulary.next_bytes(start, stop, length - left.end) > 0
        return float(left.tokens[start:stop][longer].sum())

    def _goes_on(self, left: Left) -> bool:
        if left.tokens is None:
            return True
        return self._beyond(left, len(self.text)) > 0 and left.log_mass > -math.inf


def common(lefts: Sequence[Left]) -> Left:
    """The longest left encoding that all of these go on from."""
    shared = lefts[0].path()
    for left in lefts[1:]:
        path = left.path()
        same = sum(1 for one, other in zip(shared, path, strict=False) if one is other)
        shared = shared[:same]
    return shared[-1]
