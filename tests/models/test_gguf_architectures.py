"""Every architecture: a file that says what a network of transformers is becomes that network again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gguf_writing as writing
import numpy as np
import pytest
import torch
from gguf_writing import (
    CONTEXT,
    ENTRIES,
    GROUPS,
    HEADS,
    HIDDEN,
    INTERMEDIATE,
    LAYERS,
    add_one,
    split_experts,
    turn_llama,
)
from torch import Tensor

from decodery.models.gguf_architectures import ARCHITECTURES, REFUSED
from decodery.models.gguf_file import GgufFile
from decodery.models.gguf_model import write_folder
from decodery.models.reading import read_model

WIDTH = HIDDEN // HEADS
RMS = {"attention.layer_norm_rms_epsilon": 3e-5}
NORM = {"attention.layer_norm_epsilon": 3e-5}
EXPERTS = {"expert_count": 4, "expert_used_count": 2}
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


def gpt_oss(name: str, weight: Tensor) -> Tensor | Mapping[str, Tensor]:
    begin = f"blk.{name.split('.')[2]}" if "layers" in name else ""
    if name.endswith("sinks"):
        return {f"{begin}.attn_sinks.weight": weight}
    if "router" in name:
        return {f"{begin}.ffn_gate_inp.{name.rpartition('.')[2]}": weight}
    if "experts." not in name:
        return weight
    ending = "bias" if name.endswith("_bias") else "weight"
    if ending == "weight":
        weight = weight.transpose(1, 2)
    if "down_proj" in name:
        return {f"{begin}.ffn_down_exps.{ending}": weight}
    return {f"{begin}.ffn_gate_exps.{ending}": weight[:, ::2], f"{begin}.ffn_up_exps.{ending}": weight[:, 1::2]}


def qwen2moe(name: str, weight: Tensor) -> Tensor | Mapping[str, Tensor]:
    return weight[0] if "shared_expert_gate" in name else split_experts(name, weight)


def minimax(name: str, weight: Tensor) -> Tensor | Mapping[str, Tensor]:
    if name.endswith("e_score_correction_bias"):
        return {f"blk.{name.split('.')[2]}.exp_probs_b.bias": weight}
    return split_experts(name, weight)


def mamba(name: str, weight: Tensor) -> Tensor:
    return -weight.exp() if name.endswith("A_log") else weight.squeeze(1) if "conv1d.weight" in name else weight


def lfm2(name: str, weight: Tensor) -> Tensor:
    return weight.squeeze(1) if name.endswith("conv.conv.weight") else weight


def mixtral(name: str, weight: Tensor) -> Tensor | Mapping[str, Tensor]:
    return split_experts(name, turn_llama(name, weight))


def qwen35(name: str, weight: Tensor) -> Tensor | Mapping[str, Tensor]:
    """Two heads of keys, each with two of values; the file has the first head of each key, then the second of each."""
    begin = f"blk.{name.split('.')[2]}" if "layers" in name else ""

    def tiled(values: Tensor, width: int) -> Tensor:
        return values.view(2, 2, width, *values.shape[1:]).transpose(0, 1).reshape(values.shape)

    if name.endswith("A_log"):
        return {f"{begin}.ssm_a": tiled(-weight.exp(), 1)}
    if name.endswith("dt_bias"):
        return {f"{begin}.ssm_dt.bias": tiled(weight, 1)}
    if "in_proj_qkv" in name or "conv1d" in name:
        weight = weight.squeeze(1) if "conv1d" in name else weight
        weight = torch.cat((weight[:32], tiled(weight[32:], 12)))
    elif "in_proj_z" in name:
        weight = tiled(weight, 12)
    elif "in_proj_a" in name or "in_proj_b" in name:
        weight = tiled(weight, 1)
    elif "linear_attn.out_proj" in name:
        weight = tiled(weight.T, 12).T
    elif name.endswith("norm.weight") and "linear_attn" not in name:
        weight = weight + 1
    return qwen2moe(name, weight)


def gemma4(name: str, weight: Tensor) -> Tensor | Mapping[str, Tensor]:
    begin = f"blk.{name.split('.')[2]}" if "layers" in name else ""
    own = {
        "layer_scalar": "layer_output_scale.weight",
        "router.scale": "ffn_gate_inp.scale",
        "router.per_expert_scale": "ffn_down_exps.scale",
        "experts.gate_up_proj": "ffn_gate_up_exps.weight",
        "experts.down_proj": "ffn_down_exps.weight",
    }
    found = [target for ending, target in own.items() if name.endswith(ending)]
    return {f"{begin}.{found[0]}": weight} if found else weight


def granitemoe(name: str, weight: Tensor) -> Tensor | Mapping[str, Tensor]:
    if name.endswith("router.weight"):
        return {f"blk.{name.split('.')[2]}.ffn_gate_inp.weight": weight}
    return mixtral(name, weight)


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
QWEN35: dict[str, Any] = {
    "rms_norm_eps": 3e-5,
    "head_dim": WIDTH,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    **rope(partial_rotary_factor=0.5, mrope_section=[2, 1, 1], mrope_interleaved=True),
}
QWEN35_SAYS: dict[str, Any] = {
    **RMS,
    "rope.freq_base": BASE,
    "rope.dimension_count": WIDTH // 2,
    "rope.dimension_sections": [2, 1, 1, 0],
    "attention.key_length": WIDTH,
    "attention.value_length": WIDTH,
    "full_attention_interval": 2,
    "ssm.conv_kernel": 4,
    "ssm.state_size": 8,
    "ssm.group_count": 2,
    "ssm.time_step_rank": 4,
    "ssm.inner_size": 48,
}
GEMMA4: dict[str, Any] = {
    "rms_norm_eps": 3e-5,
    "head_dim": 8,
    "global_head_dim": 16,
    "sliding_window": 8,
    "final_logit_softcapping": 3.0,
    "rope_parameters": {
        "full_attention": {"rope_type": "proportional", "rope_theta": BASE, "partial_rotary_factor": 0.25},
        "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
    },
}
GEMMA4_SAYS: dict[str, Any] = {
    **RMS,
    "rope.freq_base": BASE,
    "rope.freq_base_swa": 500.0,
    "rope.dimension_count": 16,
    "rope.dimension_count_swa": 8,
    "attention.key_length": 16,
    "attention.value_length": 16,
    "attention.key_length_swa": 8,
    "attention.value_length_swa": 8,
    "attention.sliding_window": 8,
    "final_logit_softcapping": 3.0,
}
TURNING = {"rope_freqs.weight": np.array([1, 1] + [1e30] * 6, "f4")}

CASES = {
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
    "mixtral": Case(
        "llama",
        "mixtral",
        {"rms_norm_eps": 3e-5, "num_local_experts": 4, **rope()},
        {**RMS, **EXPERTS, "rope.freq_base": BASE},
        mixtral,
    ),
    "qwen2": Case("qwen2", "qwen2", {"rms_norm_eps": 3e-5, **rope()}, {**RMS, "rope.freq_base": BASE}),
    "qwen3": Case(
        "qwen3",
        "qwen3",
        {"rms_norm_eps": 3e-5, "head_dim": 24, **rope()},
        {**RMS, "rope.freq_base": BASE, "attention.key_length": 24, "attention.value_length": 24},
    ),
    "qwen2moe": Case(
        "qwen2moe",
        "qwen2_moe",
        {
            "rms_norm_eps": 3e-5,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 48,
            **rope(),
        },
        {
            **RMS,
            **EXPERTS,
            "rope.freq_base": BASE,
            "expert_feed_forward_length": 32,
            "expert_shared_feed_forward_length": 48,
        },
        qwen2moe,
    ),
    "qwen3moe": Case(
        "qwen3moe",
        "qwen3_moe",
        {
            "rms_norm_eps": 3e-5,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "norm_topk_prob": True,
            "head_dim": 24,
            **rope(),
        },
        {
            **RMS,
            **EXPERTS,
            "rope.freq_base": BASE,
            "expert_feed_forward_length": 32,
            "attention.key_length": 24,
            "attention.value_length": 24,
        },
        split_experts,
    ),
    "olmoe": Case(
        "olmoe",
        "olmoe",
        {"rms_norm_eps": 3e-5, "num_experts": 4, "num_experts_per_tok": 2, "clip_qkv": 0.7, **rope()},
        {**RMS, **EXPERTS, "rope.freq_base": BASE, "attention.clamp_kqv": 0.7},
        split_experts,
    ),
    "granitemoe": Case(
        "granitemoe",
        "granitemoe",
        {"rms_norm_eps": 3e-5, "num_local_experts": 4, "num_experts_per_tok": 2, **rope(), **GRANITE},
        {**RMS, **EXPERTS, "rope.freq_base": BASE, **GRANITE_SAYS},
        granitemoe,
    ),
    "gpt-oss": Case(
        "gpt-oss",
        "gpt_oss",
        {
            "rms_norm_eps": 3e-5,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "head_dim": WIDTH,
            "sliding_window": 8,
            "layer_types": LAYER_TYPES[2],
            **rope("yarn", **YARN, truncate=False, beta_fast=32.0, beta_slow=1.0),
        },
        {
            **RMS,
            **EXPERTS,
            "rope.freq_base": BASE,
            "expert_feed_forward_length": INTERMEDIATE,
            "attention.key_length": WIDTH,
            "attention.value_length": WIDTH,
            "attention.sliding_window": 8,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 32,
        },
        gpt_oss,
    ),
    "minimax-m2": Case(
        "minimax-m2",
        "minimax_m2",
        {
            "rms_norm_eps": 3e-5,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "head_dim": WIDTH,
            "rope_parameters": {"rope_type": "default", "rope_theta": BASE, "partial_rotary_factor": 0.5},
        },
        {
            **RMS,
            **EXPERTS,
            "rope.freq_base": BASE,
            "rope.dimension_count": WIDTH // 2,
            "attention.key_length": WIDTH,
            "attention.value_length": WIDTH,
            "expert_gating_func": 2,
        },
        minimax,
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
    "mamba": Case(
        "mamba",
        "mamba",
        {
            "intermediate_size": 2 * HIDDEN,
            "state_size": 8,
            "conv_kernel": 4,
            "time_step_rank": 6,
            "layer_norm_epsilon": 3e-5,
        },
        {
            **RMS,
            "ssm.conv_kernel": 4,
            "ssm.inner_size": 2 * HIDDEN,
            "ssm.state_size": 8,
            "ssm.time_step_rank": 6,
            "ssm.dt_b_c_rms": False,
            "feed_forward_length": 0,
            "attention.head_count": 0,
            "attention.head_count_kv": 0,
        },
        mamba,
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
    "lfm2": Case(
        "lfm2",
        "lfm2",
        {
            "norm_eps": 3e-5,
            "block_auto_adjust_ff_dim": False,
            "layer_types": ["conv", "full_attention", "conv"],
            "conv_L_cache": 3,
            **rope(),
        },
        {**RMS, "rope.freq_base": BASE, "shortconv.l_cache": 3, "attention.head_count_kv": [0, GROUPS, 0]},
        lfm2,
    ),
    "gemma4 with shared keys and own embeddings": Case(
        "gemma4",
        "gemma4_text",
        {
            **GEMMA4,
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": len(writing.VOCABULARY.tokens),
            "num_kv_shared_layers": 2,
            "use_double_wide_mlp": True,
        },
        {
            **GEMMA4_SAYS,
            "block_count": 4,
            "attention.sliding_window_pattern": [True, False, True, False],
            "embedding_length_per_layer_input": 8,
            "attention.shared_kv_layers": 2,
            "feed_forward_length": [INTERMEDIATE, INTERMEDIATE, 2 * INTERMEDIATE, 2 * INTERMEDIATE],
        },
        gemma4,
        {**TURNING, "blk.3.attn_k.weight": np.ones((4, 4), "f4"), "blk.2.attn_k_norm.weight": np.ones(4, "f4")},
    ),
    "gemma4 with experts": Case(
        "gemma4",
        "gemma4_text",
        {
            **GEMMA4,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "hidden_size_per_layer_input": 0,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 32,
        },
        {
            **GEMMA4_SAYS,
            **EXPERTS,
            "attention.sliding_window_pattern": [True, True, False],
            "attention.head_count_kv": [GROUPS, GROUPS, 1],
            "expert_feed_forward_length": 32,
            "embedding_length_per_layer_input": 0,
            "attention.shared_kv_layers": 0,
        },
        gemma4,
        TURNING,
    ),
    "qwen35": Case("qwen35", "qwen3_5_text", QWEN35, QWEN35_SAYS, qwen35),
    "qwen35 that guesses ahead": Case(
        "qwen35",
        "qwen3_5_text",
        QWEN35,
        {**QWEN35_SAYS, "nextn_predict_layers": 1, "block_count": LAYERS + 1},
        qwen35,
        {"blk.3.nextn.eh_proj.weight": np.ones((2, 2), "f4"), "blk.3.attn_norm.weight": np.ones(HIDDEN, "f4")},
    ),
    "qwen35moe": Case(
        "qwen35moe",
        "qwen3_5_moe_text",
        {
            **QWEN35,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 48,
        },
        {
            **QWEN35_SAYS,
            **EXPERTS,
            "expert_feed_forward_length": 32,
            "expert_shared_feed_forward_length": 48,
        },
        qwen35,
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
}


def written(case: Case, path: Path, without: str = "") -> Any:
    entries = {key: value for key, value in {**ENTRIES, **case.entries}.items() if key != without}
    model = writing.network(case.family, **case.settings)
    writing.write(path, case.architecture, model, entries, case.change, case.extra)
    return model


def read(path: Path, folder: Path) -> Any:
    folder.mkdir()
    write_folder(GgufFile.read(path), folder)
    return read_model(folder, json.loads((folder / "config.json").read_text()), torch.float32)


def logits(model: Any) -> Tensor:
    ids = torch.tensor([[(7 * i + 3) % 200 + 4 for i in range(40)]])
    with torch.inference_mode():
        result: Tensor = model(ids).logits
    return result


@pytest.mark.parametrize("name", CASES)
def test_the_file_is_the_network(name: str, tmp_path: Path) -> None:
    expected = written(CASES[name], tmp_path / "x.gguf")
    model = read(tmp_path / "x.gguf", tmp_path / "model")
    state = model.state_dict()
    for weight_name, weight in expected.state_dict().items():
        torch.testing.assert_close(state[weight_name], weight, rtol=1e-5, atol=1e-6)
    assert type(model) is type(expected)
    assert float((logits(model) - logits(expected)).abs().max()) < 1e-4


def test_every_architecture_is_tried() -> None:
    assert {case.architecture for case in CASES.values()} == set(ARCHITECTURES)


def test_transformers_knows_no_architecture_that_is_not_read_or_refused_by_name() -> None:
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    spelled = {"qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe", "gpt_oss": "gpt-oss", "minimax_m2": "minimax-m2"}
    theirs = {spelled.get(name, name) for name in GGUF_SUPPORTED_ARCHITECTURES} - {"general", "tokenizer", "mistral"}
    assert theirs <= set(ARCHITECTURES) | set(REFUSED)


def test_nor_does_its_newer_table() -> None:
    from transformers.integrations import gguf

    assert set(gguf.GGUF_CONFIG_ARCHS) <= set(ARCHITECTURES)
