"""What an earlier load has found out about a checkpoint, so that later ones need not look again.

Kept in `$DECODERY_HOME/known`, in a folder for each content of a checkpoint's small files (configuration, tokenizer) and the
versions of what has read them: the layout of its network, confirmed against transformers, with the tokens that end its text;
and its tokenizer. Delete the folder to look again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterable
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decodery._version import __version__
from decodery.models import tokenizer as lean
from decodery.models.cache import home
from decodery.models.layout import Layout

if TYPE_CHECKING:
    from decodery.models.native.network import NativeNetwork

log = logging.getLogger("decodery")

FORMAT = "1"
"""Changes with what is kept here."""
PACKAGES = ("transformers", "tokenizers", "torch")
WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".lock")
"""Files that say nothing about the layout."""


class Known:
    """What is known of the checkpoint in a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    @cached_property
    def place(self) -> Path:
        digest = hashlib.sha256("\0".join([FORMAT, __version__, *map(version, PACKAGES)]).encode())
        for path in sorted(self.folder.iterdir()):
            if path.is_file() and path.suffix not in WEIGHTS:
                content = path.read_bytes()
                digest.update(f"\0{path.name} {len(content)}\0".encode() + content)
            elif path.is_dir():
                digest.update(f"\0{path.name}/".encode())
        return home() / "known" / digest.hexdigest()[:32]

    def network(self, name: str, packed: bool) -> tuple[NativeNetwork, tuple[int, ...]] | None:
        """The network on the native path, and the tokens that end its text; None where no earlier load has confirmed it, or
        these weights are others than its layout's."""
        from decodery.models.native.build import NotBuilt
        from decodery.models.native.network import NativeNetwork
        from decodery.models.reading import StoredWeights

        try:
            record = json.loads(self._layout(packed).read_text(encoding="utf-8"))
            layout = Layout.from_json(record["layout"])
            return NativeNetwork(layout, StoredWeights(self.folder), name, packed), tuple(record["ends"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, OSError, NotBuilt) as reason:
            log.info("%s is read anew: %s", self.folder, reason)
            return None

    def keep_network(self, network: NativeNetwork, packed: bool, ends: Iterable[int]) -> None:
        """Remember a network that was confirmed."""
        record = json.dumps({"layout": network.layout.as_json(), "ends": sorted(ends)})
        self._keep(
            self._layout(packed).name, lambda folder: bool((folder / self._layout(packed).name).write_text(record))
        )

    def tokenizer(self, read_whole: Callable[[], Any]) -> Any:
        """The tokenizer; read_whole: reads it through transformers, where that is needed, now or later."""
        found = lean.read(self.place, read_whole)
        if found is not None:
            return found
        whole = read_whole()
        self._keep("tokenizer_facts.json", lambda folder: lean.write(whole, folder))
        return whole

    def _layout(self, packed: bool) -> Path:
        """The record of a path on this machine's compiled decoder."""
        from decodery.models.native.build import library

        return self.place / f"{'packed' if packed else 'native'}-{Path(library()._name).stem}.json"

    def _keep(self, last: str, write: Callable[[Path], bool]) -> None:
        """Put the files that `write` makes in a folder beside the others, `last` at the end."""
        try:
            self.place.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.place.parent) as scratch:
                if write(Path(scratch)):
                    for path in sorted(Path(scratch).iterdir(), key=lambda path: path.name == last):
                        os.replace(path, self.place / path.name)
        except OSError as reason:  # a full or read-only disk: the next load takes as long as this one
            log.info("what was found out about %s is not kept: %s", self.folder, reason)
