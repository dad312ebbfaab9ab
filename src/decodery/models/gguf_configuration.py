"""From the metadata of a GGUF file to the configuration of transformers' network, by architecture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from decodery.errors import ModelNotReadable
from decodery.models.gguf_file import GgufFile
from decodery.models.gguf_metadata import Metadata
from decodery.models.gguf_rope import rope

Configuration = dict[str, Any]


def configuration(file: GgufFile) -> Configuration:
    """The configuration of the file's network, without what describes its tokenizer.

    Raises ModelNotReadable where an entry of the metadata is missing, cannot be honoured, or is read by nothing.
    """
    facts = Metadata(file)
    facts.check_general()
    build = CONFIGURATIONS.get(file.architecture)
    if build is None:
        raise ModelNotReadable(
            f"{file.path} is of architecture {file.architecture!r}, which cannot be read here; those that can: "
            f"{', '.join(sorted(CONFIGURATIONS))}."
        )
    config = build(facts)
    facts.refuse_the_rest()
    tokens = len(file.tokenizer("tokens", ()))
    if tokens and config["vocab_size"] != tokens:
        raise ModelNotReadable(
            f"{file.path} is inconsistent: {tokens} tokens, but a network for {config['vocab_size']}."
        )
    return config


def usual(facts: Metadata, partial: bool = False, rotary: bool = True) -> Configuration:
    """What nearly all decoders say of themselves. partial: see `rope`."""
    heads = facts.one("attention.head_count") or facts.need("attention.head_count")
    hidden = facts.need("embedding_length")
    width = facts.take("attention.key_length", hidden // heads)
    facts.expect("attention.value_length", (width,), f"values of another width than keys, which are {width} wide")
    facts.expect("attention.key_length_swa", (width,), "layers with a window have heads of another width")
    facts.expect("attention.value_length_swa", (width,), "layers with a window have values of another width")
    facts.expect("embedding_length_out", (hidden,), "the head reads rows of another width")
    config: Configuration = {
        "vocab_size": facts.shape("token_embd.weight")[0],
        "hidden_size": hidden,
        "intermediate_size": facts.one("feed_forward_length"),
        "num_hidden_layers": facts.need("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": facts.one("attention.head_count_kv", heads),
        "head_dim": width,
        "max_position_embeddings": facts.need("context_length"),
        "tie_word_embeddings": not facts.has("output.weight"),
    }
    if rotary:
        config["rope_parameters"] = rope(facts, width, partial)
    return config


def dense(facts: Metadata) -> None:
    """Refuse experts where the network has none."""
    facts.expect("expert_count", (0,), "a mixture of experts, which the network of this architecture is not")
    facts.expect("expert_used_count", (0,), "a mixture of experts, which the network of this architecture is not")


def plain_attention(facts: Metadata) -> None:
    """Refuse what the network's attention has no words for."""
    facts.expect("attention.scale", (0.0,), "scores of attention are scaled in another way")
    facts.expect("attention.clamp_kqv", (0.0,), "queries, keys and values are clamped")
    facts.expect("attention.max_alibi_bias", (0.0,), "positions are told by ALiBi")
    facts.expect("attention.temperature_scale", (0.0,), "queries are scaled by position")


def rms(facts: Metadata) -> float:
    """The epsilon of norms by the root of the mean of squares."""
    return float(facts.need("attention.layer_norm_rms_epsilon"))


def _llama(facts: Metadata) -> Configuration:
    if facts.take("expert_count", 0):
        return _mixtral(facts)
    dense(facts)
    plain_attention(facts)
    no_window(facts)
    return usual(facts) | {
        "model_type": "llama",
        "rms_norm_eps": rms(facts),
        "hidden_act": "silu",
        "attention_bias": facts.has("blk.0.attn_output.bias"),
        "mlp_bias": facts.has("blk.0.ffn_down.bias"),
    }


def _mixtral(facts: Metadata) -> Configuration:
    raise facts.refusal("expert_count", facts.take("expert_count"), "a mixture of experts")


def no_window(facts: Metadata) -> None:
    """Refuse windows where the network has none."""
    facts.expect("attention.sliding_window", (0,), "attention ends at a window")


def _gemma3(facts: Metadata) -> Configuration:
    dense(facts)
    plain_attention(facts)
    config = usual(facts)
    window = facts.take("attention.sliding_window", 0)
    layers, pattern = config["num_hidden_layers"], facts.take("attention.sliding_window_pattern", 6)
    near = pattern if isinstance(pattern, list) else [(i + 1) % pattern != 0 for i in range(layers)]
    turning = config["rope_parameters"]
    near_base = float(facts.take("rope.freq_base_swa", 10000.0))
    big = layers == 62  # the one of 27 billion weights scales its queries in another way
    return config | {
        "model_type": "gemma3_text",
        "rms_norm_eps": rms(facts),
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": config["hidden_size"] // config["num_attention_heads"] if big else config["head_dim"],
        "sliding_window": window or None,
        "layer_types": ["sliding_attention" if one and window else "full_attention" for one in near],
        "rope_parameters": {
            "full_attention": turning,
            "sliding_attention": {"rope_type": "default", "rope_theta": near_base},
        },
        "final_logit_softcapping": facts.take("final_logit_softcapping", 0.0) or None,
        "attn_logit_softcapping": None,
        "attention_bias": False,
    }


CONFIGURATIONS: dict[str, Callable[[Metadata], Configuration]] = {
    "llama": _llama,
    "gemma3": _gemma3,
}
