"""Tries that are kept between requests: in memory, the least recently used forgotten first, and in files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decodery._lazy import np
from decodery.constraints.grammatical_trie import Trie
from decodery.errors import Refused
from decodery.models.cache import home
from decodery.sampling.processors import NamedProcessor

if TYPE_CHECKING:
    from decodery.engine.request import Request
    from decodery.sampling.law import Law
    from decodery.sampling.structured.grammars import Compiled

log = logging.getLogger("decodery")

FORMAT = 1
"""Changes with what a file holds."""
MOST_TRIES = 16
"""In memory, of a session."""
MOST_FILES = 256
"""On disk; those that were used longest ago are deleted."""


def folder() -> Path:
    """Where the files are."""
    return home() / "tries"


def identity(request: Request, law: Law, constraint: Compiled) -> str:
    """Tells apart what needs a trie of its own: model, prompt, constraint, and every step between the model's scores and the
    law that is drawn from. law: the one that the constraint is laid on."""
    network, target = request.network, request.settings.target
    described = {
        "format": FORMAT,
        "model": [network.name, network.fingerprint(), str(network.dtype)],
        "target": None if target is None else target.spec(),
        "prompt": request.prompt,
        "constraint": constraint.constraint.identity,
        "law": [repr(step) for step in law.steps],
        "functions": [id(one) for one in request.settings.processors if not isinstance(one, NamedProcessor)],
        "ends": sorted(request.stop_ids),
    }
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:32]


def _functions(request: Request) -> list[Any]:
    """Code that only this process knows."""
    constraint: Compiled | None = request.settings.structured_outputs
    rule = None if constraint is None else constraint.constraint.rule
    own = [one for one in request.settings.processors if not isinstance(one, NamedProcessor)]
    return [*own, *(() if rule is None or rule.told else rule.code)]


def admit_disk(request: Request, name: str) -> None:
    """Raise Refused where the law of a request cannot be told from others after this process."""
    if _functions(request):
        raise Refused(
            f"{name} keeps no trie on disk beside functions of this process, since nobody could tell later what they did; "
            "use keep=memory, or register them by name."
        )


class Tries:
    """Those of a session, in memory."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[Trie, list[Any]]] = OrderedDict()

    @property
    def latest(self) -> Trie:
        """The one that was used last."""
        return next(reversed(self._kept.values()))[0]

    def of(self, request: Request, law: Law, constraint: Compiled, disk: bool) -> Trie:
        """The trie of a request. disk: from a file, where none is in memory."""
        key = identity(request, law, constraint)
        if key not in self._kept:
            found = read(key) if disk else None
            # The functions stay, so that no other one gets their place in memory, and with it their identity.
            self._kept[key] = found or Trie(), _functions(request)
            if len(self._kept) > MOST_TRIES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key][0]


def read(key: str) -> Trie | None:
    """A trie from its file; None where there is none that can be read."""
    path = folder() / f"{key}.npz"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            trie = Trie.of_arrays(arrays)
        os.utime(path)
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as reason:
        log.warning("the trie in %s cannot be read, and is begun anew: %s", path, reason)
        return None
    return trie


def write(key: str, trie: Trie) -> Path | None:
    """Keep a trie in a file, whole or not at all; None, with a warning in the log, where the disk takes none."""
    path = folder() / f"{key}.npz"
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            np.savez_compressed(file, **trie.as_arrays())  # type: ignore[arg-type]
        os.replace(draft, path)
    except OSError as reason:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        log.warning("the trie in %s is not kept: %s", path, reason)
        return None
    with contextlib.suppress(OSError):  # another process tidies up too
        for old in sorted(path.parent.glob("*.npz"), key=lambda one: one.stat().st_mtime)[:-MOST_FILES]:
            old.unlink()
    return path
