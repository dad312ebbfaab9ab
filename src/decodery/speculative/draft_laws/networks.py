"""Draft laws of a network: a smaller model, or some layers of the target."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

from decodery._lazy import torch
from decodery.models.forward import ALL_LAYERS, POST_NORM, Forward, Layers
from decodery.speculative.draft_laws.base import DraftLaws, Path
from decodery.speculative.draft_laws.pairing import Pair
from decodery.speculative.draft_laws.transcript import SameTokens, Transcript
from decodery.speculative.loop import Round

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.engine.request import Request
    from decodery.models.forward import Scores
    from decodery.models.scorer import Scorer


class NetworkLaws(DraftLaws):
    """The laws of a network: a smaller model, or some layers of the target.

    Its cache follows the committed text: accepted nodes stay, the rest is dropped. Beyond its context there are no laws.
    pair: how its tokens stand for the target's; None where they are the target's.
    """

    def __init__(self, request: Request, network: Scorer, layers: Layers = ALL_LAYERS, pair: Pair | None = None):
        super().__init__(request)
        self.network, self.layers = network, layers
        self._shared = None if pair is None else pair.shared
        self._sequence = request.new_sequence(network)
        self._transcript = Transcript(
            SameTokens(network.vocabulary) if pair is None else pair.rendering(), self._sequence
        )
        self._start = 0
        self._rows: dict[Path, int] = {}
        """Path of a node of the current draft -> its row in the cache."""
        self._taps: tuple[int, ...] = ()
        self.row: Tensor | None = None
        """After `keep_row`: the hidden row [hidden] of the last token that was scored, after the final norm."""

    def keep_row(self) -> None:
        """Keep `row` from now on."""
        self._taps = (POST_NORM,)

    def _seen(self, scores: Scores) -> Scores:
        if self._taps:
            self.row = scores.hidden[POST_NORM][-1]
        return scores

    def root(self, tokens: Sequence[int]) -> Generator[Forward, Scores, Tensor | None]:
        pending = self._transcript.pending(tokens)
        self._start, self._rows = self._sequence.length, {}
        if pending is None:
            return None
        self._start += len(pending)
        last = (len(pending) - 1,)
        scores = self._seen((yield Forward(self._sequence, pending, layers=self.layers, taps=self._taps, logits=last)))
        return self._law(scores.logits[0], ())

    def after(self, paths: Sequence[Path]) -> Generator[Forward, Scores, list[Tensor | None]]:
        fresh = list(dict.fromkeys(paths))
        if self._start + len(fresh[0]) > self.network.context:
            return [None] * len(paths)
        scores = self._seen((yield self._ask(fresh)))
        laws = {path: self._law(row, path) for path, row in zip(fresh, scores.logits, strict=True)}
        return [laws[path] for path in paths]

    def _law(self, row: Tensor, path: Path) -> Tensor | None:
        return self.processed(row if self._shared is None else self._shared.scores(row), path)

    def _ask(self, paths: list[Path]) -> Forward:
        """Score the last token of each path: it sees the committed text, its ancestors and itself."""
        sequence = self._sequence
        tokens = [path[-1] if self._shared is None else self._shared.to_draft[path[-1]] for path in paths]
        for place, path in enumerate(paths):
            self._rows[path] = sequence.length + place
        if len(paths) == 1 and sequence.length == self._start + len(paths[0]) - 1:  # a chain so far
            return Forward(sequence, tokens, layers=self.layers, taps=self._taps)
        mask = torch.zeros(len(paths), sequence.length + len(paths), dtype=torch.bool)
        mask[:, : self._start] = True
        for place, path in enumerate(paths):
            for depth in range(1, len(path) + 1):
                mask[place, self._rows[path[:depth]]] = True
        last = sequence.positions[self._start - 1]
        positions = [last + len(path) for path in paths]
        return Forward(sequence, tokens, positions, mask, layers=self.layers, taps=self._taps)

    def observe(self, round: Round) -> None:
        accepted = tuple(round.draft.tokens[node] for node in round.verdict.path)
        rows: list[int] = []
        for depth in range(1, len(accepted) + 1):
            row = self._rows.get(accepted[:depth])
            if row is None:  # the last level was never fed
                break
            rows.append(row)
        if self._sequence.length > self._start:
            self._sequence.keep(rows, self._start)
        self._start, self._rows = self._sequence.length, {}
