"""ParallelBench: generators, metrics, and the analysis against enumeration."""

import math
import random
from itertools import product

import pytest

from decodery.evaluation.parallelbench import analysis, arithmetic, lists, puzzles, sentences
from decodery.evaluation.parallelbench.lists import FREE, LIST_TASKS, ORDERED, ListProblem, all_answers, is_right
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
