"""USCD against contrasting always and never: how likely right solutions are, and how often it contrasts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from decodery.evaluation.experiment import Arm, Experiment, Figure, PublishedClaim, Study, Values
from decodery.evaluation.programs import ProgramTask, load_tasks
from decodery.language_model import LanguageModel
from decodery.models.forward import Forward
from decodery.targets.uscd import UncertaintyAwareContrast, without_assertions, without_doctests
from decodery.training.library_texts import Function, functions
from experiments.programs import PASSED, ROWS_PER_TOKEN, written
from experiments.texts import loaded

PUBLISHED, GENEROUS, ALWAYS = 0.895, 0.626, 1.001
FIGURES = [
    Figure("log likelihood/token", "likelihood", per="possible"),
    Figure("impossible", "impossible", per="tokens", form=".1%"),
    Figure("contrasted", "contrasted", per="tokens", form=".0%"),
    Figure("no examples", "without examples", form=".0%"),
]
CLAIMS = [
    PublishedClaim("USCD is better than contrasting always", "log likelihood/token", f"USCD, {PUBLISHED:g}", "always"),
    PublishedClaim("and than the standard prompt alone", "log likelihood/token", f"USCD, {PUBLISHED:g}", "never"),
]


@dataclass(frozen=True)
class Settings:
    """Sizes. problems: a file of tasks in HumanEval's or MBPP's form; empty for decodery's own. answer: most tokens of one."""

    model: str = "smollm2-135m"
    functions: int = 100
    tokens: int = 96
    answer: int = 160
    problems: str = ""
    tasks: int = 164
    seed: int = 0
    unrelated: str = "Once upon a time there was a king who had three daughters."


def rows_behind(lm: LanguageModel, prompt: Sequence[int], solution: Sequence[int]) -> torch.Tensor:
    """Raw scores [n, vocabulary] of each of a solution's tokens behind a prompt."""
    text = [*prompt, *solution][:-1]
    rows = range(len(prompt) - 1, len(text))
    with lm.working():
        [scores] = lm.network.run([Forward(lm.network.new_sequence(), text, logits=rows)])
    return scores.logits


def scored(
    lm: LanguageModel, target: UncertaintyAwareContrast, prompt: str, solution: Sequence[int], lame: str
) -> Values:
    """What a contrast says of a solution behind its prompt."""
    own = rows_behind(lm, lm.encode(prompt), solution)
    away = rows_behind(lm, lm.encode(lame), solution)
    laws = target.combine([own, away]).double().log_softmax(dim=-1)
    likely = laws.gather(1, torch.tensor(solution)[:, None])[:, 0]
    there = likely.isfinite()
    return {
        "tokens": float(len(solution)),
        "possible": float(there.sum()),
        "impossible": float((~there).sum()),
        "likelihood": float(likely[there].sum()),
        "contrasted": float(target.unsure(own).sum()),
        "without examples": float(lame == prompt),
    }


def solutions(settings: Settings) -> Study:
    lm, items = loaded(settings.model), list(functions(settings.functions))

    def arm(name: str, target: UncertaintyAwareContrast, lame: str | None = None) -> Arm:
        def measure(function: Function) -> Values:
            solution = lm.encode(function.solution)[: settings.tokens]
            other = without_doctests(function.prompt) if lame is None else lame
            return scored(lm, target, function.prompt, solution, other)

        return Arm(name, measure)

    arms = [
        arm("never", UncertaintyAwareContrast(rho=-1.0)),
        arm("always", UncertaintyAwareContrast(rho=ALWAYS)),
        arm(f"USCD, {PUBLISHED:g}", UncertaintyAwareContrast(rho=PUBLISHED)),
        arm(f"USCD, {GENEROUS:g}", UncertaintyAwareContrast(rho=GENEROUS, floor=1 / 3)),
        arm("USCD, 0.4", UncertaintyAwareContrast(rho=0.4)),
        arm("unrelated lame prompt", UncertaintyAwareContrast(rho=PUBLISHED), settings.unrelated),
    ]
    name = f"USCD, {PUBLISHED:g}"
    claims = [
        *CLAIMS,
        PublishedClaim("the examples are what counts", "log likelihood/token", name, "unrelated lame prompt"),
    ]
    about = (
        f"{len(items)} functions of Python's library whose docstrings hold examples; their own bodies are scored. impossible: "
        "tokens that the contrast leaves no probability, which the likelihood leaves out. no examples: functions "
        "whose lame prompt is the prompt."
    )
    return Study(about, items, arms, FIGURES, claims, arms_are="contrast", lm=lm)


def tasks(settings: Settings) -> Study:
    """Published tasks: how likely their solutions are, and whether what is written passes their tests."""
    lm = loaded(settings.model)
    items = load_tasks(Path(settings.problems) if settings.problems else None)[: settings.tasks]
    doctests = any(">>>" in task.prompt for task in items)

    def arm(name: str, rho: float, lame: str | None = None) -> Arm:
        if lame:
            target = UncertaintyAwareContrast(rho=rho, lame=lame)
        else:
            target = UncertaintyAwareContrast(rho=rho, remove="doctests" if doctests else "assertions")

        def measure(task: ProgramTask) -> Values:
            own = without_doctests(task.prompt) if doctests else without_assertions(task.prompt)
            solution = lm.encode(task.solution)[: settings.tokens]
            told = scored(lm, target, task.prompt, solution, own if lame is None else lame)
            return {**told, **written(lm, task, settings.answer, target=target.spec())}

        return Arm(name, measure)

    arms = [
        arm("never", -1.0),
        arm("always", ALWAYS),
        arm(f"USCD, {PUBLISHED:g}", PUBLISHED),
        arm("unrelated lame prompt", PUBLISHED, settings.unrelated),
    ]
    about = (
        f"{len(items)} tasks of {Path(settings.problems).name or 'the set that ships with decodery'}; their published "
        f"solutions are scored (at most {settings.tokens} tokens), and greedy answers of at most {settings.answer} tokens run "
        "with their tests. rows: of both prompts."
    )
    return Study(about, items, arms, [PASSED, *FIGURES, ROWS_PER_TOKEN], CLAIMS, arms_are="contrast", lm=lm)


EXPERIMENT = Experiment(
    slug="uscd",
    title="Uncertainty-aware selective contrastive decoding",
    source="arXiv 2409.05923",
    measures=("decodery.targets.uscd",),
    settings=Settings(),
    studies={"solutions": solutions, "tasks": tasks},
)
