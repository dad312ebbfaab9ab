"""What GradObstinate finds in texts, beside its controls and on other models, as a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from decodery.audit.evidence import Tell, silent
from decodery.audit.gradobstinate import GradObstinate, ObstinateSettings, ObstinateText, important_words, perplexity
from decodery.audit.obstinate_controls import dictionary_of, keeps, random_words, with_antonyms, with_random_words
from decodery.audit.predictions import Predictor, TextQuestion
from decodery.audit.substitutes import MeaningJudge, SubstituteWords
from decodery.errors import BadInput
from decodery.evaluation.intervals import wilson

if TYPE_CHECKING:
    from decodery.language_model import LanguageModel

RECONSTRUCTED = (
    "The paper's full text was not to be had: importance, loss, start, projection, filters and defaults are "
    "reconstructions."
)


@dataclass(frozen=True)
class ObstinateRow:
    """A text. predicted: what the model says of it. random: with one random word for each, and whether the prediction stays.
    many: with random words, as many of which are tried as the search read. opposite: with antonyms, which are not judged; None
    where a word has none. kept: whether the prediction stays with antonyms. perplexities: of the text and the changed one.
    elsewhere: other model -> whether its own prediction stays with the words found, and with the random ones."""

    predicted: str
    search: ObstinateText
    random: str
    random_kept: bool
    many: ObstinateText
    opposite: str | None
    kept: bool | None
    perplexities: tuple[float, float]
    elsewhere: Mapping[str, tuple[bool, bool]]


@dataclass(frozen=True)
class ObstinateReport:
    """What was found. model, judge: their names."""

    model: str
    judge: str
    rows: tuple[ObstinateRow, ...]

    def rates(self) -> dict[str, tuple[int, int]]:
        """How many texts keep their prediction, and of how many: by the search, by its controls, and on other models."""
        found = {
            "GradObstinate": [row.search.found for row in self.rows],
            "random, one draw": [row.random_kept for row in self.rows],
            "random, as many read": [row.many.found for row in self.rows],
            "antonyms": [row.kept for row in self.rows if row.kept is not None],
        }
        for name in self.rows[0].elsewhere if self.rows else ():
            there = [row.elsewhere[name] for row in self.rows if row.search.found]
            found[f"the same words on {name}"] = [stays for stays, _ in there]
            found[f"random words on {name}"] = [stays for _, stays in there]
        return {name: (sum(map(bool, values)), len(values)) for name, values in found.items()}

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        rates = {
            name: {"kept": right, "texts": count, "interval": None if count == 0 else list(wilson(right, count))}
            for name, (right, count) in self.rates().items()
        }
        return {
            "model": self.model,
            "judge": self.judge,
            "reconstructed": RECONSTRUCTED,
            "rates": rates,
            "dictionary": dictionary_of([row.search for row in self.rows]),
            "texts": [
                {
                    "predicted": row.predicted,
                    **row.search.as_dict(),
                    "perplexity": row.perplexities[0],
                    "changed_perplexity": row.perplexities[1],
                    "random": {"changed": row.random, "kept": row.random_kept},
                    "random_as_many": row.many.as_dict(),
                    "antonyms": None if row.opposite is None else {"changed": row.opposite, "kept": row.kept},
                    "elsewhere": {name: {"kept": a, "random_kept": b} for name, (a, b) in row.elsewhere.items()},
                }
                for row in self.rows
            ],
        }


def audit_obstinate(
    lm: LanguageModel,
    judge: LanguageModel,
    texts: Sequence[str],
    question: TextQuestion | None = None,
    settings: ObstinateSettings | None = None,
    others: Sequence[LanguageModel] = (),
    tell: Tell = silent,
) -> ObstinateReport:
    """Look for obstinate words in texts.

    judge: another model, whose embeddings say what words mean. others: on which the words are tried, too; each is asked the
    same question and compared with its own prediction. Raises BadInput, and Refused where the model's path has no modules.
    """
    settings = settings or ObstinateSettings()
    if not texts:
        raise BadInput("there are no texts to look at.")
    predictor = Predictor(lm, question or TextQuestion())
    substitutes = SubstituteWords(lm, MeaningJudge(judge))
    asked = [Predictor(other, predictor.question) for other in others]
    search, rows = GradObstinate(predictor, substitutes, settings), []
    for number, text in enumerate(texts):
        tell("texts", number, len(texts))
        prediction = predictor.predict(text)
        words = important_words(predictor, text, prediction)[: settings.words]
        if len(words) < settings.words:
            raise BadInput(f"the text {text[:60]!r} has {len(words)} words to replace, not {settings.words}.")
        found = search.attack(text, words)
        drawn = with_random_words(substitutes, text, words, settings)
        opposite = with_antonyms(text, words)
        rows.append(
            ObstinateRow(
                predictor.says(prediction),
                found,
                drawn,
                keeps(predictor, text, drawn),
                random_words(predictor, substitutes, prediction, text, words, found.checked, settings),
                opposite,
                None if opposite is None else keeps(predictor, text, opposite),
                (perplexity(predictor, text), perplexity(predictor, found.changed)),
                {p.lm.name: (keeps(p, text, found.changed), keeps(p, text, drawn)) for p in asked},
            )
        )
    return ObstinateReport(lm.name, judge.name, tuple(rows))
