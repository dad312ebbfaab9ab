"""Gemma 4, as GGUF files describe it: two kinds of layers of different widths, some of which use keys and values of others."""

from __future__ import annotations

from decodery.models.gguf import configuration as common
from decodery.models.gguf.configuration import Configuration
from decodery.models.gguf.decoders import Architecture
from decodery.models.gguf.file import GgufFile
from decodery.models.gguf.metadata import Metadata
from decodery.models.gguf.names import HEAD_NORMS, USUAL, Names, Stored, below, layer_of

_NEVER = 1e29
"""Angles divided by this much or more do not turn."""


def _gemma4(facts: Metadata) -> Configuration:
    common.plain_attention(facts)
    layers, hidden = common.layers(facts), facts.need("embedding_length")
    seen = common.windows(facts, layers, every=6)
    far = [kind == "full_attention" for kind in seen["layer_types"]]
    width, near_width = facts.need("attention.key_length"), facts.need("attention.key_length_swa")
    facts.expect("attention.value_length", (width,), f"values of another width than keys, which are {width} wide")
    facts.expect("attention.value_length_swa", (near_width,), f"values of another width than keys, {near_width}")
    groups, far_groups = _groups(facts, far)
    shared = facts.take("attention.shared_kv_layers", 0)
    first_far = far.index(True)
    alike = not facts.has(f"blk.{first_far}.attn_v.weight")
    if far_groups != groups and not alike:
        raise facts.refusal(
            "attention.head_count_kv", [groups, far_groups], "transformers' network has one number of heads"
        )
    config = {
        "model_type": "gemma4_text",
        "vocab_size": common.vocabulary(facts),
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": facts.one("attention.head_count"),
        "num_key_value_heads": groups,
        "num_global_key_value_heads": far_groups,
        "attention_k_eq_v": alike,
        "head_dim": near_width,
        "global_head_dim": width,
        "num_kv_shared_layers": shared,
        "max_position_embeddings": facts.need("context_length"),
        "rms_norm_eps": common.rms(facts),
        "final_logit_softcapping": facts.take("final_logit_softcapping", 0.0) or None,
        "tie_word_embeddings": not facts.has("output.weight"),
        "rope_parameters": _rope(facts, width, near_width),
    }
    return config | seen | _feed_forward(facts, layers, shared) | _own_embeddings(facts) | _experts(facts)


def _groups(facts: Metadata, far: list[bool]) -> tuple[int, int]:
    """Heads of keys in layers with a window, and in those without."""
    said = facts.need("attention.head_count_kv")
    counts = said if isinstance(said, list) else [said] * len(far)
    near_counts = {count for count, one in zip(counts, far, strict=False) if not one}
    far_counts = {count for count, one in zip(counts, far, strict=False) if one}
    if len(near_counts) != 1 or len(far_counts) != 1:
        raise facts.refusal(
            "attention.head_count_kv", said, "it must name one number for each of the two kinds of layers"
        )
    return int(near_counts.pop()), int(far_counts.pop())


def _rope(facts: Metadata, width: int, near_width: int) -> Configuration:
    facts.expect("rope.dimension_count", (width,), f"layers without a window turn whole heads, {width} wide")
    facts.expect("rope.dimension_count_swa", (near_width,), f"layers with a window turn whole heads, {near_width} wide")
    for key, plain in (("type", "none"), ("factor", 1.0)):
        facts.expect(f"rope.scaling.{key}", (plain,), "a scaling of angles, which Gemma 4 has not")
    factors = facts.numbers("rope_freqs") or [1.0] * (width // 2)
    turned = [factor for factor in factors if factor < _NEVER]
    if len(factors) != width // 2 or set(turned) != {1.0} or any(factor >= _NEVER for factor in factors[: len(turned)]):
        raise facts.refusal(
            "rope.dimension_count", width, "the tensor rope_freqs must be ones, then numbers beyond all angles"
        )
    return {
        "full_attention": {
            "rope_type": "proportional",
            "rope_theta": float(facts.take("rope.freq_base", 10000.0)),
            "partial_rotary_factor": len(turned) / len(factors),
        },
        "sliding_attention": {"rope_type": "default", "rope_theta": float(facts.take("rope.freq_base_swa", 10000.0))},
    }


def _feed_forward(facts: Metadata, layers: int, shared: int) -> Configuration:
    said = facts.need("feed_forward_length")
    if not isinstance(said, list):
        return {"intermediate_size": said, "use_double_wide_mlp": False}
    size = said[0]
    doubled = [size] * (layers - shared) + [2 * size] * shared
    if said not in ([size] * layers, doubled):
        raise facts.refusal(
            "feed_forward_length", said, "layers that share keys may be twice as wide as the others, no others"
        )
    return {"intermediate_size": size, "use_double_wide_mlp": said == doubled and shared > 0}


def _own_embeddings(facts: Metadata) -> Configuration:
    width = facts.take("embedding_length_per_layer_input", 0)
    if not width:
        return {"hidden_size_per_layer_input": 0}
    return {
        "hidden_size_per_layer_input": width,
        "vocab_size_per_layer_input": facts.shape("per_layer_token_embd.weight")[0],
    }


def _experts(facts: Metadata) -> Configuration:
    if not facts.take("expert_count", 0):
        common.dense(facts)
        facts.take("expert_feed_forward_length")
        return {"enable_moe_block": False}
    config = common.experts(facts, renormed=True)
    return {
        "enable_moe_block": True,
        "num_experts": config["num_experts"],
        "top_k_experts": config["num_experts_per_tok"],
        "moe_intermediate_size": config["moe_intermediate_size"],
    }


_NAMES: Names = {
    **USUAL,
    **HEAD_NORMS,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "post_ffw_norm_1": "post_feedforward_layernorm_1",
    "post_ffw_norm_2": "post_feedforward_layernorm_2",
    "pre_ffw_norm_2": "pre_feedforward_layernorm_2",
    "layer_output_scale.weight": "layer_scalar",
    "per_layer_token_embd": "model.embed_tokens_per_layer",
    "per_layer_model_proj": "model.per_layer_model_projection",
    "per_layer_proj_norm": "model.per_layer_projection_norm",
    "inp_gate": "per_layer_input_gate",
    "proj": "per_layer_projection",
    "post_norm": "post_per_layer_input_norm",
    "ffn_gate_inp": "router.proj",
    "ffn_gate_inp.scale": "router.scale",
    "ffn_gate_up_exps.weight": "experts.gate_up_proj",
    "ffn_gate_exps.weight": Stored("experts.gate_up_proj", join=below),
    "ffn_up_exps.weight": Stored("experts.gate_up_proj", part=1, join=below),
    "ffn_down_exps.weight": "experts.down_proj",
    "ffn_down_exps.scale": "router.per_expert_scale",
}


def _unused(file: GgufFile, tensor: str) -> bool:
    """Keys and values of layers that use those of others stand in files and are read by nobody."""
    layer = layer_of(tensor)
    shared = file.metadata.get("gemma4.attention.shared_kv_layers", 0)
    kinds = (".attn_k.weight", ".attn_v.weight", ".attn_k_norm.weight")
    return layer is not None and layer >= file.metadata["gemma4.block_count"] - shared and tensor.endswith(kinds)


GEMMA4 = Architecture(_gemma4, _NAMES, unused=_unused)
