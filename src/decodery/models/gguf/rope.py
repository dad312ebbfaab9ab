"""What a GGUF file says about rotary angles, as transformers' `rope_parameters`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from decodery.models.gguf.metadata import Metadata

_YARN = ("ext_factor", "attn_factor", "beta_fast", "beta_slow")
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_LIKE_LLAMA3 = 1e-5  # relative; the file's factors are float32


def rope(facts: Metadata, width: int, partial: bool = False) -> dict[str, Any]:
    """The rope parameters of a network whose heads are `width` wide.

    partial: whether the network can turn only the first part of each head. Raises ModelNotReadable for what transformers has no
    words for.
    """
    base = float(facts.take("rope.freq_base", 10000.0))
    turned = facts.take("rope.dimension_count", width)
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": base}
    if turned != width:
        if not partial or turned > width:
            raise facts.refusal("rope.dimension_count", turned, f"the network turns whole heads, {width} wide")
        parameters["partial_rotary_factor"] = turned / width
    facts.expect("rope.dimension_count_swa", (turned,), "layers with a window turn another part of each head")
    facts.expect("rope.scaling.alpha", (0.0,), "a scaling of the base by its square, of which no network here knows")
    parameters |= _scaling(facts)
    factors = facts.numbers("rope_freqs")
    if factors is not None:
        if parameters["rope_type"] != "default":
            raise facts.refusal(
                "rope.scaling.type", parameters["rope_type"], "beside rope_freqs, one of the two is wrong"
            )
        parameters |= _by_factors(facts, factors, base, turned)
    return parameters


def _scaling(facts: Metadata) -> dict[str, Any]:
    factor = float(facts.take("rope.scaling.factor", 0.0) or facts.take("rope.scale_linear", 0.0) or 1.0)
    kind = facts.take("rope.scaling.type", "linear")
    original = facts.take("rope.scaling.original_context_length") or facts.need("context_length")
    attention = float(facts.take("rope.scaling.attn_factor", 1.0))
    long, short = facts.numbers("rope_factors_long"), facts.numbers("rope_factors_short")
    if kind == "longrope" or long or short:
        if long is None or short is None:
            raise facts.refusal(
                "rope.scaling.type", kind, "the tensors rope_factors_long and rope_factors_short are missing"
            )
        return {
            "rope_type": "longrope",
            "long_factor": long,
            "short_factor": short,
            "original_max_position_embeddings": original,
            "attention_factor": attention,
        }
    if kind == "yarn":
        if factor == 1.0:
            return {}
        return _yarn(facts, factor, original, attention)
    if kind not in ("none", "linear"):
        raise facts.refusal("rope.scaling.type", kind, "a scaling of rotary angles that is not known here")
    if attention != 1.0:
        raise facts.refusal(
            "rope.scaling.attn_factor", attention, f"no network here scales attention with {kind} scaling"
        )
    return {} if kind == "none" or factor == 1.0 else {"rope_type": "linear", "factor": factor}


def _yarn(facts: Metadata, factor: float, original: int, attention: float) -> dict[str, Any]:
    extrapolation, whole, fast, slow = (facts.take(f"rope.scaling.yarn_{name}") for name in _YARN)
    if extrapolation not in (None, 1.0):
        raise facts.refusal("rope.scaling.yarn_ext_factor", extrapolation, "a YaRN that is applied in part")
    if whole is None:
        whole = (
            attention
            * _magnitude(factor, 1.0)
            / _magnitude(factor, facts.take("rope.scaling.yarn_log_multiplier", 0.0))
        )
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
        "attention_factor": float(whole),
        "beta_fast": float(fast or 32.0),
        "beta_slow": float(slow or 1.0),
    }


def _magnitude(factor: float, multiplier: float) -> float:
    """By how much YaRN scales queries and keys together."""
    return 0.1 * multiplier * math.log(factor) + 1.0


def _by_factors(facts: Metadata, factors: Sequence[float], base: float, turned: int) -> dict[str, Any]:
    """Angles divided by given factors: Llama 3's law where they follow it, else a LongRoPE that is the same at all lengths."""
    if len(factors) != turned // 2:
        raise facts.refusal(
            "rope.dimension_count", turned, f"the tensor rope_freqs has {len(factors)} factors for half as many"
        )
    if all(factor == 1.0 for factor in factors):
        return {}
    law = {"rope_type": "llama3", "factor": round(max(factors), 6), **_LLAMA3}
    if all(
        math.isclose(factor, _llama3(law, base ** (2 * i / turned)), rel_tol=_LIKE_LLAMA3)
        for i, factor in enumerate(factors)
    ):
        return law
    return {
        "rope_type": "longrope",
        "long_factor": list(factors),
        "short_factor": list(factors),
        "original_max_position_embeddings": facts.need("context_length"),
        "attention_factor": 1.0,
    }


def _llama3(law: dict[str, Any], wavelength: float) -> float:
    """By how much Llama 3 divides the angle of a wavelength (in radians per turn of one, 1 for the fastest)."""
    turns = law["original_max_position_embeddings"] / (2 * math.pi * wavelength)
    low, high = law["low_freq_factor"], law["high_freq_factor"]
    share = min(1.0, max(0.0, (turns - low) / (high - low)))
    return float(1 / ((1 - share) / law["factor"] + share))
