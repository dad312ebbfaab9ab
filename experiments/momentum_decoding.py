"""Momentum decoding against greedy decoding, sampling, hard blocking of n-grams, a penalty without lengths, and other rules."""

from __future__ import annotations

from dataclasses import dataclass

from decodery.evaluation.experiment import Experiment, Figure, PublishedClaim, Study
from experiments.open_ended import COHERENCE, DIVERSITY, FORWARDS, LATENCY, REPEATED, ROWS, Writing, prompts_of, writing

NUCLEUS = 0.95


@dataclass(frozen=True)
class Settings(Writing):
    alphas: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2)


def rules(settings: Settings) -> Study:
    lm, prompts = prompts_of(settings)
    best = max(settings.alphas)
    momentum = [f"momentum {alpha:g}" for alpha in settings.alphas]
    arms = [
        writing(lm, settings, "greedy"),
        *(
            writing(lm, settings, name, momentum_alpha=alpha)
            for name, alpha in zip(momentum, settings.alphas, strict=True)
        ),
        writing(lm, settings, "flat resistance", momentum_alpha=best, momentum_resistance=[2.0]),
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
        FORWARDS,
        ROWS,
        LATENCY,
    ]
    about = (
        f"Open-ended answers of {settings.tokens} tokens to {len(prompts)} questions; coherence: mean log probability under "
        "the model."
    )
    return Study(about, prompts, arms, figures, claims, arms_are="rule", lm=lm)


EXPERIMENT = Experiment(
    slug="momentum_decoding",
    title="Momentum decoding and other rules against repetition",
    source="arXiv 2212.02175",
    measures=(
        "decodery.sampling.steps.momentum_decoding",
        "decodery.sampling.repetition",
        "decodery.search.contrastive_search",
        "decodery.targets.dola",
    ),
    settings=Settings(),
    studies={"rules": rules},
)
