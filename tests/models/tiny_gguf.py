"""Tiny GGUF files for the tests of the store: a random two-layer Llama, and vocabularies of both kinds."""

from __future__ import annotations

import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.quants import dequantize, quantize

HIDDEN, INTERMEDIATE, LAYERS, HEADS, GROUPS, CONTEXT = 64, 96, 2, 4, 2, 128
EPSILON, THETA = 1e-5, 10_000.0
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
CHAT_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


@dataclass(frozen=True)
class Vocabulary:
    """The entries of a tokenizer in a GGUF file."""

    model: str
    tokens: list[str]
    kinds: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    split: str = "default"
    begin: int = 1
    end: int = 2
    unknown: int = 0
    adds_begin: bool = False
    chat_template: str | None = None


def byte_level(split: str = "smollm") -> Vocabulary:
    """All bytes, three control tokens, one user-defined token, and merges, one of them of two digits."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    merges = ["Ġ t", "h e", "Ġt he", "Ġ Ġ", "1 2", "Ġ 1", "Ċ Ċ"]
    tokens = [*special, *bytes_to_unicode().values(), *(merge.replace(" ", "") for merge in merges), "<tool>"]
    kinds = [CONTROL] * 3 + [NORMAL] * (len(tokens) - 4) + [USER_DEFINED]
    return Vocabulary("gpt2", tokens, kinds, merges=merges, split=split, chat_template=CHAT_TEMPLATE)


def sentencepiece() -> Vocabulary:
    """Bytes, letters, some words, and user-defined runs of spaces and newlines, as in the vocabulary of Gemma."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<end_of_turn>"]
    plain = ["\n", "\n\n", "  ", "   ", "<b>"]
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    words = ["▁t", "he", "▁the", "▁a", "nd", "and", "▁and", "aa", "aaa"]
    letters = ["▁", *string.ascii_lowercase, *string.digits, ".", ","]
    tokens = [*special, *plain, *bytes_, *reversed(words), *letters]
    kinds = [CONTROL] * 5 + [USER_DEFINED] * 5 + [BYTE] * 256 + [NORMAL] * (len(words) + len(letters))
    # The best word has the highest id, so that only the scores tell the order of the merges.
    ranks = [*reversed(range(len(words))), *range(len(words), len(words) + len(letters))]
    scores = [-1000.0] * 10 + [0.0] * 256 + [-float(rank) for rank in ranks]
    return Vocabulary("llama", tokens, kinds, scores=scores, begin=2, end=1, unknown=3, adds_begin=True)


def write(path: Path, vocabulary: Vocabulary, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """Write a random Llama with 8-bit weights; its dequantised weights under the names of transformers."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny Llama")
    writer.add_license("apache-2.0")
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_layer_norm_rms_eps(EPSILON)
    writer.add_rope_freq_base(THETA)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    _write_vocabulary(writer, vocabulary)
    weights = _random_weights(len(vocabulary.tokens), seed)
    dequantised = {}
    for name, (target, heads) in _names().items():
        value = weights[name]
        stored = _permuted(value, heads) if heads else value
        if value.ndim == 1:
            writer.add_tensor(target, stored)
            dequantised[name] = torch.from_numpy(value)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(target, quantize(stored, kind), raw_dtype=kind)
            # Blocks lie along the columns, so that the order of the rows does not matter to the rounding.
            dequantised[name] = torch.from_numpy(dequantize(quantize(value, kind), kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return dequantised


def reference_model(weights: dict[str, torch.Tensor], vocabulary: Vocabulary) -> Any:
    """The same network, built by transformers from the dequantised weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(vocabulary.tokens),
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=EPSILON,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert missing == ["lm_head.weight"]
    assert not unexpected
    return model


def _write_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.split)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges is not None:
        writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(vocabulary.begin)
    writer.add_eos_token_id(vocabulary.end)
    writer.add_unk_token_id(vocabulary.unknown)
    writer.add_pad_token_id(vocabulary.end)
    writer.add_add_bos_token(vocabulary.adds_begin)
    writer.add_add_space_prefix(False)
    if vocabulary.chat_template is not None:
        writer.add_chat_template(vocabulary.chat_template)


def _names() -> dict[str, tuple[str, int]]:
    """Name in transformers -> name in the file, and the number of heads where rows are reordered."""
    names = {"model.embed_tokens.weight": ("token_embd.weight", 0), "model.norm.weight": ("output_norm.weight", 0)}
    for i in range(LAYERS):
        for ours, theirs, heads in (
            ("input_layernorm", "attn_norm", 0),
            ("post_attention_layernorm", "ffn_norm", 0),
            ("self_attn.q_proj", "attn_q", HEADS),
            ("self_attn.k_proj", "attn_k", GROUPS),
            ("self_attn.v_proj", "attn_v", 0),
            ("self_attn.o_proj", "attn_output", 0),
            ("mlp.gate_proj", "ffn_gate", 0),
            ("mlp.up_proj", "ffn_up", 0),
            ("mlp.down_proj", "ffn_down", 0),
        ):
            names[f"model.layers.{i}.{ours}.weight"] = (f"blk.{i}.{theirs}.weight", heads)
    return names


def _random_weights(size: int, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    grouped = HIDDEN // HEADS * GROUPS
    shapes = {
        "embed_tokens": (size, HIDDEN),
        "norm": (HIDDEN,),
        "layernorm": (HIDDEN,),
        "q_proj": (HIDDEN, HIDDEN),
        "k_proj": (grouped, HIDDEN),
        "v_proj": (grouped, HIDDEN),
        "o_proj": (HIDDEN, HIDDEN),
        "gate_proj": (INTERMEDIATE, HIDDEN),
        "up_proj": (INTERMEDIATE, HIDDEN),
        "down_proj": (HIDDEN, INTERMEDIATE),
    }
    return {
        name: random.normal(scale=0.2, size=next(shape for key, shape in shapes.items() if key in name)).astype("f4")
        for name in _names()
    }


def _permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """The order of rows in which llama.cpp keeps the queries and keys of Llama."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
