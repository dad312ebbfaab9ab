"""Drafters whose fate is known: always right, always wrong, random. Every verifier and every loop must cope with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from decodery.engine.method import Exactness
from decodery.engine.request import Request
from decodery.models.forward import Forward, Rows
from decodery.speculative.draft import EMPTY, ROOT, Draft, chain
from decodery.speculative.loop import Drafter, SpeculativeMethod

Proposing = Callable[[Request, Sequence[int], int], Draft]
"""(request, committed tokens, greatest depth) -> draft."""


class _FunctionDrafter(Drafter):
    def __init__(self, request: Request, propose: Proposing):
        self._request, self._propose = request, propose

    def propose(self, tokens: Sequence[int], depth: int) -> Draft:
        return self._propose(self._request, tokens, depth)


def drafting_method(name: str, propose: Proposing) -> SpeculativeMethod:
    """A method that drafts with a function of the request, the committed tokens and the greatest depth; never trimmed."""
    label = name

    @dataclass(frozen=True)
    class FunctionMethod(SpeculativeMethod):
        """Drafts with a function given by a test."""

        name: ClassVar[str] = label
        title: ClassVar[str] = label
        paper: ClassVar[str] = "none"
        exactness: ClassVar[Exactness] = Exactness.IDENTICAL_TO_PLAIN
        family: ClassVar[str] = "speculative"

        @property
        def adaptive(self) -> bool:
            return False

        def drafter(self, request: Request) -> Drafter:
            return _FunctionDrafter(request, propose)

    return FunctionMethod()


def _continuation(request: Request, tokens: Sequence[int], length: int) -> list[int]:
    """What plain decoding commits next, sampling included: its draws have addresses, so they can be foreseen."""
    network = request.host.network
    sequence = network.new_sequence()
    fed = list(tokens)
    path: list[int] = []
    for _ in range(length):
        # The class's own method: a look ahead is no forward of the request, and those who watch forwards must not see it.
        [scores] = type(network).run_pass(network, [Forward(sequence, fed, logits=Rows.LAST)])
        path.append(request.draw(scores.logits[0], path))
        fed = [path[-1]]
    return path


def oracle_draft(length: int) -> SpeculativeMethod:
    """Drafts the next `length` tokens of plain decoding: all are accepted, so N tokens take ceil(N / (length + 1)) rounds."""

    def propose(request: Request, tokens: Sequence[int], depth: int) -> Draft:
        return chain(_continuation(request, tokens, min(length, depth)))

    return drafting_method("oracle-draft", propose)


def adversarial_draft(length: int, width: int = 1) -> SpeculativeMethod:
    """Drafts `width` chains that never begin with the token of plain decoding: every round commits exactly one token."""

    def propose(request: Request, tokens: Sequence[int], depth: int) -> Draft:
        [right] = _continuation(request, tokens, 1)
        size = request.host.network.vocabulary
        drafted: list[int] = []
        parents: list[int] = []
        for branch in range(width):
            for place in range(min(length, depth)):
                parents.append(len(drafted) - 1 if place else ROOT)
                drafted.append((right + 1 + branch) % size)
        return Draft(drafted, parents) if drafted else EMPTY

    return drafting_method("adversarial-draft", propose)


def random_draft(nodes: int, seed: int = 0) -> SpeculativeMethod:
    """Drafts random tokens in trees of random shape."""

    def propose(request: Request, tokens: Sequence[int], depth: int) -> Draft:
        generator = np.random.Generator(np.random.Philox(key=[seed, len(tokens)]))
        drafted: list[int] = []
        parents: list[int] = []
        depths = {ROOT: 0}
        for node in range(nodes):
            parent = int(generator.integers(-1, node))
            token = int(generator.integers(request.host.network.vocabulary))
            taken = any(p == parent and t == token for p, t in zip(parents, drafted, strict=True))
            if parent not in depths or depths[parent] >= depth or taken:
                parent = ROOT
                if depth < 1 or any(p == ROOT and t == token for p, t in zip(parents, drafted, strict=True)):
                    continue
            depths[len(drafted)] = depths[parent] + 1
            drafted.append(token)
            parents.append(parent)
        return Draft(drafted, parents)

    return drafting_method("random-draft", propose)
