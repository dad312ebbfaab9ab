"""Models read a few weights at a time are those that transformers reads, and files do not stay in memory."""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import FAMILIES, byte_level_tokenizer, make_model
from transformers import AutoModelForCausalLM, GenerationConfig

import decodery
from decodery.models import store, stored_weights
from decodery.models.checkpoint import weight_files
from decodery.models.pages import give_back
from decodery.models.reading import read_model, transformers_model
from decodery.models.stored_weights import SafetensorsFile, StoredWeight

MEBIBYTE = 1 << 20


def configuration(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return read


def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the weights that are taken from files from here on."""
    names: list[str] = []

    take = StoredWeight.__getitem__

    def spy(weight: StoredWeight, place: Any) -> torch.Tensor:
        names.append(weight._name)
        return take(weight, place)

    monkeypatch.setattr(StoredWeight, "__getitem__", spy)
    return names


def tensors(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def assert_same(folder: Path, dtype: torch.dtype) -> None:
    ours, theirs = (
        read_model(folder, configuration(folder), dtype),
        AutoModelForCausalLM.from_pretrained(folder, dtype=dtype),
    )
    assert type(ours) is type(theirs)
    for (name, own), (other_name, other) in zip(tensors(ours), tensors(theirs), strict=True):
        assert name == other_name
        assert torch.equal(own, other), name
        assert (type(own), own.dtype, own.requires_grad) == (type(other), other.dtype, other.requires_grad), name
    tied = [
        [name for name, weight in tensors(model) if weight is model.get_input_embeddings().weight]
        for model in (ours, theirs)
    ]
    assert tied[0] == tied[1]
    assert not any(module.training for module in ours.modules())
    for part in ("config", "generation_config"):
        assert getattr(ours, part).to_dict() == getattr(theirs, part).to_dict()
    assert ours.config._attn_implementation == theirs.config._attn_implementation
    assert ours.dtype == theirs.dtype
    assert ours.name_or_path == str(theirs.name_or_path)
    assert ours.config.name_or_path == str(theirs.config.name_or_path)


class TestTheModel:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_every_family_in_bfloat16(self, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        make_model(family).save_pretrained(tmp_path)
        names = taken(monkeypatch)
        assert_same(tmp_path, torch.bfloat16)
        assert names

    def test_a_family_whose_weights_are_joined_at_load(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from transformers import MixtralConfig, MixtralForCausalLM

        config: Any = MixtralConfig(
            vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, num_local_experts=4,
        )  # fmt: skip
        MixtralForCausalLM(config).save_pretrained(tmp_path)
        names = taken(monkeypatch)
        assert_same(tmp_path, torch.bfloat16)
        assert any("experts" in name for name in names)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_tied_weights_in_several_files(
        self, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_model("llama", tie_word_embeddings=True).save_pretrained(tmp_path, max_shard_size="40KB")
        assert len(list(weight_files(tmp_path))) > 2
        names = taken(monkeypatch)
        monkeypatch.setattr(stored_weights, "MAP", 1)  # a new map for every weight
        assert_same(tmp_path, dtype)
        assert names.count("model.embed_tokens.weight") == 1
        assert "lm_head.weight" not in names
        model = read_model(tmp_path, configuration(tmp_path), dtype)
        assert model.lm_head.weight is model.model.embed_tokens.weight

    def test_files_of_several_dtypes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model = make_model("llama").to(torch.bfloat16)
        model.model.norm.float()
        model.save_pretrained(tmp_path)
        names = taken(monkeypatch)
        assert_same(tmp_path, torch.bfloat16)
        assert names

    def test_what_the_folder_says_on_generation(self, tmp_path: Path) -> None:
        model = make_model("llama", eos_token_id=3)
        model.generation_config = GenerationConfig(eos_token_id=[5, 7], do_sample=True, temperature=0.3)
        model.save_pretrained(tmp_path)
        read = read_model(tmp_path, configuration(tmp_path), torch.bfloat16)
        assert read.generation_config.eos_token_id == [5, 7]
        assert_same(tmp_path, torch.bfloat16)

    @pytest.mark.real_model
    def test_the_default_model(self, tmp_path: Path) -> None:
        transformers_model(store.resolve("smollm2-135m"), torch.float32).save_pretrained(tmp_path)
        assert_same(tmp_path, torch.bfloat16)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        make_model("llama").save_pretrained(tmp_path, max_shard_size="40KB")
        byte_level_tokenizer().save_pretrained(tmp_path)
        list(weight_files(tmp_path))[1].unlink()
        with pytest.raises(decodery.ModelNotReadable, match="lacks 1 of"):
            decodery.load(tmp_path, dtype="bfloat16")


class TestOtherFolders:
    def test_weights_that_have_the_dtype_already_stay_in_the_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_model("llama").save_pretrained(tmp_path)
        opened: list[Path] = []
        init = SafetensorsFile._open
        monkeypatch.setattr(stored_weights, "MAP", 1)
        monkeypatch.setattr(SafetensorsFile, "_open", lambda file: (opened.append(file.path), init(file))[1])
        assert_same(tmp_path, torch.float32)
        assert len(opened) == 1  # one map serves all

    def test_what_to_generate_with_where_the_folder_does_not_say(self, tmp_path: Path) -> None:
        make_model("llama", eos_token_id=[3, 4]).save_pretrained(tmp_path)
        (tmp_path / "generation_config.json").unlink()
        assert_same(tmp_path, torch.bfloat16)
        assert read_model(tmp_path, configuration(tmp_path), torch.bfloat16).generation_config.eos_token_id == [3, 4]


def resident(kind: str) -> int:
    """Bytes of this process that are in memory: RssAnon (its own) or RssFile (pages of files)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(kind)).split()[1]) << 10


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is read from /proc")
class TestMemory:
    def test_pages_go_with_the_weights(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "model.safetensors"
        save_file({f"weight{i}": torch.full((MEBIBYTE,), float(i)) for i in range(16)}, path)  # 4 MiB each
        monkeypatch.setattr(stored_weights, "MAP", 8 * MEBIBYTE)
        gc.collect()
        before = resident("RssFile")
        file = SafetensorsFile(path)
        for i in range(16):
            weight = file.take(f"weight{i}", ...)
            assert float(weight.min()) == float(weight.max()) == i
            assert resident("RssFile") - before <= 20 * MEBIBYTE  # two maps, and some pages more
        del weight
        assert resident("RssFile") - before <= 12 * MEBIBYTE

    def test_a_view_outlives_its_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        save_file({"a": torch.arange(5.0), "b": torch.arange(7.0)}, tmp_path / "model.safetensors")
        monkeypatch.setattr(stored_weights, "MAP", 1)
        file = SafetensorsFile(tmp_path / "model.safetensors")
        first, second = file.take("a", ...), file.take("b", slice(2, 4))
        del file
        gc.collect()
        assert first.tolist() == [0, 1, 2, 3, 4]
        assert second.tolist() == [2, 3]

    def test_freed_memory_goes_back(self) -> None:
        if not hasattr(ctypes.CDLL(None), "malloc_trim"):
            pytest.skip("the allocator is not glibc's")
        pieces = [torch.ones(20_000) for _ in range(1000)]  # 80 KB each, too small for memory of their own
        kept = pieces[::100]
        give_back()
        before = resident("RssAnon")
        del pieces
        give_back()
        assert before - resident("RssAnon") > 40 * MEBIBYTE
        assert all(bool((piece == 1).all()) for piece in kept)
