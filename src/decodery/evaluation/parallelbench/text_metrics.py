"""Metrics of ParallelBench's open text tasks: summaries, paraphrases and sentences of given words.

Grammar is judged by LanguageTool, which needs Java, and meaning by BERTScore, which needs a reference model. Where a judge is
absent its score is None, which reports call "not measured".
"""

from __future__ import annotations

import math
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

NOT_MEASURED = "not measured"


class Grammar(Protocol):
    """Finds faults in English text."""

    def faults(self, text: str) -> int:
        """How many."""
        ...


class LanguageTool:
    """LanguageTool by its Python package `language_tool_python`, run locally."""

    def __init__(self) -> None:
        import language_tool_python

        self._tool = language_tool_python.LanguageTool("en-US")

    def faults(self, text: str) -> int:
        return len(self._tool.check(text))


def language_tool() -> Grammar | None:
    """LanguageTool where its package and Java are installed, else None."""
    if shutil.which("java") is None:
        return None
    try:
        return LanguageTool()
    except ImportError:
        return None


class Similarity(Protocol):
    """Compares the meaning of two texts, as BERTScore does."""

    def f1(self, text: str, reference: str) -> float:
        """From 0 to 1."""
        ...


def words(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    return re.findall(r"[\w']+", text.lower())


def grammar_score(text: str, grammar: Grammar | None) -> float | None:
    """1 where no fault is found, 0 otherwise; None where there is no judge."""
    return None if grammar is None else float(grammar.faults(text) == 0)


def holds_all_words(text: str, given: Sequence[str]) -> bool:
    """Whether every given word occurs as a word of the text."""
    return {word.lower() for word in given} <= set(words(text))


def words_to_sentence(text: str, given: Sequence[str], grammar: Grammar | None) -> float | None:
    """1 where all words occur and the grammar is clean; 0 already where a word is missing; None where nobody judges grammar."""
    return grammar_score(text, grammar) if holds_all_words(text, given) else 0.0


def rouge_l(text: str, reference: str) -> float:
    """F1 of the longest common subsequence of words (Lin, 2004)."""
    mine, theirs = words(text), words(reference)
    if not mine or not theirs:
        return 0.0
    lengths = [0] * (len(theirs) + 1)
    for word in mine:
        before = 0
        for place, other in enumerate(theirs, start=1):
            before, lengths[place] = (
                lengths[place],
                (before + 1 if word == other else max(lengths[place], lengths[place - 1])),
            )
    common = lengths[-1]
    return 2 * common / (len(mine) + len(theirs))


def bleu(text: str, reference: str, order: int = 4) -> float:
    """BLEU of one sentence against one reference (Papineni et al., 2002), one added to the counts above order 1 (Lin and Och,
    2004). From 0 to 1."""
    mine, theirs = words(text), words(reference)
    if not mine:
        return 0.0
    logarithms = []
    for n in range(1, order + 1):
        own, other = (Counter(tuple(w[i : i + n]) for i in range(len(w) - n + 1)) for w in (mine, theirs))
        matched, total = sum((own & other).values()), sum(own.values())
        add = 1 if n > 1 else 0
        if matched + add == 0:
            return 0.0
        logarithms.append(math.log((matched + add) / (total + add)))
    brevity = min(1.0, math.exp(1 - len(theirs) / len(mine)))
    return brevity * math.exp(sum(logarithms) / order)


def inverse_bleu(text: str, source: str) -> float:
    """1 - BLEU against the text that was to be said differently: higher is more different."""
    return 1 - bleu(text, source)
