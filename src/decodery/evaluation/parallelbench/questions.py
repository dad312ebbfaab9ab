"""What the suite asks: tasks of one-token words made here, and the published tasks, from their files or made here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from decodery.errors import BadInput, BadSetting
from decodery.evaluation.parallelbench import published
from decodery.evaluation.parallelbench.answers import read_answer
from decodery.evaluation.parallelbench.judging import SCORE, Judges, measure
from decodery.evaluation.parallelbench.lists import ListProblem
from decodery.evaluation.parallelbench.published import FILES, MADE_TASKS, MOST_TOKENS, PUBLISHED_TASKS, Item
from decodery.evaluation.parallelbench.tasks import TASKS, Sample, make_samples, score

SHORT, LONG = 16, 32
"""Canvases of lists and text of one-token words, and of their tasks with answers of several lines."""
KNOWN = (*TASKS, *PUBLISHED_TASKS)
MADE = "made here"


@dataclass(frozen=True)
class SuiteQuestion:
    """measure(text): the metrics of a reply, from 0 to 1, SCORE being the one that counts. edited: the list of a task that
    edits it anywhere, None for all other tasks. items(text): the items that a reply to such a task gives."""

    prompt: str
    measure: Callable[[str], dict[str, float]]
    edited: ListProblem | None
    items: Callable[[str], tuple[str, ...]]


@dataclass(frozen=True)
class TaskQuestions:
    """source: MADE, or the name of a file. canvas: positions, by default. missing: metrics whose judge is not installed."""

    task: str
    source: str
    canvas: int
    questions: tuple[SuiteQuestion, ...]
    missing: tuple[str, ...] = ()


def questions_of(task: str, count: int, *, seed: int | None = None, folder: Path | None = None) -> TaskQuestions:
    """`count` questions of a task, fewer where its file has fewer; of a file evenly over it, since its lists grow longer.

    folder: of published files. seed: of what is made; None is each task's own. Raises BadSetting for an unknown task, and
    BadInput for a task that is neither in the folder nor made, for files that are none, and for a judge that does not start.
    """
    if task not in KNOWN:
        raise BadSetting(f"{task!r} is no task of the suite; known: {', '.join(KNOWN)}.")
    if task in TASKS:
        samples = make_samples(task, count, seed=seed)
        canvas = LONG if "\n" in samples[0].answer else SHORT
        return TaskQuestions(task, MADE, canvas, tuple(map(_of_sample, samples)))
    path = None if folder is None else published.find_file(folder, task)
    if path is not None:
        found = published.read_items(path, task)
        if not found:
            raise BadInput(f"{path} holds no items.")
        count = min(count, len(found))
        items = [found[place * len(found) // count] for place in range(count)]
    elif task in MADE_TASKS:
        items = published.make_items(task, count, seed=seed)
    else:
        raise BadInput(f"{task} {not_made(task)}.")
    judges = Judges.installed(task)
    questions = tuple(_of_item(item, judges) for item in items)
    return TaskQuestions(task, path.name if path else MADE, MOST_TOKENS[task], questions, judges.missing(task))


def not_made(task: str) -> str:
    """Why a task cannot be run without its file."""
    return f"is not made here and needs its published file, {task}.jsonl or {FILES[task]}, in the folder of published files"


def tasks_to_run(tasks: Sequence[str], folder: Path | None) -> tuple[list[str], list[str]]:
    """The tasks that were asked for, by default those of one-token words, or where there is a folder the published ones that it
    has or that can be made; and those of them that are left out. Raises BadInput for a folder that is none."""
    if folder is not None and not folder.is_dir():
        raise BadInput(f"{folder} is no folder; published files are looked for in one.")
    if tasks or folder is None:
        return list(tasks or TASKS), []
    there = [task for task in PUBLISHED_TASKS if task in MADE_TASKS or published.find_file(folder, task)]
    return there, [task for task in PUBLISHED_TASKS if task not in there]


def _of_sample(sample: Sample) -> SuiteQuestion:
    edited = sample.problem if sample.task.endswith("_random") else None
    return SuiteQuestion(
        sample.prompt, lambda text: {SCORE: float(score(sample, text))}, edited, lambda text: tuple(text.split())
    )


def _of_item(item: Item, judges: Judges) -> SuiteQuestion:
    edited = item.problem if item.task.endswith("_random") else None
    return SuiteQuestion(item.prompt, partial(measure, item, judges=judges), edited, read_answer)
