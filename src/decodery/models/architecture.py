"""Which network a checkpoint's `config.json` describes, where it is one that can be decoded with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from decodery.errors import ModelNotReadable


def causal_class(folder: Path, config: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """The transformers class of a folder's causal language model, its configuration, and that of the multimodal model of which
    it is a part, or None.

    config: the folder's `config.json`. Raises ModelNotReadable, saying what it is instead, where it is no causal language
    model, or one that only code of its own can run.
    """
    import transformers
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING

    kind = config.get("model_type")
    named = [name for name in config.get("architectures") or () if isinstance(name, str)]
    what = f"{named[0]} ({kind})" if named else str(kind)
    if kind is None:
        raise ModelNotReadable(
            f"{folder / 'config.json'} names no model_type, so nobody can tell what its weights mean."
        )
    code = (
        (config.get("auto_map") or {}).get("AutoModelForCausalLM", "")
        if isinstance(config.get("auto_map"), dict)
        else ""
    )
    native = named and hasattr(transformers, named[0])
    if kind not in CONFIG_MAPPING or (code and named and not native):
        if config.get("auto_map"):
            raise ModelNotReadable(
                f"{folder} is {what}, which only code that comes with it can run ({code or 'auto_map'}), and such code "
                "is never run; load it with transformers' trust_remote_code yourself and give it to decodery.wrap."
            )
        raise ModelNotReadable(
            f"{folder} is {what}, which the installed transformers {transformers.__version__} does not know; "
            "a newer one may."
        )
    settled = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if settled.is_encoder_decoder:
        raise ModelNotReadable(f"{folder} is {what}, an encoder with a decoder; decodery runs models that only decode.")
    text = settled.get_text_config(decoder=True)
    whole, settled = settled, text if type(text) in MODEL_FOR_CAUSAL_LM_MAPPING else settled
    if settled is not whole:
        settled.tie_word_embeddings = getattr(whole, "tie_word_embeddings", settled.tie_word_embeddings)
        if getattr(whole, "quantization_config", None) is not None:
            settled.quantization_config = whole.quantization_config
    if type(settled) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelNotReadable(f"{folder} is {what}, no causal language model that transformers has a class for.")
    encoder = type(settled) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(settled, "is_decoder", False)
    encoder = encoder or getattr(settled, "use_bidirectional_attention", None) in (True, "all")
    causal = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    other = native and not _reads_as_causal(named[0], causal) and settled is whole
    if encoder or other:
        raise ModelNotReadable(
            f"{folder} is {what}, no causal language model; its scores are not those of a next token."
        )
    found = MODEL_FOR_CAUSAL_LM_MAPPING[type(settled)]
    choice = found if isinstance(found, tuple) else (found,)
    chosen = next((c for c in choice if getattr(c, "__name__", "") in named), choice[0])
    return chosen, settled, None if settled is whole else whole


def _reads_as_causal(name: str, causal: set[str]) -> bool:
    """Whether a class has a next token's scores, or is the part without the head, whose weights may have it all."""
    return name in causal or name.endswith(("ForCausalLM", "LMHeadModel", "Model"))
