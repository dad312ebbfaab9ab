"""Adaptive draft verification: what starts, budgets and search sizes bring, and what drafting costs.

The model answers questions with plain decoding once; the drafters are then replayed on its answers, twice over the whole set
within one session (the method is lossless: its output is the recorded one). "empty" starts with nothing; "corpus" is counted
over given texts; "own" over the model's answers to questions of the same sort that are not measured.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from decodery.evaluation.experiment import Arm, Experiment, Figure, PublishedClaim, Study
from decodery.evaluation.recorded import Recorded, record, replay
from decodery.language_model import LanguageModel
from decodery.models.forward import Forward
from decodery.speculative.adaptive_draft_verification import AdaptiveDraftVerification, TrigramDrafter
from decodery.speculative.continuations.trigrams import TrigramStore, TrigramTable
from decodery.speculative.prompt_lookup import NgramDrafter
from decodery.training.trigram_table import build, text_tokens
from experiments.texts import NODES, Asked, loaded, questions_of, recorded

ENTRANTS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("empty", "empty", {}),
    ("empty, whole prompt read", "empty", {"read_prompt": True}),
    ("empty, window 64", "empty", {"window": 64}),
    ("corpus", "corpus", {}),
    ("corpus, whole prompt read", "corpus", {"read_prompt": True}),
    ("corpus, no adaptation", "corpus", {"delta": 0}),
    ("own", "own", {}),
    ("own, no adaptation", "own", {"delta": 0}),
    ("own, whole prompt read", "own", {"read_prompt": True}),
    ("corpus and own, whole prompt read", "both", {"read_prompt": True}),
    ("own, delta 0.2", "own", {"delta": 0.2, "read_prompt": True}),
    ("own, trie budget", "own", {"budget": "trie"}),
    ("own, trie budget 48", "own", {"budget": "trie", "choices": 48, "prefixes": 48}),
    ("own, 12 choices", "own", {"choices": 12, "prefixes": 12}),
    ("own, 12 nodes", "own", {"budget": "trie", "choices": 12, "prefixes": 12}),
    ("own, greedy search, 12 nodes", "own", {"budget": "trie", "choices": 12, "prefixes": 12, "explore": False}),
    ("own, legacy score", "own", {"legacy_score": True}),
    ("own, 40 simulations", "own", {"simulations": 40}),
    ("own, 300 simulations", "own", {"simulations": 300}),
)
"""Label, start, options."""


@dataclass(frozen=True)
class Settings(Asked):
    others: int = 3
    corpus: tuple[str, ...] = ("",)


@dataclass(frozen=True)
class Again:
    """A text, and whether it comes for the first time."""

    text: Recorded
    first: bool


def forward_seconds(lm: LanguageModel, context: int = 256, repeats: int = 15) -> float:
    """Least seconds of a forward of one row after some context."""
    sequence = lm.network.new_sequence()
    lm.network.run([Forward(sequence, [i % 1000 for i in range(context)])])
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        lm.network.run([Forward(sequence, [5])])
        times.append(time.perf_counter() - start)
        sequence.truncate(context)
    return min(times)


def arm(label: str, options: dict[str, Any], table: TrigramTable | None, vocabulary: int, one_row: float) -> Arm:
    """A session that keeps its counts from text to text."""
    method = AdaptiveDraftVerification(**options)
    store = TrigramStore(vocabulary, method.top_m, None if table is None else table.pruned(method.top_m))

    def measure(item: Again) -> Mapping[str, float]:
        found = replay(TrigramDrafter(store, method), item.text.tokens, item.text.start)
        told = {"tokens": float(found.tokens), "rounds": float(found.rounds), "drafted": float(found.drafted)}
        if not item.first:
            return {f"{name} again": value for name, value in told.items()}
        return told | ({"drafting": found.seconds_per_draft / one_row} if found.times else {})

    return Arm(label, measure)


def starts(settings: Settings) -> Study:
    lm = loaded(settings.model)
    texts = recorded(replace(settings))
    chosen = {question.id for question in questions_of(settings)}
    more = [question for question in questions_of(settings, settings.others) if question.id not in chosen]
    others = record(lm, more, settings.tokens)
    tables: dict[str, TrigramTable | None] = {"empty": None, "own": build(lm, iter([t.tokens for t in others]), 1)}
    if files := [Path(name) for name in settings.corpus if name]:
        corpus = [piece for path in files for piece in text_tokens(lm, path)]
        tables["corpus"] = build(lm, iter(corpus))
        tables["both"] = build(lm, iter([*corpus, *(t.tokens for t in others)]))
    one_row = forward_seconds(lm)
    arms = [
        arm(label, options, tables[start], lm.network.vocabulary, one_row)
        for label, start, options in ENTRANTS
        if start in tables
    ]

    def looked_up(item: Again) -> Mapping[str, float]:
        found = replay(NgramDrafter(3, 10, "first", False), item.text.tokens, item.text.start)
        return (
            {"tokens": float(found.tokens), "rounds": float(found.rounds), "drafted": float(found.drafted)}
            if item.first
            else {}
        )

    return Study(
        f"Replayed on the model's own greedy answers of at most {settings.tokens} tokens; the second pass "
        "comes after all of the "
        f"first. Own table: from {len(others)} other answers. Drafting: the median time of a draft, of that "
        "of a forward of one row.",
        [Again(text, first) for first in (True, False) for text in texts],
        [*arms, Arm("prompt-lookup", looked_up)],
        (
            Figure("tokens/round", "tokens", per="rounds"),
            Figure("second pass", "tokens again", per="rounds again"),
            NODES,
            Figure("drafting", "drafting", middle=True, form=".1%"),
        ),
        (
            PublishedClaim("adaptation pays", "tokens/round", "own", "own, no adaptation"),
            PublishedClaim("exploring pays", "tokens/round", "own, 12 nodes", "own, greedy search, 12 nodes"),
        ),
        "start",
        lm,
    )


EXPERIMENT = Experiment(
    "adaptive_draft_verification",
    "Adaptive draft verification: starts, adaptation and search",
    "Liu et al., Adaptive Draft-Verification, 2024, arXiv 2407.12021",
    ("decodery.speculative.adaptive_draft_verification", "decodery.speculative.continuations.trigrams"),
    Settings(),
    {"starts": starts},
)
