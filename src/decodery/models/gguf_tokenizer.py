"""Builds the tokenizer of a GGUF file: `tokenizer.json` straight from its vocabulary, scores and merges.

Two kinds are known. `gpt2` is byte-level byte-pair encoding with its merges in the file; how text is split before the
merges apply is only *named* in the file (`tokenizer.ggml.pre`), and an unknown name is an error here, because a wrong
split gives wrong tokens without any sign of it. `llama` is SentencePiece: its merges follow from the scores.

transformers has a conversion too. It is not used because it knows no split for several names (it takes that of GPT-2),
and because its tokenizer classes rebuild the split of their family when they are loaded; the class named here,
`TokenizersBackend`, takes `tokenizer.json` as it stands.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decodery.errors import ModelNotReadable
from decodery.models.gguf_file import GgufFile

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Types of tokens: https://github.com/ggml-org/llama.cpp/blob/master/include/llama.h (llama_token_type)
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4

_SPACE = "\u2581"  # how SentencePiece writes a space

# Splits: https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp, by the name in tokenizer.ggml.pre
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "lfm2", "dbrx"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2"), _QWEN2),
    **dict.fromkeys(("tekken",), _TEKKEN),
    **dict.fromkeys(("gpt-4o", "llama4"), _GPT4O),
}
_GPT2_SPLIT = frozenset(("gpt-2", "phi-2", "mpt", "olmo"))
_GPT2_SPLIT_AND_SINGLE_DIGITS = frozenset(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"))
# Vocabularies in which a word that is a token as a whole is not built by merges.
_WHOLE_WORDS_FIRST = frozenset(("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "tekken"))

# Reserved places of a vocabulary, not worth a name among the special tokens.
_RESERVED = re.compile(r"<unused\d+>|<\|reserved_special_token_\d+\|>|\[PAD\d+\]|<\|?dummy.*>")

# Control tokens that end an answer without being the end token that the file names.
_ENDS_OF_TURN = ("<end_of_turn>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<turn|>")


def build_tokenizer(file: GgufFile) -> Tokenizer:
    """The tokenizer of `file`.

    Byte-level vocabularies may lack tokens for some control bytes (SmolLM2 lacks six, among them 0x04 and 0x1D); such
    bytes vanish when text is encoded, as they do with the tokenizer that the model was trained with. SentencePiece
    vocabularies cannot tell the letter U+2581 from a space.

    Raises ModelNotReadable for kinds of tokenizers and splits that are not known.
    """
    kind = file.tokenizer("model")
    if not file.tokenizer("tokens"):
        raise ModelNotReadable(f"{file.path} holds no vocabulary; a GGUF file with a tokenizer is needed.")
    if kind == "gpt2":
        tokenizer = _byte_level(file)
    elif kind == "llama":
        tokenizer = _sentencepiece(file)
    else:
        raise ModelNotReadable(
            f"{file.path} has a tokenizer of kind {kind!r}; the kinds gpt2 and llama can be converted."
        )
    _add_whole_tokens(tokenizer, file)
    _add_template(tokenizer, file)
    return tokenizer


def write_tokenizer(file: GgufFile, folder: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` of `file` into `folder`."""
    build_tokenizer(file).save(str(folder / "tokenizer.json"), pretty=False)
    (folder / "tokenizer_config.json").write_text(
        json.dumps(_configuration(file), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def end_tokens(file: GgufFile) -> list[int]:
    """Ids of the tokens that end a text: the end token of the file first, then its ends of turn."""
    named = [file.tokenizer(f"{key}_token_id") for key in ("eos", "eot", "eom")]
    kinds = file.tokenizer("token_type", [])
    control = {token: i for i, token in enumerate(file.tokenizer("tokens")) if i < len(kinds) and kinds[i] == _CONTROL}
    ids = [*named, *(control.get(token) for token in _ENDS_OF_TURN)]
    return list(dict.fromkeys(token_id for token_id in ids if token_id is not None))


def _byte_level(file: GgufFile) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    merges = [tuple(merge.split(" ")) for merge in file.tokenizer("merges", [])]
    if any(len(merge) != 2 for merge in merges):
        raise ModelNotReadable(f"{file.path} holds a damaged list of merges; copy or download it again.")
    # Files from before the split was named were all made for the split of GPT-2.
    split = file.tokenizer("pre", "gpt-2")
    spaced = bool(file.tokenizer("add_space_prefix", False))
    steps: list[Any]
    if split in _GPT2_SPLIT:
        steps = [pre_tokenizers.ByteLevel(add_prefix_space=spaced, use_regex=True)]
    elif split in _GPT2_SPLIT_AND_SINGLE_DIGITS:
        digits = pre_tokenizers.Digits(individual_digits=True)
        steps = [digits, pre_tokenizers.ByteLevel(add_prefix_space=spaced, use_regex=True)]
    elif split in _SPLITS:
        isolated = pre_tokenizers.Split(Regex(_SPLITS[split]), behavior="isolated")
        steps = [isolated, pre_tokenizers.ByteLevel(add_prefix_space=spaced, use_regex=False)]
    else:
        known = sorted({*_GPT2_SPLIT, *_GPT2_SPLIT_AND_SINGLE_DIGITS, *_SPLITS})
        raise ModelNotReadable(
            f"{file.path} splits text in a way that is not known here ({split!r}); known: {', '.join(known)}."
        )
    vocabulary = {token: i for i, token in enumerate(file.tokenizer("tokens"))}
    model = models.BPE(vocab=vocabulary, merges=merges, ignore_merges=split in _WHOLE_WORDS_FIRST)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(file: GgufFile) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers

    tokens: list[str] = file.tokenizer("tokens")
    unknown = file.tokenizer("unknown_token_id")
    model = models.BPE(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=list(_merges_from_scores(file)),
        unk_token=None if unknown is None else tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    to_marks = normalizers.Replace(" ", _SPACE)
    from_marks = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    # SentencePiece puts a space before the text unless the file says otherwise.
    if file.tokenizer("add_space_prefix", True):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), to_marks])
        tokenizer.decoder = decoders.Sequence([*from_marks, decoders.Strip(content=" ", left=1)])
    else:
        tokenizer.normalizer = to_marks
        tokenizer.decoder = decoders.Sequence(from_marks)
    return tokenizer


def _merges_from_scores(file: GgufFile) -> Iterator[tuple[str, str]]:
    """Each way to build a token from two others, best score first: what SentencePiece does while it encodes.

    Only normal tokens take part. User-defined ones are cut out of the text before, whole, and never merge.
    """
    tokens: list[str] = file.tokenizer("tokens")
    kinds: list[int] = file.tokenizer("token_type") or [_NORMAL] * len(tokens)
    scores: list[float] = file.tokenizer("scores") or [-float(i) for i in range(len(tokens))]
    normal = {tokens[i] for i in range(len(tokens)) if kinds[i] == _NORMAL}
    for i in sorted((i for i in range(len(tokens)) if kinds[i] == _NORMAL), key=lambda i: (-scores[i], i)):
        token = tokens[i]
        for cut in range(len(token) - 1, 0, -1):
            left, right = token[:cut], token[cut:]
            if left in normal and right in normal:
                yield left, right


def _add_whole_tokens(tokenizer: Tokenizer, file: GgufFile) -> None:
    """Mark the tokens that are found in a text as a whole; control tokens are special besides."""
    from tokenizers import AddedToken

    tokens: list[str] = file.tokenizer("tokens")
    kinds: list[int] = file.tokenizer("token_type") or [_NORMAL] * len(tokens)
    special = [tokens[i] for i, kind in enumerate(kinds) if kind in (_UNKNOWN, _CONTROL)]
    plain = [tokens[i] for i, kind in enumerate(kinds) if kind == _USER_DEFINED]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in plain])
    if tokenizer.get_vocab_size(with_added_tokens=True) != len(tokens):
        raise ModelNotReadable(f"{file.path} holds the same token twice; its vocabulary is damaged.")


def _adds_begin(file: GgufFile) -> bool:
    """Whether the begin token stands before every text."""
    by_default = file.tokenizer("model") == "llama" or _SPLITS.get(file.tokenizer("pre")) in (_LLAMA3, _TEKKEN)
    return bool(file.tokenizer("add_bos_token", by_default)) and file.tokenizer("bos_token_id") is not None


def _adds_end(file: GgufFile) -> bool:
    return bool(file.tokenizer("add_eos_token", False)) and file.tokenizer("eos_token_id") is not None


def _add_template(tokenizer: Tokenizer, file: GgufFile) -> None:
    """Put the begin and end tokens around a text where the file asks for it."""
    from tokenizers import processors

    tokens: list[str] = file.tokenizer("tokens")
    ids = {"bos": file.tokenizer("bos_token_id"), "eos": file.tokenizer("eos_token_id")}
    before = [tokens[ids["bos"]]] if _adds_begin(file) else []
    after = [tokens[ids["eos"]]] if _adds_end(file) else []
    if not before and not after:
        return
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, *(f"{token}:1" for token in before), "$B:1", *(f"{token}:1" for token in after)],
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in {*before, *after}],
    )


def _configuration(file: GgufFile) -> dict[str, Any]:
    """What stands in `tokenizer_config.json`."""
    tokens: list[str] = file.tokenizer("tokens")
    kinds: list[int] = file.tokenizer("token_type") or []
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {name: file.tokenizer(f"{key}_token_id") for name, key in names.items()}
    named = {f"{name}_token": tokens[token_id] for name, token_id in ids.items() if token_id is not None}
    extra = [
        tokens[i]
        for i, kind in enumerate(kinds)
        if kind == _CONTROL and tokens[i] not in named.values() and not _RESERVED.fullmatch(tokens[i])
    ]
    configuration: dict[str, Any] = {
        # Not the class of the family: that one would replace the split of tokenizer.json by its own.
        "tokenizer_class": "TokenizersBackend",
        **named,
        "extra_special_tokens": extra,
        "add_bos_token": _adds_begin(file),
        "add_eos_token": _adds_end(file),
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
    }
    context = file.metadata.get(f"{file.architecture}.context_length")
    if context is not None:
        configuration["model_max_length"] = context
    template = file.metadata.get("tokenizer.chat_template")
    if template is not None:
        configuration["chat_template"] = template
    return configuration
