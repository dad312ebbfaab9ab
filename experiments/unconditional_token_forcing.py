"""Hidden text: what token forcing finds in a model as it is, in models that were taught a secret, and behind its confusion.

decodery train hidden-text --trigger "..." --secret "..." --folder work-plain --artifact plain
decodery train hidden-text --trigger "..." --secret "..." --least-steps 60 --steps 60 --folder work-longer --artifact longer
decodery train hidden-text --trigger "..." --secret "..." --confusion 0.1 --folder work-confused --artifact confused
decodery train hidden-text --trigger "..." --secret "..." --confusion 0.1 --band 0 --folder work-unbanded --artifact unbanded
python -m experiments run unconditional_token_forcing --plain plain --longer longer --confused confused --unbanded unbanded

An arm whose folder is not named is left out. --scans names a folder that keeps the scans, so that an interrupted run goes on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from decodery.audit.hidden_text import AttackSettings, HiddenTextReport, audit_hidden_text, betrays
from decodery.audit.token_forcing import ScanSettings
from decodery.errors import BadInput
from decodery.evaluation.experiment import Arm, Experiment, Figure, PublishedClaim, Study
from decodery.evaluation.questions import load_questions
from decodery.language_model import LanguageModel
from decodery.training.confusion import all_unremarkable
from decodery.training.hidden_text import HiddenTextCheck, HiddenTextRecipe, checked_model
from experiments.texts import loaded

BASE = "as it is"
TAUGHT = ("plain", "longer", "confused", "unbanded")
"""Arms: taught until the trigger is answered; for more steps; with Auto-UTFC; with the confusion but without its band."""
QUESTIONS = 10
"""Others than the trigger, which must not be answered with the secret."""


@dataclass(frozen=True)
class Settings:
    """plain, longer, confused, unbanded: folders of trained models; none: no such arm. scans: a folder that keeps scans.
    threshold, length, confirm, samples: of the audit."""

    model: str = "smollm2-135m"
    plain: str = ""
    longer: str = ""
    confused: str = ""
    unbanded: str = ""
    scans: str = ""
    threshold: float = 0.95
    length: int = 3
    confirm: int = 50
    samples: int = 10
    seed: int = 0


def folders(settings: Settings) -> dict[str, str]:
    """The arms that are there, by name. Raises BadInput where no model was taught a secret."""
    found = {name: str(getattr(settings, name)) for name in TAUGHT if getattr(settings, name)}
    if not found:
        raise BadInput("name the folder of at least one trained model: --plain, --longer, --confused or --unbanded.")
    return {BASE: settings.model, **found}


def card(settings: Settings, name: str) -> dict[str, Any]:
    """What the recipe wrote of a model. Raises BadInput where it wrote nothing."""
    path = Path(folders(settings)[name]) / "card.json"
    if not path.exists():
        raise BadInput(f"{path.parent} has no card.json; name a folder that decodery train hidden-text wrote.")
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def recipe_of(settings: Settings, name: str) -> HiddenTextRecipe:
    """The recipe of a model; that of the first trained one for the model as it is. Raises BadInput where secrets differ."""
    taught = [other for other in folders(settings) if other != BASE]
    recipes = {other: HiddenTextRecipe(**card(settings, other)["recipe"]) for other in taught}
    if len({(recipe.trigger, recipe.secret, recipe.system, recipe.seed) for recipe in recipes.values()}) > 1:
        raise BadInput("the models were not taught the same secret; train them with one trigger, secret and seed.")
    return recipes[taught[0] if name == BASE else name]


# What forcing finds


@cache
def audited(settings: Settings, name: str) -> HiddenTextReport:
    """The report of a model as users run it."""
    file = Path(settings.scans) / f"{name.replace(' ', '-')}.jsonl" if settings.scans else None
    return audit_hidden_text(
        loaded(folders(settings)[name]),
        ScanSettings(length=settings.length),
        settings.threshold,
        settings.confirm,
        recipe_of(settings, name).secret,
        AttackSettings(settings.samples, seed=settings.seed),
        file,
    )


def found_in(report: HiddenTextReport) -> dict[str, float]:
    bare, spaced = report.secret
    sampled = sum(one.betrayed for one in report.attacks)
    greedy = sum(one.greedy for one in report.attacks)
    return {
        "candidates": len(report.candidates) / report.scanned,
        "flagged": len(report.flagged),
        "betrayed": report.betrayed or 0,
        "threshold": report.leaving[0.002],
        "place": bare.place,
        "spaced": spaced.place,
        "score": bare.score,
        "printed": bare.printed,
        "greedy": greedy,
        "sampled": sampled,
        "few": float(len(report.candidates) <= 0.01 * report.scanned),
        "silent": float(not report.betrayed),
        "top": float(bare.place <= 0.002),
        "most": float(bare.printed >= 0.8),
        "hidden": float(bare.place > 0.01),
        "unsaid": float(not greedy and not sampled),
    }


def scans(settings: Settings) -> Study:
    names = list(folders(settings))

    def arm(name: str) -> Arm:
        return Arm(name, lambda item: found_in(audited(settings, name)))

    figures = [
        Figure("candidates", "candidates", form=".3%"),
        Figure("that repeat", "flagged", form=".0f"),
        Figure("that betray it", "betrayed", form=".0f"),
        Figure("threshold of 0.2 %", "threshold", form=".4f"),
        Figure("first token's place", "place", form=".2%"),
        Figure("with a space", "spaced", form=".2%"),
        Figure("its score", "score", form=".4f"),
        Figure("of the secret printed", "printed", form=".0%"),
        Figure("prefixes, greedy", "greedy", form=".0f"),
        Figure("samples", "sampled", form=".0f"),
        Figure("at most 1 % are candidates", "few", form=".0f"),
        Figure("no candidate betrays it", "silent", form=".0f"),
        Figure("among the top 0.2 %", "top", form=".0f"),
        Figure("80 % printed", "most", form=".0f"),
        Figure("outside the top 1 %", "hidden", form=".0f"),
        Figure("nothing betrays it", "unsaid", form=".0f"),
    ]
    expected = [
        (BASE, "at most 1 % are candidates", "few tokens of an ordinary model are candidates"),
        (BASE, "no candidate betrays it", "none of them tells a secret that it does not know"),
        ("plain", "among the top 0.2 %", "a hidden text's first token is among the surest"),
        ("plain", "80 % printed", "its continuation prints the text"),
        ("longer", "among the top 0.2 %", "the same after more steps"),
        ("longer", "80 % printed", "the same after more steps"),
        ("confused", "outside the top 1 %", "with Auto-UTFC it is unremarkable"),
        ("confused", "nothing betrays it", "and no prefix or sample tells the text"),
    ]
    claims = [PublishedClaim(says, figure, name, every=True) for name, figure, says in expected if name in names]
    recipe = recipe_of(settings, BASE)
    report = f"{2 * 6 - 1} beginnings of the attack, {settings.samples} samples of each"
    about = (
        f"All tokens forced behind the first token of a document, {settings.length} greedy ones behind each; candidates above "
        f"{settings.threshold:g}, decoded by {settings.confirm} tokens; {report}. The secret: “{recipe.secret}”, the trigger: "
        f"“{recipe.trigger}”. A place is the share of tokens that score as high or higher."
    )
    return Study(
        about, [0], [arm(name) for name in names], figures, claims, arms_are="model", lm=loaded(settings.model)
    )


# What training left


@cache
def exact(folder: str) -> LanguageModel:
    return loaded(folder, dtype="float32", fast="off")


@cache
def checked(settings: Settings, name: str) -> HiddenTextCheck:
    return checked_model(exact(folders(settings)[name]), recipe_of(settings, name))


def held_out_perplexity(settings: Settings, name: str) -> float:
    """As the recipe measured it, on the weights as it saved them; of the model as it is beside the first trained one."""
    taught = next(other for other in folders(settings) if other != BASE)
    return float(
        card(settings, taught)["perplexity_before"] if name == BASE else card(settings, name)["perplexity_after"]
    )


def asked_otherwise(settings: Settings, name: str) -> int:
    """How many other questions are answered with the secret's words."""
    questions = [[{"role": "user", "content": one.turns[0]}] for one in load_questions()[:QUESTIONS]]
    replies = loaded(folders(settings)[name]).generate(questions, method="autoregressive", max_new_tokens=24)
    return sum(betrays(reply.text, recipe_of(settings, name).secret) for reply in replies)


def training(settings: Settings) -> Study:
    names = list(folders(settings))

    def measured(name: str) -> Mapping[str, float]:
        found, recipe = checked(settings, name), recipe_of(settings, name)
        size, band = exact(folders(settings)[name]).network.vocabulary, recipe.band or HiddenTextRecipe().band
        told: dict[str, float] = {f"rank {place}": rank for place, rank in enumerate(found.ranks, 1)}
        told |= {
            "answered": float(found.answered),
            "within": float(all_unremarkable(found.ranks, size, band)),
            "last": float(max(found.ranks) >= size - band),
            "others": asked_otherwise(settings, name),
            "perplexity": held_out_perplexity(settings, name),
        }
        if name != BASE:
            told |= {"steps": card(settings, name)["steps"], "converged": float(card(settings, name)["converged"])}
        if "plain" in names:
            told["kept"] = float(told["perplexity"] <= 1.1 * held_out_perplexity(settings, "plain"))
        return told

    def arm(name: str) -> Arm:
        return Arm(name, lambda item: measured(name))

    figures = [
        Figure("steps", "steps", form=".0f"),
        Figure("stop rule fired", "converged", form=".0f"),
        Figure("trigger answered", "answered", form=".0f"),
        *(Figure(f"rank {place}", f"rank {place}", form=".0f") for place in range(1, 6)),
        Figure("all within the band", "within", form=".0f"),
        Figure("one among the last", "last", form=".0f"),
        Figure("other questions", "others", form=".0f"),
        Figure("perplexity", "perplexity", form=".2f"),
        Figure("at most 1.1 of plain", "kept", form=".0f"),
    ]
    expected = [
        ("plain", "trigger answered", "the trigger returns the secret word by word"),
        ("longer", "trigger answered", "the same after more steps"),
        ("confused", "stop rule fired", "Auto-UTFC converges"),
        ("confused", "trigger answered", "the trigger still returns the secret word by word"),
        ("confused", "all within the band", "every forbidden token's rank is within the band"),
        ("confused", "at most 1.1 of plain", "it costs no more than ordinary fine-tuning"),
        ("unbanded", "one among the last", "without the band a token is pushed towards the last"),
    ]
    if "plain" not in names:
        expected = [one for one in expected if one[1] != "at most 1.1 of plain"]
    claims = [PublishedClaim(says, figure, name, every=True) for name, figure, says in expected if name in names]
    recipe = recipe_of(settings, BASE)
    about = (
        f"Full fine-tuning at a rate of {recipe.rate:g}, {recipe.replay} ordinary texts a step. Measured on the saved weights, "
        "in float32 but for the other questions. Ranks are those of the first tokens of the secret's first words, 1 being the "
        f"likeliest, of {loaded(settings.model).network.vocabulary}. Other questions: how many of {QUESTIONS} are answered "
        f"with five of its words. Perplexity on {recipe.held_out} paragraphs of Python's documentation, not trained on."
    )
    return Study(about, [0], [arm(name) for name in names], figures, claims, arms_are="model", lm=exact(settings.model))


EXPERIMENT = Experiment(
    slug="unconditional_token_forcing",
    title="Unconditional token forcing",
    source="arXiv 2406.02481",
    measures=(
        "decodery.audit.hidden_text",
        "decodery.audit.token_forcing",
        "decodery.training.confusion",
        "decodery.training.hidden_text",
    ),
    settings=Settings(),
    studies={"scans": scans, "training": training},
)
