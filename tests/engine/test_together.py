"""A method that decides several texts together: beams of an explicit law, through every way in which texts are asked for."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import pytest
from beam_search import BeamSearch
from scripted_requests import Scripted, new_request, run

from decodery.engine.events import Event, Finished, Token
from decodery.engine.method import Decoding
from decodery.engine.request import Request
from decodery.errors import Refused
from decodery.language_model import LanguageModel
from decodery.models.forward import Forward
from decodery.sampling.law import LawSettings
from decodery.testing import LetterTokenizer, SmallLanguageModel, TabularScorer, toy_language_model

WIDTH = 3
PROMPT = [1, 2]


def tabular(vocabulary: int = 4, seed: int = 0, stop_ids: tuple[int, ...] = ()) -> tuple[LanguageModel, TabularScorer]:
    scorer = TabularScorer(vocabulary, seed=seed)
    return SmallLanguageModel(scorer, LetterTokenizer(vocabulary), stop_ids), scorer


def texts(replies: list[Any]) -> list[tuple[int, ...]]:
    return [tuple(reply.token_ids) for reply in replies]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("top_k", [0, 2])
def test_of_two_tokens_it_finds_the_likeliest_texts_of_all(seed: int, top_k: int) -> None:
    """With a width of the vocabulary no prefix of a text of two tokens is dropped, so the search is an enumeration."""
    lm, scorer = tabular(WIDTH, seed)
    settings = {"temperature": 0.7, "top_k": top_k}
    joint = scorer.joint(PROMPT, 2, LawSettings(**settings))  # type: ignore[arg-type]
    best = sorted(joint, key=lambda text: -joint[text])[:WIDTH]
    replies = lm.generate(PROMPT, BeamSearch(), n=WIDTH, max_new_tokens=2, **settings)
    assert texts(replies) == best
    assert [reply.weight for reply in replies] == pytest.approx([joint[text] for text in best], rel=1e-5)
    assert [reply.score for reply in replies] == pytest.approx([math.log(joint[text]) for text in best], abs=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_longer_texts_are_those_of_the_search_written_out(seed: int) -> None:
    lm, scorer = tabular(5, seed, stop_ids=(4,))
    beams: dict[tuple[int, ...], float] = {(): 1.0}
    over: dict[tuple[int, ...], float] = {}
    for _ in range(6):
        steps = {
            (*text, token): mass * float(scorer.law([*PROMPT, *text])[token])
            for text, mass in beams.items()
            for token in range(5)
        }
        kept = sorted(steps, key=lambda text: -steps[text])[: WIDTH - len(over)]
        over |= {text: steps[text] for text in kept if text[-1] == 4}
        beams = {text: steps[text] for text in kept if text[-1] != 4}
    over |= beams
    best = sorted(over, key=lambda text: -over[text])
    replies = lm.generate(PROMPT, BeamSearch(), n=WIDTH, max_new_tokens=6, temperature=1.0)
    assert texts(replies) == best
    assert [reply.weight for reply in replies] == pytest.approx([over[text] for text in best], rel=1e-4)


def test_generate_gives_a_list_in_both_cases_and_numbers_its_texts() -> None:
    lm, _ = tabular()
    settings: dict[str, Any] = {"max_new_tokens": 4, "temperature": 1.0, "seed": 2}
    beams = lm.generate([PROMPT, [0]], BeamSearch(), n=WIDTH, **settings)
    samples = lm.generate([PROMPT, [0]], "autoregressive", n=WIDTH, **settings)
    for replies in (beams, samples):
        assert [[reply.output for reply in group] for group in replies] == [[0, 1, 2]] * 2
        numbers = [{event.request for event in reply.events} for group in replies for reply in group]
        assert numbers == [{place} for place in range(6)]
        assert all(event.output == reply.output for group in replies for reply in group for event in reply.events)
        assert all(len(reply.events) == 5 for group in replies for reply in group)
    assert all(reply.weight is None and reply.score is None for group in samples for reply in group)
    assert len({id(reply.stats) for reply in beams[0]}) == 1
    assert beams[0][0].stats.new_tokens == 12
    assert lm.generate(PROMPT, BeamSearch(), **settings).token_ids is not None  # one text alone is no list


def test_it_shares_passes_with_samples_and_each_gives_what_it_gives_alone() -> None:
    lm = toy_language_model()
    prompts, methods = ["Once", "Twice", "Once"], [BeamSearch(), "autoregressive", "token-recycling"]
    settings: dict[str, Any] = {"max_new_tokens": 8, "temperature": 0.9, "n": 2}
    together = lm.generate(prompts, methods, seed=[1, 2, 3], **settings)
    for place, (prompt, method) in enumerate(zip(prompts, methods, strict=True)):
        alone = lm.generate(prompt, method, seed=place + 1, **settings)
        assert texts(alone) == texts(together[place])


def test_the_stream_tells_each_text_when_it_is_decided() -> None:
    lm = toy_language_model()
    settings: dict[str, Any] = {"n": WIDTH, "max_new_tokens": 9, "temperature": 1.0, "stop": "e", "seed": 3}
    replies = lm.generate("Once", BeamSearch(), **settings)
    stream = lm.stream("Once", BeamSearch(), **settings)
    pieces: dict[int, str] = defaultdict(str)
    events: list[Event] = list(stream)
    for event in events:
        if isinstance(event, Token | Finished):
            pieces[event.request] += event.text
    assert [pieces[place] for place in range(WIDTH)] == [reply.text for reply in replies]
    assert [reply.text for reply in stream.replies()] == [reply.text for reply in replies]
    assert [e.request for e in events if isinstance(e, Finished)] == list(range(WIDTH))


def test_a_stream_that_is_closed_early_gives_empty_texts() -> None:
    lm = toy_language_model()
    stream = lm.stream(["Once", "Once"], [BeamSearch(), "autoregressive"], n=2, temperature=1.0, ignore_eos=True)
    next(stream)
    replies = stream.replies()
    assert [reply.finish_reason for reply in replies] == ["cancelled"] * 4
    assert [bool(reply.token_ids) for reply in replies] == [False, False, True, True]


def test_settings_of_the_output_hold_for_each_text() -> None:
    lm = toy_language_model()
    settings: dict[str, Any] = {"n": WIDTH, "max_new_tokens": 12, "temperature": 1.0, "ignore_eos": True}
    plain = lm.generate("Once", BeamSearch(), **settings)
    stop = plain[0].text[4]
    stopped = lm.generate("Once", BeamSearch(), stop=stop, min_new_tokens=2, echo=True, logprobs=2, **settings)
    for reply in stopped:
        assert reply.text.startswith("Once")
        assert stop not in reply.text[4 + 2 :]
        assert len(reply.token_ids) >= 2
        assert len(reply.logprobs) == len(reply.token_ids)
        assert len(reply.prompt_logprobs) == 3
        assert reply.score == pytest.approx(sum(entry.processed for entry in reply.logprobs), abs=1e-4)
    assert "stop" in {reply.finish_reason for reply in stopped}


def test_a_failure_is_the_error_of_every_text_of_its_prompt() -> None:
    class Broken(BeamSearch):
        def decode(self, request: Request) -> Decoding:
            yield Forward(request.new_sequence(), request.prompt)
            raise KeyError("lost")

    lm, _ = tabular()
    replies = lm.generate([PROMPT, PROMPT], [Broken(), BeamSearch()], n=2, max_new_tokens=3, temperature=1.0)
    assert [[type(reply.error) for reply in group] for group in replies] == [[KeyError] * 2, [type(None)] * 2]
    with pytest.raises(KeyError, match="lost"):
        lm.generate(PROMPT, Broken(), n=2)


def test_a_method_that_returns_before_its_output_is_over_fails_by_name() -> None:
    def nothing(request: Request) -> Decoding:
        yield Forward(request.new_sequence(), request.prompt)

    class Early(BeamSearch):
        def decode(self, request: Request) -> Decoding:
            yield from nothing(request)

    class EarlyAlone(Early):
        together = False

    lm, _ = tabular()
    for method in (Early(), EarlyAlone()):
        with pytest.raises(RuntimeError, match="example-beams returned before its output was over"):
            lm.generate(PROMPT, method, n=2)


def test_a_request_that_was_not_made_for_it_fails() -> None:
    lm, _ = tabular()
    request = new_request(lm, PROMPT, n=2)
    run((request, BeamSearch()), (new_request(lm, PROMPT), "autoregressive"))
    assert isinstance(request.error, ValueError)


def test_methods_that_decide_texts_one_by_one_are_handed_one_each() -> None:
    seen: list[tuple[int, int]] = []

    def watch(request: Request) -> Decoding:
        seen.append((request.n, request.sample))
        yield Forward(request.new_sequence(), request.prompt)

    lm, _ = tabular()
    lm.generate(PROMPT, Scripted(watch), n=3)
    assert seen == [(1, 0), (1, 1), (1, 2)]


def test_inside_transformers_it_is_refused() -> None:
    import torch
    from wrapped_models import tiny_model

    import decodery

    with pytest.raises(Refused, match="decides several texts"):
        tiny_model().generate(
            torch.tensor([[1, 2]]), custom_generate=decodery.transformers_generate(BeamSearch()), max_new_tokens=2
        )
