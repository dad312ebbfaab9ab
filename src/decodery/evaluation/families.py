"""Tiny random models of every causal family that the installed transformers has.

A configuration is shrunk by the names of its entries, which families share; what a family needs beside that stands in `OWN`.
Weights are large, so that attention is sharp and a wrong mask, position or state moves the scores by far more than rounding.
"""

from __future__ import annotations

import inspect
from typing import Any

SMALL: dict[str, Any] = {
    "vocab_size": 256,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "pad_token_id": 0,
    "eos_token_id": None,
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "type_vocab_size": 2,
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embedding_size", "input_embedding_size", "lru_width"), 64),
    **dict.fromkeys(("output_embedding_size",), 64),
    **dict.fromkeys(
        ("intermediate_size", "d_ff", "ffn_dim", "n_inner", "decoder_ffn_dim", "encoder_ffn_dim", "dff"), 96
    ),
    **dict.fromkeys(("intermediate_size_mlp", "mlp_hidden_size"), 96),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 4),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "linear_num_value_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_global_key_value_heads", "index_n_heads", "linear_num_key_heads"), 2),
    **dict.fromkeys(("head_dim", "d_kv", "global_head_dim", "swa_head_dim", "index_head_dim"), 16),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "mamba_d_head", "mamba_head_dim"), 16),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "vocab_size_per_layer_input"), 256),
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "attention_window_size", "rotary_dim"), 8),
    "hidden_size_per_layer_input": 8,
    "index_topk": 1024,
    "n_special": 0,
    # mixtures of experts
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk", "n_activated_experts"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("n_shared_experts", "n_group", "topk_group", "first_k_dense_replace"), 1),
    **dict.fromkeys(("moe_num_shared_experts", "num_shared_experts"), 1),
    # latent attention
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "qk_head_dim": 24,
    # recurrent states
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "mamba_d_state", "ssm_state_size", "state_size"), 8),
    **dict.fromkeys(("mamba_n_groups", "n_groups"), 1),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size"), 16),
    **dict.fromkeys(("mamba_dt_rank", "time_step_rank"), 4),
    "mamba_d_ssm": 128,
}
"""What entries of a configuration become, where it has them."""

_LATENT: dict[str, Any] = {"head_dim": None, "num_key_value_heads": 4}
_MIXED = ["sliding_attention", "full_attention"] * 2
_LINEAR = ["linear_attention", "full_attention"] * 2
_DECODER: dict[str, Any] = {"is_decoder": True}
_REFORMER = {
    "axial_pos_embds_dim": [32, 32],
    "axial_pos_shape": [16, 16],
    "attention_head_size": 16,
    "feed_forward_size": 96,
    "local_attn_chunk_length": 8,
    "lsh_attn_chunk_length": 8,
    "num_buckets": 4,
    "attn_layers": ["local", "lsh", "local", "lsh"],
}
OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite"), _LATENT),
    **dict.fromkeys(("glm_moe_dsa", "minicpm3", "youtu", "dots3_note"), _LATENT),
    "longcat_flash": {
        "head_dim": 8,
        "num_key_value_heads": 4,
        "qk_head_dim": None,
        "num_layers": 2,
        "num_hidden_layers": None,
    },
    "bamba": {"attn_layer_indices": [1, 3]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "bailing_hybrid": {"layer_group_size": 2, "num_key_value_heads": 4},
    "kimi_linear": _LATENT | {"layer_types": _LINEAR, "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]},
    "zamba": {"num_hidden_layers": 6, "attn_layer_period": 2, "attn_layer_offset": 1},
    "zamba2": {"num_hidden_layers": 6, "layers_block_type": ["mamba", "hybrid", "mamba"] * 2},
    "zaya": {"num_experts_per_tok": 1},
    "mamba2": {"num_heads": 8, "expand": 2},
    "xlstm": {"chunk_size": 64},
    "reformer": _DECODER | _REFORMER,
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 8},
    "dory": {"sliding_window": 64},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    **{kind: {"unpadded_vocab_size": 256} for kind in ("inkling2_text", "inkling2_loop_text")},
    "gemma3n_text": {"num_kv_shared_layers": 2, "layer_types": _MIXED},
    "xmod": _DECODER | {"default_language": "en_XX"},
    **dict.fromkeys(
        ("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie"), _DECODER
    ),
    **dict.fromkeys(("megatron-bert", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer"), _DECODER),
    **dict.fromkeys(("xlm-roberta", "xlm-roberta-xl"), _DECODER),
}
"""What a family needs beside `SMALL`; None takes an entry of it back."""

OTHER_INPUTS = {
    "blt": "bytes in patches",
    "moshi": "sound beside text",
    "musicgen": "sound",
    "musicgen_melody": "sound",
    "git": "pictures",
    "fuyu": "pictures",
    "phi4_multimodal": "pictures and sound",
    "mllama": "pictures",
    "gemma4_assistant": "another model's rows",
    "gemma4_unified_assistant": "another model's rows",
}
"""Families whose causal class decodes more than text."""


def families() -> dict[str, str]:
    """The causal classes of the installed transformers by model type: each class once, and those that decode text alone."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    found: dict[str, str] = {}
    for kind, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        if name.endswith("ForConditionalGeneration") or kind in OTHER_INPUTS:
            continue
        if name not in found or name.lower().startswith(kind.replace("_", "")):  # several types may share a class
            found[name] = kind
    return {kind: name for name, kind in found.items()}


def tiny_config(kind: str, **entries: Any) -> Any:
    """A small configuration of a model type. Raises what the family raises where an entry does not fit."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    made: Any = getattr(transformers, families()[kind]).config_class or CONFIG_MAPPING[kind]
    known = {*vars(made()), *inspect.signature(made.__init__).parameters, *getattr(made, "__dataclass_fields__", {})}
    other_names = getattr(made, "attribute_map", {})
    values = {key: value for key, value in SMALL.items() if key in known | other_names.keys()}
    for key, target in other_names.items():
        if target in values:
            values.pop(key, None)
    values |= OWN.get(kind, {}) | entries
    return made(**{key: value for key, value in values.items() if value is not None or key.endswith("token_id")})


def tiny_model(kind: str, seed: int = 0, **entries: Any) -> Any:
    """A random model of a family with a language-model head: float32, on the CPU, in eval mode.

    Raises what the family raises where it cannot be built here, and ValueError where it would not be small.
    """
    import torch
    import transformers

    config, made = tiny_config(kind, **entries), getattr(transformers, families()[kind])
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in made(config).parameters())
    if size > 30e6:
        raise ValueError(f"{kind} has {size / 1e6:.0f} million weights however its configuration is shrunk")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = made(config).eval().float()
    model.generation_config.forced_eos_token_id = None  # of the texts that a family was made for, not of its scores
    return model
