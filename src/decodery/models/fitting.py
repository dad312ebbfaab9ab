"""Whether the weights that were found for a network are its own: all there, none left over, each of the right shape."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from decodery.errors import ModelNotReadable
from decodery.models.checkpoint import some
from decodery.models.stored_weights import WHOLE, StoredWeight

_DERIVED = r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$|(^|\.)(attn|attention)\.(masked_)?bias$"
"""Tables that older files hold and networks compute: angles of positions, the causal mask."""
LIST, LIST_IN_LIST = r"(.*?\.)(\d+)(\..+)", r"(.*\.\d+\..*\.)(\d+)(\..+)"
"""Names of weights in layers, and in a layer's experts."""


def check_found(found: Mapping[str, Any], model: Any, folder: Path, stored: Mapping[str, StoredWeight]) -> None:
    """Raise ModelNotReadable where transformers has found other weights than the network has."""
    if found["mismatched_keys"]:
        name, there, wanted = min(found["mismatched_keys"])
        more = len(found["mismatched_keys"]) - 1
        others = f", and {more} more weights do not fit" if more else ""
        raise ModelNotReadable(
            f"{folder} does not fit its config.json: {name} has the shape {list(there)} where {type(model).__name__} "
            f"has {list(wanted)}{others}."
        )
    ignored = re.compile("|".join([_DERIVED, *_further_layers(model.config)]))
    unexpected = sorted(name for name in found["unexpected_keys"] if not ignored.search(name))
    missing = sorted(found["missing_keys"])
    if missing:
        instead = f", and holds {some(unexpected)} instead" if unexpected else ""
        raise ModelNotReadable(f"{folder} is incomplete: it lacks {some(missing)} of {type(model).__name__}{instead}.")
    if unexpected:
        raise ModelNotReadable(
            f"{folder} does not fit its config.json: it holds {some(unexpected)}, which {type(model).__name__} has no "
            "place for."
        )
    tables = {name for name, weight in model.state_dict().items() if not weight.is_floating_point()}
    whole = sorted(
        name for name, weight in stored.items() if weight.read and weight.dtype in WHOLE and name not in tables
    )
    if whole:
        raise ModelNotReadable(
            f"{folder} holds {some(whole)} as whole numbers ({stored[whole[0]].dtype}), but its config.json has no "
            "quantization_config that says what they mean."
        )


def uneven(names: Iterable[str], pattern: str = LIST_IN_LIST) -> list[str]:
    """Names that are missing in lists, by what others of a list have; first those that the fewest lack."""
    lists: dict[str, dict[str, set[str]]] = {}
    for name in names:
        if found := re.fullmatch(pattern, name):
            lists.setdefault(found[1], {}).setdefault(found[3], set()).add(found[2])
    lacking: list[tuple[int, str]] = []
    for head, tails in lists.items():
        everywhere = set().union(*tails.values())
        for tail, places in tails.items():
            lacking += [(len(everywhere - places), f"{head}{place}{tail}") for place in everywhere - places]
    return [name for _, name in sorted(lacking)]


def _further_layers(config: Any) -> list[str]:
    """Patterns of the layers that the configuration counts apart: they predict further tokens, and no class has them."""
    first, count = getattr(config, "num_hidden_layers", 0), getattr(config, "num_nextn_predict_layers", 0) or 0
    return [rf"^model\.layers\.{first + place}\." for place in range(count)]
