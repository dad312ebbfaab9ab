"""The vocabulary of a GGUF file: its tokens, what kind each is, and which of them begin, end and pad a text.

What a file leaves out has the defaults of llama.cpp, but only where they fit the file; what contradicts itself is an
error that names the token, because a wrong vocabulary gives wrong text without any sign of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decodery.errors import ModelNotReadable
from decodery.models.gguf.file import GgufFile
from decodery.models.gguf.splits import SPLITS, SPLITS_BY_ARCHITECTURE, Split

# Types of tokens: https://github.com/ggml-org/llama.cpp/blob/master/include/llama.h (llama_token_type)
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

SPACE = "\u2581"  # how SentencePiece writes a space

BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))

# Kinds of tokenizers that no causal language model which is read here has, and what has them.
_OTHER_KINDS = {
    "bert": "word pieces, of encoders",
    "t5": "unigram SentencePiece, of encoders and of encoders with decoders",
    "rwkv": "the longest token first, of RWKV",
    "plamo2": "of PLaMo 2",
    "hybriddna": "of models of DNA",
    "whitespace": "of embedding models",
    "none": "no tokenizer at all",
    "no_vocab": "no tokenizer at all",
}

# Names that say what a token is for, whatever its type: they end an answer, a turn or a text.
_ENDS = frozenset(
    (
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|calls|>", "<|flush|>", "<end_of_turn>"),
        *("<|endoftext|>", "<|end_of_text|>", "<|eom_id|>", "<end_of_utterance>", "<turn|>", "<|tool_response>"),
        *("[e~[", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
    )
)
# The same, but words that a text may hold too; they count where the file says that they are control tokens.
_ENDS_IF_CONTROL = frozenset(("</s>", "<eos>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]"))


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a GGUF file says about tokens. Ids are places in `tokens`; None where there is no such token."""

    path: Path
    kind: str  # gpt2, llama or gemma4
    tokens: list[str]
    types: list[int]
    scores: list[float] | None
    merges: list[tuple[str, str]]
    split: Split | None  # None: SentencePiece
    begin: int | None
    end: int | None
    unknown: int | None
    padding: int | None
    adds_begin: bool
    adds_end: bool
    space_before: bool  # SentencePiece: whether a space stands before every text
    ends: list[int]  # all tokens that end a text, the end token first
    ignores_spaces_after: frozenset[int]  # spaces that follow these tokens in a text are not part of it

    @classmethod
    def read(cls, file: GgufFile) -> Vocabulary:
        """Raises ModelNotReadable where the file holds no vocabulary, one of another kind, or a damaged one."""
        kind = _kind(file)
        tokens = _tokens(file)
        split = _split(file, kind)
        types = _numbers(file, "token_type", len(tokens)) or [NORMAL] * len(tokens)
        if unusual := set(types) - {NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE}:
            raise ModelNotReadable(f"{file.path} has a token of type {min(unusual)}; the types 1 to 6 are known.")
        ids = {name: _id(file, f"{name}_token_id", len(tokens)) for name in ("bos", "eos", "unknown", "padding")}
        if kind == "llama":  # the places of Llama's own vocabulary, unless something else stands there
            for name, place, types_there in (
                ("unknown", 0, (UNKNOWN,)),
                ("bos", 1, (CONTROL,)),
                ("eos", 2, (CONTROL,)),
            ):
                if ids[name] is None and place < len(tokens) and types[place] in types_there:
                    ids[name] = place
        ends = _ends(file, tokens, types, ids)
        types = [CONTROL if token in _ENDS else kind for token, kind in zip(tokens, types, strict=True)]
        adds_begin = _adds(file, "bos", split is None or split.adds_begin, ids["bos"])
        if kind == "gemma4":  # files of its first days say the opposite, which the networks cannot take
            adds_begin = ids["bos"] is not None
        return cls(
            path=file.path,
            kind=kind,
            tokens=tokens,
            types=types,
            scores=_numbers(file, "scores", len(tokens)),
            merges=_merges(file),
            split=split,
            begin=ids["bos"],
            end=ids["eos"],
            unknown=ids["unknown"],
            padding=ids["padding"],
            adds_begin=adds_begin,
            adds_end=_adds(file, "eos", False, ids["eos"]),
            space_before=kind == "llama" and bool(file.tokenizer("add_space_prefix", True)),
            ends=ends,
            ignores_spaces_after=_ignores_spaces_after(file, kind, tokens, types),
        )


def _kind(file: GgufFile) -> str:
    kind = str(file.tokenizer("model", "none"))
    if kind in ("gpt2", "llama", "gemma4"):
        return kind
    known = f" ({_OTHER_KINDS[kind]})" if kind in _OTHER_KINDS else ""
    raise ModelNotReadable(
        f"{file.path} has a tokenizer of kind {kind!r}{known}; the kinds gpt2, llama and gemma4 can be converted."
    )


def _tokens(file: GgufFile) -> list[str]:
    found = file.tokenizer("tokens")
    if not found:
        raise ModelNotReadable(f"{file.path} holds no vocabulary; a GGUF file with a tokenizer is needed.")
    tokens = [str(token) or f"[EMPTY_{place}]" for place, token in enumerate(found)]  # the name that llama.cpp gives
    first: dict[str, int] = {}
    for place, token in enumerate(tokens):
        if not token.isascii() and any("\udc80" <= letter <= "\udcff" for letter in token):  # bytes that are no text
            raise ModelNotReadable(
                f"{file.path} holds a token that is not valid UTF-8 (token {place}); convert the model again."
            )
        if first.setdefault(token, place) != place:
            raise ModelNotReadable(
                f"{file.path} holds the same token twice ({token!r} is token {first[token]} and token {place}); "
                "its vocabulary is damaged."
            )
    return tokens


def _split(file: GgufFile, kind: str) -> Split | None:
    if kind == "llama":
        return None
    named = file.tokenizer("pre")
    if kind == "gemma4":
        named = "gemma4"
    elif not named:
        named = SPLITS_BY_ARCHITECTURE.get(file.architecture)
        if named is None and not file.tokenizer("merges"):
            named = "gpt-2"  # where nothing is merged, every split gives the same tokens
        if named is None:
            raise ModelNotReadable(
                f"{file.path} does not say how it splits text (tokenizer.ggml.pre), as files of early 2024 do not; "
                "convert the model again."
            )
    if named not in SPLITS:
        raise ModelNotReadable(
            f"{file.path} splits text in a way that is not known here ({named!r}); known: {', '.join(sorted(SPLITS))}."
        )
    return SPLITS[named]


def _merges(file: GgufFile) -> list[tuple[str, str]]:
    """Which two tokens are joined, first ones first. The space between the two is never the first character."""
    merges: dict[tuple[str, str], None] = {}
    for merge in file.tokenizer("merges") or ():
        place = merge.find(" ", 1)
        if place < 0:
            raise ModelNotReadable(
                f"{file.path} holds a damaged list of merges ({merge!r}); copy or download it again."
            )
        merges.setdefault((merge[:place], merge[place + 1 :]))
    return list(merges)


def _numbers(file: GgufFile, key: str, count: int) -> list[Any] | None:
    numbers = file.tokenizer(key)
    if numbers is None:
        return None
    if not isinstance(numbers, list) or len(numbers) < count:
        raise ModelNotReadable(
            f"{file.path} is inconsistent: {count} tokens, but tokenizer.ggml.{key} does not have that many entries."
        )
    return list(numbers[:count])


def _id(file: GgufFile, key: str, count: int) -> int | None:
    found = file.tokenizer(key)
    return None if found is None else _checked(file, key, found, count)


def _checked(file: GgufFile, key: str, place: Any, count: int) -> int:
    if not isinstance(place, int) or not 0 <= place < count:
        raise ModelNotReadable(
            f"{file.path} is inconsistent: tokenizer.ggml.{key} is {place}, but the tokens are 0 to {count - 1}."
        )
    return place


def _adds(file: GgufFile, name: str, by_default: bool, place: int | None) -> bool:
    """Whether the token `name` stands at its end of every text."""
    wanted = bool(file.tokenizer(f"add_{name}_token", by_default))
    if wanted and place is None:
        raise ModelNotReadable(
            f"{file.path} puts a token around every text but does not say which: tokenizer.ggml.{name}_token_id is missing."
        )
    return wanted


def _ends(file: GgufFile, tokens: Sequence[str], types: Sequence[int], ids: dict[str, int | None]) -> list[int]:
    """The tokens that end a text: those that the file names, and those whose names say so."""
    end, unknown = ids["eos"], ids["unknown"]
    roles = ("eot", "eom", "fim_pad", "fim_rep", "fim_sep")
    named = [end, *(_id(file, f"{role}_token_id", len(tokens)) for role in roles)]
    named += [_checked(file, "eos_token_ids", i, len(tokens)) for i in file.tokenizer("eos_token_ids") or ()]
    # What stands for unknown letters is no end, whatever its name (SmolLM2's is <|endoftext|>).
    more = [
        i
        for i, token in enumerate(tokens)
        if (token in _ENDS or (token in _ENDS_IF_CONTROL and types[i] == CONTROL)) and i != unknown
    ]
    ends = [place for place in dict.fromkeys((*named, *more)) if place is not None]
    texts = {tokens[i] for i in ends}
    spared = set()
    if {"<|call|>", "<|return|>"} <= texts or ("<|flush|>" in texts and {"<|call|>", "<|calls|>"} & texts):
        spared.add("<|end|>")  # in the formats of gpt-oss and of Solar Open it ends a message, not the answer
    if "<|tool_response>" in texts:
        spared.add("</s>")  # in Gemma 4 it is a tag of HTML
    return [i for i in ends if tokens[i] not in spared or i == end]


def _ignores_spaces_after(file: GgufFile, kind: str, tokens: Sequence[str], types: Sequence[int]) -> frozenset[int]:
    """Phi-3's tokenizer takes spaces off after its tokens for turns; files have no place to say so but the name."""
    if kind != "llama" or not re.search(r"phi[ -]?3", str(file.metadata.get("general.name", "")).lower()):
        return frozenset()
    spared = ("<unk>", "<s>", "<|endoftext|>")
    whole = (UNKNOWN, CONTROL, USER_DEFINED)
    return frozenset(
        i for i, token in enumerate(tokens) if (types[i] in whole or token == "</s>") and token not in spared
    )
