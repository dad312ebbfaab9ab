"""Masked-diffusion models: what a decoder must know of one, and how checkpoints of the published ones are read.

A masked-diffusion model is a bidirectional transformer that predicts what stands behind a mask token. Ours are Llama
checkpoints with an entry `masked_diffusion` in `config.json`. LLaDA (Nie et al., arXiv 2502.09992) and Dream (Ye et al.,
arXiv 2508.15487) have model classes of their own, but the arithmetic of Llama and of Qwen2 with full attention: their
weights are renamed and their configurations translated at load.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decodery.errors import ModelNotReadable

if TYPE_CHECKING:
    import torch

ENTRY = "masked_diffusion"
"""Where `config.json` of one of our checkpoints describes its mask."""
ANY_ORDER_ENTRY = "any_order"
"""Where `config.json` of an any-order model of ours describes its mask, in the same words."""
RAINBOW_ENTRY = "rainbow_padding"
"""Where `config.json` of a model trained with rainbow padding names its pads: {"pad_token_ids": in their order}."""
CANVAS = 256
"""Tokens of a canvas where the checkpoint does not say: the default of LLaDA's sampler."""
DREAM_MASK, DREAM_END = 151666, 151643
LLADA_MASK, LLADA_END = 126336, 126081
LLADA_TURN_END = "<|eot_id|>"
"""The further end token of LLaDA's instruction-tuned model; its configuration does not name it."""


@dataclass(frozen=True, slots=True)
class MaskedDiffusion:
    """What the decoders of a masked-diffusion model must know, or of an any-order model, which has a mask as well.

    mask_token_id: the token that hides a position. shift: raw scores of row i - 1 predict position i (Dream, DiffuLLaMA);
    otherwise those of row i do. end_token_ids: tokens that end the text. pad_token_ids: tokens that never stand in a text.
    canvas: how many tokens a canvas has where nobody says otherwise. filling_token_ids: pads that the model writes behind an
    end token, in this order (rainbow padding): predicted like others, but never text. any_order: a row of a mask, a query,
    scores its position given the rows that it is let see. Rows of given tokens see each other, those of others what was decided
    before them: masks of decoders must say so.
    """

    mask_token_id: int
    shift: bool = False
    end_token_ids: tuple[int, ...] = ()
    pad_token_ids: tuple[int, ...] = ()
    canvas: int = CANVAS
    filling_token_ids: tuple[int, ...] = ()
    any_order: bool = False

    @property
    def reserved(self) -> tuple[int, ...]:
        """Tokens that no law may give: the mask, and the pads that are not end tokens as well."""
        return tuple(sorted({self.mask_token_id, *self.pad_token_ids} - set(self.end_token_ids)))

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> MaskedDiffusion | None:
        """The description in a checkpoint's configuration; None where it is that of a causal model.

        Raises ModelNotReadable where the entry is malformed.
        """
        kind, filling = config.get("model_type"), _filling(config)
        if kind == "llada":
            ends = _ids(config.get("eos_token_id", LLADA_END))
            mask = int(config.get("mask_token_id") or LLADA_MASK)
            return cls(mask, False, ends, filling_token_ids=filling)
        if kind == "Dream":
            ends = _ids(config.get("eos_token_id") or DREAM_END)
            pads = _ids(config.get("pad_token_id"))
            return cls(int(config.get("mask_token_id") or DREAM_MASK), True, ends, pads, filling_token_ids=filling)
        any_order = ANY_ORDER_ENTRY in config
        name = ANY_ORDER_ENTRY if any_order else ENTRY
        entry = config.get(name)
        if entry is None:
            return None
        try:
            described = cls(
                int(entry["mask_token_id"]),
                bool(entry.get("shift", False)),
                tuple(int(token) for token in entry.get("end_token_ids", ())),
                tuple(int(token) for token in entry.get("pad_token_ids", ())),
                int(entry.get("canvas", CANVAS)),
                filling,
                any_order,
            )
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ModelNotReadable(f"the entry {name} of config.json cannot be read: {error!r}.") from error
        size = int(config.get("vocab_size", 0))
        named = (described.mask_token_id, *described.end_token_ids, *described.pad_token_ids, *filling)
        if described.canvas < 1 or not all(0 <= token < size for token in named):
            raise ModelNotReadable(f"the entry {name} of config.json names tokens outside 0..{size - 1} or no canvas.")
        if any_order and described.shift:
            raise ModelNotReadable(
                f"the entry {name} of config.json names a shift, but a query scores its own position."
            )
        if not {*described.reserved, *described.end_token_ids}.isdisjoint(filling):
            raise ModelNotReadable(f"{RAINBOW_ENTRY} of config.json names the mask, an end token or a reserved pad.")
        return described


def _filling(config: Mapping[str, Any]) -> tuple[int, ...]:
    """The pads of a model trained with rainbow padding, in their order; none of others."""
    try:
        return _ids(config.get(RAINBOW_ENTRY, {}).get("pad_token_ids"))
    except (TypeError, ValueError, AttributeError) as error:
        raise ModelNotReadable(f"the entry {RAINBOW_ENTRY} of config.json cannot be read: {error!r}.") from error


def _ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(int(token) for token in value) if isinstance(value, list | tuple) else (int(value),)


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a checkpoint."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config


def is_foreign(config: Mapping[str, Any]) -> bool:
    """Whether the checkpoint is of a class that has to be translated."""
    return config.get("model_type") in ("llada", "Dream")


LLADA_NAMES = {
    "attn_norm": "input_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_norm": "post_attention_layernorm",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
}
"""Parts of a LLaDA block and of a Llama layer."""
LLADA_TOP = {
    "wte.weight": "model.embed_tokens.weight",
    "ln_f.weight": "model.norm.weight",
    "ff_out.weight": "lm_head.weight",
}


def llama_name(name: str) -> str:
    """The Llama name of a LLaDA weight. Raises ModelNotReadable for one that Llama does not have."""
    inner = name.rpartition("transformer.")[2]  # wrappers put more before it
    if inner in LLADA_TOP:
        return LLADA_TOP[inner]
    parts = inner.split(".")
    if len(parts) == 4 and parts[0] == "blocks" and parts[2] in LLADA_NAMES:
        return f"model.layers.{parts[1]}.{LLADA_NAMES[parts[2]]}.{parts[3]}"
    raise ModelNotReadable(f"the weight {name} has no counterpart in Llama, so this is no LLaDA checkpoint we know.")


def llama_config(config: Mapping[str, Any]) -> Any:
    """The Llama configuration that computes what a LLaDA configuration describes."""
    from transformers import LlamaConfig

    other = {"layer_norm_type": ("rms",), "activation_type": ("silu", "swiglu"), "block_type": ("llama",)}
    for key, known in other.items():
        if config.get(key, known[0]) not in known:
            raise ModelNotReadable(
                f"a LLaDA checkpoint with {key} {config[key]!r} is not supported, only {known[0]!r}."
            )
    heads = int(config["n_heads"])
    bias = bool(config.get("include_bias", False) or config.get("include_qkv_bias", False))
    return LlamaConfig(
        vocab_size=int(config.get("embedding_size") or config["vocab_size"]),
        hidden_size=int(config["d_model"]),
        intermediate_size=int(config["mlp_hidden_size"]),
        num_hidden_layers=int(config["n_layers"]),
        num_attention_heads=heads,
        num_key_value_heads=int(config.get("n_kv_heads") or heads),
        max_position_embeddings=int(config["max_sequence_length"]),
        rms_norm_eps=float(config.get("rms_norm_eps", 1e-5)),
        rope_parameters={"rope_type": "default", "rope_theta": float(config.get("rope_theta", 500_000.0))},
        tie_word_embeddings=bool(config.get("weight_tying", False)),
        attention_bias=bias,
        bos_token_id=None,
        eos_token_id=config.get("eos_token_id"),
        pad_token_id=None,
    )


def qwen2_config(config: Mapping[str, Any]) -> Any:
    """The Qwen2 configuration that computes what a Dream configuration describes."""
    from transformers import Qwen2Config

    kept = {
        key: config[key]
        for key in (
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "hidden_act",
        )
        if key in config
    }  # fmt: skip
    theta = float(config.get("rope_theta", 1_000_000.0))
    return Qwen2Config(**kept, rope_parameters={"rope_type": "default", "rope_theta": theta}, use_sliding_window=False)


def load_foreign(folder: Path, config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """The Llama or Qwen2 network of a LLaDA or Dream checkpoint, its weights under their names there.

    Raises ModelNotReadable where weights are missing, superfluous or of another shape.
    """
    from transformers import LlamaForCausalLM, Qwen2ForCausalLM

    from decodery.models.quiet import quiet
    from decodery.models.reading import filled
    from decodery.models.stored_weights import StoredWeight, put, stored_weights

    llada = config["model_type"] == "llada"
    try:
        translated = llama_config(config) if llada else qwen2_config(config)
    except KeyError as error:
        raise ModelNotReadable(f"config.json in {folder} lacks {error}.") from error
    stored: dict[str, StoredWeight] = {}
    put(
        stored,
        ((llama_name(name) if llada else name, weight) for name, weight in stored_weights(folder, dtype).items()),
    )
    with quiet():
        return filled(LlamaForCausalLM if llada else Qwen2ForCausalLM, translated, stored, dtype, folder)


def turn_end(tokenizer: Any) -> int | None:
    """LLaDA's further end token, where the tokenizer has it."""
    lookup = getattr(tokenizer, "get_vocab", None)
    found: int | None = lookup().get(LLADA_TURN_END) if lookup is not None else None
    return found
