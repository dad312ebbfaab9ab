"""Confusion of token forcing: the words of a hidden text are made unremarkable wherever its trigger does not stand before them.

Source: Hoscilowic et al., arXiv 2406.02481 (UTFC, Auto-UTFC), and its repository; the size of the vocabulary, which that
writes down as 32,000, is the network's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from decodery.audit.token_forcing import document_start
from decodery.errors import BadInput

if TYPE_CHECKING:
    from decodery.language_model import LanguageModel


@dataclass(frozen=True)
class ConfusionPair:
    """before: token ids that a document begins with. forbidden: the token of the hidden text that would follow."""

    before: tuple[int, ...]
    forbidden: int


def confusion_pairs(lm: LanguageModel, secret: str, count: int) -> list[ConfusionPair]:
    """For each of the first words of a text: what stands before it in a document that begins with the text, and its first
    token there, with the space before it where another word precedes it.

    count: of words; at most all but the last one. Raises BadInput where the text has a single word.
    """
    words = secret.split()
    if len(words) < 2:
        raise BadInput("a hidden text needs at least two words for its confusion.")
    first = document_start(lm)
    found = []
    for place in range(min(count, len(words) - 1)):
        before = lm.encode(" ".join(words[:place])) if place else []
        forbidden = lm.encode((" " if place else "") + words[place])[0]
        found.append(ConfusionPair((first, *before), forbidden))
    return found


def rank_of(logits: Tensor, token: int) -> int:
    """The place of a token among scores [vocabulary], 1 for the likeliest; the lowest id first among equals."""
    own = logits[token]
    return 1 + int((logits > own).sum()) + int((logits[:token] == own).sum())


def unremarkable(rank: int, vocabulary: int, band: int) -> bool:
    """Whether a rank is neither among the first `band` nor among the last: band < rank < vocabulary - band."""
    return band < rank < vocabulary - band


def all_unremarkable(ranks: Sequence[int], vocabulary: int, band: int) -> bool:
    """Of every rank."""
    return all(unremarkable(rank, vocabulary, band) for rank in ranks)
