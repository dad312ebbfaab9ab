"""Tiny random checkpoints of masked-diffusion models, in the forms in which the published ones lie on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

WIDTH, LAYERS, HEADS, INNER, VOCABULARY = 32, 2, 4, 48, 24
WORDS = ["<mask>", "<pad>", "<end>", ":", "=", *"abcdefghijklmnopqrs"]
MASK, PAD, END = 0, 1, 2


def _weight(generator: torch.Generator, *shape: int) -> Tensor:
    spread = 1.0 if shape[0] == VOCABULARY else 1.5 * shape[-1] ** -0.5
    return torch.randn(*shape, generator=generator) * spread


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of words between blanks."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(WORDS[:3])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)


def layer_weights(generator: torch.Generator, key_heads: int) -> dict[str, Tensor]:
    """One layer under Llama's names, norms not all ones."""
    narrow = WIDTH // HEADS * key_heads
    return {
        "input_layernorm": torch.rand(WIDTH, generator=generator) + 0.5,
        "self_attn.q_proj": _weight(generator, WIDTH, WIDTH),
        "self_attn.k_proj": _weight(generator, narrow, WIDTH),
        "self_attn.v_proj": _weight(generator, narrow, WIDTH),
        "self_attn.o_proj": _weight(generator, WIDTH, WIDTH),
        "post_attention_layernorm": torch.rand(WIDTH, generator=generator) + 0.5,
        "mlp.gate_proj": _weight(generator, INNER, WIDTH),
        "mlp.up_proj": _weight(generator, INNER, WIDTH),
        "mlp.down_proj": _weight(generator, WIDTH, INNER),
    }


def _hub_weights(seed: int, key_heads: int, biases: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = {"model.embed_tokens.weight": _weight(generator, VOCABULARY, WIDTH)}
    for layer in range(LAYERS):
        parts = layer_weights(generator, key_heads)
        for name, weight in parts.items():
            weights[f"model.layers.{layer}.{name}.weight"] = weight
            if biases and name.split(".")[-1] in ("q_proj", "k_proj", "v_proj"):
                weights[f"model.layers.{layer}.{name}.bias"] = torch.randn(weight.shape[0], generator=generator) * 0.3
    weights["model.norm.weight"] = torch.rand(WIDTH, generator=generator) + 0.5
    weights["lm_head.weight"] = _weight(generator, VOCABULARY, WIDTH)
    return weights


def _write(folder: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / "model.safetensors")
    write_tokenizer(folder)
    return folder


def write_own(folder: Path, seed: int = 0, shift: bool = False, **entry: Any) -> Path:
    """One of our own: Llama, with the entry that describes the mask."""
    described = {
        "mask_token_id": MASK, "shift": shift, "end_token_ids": [END], "pad_token_ids": [PAD], "canvas": 8, **entry,
    }  # fmt: skip
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": VOCABULARY, "hidden_size": WIDTH,
        "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": 2,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "bos_token_id": None,
        "eos_token_id": END, "masked_diffusion": described,
    }  # fmt: skip
    return _write(folder, config, _hub_weights(seed, 2, False))


LLADA_PARTS = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "q_proj", "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj", "self_attn.o_proj": "attn_out", "post_attention_layernorm": "ff_norm",
    "mlp.gate_proj": "ff_proj", "mlp.up_proj": "up_proj", "mlp.down_proj": "ff_out",
}  # fmt: skip


def write_llada(folder: Path, seed: int = 0) -> Path:
    """The form of LLaDA-8B."""
    config = {
        "model_type": "llada", "architectures": ["LLaDAModelLM"], "activation_type": "silu", "block_type": "llama",
        "d_model": WIDTH, "n_heads": HEADS, "n_kv_heads": HEADS, "n_layers": LAYERS, "mlp_hidden_size": INNER,
        "vocab_size": VOCABULARY, "embedding_size": VOCABULARY, "max_sequence_length": 64, "rope_theta": 500000.0,
        "rms_norm_eps": 1e-5, "include_bias": False, "layer_norm_type": "rms", "weight_tying": False,
        "mask_token_id": 3, "eos_token_id": END, "pad_token_id": END,
    }  # fmt: skip
    weights = {}
    for name, weight in _hub_weights(seed, HEADS, False).items():
        parts = name.removesuffix(".weight").split(".")
        if parts[1:2] == ["layers"]:
            weights[f"model.transformer.blocks.{parts[2]}.{LLADA_PARTS['.'.join(parts[3:])]}.weight"] = weight
        else:
            top = {"model.embed_tokens": "wte", "model.norm": "ln_f", "lm_head": "ff_out"}
            weights[f"model.transformer.{top['.'.join(parts)]}.weight"] = weight
    return _write(folder, config, weights)


def write_dream(folder: Path, seed: int = 0) -> Path:
    """The form of Dream-7B."""
    config = {
        "model_type": "Dream", "architectures": ["DreamModel"], "vocab_size": VOCABULARY, "hidden_size": WIDTH,
        "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": 2,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": False,
        "hidden_act": "silu", "mask_token_id": 3, "pad_token_id": END, "bos_token_id": 4, "eos_token_id": END,
    }  # fmt: skip
    return _write(folder, config, _hub_weights(seed, 2, True))


def reference(folder: Path, tokens: list[int]) -> Tensor:
    """Logits [n, vocabulary] of the checkpoint's network with full attention, computed here from its formulas alone: no class
    of transformers and nothing of decodery takes part."""
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    llada = config["model_type"] == "llada"
    theta, epsilon = config.get("rope_theta", 10000.0), config["rms_norm_eps"]

    def get(layer: int, name: str) -> Tensor:
        if llada:
            return weights[f"model.transformer.blocks.{layer}.{LLADA_PARTS[name]}.weight"]
        return weights[f"model.layers.{layer}.{name}.weight"]

    def bias(layer: int, name: str) -> Tensor | float:
        return weights.get(f"model.layers.{layer}.{name}.bias", 0.0)

    def norm(rows: Tensor, weight: Tensor) -> Tensor:
        return rows * (rows.square().mean(-1, keepdim=True) + epsilon).rsqrt() * weight

    top = {"wte": "model.embed_tokens", "ln_f": "model.norm", "ff_out": "lm_head"}
    whole = {key: weights[f"model.transformer.{key}.weight" if llada else f"{top[key]}.weight"] for key in top}
    width = WIDTH // HEADS
    angles = torch.arange(len(tokens))[:, None] * theta ** -(torch.arange(0, width, 2) / width)
    cos, sin = angles.cos().repeat(1, 2)[:, None], angles.sin().repeat(1, 2)[:, None]

    def turned(rows: Tensor) -> Tensor:
        one, other = rows.chunk(2, dim=-1)
        return rows * cos + torch.cat([-other, one], dim=-1) * sin

    rows = whole["wte"][tokens]
    for layer in range(LAYERS):
        entering = norm(rows, get(layer, "input_layernorm"))
        q, k, v = (
            (entering @ get(layer, f"self_attn.{part}").T + bias(layer, f"self_attn.{part}")).view(
                len(tokens), -1, width
            )
            for part in ("q_proj", "k_proj", "v_proj")
        )
        q, k = turned(q), turned(k)
        k, v = (part.repeat_interleave(HEADS // part.shape[1], dim=1) for part in (k, v))
        weight = torch.einsum("ihd,jhd->hij", q, k).mul(width**-0.5).softmax(-1)
        rows = (
            rows + torch.einsum("hij,jhd->ihd", weight, v).reshape(len(tokens), -1) @ get(layer, "self_attn.o_proj").T
        )
        entering = norm(rows, get(layer, "post_attention_layernorm"))
        gate = torch.nn.functional.silu(entering @ get(layer, "mlp.gate_proj").T)
        rows = rows + (gate * (entering @ get(layer, "mlp.up_proj").T)) @ get(layer, "mlp.down_proj").T
    return norm(rows, whole["ln_f"]) @ whole["ff_out"].T
