"""The merges of a SentencePiece vocabulary, in the order in which its scores make them happen.

SentencePiece joins, again and again, the two neighbours whose union has the best score, and of equally good ones the two
that stand furthest left. `tokenizer.json` has a list instead: the pair that comes first in it is joined first wherever
it stands. The two are the same where scores differ. Where they are equal, a list can still follow: of two pairs that may
compete for a piece, "x y" and "y z", the one that ends with it comes first, for it is the one that stands further left.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby

from decodery.errors import ModelNotReadable
from decodery.models.gguf.vocabulary import NORMAL, SPACE, UNUSED, Vocabulary

Pair = tuple[str, str]


def merges_from_scores(vocabulary: Vocabulary) -> list[Pair]:
    """Each way to build a token from two others, first ones first.

    Tokens that are cut out of a text as a whole take no part, nor do byte tokens. The exception are runs of spaces that
    are written with SentencePiece's mark: a text has no such marks before it is split.

    Raises ModelNotReadable where tokens that compete for pieces have the same score and no list can follow.
    """
    tokens, types = vocabulary.tokens, vocabulary.types
    scores = vocabulary.scores or [0.0] * len(tokens)
    built = [i for i, token in enumerate(tokens) if types[i] in (NORMAL, UNUSED) or SPACE in token]
    pieces = {tokens[i] for i in built}
    built.sort(key=lambda i: (-scores[i], i))
    merges: list[Pair] = []
    tied = len({scores[i] for i in built}) < len(built)
    early: set[str] = set()  # parts of tokens so far, among them such as are themselves built only later
    for _, equals in groupby(built, key=lambda i: scores[i]):
        ways = [list(_ways(tokens[i], pieces)) for i in equals]
        pairs = [pair for token in ways for pair in token]
        if tied:
            early.update(part for pair in pairs if not _repeats(pair) for part in pair)
        if sum(map(bool, ways)) > 1 and (token := next((a + b for a, b in pairs if a + b in early), None)):
            raise _undecided(vocabulary, token)
        # Most groups are one token, whose pairs do not compete.
        competing = len(pairs) > 1 and not {left for left, _ in pairs}.isdisjoint(right for _, right in pairs)
        merges.extend(_from_left_to_right(vocabulary, pairs) if competing else pairs)
    return merges


def _repeats(pair: Pair) -> bool:
    """Whether both parts repeat one word, as in a run of spaces."""
    return pair[0] + pair[1] == pair[1] + pair[0]


def _undecided(vocabulary: Vocabulary, token: str) -> ModelNotReadable:
    return ModelNotReadable(
        f"{vocabulary.path} gives several tokens the same score ({token!r} is one), so that it does not say which words are "
        "built first; convert the model again, from a folder with its tokenizer.model."
    )


def _ways(token: str, pieces: set[str]) -> Iterator[Pair]:
    for cut in range(len(token) - 1, 0, -1):
        if token[:cut] in pieces and token[cut:] in pieces:
            yield token[:cut], token[cut:]


def _from_left_to_right(vocabulary: Vocabulary, pairs: Sequence[Pair]) -> list[Pair]:
    """`pairs` of equal score, so that a pair that ends with a piece comes before those that begin with it.

    Pieces that repeat one word, such as runs of spaces, compete in circles; a run is built up from its left end, so the
    pair with the longest left part comes first.
    """
    pairs = sorted(pairs, key=lambda pair: -len(pair[0]))
    beginning, ending = defaultdict[str, list[int]](list), defaultdict[str, int](int)
    for place, (left, right) in enumerate(pairs):
        beginning[left].append(place)
        ending[right] += 1
    waiting = set(range(len(pairs)))

    def is_free(place: int) -> bool:  # a pair does not wait for itself
        left, right = pairs[place]
        return ending[left] == (left == right)

    free = [place for place in waiting if is_free(place)]
    ordered: list[Pair] = []
    while waiting:
        if not free:
            free = _circle(vocabulary, pairs, waiting)
        heapq.heapify(free)
        while free:
            place = heapq.heappop(free)
            if place not in waiting:
                continue
            waiting.remove(place)
            ordered.append(pairs[place])
            right = pairs[place][1]
            ending[right] -= 1
            if ending[right] <= 1:  # the last pair to wait for may be one that waits only for itself
                for next_place in beginning[right]:
                    if next_place in waiting and is_free(next_place):
                        heapq.heappush(free, next_place)
    return ordered


def _circle(vocabulary: Vocabulary, pairs: Sequence[Pair], waiting: set[int]) -> list[int]:
    """The pairs that wait for each other. Raises ModelNotReadable where they are not repetitions of one word."""
    circle = set(waiting)
    while True:
        lefts = {pairs[place][0] for place in circle}
        ahead = {place for place in circle if pairs[place][1] in lefts}
        if len(ahead) == len(circle):
            break
        circle = ahead
    for pair in (pairs[place] for place in circle):
        if not _repeats(pair):
            raise _undecided(vocabulary, "".join(pair))
    return list(circle)
