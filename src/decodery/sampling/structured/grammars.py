"""Grammars over the tokens of a model: which token may come after which tokens, by llguidance."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from decodery._lazy import np, torch
from decodery.errors import BadSetting, ConstraintFailed, reason
from decodery.sampling.forbidding import FORBIDDEN, on_cpu
from decodery.sampling.settings import special_ids
from decodery.sampling.structured.automata import TokenAutomaton
from decodery.sampling.structured.constraint import Constraint
from decodery.sampling.structured.endings import check_ends
from decodery.sampling.structured.regular import expression_of

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from llguidance import LLMatcher, LLTokenizer
    from torch import Tensor

    from decodery.sampling.settings import Speller

MOST_GRAMMARS = 64
"""Compiled grammars that are kept for a model, the least recently used forgotten first."""
MOST_PLACES = 1024
"""Places within the texts of a grammar that are kept, with what may follow there."""
NOTHING_FOLLOWS = {"NoExtension", "NoExtensionBias"}
"""How llguidance says that no token goes on with a text."""
PROBE = 'The 2 qüick foxes:\n  {"a": [1.5, true]}'
"""A text by whose tokens it is seen whether their bytes are understood."""
UNKNOWN = "\ufffd"


@dataclass(eq=False, slots=True)
class Place:
    """After some tokens. matcher: llguidance's state there. follows: the tokens that may come, once somebody asked for them,
    end tokens aside: uint8 [bytes], a bit for each token. ends: whether the text may end there. broken: what is wrong with the
    tokens, where they break the constraint."""

    matcher: LLMatcher
    follows: Any = None
    ends: bool = False
    broken: str = ""


class Grammars:
    """The compiled grammars of a model. vocabulary: how many tokens it scores. silent: its special tokens."""

    def __init__(self, tokenizer: LLTokenizer, vocabulary: int, silent: Sequence[int] = ()):
        self.tokenizer, self.vocabulary, self.silent = tokenizer, vocabulary, tuple(silent)
        self._compiled: OrderedDict[str, Compiled] = OrderedDict()

    @classmethod
    def of(cls, speller: Speller) -> Grammars:
        """Those of a model. Raises BadSetting where the bytes of its tokens are not known."""
        return cls(_tokens(speller), speller.size, special_ids(speller.tokenizer))

    @cached_property
    def said(self) -> Sequence[bytes]:
        """The bytes of every token."""
        return [bytes(self.tokenizer.decode_bytes([token])) for token in range(self.vocabulary)]

    def compiled(self, constraint: Constraint) -> Compiled:
        """The grammar of a constraint over these tokens; `ruled.compiled` knows rules, too. Raises BadSetting where it cannot
        be compiled, or no token can begin it."""
        found = self._compiled.get(constraint.grammar)
        if found is None:
            check_ends(constraint)
            found = Compiled(constraint, self)
            self._compiled[constraint.grammar] = found
            if len(self._compiled) > MOST_GRAMMARS:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(constraint.grammar)
        return found


class Compiled:
    """A constraint over the tokens of a model. Nothing in it belongs to a request: what may come follows from the tokens alone,
    so forks, draft trees and beams ask for any place at any time."""

    def __init__(self, constraint: Constraint, grammars: Grammars):
        from llguidance import LLMatcher

        self.constraint, self.grammars = constraint, grammars
        self._vocabulary, self._marks = grammars.vocabulary, list(grammars.tokenizer.eos_tokens)
        start = Place(LLMatcher(grammars.tokenizer, constraint.grammar, log_level=0))
        if start.matcher.is_error():
            raise BadSetting(f"structured_outputs cannot be kept to: {_first_line(start.matcher)}.")
        self._start = start
        self._places: OrderedDict[tuple[int, ...], Place] = OrderedDict()
        self._look(start, ())
        if not start.ends and not start.follows.any():
            raise BadSetting("structured_outputs accepts no text that this model's tokens could say.")

    def __str__(self) -> str:
        return str(self.constraint)

    def broken(self, tokens: tuple[int, ...]) -> str:
        """What is wrong with these tokens of an output; empty where they keep to the constraint."""
        return self._place(tokens).broken

    def allowed(self, tokens: tuple[int, ...]) -> tuple[Tensor, bool]:
        """What may come after these tokens of the output: bool [vocabulary], end tokens aside, and whether it may end there.
        Where bytes must come, these are their usual tokens alone, not every token that begins them.
        Raises ConstraintFailed where the tokens break the constraint, or where the grammar becomes too large there."""
        place = self._looked_at(tokens)
        bits = np.unpackbits(place.follows, bitorder="little")[: self._vocabulary]
        return torch.from_numpy(bits.view(np.bool_)), place.ends

    def allows(self, tokens: tuple[int, ...], token: int) -> bool:
        """Whether `allowed` names a token; where only this is asked, nothing else is looked at. Raises ConstraintFailed where
        the tokens break the constraint."""
        place = self._unbroken(tokens)
        if place.follows is not None:
            return bool(place.follows[token >> 3] >> (token & 7) & 1)
        if token in self._marks or place.matcher.validate_tokens([token]) != 1:
            return False
        forced = place.matcher.compute_ff_tokens()
        return not forced or token == forced[0]

    def forbid(self, row: Float[Tensor, "vocabulary"], tokens: tuple[int, ...]) -> bool:
        """Forbid in a row, in place, what `allowed` does not name. Whether the output may end there. Raises ConstraintFailed as
        it does."""
        place = self._looked_at(tokens)
        if on_cpu(row) and row.dtype == torch.float32 and row.is_contiguous() and len(row) == 8 * len(place.follows):
            # In a table of bytes there is more than twice as fast as with a mask of bools.
            eights = row.numpy().reshape(-1, 8)
            eights += np.take(_penalties(), place.follows, axis=0)
        else:
            mask(row, self.allowed(tokens)[0])
        return place.ends

    def _unbroken(self, tokens: tuple[int, ...]) -> Place:
        place = self._place(tokens)
        check_unbroken(place.broken)
        return place

    def _looked_at(self, tokens: tuple[int, ...]) -> Place:
        place = self._unbroken(tokens)
        if place.follows is None:
            self._look(place, tokens)
        return place

    @cached_property
    def automaton(self) -> TokenAutomaton:
        """The same as a table of moves, for texts that are not written from left to right. Raises Refused where none can be."""
        silent = {*self.grammars.silent, *self._marks}
        said = [b"" if token in silent else one for token, one in enumerate(self.grammars.said)]
        return TokenAutomaton.of(expression_of(self.constraint), said)

    @property
    def unforced(self) -> Compiled:
        """The same constraint, of which bytes that must come may come in any tokens."""
        return self.grammars.compiled(self.constraint.unforced)

    def may_follow(self, tokens: tuple[int, ...], token: int) -> bool:
        """Whether a token may come after these; of bytes that must come, every token that begins them."""
        place = self._place(tokens)
        return not place.broken and bool(place.matcher.validate_tokens([token]) == 1)

    def may_end(self, tokens: tuple[int, ...]) -> bool:
        """Whether an output may end after these tokens."""
        place = self._place(tokens)
        return not place.broken and bool(place.matcher.is_accepting())

    def forced(self, tokens: tuple[int, ...]) -> list[int]:
        """Tokens that must come after these, one after the other, if any text still fits; none where more than one may come."""
        place = self._place(tokens)
        return [] if place.broken else list(place.matcher.compute_ff_tokens())

    def _place(self, tokens: tuple[int, ...]) -> Place:
        if (found := self._places.get(tokens)) is not None:
            self._places.move_to_end(tokens)
            return found
        before, kept = self._start, 0
        for length in range(len(tokens) - 1, 0, -1):
            if (known := self._places.get(tokens[:length])) is not None:
                before, kept = known, length
                break
        place = Place(before.matcher.deep_copy())
        if not before.broken and not place.matcher.consume_tokens(list(tokens[kept:])):
            place.broken = _first_line(place.matcher)
        place.broken = place.broken or before.broken
        self._places[tokens] = place
        if len(self._places) > MOST_PLACES:
            self._places.popitem(last=False)
        return place

    def _look(self, place: Place, tokens: tuple[int, ...]) -> None:
        matcher = place.matcher
        place.ends = matcher.is_accepting()
        mask = b"" if matcher.is_stopped() else matcher.compute_bitmask()
        if matcher.is_error() and _first_line(matcher) not in NOTHING_FOLLOWS:
            raise ConstraintFailed(
                f"structured_outputs is too large to follow behind {len(tokens)} tokens: {_first_line(matcher)}."
            )
        if matcher.is_stopped():
            mask = bytes(-(-self._vocabulary // 8))
        place.follows = np.frombuffer(mask, np.uint8)[: -(-self._vocabulary // 8)].copy()
        for mark in self._marks:  # llguidance lets its own end token come where the text may end
            place.follows[mark >> 3] &= ~(1 << (mark & 7)) & 255


def check_unbroken(broken: str) -> None:
    """Raise ConstraintFailed where something is wrong with the tokens of an output."""
    if broken:
        raise ConstraintFailed(f"the output does not keep to structured_outputs: {broken}.")


def mask(row: Float[Tensor, "vocabulary"], allowed: Bool[Tensor, "vocabulary"]) -> None:
    """Forbid in a row, in place, what is not allowed."""
    row.masked_fill_(~allowed.to(row.device), FORBIDDEN)


@cache
def _penalties() -> Any:
    """By the bits of a byte, the first one lowest: what is added to eight scores, float32 [256, 8]."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return np.where(bits > 0, np.float32(0), np.float32(FORBIDDEN))


def _first_line(matcher: LLMatcher) -> str:
    return str(matcher.get_error()).strip().partition("\n")[0].rstrip(".")


def _tokens(speller: Speller) -> LLTokenizer:
    """llguidance's view of a model's tokens. Raises BadSetting where it is another than the tokenizer's own."""
    from llguidance import LLTokenizer, TokenizerWrapper

    tokenizer = speller.tokenizer
    end = getattr(tokenizer, "eos_token_id", None)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    try:
        if backend is not None:
            found = LLTokenizer(backend.to_str(), n_vocab=speller.size, eos_token=end)
        else:
            found = LLTokenizer(TokenizerWrapper(_Written(speller, end)), n_vocab=speller.size)
    except ValueError as error:
        raise BadSetting(f"structured_outputs does not read the tokenizer of this model: {reason(error)}.") from error
    ids = list(speller.encode(PROBE))
    said, read = speller.tokenizer.decode(ids), found.decode_bytes(ids).decode(errors="replace")
    if said.lstrip(" ") != read.lstrip(" "):  # some tokenizers write a space before a text, and take it off again
        raise BadSetting(
            f"structured_outputs reads the tokens of this model's {type(tokenizer).__name__} as {read!r} where it says "
            f"{said!r}; use a tokenizer of the package tokenizers."
        )
    return found


class _Written:
    """The tokens of a tokenizer of another kind, as llguidance asks for them: as its method token_bytes gives them, or as the
    text that each is by itself. Special tokens say nothing."""

    def __init__(self, speller: Speller, end: int | None):
        self.tokens = _bytes_of(speller)
        self.special_token_ids: list[int] = []
        self.eos_token_id = speller.size - 1 if end is None else end
        self.bos_token_id = None
        self._words = {said: token for token, said in reversed(list(enumerate(self.tokens))) if said}

    def __call__(self, text: str | bytes) -> list[int]:
        """Tokens of a text, the longest first. Only what llguidance would force asks for it."""
        rest, found = text.encode() if isinstance(text, str) else text, []
        while rest:
            length = next((n for n in range(len(rest), 0, -1) if rest[:n] in self._words), 0)
            if not length:
                break
            found.append(self._words[rest[:length]])
            rest = rest[length:]
        return found


def _bytes_of(speller: Speller) -> list[bytes]:
    tokenizer = speller.tokenizer
    say = getattr(tokenizer, "token_bytes", None)
    if say is not None:
        return [bytes(say(token)) for token in range(speller.size)]
    texts = list(speller.written())
    texts += [""] * (speller.size - len(texts))
    odd = next((token for token, text in enumerate(texts) if UNKNOWN in text), None)
    if odd is not None:
        raise BadSetting(
            f"structured_outputs needs the bytes of all tokens, and {type(tokenizer).__name__} does not say those of token "
            f"{odd}; use a tokenizer of the package tokenizers."
        )
    special = set(special_ids(tokenizer))
    return [b"" if token in special else text.encode() for token, text in enumerate(texts)]
