"""CNTP against sampling and greedy decoding on sums: what is right, and what it costs; its choices against others."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from decodery.evaluation.experiment import Arm, Experiment, Figure, PublishedClaim, Study
from decodery.replies import Reply
from decodery.search import answers
from experiments.texts import loaded


@dataclass(frozen=True)
class Settings:
    model: str = "smollm2-135m"
    problems: int = 200
    tokens: int = 48
    trials: tuple[int, ...] = (5, 10)
    temperature: float = 0.6
    top_p: float = 0.9
    seed: int = 0


@dataclass(frozen=True)
class Problem:
    """A sum in words, and what it comes to."""

    number: int
    text: str
    answer: int


def problems(count: int, seed: int) -> list[Problem]:
    """Sums and differences of one and two digits."""
    chosen, found = random.Random(seed), []
    for number in range(count):
        one, two = chosen.randint(2, 40), chosen.randint(2, 9)
        plus = chosen.random() < 0.5
        word = "gets" if plus else "gives away"
        text = f"Tom has {max(one, two)} apples and {word} {min(one, two)}. How many apples does he have? Answer with a number."
        found.append(Problem(number, text, one + two if plus else abs(one - two)))
    return found


def told(reply: Reply, problem: Problem) -> dict[str, float]:
    """What a reply is worth and cost."""
    events = reply.stats.details.get("events", [])
    found = {
        "right": float(answers.parse(reply.text, "math") == str(problem.answer)),
        "tokens": float(reply.stats.new_tokens),
        "rows": float(reply.stats.rows - reply.stats.prompt_tokens),
        "forwards": float(reply.stats.forwards),
        "events": float(len(events)),
        "tries": float(sum(len(event["lengths"]) for event in events)),
    }
    appended = [event["appended"] for event in events]
    return found | ({"appended": float(sum(appended)), "clauses": float(len(appended))} if appended else {})


def sums(settings: Settings) -> Study:
    lm = loaded(settings.model)
    items = problems(settings.problems, settings.seed)

    def arm(name: str, spec: str, temperature: float) -> Arm:
        def measure(problem: Problem) -> Mapping[str, float]:
            reply = lm.chat(
                problem.text,
                method=spec,
                temperature=temperature,
                top_p=settings.top_p,
                seed=settings.seed + problem.number,
                max_new_tokens=settings.tokens,
            )
            return told(reply, problem)

        return Arm(name, measure)

    hot, most = settings.temperature, max(settings.trials)
    arms = [
        arm("greedy", "autoregressive", 0.0),
        arm("sampling", "autoregressive", hot),
        *(arm(f"CNTP, {trials}", f"cautious-next-token(trials={trials})", hot) for trials in settings.trials),
        arm("rule of the code", f"cautious-next-token(trials={most}, rule=code)", hot),
        arm("by the sum", f"cautious-next-token(trials={most}, choice=sum)", hot),
        arm("the first try", f"cautious-next-token(trials={most}, choice=first)", hot),
        arm("a token of the best", f"cautious-next-token(trials={most}, commit=token)", hot),
        arm("marks of the code", f"cautious-next-token(trials={most}, marks=reference)", hot),
        arm("raw perplexity", f"cautious-next-token(trials={most}, score=raw)", hot),
    ]
    name = f"CNTP, {most}"
    figures = [
        Figure("right", "right", form=".0%", share=True),
        Figure("rows/token", "rows", per="tokens"),
        Figure("forwards/token", "forwards", per="tokens"),
        Figure("tries/event", "tries", per="events", form=".1f"),
        Figure("clause", "appended", per="clauses", form=".1f"),
    ]
    claims = [
        PublishedClaim("CNTP is right more often than sampling", "right", name, "sampling"),
        PublishedClaim("and than greedy decoding", "right", name, "greedy"),
        PublishedClaim(
            "the sum of log probabilities prefers shorter clauses", "clause", "by the sum", name, above=False
        ),
    ]
    about = f"{settings.problems} sums in words at a temperature of {hot} and a nucleus of {settings.top_p}."
    return Study(about, items, arms, figures, claims, lm=lm)


EXPERIMENT = Experiment(
    slug="cautious_next_token",
    title="Cautious next token prediction",
    source="arXiv 2507.03038",
    measures=("decodery.search.cautious_next_token", "decodery.search.punctuation"),
    settings=Settings(),
    studies={"sums": sums},
)
