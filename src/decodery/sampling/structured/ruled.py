"""Rules over the tokens of a model: code that is asked which token may come, beside a grammar or alone."""

from __future__ import annotations

import codecs
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from decodery._lazy import torch
from decodery.errors import BadSetting
from decodery.sampling.structured.constraint import Constraint
from decodery.sampling.structured.grammars import MOST_PLACES, Compiled, check_unbroken, mask

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from decodery.sampling.structured.grammars import Grammars
    from decodery.sampling.structured.rules import AskedRule


@dataclass(eq=False, slots=True)
class Reached:
    """After some tokens. text: what they say as far as their characters are whole; pending: bytes of one that is not. broken:
    what is wrong with them. may: whether longer texts may follow, where somebody asked. tried: those that may not, and of which
    it was seen that a longer one may not either. allowed: see `Ruled.allowed`."""

    text: str
    pending: bytes
    broken: str = ""
    may: dict[str, bool] = field(default_factory=dict)
    tried: set[str] = field(default_factory=set)
    allowed: tuple[Tensor, bool] | None = None


class Ruled(Compiled):
    """A constraint with a rule, over the tokens of a model. As in `Compiled` nothing in it belongs to a request."""

    def __init__(self, constraint: Constraint, grammars: Grammars, grammar: Compiled | None):
        assert constraint.rule is not None
        self.constraint, self.grammars, self._grammar = constraint, grammars, grammar
        self._vocabulary = grammars.vocabulary
        self.rule: AskedRule = constraint.rule
        self._marks = sorted({*grammars.tokenizer.eos_tokens, *grammars.silent})
        self._reached: OrderedDict[tuple[int, ...], Reached] = OrderedDict({(): Reached("", b"")})
        if not self.rule.begins(""):
            raise BadSetting(f"structured_outputs accepts no text: {self.rule.called} says no to the empty beginning.")

    @property
    def unforced(self) -> Compiled:
        grammar = None if self._grammar is None else self._grammar.unforced
        return Ruled(self.constraint, self.grammars, grammar)

    def broken(self, tokens: tuple[int, ...]) -> str:
        return self._at(tokens).broken

    def allowed(self, tokens: tuple[int, ...]) -> tuple[Tensor, bool]:
        """As of a grammar. Every token that the grammar allows is asked about, character by character: what a beginning forbids
        is not asked of what is longer. So it takes seconds where a rule allows much; `awrs` asks about few tokens."""
        place = self._kept_to(tokens)
        if place.allowed is None:
            if self._grammar is None:
                candidates = torch.ones(self._vocabulary, dtype=torch.bool)
            else:
                candidates = self._grammar.allowed(tokens)[0]
            candidates[self._marks] = False
            said = self.grammars.said
            for token in candidates.nonzero()[:, 0].tolist():
                candidates[token] = self._may(place, said[token])
            place.allowed = candidates, self.may_end(tokens)
        return place.allowed[0].clone(), place.allowed[1]

    def allows(self, tokens: tuple[int, ...], token: int) -> bool:
        place = self._kept_to(tokens)
        if token in self._marks or (self._grammar is not None and not self._grammar.allows(tokens, token)):
            return False
        return self._may(place, self.grammars.said[token])

    def forbid(self, row: Float[Tensor, "vocabulary"], tokens: tuple[int, ...]) -> bool:
        allowed, ends = self.allowed(tokens)
        mask(row, allowed)
        return ends

    def _kept_to(self, tokens: tuple[int, ...]) -> Reached:
        """Raises ConstraintFailed where the tokens break the constraint."""
        place = self._at(tokens)
        check_unbroken(place.broken)
        return place

    def may_follow(self, tokens: tuple[int, ...], token: int) -> bool:
        place = self._at(tokens)
        if place.broken or token in self._marks:
            return False
        if self._grammar is not None and not self._grammar.may_follow(tokens, token):
            return False
        return self._may(place, self.grammars.said[token])

    def may_end(self, tokens: tuple[int, ...]) -> bool:
        place = self._at(tokens)
        if place.broken or place.pending or (self._grammar is not None and not self._grammar.may_end(tokens)):
            return False
        return self.rule.accepts(place.text)

    def forced(self, tokens: tuple[int, ...]) -> list[int]:
        return [] if self._grammar is None else self._grammar.forced(tokens)

    def weight(self, tokens: tuple[int, ...]) -> float:
        """How much the text of these tokens is worth, which ends with them."""
        return self.rule.weight(self._at(tokens).text)

    def promise(self, tokens: tuple[int, ...]) -> float:
        """How much is to be hoped for behind these tokens."""
        return self.rule.promise(self._at(tokens).text)

    def _at(self, tokens: tuple[int, ...]) -> Reached:
        if (found := self._reached.get(tokens)) is not None:
            self._reached.move_to_end(tokens)
            return found
        kept = next(
            length for length in range(len(tokens) - 1, -1, -1) if tokens[:length] in self._reached or not length
        )
        place = self._reached.get(tokens[:kept]) or Reached("", b"")
        for token in tokens[kept:]:
            if place.broken:
                break
            step = _decoded(place.pending + self.grammars.said[token])
            if step is None or not self._may(place, self.grammars.said[token]):
                place = Reached(
                    place.text, place.pending, f"{self.rule.called} allows no token {token} after {place.text!r}"
                )
            else:
                place = Reached(place.text + step[0], step[1])
        if self._grammar is not None and not place.broken and (broken := self._grammar.broken(tokens)):
            place = Reached(place.text, place.pending, broken)
        self._reached[tokens] = place
        if len(self._reached) > MOST_PLACES:
            self._reached.popitem(last=False)
        return place

    def _may(self, place: Reached, said: bytes) -> bool:
        """Whether bytes may come next, by the rule alone. Every character is asked about by itself, until the rule says no;
        then the whole is asked about once, to see that the rule keeps to its no."""
        step = _decoded(place.pending + said) if said else None
        if step is None:
            return False
        whole = step[0]
        for end in range(1, len(whole) + 1):
            part = whole[:end]
            if part not in place.may:
                place.may[part] = self.rule.begins(place.text + part)
            if not place.may[part]:
                if end < len(whole) and part not in place.tried:
                    place.tried.add(part)
                    if self.rule.begins(place.text + whole):
                        raise self.rule.not_closed(place.text + part, place.text + whole)
                return False
        return True


def compiled(grammars: Grammars, constraint: Constraint) -> Compiled:
    """A constraint over the tokens of a model. Raises BadSetting where no text keeps to it."""
    if constraint.rule is None:
        return grammars.compiled(constraint)
    # What is kept of a grammar must know of no rule: others ask for the same grammar without one.
    grammar = grammars.compiled(replace(constraint, rule=None)) if constraint.grammar else None
    return Ruled(constraint, grammars, grammar)


def _decoded(said: bytes) -> tuple[str, bytes] | None:
    """The whole characters of some bytes, and what is left of one that is not whole; None where they are none."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        text = decoder.decode(said)
    except UnicodeDecodeError:
        return None
    return text, decoder.getstate()[0]
