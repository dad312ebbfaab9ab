"""What a network scores: a capability, whatever family it is of."""

from __future__ import annotations

import enum


class Kind(enum.Flag):
    """What rows of a scorer tell. A scorer may be of several kinds."""

    NEXT_TOKEN = enum.auto()
    """A row scores the token after the text that it sees."""
    MASKED_POSITIONS = enum.auto()
    """A row scores what stands behind a mask, given everything else; `Scorer.masked` describes the mask."""
    ANY_ORDER = enum.auto()
    """A row scores any position that is named, given any set of others; `Scorer.masked` describes the mask that names it."""
    INSERTIONS = enum.auto()
    """A row scores what is to be inserted behind its token; `Scorer.insertions` says how."""
    IMAGE_TOKENS = enum.auto()
    """Its tokens are codes of a picture."""
    CONTINUOUS = enum.auto()
    """A row gives the law of a vector in place of a token."""

    @property
    def words(self) -> str:
        """A model of this kind, for people: "a masked-diffusion model"."""
        return " and ".join(WORDS[kind] for kind in Kind if kind in self)


WORDS = {
    Kind.NEXT_TOKEN: "a causal model",
    Kind.MASKED_POSITIONS: "a masked-diffusion model",
    Kind.ANY_ORDER: "an any-order model",
    Kind.INSERTIONS: "an insertion model",
    Kind.IMAGE_TOKENS: "a model of image tokens",
    Kind.CONTINUOUS: "a model of continuous tokens",
}
