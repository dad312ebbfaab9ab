"""The scheduler packs any mix of requests, and each one's result is as if it were alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from scripted_requests import Scripted, new_request, run
from tiny_models import network_of, random_ids

from decodery.engine.method import Decoding
from decodery.engine.registry import method as as_method
from decodery.engine.request import Request
from decodery.engine.scheduler import Scheduler
from decodery.models.forward import Attend, Forward, Layers, Rows, Scores, Slots
from decodery.models.scorer import Scorer
from decodery.testing import (
    ByteTokenizer,
    LetterTokenizer,
    ScriptedScorer,
    SmallLanguageModel,
    scripted_language_model,
    story_scorer,
    toy_language_model,
)

MIX: list[tuple[str, int, dict[str, Any]]] = [
    ("autoregressive", 5, {}),
    ("autoregressive", 17, {"temperature": 1.0, "seed": 1}),
    ("token-recycling", 9, {}),
    ("token-recycling", 33, {"temperature": 0.8, "seed": 2, "top_k": 20}),
    ("prompt-lookup", 12, {"temperature": 1.3, "seed": 3, "presence_penalty": 0.5}),
    ("suffix-automaton", 21, {"repetition_penalty": 1.2}),
    ("draft-model(layers=1)", 7, {"temperature": 1.0, "seed": 4}),
    ("draft-model(layers=1, width=3)", 14, {"temperature": 0.9, "seed": 5}),
    ("prompt-lookup", 1, {"max_new_tokens": 1}),
    ("autoregressive", 3, {"max_new_tokens": 40, "min_new_tokens": 10, "temperature": 1.0, "seed": 6}),
]


@pytest.mark.parametrize("kind", ["network", "script"])
def test_a_mix_of_methods_gives_what_each_gives_alone(kind: str) -> None:
    lm = toy_language_model() if kind == "network" else scripted_language_model(story_scorer(vocabulary=40))

    def requests() -> list[tuple[Request, str]]:
        lm.memory.clear()
        vocabulary = min(lm.network.vocabulary, 120)
        return [
            (new_request(lm, random_ids(length, length, vocabulary), place, **settings), method)
            for place, (method, length, settings) in enumerate(MIX)
        ]

    together = requests()
    run(*together)
    alone = requests()
    for pair in alone:
        lm.memory.clear()
        run(pair)
    for (one, _), (other, _) in zip(together, alone, strict=True):
        assert one.error is None
        assert one.new_tokens == other.new_tokens
        assert one.finish_reason == other.finish_reason
        assert one.text == other.text


def count_passes(scorer: Scorer) -> list[int]:
    """How many forwards each pass of a scorer had, from now on."""
    sizes: list[int] = []
    run_pass = scorer.run_pass

    def counted(forwards: Sequence[Forward]) -> list[Scores]:
        sizes.append(len(forwards))
        return run_pass(forwards)

    scorer.run_pass = counted  # type: ignore[method-assign]
    return sizes


def test_asks_of_one_kind_share_a_pass() -> None:
    scorer = story_scorer()
    passes = count_passes(scorer)
    lm = scripted_language_model(scorer)
    run(*[(new_request(lm, [place]), "autoregressive") for place in range(6)])
    assert passes == [6] * 12


def test_requests_know_their_company() -> None:
    lm = scripted_language_model(story_scorer())
    short, long = new_request(lm, [1], max_new_tokens=2), new_request(lm, [2], max_new_tokens=6)
    seen = []

    def watch(request: Request) -> Decoding:
        sequence = request.new_sequence()
        for _ in range(5):
            yield Forward(sequence, [3])
            seen.append(request.company)

    run((short, "autoregressive"), (long, Scripted(watch)))
    assert seen[0] == 2
    assert seen[-1] == 1


# What methods may yield


def test_a_tuple_of_asks_is_answered_in_order() -> None:
    network = network_of("llama", "eager")
    lm = SmallLanguageModel(network, LetterTokenizer(network.vocabulary))
    found: dict[str, Any] = {}

    def decode(request: Request) -> Decoding:
        first, second = request.new_sequence(), request.new_sequence()
        found["pair"] = yield (Forward(first, [1, 2, 3]), Forward(second, [4]))
        found["single in a tuple"] = yield (Forward(first, [5]),)
        found["single"] = yield Forward(second, [6])
        found["mixed"] = yield (
            Forward(first, [7], layers=Layers(0, 2)),
            Forward(second, torch.zeros(2, 32)),
            Forward(request.new_sequence(), [8], logits=Rows.NONE, taps=(1,)),
        )
        found["none"] = yield ()
        found["borrowed"] = yield (
            Forward(first, [9], slots=Slots.NOWHERE),
            Forward(first, [9, 10], slots=Slots.NOWHERE, attend=Attend.FULL),
        )

    request = new_request(lm, [1])
    run((request, Scripted(decode)))
    assert request.error is None
    assert request.finish_reason == "stop"  # a coroutine that returns has nothing more to say
    assert isinstance(found["single"], Scores)
    assert [scores.logits.shape[0] for scores in found["pair"]] == [3, 1]
    assert len(found["single in a tuple"]) == 1
    assert [scores.logits.shape[0] for scores in found["mixed"]] == [1, 2, 0]
    assert set(found["mixed"][2].hidden) == {1}
    assert found["none"] == ()
    again = network.new_sequence()
    expected = network.run([Forward(again, [1, 2, 3])])[0]
    assert float((found["pair"][0].logits - expected.logits).abs().max()) < 1e-4
    network.run([Forward(again, [5])])
    network.run([Forward(again, [7], layers=Layers(0, 2))])
    for answer, tokens in zip(found["borrowed"], ([9], [9, 10]), strict=True):
        alone = network.run([Forward(again, tokens, slots=Slots.NOWHERE, attend=Attend.FULL)])[0]
        assert float((answer.logits - alone.logits).abs().max()) < 1e-4


def test_asks_of_two_networks_in_one_step() -> None:
    large, small = story_scorer(name="large"), story_scorer(seed=1, name="small")
    large_passes, small_passes = count_passes(large), count_passes(small)
    lm = scripted_language_model(large, drafter=small)
    found: list[Any] = []

    def decode(request: Request) -> Decoding:
        ours, theirs = request.new_sequence(), request.new_sequence(request.host.companion("small").network)
        for token in (1, 2):
            found.append((yield (Forward(ours, [token]), Forward(theirs, [token, token]))))

    request, other = new_request(lm, [1]), new_request(lm, [5])
    run((request, Scripted(decode)), (other, "autoregressive"))
    assert request.error is None
    assert small_passes == [1, 1]
    assert large_passes == [2, 2, *[1] * 10]
    for ours, theirs in found:
        assert (ours.logits.shape[0], theirs.logits.shape[0]) == (1, 2)
        assert not torch.equal(ours.logits[0], theirs.logits[0])
    assert {name: m.rows for name, m in request.statistics.models.items()} == {"large": 2, "small": 4}
    assert set(other.statistics.models) == {"large"}


@pytest.mark.parametrize(
    "asks",
    [
        lambda s: (Forward(s, [1]), Forward(s, [2])),
        lambda s: (Forward(s, [1]), Forward(s, [2], slots=Slots.NOWHERE)),
        lambda s: (Forward(s, [1], slots=Slots.NOWHERE), Forward(s, [2], slots=[0])),
    ],
)
def test_asks_that_would_write_over_each_other_are_refused(asks: Any) -> None:
    lm = scripted_language_model(story_scorer())

    def decode(request: Request) -> Decoding:
        sequence = request.new_sequence()
        yield Forward(sequence, [3])
        yield asks(sequence)

    request = new_request(lm, [1])
    run((request, Scripted(decode)))
    assert isinstance(request.error, ValueError)
    assert "same sequence" in str(request.error)


def test_time_between_steps_is_told() -> None:
    request = new_request(scripted_language_model(story_scorer()), [1])
    scheduler = Scheduler()
    scheduler.submit(request, as_method("autoregressive"))
    time.sleep(0.05)  # before the first step nothing runs
    scheduler.step()
    assert (scheduler.away, request.away) == (0.0, 0.0)
    for _ in range(2):
        time.sleep(0.05)
        scheduler.step()
    assert 0.1 <= request.away == scheduler.away < 1.0


def test_requests_may_join_while_others_run() -> None:
    lm = scripted_language_model(story_scorer())
    early, late = new_request(lm, [1]), new_request(lm, [2])
    scheduler = Scheduler()
    scheduler.submit(early, as_method("autoregressive"))
    for _ in range(5):
        scheduler.step()
    scheduler.submit(late, as_method("prompt-lookup"))
    scheduler.run()
    alone = [new_request(lm, [1]), new_request(lm, [2])]
    run((alone[0], "autoregressive"), (alone[1], "prompt-lookup"))
    assert early.new_tokens == alone[0].new_tokens
    assert late.new_tokens == alone[1].new_tokens


def test_bytes_of_a_character_in_one_run_reach_the_text() -> None:
    """Speculation commits several bytes at once; the text is that of the whole."""
    text = "größer 🙂 größer 🙂 größer 🙂 größer"
    script = text.encode() + bytes([0])

    def follow(prefix: tuple[int, ...]) -> torch.Tensor:
        row = torch.zeros(260)
        row[script[min(len(prefix) - 1, len(script) - 1)]] = 9.0
        return row

    lm = SmallLanguageModel(ScriptedScorer(follow, 260), ByteTokenizer(), [0])
    request = new_request(lm, [32], max_new_tokens=200)
    run((request, "prompt-lookup"))
    assert request.text == text
    assert request.statistics.accepted > 5
