"""Whether and how a draft model can draft for a target: by the same tokens, by those that both have, or by text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from decodery.engine.vocabularies import SharedTokens, Tokens, difference
from decodery.errors import MethodUnavailable
from decodery.models.kinds import Kind
from decodery.speculative.draft_laws.transcript import OtherTokens, Rendering, SameTokens

if TYPE_CHECKING:
    from decodery.engine.host import Host

AUTO, SAME, SHARED, TEXT = "auto", "same", "shared", "text"
"""The words of the parameter `vocabulary`."""


@dataclass(frozen=True, eq=False)
class Pair:
    """A draft model and how its tokens stand for the target's.

    tokens: (target's, draft model's), where these are not taken to be the same. shared: what both have; None where the
    vocabularies are equal.
    """

    draft: Host
    tokens: tuple[Tokens, Tokens] | None = None
    shared: SharedTokens | None = None

    def rendering(self) -> Rendering:
        """How the draft model reads a request's text, from its beginning."""
        if self.tokens is None or self.shared is None:
            return SameTokens(self.draft.network.vocabulary)
        return OtherTokens(*self.tokens, self.shared.to_draft)

    def rows(self, rows: int) -> int:
        """The most rows of the draft model's cache where the target's has `rows`. Another tokenizer seldom takes more than half
        as many tokens again."""
        needed = rows if self.tokens is None else rows + rows // 2
        return min(needed, self.draft.network.context)


def pair(target: Host, draft: Host, vocabulary: str, method: str) -> Pair:
    """Pair a draft model with a target.

    vocabulary: a word of the parameter. method: who asks, for messages. Raises MethodUnavailable where it cannot work.
    """
    ours, theirs = target.network, draft.network
    if Kind.NEXT_TOKEN not in theirs.kinds:
        raise MethodUnavailable(f"{method}: {theirs.name} is {theirs.kinds.words}, and a draft model is a causal one.")
    mute = next((model.network.name for model in (target, draft) if model.tokenizer is None), None)
    by_number = None
    if ours.vocabulary != theirs.vocabulary:
        by_number = SharedTokens.by_number(ours.vocabulary, theirs.vocabulary)
    if mute is not None:
        if vocabulary == SAME:
            return Pair(draft, shared=by_number)
        raise MethodUnavailable(
            f"{method}: {mute} has no tokenizer that could tell what its tokens say; vocabulary=same takes the tokens of "
            f"{theirs.name} for those of {ours.name}."
        )
    tokens = Tokens(target), Tokens(draft)
    if vocabulary in (AUTO, SAME):
        found = difference(*tokens)
        if found is None:
            return Pair(draft, shared=by_number)
        if vocabulary == SAME:
            raise MethodUnavailable(
                f"{method}: vocabulary=same needs a draft model with the target's tokenizer, but {found}; "
                "vocabulary=shared does without."
            )
    shared = SharedTokens.by_words(*tokens)
    if not len(shared) and vocabulary != TEXT:
        raise MethodUnavailable(f"{method}: no token says the same to {ours.name} and to {theirs.name}.")
    return Pair(draft, tokens, shared)
