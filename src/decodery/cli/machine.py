"""What a measurement ran on, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from decodery.language_model import LanguageModel


def describe(lm: LanguageModel) -> dict[str, Any]:
    """Model, number format and hardware of a language model as it is loaded."""
    from decodery.evaluation.provenance import provenance

    told = provenance(lm)
    return {name: told[name] for name in ("model", "dtype", "device", "hardware", "threads", "versions")}


def in_words(described: Mapping[str, Any]) -> str:
    """The description on one line."""
    threads = described["threads"]
    return (
        f"{described['model']} in {described['dtype']} on {described['hardware']}, "
        f"{threads} thread{'' if threads == 1 else 's'}"
    )
