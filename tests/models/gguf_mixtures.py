"""Mixtures of experts, and networks of more than attention, and what a GGUF file of each says."""

from __future__ import annotations

from collections.abc import Mapping

from gguf_cases import BASE, GRANITE, GRANITE_SAYS, LAYER_TYPES, RMS, WIDTH, YARN, Case, rope
from gguf_writing import GROUPS, HIDDEN, INTERMEDIATE, split_experts, turn_llama
from torch import Tensor

EXPERTS = {"expert_count": 4, "expert_used_count": 2}


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


def granitemoe(name: str, weight: Tensor) -> Tensor | Mapping[str, Tensor]:
    if name.endswith("router.weight"):
        return {f"blk.{name.split('.')[2]}.ffn_gate_inp.weight": weight}
    return mixtral(name, weight)


MIXED = {
    "mixtral": Case(
        "llama",
        "mixtral",
        {"rms_norm_eps": 3e-5, "num_local_experts": 4, **rope()},
        {**RMS, **EXPERTS, "rope.freq_base": BASE},
        mixtral,
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
    "glm4moe": Case(
        "glm4moe",
        "glm4_moe",
        {
            "rms_norm_eps": 3e-5,
            "head_dim": WIDTH,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "routed_scaling_factor": 1.5,
            "norm_topk_prob": True,
            "use_qk_norm": True,
            "attention_bias": True,
            **rope(partial_rotary_factor=0.5),
        },
        {
            **RMS,
            **EXPERTS,
            "rope.freq_base": BASE,
            "rope.dimension_count": WIDTH // 2,
            "expert_feed_forward_length": 32,
            "expert_shared_count": 1,
            "leading_dense_block_count": 1,
            "expert_gating_func": 2,
            "expert_weights_scale": 1.5,
            "expert_weights_norm": True,
            "nextn_predict_layers": 0,
        },
        minimax,
    ),
}
