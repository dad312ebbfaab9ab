"""Networks of layouts before Llama, as GGUF files describe them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from decodery.models.gguf import configuration as common
from decodery.models.gguf.configuration import Configuration
from decodery.models.gguf.decoders import Architecture
from decodery.models.gguf.file import GgufFile
from decodery.models.gguf.metadata import Metadata
from decodery.models.gguf.names import Names, Stored, heads_apart, per_layer, transposed

if TYPE_CHECKING:
    from torch import Tensor


def _gpt2(facts: Metadata) -> Configuration:
    common.plain(facts)
    config = common.usual(facts, rotary=False)
    return {
        "model_type": "gpt2",
        "vocab_size": config["vocab_size"],
        "n_positions": config["max_position_embeddings"],
        "n_embd": config["hidden_size"],
        "n_layer": config["num_hidden_layers"],
        "n_head": config["num_attention_heads"],
        "n_inner": config["intermediate_size"],
        "layer_norm_epsilon": common.layer_norm(facts),
        "tie_word_embeddings": config["tie_word_embeddings"],
    }


def _bloom(facts: Metadata) -> Configuration:
    common.dense(facts)
    common.no_window(facts)
    facts.expect("attention.max_alibi_bias", (8.0,), "positions are told by another slope than BLOOM's")
    config = common.usual(facts, rotary=False)
    hidden = config["hidden_size"]
    if config["intermediate_size"] != 4 * hidden:
        raise facts.refusal("feed_forward_length", config["intermediate_size"], f"BLOOM's is {4 * hidden}")
    return {
        "model_type": "bloom",
        "vocab_size": config["vocab_size"],
        "seq_length": config["max_position_embeddings"],
        "hidden_size": hidden,
        "n_layer": config["num_hidden_layers"],
        "n_head": config["num_attention_heads"],
        "layer_norm_epsilon": common.layer_norm(facts),
        "tie_word_embeddings": config["tie_word_embeddings"],
    }


def _falcon(facts: Metadata) -> Configuration:
    common.plain(facts)
    config = common.usual(facts)
    groups = config["num_key_value_heads"]
    two_norms = facts.has("blk.0.attn_norm_2.weight")
    return {
        **{
            key: value
            for key, value in config.items()
            if key not in ("num_key_value_heads", "intermediate_size", "head_dim")
        },
        "model_type": "falcon",
        "num_kv_heads": groups,
        "ffn_hidden_size": config["intermediate_size"],
        "layer_norm_epsilon": common.layer_norm(facts),
        "new_decoder_architecture": groups > 1,
        "num_ln_in_parallel_attn": 2 if two_norms else 1,
        "multi_query": True,
        "parallel_attn": True,
        "bias": facts.has("blk.0.attn_qkv.bias"),
        "alibi": False,
    }


def _gptneox(facts: Metadata) -> Configuration:
    common.plain(facts)
    config = common.usual(facts, partial=True)
    return config | {
        "model_type": "gpt_neox",
        "layer_norm_eps": common.layer_norm(facts),
        "use_parallel_residual": facts.need("use_parallel_residual"),
        "attention_bias": facts.has("blk.0.attn_qkv.bias"),
        "tie_word_embeddings": config["tie_word_embeddings"],
    }


def _groups_apart(file: GgufFile, layer: int, rows: int) -> Tensor:
    """Rows of all queries, keys and values in the file; by groups of queries that share a key in transformers."""
    import torch

    heads = int(per_layer(file, "attention.head_count", layer))
    groups = int(per_layer(file, "attention.head_count_kv", layer) or heads)
    width = rows // (heads + 2 * groups)
    queries, keys, values = torch.arange(rows).split((heads * width, groups * width, groups * width))
    by_groups = [part.view(groups, -1, width) for part in (queries, keys, values)]
    return torch.cat(by_groups, dim=1).reshape(-1)


_GPT2: Names = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "attn_norm": "ln_1",
    "ffn_norm": "ln_2",
    **{
        key: value
        for name, place in {
            "attn_qkv": "attn.c_attn",
            "attn_output": "attn.c_proj",
            "ffn_up": "mlp.c_fc",
            "ffn_down": "mlp.c_proj",
        }.items()
        for key, value in ((f"{name}.weight", Stored(f"{place}.weight", change=transposed)), (name, place))
    },
}
_BLOOM: Names = {
    "token_embd": "transformer.word_embeddings",
    "token_embd_norm": "transformer.word_embeddings_layernorm",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_qkv": Stored("self_attention.query_key_value", order=heads_apart),
    "attn_output": "self_attention.dense",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h",
}


_GPTNEOX: Names = {
    "token_embd": "gpt_neox.embed_in",
    "output_norm": "gpt_neox.final_layer_norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_qkv": Stored("attention.query_key_value", order=heads_apart),
    "attn_output": "attention.dense",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h",
}


def _falcon_names(file: GgufFile) -> Names:
    two = any(entry.name == "blk.0.attn_norm_2.weight" for entry in file.tensors)
    norms = {"attn_norm": "ln_mlp", "attn_norm_2": "ln_attn"} if two else {"attn_norm": "input_layernorm"}
    shared = {key: place for key, place in _BLOOM.items() if "norm" not in key or key == "output_norm"}
    return {**shared, "attn_qkv": Stored("self_attention.query_key_value", order=_groups_apart), **norms}


OLDER = {
    "gpt2": Architecture(_gpt2, _GPT2, "transformer.h"),
    "bloom": Architecture(_bloom, _BLOOM, "transformer.h"),
    "gptneox": Architecture(_gptneox, _GPTNEOX, "gpt_neox.layers"),
    "falcon": Architecture(_falcon, _falcon_names, "transformer.h"),
}
