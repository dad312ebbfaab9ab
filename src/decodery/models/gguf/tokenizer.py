"""Builds the tokenizer of a GGUF file: `tokenizer.json` straight from its vocabulary, scores and merges.

Three kinds are known. `gpt2` is byte-level byte-pair encoding with its merges in the file; how text is split before the
merges apply is only *named* in the file (`tokenizer.ggml.pre`), and an unknown name is an error, because a wrong split
gives wrong tokens without any sign of it. `llama` is SentencePiece: its merges follow from the scores. `gemma4` is
SentencePiece with its merges in the file.

transformers has a conversion too. It is not used because it knows no split for several names (it takes that of GPT-2),
and because its tokenizer classes rebuild the split of their family when they are loaded; the class named here,
`TokenizersBackend`, takes `tokenizer.json` as it stands.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decodery.errors import ModelNotReadable
from decodery.models.gguf.file import GgufFile
from decodery.models.gguf.merges import merges_from_scores
from decodery.models.gguf.splits import Split
from decodery.models.gguf.vocabulary import BYTE_TOKENS, CONTROL, NORMAL, SPACE, UNKNOWN, USER_DEFINED, Vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# All entries of a file whose names begin with "tokenizer.", and what reads them or why they do not matter. Names in
# braces stand for any word. Other entries are refused by name.
TOKENIZER_KEYS: Mapping[str, str] = {
    "tokenizer.ggml.model": "the kind of tokenizer",
    "tokenizer.ggml.pre": "the split of byte-level vocabularies",
    "tokenizer.ggml.tokens": "the vocabulary",
    "tokenizer.ggml.token_type": "which tokens are control tokens, bytes, and so on",
    "tokenizer.ggml.scores": "the order of merges of SentencePiece",
    "tokenizer.ggml.merges": "the merges of the other kinds",
    "tokenizer.ggml.bos_token_id": "the begin token",
    "tokenizer.ggml.eos_token_id": "the end token",
    "tokenizer.ggml.eos_token_ids": "more end tokens",
    "tokenizer.ggml.eot_token_id": "an end token",
    "tokenizer.ggml.eom_token_id": "an end token",
    "tokenizer.ggml.unknown_token_id": "what stands for letters that the vocabulary lacks",
    "tokenizer.ggml.padding_token_id": "the padding token",
    "tokenizer.ggml.add_bos_token": "whether the begin token stands before a text",
    "tokenizer.ggml.add_eos_token": "whether the end token stands after a text",
    "tokenizer.ggml.add_space_prefix": "whether a space stands before a text of SentencePiece; means nothing elsewhere",
    "tokenizer.ggml.remove_extra_whitespaces": "refused where it is on",
    "tokenizer.ggml.precompiled_charsmap": "refused where it is there",
    "tokenizer.ggml.suppress_tokens": "refused where it names tokens",
    "tokenizer.ggml.normalizer.lowercase": "refused where it is on",
    "tokenizer.ggml.normalizer.strip_accents": "refused where it is on",
    "tokenizer.ggml.fim_pad_token_id": "an end token",
    "tokenizer.ggml.fim_rep_token_id": "an end token",
    "tokenizer.ggml.fim_sep_token_id": "an end token",
    "tokenizer.ggml.fim_{role}_token_id": "names a token of the vocabulary for programs that fill gaps",
    "tokenizer.ggml.{role}fix_token_id": "the older names of the same",
    "tokenizer.ggml.middle_token_id": "the older name of the same",
    "tokenizer.ggml.add_sep_token": "for pairs of texts; prompts are single texts",
    "tokenizer.ggml.seperator_token_id": "for pairs of texts",
    "tokenizer.ggml.cls_token_id": "for classifiers",
    "tokenizer.ggml.mask_token_id": "names a token of the vocabulary; networks that unmask have it in their own entries",
    "tokenizer.ggml.token_type_count": "for networks with kinds of segments",
    "tokenizer.ggml.added_tokens": "a list of tokens that are in the vocabulary already",
    "tokenizer.chat_template": "the chat template",
    "tokenizer.chat_template.{name}": "a chat template with a name",
    "tokenizer.chat_templates": "the names of these templates",
    "tokenizer.huggingface.json": "the same tokenizer a second time",
    "tokenizer.rwkv.world": "the same vocabulary a second time, of a kind that is refused",
}

# What these entries ask for changes texts or tokens, and no causal model is known to need it.
_REFUSED: Mapping[str, str] = {
    "tokenizer.ggml.remove_extra_whitespaces": "takes out runs of spaces",
    "tokenizer.ggml.precompiled_charsmap": "rewrites letters by a table",
    "tokenizer.ggml.normalizer.lowercase": "writes all letters small",
    "tokenizer.ggml.normalizer.strip_accents": "takes off accents",
    "tokenizer.ggml.suppress_tokens": "forbids tokens",
}

_WHOLE = (UNKNOWN, CONTROL, USER_DEFINED)  # found in a text as a whole, before it is split

# The letters that stand for bytes in byte-level vocabularies.
_LETTERS_OF_BYTES = frozenset(chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 324)))

# Reserved places of a vocabulary, not worth a name among the special tokens.
_RESERVED = re.compile(r"<unused\d+>|<\|reserved_special_token_\d+\|>|\[PAD\d+\]|\[EMPTY_\d+\]|<\|?dummy.*>")


def tokenizer_key(key: str) -> str | None:
    """What reads the metadata entry `key`, or why it does not matter; None where it is not known."""
    for pattern, role in TOKENIZER_KEYS.items():
        if re.fullmatch(re.sub(r"\\{\w+\\}", r"[\\w.+-]+", re.escape(pattern)), key):
            return role
    return None


def build_tokenizer(file: GgufFile) -> Tokenizer:
    """The tokenizer of `file`.

    Byte-level vocabularies may lack tokens for some control bytes (SmolLM2 lacks six, among them 0x04 and 0x1D); such
    bytes vanish when text is encoded, as they do with the tokenizer that the model was trained with. SentencePiece
    vocabularies cannot tell the letter U+2581 from a space.

    Raises ModelNotReadable for kinds of tokenizers and splits that are not known, and for damaged vocabularies.
    """
    return _build(file, Vocabulary.read(file))


def write_tokenizer(file: GgufFile, folder: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` of `file` into `folder`."""
    vocabulary = Vocabulary.read(file)
    _build(file, vocabulary).save(str(folder / "tokenizer.json"), pretty=False)
    (folder / "tokenizer_config.json").write_text(
        json.dumps(_configuration(file, vocabulary), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def end_tokens(file: GgufFile) -> list[int]:
    """Ids of the tokens that end a text: the end token of the file first, then its ends of turn."""
    return Vocabulary.read(file).ends


def _check_keys(file: GgufFile) -> None:
    for key, value in file.metadata.items():
        if key.startswith("tokenizer.") and tokenizer_key(key) is None:
            raise ModelNotReadable(f"{file.path} says something about its tokenizer that is not known here: {key}.")
        if key in _REFUSED and value:
            raise ModelNotReadable(f"{file.path} {_REFUSED[key]} ({key}), which is not done here.")


def _build(file: GgufFile, vocabulary: Vocabulary) -> Tokenizer:
    _check_keys(file)
    if vocabulary.split is not None and vocabulary.split.byte_level:
        tokenizer = _byte_level(vocabulary, vocabulary.split)
    else:
        tokenizer = _sentencepiece(vocabulary)
    _add_whole_tokens(tokenizer, vocabulary)
    _add_template(tokenizer, vocabulary)
    return tokenizer


def _byte_level(vocabulary: Vocabulary, split: Split) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    words = (len(token) > 1 and kind == NORMAL for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True))
    if not vocabulary.merges and any(words):
        raise ModelNotReadable(f"{vocabulary.path} lacks its merges (tokenizer.ggml.merges); convert the model again.")
    _check_merges(vocabulary)
    model = models.BPE(
        vocab={token: i for i, token in enumerate(vocabulary.tokens)},
        merges=vocabulary.merges,
        ignore_merges=split.whole_words_first,
    )
    tokenizer = Tokenizer(model)
    if split.composed:
        tokenizer.normalizer = normalizers.NFC()
    cuts = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in split.patterns]
    bytes_to_letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, bytes_to_letters])
    # Whole tokens stand in the vocabulary as they are read. Where one consists of letters that mean bytes elsewhere
    # (DeepSeek has some), it is spelled like the others before all are turned into bytes.
    spelled = [
        decoders.Replace(Regex(rf"\A{re.escape(token)}\z"), bytes_to_letters.pre_tokenize_str(token)[0][0])
        for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)
        if kind in _WHOLE and not token.isascii() and _LETTERS_OF_BYTES.issuperset(token)
    ]
    tokenizer.decoder = decoders.Sequence([*spelled, decoders.ByteLevel()]) if spelled else decoders.ByteLevel()
    return tokenizer


def _sentencepiece(vocabulary: Vocabulary) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers

    if vocabulary.kind == "llama":
        merges = merges_from_scores(vocabulary)
    else:
        _check_merges(vocabulary)
        merges = vocabulary.merges
    vocab = {token: i for i, token in enumerate(vocabulary.tokens)}
    if vocabulary.unknown is None and not all(token in vocab for token in BYTE_TOKENS):
        raise ModelNotReadable(
            f"{vocabulary.path} has neither tokens for all bytes nor an unknown token, so that it cannot say every text."
        )
    model = models.BPE(
        vocab=vocab,
        merges=merges,
        unk_token=None if vocabulary.unknown is None else vocabulary.tokens[vocabulary.unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    to_marks = normalizers.Replace(" ", SPACE)
    from_marks = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if vocabulary.space_before:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), to_marks])
        tokenizer.decoder = decoders.Sequence([*from_marks, decoders.Strip(content=" ", left=1)])
    else:
        tokenizer.normalizer = to_marks
        tokenizer.decoder = decoders.Sequence(from_marks)
    return tokenizer


def _check_merges(vocabulary: Vocabulary) -> None:
    tokens = set(vocabulary.tokens)
    for left, right in vocabulary.merges:
        if not (left in tokens and right in tokens and left + right in tokens):
            raise ModelNotReadable(
                f"{vocabulary.path} merges {left!r} and {right!r}, which are not tokens or do not make one; its list of merges "
                "is damaged."
            )


def _add_whole_tokens(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    """Mark the tokens that are found in a text as a whole; control tokens are special besides."""
    from tokenizers import AddedToken

    for special in (True, False):
        tokenizer.add_tokens(
            [
                AddedToken(token, normalized=False, special=special, rstrip=i in vocabulary.ignores_spaces_after)
                for i, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True))
                if kind in _WHOLE and (kind != USER_DEFINED) == special
            ]
        )


def _add_template(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    """Put the begin and end tokens around a text where the file asks for it."""
    from tokenizers import processors

    before = [vocabulary.begin] if vocabulary.adds_begin and vocabulary.begin is not None else []
    after = [vocabulary.end] if vocabulary.adds_end and vocabulary.end is not None else []
    if not before and not after:
        return
    around = {vocabulary.tokens[i]: i for i in (*before, *after)}
    first, last = [vocabulary.tokens[i] for i in before], [vocabulary.tokens[i] for i in after]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*first, "$A", *last],
        pair=[*first, "$A", *last, *(f"{token}:1" for token in first), "$B:1", *(f"{token}:1" for token in last)],
        special_tokens=list(around.items()),
    )


def _configuration(file: GgufFile, vocabulary: Vocabulary) -> dict[str, Any]:
    """What stands in `tokenizer_config.json`."""
    ids = {"bos": vocabulary.begin, "eos": vocabulary.end, "unk": vocabulary.unknown, "pad": vocabulary.padding}
    named = {f"{name}_token": vocabulary.tokens[place] for name, place in ids.items() if place is not None}
    extra = [
        token
        for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)
        if kind == CONTROL and token not in named.values() and not _RESERVED.fullmatch(token)
    ]
    configuration: dict[str, Any] = {
        # Not the class of the family: that one would replace the split of tokenizer.json by its own.
        "tokenizer_class": "TokenizersBackend",
        **named,
        "extra_special_tokens": extra,
        "add_bos_token": vocabulary.adds_begin,
        "add_eos_token": vocabulary.adds_end,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
    }
    context = file.metadata.get(f"{file.architecture}.context_length")
    if context is not None:
        configuration["model_max_length"] = context
    if templates := _templates(file):
        alone = list(templates) == ["default"]
        configuration["chat_template"] = (
            templates["default"]
            if alone
            else [{"name": name, "template": template} for name, template in templates.items()]
        )
    return configuration


def _templates(file: GgufFile) -> dict[str, str]:
    """The chat templates by name; the one without a name is called `default`."""
    key = "tokenizer.chat_template"
    found = {"default": file.metadata[key]} if file.metadata.get(key) else {}
    named = {name.removeprefix(f"{key}."): text for name, text in file.metadata.items() if name.startswith(f"{key}.")}
    templates = {**named, **found}
    for name in file.metadata.get("tokenizer.chat_templates") or ():
        if name not in templates:
            raise ModelNotReadable(f"{file.path} names a chat template {name!r} that it does not hold.")
    return templates
