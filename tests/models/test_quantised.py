"""Quantised folders compute what transformers computes with them, or are refused by the name of the method."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_folders import IDS, Weights, computed, write
from safetensors.torch import load_file, save_file
from test_checkpoint_weights import made, refusal
from tiny_models import byte_level_tokenizer, reference_logits

BLOCK = 32
FLOAT8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}
UP = "model.layers.1.mlp.up_proj.weight"


def configured(folder: Path, quantised: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": quantised}))


def float8(folder: Path) -> tuple[Weights, Any]:
    """Matrices in blocks of float8 with a scale each, as DeepSeek writes them; and the network with what these stand for."""
    model = made("llama", hidden_size=64, intermediate_size=96)
    write(folder, model)
    weights: Weights = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        if "_proj" not in name:
            weights[name] = weight
            continue
        blocks = weight.reshape(weight.shape[0] // BLOCK, BLOCK, weight.shape[1] // BLOCK, BLOCK)
        scales = blocks.abs().amax((1, 3)) / 448
        narrow = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn)
        weights[name] = narrow.reshape(weight.shape)
        weights[f"{name}_scale_inv"] = scales
        model.get_parameter(name).data = (narrow.float() * scales[:, None, :, None]).reshape(weight.shape)
    save_file(weights, folder / "model.safetensors")
    configured(folder, FLOAT8)
    return weights, model


class TestFloat8:
    def test_blocks(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        _, model = float8(tmp_path)
        capfd.readouterr()
        found = computed(tmp_path)
        assert capfd.readouterr() == ("", "")
        torch.testing.assert_close(found, reference_logits(model, IDS), rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize("lost", [f"{UP}_scale_inv", UP])
    def test_something_is_missing(self, lost: str, tmp_path: Path) -> None:
        weights, _ = float8(tmp_path)
        save_file({name: weight for name, weight in weights.items() if name != lost}, tmp_path / "model.safetensors")
        assert f"is incomplete: it lacks {lost.removesuffix('_inv')}" in refusal(tmp_path)

    def test_without_a_word_in_the_configuration(self, tmp_path: Path) -> None:
        float8(tmp_path)
        configured(tmp_path, None)
        assert "holds model.layers.0.mlp.down_proj.weight_scale_inv and 27 more" in refusal(tmp_path)

    def test_plain_float8_without_scales(self, tmp_path: Path) -> None:
        """Numbers that stand for themselves."""
        model = made("llama")
        model.get_submodule("model.layers.1.mlp.up_proj").weight.data = (
            model.get_parameter(UP).data.to(torch.float8_e4m3fn).float()
        )
        folder = write(tmp_path, model, lambda w: {**w, UP: w[UP].to(torch.float8_e4m3fn)})
        torch.testing.assert_close(computed(folder), reference_logits(model, IDS), rtol=1e-4, atol=1e-4)


class TestFloat4:
    """gpt-oss's experts."""

    def folder(self, folder: Path) -> Weights:
        from transformers import GptOssConfig, GptOssForCausalLM

        config: Any = GptOssConfig(
            vocab_size=325, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=8,
            layer_types=["sliding_attention", "full_attention"], initializer_range=0.2,
            bos_token_id=None, eos_token_id=None, pad_token_id=None,
        )  # fmt: skip
        torch.manual_seed(0)
        GptOssForCausalLM(config).save_pretrained(folder)
        byte_level_tokenizer().save_pretrained(folder)
        weights: Weights = {}
        for name, weight in load_file(folder / "model.safetensors").items():
            if not name.endswith(("gate_up_proj", "down_proj")):
                weights[name] = weight
                continue
            experts, inputs, outputs = weight.shape
            weights[f"{name}_blocks"] = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8)
            weights[f"{name}_scales"] = torch.randint(118, 124, (experts, outputs, inputs // 32), dtype=torch.uint8)
        save_file(weights, folder / "model.safetensors")
        plain = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
        configured(folder, {"quant_method": "mxfp4", "modules_to_not_convert": plain})
        return weights

    def test_experts(self, tmp_path: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.folder(tmp_path)
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
        torch.testing.assert_close(computed(tmp_path), reference_logits(theirs, IDS), rtol=1e-4, atol=1e-4)

    def test_scales_are_missing(self, tmp_path: Path) -> None:
        weights = self.folder(tmp_path)
        lost = "model.layers.1.mlp.experts.down_proj_scales"
        del weights[lost]
        save_file(weights, tmp_path / "model.safetensors")
        assert f"is incomplete: it lacks {lost} of quantised weights" in refusal(tmp_path)


class TestRefused:
    @pytest.mark.parametrize(
        ("method", "package"), [("gptq", "optimum"), ("awq", "gptqmodel"), ("aqlm", "aqlm"), ("hqq", "hqq")]
    )
    def test_what_is_to_be_installed(self, method: str, package: str, tmp_path: Path) -> None:
        if importlib.util.find_spec(package) is not None:
            pytest.skip(f"{package} is installed")
        folder = write(tmp_path, made("llama"), None, quantization_config={"quant_method": method, "bits": 4})
        message = refusal(folder)
        assert f"is quantised ({method}), and cannot be read here: " in message
        assert package in message.lower()

    @pytest.mark.parametrize("quantised", [{"quant_method": "newest"}, {"bits": 4}])
    def test_unknown_methods(self, quantised: dict[str, Any], tmp_path: Path) -> None:
        """transformers would take the raw numbers."""
        folder = write(tmp_path, made("llama"), None, quantization_config=quantised)
        assert f"is quantised by a method ({quantised.get('quant_method')}) that the installed" in refusal(folder)

    def test_a_file_that_is_not_quantised_after_all(self, tmp_path: Path) -> None:
        folder = write(tmp_path, made("llama"), None, quantization_config={"quant_method": "bitnet"})
        assert "does not fit its config.json: model.layers.0.mlp.down_proj.weight has the shape" in refusal(folder)


class TestLibraries:
    """With the libraries that some methods need, where these are installed."""

    def test_bitsandbytes(self, tmp_path: Path) -> None:
        pytest.importorskip("bitsandbytes")
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        base = write(tmp_path / "base", made("llama", hidden_size=64, intermediate_size=128))
        made_: Any = AutoModelForCausalLM.from_pretrained(
            base, quantization_config=BitsAndBytesConfig(load_in_4bit=True)
        )
        made_.save_pretrained(tmp_path / "narrow")
        byte_level_tokenizer().save_pretrained(tmp_path / "narrow")
        theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "narrow", attn_implementation="eager")
        torch.testing.assert_close(computed(tmp_path / "narrow"), reference_logits(theirs, IDS), rtol=1e-2, atol=2e-2)

    @pytest.mark.parametrize(("bits", "kind", "form"), [(8, "int", "int-quantized"), (4, "int", "pack-quantized")])
    def test_compressed_tensors(self, bits: int, kind: str, form: str, tmp_path: Path) -> None:
        pytest.importorskip("compressed_tensors")
        from compressed_tensors.compressors import ModelCompressor
        from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme, apply_quantization_config

        numbers = {"num_bits": bits, "type": kind, "strategy": "channel", "symmetric": True}
        scheme = QuantizationScheme(targets=["Linear"], weights=numbers, format=form)
        quantised = QuantizationConfig(config_groups={"all": scheme}, ignore=["lm_head"], format=form)
        model = made("llama", hidden_size=64, intermediate_size=96)
        folder = write(tmp_path, model)
        apply_quantization_config(model, quantised)
        expected = made("llama", hidden_size=64, intermediate_size=96, vocab_size=325)
        expected.load_state_dict(load_file(folder / "model.safetensors"))
        for name, module in model.named_modules():
            if hasattr(module, "weight_scale"):
                weight, most = module.weight.data, 2 ** (bits - 1) - 1
                scale = weight.abs().amax(1, keepdim=True) / most
                module.weight_scale.data.copy_(scale)
                expected.get_submodule(name).weight.data = (weight / scale).round() * scale
        ModelCompressor(quantization_config=quantised).compress_model(model)
        save_file(
            {name: weight.contiguous() for name, weight in model.state_dict().items()}, folder / "model.safetensors"
        )
        entries = json.loads(quantised.model_dump_json())
        configured(folder, entries | {"quant_method": "compressed-tensors", "quantization_status": "compressed"})
        torch.testing.assert_close(computed(folder), reference_logits(expected, IDS), rtol=1e-3, atol=1e-3)
