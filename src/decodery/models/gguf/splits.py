"""How byte-level vocabularies of GGUF files split a text before their merges apply, by the name in `tokenizer.ggml.pre`.

A file only *names* its split. The regular expressions are facts about the tokenizers that the models were trained with;
https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp lists them beside its own rewritings. Where the two
differ on rare letters, the trained tokenizer counts: so some texts are composed to NFC first, which llama.cpp leaves out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Split:
    """What happens to a text before merges, and what else follows from the name of a split."""

    patterns: tuple[str, ...]  # each cuts the pieces that the one before left; what no match covers is a piece too
    composed: bool = False  # the text is put into Unicode's composed form (NFC) first
    whole_words_first: bool = False  # a piece that is a token as a whole is not built by merges
    adds_begin: bool = False  # whether the begin token stands before a text of a file that does not say so
    byte_level: bool = True  # False: letters stay letters, spaces become U+2581, unknown letters become byte tokens


def _cased(ending: str, apart: str = "") -> str:
    """Words that begin anew where capitals follow small letters; `apart` is taken out of the classes of letters."""
    capitals, small = rf"[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}{apart}]", rf"[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}{apart}]"
    before = r"[^\r\n\p{L}\p{N}]?"
    return f"{before}{capitals}*{small}+{ending}|{before}{capitals}+{small}*{ending}"


_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_CASED = _cased(f"{_CONTRACTIONS}?")
_CASED_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_SYMBOLS}|{_SPACES}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}|{_SYMBOLS}|{_SPACES}"
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_GPT4O = rf"{_CASED}|\p{{N}}{{1,3}}|{_CASED_SYMBOLS}|{_SPACES}"
_TEKKEN = rf"{_cased('')}|\p{{N}}|{_CASED_SYMBOLS}|{_SPACES}"
_YOUTU = rf"{_CASED}|\p{{N}}|{_CASED_SYMBOLS}|{_SPACES}"
_NOT_CHINESE = r"&&[^\p{Han}]"
_KIMI = rf"\p{{Han}}+|{_cased(f'{_CONTRACTIONS}?', _NOT_CHINESE)}|\p{{N}}{{1,3}}|{_SYMBOLS}|{_SPACES}"
_BAILING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
_SEED = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"
_EXAONE_MOE = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
_JAIS2 = (
    rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_SYMBOLS}|\s*[\r\n]+"
    + "".join(rf"|\s{{{count}}}(?!\S)" for count in (512, 256, 128, 64, 32, 16, 8, 4))
    + r"|\s{1,2}(?!\S)|\s{1}"
)
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"

_ONE_DIGIT, _THREE_DIGITS = r"\p{N}", r"\p{N}{1,3}"
_THREE_DIGITS_FROM_THE_RIGHT = r"\d{1,3}(?=(?:\d{3})*\b)"
_DIGITS_AFMOE = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"
_LINES = r"[^\n]+|[\n]+"

# DeepSeek's. Letters of Latin, Greek, Cyrillic and their kind; punctuation; Chinese, Japanese and Korean.
_DEEPSEEK_LETTERS = (
    "\\s?[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79"
    "-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-"
    "\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-"
    "\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-"
    "\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-"
    "\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943]+"
)
_DEEPSEEK_PUNCTUATION = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
_DEEPSEEK_ASIAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_CHINESE_AND_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_SIGN_AND_WORD = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
_DEEPSEEK3 = rf"{_SIGN_AND_WORD}| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
_SPARK = rf"{_SIGN_AND_WORD}| ?[\p{{P}}\p{{S}}]+|[\r\n]|\s+(?!\S)|\s+"
_AFMOE_ASIAN = (
    "[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0e7f"
    "\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+"
)
_YOUTU_ASIAN = (
    "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+"
    "|[\u3105-\u312f]+|[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
)
_CHAMELEON = (
    "<sentinel:[0-9]+>",
    "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
    r"([\t\n]|    |  )",
    _ONE_DIGIT,
    r"[\p{P}!-/:-@\[-`{-~]",
    _GPT2,
)

_plain = Split((_GPT2,))
_digits = Split((_ONE_DIGIT, _GPT2))
_llama3 = Split((_LLAMA3,), whole_words_first=True, adds_begin=True)
_qwen2 = Split((_QWEN2,))
_gpt4o = Split((_GPT4O,))
_bloom = Split((_BLOOM,))
_deepseek3 = Split((_THREE_DIGITS, _CHINESE_AND_KANA, _DEEPSEEK3))
_tiny_aya = Split((_THREE_DIGITS_FROM_THE_RIGHT, _GPT4O), composed=True)
_bailing = Split((_BAILING,))


def _composed(split: Split) -> Split:
    return replace(split, composed=True)


SPLITS: Mapping[str, Split] = {
    **dict.fromkeys(("gpt-2", "phi-2", "gigachat", "a.x-4.0", "mellum", "exaone4"), _plain),
    **dict.fromkeys(("jais", "trillion", "granite-docling"), _plain),
    **dict.fromkeys(("mpt", "olmo"), _composed(_plain)),
    **dict.fromkeys(("starcoder", "refact", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"), _digits),
    "command-r": _composed(_digits),
    **dict.fromkeys(
        ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"), _llama3
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe"), Split((_LLAMA3,))),
    **dict.fromkeys(("glm4", "glm5"), Split((_LLAMA3,), whole_words_first=True)),
    "minicpm5": Split((_THREE_DIGITS, _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}+")), whole_words_first=True),
    "jais-2": Split((_JAIS2,)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez", "hunyuan", "stablelm2"), _composed(_qwen2)),
    **dict.fromkeys(("kormo", "solar-open", "grok-2"), _qwen2),
    "qwen35": Split((_QWEN35,), composed=True),
    "ufakzeka": Split((_QWEN2.removeprefix(f"{_CONTRACTIONS}|"),)),
    "laguna": Split((_LINES, _QWEN2)),
    "tekken": Split((_TEKKEN,), whole_words_first=True, adds_begin=True),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), _gpt4o),
    **dict.fromkeys(("tiny_aya", "cohere2moe"), _tiny_aya),
    "youtu": Split((_YOUTU_ASIAN, _YOUTU), whole_words_first=True),
    "kimi-k2": Split((_KIMI,)),
    **dict.fromkeys(("bailingmoe", "bailingmoe2", "llada-moe"), _bailing),
    "seed-coder": Split((_SEED,)),
    "exaone-moe": Split((_EXAONE_MOE,)),
    **dict.fromkeys(("bloom", "poro-chat", "gpt3-finnish"), _bloom),
    "viking": Split((_BLOOM, _ONE_DIGIT)),
    "falcon": Split((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "deepseek-llm": Split(
        (r"[\r\n]", _DEEPSEEK_LETTERS, _DEEPSEEK_PUNCTUATION, r"\s+$", _DEEPSEEK_ASIAN, _ONE_DIGIT),
    ),
    "deepseek-coder": Split((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_ASIAN, _ONE_DIGIT)),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"), _deepseek3),
    "spark2_5": Split((_THREE_DIGITS, _CHINESE_AND_KANA, _SPARK, _ONE_DIGIT)),
    "afmoe": Split((_DIGITS_AFMOE, _AFMOE_ASIAN, _DEEPSEEK3)),
    "superbpe": Split((r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
    "chameleon": Split(_CHAMELEON, adds_begin=True),
    "gemma4": Split((), adds_begin=True, byte_level=False),
    "sarvam-moe": Split((), byte_level=False),
}

# What has no name of its own in files from before splits were named, but follows from the kind of network.
SPLITS_BY_ARCHITECTURE: Mapping[str, str] = {
    "gpt2": "gpt-2",
    "gptj": "gpt-2",
    "gptneox": "olmo",
    "phi2": "phi-2",
    "mpt": "mpt",
    "bloom": "bloom",
    "falcon": "falcon",
    "starcoder": "starcoder",
    "starcoder2": "starcoder",
    "refact": "refact",
    "codeshell": "codeshell",
    "gemma4": "gemma4",
}
