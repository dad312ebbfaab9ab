"""The oracle curve: what the engine's own unmasking rules reach with a model that makes no mistakes.

The model knows the exact marginals of a list task's right answers (`decodery.testing.OracleDenoiser`), so whatever is lost is
lost by deciding tokens together: the ceiling of a decoder at a setting. Beside it stand what theory says (`analysis.py`) and
the bits that no decoder with these steps can keep.
"""

from __future__ import annotations

import math
import random
import string
from collections.abc import Sequence
from dataclasses import dataclass

from decodery.errors import BadSetting
from decodery.evaluation.parallelbench import analysis
from decodery.evaluation.parallelbench.analysis import Answer, AnswerLaw
from decodery.evaluation.parallelbench.lists import (
    FREE,
    LIST_TASKS,
    ORDERED,
    ListProblem,
    all_answers,
    draw_problem,
    is_permutation,
    is_right,
)
from decodery.language_model import LanguageModel
from decodery.replies import Reply
from decodery.testing.denoisers import OracleDenoiser, denoising_language_model

ORACLE_TASKS = ("copy", *FREE)
"""A task without dependence between tokens, and all with it."""
LENGTH = 4
LONGEST = 6
"""Items of a list; a shuffle of more has too many answers to be listed."""
SAMPLES = 200
SUREST, LEFT_TO_RIGHT, THRESHOLD = "surest first", "left to right", "threshold"
COUNTS = (1, 2, 4)
THRESHOLDS = (0.4, 0.7, 0.9)
"""None of them is a probability that a list of LENGTH items has: where a law equals the threshold, rounding would decide."""
PROMPT_TOKENS = 12


@dataclass(frozen=True)
class OracleDecoder:
    """series: SUREST (`setting` tokens per step, the surest first), THRESHOLD (what is surer than `setting`), both greedy with
    coins for equals, or LEFT_TO_RIGHT (blocks of `setting` tokens, each drawn from its own marginal)."""

    series: str
    setting: float

    @property
    def spec(self) -> str:
        """The method that decodes."""
        if self.series == THRESHOLD:
            return f"masked-diffusion(rule=threshold, threshold={self.setting:g})"
        if self.series == LEFT_TO_RIGHT:
            return f"masked-diffusion(block_length={self.setting:g}, tokens_per_step={self.setting:g})"
        return f"masked-diffusion(tokens_per_step={self.setting:g})"

    @property
    def temperature(self) -> float:
        return 1.0 if self.series == LEFT_TO_RIGHT else 0.0

    def expected(self, task: str, length: int, law: AnswerLaw) -> float | None:
        """The accuracy by theory; None where no closed form is known. length: of the list. law: of its answers."""
        if self.series == LEFT_TO_RIGHT:
            steps = analysis.blocks(len(next(iter(law))), int(self.setting))
            return sum(mass for answer, mass in analysis.decoder_law(law, steps).items() if answer in law)
        if task in ORDERED:
            return 1.0
        if self.series == THRESHOLD:
            known = {
                "replace_random": analysis.replace_random_threshold_accuracy,
                "shuffle": analysis.shuffle_threshold_accuracy,
            }
            return known[task](length, self.setting) if task in known else None
        by_count = {"replace_random": analysis.replace_random_accuracy, "shuffle": analysis.shuffle_accuracy}
        return by_count[task](length, int(self.setting)) if task in by_count else None


DECODERS = (
    *(OracleDecoder(SUREST, count) for count in COUNTS),
    *(OracleDecoder(THRESHOLD, threshold) for threshold in THRESHOLDS),
    *(OracleDecoder(LEFT_TO_RIGHT, count) for count in COUNTS),
)


@dataclass(frozen=True)
class OraclePoint:
    """A decoder of the oracle on lists of one length.

    accuracy: share of right answers; of shuffles those that are a permutation, the given order too, as theory counts. error:
    half of its 95 % interval (Wilson). expected: by theory, None where no closed form is known. lost_bits: the least
    KL(data || decoder) of any decoder that fills the positions in these steps, mean over the samples' own steps. edit_bits: the
    entropy of the edited place, None but for insert, remove and replace anywhere.
    """

    task: str
    length: int
    series: str
    setting: str
    samples: int
    tokens_per_step: float
    accuracy: float
    error: float
    expected: float | None
    lost_bits: float
    edit_bits: float | None


def oracle_law(problem: ListProblem) -> dict[Answer, float]:
    """The uniform law over the right answers; of a shuffle over all orders, as in the paper."""
    same = [problem.items] if problem.task == "shuffle" else []
    return analysis.uniform_law([*all_answers(problem), *same])


def oracle_model(problem: ListProblem) -> tuple[LanguageModel, tuple[str, ...]]:
    """A language model that knows the law of a problem's answers, and the item that each token means. Any prompt will do;
    another prompt is another toss among equals."""
    law = oracle_law(problem)
    items = tuple(dict.fromkeys(item for answer in law for item in answer))
    ids = {item: token for token, item in enumerate(items)}
    answers = [tuple(ids[item] for item in answer) for answer in law]
    return denoising_language_model(OracleDenoiser(answers, len(items))), items


def decode_oracle(
    problem: ListProblem, spec: str, *, samples: int, temperature: float = 0.0, seed: int = 0
) -> list[tuple[Answer, Reply]]:
    """What the engine writes with the oracle, `samples` times. spec: any method for canvases."""
    lm, items = oracle_model(problem)
    generator = random.Random(seed)
    replies = lm.generate(
        [[generator.randrange(len(items)) for _ in range(PROMPT_TOKENS)] for _ in range(samples)],
        method=spec,
        seed=[seed + place for place in range(samples)],
        max_new_tokens=len(next(iter(oracle_law(problem)))),
        temperature=temperature,
    )
    for reply in replies:
        if reply.error is not None:
            raise reply.error
    return [(tuple(items[token] for token in reply.token_ids), reply) for reply in replies]


def steps_of(reply: Reply) -> tuple[tuple[int, ...], ...]:
    """The positions that each step of a reply filled, in order."""
    step_of = reply.stats.step_of
    return tuple(
        tuple(place for place, own in enumerate(step_of) if own == step) for step in sorted(set(step_of)) if step >= 0
    )


def oracle_curve(
    tasks: Sequence[str] = ORACLE_TASKS,
    decoders: Sequence[OracleDecoder] = DECODERS,
    *,
    length: int = LENGTH,
    samples: int = SAMPLES,
    seed: int = 0,
) -> list[OraclePoint]:
    """Every decoder on one list of `length` items of each task, `samples` times.

    Raises BadSetting for an unknown task, for lists of fewer than 2 or more than 6 items, and for no samples.
    """
    unknown = [task for task in tasks if task not in LIST_TASKS]
    if unknown:
        raise BadSetting(f"there is no oracle for {unknown[0]!r}; known: {', '.join(LIST_TASKS)}.")
    if not 2 <= length <= LONGEST or samples < 1:
        raise BadSetting(f"the oracle needs lists of 2 to {LONGEST} items and at least one sample.")
    points = []
    for task in tasks:
        problem = draw_problem(task, string.ascii_uppercase, length, random.Random(seed))
        law = oracle_law(problem)
        lost: dict[tuple[tuple[int, ...], ...], float] = {}
        for decoder in decoders:
            decoded = decode_oracle(problem, decoder.spec, samples=samples, temperature=decoder.temperature, seed=seed)
            outputs = [output for output, _ in decoded]
            steps = [steps_of(reply) for _, reply in decoded]
            for each in set(steps) - set(lost):
                lost[each] = analysis.lower_bound(law, each)
            judge = is_permutation if task == "shuffle" else is_right
            accuracy = sum(judge(problem, output) for output in outputs) / samples
            edited = analysis.edited_places([problem] * samples, outputs).bits if "random" in task else None
            points.append(
                OraclePoint(
                    task,
                    length,
                    decoder.series,
                    f"{decoder.setting:g}",
                    samples,
                    len(steps) * len(outputs[0]) / sum(map(len, steps)),
                    accuracy,
                    wilson_error(accuracy, samples),
                    decoder.expected(task, length, law),
                    sum(lost[each] for each in steps) / samples,
                    edited,
                )
            )
    return points


def wilson_error(share: float, samples: int) -> float:
    """Half the width of Wilson's 95 % interval of a share."""
    z = 1.959964
    return z / (1 + z * z / samples) * math.sqrt(share * (1 - share) / samples + z * z / (4 * samples * samples))


def oracle_table(points: Sequence[OraclePoint]) -> list[list[str]]:
    """The header, then a line per point."""
    lines = [["task", "items", "decoder", "setting", "tok/step", "accuracy", "±", "theory", "bits lost", "edit bits"]]
    for point in points:
        lines.append(
            [
                point.task,
                str(point.length),
                point.series,
                point.setting,
                f"{point.tokens_per_step:.2f}",
                f"{point.accuracy:.1%}",
                f"{point.error:.1%}",
                "–" if point.expected is None else f"{point.expected:.1%}",
                f"{max(point.lost_bits, 0.0):.2f}",
                "–" if point.edit_bits is None else f"{point.edit_bits:.2f}",
            ]
        )
    return lines
