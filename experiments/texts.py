"""What experiments with causal models share: questions, recorded answers, arms that decode, figures of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import decodery
from decodery.evaluation.experiment import Arm, Figure, once_per_item
from decodery.evaluation.questions import Question, load_questions
from decodery.evaluation.recorded import Recorded, record, replay
from decodery.language_model import LanguageModel
from decodery.replies import Reply
from decodery.speculative.loop import Drafter

TOKENS_PER_ROUND = Figure("tokens/round", "tokens", per="rounds")
NODES = Figure("nodes/round", "drafted", per="rounds")
ACCEPTED = Figure("accepted", "accepted", per="drafted", form=".0%")
SPEED = Figure("speed", "tokens", per="seconds", against="autoregressive", unit="x")
IDENTICAL = Figure("identical", "identical", form=".0%", share=True)


@dataclass(frozen=True)
class Asked:
    """Sizes of an experiment on questions. questions: a file in Spec-Bench's form; empty for decodery's own."""

    model: str = "smollm2-135m"
    questions: str = ""
    per_category: int = 2
    tokens: int = 64
    seed: int = 0


@cache
def loaded(name: str, fast: str = "auto", dtype: str = "auto", quantize: str | None = None) -> LanguageModel:
    """A model, loaded once."""
    return decodery.load(name, fast=fast, dtype=dtype, quantize=quantize)


def questions_of(asked: Asked, more: int = 0) -> list[Question]:
    """The first questions of each category. more: so many more of each."""
    path = Path(asked.questions) if asked.questions else None
    return load_questions(path, per_category=asked.per_category + more)


@cache
def recorded(asked: Asked) -> list[Recorded]:
    """Plain greedy answers."""
    return record(loaded(asked.model), questions_of(asked), asked.tokens)


def prompt_of(lm: LanguageModel, question: Question) -> list[int]:
    """The first turn as token ids, through the chat template where there is one."""
    chats = getattr(lm.tokenizer, "chat_template", None)
    return lm.tokenize([{"role": "user", "content": question.turns[0]}] if chats else question.turns[0])


def counted(reply: Reply, plain: Reply | None = None) -> dict[str, float]:
    """What a reply tells. plain: plain decoding's answer to the same."""
    stats = reply.stats
    told = {
        "tokens": float(stats.new_tokens),
        "rounds": float(stats.rounds),
        "drafted": float(stats.drafted),
        "accepted": float(stats.accepted),
        "seconds": stats.seconds,
    }
    if plain is not None:
        told["identical"] = float(list(reply.token_ids) == list(plain.token_ids))
    return told


def decoding(
    lm: LanguageModel, specs: Sequence[str], asked: Asked, temperature: float = 0.0, **settings: Any
) -> list[Arm]:
    """Arms that answer questions, each with its spec for a name. Every answer begins with nothing remembered. The first spec is
    plain decoding where identity is to be counted."""

    def answer(question: Question, spec: str) -> Reply:
        lm.forget()
        reply: Reply = lm.generate(
            prompt_of(lm, question),
            method=spec,
            temperature=temperature,
            seed=asked.seed,
            max_new_tokens=asked.tokens,
            **settings,
        )
        return reply

    @once_per_item
    def plain(question: Question) -> Reply:
        return answer(question, specs[0])

    def arm(spec: str) -> Arm:
        def measure(question: Question) -> Mapping[str, float]:
            if specs[0] != "autoregressive":
                return counted(answer(question, spec))
            first = plain(question)
            return counted(first if spec == specs[0] else answer(question, spec), first)

        return Arm(spec, measure)

    return [arm(spec) for spec in specs]


def replaying(name: str, make: Callable[[], Drafter]) -> Arm:
    """An arm that drafts recorded texts, each with a new drafter."""

    def measure(text: Recorded) -> Mapping[str, float]:
        found = replay(make(), text.tokens, text.start)
        told = {
            "tokens": float(found.tokens),
            "rounds": float(found.rounds),
            "drafted": float(found.drafted),
            "accepted": float(found.accepted),
        }
        return told | ({"drafting": 1e3 * found.seconds_per_draft} if found.times else {})

    return Arm(name, measure)
