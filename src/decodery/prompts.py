"""From what a user gives as a prompt to token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from decodery.conversations import Conversations, Message, Tool
from decodery.engine.prompt_layout import END, SPLIT, START, Arrangement, LaidOutPrompt, PartSet
from decodery.engine.spelling import REPLACEMENT
from decodery.errors import BadPrompt
from decodery.plain import plain

Prompt = str | Sequence[Message] | Sequence[int]
"""A text, a conversation ({"role", "content"} per message), or token ids: a list, or an array of one dimension. Those that
`LanguageModel.tokenize` gives of a prompt with sets say how they are read."""


def is_batch(prompt: Any) -> bool:
    """Whether something is a list of prompts, and not one prompt. An empty list is a list of no prompts."""
    if isinstance(prompt, str | bytes | bytearray) or not isinstance(prompt, Sequence):
        return False
    if not prompt:
        return True
    first = prompt[0]
    return (
        isinstance(first, str) or _is_array(first) or (isinstance(first, Sequence) and not isinstance(first, Mapping))
    )


class PromptReader:
    """Reads prompts for one model. name, vocabulary: of its network. may_be_empty: whether it begins texts by itself."""

    def __init__(self, tokenizer: Any, name: str, vocabulary: int, may_be_empty: bool = False):
        self._tokenizer, self._name, self._vocabulary = tokenizer, name, vocabulary
        self._may_be_empty = may_be_empty

    def read(
        self, prompt: Prompt, tools: Sequence[Tool] | None = None, arrangement: Arrangement | None = None
    ) -> list[int]:
        """Token ids of a prompt, a LaidOutPrompt where it has sets. arrangement: how sets that are marked in its text are read;
        None: marks are text. Raises BadPrompt."""
        if isinstance(prompt, Sequence) and prompt and isinstance(prompt[0], Mapping):
            if not all(isinstance(message, Mapping) for message in prompt):
                raise BadPrompt("a conversation is a list of messages, each with role and content; one here is none.")
            text = Conversations(self._tokenizer, self._name).render(prompt, tools)  # type: ignore[arg-type]
            return self._checked(self._encoded(text, arrangement, add_special_tokens=False))
        if tools:
            raise BadPrompt("tools go with a conversation, a list of messages with role and content.")
        if isinstance(prompt, str):
            if not prompt and not self._may_be_empty:
                raise BadPrompt("the prompt is empty; give at least one character.")
            return self._checked(self._encoded(prompt, arrangement))
        ids = self._checked(_ids(prompt))
        return prompt if isinstance(prompt, LaidOutPrompt) else ids

    def _encoded(self, text: str, arrangement: Arrangement | None, **arguments: bool) -> list[int]:
        """Token ids of a text. Its sets are read piece by piece: what joins across a border would depend on the neighbours."""
        if arrangement is None:
            return self.encode(text, **arguments)
        before, *pieces = pieces_of(text)
        if not pieces:
            return self.encode(text, **arguments)
        assert isinstance(before, str)
        read: list[tuple[int, ...] | PartSet] = [tuple(self.encode(before, **arguments))]
        for piece in pieces:
            texts = (piece,) if isinstance(piece, str) else piece
            ids = tuple(tuple(self.encode(one, add_special_tokens=False)) for one in texts)
            read.append(ids[0] if isinstance(piece, str) else PartSet(ids))
        return arrangement.laid_out(read)

    def encode(self, text: str, **arguments: bool) -> list[int]:
        """Token ids of a text. Raises BadPrompt where it is no Unicode, or the tokenizer has no tokens for it."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadPrompt(
                f"the prompt is not valid Unicode: half a surrogate pair at character {error.start}."
            ) from None
        try:
            ids = list(self._tokenizer.encode(text, **arguments))
        except Exception as error:  # of whatever type the tokenizer's author chose
            word = next((word for word in text.split() if not self._says(word)), None)
            what = "this text" if word is None else repr(word if len(word) <= 50 else word[:50] + "…")
            reason = str(error).strip().rstrip(".") or type(error).__name__
            raise BadPrompt(f"the tokenizer of {self._name} has no tokens for {what} ({reason}).") from error
        lost = _lost(self._tokenizer, text)
        if lost:
            raise BadPrompt(f"the tokenizer of {self._name} has no token for {lost!r}, and none for what is unknown.")
        return ids

    def _says(self, word: str) -> bool:
        try:
            self._tokenizer.encode(word)
        except Exception:
            return False
        return True

    def _checked(self, ids: list[int]) -> list[int]:
        if not ids:
            if self._may_be_empty:
                return ids
            raise BadPrompt("the prompt is empty; give at least one token.")
        if min(ids) < 0 or max(ids) >= self._vocabulary:
            unknown = max(ids) if min(ids) >= 0 else min(ids)
            raise BadPrompt(
                f"the prompt holds token {unknown}{self._text_of(unknown)}, but the tokens of {self._name} are "
                f"0 to {self._vocabulary - 1}."
            )
        return ids

    def _text_of(self, token: int) -> str:
        """How the tokenizer writes a token that it may have beyond the network's, in brackets; nothing where it has none."""
        added: Mapping[str, int] = getattr(self._tokenizer, "get_added_vocab", dict)()
        return next((f" ({text!r})" for text, place in added.items() if place == token), "")


def pieces_of(text: str) -> list[str | tuple[str, ...]]:
    """The texts around the marked sets of a text, and between them the parts of each set: text, parts, text, …, text. Raises
    BadPrompt where marks do not belong together, or a part is empty."""
    before, *rest = text.split(START)
    pieces: list[str | tuple[str, ...]] = [before]
    for piece in rest:
        inner, found, behind = piece.partition(END)
        if not found:
            raise BadPrompt(f"a set begins with {START} and does not end; write {END} behind its last part.")
        parts = tuple(inner.split(SPLIT))
        if not all(parts):
            raise BadPrompt(f"a part of a set is empty; write a text before and behind each {SPLIT}.")
        pieces += [parts, behind]
    stray = next((mark for piece in pieces[::2] for mark in (END, SPLIT) if mark in piece), None)
    if stray is not None:
        raise BadPrompt(f"{stray} stands outside of a set; {START} begins one.")
    return pieces


def _is_array(value: Any) -> bool:
    return hasattr(value, "tolist") and getattr(value, "ndim", 0) > 0


def _ids(prompt: Any) -> list[int]:
    """Token ids of a list, or of an array or tensor that holds one text."""
    if _is_array(prompt):
        if prompt.ndim > 2 or (prompt.ndim == 2 and len(prompt) != 1):
            raise BadPrompt(
                f"an array as a prompt holds the token ids of one text, not {prompt.dtype} {list(prompt.shape)}; "
                "give several as a list, each without padding."
            )
        prompt = prompt.flatten().tolist()
    if not isinstance(prompt, Sequence) or isinstance(prompt, str | bytes | bytearray):
        raise BadPrompt(
            "a prompt is a string, a list of messages with role and content, or a list of token ids, "
            f"not {type(prompt).__name__}."
        )
    ids = [plain(token) for token in prompt]
    for token in ids:
        if not isinstance(token, int) or isinstance(token, bool):
            raise BadPrompt(f"a prompt in token ids holds whole numbers; this one holds {token!r}.")
    return ids


def _lost(tokenizer: Any, text: str) -> str:
    """A character that a tokenizer drops without a word: of byte pairs without an unknown token, where bytes are missing."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    model: Any = getattr(backend, "model", None)
    if type(model).__name__ != "BPE" or model.unk_token is not None or model.byte_fallback:
        return ""
    normal = backend.normalizer.normalize_str if backend.normalizer is not None else str
    for sign in dict.fromkeys(text):
        if sign.isspace() or sign == REPLACEMENT or not normal(sign):
            continue
        ids = backend.encode(sign, add_special_tokens=False).ids
        if not ids or REPLACEMENT in backend.decode(ids):
            return sign
    return ""
