"""What parallel decoding loses, in bits: the information-theoretic analysis of ParallelBench (arXiv 2510.04767, section 3).

A decoder that fills the set S_t of positions in step t from marginals given what is filled gives up, in expectation, the
conditional total correlation of S_t; the sum over the steps bounds KL(data || decoder) from below and is reached by a model
whose marginals are exact. The functions work on an explicit law of answers, {answer: probability}, and on the closed forms of
the list tasks. An answer is a tuple; all answers of a law have one length. Everything is in bits unless it says otherwise.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from decodery.evaluation.parallelbench.lists import FREE, ORDERED, ListProblem, all_answers

Answer = tuple[str, ...]
AnswerLaw = Mapping[Answer, float]
Key = TypeVar("Key")


def uniform_law(answers: Iterable[Answer]) -> dict[Answer, float]:
    """The uniform law over answers: that of an ideal model of a task with several right ones."""
    found = list(answers)
    return {answer: 1 / len(found) for answer in found}


def entropy(probabilities: Iterable[float]) -> float:
    """In bits."""
    return -sum(p * math.log2(p) for p in probabilities if p > 0)


def marginal(law: AnswerLaw, positions: Sequence[int]) -> dict[Answer, float]:
    """The law of the tokens at some positions."""
    found: defaultdict[Answer, float] = defaultdict(float)
    for answer, probability in law.items():
        found[tuple(answer[i] for i in positions)] += probability
    return dict(found)


def given(law: AnswerLaw, positions: Sequence[int], tokens: Answer) -> dict[Answer, float]:
    """The law of answers that hold these tokens at these positions."""
    kept = {answer: p for answer, p in law.items() if tuple(answer[i] for i in positions) == tokens}
    total = sum(kept.values())
    return {answer: p / total for answer, p in kept.items()}


def total_correlation(law: AnswerLaw, positions: Sequence[int] | None = None) -> float:
    """C = sum_i H(y_i) - H(y_1..y_n) of the tokens at some positions (None: all), in bits."""
    places = range(len(next(iter(law)))) if positions is None else positions
    alone = sum(entropy(marginal(law, [i]).values()) for i in places)
    return alone - entropy(marginal(law, list(places)).values())


def lower_bound(law: AnswerLaw, steps: Sequence[Sequence[int]]) -> float:
    """sum_t E[C(S_t | S_<t)]: the least KL(data || decoder) of any decoder that fills the positions `steps[t]` in step t."""
    total = 0.0
    seen: list[int] = []
    for positions in steps:
        for tokens, probability in marginal(law, seen).items():
            total += probability * total_correlation(given(law, seen, tokens), positions)
        seen += list(positions)
    return total


def decoder_law(law: AnswerLaw, steps: Sequence[Sequence[int]]) -> dict[Answer, float]:
    """The law of what an ideal model writes when it fills `steps[t]` in step t, each token from its own marginal.

    Where it wrote something that no answer holds, the marginals given that are undefined; the mass stays with the unfinished
    answer, whose open positions are empty strings.
    """
    length = len(next(iter(law)))
    states: dict[Answer, float] = {("",) * length: 1.0}
    seen: list[int] = []
    for positions in steps:
        after: defaultdict[Answer, float] = defaultdict(float)
        for state, mass in states.items():
            fitting = {a: p for a, p in law.items() if all(a[i] == state[i] for i in seen)}
            total = sum(fitting.values())
            if total == 0:
                after[state] += mass
                continue
            grown = {state: mass}
            for i in positions:
                alone = marginal({a: p / total for a, p in fitting.items()}, [i])
                grown = {
                    (*old[:i], token[0], *old[i + 1 :]): m * p for old, m in grown.items() for token, p in alone.items()
                }
            for new, m in grown.items():
                after[new] += m
        states = dict(after)
        seen += list(positions)
    return states


def divergence(law: Mapping[Key, float], other: Mapping[Key, float]) -> float:
    """KL(law || other), in bits; infinite where `other` misses an answer."""
    total = 0.0
    for key, p in law.items():
        if p > 0:
            q = other.get(key, 0.0)
            if q == 0:
                return math.inf
            total += p * math.log2(p / q)
    return total


def blocks(length: int, size: int) -> list[range]:
    """The steps of a decoder that fills `size` positions at a time from left to right."""
    return [range(start, min(start + size, length)) for start in range(0, length, size)]


# Closed forms


def task_correlation(task: str, n: int) -> float:
    """C(Y|X) of an ideal model on a list of n distinct items, in bits.

    0 for the tasks with one answer; (n - 1) log2(n / (n - 1)) for replace_random; n log2 n - log2 n! for shuffle, of which the
    input order counts as an answer here, as in the paper. For insert_random and remove_random it is computed from all answers.
    Raises ValueError for an unknown task.
    """
    if task in ORDERED:
        return 0.0
    if task == "replace_random":
        return (n - 1) * math.log2(n / (n - 1)) if n > 1 else 0.0
    if task == "shuffle":
        return n * math.log2(n) - math.log2(math.factorial(n))
    if task not in FREE:
        raise ValueError(f"there is no list task {task!r}")
    items = tuple(f"item {i}" for i in range(n))
    word = "new" if task == "insert_random" else None
    return total_correlation(uniform_law(all_answers(ListProblem(task, items, word))))


def step_sizes(n: int, k: int) -> list[int]:
    """Sizes of the steps of a decoder that fills k of n positions at a time."""
    return [min(k, n - start) for start in range(0, n, k)]


def replace_random_accuracy(n: int, k: int) -> float:
    """Greedy accuracy of an ideal model at k tokens a step, equals drawn at random: 1, 0.5 or 0 by the last step's size.

    Until a step of at most two positions keeping an item is likelier than replacing it, so the new item waits for the last
    step; there one position must take it, two toss a coin each, and three or more keep their items.
    """
    last = step_sizes(n, k)[-1]
    return {1: 1.0, 2: 0.5}.get(last, 0.0)


def replace_random_threshold_accuracy(n: int, threshold: float) -> float:
    """The same for a decoder that fills whatever is surer than `threshold` (strictly), or else the surest position.

    Above (n - 1) / n it is one position at a time and 1; below it every position keeps its item at once and it is 0, or 0.5
    for n = 2, where both toss a coin.
    """
    if n == 1 or threshold >= (n - 1) / n:
        return 1.0
    return 0.5 if n == 2 else 0.0


def shuffle_accuracy(n: int, k: int) -> float:
    """The chance that k tokens a step give a permutation: n! / prod_s (n - s k)^(size of step s)."""
    chance, left = math.factorial(n), n
    value = float(chance)
    for size in step_sizes(n, k):
        value /= left**size
        left -= size
    return value


def shuffle_threshold_accuracy(n: int, threshold: float) -> float:
    """The same for a decoder that fills whatever is surer than `threshold` (strictly), or else the surest position.

    With r items left every position has probability 1 / r. Once that exceeds the threshold all r are drawn together, and are a
    permutation with probability r! / r^r. So it is 1 only for thresholds of at least 0.5.
    """
    together = max((r for r in range(1, n + 1) if 1 / r > threshold), default=1)
    return float(math.factorial(together) / together**together)


@dataclass(frozen=True)
class EditedPlaces:
    """Where right answers edited their lists. bits: entropy of the place, the mean over the lists' lengths, each weighed by its
    right answers. most: what it is where every place is as likely. right: how many right answers were looked at."""

    bits: float
    most: float
    right: int


def edited_places(problems: Sequence[ListProblem], outputs: Sequence[Answer]) -> EditedPlaces:
    """Entropy, in bits, of where right outputs edited the lists (insert, remove or replace anywhere), one output a problem.

    A model that always edits the same place solves the task without any dependence between tokens: its entropy is 0. Places
    count from the beginning of the list. Entropies of few outputs are too low, by about places / (1.4 outputs).
    """
    counts: defaultdict[int, Counter[int]] = defaultdict(Counter)
    for problem, output in zip(problems, outputs, strict=True):
        answers = all_answers(problem)
        if output in answers:
            counts[len(answers)][answers.index(output)] += 1
    right = sum(places.total() for places in counts.values())
    if not right:
        return EditedPlaces(0.0, 0.0, 0)
    bits = most = 0.0
    for size, places in counts.items():
        total = places.total()
        bits += total / right * entropy(count / total for count in places.values())
        most += total / right * math.log2(size)
    return EditedPlaces(bits, most, right)
