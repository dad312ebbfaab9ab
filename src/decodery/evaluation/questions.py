"""Questions to measure on: Spec-Bench's file, files of the same form, and a small set of our own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from decodery.errors import BadInput, near

CONVERSATION = "multi-turn conversation"
CONVERSATIONS = frozenset(
    {"writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities", CONVERSATION}
)
"""The categories of MT-bench, which Spec-Bench counts as one."""
OWN_SET = "decodery's own questions"
"""How the set that ships with decodery is called in reports."""


@dataclass(frozen=True)
class Question:
    """A question, or several turns of a conversation.

    category: the group under which it is reported; the eight categories of MT-bench are one group. topic: the category as
    the file names it. source: the name of the file.
    """

    id: str
    category: str
    turns: tuple[str, ...]
    topic: str = ""
    source: str = ""


def load_questions(
    path: Path | None = None, *, per_category: int | None = None, categories: Sequence[str] | None = None
) -> list[Question]:
    """Read questions, one JSON object per line with question_id, category and turns; further keys are ignored.

    path: a file such as Spec-Bench's question.jsonl; None means the set that ships with decodery (36 questions, 6 groups).
    per_category: the first so many of each group. categories: only these groups or topics. Raises BadInput, with the line
    where there is one.
    """
    if path is None:
        text = resources.files("decodery.evaluation").joinpath("data/questions.jsonl").read_text("utf-8")
        name = OWN_SET
    else:
        name = str(path)
        try:
            text = Path(path).expanduser().read_text("utf-8-sig")
        except OSError as error:
            raise BadInput(f"the questions {name} cannot be read: {error.strerror or error}.") from None
        except UnicodeDecodeError as error:
            raise BadInput(f"the questions {name} are not UTF-8 text (byte {error.start}).") from None
    questions = [_question(name, number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not questions:
        raise BadInput(f"the questions {name} are empty; each line is a JSON object with category and turns.")
    if categories is not None:
        questions = _of_categories(questions, categories)
    if per_category is not None:
        if per_category < 1:
            raise BadInput(f"per_category must be at least 1, not {per_category}.")
        counts: dict[str, int] = {}
        kept = []
        for question in questions:
            counts[question.category] = counts.get(question.category, 0) + 1
            if counts[question.category] <= per_category:
                kept.append(question)
        questions = kept
    return questions


def _of_categories(questions: list[Question], categories: Sequence[str]) -> list[Question]:
    known = {question.category for question in questions} | {question.topic for question in questions}
    for category in categories:
        if category not in known:
            raise BadInput(f"there is no category {category!r} among the questions; {near(category, known)}")
    return [question for question in questions if question.category in categories or question.topic in categories]


def _question(name: str, number: int, line: str) -> Question:
    def bad(reason: str) -> BadInput:
        return BadInput(f"{name}, line {number}: {reason}.")

    try:
        entry: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise bad(f"no JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(entry, dict):
        raise bad(f"a question is a JSON object, not {type(entry).__name__}")
    for key in ("category", "turns"):
        if key not in entry:
            raise bad(f"the question has no {key!r}")
    topic, turns = entry["category"], entry["turns"]
    if not isinstance(topic, str) or not topic:
        raise bad(f"the category must be a string, not {topic!r}")
    if not isinstance(turns, list) or not turns or any(not isinstance(t, str) or not t.strip() for t in turns):
        raise bad("turns must be a list of one or more non-empty strings")
    category = CONVERSATION if topic in CONVERSATIONS else topic
    return Question(str(entry.get("question_id", number)), category, tuple(turns), topic, Path(name).name)
