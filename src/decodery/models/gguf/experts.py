"""Mixtures of experts, as GGUF files describe them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from decodery.models.gguf import configuration as common
from decodery.models.gguf.configuration import Configuration
from decodery.models.gguf.decoders import TURNED, Architecture, llama, scales
from decodery.models.gguf.metadata import Metadata
from decodery.models.gguf.names import EXPERTS, HEAD_NORMS, USUAL, Names, Stored, transposed

if TYPE_CHECKING:
    from torch import Tensor


def _llama(facts: Metadata) -> Configuration:
    """Mixtral calls itself a Llama, with experts."""
    if not facts.take("expert_count", 0):
        return llama(facts)
    common.plain_attention(facts)
    common.no_window(facts)
    config = common.usual(facts) | common.experts(facts, renormed=True)
    return config | {
        "model_type": "mixtral",
        "rms_norm_eps": common.rms(facts),
        "num_local_experts": config["num_experts"],
        "intermediate_size": config["moe_intermediate_size"],
        "sliding_window": None,
    }


def shared_expert(facts: Metadata) -> int:
    """The width of the one expert that all tokens go through."""
    width = facts.shape("blk.0.ffn_down_shexp.weight")[1]
    facts.expect(
        "expert_shared_feed_forward_length", (width,), f"a shared expert of another width than its weights, {width}"
    )
    facts.expect("expert_shared_count", (1,), "several shared experts")
    return width


def _qwen2moe(facts: Metadata) -> Configuration:
    common.plain_attention(facts)
    common.no_window(facts)
    width = facts.shape("blk.0.ffn_down_shexp.weight")[1]
    facts.expect(
        "expert_shared_feed_forward_length", (width,), f"a shared expert of another width than its weights, {width}"
    )
    facts.expect("expert_shared_count", (1,), "several shared experts")
    return (
        common.usual(facts)
        | common.experts(facts, renormed=False)
        | {
            "model_type": "qwen2_moe",
            "rms_norm_eps": common.rms(facts),
            "shared_expert_intermediate_size": width,
            "norm_topk_prob": False,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "qkv_bias": facts.has("blk.0.attn_q.bias"),
        }
    )


def _qwen3moe(facts: Metadata) -> Configuration:
    common.plain_attention(facts)
    common.no_window(facts)
    return (
        common.usual(facts)
        | common.experts(facts, renormed=True)
        | {
            "model_type": "qwen3_moe",
            "rms_norm_eps": common.rms(facts),
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "attention_bias": facts.has("blk.0.attn_q.bias"),
        }
    )


def _olmoe(facts: Metadata) -> Configuration:
    common.no_window(facts)
    clip = facts.take("attention.clamp_kqv", 0.0) or None
    config = common.usual(facts) | common.experts(facts, renormed=False)
    return config | {
        "model_type": "olmoe",
        "rms_norm_eps": common.rms(facts),
        "intermediate_size": config["moe_intermediate_size"],
        "norm_topk_prob": False,
        "clip_qkv": clip,
    }


def _granitemoe(facts: Metadata) -> Configuration:
    common.no_window(facts)
    common.turns(facts)
    facts.expect("expert_shared_feed_forward_length", (0,), "a shared expert")
    config = common.usual(facts) | common.experts(facts, renormed=True) | scales(facts)
    return config | {
        "model_type": "granitemoe",
        "rms_norm_eps": common.rms(facts),
        "num_local_experts": config["num_experts"],
        "intermediate_size": config["moe_intermediate_size"],
    }


def _gpt_oss(facts: Metadata) -> Configuration:
    common.plain_attention(facts)
    config = common.usual(facts) | common.experts(facts, renormed=True, gating=3)
    common.same_base(facts, config["rope_parameters"])
    if config["rope_parameters"]["rope_type"] == "yarn":
        # Trained with borders of the ramp that are no whole numbers; files have no word for it.
        config["rope_parameters"]["truncate"] = False
    return (
        config
        | common.windows(facts, config["num_hidden_layers"], every=2)
        | {
            "model_type": "gpt_oss",
            "rms_norm_eps": common.rms(facts),
            "num_local_experts": config["num_experts"],
            "intermediate_size": config["moe_intermediate_size"],
            "attention_bias": True,
        }
    )


def _minimax_m2(facts: Metadata) -> Configuration:
    common.plain_attention(facts)
    common.no_window(facts)
    config = common.usual(facts, partial=True) | common.experts(facts, renormed=True, gating=2)
    return config | {
        "model_type": "minimax_m2",
        "rms_norm_eps": common.rms(facts),
        "num_local_experts": config["num_experts"],
        "intermediate_size": config["moe_intermediate_size"],
    }


def _glm4moe(facts: Metadata) -> Configuration:
    common.plain_attention(facts)
    common.no_window(facts)
    first = facts.take("leading_dense_block_count", 0)
    scale, shared = facts.take("expert_weights_scale", 1.0), facts.take("expert_shared_count", 0)
    config = common.usual(facts, partial=True)
    return (
        config
        | common.experts(facts, facts.take("expert_weights_norm", True), gating=2, first=first, scale=scale)
        | {
            "model_type": "glm4_moe",
            "rms_norm_eps": common.rms(facts),
            "n_routed_experts": facts.need("expert_count"),
            "n_shared_experts": shared,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": first,
            "norm_topk_prob": facts.take("expert_weights_norm", True),
            "routed_scaling_factor": scale,
            "use_qk_norm": facts.has("blk.0.attn_q_norm.weight"),
            "attention_bias": facts.has("blk.0.attn_q.bias"),
        }
    )


def _one_row(weight: Tensor) -> Tensor:
    return weight.view(1, -1)


def _alternating(parts: list[Tensor]) -> Tensor:
    """Gates and inputs of experts by turns, with one row per input."""
    import torch

    return torch.stack(parts, dim=2).flatten(1, 2).mT


def _alternating_biases(parts: list[Tensor]) -> Tensor:
    import torch

    return torch.stack(parts, dim=2).flatten(1, 2)


_GPT_OSS: Names = {
    **USUAL,
    "post_attention_norm": "post_attention_layernorm",
    "attn_sinks.weight": "self_attn.sinks",
    "ffn_gate_inp": "mlp.router",
    "ffn_gate_exps.weight": Stored("mlp.experts.gate_up_proj", join=_alternating),
    "ffn_up_exps.weight": Stored("mlp.experts.gate_up_proj", part=1, join=_alternating),
    "ffn_gate_exps.bias": Stored("mlp.experts.gate_up_proj_bias", join=_alternating_biases),
    "ffn_up_exps.bias": Stored("mlp.experts.gate_up_proj_bias", part=1, join=_alternating_biases),
    "ffn_down_exps.weight": Stored("mlp.experts.down_proj", change=transposed),
    "ffn_down_exps.bias": "mlp.experts.down_proj_bias",
}
SHARED: Names = {
    "ffn_gate_inp_shexp.weight": Stored("mlp.shared_expert_gate.weight", change=_one_row),
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
_GRANITE: Names = {
    name: Stored(f"block_sparse_moe{place.name[3:]}", part=place.part, join=place.join)
    if isinstance(place, Stored)
    else f"block_sparse_moe{place[3:]}"
    for name, place in EXPERTS.items()
} | {"ffn_gate_inp": "block_sparse_moe.router"}

MIXTURES = {
    "llama": Architecture(_llama, {**TURNED, **EXPERTS}),
    "qwen2moe": Architecture(_qwen2moe, {**USUAL, **EXPERTS, **SHARED}),
    "qwen3moe": Architecture(_qwen3moe, {**USUAL, **HEAD_NORMS, **EXPERTS}),
    "olmoe": Architecture(_olmoe, {**USUAL, **HEAD_NORMS, **EXPERTS}),
    "granitemoe": Architecture(_granitemoe, {**TURNED, **_GRANITE}),
    "glm4moe": Architecture(
        _glm4moe,
        {
            **USUAL,
            **HEAD_NORMS,
            **EXPERTS,
            "post_attention_norm": "post_attention_layernorm",
            "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
            **{f"ffn_{name}_shexp": f"mlp.shared_experts.{name}_proj" for name in ("gate", "up", "down")},
        },
    ),
    "gpt-oss": Architecture(_gpt_oss, _GPT_OSS),
    "minimax-m2": Architecture(
        _minimax_m2, {**USUAL, **HEAD_NORMS, **EXPERTS, "exp_probs_b.bias": "mlp.e_score_correction_bias"}
    ),
}
