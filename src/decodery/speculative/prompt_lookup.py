"""Prompt lookup: what followed the last few tokens before will follow them again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from decodery.engine.method import Exactness, parameter
from decodery.speculative.draft import EMPTY, Draft, chain
from decodery.speculative.loop import Drafter, Round, SpeculativeMethod

if TYPE_CHECKING:
    from decodery.engine.request import Request


@dataclass(frozen=True)
class PromptLookup(SpeculativeMethod):
    """Copies what followed an earlier occurrence of the last tokens. Costs nothing; pays where the output repeats its
    input: summaries, edits, code, question answering over given text."""

    name: ClassVar[str] = "prompt-lookup"
    title: ClassVar[str] = "Prompt lookup decoding"
    paper: ClassVar[str] = "A. Saxena, Prompt Lookup Decoding, 2023 (apoorvumang/prompt-lookup-decoding)"
    exactness: ClassVar[Exactness] = Exactness.IDENTICAL_TO_PLAIN
    family: ClassVar[str] = "speculative"

    max_ngram: int = parameter(3, "longest run of last tokens that is looked up", low=1, high=16)
    length: int = parameter(10, "most tokens to copy", low=1, high=64)
    pick: str = parameter("first", "which earlier occurrence is copied from", choices=("first", "last", "longest"))
    require_full: bool = parameter(False, "copy only where `length` tokens follow (the original; blind near the end)")
    adapt: bool = parameter(True, "verify only as many copied tokens as pay on this machine")

    @property
    def adaptive(self) -> bool:
        return self.adapt

    @property
    def paced(self) -> bool:
        return self.adaptive

    def most_nodes(self) -> int:
        return self.length

    def drafter(self, request: Request) -> NgramDrafter:
        return NgramDrafter(self.max_ngram, self.length, self.pick, self.require_full)


class NgramDrafter(Drafter):
    """Index of all runs of up to `max_ngram` tokens; O(max_ngram) per token.

    pick "longest" prefers, among the occurrences of the longest matching run, the one with most tokens after it that
    is not the text's own end: the first; it differs from "first" by looking at shorter runs too where those let a full
    draft be copied.
    """

    def __init__(self, max_ngram: int, length: int, pick: str, require_full: bool):
        self._max_ngram, self._length, self._pick, self._require_full = max_ngram, length, pick, require_full
        self._starts: dict[tuple[int, ...], list[int]] = {}
        """Run -> the places right after its occurrences, ascending."""
        self._indexed = 0

    def propose(self, tokens: Sequence[int], depth: int) -> Draft:
        self._index(tokens)
        best: list[int] = []
        best_size = 0
        for size in range(min(self._max_ngram, len(tokens) - 1), 0, -1):
            places = self._starts.get(tuple(tokens[-size:]), [])
            places = [place for place in places if place < len(tokens)]
            if self._require_full:
                places = [place for place in places if place + self._length <= len(tokens)]
            if not places:
                continue
            place = places[-1] if self._pick == "last" else places[0]
            copied = list(tokens[place : place + min(self._length, depth)])
            if len(copied) > len(best):
                best, best_size = copied, size
            if self._pick != "longest" or len(best) == min(self._length, depth):
                break
        if not best:
            return EMPTY
        return chain(best, [("lookup", best_size, min(d, 8)) for d in range(len(best))])

    def _index(self, tokens: Sequence[int]) -> None:
        for end in range(self._indexed + 1, len(tokens) + 1):
            for size in range(1, min(self._max_ngram, end) + 1):
                self._starts.setdefault(tuple(tokens[end - size : end]), []).append(end)
        self._indexed = len(tokens)

    def observe(self, round: Round) -> None:
        pass
