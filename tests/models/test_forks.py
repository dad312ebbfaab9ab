"""Forks of one sequence: the scores of sequences of their own, and what they have in common held once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import network_of, random_ids, shared_model

from decodery.models.forward import Forward, Rows, Slots, Tree
from decodery.models.key_value_cache import BLOCK, KeyValueCache, bytes_held
from decodery.models.sequence import Sequence

BOUND = 1e-4
VOCABULARY = 90
WAYS = ("native", "blocks", "eager", "windows")


def network(way: str) -> Any:
    if way == "native":
        from test_native import native

        return native("llama")
    return network_of("gemma3" if way == "windows" else "llama", "blocks" if way == "blocks" else "eager")


def cache_of(sequence: Sequence) -> KeyValueCache:
    assert isinstance(sequence.cache, KeyValueCache)
    return sequence.cache


def of_its_own(scorer: Any, tokens: list[int]) -> Sequence:
    sequence: Sequence = scorer.new_sequence()
    if tokens:
        scorer.run([Forward(sequence, tokens, logits=Rows.NONE)])
    return sequence


def check_same(scorer: Any, forks: list[Sequence], texts: list[list[int]]) -> None:
    """Each fork scores its next token, all in one pass, as a sequence of its own does that never was a fork."""
    found = scorer.run([Forward(fork, [7]) for fork in forks])
    for fork, text, scores in zip(forks, texts, found, strict=True):
        assert fork.tokens[:-1] == text
        [expected] = scorer.run([Forward(of_its_own(scorer, text), [7])])
        if scorer.path == "native":
            assert torch.equal(scores.logits, expected.logits)
        else:
            assert float((scores.logits - expected.logits).abs().max()) < BOUND
        fork.truncate(len(text))


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.data())
def test_any_operations_on_forks_equal_sequences_of_their_own(way: str, data: st.DataObject) -> None:
    scorer, seeds = network(way), iter(range(100, 10_000))
    text = random_ids(data.draw(st.sampled_from([1, 40, 63, 64, 65, 130, 200]), label="prompt"), 1, VOCABULARY)
    forks, texts = [of_its_own(scorer, text)], [text]
    for _ in range(data.draw(st.integers(2, 10), label="operations")):
        kind = data.draw(st.sampled_from(["fork", "fork", "append", "keep", "truncate", "drop", "take"]), label="kind")
        place = data.draw(st.integers(0, len(forks) - 1), label="which")
        sequence, text = forks[place], texts[place]
        if kind == "fork" and len(forks) < 6:
            forks.append(sequence.fork())
            texts.append(list(text))
        elif kind == "append":  # several in one pass
            chosen = [other for other in range(len(forks)) if other == place or data.draw(st.booleans(), label="too")]
            asks = []
            for other in chosen:
                tokens = random_ids(data.draw(st.sampled_from([1, 3, 30, 70])), next(seeds), VOCABULARY)
                asks.append(Forward(forks[other], tokens, logits=Rows.NONE))
                texts[other] = texts[other] + tokens
            scorer.run(asks)
        elif kind == "keep" and text:
            nodes = random_ids(5, next(seeds), VOCABULARY)
            length, parents = sequence.length, [-1, -1, 1, 0, 2]
            positions = [length + depth for depth in (0, 0, 1, 1, 2)]
            scorer.run([Forward(sequence, nodes, positions, Tree(parents), logits=Rows.NONE)])
            sequence.keep([length + 1, length + 2, length + 4], length)
            texts[place] = [*text, nodes[1], nodes[2], nodes[4]]
        elif kind == "truncate" and text:
            length = data.draw(st.integers(max(0, len(text) - 80), len(text)), label="length")
            sequence.truncate(length)
            texts[place] = text[:length]
        elif kind == "drop" and len(forks) > 1:
            del forks[place], texts[place], sequence
        elif kind == "take" and text:
            length = data.draw(st.integers(0, len(text)), label="length")
            other = of_its_own(scorer, text[: length // 2])
            other.take(sequence, length)
            forks[place], texts[place] = other, text[:length]
    check_same(scorer, forks, texts)
    check_same(scorer, forks[::-1], texts[::-1])


@pytest.mark.parametrize("way", WAYS)
def test_64_forks_hold_their_prompt_once(way: str) -> None:
    scorer = network(way)
    prompt = random_ids(1024, 1, VOCABULARY)
    root = of_its_own(scorer, prompt)
    alone, row = cache_of(root).bytes, scorer.cache_bytes(BLOCK) // BLOCK
    assert alone == 1024 * row
    forks = [root.fork() for _ in range(64)]
    assert bytes_held(map(cache_of, [root, *forks])) == alone, "forking copies nothing"
    del root
    for step in range(3):
        scorer.run([Forward(fork, [5 + step], logits=Rows.NONE) for fork in forks])
        assert bytes_held(map(cache_of, forks)) == alone + 64 * BLOCK * row
    # Half of them go, the others are there twice: what was common stays so.
    forks = [fork for kept in forks[::2] for fork in (kept, kept.fork())]
    assert bytes_held(map(cache_of, forks)) == alone + 32 * BLOCK * row
    scorer.run([Forward(fork, [9], logits=Rows.NONE) for fork in forks])
    assert bytes_held(map(cache_of, forks)) == alone + 64 * BLOCK * row
    del forks[1:]
    scorer.run([Forward(forks[0], [9], logits=Rows.NONE)])
    assert bytes_held([cache_of(forks[0])]) <= 2 * alone
    assert forks[0].tokens == [*prompt, 5, 6, 7, 9, 9]


def test_no_whole_block_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that two sequences share are copied within the block that one of them writes to, and nowhere else."""
    from decodery.models.key_value_cache import Span

    copied: list[int] = []
    copy_rows = Span.copy_rows

    def counted(span: Span, source: Span, start: int, stop: int) -> None:
        copied.append(stop - start)
        copy_rows(span, source, start, stop)

    monkeypatch.setattr(Span, "copy_rows", counted)
    for way in ("native", "eager"):
        scorer = network(way)
        root = of_its_own(scorer, random_ids(200, 1, VOCABULARY))
        twin = root.fork()
        scorer.run([Forward(root, [1])])
        assert not copied, "the first goes on where it is"
        scorer.run([Forward(twin, [2])])
        assert len(copied) == 1
        assert copied.pop() <= BLOCK
        third = twin.fork()
        del root, twin
        scorer.run([Forward(third, [3])])
        if way == "native":
            assert not copied, "who is left alone need not copy"
        copied.clear()


def test_what_one_writes_again_the_other_keeps() -> None:
    for way in WAYS:
        scorer = network(way)
        text = random_ids(150, 1, VOCABULARY)
        first = of_its_own(scorer, text)
        second = first.fork()
        before = [cache_of(second).both(layer)[:, :, :150].clone() for layer in range(scorer.layers)]
        rows = [10, 70, 149]
        scorer.run([Forward(first, [1, 2, 3], positions=rows, slots=rows, logits=Rows.NONE)])
        first.keep([120, 140], 20)
        for layer, kept in enumerate(before):
            assert torch.equal(cache_of(second).both(layer)[:, :, :150], kept)
            assert not torch.equal(cache_of(first).both(layer)[:, :, 10], kept[:, :, 10])
            assert torch.equal(cache_of(first).both(layer)[:, :, 21], kept[:, :, 140])


@pytest.mark.parametrize("way", WAYS)
def test_two_may_borrow_the_rows_behind_one_sequence(way: str) -> None:
    """In one pass, each as if it were alone; the sequence stays as it was."""
    scorer = network(way)
    sequence = of_its_own(scorer, random_ids(100, 1, VOCABULARY))
    alone = [scorer.run([Forward(sequence, tokens, slots=Slots.NOWHERE)])[0].logits for tokens in ([5, 6], [9], [3, 1])]
    beside = scorer.run([Forward(sequence, tokens, slots=Slots.NOWHERE) for tokens in ([5, 6], [9], [3, 1])])
    for scores, expected in zip(beside, alone, strict=True):
        assert float((scores.logits - expected).abs().max()) < (BOUND if way != "native" else 1e-9)
    assert sequence.length == 100
    check_same(scorer, [sequence], [list(sequence.tokens)])


def test_transformers_own_caches_are_forked_without_a_copy() -> None:
    from decodery.models.cache_states import TextCache
    from decodery.models.own_cache import OwnCacheNetwork

    scorer = OwnCacheNetwork(shared_model("llama"), "own")
    root = of_its_own(scorer, random_ids(80, 1, VOCABULARY))
    forks = [root.fork() for _ in range(3)]
    for fork in forks:
        assert isinstance(fork.cache, TextCache)
        assert isinstance(root.cache, TextCache)
        assert fork.cache._trunk is root.cache._trunk
    found = scorer.run([Forward(fork, [token]) for token, fork in enumerate(forks)])
    for token, scores in enumerate(found):
        [expected] = scorer.run([Forward(of_its_own(scorer, root.tokens), [token])])
        assert float((scores.logits - expected.logits).abs().max()) < BOUND
