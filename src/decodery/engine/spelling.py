"""What must be known of a tokenizer, beyond its `decode`, to turn tokens into text as they come."""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from decodery.sampling.settings import special_ids

if TYPE_CHECKING:
    from decodery.models.scorer import Scorer

Value = TypeVar("Value")
REPLACEMENT = "\ufffd"
CLEANED = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")
"""What `clean_up_tokenization_spaces` of transformers takes a space out of, in this order."""
CLEANED_TWICE = ("  ' m", "  ' s", "  ' ve", "  ' re", " n ' t", "'.")
"""What it finds only after it has taken another space out; the last one undoes " ' "."""
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_WRITTEN_REPLACEMENTS = (REPLACEMENT, "ï¿½", "<0xEF><0xBF><0xBD>")
"""How tokens spell the character itself: as it is, in the letters of byte-level tokenizers, in byte tokens."""


class Decoder(Protocol):
    """The part of a tokenizer that this needs."""

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = ...) -> str: ...


class Writing(Protocol):
    """A model whose tokens and texts are known."""

    tokenizer: Any
    network: Scorer
    memory: dict[Hashable, Any]

    def encode(self, text: str) -> list[int]: ...


class WrittenTokens:
    """What a model's tokens say, each by itself."""

    def __init__(self, model: Writing):
        self._model = model

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self._model.tokenizer

    @property
    def size(self) -> int:
        """How many tokens the model scores."""
        return self._model.network.vocabulary

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Tokens that are no text: ends, turns of a chat, padding."""
        return special_ids(self.tokenizer)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without special tokens around it."""
        return self._model.encode(text)

    def written(self) -> tuple[str, ...]:
        """The text of every token, special ones too. Found out once for each model."""
        tokenizer = self._model.tokenizer
        size = min(self._model.network.vocabulary, len(tokenizer))
        return self.remember("written tokens", lambda: tuple(tokenizer.decode([token]) for token in range(size)))

    def remember(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """What follows from the tokenizer alone; made on first use."""
        place, memory = (None, key), self._model.memory
        if place not in memory:
            memory[place] = make()
        known: Value = memory[place]
        return known


class Spelling:
    """Facts about the tokens of one tokenizer, found by asking it, and remembered."""

    def __init__(self, tokenizer: Decoder):
        self._decode = tokenizer.decode
        self._name: Any = getattr(tokenizer, "convert_ids_to_tokens", None)
        self._unseen: dict[int, str | None] = {}
        self._bytes: dict[int, int | None] = {}
        self.rewritten = _rewritten(tokenizer)
        """Strings that decoding rewrites where tokens together spell them; text that begins one is not settled."""

    @classmethod
    def of(cls, tokenizer: Decoder) -> Spelling:
        """The one of this tokenizer; shared where the tokenizer can be a key."""
        try:
            if tokenizer not in _KNOWN:
                _KNOWN[tokenizer] = cls(tokenizer)
            return _KNOWN[tokenizer]
        except TypeError:  # not hashable, or without weak references
            return cls(tokenizer)

    def text(self, ids: Sequence[int]) -> str:
        """The visible text of tokens: without special ones."""
        return self._decode(ids, skip_special_tokens=True)

    def unseen(self, token: int) -> str | None:
        """What a token says that visible text leaves out: a special token's own text, nothing for an id without a token.
        None for all other tokens."""
        if token not in self._unseen:
            hidden = self.text([token]) == ""
            text = self._decode([token], skip_special_tokens=False) if hidden else ""
            if hidden and not text and self._name is not None and not self._name(token):
                return ""  # not for ever: tokenizers can be given more tokens
            self._unseen[token] = text or None
        return self._unseen[token]

    def byte(self, token: int) -> int | None:
        """The byte that a byte-fallback token stands for; None for other tokens.

        Decoding reads a whole run of such tokens at once: if it is not UTF-8, none of its characters is one.
        """
        if self._name is None:
            return None
        if token not in self._bytes:
            name = self._name(token)
            match = _BYTE.fullmatch(name) if isinstance(name, str) else None
            literal = match is not None and name in self._decode([token], skip_special_tokens=False)
            self._bytes[token] = None if match is None or literal else int(match[1], 16)
        return self._bytes[token]

    def incomplete(self, ids: Sequence[int], text: str) -> int:
        """How many signs at the end of the text of `ids` stand for bytes that are no character (yet)."""
        count = len(text) - len(text.rstrip(REPLACEMENT))
        if count and self._name is not None:
            written = "".join(str(self._name(token)) for token in ids[-3:])
            if written.endswith(_WRITTEN_REPLACEMENTS):
                return 0  # the character of that name
        return count


_KNOWN: weakref.WeakKeyDictionary[Any, Spelling] = weakref.WeakKeyDictionary()


def _rewritten(tokenizer: Any) -> tuple[str, ...]:
    patterns = (*CLEANED, *CLEANED_TWICE) if getattr(tokenizer, "clean_up_tokenization_spaces", None) is True else ()
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is None:
        return patterns
    steps = json.loads(decoder.__getstate__()).get("decoders", [])
    kinds = [step["type"] for step in steps]
    # Before the pieces are joined, a replacement looks at one token alone.
    joined = steps[kinds.index("Fuse") + 1 :] if "Fuse" in kinds else []
    replaced = (step["pattern"].get("String") for step in joined if step["type"] == "Replace")
    return (*patterns, *(pattern for pattern in replaced if pattern))
