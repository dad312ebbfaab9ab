"""Momentum decoding against greedy decoding, sampling, hard blocking of n-grams, a penalty without lengths, and other rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from decodery.evaluation.experiment import Arm, Experiment, Figure, PublishedClaim, Study
from decodery.evaluation.text_quality import momentum_labels
from decodery.language_model import LanguageModel
from decodery.replies import Reply
from decodery.sampling.steps.momentum_decoding import MomentumDecoding
from experiments.open_ended import (
    COHERENCE,
    DIVERSITY,
    FORWARDS,
    LATENCY,
    REPEATED,
    ROWS,
    Writing,
    comparing,
    nearness,
    prompts_of,
    writing,
)

NUCLEUS = 0.95


@dataclass(frozen=True)
class Settings(Writing):
    alphas: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2)


def moving(lm: LanguageModel, asked: Writing, name: str, **momentum: Any) -> Arm:
    """An arm that writes by momentum decoding, and what became of its likeliest tokens."""
    given: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in momentum.items()}
    step = MomentumDecoding(**given)

    def labels(reply: Reply) -> Mapping[str, float]:
        found = momentum_labels(lm, reply.prompt_token_ids, reply.token_ids, step)
        return {"resisted": float(sum(label > 0 for label in found)), "replaced": float(found.count(2))}

    return writing(lm, asked, name, more=labels, **momentum)


def rules(settings: Settings) -> Study:
    lm, prompts = prompts_of(settings)
    best = max(settings.alphas)
    momentum = [f"momentum {alpha:g}" for alpha in settings.alphas]
    arms = [
        writing(lm, settings, "greedy"),
        *(
            moving(lm, settings, name, momentum_alpha=alpha)
            for name, alpha in zip(momentum, settings.alphas, strict=True)
        ),
        moving(lm, settings, "flat resistance", momentum_alpha=best, momentum_resistance=[2.0]),
        writing(lm, settings, "no 4-gram twice", no_repeat_ngram_size=4),
        writing(lm, settings, f"nucleus {NUCLEUS}", temperature=1.0, top_p=NUCLEUS),
        writing(lm, settings, "contrastive search", "contrastive-search"),
        writing(lm, settings, "DoLa, low", target="dola"),
        writing(lm, settings, "DoLa, high", target="dola(layers=high)"),
    ]
    name = f"momentum {best:g}"
    claims = [
        PublishedClaim("momentum decoding is more diverse than greedy decoding", "diversity", name, "greedy"),
        PublishedClaim("it hardly repeats runs of four tokens", "rep-4", name, 0.05, above=False),
        PublishedClaim("its text is more coherent than nucleus sampling's", "coherence", name, f"nucleus {NUCLEUS}"),
        PublishedClaim("and less so than greedy decoding's", "coherence", name, "greedy", above=False),
        PublishedClaim(
            "lengths matter: it is more coherent than with a flat resistance", "coherence", name, "flat resistance"
        ),
        PublishedClaim("it is as diverse as contrastive search", "diversity", name, "contrastive search"),
    ]
    figures = [
        DIVERSITY,
        REPEATED,
        COHERENCE,
        Figure("types", "types"),
        Figure("greedy", "greedy", form=".0%"),
        Figure("resisted", "resisted", per="tokens", form=".0%"),
        Figure("replaced", "replaced", per="tokens", form=".0%"),
        FORWARDS,
        ROWS,
        LATENCY,
    ]
    about = (
        f"Open-ended answers of {settings.tokens} tokens to {len(prompts)} questions; coherence: mean log probability under "
        "the model. resisted: tokens whose likeliest candidate met a resistance; replaced: those where another one won."
    )
    return Study(about, prompts, arms, figures, claims, arms_are="rule", lm=lm)


def people(settings: Settings) -> Study:
    best = max(settings.alphas)
    arms = [
        comparing(settings, "greedy"),
        comparing(settings, f"nucleus {NUCLEUS}", temperature=1.0, top_p=NUCLEUS),
        comparing(settings, f"momentum {best:g}", momentum_alpha=best),
        comparing(settings, f"momentum {min(settings.alphas):g}", momentum_alpha=min(settings.alphas)),
        comparing(settings, "contrastive search", "contrastive-search"),
    ]
    claims = [
        PublishedClaim(
            "its texts are nearer to people's than greedy decoding's", "MAUVE", f"momentum {best:g}", "greedy"
        ),
        PublishedClaim("and than contrastive search's", "MAUVE", f"momentum {best:g}", "contrastive search"),
    ]
    return nearness(settings, arms, claims)


EXPERIMENT = Experiment(
    slug="momentum_decoding",
    title="Momentum decoding and other rules against repetition",
    source="arXiv 2212.02175",
    measures=(
        "decodery.sampling.steps.momentum_decoding",
        "decodery.sampling.repetition",
        "decodery.search.contrastive_search",
        "decodery.targets.dola",
        "decodery.evaluation.text_quality",
        "decodery.evaluation.mauve",
    ),
    settings=Settings(),
    studies={"rules": rules, "people": people},
)
