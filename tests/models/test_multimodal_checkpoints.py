"""The language model of a multimodal checkpoint scores text as the whole does, or is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoint_folders import Weights, assert_computes
from safetensors.torch import load_file, save_file
from test_checkpoint_weights import refusal
from tiny_models import byte_level_tokenizer

import decodery

TEXT: dict[str, Any] = {
    "vocab_size": 325, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.3,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip


def whole(family: str) -> Any:
    """A tiny random multimodal model."""
    from transformers import LlamaConfig, MistralConfig, Qwen2Config

    if family == "Gemma3":
        own = {"head_dim": 16, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
        parts: dict[str, Any] = {
            "text_config": {**TEXT, **own, "query_pre_attn_scalar": 24}, "vision_config": VISION, "mm_tokens_per_image": 4,
        }  # fmt: skip
    else:
        texts: dict[str, Callable[..., Any]] = {
            "Llava": LlamaConfig, "SmolVLM": LlamaConfig, "Mistral3": MistralConfig, "InternVL": Qwen2Config,
            "PaliGemma": transformers.GemmaConfig, "AyaVision": transformers.Cohere2Config, "Qwen2VL": dict,
        }  # fmt: skip
        visions: dict[str, Any] = {
            "Llava": transformers.CLIPVisionConfig(**VISION, projection_dim=32), "SmolVLM": VISION,
            "Mistral3": transformers.PixtralVisionConfig(**VISION),
            "InternVL": VISION | {"image_size": [28, 28], "patch_size": [14, 14]},
            "PaliGemma": transformers.SiglipVisionConfig(**VISION), "AyaVision": transformers.SiglipVisionConfig(**VISION),
            "Qwen2VL": {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4},
        }  # fmt: skip
        more: dict[str, Any] = {"head_dim": 8} if family == "PaliGemma" else {}
        if family == "Qwen2VL":
            more = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
        parts = {"text_config": texts[family](**TEXT, **more), "vision_config": visions[family]}
    config = getattr(transformers, f"{family}Config")(**parts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return getattr(transformers, f"{family}ForConditionalGeneration")(config).eval()


def folder_of(model: Any, folder: Path, change: Callable[[Weights], Weights] | None = None) -> Path:
    model.save_pretrained(folder)
    byte_level_tokenizer().save_pretrained(folder)
    if change is not None:
        changed = change(load_file(folder / "model.safetensors"))
        save_file({name: weight.clone() for name, weight in changed.items()}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["Gemma3", "Llava", "Mistral3", "SmolVLM", "InternVL"])
def test_the_language_model_alone(family: str, dtype: str, tmp_path: Path) -> None:
    model = whole(family)
    folder_of(model, tmp_path)
    if dtype == "float32":
        assert_computes(tmp_path, model)
    else:
        assert decodery.load(tmp_path, dtype=dtype, fast="off").network.layers == 2


@pytest.mark.parametrize("family", ["Gemma3", "Llava"])
@pytest.mark.parametrize("older", [True, False])
def test_names_of_older_and_newer_files(family: str, older: bool, tmp_path: Path) -> None:
    model = whole(family)

    def name_of(name: str) -> str:
        if not older:
            return name
        name = name.replace("model.language_model.", "language_model.model.").replace(
            "lm_head", "language_model.lm_head"
        )
        return name.removeprefix("model.")

    folder_of(model, tmp_path, lambda _: {name_of(name): weight for name, weight in model.state_dict().items()})
    assert_computes(tmp_path, model)


def test_wrapped(tmp_path: Path) -> None:
    model = whole("Llava")
    assert_computes(folder_of(model, tmp_path, lambda w: {f"_orig_mod.{n}": x for n, x in w.items()}), model)


def test_towers_may_be_missing_and_language_may_not(tmp_path: Path) -> None:
    model = whole("Llava")
    assert_computes(folder_of(model, tmp_path / "a", lambda w: {n: x for n, x in w.items() if "tower" not in n}), model)
    lost = "layers.1.mlp.up_proj.weight"
    folder = folder_of(model, tmp_path / "b", lambda w: {n: x for n, x in w.items() if lost not in n or "vision" in n})
    assert f"it lacks model.{lost} of LlamaForCausalLM" in refusal(folder)
    folder = folder_of(model, tmp_path / "c", lambda w: {**w, "elsewhere.weight": torch.ones(1)})
    assert "it holds elsewhere.weight" in refusal(folder)


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("AyaVision", "is AyaVisionForConditionalGeneration, which scores text otherwise than its language model alone does"),
        ("PaliGemma", "is PaliGemmaForConditionalGeneration (paligemma), no causal language model"),  # sees both ways
        ("Qwen2VL", "no causal language model that transformers has a class for"),
    ],
)  # fmt: skip
def test_refused(family: str, why: str, tmp_path: Path) -> None:
    assert why in refusal(folder_of(whole(family), tmp_path))


def test_a_text_model_that_sees_both_ways(tmp_path: Path) -> None:
    """EmbeddingGemma's kind."""
    model = whole("Gemma3")
    folder_of(model, tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["text_config"]["use_bidirectional_attention"] = True
    path.write_text(json.dumps(config))
    assert "no causal language model; its scores are not those of a next token" in refusal(tmp_path)
