"""Tokenizers of every kind that people bring, tiny, and what a stream of text must be: the tokenizer's own reading."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tiny_models import byte_level_tokenizer

from decodery.engine.text import REPLACEMENT

SPECIAL = ("<unk>", "<s>", "</s>", "<|tool|>", "<|im_end|>")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
ARTIFACTS = Path(__file__).resolve().parents[2] / "src" / "decodery" / "artifacts"


def _finished(raw: Any, **arguments: Any) -> Any:
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    raw.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIAL])
    raw.add_tokens([AddedToken("<note>", special=False, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>", **arguments
    )


@cache
def llama() -> Any:
    """Llama 2's kind: byte fallback, a space before the text, which decoding takes off again."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    words = [*SPECIAL, *BYTES, "▁I", "▁we", "'", "ve", "m", "▁", "▁hello", "▁world", "▁▁", "\ufffd", "é", "각"]
    model = models.BPE({word: place for place, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True)
    raw = Tokenizer(model)
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _finished(raw)


@cache
def gemma() -> Any:
    """Gemma's kind: byte fallback, no space before the text."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    words = [*SPECIAL, *BYTES, "a", "b", "▁", "▁a", "▁▁▁", "\n", "é", "🙂"]
    model = models.BPE({word: place for place, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True)
    raw = Tokenizer(model)
    raw.normalizer = normalizers.Replace(" ", "▁")
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return _finished(raw)


@cache
def unigram(cleaned: bool = False) -> Any:
    """T5's kind: whole words with a sign for the space before them; optionally spaces before punctuation are taken out."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = [*SPECIAL, "▁", "▁the", "the", "▁n", "n", "'", "▁'", "t", "'t", "s", "ve", "re", "m", ".", "▁.", "!", "▁,"]
    raw = Tokenizer(models.Unigram([(piece, -1.0) for piece in [*pieces, "é", "東", "🙂"]], unk_id=0))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    return _finished(raw, clean_up_tokenization_spaces=cleaned)


def unigram_cleaned() -> Any:
    return unigram(cleaned=True)


@cache
def word_piece() -> Any:
    """BERT's kind: parts of words with signs before them, spaces before punctuation taken out twice over."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = [*SPECIAL, "the", "n", "##n", "'", "##'", "t", "##t", "s", "m", "re", "##ing", ".", "##.", "!", "?", "##"]
    raw = Tokenizer(models.WordPiece({piece: place for place, piece in enumerate(pieces)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    return _finished(raw, clean_up_tokenization_spaces=True)


@cache
def word_ends() -> Any:
    """GPT-1's kind: tokens that end a word say so, and the last one shows no space."""
    from tokenizers import Tokenizer, decoders, models

    words = [*SPECIAL, "a</w>", "b</w>", "a", "b", ".</w>", "é</w>"]
    raw = Tokenizer(models.BPE({word: place for place, word in enumerate(words)}, [], unk_token="<unk>"))
    raw.decoder = decoders.BPEDecoder()
    return _finished(raw)


@cache
def byte_tokens() -> Any:
    """ByT5's kind: a byte a token, and bytes that are no character are left out."""
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer()


@cache
def bundled(name: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ARTIFACTS / name)


KINDS = {
    "byte-level": byte_level_tokenizer,
    "llama": llama,
    "gemma": gemma,
    "unigram": unigram,
    "unigram cleaned": unigram_cleaned,
    "word pieces": word_piece,
    "word ends": word_ends,
    "byte tokens": byte_tokens,
    "diffusion-lists": lambda: bundled("diffusion-lists"),
    "diffusion-stories": lambda: bundled("diffusion-stories"),
}


def whole(tokenizer: Any, ids: Sequence[int]) -> str:
    """The visible text of ids."""
    text: str = tokenizer.decode(list(ids), skip_special_tokens=True)
    return text


def said_after(tokenizer: Any, prompt: Sequence[int], ids: Sequence[int]) -> str:
    """What the output adds to the prompt.

    Bytes that are no character at the prompt's end belong to the output, a character of that look does not. Where the output
    makes decoding take spaces out of the prompt's text, the output begins behind the prompt's last other sign.
    """
    prompt = [
        token for token in prompt if whole(tokenizer, [token]) or not tokenizer.decode([token])
    ]  # no special ones
    before, text = whole(tokenizer, prompt), whole(tokenizer, [*prompt, *ids])
    written = "".join(tokenizer.convert_ids_to_tokens(prompt[-3:]))
    if not written.endswith((REPLACEMENT, "ï¿½", "<0xEF><0xBF><0xBD>")):
        before = before.rstrip(REPLACEMENT)
    if "<0x00>" in tokenizer.get_vocab():
        return text[len(before) :]  # a run of bytes is read anew as a whole
    if text.startswith(before):
        return text[len(before) :]
    signs = len(before.replace(" ", ""))
    return next(text[n:] for n in range(len(text) + 1) if len(text[:n].replace(" ", "")) == signs)
