"""What methods share that draft with the target's first layers: their rows on the way to the others, and a token of a draft."""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from typing import TYPE_CHECKING

from decodery._lazy import torch
from decodery.models.forward import Forward, Layers, Rows, Scores

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.engine.request import Request
    from decodery.models.sequence import Sequence as CachedSequence

FORBIDDEN = float("-inf")


class LowerRows:
    """The rows of a round that the first `exit` layers have seen, on their way to the others.

    They stand in the cache with the keys and values of these layers alone. The other layers write theirs when they verify,
    before they read them. exits: those whose rows are looked at later.
    """

    def __init__(self, sequence: CachedSequence, exit: int, exits: Collection[int]):
        self._sequence, self.exit = sequence, exit
        self._rows: dict[int, list[Tensor]] = {
            tap: [] for tap in sorted({exit - 1, *(e - 1 for e in exits if e <= exit)})
        }
        """Tap -> rows of that layer, of every row of the round."""

    def run(self, fed: Sequence[int]) -> Generator[Forward, Scores, None]:
        """Run the first layers on the newest tokens."""
        ask = Forward(self._sequence, fed, layers=Layers(0, self.exit), taps=tuple(self._rows), logits=Rows.NONE)
        scores = yield ask
        for tap, rows in scores.hidden.items():
            self._rows[tap].append(rows)

    @property
    def newest(self) -> Tensor:
        """The rows [n, hidden] of the newest tokens as they leave the first layers."""
        return self._rows[self.exit - 1][-1]

    def complete(
        self, count: int, taps: Sequence[int], wanted: range
    ) -> Generator[Forward, Scores, tuple[Scores, dict[int, Tensor]]]:
        """Take the round's `count` rows through the other layers: scores of the `wanted` ones, and hidden rows of all."""
        owner = self._sequence.owner
        hidden = {tap: torch.cat(rows) for tap, rows in self._rows.items()}
        entering = hidden[self.exit - 1]
        if self.exit == owner.layers:  # nothing is left to run but the head
            return Scores(owner.head()(entering[wanted.start :])), hidden
        first = self._sequence.length - count
        scores = yield Forward(
            self._sequence,
            entering,
            positions=self._sequence.positions[first:],  # where parts of the prompt stand side by side, not the slots
            slots=range(first, first + count),
            layers=Layers(self.exit),
            taps=tuple(tap for tap in taps if tap >= self.exit),
            logits=wanted,
        )
        return scores, {**hidden, **scores.hidden}


def spoken(request: Request, scores: Tensor, path: Sequence[int], q: dict[int, Tensor]) -> int | None:
    """The token that raw draft scores [vocabulary] give after `path`, the draft so far; None where all are forbidden. Where it
    is drawn, the law that it is drawn from becomes that of the draft's newest node in `q`."""
    drafting = request.law.drafting
    processed = drafting.scores(scores, path)
    if not float(processed.max()) > FORBIDDEN:
        return None
    if request.law.greedy:
        return int(processed.argmax())
    from decodery.sampling.noise import Stage

    law = drafting.log_probabilities(scores, path).exp()
    q[len(path) - 1] = law
    return request.noise.choose(law, request.position + len(path), Stage.DRAFT)
