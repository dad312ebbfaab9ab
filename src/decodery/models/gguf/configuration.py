"""What the metadata of GGUF files says in the same words for many architectures, as transformers' configuration."""

from __future__ import annotations

from typing import Any

from decodery.models.gguf.metadata import Metadata
from decodery.models.gguf.rope import rope

Configuration = dict[str, Any]


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
        "vocab_size": vocabulary(facts),
        "hidden_size": hidden,
        "intermediate_size": facts.one("feed_forward_length"),
        "num_hidden_layers": layers(facts),
        "num_attention_heads": heads,
        "num_key_value_heads": facts.one("attention.head_count_kv", heads),
        "head_dim": width,
        "max_position_embeddings": facts.need("context_length"),
        "tie_word_embeddings": not facts.has("output.weight"),
    }
    if rotary:
        config["rope_parameters"] = rope(facts, width, partial)
    return config


def vocabulary(facts: Metadata) -> int:
    """The number of tokens that the network knows."""
    size = facts.shape("token_embd.weight")[0]
    facts.expect("vocab_size", (size,), f"the table of embeddings has {size} rows")
    return size


def layers(facts: Metadata) -> int:
    """The number of layers, without those that guess the tokens after the next one; nothing here runs these."""
    return int(facts.need("block_count")) - int(facts.take("nextn_predict_layers", 0))


def dense(facts: Metadata) -> None:
    """Refuse experts where the network has none."""
    facts.expect("expert_count", (0,), "a mixture of experts, which the network of this architecture is not")
    facts.expect("expert_used_count", (0,), "a mixture of experts, which the network of this architecture is not")


_SPECIAL_ATTENTION = {
    "attention.scale": "scores of attention are scaled in another way",
    "attention.clamp_kqv": "queries, keys and values are clamped",
    "attention.max_alibi_bias": "positions are told by ALiBi",
    "attention.temperature_scale": "queries are scaled by position",
}


def plain_attention(facts: Metadata, but: str = "") -> None:
    """Refuse what the network's attention has no words for. but: an entry that it has words for."""
    for key, meaning in _SPECIAL_ATTENTION.items():
        if key != but:
            facts.expect(key, (0.0,), meaning)


def rms(facts: Metadata) -> float:
    """The epsilon of norms by the root of the mean of squares."""
    return float(facts.need("attention.layer_norm_rms_epsilon"))


def no_window(facts: Metadata) -> None:
    """Refuse windows where the network has none."""
    facts.expect("attention.sliding_window", (0,), "attention ends at a window")


def turns(facts: Metadata) -> None:
    """Refuse Granites without rotary angles: there, and there alone, an entry about their scaling says that they have none."""
    facts.expect("rope.scaling.finetuned", (True,), "positions are not told at all")


def layer_norm(facts: Metadata) -> float:
    """The epsilon of norms by the deviation from the mean."""
    return float(facts.need("attention.layer_norm_epsilon"))


def plain(facts: Metadata) -> None:
    """Refuse experts, windows and special attention: for networks that have none of them."""
    dense(facts)
    plain_attention(facts)
    no_window(facts)


def windows(facts: Metadata, number: int, every: int, default: int = 0, dense_first: bool = False) -> Configuration:
    """Which layers see only a window. every: of how many layers one sees all, where the file does not say."""
    window = facts.take("attention.sliding_window", default)
    pattern = facts.take("attention.sliding_window_pattern", every)
    if isinstance(pattern, list):
        near = [bool(one) for one in pattern[:number]]
        if len(near) < number:
            raise facts.refusal("attention.sliding_window_pattern", pattern, f"it must name all {number} layers")
    elif pattern == 0:
        near = [True] * number
    else:
        wide = 0 if dense_first else pattern - 1
        near = [i % pattern != wide for i in range(number)]
    return {
        "sliding_window": window or None,
        "layer_types": ["sliding_attention" if one and window else "full_attention" for one in near],
    }


def same_base(facts: Metadata, parameters: Configuration) -> None:
    """Refuse another base of the angles in layers with a window."""
    facts.expect("rope.freq_base_swa", (parameters["rope_theta"],), "layers with a window turn by another base")


def experts(facts: Metadata, renormed: bool, gating: int = 1, first: int = 0, scale: float = 1.0) -> Configuration:
    """How many experts there are and how many of them are used. renormed: whether the network makes their shares sum to one.
    gating: the number of the function that shares come from, 1 for softmax, 2 for the logistic function,
    3 for softmax over those chosen. first: the first layer
    that has experts. scale: of their shares, where the network has one."""
    facts.expect(
        "expert_weights_norm", (renormed,), f"shares of experts are {'not ' if renormed else ''}made to sum to one"
    )
    facts.expect("expert_weights_scale", (0.0, scale), "shares of experts are scaled")
    facts.expect("expert_gating_func", (0, gating), "shares of experts come from another function")
    facts.expect("expert_group_count", (0, 1), "experts are chosen by groups")
    facts.expect("expert_group_used_count", (0, 1), "experts are chosen by groups")
    facts.expect("leading_dense_block_count", (first,), "the first layers have no experts")
    width = facts.shape(f"blk.{first}.ffn_down_exps.weight")[2]
    facts.expect("expert_feed_forward_length", (width,), f"experts of another width than their weights, {width}")
    return {
        "num_experts": facts.need("expert_count"),
        "num_experts_per_tok": facts.one("expert_used_count") or facts.need("expert_used_count"),
        "moe_intermediate_size": width,
    }
