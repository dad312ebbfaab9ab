"""ParallelBench's theory against the engine: its own rules on an oracle denoiser reach the closed forms."""

import math
import random
from collections import Counter

import pytest

from decodery.errors import BadSetting
from decodery.evaluation.parallelbench import analysis, lists, oracle
from decodery.evaluation.parallelbench.lists import FREE, ORDERED, ListProblem, is_right
from decodery.testing import OracleDenoiser, goodness_of_fit


def agrees(problem, spec, expected, judge, samples=2000):
    """Whether the engine with the oracle is right as often as theory says, within three standard errors."""
    outputs = [output for output, _ in oracle.decode_oracle(problem, spec, samples=samples)]
    found = sum(judge(problem, output) for output in outputs) / samples
    assert abs(found - expected) <= 3 * math.sqrt(expected * (1 - expected) / samples) + 1e-9


@pytest.mark.parametrize(("n", "k", "expected"), [(4, 1, 1), (4, 2, 0.5), (4, 4, 0), (3, 2, 1), (5, 3, 0.5)])
def test_an_ideal_model_replaces_as_often_right_as_the_closed_form(n, k, expected):
    problem = ListProblem("replace_random", tuple("abcdefg"[:n]), "new")
    assert analysis.replace_random_accuracy(n, k) == expected
    samples = 2000 if (n, k) == (4, 2) else 500 if 0 < expected < 1 else 300
    agrees(problem, f"masked-diffusion(tokens_per_step={k})", expected, is_right, samples)


@pytest.mark.parametrize(("n", "k"), [(4, 1), (4, 2), (5, 2), (4, 4)])
def test_an_ideal_model_shuffles_as_often_right_as_the_closed_form(n, k):
    problem = ListProblem("shuffle", tuple("abcdefg"[:n]))
    expected = analysis.shuffle_accuracy(n, k)
    if (n, k) == (4, 2):
        assert expected == 0.375
    samples = 2000 if (n, k) == (4, 2) else 500 if expected < 1 else 300
    agrees(problem, f"masked-diffusion(tokens_per_step={k})", expected, lists.is_permutation, samples)


@pytest.mark.parametrize("threshold", [0.4, 0.7, 0.9])
def test_an_ideal_model_under_a_threshold_is_right_as_often_as_the_closed_forms(threshold):
    spec = f"masked-diffusion(rule=threshold, threshold={threshold})"
    replaced = ListProblem("replace_random", tuple("abcd"), "new")
    agrees(replaced, spec, analysis.replace_random_threshold_accuracy(4, threshold), is_right, 300)
    expected = analysis.shuffle_threshold_accuracy(4, threshold)
    agrees(ListProblem("shuffle", tuple("abcd")), spec, expected, lists.is_permutation, 400)


@pytest.mark.parametrize("task", ORDERED)
def test_an_ideal_model_loses_nothing_where_one_answer_is_right(task):
    agrees(
        lists.draw_problem(task, "ABCDEFGHIJKLM", 3, random.Random(5)),
        "masked-diffusion(tokens_per_step=8)",
        1,
        is_right,
        20,
    )


@pytest.mark.parametrize("task", FREE)
def test_the_engine_with_the_oracle_writes_the_law_of_the_block_decoder(task):
    problem = ListProblem(task, tuple("abc"), "new" if task in ("insert_random", "replace_random") else None)
    law = oracle.oracle_law(problem)
    steps = analysis.blocks(len(next(iter(law))), 2)
    decoded = oracle.decode_oracle(
        problem, "masked-diffusion(block_length=2, tokens_per_step=2)", samples=600, temperature=1.0
    )

    def until_lost(output):
        """What stands in an output when no answer holds it any more; the rest empty, as `decoder_law` leaves it."""
        for step in steps[:-1]:
            if not any(answer[: step.stop] == output[: step.stop] for answer in law):
                return output[: step.stop] + ("",) * (len(output) - step.stop)
        return output

    counts = Counter(until_lost(output) for output, _ in decoded)
    assert goodness_of_fit(counts, analysis.decoder_law(law, steps)).p_value > 0.001


def test_the_oracle_curve_holds_what_is_known_of_each_point():
    decoders = [
        oracle.OracleDecoder(oracle.SUREST, 1),
        oracle.OracleDecoder(oracle.THRESHOLD, 0.9),
        oracle.OracleDecoder(oracle.LEFT_TO_RIGHT, 4),
    ]
    points = oracle.oracle_curve(("copy", "replace_random"), decoders, samples=150)
    copied, replaced = points[:3], points[3:]
    assert [point.accuracy for point in copied] == [point.expected for point in copied] == [1, 1, 1]
    assert [point.lost_bits for point in copied] == pytest.approx([0, 0, 0], abs=1e-9)
    assert [point.tokens_per_step for point in copied] == [1, 4, 4]
    assert [point.edit_bits for point in copied] == [None] * 3
    one, sure, blocks = replaced
    assert one.accuracy == one.expected == sure.accuracy == 1
    assert one.edit_bits > 1.9, "coins among equals choose every place"
    assert one.lost_bits == pytest.approx(0, abs=1e-9)
    assert blocks.lost_bits == pytest.approx(analysis.task_correlation("replace_random", 4))
    assert abs(blocks.accuracy - blocks.expected) < 1.6 * blocks.error
    header, *lines = oracle.oracle_table(points)
    assert all(len(line) == len(header) for line in lines)
    assert oracle.oracle_curve(("copy", "replace_random"), decoders, samples=150) == points, "the same seed"
    with pytest.raises(BadSetting, match="no oracle for 'sudoku'"):
        oracle.oracle_curve(["sudoku"])
    with pytest.raises(BadSetting, match="2 to 6"):
        oracle.oracle_curve(["copy"], length=7)


def test_the_oracle_tosses_for_equals_anew_with_each_prompt_and_never_between_unequals():
    denoiser = OracleDenoiser([(0, 1), (1, 0), (2, 0)], 3)
    blank = (denoiser.mask, denoiser.mask)
    scores = [denoiser.score((prompt,), blank) for prompt in range(40)]
    assert {int(score[0].argmax()) for score in scores} == {0, 1, 2}
    assert {int(score[1].argmax()) for score in scores} == {0}, "two of three answers end so"
    assert scores[0].equal(denoiser.score((0,), blank))
    assert scores[0][0].softmax(-1).tolist() == pytest.approx([1 / 3] * 3, abs=1e-4)
    given = denoiser.score((0,), (1, denoiser.mask))[1].softmax(-1)
    assert given.tolist() == pytest.approx([1, 0, 0], abs=1e-4)
    lost = denoiser.score((0,), (denoiser.mask, 2))[0].softmax(-1)
    assert lost.tolist() == pytest.approx([1 / 3] * 3, abs=1e-4), "no answer ends with 2"


def test_the_interval_is_wilsons():
    z = 1.959964
    for share, samples in ((0.5, 100), (0.9, 40), (0.0, 20)):
        # The ends of the interval solve (share - p)^2 = z^2 p (1 - p) / samples.
        a, b, c = 1 + z * z / samples, -(2 * share + z * z / samples), share * share
        assert oracle.wilson_error(share, samples) == pytest.approx(math.sqrt(b * b - 4 * a * c) / (2 * a))


def test_the_usual_curve_avoids_thresholds_that_a_list_has_as_a_probability():
    settings = {decoder.series: [] for decoder in oracle.DECODERS}
    for decoder in oracle.DECODERS:
        settings[decoder.series].append(decoder.setting)
    counts = [1, 2, 4]
    assert settings == {oracle.SUREST: counts, oracle.THRESHOLD: [0.4, 0.7, 0.9], oracle.LEFT_TO_RIGHT: counts}
    assert not {0.4, 0.7, 0.9} & {k / n for n in range(1, oracle.LENGTH + 1) for k in range(n + 1)}
    one = oracle.oracle_curve(["copy"], oracle.DECODERS[:1], samples=1)
    assert one[0].samples == 1
    with pytest.raises(BadSetting, match="at least one sample"):
        oracle.oracle_curve(["copy"], samples=0)
