"""Dense decoders with rotary angles, as GGUF files describe them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from decodery.models.gguf import configuration as common
from decodery.models.gguf.configuration import Configuration
from decodery.models.gguf.file import GgufFile
from decodery.models.gguf.metadata import Metadata
from decodery.models.gguf.names import FUSED, HEAD_NORMS, USUAL, Names, Stored, less_one, turned_keys, turned_queries


def _none(file: GgufFile, tensor: str) -> bool:
    return False


@dataclass(frozen=True)
class Architecture:
    """How files of one architecture are read. names: of weights, or what gives them for a file. layers: how the names of
    layers' weights begin in transformers. unused: whether a tensor says nothing about scores."""

    configuration: Callable[[Metadata], Configuration]
    names: Names | Callable[[GgufFile], Names]
    layers: str = "model.layers"
    unused: Callable[[GgufFile, str], bool] = _none


TURNED: Names = {
    **USUAL,
    "attn_q": Stored("self_attn.q_proj", order=turned_queries),
    "attn_k": Stored("self_attn.k_proj", order=turned_keys),
}
"""Of families whose queries and keys llama.cpp keeps in an order of its own."""


def llama(facts: Metadata) -> Configuration:
    """Llama, and all that have its layers: Mistral, Yi, SmolLM, …"""
    common.plain(facts)
    own_bias, all_biases = facts.has("blk.0.attn_q.bias"), facts.has("blk.0.attn_output.bias")
    return common.usual(facts) | {
        # Qwen2 is a Llama with biases of queries, keys and values alone.
        "model_type": "qwen2" if own_bias and not all_biases else "llama",
        "rms_norm_eps": common.rms(facts),
        "hidden_act": "silu",
        "attention_bias": all_biases,
        "mlp_bias": facts.has("blk.0.ffn_down.bias"),
    }


def _qwen2(facts: Metadata) -> Configuration:
    common.plain(facts)
    return common.usual(facts) | {"model_type": "qwen2", "rms_norm_eps": common.rms(facts)}


def _qwen3(facts: Metadata) -> Configuration:
    common.plain(facts)
    bias = facts.has("blk.0.attn_q.bias")
    return common.usual(facts) | {"model_type": "qwen3", "rms_norm_eps": common.rms(facts), "attention_bias": bias}


def _phi3(facts: Metadata) -> Configuration:
    common.dense(facts)
    common.plain_attention(facts)
    original = facts.take("rope.scaling.original_context_length")
    config = common.usual(facts, partial=True)
    return config | {
        "model_type": "phi3",
        "rms_norm_eps": common.rms(facts),
        "sliding_window": facts.take("attention.sliding_window", 0) or None,
        "original_max_position_embeddings": original or config["max_position_embeddings"],
    }


def _nemotron(facts: Metadata) -> Configuration:
    common.plain(facts)
    return common.usual(facts, partial=True) | {
        "model_type": "nemotron",
        "norm_eps": common.layer_norm(facts),
        "attention_bias": facts.has("blk.0.attn_output.bias"),
        "mlp_bias": facts.has("blk.0.ffn_down.bias"),
    }


def _stablelm(facts: Metadata) -> Configuration:
    common.plain(facts)
    facts.take("use_parallel_residual")  # old converters wrote True for all; the norms of the feed-forwards tell
    return common.usual(facts, partial=True) | {
        "model_type": "stablelm",
        "layer_norm_eps": common.layer_norm(facts),
        "use_qkv_bias": facts.has("blk.0.attn_q.bias"),
        "use_parallel_residual": not facts.has("blk.0.ffn_norm.weight"),
        "qk_layernorm": False,
    }


def _starcoder2(facts: Metadata) -> Configuration:
    common.dense(facts)
    common.plain_attention(facts)
    return common.usual(facts) | {
        "model_type": "starcoder2",
        "norm_epsilon": common.layer_norm(facts),
        "use_bias": facts.has("blk.0.attn_output.bias"),
        "sliding_window": facts.take("attention.sliding_window", 0) or None,
    }


def _gemma(facts: Metadata) -> Configuration:
    common.plain(facts)
    return common.usual(facts) | {
        "model_type": "gemma",
        "rms_norm_eps": common.rms(facts),
        "hidden_act": "gelu_pytorch_tanh",
    }


def _scale_of_queries(config: Configuration, layers_of_the_largest: int) -> int:
    """The largest of each generation scales its queries by another width than that of its heads, and files do not say so."""
    if config["num_hidden_layers"] == layers_of_the_largest:
        return int(config["hidden_size"] // config["num_attention_heads"])
    return int(config["head_dim"])


def _gemma2(facts: Metadata) -> Configuration:
    common.dense(facts)
    common.plain_attention(facts)
    config = common.usual(facts)
    common.same_base(facts, config["rope_parameters"])
    return (
        config
        | common.windows(facts, config["num_hidden_layers"], every=2, default=4096)
        | {
            "model_type": "gemma2",
            "rms_norm_eps": common.rms(facts),
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": _scale_of_queries(config, layers_of_the_largest=46),
            "attn_logit_softcapping": facts.take("attn_logit_softcapping", 50.0) or None,
            "final_logit_softcapping": facts.take("final_logit_softcapping", 30.0) or None,
        }
    )


def _gemma3(facts: Metadata) -> Configuration:
    common.dense(facts)
    common.plain_attention(facts)
    config = common.usual(facts)
    near_base = float(facts.take("rope.freq_base_swa", 10000.0))
    return (
        config
        | common.windows(facts, config["num_hidden_layers"], every=6)
        | {
            "model_type": "gemma3_text",
            "rms_norm_eps": common.rms(facts),
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": _scale_of_queries(config, layers_of_the_largest=62),
            "rope_parameters": {
                "full_attention": config["rope_parameters"],
                "sliding_attention": {"rope_type": "default", "rope_theta": near_base},
            },
            "attn_logit_softcapping": facts.take("attn_logit_softcapping", 0.0) or None,
            "final_logit_softcapping": facts.take("final_logit_softcapping", 0.0) or None,
        }
    )


def _granite(facts: Metadata) -> Configuration:
    common.dense(facts)
    common.no_window(facts)
    common.turns(facts)
    return common.usual(facts) | scales(facts) | {"model_type": "granite", "rms_norm_eps": common.rms(facts)}


def scales(facts: Metadata) -> Configuration:
    """The multipliers of Granite."""
    width = facts.take("attention.key_length") or facts.need("embedding_length") // facts.one("attention.head_count")
    return {
        "attention_multiplier": facts.take("attention.scale", 0.0) or width**-0.5,
        "embedding_multiplier": facts.take("embedding_scale", 0.0) or 1.0,
        "residual_multiplier": facts.take("residual_scale", 0.0) or 1.0,
        "logits_scaling": facts.need("logit_scale"),
    }


def _smollm3(facts: Metadata) -> Configuration:
    common.plain(facts)
    config = common.usual(facts)
    turned = [int((i + 1) % 4 != 0) for i in range(config["num_hidden_layers"])]
    return config | {
        "model_type": "smollm3",
        "rms_norm_eps": common.rms(facts),
        "no_rope_layers": turned,
        "use_sliding_window": False,
    }


def _olmo2(facts: Metadata) -> Configuration:
    common.plain(facts)
    return common.usual(facts) | {"model_type": "olmo2", "rms_norm_eps": common.rms(facts)}


def _olmo(facts: Metadata) -> Configuration:
    common.dense(facts)
    common.no_window(facts)
    clip = facts.take("attention.clamp_kqv", 0.0) or None
    epsilon = common.layer_norm(facts)
    if round(epsilon, 9) != 1e-5:
        raise facts.refusal("attention.layer_norm_epsilon", epsilon, "the network of OLMo knows none but 1e-05")
    return common.usual(facts) | {"model_type": "olmo", "clip_qkv": clip}


def _command_r(facts: Metadata) -> Configuration:
    common.plain(facts)
    return common.usual(facts) | {
        "model_type": "cohere",
        "layer_norm_eps": common.layer_norm(facts),
        "logit_scale": facts.take("logit_scale", 0.0) or 1.0,
        "use_qk_norm": facts.has("blk.0.attn_q_norm.weight"),
        "attention_bias": facts.has("blk.0.attn_q.bias"),
    }


def _cohere2(facts: Metadata) -> Configuration:
    common.dense(facts)
    common.plain_attention(facts)
    config = common.usual(facts)
    common.same_base(facts, config["rope_parameters"])
    return (
        config
        | common.windows(facts, config["num_hidden_layers"], every=4)
        | {
            "model_type": "cohere2",
            "layer_norm_eps": common.layer_norm(facts),
            "logit_scale": facts.need("logit_scale"),
        }
    )


def _phi2(facts: Metadata) -> Configuration:
    common.plain(facts)
    return common.usual(facts, partial=True) | {"model_type": "phi", "layer_norm_eps": common.layer_norm(facts)}


def _glm4(facts: Metadata) -> Configuration:
    common.plain(facts)
    facts.expect("rope.dimension_sections", ([0, 0, 0, 0],), "angles of pictures' places")
    bias = facts.has("blk.0.attn_q.bias")
    return common.usual(facts, partial=True) | {
        "model_type": "glm4",
        "rms_norm_eps": common.rms(facts),
        "attention_bias": bias,
    }


def _mistral3(facts: Metadata) -> Configuration:
    common.dense(facts)
    common.no_window(facts)
    cooling = facts.take("attention.temperature_scale", 0.0)
    common.plain_attention(facts, but="attention.temperature_scale")
    config = common.usual(facts)
    original = facts.take("rope.scaling.original_context_length") or config["max_position_embeddings"]
    told = {"llama_4_scaling_beta": cooling, "original_max_position_embeddings": original}
    return config | {
        "model_type": "ministral3",
        "rms_norm_eps": common.rms(facts),
        "rope_parameters": {**config["rope_parameters"], **told},
    }


def _arcee(facts: Metadata) -> Configuration:
    common.plain(facts)
    return common.usual(facts) | {"model_type": "arcee", "rms_norm_eps": common.rms(facts), "hidden_act": "relu2"}


def _seed_oss(facts: Metadata) -> Configuration:
    common.plain(facts)
    return common.usual(facts) | {
        "model_type": "seed_oss",
        "rms_norm_eps": common.rms(facts),
        "attention_bias": facts.has("blk.0.attn_q.bias"),
        "attention_out_bias": facts.has("blk.0.attn_output.bias"),
    }


def _ernie(facts: Metadata) -> Configuration:
    common.plain(facts)
    facts.expect("rope.dimension_sections", ([0, 0, 0, 0],), "angles of pictures' places")
    return common.usual(facts) | {
        "model_type": "ernie4_5",
        "rms_norm_eps": common.rms(facts),
        "use_bias": facts.has("blk.0.attn_output.bias"),
    }


def _exaone4(facts: Metadata) -> Configuration:
    common.dense(facts)
    common.plain_attention(facts)
    config = common.usual(facts)
    common.same_base(facts, config["rope_parameters"])
    seen = common.windows(facts, config["num_hidden_layers"], every=4)
    return config | seen | {"model_type": "exaone4", "rms_norm_eps": common.rms(facts)}


_NORMS_WITH_ONE: Names = {
    f"{name}.weight": Stored(f"{place}.weight", change=less_one)
    for name, place in {
        "output_norm": "model.norm",
        "attn_norm": "input_layernorm",
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
    }.items()
}
_TWO_NORMS_WITH_ONE: Names = {
    **_NORMS_WITH_ONE,
    "ffn_norm.weight": Stored("post_attention_layernorm.weight", change=less_one),
}
_NORMS_AFTER: Names = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}

DECODERS = {
    "llama": Architecture(llama, TURNED),
    "qwen2": Architecture(_qwen2, USUAL),
    "qwen3": Architecture(_qwen3, {**USUAL, **HEAD_NORMS}),
    "phi3": Architecture(_phi3, {**USUAL, **FUSED}),
    "nemotron": Architecture(_nemotron, {**USUAL, **_TWO_NORMS_WITH_ONE}),
    "stablelm": Architecture(_stablelm, USUAL),
    "starcoder2": Architecture(_starcoder2, {**USUAL, "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}),
    "gemma": Architecture(_gemma, {**USUAL, **_TWO_NORMS_WITH_ONE}),
    "gemma2": Architecture(_gemma2, {**USUAL, **_NORMS_WITH_ONE}),
    "gemma3": Architecture(_gemma3, {**USUAL, **_NORMS_WITH_ONE}),
    "granite": Architecture(_granite, TURNED),
    "smollm3": Architecture(_smollm3, TURNED),
    "olmo": Architecture(_olmo, TURNED),
    "olmo2": Architecture(_olmo2, {**USUAL, **HEAD_NORMS, **_NORMS_AFTER}),
    "internlm2": Architecture(llama, TURNED),
    "mistral3": Architecture(_mistral3, TURNED),
    "arcee": Architecture(_arcee, TURNED),
    "seed_oss": Architecture(_seed_oss, {**USUAL, "post_attention_norm": "post_attention_layernorm"}),
    "ernie4_5": Architecture(_ernie, USUAL),
    "exaone4": Architecture(_exaone4, {**USUAL, **HEAD_NORMS, **_NORMS_AFTER}),
    "command-r": Architecture(_command_r, {**USUAL, **HEAD_NORMS}),
    "cohere2": Architecture(_cohere2, USUAL),
    "phi2": Architecture(
        _phi2,
        {
            **USUAL,
            "output_norm": "model.final_layernorm",
            "attn_output": "self_attn.dense",
            "ffn_up": "mlp.fc1",
            "ffn_down": "mlp.fc2",
        },
    ),
    "glm4": Architecture(
        _glm4,
        {
            **USUAL,
            "ffn_up": "mlp.gate_up_proj",
            "post_attention_norm": "post_self_attn_layernorm",
            "post_ffw_norm": "post_mlp_layernorm",
        },
    ),
}
