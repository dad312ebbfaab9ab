"""Obstinate words where the label is known: texts of two words for a feeling, under a small classifier and a causal model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from decodery.audit.fine_tuning import FineTuning, fine_tuned
from decodery.audit.gradobstinate import (
    FAR,
    GradObstinate,
    ObstinateSettings,
    ObstinateText,
    TrialText,
    first_order,
    important_words,
    perplexity,
    verified,
)
from decodery.audit.needed import statistics
from decodery.audit.obstinate_controls import (
    dictionary_of,
    keeps,
    random_words,
    rewritten,
    with_antonyms,
    with_random_words,
)
from decodery.audit.predictions import Predictor, TextQuestion
from decodery.audit.substitutes import MeaningJudge, SubstituteWords, TextWord, content_words
from decodery.errors import BadInput
from decodery.evaluation.experiment import Arm, Experiment, Figure, PublishedClaim, Study, once_per_item
from decodery.evaluation.intervals import Array
from experiments.texts import loaded

if TYPE_CHECKING:
    from decodery.language_model import LanguageModel

FEELINGS = {
    " joy": "happy glad proud excited cheerful delighted joyful",
    " sorrow": "sad lonely sorry unhappy gloomy miserable hopeless",
    " fear": "afraid scared worried nervous frightened terrified fearful",
}
LABELS = tuple(FEELINGS)
NAMES = "Lily Tom Sara Max Anna Ben Mia Jack Lucy Sam Emma Leo".split()  # noqa: SIM905
PLACES = "park farm beach school garden forest river market zoo library lake kitchen".split()  # noqa: SIM905
THINGS = "dog ball cake bird boat kite tree book cat frog hat flower".split()  # noqa: SIM905
SMALL = "stories-twin"
"""3.9 million parameters, before it is trained to tell feelings."""
SHORT = 32
"""Most tokens of a text for the small classifier."""
GRADOBSTINATE, ONE, MANY, OPPOSITE = "GradObstinate", "random, one draw", "random, as many read", "antonyms"


@dataclass(frozen=True)
class Settings:
    """texts: of the small classifier, all rightly labelled. few: of the causal model. training: texts of the small classifier.
    cases: in which all substitutes are tried."""

    model: str = "smollm2-135m"
    other: str = "gemma3-270m"
    texts: int = 120
    few: int = 24
    training: int = 600
    epochs: int = 3
    words: int = 2
    cases: int = 200
    seed: int = 0


@dataclass(frozen=True)
class FeltText:
    """A text and what is felt in it."""

    text: str
    label: int


def felt(count: int, seed: int) -> list[FeltText]:
    """Texts, no two alike; two words of each say what is felt, which is how its label is defined."""
    chance = np.random.Generator(np.random.Philox(key=seed))
    found: dict[str, FeltText] = {}
    while len(found) < count:
        label = len(found) % len(LABELS)
        one, other = chance.permutation(FEELINGS[LABELS[label]].split())[:2]
        name, friend = chance.permutation(NAMES)[:2]
        place, thing = chance.choice(PLACES), chance.choice(THINGS)
        text = f"{name} went to the {place} with {friend} and saw a {thing}. {name} was {one} and {other}."
        found[text] = FeltText(text, label)
    return list(found.values())


def question(lm: LanguageModel) -> TextQuestion:
    """The small classifier was trained with a word; others are asked in words."""
    after = " So" if lm.name.startswith(SMALL) else "\nQuestion: Is this joy, sorrow or fear? Answer:"
    return TextQuestion(after=after, labels=LABELS)


@cache
def classifier(training: int, epochs: int, seed: int, rank: int = 0) -> LanguageModel:
    """The small model, trained to say the label last. rank: of matrices that are trained instead of all weights."""
    lm = loaded(SMALL, fast="off")
    texts = [lm.tokenize(f"{one.text} So{LABELS[one.label]}") for one in felt(training, seed + 1)]
    how = FineTuning(epochs=epochs * (2 if rank else 1), rate=4e-3 if rank else 1e-3, batch=32, rank=rank, mixed=False)
    return fine_tuned(lm, texts, replace(how, seed=seed))


@dataclass
class Bench:
    """A model that is asked, and what attacks on it need."""

    predictor: Predictor
    substitutes: SubstituteWords
    search: GradObstinate
    settings: ObstinateSettings
    kept: dict[tuple[str, tuple[TextWord, ...]], ObstinateText] = field(default_factory=dict)

    def found(self, text: str, words: Sequence[TextWord]) -> ObstinateText:
        """Searched once, for several studies look at it."""
        asked = text, tuple(words)
        if asked not in self.kept:
            self.kept[asked] = self.search.attack(text, words)
        return self.kept[asked]

    def ordered(self, text: str) -> list[TextWord]:
        return important_words(self.predictor, text)


@cache
def judge(name: str) -> MeaningJudge:
    return MeaningJudge(loaded(name))


def bench_of(lm: LanguageModel, judged: MeaningJudge, settings: Settings) -> Bench:
    predictor, substitutes = Predictor(lm, question(lm)), SubstituteWords(lm, judged)
    told = ObstinateSettings(words=settings.words, seed=settings.seed)
    return Bench(predictor, substitutes, GradObstinate(predictor, substitutes, told), told)


@cache
def small_bench(settings: Settings) -> Bench:
    return bench_of(classifier(settings.training, settings.epochs, settings.seed), judge(settings.model), settings)


@cache
def large_bench(settings: Settings) -> Bench:
    # Gradients need modules, which the path of the engine's own code has not.
    return bench_of(loaded(settings.model), judge(settings.other), settings)


def right(predictor: Predictor, count: int, seed: int) -> list[FeltText]:
    """Texts that a model labels rightly, none of those that the classifier was trained on."""
    found = []
    for one in felt(20 * count, seed + 2):
        if predictor.predict(one.text).chosen == (one.label,):
            found.append(one)
            if len(found) == count:
                return found
    raise BadInput(f"{predictor.lm.name} labels {len(found)} of {20 * count} texts rightly, fewer than {count}.")


def told(bench: Bench, text: ObstinateText) -> dict[str, float]:
    values = {
        "kept": float(text.found),
        "change": text.change,
        "perplexity": perplexity(bench.predictor, text.changed) / perplexity(bench.predictor, text.text),
        "read": float(sum(text.checked)),
    }
    if text.substitutions:
        values["similarity"] = float(np.mean([one.similarity for one in text.substitutions]))
    return values


def changed(bench: Bench, text: str, other: str, pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    """What a model makes of a text in which words were replaced without a search."""
    prediction = bench.predictor.predict(text)
    law = bench.predictor.laws_like(prediction, [bench.predictor.ids(other)])[0]
    return {
        "kept": float(prediction.same(law)),
        "change": prediction.change(law),
        "perplexity": perplexity(bench.predictor, other) / perplexity(bench.predictor, text),
        "similarity": float(np.mean([bench.substitutes.judge.similarity(*pair) for pair in pairs])),
    }


def pairs_of(text: str, other: str) -> list[tuple[str, str]]:
    """The words that differ."""
    before, after = (said.replace(".", " ").split() for said in (text, other))
    return [(one, two) for one, two in zip(before, after, strict=True) if one != two]


def mcnemar(weights: Array, own: Array, other: Array) -> Array:
    """The exact p of McNemar's test that two arms keep as many predictions, of the sample alone."""
    pairs = [[np.sum((own == a) & (other == b)) for b in (1, 0)] for a in (1, 0)]
    found = float(statistics("statsmodels.stats.contingency_tables").mcnemar(pairs, exact=True).pvalue)
    return np.array([found, *[np.nan] * (len(weights) - 1)])


def rates(bench: Bench, items: Sequence[FeltText], about: str) -> Study:
    """How often the prediction stays, by what stands in place of the most important words."""

    def of_text(item: FeltText) -> dict[str, dict[str, float]]:
        words = bench.ordered(item.text)[: bench.settings.words]
        prediction, found = bench.predictor.predict(item.text), bench.found(item.text, words)
        again = verified(
            bench.predictor,
            bench.substitutes,
            prediction,
            found.changed,
            found.substitutions,
            bench.settings.similarity,
        )
        drawn = with_random_words(bench.substitutes, item.text, words, bench.settings)
        many = random_words(
            bench.predictor, bench.substitutes, prediction, item.text, words, found.checked, bench.settings
        )
        opposite = with_antonyms(item.text, words)
        values = {
            GRADOBSTINATE: {**told(bench, found), **({"verified": float(again)} if found.found else {})},
            ONE: changed(bench, item.text, drawn, pairs_of(item.text, drawn)),
            MANY: told(bench, many),
            OPPOSITE: {} if opposite is None else changed(bench, item.text, opposite, pairs_of(item.text, opposite)),
        }
        for arm, each in values.items():
            if each and arm != GRADOBSTINATE:
                each["search"] = float(found.found)
        return values

    once = once_per_item(of_text)

    def arm(name: str) -> Arm:
        return Arm(name, lambda item: once(item)[name])

    figures = [
        Figure("prediction stays", "kept", share=True, form=".0%"),
        Figure("McNemar's p", "kept", per="search", statistic=mcnemar, form=".2g"),
        Figure("change of log p", "change"),
        Figure("similarity", "similarity"),
        Figure("perplexity, times", "perplexity", middle=True, form=".1f"),
        Figure("words read", "read", form=".0f"),
        Figure("verified", "verified", share=True, form=".0%"),
    ]
    claims = [
        PublishedClaim("more often than with antonyms", "prediction stays", GRADOBSTINATE, OPPOSITE),
        PublishedClaim("more often than with a random word", "prediction stays", GRADOBSTINATE, ONE),
        PublishedClaim("more often than with as many random words", "prediction stays", GRADOBSTINATE, MANY),
        PublishedClaim("every one is found again from its text", "verified", GRADOBSTINATE, every=True),
    ]
    return Study(
        about, items, [arm(name) for name in (GRADOBSTINATE, ONE, MANY, OPPOSITE)], figures, claims,
        arms_are="in place of the words", lm=bench.predictor.lm,
    )  # fmt: skip


def small(settings: Settings) -> Study:
    bench = small_bench(settings)
    items = right(bench.predictor, settings.texts, settings.seed)
    longest = max(len(bench.predictor.ids(item.text)) for item in items)
    if longest > SHORT:
        raise BadInput(f"a text has {longest} tokens, more than {SHORT}.")
    return rates(
        bench,
        items,
        f"A classifier of 3.9 million parameters, {settings.words} words of each text replaced, at most {longest} tokens; "
        f"{settings.model} judges meanings. Antonyms where every word has one, without regard to similarity",
    )


def large(settings: Settings) -> Study:
    bench = large_bench(settings)
    return rates(
        bench,
        right(bench.predictor, settings.few, settings.seed),
        f"{settings.model} asked for a label, {settings.words} words of each text replaced; {settings.other} judges meanings. "
        "Antonyms where every word has one, without regard to similarity",
    )


def importance(settings: Settings) -> Study:
    bench = small_bench(settings)

    def arm(name: str, chosen: Callable[[list[TextWord]], list[TextWord]]) -> Arm:
        def measured(item: FeltText) -> Mapping[str, float]:
            words = chosen(bench.ordered(item.text))
            drawn = with_random_words(bench.substitutes, item.text, words, bench.settings)
            return {
                "search": float(bench.found(item.text, words).found),
                "random": float(keeps(bench.predictor, item.text, drawn)),
            }

        return Arm(name, measured)

    most, least = "most important words", "least important words"
    arms = [
        arm(most, lambda words: words[: settings.words]),
        arm(least, lambda words: words[-settings.words :]),
    ]
    figures = [
        Figure("GradObstinate", "search", share=True, form=".0%"),
        Figure("a random word", "random", share=True, form=".0%"),
    ]
    claims = [
        PublishedClaim("the least important words are easier, drawn at random", "a random word", least, most),
        PublishedClaim("and by the search", "GradObstinate", least, most),
    ]
    about = f"The small classifier, {settings.words} words of each text; share whose prediction stays"
    items = right(bench.predictor, settings.texts, settings.seed)
    return Study(about, items, arms, figures, claims, arms_are="replaced", lm=bench.predictor.lm)


def gradient(settings: Settings) -> Study:
    bench = small_bench(settings)
    finder = bench.search
    count = bench.settings.candidates

    def of_case(item: FeltText) -> dict[str, dict[str, float]]:
        word = bench.ordered(item.text)[0]
        prediction = bench.predictor.predict(item.text)
        state = TrialText(bench.predictor, prediction, item.text)
        allowed, _ = bench.substitutes.allowed(word.text, bench.settings.similarity)
        place = state.place(word)
        own = finder.gradient.rows(state.ids[slice(*place)]).mean(0)
        cosines = (finder.table @ own / (finder.table.norm(dim=1) * own.norm())).cpu().numpy()
        numbers = np.flatnonzero(allowed)
        chance = np.random.Generator(np.random.Philox(np.random.SeedSequence((settings.seed, *item.text.encode()))))
        row = finder.table[int(chance.choice(np.flatnonzero(allowed & (cosines < FAR))))]
        laws = bench.predictor.laws_like(
            prediction, [state.with_token(word, int(bench.substitutes.tokens[one])) for one in numbers]
        )
        near = bench.settings.penalty * np.maximum(0.0, cosines[numbers] - bench.settings.margin)
        losses = np.array([prediction.divergence(law) for law in laws]) + near
        best = int(numbers[losses.argmin()])
        listed = first_order(
            finder.table, row, finder.slope(state, place, row, own), finder.table.new_tensor(allowed).bool(), count
        )
        return {
            "first order": {"best": float(best in listed), "loss": float(losses[np.isin(numbers, listed)].min())},
            "random": {
                "best": count / len(numbers),
                "loss": float(losses[chance.permutation(len(numbers))[:count]].min()),
            },
        }

    once = once_per_item(of_case)

    def times(drawn: Callable[[str, str], Array], arm: str) -> Array:
        return np.asarray(drawn(arm, "best is listed") / drawn("random", "best is listed"))

    figures = [
        Figure("best is listed", "best", form=".1%"),
        Figure("times random", derive=times, form=".1f"),
        Figure("least loss, nats", "loss", form=".2g"),
    ]
    claims = [PublishedClaim("five times as often as at random, and more", "times random", "first order", 5.0)]
    about = (
        f"The small classifier, the most important word of each text, from a random start: whether {count} tokens have among "
        "them the one of least loss of the whole allowed vocabulary"
    )
    arms = [
        Arm("first order", lambda item: once(item)["first order"]),
        Arm("random", lambda item: once(item)["random"]),
    ]
    items = right(bench.predictor, settings.cases, settings.seed)
    return Study(about, items, arms, figures, claims, arms_are="list", lm=bench.predictor.lm)


def carried(bench: Bench, other: LanguageModel, items: Sequence[FeltText], about: str) -> Study:
    """Words that were found on one model, on another one."""
    elsewhere = Predictor(other, question(other))
    attacks = {item.text: bench.found(item.text, bench.ordered(item.text)[: bench.settings.words]) for item in items}
    there = [item for item in items if attacks[item.text].found]
    dictionary = dictionary_of([attacks[item.text] for item in items])

    def kept(item: FeltText, text: str) -> dict[str, float]:
        return {"kept": float(keeps(elsewhere, item.text, text))} if text != item.text else {}

    def random(item: FeltText) -> Mapping[str, float]:
        words = bench.ordered(item.text)[: bench.settings.words]
        return kept(item, with_random_words(bench.substitutes, item.text, words, bench.settings))

    def all_random(item: FeltText) -> Mapping[str, float]:
        """As many words as the dictionary has of the text."""
        words = [word for word in content_words(item.text) if word.text.lower() in dictionary]
        return kept(item, with_random_words(bench.substitutes, item.text, words, bench.settings))

    arms = [
        Arm("the words found", lambda item: kept(item, attacks[item.text].changed)),
        Arm("random in their place", random),
        Arm("all words of the dictionary", lambda item: kept(item, rewritten(item.text, dictionary))),
        Arm("random in the place of these", all_random),
    ]
    figures = [Figure("prediction stays", "kept", share=True, form=".0%")]
    claims = [
        PublishedClaim("found words carry over", "prediction stays", "the words found", "random in their place"),
        PublishedClaim(
            "so does the dictionary",
            "prediction stays",
            "all words of the dictionary",
            "random in the place of these",
        ),
    ]
    return Study(about, there, arms, figures, claims, arms_are="replaced by", lm=other)


def transfer(settings: Settings) -> Study:
    bench = small_bench(settings)
    other = classifier(settings.training, settings.epochs, settings.seed + 10, rank=8)
    return carried(
        bench,
        other,
        right(bench.predictor, settings.texts, settings.seed),
        "Words that keep the prediction of the small classifier, on one that was trained by matrices of rank 8 on other texts; "
        "against its own prediction of the text as it was",
    )


def transfer_large(settings: Settings) -> Study:
    bench = large_bench(settings)
    return carried(
        bench,
        loaded(settings.other),
        right(bench.predictor, settings.few, settings.seed),
        f"Words that keep the prediction of {settings.model}, on {settings.other}; against its own prediction of "
        "the text as it was",
    )


STUDIES: dict[str, Any] = {
    "small": small,
    "large": large,
    "importance": importance,
    "gradient": gradient,
    "transfer": transfer,
    "transfer_large": transfer_large,
}
EXPERIMENT = Experiment(
    slug="gradobstinate",
    title="GradObstinate",
    source="arXiv 2307.12507",
    measures=(
        "decodery.audit.antonyms",
        "decodery.audit.gradobstinate",
        "decodery.audit.obstinate_controls",
        "decodery.audit.predictions",
        "decodery.audit.substitutes",
    ),
    settings=Settings(),
    studies=STUDIES,
)
