"""A draft model, first layers and n-grams as drafters of one target, and models of two tokenizers that draft for each other."""

from __future__ import annotations

from dataclasses import dataclass

from decodery.evaluation.experiment import Arm, Experiment, PublishedClaim, Study
from experiments.texts import ACCEPTED, NODES, TOKENS_PER_ROUND, Asked, decoding, loaded, questions_of

DRAFTERS = ("draft=ngram", "draft=layers", "draft=layers, layers=20")


@dataclass(frozen=True)
class Settings(Asked):
    other: str = "gemma3-270m"
    length: int = 4
    tokens: int = 48


def _drafters(settings: Settings, temperature: float) -> Study:
    lm = loaded(settings.model)
    specs = [f"draft-model({drafter}, length={settings.length})" for drafter in DRAFTERS]
    claims = [PublishedClaim("several tokens come from a round", "tokens/round", spec, 1.0) for spec in specs]
    return Study(
        f"Answers of at most {settings.tokens} tokens at temperature {temperature:g}.",
        questions_of(settings),
        decoding(lm, specs, settings, temperature),
        (TOKENS_PER_ROUND, NODES, ACCEPTED),
        claims,
        lm=lm,
    )


def greedy(settings: Settings) -> Study:
    return _drafters(settings, 0.0)


def sampled(settings: Settings) -> Study:
    return _drafters(settings, 1.0)


def tokenizers(settings: Settings) -> Study:
    arms: list[Arm] = []
    for target, draft in ((settings.model, settings.other), (settings.other, settings.model)):
        for vocabulary in ("shared", "text"):
            spec = f"draft-model(draft={draft}, length={settings.length}, vocabulary={vocabulary})"
            for temperature in (0.0, 1.0):
                [arm] = decoding(loaded(target), [spec], settings, temperature)
                arms.append(Arm(f"{target}, {spec}, temperature {temperature:g}", arm.measure))
    return Study(
        f"First turns, at most {settings.tokens} tokens; each model drafts for the other one.",
        questions_of(settings),
        arms,
        (TOKENS_PER_ROUND, ACCEPTED),
        arms_are="target and drafter",
        lm=loaded(settings.model),
    )


EXPERIMENT = Experiment(
    "draft_model",
    "Drafters of draft-model, and models of two tokenizers",
    "Leviathan et al., ICML 2023, arXiv 2211.17192; Timor et al., ICML 2025, arXiv 2502.05202",
    (
        "decodery.speculative.draft_model",
        "decodery.speculative.draft_laws.laws",
        "decodery.engine.vocabularies",
    ),
    Settings(),
    {"greedy": greedy, "sampled": sampled, "tokenizers": tokenizers},
)
