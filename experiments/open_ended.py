"""What experiments on open-ended text share: prompts, arms that write, and what is counted of what they wrote."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from decodery.errors import BadInput
from decodery.evaluation.experiment import Arm, Figure, PublishedClaim, Study
from decodery.evaluation.mauve import features, mauve
from decodery.evaluation.questions import Question
from decodery.evaluation.text_quality import diversity, repetition
from decodery.evaluation.typicality import typicality
from decodery.language_model import LanguageModel
from decodery.replies import Reply
from decodery.training.library_texts import paragraphs
from decodery.training.prompts import varied_prompts
from experiments.texts import Asked, loaded, prompt_of, questions_of

NEAR = 0.5
"""Nats: what deviates by less counts as locally typical."""
TOGETHER = 32
"""Passages that are continued in one batch."""


@dataclass(frozen=True)
class Writing(Asked):
    """Sizes of an experiment on open-ended text.

    more: prompts besides the questions. The others are of sets of texts that are compared with what people wrote. human: a file
    of their passages, one a line; empty for Python's documentation. sets: disjoint ones, of so many `passages` each, of which
    the first `given` tokens are the prompt and the next `continued` are compared. features: the model whose hidden rows tell
    texts apart.
    """

    per_category: int = 8
    more: int = 64
    tokens: int = 128
    human: str = ""
    sets: int = 2
    passages: int = 1000
    given: int = 12
    continued: int = 24
    features: str = "gemma3-270m"


def of_text(lm: LanguageModel, prompt: Sequence[int], tokens: Sequence[int]) -> dict[str, float]:
    """What is counted of a text. coherence: mean log probability under the model itself; greedy: share of tokens that are the
    model's first choice; the others are those of `typicality`."""
    told = typicality(lm, prompt, tokens)
    return {
        "diversity": diversity(tokens),
        "rep-4": repetition(tokens, 4),
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


def prompts_of(asked: Writing) -> tuple[LanguageModel, list[Question]]:
    """The model, and the prompts that it continues."""
    others = [Question(f"varied-{place}", "varied", (text,)) for place, text in enumerate(varied_prompts(asked.more))]
    return loaded(asked.model), [*questions_of(asked), *others]


@cache
def passages_of(asked: Writing) -> list[list[tuple[list[int], list[int]]]]:
    """Sets of passages that people wrote, each as a prompt and what followed. Raises BadInput where there are too few."""
    lm, length = loaded(asked.model), asked.given + asked.continued
    texts: Sequence[str] = paragraphs(1 << 20, shortest=3 * length)
    if asked.human:
        texts = Path(asked.human).expanduser().read_text("utf-8").splitlines()
    read = [ids for text in texts if len(ids := lm.encode(text)) >= length]
    if len(read) < asked.sets * asked.passages:
        raise BadInput(
            f"there are {len(read)} passages of at least {length} tokens, and {asked.sets} sets of {asked.passages} are wanted."
        )
    pairs = [(ids[: asked.given], ids[asked.given : length]) for ids in read]
    # In turn, so that no set has the passages of one chapter alone.
    return [pairs[start :: asked.sets][: asked.passages] for start in range(asked.sets)]


@cache
def features_of_people(asked: Writing, number: int) -> Float[np.ndarray, "n hidden"]:
    """Those of the passages of a set."""
    lm, judge = loaded(asked.model), loaded(asked.features)
    return features(judge, [lm.tokenizer.decode([*prompt, *rest]) for prompt, rest in passages_of(asked)[number]])


def comparing(asked: Writing, name: str, method: str = "autoregressive", **settings: Any) -> Arm:
    """An arm that continues the passages of a set, and how near its continuations are to theirs (MAUVE)."""

    def measure(number: int) -> Mapping[str, float]:
        lm, judge = loaded(asked.model), loaded(asked.features)
        pairs, texts = passages_of(asked)[number], []
        for start in range(0, len(pairs), TOGETHER):
            lm.forget()
            prompts = [prompt for prompt, _ in pairs[start : start + TOGETHER]]
            given = {"seed": asked.seed + start, "max_new_tokens": asked.continued, "ignore_eos": True, **settings}
            texts += [lm.tokenizer.decode([*prompt, *reply.token_ids])
                      for prompt, reply in zip(prompts, lm.generate(prompts, method, **given), strict=True)]  # fmt: skip
        found = mauve(features_of_people(asked, number), features(judge, texts))
        return {"mauve": found.value, "smoothed": found.smoothed}

    return Arm(name, measure)


def nearness(asked: Writing, arms: Sequence[Arm], claims: Sequence[PublishedClaim]) -> Study:
    """A study of how near texts are to what people wrote. arms: those of `comparing`."""
    about = (
        f"Each of {asked.sets} sets: {asked.passages} passages of {asked.human or 'the documentation of Python'}, of which "
        f"{asked.given} tokens are given and {asked.continued} compared, with features of {asked.features}. smoothed: with "
        "half a text added to every cluster."
    )
    figures = [Figure("MAUVE", "mauve", form=".3f"), Figure("smoothed", "smoothed", form=".3f")]
    return Study(about, range(asked.sets), arms, figures, claims, arms_are="rule", lm=loaded(asked.model))


DIVERSITY = Figure("diversity", "diversity")
REPEATED = Figure("rep-4", "rep-4")
COHERENCE = Figure("coherence", "coherence")
FORWARDS = Figure("forwards/token", "forwards", per="tokens")
ROWS = Figure("rows/token", "rows", per="tokens")
LATENCY = Figure("ms/token", "milliseconds a token", middle=True, form=".1f")
