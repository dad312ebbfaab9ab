"""What `generate` of transformers was asked for: which of it this loop does not do, and which method it means."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Mapping
from typing import Any

from torch import Tensor

from decodery.engine.declared import build
from decodery.engine.method import Method
from decodery.engine.needs import DEFAULTS
from decodery.engine.registry import find
from decodery.engine.registry import method as as_method
from decodery.errors import BadParameter, BadPrompt, BadSetting, ModelNotReadable
from decodery.models.kinds import Kind

ASSISTANT = "assistant_model"
"""The argument of `generate`, and the name under which methods find the network that was given as it."""
CACHE_NAMES = ("cache", "past_key_values")
"""How the versions of transformers call the cache among the arguments of a model."""

_OFF = (None, False)
_REFUSED: dict[str, tuple[Container[Any], str]] = {
    "num_beams": ((None, 1), "decodery decodes without beams here; set num_beams=1"),
    "constraints": ((None,), "decodery decodes without beams here, and so without constraints on them"),
    "force_words_ids": ((None,), "decodery decodes without beams here, and so without constraints on them"),
    "penalty_alpha": (
        (None, 0.0),
        'contrastive search is a method here; make the loop by transformers_generate("contrastive-search(alpha=0.6, k=4)")',
    ),
    "dola_layers": (
        (None,),
        'it is a target here: decodery.wrap(model, tokenizer).generate(prompt, target="dola(layers=high)")',
    ),
    "guidance_scale": ((None, 1.0), "its second pass keeps state from step to step, which no draft can keep"),
    "use_mtp": (_OFF, "decodery does not draft with a model's heads for later tokens"),
    "speculation_type": ((None,), "decodery drafts by methods of its own; give one to transformers_generate"),
    "assistant_ensemble_weight": ((None,), "it changes the law, and drafts do not change it here"),
    "num_assistant_tokens_schedule": (
        (None, "constant"),
        "each draft has num_assistant_tokens here, so that samples do not depend on what came before",
    ),
    "assistant_confidence_threshold": ((None, 0.0, 0.4), "each draft has num_assistant_tokens here"),
    "assistant_lookbehind": ((None, 10), "decodery finds its place in the other tokenizer's text without it"),
    "target_lookbehind": ((None, 10), "decodery finds its place in the other tokenizer's text without it"),
    "is_assistant": (_OFF, "decodery runs draft models itself, and none that drafts for others"),
    "compile_config": ((None,), "decodery compiles nothing"),
    "prefill_chunk_size": ((None,), "decodery reads a prompt in one pass here"),
}
"""Fields of GenerationConfig: the values that ask for nothing, and why the others are not for this loop."""

_STATEFUL = {
    "SynthIDTextWatermarkLogitsProcessor": "watermarking_config",
    "UnbatchedClassifierFreeGuidanceLogitsProcessor": "guidance_scale",
    "ClassifierFreeGuidanceLogitsProcessor": "logits_processor",
    "DiaClassifierFreeGuidanceLogitsProcessor": "logits_processor",
    "DiaEOSDelayPatternLogitsProcessor": "logits_processor",
    "WhisperNoSpeechDetection": "logits_processor",
}
"""Processors of transformers that expect to be called once per step and for the whole batch, which no draft can keep; and
the arguments that bring them."""

_KNOWN = {
    "attention_mask",
    "position_ids",
    "cache_position",
    "use_cache",
    "logits_to_keep",
    "output_attentions",
    "output_hidden_states",
    *CACHE_NAMES,
}
"""What `generate` prepares for the model and this loop heeds."""


def refuse(
    model: Any,
    input_ids: Tensor,
    processors: Any,
    config: Any,
    model_kwargs: Mapping[str, Any],
    assistant: Any = None,
    synced_gpus: bool = False,
) -> None:
    """Raise ModelNotReadable, BadSetting or BadPrompt for what `generate` offers and this loop does not.

    input_ids: [rows, n]. config: the GenerationConfig that `generate` prepared. model_kwargs: what it prepared for the model.
    assistant: the model that is to draft, whose own GenerationConfig says how, or None.
    """
    if model.config.is_encoder_decoder:
        raise ModelNotReadable(f"{type(model).__name__} has an encoder, and decodery decodes decoders alone.")
    for name, (neutral, reason) in _REFUSED.items():
        for source in (config, getattr(assistant, "generation_config", None) if "assistant_" in name else None):
            if getattr(source, name, None) not in neutral:
                raise BadSetting(f"{name} is not for this loop: {reason}.")
    implementation = getattr(config, "cache_implementation", None) or ""
    if "offloaded" in implementation or "quantized" in implementation:
        raise BadSetting(
            f"cache_implementation={implementation!r} is not for this loop: decodery keeps keys and values where the model "
            "is, in its dtype."
        )
    if synced_gpus:
        raise BadSetting("synced_gpus is not for this loop: each process makes as many passes as its own text needs.")
    for processor in processors:
        argument = _STATEFUL.get(type(processor).__name__)
        if argument is not None:
            raise BadSetting(
                f"{argument} is not for this loop: {type(processor).__name__} keeps state from step to step, which no "
                "draft can keep."
            )
    if input_ids.shape[1] == 0 or model_kwargs.get("inputs_embeds") is not None:
        raise BadPrompt("decodery needs the prompt as input_ids with at least one token each, not as inputs_embeds.")
    for name, value in model_kwargs.items():
        nothing = value is None or (isinstance(value, Mapping) and not value)
        if name not in _KNOWN and not nothing:
            raise BadSetting(f"{name} is not for this loop: decodery gives the model token ids and their places alone.")
    _check_places(input_ids, config, model_kwargs)


def _check_places(input_ids: Tensor, config: Any, model_kwargs: Mapping[str, Any]) -> None:
    """Raise BadPrompt or BadSetting where a mask or positions are not those of prompts padded on the left."""
    mask, length = model_kwargs.get("attention_mask"), input_ids.shape[1]
    # `generate` drops a mask of ones, and notes its length where a cache goes with it.
    covered = getattr(config, "_mask_length", length) if mask is None else mask.shape[1]
    if covered != length:
        raise BadSetting(
            f"attention_mask covers {covered} tokens and input_ids has {length}; decodery needs the text whose beginning a "
            "cache holds, so give input_ids from its first token on."
        )
    if mask is not None and not bool(
        (mask[:, -1] == 1).all() and (mask == mask.bool()).all() and (mask[:, 1:] >= mask[:, :-1]).all()
    ):
        raise BadPrompt(
            "decodery needs prompts that are padded on the left, each with at least one token: an attention_mask of zeros, "
            "then ones."
        )
    positions = model_kwargs.get("position_ids")
    if positions is not None:
        seen, places = seen_and_places(input_ids, mask)
        if positions.shape[-2:] not in (places.shape, places[:1].shape) or positions.dim() != 2:
            raise BadSetting(f"position_ids of shape {list(positions.shape)} are not for this loop; leave them out.")
        if not bool(((positions == places) | ~seen).all()):
            raise BadSetting(
                "position_ids other than 0, 1, 2, … from the first token that is no padding are not for this loop; leave "
                "them out."
            )


def seen_and_places(input_ids: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Which tokens are no padding [rows, n] bool, and each token's position [rows, n] int64; 0 for padding."""
    seen = (input_ids == input_ids) if mask is None else mask.bool()
    return seen, (seen.long().cumsum(1) - 1).clamp(min=0)


def meant_method(given: Method | None, config: Any, assistant: Any, same_tokens: bool = True) -> Method:
    """The method that the arguments of `generate` mean, or the one that the loop was made for.

    assistant: the model that is to draft, or None. same_tokens: its tokens are the target's, for it came without a tokenizer
    of its own. Raises BadSetting where they contradict each other, or where a number is out of the method's range.
    """
    lookup, ngram = config.prompt_lookup_num_tokens, config.max_matching_ngram_size
    early = getattr(config, "assistant_early_exit", None)
    if ngram is not None and lookup is None:
        raise BadSetting("max_matching_ngram_size goes with prompt_lookup_num_tokens; give both or none.")
    meant: dict[str, tuple[str, dict[str, Any]]] = {}
    if assistant is not None:
        meant[ASSISTANT] = "draft-model", {"draft": ASSISTANT, **_drafted(config, assistant)}
        if same_tokens and _says_whose_tokens(given or find("draft-model")):
            meant[ASSISTANT][1]["vocabulary"] = "same"
    if early is not None:
        meant["assistant_early_exit"] = "draft-model", {"layers": early, **_drafted(config, assistant)}
    if lookup is not None:
        meant["prompt_lookup_num_tokens"] = "prompt-lookup", {"length": lookup, "max_ngram": ngram or 2}
    if not meant:
        return as_method(DEFAULTS[Kind.NEXT_TOKEN]) if given is None else given
    if len(meant) > 1:
        raise BadSetting(f"{' and '.join(meant)} each mean a way of drafting; give one of them.")
    (argument, (name, values)), *_ = meant.items()
    try:
        if given is None:
            return build(find(name), values)
        return _with(given, name, values)
    except BadParameter as error:
        raise BadSetting(f"{argument}: {error}") from None
    except _Contradiction:
        raise BadSetting(
            f"{argument} means the method {name}, and this loop was made for {given.spec() if given else name}; make it by "
            f"transformers_generate(), or leave {argument} out."
        ) from None


class _Contradiction(Exception):
    """A method that was named has no place for what the arguments of `generate` say."""


def _with(given: Method, name: str, values: Mapping[str, Any]) -> Method:
    """The named method with what the arguments say: the same method, or another that drafts with the same model."""
    known = {item.name: item.default for item in given.parameters()}
    if given.name != name:
        values = {key: value for key, value in values.items() if key in ("draft", "vocabulary")}
    if not values or any(key not in known or getattr(given, key) != known[key] for key in values):
        raise _Contradiction
    return dataclasses.replace(given, **values)


def _says_whose_tokens(method: Method | type[Method]) -> bool:
    """Whether a method still can be told that a draft model has the target's tokens; one without the parameter takes it for
    granted."""
    return any(p.name == "vocabulary" and getattr(method, p.name) == p.default for p in method.parameters())


USUAL_ASSISTANT_TOKENS = 20
"""transformers' default, with which it stops a draft early where the draft model is unsure. Nobody asked for it: the method's
own default holds."""


def _drafted(config: Any, assistant: Any) -> dict[str, int]:
    for source in (config, getattr(assistant, "generation_config", None)):
        count = getattr(source, "num_assistant_tokens", None)
        if count not in (None, USUAL_ASSISTANT_TOKENS):
            return {"length": int(count)}
    return {}
