"""From the names that weights have in files to those that a network gives them, as far as wrappers have changed them.

What compiled, distributed or adapted models save carries the wrapper in every name: `_orig_mod.` (torch.compile), `module.`
(DistributedDataParallel), `base_model.model.` (peft), whatever a training program called its model. Names that a family itself
has changed over time are transformers' business.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Segments that torch puts in for a wrapped part, wherever it stands; no network has names like these."""


def unwrapped(names: Collection[str], known: Collection[str], base: str) -> dict[str, str]:
    """The name in the network of each of these names; a name that nothing explains stays as it is.

    Segments with which all names begin are taken off as far as that makes more names known. known: the network's names. base:
    the name of its part without the head, such as "model", which may be missing in a name, or stand there twice.
    """
    plain = {name: _WRAPPERS.sub("", name) for name in names}
    common = _common_segments(plain.values())

    def candidate(dropped: int) -> dict[str, str]:
        return {name: _in_base(_without(short, dropped), known, base) for name, short in plain.items()}

    candidates = [candidate(dropped) for dropped in range(common + 1)]
    return max(candidates, key=lambda found: sum(name in known for name in found.values()))  # the first of the best


def _in_base(name: str, known: Collection[str], base: str) -> str:
    if name in known:
        return name
    for tried in (f"{base}.{name}", name.removeprefix(f"{base}.")):
        if tried in known:
            return tried
    return name


def _without(name: str, segments: int) -> str:
    return name.split(".", segments)[-1]


def _common_segments(names: Iterable[str]) -> int:
    """With how many segments all names begin alike, leaving each a last one."""
    parts = [name.split(".")[:-1] for name in names]
    alike = 0
    for places in zip(*parts, strict=False):
        if len(set(places)) > 1:
            break
        alike += 1
    return alike
