"""A suffix automaton over token ids: all substrings of a growing text, in linear space.

It answers, after every token, what the longest run of last tokens is that occurred before, and where first. Source:
Blumer et al., 1985; as a drafter: SAM-Decoding, arXiv 2411.10666.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

ROOT_STATE = 0


@dataclass(slots=True)
class Match:
    """A place in an automaton: a state, and how many of the last tokens it stands for."""

    state: int = ROOT_STATE
    length: int = 0


class SuffixAutomaton:
    """Online construction, amortised O(1) dictionary operations per token, at most 2n states.

    State s stands for the runs that end at exactly the same places; `first_end[s]` is the number of tokens up to the
    end of the first of them.
    """

    def __init__(self, tokens: Iterable[int] = ()):
        self.tokens: list[int] = []
        self.next: list[dict[int, int]] = [{}]
        self.link: list[int] = [-1]
        self.longest: list[int] = [0]
        self.first_end: list[int] = [0]
        self._last = ROOT_STATE
        for token in tokens:
            self.append(token)

    def __len__(self) -> int:
        return len(self.tokens)

    def append(self, token: int) -> None:
        """Extend the text by one token."""
        self.tokens.append(token)
        length = len(self.tokens)
        current = self._state({}, -1, length, length)
        state = self._last
        while state != -1 and token not in self.next[state]:
            self.next[state][token] = current
            state = self.link[state]
        if state == -1:
            self.link[current] = ROOT_STATE
        else:
            target = self.next[state][token]
            if self.longest[state] + 1 == self.longest[target]:
                self.link[current] = target
            else:
                clone = self._state(
                    dict(self.next[target]), self.link[target], self.longest[state] + 1, self.first_end[target]
                )
                while state != -1 and self.next[state].get(token) == target:
                    self.next[state][token] = clone
                    state = self.link[state]
                self.link[target] = self.link[current] = clone
        self._last = current

    def _state(self, edges: dict[int, int], link: int, longest: int, first_end: int) -> int:
        self.next.append(edges)
        self.link.append(link)
        self.longest.append(longest)
        self.first_end.append(first_end)
        return len(self.next) - 1

    def advance(self, match: Match, token: int) -> None:
        """Move a match on by one token: to the longest run of last tokens that the text contains."""
        state, length = match.state, match.length
        while state != ROOT_STATE and token not in self.next[state]:
            state = self.link[state]
            length = self.longest[state]
        if token in self.next[state]:
            match.state, match.length = self.next[state][token], length + 1
        else:
            match.state, match.length = ROOT_STATE, 0

    def following(self, match: Match, count: int) -> list[int]:
        """Up to `count` tokens after the first occurrence of a match.

        Where the text ends too early after it, shorter matches that occurred earlier are tried.
        """
        state = match.state
        while state != ROOT_STATE and self.first_end[state] + count > len(self.tokens):
            shorter = self.link[state]
            if shorter == ROOT_STATE:
                break
            state = shorter
        if state == ROOT_STATE:
            return []
        end = self.first_end[state]
        return self.tokens[end : end + count]
