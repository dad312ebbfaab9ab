"""All lossless methods on the same questions: tokens per round, acceptance, speed beside plain decoding, identical outputs.

`greedy`, `sampled` (temperature 1): one request at a time; `together`: several in one batch. Speed is tokens per second over
plain
decoding's within the run. `decodery bench` measures the same with other methods, by category, and against transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from decodery.evaluation.experiment import Arm, Experiment, Figure, PublishedClaim, Study, once_per_item
from decodery.evaluation.questions import Question
from decodery.replies import Reply
from experiments.texts import (
    ACCEPTED,
    IDENTICAL,
    NODES,
    SPEED,
    TOKENS_PER_ROUND,
    Asked,
    counted,
    loaded,
    prompt_of,
    questions_of,
)

PLAIN = "autoregressive"
SPECS = (
    *(
        "prompt-lookup",
        "suffix-automaton",
        "token-recycling",
        "approximate-match-lookup",
        "adaptive-draft-verification",
    ),
    *("draft-model(draft=ngram)", "recursive-speculative-decoding(draft=ngram)", "spectr(draft=ngram)"),
    *("optimal-multi-draft(draft=ngram)", "swift", "del"),
    *(
        "cascade(sources=copied)",
        "cascade(sources=recycled)",
        "cascade(sources=table)",
        "cascade(sources=copied+recycled)",
    ),
    "cascade",
)


@dataclass(frozen=True)
class Settings(Asked):
    per_category: int = 1
    tokens: int = 64
    methods: tuple[str, ...] = SPECS
    fast: str = "auto"
    batch: int = 6
    session: str = "experiment"


def _study(settings: Settings, items: Sequence[tuple[Question, ...]], temperature: float) -> Study:
    """Requests of one item are decoded together. What a method remembers of a session stays from item to item."""
    lm = loaded(settings.model, settings.fast)
    lm.forget(settings.session)

    def answer(asked: tuple[Question, ...], spec: str) -> list[Reply]:
        replies: list[Reply] = lm.generate(
            [prompt_of(lm, question) for question in asked],
            method=spec,
            temperature=temperature,
            seed=settings.seed,
            max_new_tokens=settings.tokens,
            session=settings.session,
        )
        return replies

    @once_per_item
    def plain(asked: tuple[Question, ...]) -> list[Reply]:
        return answer(asked, PLAIN)

    def arm(spec: str) -> Arm:
        def measure(asked: tuple[Question, ...]) -> Mapping[str, float]:
            first = plain(asked)
            replies = first if spec == PLAIN else answer(asked, spec)
            each = [counted(reply, other) for reply, other in zip(replies, first, strict=True)]
            told = {name: sum(values[name] for values in each) for name in each[0]}
            told["seconds"] = max(values["seconds"] for values in each)
            told["identical"] = min(values["identical"] for values in each)
            return told

        return Arm(spec, measure)

    specs = (PLAIN, *settings.methods)
    figures: list[Figure] = [TOKENS_PER_ROUND, NODES, ACCEPTED, SPEED, IDENTICAL]
    best = settings.methods[-1]
    claims = [PublishedClaim("faster than plain decoding", SPEED.name, best, 1.0)]
    claims += [
        PublishedClaim("more tokens per round than", TOKENS_PER_ROUND.name, best, other)
        for other in settings.methods[:-1]
    ]
    if temperature == 0:
        claims.append(PublishedClaim("the outputs of plain decoding", IDENTICAL.name, best, every=True))
    return Study(
        f"{(settings.questions and 'Spec-Bench') or 'Decodery'}'s questions, {settings.per_category} of each of six groups, "
        f"{len(items[0])} at a time, at most {settings.tokens} new tokens, temperature {temperature:g}. "
        "Speed: a ratio within this "
        "run, the prompt's reading included.",
        items,
        [arm(spec) for spec in specs],
        figures,
        claims,
        lm=lm,
    )


def greedy(settings: Settings) -> Study:
    return _study(settings, [(question,) for question in questions_of(settings)], 0.0)


def sampled(settings: Settings) -> Study:
    return _study(settings, [(question,) for question in questions_of(settings)], 1.0)


def together(settings: Settings) -> Study:
    asked = questions_of(settings)
    return _study(settings, [tuple(asked[i : i + settings.batch]) for i in range(0, len(asked), settings.batch)], 0.0)


EXPERIMENT = Experiment(
    "drafters",
    "All lossless methods on the same questions",
    "the methods' own papers; speeds are of other models and machines there",
    ("decodery.speculative", "decodery.engine.scheduler"),
    Settings(),
    {"greedy": greedy, "sampled": sampled, "together": together},
)
