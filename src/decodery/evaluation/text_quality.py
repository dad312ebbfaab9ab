"""How good texts are that have no right answer: what they repeat, how different they are, how well they follow their prompt,
and how near the best of several comes to a reference. `decodery.evaluation.mauve` compares whole sets of texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from decodery.engine.spelling import WrittenTokens
from decodery.evaluation.parallelbench.text_metrics import rouge_l
from decodery.evaluation.typicality import typicality
from decodery.models.forward import Forward
from decodery.sampling.law import Law
from decodery.sampling.law_settings import LawSettings
from decodery.sampling.steps.momentum_decoding import MomentumDecoding

if TYPE_CHECKING:
    from decodery.language_model import LanguageModel


def repetition(tokens: Sequence[int], size: int) -> float:
    """The share of the text's n-grams of `size` tokens that came before in it (rep-n / 100 of Welleck et al. 2020): 0 to 1.
    0 where there is none. Tokens may be words or anything else that can be compared."""
    grams = _ngrams(tokens, size)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def diversity(tokens: Sequence[int]) -> float:
    """The product of 1 - rep-n over n of 2, 3 and 4 (Su et al. 2022): 1 where no pair of tokens comes twice."""
    product = 1.0
    for size in (2, 3, 4):
        product *= 1 - repetition(tokens, size)
    return product


def distinct(texts: Sequence[Sequence[int]], size: int) -> float:
    """Different n-grams over all n-grams of several texts together (distinct-n, Li et al. 2016): 0 to 1, and 0 where they are
    too short for one. Texts alike make it small, and so does repetition within one."""
    grams = [gram for text in texts for gram in _ngrams(text, size)]
    return len(set(grams)) / len(grams) if grams else 0.0


def coherence(scorer: LanguageModel, prompt: str | Sequence[int], text: str | Sequence[int]) -> float:
    """The mean log probability, in nats, of a text's tokens behind its prompt under a model (Su et al. 2022): at most 0.

    scorer: the model, which need not be the one that wrote the text; what is given as text is read with its tokenizer, and
    token ids must be its own. Raises ValueError where prompt or text has no token.
    """
    before, tokens = (scorer.encode(part) if isinstance(part, str) else list(part) for part in (prompt, text))
    if not before or not tokens:
        raise ValueError("coherence is that of a text of at least one token behind a prompt of at least one.")
    return -sum(typicality(scorer, before, tokens).surprises) / len(tokens)


def oracle(texts: Sequence[str], reference: str, measure: Callable[[str, str], float] = rouge_l) -> float:
    """How near the best of several texts comes to a reference: the best `measure` of all (oracle@k of k texts), by default the
    F1 of the longest common subsequence of words. Raises ValueError where there is no text."""
    if not texts:
        raise ValueError("there is no best of no texts.")
    return max(measure(text, reference) for text in texts)


def momentum_labels(
    lm: LanguageModel, prompt: Sequence[int], tokens: Sequence[int], step: MomentumDecoding
) -> tuple[int, ...]:
    """Of each token of a text that `step` chose behind a prompt: 0 where the likeliest token met no resistance, 1 where it met
    some and was chosen, 2 where another one was. With no other step before it."""
    text, sequence = [*prompt, *tokens], lm.network.new_sequence()
    special = WrittenTokens(lm).special_ids
    law = Law(LawSettings(temperature=0.0), prompt, sorted(lm.stop_ids), special_ids=special)
    labels = []
    with lm.working():
        [scores] = lm.network.run([Forward(sequence, text[:-1], logits=range(len(prompt) - 1, len(text) - 1))])
    for row, token in zip(scores.logits, tokens, strict=True):
        labels.append(step.label(row, law.prefix()))
        law.observe(token)
    return tuple(labels)


def _ngrams(tokens: Sequence[int], size: int) -> list[tuple[int, ...]]:
    return [tuple(tokens[start : start + size]) for start in range(len(tokens) - size + 1)]
