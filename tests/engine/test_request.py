"""A request commits what a method hands it, stops where it must, and tells what happened exactly once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from decodery.engine.events import Branched, Drafted, Event, Finished, Token
from decodery.engine.request import Request
from decodery.engine.settings import Settings
from decodery.sampling import Stage
from decodery.testing import ByteTokenizer, ScriptedScorer, SmallLanguageModel

SIZE = 260
END = 256
PROMPT = list(b"Say: ")


def make_request(prompt: Sequence[int] = PROMPT, *, stop_ids: Sequence[int] = (END,), **settings: Any) -> Request:
    scorer = ScriptedScorer(lambda prefix: torch.zeros(SIZE), SIZE)
    lm = SmallLanguageModel(scorer, ByteTokenizer(), stop_ids)
    return Request(lm, prompt, Settings.of(settings, SIZE), number=3)


def rows(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, SIZE, generator=torch.Generator().manual_seed(seed))


def commit(request: Request, tokens: Sequence[int], accepted: int = 0) -> bool:
    return request.commit(tokens, rows(len(tokens)), accepted)


def finished(request: Request) -> list[Finished]:
    return [event for event in request.events if isinstance(event, Finished)]


def texts(request: Request) -> str:
    return "".join(event.text for event in request.events if isinstance(event, Token | Finished))


# Where a run of tokens ends


def test_a_run_is_committed_as_it_is() -> None:
    request = make_request()
    assert not commit(request, list(b"abc"))
    assert not commit(request, list(b"d"))
    assert request.new_tokens == list(b"abcd")
    assert request.tokens == [*PROMPT, *b"abcd"]
    assert (request.text, texts(request)) == ("abcd", "abcd")
    assert (request.position, request.remaining) == (len(PROMPT) + 4, 124)
    assert request.finish_reason is None


def test_nothing_follows_a_stop_token() -> None:
    request = make_request()
    assert commit(request, [*b"ab", END, *b"cd"], accepted=4)
    assert request.new_tokens == [*b"ab", END]
    assert request.finish_reason == "stop"
    assert request.text == texts(request) == "ab"
    assert request.statistics.accepted == 3
    assert request.statistics.bonus == 0


def test_a_stop_token_is_not_shown_even_where_it_has_a_text() -> None:
    request = make_request(stop_token_ids=[0x62])
    assert commit(request, list(b"abc"))
    assert request.new_tokens == list(b"ab")
    assert request.text == "a"


def test_ignore_eos_leaves_the_users_own_stop_tokens() -> None:
    request = make_request(ignore_eos=True, stop_token_ids=[0x63])
    assert commit(request, [*b"ab", END, *b"cd"])
    assert request.new_tokens == [*b"ab", END, *b"c"]


def test_a_run_never_overshoots_the_length() -> None:
    request = make_request(max_new_tokens=3)
    assert not commit(request, list(b"a"))
    assert request.remaining == 2
    assert commit(request, list(b"bcdefg"), accepted=5)
    assert request.new_tokens == list(b"abc")
    assert request.finish_reason == "length"
    assert request.remaining == 0
    assert request.statistics.accepted == 2
    assert request.statistics.new_tokens == 3


def test_a_stop_token_in_the_last_place_is_a_stop() -> None:
    request = make_request(max_new_tokens=2)
    assert commit(request, [0x61, END])
    assert request.finish_reason == "stop"


def test_a_stop_string_across_tokens_cuts_text_and_run() -> None:
    request = make_request(stop="END")
    assert not commit(request, list(b"xE"))
    assert texts(request) == "x"
    assert commit(request, list(b"ND and more"))
    assert request.new_tokens == list(b"xEND")
    assert (request.text, texts(request), request.finish_reason) == ("x", "x", "stop")


def test_text_held_back_for_a_stop_string_is_released_at_the_end() -> None:
    request = make_request(stop="END", max_new_tokens=3)
    assert commit(request, list(b"aEN"))
    assert finished(request)[0].text == "EN"
    assert request.text == texts(request) == "aEN"


def test_before_the_least_length_a_stop_token_does_not_end() -> None:
    """The law makes it impossible; a method that commits it all the same goes on."""
    request = make_request(min_new_tokens=3)
    assert not commit(request, [0x61, END])
    assert request.finish_reason is None
    assert commit(request, [0x62, END])
    assert request.new_tokens == [0x61, END, 0x62, END]


def test_before_the_least_length_a_stop_string_is_text() -> None:
    request = make_request(min_new_tokens=5, stop=["b", "<|user|>", "e!"])
    assert not commit(request, [*b"ab", 257, *b"c"])
    assert request.finish_reason is None
    assert request.text == texts(request) == "abc"
    assert commit(request, list(b"bcd"))
    assert request.new_tokens == [*b"ab", 257, *b"cb"]
    assert (request.text, texts(request), request.finish_reason) == ("abc", "abc", "stop")
    # One that is begun before and complete at the border is cut whole.
    request = make_request(min_new_tokens=3, stop="bcd")
    assert commit(request, list(b"abcde"))
    assert (request.text, request.new_tokens) == ("a", list(b"abcd"))


def test_before_the_least_length_criteria_are_not_asked() -> None:
    asked: list[int] = []

    def at_once(ids: Tensor, scores: Tensor) -> bool:
        asked.append(ids.shape[1])
        return True

    request = make_request(min_new_tokens=3, stopping_criteria=[at_once])
    assert commit(request, list(b"abcd"))
    assert request.new_tokens == list(b"abc")
    assert asked == [len(PROMPT) + 3]


def test_an_end_token_before_the_least_length_shows_its_text() -> None:
    request = make_request(stop_token_ids=[0x62], min_new_tokens=3)
    assert commit(request, list(b"abcb"))
    assert (request.text, request.new_tokens) == ("abc", list(b"abcb"))


def test_an_end_token_completes_a_stop_string() -> None:
    request = make_request(stop="b<|end|>")
    assert commit(request, [*b"ab", END])
    assert (request.text, texts(request), request.finish_reason) == ("a", "a", "stop")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_before_the_least_length_stop_tokens_are_impossible(temperature: float) -> None:
    request = make_request(min_new_tokens=2, temperature=temperature, seed=0, stop_token_ids=[5])
    row = torch.zeros(SIZE)
    row[END], row[5], row[7] = 50.0, 49.0, 30.0
    assert request.draw(row) == 7
    assert request.draw(row, [9]) == 7
    assert request.draw(row, [9, 9]) == END
    request.commit([7, 7], rows(2))
    assert request.draw(row) == END


def test_stopping_criteria_see_prompt_and_output() -> None:
    seen: list[list[int]] = []

    def after_three(ids: Tensor, scores: Tensor) -> Tensor:
        assert scores.shape == (1, SIZE)
        seen.append(ids[0].tolist())
        return torch.tensor([ids.shape[1] >= len(PROMPT) + 3])

    request = make_request(stopping_criteria=[after_three, lambda ids, scores: False])
    assert commit(request, list(b"abcde"))
    assert request.new_tokens == list(b"abc")
    assert request.finish_reason == "stop"
    assert seen == [[*PROMPT, *b"abc"[:n]] for n in (1, 2, 3)]


@given(
    st.lists(st.sampled_from([*b"abE", END]), max_size=12), st.lists(st.integers(1, 4), max_size=12), st.integers(1, 9)
)
def test_however_a_run_is_cut_the_output_is_the_same(tokens: list[int], sizes: list[int], longest: int) -> None:
    """Token by token, or in runs of any length: a method that commits more at a time puts out nothing else."""
    settings: dict[str, Any] = {"max_new_tokens": longest, "stop": ["bE", "aab"]}
    single = make_request(**settings)
    for token in tokens:
        if commit(single, [token]):
            break
    runs, start = make_request(**settings), 0
    for size in [*sizes, len(tokens)]:
        if start < len(tokens) and commit(runs, tokens[start : start + size], accepted=size):
            break
        start += size
    assert runs.new_tokens == single.new_tokens
    assert runs.text == single.text
    assert runs.finish_reason == single.finish_reason
    assert texts(runs) == texts(single)


# The end


def test_it_ends_once() -> None:
    heard: list[Event] = []
    request = make_request(max_new_tokens=2)
    request._listener = heard.append
    assert commit(request, list(b"ab"))
    request.finish("cancelled")
    request.finish("error", ValueError("late"))
    assert commit(request, list(b"cd"))
    assert len(finished(request)) == 1
    assert request.new_tokens == list(b"ab")
    assert (request.finish_reason, request.error) == ("length", None)
    assert heard == request.events


def test_events_tell_request_index_and_origin() -> None:
    request = make_request(max_new_tokens=4)
    request.drafted([1, 2, 3], [-1, 0, 0])
    request.drafted([], [])
    commit(request, list(b"ab"), accepted=1)
    commit(request, list(b"cd"))
    tokens = [event for event in request.events if isinstance(event, Token)]
    assert request.events[0] == Drafted(3, (1, 2, 3), (-1, 0, 0))
    assert len(request.events) == 6
    assert [(t.request, t.index, t.token_id, t.from_draft) for t in tokens] == [
        (3, 0, 0x61, True),
        (3, 1, 0x62, False),
        (3, 2, 0x63, False),
        (3, 3, 0x64, False),
    ]
    assert isinstance(request.events[-1], Finished)
    assert request.events[-1].statistics is request.statistics
    assert (request.statistics.drafted, request.statistics.accepted, request.statistics.bonus) == (3, 1, 3)
    assert request.statistics.rounds == 2


# Log probabilities


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_log_probabilities_raw_and_processed(temperature: float) -> None:
    request = make_request(temperature=temperature, logprobs=3, presence_penalty=2.0, seed=1)
    given = rows(2, seed=5)
    tokens = [request.draw(given[0])]
    tokens.append(request.draw(given[1], tokens))
    law = make_request(temperature=temperature, presence_penalty=2.0).law
    request.commit(tokens, given)
    for place, event in enumerate(e for e in request.events if isinstance(e, Token)):
        assert event.logprobs is not None
        raw = given[place].double().log_softmax(0)
        assert event.logprobs.raw == pytest.approx(float(raw[tokens[place]]), abs=1e-5)
        processed = law.log_probabilities(given[place], tokens[:place])[tokens[place]]
        assert event.logprobs.processed == pytest.approx(float(processed), abs=1e-6)
        if temperature == 0:
            assert event.logprobs.processed == 0.0
        best = given[place].topk(3)
        assert [token for token, _ in event.logprobs.top] == best.indices.tolist()
        assert [value for _, value in event.logprobs.top] == pytest.approx(raw[best.indices].tolist(), abs=1e-5)


def test_log_probabilities_without_alternatives_and_without_any() -> None:
    request = make_request(logprobs=0)
    commit(request, list(b"a"))
    assert isinstance(request.events[0], Token)
    assert request.events[0].logprobs is not None
    assert request.events[0].logprobs.top == ()
    request = make_request()
    commit(request, list(b"a"))
    assert isinstance(request.events[0], Token)
    assert request.events[0].logprobs is None


# Draws


def test_draws_depend_on_seed_sample_and_position_alone() -> None:
    row = torch.zeros(SIZE)
    request, again = make_request(temperature=1.0, seed=4), make_request(temperature=1.0, seed=4)
    path = [request.draw(row, list(range(depth))) for depth in range(20)]
    assert len(set(path)) > 10
    commit(again, list(range(5)))
    assert [again.draw(row, list(range(depth))) for depth in range(15)] == path[5:]
    assert make_request(temperature=1.0, seed=5).draw(row) != path[0]
    chance = request.law.log_probabilities(row).exp()
    assert request.noise.choose(chance, len(PROMPT), Stage.TARGET) == path[0]


def test_greedy_draws_take_the_lowest_id_among_equals() -> None:
    row = torch.zeros(SIZE)
    row[[90, 41, 200]] = 2.0
    assert make_request().draw(row) == 41


# Memory and prompt scores


def test_memory_is_shared_within_a_session() -> None:
    first, other = make_request(), make_request(session="other")
    first.host.memory.clear()
    same = Request(first.host, PROMPT, Settings())
    apart = Request(first.host, PROMPT, Settings(session="other"))
    first.remember("counts", list).append(1)
    assert same.remember("counts", list) == [1]
    assert apart.remember("counts", list) == []
    assert same.remember("others", dict) == {}
    assert other.remember("counts", list) == []


@pytest.mark.parametrize("length", [1, 2, 130, 300])
def test_the_prompt_is_scored_in_chunks_where_somebody_asks(length: int) -> None:
    prompt = [(7 * i) % SIZE for i in range(length)]
    request = make_request(prompt, echo=True, logprobs=1)
    sequence = request.new_sequence()
    seen: list[int] = []
    asked = request.score_prompt(sequence, lambda tokens, logits: seen.extend(tokens))
    scores = None
    counted = 0
    try:
        while True:
            forward = asked.send(scores)  # type: ignore[arg-type]
            assert forward.count <= 128
            counted += forward.count
            scores = request.host.network.run([forward])[0]
    except StopIteration:
        pass
    assert counted == sequence.length == length - 1
    assert seen == prompt[:-1]
    assert len(request.prompt_logprobs) == length - 1
    for logprobs in request.prompt_logprobs:
        assert logprobs.raw == logprobs.processed == pytest.approx(-float(torch.tensor(float(SIZE)).log()))


def test_nobody_asks_for_scores_of_the_prompt() -> None:
    request = make_request(logprobs=1)
    assert list(request.score_prompt(request.new_sequence())) == []


def test_texts_that_are_considered_are_told_as_nodes_of_one_tree() -> None:
    """Each node once, whichever texts begin with it; a score where a text ends that was not told before."""
    request = make_request()
    request.considered([[5], [6]], [-1.0, -2.0])
    request.considered([[5, 7, 8], [5, 7], [6]], [-3.0, -2.5, -2.0])
    request.considered([[6], []], [-2.0, 0.0])
    request.considered([[6, 7]], [-4.0])
    assert request.events == [
        Branched(3, (5, 6), (-1, -1), (-1.0, -2.0)),
        Branched(3, (7, 8), (0, 2), (None, -3.0)),
        Branched(3, (7,), (1,), (-4.0,)),
    ]
