"""GGUF files become models that say the same: same logits, same tokens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_gguf
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decodery.errors import ModelNotReadable
from decodery.models.gguf.file import GgufFile
from decodery.models.gguf.model import write_folder
from decodery.models.gguf.tokenizer import build_tokenizer, end_tokens
from decodery.models.reading import read_model


def converted(path: Path, folder: Path) -> Path:
    folder.mkdir()
    write_folder(GgufFile.read(path), folder)
    return folder


def loaded(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return read_model(folder, json.loads((folder / "config.json").read_text()), dtype)


@pytest.fixture(scope="module")
def sentencepiece_file(tmp_path_factory: pytest.TempPathFactory) -> GgufFile:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    tiny_gguf.write(path, tiny_gguf.sentencepiece())
    return GgufFile.read(path)


@pytest.fixture(scope="module")
def byte_level_file(tmp_path_factory: pytest.TempPathFactory) -> GgufFile:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    tiny_gguf.write(path, tiny_gguf.byte_level())
    return GgufFile.read(path)


def test_logits_equal_those_of_the_dequantised_weights(tmp_path: Path) -> None:
    vocabulary = tiny_gguf.byte_level()
    weights = tiny_gguf.write(tmp_path / "tiny.gguf", vocabulary)
    model = loaded(converted(tmp_path / "tiny.gguf", tmp_path / "model"))
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected = tiny_gguf.reference_model(weights, vocabulary)(ids).logits
        assert torch.equal(model(ids).logits, expected)
    assert model.dtype == torch.float32


def test_configuration_is_clean(tmp_path: Path) -> None:
    tiny_gguf.write(tmp_path / "tiny.gguf", tiny_gguf.byte_level())
    folder = converted(tmp_path / "tiny.gguf", tmp_path / "model")
    configuration = json.loads((folder / "config.json").read_text())
    assert configuration["architectures"] == ["LlamaForCausalLM"]
    assert configuration["dtype"] == "float32"
    assert configuration["rms_norm_eps"] == tiny_gguf.EPSILON
    assert configuration["tie_word_embeddings"] is True
    assert not {"quantization_config", "_name_or_path", "_model_name_or_path"} & configuration.keys()
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


def test_weights_are_rounded_once_to_another_dtype(tmp_path: Path) -> None:
    weights = tiny_gguf.write(tmp_path / "tiny.gguf", tiny_gguf.byte_level())
    state = loaded(converted(tmp_path / "tiny.gguf", tmp_path / "model"), torch.bfloat16).state_dict()
    for name, weight in weights.items():
        assert torch.equal(state[name], weight.bfloat16()), name


def test_no_weights_are_copied(tmp_path: Path) -> None:
    tiny_gguf.write(tmp_path / "tiny.gguf", tiny_gguf.byte_level())
    folder = converted(tmp_path / "tiny.gguf", tmp_path / "model")
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "generation_config.json",
        "gguf.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


class TestByteLevel:
    def test_digits_stand_alone_where_the_split_says_so(self, byte_level_file: GgufFile) -> None:
        tokenizer = build_tokenizer(byte_level_file)
        assert tokenizer.encode(" 112 the").tokens == ["Ġ", "1", "1", "2", "Ġthe"]
        # Digits are cut off before words are: the run of spaces stays whole.
        assert tokenizer.encode("  1").tokens == ["ĠĠ", "1"]

    def test_digits_merge_where_the_split_lets_them(self, tmp_path: Path) -> None:
        tiny_gguf.write(tmp_path / "tiny.gguf", tiny_gguf.byte_level("gpt-2"))
        tokenizer = build_tokenizer(GgufFile.read(tmp_path / "tiny.gguf"))
        assert tokenizer.encode("112").tokens == ["1", "12"]

    @pytest.mark.parametrize("split", ["llama-bpe", "qwen2", "tekken", "gpt-4o"])
    def test_every_known_split_round_trips(self, tmp_path: Path, split: str) -> None:
        tiny_gguf.write(tmp_path / "tiny.gguf", tiny_gguf.byte_level(split))
        tokenizer = build_tokenizer(GgufFile.read(tmp_path / "tiny.gguf"))
        text = "I'll pay 1234.5€\n\n  for it\t!"
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text

    def test_unknown_split_is_refused(self, tmp_path: Path) -> None:
        tiny_gguf.write(tmp_path / "tiny.gguf", tiny_gguf.byte_level("new-split"))
        with pytest.raises(ModelNotReadable, match=r"splits text in a way that is not known here \('new-split'\)"):
            build_tokenizer(GgufFile.read(tmp_path / "tiny.gguf"))

    def test_control_tokens_are_single_and_special(self, byte_level_file: GgufFile) -> None:
        tokenizer = build_tokenizer(byte_level_file)
        encoded = tokenizer.encode("<|im_start|>the<|im_end|><tool>")
        assert encoded.ids[0] == 1
        assert encoded.ids[-2:] == [2, tokenizer.token_to_id("<tool>")]
        assert tokenizer.decode(encoded.ids) == "the<tool>"

    def test_transformers_loads_it_as_it_stands(self, tmp_path: Path) -> None:
        from transformers import AutoTokenizer

        tiny_gguf.write(tmp_path / "tiny.gguf", tiny_gguf.byte_level())
        tokenizer: Any = AutoTokenizer.from_pretrained(converted(tmp_path / "tiny.gguf", tmp_path / "model"))
        assert tokenizer.tokenize("  12") == ["ĠĠ", "1", "2"]
        assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
            "<|im_start|>",
            "<|im_end|>",
            "<|im_end|>",
        )
        assert tokenizer("the").input_ids == tokenizer("the", add_special_tokens=False).input_ids
        chat = tokenizer.apply_chat_template([{"role": "user", "content": "the"}], tokenize=False)
        assert chat == "<|im_start|>user\nthe<|im_end|>\n"
        assert set(tokenizer.all_special_ids) == {0, 1, 2}
        assert tokenizer.model_max_length == tiny_gguf.CONTEXT

    @settings(max_examples=200, deadline=None)
    @given(text=st.text(st.characters(exclude_categories=["Cs"])))
    def test_round_trip(self, byte_level_file: GgufFile, text: str) -> None:
        tokenizer = build_tokenizer(byte_level_file)
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


class TestSentencePiece:
    def test_merges_follow_the_scores(self, sentencepiece_file: GgufFile) -> None:
        tokenizer = build_tokenizer(sentencepiece_file)
        assert tokenizer.encode("the and").tokens == ["<bos>", "t", "he", "▁and"]
        assert tokenizer.encode(" the", add_special_tokens=False).tokens == ["▁the"]
        assert tokenizer.encode("aaaaa", add_special_tokens=False).tokens == ["aa", "aaa"]

    def test_user_defined_tokens_are_cut_out_whole(self, sentencepiece_file: GgufFile) -> None:
        tokens = build_tokenizer(sentencepiece_file).encode("a    and\n\n\nb<b>", add_special_tokens=False).tokens
        assert tokens == ["a", "   ", "▁and", "\n\n", "\n", "b", "<b>"]

    def test_unknown_letters_become_bytes(self, sentencepiece_file: GgufFile) -> None:
        tokens = build_tokenizer(sentencepiece_file).encode("é🙂", add_special_tokens=False).tokens
        assert tokens == ["<0xC3>", "<0xA9>", "<0xF0>", "<0x9F>", "<0x99>", "<0x82>"]

    def test_ends_of_turn_end_a_text(self, sentencepiece_file: GgufFile) -> None:
        assert end_tokens(sentencepiece_file) == [1, 4]

    def test_transformers_loads_it_as_it_stands(self, tmp_path: Path) -> None:
        from transformers import AutoTokenizer

        tiny_gguf.write(tmp_path / "tiny.gguf", tiny_gguf.sentencepiece())
        folder = converted(tmp_path / "tiny.gguf", tmp_path / "model")
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        ids = tokenizer("a  the<end_of_turn>").input_ids
        assert tokenizer.convert_ids_to_tokens(ids) == ["<bos>", "a", "  ", "t", "he", "<end_of_turn>"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == "a  the"
        generation = json.loads((folder / "generation_config.json").read_text())
        assert generation["eos_token_id"] == [1, 4]

    @settings(max_examples=200, deadline=None)
    @given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁")))
    def test_round_trip(self, sentencepiece_file: GgufFile, text: str) -> None:
        tokenizer = build_tokenizer(sentencepiece_file)
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


class TestDamage:
    def test_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "x.gguf").write_bytes(b"hello")
        with pytest.raises(ModelNotReadable, match="is not a GGUF file"):
            GgufFile.read(tmp_path / "x.gguf")

    @pytest.mark.parametrize("share", [0.001, 0.01, 0.05])
    def test_cut_in_the_head(self, byte_level_file: GgufFile, tmp_path: Path, share: float) -> None:
        whole = byte_level_file.path.read_bytes()
        (tmp_path / "x.gguf").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ModelNotReadable, match="damaged or cut short"):
            GgufFile.read(tmp_path / "x.gguf")

    def test_cut_in_the_weights(self, byte_level_file: GgufFile, tmp_path: Path) -> None:
        (tmp_path / "x.gguf").write_bytes(byte_level_file.path.read_bytes()[:-1000])
        with pytest.raises(ModelNotReadable, match=r"cut short: it has [\d,]+ of at least [\d,]+ bytes"):
            converted(tmp_path / "x.gguf", tmp_path / "model")

    def test_no_vocabulary(self, tmp_path: Path) -> None:
        tiny_gguf.write(tmp_path / "x.gguf", tiny_gguf.byte_level())
        whole = (tmp_path / "x.gguf").read_bytes()
        (tmp_path / "x.gguf").write_bytes(whole.replace(b"tokenizer.ggml.tokens", b"tokenizer.ggml.tokenz"))
        with pytest.raises(ModelNotReadable, match="holds no vocabulary"):
            converted(tmp_path / "x.gguf", tmp_path / "model")

    def test_other_kind_of_tokenizer(self, tmp_path: Path) -> None:
        tiny_gguf.write(tmp_path / "x.gguf", replace(tiny_gguf.byte_level(), model="bert"))
        with pytest.raises(ModelNotReadable, match="tokenizer of kind 'bert'"):
            converted(tmp_path / "x.gguf", tmp_path / "model")

    def test_unknown_architecture(self, byte_level_file: GgufFile, tmp_path: Path) -> None:
        whole = byte_level_file.path.read_bytes().replace(b"llama", b"loama")
        (tmp_path / "x.gguf").write_bytes(whole)
        with pytest.raises(ModelNotReadable, match="of architecture 'loama', which cannot be read here"):
            converted(tmp_path / "x.gguf", tmp_path / "model")

    def test_unknown_tensor(self, tmp_path: Path) -> None:
        tiny_gguf.write(tmp_path / "x.gguf", tiny_gguf.byte_level())
        whole = (tmp_path / "x.gguf").read_bytes()
        (tmp_path / "x.gguf").write_bytes(whole.replace(b"blk.1.ffn_up.weight", b"blk.1.fff_up.weight"))
        with pytest.raises(
            ModelNotReadable, match=r"holds the tensor blk\.1\.fff_up\.weight, which nothing here reads"
        ):
            converted(tmp_path / "x.gguf", tmp_path / "model")
