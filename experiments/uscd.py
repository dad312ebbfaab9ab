"""USCD against contrasting always and never: how likely right solutions are, and how often it contrasts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from decodery.evaluation.experiment import Arm, Experiment, Figure, PublishedClaim, Study
from decodery.language_model import LanguageModel
from decodery.models.forward import Forward
from decodery.targets.uscd import UncertaintyAwareContrast, without_doctests
from decodery.training.library_texts import Function, functions
from experiments.texts import loaded

PUBLISHED, GENEROUS, ALWAYS = 0.895, 0.626, 1.001


@dataclass(frozen=True)
class Settings:
    model: str = "smollm2-135m"
    functions: int = 100
    tokens: int = 96
    unrelated: str = "Once upon a time there was a king who had three daughters."


def rows_behind(lm: LanguageModel, prompt: Sequence[int], solution: Sequence[int]) -> torch.Tensor:
    """Raw scores [n, vocabulary] of each of a solution's tokens behind a prompt."""
    text = [*prompt, *solution][:-1]
    rows = range(len(prompt) - 1, len(text))
    with lm.working():
        [scores] = lm.network.run([Forward(lm.network.new_sequence(), text, logits=rows)])
    return scores.logits


def solutions(settings: Settings) -> Study:
    lm, items = loaded(settings.model), list(functions(settings.functions))

    def arm(name: str, target: UncertaintyAwareContrast, lame: str | None = None) -> Arm:
        def measure(function: Function) -> Mapping[str, float]:
            solution = lm.encode(function.solution)[: settings.tokens]
            other = without_doctests(function.prompt) if lame is None else lame
            own = rows_behind(lm, lm.encode(function.prompt), solution)
            away = rows_behind(lm, lm.encode(other), solution)
            laws = target.combine([own, away]).double().log_softmax(dim=-1)
            likely = laws.gather(1, torch.tensor(solution)[:, None])[:, 0]
            there = likely.isfinite()
            return {
                "tokens": float(len(solution)),
                "possible": float(there.sum()),
                "impossible": float((~there).sum()),
                "likelihood": float(likely[there].sum()),
                "contrasted": float(target.unsure(own).sum()),
                "without examples": float(other == function.prompt),
            }

        return Arm(name, measure)

    arms = [
        arm("never", UncertaintyAwareContrast(rho=-1.0)),
        arm("always", UncertaintyAwareContrast(rho=ALWAYS)),
        arm(f"USCD, {PUBLISHED:g}", UncertaintyAwareContrast(rho=PUBLISHED)),
        arm(f"USCD, {GENEROUS:g}", UncertaintyAwareContrast(rho=GENEROUS, floor=1 / 3)),
        arm("USCD, 0.4", UncertaintyAwareContrast(rho=0.4)),
        arm("unrelated lame prompt", UncertaintyAwareContrast(rho=PUBLISHED), settings.unrelated),
    ]
    figures = [
        Figure("log likelihood/token", "likelihood", per="possible"),
        Figure("impossible", "impossible", per="tokens", form=".1%"),
        Figure("contrasted", "contrasted", per="tokens", form=".0%"),
        Figure("no examples", "without examples", form=".0%"),
    ]
    name = f"USCD, {PUBLISHED:g}"
    claims = [
        PublishedClaim("USCD is better than contrasting always", "log likelihood/token", name, "always"),
        PublishedClaim("and than the standard prompt alone", "log likelihood/token", name, "never"),
        PublishedClaim("the examples are what counts", "log likelihood/token", name, "unrelated lame prompt"),
    ]
    about = (
        f"{len(items)} functions of Python's library whose docstrings hold examples; their own bodies are scored. impossible: "
        "tokens that the contrast leaves no probability, which the likelihood leaves out. no examples: functions "
        "whose lame prompt is the prompt."
    )
    return Study(about, items, arms, figures, claims, arms_are="contrast", lm=lm)


EXPERIMENT = Experiment(
    slug="uscd",
    title="Uncertainty-aware selective contrastive decoding",
    source="arXiv 2409.05923",
    measures=("decodery.targets.uscd",),
    settings=Settings(),
    studies={"solutions": solutions},
)
