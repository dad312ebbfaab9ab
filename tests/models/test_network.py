"""A network says what transformers says: whole prompts, chunks, single tokens, trees, masks, packs.

Measured: the largest absolute difference of logits (standard deviation about 1.4) in float32, against the same model
under transformers' own attention. It is below 3e-5 in all of them; the bound leaves room for other processors.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tiny_models import (
    FAMILIES,
    LOOKALIKES,
    VOCABULARY,
    make_model,
    masked_reference,
    network_of,
    random_ids,
    reference_logits,
    shared_model,
    worst,
)

from decodery.models.forward import Attend, Forward, Rows, Slots, tree_mask
from decodery.models.network import TransformersNetwork
from decodery.models.scorer import Scorer

BOUND = 1e-4
PATHS = ("eager", "blocks")
both_paths = pytest.mark.parametrize("path", PATHS)
all_families = pytest.mark.parametrize("family", FAMILIES)


def test_which_families_have_blocks_of_ours() -> None:
    """Where our blocks disagree with transformers they are given up, quietly; and so the tests of them would be."""
    fast = {family for family in FAMILIES if network_of(family, "either").path != "eager"}
    assert fast >= {"llama", "qwen2", "qwen2-sliding", "qwen3", "mistral"}


@pytest.mark.parametrize("family", LOOKALIKES)
@pytest.mark.parametrize("path", ["eager", "either"])
def test_families_that_only_look_usual(family: str, path: str) -> None:
    """Their modules have the usual names; what is done with them is not usual, and is left to transformers."""
    network, ids = network_of(family, path), random_ids(20, seed=51)
    assert network.path == "eager"
    sequence = network.new_sequence()
    found = [network.run([Forward(sequence, part)])[0].logits for part in (ids[:8], ids[8:])]
    assert worst(torch.cat(found), reference_logits(shared_model(family), ids)) < BOUND


@all_families
@both_paths
def test_whole_prompt(family: str, path: str) -> None:
    network, ids = network_of(family, path), random_ids(40)
    scores = network.run([Forward(network.new_sequence(), ids)])[0]
    assert scores.logits.dtype is torch.float32
    assert worst(scores.logits, reference_logits(shared_model(family), ids)) < BOUND


@all_families
@both_paths
def test_chunks(family: str, path: str) -> None:
    network, ids = network_of(family, path), random_ids(40, seed=1)
    sequence = network.new_sequence()
    parts, start = [], 0
    for size in (3, 1, 17, 2, 9, 8):
        parts.append(network.run([Forward(sequence, ids[start : start + size])])[0].logits)
        start += size
    assert sequence.tokens == ids
    assert sequence.positions == list(range(40))
    assert worst(torch.cat(parts), reference_logits(shared_model(family), ids)) < BOUND


@all_families
@both_paths
def test_one_token_at_a_time(family: str, path: str) -> None:
    network, ids = network_of(family, path), random_ids(24, seed=2)
    sequence = network.new_sequence()
    rows = [network.run([Forward(sequence, [token])])[0].logits for token in ids]
    assert worst(torch.cat(rows), reference_logits(shared_model(family), ids)) < BOUND


@pytest.mark.parametrize("family", ["gemma3", "gemma2", "mistral", "qwen2-sliding"])
def test_the_sliding_window_matters_in_these_models(family: str) -> None:
    """Guards the tests above: a network that ignored the window would be far off."""
    ids = random_ids(40)
    wide = make_model(family, sliding_window=100)
    assert float((reference_logits(wide, ids) - reference_logits(shared_model(family), ids)).abs().max()) > 0.1


def _random_parents(nodes: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return [int(torch.randint(-1, node, (), generator=generator)) if node else -1 for node in range(nodes)]


def _ask_tree(network: Scorer, prompt: list[int], pending: int, nodes: list[int], parents: list[int]) -> torch.Tensor:
    """Logits of the last pending row and of each node, the prompt but for its last `pending` tokens cached before."""
    sequence = network.new_sequence()
    network.run([Forward(sequence, prompt[:-pending], logits=Rows.NONE)])
    depths = []
    for parent in parents:
        depths.append(1 if parent < 0 else depths[parent] + 1)
    start = sequence.length
    last = pending - 1
    positions = [*range(start, start + pending), *(start + last + depth for depth in depths)]
    mask = tree_mask(start, pending, parents)
    wanted = range(last, pending + len(nodes))
    forward = Forward(sequence, [*prompt[-pending:], *nodes], positions, mask, logits=wanted)
    return network.run([forward])[0].logits


@all_families
@both_paths
@pytest.mark.parametrize("pending", [1, 3])
def test_trees_against_each_path_alone(family: str, path: str, pending: int) -> None:
    network, model = network_of(family, path), shared_model(family)
    prompt, nodes, parents = random_ids(18, seed=3), random_ids(12, seed=4), _random_parents(12, seed=5 + pending)
    found = _ask_tree(network, prompt, pending, nodes, parents)
    assert worst(found[0], reference_logits(model, prompt)[-1]) < BOUND
    for node in range(len(nodes)):
        walk, place = [], node
        while place >= 0:
            walk.append(nodes[place])
            place = parents[place]
        alone = reference_logits(model, prompt + walk[::-1])[-1]
        assert worst(found[node + 1], alone) < BOUND


@given(st.data())
@hypothesis_settings(max_examples=25)
def test_any_tree_on_any_cache(data: st.DataObject) -> None:
    network, model = network_of("gemma3", "eager"), shared_model("gemma3")
    prompt = random_ids(data.draw(st.integers(2, 30), label="prompt"), seed=6)
    pending = data.draw(st.integers(1, len(prompt) - 1), label="pending")
    count = data.draw(st.integers(1, 10), label="nodes")
    parents = [data.draw(st.integers(-1, node - 1), label="parent") for node in range(count)]
    nodes = random_ids(count, seed=7)
    found = _ask_tree(network, prompt, pending, nodes, parents)
    node = data.draw(st.integers(0, count - 1), label="checked node")
    walk, place = [], node
    while place >= 0:
        walk.append(nodes[place])
        place = parents[place]
    assert worst(found[node + 1], reference_logits(model, prompt + walk[::-1])[-1]) < BOUND


@all_families
@both_paths
def test_full_attention(family: str, path: str) -> None:
    network, ids = network_of(family, path), random_ids(20, seed=8)
    sequence = network.new_sequence()
    network.run([Forward(sequence, ids[:5], logits=Rows.NONE)])
    found = network.run([Forward(sequence, ids[5:], attend=Attend.FULL)])[0].logits
    visible = torch.ones(20, 20, dtype=torch.bool).tril()
    visible[5:] = True
    assert worst(found, masked_reference(shared_model(family), ids, visible)[5:]) < BOUND
    causal = reference_logits(shared_model(family), ids)[5:]
    assert float((found - causal).abs().max()) > 0.1


@all_families
@both_paths
def test_random_masks(family: str, path: str) -> None:
    """Any mask, not only trees: each row sees itself and a random half of the others, cached or new, before or after."""
    network, ids = network_of(family, path), random_ids(20, seed=9)
    generator = torch.Generator().manual_seed(10)
    visible = (torch.rand(20, 20, generator=generator) < 0.5) | torch.eye(20, dtype=torch.bool)
    visible[:6] &= torch.ones(20, 20, dtype=torch.bool).tril()[:6]
    sequence = network.new_sequence()
    network.run([Forward(sequence, ids[:6], attend=visible[:6, :6], logits=Rows.NONE)])
    found = network.run([Forward(sequence, ids[6:], attend=visible[6:])])[0].logits
    assert worst(found, masked_reference(shared_model(family), ids, visible)[6:]) < BOUND


@all_families
@both_paths
@pytest.mark.parametrize("positions", [[0, 1, 2, 3, 20, 21, 22, 23], [5, 9, 3, 30, 31, 40, 7, 6]], ids=str)
def test_explicit_positions(family: str, path: str, positions: list[int]) -> None:
    network, ids = network_of(family, path), random_ids(8, seed=11)
    causal = torch.ones(8, 8, dtype=torch.bool).tril()
    expected = masked_reference(shared_model(family), ids, causal, positions)
    together = network.new_sequence()
    assert worst(network.run([Forward(together, ids, positions)])[0].logits, expected) < BOUND
    assert together.positions == positions
    apart = network.new_sequence()
    network.run([Forward(apart, ids[:5], positions[:5], logits=Rows.NONE)])
    assert worst(network.run([Forward(apart, ids[5:], positions[5:])])[0].logits, expected[5:]) < BOUND


@all_families
@both_paths
def test_embeddings_equal_ids(family: str, path: str) -> None:
    network, model, ids = network_of(family, path), shared_model(family), random_ids(12, seed=12)
    expected = reference_logits(model, ids)
    with torch.no_grad():
        rows = model.get_input_embeddings()(torch.tensor(ids))
    sequence = network.new_sequence()
    assert worst(network.run([Forward(sequence, rows)])[0].logits, expected) < BOUND
    assert sequence.tokens == [-1] * 12
    assert (
        worst(network.run([Forward(network.new_sequence(), network.embed(torch.tensor(ids)))])[0].logits, expected)
        < BOUND
    )


@both_paths
def test_logits_of_chosen_rows_only(path: str) -> None:
    network, ids = network_of("llama", path), random_ids(10, seed=13)
    expected = reference_logits(shared_model("llama"), ids)

    def ask(logits: Rows | list[int]) -> torch.Tensor:
        return network.run([Forward(network.new_sequence(), ids, logits=logits)])[0].logits

    assert worst(ask([7, 0, 3, 3]), expected[[7, 0, 3, 3]]) < BOUND
    assert worst(ask(Rows.LAST), expected[-1:]) < BOUND
    assert worst(ask(Rows.ALL), expected) < BOUND
    assert ask(Rows.NONE).shape == (0, VOCABULARY)
    # In a pack each gets its own, also beside one that wants none.
    choices: list[Rows | list[int]] = [Rows.NONE, [2], Rows.LAST, [9, 1], Rows.NONE, Rows.ALL]
    wanted = [[], [2], [9], [9, 1], [], list(range(10))]
    answers = network.run([Forward(network.new_sequence(), ids, logits=choice) for choice in choices])
    for rows, answer in zip(wanted, answers, strict=True):
        assert answer.logits.shape == (len(rows), VOCABULARY)
        if rows:
            assert worst(answer.logits, expected[rows]) < BOUND


@all_families
@both_paths
def test_a_pack_of_everything_against_each_alone(family: str, path: str) -> None:
    """Prefills, single tokens, trees, canvases and rows that are forgotten, at different cache lengths, in one run."""
    network, model = network_of(family, path), shared_model(family)
    prompts = [random_ids(length, seed=20 + length) for length in (3, 9, 17, 5, 12, 130)]

    def asks() -> list[Forward]:
        sequences = [network.new_sequence() for _ in prompts]
        network.run([Forward(s, ids, logits=Rows.NONE) for s, ids in zip(sequences, prompts, strict=True)])
        start = sequences[2].length
        return [
            Forward(network.new_sequence(), random_ids(21, seed=30)),
            Forward(sequences[0], [5]),
            Forward(sequences[1], [7, 8, 9], attend=Attend.FULL),
            Forward(
                sequences[2], [1, 2, 3, 4], [start, start + 1, start + 1, start + 2], tree_mask(start, 1, [-1, -1, 0])
            ),
            Forward(sequences[3], [3, 4], slots=Slots.NOWHERE),
            Forward(sequences[4], [11, 12], slots=[4, 5], attend=Attend.FULL),
            Forward(sequences[5], [6], logits=Rows.LAST),
            Forward(network.new_sequence(), torch.tensor([2]), attend=Attend.FULL),
        ]

    packed = network.run(asks())
    alone = [network.run([ask])[0] for ask in asks()]
    for one, other in zip(packed, alone, strict=True):
        assert worst(one.logits, other.logits) < BOUND
    assert worst(packed[1].logits[-1], reference_logits(model, [*prompts[0], 5])[-1]) < BOUND
    assert worst(packed[6].logits[-1], reference_logits(model, [*prompts[5], 6])[-1]) < BOUND


@both_paths
def test_after_a_pack_every_sequence_goes_on_as_if_alone(path: str) -> None:
    network, model = network_of("gemma3", path), shared_model("gemma3")
    prompts = [random_ids(length, seed=40 + length) for length in (2, 11, 30)]
    sequences = [network.new_sequence() for _ in prompts]
    network.run([Forward(s, ids) for s, ids in zip(sequences, prompts, strict=True)])
    for token in (4, 60, 31):
        answers = network.run([Forward(s, [token]) for s in sequences])
        for ids, answer in zip(prompts, answers, strict=True):
            ids.append(token)
            assert worst(answer.logits[-1], reference_logits(model, ids)[-1]) < BOUND
    assert [s.tokens for s in sequences] == prompts


@both_paths
def test_answers_keep_the_order_of_mixed_passes(path: str) -> None:
    """Embeddings, layer subsets and ids need passes of their own; the answers come in the order asked."""
    from decodery.models.forward import Layers

    network = network_of("llama", path)
    ids = random_ids(6, seed=50)
    rows = network.embed(torch.tensor(ids))
    asks = [
        Forward(network.new_sequence(), ids),
        Forward(network.new_sequence(), ids, layers=Layers(0, 2)),
        Forward(network.new_sequence(), rows),
        Forward(network.new_sequence(), ids, layers=Layers(0, 2)),
        Forward(network.new_sequence(), ids[::-1]),
    ]
    answers = network.run(asks)
    assert worst(answers[0].logits, answers[2].logits) < BOUND
    assert worst(answers[1].logits, answers[3].logits) < BOUND
    for one, other in itertools.combinations((0, 1, 4), 2):
        assert float((answers[one].logits - answers[other].logits).abs().max()) > 0.1


def test_a_model_without_a_layer_list_is_refused() -> None:
    from decodery.errors import ModelNotReadable

    model = make_model("llama")
    model.config.num_hidden_layers = 7
    with pytest.raises(ModelNotReadable, match="no list of 7 decoder layers"):
        TransformersNetwork(model, "odd")
