"""What an earlier load has found out about a checkpoint, so that later ones need not look again.

Kept in `$DECODERY_HOME/known`, in a folder for each content of a checkpoint's small files (configuration, tokenizer) and the
versions of what has read them: the layout of its network, confirmed against transformers, with the tokens that end its text;
and its tokenizer. Delete the folder to look again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decodery._version import __version__
from decodery.models import tokenizer as lean
from decodery.models.cache import home, sources_digest
from decodery.models.checkpoint import tokenizer_folder
from decodery.models.layout import Layout

if TYPE_CHECKING:
    from decodery.models.native.ahead import Ahead
    from decodery.models.native.network import NativeNetwork
    from decodery.models.native.weights import Precision
    from decodery.models.weight_source import NumberSource, WeightSource

log = logging.getLogger("decodery")

FORMAT = "1"
"""Changes with what is kept here."""
PACKAGES = ("transformers", "tokenizers", "torch")
MANY = 20_000_000
"""So many weights gain by several threads, even where processors are busy."""
WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".lock")
"""Files that say nothing about the layout."""


class Known:
    """What is known of the checkpoint in a folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.why_not = ""
        """Why `network` gave none."""

    @cached_property
    def place(self) -> Path:
        digest = hashlib.sha256("\0".join([FORMAT, __version__, *map(version, PACKAGES)]).encode() + sources_digest())
        folders = dict.fromkeys((self.folder, tokenizer_folder(self.folder)))
        for path in (path for folder in folders for path in sorted(folder.iterdir())):
            if path.is_file() and path.suffix not in WEIGHTS:
                content = path.read_bytes()
                digest.update(f"\0{path.name} {len(content)}\0".encode() + content)
            elif path.is_dir():
                digest.update(f"\0{path.name}/".encode())
        return home() / "known" / digest.hexdigest()[:32]

    def network(
        self, name: str, precision: Precision, quantize: str | None = None, ahead: Ahead | None = None
    ) -> tuple[NativeNetwork, tuple[int, ...]] | None:
        """The network on the native path, and the tokens that end its text; None where the model does not qualify, and
        `why_not` says why.

        quantize: what weights are rounded to, with the precision "integer". ahead: packs weights of the folder's GGUF file
        until now, in the same precision. Weights go from the files to where they are used.
        What confirms a layout the first time is a transformers model of the first layers alone.
        """
        from decodery.models.gguf.weights import weight_source
        from decodery.models.native.network import NativeNetwork
        from decodery.models.reading import StoredWeights
        from decodery.models.rounding import Rounded, way

        kept_as = way(precision, quantize)
        try:
            source: NumberSource = weight_source(self.folder) or StoredWeights(self.folder)
            record = self._recorded(kept_as)
            layout, ends = record or self._learnt(source, name, precision, quantize)
            if surplus := set(source.names()) - {weight for weight, _ in layout.shapes()}:
                raise ValueError(f"its files hold {min(surplus)}, which the layout has no place for")
            weights = source if quantize is None else Rounded(source, layout, quantize)
            network = NativeNetwork(layout, weights, name, precision, None if ahead is None else ahead.take())
        except Exception as reason:  # of whatever kind: transformers reads the model then, and says what is wrong
            log.info("%s is read through transformers: %s", self.folder, reason)
            self.why_not = str(reason)
            return None
        if record is None:
            text, name = json.dumps({"layout": layout.as_json(), "ends": ends}), self._layout(kept_as).name
            self._keep(name, lambda folder: bool((folder / name).write_text(text)))
        return network, ends

    def _recorded(self, kept_as: str) -> tuple[Layout, tuple[int, ...]] | None:
        """The layout that an earlier load has confirmed, and the tokens that end a text."""
        try:
            record = json.loads(self._layout(kept_as).read_text(encoding="utf-8"))
            return Layout.from_json(record["layout"]), tuple(record["ends"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as reason:
            log.info("what was found out about %s cannot be read: %s", self.folder, reason)
            return None

    def _learnt(
        self, source: WeightSource, name: str, precision: Precision, quantize: str | None
    ) -> tuple[Layout, tuple[int, ...]]:
        """The layout of the folder's model, confirmed against transformers, and the tokens that end a text. Raises ValueError,
        or whatever a family's code raises, where the model does not qualify."""
        import torch

        from decodery.models.confirmation import FEW_NEURONS, FEW_TOKENS, confirm, one_thread
        from decodery.models.native.network import NativeNetwork
        from decodery.models.pages import give_back
        from decodery.models.reading import cut, empty_model, end_tokens, fill
        from decodery.models.recognition import recognised
        from decodery.models.rounding import rounded, way
        from decodery.models.twin import forget_weights
        from decodery.models.weight_source import Checked

        model = empty_model(self.folder, torch.bfloat16)
        layout, ends = recognised(model), end_tokens(model, self.folder)
        cut(model, layout.varied, FEW_TOKENS, FEW_NEURONS)
        with one_thread() if sum(map(torch.numel, model.parameters())) < MANY else contextlib.nullcontext():
            fill(model, Checked(source, layout))
            confirm(
                partial(NativeNetwork.of, name=name, precision=precision, quantize=quantize),
                model,
                way(precision, quantize),
                None if quantize is None else partial(rounded, quantize=quantize),
            )
        forget_weights(model)
        give_back()
        return layout, ends

    def tokenizer(self, read_whole: Callable[[], Any]) -> Any:
        """The tokenizer; read_whole: reads it through transformers, where that is needed, now or later."""
        found = self._kept_tokenizer(read_whole)
        if found is not None:
            return found
        whole = read_whole()
        self._keep("tokenizer_facts.json", lambda folder: lean.write(whole, folder))
        # The first load hands out the same as later ones, and the whole tokenizer's memory is free again.
        found = self._kept_tokenizer(read_whole)
        return whole if found is None else found

    def _kept_tokenizer(self, read_whole: Callable[[], Any]) -> lean.LeanTokenizer | None:
        try:
            return lean.read(self.place, read_whole)
        except Exception as reason:  # tokenizers raises nothing more special
            log.info("what was kept of the tokenizer of %s cannot be read: %s", self.folder, reason)
            return None

    def _layout(self, kept_as: str) -> Path:
        """The record of a path on this machine's compiled decoder. kept_as: see `rounding.way`."""
        from decodery.models.native.build import library

        return self.place / f"{kept_as}-{Path(library()._name).stem}.json"

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
