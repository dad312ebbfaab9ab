"""Tiny random checkpoints of real families, and real byte-level tokenizers: made in the test, in float32, on the CPU.

The weights are larger than a fresh model's, so that attention is sharp and logits spread over several units: a wrong mask
or position then moves them by far more than rounding does.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

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
WINDOW = 8
MIXED = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", {}),
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

    name, own = FAMILIES[family]
    values = {**SHARED, **own, **overrides}
    if family == "gpt2":
        values = {key: value for key, value in values.items() if key not in _NOT_IN_GPT2}
    config = getattr(transformers, name)(**values)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
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
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")  # noqa: S106
