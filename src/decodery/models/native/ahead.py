"""Weights that are packed while a load does something else.

A load imports libraries, reads a tokenizer and, the first time, compares a model with transformers: work for one processor.
Another one packs the file's matrices meanwhile, by the names that all models of the usual kind give them. Whether the model is
of that kind is found out afterwards; where it is not, what was packed is given up.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from decodery.models.gguf.weights import GgufWeights
from decodery.models.native.weights import MATRICES, Precision, Weights, most_bytes
from decodery.models.pages import large

log = logging.getLogger("decodery")

MOST = 0.7
"""Of a file's bytes: so much is packed before the model is known to be of the usual kind. What confirms it needs memory, too,
for a while."""


class Ahead:
    """Packs the matrices of a GGUF file in a thread of its own, from the start on. precision: see `Weights`. Raises OSError
    where there is not enough memory."""

    def __init__(self, source: GgufWeights, precision: Precision):
        self._weights = Weights(precision, large(most_bytes(source.parameters, len(source.file.tensors))))
        self._wanted = True
        most = int(MOST * source.file.bytes)
        self._thread = threading.Thread(target=self._pack, args=(source, most), daemon=True)
        self._thread.start()

    def _pack(self, source: GgufWeights, most: int) -> None:
        try:
            for names, how in usual_matrices(source.names()):
                if not self._wanted or self._weights.bytes >= most:
                    return
                self._weights.ready[names] = self._weights.read(source, *names, **how)
        except Exception as reason:  # of whatever kind: who loads the model meets it too, and says it
            log.info("weights are not packed ahead: %s", reason)

    def take(self) -> Weights:
        """The weights as far as they are packed; nobody packs from now on."""
        self.end()
        self._thread.join()
        return self._weights

    def end(self) -> None:
        """Pack no further matrix."""
        self._wanted = False


def usual_matrices(names: Iterable[str]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """What a model of the usual kind with weights of such names packs together, in its order, and how."""
    there = set(names)
    for embedding in sorted(name for name in there if name.endswith("embed_tokens.weight")):
        prefix, layer = embedding.removesuffix("embed_tokens.weight"), 0
        yield (embedding,), {}
        if "lm_head.weight" in there:
            yield ("lm_head.weight",), {}
        while f"{prefix}layers.{layer}.self_attn.q_proj.weight" in there:
            for parts, how in MATRICES.values():
                yield tuple(f"{prefix}layers.{layer}.{part}.weight" for part in parts), how
            layer += 1
