"""Adaptive sampling with approximate expected futures: masks that learn from every draw how much a beginning has left."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from decodery._lazy import np, torch
from decodery.constraints.grammatical_trie import Node, Trie
from decodery.constraints.kept_tries import Tries, admit_disk, identity, write
from decodery.engine.asking import Asking, together
from decodery.engine.memory import Room
from decodery.engine.method import Decoding, Exactness, Method, parameter
from decodery.errors import ConstraintFailed, Refused
from decodery.models.forward import Forward, Rows
from decodery.sampling.noise import Index, Stage

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from decodery.engine.output import Output
    from decodery.engine.request import Request
    from decodery.models.scorer import Scorer
    from decodery.models.sequence import Sequence as CachedSequence
    from decodery.sampling.structured.grammars import Compiled

MOST_AT_ONCE = 64
MOST_DEAD = 1000
"""Draws in a row after which a constraint counts as one that this model's law does not reach."""

Choice = tuple["NDArray[np.int64]", "NDArray[np.float64]"]
"""Ids [n] of the tokens that may follow, ascending, and their probabilities [n] among all tokens."""


@dataclass
class DrawnText:
    """A text being drawn. path: its places in the trie, as far as this has room. log_weight: logarithm of its probability under
    the model over that of drawing it. dead: no token may follow, and it may not end."""

    output: Output
    path: list[Node] = field(default_factory=list)
    log_weight: float = 0.0
    dead: bool = False


@dataclass(frozen=True)
class GrammarAlignedDecoding(Method):
    """Draw under structured_outputs with each token weighed by how much of the model's mass the texts behind it were found
    to keep. The first draw for a prompt is what masking gives; the more are drawn, the nearer they come to the model's own law
    among the valid texts."""

    name: ClassVar[str] = "grammar-aligned-decoding"
    title: ClassVar[str] = "Grammar-aligned decoding (ASAp)"
    paper: ClassVar[str] = (
        "Park, Wang, Berg-Kirkpatrick, Polikarpova, D'Antoni, Grammar-Aligned Decoding, NeurIPS 2024, arXiv 2405.21047 "
        "(github ebmoon/transformers-GAD)"
    )
    exactness: ClassVar[Exactness] = Exactness.APPROXIMATE
    family: ClassVar[str] = "constraints"
    together: ClassVar[bool] = True

    warmup: int = parameter(0, "texts that are drawn before those that are given, to learn from", low=0, high=100_000)
    keep: str = parameter(
        "memory",
        "how long what was learned is kept, by model, prompt, constraint and all settings of the law: for the request, in "
        "memory, or in a file, too",
        choices=("request", "memory", "disk"),
    )
    at_once: int = parameter(
        1, "draws that share passes, and learn of each other when all are over", low=1, high=MOST_AT_ONCE
    )
    nodes: int = parameter(
        100_000,
        "places of drawn texts that are learned about; those behind more are drawn as masking does",
        low=1,
        high=2_000_000,
    )
    reuse: bool = parameter(True, "keep the laws of drawn places, and score these no more; memory for them is bounded")

    def admit(self, request: Request) -> None:
        source = request.settings.chance
        if source.target_only:
            raise Refused(f"{self.name} does not run with chance {source.name}: {source.target_only}.")
        drawing = next((step.name for step in request.law.steps if step.draws), None)
        if drawing is not None:
            raise Refused(f"{self.name} does not run with {drawing}, which makes another law of each draw.")
        if self.keep == "disk":
            admit_disk(request, self.name)

    def caches(self, request: Request) -> list[tuple[Scorer, int]]:
        rows = len(request.prompt) + request.settings.max_new_tokens
        return [(request.network, rows), *[Room(request.network, rows, len(request.prompt))] * self.at_once]  # type: ignore[list-item]

    def decode(self, request: Request) -> Decoding:
        given: Compiled | None = request.settings.structured_outputs
        constraint = None if given is None else given.unforced
        sequence = request.new_sequence()
        yield from request.score_prompt(sequence)
        scores = yield Forward(sequence, request.tokens[sequence.length :], logits=Rows.LAST)
        first = request.output.fork()
        # The law of the other settings: what the bounds are of. Greedy decoding takes the likeliest of what would be drawn.
        greedy = {"temperature": 1.0} if request.law.greedy else {}
        first.law = request.law_with(structured_outputs=None, **greedy)
        trie = Trie()
        if constraint is not None and self.keep != "request":
            tries = request.remember("grammar-aligned-decoding", Tries)
            trie = tries.of(request, first.law, constraint, self.keep == "disk")
        details = request.statistics.details
        details.update(draws_before=trie.draws, mass_bound_before=trie.root.bound, reused=0, dead=0)
        learned, kept = 0, list[DrawnText]()
        tried, dead = {"warm-up": 0, "given": 0}, 0
        while len(kept) < request.n:
            part, left = (
                ("warm-up", self.warmup - learned) if learned < self.warmup else ("given", request.n - len(kept))
            )
            numbers = range(tried[part], tried[part] + min(self.at_once, left))
            tried[part] = numbers.stop
            # The first that is given draws at the addresses of plain decoding.
            indices: list[Index] = [number if part == "given" else (part, number) for number in numbers]
            draws = yield from together(
                [
                    self._draw(request, trie, first, sequence, scores.logits[0], constraint, index, part)
                    for index in indices
                ]
            )
            for draw in draws:
                trie.learn(draw.path)
            fine = [draw for draw in draws if not draw.dead]
            details["dead"] += len(draws) - len(fine)
            dead = 0 if fine else dead + len(draws)
            if trie.root.bound == 0.0 or dead >= MOST_DEAD:
                raise ConstraintFailed(
                    f"{self.name} finds no text that structured_outputs allows and the settings give any probability: "
                    f"{details['dead']} draws came to a place where no token may follow; take off what truncates the law, or "
                    "let an end token end the output."
                )
            if part == "given":
                kept += fine
            else:
                learned += len(fine)
        details.update(draws=trie.draws, mass_bound=trie.root.bound, places=trie.nodes)
        details["texts"] = [
            {"text": draw.output.text, "tokens": draw.output.new_tokens, "log_weight": draw.log_weight} for draw in kept
        ]
        if constraint is not None and self.keep == "disk":
            path = write(identity(request, first.law, constraint), trie)
            details["file"] = None if path is None else path.name
        # What is chosen for being likeliest was not drawn, and weighs nothing in particular.
        request.conclude([(draw.output, 1.0 if request.law.greedy else math.exp(draw.log_weight)) for draw in kept])

    def _draw(
        self,
        request: Request,
        trie: Trie,
        first: Output,
        prompt: CachedSequence,
        row: Tensor,
        constraint: Compiled | None,
        index: Index,
        part: str,
    ) -> Asking[DrawnText]:
        """Draw a text. first: the output without tokens. prompt: the sequence that holds the prompt, and row: its scores
        [vocabulary]."""
        draw = DrawnText(first.fork())
        output, sequence = draw.output, prompt.fork()
        node = None if constraint is None else trie.root
        reuse = self.reuse and not request.reads_rows
        scored: Tensor | None = row  # that of the next token, unless the place's law is known
        asked = True
        while True:
            known = node.law if node is not None and reuse else None
            if known is not None:
                request.statistics.details["reused"] += len(output.new_tokens) > 0
            elif scored is None:
                scores = yield Forward(sequence, output.tokens[sequence.length :], logits=Rows.LAST)
                scored, asked = scores.logits[0], True
            if known is None:
                assert scored is not None
                known = choice(output, scored, constraint)
            ids, masses = known
            weights = masses
            if node is not None:
                draw.path.append(node)
                weights = trie.arrive(node, ids, masses, keep=reuse)
            left = float(weights.sum())
            if not left > 0:
                draw.dead = True
                return draw
            draw.log_weight += math.log(left)
            place = (
                int(weights.argmax())
                if request.law.greedy and part == "given"
                else output.noise.choose(torch.from_numpy(weights), output.position, Stage.TARGET, index)
            )
            if node is not None:
                node = trie.follow(node, ids, masses, place, self.nodes)
            if output.commit([int(ids[place])], [] if scored is None else scored[None], rounds=int(asked)):
                return draw
            scored, asked = None, False


def choice(output: Output, row: Tensor, constraint: Compiled | None) -> Choice:
    """What may follow an output, given the raw scores [vocabulary] there, and its probability among all tokens: in float64, in
    which what a constraint allows seldom vanishes beside the likeliest token."""
    scores = output.law.scores(row)
    output.law.check(float(scores.max()), row)
    law = torch.softmax(scores.double(), dim=-1).cpu().numpy()
    allowed = law > 0
    if constraint is not None:
        follows, ends = constraint.allowed(tuple(output.new_tokens))
        follows[sorted(output.request.stop_ids)] = ends
        allowed &= follows.numpy()
    ids = np.flatnonzero(allowed)
    return ids, law[ids]
