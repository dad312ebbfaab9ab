"""AdaDec against greedy decoding, beams, and pauses everywhere or at random, with a threshold learned for the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

from decodery.engine.method import Method, parameter
from decodery.evaluation.experiment import Arm, Experiment, Figure, PublishedClaim, Study, Values
from decodery.evaluation.programs import ProgramTask, load_tasks
from decodery.evaluation.typicality import typicality
from decodery.replies import Reply
from decodery.search.adadec import AdaptiveDecoding
from decodery.training.adadec_threshold import learn, observe
from decodery.training.library_texts import Function, functions
from experiments.programs import FORWARDS_PER_TOKEN, PASSED, ROWS_PER_TOKEN, written
from experiments.texts import loaded


@dataclass(frozen=True)
class Settings:
    """Sizes. problems: a file of tasks in HumanEval's or MBPP's form; empty for decodery's own. answer: most tokens of one."""

    model: str = "smollm2-135m"
    functions: int = 100
    learned_from: int = 150
    tokens: int = 96
    problems: str = ""
    tasks: int = 164
    answer: int = 160
    seed: int = 0


@dataclass(frozen=True)
class PausingAtRandom(AdaptiveDecoding):
    """AdaDec that pauses before any token with the same chance."""

    rate: float = parameter(0.5, "chance of a pause", low=0.0, high=1.0)

    def pauses(self, entropy: float, threshold: float, position: int) -> bool:
        return Random(position).random() < self.rate


def told(reply: Reply) -> dict[str, float]:
    """What a reply's pauses came to. otherwise: pauses of unequal lengths that the sum would have decided differently."""
    pauses = reply.stats.details.get("pauses", [])
    unequal = [pause for pause in pauses if len(set(pause["lengths"])) > 1]
    differently = [p for p in unequal if p["candidates"][p["sums"].index(max(p["sums"]))] != p["chosen"]]
    return {
        "tokens": float(reply.stats.new_tokens),
        "forwards": float(reply.stats.forwards),
        "rows": float(reply.stats.rows - reply.stats.prompt_tokens),
        "pauses": float(len(pauses)),
        "changed": float(sum(pause["candidates"][0] != pause["chosen"] for pause in pauses)),
        **({"unequal": float(len(unequal)), "otherwise": float(len(differently))} if pauses else {}),
    }


def bodies(settings: Settings) -> Study:
    lm = loaded(settings.model)
    items = list(functions(settings.functions))
    others = [f for f in functions(settings.learned_from, examples=False) if f not in items]
    observed = observe(lm, [(f.prompt, f.solution) for f in others], lambda done, total: None)
    learned = learn(*observed)
    rate = float((observed[0] >= learned.threshold).mean())

    def arm(name: str, spec: str | Method) -> Arm:
        def measure(function: Function) -> Mapping[str, float]:
            prompt = lm.encode(function.prompt)
            reply: Reply = lm.generate(prompt, spec, max_new_tokens=settings.tokens)
            surprises = typicality(lm, prompt, reply.token_ids).surprises
            return {**told(reply), "likelihood": -sum(surprises)}

        return Arm(name, measure)

    arms = [
        arm("greedy", "autoregressive"),
        arm("AdaDec, learned", f"adadec(threshold={learned.threshold:.3f}, until=function)"),
        arm("AdaDec, published", "adadec(until=function)"),
        arm("to the end token", f"adadec(threshold={learned.threshold:.3f})"),
        arm("paused always", "adadec(threshold=0)"),
        arm("paused at random", PausingAtRandom(rate=rate)),
        arm("three beams", "beam-search(beams=3, length_penalty=0)"),
        arm("AdaDec, three beams", f"adadec(threshold={learned.threshold:.3f}, beams=3)"),
        arm("nine tokens ahead", f"adadec(threshold={learned.threshold:.3f}, lookahead=9)"),
        arm("the code's look-ahead", f"adadec(threshold={learned.threshold:.3f}, until=function, mode=reference)"),
    ]
    figures = [
        Figure("log likelihood/token", "likelihood", per="tokens"),
        Figure("forwards/token", "forwards", per="tokens"),
        Figure("rows/token", "rows", per="tokens"),
        Figure("paused", "pauses", per="tokens", form=".0%"),
        Figure("changed", "changed", per="pauses", form=".0%"),
        Figure("unequal lengths", "unequal", per="pauses", form=".0%"),
        Figure("the sum differs", "otherwise", per="unequal", form=".0%"),
    ]
    claims = [
        PublishedClaim(
            "it finds likelier texts than greedy decoding", "log likelihood/token", "to the end token", "greedy"
        ),
        PublishedClaim("than pauses at random find", "log likelihood/token", "to the end token", "paused at random"),
        PublishedClaim("in fewer rows than beam search", "rows/token", "to the end token", "three beams", above=False),
    ]
    about = (
        f"Bodies of {len(items)} functions of Python's library, at most {settings.tokens} tokens. The threshold was learned "
        f"from {learned.tokens} tokens of other functions: {learned.threshold:.3f} nats, right of {learned.accuracy:.0%} of "
        f"those that were held out; {rate:.0%} of them are at or above it, which is the rate of pauses at random."
    )
    return Study(about, items, arms, figures, claims, lm=lm)


def tasks(settings: Settings) -> Study:
    """Published tasks: whether what is written passes their tests, and how likely it is."""
    lm = loaded(settings.model)
    items = load_tasks(Path(settings.problems) if settings.problems else None)[: settings.tasks]

    def arm(name: str, spec: str) -> Arm:
        def measure(task: ProgramTask) -> Values:
            return written(lm, task, settings.answer, spec)

        return Arm(name, measure)

    # Without a threshold it is the one that was learned for this model.
    arms = [
        arm("greedy", "autoregressive"),
        arm("AdaDec", "adadec"),
        arm("three beams", "beam-search(beams=3, length_penalty=0)"),
    ]
    claims = [
        PublishedClaim("more of its answers pass than of greedy decoding's", "pass@1", "AdaDec", "greedy"),
        PublishedClaim("in fewer rows than beam search", "rows/token", "AdaDec", "three beams", above=False),
    ]
    about = (
        f"{len(items)} tasks of {Path(settings.problems).name or 'the set that ships with decodery'}; answers of at most "
        f"{settings.answer} tokens are run with their tests."
    )
    return Study(about, items, arms, [PASSED, FORWARDS_PER_TOKEN, ROWS_PER_TOKEN], claims, lm=lm)


EXPERIMENT = Experiment(
    slug="adadec",
    title="AdaDec",
    source="arXiv 2506.08980",
    measures=("decodery.search.adadec", "decodery.training.adadec_threshold"),
    settings=Settings(),
    studies={"bodies": bodies, "tasks": tasks},
)
