"""Every argument of transformers' `generate` in a table: honoured, by comparison with its own loop, or refused by name.

The tables are held against the installed transformers: a field or parameter that is new there fails here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from tiny_models import VOCABULARY, byte_level_tokenizer, make_model, random_ids
from torch import Tensor
from transformers import (
    CompileConfig,
    ContinuousBatchingConfig,
    GenerationConfig,
    GenerationMixin,
    SynthIDTextWatermarkingConfig,
    WatermarkingConfig,
)

import decodery
from decodery.engine.cost import CostCurve
from decodery.errors import BadPrompt, BadSetting, DecoderyError
from decodery.language_model import LanguageModel

METHODS = (None, "autoregressive")
PAD = 98
WORDS = 330
"""Tokens of the tokenizer."""


@cache
def model_of(family: str = "llama", vocabulary: int = VOCABULARY) -> Any:
    model = make_model(family, vocab_size=vocabulary)
    model.generation_config.pad_token_id = PAD
    return model


@cache
def assistant() -> Any:
    """A model that agrees with the usual one for a while."""
    model = make_model("llama")
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter.add_(noise, alpha=0.02)
    return model


def prompt(rows: int = 1) -> Tensor:
    return torch.tensor([random_ids(8, 2 + row, PAD) for row in range(rows)])


@cache
def plain(rows: int = 1, vocabulary: int = VOCABULARY) -> Tensor:
    """What greedy decoding puts out."""
    out = model_of(vocabulary=vocabulary).generate(prompt(rows), max_new_tokens=12, do_sample=False)
    return out[:, 8:]


def end() -> int:
    """A token that ends the output early."""
    tokens = plain()[0].tolist()
    return next(token for place, token in enumerate(tokens) if place >= 4 and token not in tokens[:place])


def stop_text() -> str:
    tokens = plain(vocabulary=WORDS)[0].tolist()
    texts = [byte_level_tokenizer().decode([token]) for token in tokens]
    return next(t for place, t in enumerate(texts) if place >= 3 and t.isascii() and t not in "".join(texts[:place]))


def drawn(**arguments: Any) -> Callable[[], dict[str, Any]]:
    """Sampling: the law of the first token is the same, whatever is drawn from it."""
    return lambda: {
        "do_sample": True,
        "max_new_tokens": 1,
        "return_dict_in_generate": True,
        "output_scores": True,
        **arguments,
    }


def given(**arguments: Any) -> Callable[[], dict[str, Any]]:
    return lambda: arguments


def healed() -> dict[str, Any]:
    ids = torch.tensor([byte_level_tokenizer().encode("the la")])
    return {"token_healing": True, "tokenizer": with_pad(), "input_ids": ids}


@cache
def with_pad() -> Any:
    tokenizer = byte_level_tokenizer()
    tokenizer.pad_token = tokenizer.bos_token = "<user>"
    return tokenizer


FIELDS: dict[str, Callable[[], dict[str, Any]]] = {
    "max_length": given(max_length=13, max_new_tokens=None),
    "max_new_tokens": given(max_new_tokens=5),
    "min_length": lambda: {"min_length": 17, "eos_token_id": end()},
    "min_new_tokens": lambda: {"min_new_tokens": 9, "eos_token_id": end()},
    "max_time": given(max_time=0.0),
    "stop_strings": lambda: {"stop_strings": [stop_text()], "tokenizer": byte_level_tokenizer()},
    "do_sample": drawn(),
    "num_return_sequences": drawn(num_return_sequences=3),
    "use_cache": given(use_cache=False, return_dict_in_generate=True),
    "cache_implementation": given(cache_implementation="static", return_dict_in_generate=True),
    "cache_config": given(cache_implementation="dynamic", cache_config={"nbits": 4}, return_dict_in_generate=True),
    "max_cache_len": given(cache_implementation="static", max_cache_len=64, return_dict_in_generate=True),
    "temperature": drawn(temperature=0.6),
    "top_k": drawn(top_k=7),
    "top_p": drawn(top_p=0.6),
    "min_p": drawn(min_p=0.05),
    "top_h": drawn(top_h=0.5),
    "typical_p": drawn(typical_p=0.5),
    "epsilon_cutoff": drawn(epsilon_cutoff=0.01),
    "eta_cutoff": drawn(eta_cutoff=0.05),
    "renormalize_logits": drawn(top_k=7, renormalize_logits=True),
    "repetition_penalty": given(repetition_penalty=1.6),
    "encoder_repetition_penalty": given(encoder_repetition_penalty=0.3),
    "no_repeat_ngram_size": given(no_repeat_ngram_size=2),
    "encoder_no_repeat_ngram_size": given(encoder_no_repeat_ngram_size=1),
    "bad_words_ids": lambda: {"bad_words_ids": [[plain()[0, 2].item()], plain()[0, 4:6].tolist()]},
    "forced_bos_token_id": given(forced_bos_token_id=11, input_ids=torch.tensor([[5]])),
    "forced_eos_token_id": given(forced_eos_token_id=7),
    "remove_invalid_values": given(remove_invalid_values=True),
    "exponential_decay_length_penalty": lambda: {
        "exponential_decay_length_penalty": (2, 1.9),
        "eos_token_id": 17,
        "max_new_tokens": 40,
    },
    "suppress_tokens": lambda: {"suppress_tokens": plain()[0, :3].tolist()},
    "begin_suppress_tokens": lambda: {"begin_suppress_tokens": plain()[0, :1].tolist()},
    "sequence_bias": lambda: {"sequence_bias": {(plain()[0, 1].item(),): -50.0, (11, 12): 40.0, (11,): 9.0}},
    "token_healing": healed,
    "watermarking_config": given(watermarking_config=WatermarkingConfig(bias=9.0, seeding_scheme="selfhash")),
    "output_scores": given(return_dict_in_generate=True, output_scores=True, repetition_penalty=1.6),
    "output_logits": given(return_dict_in_generate=True, output_logits=True, repetition_penalty=1.6),
    "output_attentions": given(return_dict_in_generate=True, output_attentions=True),
    "output_hidden_states": given(return_dict_in_generate=True, output_hidden_states=True),
    "return_dict_in_generate": given(return_dict_in_generate=True),
    "pad_token_id": lambda: {"pad_token_id": 3, "eos_token_id": end(), "input_ids": prompt(2)},
    "bos_token_id": given(bos_token_id=5, input_ids=None),
    "eos_token_id": lambda: {"eos_token_id": [PAD, end()]},
    "prompt_lookup_num_tokens": given(prompt_lookup_num_tokens=3),
    "max_matching_ngram_size": given(prompt_lookup_num_tokens=3, max_matching_ngram_size=4),
    "assistant_early_exit": given(assistant_early_exit=2),
    "num_assistant_tokens": lambda: {"num_assistant_tokens": 3, "assistant_model": assistant()},
    "disable_compile": given(disable_compile=True, cache_implementation="static"),
}
"""Fields of GenerationConfig that are honoured: arguments with which the result is that of transformers' own loop."""

WITHOUT_EFFECT: dict[str, dict[str, Any]] = {
    "early_stopping": {"early_stopping": True},
    "length_penalty": {"length_penalty": 2.0},
    "diversity_penalty": {"diversity_penalty": 1.0},
    "num_beam_groups": {"num_beam_groups": 2},
    "low_memory": {"low_memory": True},
    "decoder_start_token_id": {"decoder_start_token_id": 4},
    "continuous_batching_config": {"continuous_batching_config": ContinuousBatchingConfig()},
    "transformers_version": {"transformers_version": "5.0.0"},
}
"""Fields that say nothing to a decoder without beams, in transformers as here."""

REFUSED: dict[str, dict[str, Any]] = {
    "num_beams": {"num_beams": 2},
    "constraints": {"constraints": [object()], "num_beams": 2},
    "force_words_ids": {"force_words_ids": [[3]]},
    "penalty_alpha": {"penalty_alpha": 0.6},
    "dola_layers": {"dola_layers": "low"},
    "guidance_scale": {"guidance_scale": 1.5},
    "use_mtp": {"use_mtp": True},
    "speculation_type": {"speculation_type": "dflash"},
    "assistant_ensemble_weight": {"assistant_ensemble_weight": 0.5},
    "num_assistant_tokens_schedule": {"num_assistant_tokens_schedule": "heuristic"},
    "assistant_confidence_threshold": {"assistant_confidence_threshold": 0.7},
    "assistant_lookbehind": {"assistant_lookbehind": 5},
    "target_lookbehind": {"target_lookbehind": 5},
    "is_assistant": {"is_assistant": True},
    "compile_config": {"compile_config": CompileConfig()},
    "prefill_chunk_size": {"prefill_chunk_size": 4},
}

PARAMETERS: dict[str, Callable[[], dict[str, Any]]] = {
    "inputs": lambda: {"input_ids": None, "inputs": prompt()},
    "generation_config": lambda: {
        "generation_config": GenerationConfig(max_new_tokens=9, repetition_penalty=1.6, pad_token_id=PAD)
    },
    "logits_processor": lambda: {"logits_processor": [lambda ids, scores: -scores]},
    "stopping_criteria": lambda: {"stopping_criteria": [lambda ids, scores, **_: full(ids, ids.shape[1] >= 13)]},
    "prefix_allowed_tokens_fn": lambda: {
        "prefix_allowed_tokens_fn": lambda row, ids: [row + 1, len(ids)],
        "input_ids": prompt(2),
    },
    "synced_gpus": given(synced_gpus=False),
    "assistant_model": lambda: {"assistant_model": assistant()},
    "negative_prompt_ids": lambda: {"negative_prompt_ids": prompt()},
    "negative_prompt_attention_mask": lambda: {"negative_prompt_attention_mask": torch.ones(1, 8)},
    # what `generate` takes under `kwargs`, for itself and for the model
    "tokenizer": lambda: {"tokenizer": byte_level_tokenizer()},
    "trust_remote_code": given(trust_remote_code=True),
    "input_ids": lambda: {"input_ids": prompt(2)},
    "attention_mask": lambda: {
        "input_ids": prompt(2),
        "attention_mask": torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1], [1] * 8]),
        "eos_token_id": end(),
    },
    "position_ids": given(position_ids=torch.arange(8)[None]),
    "logits_to_keep": given(logits_to_keep=3),
}
"""Parameters of `generate` and of the model's `forward` that are honoured; those that have a test of their own are in
ELSEWHERE."""

ELSEWHERE = {"self", "kwargs", "custom_generate", "streamer", "cache", "past_key_values", "use_cache"}

REFUSED_PARAMETERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "inputs_embeds": ("llama", {"inputs_embeds": torch.zeros(1, 8, 32), "input_ids": None}, "inputs_embeds"),
    "labels": ("llama", {"labels": torch.zeros(1, 8, dtype=torch.long)}, "labels"),
    "token_type_ids": ("gpt2", {"token_type_ids": torch.zeros(1, 8, dtype=torch.long)}, "token_type_ids"),
    "encoder_hidden_states": ("gpt2", {"encoder_hidden_states": torch.zeros(1, 8, 32)}, "encoder_hidden_states"),
    "encoder_attention_mask": ("gpt2", {"encoder_attention_mask": torch.ones(1, 8)}, "encoder_attention_mask"),
    "output_router_logits": ("llama", {"output_router_logits": True}, "output_router_logits"),
    "synced_gpus=True": ("llama", {"synced_gpus": True}, "synced_gpus"),
    "positions elsewhere": ("llama", {"position_ids": torch.arange(8)[None] + 5}, "position_ids"),
    "positions in three parts": ("llama", {"position_ids": torch.zeros(3, 1, 8, dtype=torch.long)}, "position_ids"),
    "a hole in the mask": ("llama", {"attention_mask": torch.tensor([[1, 1, 1, 0, 1, 1, 1, 1]])}, "attention_mask"),
    "a mask of halves": ("llama", {"attention_mask": torch.tensor([[0.5] * 7 + [1.0]])}, "attention_mask"),
    "a longer mask": ("llama", {"attention_mask": torch.ones(1, 12), "position_ids": None}, "attention_mask"),
    "an offloaded cache": ("llama", {"cache_implementation": "offloaded"}, "cache_implementation='offloaded'"),
    "SynthID": (
        "llama",
        {"watermarking_config": SynthIDTextWatermarkingConfig(keys=[1, 2, 3], ngram_len=2), "do_sample": True},
        "watermarking_config",
    ),
    "attentions of windows": (
        "gemma3",
        {"output_attentions": True, "return_dict_in_generate": True},
        "output_attentions",
    ),
    "a lone n-gram size": ("llama", {"max_matching_ngram_size": 3}, "prompt_lookup_num_tokens"),
    "lookup of too much": ("llama", {"prompt_lookup_num_tokens": 1000}, "prompt_lookup_num_tokens"),
    "two ways of drafting": ("llama", {"prompt_lookup_num_tokens": 3, "assistant_early_exit": 1}, "one of them"),
    "more than the context": ("llama", {"max_new_tokens": 600}, "context of 512"),
}


def full(ids: Tensor, value: bool) -> Tensor:
    return torch.full((len(ids),), value)


def generated(method: str | None, arguments: dict[str, Any], family: str = "llama") -> tuple[Any, Any]:
    """What `generate` gives with our loop, and without."""
    vocabulary = WORDS if "stop_strings" in arguments or "token_healing" in arguments else VOCABULARY
    model = model_of(family, vocabulary)
    base: dict[str, Any] = {"input_ids": prompt(), "max_new_tokens": 12, "do_sample": False}
    if "generation_config" in arguments:
        base = {"input_ids": prompt()}
    # Some arguments hold state, and each call needs its own.
    loop = decodery.transformers_generate(method)
    ours = model.generate(custom_generate=loop, **{**base, **arguments})
    return ours, model.generate(**{**base, **arguments})


def same(ours: Any, theirs: Any, sampled: bool = False, seen: Tensor | None = None) -> None:
    """The same result, up to rounding; of samples all but the drawn tokens. seen: which tokens of the prompt are no padding:
    keys and values of padding are never looked at, and depend on how much is read at once."""
    if isinstance(theirs, Tensor):
        assert torch.equal(ours, theirs)
        return
    assert type(ours) is type(theirs)
    assert set(ours) == set(theirs)
    assert sampled or torch.equal(ours.sequences, theirs.sequences)
    assert ours.sequences.shape == theirs.sequences.shape
    for name in ("scores", "logits"):
        if theirs.get(name) is not None:
            assert len(ours[name]) == len(theirs[name])
            for found, expected in zip(ours[name], theirs[name], strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for name in ("attentions", "hidden_states"):
        if theirs.get(name) is not None:
            for found, expected in zip(ours[name], theirs[name], strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    if theirs.cache is not None:
        same_cache(ours.cache, theirs.cache, seen)


def same_cache(ours: Any, theirs: Any, seen: Tensor | None = None) -> None:
    assert type(ours) is type(theirs)
    assert ours.get_seq_length() == theirs.get_seq_length()
    for found, expected in zip(ours.layers, theirs.layers, strict=True):
        for part in ("keys", "values"):
            rows = [getattr(layer, part).transpose(1, 2) for layer in (found, expected)]
            assert rows[0].shape == rows[1].shape
            if seen is not None:
                later = torch.ones(len(seen), rows[0].shape[1] - seen.shape[1], dtype=torch.bool)
                rows = [row[torch.cat([seen, later], dim=1)] for row in rows]
            torch.testing.assert_close(*rows, rtol=1e-4, atol=1e-4)


@pytest.fixture(autouse=True)
def _rows_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """So all drafts are verified, whatever the machine is busy with, and nothing has to be measured."""
    monkeypatch.setattr(LanguageModel, "cost", lambda self, network: CostCurve.flat())


# The tables are complete


def test_every_field_of_generation_config_is_in_a_table() -> None:
    fields = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    tables = [set(FIELDS), set(WITHOUT_EFFECT), set(REFUSED)]
    assert set.union(*tables) == fields
    assert sum(map(len, tables)) == len(fields)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_parameter_of_generate_and_forward_is_in_a_table(family: str) -> None:
    model = model_of(family)
    parameters = {*inspect.signature(GenerationMixin.generate).parameters, *inspect.signature(model.forward).parameters}
    assert parameters <= {*PARAMETERS, *REFUSED_PARAMETERS, *ELSEWHERE, "return_dict", "kwargs"}


def test_arguments_of_the_loops_of_transformers_are_handed_on() -> None:
    """What `generate` puts aside for its own loops is known here by name; a new name there needs a place here."""
    tokenizers = {"tokenizer": 1, "assistant_tokenizer": 2}
    aside = model_of()._extract_generation_mode_kwargs(None, tokenizers, True, 3, 4)
    assert set(aside) == {"tokenizer", "assistant_tokenizer", "assistant_model", "streamer", "synced_gpus"}


# Honoured


@pytest.mark.parametrize("field", FIELDS)
def test_fields_are_honoured(field: str) -> None:
    drafts = {"prompt_lookup_num_tokens", "max_matching_ngram_size", "assistant_early_exit", "num_assistant_tokens"}
    for method in METHODS[:1] if field in drafts else METHODS:
        arguments = FIELDS[field]()
        ours, theirs = generated(method, arguments)
        same(ours, theirs, arguments.get("do_sample", False))


@pytest.mark.parametrize("field", sorted({*FIELDS} - {"max_time", "remove_invalid_values", "disable_compile"}))
def test_each_case_changes_something(field: str) -> None:
    """A field that is not heard of would pass otherwise: without it, transformers gives something else."""
    speed = {"prompt_lookup_num_tokens", "max_matching_ngram_size", "assistant_early_exit", "num_assistant_tokens"}
    caches = {"use_cache", "cache_implementation", "cache_config", "max_cache_len"}
    if field in speed | caches:
        pytest.skip("changes no token")
    arguments = FIELDS[field]()
    vocabulary = WORDS if {"stop_strings", "token_healing"} & set(arguments) else VOCABULARY
    base = {"input_ids": prompt(), "max_new_tokens": 12, "do_sample": False}
    theirs = model_of(vocabulary=vocabulary).generate(**{**base, **arguments})
    without = {key: value for key, value in {**base, **arguments}.items() if key != field}
    if field == "bos_token_id":
        without["bos_token_id"] = 6
    try:
        other = model_of(vocabulary=vocabulary).generate(**without)
        same(theirs, other, sampled=arguments.get("do_sample", False))
    except (AssertionError, AttributeError, TypeError):
        return
    pytest.fail(f"{field} changes nothing here")


@pytest.mark.parametrize("field", WITHOUT_EFFECT)
def test_fields_without_effect_have_none(field: str) -> None:
    same(*generated("token-recycling", WITHOUT_EFFECT[field]))


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_honoured(name: str) -> None:
    for method in METHODS[:1] if name == "assistant_model" else METHODS:
        same(*generated(method, PARAMETERS[name]()))


# Refused


@pytest.mark.parametrize("field", REFUSED)
def test_fields_are_refused_by_name(field: str) -> None:
    with pytest.raises(BadSetting, match="num_beams" if field == "constraints" else field):
        refused("llama", REFUSED[field])


@pytest.mark.parametrize("name", REFUSED_PARAMETERS)
def test_parameters_are_refused_by_name(name: str) -> None:
    family, arguments, message = REFUSED_PARAMETERS[name]
    with pytest.raises((BadSetting, BadPrompt), match=message) as caught:
        refused(family, arguments)
    assert str(caught.value).endswith(".")


def refused(family: str, arguments: dict[str, Any]) -> None:
    base = {"input_ids": prompt(), "max_new_tokens": 4, "do_sample": False}
    loop = decodery.transformers_generate()
    model_of(family).generate(custom_generate=loop, **{**base, **arguments})


def test_the_draft_models_own_configuration_is_heeded_too() -> None:
    drafting = make_model("llama", seed=4)
    drafting.generation_config.num_assistant_tokens_schedule = "heuristic"
    with pytest.raises(DecoderyError, match="num_assistant_tokens_schedule"):
        refused("llama", {"assistant_model": drafting})
