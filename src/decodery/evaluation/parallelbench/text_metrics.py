"""Metrics of ParallelBench's open text tasks: summaries, paraphrases and sentences of given words.

Grammar is judged by LanguageTool, which needs Java, and meaning by BERTScore, which needs a reference model. Where a judge is
absent its score is None.
"""

from __future__ import annotations

import importlib.util
import math
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from decodery.errors import BadInput


class Grammar(Protocol):
    """Finds faults in English text."""

    def faults(self, text: str) -> int:
        """How many."""
        ...


class LanguageTool:
    """LanguageTool by its Python package `language_tool_python`, run locally. The package loads the program when it is first
    used; raises BadInput where it cannot."""

    def __init__(self) -> None:
        import language_tool_python

        try:
            self._tool = language_tool_python.LanguageTool("en-US")
        except OSError as error:
            raise BadInput(f"LanguageTool is installed but does not start: {error}") from error

    def faults(self, text: str) -> int:
        return len(self._tool.check(text))


def language_tool() -> Grammar | None:
    """LanguageTool where its package and Java are installed, else None."""
    if shutil.which("java") is None or importlib.util.find_spec("language_tool_python") is None:
        return None
    return LanguageTool()


class Similarity(Protocol):
    """Compares the meaning of two texts, as BERTScore does."""

    def f1(self, text: str, reference: str) -> float:
        """From 0 to 1."""
        ...


class BertScore:
    """BERTScore by its Python package `bert_score`, with the package's own model for English. Raises BadInput where that model
    cannot be loaded."""

    def __init__(self) -> None:
        import bert_score

        try:
            self._scorer = bert_score.BERTScorer(lang="en")
        except OSError as error:
            raise BadInput(f"BERTScore is installed but its model cannot be loaded: {error}") from error

    def f1(self, text: str, reference: str) -> float:
        return float(self._scorer.score([text], [reference])[2][0])


def bert_score() -> Similarity | None:
    """BERTScore where its package is installed, else None."""
    return None if importlib.util.find_spec("bert_score") is None else BertScore()


def grammar_score(text: str, grammar: Grammar | None) -> float | None:
    """1 where there is text and no fault is found in it, 0 otherwise; None where there is no judge."""
    return None if grammar is None else float(bool(text) and grammar.faults(text) == 0)


def similarity_score(text: str, reference: str, similarity: Similarity | None) -> float | None:
    """F1 of the meanings; 0 for no text; None where there is no judge."""
    if similarity is None:
        return None
    return similarity.f1(text, reference) if text else 0.0


def holds_all_words(text: str, given: Sequence[str]) -> bool:
    """Whether every given word stands in the text as it is written, within a longer word too: the published rule."""
    return all(word in text for word in given)


def words(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    return re.findall(r"[a-z0-9]+", text.lower())


def rouge_l(text: str, reference: str) -> float:
    """F1 of the longest common subsequence of words (Lin, 2004). The published metric compares the stems of words, this one the
    words themselves, so it is lower where only their endings differ."""
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


def split_13a(text: str) -> list[str]:
    """Words and signs as the evaluation script mteval-v13a splits them: what BLEU counts."""
    text = f" {text.replace('-' + chr(10), '').replace(chr(10), ' ')} "
    text = re.sub(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])", r" \1 ", text)
    text = re.sub(r"([^0-9])([\.,])", r"\1 \2 ", text)
    text = re.sub(r"([\.,])([^0-9])", r" \1 \2", text)
    return re.sub(r"([0-9])(-)", r"\1 \2 ", text).split()


def bleu(text: str, reference: str, order: int = 4) -> float:
    """BLEU of one text against one reference (Papineni et al., 2002), without smoothing: 0 where some order up to `order` has
    nothing in common. From 0 to 1."""
    mine, theirs = split_13a(text), split_13a(reference)
    logarithms = []
    for n in range(1, order + 1):
        own, other = (Counter(tuple(w[i : i + n]) for i in range(len(w) - n + 1)) for w in (mine, theirs))
        matched = (own & other).total()
        if matched == 0:
            return 0.0
        logarithms.append(math.log(matched / own.total()))
    brevity = min(1.0, math.exp(1 - len(theirs) / len(mine)))
    return brevity * math.exp(sum(logarithms) / order)


def inverse_bleu(text: str, source: str) -> float:
    """1 - BLEU against the text that was to be said differently: higher is more different. 0 for no text."""
    return 1 - bleu(text, source) if text else 0.0
