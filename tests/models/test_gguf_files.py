"""GGUF files as they come: quantised in every way, in parts, damaged, and with entries that mean something."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import gguf_writing as writing
import numpy as np
import pytest
import tiny_gguf
import torch
from gguf import GGMLQuantizationType as Kind
from gguf_cases import BASE, RMS, rope
from gguf_writing import ENTRIES, GROUPS, HEADS, HIDDEN, turn_llama
from store_testing import is_one_sentence
from test_dequantisation import SCALES, like_weights
from test_gguf_architectures import CASES, logits, read, written

from decodery.errors import ModelNotReadable
from decodery.models import store
from decodery.models.gguf.file import GgufFile
from decodery.models.gguf.model import write_folder
from decodery.models.gguf.weights import GgufWeights, weight_source

SAYS: dict[str, Any] = {**ENTRIES, **RMS, "rope.freq_base": BASE}


def llama(path: Path, entries: dict[str, Any] | None = None, architecture: str = "llama", **more: Any) -> Any:
    model = writing.network("llama", rms_norm_eps=3e-5, **rope())
    writing.write(path, architecture, model, {**SAYS, **(entries or {})}, turn_llama, **more)
    return model


def refusal(path: Path, tmp_path: Path) -> str:
    folder = tmp_path / "refused"
    folder.mkdir()
    with pytest.raises(ModelNotReadable) as error:
        write_folder(GgufFile.read(path), folder)
    assert is_one_sentence(error)
    return str(error.value)


class TestQuantised:
    @pytest.mark.parametrize("kind", [*(kind.name for kind in SCALES), "F16", "BF16"])
    def test_logits(self, tmp_path: Path, kind: str) -> None:
        sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
        model = writing.network("llama", rms_norm_eps=3e-5, **sizes, **rope())
        state, raw = model.state_dict(), {}
        for name, weight in state.items():
            if weight.ndim == 2:
                if kind in ("F16", "BF16"):
                    rows = gguf.quants.quantize(weight.numpy(), Kind[kind])
                else:
                    rows = like_weights(Kind[kind], *weight.shape)
                raw[name] = (torch.from_numpy(rows.copy()), Kind[kind])
                state[name] = torch.from_numpy(gguf.quants.dequantize(rows, Kind[kind]).astype("f4"))
        model.load_state_dict(state)
        entries = {**SAYS, "embedding_length": 256, "feed_forward_length": 512, "block_count": 2}
        writing.write(tmp_path / "x.gguf", "llama", model, entries, turn_llama, raw=raw)
        got = read(tmp_path / "x.gguf", tmp_path / "model")
        assert float((logits(got) - logits(model)).abs().max()) < 1e-4

    def test_blocks_are_whole_rows_in_the_order_of_the_network(self, tmp_path: Path) -> None:
        rows = {
            name: torch.from_numpy(like_weights(Kind.Q4_0, shape, HIDDEN))
            for name, shape in (
                ("q_proj", HIDDEN),
                ("k_proj", HIDDEN // HEADS * GROUPS),
                ("v_proj", HIDDEN // HEADS * GROUPS),
            )
        }
        names = {f"model.layers.1.self_attn.{name}.weight": made for name, made in rows.items()}
        llama(tmp_path / "x.gguf", raw={name: (made, Kind.Q4_0) for name, made in names.items()})
        source = GgufWeights(GgufFile.read(tmp_path / "x.gguf"))
        for name, made in names.items():
            blocks = source.blocks(name)
            assert blocks is not None
            assert (blocks.kind, blocks.inputs) == (Kind.Q4_0, HIDDEN)
            assert torch.equal(blocks.rows, made)
        assert source.blocks("model.layers.0.self_attn.q_proj.weight") is None  # float32
        with pytest.raises(KeyError):
            source.blocks("model.layers.9.self_attn.q_proj.weight")

    def test_weights_of_several_tensors_have_no_blocks(self, tmp_path: Path) -> None:
        written(CASES["mixtral"], tmp_path / "x.gguf")
        source = GgufWeights(GgufFile.read(tmp_path / "x.gguf"))
        assert source.blocks("model.layers.0.mlp.experts.gate_up_proj") is None


class TestEntries:
    @pytest.mark.parametrize(
        ("entries", "message"),
        [
            ({"rope.scaling.type": "su"}, "rope.scaling.type = 'su': a scaling of rotary angles that is not known"),
            ({"rope.scaling.type": "longrope"}, "rope.scaling.type = 'longrope': the tensors rope_factors_long"),
            ({"rope.scaling.attn_factor": 1.5}, "rope.scaling.attn_factor = 1.5: "),
            ({"rope.scaling.alpha": 2.0}, "rope.scaling.alpha = 2.0: "),
            ({"rope.dimension_count": 8}, "rope.dimension_count = 8: the network turns whole heads, 16 wide"),
            ({"attention.sliding_window": 8}, "attention.sliding_window = 8: attention ends at a window"),
            ({"attention.scale": 0.5}, "attention.scale = 0.5: "),
            ({"attention.clamp_kqv": 8.0}, "attention.clamp_kqv = 8.0: "),
            ({"attention.causal": False}, "attention.causal = False: "),
            ({"attention.value_length": 8}, "attention.value_length = 8: "),
            ({"attention.head_count": [4, 4, 2]}, r"attention.head_count = \[4, 4, 2\]: a network whose layers differ"),
            ({"feed_forward_length": [96, 96, 64]}, "feed_forward_length = .*: a network whose layers differ"),
            ({"pooling_type": 3}, "pooling_type = 3: "),
            ({"logit_scale": 0.5}, "llama.logit_scale = 0.5, which nothing here reads"),
            ({"final_logit_softcapping": 30.0}, "llama.final_logit_softcapping = 30.0, which nothing here reads"),
            ({"/general.type": "adapter"}, "general.type = 'adapter': it holds changes to a model's weights"),
            ({"/general.type": "mmproj"}, "general.type = 'mmproj': it holds the eyes or ears of a model"),
            ({"/adapter.type": "lora"}, "general.type = 'adapter'"),
            ({"/general.quantization_version": 1}, "general.quantization_version = 1: "),
            ({"/general.alignment": 48}, "general.alignment 48; it must be a power of two"),
            ({"attention.head_count": 0}, "has metadata that describes no network"),
            ({"embedding_length": "wide"}, "has metadata that describes no network"),
            ({"attention.layer_norm_rms_epsilon": "small"}, "has metadata that describes no network"),
            ({"block_count": 3, "context_length": "long"}, "has metadata of which transformers makes no network"),
            ({"/qwen2.context_length": 5}, "qwen2.context_length = 5, which nothing here reads"),
        ],
    )
    def test_what_cannot_be_honoured_is_refused_by_name(
        self, tmp_path: Path, entries: dict[str, Any], message: str
    ) -> None:
        llama(tmp_path / "x.gguf", entries)
        assert re.search(message, refusal(tmp_path / "x.gguf", tmp_path))

    @pytest.mark.parametrize(
        "entries",
        [
            {"/general.author": "Somebody", "/general.base_model.0.name": "Base", "/general.tags": ["x"]},
            {"/quantize.imatrix.entries_count": 5, "/mradermacher.quantized_by": "x"},
            {"attention.causal": True, "pooling_type": 0, "rope.scaling.finetuned": True, "expert_count": 0},
            {"attention.head_count": [4, 4, 4], "attention.head_count_kv": [2, 2, 2]},
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 1.0},
        ],
    )
    def test_what_says_nothing_is_no_hindrance(self, tmp_path: Path, entries: dict[str, Any]) -> None:
        expected = llama(tmp_path / "x.gguf", entries)
        assert torch.equal(logits(read(tmp_path / "x.gguf", tmp_path / "model")), logits(expected))

    @pytest.mark.parametrize("key", ["attention.layer_norm_rms_epsilon", "embedding_length", "block_count"])
    def test_what_is_needed_is_named(self, tmp_path: Path, key: str) -> None:
        model = writing.network("llama", **rope())
        entries = {name: value for name, value in SAYS.items() if name != key}
        writing.write(tmp_path / "x.gguf", "llama", model, {**entries, "block_count": 3}, turn_llama)
        if key == "block_count":  # the writing needs it itself
            whole = (tmp_path / "x.gguf").read_bytes()
            (tmp_path / "x.gguf").write_bytes(whole.replace(b"llama.block_count", b"quantize.xx_count"))
        assert f"lacks the entry llama.{key}" in refusal(tmp_path / "x.gguf", tmp_path)

    def test_alignment_is_heeded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gguf.GGUFWriter, "data_alignment", 128, raising=False)
        made = gguf.GGUFWriter.__init__

        def aligned(self: Any, *arguments: Any, **named: Any) -> None:
            made(self, *arguments, **named)
            self.add_custom_alignment(128)

        monkeypatch.setattr(gguf.GGUFWriter, "__init__", aligned)
        expected = llama(tmp_path / "x.gguf")
        assert torch.equal(logits(read(tmp_path / "x.gguf", tmp_path / "model")), logits(expected))

    @pytest.mark.parametrize(
        ("architecture", "message"),
        [
            ("t5", "'t5', which cannot be read here: it reads a text whole"),
            ("clip", "general.type = 'mmproj'"),
            ("", "does not name its architecture"),
            ("nothing", "'nothing', which cannot be read here; those that can: arcee, bloom, "),
        ],
    )
    def test_architecture_that_cannot_be_read(self, tmp_path: Path, architecture: str, message: str) -> None:
        tiny_gguf.write(tmp_path / "x.gguf", tiny_gguf.byte_level())
        file = GgufFile.read(tmp_path / "x.gguf")
        with pytest.raises(ModelNotReadable, match=message) as error:
            write_folder(replace(file, metadata={**file.metadata, "general.architecture": architecture}), tmp_path)
        assert is_one_sentence(error)


class TestTensors:
    def test_one_too_many(self, tmp_path: Path) -> None:
        llama(tmp_path / "x.gguf", extra={"blk.0.attn_q.scale": np.ones(1, "f4")})
        assert "holds the tensor blk.0.attn_q.scale, which nothing here reads" in refusal(tmp_path / "x.gguf", tmp_path)

    def test_one_without_a_place(self, tmp_path: Path) -> None:
        llama(tmp_path / "x.gguf", extra={"blk.3.attn_norm.weight": np.ones(HIDDEN, "f4")})
        message = refusal(tmp_path / "x.gguf", tmp_path)
        assert (
            "holds blk.3.attn_norm.weight, for which LlamaForCausalLM, as the file describes it, has no place"
            in message
        )

    def test_one_too_few(self, tmp_path: Path) -> None:
        llama(tmp_path / "x.gguf")
        file = GgufFile.read(tmp_path / "x.gguf")
        kept = tuple(entry for entry in file.tensors if entry.name != "blk.1.ffn_up.weight")
        (tmp_path / "model").mkdir()
        with pytest.raises(ModelNotReadable, match=r"is incomplete: it lacks model\.layers\.1\.mlp\.up_proj\.weight\."):
            write_folder(GgufFile(file.paths, file.metadata, kept), tmp_path / "model")

    def test_one_of_another_shape(self, tmp_path: Path) -> None:
        llama(tmp_path / "x.gguf", {"feed_forward_length": 64})
        assert "makes a weight model.layers.0.mlp.gate_proj.weight of shape [96, 64]" in refusal(
            tmp_path / "x.gguf", tmp_path
        )

    def test_factors_of_angles_where_nothing_turns(self, tmp_path: Path) -> None:
        case = CASES["gpt2"]._replace(extra={"rope_freqs.weight": np.ones(8, "f4")})
        written(case, tmp_path / "x.gguf")
        assert "holds the tensor rope_freqs.weight, which nothing here reads" in refusal(tmp_path / "x.gguf", tmp_path)

    def test_another_number_of_factors(self, tmp_path: Path) -> None:
        llama(tmp_path / "x.gguf", extra={"rope_freqs.weight": np.full(4, 2, "f4")})
        assert "the tensor rope_freqs has 4 factors" in refusal(tmp_path / "x.gguf", tmp_path)

    def test_factors_of_llama_3_are_its_law(self, tmp_path: Path) -> None:
        """As Llama 3.2 has them: the configuration says the law, so that fast paths know it."""
        from transformers import LlamaConfig
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        law = {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        config = LlamaConfig(head_dim=64, rope_parameters=law)
        angles, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
        plain = 1 / 500000.0 ** (torch.arange(0, 64, 2).float() / 64)
        model = writing.network("llama", rms_norm_eps=3e-5, head_dim=64, rope_parameters=law)
        entries = {**SAYS, "rope.freq_base": 500000.0, "attention.key_length": 64, "attention.value_length": 64}
        extra = {"rope_freqs.weight": (plain / angles).numpy()}
        writing.write(tmp_path / "x.gguf", "llama", model, entries, turn_llama, extra)
        got = read(tmp_path / "x.gguf", tmp_path / "model")
        assert got.config.rope_parameters == law
        assert torch.equal(logits(got), logits(model))


class TestParts:
    @pytest.fixture
    def parts(self, tmp_path: Path) -> list[Path]:
        llama(tmp_path / "whole.gguf")
        split = gguf.GGUFWriter.__init__

        def in_parts(self: Any, *arguments: Any, **named: Any) -> None:
            split(self, *arguments, split_max_tensors=9, **named)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gguf.GGUFWriter, "__init__", in_parts)
            llama(tmp_path / "x.gguf")
        found = sorted(tmp_path.glob("x-*.gguf"))
        assert len(found) == 4
        return found

    def test_the_first_leads_to_all(self, parts: list[Path], tmp_path: Path, home: Path) -> None:
        folder = store.resolve(str(parts[0]))
        assert weight_source(folder) is not None
        whole = read(tmp_path / "whole.gguf", tmp_path / "model")
        assert torch.equal(logits(read(parts[0], tmp_path / "parts")), logits(whole))

    def test_a_later_one_says_so(self, parts: list[Path]) -> None:
        with pytest.raises(
            ModelNotReadable, match=r"is part 3 of 4; give the first part, x-00001-of-00004\.gguf"
        ) as error:
            GgufFile.read(parts[2])
        assert is_one_sentence(error)

    def test_missing_ones_are_named(self, parts: list[Path]) -> None:
        parts[1].unlink()
        parts[3].unlink()
        with pytest.raises(ModelNotReadable, match=r"of which x-00002-of-00004\.gguf and 1 more is not beside it"):
            GgufFile.read(parts[0])

    def test_another_name(self, parts: list[Path]) -> None:
        with pytest.raises(ModelNotReadable, match="is part 1 of 4; the parts are found by names that end in"):
            GgufFile.read(parts[0].rename(parts[0].with_name("y.gguf")))

    def test_foreign_ones_are_named(self, parts: list[Path]) -> None:
        parts[1].write_bytes(parts[2].read_bytes())
        with pytest.raises(ModelNotReadable, match=r"x-00002-of-00004\.gguf is not part 2 of 4 of the model in"):
            GgufFile.read(parts[0])

    def test_one_of_another_model(self, parts: list[Path]) -> None:
        whole = parts[1].read_bytes()
        held = [entry.name for entry in GgufFile.read(parts[0]).tensors]
        name, taken = held[9].encode(), next(one for one in held[:9] if len(one) == len(held[9])).encode()
        parts[1].write_bytes(whole.replace(name, taken, 1))
        with pytest.raises(ModelNotReadable, match="once more, so it belongs to another model"):
            GgufFile.read(parts[0])

    def test_damaged_ones_are_named(self, parts: list[Path]) -> None:
        os.truncate(parts[2], parts[2].stat().st_size - 2000)
        with pytest.raises(ModelNotReadable, match=r"x-00003-of-00004\.gguf is cut short"):
            GgufFile.read(parts[0])

    def test_a_part_that_changes_is_noticed(self, parts: list[Path], home: Path) -> None:
        folder = store.resolve(str(parts[0]))
        os.utime(parts[3], ns=(0, 0))
        with pytest.raises(ModelNotReadable, match=r"x-00004-of-00004\.gguf has changed since it was installed"):
            weight_source(folder)
        assert store.resolve(str(parts[0])) == folder
        assert weight_source(folder) is not None


class TestDamage:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        tiny_gguf.write(tmp_path / "x.gguf", tiny_gguf.byte_level())
        return tmp_path / "x.gguf"

    @staticmethod
    def entry(content: bytes, name: bytes) -> int:
        """Where the number of dimensions of a tensor stands."""
        return content.index(struct.pack("<Q", len(name)) + name) + 8 + len(name)

    def move(self, content: bytearray) -> None:
        """Two tensors at one place."""
        first = self.entry(content, b"blk.0.attn_q.weight")
        second = self.entry(content, b"blk.0.attn_k.weight")
        content[second + 24 : second + 32] = content[first + 24 : first + 32]

    def shift(self, content: bytearray) -> None:
        content[self.entry(content, b"blk.0.attn_q.weight") + 24] += 1

    def kind(self, content: bytearray, number: int) -> None:
        at = self.entry(content, b"blk.0.attn_q.weight") + 20
        content[at : at + 4] = struct.pack("<I", number)

    def narrow(self, content: bytearray) -> None:
        at = self.entry(content, b"blk.0.attn_q.weight") + 4
        content[at : at + 8] = struct.pack("<Q", 40)

    def dimensions(self, content: bytearray) -> None:
        at = self.entry(content, b"blk.0.attn_q.weight")
        content[at : at + 4] = struct.pack("<I", 1 << 20)

    def twice(self, content: bytearray) -> None:
        at = self.entry(content, b"blk.0.attn_k.weight")
        content[at - 19 : at] = b"blk.0.attn_q.weight"

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (
                lambda test, content: test.move(content),
                r"damaged: blk\.0\.attn_[qk]\.weight begins inside of blk\.0\.attn_",
            ),
            (lambda test, content: test.shift(content), r"blk\.0\.attn_q\.weight does not begin at a multiple of 32"),
            (
                lambda test, content: test.kind(content, 4242),
                r"attn_q\.weight, .*quantisation, number 4242, is not known",
            ),
            (
                lambda test, content: test.kind(content, 31),
                r"attn_q\.weight, .* quantisation Q4_0_4_4 is no longer in use",
            ),
            (lambda test, content: test.narrow(content), r"attn_q\.weight, .* rows of 40 numbers are no whole number"),
            (lambda test, content: test.dimensions(content), "its head cannot be read"),
            (lambda test, content: test.twice(content), r"it holds the tensor blk\.0\.attn_q\.weight twice"),
            (
                lambda test, content: content.__setitem__(slice(4, 8), b"\0\0\0\x03"),
                "is written for big-endian machines",
            ),
            (
                lambda test, content: content.__setitem__(slice(4, 8), b"\x01\0\0\0"),
                "has GGUF version 1; versions 2 and 3",
            ),
            (
                lambda test, content: content.__setitem__(slice(4, 8), b"\x09\0\0\0"),
                "has GGUF version 9; versions 2 and 3",
            ),
            (lambda test, content: content.__setitem__(slice(8, 16), b"\xff" * 8), "its head cannot be read"),
            (lambda test, content: content.__setitem__(slice(16, 24), b"\xff" * 8), "its head cannot be read"),
        ],
    )
    def test_what_is_wrong_is_said(self, path: Path, damage: Callable[[Any, bytearray], None], message: str) -> None:
        content = bytearray(path.read_bytes())
        damage(self, content)
        path.write_bytes(content)
        with pytest.raises(ModelNotReadable, match=message) as error:
            GgufFile.read(path)
        assert is_one_sentence(error)

    def test_empty_file(self, path: Path) -> None:
        path.write_bytes(b"")
        with pytest.raises(ModelNotReadable, match="is not a GGUF file"):
            GgufFile.read(path)

    def test_file_of_four_letters(self, path: Path) -> None:
        path.write_bytes(b"GGUF")
        with pytest.raises(ModelNotReadable, match="its head cannot be read"):
            GgufFile.read(path)

    def test_any_cut_is_noticed(self, path: Path) -> None:
        whole = path.read_bytes()
        for length in range(4, len(whole) - 32, len(whole) // 150):
            path.write_bytes(whole[:length])
            with pytest.raises(ModelNotReadable, match="cut short"):
                GgufFile.read(path)
