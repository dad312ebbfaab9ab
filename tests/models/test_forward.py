"""What a forward means by its defaults, and which ones are refused before they are packed with others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from decodery.models.forward import ALL_LAYERS, Attend, Forward, Layers, Rows, Slots, Tree, tree_mask
from decodery.models.sequence import NothingKept, Sequence

VOCABULARY, LAYERS, HIDDEN = 10, 4, 6


def sequence_of(tokens: list[int], positions: list[int] | None = None) -> Sequence:
    sequence = Sequence(None, NothingKept())  # type: ignore[arg-type]
    sequence.write(range(len(tokens)), tokens, range(len(tokens)) if positions is None else positions)
    return sequence


def check(forward: Forward, hidden: int | None = HIDDEN) -> None:
    forward.check(VOCABULARY, LAYERS, hidden)


# Layers


def test_layers_in_range_without_the_skipped() -> None:
    assert ALL_LAYERS.indices(4) == (0, 1, 2, 3)
    assert Layers(1, 3).indices(4) == (1, 2)
    assert Layers(2).indices(4) == (2, 3)
    assert Layers(skip=frozenset({0, 2})).indices(4) == (1, 3)


@pytest.mark.parametrize(
    "layers",
    [
        Layers(0, 5),
        Layers(4),
        Layers(-1),
        Layers(2, 2),
        Layers(3, 2),
        Layers(0, 0),
        Layers(skip=frozenset({4})),
        Layers(skip=frozenset({-1})),
        Layers(skip=frozenset(range(4))),
        Layers(1, 3, frozenset({1, 2})),
    ],
    ids=str,
)
def test_layers_that_are_not_there(layers: Layers) -> None:
    with pytest.raises(ValueError, match="layer"):
        layers.indices(4)
    start_rows = torch.zeros(1, HIDDEN)
    with pytest.raises(ValueError, match="layer"):
        check(Forward(sequence_of([1]), start_rows, layers=layers))


# Defaults


def test_rows_positions_and_slots_follow_the_cache() -> None:
    sequence = sequence_of([1, 2, 3])
    forward = Forward(sequence, [4, 5])
    assert forward.count == 2
    assert list(forward.row_positions()) == [3, 4]
    assert list(forward.written_slots()) == [3, 4]
    assert forward.columns() == 5
    borrowed = Forward(sequence, [4, 5], slots=Slots.NOWHERE)
    assert list(borrowed.row_positions()) == [3, 4]
    assert list(borrowed.written_slots()) == [3, 4]
    assert borrowed.columns() == 5


def test_positions_go_on_from_the_last_row_where_positions_have_gaps() -> None:
    sequence = sequence_of([1, 2, 3], positions=[0, 4, 9])
    assert list(Forward(sequence, [4, 5]).row_positions()) == [10, 11]
    assert list(Forward(sequence, [4, 5]).written_slots()) == [3, 4]


def test_rewritten_rows_have_the_positions_of_their_slots() -> None:
    forward = Forward(sequence_of([1, 2, 3]), [4, 5, 6], slots=[1, 4, 3])
    assert list(forward.row_positions()) == [1, 4, 3]
    assert forward.columns() == 5
    assert Forward(sequence_of([1, 2, 3]), [4], slots=[0]).columns() == 3
    assert list(Forward(sequence_of([1, 2, 3]), [4], [7], slots=[0]).row_positions()) == [7]


def test_rows_whose_logits_are_wanted() -> None:
    sequence = sequence_of([])
    assert list(Forward(sequence, [4, 5, 6]).logit_rows()) == [0, 1, 2]
    assert list(Forward(sequence, [4, 5, 6], logits=Rows.LAST).logit_rows()) == [2]
    assert list(Forward(sequence, [4, 5, 6], logits=Rows.NONE).logit_rows()) == []
    assert list(Forward(sequence, [4, 5, 6], logits=[2, 0, 2]).logit_rows()) == [2, 0, 2]


def test_what_rows_see() -> None:
    sequence = sequence_of([1, 2])
    causal = Forward(sequence, [3, 4]).visible()
    assert causal.tolist() == [[True, True, True, False], [True, True, True, True]]
    assert Forward(sequence, [3, 4], attend=Attend.FULL).visible().tolist() == [[True] * 4] * 2
    rewritten = Forward(sequence, [3, 4], slots=[2, 0]).visible()
    assert rewritten.tolist() == [[True, True, True], [True, False, False]]
    mask = torch.tensor([[True, False, True]])
    assert Forward(sequence, [3], attend=mask).visible() is mask


# Trees


@given(st.data())
def test_a_tree_mask_shows_cache_pending_rows_ancestors_and_self(data: st.DataObject) -> None:
    cached = data.draw(st.integers(0, 5), label="cached")
    pending = data.draw(st.integers(0, 4), label="pending")
    count = data.draw(st.integers(0, 8), label="nodes")
    parents = [data.draw(st.integers(-1, node - 1), label="parent") for node in range(count)]
    mask = tree_mask(cached, pending, parents)
    assert mask.shape == (pending + count, cached + pending + count)
    assert mask.dtype is torch.bool
    for row in range(pending):
        assert mask[row].nonzero().flatten().tolist() == list(range(cached + row + 1))
    for node in range(count):
        seen, place = set(range(cached + pending)), node
        while place >= 0:
            seen.add(cached + pending + place)
            place = parents[place]
        assert set(mask[pending + node].nonzero().flatten().tolist()) == seen
    if pending + count:
        forward = Forward(sequence_of([1] * cached), [2] * (pending + count), attend=Tree(parents))
        check(forward)
        assert torch.equal(forward.visible(), mask)


@pytest.mark.parametrize(
    ("tokens", "parents", "slots", "message"),
    [
        ([3, 4], [-1, 1], Slots.APPEND, "node 1 has parent 1"),
        ([3, 4], [-2], Slots.APPEND, "node 0 has parent -2"),
        ([3], [-1, 0], Slots.APPEND, "a tree of 2 nodes needs as many rows, not 1"),
        ([3, 4], [-1], [2, 3], "with slots of its own it needs a mask"),
    ],
)
def test_trees_that_do_not_hang_together_are_refused(
    tokens: list[int], parents: list[int], slots: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check(Forward(sequence_of([1, 2]), tokens, attend=Tree(parents), slots=slots))


# Refusals


def test_well_formed_forwards_pass() -> None:
    sequence = sequence_of([1, 2, 3])
    mask = torch.ones(2, 5, dtype=torch.bool)
    for forward in (
        Forward(sequence, [0, VOCABULARY - 1]),
        Forward(sequence, torch.tensor([4, 5])),
        Forward(sequence, torch.zeros(2, HIDDEN)),
        Forward(sequence, torch.zeros(2, HIDDEN), layers=Layers(2)),
        Forward(sequence, [4, 5], [7, 7], mask),
        Forward(sequence, [4, 5], slots=Slots.NOWHERE, attend=mask),
        Forward(sequence, [4, 5], slots=[4, 3]),
        Forward(sequence, [4, 5], slots=[4, 7], attend=torch.ones(2, 8, dtype=torch.bool)),
        Forward(sequence, [4, 5], slots=[0, 2], attend=mask[:, :3]),
        Forward(sequence, [4, 5], taps=(-1, 0, 3), logits=[1, 1, 0]),
        Forward(sequence, [4, 5], layers=Layers(0, 2), taps=(-1, 1)),
    ):
        check(forward)
    check(Forward(sequence, torch.zeros(2, 11)), hidden=None)


ONE, TWO = [4], [4, 5]
MALFORMED: dict[str, tuple[dict[str, Any], str]] = {
    "no rows": ({"tokens": []}, "at least one row"),
    "no rows in a tensor": ({"tokens": torch.empty(0, dtype=torch.long)}, "at least one row"),
    "negative id": ({"tokens": [3, -1]}, "0..9"),
    "id beyond the vocabulary": ({"tokens": [10]}, "0..9"),
    "id beyond the vocabulary in a tensor": ({"tokens": torch.tensor([3, 10])}, "0..9"),
    "ids in two dimensions": ({"tokens": torch.zeros(1, 3, dtype=torch.long)}, "shape"),
    "embeddings of another width": ({"tokens": torch.zeros(2, 7)}, "embeddings"),
    "embeddings in one dimension": ({"tokens": torch.zeros(6)}, "embeddings"),
    "ids into a later layer": ({"tokens": ONE, "layers": Layers(1)}, "hidden rows"),
    "ids in a tensor into a later layer": ({"tokens": torch.tensor(ONE), "layers": Layers(1)}, "hidden rows"),
    "too few positions": ({"tokens": TWO, "positions": [3]}, "positions"),
    "too many positions": ({"tokens": ONE, "positions": [3, 4]}, "positions"),
    "negative position": ({"tokens": ONE, "positions": [-1]}, "positions"),
    "too few slots": ({"tokens": TWO, "slots": [3]}, "slots"),
    "gap in the slots": ({"tokens": ONE, "slots": [4]}, "gap"),
    "gap between new slots": ({"tokens": TWO, "slots": [3, 5]}, "gap"),
    "equal new slots": ({"tokens": TWO, "slots": [3, 3]}, "differ"),
    "equal old slots": ({"tokens": TWO, "slots": [1, 1]}, "differ"),
    "negative slot": ({"tokens": ONE, "slots": [-1]}, "negative"),
    "mask too narrow": ({"tokens": ONE, "attend": torch.ones(1, 3, dtype=torch.bool)}, "mask"),
    "mask too high": ({"tokens": ONE, "attend": torch.ones(2, 4, dtype=torch.bool)}, "mask"),
    "mask as if appended": ({"tokens": ONE, "slots": [0], "attend": torch.ones(1, 4, dtype=torch.bool)}, "mask"),
    "mask of numbers": ({"tokens": ONE, "attend": torch.zeros(1, 4)}, "mask must be bool"),
    "mask that shows nothing": ({"tokens": ONE, "attend": torch.zeros(1, 4, dtype=torch.bool)}, "sees nothing"),
    "logits beyond the rows": ({"tokens": TWO, "logits": [2]}, "row 2"),
    "logits of a negative row": ({"tokens": TWO, "logits": [-1]}, "row -1"),
    "tap beyond the layers": ({"tokens": ONE, "taps": (4,)}, "layer 4"),
    "tap of no layer": ({"tokens": ONE, "taps": (-2,)}, "layer -2"),
    "tap of a layer that does not run": ({"tokens": ONE, "taps": (3,), "layers": Layers(0, 2)}, "layer 3"),
    "tap of a skipped layer": ({"tokens": ONE, "taps": (1,), "layers": Layers(skip=frozenset({1}))}, "layer 1"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_forwards_are_refused(case: str) -> None:
    values, message = MALFORMED[case]
    with pytest.raises(ValueError, match=message):
        check(Forward(sequence_of([1, 2, 3]), **values))
