"""ParallelBench's published tasks: files, readers, seeds and metrics."""

import json
import math

import pytest

from decodery.errors import BadInput
from decodery.evaluation.parallelbench.answers import (
    read_answer,
    read_latin,
    read_list,
    read_square,
    read_sudoku,
    write_list,
)
from decodery.evaluation.parallelbench.judging import Judges, measure, right
from decodery.evaluation.parallelbench.lists import LIST_TASKS
from decodery.evaluation.parallelbench.published import (
    LATIN,
    MADE_TASKS,
    PUBLISHED_TASKS,
    SUDOKU,
    TEXT_TASKS,
    item_of,
    make_items,
    read_items,
    seed_name,
    write_items,
)
from decodery.evaluation.parallelbench.tasks import published_seed

# The published format


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ('["A B", "C D"]', ("A B", "C D")),
        ("['A B', 'C D']", ("A B", "C D")),
        ('Here it is: ["A","B"] Good luck.', ("A", "B")),
        ('["A", "B"] or rather ["B", "A"]', ("B", "A")),
        ("[A, B]", ("A", "B")),
        ("[]", ()),
        ("no list", None),
        ('["A", "B"', None),
    ],
)
def test_parser(text, items):
    assert read_list(text) == items


@pytest.mark.parametrize("task", MADE_TASKS)
def test_published_items_are_made_written_and_read(task, tmp_path):
    items = make_items(task, 20)
    first, second = tmp_path / f"{task}.jsonl", tmp_path / "again.jsonl"
    write_items(items, first)
    write_items(make_items(task, 20), second)
    assert first.read_bytes() == second.read_bytes(), "the same seed gives the same file"
    assert read_items(first) == items
    assert [item.length for item in items] == sorted(item.length for item in items)
    for item in items:
        answer = item.entry["answer"]
        example = answer if isinstance(answer, str) else answer["example"]
        assert right(item, example)
        assert right(item, example, strict=True)
        assert not right(item, "")
        assert not right(item, "A,B\nC,D")
        if task not in (LATIN, SUDOKU):
            assert right(item, f"Sure: {example}")
            assert not right(item, f"Sure: {example}", strict=True)
            assert len(set(item.problem.items)) == len(item.problem.items)
            assert item.entry["output_format"] == write_list(["[MASK]"] * item.problem.answer_length)
            assert item.prompt.count("Answer: ") == 2
            assert item.entry["input"]["context"] in item.prompt


def test_a_response_is_read_as_the_published_reader_reads_it():
    assert read_answer('"A B", "C D"') == ("A B", "C D"), "brackets may be missing"
    assert read_answer('["A", "B", ]') == ("A", "B"), "what is empty is no item"
    assert read_answer('Sorry: ["A"] no, ["B", "C"') == ("B", "C")
    assert read_answer("") == ()
    square = (("A", "B"), ("B", "A"))
    assert read_latin("Here it is:\nA,B\nB, A\nA,B\nDone, A.", "AB") == square, "the first rows of all symbols count"
    assert read_latin("A,A\nB,A", "AB") == (("B", "A"),)
    sudoku = (("1", "2", "3", "4"), ("3", "4", "1", "2"))
    assert read_sudoku("Sure.\n1 2 3 4\n3,4,1,2\n12345") == sudoku


def test_puzzles_may_stand_in_a_talkative_response():
    for task in (LATIN, SUDOKU):
        item = make_items(task, 1)[0]
        answer = item.entry["answer"]
        example = answer if task == SUDOKU else answer["example"]
        other = item.entry["input"]["icl_examples"][0]
        assert right(item, f"Here you are:\n{example}\nDone.")
        assert not right(item, f"Here you are:\n{example}\nDone.", strict=True)
        solved = other["answer"] if task == SUDOKU else other["answer"]["example"]
        assert item.prompt.count(solved) == 1, "the solved example stands before the question"
        assert example not in item.prompt


SEEDS = {
    "copy": 31940,
    "reverse": 31383,
    "sort": 48898,
    "shuffle": 30142,
    "insert_index": 49875,
    "insert_random": 25751,
    "remove_index": 46066,
    "remove_random": 47444,
    "replace_index": 32235,
    "replace_random": 49003,
}
"""As they stand in the benchmark's own task_config.yaml."""


def test_the_published_seeds_are_those_of_the_benchmark():
    assert {task: published_seed(seed_name(f"waiting_line_{task}")) for task in LIST_TASKS} == SEEDS
    assert published_seed(seed_name(LATIN)) == 51291
    for task in ("waiting_line_insert_index", LATIN):
        made = make_items(task, 3)
        assert made == make_items(task, 3, seed=published_seed(seed_name(task)))
        assert made != make_items(task, 3, seed=published_seed(seed_name(task)) + 1)


def test_published_puzzles_are_read_in_every_notation():
    square = (("1", "2"), ("2", "1"))
    assert read_square("1,2\n2,1") == read_square("12\n21") == read_square(" 1 2 \n\n2 1\n") == square


def test_files_that_are_no_items_are_refused_with_the_line(tmp_path):
    path = tmp_path / "waiting_line_copy.jsonl"
    path.write_text(json.dumps(make_items("waiting_line_copy", 1)[0].entry) + "\n{}\n")
    with pytest.raises(BadInput, match="line 2"):
        read_items(path)
    with pytest.raises(BadInput, match="no task"):
        read_items(tmp_path / "other.jsonl")
    with pytest.raises(BadInput, match="cannot be read"):
        read_items(tmp_path / "waiting_line_sort.jsonl")
    path = tmp_path / "words_to_sentence_easy.jsonl"
    path.write_text('{"input": {"words": "dog"}, "answer": {"words": "dog"}}\n')
    with pytest.raises(BadInput, match=r"line 1: .*no list of words"):
        read_items(path)
    with pytest.raises(ValueError, match="not made here"):
        make_items("samsum")
    assert len(PUBLISHED_TASKS) == 17


def test_the_seed_comes_from_the_tasks_name():
    assert published_seed("copy") != published_seed("sort")
    assert 0 <= published_seed("copy") < 2**16 - 1


# Metrics of open text


def test_text_metrics():
    from decodery.evaluation.parallelbench import text_metrics as metrics

    assert metrics.rouge_l("the cat sat", "the cat sat") == 1
    assert metrics.rouge_l("the cat sat on it", "the dog sat") == pytest.approx(2 * 2 / 8)
    assert metrics.rouge_l("", "a") == 0
    assert metrics.bleu("the cat sat on the mat", "the cat sat on the mat") == pytest.approx(1)
    assert metrics.bleu("x y", "a b") == 0
    shorter = metrics.bleu("the cat sat on the", "the cat sat on the mat")
    assert shorter == pytest.approx(math.exp(1 - 6 / 5))
    assert metrics.bleu("the cat sat", "the cat sat on the mat") == 0, (
        "no four words in common, and nothing is smoothed"
    )
    one_off = metrics.bleu("the cat sat on a mat", "the cat sat on the mat")
    assert one_off == pytest.approx((5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    assert metrics.split_13a("It's 3.5, not 4.") == ["It's", "3.5", ",", "not", "4", "."]
    assert metrics.inverse_bleu("x y", "a b") == 1
    assert metrics.inverse_bleu("", "a b") == 0
    assert metrics.holds_all_words("The cat, catsat.", ["cat", "sat"])
    assert not metrics.holds_all_words("The Cat sat.", ["cat"]), "as it is written"
    assert metrics.grammar_score("", Strict()) == 0
    assert metrics.similarity_score("", "a", Alike()) == 0


class Strict:
    def faults(self, text):
        return text.count("!!")


class Alike:
    def f1(self, text, reference):
        return 0.5


TEXT_ENTRIES = {
    "samsum": {
        "input": {"text": "Ann: Hi."},
        "answer": {"text": "Ann: Hi.", "summary": "Ann greets Bob warmly today."},
    },
    "chatgpt_paraphrases": {"input": {"text": "What is this?"}, "answer": {"text": "What is this?", "examples": "[]"}},
    **{
        f"words_to_sentence_{level}": {"input": {"words": "dog and ball"}, "answer": {"words": ["dog", "ball"]}}
        for level in ("easy", "medium", "hard")
    },
}


def test_open_text_is_scored_by_the_product_of_its_parts_and_a_missing_judge_is_not_made_up():
    assert set(TEXT_ENTRIES) == set(TEXT_TASKS)
    judges = Judges(Strict(), Alike())
    summary, paraphrase, sentence, *_ = (item_of(task, TEXT_ENTRIES[task]) for task in TEXT_TASKS)
    assert measure(summary, "Ann greets Bob warmly today.", judges) == {"score": 1, "rouge_l": 1, "grammar": 1}
    assert measure(summary, "Ann greets Bob warmly today!!", judges) == {"score": 0, "rouge_l": 1, "grammar": 0}
    said = measure(paraphrase, "What can it be?", judges)
    assert said == {"score": 0.5, "inverse_bleu": 1, "bert_score": 0.5, "grammar": 1}
    assert measure(sentence, "The dog has a ball.", judges) == {"score": 1, "all_words": 1, "grammar": 1}
    assert measure(sentence, "The dog has it.", judges) == {"score": 0, "all_words": 0, "grammar": 1}
    assert measure(sentence, "The dog has a ball.", Judges()) == {"all_words": 1}
    assert measure(paraphrase, "What can it be?", Judges(Strict())) == {"inverse_bleu": 1, "grammar": 1}
    assert Judges().missing("chatgpt_paraphrases") == ("grammar", "bert_score")
    assert Judges().missing("samsum") == ("grammar",)
    assert Judges().missing("waiting_line_copy") == judges.missing("samsum") == ()
    with pytest.raises(ValueError, match="no right answers"):
        right(summary, "x")


def test_only_the_judges_that_a_task_needs_are_started(monkeypatch):
    from decodery.evaluation.parallelbench import text_metrics as metrics

    monkeypatch.setattr(metrics, "language_tool", Strict)
    monkeypatch.setattr(metrics, "bert_score", Alike)
    assert Judges.installed("waiting_line_copy") == Judges()
    started = Judges.installed("samsum")
    assert isinstance(started.grammar, Strict)
    assert started.similarity is None
    assert isinstance(Judges.installed("chatgpt_paraphrases").similarity, Alike)


def test_judges_are_asked_through_their_packages_and_absent_ones_are_none(monkeypatch):
    import shutil
    import sys
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    from decodery.evaluation.parallelbench import text_metrics as metrics

    class Tool:
        def __init__(self, language):
            assert language == "en-US"

        def check(self, text):
            return ["fault"] * text.count("x")

    class Scorer:
        def __init__(self, lang):
            assert lang == "en"

        def score(self, texts, references):
            assert (texts, references) == (["a"], ["b"])
            return [0.1], [0.2], [0.3]

    def offline(*_, **__):
        raise ConnectionError("no network")

    def install(name, **members):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)

    monkeypatch.setattr(shutil, "which", lambda program: "/usr/bin/java" if program == "java" else None)
    install("language_tool_python", LanguageTool=Tool)
    install("bert_score", BERTScorer=Scorer)
    assert metrics.language_tool().faults("x, y, x") == 2
    assert metrics.bert_score().f1("a", "b") == 0.3
    install("language_tool_python", LanguageTool=offline)
    install("bert_score", BERTScorer=offline)
    with pytest.raises(BadInput, match="does not start: no network"):
        metrics.language_tool()
    with pytest.raises(BadInput, match="cannot be loaded: no network"):
        metrics.bert_score()
    monkeypatch.setattr(shutil, "which", lambda program: None)
    assert metrics.language_tool() is None, "it needs Java"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert metrics.bert_score() is None
    monkeypatch.setattr(shutil, "which", lambda program: "/usr/bin/java")
    assert metrics.language_tool() is None
