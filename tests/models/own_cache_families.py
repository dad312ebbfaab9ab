"""Tiny random models of classes whose rows cannot be packed, or that are run as if they could not."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

VOCABULARY = 99
_IDS: dict[str, Any] = {"vocab_size": VOCABULARY, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
_USUAL: dict[str, Any] = {
    **_IDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
_MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 16}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_DELTA = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
_LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "linear_num_heads": 4,
    "linear_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
    "num_experts": 4,
    "num_experts_per_token": 2,
    "moe_intermediate_size": 16,
    "mlp_layer_types": ["dense", "sparse"],
}
_CONVOLVED = {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3}
_ZAMBA = {"num_key_value_heads": 4, "num_hidden_layers": 3, "layers_block_type": ["mamba", "mamba", "hybrid"]}
_GPT = {**_IDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}

ROWS, ONE_ROW, REREAD = "own-cache", "own-cache-by-row", "reread"
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    # What stands first is the way in which the cache of transformers 5.24 can be used.
    "Mamba": (ONE_ROW, {**_IDS, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
    "FalconH1": (ROWS, {**_USUAL, "head_dim": 8, **_MAMBA2, "mamba_d_ssm": 64}),
    "Lfm2": (ROWS, {**_USUAL, **_CONVOLVED}),
    "Qwen3Next": (ROWS, {**_USUAL, "head_dim": 8, **_DELTA, **_EXPERTS, "shared_expert_intermediate_size": 16}),
    "Bloom": (ROWS, {**_IDS, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "OpenAIGPT": (REREAD, _GPT),
    "FalconMamba": (ONE_ROW, {**_IDS, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
    "Mamba2": (
        ROWS,
        {**_IDS, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 8, "num_heads": 8, "head_dim": 8,
         "n_groups": 2, "chunk_size": 16},
    ),
    "Rwkv": (
        ROWS,
        {**_IDS, "hidden_size": 32, "num_hidden_layers": 3, "attention_hidden_size": 32, "context_length": 512,
         "rescale_every": 2},
    ),
    "xLSTM": (
        ROWS,
        {**_IDS, "hidden_size": 128, "embedding_dim": 128, "num_hidden_layers": 2, "num_blocks": 2, "num_heads": 2,
         "chunk_size": 16, "mode": "inference"},
    ),
    "Zamba": (ONE_ROW, {**_USUAL, **_ZAMBA, "mamba_d_state": 4, "n_mamba_heads": 2, "use_mamba_kernels": False}),
    "Zamba2": (
        ROWS,
        {**_USUAL, **_ZAMBA, "mamba_d_state": 8, "mamba_headdim": 8, "n_mamba_heads": 8, "mamba_ngroups": 1,
         "chunk_size": 16, "hybrid_layer_ids": [2], "num_mem_blocks": 1, "adapter_rank": 4},
    ),
    "Jamba": (
        ONE_ROW,
        {**_USUAL, "mamba_d_state": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 4,
         "num_experts_per_tok": 2, "use_mamba_kernels": False},
    ),
    "Bamba": (ROWS, {**_USUAL, **_MAMBA2, "attn_layer_indices": [1]}),
    "Lfm2Moe": (ROWS, {**_USUAL, **_CONVOLVED, **_EXPERTS, "num_dense_layers": 1}),
    "RecurrentGemma": (REREAD, {**_USUAL, "lru_width": 32, "attention_window_size": 16, "num_hidden_layers": 3}),
    "GraniteMoeHybrid": (
        ROWS,
        {**_USUAL, **_MAMBA2, "layer_types": ["mamba", "attention"], "num_local_experts": 4,
         "num_experts_per_tok": 2, "shared_intermediate_size": 32},
    ),
    "NemotronH": (
        ROWS,
        {**_USUAL, "hybrid_override_pattern": "M*M-", "num_hidden_layers": 4,
         "mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 8,
         "n_groups": 1, "chunk_size": 16, "head_dim": 8, "use_mamba_kernels": False},
    ),
    "MiniMax": (
        ONE_ROW,
        {**_USUAL, "head_dim": 8, "layer_types": ["linear_attention", "full_attention"], "block_size": 16,
         "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "KimiLinear": (ROWS, {**_USUAL, **_LATENT}),
    "BailingHybrid": (
        ROWS, {**_USUAL, **_LATENT, "layer_group_size": 2, "num_expert_group": 1, "topk_group": 1},
    ),
    "OlmoHybrid": (ROWS, {**_USUAL, **_DELTA}),
    "DeepseekV4": (ROWS, _USUAL),
    "CodeGen": (ROWS, {**_GPT, "rotary_dim": 4, "n_ctx": 512}),
    "GPTJ": (ROWS, {**_GPT, "rotary_dim": 4}),
    "CTRL": (ROWS, {**_GPT, "dff": 48}),
    "Bert": (ROWS, {**_USUAL, "is_decoder": True}),
    "Roberta": (REREAD, {**_USUAL, "is_decoder": True, "pad_token_id": 1}),
    "GPTNeo": (
        ROWS,
        {**_IDS, "hidden_size": 32, "num_layers": 4, "attention_types": [[["global", "local"], 2]], "num_heads": 4,
         "window_size": 16, "max_position_embeddings": 512},
    ),
    "Llama4Text": (
        ROWS,
        {**_USUAL, "head_dim": 8, "attention_chunk_size": 16, "num_local_experts": 2, "intermediate_size_mlp": 48},
    ),
}  # fmt: skip
USUAL = ("Mamba", "FalconH1", "Lfm2", "Qwen3Next", "Bloom", "OpenAIGPT")
"""One of each kind: a state alone, state and attention in one layer, in turns, a matrix state, keys alone, no cache."""


def make(family: str, seed: int = 0, **overrides: Any) -> Any:
    """A fresh random model, whose weights are large enough that what stands far back still moves the scores."""
    import transformers
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    config = getattr(transformers, f"{family}Config")(**{**FAMILIES[family][1], **overrides})
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
        for name, weight in model.named_parameters():
            if weight.dim() >= 2 and "conv" not in name and "A_log" not in name:
                weight.normal_(0, 0.25)
    model.generation_config.eos_token_id = None
    logging.set_verbosity(before)
    return model


@cache
def shared_model(family: str) -> Any:
    """The model of a family that tests share; they must leave it as it is."""
    return make(family)


@cache
def shared_network(family: str) -> Any:
    from decodery.models.own_cache import OwnCacheNetwork

    return OwnCacheNetwork(shared_model(family), family)


def whole(family: str, ids: list[int]) -> torch.Tensor:
    """transformers' own logits [n, vocabulary] of a text, without a cache."""
    model = shared_model(family)
    arguments = {} if family == "OpenAIGPT" else {"use_cache": False}
    with torch.inference_mode():
        return model(torch.tensor([ids]), **arguments).logits[0].float()


def host(family: str) -> Any:
    """A language model over the shared network, with itself of another seed as a draft model named `other`."""
    from decodery.models.own_cache import OwnCacheNetwork
    from decodery.testing.hosts import LetterTokenizer, SmallLanguageModel

    return SmallLanguageModel(
        shared_network(family), LetterTokenizer(VOCABULARY), drafter=_other(family, OwnCacheNetwork)
    )


@cache
def _other(family: str, kind: Any) -> Any:
    # The same model under noise: it agrees now and then, so that drafts are accepted in part.
    model = make(family)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for weight in model.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=generator))
    return kind(model, "other")


def ask(sequence: Any, ids: Any, **arguments: Any) -> torch.Tensor:
    """The logits of one forward of `ids` after what is in `sequence`."""
    from decodery.models.forward import Forward

    [scores] = sequence.owner.run([Forward(sequence, ids, **arguments)])
    return scores.logits
