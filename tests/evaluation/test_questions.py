"""Questions: our own set, Spec-Bench's form, and files that are neither."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from decodery.errors import BadInput
from decodery.evaluation.questions import CONVERSATION, load_questions


def _file(tmp_path, *entries, raw: str = ""):
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(json.dumps(entry) for entry in entries) + raw)
    return path


def test_the_own_set_has_six_of_each_group():
    questions = load_questions()
    groups = Counter(question.category for question in questions)
    assert groups == dict.fromkeys((CONVERSATION, "translation", "summarization", "qa", "math_reasoning", "rag"), 6)
    assert len({question.id for question in questions}) == 36
    assert len({turn for question in questions for turn in question.turns}) == 42
    assert all(len(question.turns) == (2 if question.category == CONVERSATION else 1) for question in questions)
    for source in ("summarization", "rag"):
        assert all(len(q.turns[0]) > 300 for q in questions if q.category == source)


def test_spec_bench_s_categories_become_six_groups(tmp_path):
    topics = ("writing", "stem", "math", "coding", "qa", "translation", "rag", "math_reasoning", "summarization")
    path = _file(tmp_path, *({"question_id": i, "category": t, "turns": ["a"]} for i, t in enumerate(topics)))
    questions = load_questions(path)
    assert [question.topic for question in questions] == list(topics)
    assert [question.category for question in questions[:5]] == [CONVERSATION] * 4 + ["qa"]
    assert questions[3].id == "3"


def test_further_keys_are_ignored(tmp_path):
    path = _file(tmp_path, {"category": "qa", "turns": ["a", "b"], "reference": ["x"]}, raw="\n\n")
    [question] = load_questions(path)
    assert question.turns == ("a", "b")
    assert question.id == "1"


def test_a_choice_of_questions():
    assert len(load_questions(per_category=2)) == 12
    assert {q.category for q in load_questions(categories=["qa", "rag"])} == {"qa", "rag"}
    [coding] = load_questions(categories=["coding"])
    assert coding.category == CONVERSATION
    assert len(load_questions(per_category=1, categories=["qa"])) == 1


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "line 2: no JSON"),
        ("[1]", "line 2: a question is a JSON object, not list"),
        ('{"turns": ["a"]}', "line 2: the question has no 'category'"),
        ('{"category": "qa"}', "line 2: the question has no 'turns'"),
        ('{"category": 3, "turns": ["a"]}', "line 2: the category must be a string"),
        ('{"category": "qa", "turns": []}', "line 2: turns must be"),
        ('{"category": "qa", "turns": "a"}', "line 2: turns must be"),
        ('{"category": "qa", "turns": [" "]}', "line 2: turns must be"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, reason):
    path = _file(tmp_path, {"category": "qa", "turns": ["a"]}, raw="\n" + line)
    with pytest.raises(BadInput, match=reason):
        load_questions(path)


def test_bad_files_and_choices(tmp_path):
    with pytest.raises(BadInput, match="cannot be read"):
        load_questions(tmp_path / "none.jsonl")
    with pytest.raises(BadInput, match="are empty"):
        load_questions(_file(tmp_path))
    (tmp_path / "latin.jsonl").write_bytes(b'{"category": "\xe9"}')
    with pytest.raises(BadInput, match="not UTF-8"):
        load_questions(tmp_path / "latin.jsonl")
    with pytest.raises(BadInput, match="did you mean translation"):
        load_questions(categories=["translations"])
    with pytest.raises(BadInput, match="at least 1"):
        load_questions(per_category=0)
