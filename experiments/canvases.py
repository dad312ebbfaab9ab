"""What experiments with decoders of canvases share: samples of ParallelBench's tasks, arms that decode them, figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np

import decodery
from decodery.engine.method import Method
from decodery.evaluation.experiment import Arm, Figure
from decodery.evaluation.intervals import Array
from decodery.evaluation.parallelbench.tasks import TASKS, Sample, make_samples, score
from decodery.language_model import LanguageModel
from decodery.replies import Reply

FREE = ("shuffle", "insert_random", "remove_random", "replace_random")
"""List tasks whose tokens depend on each other."""
GROUPS = {
    "ordered lists": tuple(name for name, task in TASKS.items() if task.group == "lists" and name not in FREE),
    "free lists": FREE,
    **{
        group: tuple(name for name, task in TASKS.items() if task.group == group)
        for group in ("puzzles", "text", "arithmetic")
    },
}
ACCURACY = Figure("accuracy", "right", form=".1%", share=True)
FORWARDS = Figure("forwards", "forwards", form=".1f")
BY_GROUP = tuple(Figure(group, f"right, {group}", form=".1%", share=True) for group in GROUPS)
Tell = Callable[[Sample, Reply], Mapping[str, float]]


@cache
def loaded(name: str, dtype: str = "float32") -> LanguageModel:
    """A model, loaded once."""
    return decodery.load(name, dtype=dtype)


def samples_of(count: int, tasks: Sequence[str] = tuple(TASKS), seed: int | None = None) -> list[Sample]:
    """So many samples of each task. seed: None is each task's published one."""
    return [sample for task in tasks for sample in make_samples(task, count, seed=seed)]


def counted(sample: Sample, reply: Reply) -> dict[str, float]:
    """What every canvas tells: whether it is right, forwards, rows (positions computed), tokens and seconds."""
    group = next(name for name, tasks in GROUPS.items() if sample.task in tasks)
    right = float(score(sample, reply.text.strip()))
    stats = reply.stats
    return {
        "right": right,
        f"right, {group}": right,
        f"right, {sample.task}": right,
        "forwards": float(stats.forwards),
        f"forwards, {sample.task}": float(stats.forwards),
        "rows": float(stats.rows),
        "positions": float(sum(step >= 0 for step in stats.step_of) or len(reply.token_ids)),
        "tokens": float(len(reply.token_ids)),
        "seconds": stats.seconds,
    }


def decoding(
    lm: LanguageModel,
    name: str,
    method: str | Method,
    canvas: int | None = None,
    seed: int = 0,
    tell: Tell | None = None,
) -> Arm:
    """An arm that decodes samples one by one, greedily. canvas: positions; None gives answers of several lines 32 and others
    16. tell: adds what else is to be counted."""

    def measure(sample: Sample) -> dict[str, float]:
        length = canvas or (32 if "\n" in sample.answer else 16)
        reply = lm.generate(sample.prompt, method, max_new_tokens=length, temperature=0.0, seed=seed)
        return {**counted(sample, reply), **({} if tell is None else tell(sample, reply))}

    return Arm(name, measure)


def above_curve(curve: Sequence[str], form: str = "+.1%") -> Figure:
    """Accuracy over that of a curve of arms at the same number of forwards, linear between the two nearest."""

    def derive(look: Callable[[str, str], Array], arm: str) -> Array:
        forwards = np.stack([look(name, FORWARDS.name) for name in curve])
        accuracy = np.stack([look(name, ACCURACY.name) for name in curve])
        order = np.argsort(forwards, axis=0)
        forwards, accuracy = (np.take_along_axis(values, order, axis=0) for values in (forwards, accuracy))
        own = look(arm, FORWARDS.name)
        at = [np.interp(own[i], forwards[:, i], accuracy[:, i]) for i in range(len(own))]
        above: Array = look(arm, ACCURACY.name) - np.array(at)
        return above

    return Figure("above the curve", derive=derive, form=form)
