"""Whether texts can be told apart without the model that is said to have learned some of them: a classifier of words.

Where it can, a score that tells them apart says nothing of membership: topics, dates or formats are enough for it.

Source: Meeus et al., arXiv 2406.17975, and the settings of their repository: word counts, a forest of 100 trees of depth 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from decodery.audit.measures import MeasuredRate, auc, measured
from decodery.audit.needed import statistics
from decodery.errors import BadInput, reason
from decodery.evaluation.intervals import Array

LEVEL = 0.99
"""Of the interval that decides whether there is a shift."""
UNUSABLE = 0.6
"""Area from which on a set is of no use for claims of membership."""
FOLDS, TREES, SEED = 5, 100, 42
LEAST_SHARE, LEAST_TEXTS = 0.05, 5
"""A word counts if it stands in this share of the texts that a classifier is fitted on, and in as many of them."""


@dataclass(frozen=True)
class ShiftWord:
    """A word that the classifier looked at. importance: its mean decrease of impurity, all words together 1. members, others:
    the shares of texts in which it stands."""

    word: str
    importance: float
    members: float
    others: float


@dataclass(frozen=True)
class ShiftTest:
    """auc: of the out-of-fold probabilities, with the interval of `LEVEL`. words: those looked at most, most first.
    probabilities: [n], of being a member, by classifiers that did not see the text."""

    auc: MeasuredRate
    words: tuple[ShiftWord, ...]
    probabilities: Array

    @property
    def found(self) -> bool:
        """Whether words alone tell members from others."""
        return self.auc.low > 0.5

    @property
    def unusable(self) -> bool:
        """Whether they do so well enough to make any score of the model meaningless."""
        return self.found and self.auc.value >= UNUSABLE


def shift_test(
    texts: Sequence[str],
    members: Sequence[bool],
    documents: Sequence[str] | None = None,
    seed: int = SEED,
    shown: int = 10,
) -> ShiftTest:
    """Classify texts by their words alone, five folds, each with a vocabulary of its own training texts.

    documents: of each text, what it is a part of; parts of one document stay in one fold. shown: how many words to tell.
    Raises BadInput where a class has fewer documents than folds, MethodUnavailable without scikit-learn.
    """
    labels = np.array(members, dtype=int)
    groups = np.arange(len(texts)) if documents is None else np.unique(list(documents), return_inverse=True)[1]
    fewest = min(len(set(groups[labels == side])) for side in (0, 1))
    if fewest < FOLDS:
        raise BadInput(
            f"the test of words needs at least {FOLDS} members and {FOLDS} others, and one class has {fewest}."
        )
    selection, text = statistics("sklearn.model_selection"), statistics("sklearn.feature_extraction.text")
    forests = statistics("sklearn.ensemble")
    if len(set(groups)) == len(groups):
        folds = selection.StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(labels, labels)
    else:
        folds = selection.StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(labels, labels, groups)
    found = np.empty(len(texts))
    weights: dict[str, float] = {}
    for fitted, held_out in folds:
        vectoriser = text.CountVectorizer()
        try:
            counts = vectoriser.fit_transform([texts[place] for place in fitted])
        except ValueError as error:
            raise BadInput(f"the test of words finds none in the texts: {reason(error)}.") from None
        least = max(LEAST_TEXTS, LEAST_SHARE * len(fitted))
        kept = np.flatnonzero(np.asarray((counts > 0).sum(axis=0)).ravel() >= least)
        if not len(kept):  # no word is common enough to be looked at
            found[held_out] = labels[fitted].mean()
            continue
        forest = forests.RandomForestClassifier(TREES, max_depth=2, min_samples_leaf=5, random_state=seed)
        forest.fit(counts[:, kept].toarray(), labels[fitted])
        held = vectoriser.transform([texts[place] for place in held_out])[:, kept].toarray()
        found[held_out] = forest.predict_proba(held)[:, 1]
        names = vectoriser.get_feature_names_out()[kept]
        for name, weight in zip(names, forest.feature_importances_, strict=True):
            weights[name] = weights.get(name, 0.0) + float(weight) / FOLDS
    area = measured(auc, found, labels.astype(float), LEVEL)
    best = sorted(weights, key=lambda name: (-weights[name], name))[:shown]
    return ShiftTest(area, tuple(_word(name, weights[name], texts, labels) for name in best), found)


def _word(word: str, importance: float, texts: Sequence[str], labels: Array) -> ShiftWord:
    analyse = statistics("sklearn.feature_extraction.text").CountVectorizer().build_analyzer()
    there = np.array([word in analyse(text) for text in texts])
    return ShiftWord(word, importance, float(there[labels == 1].mean()), float(there[labels == 0].mean()))
