"""Tiny random checkpoints of real families, and real byte-level tokenizers: made in the test, in float32, on the CPU.

The weights are larger than a fresh model's, so that attention is sharp and logits spread over several units: a wrong mask
or position then moves them by far more than rounding does.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

VOCABULARY = 99
SHARED: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "attn_implementation": "eager",
}
WINDOW = 13
"""Longer than the few tokens on which a fast path is compared with transformers, shorter than most prompts here."""
MIXED = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", {}),
    "qwen2-sliding": (
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": MIXED, "max_window_layers": 0},
    ),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "gemma3": (
        "Gemma3TextConfig",
        {"head_dim": 16, "sliding_window": WINDOW, "layer_types": MIXED, "query_pre_attn_scalar": 24},
    ),
    "gemma2": (
        "Gemma2Config",
        {
            "head_dim": 16,
            "sliding_window": WINDOW,
            "layer_types": MIXED,
            "query_pre_attn_scalar": 12,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 5.0,
        },
    ),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 512, "n_inner": 48}),
    "mistral": ("MistralConfig", {"sliding_window": WINDOW}),
    "phi3": ("Phi3Config", {"sliding_window": None}),
    "olmo2": ("Olmo2Config", {}),
}
LOOKALIKES: dict[str, tuple[str, dict[str, Any]]] = {
    "granite": (
        "GraniteConfig",
        {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.1},
    ),
    "helium": ("HeliumConfig", {"head_dim": 8}),
    "smollm3": ("SmolLM3Config", {"no_rope_layers": [1, 0, 1, 0]}),
}
"""Families with the usual modules that compute something else with them."""
_NOT_IN_GPT2 = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
)


def make_model(family: str, seed: int = 0, **overrides: Any) -> Any:
    """A fresh random model with a language-model head."""
    import transformers

    name, own = {**FAMILIES, **LOOKALIKES}[family]
    values = {**SHARED, **own, **overrides}
    if family == "gpt2":
        values = {key: value for key, value in values.items() if key not in _NOT_IN_GPT2}
    config = getattr(transformers, name)(**values)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
        for parameter_name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0.0, 0.25)
            elif "norm" not in parameter_name and "ln" not in parameter_name:
                parameter.normal_(0.0, 0.1)
    model.generation_config.eos_token_id = values["eos_token_id"]
    return model


@cache
def shared_model(family: str) -> Any:
    """The model of a family that tests share; they must leave it as it is."""
    return make_model(family)


@cache
def shared_network(family: str) -> Any:
    from decodery.models.network import TransformersNetwork

    return TransformersNetwork(shared_model(family), family)


def reference_logits(model: Any, ids: Sequence[int] | Tensor, **arguments: Any) -> Tensor:
    """transformers' own logits [n, vocabulary] of one sequence, under the model's own attention."""
    rows = ids if isinstance(ids, Tensor) else torch.tensor(list(ids))
    with torch.inference_mode():
        return model(rows[None], use_cache=False, **arguments).logits[0].float()


def random_ids(count: int, seed: int = 0, vocabulary: int = VOCABULARY) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocabulary, (count,), generator=generator).tolist()


@cache
def byte_level_tokenizer() -> Any:
    """A real byte-level BPE tokenizer (GPT-2's kind) with some merges, learned here."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<end>", "<user>"],
        show_progress=False,
    )
    text = "the quick brown fox jumps over the lazy dog; größer, 東京 and 🙂🙃 stop STOP the end of the story. "
    tokenizer.train_from_iterator([text] * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


def network_of(family: str, path: str) -> Any:
    """The shared network of a family: path "eager" runs transformers' layers, "blocks" ours; skips where there are none.

    path "either" is the fastest there is.
    """
    if path == "eager":
        return shared_network(family)
    network = _fast_network(family)
    if path == "blocks" and network.path == "eager":
        pytest.skip(f"{family} has no blocks of ours")
    return network


@cache
def _fast_network(family: str) -> Any:
    from decodery.models.paths import network_for

    return network_for(shared_model(family), family)


def masked_reference(model: Any, ids: Sequence[int], visible: Tensor, positions: Sequence[int] | None = None) -> Tensor:
    """transformers' own logits under an explicit mask: visible [n, n] bool, row i sees column j.

    Where a family has a sliding window, it is applied here by the distance of positions.
    """
    places = torch.tensor(list(range(len(ids)) if positions is None else positions))
    near = places[:, None] - places[None, :] < WINDOW

    def additive(mask: Tensor) -> Tensor:
        return torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)[None, None]

    kinds = getattr(model.config, "layer_types", None)
    mask: Any = additive(visible)
    if kinds is not None and "sliding_attention" in kinds:
        mask = {"full_attention": additive(visible), "sliding_attention": additive(visible & near)}
    elif getattr(model.config, "sliding_window", None):
        mask = additive(visible & near)
    return reference_logits(model, ids, attention_mask=mask, position_ids=places[None])


def worst(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference."""
    assert found.shape == expected.shape
    assert found.isfinite().all()
    return float((found - expected).abs().max())


@cache
def sentence_piece_tokenizer() -> Any:
    """A tokenizer of Llama's and Gemma's kind: spaces as signs within tokens, unknown characters as tokens of bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    words = ["<end>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz.,", "th", "▁th"]
    model = models.BPE({word: place for place, word in enumerate(words)}, [("t", "h"), ("▁", "th")], byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<end>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
