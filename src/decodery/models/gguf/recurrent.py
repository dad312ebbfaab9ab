"""Networks that are not of attention alone, as GGUF files describe them: states of recurrences, and short convolutions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from decodery.models.gguf import configuration as common
from decodery.models.gguf.configuration import Configuration
from decodery.models.gguf.decoders import Architecture
from decodery.models.gguf.experts import SHARED, shared_expert
from decodery.models.gguf.file import GgufFile
from decodery.models.gguf.metadata import Metadata
from decodery.models.gguf.names import EXPERTS, USUAL, Names, Stored, less_one
from decodery.models.gguf.rope import rope

if TYPE_CHECKING:
    from torch import Tensor


def _mamba(facts: Metadata) -> Configuration:
    facts.expect("ssm.dt_b_c_rms", (False,), "norms that the network of Mamba has not")
    for key in ("feed_forward_length", "attention.head_count", "attention.head_count_kv"):
        facts.expect(key, (0,), "attention or feed-forwards, which Mamba has not")
    hidden, inner = facts.need("embedding_length"), facts.need("ssm.inner_size")
    if inner % hidden:
        raise facts.refusal("ssm.inner_size", inner, f"it must be a multiple of {hidden}")
    facts.take("context_length")  # there are no positions
    return {
        "model_type": "mamba",
        "vocab_size": common.vocabulary(facts),
        "hidden_size": hidden,
        "num_hidden_layers": facts.need("block_count"),
        "expand": inner // hidden,
        "conv_kernel": facts.need("ssm.conv_kernel"),
        "state_size": facts.need("ssm.state_size"),
        "time_step_rank": facts.need("ssm.time_step_rank"),
        "layer_norm_epsilon": common.rms(facts),
        "tie_word_embeddings": not facts.has("output.weight"),
        "use_conv_bias": facts.has("blk.0.ssm_conv1d.bias"),
        "use_bias": facts.has("blk.0.ssm_in.bias"),
    }


def _lfm2(facts: Metadata) -> Configuration:
    common.plain(facts)
    groups = facts.need("attention.head_count_kv")
    heads, hidden, layers = (
        facts.need("attention.head_count"),
        facts.need("embedding_length"),
        facts.need("block_count"),
    )
    if not isinstance(groups, list) or len(groups) != layers or len({one for one in groups if one}) != 1:
        raise facts.refusal("attention.head_count_kv", groups, "it must name for each layer 0 or one number of heads")
    return {
        "model_type": "lfm2",
        "vocab_size": common.vocabulary(facts),
        "hidden_size": hidden,
        "intermediate_size": facts.one("feed_forward_length"),
        "block_auto_adjust_ff_dim": False,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(groups),
        "layer_types": ["full_attention" if one else "conv" for one in groups],
        "max_position_embeddings": facts.need("context_length"),
        "norm_eps": common.rms(facts),
        "conv_L_cache": facts.need("shortconv.l_cache"),
        "conv_bias": any(entry.name.endswith("shortconv.in_proj.bias") for entry in facts.file.tensors),
        "rope_parameters": rope(facts, hidden // heads),
        "tie_word_embeddings": not facts.has("output.weight"),
    }


def _qwen35(facts: Metadata) -> Configuration:
    common.plain_attention(facts)
    common.no_window(facts)
    config = common.usual(facts, partial=True)
    layers = config["num_hidden_layers"]
    every = facts.take("full_attention_interval", 4)
    recurrent = facts.take("attention.recurrent_layers", [(i + 1) % every != 0 for i in range(layers)])[:layers]
    # Pictures and time have angles of their own; a text's places are the same in all of them.
    sections = [section for section in facts.take("rope.dimension_sections", []) if section]
    heads = facts.need("ssm.time_step_rank")
    return config | {
        "model_type": "qwen3_5_text",
        "rms_norm_eps": common.rms(facts),
        "layer_types": ["linear_attention" if one else "full_attention" for one in recurrent],
        "linear_conv_kernel_dim": facts.need("ssm.conv_kernel"),
        "linear_key_head_dim": facts.need("ssm.state_size"),
        "linear_num_key_heads": facts.need("ssm.group_count"),
        "linear_num_value_heads": heads,
        "linear_value_head_dim": facts.need("ssm.inner_size") // heads,
        "rope_parameters": {**config["rope_parameters"], "mrope_section": sections, "mrope_interleaved": True},
        "attention_bias": facts.has("blk.0.attn_output.bias"),
    }


def _qwen35_dense(facts: Metadata) -> Configuration:
    common.dense(facts)
    return _qwen35(facts)


def _qwen35moe(facts: Metadata) -> Configuration:
    return (
        _qwen35(facts)
        | common.experts(facts, renormed=True)
        | {"model_type": "qwen3_5_moe_text", "shared_expert_intermediate_size": shared_expert(facts)}
    )


def _logarithm(weight: Tensor) -> Tensor:
    return (-weight.float()).log()


def _channels(weight: Tensor) -> Tensor:
    return weight.unsqueeze(1)


def _by_keys(file: GgufFile, width: int, rows: int) -> Tensor:
    """Rows of values by the heads of keys that they belong to. The file has the first head of each key, then the second of
    each.

    width: of a head. The last rows are those of values; those before them stay where they are.
    """
    import torch

    keys = int(file.metadata[f"{file.architecture}.ssm.group_count"])
    heads = int(file.metadata[f"{file.architecture}.ssm.time_step_rank"])
    others = rows - heads * width
    values = others + torch.arange(heads * width).view(heads // keys, keys, width).transpose(0, 1).reshape(-1)
    return torch.cat((torch.arange(others), values))


def _heads(file: GgufFile, layer: int, rows: int) -> Tensor:
    return _by_keys(file, 1, rows)


def _values(file: GgufFile, layer: int, rows: int) -> Tensor:
    facts = Metadata(file)
    return _by_keys(file, facts.need("ssm.inner_size") // facts.need("ssm.time_step_rank"), rows)


_MAMBA: Names = {
    "token_embd": "backbone.embeddings",
    "output_norm": "backbone.norm_f",
    "output": "lm_head",
    "attn_norm": "norm",
    "ssm_in": "mixer.in_proj",
    "ssm_conv1d.weight": Stored("mixer.conv1d.weight", change=_channels),
    "ssm_conv1d": "mixer.conv1d",
    "ssm_x": "mixer.x_proj",
    "ssm_dt": "mixer.dt_proj",
    "ssm_a": Stored("mixer.A_log", change=_logarithm),
    "ssm_d": "mixer.D",
    "ssm_out": "mixer.out_proj",
}
_LFM2: Names = {
    "token_embd": "model.embed_tokens",
    "token_embd_norm": "model.embedding_norm",
    "output_norm": "model.embedding_norm",
    "output": "lm_head",
    "attn_norm": "operator_norm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.out_proj",
    "attn_q_norm": "self_attn.q_layernorm",
    "attn_k_norm": "self_attn.k_layernorm",
    "ffn_norm": "ffn_norm",
    "ffn_gate": "feed_forward.w1",
    "ffn_up": "feed_forward.w3",
    "ffn_down": "feed_forward.w2",
    "shortconv.in_proj": "conv.in_proj",
    "shortconv.out_proj": "conv.out_proj",
    "shortconv.conv.weight": Stored("conv.conv.weight", change=_channels),
    "shortconv.conv": "conv.conv",
}


_QWEN35: Names = {
    **USUAL,
    **{
        f"{name}.weight": Stored(f"{place}.weight", change=less_one)
        for name, place in {
            "output_norm": "model.norm",
            "attn_norm": "input_layernorm",
            "post_attention_norm": "post_attention_layernorm",
            "attn_q_norm": "self_attn.q_norm",
            "attn_k_norm": "self_attn.k_norm",
        }.items()
    },
    "attn_qkv": Stored("linear_attn.in_proj_qkv", order=_values),
    "attn_gate": Stored("linear_attn.in_proj_z", order=_values),
    "ssm_alpha": Stored("linear_attn.in_proj_a", order=_heads),
    "ssm_beta": Stored("linear_attn.in_proj_b", order=_heads),
    "ssm_a": Stored("linear_attn.A_log", order=_heads, change=_logarithm),
    "ssm_dt.bias": Stored("linear_attn.dt_bias", order=_heads),
    "ssm_conv1d.weight": Stored("linear_attn.conv1d.weight", order=_values, change=_channels),
    "ssm_norm": "linear_attn.norm",
    "ssm_out": Stored("linear_attn.out_proj", columns=_values),
}

RECURRENT = {
    "mamba": Architecture(_mamba, _MAMBA, "backbone.layers"),
    "lfm2": Architecture(_lfm2, _LFM2),
    "qwen35": Architecture(_qwen35_dense, _QWEN35),
    "qwen35moe": Architecture(_qwen35moe, {**_QWEN35, **EXPERTS, **SHARED}),
}
