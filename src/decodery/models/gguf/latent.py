"""Networks that keep one short row per token for the keys and values of all heads, as GGUF files describe them: DeepSeek's."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from decodery.models.gguf import configuration as common
from decodery.models.gguf.configuration import Configuration
from decodery.models.gguf.decoders import Architecture
from decodery.models.gguf.metadata import Metadata
from decodery.models.gguf.names import EXPERTS, USUAL, Names, Stored
from decodery.models.gguf.rope import rope

if TYPE_CHECKING:
    from torch import Tensor

_SOFTMAX, _LOGISTIC = 1, 2


def _deepseek2(facts: Metadata) -> Configuration:
    common.plain_attention(facts)
    common.no_window(facts)
    heads, hidden = facts.one("attention.head_count"), facts.need("embedding_length")
    facts.expect("attention.head_count_kv", (1, heads), "there is one row for all heads")
    config = {
        "vocab_size": common.vocabulary(facts),
        "hidden_size": hidden,
        "intermediate_size": facts.one("feed_forward_length"),
        "num_hidden_layers": common.layers(facts),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": facts.need("context_length"),
        "rms_norm_eps": common.rms(facts),
        "q_lora_rank": facts.take("attention.q_lora_rank"),
        "attention_bias": False,
        "tie_word_embeddings": not facts.has("output.weight"),
    }
    return config | _widths(facts) | _experts(facts)


def _widths(facts: Metadata) -> Configuration:
    rank, turned = facts.need("attention.kv_lora_rank"), facts.need("rope.dimension_count")
    key, value = facts.need("attention.key_length"), facts.need("attention.value_length")
    if (
        whole := facts.take("attention.key_length_mla")
    ) is not None:  # older files have these widths in the place of the others
        if (key, value) != (rank + turned, rank):
            raise facts.refusal("attention.key_length", key, f"the row of a token is {rank} and {turned} wide")
        key, value = whole, facts.need("attention.value_length_mla")
    return {
        "kv_lora_rank": rank,
        "qk_rope_head_dim": turned,
        "qk_nope_head_dim": key - turned,
        "v_head_dim": value,
        "rope_parameters": _rope(facts, turned),
    }


def _rope(facts: Metadata, turned: int) -> Configuration:
    """DeepSeek's YaRN scales attention itself, and not queries and keys; files hold a tenth of its multiplier."""
    multiplier = round(10 * float(facts.take("rope.scaling.yarn_log_multiplier", 0.0)), 5)
    parameters = rope(facts, turned)
    if parameters["rope_type"] == "yarn":
        parameters["attention_factor"] = 1.0 if multiplier else 0.1 * math.log(parameters["factor"]) + 1.0
        parameters |= {"mscale": multiplier, "mscale_all_dim": multiplier}
    return parameters


def _experts(facts: Metadata) -> Configuration:
    first, scale = facts.take("leading_dense_block_count", 0), facts.take("expert_weights_scale", 0.0) or 1.0
    logistic = facts.has(f"blk.{first}.exp_probs_b.bias")
    renormed = bool(facts.take("expert_weights_norm", False))
    if renormed and not logistic:
        raise facts.refusal(
            "expert_weights_norm", True, "DeepSeek-V2's network leaves the shares of experts as they are"
        )
    groups, used = facts.take("expert_group_count", 0) or 1, facts.take("expert_group_used_count", 0) or 1
    facts.expect(
        "expert_gating_func", (0, _LOGISTIC if logistic else _SOFTMAX), "shares of experts come from another function"
    )
    width = facts.shape(f"blk.{first}.ffn_down_exps.weight")[2]
    facts.expect("expert_feed_forward_length", (width,), f"experts of another width than their weights, {width}")
    return {
        "model_type": "deepseek_v3" if logistic else "deepseek_v2",
        "n_routed_experts": facts.need("expert_count"),
        "n_shared_experts": facts.need("expert_shared_count"),
        "num_experts_per_tok": facts.one("expert_used_count"),
        "moe_intermediate_size": width,
        "first_k_dense_replace": first,
        "routed_scaling_factor": scale,
        "norm_topk_prob": renormed,
        "n_group": groups,
        "topk_group": used,
        "topk_method": "noaux_tc" if logistic else "greedy" if groups == 1 else "group_limited_greedy",
    }


def _keys_above_values(parts: list[Tensor]) -> Tensor:
    """Of each head the maps from the common row to its key, which the file has the other way round, and to its value."""
    import torch

    return torch.cat((parts[0].mT, parts[1]), dim=1).flatten(0, 1)


_NAMES: Names = {
    **USUAL,
    **EXPERTS,
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
    "attn_k_b.weight": Stored("self_attn.kv_b_proj.weight", join=_keys_above_values),
    "attn_v_b.weight": Stored("self_attn.kv_b_proj.weight", part=1, join=_keys_above_values),
    "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
    **{f"ffn_{name}_shexp": f"mlp.shared_experts.{name}_proj" for name in ("gate", "up", "down")},
}

DEEPSEEK2 = Architecture(_deepseek2, _NAMES)
