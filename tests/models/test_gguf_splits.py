"""Every split that llama.cpp names, held to pieces of one nasty text and to the tokenizers of the same scheme."""

from __future__ import annotations

from typing import Any

import pytest
from gguf_in_memory import CONTROL, byte_level, gguf_file
from hypothesis import given, settings
from hypothesis import strategies as st

from decodery.errors import ModelNotReadable
from decodery.models.gguf.splits import SPLITS
from decodery.models.gguf.tokenizer import build_tokenizer

TEXT = (
    "I'LL we'd 'x  1234567 a12\n\n \t HTTPServer'S /(yes)\u2026/\n$5 \u6f22\u5b57kana, "
    "\u0928\u092e\u0938\u094d\u0924\u0947 e\u0301!\r\n  x  "
)

# Pieces of TEXT by name, as the regular expressions in llama.cpp's llama-vocab.cpp cut it when Python's `regex` runs them.
# Where llama.cpp rewrites an expression and says so, or runs code of its own, the pieces are those of the original: gpt-4o
# and its kin keep combining marks with their words, deepseek-llm parts all digits.
PIECES = [
    (
        (
            "gpt-2",
            "phi-2",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "exaone4",
            "jais",
            "trillion",
            "granite-docling",
        ),
        "I|'|LL| we|'d| '|x| | 1234567| a|12|\n\n \t"
        "| HTTPServer|'|S| /(|yes|)\u2026/|\n|$|5| \u6f22\u5b57kana|"
        ",| \u0928\u092e\u0938|\u094d|\u0924|\u0947| e|\u0301!|\r\n | x|  ",
    ),
    (
        (
            "mpt",
            "olmo",
        ),
        "I|'|LL| we|'d| '|x| | 1234567| a|12|\n\n \t"
        "| HTTPServer|'|S| /(|yes|)\u2026/|\n|$|5| \u6f22\u5b57kana|"
        ",| \u0928\u092e\u0938|\u094d|\u0924|\u0947| \xe9|!|\r\n | x|  ",
    ),
    (
        (
            "starcoder",
            "refact",
            "smollm",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ),
        "I|'|LL| we|'d| '|x|  |1|2|3|4|5|6|7| a|1|2|\n\n \t"
        "| HTTPServer|'|S| /(|yes|)\u2026/|\n|$|5| \u6f22\u5b57kana|"
        ",| \u0928\u092e\u0938|\u094d|\u0924|\u0947| e|\u0301!|\r\n | x|  ",
    ),
    (
        ("command-r",),
        "I|'|LL| we|'d| '|x|  |1|2|3|4|5|6|7| a|1|2|\n\n \t"
        "| HTTPServer|'|S| /(|yes|)\u2026/|\n|$|5| \u6f22\u5b57kana|"
        ",| \u0928\u092e\u0938|\u094d|\u0924|\u0947| \xe9|!|\r\n | x|  ",
    ),
    (
        (
            "llama3",
            "llama-v3",
            "llama-bpe",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "dbrx",
            "smaug-bpe",
            "chatglm-bpe",
            "glm4",
            "glm5",
            "jais-2",
        ),
        "I|'LL| we|'d| '|x| | |123|456|7| a|12|\n\n| \t"
        "| HTTPServer|'S| /(|yes|)\u2026/\n|$|5| \u6f22\u5b57kana|"
        ",| \u0928\u092e\u0938|\u094d\u0924|\u0947| e|\u0301!\r\n| | x|  ",
    ),
    (
        ("minicpm5",),
        "I|'LL| we|'d| '|x|  |123|456|7| a|12|\n\n| \t"
        "| HTTPServer|'S| /(|yes|)\u2026/\n|$|5| \u6f22\u5b57kana|"
        ",| \u0928\u092e\u0938|\u094d\u0924|\u0947| e|\u0301!\r\n| | x|  ",
    ),
    (
        (
            "qwen2",
            "deepseek-r1-qwen",
            "megrez",
            "hunyuan",
            "stablelm2",
        ),
        "I|'LL| we|'d| '|x| | |1|2|3|4|5|6|7| a|1|2|\n\n| \t"
        "| HTTPServer|'S| /(|yes|)\u2026/\n|$|5| \u6f22\u5b57kana|"
        ",| \u0928\u092e\u0938|\u094d\u0924|\u0947| \xe9|!\r\n| | x|  ",
    ),
    (
        (
            "kormo",
            "solar-open",
            "grok-2",
            "ufakzeka",
            "bailingmoe",
            "bailingmoe2",
            "llada-moe",
        ),
        "I|'LL| we|'d| '|x| | |1|2|3|4|5|6|7| a|1|2|\n\n| \t"
        "| HTTPServer|'S| /(|yes|)\u2026/\n|$|5| \u6f22\u5b57kana|"
        ",| \u0928\u092e\u0938|\u094d\u0924|\u0947| e|\u0301!\r\n| | x|  ",
    ),
    (
        ("qwen35",),
        "I|'LL| we|'d| '|x| | |1|2|3|4|5|6|7| a|1|2|\n\n| \t"
        "| HTTPServer|'S| /(|yes|)\u2026/\n|$|5| \u6f22\u5b57kana|"
        ",| \u0928\u092e\u0938\u094d\u0924\u0947| \xe9|!\r\n| | x|  ",
    ),
    (
        ("laguna",),
        "I|'LL| we|'d| '|x| | |1|2|3|4|5|6|7| a|1|2|\n\n| \t"
        "| HTTPServer|'S| /(|yes|)\u2026/|\n|$|5| \u6f22\u5b57kana|"
        ",| \u0928\u092e\u0938|\u094d\u0924|\u0947| e|\u0301!\r|\n| | x|  ",
    ),
    (
        ("tekken",),
        "I|'LL| we|'d| '|x| | |1|2|3|4|5|6|7| a|1|2|\n\n| \t"
        "| HTTPServer|'S| /(|yes|)\u2026/\n|$|5| \u6f22\u5b57kana|"
        ",| \u0928\u092e\u0938\u094d\u0924\u0947| e\u0301|!\r\n| | x|  ",
    ),
    (
        (
            "gpt-4o",
            "llama4",
            "kanana2",
            "talkie",
            "minimax-m2",
        ),
        "I'LL| we'd| '|x| | |123|456|7| a|12|\n\n| \t"
        "| HTTPServer'S| /(|yes|)\u2026/\n|$|5| \u6f22\u5b57kana|"
        ",| \u0928\u092e\u0938\u094d\u0924\u0947| e\u0301|!\r\n| | x|  ",
    ),
    (
        (
            "tiny_aya",
            "cohere2moe",
        ),
        "I'LL| we'd| '|x|  |1|234|567| a|12|\n\n| \t"
        "| HTTPServer'S| /(|yes|)\u2026/\n|$|5| \u6f22\u5b57kana|"
        ",| \u0928\u092e\u0938\u094d\u0924\u0947| \xe9|!\r\n| | x|  ",
    ),
    (
        ("youtu",),
        "I'LL| we'd| '|x| | |1|2|3|4|5|6|7| a|1|2|\n\n| \t"
        "| HTTPServer'S| /(|yes|)|\u2026|/\n|$|5| |\u6f22\u5b57|kana|"
        ",| \u0928\u092e\u0938\u094d\u0924\u0947| e\u0301|!\r\n| | x|  ",
    ),
    (
        ("kimi-k2",),
        "I'LL| we'd| '|x| | |123|456|7| a|12|\n\n| \t"
        "| HTTPServer'S| /(|yes|)\u2026/\n|$|5| |\u6f22\u5b57|kana|"
        ",| \u0928\u092e\u0938\u094d\u0924\u0947| e\u0301|!\r\n| | x|  ",
    ),
    (
        ("seed-coder",),
        "I|'LL| we|'d| '|x| | |1|2|3|4|5|6|7| a|1|2|\n\n| \t"
        "| HTTPServer|'S| /(|yes|)\u2026/|\n|$|5| \u6f22\u5b57kana|"
        ",| \u0928\u092e\u0938|\u094d\u0924|\u0947| e|\u0301!|\r\n| | x|  ",
    ),
    (
        ("exaone-moe",),
        "I|'LL| we|'d| '|x| | |1|2|3|4|5|6|7| a|1|2|\n\n| \t"
        "| HTTPServer|'S| /(|yes|)\u2026/\n|$|5| \u6f22\u5b57kana|"
        ",| \u0928\u092e\u0938\u094d\u0924\u0947 e\u0301|!\r|\n| | x|  ",
    ),
    (
        (
            "bloom",
            "poro-chat",
            "gpt3-finnish",
        ),
        "I'LL| we'd| 'x| | 1234567| a12|\n\n \t"
        "| HTTPServer'S| /|(|yes|)\u2026|/|\n|$5| \u6f22\u5b57kana|"
        ",| \u0928\u092e\u0938\u094d\u0924\u0947| e\u0301|!\r\n | x|  ",
    ),
    (
        ("viking",),
        "I'LL| we'd| 'x| | |1|2|3|4|5|6|7| a|1|2|\n\n \t"
        "| HTTPServer'S| /|(|yes|)\u2026|/|\n|$|5| \u6f22\u5b57kana|"
        ",| \u0928\u092e\u0938\u094d\u0924\u0947| e\u0301|!\r\n | x|  ",
    ),
    (
        ("falcon",),
        "I|'|LL| we|'|d| |'|x| | |123|456|7| a|12|\n\n \t"
        "| HTTPServer|'|S| |/(|yes|)\u2026/|\n|$|5| \u6f22\u5b57kana|"
        ",| \u0928\u092e\u0938|\u094d|\u0924|\u0947| e|\u0301|!|\r\n | x|  ",
    ),
    (
        ("deepseek-llm",),
        "I|'|LL| we|'|d| '|x|  |1|2|3|4|5|6|7| a|1|2|\n|\n| \t"
        "| HTTPServer|'|S| /(|yes|)|\u2026|/|\n|$|5| |\u6f22\u5b57|kana|"
        ",| |\u0928\u092e\u0938\u094d\u0924\u0947| e|\u0301|!|\r|\n| | x|  ",
    ),
    (
        ("deepseek-coder",),
        "I|'|LL| we|'|d| '|x|  |1|2|3|4|5|6|7| a|1|2|\n|\n| \t"
        "| HTTPServer|'|S| /(|yes|)|\u2026|/|\n|$|5| |\u6f22\u5b57|kana|"
        ",| |\u0928\u092e\u0938|\u094d|\u0924|\u0947| e|\u0301|!|\r|\n| | x|  ",
    ),
    (
        (
            "deepseek-v3",
            "hunyuan-dense",
            "joyai-llm",
            "hy_v4",
        ),
        "I|'LL| we|'d| '|x|  |123|456|7| a|12|\n\n| \t"
        "| HTTPServer|'S| /(|yes|)\u2026/\n|$|5| |\u6f22\u5b57|kana|"
        ",| \u0928\u092e\u0938\u094d\u0924\u0947| e\u0301|!\r\n| | x|  ",
    ),
    (
        ("spark2_5",),
        "I|'LL| we|'d| '|x|  |1|2|3|4|5|6|7| a|1|2|\n|\n| \t"
        "| HTTPServer|'S| /(|yes|)\u2026/|\n|$|5| |\u6f22\u5b57|kana|"
        ",| \u0928\u092e\u0938\u094d\u0924\u0947| e\u0301|!|\r|\n| | x|  ",
    ),
    (
        ("afmoe",),
        "I|'LL| we|'d| '|x|  |1|234|567| a|12|\n\n| \t"
        "| HTTPServer|'S| /(|yes|)\u2026/\n|$|5| |\u6f22\u5b57|kana|"
        ",| \u0928\u092e\u0938\u094d\u0924\u0947| e\u0301|!\r\n| | x|  ",
    ),
    (
        ("superbpe",),
        "I'LL we'd 'x  |1|234|567| a|12|\n\n \t"
        " HTTPServer'S /(yes)\u2026/\n$|5| \u6f22\u5b57kana"
        ", \u0928\u092e\u0938\u094d\u0924\u0947 e\u0301!\r\n  x  ",
    ),
    (
        ("chameleon",),
        "I|'|LL| we|'|d| |'|x|  |1|2|3|4|5|6|7| a|1|2|\n|\n| |\t"
        "| HTTPServer|'|S| |/|(|yes|)|\u2026|/|\n|$|5| \u6f22\u5b57kana|"
        ",| \u0928\u092e\u0938|\u094d|\u0924|\u0947| e|\u0301|!|\r|\n|  |x|  ",
    ),
]

BEGIN = {"<s>": CONTROL}


def pieces(name: str, text: str) -> list[str]:
    from tokenizers import decoders

    tokenizer: Any = build_tokenizer(byte_level(name, more=BEGIN, bos_token_id=0))
    normalised = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
    return [decoders.ByteLevel().decode([piece]) for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normalised)]


@pytest.mark.parametrize(("name", "expected"), [(name, cut) for names, cut in PIECES for name in names])
def test_pieces_of_a_nasty_text(name: str, expected: str) -> None:
    assert "|".join(pieces(name, TEXT)) == expected


def test_every_byte_level_split_is_in_the_table() -> None:
    assert {name for names, _ in PIECES for name in names} == {name for name in SPLITS if SPLITS[name].byte_level}


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("jais-2", "a" + " " * 7 + "b", ["a", " " * 4, "  ", " b"]),
        ("llama3", "a" + " " * 7 + "b", ["a", " " * 6, " b"]),
        ("bailingmoe", "a\n\n b 'S", ["a", "\n\n", " b", " '", "S"]),
        ("bailingmoe", "it'S", ["it", "'S"]),
        ("ufakzeka", "Ankara'da x's", ["Ankara", "'da", " x", "'s"]),
        ("ufakzeka", "it're", ["it", "'re"]),
        ("qwen2", "it'reX", ["it", "'re", "X"]),
        ("ufakzeka", "it'reX", ["it", "'reX"]),
        ("chameleon", "xIMGIMGABZy    z", ["x", "IMGIMGABZ", "y", "    ", "z"]),
        ("exaone-moe", "one two  three", ["one two", " ", " three"]),
        ("afmoe", "12 1234 123456", ["12", " ", "1", "234", " ", "123", "456"]),
        ("tiny_aya", "1234x 1234", ["123", "4", "x", " ", "1", "234"]),
        ("minicpm5", "1234", ["123", "4"]),
        ("falcon", "12345", ["123", "45"]),
        ("tekken", "HTTPServer isOK", ["HTTPServer", " is", "OK"]),
        ("kimi-k2", "\u6f22x \u6f22", ["\u6f22", "x", " ", "\u6f22"]),
        ("deepseek-llm", "x\u03b9 \u6f22\u0915x", ["x", "\u03b9", " ", "\u6f22\u0915", "x"]),
    ],
)
def test_what_sets_a_split_apart(name: str, text: str, expected: list[str]) -> None:
    assert pieces(name, text) == expected


TOKENIZERS = {
    "gpt-2": "GPT2Tokenizer",
    "qwen2": "Qwen2Tokenizer",
    "qwen35": "Qwen3_5Tokenizer",
    "olmo": "GPTNeoXTokenizer",
    "command-r": "CohereTokenizer",
}
MERGES = [
    "\u0120 t",
    "h e",
    "\u0120t he",
    "\u0120 \u0120",
    "1 2",
    "\u0120 1",
    "\u010a \u010a",
    "\u00c3 \u00a9",
    "e \u00cc",
    "' s",
]


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=150, deadline=None)
@given(text=st.text(st.sampled_from("the 12'sSx\n\t\r.,!e\u0301\u00e9\u6f22\u0915\u094d\u00bd")))
def test_ids_are_those_of_the_family_of_transformers(name: str, text: str) -> None:
    import transformers

    ours, theirs = _both(name, transformers)
    assert ours.encode(text, add_special_tokens=False).ids == theirs.encode(text, add_special_tokens=False)


_BUILT: dict[str, Any] = {}


def _both(name: str, transformers: Any) -> Any:
    if name not in _BUILT:
        file = byte_level(name, MERGES, {"<unk>": CONTROL})
        vocabulary = {token: i for i, token in enumerate(file.tokenizer("tokens"))}
        merges = [tuple(merge.split(" ")) for merge in MERGES]
        family = getattr(transformers, TOKENIZERS[name])
        special = {f"{role}_token": "<unk>" for role in ("unk", "bos", "eos", "pad")}
        _BUILT[name] = build_tokenizer(file), family(vocab=vocabulary, merges=merges, **special)
    return _BUILT[name]


def test_composed_letters_only_where_the_tokenizer_was_trained_so() -> None:
    composed = {name for name, split in SPLITS.items() if split.composed}
    assert pieces("qwen2", "e\u0301") == ["\u00e9"]
    assert pieces("llama3", "e\u0301") == ["e", "\u0301"]
    assert {"qwen2", "qwen35", "deepseek-r1-qwen", "command-r", "mpt", "olmo"} <= composed


def test_whole_words_are_taken_before_merges_where_the_split_says_so() -> None:
    # "he" + "t" is not how the merges build "the".
    merges = ["h e", "t h", "th e"]
    assert build_tokenizer(byte_level("lfm2", merges, BEGIN, bos_token_id=0)).encode("the").tokens == ["<s>", "the"]
    assert build_tokenizer(byte_level("dbrx", merges, BEGIN)).encode("the").tokens == ["t", "he"]


@pytest.mark.parametrize("name", sorted(SPLITS))
def test_who_adds_a_begin_token_without_being_told(name: str) -> None:
    adding = {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken"}
    adding |= {"chameleon", "gemma4"}
    assert SPLITS[name].adds_begin == (name in adding)


@pytest.mark.parametrize(
    "name", ["default", "jina-v2-de", "roberta-bpe", "whitespace", "granite-embed-multi-97m", "new"]
)
def test_other_splits_are_refused_by_name(name: str) -> None:
    with pytest.raises(ModelNotReadable, match=rf"splits text in a way that is not known here \('{name}'\)"):
        build_tokenizer(byte_level(name, ["t h"]))


@pytest.mark.parametrize(("architecture", "expected"), [("gpt2", "e\u0301"), ("gptneox", "\u00e9")])
def test_files_without_the_name_of_a_split_have_that_of_their_architecture(architecture: str, expected: str) -> None:
    file = byte_level(None, ["1 2"], metadata={"general.architecture": architecture})
    tokenizer = build_tokenizer(file)
    assert tokenizer.encode("112").tokens == ["1", "12"]
    assert tokenizer.decode(tokenizer.encode("e\u0301").ids) == expected
    del file.metadata["tokenizer.ggml.merges"], file.metadata["tokenizer.ggml.tokens"][-1]
    del file.metadata["tokenizer.ggml.token_type"][-1]
    assert build_tokenizer(file).decode(build_tokenizer(file).encode("e\u0301").ids) == expected


def test_files_without_the_name_of_a_split_are_refused_where_it_matters() -> None:
    with pytest.raises(ModelNotReadable, match=r"does not say how it splits text \(tokenizer.ggml.pre\)"):
        build_tokenizer(byte_level(None, ["1 2"]))
    assert build_tokenizer(byte_level(None)).encode("12").tokens == ["1", "2"]


@pytest.mark.parametrize(("kind", "pre"), [("gemma4", "anything"), ("gpt2", "sarvam-moe")])
def test_gemma4_and_sarvam_merge_letters_and_fall_back_to_bytes(kind: str, pre: str) -> None:
    tokens = [
        "<pad>",
        "<bos>",
        "<unk>",
        *(f"<0x{value:02X}>" for value in range(256)),
        "\u2581",
        "\u2581t",
        "t",
        "h",
        "e",
    ]
    tokens += ["he", "\u2581the", "\n", "\n\n"]
    types = [3, 3, 3, *[6] * 256, *[1] * (len(tokens) - 259)]
    merges = ["\u2581 t", "h e", "\u2581t he", "\n \n"]
    adds = kind == "gpt2"  # gemma4 adds its begin token whatever the file says
    ids = {"bos_token_id": 1, "unknown_token_id": 2}
    file = gguf_file(kind, tokens, types, merges=merges, pre=pre, add_bos_token=adds, **ids)
    tokenizer = build_tokenizer(file)
    encoded = tokenizer.encode("the the\n\n\u00e9")
    assert encoded.tokens == ["<bos>", "t", "he", "\u2581the", "\n\n", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(encoded.ids) == "the the\n\n\u00e9"
