"""Shared beginnings and prompts in pieces on the paths that networks are run on: the same bits, or the same within rounding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny_models import network_of, random_ids

from decodery.engine.method import Decoding
from decodery.engine.registry import method as as_method
from decodery.engine.request import Request
from decodery.engine.scheduler import Scheduler
from decodery.engine.scheduling import Scheduling
from decodery.engine.settings import Settings
from decodery.models.forward import Forward, Rows
from decodery.models.key_value_cache import KeyValueCache
from decodery.testing import LetterTokenizer, SmallLanguageModel

BEGINNING = 45
WAYS = {"shared": Scheduling(chunk=0), "pieces": Scheduling(chunk=16, share=False), "both": Scheduling(chunk=24)}


def prompts(vocabulary: int) -> list[list[int]]:
    """Two questions behind one beginning, one of them twice, and a stranger."""
    beginning = random_ids(BEGINNING, 1, vocabulary)
    rest = [random_ids(length, length, vocabulary) for length in (20, 33)]
    return [[*beginning, *rest[0]], [*beginning, *rest[1]], [*beginning, *rest[0]], random_ids(50, 7, vocabulary)]


def scores(network: Any, scheduling: Scheduling) -> list[torch.Tensor]:
    """What each of several requests sees: the last row of its prompt, then ten rows that follow."""
    lm = SmallLanguageModel(network, LetterTokenizer(network.vocabulary))
    scheduler = Scheduler(None, scheduling)
    requests = [
        Request(lm, prompt, Settings(max_new_tokens=12), place)
        for place, prompt in enumerate(prompts(network.vocabulary))
    ]
    seen: dict[int, list[torch.Tensor]] = {}

    def look(request: Request) -> Decoding:
        sequence = request.new_sequence()
        answer = yield Forward(sequence, request.prompt, logits=Rows.LAST)
        seen[request.number] = [answer.logits]
        for token in range(10):
            answer = yield Forward(sequence, [token])
            seen[request.number].append(answer.logits)
        request.finish("stop")

    from decodery.engine.autoregressive import Autoregressive

    class Looking(Autoregressive):
        def decode(self, request: Request) -> Decoding:
            return look(request)

    for request in requests:
        scheduler.submit(request, Looking())
    scheduler.run()
    assert [request.error for request in requests] == [None] * len(requests)
    return [torch.cat(seen[place]) for place in range(len(requests))]


def outputs(network: Any, spec: str, scheduling: Scheduling) -> list[list[int]]:
    lm = SmallLanguageModel(network, LetterTokenizer(network.vocabulary))
    scheduler = Scheduler(None, scheduling)
    settings = Settings(max_new_tokens=16, temperature=1.0, seed=3)
    requests = [Request(lm, prompt, settings, place, place) for place, prompt in enumerate(prompts(network.vocabulary))]
    for request in requests:
        scheduler.submit(request, as_method(spec))
    scheduler.run()
    assert [request.error for request in requests] == [None] * len(requests)
    if scheduling.share:
        # The first pass of del looks at the hidden rows of the whole prompt, so it shares equal prompts alone.
        least = len(requests[0].prompt) if spec == "del" else 2 * BEGINNING
        assert sum(request.statistics.shared_rows for request in requests) >= least
    return [request.new_tokens for request in requests]


def worst(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    return max(float((one - other).abs().max()) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize(
    ("family", "path"),
    [("llama", "eager"), ("llama", "blocks"), ("qwen2-sliding", "eager"), ("gemma3", "eager"), ("gpt2", "eager")],
)
def test_scores_are_the_same_within_rounding(family: str, path: str, way: str) -> None:
    """In float32, on transformers' modules and on the fused blocks."""
    network = network_of(family, path)
    expected = scores(network, Scheduling(chunk=0, share=False))
    assert worst(scores(network, WAYS[way]), expected) < 2e-4 * float(expected[0].std())


@pytest.mark.parametrize("spec", ["autoregressive", "cascade", "draft-model(layers=2)", "del", "swift(bypass=false)"])
def test_outputs_are_the_same_in_float32(spec: str) -> None:
    network = network_of("llama", "blocks")
    expected = outputs(network, spec, Scheduling(chunk=0, share=False))
    for scheduling in WAYS.values():
        assert outputs(network, spec, scheduling) == expected


@pytest.fixture(scope="module")
def native_network() -> Any:
    from test_native import native

    return native("llama")


@pytest.mark.parametrize("way", list(WAYS))
def test_native_scores_are_the_same_bit_for_bit(way: str, native_network: Any) -> None:
    expected = scores(native_network, Scheduling(chunk=0, share=False))
    for found, other in zip(scores(native_network, WAYS[way]), expected, strict=True):
        assert torch.equal(found, other)


@pytest.mark.parametrize("spec", ["autoregressive", "token-recycling", "draft-model(layers=2)"])
def test_native_outputs_are_the_same(spec: str, native_network: Any) -> None:
    expected = outputs(native_network, spec, Scheduling(chunk=0, share=False))
    for scheduling in WAYS.values():
        assert outputs(native_network, spec, scheduling) == expected


def test_a_cache_takes_rows_of_another() -> None:
    network = network_of("llama", "eager")
    source, sequence = network.new_sequence(), network.new_sequence()
    text = random_ids(30, 1)
    network.run([Forward(source, text)])
    network.run([Forward(sequence, text[:10])])
    sequence.take(source, 25)
    assert sequence.tokens == text[:25]
    assert sequence.positions == list(range(25))
    assert isinstance(sequence.cache, KeyValueCache)
    for layer in range(network.layers):
        for mine, theirs in zip(sequence.cache.layer(layer), source.cache.layer(layer), strict=True):
            assert torch.allclose(mine[:, :25], theirs[:, :25], atol=1e-5)
            assert torch.equal(mine[:, 10:25], theirs[:, 10:25])
    after = [network.run([Forward(one, [5])])[0].logits for one in (sequence, network.new_sequence())]
    source.truncate(25)
    assert worst([after[0]], [network.run([Forward(source, [5])])[0].logits]) < 1e-4
    assert worst([after[0]], [after[1]]) > 1e-2, "the beginning matters"


def test_what_is_written_over_is_no_beginning_any_more() -> None:
    sequence = network_of("llama", "eager").new_sequence()
    sequence.write(range(20), list(range(20)), range(20))
    for change, left in (
        (lambda: sequence.write([12], [3], [12]), 12),
        (lambda: sequence.keep([15, 16], 14), 14),
        (lambda: sequence.truncate(9), 9),
        (lambda: sequence.write(range(20, 22), [1, 2], range(20, 22)), 20),
    ):
        sequence.write(range(20), list(range(20)), range(20))
        sequence.plain = 20
        change()
        assert sequence.plain == left
