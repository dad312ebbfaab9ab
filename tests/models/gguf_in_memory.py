"""GGUF files that are only a head in memory: what a tokenizer is built from, without weights and without a file."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

from decodery.models.gguf.file import GgufFile

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
BYTES = [f"<0x{value:02X}>" for value in range(256)]


def gguf_file(kind: str, tokens: list[str], types: list[int] | None = None, **entries: Any) -> GgufFile:
    """A file whose `tokenizer.ggml.*` entries are `entries`; names with dots in them go through `metadata`."""
    metadata = entries.pop("metadata", {})
    said: dict[str, Any] = {"model": kind, "tokens": tokens, **entries}
    if types is not None:
        said["token_type"] = types
    head = {
        "general.architecture": "llama",
        **{f"tokenizer.ggml.{key}": value for key, value in said.items()},
        **metadata,
    }
    return GgufFile((Path("x.gguf"),), head, ())


def byte_level(
    pre: str | None, merges: list[str] | None = None, more: dict[str, int] | None = None, **entries: Any
) -> GgufFile:
    """All bytes, what the merges make, and `more` tokens with their types, which come first."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    more, merges = more or {}, merges or []
    plain = [*bytes_to_unicode().values(), *dict.fromkeys(merge.replace(" ", "") for merge in merges)]
    types = [*more.values(), *[NORMAL] * len(plain)]
    if pre is not None:
        entries["pre"] = pre
    return gguf_file("gpt2", [*more, *plain], types, merges=merges, **entries)


def sentencepiece(words: dict[str, float], more: dict[str, int] | None = None, **entries: Any) -> GgufFile:
    """`<unk>`, `<s>`, `</s>`, all bytes, letters, `words` with their scores, and `more` tokens with their types."""
    more = more or {}
    letters = [letter for letter in ["▁", *string.ascii_letters, *string.digits] if letter not in words]
    tokens = ["<unk>", "<s>", "</s>", *BYTES, *words, *letters, *more]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * (len(words) + len(letters)), *more.values()]
    scores = [*[0.0] * 259, *words.values(), *(-1000.0 - i for i in range(len(letters))), *[-1e4] * len(more)]
    return gguf_file("llama", tokens, types, scores=scores, **entries)
