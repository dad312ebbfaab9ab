"""Drafting against texts that are already written: what a drafter would have got accepted, without scoring a token.

The output of a lossless method is plain decoding's. So a drafter that learns from committed text alone can be judged on
recorded outputs, thousands of tokens a second and free of the machine's noise.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

from decodery.evaluation.questions import Question
from decodery.language_model import LanguageModel
from decodery.speculative.budget import within
from decodery.speculative.draft import EMPTY, ROOT, Draft
from decodery.speculative.loop import Drafter, Round
from decodery.speculative.verifiers import Verdict


@dataclass(frozen=True)
class Recorded:
    """A written text. tokens: prompt and output. start: where the output begins. category: of the question."""

    tokens: list[int]
    start: int
    category: str = ""


@dataclass
class DraftReplay:
    """What came of drafting. times: seconds that each draft took; rounds without one do not count."""

    tokens: int = 0
    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    times: list[float] = field(default_factory=list)

    @property
    def tokens_per_round(self) -> float:
        """The target's own token included."""
        return self.tokens / self.rounds if self.rounds else 0.0

    @property
    def seconds_per_draft(self) -> float:
        """The median: what other programs take from the machine now and then does not count."""
        return statistics.median(self.times) if self.times else 0.0

    def __add__(self, other: DraftReplay) -> DraftReplay:
        return DraftReplay(
            self.tokens + other.tokens,
            self.rounds + other.rounds,
            self.drafted + other.drafted,
            self.accepted + other.accepted,
            self.times + other.times,
        )


def record(lm: LanguageModel, questions: Iterable[Question], max_new_tokens: int = 128) -> list[Recorded]:
    """Plain greedy answers to the first turns of questions, each alone."""
    texts = []
    for question in questions:
        chat = bool(getattr(lm.tokenizer, "chat_template", None))
        prompt = lm.tokenize([{"role": "user", "content": question.turns[0]}] if chat else question.turns[0])
        reply = lm.generate(prompt, method="autoregressive", max_new_tokens=max_new_tokens)
        texts.append(Recorded([*prompt, *reply.token_ids], len(prompt), question.category))
    return texts


def replay(drafter: Drafter, text: Sequence[int], start: int) -> DraftReplay:
    """Draft `text` from place `start` on, verifying whole drafts.

    drafter: proposes without asking for forwards, and learns from text alone: the rounds that it observes have no scores.
    """
    text, found, place = list(text), DraftReplay(tokens=len(text) - start), start
    while place < len(text):
        tokens, depth = text[:place], len(text) - place - 1
        begun = time.perf_counter()
        proposed = drafter.propose(tokens, depth) if depth else EMPTY
        spent = time.perf_counter() - begun
        if not isinstance(proposed, Draft):
            raise TypeError(f"{type(drafter).__name__} asks for forwards, so it cannot be replayed")
        draft = within(proposed, depth, frozenset())
        path: list[int] = []
        while True:
            children = draft.children.get(path[-1] if path else ROOT, ())
            wanted = text[place + len(path)]
            right = next((child for child in children if draft.tokens[child] == wanted), None)
            if right is None:
                break
            path.append(right)
        emitted = text[place : place + len(path) + 1]
        place += len(emitted)
        drafter.observe(Round(tokens, draft, Verdict(tuple(path), emitted[-1]), emitted, torch.empty(0), {}))
        found += DraftReplay(0, 1, len(draft), len(path), [spent] if len(proposed) else [])
    return found
