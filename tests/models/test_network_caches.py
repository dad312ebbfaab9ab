"""What a network scores after its caches were cut, forked, rearranged, rewritten or borrowed: as from a fresh cache."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tiny_models import masked_reference, network_of, random_ids, reference_logits, shared_model, worst

from decodery.models.forward import Attend, Forward, Rows, Slots, tree_mask
from decodery.models.key_value_cache import KeyValueCache
from decodery.models.scorer import Scorer
from decodery.models.sequence import Sequence

BOUND = 1e-4
both_paths = pytest.mark.parametrize("path", ["eager", "blocks"])
families = pytest.mark.parametrize("family", ["llama", "gemma3", "mistral", "gpt2"])


def filled(network: Scorer, ids: list[int]) -> Sequence:
    sequence = network.new_sequence()
    network.run([Forward(sequence, ids, logits=Rows.NONE)])
    return sequence


def next_row(network: Scorer, sequence: Sequence, token: int = 17) -> torch.Tensor:
    """Logits after one more token; the cache is left as it was."""
    return network.run([Forward(sequence, [token], slots=Slots.NOWHERE)])[0].logits[0]


def check_next(network: Scorer, family: str, sequence: Sequence, ids: list[int]) -> None:
    assert sequence.tokens == ids
    assert sequence.positions == list(range(len(ids)))
    assert worst(next_row(network, sequence), reference_logits(shared_model(family), [*ids, 17])[-1]) < BOUND


@families
@both_paths
def test_keeping_a_path_of_a_tree(family: str, path: str) -> None:
    network, prompt = network_of(family, path), random_ids(15, seed=1)
    sequence = filled(network, prompt)
    parents, nodes = [-1, -1, 0, 1, 1, 4], [21, 22, 23, 24, 25, 26]
    positions = [15, 16, 16, 17, 17, 17, 18]
    network.run([Forward(sequence, [20, *nodes], positions, tree_mask(15, 1, parents), logits=Rows.NONE)])
    sequence.keep([16 + 1, 16 + 4, 16 + 5], 16)
    check_next(network, family, sequence, [*prompt, 20, 22, 25, 26])
    # A path whose first node lies where it belongs and whose others do not.
    network.run([Forward(sequence, [27, 28, 29], [19, 20, 20], tree_mask(19, 0, [-1, 0, 0]), logits=Rows.NONE)])
    sequence.keep([19, 21], 19)
    check_next(network, family, sequence, [*prompt, 20, 22, 25, 26, 27, 29])
    sequence.truncate(19)
    # And once more on what is left, so that a move within the moved rows is seen too.
    network.run([Forward(sequence, [30, 31, 32], [19, 19, 19], tree_mask(19, 0, [-1, -1, -1]), logits=Rows.NONE)])
    sequence.keep([21], 19)
    check_next(network, family, sequence, [*prompt, 20, 22, 25, 26, 32])


@families
@both_paths
def test_cutting(family: str, path: str) -> None:
    network, ids = network_of(family, path), random_ids(30, seed=2)
    sequence = filled(network, ids)
    for length in (25, 14, 3):
        sequence.truncate(length)
        check_next(network, family, sequence, ids[:length])
    network.run([Forward(sequence, [40, 41])])
    check_next(network, family, sequence, [*ids[:3], 40, 41])
    sequence.truncate(0)
    network.run([Forward(sequence, [9])])
    check_next(network, family, sequence, [9])


@families
@both_paths
def test_forks_diverge(family: str, path: str) -> None:
    network, ids = network_of(family, path), random_ids(18, seed=3)
    first = filled(network, ids)
    second = first.fork()
    third = first.fork()
    third.truncate(4)
    network.run([Forward(first, [50]), Forward(second, [51, 52]), Forward(third, [53])])
    check_next(network, family, first, [*ids, 50])
    check_next(network, family, second, [*ids, 51, 52])
    check_next(network, family, third, [*ids[:4], 53])
    assert network.new_sequence().fork().length == 0


@families
@both_paths
@pytest.mark.parametrize("first", [1, 127, 128])
def test_growth_beyond_the_first_capacity(family: str, path: str, first: int) -> None:
    network, ids = network_of(family, path), random_ids(270, seed=4)
    sequence = filled(network, ids[:first])
    expected = reference_logits(shared_model(family), ids)
    found = network.run([Forward(sequence, ids[first:260])])[0].logits
    assert worst(found, expected[first:260]) < BOUND
    found = network.run([Forward(sequence, ids[260:])])[0].logits
    assert worst(found, expected[260:]) < BOUND
    assert isinstance(sequence.cache, KeyValueCache)
    assert sequence.cache.bytes > 0


@families
@both_paths
@pytest.mark.parametrize("attend", [Attend.CAUSAL, Attend.FULL])
def test_nowhere_leaves_everything_as_it_was(family: str, path: str, attend: Attend) -> None:
    network, ids = network_of(family, path), random_ids(20, seed=5)
    sequence = filled(network, ids)
    before = next_row(network, sequence)
    for count in (1, 5, 120):  # the last one makes the cache grow
        found = network.run([Forward(sequence, ids[:1] * count, attend=attend, slots=Slots.NOWHERE)])[0].logits
        appended = filled(network, ids)
        assert worst(found, network.run([Forward(appended, ids[:1] * count, attend=attend)])[0].logits) < BOUND
        assert sequence.tokens == ids
        assert worst(next_row(network, sequence), before) == 0.0
    check_next(network, family, sequence, ids)


@families
@both_paths
def test_a_canvas_rewritten_in_place_equals_a_fresh_one(family: str, path: str) -> None:
    network, model, prompt = network_of(family, path), shared_model(family), random_ids(6, seed=6)
    canvas = random_ids(14, seed=7)
    slots = list(range(6, 20))
    sequence = filled(network, prompt)
    network.run([Forward(sequence, canvas, attend=Attend.FULL)])
    visible = torch.ones(20, 20, dtype=torch.bool)
    visible[:6] = torch.ones(6, 20, dtype=torch.bool).tril()
    for step in range(3):
        canvas[4 * step : 4 * step + 4] = random_ids(4, seed=8 + step)
        found = network.run([Forward(sequence, canvas, attend=Attend.FULL, slots=slots)])[0].logits
        assert worst(found, masked_reference(model, [*prompt, *canvas], visible)[6:]) < BOUND
        assert sequence.tokens == [*prompt, *canvas]
        assert sequence.positions == list(range(20))


@families
@both_paths
def test_rewriting_one_row_leaves_the_others(family: str, path: str) -> None:
    """In the first layer the others' rows do not depend on it; deeper ones are stale, as a delayed cache means them to be."""
    network, ids = network_of(family, path), random_ids(12, seed=9)
    sequence = filled(network, ids)
    found = network.run([Forward(sequence, [60], slots=[11])])[0].logits[0]
    assert worst(found, reference_logits(shared_model(family), [*ids[:11], 60])[-1]) < BOUND
    check_next(network, family, sequence, [*ids[:11], 60])


@both_paths
@pytest.mark.parametrize("slots", [[10, 9], [9, 10], [11, 4, 10], [3, 11, 10, 12]], ids=str)
def test_slots_in_any_order_rewrite_and_append(path: str, slots: list[int]) -> None:
    network, ids = network_of("llama", path), random_ids(10, seed=10)
    new = random_ids(len(slots), seed=11)
    sequence = filled(network, ids)
    network.run([Forward(sequence, new, slots=slots)])
    tokens = [*ids, *[-1] * (max(slots) - 9)]
    for slot, token in zip(slots, new, strict=True):
        tokens[slot] = token
    assert sequence.tokens == tokens
    assert sequence.positions == list(range(len(tokens)))


@given(st.data())
@hypothesis_settings(max_examples=30)
def test_any_run_of_cache_operations(data: st.DataObject) -> None:
    """Appends, trees with a kept path, cuts and forks in any order: the cache stands for its tokens."""
    network = network_of("gemma3", data.draw(st.sampled_from(["eager"]), label="path"))
    ids = random_ids(5, seed=12)
    sequence = filled(network, ids)
    for step in range(data.draw(st.integers(1, 6), label="steps")):
        kind = data.draw(st.sampled_from(["append", "tree", "cut", "fork", "borrow"]), label="operation")
        tokens = random_ids(data.draw(st.integers(1, 7), label="rows"), seed=100 + step)
        length = sequence.length
        if kind == "append":
            network.run([Forward(sequence, tokens)])
            ids += tokens
        elif kind == "borrow":
            network.run([Forward(sequence, tokens, slots=Slots.NOWHERE)])
        elif kind == "cut":
            kept = data.draw(st.integers(1, length), label="length")
            sequence.truncate(kept)
            del ids[kept:]
        elif kind == "fork":
            other = sequence
            sequence = sequence.fork()
            network.run([Forward(other, tokens)])
        else:
            parents = [data.draw(st.integers(-1, node - 1), label="parent") for node in range(len(tokens))]
            depths: list[int] = []
            for parent in parents:
                depths.append(0 if parent < 0 else depths[parent] + 1)
            positions = [length + depth for depth in depths]
            network.run([Forward(sequence, tokens, positions, tree_mask(length, 0, parents))])
            walk, node = [], data.draw(st.integers(-1, len(tokens) - 1), label="leaf")
            while node >= 0:
                walk.append(node)
                node = parents[node]
            sequence.keep([length + node for node in walk[::-1]], length)
            ids += [tokens[node] for node in walk[::-1]]
    check_next(network, "gemma3", sequence, ids)
