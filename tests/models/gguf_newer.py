"""Networks whose layers differ or keep something else than keys and values, and what a GGUF file of each says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gguf_writing as writing
import numpy as np
import torch
from gguf_cases import BASE, RMS, WIDTH, YARN, Case, rope
from gguf_mixtures import EXPERTS, minimax, qwen2moe
from gguf_writing import GROUPS, HEADS, HIDDEN, INTERMEDIATE, LAYERS
from torch import Tensor


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


def latent(name: str, weight: Tensor) -> Tensor | Mapping[str, Tensor]:
    """Keys and values of heads apart, the former turned round."""
    if "kv_b_proj" not in name:
        return minimax(name, weight)
    layer = name.split(".")[2]
    keys, values = weight.view(HEADS, -1, 16).split((8, 6), dim=1)
    return {f"blk.{layer}.attn_k_b.weight": keys.transpose(1, 2), f"blk.{layer}.attn_v_b.weight": values}


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
DEEPSEEK: dict[str, Any] = {
    "rms_norm_eps": 3e-5,
    "num_key_value_heads": HEADS,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.5,
}
DEEPSEEK_SAYS: dict[str, Any] = {
    **RMS,
    **EXPERTS,
    "rope.freq_base": BASE,
    "rope.dimension_count": 4,
    "attention.head_count_kv": HEADS,
    "attention.kv_lora_rank": 16,
    "expert_feed_forward_length": 32,
    "expert_shared_count": 2,
    "expert_weights_scale": 1.5,
    "leading_dense_block_count": 1,
}

NEWER = {
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
    "deepseek2 of the second version": Case(
        "deepseek2",
        "deepseek_v2",
        {
            **DEEPSEEK,
            "q_lora_rank": None,
            "topk_method": "group_limited_greedy",
            "n_group": 2,
            "topk_group": 1,
            **rope(
                "yarn",
                **{**YARN, "attention_factor": 1.0},
                mscale=0.7,
                mscale_all_dim=0.7,
            ),
        },
        {
            **DEEPSEEK_SAYS,
            "attention.key_length": 12,
            "attention.value_length": 6,
            "expert_group_count": 2,
            "expert_group_used_count": 1,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 32,
            "rope.scaling.yarn_log_multiplier": 0.07,
        },
        minimax,
    ),
    "deepseek2 of the third version": Case(
        "deepseek2",
        "deepseek_v3",
        {**DEEPSEEK, "q_lora_rank": 12, "norm_topk_prob": True, "n_group": 1, "topk_group": 1, **rope()},
        {
            **DEEPSEEK_SAYS,
            "attention.head_count_kv": 1,
            "attention.q_lora_rank": 12,
            "attention.key_length": 20,
            "attention.value_length": 16,
            "attention.key_length_mla": 12,
            "attention.value_length_mla": 6,
            "expert_gating_func": 2,
            "expert_weights_norm": True,
        },
        latent,
    ),
}
