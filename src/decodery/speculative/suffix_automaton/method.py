"""Suffix-automaton lookup: copies from where the longest run of last tokens occurred before."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import floor
from typing import TYPE_CHECKING, ClassVar

from decodery.engine.corpus import read_corpus
from decodery.engine.method import Exactness, parameter
from decodery.engine.parameters import GIVEN
from decodery.speculative.draft import EMPTY, Draft, chain
from decodery.speculative.loop import Drafter, Round, SpeculativeMethod
from decodery.speculative.suffix_automaton.automaton import Match, SuffixAutomaton
from decodery.speculative.token_recycling import RecyclingDrafter, TokenRecycling

if TYPE_CHECKING:
    from decodery.engine.request import Request


@dataclass(frozen=True)
class SuffixAutomatonLookup(SpeculativeMethod):
    """Copies what followed the longest earlier occurrence of the last tokens, however long, in constant time per token;
    looks into this request's own text and, if given, into a corpus."""

    name: ClassVar[str] = "suffix-automaton"
    title: ClassVar[str] = "Suffix-automaton lookup (SAM-Decoding)"
    paper: ClassVar[str] = "Hu et al., SAM Decoding, ACL 2025, arXiv 2411.10666"
    exactness: ClassVar[Exactness] = Exactness.IDENTICAL_TO_PLAIN
    family: ClassVar[str] = "speculative"

    length: int = parameter(40, "most tokens to copy", low=1, high=256)
    alpha: float = parameter(4.0, "tokens to copy per token of match, plus one", low=0.0, high=64.0)
    corpus: str = parameter(
        "", "a UTF-8 text file to copy from as well; its automaton is built on first use", names="file"
    )
    corpus_handicap: int = parameter(
        0, "how much longer a corpus match must be to win", low=0, high=64, only={"corpus": GIVEN}
    )
    auxiliary: str = parameter("none", "who drafts where no long match is found", choices=("none", "token-recycling"))
    threshold: int = parameter(
        5, "copy only from matches of at least so many tokens", low=1, high=64, only={"auxiliary": "token-recycling"}
    )
    adapt: bool = parameter(True, "verify only as many copied tokens as pay on this machine")

    @property
    def adaptive(self) -> bool:
        return self.adapt

    @property
    def paced(self) -> bool:
        return self.adaptive

    def admit(self, request: Request) -> None:
        if self.corpus:
            self._static(request)

    def _static(self, request: Request) -> SuffixAutomaton | None:
        """The corpus' automaton: built once per file and tokenizer, kept as long as the model is."""
        if not self.corpus:
            return None
        text = read_corpus(self.corpus)
        key = ("suffix-automaton", hashlib.sha256(text.encode()).hexdigest())
        return request.remember(key, lambda: SuffixAutomaton(request.host.encode(text)), everywhere=True)

    def most_nodes(self) -> int:
        return self.length if self.auxiliary == "none" else max(self.length, TokenRecycling().most_nodes())

    def drafter(self, request: Request) -> Drafter:
        automaton = AutomatonDrafter(self.length, self.alpha, self._static(request), self.corpus_handicap)
        if self.auxiliary == "none":
            return automaton
        return CombinedDrafter(automaton, TokenRecycling().drafter(request), self.threshold)


class CombinedDrafter(Drafter):
    """The automaton where its match is long, else an auxiliary drafter, which sees every round (SAM-Decoding, section 3).

    threshold: the shortest match that is copied from.
    """

    def __init__(self, automaton: AutomatonDrafter, auxiliary: RecyclingDrafter, threshold: int):
        self._automaton, self._auxiliary, self._threshold = automaton, auxiliary, threshold

    def propose(self, tokens: Sequence[int], depth: int) -> Draft:
        copied = self._automaton.propose(tokens, depth)
        if len(copied) and self._automaton.copied_from >= self._threshold:
            return copied
        return self._auxiliary.propose(tokens, depth)

    def observe(self, round: Round) -> None:
        self._auxiliary.observe(round)


class AutomatonDrafter(Drafter):
    """One automaton over the request's own text, and an optional static one."""

    def __init__(self, length: int, alpha: float, corpus: SuffixAutomaton | None = None, handicap: int = 0):
        self._length, self._alpha, self._corpus, self._handicap = length, alpha, corpus, handicap
        self._own = SuffixAutomaton()
        self._match = Match()
        self._corpus_match = Match()
        self.copied_from = 0
        """Length of the match that the last draft follows."""

    @property
    def match_length(self) -> int:
        """Length of the longest run of last tokens that occurred before, in the request's own text or the corpus."""
        return max(self._match.length, self._corpus_match.length)

    def read(self, tokens: Sequence[int]) -> None:
        """Take in the tokens that came since the last call."""
        for token in tokens[len(self._own) :]:
            # First match, then append: a text's end must not match itself.
            self._own.advance(self._match, token)
            self._own.append(token)
            if self._corpus is not None:
                self._corpus.advance(self._corpus_match, token)

    def propose(self, tokens: Sequence[int], depth: int) -> Draft:
        self.read(tokens)
        source, match, label = self._own, self._match, "own"
        if self._corpus is not None and self._corpus_match.length > self._match.length + self._handicap:
            source, match, label = self._corpus, self._corpus_match, "corpus"
        self.copied_from = match.length
        count = min(self._length, 1 + floor(self._alpha * match.length), depth)
        copied = source.following(match, count)
        if not copied:
            return EMPTY
        size = min(match.length, 12)
        return chain(copied, [(label, size, min(place, 8)) for place in range(len(copied))])
