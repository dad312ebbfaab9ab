"""Networks that keep keys and values of many sequences and score the rows of all of them in one pass."""

from __future__ import annotations

import hashlib
import threading
from abc import abstractmethod
from collections.abc import Iterable
from collections.abc import Sequence as Listing
from dataclasses import dataclass

import torch
from torch import Tensor

from decodery.models.attention import Pack
from decodery.models.forward import Forward, Layers, Ranking, Rows, Scores
from decodery.models.key_value_cache import BLOCK, KeyValueCache
from decodery.models.scorer import Network
from decodery.models.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Pass:
    """The rows of several sequences that a network scores together.

    pack: whose rows they are, and who sees whom. inputs: token ids [1, rows] or what enters the first layer [1, rows, hidden],
    as transformers names them; none where the network looks the tokens up itself. positions: of the rows. wanted: rows whose
    logits are asked for, or their likeliest tokens where `rank` is not 0. layers: to run. taps: layers whose rows are handed
    back.
    """

    pack: Pack
    inputs: dict[str, Tensor]
    positions: list[int]
    wanted: list[int]
    layers: Layers
    taps: list[int]
    rank: int


class KeyValueNetwork(Network):
    """A network of decoder layers, each with keys and values per row. Subclasses set the attributes and give `_pass`."""

    hidden: int
    _lock: threading.RLock
    """Held during a pass."""
    _cache_shapes: tuple[tuple[int, int], ...]
    """Of each cached layer: key/value heads and their width."""

    def new_sequence(self) -> Sequence:
        return Sequence(self, KeyValueCache(self._cache_shapes, self.dtype, self.device))

    def rows_kept(self, rows: int) -> int:
        return -(-rows // BLOCK) * BLOCK

    def cache_bytes(self, rows: int, shared: int = 0) -> int:
        values = sum(2 * heads * width for heads, width in self._cache_shapes)
        return (self.rows_kept(rows) - shared // BLOCK * BLOCK) * values * self.dtype.itemsize

    def origin_of_faults(self, tokens: Listing[int]) -> str:
        taps = tuple(range(self.layers))
        advice = "its weights are not numbers, or too large for each other"
        if self.dtype == torch.float16:
            advice = "float16 ends at 65504; bfloat16 or float32 would do"
        [scores] = self.run([Forward(self.new_sequence(), tokens, taps=taps, logits=Rows.NONE)])
        for layer in taps:
            rows = scores.hidden[layer]
            if not bool(rows.isfinite().all()):
                return f"it begins in layer {layer + 1} of {self.layers} of {self.name}, in {str(self.dtype)[6:]}: {advice}"
        return f"it begins after the last layer of {self.name}, in {str(self.dtype)[6:]}: {advice}"

    @abstractmethod
    def entering(self, ids: Tensor) -> Tensor:
        """Rows [n, hidden] that enter the first layer for n token ids."""

    def embed(self, tokens: Tensor) -> Tensor:
        if not tokens.is_floating_point():
            return self.entering(tokens.to(self.device))
        used = (tokens != 0).any(dim=0).nonzero()[:, 0]
        rows = self.entering(used.to(self.device)).float()
        return (tokens[:, used].to(rows) @ rows).to(self.dtype)

    def run_pass(self, forwards: Listing[Forward]) -> list[Scores]:
        first = forwards[0]
        pack = Pack.of(forwards, self.device, self.stability.columns if self.stability else 1)
        asked = Pass(
            pack,
            self._inputs(forwards),
            positions=[position for forward in forwards for position in forward.row_positions()],
            wanted=[segment.start + row for segment in pack.segments for row in segment.forward.logit_rows()],
            layers=first.layers,
            taps=sorted({tap for forward in forwards for tap in forward.taps}),
            rank=first.rank if all(forward.rank == first.rank for forward in forwards) else 0,
        )
        with self._lock:
            scores = self._pass(asked)
        for forward in forwards:
            forward.sequence.write(forward.written_slots(), ids_of(forward), forward.row_positions())
        pack.forget_borrowed()
        return _split(forwards, scores)

    @abstractmethod
    def _pass(self, asked: Pass) -> Scores:
        """Logits of the wanted rows, or their ranking, and the tapped rows of each layer."""

    def _inputs(self, forwards: Listing[Forward]) -> dict[str, Tensor]:
        rows = [f.tokens if isinstance(f.tokens, Tensor) else torch.tensor(list(f.tokens)) for f in forwards]
        packed = (rows[0] if len(rows) == 1 else torch.cat(rows)).to(self.device)[None]
        if packed.is_floating_point():
            return {"inputs_embeds": packed.to(self.dtype)}
        return {"input_ids": packed}


def fingerprint_of(weights: Iterable[tuple[str, Tensor]]) -> str:
    """Tells networks of other weights apart, by a few numbers of each. weights: with their names, sorted by these."""
    digest = hashlib.sha256()
    for name, weight in weights:
        flat = weight.detach().flatten()
        sample = flat[:: max(1, flat.numel() // 64)].to("cpu", torch.bfloat16)
        digest.update(f"{name} {list(weight.shape)}".encode() + sample.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def ids_of(forward: Forward) -> list[int]:
    """The token id of each row; -1 for embeddings. Hidden rows that go on from earlier layers keep their cached ids."""
    if not isinstance(forward.tokens, Tensor):
        return list(forward.tokens)
    if not forward.tokens.is_floating_point():
        return forward.tokens.tolist()
    known = forward.sequence.tokens if forward.layers.start > 0 else ()
    return [known[slot] if slot < len(known) else -1 for slot in forward.written_slots()]


def _split(forwards: Listing[Forward], scores: Scores) -> list[Scores]:
    """Hand each forward its own rows."""
    if len(forwards) == 1:
        return [scores]
    answers: list[Scores] = []
    row = wanted = 0
    for forward in forwards:
        asked = len(forward.logit_rows())
        hidden = {tap: scores.hidden[tap][row : row + forward.count] for tap in forward.taps}
        own, ranking = slice(wanted, wanted + asked), scores.ranking
        ranking = ranking and Ranking(ranking.ids[own], ranking.shares[own])
        answers.append(Scores(scores.logits[own], hidden, ranking))
        row, wanted = row + forward.count, wanted + asked
    return answers
