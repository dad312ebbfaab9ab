"""Methods against plain decoding, on the same prompts, in the same run.

Noise of the machine hits all entrants alike: for each question every entrant runs once, in an order that rotates. Speeds
come from totals, never from means of ratios. Plain decoding and its bare forwards always take part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from decodery.engine.registry import method as as_method
from decodery.errors import BadInput, BadSetting
from decodery.evaluation.entrants import (
    Answer,
    Ask,
    BareCanvas,
    BareForward,
    BareGrowing,
    BareQueries,
    Entrant,
    MethodEntrant,
    rivals,
    timed,
)
from decodery.evaluation.provenance import provenance
from decodery.evaluation.questions import Question
from decodery.evaluation.report import OVERALL, BenchmarkReport, Row, Tally
from decodery.language_model import LanguageModel
from decodery.models.kinds import Kind

Progress = Callable[[str, int, int], None]
PLAINS: dict[Kind, tuple[str, type[BareForward]]] = {
    Kind.NEXT_TOKEN: ("autoregressive", BareForward),
    Kind.MASKED_POSITIONS: ("masked-diffusion", BareCanvas),
    Kind.ANY_ORDER: ("any-subset-autoregressive", BareQueries),
    Kind.INSERTIONS: ("insertion-language-models", BareGrowing),
}
"""Plain decoding of each kind of model, and its forwards and nothing else."""


@dataclass
class _Conversation:
    """A question on its way: its prompt so far, with plain decoding's answers to the earlier turns."""

    question: Question
    seed: int
    messages: list[dict[str, str]]

    def ask(self, turn: int) -> None:
        self.messages.append({"role": "user", "content": self.question.turns[turn]})

    def tokens(self, lm: LanguageModel) -> list[int]:
        if getattr(lm.tokenizer, "chat_template", None):
            return lm.tokenize(self.messages)
        return lm.tokenize("\n\n".join(message["content"] for message in self.messages) + "\n\n")


def run_benchmark(
    lm: LanguageModel,
    methods: Sequence[str],
    questions: Sequence[Question],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    repeats: int = 1,
    warmup: int = 1,
    batch_size: int = 1,
    against: Sequence[str] = (),
    seed: int = 0,
    prompts: str = "",
    on_progress: Progress | None = None,
) -> BenchmarkReport:
    """Measure methods on questions.

    Second turns follow plain decoding's first answer, so that all entrants get the same prompts. warmup: questions decoded
    before by every entrant, which do not count. On a model of another kind plain decoding is that of one token per
    step, on an insertion model its default method. batch_size: questions of a category decoded together. against: other
    engines, so far "transformers". prompts: what the report calls the questions; by default the names of their files.
    Raises BadSetting, BadInput, and what `generate` raises before work starts.
    """
    for name, value, least in (
        ("max_new_tokens", max_new_tokens, 1),
        ("repeats", repeats, 1),
        ("warmup", warmup, 0),
        ("batch_size", batch_size, 1),
    ):
        if value < least:
            raise BadSetting(f"{name} must be at least {least}, not {value}.")
    if not questions:
        raise BadInput("there are no questions to measure on.")
    reference, bare_of = next(found for kind, found in PLAINS.items() if kind in lm.network.kinds)
    plain = MethodEntrant(lm, reference)
    bare = bare_of(lm)
    specs = list(dict.fromkeys(as_method(method).spec() for method in methods))
    others, notes = rivals(lm, against, batch_size)
    entrants = [plain, *(MethodEntrant(lm, spec) for spec in specs if spec != reference), *others]
    fitting = [question for question in questions if _fits(lm, question, max_new_tokens)]
    if len(fitting) < len(questions):
        notes.append(f"{len(questions) - len(fitting)} questions do not fit into the context of {lm.name}.")
    if not fitting:
        raise BadInput(f"none of the {len(questions)} questions fits into the context of {lm.name}.")
    runner = _Runner(lm, plain, bare, entrants, max_new_tokens, temperature, seed)
    try:
        runner.warm_up(fitting[:warmup])
        runner.run(fitting, repeats, batch_size, on_progress or (lambda label, done, total: None))
    finally:
        for entrant in entrants:
            entrant.close()
    told: dict[str, Any] = {
        **provenance(lm),
        "prompts": prompts or ", ".join(sorted({question.source or "questions given" for question in fitting})),
        "questions": len(fitting),
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "repeats": repeats,
        "warmup": warmup,
        "batch_size": batch_size,
        "seed": seed,
        "methods": specs,
        "against": list(against),
        "plain": reference,
    }
    return BenchmarkReport(runner.rows(), told, notes)


def _fits(lm: LanguageModel, question: Question, max_new_tokens: int) -> bool:
    """Whether the last turn surely fits, whatever the earlier answers are."""
    conversation = _Conversation(question, 0, [])
    for turn in range(len(question.turns)):
        conversation.ask(turn)
    return len(conversation.tokens(lm)) + max_new_tokens * len(question.turns) + 16 < lm.network.context


class _Runner:
    """Runs the entrants and keeps the totals."""

    def __init__(
        self,
        lm: LanguageModel,
        plain: MethodEntrant,
        bare: BareForward,
        entrants: Sequence[Entrant],
        max_new_tokens: int,
        temperature: float,
        seed: int,
    ):
        self._lm, self._plain, self._bare, self._entrants = lm, plain, bare, entrants
        self._max_new_tokens, self._temperature, self._seed = max_new_tokens, temperature, seed
        self._device = lm.network.device
        self._tallies: dict[tuple[str, str], Tally] = {}
        self._repeats: dict[tuple[str, int], Tally] = {}
        self._steps = 0

    def warm_up(self, questions: Sequence[Question]) -> None:
        """Decode some questions with everybody, so that nothing is loaded, compiled or measured on the clock."""
        short = questions or [Question("warm-up", "warm-up", ("Hello.",))]
        for question in short:
            conversation = _Conversation(question, self._seed, [])
            conversation.ask(0)
            count = self._max_new_tokens if questions else 2
            ask = Ask([conversation.tokens(self._lm)], count, self._temperature, [self._seed], None)
            for entrant in self._entrants:
                answers = entrant.answer(ask)
                if entrant is self._plain:
                    self._bare.follow(answers)
                    self._bare.answer(ask)

    def run(self, questions: Sequence[Question], repeats: int, batch_size: int, tell: Progress) -> None:
        """All questions, `repeats` times."""
        ordered = sorted(questions, key=lambda question: question.category)
        batches: list[list[tuple[int, Question]]] = []
        place = 0
        for _, group in groupby(ordered, key=lambda question: question.category):
            members = list(enumerate(group, start=place))
            place += len(members)
            batches += [members[start : start + batch_size] for start in range(0, len(members), batch_size)]
        total = repeats * len(batches)
        for repeat in range(repeats):
            for number, batch in enumerate(batches):
                tell("benchmark", repeat * len(batches) + number, total)
                self._batch([_Conversation(question, self._seed + i, []) for i, question in batch], repeat)
        tell("benchmark", total, total)

    def _batch(self, conversations: list[_Conversation], repeat: int) -> None:
        category = conversations[0].question.category
        turn = 0
        while conversations:
            for conversation in conversations:
                conversation.ask(turn)
            prompts = [conversation.tokens(self._lm) for conversation in conversations]
            seeds = [conversation.seed for conversation in conversations]
            plain = self._everybody(
                Ask(prompts, self._max_new_tokens, self._temperature, seeds, repeat), category, repeat
            )
            for conversation, answer in zip(conversations, plain, strict=True):
                conversation.messages.append({"role": "assistant", "content": answer.text})
            turn += 1
            conversations = [c for c in conversations if len(c.question.turns) > turn]

    def _everybody(self, ask: Ask, category: str, repeat: int) -> list[Answer]:
        """Let every entrant answer, in rotating order; returns plain decoding's answers."""
        first = self._steps % len(self._entrants)
        self._steps += 1
        results: list[tuple[Entrant, list[Answer], float]] = []
        for entrant in [*self._entrants[first:], *self._entrants[:first]]:
            answers, seconds = timed(entrant, ask, self._device)
            results.append((entrant, answers, seconds))
            if entrant is self._plain:
                plain = answers
                self._bare.follow(answers)
                results.append((self._bare, *timed(self._bare, ask, self._device)))
        expected = [answer.token_ids for answer in plain]
        for entrant, answers, seconds in results:
            for key in ((entrant.name, category), (entrant.name, OVERALL)):
                self._tallies.setdefault(key, Tally()).add(answers, seconds, expected)
            self._repeats.setdefault((entrant.name, repeat), Tally()).add(answers, seconds, expected)
        return plain

    def rows(self) -> list[Row]:
        """Per entrant: each category, all questions, and the average of the categories."""
        names = [self._plain.name, self._bare.name, *(e.name for e in self._entrants if e is not self._plain)]
        categories = sorted({category for _, category in self._tallies} - {OVERALL})
        plain = {category: self._tallies[self._plain.name, category] for category in [*categories, OVERALL]}
        reference = [Row.of(self._plain.name, category, plain[category], plain[category]) for category in categories]
        rows = []
        for name in names:
            own = [Row.of(name, category, self._tallies[name, category], plain[category]) for category in categories]
            repeats = [tally for (entrant, _), tally in sorted(self._repeats.items()) if entrant == name]
            overall = Row.of(name, OVERALL, self._tallies[name, OVERALL], plain[OVERALL], repeats)
            rows += [*own, overall, Row.average(name, own, reference)]
        return rows
