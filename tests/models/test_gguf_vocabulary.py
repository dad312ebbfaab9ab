"""What a GGUF file says about its tokens is followed, or refused in one sentence."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import gguf
import pytest
import tiny_gguf
from gguf_in_memory import (
    BYTE,
    BYTES,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    byte_level,
    gguf_file,
    sentencepiece,
)

from decodery.errors import ModelNotReadable
from decodery.models.gguf.file import GgufFile
from decodery.models.gguf.tokenizer import TOKENIZER_KEYS, build_tokenizer, end_tokens, tokenizer_key, write_tokenizer
from decodery.models.gguf.vocabulary import Vocabulary

SMALL = {"<s>": CONTROL, "</s>": CONTROL, "<unk>": UNKNOWN}


def refusal(file: GgufFile) -> str:
    with pytest.raises(ModelNotReadable) as error:
        build_tokenizer(file)
    return str(error.value)


def loaded(file: GgufFile, folder: Path) -> Any:
    """The tokenizer that transformers makes of what is written."""
    from transformers import AutoTokenizer

    write_tokenizer(file, folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("kind", ["bert", "t5", "rwkv", "plamo2", "hybriddna", "whitespace", "none", "no_vocab", "new"])
def test_other_kinds_are_refused_by_name(kind: str) -> None:
    said = refusal(gguf_file(kind, ["a"]))
    assert f"has a tokenizer of kind {kind!r}" in said
    assert said.endswith("the kinds gpt2, llama and gemma4 can be converted.")


class TestEntries:
    def test_every_key_of_the_gguf_package_is_known(self) -> None:
        names = [name for name in vars(gguf.Keys.Tokenizer).values() if str(name).startswith("tokenizer.")]
        assert len(names) > 30
        assert [name for name in names if tokenizer_key(name.replace("{name}", "tool_use")) is None] == []

    @pytest.mark.parametrize("key", ["tokenizer.ggml.new", "tokenizer.chat_templates.x", "tokenizer.ggml.tokens2"])
    def test_others_are_refused_by_name(self, key: str) -> None:
        assert tokenizer_key(key) is None
        assert refusal(byte_level("gpt-2", metadata={key: 1})).endswith(f"that is not known here: {key}.")

    def test_patterns_stand_for_words(self) -> None:
        assert tokenizer_key("tokenizer.ggml.fim_mid_token_id") == tokenizer_key("tokenizer.ggml.fim_suf_token_id")
        assert tokenizer_key("tokenizer.ggml.prefix_token_id") == tokenizer_key("tokenizer.ggml.suffix_token_id")
        assert tokenizer_key("general.name") is None
        assert all(TOKENIZER_KEYS.values())

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("remove_extra_whitespaces", True),
            ("precompiled_charsmap", [1, 2]),
            ("normalizer.lowercase", True),
            ("normalizer.strip_accents", True),
            ("suppress_tokens", [3]),
        ],
    )
    def test_what_would_change_text_or_tokens_is_refused_where_it_is_on(self, key: str, value: Any) -> None:
        assert f"(tokenizer.ggml.{key}), which is not done here" in refusal(byte_level("gpt-2", **{key: value}))
        build_tokenizer(byte_level("gpt-2", **{key: type(value)()}))


class TestTokens:
    def test_a_token_that_is_there_twice(self) -> None:
        file = byte_level("gpt-2", more={"<s>": CONTROL})
        file.metadata["tokenizer.ggml.tokens"].append("<s>")
        file.metadata["tokenizer.ggml.token_type"].append(CONTROL)
        assert "holds the same token twice ('<s>' is token 0 and token 257)" in refusal(file)

    def test_empty_tokens_have_names(self) -> None:
        tokenizer = build_tokenizer(byte_level("gpt-2", more={"": UNUSED, "<s>": CONTROL}))
        assert (tokenizer.id_to_token(0), tokenizer.id_to_token(1)) == ("[EMPTY_0]", "<s>")

    @pytest.mark.parametrize("byte", [b"\x80", b"\xff"])
    def test_tokens_that_are_no_text(self, tmp_path: Path, byte: bytes) -> None:
        tiny_gguf.write(tmp_path / "x.gguf", tiny_gguf.byte_level())
        whole = (tmp_path / "x.gguf").read_bytes()
        place = whole.index(struct.pack("<Q", 6) + b"<tool>")
        (tmp_path / "x.gguf").write_bytes(whole[: place + 8] + b"<to" + byte + b"l>" + whole[place + 14 :])
        assert re.search(
            r"holds a token that is not valid UTF-8 \(token \d+\)", refusal(GgufFile.read(tmp_path / "x.gguf"))
        )

    @pytest.mark.parametrize(
        ("entries", "said"),
        [
            ({"bos_token_id": 300}, "tokenizer.ggml.bos_token_id is 300, but the tokens are 0 to 255"),
            ({"eos_token_id": -1}, "tokenizer.ggml.eos_token_id is -1, but the tokens are 0 to 255"),
            ({"eot_token_id": 256}, "tokenizer.ggml.eot_token_id is 256, but the tokens are 0 to 255"),
            ({"eos_token_ids": [1, 256]}, "tokenizer.ggml.eos_token_ids is 256, but the tokens are 0 to 255"),
            ({"padding_token_id": 2.5}, "tokenizer.ggml.padding_token_id is 2.5, but"),
            ({"token_type": [1] * 255}, "256 tokens, but tokenizer.ggml.token_type does not have that many entries"),
            ({"scores": 1.0}, "256 tokens, but tokenizer.ggml.scores does not have that many entries"),
            ({"token_type": [1] * 255 + [7]}, "has a token of type 7; the types 1 to 6 are known"),
            ({"merges": ["ab"]}, "holds a damaged list of merges ('ab')"),
            ({"merges": ["a", "b c"]}, "holds a damaged list of merges ('a')"),
            ({"merges": ["a b"]}, "merges 'a' and 'b', which are not tokens or do not make one"),
        ],
    )
    def test_what_contradicts_itself_is_refused(self, entries: dict[str, Any], said: str) -> None:
        file = byte_level("gpt-2")
        file.metadata.update({f"tokenizer.ggml.{key}": value for key, value in entries.items()})
        assert said in refusal(file)

    def test_words_without_merges(self) -> None:
        assert "lacks its merges (tokenizer.ggml.merges)" in refusal(byte_level("gpt-2", more={"th": NORMAL}))
        build_tokenizer(byte_level("gpt-2", more={"th": UNUSED}))

    def test_of_equal_merges_the_first_counts(self) -> None:
        tokenizer = build_tokenizer(byte_level("gpt-2", ["a b", "b c", "a b"]))
        assert tokenizer.encode("abc").tokens == ["ab", "c"]

    def test_padding_of_a_vocabulary_is_kept(self, tmp_path: Path) -> None:
        more = {**SMALL, **{f"[PAD{i}]": UNUSED for i in range(3)}}
        tokenizer = loaded(byte_level("gpt-2", more=more, eos_token_id=1), tmp_path)
        assert len(tokenizer) == 256 + 6
        assert tokenizer.convert_ids_to_tokens([3, 5]) == ["[PAD0]", "[PAD2]"]
        assert 3 not in tokenizer("[PAD0]").input_ids


class TestSpecialTokens:
    def test_types_say_what_is_cut_out_and_what_is_hidden(self) -> None:
        more = {"<c>": CONTROL, "<u>": USER_DEFINED, "<x>": UNKNOWN, "<n>": UNUSED, "  ": USER_DEFINED}
        tokenizer = build_tokenizer(byte_level("gpt-2", more=more))
        ids = tokenizer.encode("a<c><u>  <x><n>").ids
        assert ids[1:5] == [0, 1, 4, 2]
        assert 3 not in ids
        assert tokenizer.decode(ids) == "a<u>  <n>"
        assert tokenizer.decode(ids, skip_special_tokens=False) == "a<c><u>  <x><n>"

    def test_reserved_places_have_no_names(self, tmp_path: Path) -> None:
        reserved = ["<unused7>", "<|reserved_special_token_3|>", "[PAD9]", "<|dummy_1|>"]
        loaded(
            byte_level("gpt-2", more=dict.fromkeys(["<s>", *reserved, "<|user|>"], CONTROL), bos_token_id=0), tmp_path
        )
        configuration = json.loads((tmp_path / "tokenizer_config.json").read_text())
        assert configuration["extra_special_tokens"] == ["<|user|>"]
        assert configuration["bos_token"] == "<s>"

    @pytest.mark.parametrize("letter", ["õ", "¡", "¬", "®", "Ā", "Ń"])
    def test_letters_that_mean_bytes_elsewhere(self, tmp_path: Path, letter: str) -> None:
        # Bytes that UTF-8 never has are no tokens in DeepSeek's vocabulary; the letters that would stand for them are.
        more = {letter: USER_DEFINED, "Ġé": USER_DEFINED, "<é>": CONTROL}
        file = byte_level("gpt-2", more=more)
        twice = file.metadata["tokenizer.ggml.tokens"].index(letter, 1)
        file.metadata["tokenizer.ggml.tokens"][twice] = "[PAD]"
        file.metadata["tokenizer.ggml.token_type"][twice] = UNUSED
        tokenizer = loaded(file, tmp_path)
        ids = tokenizer(f"x{letter}? Ġé<é>").input_ids
        assert ids[1] == 0
        assert ids[-2:] == [1, 2]
        assert tokenizer.decode(ids) == f"x{letter}? Ġé<é>"

    @pytest.mark.parametrize(
        ("name", "after"), [("Phi 3.5 mini", "hello"), ("Phi3", "hello"), ("phi-3", "hello"), ("L", "  hello")]
    )
    def test_phi3_takes_no_spaces_after_its_turns(self, name: str, after: str) -> None:
        more = {"<|user|>": CONTROL, "<|endoftext|>": CONTROL}
        file = sentencepiece({}, more, metadata={"general.name": name}, add_bos_token=False, add_space_prefix=False)
        tokenizer = build_tokenizer(file)
        assert tokenizer.decode(tokenizer.encode("<|user|>  hello").ids) == after
        assert tokenizer.decode(tokenizer.encode("<|endoftext|>  hello").ids) == "  hello"

    def test_places_of_llama_are_the_defaults(self) -> None:
        vocabulary = Vocabulary.read(sentencepiece({}))
        assert (vocabulary.unknown, vocabulary.begin, vocabulary.end, vocabulary.padding) == (0, 1, 2, None)
        assert (vocabulary.adds_begin, vocabulary.adds_end, vocabulary.space_before) == (True, False, True)

    def test_places_of_llama_are_no_defaults_for_other_tokens(self) -> None:
        file = sentencepiece({})
        file.metadata["tokenizer.ggml.token_type"][:3] = [CONTROL, NORMAL, NORMAL]
        said = refusal(file)
        assert "puts a token around every text but does not say which: tokenizer.ggml.bos_token_id is missing" in said
        file.metadata["tokenizer.ggml.add_bos_token"] = False
        vocabulary = Vocabulary.read(file)
        assert (vocabulary.unknown, vocabulary.begin, vocabulary.end) == (None, None, None)

    @pytest.mark.parametrize("begins", [None, True, False])
    @pytest.mark.parametrize("ends", [None, True, False])
    @pytest.mark.parametrize(("pre", "by_default"), [("llama3", True), ("dbrx", False)])
    def test_begin_and_end(
        self, tmp_path: Path, pre: str, by_default: bool, begins: bool | None, ends: bool | None
    ) -> None:
        said = {"add_bos_token": begins, "add_eos_token": ends}
        entries = {key: value for key, value in said.items() if value is not None}
        file = byte_level(pre, more=SMALL, bos_token_id=0, eos_token_id=1, **entries)
        tokenizer = loaded(file, tmp_path)
        letter = tokenizer("a", add_special_tokens=False).input_ids
        expected = [*[0] * (by_default if begins is None else begins), *letter, *[1] * bool(ends)]
        assert tokenizer("a").input_ids == expected == build_tokenizer(file).encode("a").ids

    def test_an_end_token_that_is_wanted_and_missing(self) -> None:
        said = refusal(byte_level("gpt-2", more=SMALL, add_eos_token=True))
        assert "tokenizer.ggml.eos_token_id is missing" in said


class TestSentencePieceText:
    def test_a_space_stands_before_each_stretch_of_text(self) -> None:
        file = sentencepiece({}, {"<u>": USER_DEFINED})
        assert build_tokenizer(file).encode("a<u>b").tokens == ["<s>", "▁", "a", "<u>", "▁", "b"]
        file.metadata["tokenizer.ggml.add_space_prefix"] = False
        assert build_tokenizer(file).encode("a<u>b").tokens == ["<s>", "a", "<u>", "b"]

    def test_unknown_letters_without_bytes(self) -> None:
        tokens = ["<unk>", "<s>", "</s>", "▁", "a"]
        types = [UNKNOWN, CONTROL, CONTROL, NORMAL, NORMAL]
        file = gguf_file("llama", tokens, types, scores=[0.0] * 5)
        assert build_tokenizer(file).encode("aéüa").tokens == ["<s>", "▁", "a", "<unk>", "a"]
        file.metadata["tokenizer.ggml.token_type"][0] = UNUSED
        assert "has neither tokens for all bytes nor an unknown token" in refusal(file)

    def test_bytes_are_enough(self) -> None:
        file = gguf_file("llama", ["<s>", *BYTES], [CONTROL, *[BYTE] * 256], scores=[0.0] * 257, bos_token_id=0)
        tokenizer = build_tokenizer(file)
        assert tokenizer.encode("é", add_special_tokens=False).tokens == [
            "<0xE2>",
            "<0x96>",
            "<0x81>",
            "<0xC3>",
            "<0xA9>",
        ]

    def test_byte_level_texts_have_no_space_before_them(self) -> None:
        assert build_tokenizer(byte_level("gpt-2", add_space_prefix=True)).encode("a").tokens == ["a"]


class TestEnds:
    def ends(self, names: list[str], kind: int = CONTROL, **entries: Any) -> list[int]:
        return end_tokens(byte_level("gpt-2", more=dict.fromkeys(names, kind), **entries))

    def test_those_that_the_file_names_come_first(self) -> None:
        entries = {
            "eos_token_id": 3,
            "eot_token_id": 2,
            "eom_token_id": 1,
            "fim_pad_token_id": 5,
            "eos_token_ids": [3, 4],
        }
        assert self.ends([f"<{i}>" for i in range(6)], **entries) == [3, 2, 1, 5, 4]

    @pytest.mark.parametrize(
        "name",
        [
            *("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<|return|>"),
            *(
                "<|end_of_text|>",
                "<end_of_utterance>",
                "<turn|>",
                "<｜end▁of▁sentence｜>",
                "[e~[",
                "<|flush|>",
                "<|call|>",
            ),
        ],
    )
    @pytest.mark.parametrize("kind", [NORMAL, USER_DEFINED, CONTROL])
    def test_names_that_say_so(self, name: str, kind: int) -> None:
        file = byte_level("gpt-2", ["a b"], more={"<s>": CONTROL, name: kind})
        assert end_tokens(file) == [1]
        tokenizer = build_tokenizer(file)
        assert tokenizer.encode(f"a{name}").ids[1:] == [1]
        assert tokenizer.decode([1]) == ""

    @pytest.mark.parametrize("name", ["</s>", "<eos>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]"])
    def test_words_that_a_text_may_hold(self, name: str) -> None:
        assert self.ends(["<x>", name]) == [1]
        assert self.ends(["<x>", name], USER_DEFINED) == []

    def test_what_ends_only_a_message(self) -> None:
        assert self.ends(["<|end|>", "<|return|>", "<|call|>"]) == [1, 2]
        assert self.ends(["<|end|>", "<|flush|>", "<|calls|>"]) == [1, 2]
        assert self.ends(["<|end|>", "<|return|>"]) == [0, 1]
        assert self.ends(["<|end|>", "<|return|>", "<|call|>"], eos_token_id=0) == [0, 1, 2]

    def test_a_tag_of_html_in_gemma4(self) -> None:
        assert self.ends(["</s>", "<|tool_response>", "<turn|>"]) == [1, 2]

    def test_the_unknown_token_is_no_end(self) -> None:
        assert self.ends(["<|endoftext|>", "<|im_end|>"], unknown_token_id=0) == [1]
        assert self.ends(["<|endoftext|>", "<|im_end|>"], unknown_token_id=0, eos_token_id=0) == [0, 1]


class TestChatTemplates:
    PLAIN = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"

    def test_alone(self, tmp_path: Path) -> None:
        metadata = {"tokenizer.chat_template": self.PLAIN}
        tokenizer = loaded(byte_level("llama3", more=SMALL, bos_token_id=0, metadata=metadata), tmp_path)
        assert json.loads((tmp_path / "tokenizer_config.json").read_text())["chat_template"] == self.PLAIN
        chat = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=True, return_dict=False)
        assert chat == [0, *tokenizer("a", add_special_tokens=False).input_ids]  # the begin token once

    def test_with_names(self, tmp_path: Path) -> None:
        key = "tokenizer.chat_template"
        metadata = {
            key: self.PLAIN,
            f"{key}.tool_use": "tools: {{ tools | length }}",
            "tokenizer.chat_templates": ["tool_use"],
        }
        tokenizer = loaded(byte_level("gpt-2", more=SMALL, bos_token_id=0, metadata=metadata), tmp_path)
        messages = [{"role": "user", "content": "a"}]
        tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
        assert tokenizer.apply_chat_template(messages, tokenize=False) == "<s>a"
        assert tokenizer.apply_chat_template(messages, tools=[tool], tokenize=False) == "tools: 1"

    def test_functions_that_templates_call(self, tmp_path: Path) -> None:
        template = "{{ strftime_now('%Y') | length }}{% if messages | length > 1 %}{{ raise_exception('one only') }}{% endif %}"
        tokenizer = loaded(byte_level("gpt-2", more=SMALL, metadata={"tokenizer.chat_template": template}), tmp_path)
        message = {"role": "user", "content": "a"}
        assert tokenizer.apply_chat_template([message], tokenize=False) == "4"
        with pytest.raises(Exception, match="one only"):
            tokenizer.apply_chat_template([message, message], tokenize=False)

    def test_a_name_without_its_template(self, tmp_path: Path) -> None:
        file = byte_level("gpt-2", metadata={"tokenizer.chat_templates": ["rag"]})
        with pytest.raises(ModelNotReadable, match="names a chat template 'rag' that it does not hold"):
            write_tokenizer(file, tmp_path)


@pytest.mark.parametrize("pre", ["llama3", "qwen2", "deepseek-llm", "gpt-4o", "kimi-k2", "superbpe", "falcon"])
def test_the_written_folder_keeps_ids_and_texts(tmp_path: Path, pre: str) -> None:
    file = byte_level(pre, ["Ġ t", "h e", "Ġt he", "1 2"], SMALL, bos_token_id=0, eos_token_id=1)
    raw, tokenizer = build_tokenizer(file), loaded(file, tmp_path)
    for text in ["the the 12345", "I'LL é漢字!\n\n <s> x", "🙂 नमस्ते</s>", ""]:
        ids = tokenizer(text).input_ids
        assert ids == raw.encode(text).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == ("<s>" if pre == "llama3" else "") + text
