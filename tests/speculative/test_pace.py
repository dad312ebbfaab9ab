"""Whether drafts pay by measured rounds: what a trial concludes, and that nobody is slower for it, whatever the curve says."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from decodery.engine.cost import CostCurve
from decodery.engine.registry import BUILT_IN, method
from decodery.models.forward import Forward, Scores
from decodery.speculative.loop import SpeculativeMethod
from decodery.speculative.pace import (
    DRAFT_ROUNDS,
    LEAST,
    LONGEST,
    PLAIN_ROUNDS,
    SHORTEST,
    SOON,
    TURNS,
    Course,
    Laps,
    Measured,
    Pace,
    rate,
)
from decodery.testing import ScriptedScorer, scripted_language_model, story_scorer

TRIAL = TURNS * (PLAIN_ROUNDS + DRAFT_ROUNDS)


def run(course: Course, rounds: int, plain: float, drafts: tuple[float, int], company: int = 1) -> list[bool]:
    """Rounds of a course in which a plain one takes `plain` seconds, and one with drafts so many, for so many tokens. Whether
    each drafted."""
    kinds = []
    for _ in range(rounds):
        kinds.append(course.drafts)
        seconds, tokens = drafts if course.drafts else (plain, 1)
        for who in range(company):
            course.observe(who, company, tokens, seconds)
    return kinds


def test_a_rate_is_tokens_by_seconds_and_an_outlier_counts_three_medians() -> None:
    rounds = [Measured(1, 1.0, 2.0), Measured(1, 3.0, 2.0), Measured(1, 2.0, 2.0), Measured(1, 2.0, 900.0)]
    found, error = rate(rounds)
    assert found == pytest.approx(8 / 12)
    residuals = [1 - 4 / 3, 3 - 4 / 3, 2 - 4 / 3, 2 - 4]
    assert error == pytest.approx(sum(r * r for r in residuals) ** 0.5 / 12)
    assert rate([Measured(1, 1.0, 0.5)] * 4) == pytest.approx((2.0, 0.0))


def test_a_trial_takes_turns_and_begins_plainly() -> None:
    kinds = run(Course(), TRIAL, 1.0, (1.0, 2))
    assert kinds == ([False] * PLAIN_ROUNDS + [True] * DRAFT_ROUNDS) * TURNS


@pytest.mark.parametrize("company", [1, 3])
@pytest.mark.parametrize(("drafts", "pays"), [((1.2, 2), True), ((2.5, 2), False)])
def test_what_was_faster_is_kept_to_until_the_next_trial(drafts: tuple[float, int], pays: bool, company: int) -> None:
    course = Course()
    run(course, TRIAL, 1.0, drafts, company)
    first = 2 * SHORTEST if pays else SHORTEST  # that drafts pay is what was believed before
    assert run(course, first, 1.0, drafts, company) == [pays] * first
    assert run(course, PLAIN_ROUNDS, 1.0, drafts, company) == [False] * PLAIN_ROUNDS
    run(course, TRIAL - PLAIN_ROUNDS, 1.0, drafts, company)
    assert run(course, 2 * first, 1.0, drafts, company) == [pays] * (2 * first)


def test_trials_become_rare_but_never_end() -> None:
    course = Course()
    kinds = run(course, 20_000, 1.0, (2.0, 1))
    assert sum(kinds) < 0.02 * len(kinds)
    assert any(kinds[-LONGEST - TRIAL :])


def test_a_verdict_is_taken_back() -> None:
    course = Course()
    run(course, TRIAL + SHORTEST, 1.0, (2.0, 1))
    assert not course.pays
    kinds = run(course, 3 * LONGEST, 1.0, (1.0, 2))
    assert course.pays
    assert sum(kinds[-SHORTEST:]) > SHORTEST / 2


def test_equal_rates_change_nothing() -> None:
    for believed in (True, False):
        course = Course()
        course.pays = believed
        run(course, TRIAL, 1.0, (2.0, 2))
        assert course.pays is believed


def test_rounds_of_another_company_are_no_measure() -> None:
    """Plain rounds of eight, and rounds with drafts of five, which are quicker: nothing is concluded."""
    course = Course()
    course.pays = False
    while course.drafts or course.stretch < 2 * TURNS:
        company = 5 if course.drafts else 8
        for who in range(company):
            course.observe(who, company, 1, 1.0 if course.drafts else 2.0)
    assert not course.pays


def test_rounds_in_which_others_read_prompts_are_no_measure() -> None:
    """Two of three requests are heard of, in long rounds without drafts: no verdict, and the next trial comes soon."""
    course = Course()
    kinds = []
    for place in range(2 * (TRIAL + SOON)):
        kinds.append(course.drafts)
        for who in (0, 1):
            course.observe(who, 3, 1, 1.0 if course.drafts else 50.0)
        assert course.pays, place
    assert kinds.count(False) == pytest.approx(2 * TURNS * PLAIN_ROUNDS, abs=2)
    run(course, 3 * (TRIAL + SOON), 1.0, (2.0, 1), company=3)
    assert not course.pays


def test_a_clock_that_stands_still_tells_nothing() -> None:
    course = Course()
    run(course, 5 * TRIAL, 0.0, (0.0, 1))
    assert course.pays


def test_requests_of_about_the_same_number_share_a_course() -> None:
    pace = Pace(lambda: 0.0)
    assert [pace.course(5) is pace.course(other) for other in (4, 5, 8, 9)] == [False, True, True, False]
    assert len({id(pace.course(company)) for company in range(1, 17)}) == 5


def test_a_round_counts_from_end_to_end_within_one_stretch() -> None:
    now = [0.0]
    pace = Pace(lambda: now[0])
    laps, course = Laps(pace), pace.course(1)
    seen: list[float] = []
    observe = course.observe
    course.observe = lambda who, company, tokens, seconds: (
        seen.append(seconds),
        observe(who, company, tokens, seconds),
    )[1]  # type: ignore[method-assign, func-returns-value]
    for _ in range(2 + PLAIN_ROUNDS + 1):
        laps.begin(1)
        now[0] += 3.0
        laps.end(1)
    # The first round has no beginning, and the one in which drafting begins is of neither kind.
    assert seen == [3.0] * (PLAIN_ROUNDS + 1)
    laps.begin(2)  # another request came
    now[0] += 50.0
    laps.end(1)
    assert 50.0 not in seen


def test_time_in_which_nobody_let_the_engine_work_is_no_time_of_a_round() -> None:
    now, away = [0.0], 0.0
    pace = Pace(lambda: now[0])
    laps, course = Laps(pace), pace.course(1)
    for _ in range(PLAIN_ROUNDS + 1):
        laps.begin(1)
        now[0] += 3.0
        laps.end(1, away)
        now[0] += 50.0
        away += 50.0
    assert {round.seconds for round in course._rounds[False]} == {3.0}


def script(prefix: tuple[int, ...]) -> torch.Tensor:
    """A text of eight tokens in a circle, with another token now and then."""
    place = len(prefix)
    return 9.0 * torch.nn.functional.one_hot(torch.tensor(place * 7 % 19 if place % 5 == 4 else place % 8), 20).float()


class Timed(ScriptedScorer):
    """A scorer whose passes take time, by a clock of its own: `price` seconds by rows."""

    def __init__(self, price: CostCurve):
        super().__init__(script, 20)
        self.price, self.now = price, 0.0

    def run_pass(self, forwards: Sequence[Forward]) -> list[Scores]:
        self.now += self.price(sum(forward.count for forward in forwards))
        return super().run_pass(forwards)


FREE = CostCurve((1, 64), (1.0, 1.001))
"""What the curve believes: rows cost nothing."""
DEAR, CHEAP = CostCurve((1, 64), (1.0, 33.0)), CostCurve((1, 64), (1.0, 1.3))
TOKENS, COMPANY = 240, 2


def seconds(spec: str, price: CostCurve, paced: bool = True) -> tuple[float, list[Sequence[int]], int]:
    """Seconds, outputs and drafted tokens of two requests together, where passes cost `price` and the curve says FREE."""
    scorer = Timed(price)
    lm = scripted_language_model(scorer)
    curve = CostCurve(FREE.rows, FREE.seconds, (lambda: scorer.now) if paced else None)
    lm.cost = lambda network: curve  # type: ignore[method-assign]
    replies = lm.generate([[place] for place in range(COMPANY)], spec, max_new_tokens=TOKENS)
    return scorer.now, [reply.token_ids for reply in replies], sum(reply.stats.drafted for reply in replies)


@pytest.mark.parametrize("spec", ["cascade(depth=2)", "prompt-lookup"])
def test_nobody_is_slower_where_the_curve_is_wrong(spec: str) -> None:
    """But for the rounds of trials, which the next requests do not pay again."""
    plain, outputs, _ = seconds("autoregressive", DEAR)
    believed, paced = seconds(spec, DEAR, paced=False), seconds(spec, DEAR)
    assert believed[0] > 1.4 * plain, "the test needs drafts that do not pay"
    assert paced[0] < plain + 0.4 * (believed[0] - plain)
    assert outputs == believed[1] == paced[1]
    assert 0 < paced[2] < believed[2] / 2


def test_where_drafts_pay_they_go_on() -> None:
    plain, outputs, _ = seconds("autoregressive", CHEAP)
    believed, paced = seconds("prompt-lookup", CHEAP, paced=False), seconds("prompt-lookup", CHEAP)
    assert believed[0] < 0.75 * plain, "the test needs drafts that pay"
    assert paced[0] < believed[0] + 3 * TURNS * PLAIN_ROUNDS * CHEAP(COMPANY), "but for the plain rounds of trials"
    assert outputs == paced[1]


def test_the_same_clock_gives_the_same_drafts() -> None:
    assert seconds("prompt-lookup", DEAR) == seconds("prompt-lookup", DEAR)


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_what_is_drawn_at_random_is_never_paced(name: str) -> None:
    """A sampled output must not depend on time: whoever is paced drafts without randomness."""
    chosen = method(name)
    if not isinstance(chosen, SpeculativeMethod) or not chosen.paced:
        return
    lm = scripted_language_model(story_scorer())
    judged = []
    judge = type(chosen).judge
    object.__setattr__(chosen, "judge", lambda draft, greedy: (judged.append(draft.q), judge(chosen, draft, greedy))[1])
    lm.generate([1, 2, 3], chosen, max_new_tokens=40, temperature=1.0, seed=0)
    assert judged
    assert all(law is None for law in judged)


def test_a_round_of_several_requests_counts_for_each_of_them() -> None:
    course = Course()
    for who, (tokens, seconds) in enumerate(((1, 2.0), (2, 2.0), (3, 5.0))):
        course.observe(who, 3, tokens, seconds)
    assert list(course._rounds[False]) == [Measured(3, 2.0, 3.0)]


def test_three_rounds_of_a_kind_are_enough_for_a_verdict() -> None:
    for plain, concludes in ((LEAST - 1, False), (LEAST, True)):
        course = Course()
        course._rounds[False].extend([Measured(1, 1.0, 1.0)] * plain)
        course._rounds[True].extend([Measured(1, 1.0, 2.0)] * LEAST)
        assert course._verdict() is (False if concludes else None)
        course._rounds[True].append(Measured(2, 1.0, 2.0))
        assert course._verdict() is None, "the present company was not measured"
