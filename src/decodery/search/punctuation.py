"""Which tokens of a model end a clause."""

from __future__ import annotations

from typing import TYPE_CHECKING

from decodery.engine.spelling import WrittenTokens

if TYPE_CHECKING:
    from decodery.engine.host import Host

MARKS = (".", ",", "\n", "?", "!", ":", ";", ")", "]", "}")
NEWLINE = "\n"


def clause_ends(host: Host, marks: str) -> frozenset[int]:
    """The ids of tokens that end a clause. marks: "text": every token whose text, but for spaces behind it, ends in a mark, or
    holds a line break; "reference": the first token of each mark written alone."""
    if marks == "reference":
        return frozenset(ids[0] for mark in MARKS if (ids := host.encode(mark)))
    texts = enumerate(WrittenTokens(host).written())
    return frozenset(t for t, text in texts if NEWLINE in text or text.rstrip(" ").endswith(MARKS))
