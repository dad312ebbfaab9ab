"""Approximate-match lookup: what it copies, its laws, its policy of lengths, and the simulation of its study."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decodery.engine.cost import CostCurve
from decodery.errors import BadInput, BadParameter
from decodery.speculative.approximate_match_lookup.matching import NgramIndex
from decodery.speculative.approximate_match_lookup.method import (
    Alignment,
    AlignmentDrafter,
    ApproximateMatchLookup,
    LengthByClass,
    _joined,
    substitutions,
)
from decodery.speculative.draft import EMPTY, Draft
from decodery.speculative.loop import Round
from decodery.speculative.verifiers import Verdict
from decodery.testing import DrafterLaws, scripted_language_model, story_scorer
from experiments import approximate_match_lookup as study

texts = st.lists(st.integers(0, 2), min_size=1, max_size=40)


class TestApproximateMatchLookup(DrafterLaws):
    methods = (
        "approximate-match-lookup",
        "approximate-match-lookup(places=3, nodes=12, wrap=True, substitute=True, policy=none, persist=True)",
        "approximate-match-lookup(window=4, mismatches=4, anchor=0, rank=mismatches, policy=class)",
    )
    samples = 1000


def _drafter(**options: object) -> AlignmentDrafter:
    return AlignmentDrafter(ApproximateMatchLookup(policy="none", **options))


def _copied(text: list[int], **options: object) -> list[int]:
    return list(_drafter(**options).propose(text, depth=100).tokens)


def _brute_force(
    text: list[int], window: int, most: int, anchor: int, rank: str, length: int, decay: float
) -> list[int]:
    """Score every lag by the definitions, and copy from the best."""
    n, best = len(text), None
    for lag in range(1, n):
        differs = [place - lag < 0 or text[place] != text[place - lag] for place in range(n - 1, -1, -1)]
        mismatches = sum(differs[:window]) + max(window - n, 0)
        run = next((j for j, differ in enumerate(differs) if differ), n)
        decayed = round(sum(decay**j * differ for j, differ in enumerate(differs)), 9)
        if run >= anchor and mismatches <= most:
            first = {"decayed": decayed, "mismatches": mismatches, "run": -run}[rank]
            key = (first, -run, lag)
            if best is None or key < best[0]:
                best = (key, text[n - lag : n - lag + length])
    return [] if best is None else best[1]


@settings(max_examples=80)
@given(texts, st.integers(1, 9), st.integers(0, 9), st.integers(0, 3), st.integers(1, 6))
@pytest.mark.parametrize("rank", ["decayed", "mismatches", "run"])
def test_it_copies_what_the_rule_says(rank, text, window, most, anchor, length):
    most = min(most, window)
    # A decay of 3/4 is exact in binary, so that ties are ties.
    expected = _brute_force(text, window, most, anchor, rank, length, 0.75)
    assert _copied(text, window=window, mismatches=most, anchor=anchor, rank=rank, length=length) == expected


@given(texts, st.integers(1, 6))
def test_without_tolerance_it_is_longest_suffix_lookup(text, length):
    """k = 0, anchor 3 and ranked by the exact run: what followed the latest occurrence of the longest repeated suffix."""
    copied = _copied(text, window=3, mismatches=0, anchor=3, rank="run", length=length)
    n = len(text)
    for size in range(n - 1, 2, -1):
        ends = [end for end in range(size, n) if text[end - size : end] == text[-size:]]
        if ends:
            assert copied == text[ends[-1] : ends[-1] + length]
            return
    assert copied == []


@given(texts, st.sets(st.integers(1, 39)))
def test_reading_bit_by_bit_is_reading_at_once(text, cuts):
    piecewise = _drafter()
    for cut in sorted(cuts):
        if cut < len(text):
            piecewise.propose(text[:cut], depth=5)
    assert list(piecewise.propose(text, depth=5).tokens) == list(_drafter().propose(text, depth=5).tokens)


def test_a_difference_does_not_stop_it():
    #       the old entity                  the new one
    text = [1, 2, 3, 50, 4, 5, 6, 7, 8, 9, 1, 2, 3, 60, 4, 5]
    assert _copied(text, length=4) == [6, 7, 8, 9]
    assert _copied(text[:-2], anchor=0, length=3) == [4, 5, 6]


def test_a_short_period_is_cut_or_repeated():
    text = [7, 8, 7, 8, 7, 8]
    assert _copied(text, length=5, rank="run") == [7, 8]
    assert _copied(text, length=5, rank="run", wrap=True) == [7, 8, 7, 8, 7]
    assert _copied([3, 3], length=4) == [3], "a lag of one is a match"


def test_depth_cuts_the_copy_and_no_match_gives_nothing():
    assert list(_drafter(rank="mismatches").propose([1, 2, 3, 1, 2], depth=1).tokens) == []
    assert list(_drafter().propose([1, 2, 3, 1, 2], depth=1).tokens) == [3]
    assert _drafter().propose([1, 2, 3], depth=5) is EMPTY
    assert _drafter().propose([1], depth=5) is EMPTY


def test_several_places_make_a_tree_deeper_where_they_agree_better():
    text = [1, 2, 9, 8, 7, 6, 5, 2, 9, 3, 4, 4, 4, 1, 2]
    draft = _drafter(places=2, nodes=20, length=6).propose(text, depth=6)
    assert list(draft.tokens) == [9, 8, 7, 6, 5, 2, 3, 4]
    assert list(draft.parents) == [-1, 0, 1, 2, 3, 4, 0, 6]
    assert [kind[3] for kind in draft.kinds] == [0] * 6 + [1, 1]
    small = _drafter(places=2, nodes=3, length=6).propose(text, depth=6)
    assert list(small.tokens) == [9, 8, 7]


def test_the_kind_tells_the_class_of_the_match():
    draft = _drafter(length=6).propose([1, 2, 3, 4, 5, 6, 7, 1, 2, 30, 4, 5, 6], depth=6)
    # Three of the last eight tokens differ or have nothing to be compared with; the exact run is three long.
    assert list(draft.kinds)[:2] == [("own", 3, 2, 0, 0), ("own", 3, 2, 0, 1)]


class TestSubstitutions:
    def test_only_consistent_pairs_count(self):
        assert substitutions([5, 1, 5], [6, 1, 6]) == {5: 6}
        assert substitutions([5, 1], [6, 1]) == {}, "once is not enough"
        assert substitutions([5, 5, 5], [6, 6, 7]) == {}
        assert substitutions([5, 5, 5], [6, 6, 5]) == {}, "where it stayed it was not replaced"

    def test_they_are_applied_to_the_copy(self):
        text = [1, 50, 2, 50, 3, 50, 4, 9, 8, 1, 60, 2, 60, 3]
        assert _copied(text, length=2) == [50, 4]
        assert _copied(text, length=2, substitute=True) == [60, 4]


class TestLengthByClass:
    def test_it_grows_and_shrinks_with_what_is_accepted(self):
        policy = LengthByClass()
        assert policy.length("new", 10) == 4
        for _ in range(60):
            policy.observe("good", 5)
            policy.observe("bad", 0)
        assert policy.length("good", 10) == 1 + 8
        assert policy.length("good", 6) == 6
        assert policy.length("bad", 10) == 2

    def test_it_learns_to_refuse_and_asks_again(self):
        policy = LengthByClass(CostCurve((1, 2), (1.0, 1.3)))
        for _ in range(60):
            policy.observe("bad", 0)
        asked = [policy.length("bad", 8) > 0 for _ in range(64)]
        assert [place + 1 for place, yes in enumerate(asked) if yes] == [16, 32, 48, 64]
        assert policy.length("new", 8) > 0

    def test_it_decides_in_a_request(self, monkeypatch):
        lm = scripted_language_model(story_scorer())
        steep = CostCurve((1, 2), (1.0, 2.5))  # a second row never pays
        monkeypatch.setattr(type(lm), "cost", lambda self, network: steep)
        prompt = [1, 2, 3, 1, 2, 4, 1, 2]
        stats = lm.generate(prompt, "approximate-match-lookup(policy=class)", max_new_tokens=60).stats
        every = lm.generate(prompt, "approximate-match-lookup(policy=none)", max_new_tokens=60).stats
        assert 0 < stats.drafted < every.drafted / 3


class TestElsewhere:
    @pytest.fixture
    def corpus(self, tmp_path):
        """What the model is going to write after one prompt, with every eighth letter changed."""
        lm = scripted_language_model(story_scorer())
        text = lm.generate("qqq", method="autoregressive", max_new_tokens=60).text
        path = tmp_path / "corpus.txt"
        path.write_text("xy" + "".join("x" if place % 8 == 7 else sign for place, sign in enumerate(text)))
        return path

    def test_a_corpus_with_differences_is_copied_from(self, corpus):
        lm = scripted_language_model(story_scorer())
        plain = lm.generate("qqq", method="autoregressive", max_new_tokens=60)
        alone = lm.generate("qqq", "approximate-match-lookup", max_new_tokens=60)
        spec = f"approximate-match-lookup(corpus={str(corpus)!r}, corpus_window=8, corpus_mismatches=1)"
        helped = lm.generate("qqq", spec, max_new_tokens=60)
        assert helped.token_ids == alone.token_ids == plain.token_ids
        assert helped.stats.rounds < 0.8 * alone.stats.rounds

    def test_a_run_ends_with_the_last_token(self):
        """Two places differ from the last four tokens in one: the one in the first, the other in the last but one. So the
        exact runs are three and one tokens long, and mismatches far back weigh less."""
        corpus = NgramIndex(2, [9, 2, 3, 4, 70, 71, 1, 2, 9, 4, 80, 81])
        for rank in ("run", "decayed"):
            options = ApproximateMatchLookup(
                policy="none", rank=rank, length=2, corpus="given", corpus_window=4, corpus_mismatches=1, anchor=1
            )
            drafter = AlignmentDrafter(options, corpus=corpus)
            draft = drafter.propose([5, 1, 2, 3, 4], depth=9)
            assert list(draft.tokens) == [70, 71]
            assert draft.kinds[0][:3] == ("corpus", 3, 1)
            short = AlignmentDrafter(options, corpus=NgramIndex(2, [1, 2, 9, 4, 80, 81])).propose(
                [5, 1, 2, 3, 4], depth=9
            )
            assert short.kinds[0][:3] == ("corpus", 1, 1)
        # Where two exact tokens are asked for, a place that agrees at its beginning is none.
        strict = ApproximateMatchLookup(
            policy="none", length=2, corpus="given", corpus_window=4, corpus_mismatches=1, anchor=2
        )
        assert AlignmentDrafter(strict, corpus=NgramIndex(2, [1, 2, 9, 4, 80, 81])).propose([5, 1, 2, 3, 4], 9) is EMPTY

    def test_a_bad_corpus_is_an_error_before_work_starts(self, tmp_path):
        lm = scripted_language_model(story_scorer())
        with pytest.raises(BadInput, match="cannot be read"):
            lm.generate("a", f"approximate-match-lookup(corpus={str(tmp_path / 'none.txt')!r})")
        broken = tmp_path / "broken.txt"
        broken.write_bytes(b"ab\xff")
        with pytest.raises(BadInput, match="not UTF-8"):
            lm.generate("a", f"approximate-match-lookup(corpus={str(broken)!r})")

    def test_earlier_texts_of_the_session_on_request(self):
        lm = scripted_language_model(story_scorer(surprise=0.0))
        spec = "approximate-match-lookup(persist=True)"
        first = lm.generate([5, 1, 9], spec, max_new_tokens=12).stats
        again = lm.generate([5, 1, 9], spec, max_new_tokens=12).stats
        other = lm.generate([5, 1, 9], spec, max_new_tokens=12, session="other").stats
        assert again.rounds < first.rounds == other.rounds

    def test_nothing_is_copied_over_the_border_of_texts(self):
        options = ApproximateMatchLookup(policy="none")
        drafter = AlignmentDrafter(options, earlier=[1, 2, 3, -1, 4, 1, 5, -1])
        assert list(drafter.propose([6, 2], depth=8).tokens) == [3]
        drafter = AlignmentDrafter(options, earlier=[1, 2, 3, -1, 4, 1, 5, -1])
        assert drafter.propose([6, 3], depth=8) is EMPTY


def test_impossible_options_are_refused():
    with pytest.raises(BadParameter, match="exceed the window"):
        ApproximateMatchLookup(window=4, mismatches=5)
    with pytest.raises(BadParameter, match="below the corpus_window"):
        ApproximateMatchLookup(corpus="texts", corpus_window=4, corpus_mismatches=4)


@cache
def _simulated(drafter: str, rate: float) -> float:
    """Tokens per verification on templated text, mean of three texts."""
    make = study.DRAFTERS[drafter]
    return sum(study.tokens_per_verification(make(), study.templated_text(rate, seed)) for seed in range(3)) / 3


class TestSimulation:
    """A target that is known in advance writes templates with differences (the card's oracle-target simulation)."""

    def test_tolerance_pays_where_the_text_differs(self):
        best_exact = max(_simulated(name, 0.1) for name in study.EXACT)
        assert _simulated("default", 0.1) >= 1.2 * best_exact

    def test_and_costs_little_where_it_does_not(self):
        best_exact = max(_simulated(name, 0.0) for name in study.EXACT)
        assert _simulated("default", 0.0) >= 0.95 * best_exact

    def test_a_longer_window_is_not_better(self):
        for rate in (0.0, 0.1, 0.2):
            assert _simulated("window 32, k 20", rate) < _simulated("window 8, k 4", rate)

    def test_without_an_anchor_exact_repetitions_are_missed(self):
        """On text without differences. Where tokens are replaced in place, the alignment survives a wrong last token, and
        no anchor is better: the second half says so, lest anybody believe the opposite."""
        assert _simulated("default, anchor 0", 0.0) < _simulated("default", 0.0)
        assert _simulated("window 8, k 4, anchor 0", 0.0) < 0.95 * _simulated("window 8, k 4", 0.0)
        assert _simulated("default, anchor 0", 0.1) > _simulated("default", 0.1)


class TestDetails:
    def test_what_it_asks_for(self):
        assert ApproximateMatchLookup(nodes=12).most_nodes() == 12
        assert ApproximateMatchLookup(window=9).most_mismatches == 9
        assert ApproximateMatchLookup(window=9, rank="mismatches").most_mismatches == 4
        assert ApproximateMatchLookup(window=9, mismatches=2).most_mismatches == 2

    def test_a_class_that_is_refused_drafts_nothing(self):
        policy = LengthByClass(CostCurve((1, 2), (1.0, 2.5)))
        drafter = AlignmentDrafter(ApproximateMatchLookup(policy="class"), policy=policy)
        assert drafter.propose([1, 2, 3, 1, 2], depth=9) is EMPTY
        assert drafter.propose([1, 2, 3, 1, 2], depth=0) is EMPTY

    def test_only_what_was_verified_of_a_proposal_teaches(self):
        policy = LengthByClass()
        drafter = AlignmentDrafter(ApproximateMatchLookup(policy="class"), policy=policy)
        draft = drafter.propose([1, 2, 3, 1, 2], depth=9)
        kind = draft.kinds[0][:3]

        def observe(draft: Draft, path: tuple[int, ...]) -> None:
            drafter.observe(Round([1], draft, Verdict(path, 0), [], torch.zeros(0), {}))

        observe(EMPTY, ())
        assert not policy._means, "nothing of it was verified"
        observe(draft, (0, 1, 2))
        assert policy._means == {kind: (pytest.approx(2 + 0.1 * (3 - 2)), pytest.approx(0.5 + 0.1 * (1 - 0.5)))}
        observe(draft, ())
        assert policy._means == {kind: (pytest.approx(2.1 - 0.21), pytest.approx(0.55 - 0.055))}
        drafter.propose([1, 2, 3, 1, 2], depth=0)
        before = dict(policy._means)
        observe(draft, (0,))
        assert policy._means == before, "nothing was proposed in this round"
        plain = AlignmentDrafter(ApproximateMatchLookup(policy="none"))
        plain.propose([1, 2, 3, 1, 2], depth=9)
        plain.observe(Round([1], draft, Verdict((), 0), [], torch.zeros(0), {}))

    def test_a_second_row_is_as_dear_as_it_is_beside_the_first(self):
        for first in (1.0, 4.0):
            assert LengthByClass(CostCurve((1, 2), (first, 1.4 * first))).length("new", 9) == 4
            assert LengthByClass(CostCurve((1, 2), (first, 1.6 * first))).length("new", 9) == 0

    def test_the_latest_texts_are_kept_as_far_as_there_is_room(self, monkeypatch):
        monkeypatch.setattr("decodery.speculative.approximate_match_lookup.method.SESSION_TOKENS", 9)
        texts = [[1, 1], [2, 2, 2], [3, 3, 3, 3]]
        assert _joined(texts) == [2, 2, 2, -1, 3, 3, 3, 3, -1]
        assert texts == [[2, 2, 2], [3, 3, 3, 3]], "older ones are forgotten"
        assert _joined([[1] * 8]) == [*[1] * 8, -1]
        assert _joined([[1] * 9]) == []
        assert _joined([[1, 1], [2, 2, 2, 2], [3, 3, 3, 3]]) == [3, 3, 3, 3, -1]

    def test_a_place_before_a_border_gives_way_to_another(self):
        drafter = AlignmentDrafter(ApproximateMatchLookup(policy="none"), earlier=[2, 8, 9, -1, 5, 2, -1])
        assert list(drafter.propose([6, 2], depth=8).tokens) == [8, 9]

    @pytest.mark.parametrize(("rank", "order"), [("decayed", "bac"), ("mismatches", "acb"), ("run", "cab")])
    def test_places_of_text_and_corpus_are_ordered_by_their_rank(self, rank, order):
        places = {
            "a": Alignment(0.5, 1, 3, 7, [], 0, None, "own"),
            "b": Alignment(0.4, 3, 2, 8, [], 0, None, "own"),
            "c": Alignment(0.6, 1, 3, 6, [], 0, None, "corpus"),
        }
        if rank == "mismatches":
            places["c"] = Alignment(0.6, 1, 3, 9, [], 0, None, "corpus")
        drafter = _drafter(rank=rank)
        assert "".join(sorted(places, key=lambda name: drafter._order(places[name]))) == order

    def test_a_corpus_is_looked_into_once_the_text_fills_its_window(self):
        options = ApproximateMatchLookup(
            policy="none", corpus="given", corpus_window=4, corpus_mismatches=1, window=2, anchor=0, decay=0.5
        )
        #                    four that agree but for the first, and four at the end, behind which nothing stands
        corpus = NgramIndex(2, [9, 2, 3, 4, 70, 71, 1, 2, 3, 4])
        assert list(AlignmentDrafter(options, corpus=corpus).propose([1, 2, 3, 4], depth=9).tokens) == [
            70,
            71,
            1,
            2,
            3,
            4,
        ]
        assert AlignmentDrafter(options, corpus=corpus).propose([2, 3, 4], depth=9) is not None
        short = AlignmentDrafter(options, corpus=corpus)
        short.read([2, 3, 4])
        assert all(place.origin == "own" for place in short._best([2, 3, 4]))
        full = AlignmentDrafter(options, corpus=corpus)
        full.read([1, 2, 3, 4])
        [place] = full._corpus_places(corpus, [1, 2, 3, 4])
        assert (place.mismatches, place.run, place.start, place.period) == (0, 3, 4, None)
        # The first of four differs, and whatever stands before them counts as differing.
        assert place.decayed == pytest.approx(0.5**3 + 0.5**4 / 0.5)

    def test_acceptance_is_remembered_by_place_and_distance(self):
        draft = _drafter(places=9, nodes=64, length=8, anchor=1).propose([5, *range(10, 20), 5], depth=8)
        assert [kind[4] for kind in draft.kinds] == [0, 1, 2, 3, 4, 4, 4, 4]
