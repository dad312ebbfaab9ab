"""The suffix automaton against brute force, and the drafter over it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decodery.engine.settings import Settings
from decodery.errors import BadInput
from decodery.speculative.draft import EMPTY, chain
from decodery.speculative.suffix_automaton.automaton import Match, SuffixAutomaton
from decodery.speculative.suffix_automaton.method import AutomatonDrafter, CombinedDrafter, SuffixAutomatonLookup
from decodery.testing import DrafterLaws, scripted_language_model, story_scorer
from decodery.testing.outputs import new_request

texts = st.lists(st.integers(0, 2), min_size=1, max_size=40)


class TestSuffixAutomatonLookup(DrafterLaws):
    methods = (
        "suffix-automaton",
        "suffix-automaton(length=3, alpha=0, adapt=False)",
        "suffix-automaton(auxiliary=token-recycling, threshold=2)",
    )
    samples = 1000


def _longest_repeat(text: list[int]) -> int:
    """Length of the longest run of last tokens that occurs earlier, too (it may overlap)."""
    return next(
        (n for n in range(len(text) - 1, 0, -1) if any(text[i : i + n] == text[-n:] for i in range(len(text) - n))), 0
    )


def _first_end(text: list[int], run: list[int]) -> int:
    return next(end for end in range(len(run), len(text) + 1) if text[end - len(run) : end] == run)


@given(texts)
def test_the_match_is_the_longest_earlier_occurring_suffix(text):
    drafter = AutomatonDrafter(40, 4.0)
    for end in range(1, len(text) + 1):
        drafter.read(text[:end])
        assert drafter.match_length == _longest_repeat(text[:end])


@given(texts, st.integers(1, 6))
def test_the_draft_follows_the_first_occurrence(text, count):
    """Of the longest match, or of the longest shorter one after which enough text follows."""
    drafter = AutomatonDrafter(count, 64.0)
    draft = drafter.propose(text, depth=100)
    longest = _longest_repeat(text)
    if not longest:
        assert draft is EMPTY
        return
    copied = list(draft.tokens)
    ends = {_first_end(text, text[-n:]) for n in range(1, longest + 1)}
    assert copied in [text[end : end + count] for end in ends]
    first = _first_end(text, text[-longest:])
    if first + count <= len(text):
        assert copied == text[first : first + count]


@given(texts)
def test_it_holds_exactly_the_substrings(text):
    automaton = SuffixAutomaton(text)
    assert len(automaton.next) <= 2 * len(text) + 1

    def contains(run: list[int]) -> bool:
        match = Match()
        for token in run:
            automaton.advance(match, token)
        return match.length == len(run)

    assert all(contains(text[i:j]) for i in range(len(text)) for j in range(i + 1, min(i + 6, len(text) + 1)))
    windows = {tuple(text[i : i + 3]) for i in range(len(text) - 2)}
    every = [(a, b, c) for a in range(3) for b in range(3) for c in range(3)]
    assert {run for run in every if contains(list(run))} == windows


def test_a_shorter_match_is_taken_where_the_longest_has_too_little_after_it():
    text = [1, 5, 6, 7, 8, 2, 1, 2, 1]  # the run 2 1 was seen near the end only, the run 1 right at the beginning
    assert AutomatonDrafter(2, 64.0).propose(text, depth=40).tokens == [2, 1]
    assert AutomatonDrafter(4, 64.0).propose(text, depth=40).tokens == [5, 6, 7, 8]


def test_the_draft_grows_with_the_match():
    text = [1, 2, 3, 4, 5, 6, 7, 8, 9, 1]
    assert AutomatonDrafter(40, 2.0).propose(text, depth=40).tokens == [2, 3, 4]
    assert AutomatonDrafter(40, 2.0).propose([*text, 2], depth=40).tokens == [3, 4, 5, 6, 7]
    assert AutomatonDrafter(2, 2.0).propose([*text, 2], depth=40).tokens == [3, 4]
    assert AutomatonDrafter(40, 2.0).propose([*text, 2], depth=1).tokens == [3]
    assert AutomatonDrafter(40, 2.0).propose([*text, 2], depth=0) is EMPTY


@pytest.mark.parametrize(("handicap", "copied"), [(0, 9), (2, 9), (3, 5), (64, 5)])
def test_a_corpus_wins_where_its_match_is_longer_by_more_than_its_handicap(handicap, copied):
    """The last three tokens stand in the own text, the last six in the corpus."""
    drafter = AutomatonDrafter(1, 1.0, SuffixAutomaton([7, 7, 7, 1, 2, 3, 9]), handicap)
    draft = drafter.propose([1, 2, 3, 5, 7, 7, 7, 1, 2, 3], depth=9)
    assert draft.tokens == [copied]
    assert drafter.match_length == 6
    assert drafter.copied_from == (6 if copied == 9 else 3)


@pytest.mark.parametrize(("threshold", "copies"), [(2, True), (3, True), (4, False), (6, False)])
def test_the_match_that_is_copied_from_must_reach_the_threshold(threshold, copies):
    """And not another one, which was longer but lost by its handicap."""

    class Auxiliary:
        def propose(self, tokens, depth):
            return chain([8])

    automaton = AutomatonDrafter(1, 1.0, SuffixAutomaton([7, 7, 7, 1, 2, 3, 9]), 64)
    draft = CombinedDrafter(automaton, Auxiliary(), threshold).propose([1, 2, 3, 5, 7, 7, 7, 1, 2, 3], depth=9)
    assert draft.tokens == ([5] if copies else [8])


class TestCorpus:
    @pytest.fixture
    def corpus(self, tmp_path):
        """The text that the model is going to write after one prompt, in a file."""
        lm = scripted_language_model(story_scorer())
        path = tmp_path / "corpus.txt"
        path.write_text("xy" + lm.generate("qqq", method="autoregressive", max_new_tokens=40).text)
        return path

    def test_it_is_copied_from(self, corpus):
        lm = scripted_language_model(story_scorer())
        plain = lm.generate("qqq", method="autoregressive", max_new_tokens=40)
        alone = lm.generate("qqq", method="suffix-automaton", max_new_tokens=40)
        helped = lm.generate("qqq", method=f"suffix-automaton(corpus={str(corpus)!r})", max_new_tokens=40)
        assert helped.token_ids == alone.token_ids == plain.token_ids
        assert helped.stats.rounds < alone.stats.rounds / 2

    def test_a_handicap_prefers_the_own_text(self, corpus):
        lm = scripted_language_model(story_scorer())
        free = lm.generate("qqq", method=f"suffix-automaton(corpus={str(corpus)!r})", max_new_tokens=40)
        spec = f"suffix-automaton(corpus={str(corpus)!r}, corpus_handicap=64)"
        held = lm.generate("qqq", method=spec, max_new_tokens=40)
        alone = lm.generate("qqq", method="suffix-automaton", max_new_tokens=40)
        assert held.token_ids == free.token_ids
        assert held.stats.rounds == alone.stats.rounds > free.stats.rounds

    def test_it_is_read_once_for_all_sessions(self, corpus, monkeypatch):
        lm = scripted_language_model(story_scorer())
        read = []
        encode = lm.encode
        monkeypatch.setattr(lm, "encode", lambda text: read.append(text) or encode(text))
        for session in ("one", "two"):
            lm.generate("a", method=f"suffix-automaton(corpus={str(corpus)!r})", max_new_tokens=5, session=session)
        assert len(read) == 1

    def test_a_bad_file_is_an_error_before_work_starts(self, tmp_path):
        lm = scripted_language_model(story_scorer())
        with pytest.raises(BadInput, match="cannot be read"):
            lm.generate("a", method=f"suffix-automaton(corpus={str(tmp_path / 'none.txt')!r})")
        broken = tmp_path / "broken.txt"
        broken.write_bytes(b"ab\xff")
        with pytest.raises(BadInput, match="not UTF-8"):
            lm.generate("a", method=f"suffix-automaton(corpus={str(broken)!r})")


def test_the_auxiliary_drafts_where_no_long_match_is_found():
    host = scripted_language_model(story_scorer())
    prompt = [1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4]
    copying = host.generate(prompt, "suffix-automaton(auxiliary=token-recycling, threshold=64)", max_new_tokens=40)
    recycled = host.generate(prompt, "token-recycling", max_new_tokens=40, session="other")
    # No match is that long, so every round is the auxiliary's.
    assert copying.token_ids == recycled.token_ids
    assert (copying.stats.drafted, copying.stats.accepted) == (recycled.stats.drafted, recycled.stats.accepted)


def test_what_follows_nothing_is_nothing() -> None:
    assert SuffixAutomaton([1, 2, 3]).following(Match(), 2) == []
    assert SuffixAutomaton([7, 8, 7]).following(Match(1, 1), 4) == [8, 7], "there is no shorter match to look at"


def test_acceptance_is_remembered_by_source_match_and_place() -> None:
    text = list(range(30))
    draft = AutomatonDrafter(40, 1.0).propose([*text, *text[:20]], depth=40)
    assert draft.kinds == [("own", 12, min(place, 8)) for place in range(21)][: len(draft)]
    assert len(draft) == 21
    short = AutomatonDrafter(40, 1.0).propose([*text, *text[:11]], depth=40)
    assert set(short.kinds) == {("own", 11, min(place, 8)) for place in range(12)}
    fresh = AutomatonDrafter(40, 4.0)
    assert fresh.copied_from == 0
    assert fresh.propose([1, 2, 3], depth=9) is EMPTY


def test_it_asks_for_the_room_of_who_drafts_most() -> None:
    assert SuffixAutomatonLookup(length=30).most_nodes() == 30
    assert SuffixAutomatonLookup(length=30, auxiliary="token-recycling").most_nodes() == 80
    assert SuffixAutomatonLookup(length=90, auxiliary="token-recycling").most_nodes() == 90


def test_its_drafter_is_as_asked() -> None:
    request, method = new_request(
        scripted_language_model(story_scorer()), "suffix-automaton(length=7, alpha=0.5)", [1, 2], Settings(seed=0)
    )
    drafter = method.drafter(request)
    assert (drafter._length, drafter._alpha) == (7, 0.5)
    assert (method.adaptive, SuffixAutomatonLookup(adapt=False).adaptive) == (True, False)


@given(texts)
def test_its_states_are_the_runs_that_end_at_the_same_places(text):
    """As many states as there are sets of places at which runs end, each with its longest run and its first end."""
    ends: dict[tuple[int, ...], set[int]] = {}
    for end in range(1, len(text) + 1):
        for start in range(end):
            ends.setdefault(tuple(text[start:end]), set()).add(end)
    longest: dict[frozenset[int], int] = {}
    for run, places in ends.items():
        longest[frozenset(places)] = max(longest.get(frozenset(places), 0), len(run))
    automaton = SuffixAutomaton(text)
    found = list(zip(automaton.longest, automaton.first_end, strict=True))
    assert sorted(found[1:]) == sorted((length, min(places)) for places, length in longest.items())
    for state, link in enumerate(automaton.link[1:], start=1):
        length = automaton.longest[state]
        run = text[automaton.first_end[state] - length : automaton.first_end[state]]
        shorter = next(n for n in range(length - 1, -1, -1) if n == 0 or ends[tuple(run[-n:])] != ends[tuple(run)])
        assert automaton.longest[link] == shorter
