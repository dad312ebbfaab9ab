"""ParallelBench: generators, metrics, parser, published format, and the analysis against enumeration and simulation."""

import json
import math
import random
from itertools import product

import pytest

from decodery.errors import BadInput
from decodery.evaluation.parallelbench import analysis, arithmetic, lists, puzzles, sentences
from decodery.evaluation.parallelbench.answers import (
    read_answer,
    read_latin,
    read_list,
    read_square,
    read_sudoku,
    write_list,
)
from decodery.evaluation.parallelbench.judging import Judges, measure, right
from decodery.evaluation.parallelbench.lists import FREE, LIST_TASKS, ORDERED, ListProblem, all_answers, is_right
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
from decodery.evaluation.parallelbench.tasks import TASKS, make_samples, published_seed, score
from decodery.evaluation.parallelbench.words import decode, encode, vocabulary, write_tokenizer


def problems(task, count=40, seed=5):
    generator = random.Random(seed)
    return [lists.draw_problem(task, "ABCDEFGHIJKLM", 3 + i % 4, generator) for i in range(count)]


# Lists


@pytest.mark.parametrize("task", LIST_TASKS)
def test_a_metric_accepts_every_right_answer_and_nothing_else(task):
    for problem in problems(task, 4):
        small = ListProblem(task, problem.items[:3], problem.word, problem.index and min(problem.index, 2))
        right_ones = set(all_answers(small))
        words = (*small.items, "Z", *(() if small.word is None else (small.word,)))
        for size in range(5):
            for output in product(words, repeat=size):
                assert is_right(small, output) == (output in right_ones)


@pytest.mark.parametrize("task", LIST_TASKS)
def test_a_metric_rejects_the_input_a_duplicate_and_an_extra_item(task):
    generator = random.Random(2)
    for problem in problems(task):
        answer = lists.draw_answer(problem, generator)
        assert is_right(problem, answer)
        assert len(answer) == problem.answer_length
        if task != "copy" and not (task == "sort" and sorted(problem.items) == list(problem.items)):
            assert not is_right(problem, problem.items)
        assert not is_right(problem, (*answer, answer[0]))
        assert not is_right(problem, (*answer, "Z"))
        assert not is_right(problem, (answer[0], *answer[:-1]) if len(answer) > 1 else ())


def test_indices_count_from_0_and_follow_pythons_insert():
    items = ("A", "B", "C")
    for index in range(4):
        expected = list(items)
        expected.insert(index, "Z")
        assert is_right(ListProblem("insert_index", items, "Z", index), expected)
    assert is_right(ListProblem("remove_index", items, None, 0), ("B", "C"))
    assert is_right(ListProblem("replace_index", items, "Z", 2), ("A", "B", "Z"))
    drawn = {problem.index for problem in problems("insert_index", 200) if len(problem.items) == 3}
    assert drawn == {0, 1, 2, 3}, "insert may append"


@pytest.mark.parametrize("task", FREE)
def test_answers_of_random_tasks_are_uniform_over_all(task):
    generator = random.Random(0)
    problem = problems(task, 1)[0]
    answers = all_answers(problem)
    draws = 600 * len(answers)
    counts = dict.fromkeys(answers, 0)
    for _ in range(draws):
        counts[lists.draw_answer(problem, generator)] += 1
    chi_square = sum((count - 600) ** 2 / 600 for count in counts.values())
    from scipy.stats import chi2

    assert chi2.sf(chi_square, len(answers) - 1) > 0.001
    assert problem.items not in answers


# Puzzles


def test_latin_squares():
    assert len(puzzles.latin_squares()) == 576
    generator = random.Random(0)
    for draw in (puzzles.draw_latin, puzzles.shifted_latin):
        square = draw("AB3Z", generator)
        assert puzzles.is_latin(square, "AB3Z")
        assert not puzzles.is_latin((square[0], square[0], *square[2:]), "AB3Z")
        assert not puzzles.is_latin((*square, square[0]), "AB3Z")
        assert not puzzles.is_latin(square, "AB3Y")
        swapped = (square[1][:1] + square[0][1:], square[0][:1] + square[1][1:], *square[2:])
        assert puzzles.is_latin(square, "AB3Z")
        assert not puzzles.is_latin(swapped, "AB3Z")


def test_a_sudoku_has_one_solution_by_brute_force():
    generator = random.Random(3)
    for _ in range(20):
        puzzle, full = puzzles.draw_sudoku(generator)
        assert sum(row.count("0") for row in puzzle) == 4
        blanks = [(r, c) for r in range(4) for c in range(4) if puzzle[r][c] == "0"]
        found = []
        for digits in product("1234", repeat=len(blanks)):  # independent of the generator's list of grids
            grid = [list(row) for row in puzzle]
            for (r, c), digit in zip(blanks, digits, strict=True):
                grid[r][c] = digit
            boxes = [[grid[r + i][c + j] for i in (0, 1) for j in (0, 1)] for r in (0, 2) for c in (0, 2)]
            if all(sorted(line) == list("1234") for line in (*grid, *zip(*grid, strict=True), *boxes)):
                found.append(tuple(tuple(row) for row in grid))
        assert found == [full]
    assert len(puzzles.sudoku_grids()) == 288
    with pytest.raises(ValueError, match="givens"):
        puzzles.draw_sudoku(generator, 3)


# Text and arithmetic


def test_the_grammar_reads_what_it_writes_and_nothing_else():
    generator = random.Random(1)
    for _ in range(200):
        sentence = sentences.draw_sentence(generator)
        for other in (sentence, *sentences.paraphrases(sentence)):
            assert sentences.parse_sentence(other.words()) == other
            assert other.meaning() == sentence.meaning()
        words = list(sentence.words())
        place = generator.randrange(len(words))
        assert sentences.parse_sentence(words[:place] + words[place + 1 :]) not in (sentence,)
        assert sentences.parse_sentence([*words, "."]) is None
    assert sentences.parse_sentence(["the", "dog", "is", "chases", "by", "the", "cat", "."]) is None
    assert sentences.parse_sentence(["the", "dog", "chased", "the", "cat", "."]) is None
    assert sentences.parse_sentence([]) is None


def test_word_problems_count_right_and_show_their_steps():
    generator = random.Random(4)
    for i in range(300):
        problem = arithmetic.draw_word_problem(1 + i % 3, generator)
        numbers = [step[3] for step in problem.steps()]
        assert all(0 <= number <= arithmetic.LARGEST for number in numbers)
        for line in problem.solution().splitlines()[:-1]:
            left, result = line.split("=")
            assert eval(left) == int(result)
        assert arithmetic.is_right(problem, problem.solution(), steps=True)
        assert not arithmetic.is_right(problem, problem.solution() + " 1")
        assert not arithmetic.is_right(problem, f"answer {problem.result + 1}")
        assert arithmetic.is_right(problem, f"answer {problem.result}")
        assert not arithmetic.is_right(problem, f"answer {problem.result}", steps=True)


# Samples in one-token words


@pytest.mark.parametrize("task", TASKS)
def test_the_same_seed_gives_the_same_samples_and_each_answer_is_right(task):
    samples = make_samples(task, 40)
    assert samples == make_samples(task, 40)
    assert samples != make_samples(task, 40, seed=published_seed(task) + 1)
    lengths = TASKS[task].lengths
    assert {sample.length for sample in samples} == set(lengths)
    for sample in samples:
        assert score(sample, sample.answer)
        assert not score(sample, "")
        assert not score(sample, sample.answer + " A")
        assert not score(sample, sample.answer + "\n")
        assert score(sample, " " + sample.answer.replace("\n", " \n "))


def test_the_tokenizer_knows_every_word_and_gives_texts_back(tmp_path):
    from transformers import AutoTokenizer

    write_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    words = vocabulary()
    names = list(words)
    assert len(tokenizer) == len(words)
    for task in TASKS:
        for sample in make_samples(task, 20):
            for text in (sample.prompt, sample.answer):
                ids = encode(text, words)
                assert tokenizer(text)["input_ids"] == ids
                assert tokenizer.decode(ids) == decode(ids, names)
            assert decode(encode(sample.answer, words), names) == sample.answer
    end = words["<end>"]
    assert tokenizer.decode([words["A"], end, end], skip_special_tokens=True) == "A"


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


# Analysis


def shuffles_with_identity(n):
    items = tuple(str(i) for i in range(n))
    return [*all_answers(ListProblem("shuffle", items)), items]


@pytest.mark.parametrize("n", range(2, 9))
def test_enumerated_correlation_equals_the_closed_forms(n):
    items = tuple(str(i) for i in range(n))
    replaced = analysis.uniform_law(all_answers(ListProblem("replace_random", items, "new")))
    assert analysis.total_correlation(replaced) == pytest.approx(
        analysis.task_correlation("replace_random", n), abs=1e-9
    )
    law = analysis.uniform_law(shuffles_with_identity(n))
    assert analysis.total_correlation(law) == pytest.approx(analysis.task_correlation("shuffle", n), abs=1e-9)
    for task in ORDERED:
        problem = ListProblem(task, items, "new" if task.startswith(("insert", "replace")) else None, 0)
        assert analysis.total_correlation(analysis.uniform_law(all_answers(problem))) == 0
        assert analysis.task_correlation(task, n) == 0


def test_correlation_of_replacing_tends_to_its_limit_and_that_of_shuffling_grows():
    assert analysis.task_correlation("replace_random", 10**6) == pytest.approx(1 / math.log(2), abs=1e-5)
    values = [analysis.task_correlation("shuffle", n) for n in range(2, 40)]
    assert values == sorted(values)
    assert values[-1] > 40


@pytest.mark.parametrize("task", FREE)
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_divergence_of_the_block_decoder_is_the_sum_of_its_steps(task, size):
    items = ("a", "b", "c", "d")
    law = analysis.uniform_law(all_answers(ListProblem(task, items, "new" if "e_r" in task or "t_r" in task else None)))
    steps = analysis.blocks(len(next(iter(law))), size)
    bound = analysis.lower_bound(law, steps)
    written = analysis.decoder_law(law, steps)
    assert sum(written.values()) == pytest.approx(1)
    assert analysis.divergence(law, written) == pytest.approx(bound, abs=1e-9)
    assert (bound < 1e-12) == (size == 1 or (len(steps) == 1 and analysis.total_correlation(law) < 1e-12))


def test_more_steps_never_lose_more():
    law = analysis.uniform_law(shuffles_with_identity(5))
    losses = [analysis.lower_bound(law, analysis.blocks(5, size)) for size in (5, 3, 2, 1)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == pytest.approx(0, abs=1e-12)


def test_thresholds_of_ideal_models():
    assert analysis.replace_random_threshold_accuracy(5, 0.8) == 1, "strictly surer than the threshold"
    assert analysis.replace_random_threshold_accuracy(5, 0.79) == 0
    assert analysis.replace_random_threshold_accuracy(2, 0.4) == 0.5
    assert analysis.shuffle_threshold_accuracy(4, 0.5) == 1
    assert analysis.shuffle_threshold_accuracy(4, 0.4) == 0.5
    assert analysis.shuffle_threshold_accuracy(4, 0.1) == math.factorial(4) / 4**4


def test_where_a_model_edits_is_told():
    problem = ListProblem("remove_random", ("A", "B", "C", "D"))
    always_last = analysis.edited_places([problem] * 20, [("A", "B", "C")] * 20)
    assert (always_last.bits, always_last.most, always_last.right) == (0, 2, 20)
    assert analysis.edited_places([problem] * 4, all_answers(problem)).bits == 2
    assert analysis.edited_places([problem], [("X",)]) == analysis.EditedPlaces(0, 0, 0)
    other = ListProblem("remove_random", ("A", "B"))
    both = analysis.edited_places([problem] * 5 + [other] * 2, [*all_answers(problem), ("X",), ("A",), ("A",)])
    assert both.right == 6
    assert both.bits == pytest.approx(4 / 6 * 2), "each length is counted for itself"
    assert both.most == pytest.approx(4 / 6 * 2 + 2 / 6 * 1)


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
