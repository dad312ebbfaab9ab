"""Whether a text carries the mark of a key.

The marks of sequence keys are looked for by alignment, and how likely so good a fit is by chance is told by a permutation test:
the text against fresh keys (Kuditipudi, Thickstun, Hashimoto and Liang 2023, arXiv 2307.15593, algorithms 2 and 3). Its p-value
is valid for every text that does not depend on the key, whatever the statistic. Nothing but tokens and key is needed; what a
model says of the tokens tells, beside, whether the text could have shown a mark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import special, stats

from decodery.errors import BadInput, BadSetting, Refused
from decodery.plain import plain
from decodery.provenance.alignment import AT_ONCE, edit, simple
from decodery.provenance.context import look_up
from decodery.sampling.noise import Noise, Stage
from decodery.sampling.settings import Real
from decodery.sampling.watermarks.keys import ExponentialKey, InverseKey, SequenceKey, TournamentKey, WatermarkKey

if TYPE_CHECKING:
    from jaxtyping import Float32, Float64, Int64

STATISTICS = ("edit", "simple")
GAPS = {ExponentialKey.scheme: 0.0, InverseKey.scheme: 0.4}
"""What leaving out a token or an entry costs, as published."""
CHANCE = 0.5
"""From this p-value of marked text on, what is found is chance."""
RESAMPLES = 199
SIGNIFICANCE = 0.01
MOST_CELLS = 1e8
"""Cells of the recursion for one key up to which the edit statistic is taken where none is named: some 15 seconds, 199 keys."""

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Detection:
    """What was found. scheme: of the key. statistic: edit, simple, or context for keys that go by the last tokens. value: of
    the statistic; of sequence keys lower means more of a mark, otherwise higher. p_value: how likely at most a text that does
    not depend on the key fits it as well. tokens: of the text. counted: how many of them the statistic is about. block, gap: as
    `detect` has them, of sequence keys. resamples: fresh keys of the permutation test; 0: the law of the statistic is known.
    seed: what the fresh keys follow from. bound: a p-value without fresh keys, where there is one: that of the best place times
    the number of places. potential: one less the mean probability of the tokens, where it was given; reachable: the p-value of
    a text with these probabilities that carries the mark in full, and is not changed.
    """

    scheme: str
    statistic: str
    value: float
    p_value: float
    tokens: int
    counted: int
    significance: float
    block: int | None = None
    gap: float | None = None
    resamples: int = 0
    seed: int | None = None
    bound: float | None = None
    potential: float | None = None
    reachable: float | None = None

    @property
    def verdict(self) -> str:
        """detected, not detected, or undetectable: with these probabilities the text could not show the mark. Where a marked
        text's own p-value would be chance, a small one is chance, too."""
        if self.reachable is not None and self.reachable > CHANCE:
            return "undetectable"
        if self.p_value <= self.significance:
            return "detected"
        hidden = self.reachable is not None and self.reachable > self.significance
        return "undetectable" if hidden else "not detected"

    @property
    def sentence(self) -> str:
        """The verdict, for people."""
        if self.verdict == "detected":
            return "The text carries the mark of this key."
        if self.verdict == "undetectable":
            return "No mark can be found: the text is too predictable or too short to show one."
        if self.reachable is None:
            return (
                "No mark was found. Predictable text, such as greedy decoding's, shows none in any case; the model's own "
                "probabilities tell whether this one could."
            )
        return "No mark was found, and a text like this one would show it, were it unchanged."

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**vars(self), "verdict": self.verdict}


def detect(
    text: Sequence[int],
    key: WatermarkKey,
    *,
    statistic: str | None = None,
    block: int | None = None,
    gap: float | None = None,
    resamples: int | None = None,
    seed: int = 0,
    significance: float = SIGNIFICANCE,
    probabilities: Sequence[float] | Float64[np.ndarray, "m"] | None = None,
    nulls: Sequence[float] | Float64[np.ndarray, "n"] | None = None,
    tell: Tell | None = None,
) -> Detection:
    """Look for the mark of a key in a text.

    text: token ids, without the prompt and without special tokens before it. statistic: "edit" lets tokens be put in and left
    out, "simple" takes neither; None: edit, unless the text is so long that it would take minutes. block: so many successive
    tokens are to fit, wherever they stand; None: all of them; fewer find a mark in a part of the text, at some cost in power.
    gap: cost of leaving out a token or an entry; None: 0 for exp and 0.4 for its, as published. resamples: fresh keys; None:
    199; 0: none, where the simple statistic of an exp key has a bound without. seed: of the fresh keys. significance: largest
    p-value that is a detection. probabilities: of the tokens under the model that may have written them. nulls: values of the
    same statistic of texts without a mark (`reference`), in place of fresh keys; they must have been made with the same
    length, block and gap. tell: is told of progress, as (label, done, total).

    Raises BadSetting for values that cannot be, BadInput for texts without tokens or with foreign ones, and Refused for texts
    longer than a sequence key, or too short.
    """
    tokens = _tokens(text, key)
    level = float(_number("significance", significance, 0.0, 1.0, open_low=True))
    likely = None if probabilities is None else _probabilities(probabilities, len(tokens))
    if not isinstance(key, SequenceKey):
        named = {"statistic": statistic, "block": block, "gap": gap, "nulls": nulls}
        for name, value in named.items():
            if value is not None:
                raise BadSetting(f"{name} is for keys of the schemes exp and its, and this one is of {key.scheme}.")
        if likely is not None:
            raise BadSetting(
                f"what a {key.scheme} mark could show does not follow from the tokens' probabilities; leave them out."
            )
        if resamples is not None and not isinstance(key, TournamentKey):
            raise BadSetting(f"resamples are not needed for a {key.scheme} mark, whose law by chance is known.")
        fresh = RESAMPLES if resamples is None else _count("resamples", resamples, 1)
        found = look_up(tokens, key, fresh, seed)
        _check_resolution(found.resamples, level)
        return Detection(
            key.scheme, "context", found.value, found.p_value, len(tokens), found.counted, level,
            resamples=found.resamples, seed=seed if found.resamples else None,
        )  # fmt: skip
    return _align(tokens, key, statistic, block, gap, resamples, seed, level, likely, nulls, tell)


def _align(
    tokens: list[int],
    key: SequenceKey,
    statistic: str | None,
    block: int | None,
    gap: float | None,
    resamples: int | None,
    seed: int,
    level: float,
    likely: Float64[np.ndarray, "m"] | None,
    nulls: Sequence[float] | Float64[np.ndarray, "n"] | None,
    tell: Tell | None,
) -> Detection:
    size = len(tokens)
    if size > key.length:
        raise Refused(
            f"the text has {size} tokens, more than the {key.length} entries of the key, and none so long was marked with it; "
            "test parts of it."
        )
    block = size if block is None else _count("block", block, 1, size)
    if statistic is None:
        statistic = "edit" if (size - block + 1) * key.length * block**2 <= MOST_CELLS else "simple"
    elif statistic not in STATISTICS:
        raise BadSetting(f"statistic must be one of {', '.join(STATISTICS)}, not {statistic!r}.")
    if statistic == "simple" and gap is not None:
        raise BadSetting("gap is a cost of the edit statistic; the simple one leaves nothing out.")
    cost = GAPS[key.scheme] if gap is None else float(_number("gap", gap, 0.0, math.inf))
    fresh = RESAMPLES if resamples is None else _count("resamples", resamples, 0)
    different, text = np.unique(np.asarray(tokens), return_inverse=True)
    own = costs(key, different)
    value = float(_statistic(statistic, [own], text, block, cost)[0])
    bound = None
    if statistic == "simple" and isinstance(key, ExponentialKey):
        # Any block beside any entries is a sum of independent exponential numbers: of Gamma's law, whatever the tokens.
        bound = min(1.0, (size - block + 1) * key.length * float(stats.gamma.sf(-value, block)))
    aligned: Float64[np.ndarray, "resamples"] | None = None
    if nulls is not None:
        if resamples is not None or likely is not None:
            raise BadSetting("nulls stand in place of fresh keys; leave resamples and probabilities out.")
        others = np.asarray(nulls, np.float64)
        fresh = len(others)
        if not fresh:
            raise BadSetting("nulls must be at least one value.")
    elif fresh:
        others, aligned = _resampled(key, len(different), text, block, cost, statistic, fresh, seed, likely, tell)
    elif bound is None:
        raise BadSetting("resamples=0 is for the simple statistic of exp keys; others need fresh keys.")
    _check_resolution(fresh, level)
    p_value = (bound or 0.0) if not fresh else p_of(value, others)
    potential = reachable = None
    if likely is not None:
        potential = float(1 - likely.mean())
        wanted = _expected(key, likely, block)
        if aligned is None:
            reachable = min(1.0, (size - block + 1) * key.length * float(stats.gamma.sf(-wanted, block)))
        else:
            reachable = p_of(wanted, aligned)
    return Detection(
        key.scheme, statistic, value, p_value, size, block, level, block, cost if statistic == "edit" else None,
        fresh, seed if nulls is None and fresh else None, bound, potential, reachable,
    )  # fmt: skip


def work(size: int, key: WatermarkKey, statistic: str | None, block: int | None, resamples: int | None) -> float:
    """How much there is to do for a text of so many tokens: some 10^9 a second."""
    if not isinstance(key, SequenceKey):
        return 0.0
    block, keys = size if block is None else block, 1 + (RESAMPLES if resamples is None else resamples)
    cells = float(max(size - block + 1, 1) * key.length * block**2)
    if statistic == "simple" or (statistic is None and cells > MOST_CELLS):
        cells = 10.0 * size * key.length
    return cells * keys


def p_of(value: float, nulls: Float64[np.ndarray, "n"]) -> float:
    """(1 + how many nulls are at most the value) / (1 + how many there are): never 0."""
    return (1 + int((nulls <= value).sum())) / (len(nulls) + 1)


def reference(
    key: SequenceKey,
    texts: Sequence[Sequence[int]],
    *,
    statistic: str = "edit",
    block: int | None = None,
    gap: float | None = None,
    seed: int = 0,
) -> Float64[np.ndarray, "texts"]:
    """Values of a statistic for texts without a mark, each beside a fresh key of this one's shape: the nulls of texts of the
    same length, to be made once for a large study. p-values by them are approximate: a text under test has other tokens."""
    found, draws = [], _draws(seed)
    for given in texts:
        different, text = np.unique(np.asarray(_tokens(given, key)), return_inverse=True)
        size, cost = len(text) if block is None else block, GAPS[key.scheme] if gap is None else gap
        found.append(_statistic(statistic, [fresh_costs(key, len(different), draws)], text, size, cost)[0])
    return np.array(found)


def _statistic(
    name: str, tables: Sequence[Float32[np.ndarray, "u n"]], text: Int64[np.ndarray, "m"], block: int, gap: float
) -> Float64[np.ndarray, "keys"]:
    if name == "simple":
        return simple(tables, text, block)
    return edit(tables, text, block, gap).astype(np.float64)


def costs(key: SequenceKey, tokens: Int64[np.ndarray, "u"]) -> Float32[np.ndarray, "u length"]:
    """What tokens cost beside the entries of a key: log(1 - number) for exp, |number - rank / vocabulary| for its."""
    found = np.empty((len(tokens), key.length), np.float32)
    if isinstance(key, ExponentialKey):
        step = max(1, AT_ONCE // key.length)  # what is worked on at a time stays in a processor's cache
        for start in range(0, len(tokens), step):
            # Numbers are multiples of 2^-53 below 1, so that 1 less them is exact, and never 0.
            found[start : start + step] = np.log(1 - key.columns(tokens[start : start + step]))
        return found
    assert isinstance(key, InverseKey)
    ranks = key.ranks()[tokens] / key.vocabulary
    np.abs(key.numbers()[None, :] - ranks[:, None], out=found, casting="same_kind")
    return found


def fresh_costs(key: SequenceKey, count: int, draws: np.random.Generator) -> Float32[np.ndarray, "count length"]:
    """The same for a fresh random key and so many different tokens. Which they are does not matter: their numbers, and their
    ranks among all tokens, are drawn from the same laws."""
    if isinstance(key, ExponentialKey):
        return -draws.standard_exponential((count, key.length), dtype=np.float32)
    ranks = draws.choice(key.vocabulary, count, replace=False) / key.vocabulary
    return np.abs(draws.random(key.length)[None, :] - ranks[:, None]).astype(np.float32)


def _draws(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=Noise(seed).key(0, Stage.ORDER, ("fresh keys",))))


def _resampled(
    key: SequenceKey,
    count: int,
    text: Int64[np.ndarray, "m"],
    block: int,
    gap: float,
    statistic: str,
    resamples: int,
    seed: int,
    likely: Float64[np.ndarray, "m"] | None,
    tell: Tell | None,
) -> tuple[Float64[np.ndarray, "resamples"], Float64[np.ndarray, "resamples"] | None]:
    """The statistic of the text beside fresh keys, and the simple one, where the text's own probabilities are to be judged."""
    values, aligned, draws = [], [], _draws(seed)
    step = max(1, AT_ONCE // key.length)
    for start in range(0, resamples, step):
        end = min(start + step, resamples)
        tables = [fresh_costs(key, count, draws) for _ in range(start, end)]
        values.append(_statistic(statistic, tables, text, block, gap))
        if likely is not None:
            aligned.append(values[-1] if statistic == "simple" else simple(tables, text, block))
        if tell is not None:
            tell("fresh keys", end, resamples)
    return np.concatenate(values), np.concatenate(aligned) if aligned else None


def _expected(key: SequenceKey, likely: Float64[np.ndarray, "m"], block: int) -> float:
    """The mean of the simple statistic for marked tokens of these probabilities, at the best block.

    exp: the number of a chosen token is the largest of 1 / p, so that -log(1 - number) is the harmonic number of 1 / p on
    average. its: the number lies in the token's part of the law, p / 3 from its rank on average where the other tokens' masses
    are spread evenly over the order, and farther otherwise: more than is hoped for here is not reached.
    """
    exponential = isinstance(key, ExponentialKey)
    mean = -(special.digamma(1 / likely + 1) + np.euler_gamma) if exponential else likely / 3
    sums = np.concatenate([[0.0], mean.cumsum()])
    return float((sums[block:] - sums[:-block]).min())


# What is given


def _check_resolution(resamples: int, level: float) -> None:
    if resamples and 1 / (resamples + 1) > level:
        least = math.ceil(1 / level) - 1
        raise BadSetting(f"{resamples} resamples reach no p-value of {level:g}; take at least {least}.")


def _tokens(text: Sequence[int], key: WatermarkKey) -> list[int]:
    tokens = [plain(token) for token in text]
    if not tokens:
        raise BadInput("the text has no tokens; give at least one.")
    for token in tokens:
        if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < key.vocabulary:
            raise BadInput(f"the text holds {token!r}, but the key is for tokens 0 to {key.vocabulary - 1}.")
    return tokens


def _probabilities(given: Sequence[float] | Float64[np.ndarray, "m"], count: int) -> Float64[np.ndarray, "m"]:
    likely = np.asarray(given, np.float64)
    if likely.shape != (count,) or not ((likely > 0) & (likely <= 1)).all():
        raise BadSetting(f"probabilities must be {count} numbers above 0 and at most 1, one a token.")
    return likely


def _count(name: str, value: Any, least: int, most: int | None = None) -> int:
    value = plain(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < least or (most is not None and value > most):
        top = "" if most is None else f" and at most {most}"
        raise BadSetting(f"{name} must be a whole number of at least {least}{top}, not {value!r}.")
    return value


def _number(name: str, value: Any, low: float, high: float, open_low: bool = False) -> float:
    return Real(low, high, open_low).check(name, plain(value), 0)
