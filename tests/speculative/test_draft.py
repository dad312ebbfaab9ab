"""Draft trees: what they are, and what they refuse to be."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from decodery.speculative.draft import EMPTY, ROOT, Draft, Siblings, chain

LAW = torch.full((4,), 0.25)


@st.composite
def trees(draw) -> Draft:
    """Random trees whose siblings carry different tokens."""
    parents: list[int] = []
    tokens: list[int] = []
    for node in range(draw(st.integers(0, 12))):
        parent = draw(st.integers(ROOT, node - 1))
        taken = {t for t, p in zip(tokens, parents, strict=True) if p == parent}
        parents.append(parent)
        tokens.append(draw(st.integers(0, 40).filter(lambda token, taken=taken: token not in taken)))
    return Draft(tokens, parents, kinds=[("kind", i) for i in range(len(tokens))])


def test_a_chain_is_a_tree():
    draft = chain([5, 6, 7])
    assert draft.parents == [ROOT, 0, 1]
    assert draft.is_chain
    assert draft.depths() == [1, 2, 3]
    assert draft.path(2) == [0, 1, 2]
    assert draft.children == {ROOT: [0], 0: [1], 1: [2]}
    assert EMPTY.is_chain
    assert len(EMPTY) == 0
    assert EMPTY.path(ROOT) == []


def test_children_keep_their_order():
    draft = Draft([3, 1, 2, 9], [ROOT, ROOT, ROOT, 1])
    assert draft.children[ROOT] == [0, 1, 2]
    assert not draft.is_chain
    assert draft.path(3) == [1, 3]


@given(trees())
def test_paths_and_depths_agree(draft):
    for node, depth in enumerate(draft.depths()):
        path = draft.path(node)
        assert len(path) == depth
        assert path[-1] == node
        assert draft.parents[path[0]] == ROOT
        assert all(draft.parents[low] == high for high, low in itertools.pairwise(path))


@given(trees(), st.data())
def test_a_selection_keeps_the_paths(draft, data):
    chosen = data.draw(st.sets(st.integers(0, len(draft) - 1))) if len(draft) else set()
    nodes = sorted({ancestor for node in chosen for ancestor in draft.path(node)})
    part = draft.select(nodes)
    for place, node in enumerate(nodes):
        assert [part.tokens[i] for i in part.path(place)] == [draft.tokens[i] for i in draft.path(node)]
        assert part.kinds[place] == draft.kinds[node]


def test_a_selection_keeps_the_laws_of_its_parents():
    laws = {ROOT: LAW, 0: LAW, 1: LAW}
    draft = Draft([1, 2, 3], [ROOT, ROOT, 1], laws, Siblings.WITH_REPLACEMENT)
    part = draft.select([1, 2])
    assert part.parents == [ROOT, 0]
    assert set(part.q) == {ROOT, 0}
    assert draft.select([0, 1, 2]) is draft


def test_equal_siblings_are_independent_draws_only():
    twins = Draft([1, 1], [ROOT, ROOT], {ROOT: LAW}, Siblings.WITH_REPLACEMENT)
    assert len(twins) == 2
    with pytest.raises(ValueError, match="merge them"):
        Draft([1, 1], [ROOT, ROOT])
    with pytest.raises(ValueError, match="merge them"):
        Draft([1, 1], [ROOT, ROOT], {ROOT: LAW}, Siblings.WITHOUT_REPLACEMENT)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        (([1, 2], [ROOT]), "as many parents"),
        (([1], [0]), "does not come before"),
        (([1, 2], [ROOT, 1]), "does not come before"),
        (([1], [-2]), "does not come before"),
        (([1], [ROOT], {ROOT: LAW}), "draft probabilities"),
        (([1], [ROOT], None, Siblings.WITH_REPLACEMENT), "draft probabilities"),
        (([1, 2], [ROOT, 0], {ROOT: LAW}, Siblings.WITH_REPLACEMENT), "no draft law"),
        (([1], [ROOT], None, Siblings.DETERMINISTIC, ["a", "b"]), "as many kinds"),
    ],
)
def test_what_does_not_fit_together_is_refused(parts, reason):
    with pytest.raises(ValueError, match=reason):
        Draft(*parts)


def test_an_orphan_is_refused():
    with pytest.raises(ValueError, match="parent"):
        chain([1, 2, 3]).select([1])
