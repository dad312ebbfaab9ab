"""The prefix tree against a list of texts that is looked through from end to end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decodery.engine.prefix_tree import PrefixTree, common

texts = st.lists(st.integers(0, 2), max_size=7)


@given(st.lists(st.tuples(st.sampled_from(["put", "put", "remove"]), texts), max_size=25), texts)
def test_it_finds_what_a_look_through_all_texts_finds(changes: list[tuple[str, list[int]]], asked: list[int]) -> None:
    tree: PrefixTree[int] = PrefixTree()
    known: dict[tuple[int, ...], int] = {}
    for number, (change, text) in enumerate(changes):
        if change == "put":
            tree.put(text, number)
            known[tuple(text)] = number
        elif tuple(text) in known:
            tree.remove(text)
            del known[tuple(text)]
        else:
            with pytest.raises(KeyError):
                tree.remove(text)
        for query in (asked, text):
            lengths = {other: common(list(other), query) for other in known}
            most, found = max(lengths.values(), default=0), tree.nearest(query)
            if found is None:
                assert most == 0
            else:
                value, length = found
                assert length == most > 0
                assert value in {known[other] for other, shared in lengths.items() if shared == most}
            assert tree.get(query) == known.get(tuple(query))
            beginnings = sorted((len(o), known[o]) for o in known if list(o) == query[: len(o)])
            assert tree.along(query) == [value for _, value in beginnings]


@given(texts, texts)
def test_what_two_texts_share(one: list[int], other: list[int]) -> None:
    pairs = zip(one, other, strict=False)
    expected = next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
    assert common(one, other) == expected
