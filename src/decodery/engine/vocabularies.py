"""The tokens of two models side by side: whether they are the same, which of them say the same, and text between them.

A draft model whose tokenizer is not the target's can help in two ways. By *shared tokens* its law is restricted to the tokens
that both have and says what it says in the target's ids (token-level intersection). By *text* it writes in its own tokens, and
what it wrote is read with the target's tokenizer (string-level exact match). Both are lossless whatever is misread here, since
the target judges every token: a mistake costs acceptance. Source of both: Timor et al., ICML 2025, arXiv 2502.05202.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

from decodery._lazy import torch
from decodery.engine.text import REPLACEMENT

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.engine.host import Host

SAMPLES = (
    "Hello, world! It's 12345.67, a nai\u0308ve e\u0301tude.\n\n\tdef f(x):\r\n        return x  # why\u2026\n",
    "你好，世界 🙂👩‍💻 مرحبا, Привет",
    "  Two  spaces, HELLO hello",
)
"""Texts that tokenizers with equal tokens read differently where they normalise or split text in another way."""
ANCHORS = ("\n", ".", "a")
"""Texts to put before another one, so that a tokenizer reads that as the middle of a text."""

Word: TypeAlias = tuple[str, str]
"""What a token says: ("text", text), ("special", written) or, for a part of a character, ("part", written)."""


class Tokens:
    """The tokens of one model: what they say, and the tokens of a text.

    model: its `encode` and its tokenizer are used, which must not be None.
    """

    def __init__(self, model: Host):
        self.model, self.name, self.vocabulary = model, model.network.name, model.network.vocabulary
        self.tokenizer: Any = model.tokenizer
        self._anchor = next(([ids[-1]] for sign in reversed(ANCHORS) if (ids := self.encode(sign))), [])
        self._anchor_text = self.decode(self._anchor)

    def encode(self, text: str) -> list[int]:
        """The tokens of a whole text without special tokens around it; none where the tokenizer cannot say it."""
        try:
            ids = self.model.encode(text)
        except Exception:  # a tokenizer without an unknown token raises what it likes
            return []
        return ids if not ids or max(ids) < self.vocabulary else []

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """What a whole text of tokens says. special: write special tokens out."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=not special)
        return text

    def encode_within(self, text: str) -> list[int]:
        """The tokens of a text that goes on another one."""
        for sign in ANCHORS:
            before = self.encode(sign)
            ids = self.encode(sign + text) if before else []
            if ids[: len(before)] == before and ids:
                return ids[len(before) :]
        return self.encode(text)

    def decode_within(self, ids: Sequence[int], special: bool = False) -> str:
        """What tokens say that go on others: spaces that tokenizers leave out at the beginning of a text are there."""
        return self.decode([*self._anchor, *ids], special)[len(self._anchor_text) :]

    def begin(self) -> list[int]:
        """The special tokens that a text begins with."""
        plain = self.encode(ANCHORS[-1])
        whole: list[int] = self.tokenizer.encode(ANCHORS[-1]) if plain else []
        place = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
        return whole[:place]

    def special(self, token: int) -> str | None:
        """How a special token is written; None for any other."""
        if self.decode_within([token]):
            return None
        return self.decode_within([token], special=True) or None

    def written(self) -> dict[int, str]:
        """All tokens as the tokenizer writes them, by id."""
        table = getattr(self.tokenizer, "get_vocab", None)
        if table is not None:
            return {token: word for word, token in table().items() if token < self.vocabulary}
        count = len(self.tokenizer) if hasattr(self.tokenizer, "__len__") else self.vocabulary
        return {token: self.decode([token], special=True) for token in range(min(count, self.vocabulary))}

    def words(self) -> dict[Word, int]:
        """The tokens by what they say within a text. Of a letter and its byte, which say the same, the one that is written."""
        words: dict[Word, int] = {}
        for token, written in sorted(self.written().items()):
            text = self.decode_within([token])
            if REPLACEMENT in text:
                words["part", written] = token
            elif text:
                if ("text", text) not in words or self.encode_within(text) == [token]:
                    words["text", text] = token
            elif (special := self.special(token)) is not None:
                words["special", special] = token
        return words


def difference(target: Tokens, draft: Tokens) -> str | None:
    """What tells the tokenizers of two models apart, in words; None where they are the same but for padding, tokens on top that
    only one of them has, and names of special tokens, since reserved ones are renamed in further training."""
    if target.tokenizer is draft.tokenizer:
        return None
    ours, theirs = target.written(), draft.written()
    shorter = min(ours, theirs, key=len)
    for token in sorted(shorter):
        one, other = ours.get(token), theirs.get(token)
        if one != other and not (target.special(token) and draft.special(token)):
            return f"token {token} is {_quoted(one)} to {target.name} and {_quoted(other)} to {draft.name}"
    for text in SAMPLES:
        if target.encode(text) != draft.encode(text):
            return f"{target.name} and {draft.name} split {text!r} into other tokens"
    return None


def _quoted(word: str | None) -> str:
    return "nothing" if word is None else repr(word)


@dataclass(frozen=True, eq=False)
class SharedTokens:
    """The tokens that target and draft model both have.

    target, draft: [n] int64, their ids in either vocabulary, without repeats. sizes: (target, draft) number of ids.
    """

    target: Tensor
    draft: Tensor
    sizes: tuple[int, int]

    @classmethod
    def by_number(cls, target: int, draft: int) -> SharedTokens:
        """Of one tokenizer under two paddings: the ids that both vocabularies have."""
        ids = torch.arange(min(target, draft))
        return cls(ids, ids, (target, draft))

    @classmethod
    def by_words(cls, target: Tokens, draft: Tokens) -> SharedTokens:
        """Of two tokenizers: the tokens that say the same."""
        theirs = draft.words()
        pairs = sorted((token, theirs[word]) for word, token in target.words().items() if word in theirs)
        ids = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
        return cls(ids[:, 0].contiguous(), ids[:, 1].contiguous(), (target.vocabulary, draft.vocabulary))

    def __len__(self) -> int:
        return len(self.target)

    @cached_property
    def to_draft(self) -> dict[int, int]:
        """The target's id -> the draft model's."""
        return dict(zip(self.target.tolist(), self.draft.tolist(), strict=True))

    def scores(self, row: Tensor) -> Tensor:
        """A row of the draft model's scores [draft ids] as one over the target's tokens [target ids]: what is not shared is at
        minus infinity."""
        found = row.new_full((self.sizes[0],), -float("inf"))
        found[self.target.to(row.device)] = row[self.draft.to(row.device)]
        return found
