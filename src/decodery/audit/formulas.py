"""The formulas of membership scores over what `lm.score` tells of a text; all so that members are expected to have the
higher.

Notation of the sources: log p(x_t | x_<t) of the tokens that have one, L minus their mean.

Sources: LOSS, Yeom et al. 2018 (arXiv 1709.01604); zlib, lower case and ratio, Carlini et al. 2021 (arXiv 2012.07805);
Min-K%, Shi et al. 2023 (arXiv 2310.16789); Min-K%++, Zhang et al. 2024 (arXiv 2404.02936, equation 3); SURP, Zhang and Wu
2024 (arXiv 2407.21248); PAC, Ye et al. 2024 (arXiv 2405.11930); DC-PDD, Zhang et al. 2024 (arXiv 2409.14781);
SaMIA, Kaneko et al. 2024 (arXiv 2404.11262). Where the repository of arXiv 2406.17975 departs from these, they are followed.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from decodery.evaluation.intervals import Array

LEAST_SHARE = 0.2
"""k of Min-K% and Min-K%++."""
SURP_SHARE, SURP_ENTROPY, SURP_NONE = 0.4, 2.0, -100.0
"""Share of the least likely tokens, the entropy in nats below which the model was sure, and the score where there is none."""
FLATTEST = 1e-6
"""Least standard deviation in Min-K%++."""
TOP, BOTTOM = 0.05, 0.3
"""Shares of the likeliest and the least likely tokens in PAC."""
CLIP = 0.01
"""Most that a token counts in DC-PDD."""
HEADER = 100
"""Bytes below which a zlib size is mostly that of its header."""


@dataclass(frozen=True)
class TokenRecord:
    """What a model says of a text, of its n tokens that have a probability. ids: [n]. logprobs: [n] float64. covered: the
    bytes of text that these tokens say. entropies, deviations: [n] float64, where they were asked for, as in `Scored`."""

    text: str
    ids: tuple[int, ...]
    logprobs: Array
    covered: int
    entropies: Array | None = None
    deviations: Array | None = None

    @property
    def loss(self) -> float:
        """L, in nats a token."""
        return -float(self.logprobs.mean())


def zlib_size(text: str) -> int:
    """Bytes of the compressed text."""
    return len(zlib.compress(text.encode()))


def zlib_ratio(record: TokenRecord) -> float:
    """−L over how well zlib compresses the text (compressed bytes a character); the repository's form."""
    return -record.loss / (zlib_size(record.text) / len(record.text))


def zlib_total(record: TokenRecord) -> float:
    """The log probability of the text over its compressed bytes; the original form."""
    return float(record.logprobs.sum()) / zlib_size(record.text)


def least_likely(values: Array, share: float = LEAST_SHARE) -> float:
    """The mean of this share of the values, the lowest, at least of one."""
    return float(np.sort(values)[: max(1, int(share * len(values)))].mean())


def standardised(record: TokenRecord) -> Array:
    """How far each log probability is from what the law expects of it, in its standard deviations: [n]."""
    assert record.entropies is not None
    assert record.deviations is not None
    return np.asarray((record.logprobs + record.entropies) / np.maximum(record.deviations, FLATTEST))


def surprising(record: TokenRecord) -> float:
    """The mean log probability of the least likely tokens at places where the model was sure of what comes."""
    assert record.entropies is not None
    least = np.argsort(record.logprobs, kind="stable")[: int(SURP_SHARE * len(record.logprobs))]
    sure = least[record.entropies[least] < SURP_ENTROPY]
    return float(record.logprobs[sure].mean()) if len(sure) else SURP_NONE


def polarised(logprobs: Array) -> float:
    """The mean of the likeliest tokens above that of the least likely, in nats."""
    ordered = np.sort(logprobs)
    top, bottom = (max(1, int(share * len(ordered))) for share in (TOP, BOTTOM))
    return float(ordered[-top:].mean() - ordered[:bottom].mean())


def calibrated(record: TokenRecord, frequencies: Mapping[int, float], unseen: float) -> float:
    """p log(1 / frequency) of each token where it comes first, at most `CLIP`, on average. frequencies: of tokens in a
    background corpus; unseen: of all others."""
    first = [place for place, token in enumerate(record.ids) if token not in record.ids[:place]]
    values = [np.exp(record.logprobs[place]) * -np.log(frequencies.get(record.ids[place], unseen)) for place in first]
    return float(np.minimum(values, CLIP).mean())


def frequencies(corpus: Sequence[Sequence[int]], vocabulary: int) -> tuple[dict[int, float], float]:
    """The frequencies of tokens in a corpus, one added to each count, and that of a token that is not in it."""
    counts = Counter(token for text in corpus for token in text)
    total = counts.total() + vocabulary
    return {token: (count + 1) / total for token, count in counts.items()}, 1 / total


def recalled(candidate: str, reference: str) -> float:
    """ROUGE-1 recall: the share of the reference's words that the candidate has, each as often as it has it."""
    wanted = Counter(reference.split())
    return (wanted & Counter(candidate.split())).total() / wanted.total() if wanted else 0.0


def swapped(text: str, draws: np.random.Generator, share: float) -> str:
    """The text with as many swaps of two random words as this share of its words, at least one. A text of one word stays."""
    words = text.split(" ")
    for _ in range(max(1, int(share * len(words))) if len(words) > 1 else 0):
        one, other = draws.choice(len(words), 2, replace=False)
        words[one], words[other] = words[other], words[one]
    return " ".join(words)
