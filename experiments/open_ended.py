"""What experiments on open-ended text share: prompts, arms that write, and what is counted of what they wrote."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from decodery.evaluation.experiment import Arm, Figure
from decodery.evaluation.questions import Question
from decodery.evaluation.typicality import typicality
from decodery.language_model import LanguageModel
from decodery.replies import Reply
from experiments.texts import Asked, loaded, prompt_of, questions_of

NEAR = 0.5
"""Nats: what deviates by less counts as locally typical."""


@dataclass(frozen=True)
class Writing(Asked):
    """Sizes of an experiment on open-ended text."""

    per_category: int = 8
    tokens: int = 128


def repeated(tokens: Sequence[int], size: int) -> float:
    """The share of runs of `size` tokens that came before (rep-n)."""
    runs = [tuple(tokens[start : start + size]) for start in range(len(tokens) - size + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def diversity(tokens: Sequence[int]) -> float:
    """The product of the shares of runs of two, three and four tokens that are new."""
    product = 1.0
    for size in (2, 3, 4):
        product *= 1 - repeated(tokens, size)
    return product


def of_text(lm: LanguageModel, prompt: Sequence[int], tokens: Sequence[int]) -> dict[str, float]:
    """What is counted of a text. coherence: mean log probability under the model itself; greedy: share of tokens that are the
    model's first choice; the others are those of `typicality`."""
    told = typicality(lm, prompt, tokens)
    return {
        "diversity": diversity(tokens),
        "rep-4": repeated(tokens, 4),
        "types": len(set(tokens)) / len(tokens),
        "coherence": -sum(told.surprises) / len(tokens),
        "entropy": sum(told.entropies) / len(tokens),
        "deviation": told.deviation,
        "typical": told.local(NEAR),
        "greedy": sum(told.likeliest) / len(tokens),
    }


def of_cost(reply: Reply) -> dict[str, float]:
    """What a reply cost, in totals."""
    stats = reply.stats
    return {
        "tokens": float(stats.new_tokens),
        "forwards": float(stats.forwards),
        "rows": float(stats.rows - stats.prompt_tokens),
        "milliseconds a token": 1e3 * stats.seconds / stats.new_tokens,
    }


def writing(
    lm: LanguageModel,
    asked: Asked,
    name: str,
    method: str = "autoregressive",
    more: Callable[[Reply], Mapping[str, float]] = lambda reply: {},
    **settings: Any,
) -> Arm:
    """An arm that continues each prompt, and what is counted of its text. more: what else a reply tells."""

    def measure(question: Question) -> Mapping[str, float]:
        lm.forget()
        prompt = prompt_of(lm, question)
        reply: Reply = lm.generate(
            prompt, method, **{"seed": asked.seed, "max_new_tokens": asked.tokens, "ignore_eos": True, **settings}
        )
        return {**of_text(lm, prompt, reply.token_ids), **of_cost(reply), **more(reply)}

    return Arm(name, measure)


def prompts_of(asked: Asked) -> tuple[LanguageModel, list[Question]]:
    """The model, and the prompts that it continues."""
    return loaded(asked.model, dtype="float32"), questions_of(asked)


DIVERSITY = Figure("diversity", "diversity")
REPEATED = Figure("rep-4", "rep-4")
COHERENCE = Figure("coherence", "coherence")
FORWARDS = Figure("forwards/token", "forwards", per="tokens")
ROWS = Figure("rows/token", "rows", per="tokens")
LATENCY = Figure("ms/token", "milliseconds a token", middle=True, form=".1f")
