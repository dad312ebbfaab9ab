"""Planning tasks: what their generators draw."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from decodery.evaluation.planning.star_graphs import StarGraphs
from decodery.evaluation.planning.tasks import SIZES, words_of
from decodery.evaluation.planning.words import SPECIAL, vocabulary
from decodery.evaluation.planning.zebra_puzzles import BESIDE, IN, LEFT, SAME, ZebraPuzzles, holds, solutions

STARS = [name for name, size in SIZES.items() if isinstance(size, StarGraphs)]
ZEBRAS = [name for name, size in SIZES.items() if isinstance(size, ZebraPuzzles)]


def _edges(words):
    return list(zip(words[::2], words[1::2], strict=True))


@pytest.mark.parametrize("name", STARS)
def test_the_answer_is_the_way_from_source_to_goal(name):
    size, generator = SIZES[name], random.Random(0)
    for _ in range(50):
        puzzle = size.draw(generator)
        edges, path = _edges(puzzle.prompt[:-2]), _edges(puzzle.answer)
        assert len(set(edges)) == len(edges)
        assert set(path) <= set(edges)
        assert (path[0][0], path[-1][1]) == puzzle.prompt[-2:]
        assert all(one[1] == other[0] for one, other in pairwise(path))
        assert len(puzzle.prompt) <= size.longest_prompt
        assert len(puzzle.answer) <= size.longest_answer
        assert {*puzzle.prompt, *puzzle.answer} <= set(size.words)


def test_symmetric_arms_leave_the_centre():
    size = SIZES["easy"]
    assert isinstance(size, StarGraphs)
    puzzles = [size.draw(random.Random(seed)) for seed in range(30)]
    for puzzle in puzzles:
        edges = _edges(puzzle.prompt[:-2])
        assert len(puzzle.prompt) + 1 + len(puzzle.answer) == 35
        assert [edge[0] for edge in edges].count(puzzle.prompt[-2]) == 3
        assert len(edges) == 12
        assert len(_edges(puzzle.answer)) == 4
    # Edges come in any order, and nodes have any name.
    assert len({puzzle.prompt for puzzle in puzzles}) == 30
    assert len({_edges(puzzle.prompt).index(_edges(puzzle.answer)[0]) for puzzle in puzzles}) > 4


def test_crossed_arms_have_the_centre_inside_and_two_nodes_behind_it():
    generator, lengths, places = random.Random(0), set(), set()
    for _ in range(200):
        puzzle = SIZES["medium"].draw(generator)
        edges = _edges(puzzle.prompt[:-2])
        starts = [edge[0] for edge in edges]
        centre = next(node for node in starts if starts.count(node) == 3)
        path = [puzzle.answer[0], *puzzle.answer[1::2]]
        lengths.add(len(path))
        places.add(path.index(centre))
        assert len(path) - 1 - path.index(centre) >= 2
        assert len(puzzle.prompt) + 1 + len(puzzle.answer) <= 43
        assert path[0] == centre or path[0] not in [edge[1] for edge in edges], "the source is the first of an arm"
        assert path[-1] not in starts
    assert lengths == {3, 4, 5, 6}
    assert places == {0, 1, 2, 3}


def test_hard_graphs_have_long_plans():
    generator = random.Random(0)
    for _ in range(50):
        puzzle = SIZES["hard"].draw(generator)
        assert len(_edges(puzzle.answer)) + 1 >= 5
        assert len(puzzle.prompt) + 1 + len(puzzle.answer) <= 135
    short = StarGraphs(2, 3, 6, plan=6)
    assert {len(short.draw(generator).answer) for _ in range(20)} == {10}


@pytest.mark.parametrize(
    ("clue", "true"),
    [((SAME, "a1", "b2"), True), ((LEFT, "a1", "a2"), True), ((LEFT, "a2", "a1"), False), ((BESIDE, "a2", "a1"), True),
     ((BESIDE, "a1", "b2"), False), ((IN, "b1", "2"), True), ((IN, "b1", "1"), False)],
)  # fmt: skip
def test_what_clues_say(clue, true):
    assert holds(clue, {"a1": 0, "a2": 1, "b2": 0, "b1": 1}) is true


@pytest.mark.parametrize("name", ZEBRAS)
def test_clues_leave_one_answer_and_each_is_needed(name):
    size = SIZES[name]
    assert isinstance(size, ZebraPuzzles)
    generator, kinds = random.Random(0), set()
    for _ in range(8):
        puzzle = size.draw(generator)
        [places] = solutions(size, puzzle.prompt)
        names = sorted(places, key=lambda value: (places[value], value[0]))
        assert puzzle.answer == tuple(names)
        clues = [puzzle.prompt[place : place + 3] for place in range(0, len(puzzle.prompt), 3)]
        kinds |= {clue[0] for clue in clues}
        for clue in clues:
            rest = [word for other in clues if other != clue for word in other]
            assert len(solutions(size, rest)) > 1
        assert len(puzzle.prompt) <= size.longest_prompt
        assert {*puzzle.prompt, *puzzle.answer} <= set(size.words)
    assert kinds == {SAME, LEFT, BESIDE, IN}


def test_special_words_come_first():
    words = vocabulary(words_of("easy"))
    assert list(words)[: len(SPECIAL)] == list(SPECIAL)
    assert len(words) == len(SPECIAL) + 20
