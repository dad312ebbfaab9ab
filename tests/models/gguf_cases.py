"""Networks of transformers, dense ones, and what a GGUF file of each says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from gguf_writing import CONTEXT, GROUPS, HEADS, HIDDEN, INTERMEDIATE, LAYERS, add_one, turn_llama
from torch import Tensor

WIDTH = HIDDEN // HEADS
RMS = {"attention.layer_norm_rms_epsilon": 3e-5}
NORM = {"attention.layer_norm_epsilon": 3e-5}
BASE = 20000.0


def rope(kind: str = "default", **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": BASE, **more}}


class Case(NamedTuple):
    """family, settings: of transformers' network. entries: the metadata that say the same; change: see `gguf_writing`."""

    architecture: str
    family: str
    settings: dict[str, Any]
    entries: dict[str, Any]
    change: Any = lambda name, weight: weight
    extra: Mapping[str, np.ndarray] = {}


def llama(
    entries: dict[str, Any] | None = None, extra: Mapping[str, np.ndarray] | None = None, **settings: Any
) -> Case:
    given = {"rms_norm_eps": 3e-5, **rope(), **settings}
    return Case("llama", "llama", given, {**RMS, "rope.freq_base": BASE, **(entries or {})}, turn_llama, extra or {})


def qkv_of_groups(name: str, weight: Tensor) -> Tensor:
    """Falcon's queries, keys and values stand by groups; in the file by kind."""
    if "query_key_value" not in name:
        return weight
    groups = weight.shape[0] // WIDTH - HEADS
    parts = weight.view(groups // 2, -1, WIDTH, HIDDEN)
    return torch.cat([part.reshape(-1, HIDDEN) for part in (parts[:, :-2], parts[:, -2:-1], parts[:, -1:])])


def qkv_of_heads(name: str, weight: Tensor) -> Mapping[str, Tensor]:
    name = name.removeprefix("transformer.")
    if "query_key_value" not in name:
        return {name: weight}
    return {name: weight.view(HEADS, 3, WIDTH, *weight.shape[1:]).transpose(0, 1).reshape(weight.shape)}


def gpt2(name: str, weight: Tensor) -> Tensor:
    return weight.T if weight.ndim == 2 and ".h." in name else weight


SHORT, LONG = [1.0 + i / 8 for i in range(WIDTH // 2)], [2.0 + i for i in range(WIDTH // 2)]
YARN = {"factor": 4.0, "original_max_position_embeddings": 32, "attention_factor": 0.1 * np.log(4.0) + 1}
LAYER_TYPES = {
    2: ["sliding_attention" if i % 2 == 0 else "full_attention" for i in range(LAYERS)],
    4: ["sliding_attention"] * LAYERS,
}
GRANITE = {"attention_multiplier": 0.3, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.5}
GRANITE_SAYS = {"attention.scale": 0.3, "embedding_scale": 3.0, "residual_scale": 0.5, "logit_scale": 2.5}

DENSE = {
    "llama": llama(),
    "llama tied": llama(tie_word_embeddings=True),
    "llama with biases": llama(attention_bias=True, mlp_bias=True),
    "llama with biases of queries, keys and values": llama()._replace(family="qwen2"),
    "llama with wide heads": llama({"attention.key_length": 24, "attention.value_length": 24}, head_dim=24),
    "llama with rope_freqs": llama(
        {},
        {"rope_freqs.weight": np.array(SHORT, "f4")},
        **rope(
            "longrope",
            long_factor=SHORT,
            short_factor=SHORT,
            original_max_position_embeddings=CONTEXT,
            attention_factor=1.0,
        ),
    ),
    "llama with linear scaling": llama(
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, **rope("linear", factor=4.0)
    ),
    "llama with scaling of an old name": llama({"rope.scale_linear": 4.0}, **rope("linear", factor=4.0)),
    "llama without scaling": llama({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}),
    "llama with YaRN": llama(
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32},
        **rope("yarn", **YARN),
    ),
    "llama with all of YaRN": llama(
        {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 32,
            "rope.scaling.attn_factor": 1.5,
            "rope.scaling.yarn_beta_fast": 16.0,
            "rope.scaling.yarn_beta_slow": 2.0,
            "rope.scaling.yarn_ext_factor": 1.0,
        },
        **rope("yarn", **{**YARN, "attention_factor": 1.5 * YARN["attention_factor"]}, beta_fast=16.0, beta_slow=2.0),
    ),
    "qwen2": Case("qwen2", "qwen2", {"rms_norm_eps": 3e-5, **rope()}, {**RMS, "rope.freq_base": BASE}),
    "qwen3": Case(
        "qwen3",
        "qwen3",
        {"rms_norm_eps": 3e-5, "head_dim": 24, **rope()},
        {**RMS, "rope.freq_base": BASE, "attention.key_length": 24, "attention.value_length": 24},
    ),
    "falcon 7B": Case(
        "falcon",
        "falcon",
        {
            "layer_norm_epsilon": 3e-5,
            "multi_query": True,
            "new_decoder_architecture": False,
            "ffn_hidden_size": 4 * HIDDEN,
            **rope(),
        },
        {**NORM, "rope.freq_base": BASE, "attention.head_count_kv": 1, "feed_forward_length": 4 * HIDDEN},
        qkv_of_groups,
    ),
    "falcon 40B": Case(
        "falcon",
        "falcon",
        {
            "layer_norm_epsilon": 3e-5,
            "new_decoder_architecture": True,
            "num_kv_heads": GROUPS,
            "ffn_hidden_size": 4 * HIDDEN,
            **rope(),
        },
        {**NORM, "rope.freq_base": BASE, "feed_forward_length": 4 * HIDDEN},
        qkv_of_groups,
    ),
    "phi3": Case(
        "phi3",
        "phi3",
        {"rms_norm_eps": 3e-5, "sliding_window": 8, **rope(partial_rotary_factor=0.5)},
        {**RMS, "rope.freq_base": BASE, "rope.dimension_count": WIDTH // 2, "attention.sliding_window": 8},
    ),
    "phi3 with long context": Case(
        "phi3",
        "phi3",
        {
            "rms_norm_eps": 3e-5,
            "original_max_position_embeddings": 16,
            **rope(
                "longrope",
                long_factor=LONG,
                short_factor=SHORT,
                original_max_position_embeddings=16,
                attention_factor=1.25,
            ),
        },
        {
            **RMS,
            "rope.freq_base": BASE,
            "rope.scaling.original_context_length": 16,
            "rope.scaling.attn_factor": 1.25,
            "attention.sliding_window": 0,
        },
        extra={"rope_factors_long.weight": np.array(LONG, "f4"), "rope_factors_short.weight": np.array(SHORT, "f4")},
    ),
    "bloom": Case(
        "bloom",
        "bloom",
        {"n_layer": LAYERS, "n_head": HEADS, "layer_norm_epsilon": 3e-5},
        {**NORM, "feed_forward_length": 4 * HIDDEN, "attention.head_count_kv": HEADS},
        qkv_of_heads,
    ),
    "stablelm": Case(
        "stablelm",
        "stablelm",
        {"layer_norm_eps": 3e-5, "use_qkv_bias": True, **rope(partial_rotary_factor=0.5)},
        {**NORM, "rope.freq_base": BASE, "rope.dimension_count": WIDTH // 2, "use_parallel_residual": True},
    ),
    "stablelm in parallel": Case(
        "stablelm",
        "stablelm",
        {"layer_norm_eps": 3e-5, "use_parallel_residual": True, **rope(partial_rotary_factor=0.25)},
        {**NORM, "rope.freq_base": BASE, "rope.dimension_count": WIDTH // 4},
    ),
    "gpt2": Case(
        "gpt2",
        "gpt2",
        {
            "n_embd": HIDDEN,
            "n_layer": LAYERS,
            "n_head": HEADS,
            "n_positions": CONTEXT,
            "n_inner": INTERMEDIATE,
            "layer_norm_epsilon": 3e-5,
        },
        {**NORM, "attention.head_count_kv": HEADS},
        gpt2,
    ),
    "starcoder2": Case(
        "starcoder2",
        "starcoder2",
        {"norm_epsilon": 3e-5, "sliding_window": None, **rope()},
        {**NORM, "rope.freq_base": BASE},
    ),
    "nemotron": Case(
        "nemotron",
        "nemotron",
        {"norm_eps": 3e-5, **rope(partial_rotary_factor=0.5)},
        {**NORM, "rope.freq_base": BASE, "rope.dimension_count": WIDTH // 2, "rope.scaling.type": "none"},
        add_one,
    ),
    "gemma": Case(
        "gemma",
        "gemma",
        {"rms_norm_eps": 3e-5, "head_dim": 24, "hidden_act": "gelu_pytorch_tanh", **rope()},
        {**RMS, "rope.freq_base": BASE, "attention.key_length": 24, "attention.value_length": 24},
        add_one,
    ),
    "gemma2": Case(
        "gemma2",
        "gemma2",
        {
            "rms_norm_eps": 3e-5,
            "head_dim": 24,
            "query_pre_attn_scalar": 24,
            "sliding_window": 8,
            "layer_types": LAYER_TYPES[2],
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 3.0,
            **rope(),
        },
        {
            **RMS,
            "rope.freq_base": BASE,
            "attention.key_length": 24,
            "attention.value_length": 24,
            "attention.sliding_window": 8,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 3.0,
        },
        add_one,
    ),
    "gemma3": Case(
        "gemma3",
        "gemma3_text",
        {
            "rms_norm_eps": 3e-5,
            "head_dim": 24,
            "query_pre_attn_scalar": 24,
            "sliding_window": 8,
            "layer_types": LAYER_TYPES[2],
            "final_logit_softcapping": 3.0,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": BASE, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            },
        },
        {
            **RMS,
            "rope.freq_base": BASE,
            "rope.freq_base_swa": 500.0,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
            "attention.key_length": 24,
            "attention.value_length": 24,
            "attention.sliding_window": 8,
            "attention.sliding_window_pattern": [True, False, True],
            "final_logit_softcapping": 3.0,
        },
        add_one,
    ),
    "granite": Case(
        "granite",
        "granite",
        {"rms_norm_eps": 3e-5, **rope(), **GRANITE},
        {**RMS, "rope.freq_base": BASE, **GRANITE_SAYS},
        turn_llama,
    ),
    "smollm3": Case(
        "smollm3",
        "smollm3",
        {"rms_norm_eps": 3e-5, "num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0], **rope()},
        {**RMS, "rope.freq_base": BASE, "block_count": 4},
        turn_llama,
    ),
    "olmo": Case(
        "olmo",
        "olmo",
        {"clip_qkv": 0.7, **rope()},
        {"attention.layer_norm_epsilon": 1e-5, "rope.freq_base": BASE, "attention.clamp_kqv": 0.7},
        turn_llama,
    ),
    "olmo2": Case("olmo2", "olmo2", {"rms_norm_eps": 3e-5, **rope()}, {**RMS, "rope.freq_base": BASE}),
    "command-r": Case(
        "command-r",
        "cohere",
        {"layer_norm_eps": 3e-5, "logit_scale": 0.25, **rope()},
        {**NORM, "rope.freq_base": BASE, "logit_scale": 0.25, "rope.scaling.type": "none"},
    ),
    "cohere2": Case(
        "cohere2",
        "cohere2",
        {
            "layer_norm_eps": 3e-5,
            "logit_scale": 0.25,
            "sliding_window": 8,
            "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
            "num_hidden_layers": 4,
            **rope(),
        },
        {**NORM, "rope.freq_base": BASE, "logit_scale": 0.25, "attention.sliding_window": 8, "block_count": 4},
    ),
    "phi2": Case(
        "phi2",
        "phi",
        {"layer_norm_eps": 3e-5, **rope(partial_rotary_factor=0.5)},
        {**NORM, "rope.freq_base": BASE, "rope.dimension_count": WIDTH // 2},
    ),
    "glm4": Case(
        "glm4",
        "glm4",
        {"rms_norm_eps": 3e-5, "head_dim": WIDTH, "attention_bias": True, **rope(partial_rotary_factor=0.5)},
        {**RMS, "rope.freq_base": BASE, "rope.dimension_count": WIDTH // 2},
    ),
    "internlm2": Case("internlm2", "llama", llama().settings, llama().entries, turn_llama),
    "mistral3": Case(
        "mistral3",
        "ministral3",
        {
            "rms_norm_eps": 3e-5,
            "head_dim": WIDTH,
            **rope(
                "yarn",
                factor=4.0,
                original_max_position_embeddings=16,
                mscale=1.0,
                mscale_all_dim=0.7,
                llama_4_scaling_beta=0.3,
                beta_fast=16.0,
                beta_slow=2.0,
            ),
        },
        {
            **RMS,
            "rope.freq_base": BASE,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 16,
            "rope.scaling.yarn_log_multiplier": 0.7,
            "rope.scaling.yarn_beta_fast": 16.0,
            "rope.scaling.yarn_beta_slow": 2.0,
            "attention.temperature_scale": 0.3,
        },
        turn_llama,
    ),
    "arcee": Case("arcee", "arcee", {"rms_norm_eps": 3e-5, **rope()}, {**RMS, "rope.freq_base": BASE}, turn_llama),
    "seed_oss": Case(
        "seed_oss",
        "seed_oss",
        {"rms_norm_eps": 3e-5, "head_dim": WIDTH, **rope()},
        {**RMS, "rope.freq_base": BASE},
    ),
    "ernie4_5": Case(
        "ernie4_5",
        "ernie4_5",
        {"rms_norm_eps": 3e-5, "head_dim": WIDTH, **rope()},
        {**RMS, "rope.freq_base": BASE},
    ),
    "exaone4": Case(
        "exaone4",
        "exaone4",
        {"rms_norm_eps": 3e-5, "sliding_window": None, "layer_types": ["full_attention"] * 3, **rope()},
        {**RMS, "rope.freq_base": BASE},
    ),
    "exaone4 with a window": Case(
        "exaone4",
        "exaone4",
        {
            "rms_norm_eps": 3e-5,
            "num_hidden_layers": 4,
            "sliding_window": 8,
            "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
            **rope(),
        },
        {**RMS, "rope.freq_base": BASE, "attention.sliding_window": 8, "block_count": 4},
    ),
    "gptneox": Case(
        "gptneox",
        "gpt_neox",
        {"layer_norm_eps": 3e-5, "use_parallel_residual": True, **rope(partial_rotary_factor=0.5)},
        {
            **NORM,
            "rope.freq_base": BASE,
            "rope.dimension_count": WIDTH // 2,
            "use_parallel_residual": True,
            "attention.head_count_kv": HEADS,
        },
        qkv_of_heads,
    ),
    "gptneox in turn": Case(
        "gptneox",
        "gpt_neox",
        {"layer_norm_eps": 3e-5, "use_parallel_residual": False, **rope(partial_rotary_factor=0.25)},
        {
            **NORM,
            "rope.freq_base": BASE,
            "rope.dimension_count": WIDTH // 4,
            "use_parallel_residual": False,
            "attention.head_count_kv": HEADS,
        },
        qkv_of_heads,
    ),
}
