"""The metrics of ParallelBench's published tasks, by name; "score" is the one that the paper reports.

Open text is scored by a product of parts (summaries: ROUGE-L and grammar; paraphrases: inverse BLEU, BERTScore and grammar;
sentences of given words: all of them occur, and grammar). Where a judge is not installed, its part and the score are not
measured; the other parts are.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from decodery.evaluation.parallelbench import lists, puzzles, text_metrics
from decodery.evaluation.parallelbench.answers import read_answer, read_latin, read_sudoku, write_list
from decodery.evaluation.parallelbench.published import LATIN, PARAPHRASES, SUDOKU, SUMMARIES, TEXT_TASKS, Item
from decodery.evaluation.parallelbench.text_metrics import Grammar, Similarity

SCORE, STRICT = "score", "strict"
GRAMMAR, SIMILARITY = "grammar", "bert_score"
INSTALL = {
    GRAMMAR: "LanguageTool: pip install language_tool_python, and Java 17 on the path",
    SIMILARITY: "BERTScore: pip install bert-score (it loads roberta-large)",
}
"""What each judge that may be missing is, and how it is installed."""


@dataclass(frozen=True)
class Judges:
    """Judges of open text; None is one that is not there."""

    grammar: Grammar | None = None
    similarity: Similarity | None = None

    @classmethod
    def installed(cls, task: str) -> Judges:
        """Those that a task needs and this machine has. Raises BadInput where one is installed but does not start."""
        if task not in TEXT_TASKS:
            return cls()
        similarity = text_metrics.bert_score() if task == PARAPHRASES else None
        return cls(text_metrics.language_tool(), similarity)

    def missing(self, task: str) -> tuple[str, ...]:
        """Metrics of a task that cannot be measured, by their names in `INSTALL`."""
        if task not in TEXT_TASKS:
            return ()
        absent = [GRAMMAR] if self.grammar is None else []
        return (*absent, *([SIMILARITY] if task == PARAPHRASES and self.similarity is None else []))


def right(item: Item, response: str, *, strict: bool = False) -> bool:
    """Whether a response answers a list or a puzzle. strict: it must be the answer alone, in the answer's own notation.

    Raises ValueError for an item of open text, which is never plainly right.
    """
    if item.task in TEXT_TASKS:
        raise ValueError(f"{item.task} has no right answers")
    if item.task == LATIN:
        clean = not strict or re.fullmatch(r"(\S(,\S)+\n?)+", response) is not None
        return clean and puzzles.is_latin(read_latin(response, item.problem), item.problem)
    if item.task == SUDOKU:
        if strict:
            return bool(response == item.entry["answer"])
        return bool(read_sudoku(response) == item.problem)
    items = read_answer(response)
    if strict and response.strip() != write_list(items):
        return False
    return lists.is_right(item.problem, items)


def measure(item: Item, response: str, judges: Judges) -> dict[str, float]:
    """All metrics of a response, from 0 to 1, without those whose judge is missing."""
    if item.task not in TEXT_TASKS:
        return {SCORE: float(right(item, response)), STRICT: float(right(item, response, strict=True))}
    text = response.strip()
    parts: dict[str, float | None]
    if item.task == SUMMARIES:
        parts = {"rouge_l": text_metrics.rouge_l(text, item.problem)}
    elif item.task == PARAPHRASES:
        parts = {
            "inverse_bleu": text_metrics.inverse_bleu(text, item.problem),
            SIMILARITY: text_metrics.similarity_score(text, item.problem, judges.similarity),
        }
    else:
        parts = {"all_words": float(text_metrics.holds_all_words(text, item.problem))}
    parts[GRAMMAR] = text_metrics.grammar_score(text, judges.grammar)
    known = {name: value for name, value in parts.items() if value is not None}
    return {SCORE: math.prod(known.values()), **known} if len(known) == len(parts) else known
