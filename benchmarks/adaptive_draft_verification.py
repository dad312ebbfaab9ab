"""Study of adaptive draft verification: what starts, budgets and search sizes bring, and what drafting costs.

    python benchmarks/adaptive_draft_verification.py --model smollm2-135m [--corpus FILE ...] [--json FILE]

The model answers questions with plain decoding once; the drafters are then replayed on its answers, twice over the whole
set within one session, so that nothing but counting is measured (the method is lossless: its output is the recorded one).
Tables: "empty" starts with nothing; "corpus" is counted over the given texts; "own" over the model's answers to questions
of the same sort that are not measured. Drafting time is the median of rounds with a draft, as a share of the model's fastest
forward of one row in this run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from decodery import LanguageModel, load
from decodery.evaluation.questions import load_questions
from decodery.evaluation.recorded import Recorded, Replay, record, replay
from decodery.evaluation.report import markdown_rows
from decodery.models.forward import Forward
from decodery.speculative.adaptive_draft_verification import AdaptiveDraftVerification, TrigramDrafter
from decodery.speculative.continuations.trigrams import TrigramStore, TrigramTable
from decodery.speculative.prompt_lookup import NgramDrafter
from decodery.training.trigram_table import build, text_tokens

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


def passes(
    texts: Sequence[Recorded], table: TrigramTable | None, vocabulary: int, options: dict[str, Any]
) -> list[Replay]:
    """Both passes over the texts in one session."""
    method = AdaptiveDraftVerification(**options)
    store = TrigramStore(vocabulary, method.top_m, None if table is None else table.pruned(method.top_m))
    found = []
    for _ in range(2):
        found.append(sum((replay(TrigramDrafter(store, method), t.tokens, t.start) for t in texts), Replay()))
    return found


def breadth(texts: Sequence[Recorded], table: TrigramTable, vocabulary: int, options: dict[str, Any]) -> float:
    """Distinct first tokens of a draft, mean over every eighth place of the texts."""
    method = AdaptiveDraftVerification(**{**options, "delta": 0})
    drafter = TrigramDrafter(TrigramStore(vocabulary, method.top_m, table.pruned(method.top_m)), method)
    drafts = [drafter.propose(t.tokens[:end], 10) for t in texts for end in range(t.start, len(t.tokens), 8)]
    return statistics.mean(len(draft.children.get(-1, ())) for draft in drafts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--questions", type=Path, help="a file in Spec-Bench's form; default: our own set")
    parser.add_argument("--per-category", type=int, default=1, help="measured questions of each category")
    parser.add_argument("--others", type=int, default=3, help="further questions of each category, for the own table")
    parser.add_argument("--corpus", type=Path, nargs="*", default=[], help="texts for the corpus table")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--only", default="", help="only the rows whose name contains this")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    lm = load(arguments.model)
    vocabulary = lm.network.vocabulary
    measured = load_questions(arguments.questions, per_category=arguments.per_category)
    chosen = {question.id for question in measured}
    more = load_questions(arguments.questions, per_category=arguments.per_category + arguments.others)
    texts = record(lm, measured, arguments.max_new_tokens)
    others = record(lm, [q for q in more if q.id not in chosen], arguments.max_new_tokens)
    tables: dict[str, TrigramTable | None] = {"empty": None, "own": build(lm, iter([t.tokens for t in others]), 1)}
    if arguments.corpus:
        pieces = (piece for path in arguments.corpus for piece in text_tokens(lm, path))
        corpus = list(pieces)
        tables["corpus"] = build(lm, iter(corpus))
        tables["both"] = build(lm, iter([*corpus, *(t.tokens for t in others)]))
    one_row = forward_seconds(lm)
    lookup = sum((replay(NgramDrafter(3, 10, "first", False), t.tokens, t.start) for t in texts), Replay())
    rows = []
    for label, start, options in ENTRANTS:
        if start not in tables or arguments.only not in label:
            continue
        table = tables[start]
        first, second = passes(texts, table, vocabulary, options)
        rows.append({
            "start": label,
            "pairs": 0 if table is None else len(table),
            "tokens/round": first.tokens_per_round,
            "second pass": second.tokens_per_round,
            "nodes/round": first.drafted / first.rounds,
            "first tokens": "" if table is None else breadth(texts, table, vocabulary, options),
            "drafting, ms": 1e3 * first.seconds_per_draft,
            "of a forward": f"{first.seconds_per_draft / one_row:.1%}",
        })  # fmt: skip
    print(
        f"{lm.name}, {len(texts)} questions, {sum(len(t.tokens) - t.start for t in texts)} tokens written; "
        f"own table from {len(others)} others; a forward of one row takes {1e3 * one_row:.1f} ms; "
        f"prompt lookup gets {lookup.tokens_per_round:.2f} tokens per round.\n"
    )
    print(markdown_rows(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows, "forward_seconds": one_row}, indent=1))


if __name__ == "__main__":
    main()
