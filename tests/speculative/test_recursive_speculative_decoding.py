"""Recursive speculative decoding: exact by enumeration, against the published numbers, and with its known faults planted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import permutations, product

import numpy as np
import pytest
import torch

from decodery.engine.request import Request
from decodery.engine.settings import Settings
from decodery.errors import BadParameter, MethodUnavailable
from decodery.sampling.noise import Noise, Stage
from decodery.speculative.draft import ROOT, Draft, Siblings
from decodery.speculative.draft_laws.growth import (
    START,
    beam_search,
    draw_beam,
    draw_distinct,
    draw_independent,
    grow_beam,
    grow_branching,
)
from decodery.speculative.draft_laws.networks import NetworkLaws
from decodery.speculative.loop import ProcessedLaws
from decodery.speculative.verifiers import TreeRejection
from decodery.testing import (
    DrafterLaws,
    TabularScorer,
    enumerate_outcomes,
    faults,
    goodness_of_fit,
    scripted_language_model,
    story_scorer,
    total_variation,
    toy_language_model,
)

NAME = "recursive-speculative-decoding"
POSITION = 3
PROMPT = [0, 1, 0]


class TestBeam(DrafterLaws):
    methods = (f"{NAME}(draft=other, width=2, length=2)",)
    samples = 1000


class TestBranching(DrafterLaws):
    methods = (f"{NAME}(draft=other, tree=branching, branching=2x1)",)
    samples = 1000


class TestWithoutNetwork(DrafterLaws):
    methods = (NAME,)
    samples = 500
    exact_settings = (
        Settings(temperature=1.0, top_p=0.8, max_new_tokens=2, seed=0),
        Settings(temperature=0.7, repetition_penalty=1.5, min_new_tokens=2, max_new_tokens=2, seed=0),
    )


# One round, enumerated: grow a tree, verify it, complete the output by plain sampling


def answered(generator, network):
    try:
        ask = next(generator)
        while True:
            [scores] = network.run([ask])
            ask = generator.send(scores)
    except StopIteration as end:
        return end.value


Grow = Callable[[Request, NetworkLaws], Iterator]
Change = Callable[[Draft, object], Draft]


def branching(*counts: int) -> Grow:
    return lambda request, laws: grow_branching(request, laws, request.tokens, counts, Siblings.WITHOUT_REPLACEMENT)


def beam(width: int, length: int) -> Grow:
    return lambda request, laws: grow_beam(request, laws, request.tokens, width, length)


def enumerated_round(
    grow: Grow, scorer: TabularScorer, drafter: TabularScorer, verifier=None, change: Change | None = None
) -> dict[tuple[int, ...], float]:
    """The exact law of the tokens that one round emits: of every tree that can grow, every verdict."""
    request = Request(scripted_language_model(scorer), PROMPT, Settings(temperature=1.0, max_new_tokens=9, seed=0))
    trees: dict[object, Draft] = {}

    def draw(chance) -> object:
        request.noise = chance
        draft = answered(grow(request, NetworkLaws(request, drafter)), drafter)
        draft = draft if change is None else change(draft, chance)
        key = tuple(draft.tokens), tuple(draft.parents)
        trees[key] = draft
        return key

    found: dict[tuple[int, ...], float] = {}
    for key, tree_mass in enumerate_outcomes(draw).items():
        draft = trees[key]
        paths = [(), *(tuple(draft.tokens[i] for i in draft.path(node)) for node in range(len(draft)))]
        rows = scorer.score([(*PROMPT, *path) for path in paths], True)
        laws = torch.stack([ProcessedLaws(request, draft, rows)[row] for row in range(len(rows))])

        def judge(chance, draft=draft, laws=laws) -> tuple[int, ...]:
            verdict = (verifier or TreeRejection()).verify(draft, laws, chance, request.position)
            return (*(draft.tokens[node] for node in verdict.path), verdict.next_token)

        for emitted, mass in enumerate_outcomes(judge).items():
            found[emitted] = found.get(emitted, 0.0) + tree_mass * mass
    return found


def distance_of_a_round(grow: Grow, vocabulary: int, seed: int = 0, length: int = 2, **faults) -> float:
    """Total variation between the law of the first `length` tokens after one round and the target's."""
    scorer = TabularScorer(vocabulary, order=None, seed=seed)
    drafter = TabularScorer(vocabulary, order=None, seed=seed + 1000)
    found: dict[tuple[int, ...], float] = {}
    for emitted, mass in enumerated_round(grow, scorer, drafter, **faults).items():
        for rest in product(range(vocabulary), repeat=max(length - len(emitted), 0)):
            output, chance = emitted[:length], mass
            for token in rest:
                chance *= float(scorer.law((*PROMPT, *output))[token])
                output = (*output, token)
            found[output] = found.get(output, 0.0) + chance
    return total_variation(found, scorer.joint(PROMPT, length))


ROUNDING = 1e-6
"""Laws of scorers are float32."""


@pytest.mark.parametrize(
    ("grow", "vocabulary", "seeds"),
    [
        (branching(2, 1), 4, 2),
        (branching(3), 6, 2),
        (branching(2, 2), 3, 2),
        (beam(2, 2), 4, 1),
        (beam(3, 2), 3, 1),
        (beam(2, 3), 3, 1),
    ],
    ids=["2x1", "3", "2x2", "W=2 L=2", "W=3 L=2", "W=2 L=3"],
)
def test_the_first_two_tokens_have_the_target_law(grow, vocabulary, seeds):
    for seed in range(seeds):
        assert distance_of_a_round(grow, vocabulary, seed) < ROUNDING


# The verifier of a node


CASES = [
    (("1/2", "3/10", "1/5"), ("1/5", "3/10", "1/2"), {1: 0.7, 2: 0.82, 3: 1.0}, {2: 0.76, 3: 0.808}),
    (("2/5", "3/10", "1/5", "1/10"), ("1/10", "1/5", "3/10", "2/5"), {2: 0.764286, 3: 0.840298}, {2: 0.72, 3: 0.768}),
    (("1", "0"), ("1/2", "1/2"), {2: 1.0}, {2: 0.75}),
]
"""p, q, and the acceptance of n children without and with replacement."""


def exact_acceptance(p, q, count) -> Fraction:
    """The acceptance of `count` children without replacement, in fractions, from the definition."""
    total = Fraction(0)
    for children in permutations(range(len(q)), count):
        drawn, left, refused, r, d = Fraction(1), Fraction(1), Fraction(1), list(p), list(q)
        for token in children:
            drawn *= q[token] / left
            left -= q[token]
            refused *= 1 - min(Fraction(1), r[token] / d[token])
            rest = [max(a - b, Fraction(0)) for a, b in zip(r, d, strict=True)]
            r = [a / sum(rest) for a in rest] if sum(rest) else r
            d[token] = Fraction(0)
            d = [a / sum(d) for a in d] if sum(d) else d
        total += drawn * (1 - refused)
    return total


def outcome_of_a_node(p, q, count, siblings=Siblings.WITHOUT_REPLACEMENT, reported=None, verifier=None):
    """(acceptance, law of the emitted token) of one node with `count` drawn children."""
    p, q = (torch.tensor([float(x) for x in law], dtype=torch.float64) for law in (p, q))
    p, q = p / p.sum(), q / q.sum()
    draw = draw_distinct if siblings is Siblings.WITHOUT_REPLACEMENT else draw_independent

    def run(chance):
        tokens = draw(chance, q, count, POSITION)
        draft = Draft(tokens, [ROOT] * len(tokens), {ROOT: q}, reported or siblings)
        rows = p.log().expand(len(tokens) + 1, -1)
        verdict = (verifier or TreeRejection()).verify(draft, rows, chance, POSITION)
        return bool(verdict.path), draft.tokens[verdict.path[0]] if verdict.path else verdict.next_token

    law = enumerate_outcomes(run)
    emitted = dict.fromkeys(range(len(p)), 0.0)
    for (_, token), mass in law.items():
        emitted[token] += mass
    return sum(mass for (accepted, _), mass in law.items() if accepted), [emitted[t] for t in range(len(p))]


@pytest.mark.parametrize(("p", "q", "without", "with_"), CASES)
def test_acceptance_is_as_computed_from_the_definition(p, q, without, with_):
    for count, expected in without.items():
        acceptance, law = outcome_of_a_node(map(Fraction, p), map(Fraction, q), count)
        exact = exact_acceptance([*map(Fraction, p)], [*map(Fraction, q)], count)
        assert acceptance == pytest.approx(float(exact), abs=1e-9)
        assert acceptance == pytest.approx(expected, abs=5e-7)
        assert law == pytest.approx([float(Fraction(x)) for x in p], abs=1e-12)
    for count, expected in with_.items():
        acceptance, law = outcome_of_a_node(map(Fraction, p), map(Fraction, q), count, Siblings.WITH_REPLACEMENT)
        assert acceptance == pytest.approx(expected, abs=1e-9)
        assert law == pytest.approx([float(Fraction(x)) for x in p], abs=1e-12)


def test_children_that_cover_the_draft_are_always_enough():
    """As many children as q has tokens: one is accepted, if the target's tokens are among them."""
    generator = np.random.Generator(np.random.Philox(key=3))
    for _ in range(20):
        p, q = generator.dirichlet([0.5] * 4), generator.dirichlet([0.5] * 4)
        acceptance, law = outcome_of_a_node(p, q, 4)
        assert acceptance == pytest.approx(1, abs=1e-9)
        assert law == pytest.approx(p.tolist(), abs=1e-9)
        q[0] = p[0] = 0
        assert outcome_of_a_node(p, q, 3)[0] == pytest.approx(1, abs=1e-9)
        p[0] = 0.5  # a token that the draft cannot propose
        assert outcome_of_a_node(p, q, 3)[0] < 1 - 0.5 / p.sum() + 1e-9


def test_a_token_that_cannot_have_been_drawn_is_refused():
    draft = Draft([0, 1], [ROOT, ROOT], {ROOT: torch.tensor([0.0, 1.0])}, Siblings.WITHOUT_REPLACEMENT)
    with pytest.raises(ValueError, match="cannot have been drawn"):
        TreeRejection().verify(draft, torch.zeros(3, 2), Noise(0), POSITION)


# What must fail


def in_order(draft: Draft, order: Callable[[int, list[int]], list[int]]) -> Draft:
    """The same tree with the children of each node in another order."""
    tokens: list[int] = []
    parents: list[int] = []
    q = {}
    level = [(ROOT, ROOT)]
    while level:
        below = []
        for old, new in level:
            if draft.q and old in draft.q:
                q[new] = draft.q[old]
            for child in order(old, list(draft.children.get(old, ()))):
                below.append((child, len(tokens)))
                tokens.append(draft.tokens[child])
                parents.append(new)
        level = below
    return Draft(tokens, parents, q, draft.siblings)


def sorted_by_q(draft: Draft, chance) -> Draft:
    return in_order(draft, lambda node, family: sorted(family, key=lambda child: -draft.q[node][draft.tokens[child]]))


def shuffled(draft: Draft, chance) -> Draft:
    def order(node: int, family: list[int]) -> list[int]:
        orders = list(permutations(family))
        return list(orders[chance.choose(torch.ones(len(orders)), POSITION, Stage.DRAFT, 7000 + node)])

    return in_order(draft, order)


@pytest.mark.parametrize(
    ("grow", "change", "least"),
    [(branching(2), sorted_by_q, 0.02), (beam(2, 2), sorted_by_q, 0.02), (beam(2, 2), shuffled, 0.02)],
    ids=["branching sorted by q", "beam sorted by q", "beam shuffled"],
)
def test_children_in_another_order_break_the_law(grow, change, least):
    assert max(distance_of_a_round(grow, 3, seed, change=change) for seed in range(2)) > least
    unchanged = distance_of_a_round(grow, 3, change=lambda draft, chance: in_order(draft, lambda node, family: family))
    assert unchanged < ROUNDING


def test_a_draft_law_that_keeps_refused_tokens_breaks_the_law():
    """d neither zeroed nor renormalised, as if drawn with replacement: the published counterexample."""
    p, q = (0.3, 0.1, 0.3, 0.3), (0.2, 0.55, 0.2, 0.05)
    _, right = outcome_of_a_node(p, q, 2)
    assert right == pytest.approx(p, abs=1e-12)
    _, law = outcome_of_a_node(p, q, 2, reported=Siblings.WITH_REPLACEMENT)
    assert law == pytest.approx([0.4, 0.1, 0.4, 0.1], abs=1e-6)
    assert sum(abs(a - b) for a, b in zip(law, p, strict=True)) / 2 == pytest.approx(0.2, abs=1e-6)


def test_a_law_that_is_not_the_one_drawn_from_breaks_the_law():
    """Drawn without replacement and judged as drawn with it, and judged by one law for all children."""

    def as_if_replaced(draft: Draft, chance) -> Draft:
        return Draft(draft.tokens, draft.parents, draft.q, Siblings.WITH_REPLACEMENT)

    for fault in ({"change": as_if_replaced}, {"verifier": faults._UnchangedSiblings()}):
        assert max(distance_of_a_round(branching(2), 4, seed, **fault) for seed in range(3)) > 0.03
    assert max(distance_of_a_round(branching(2), 4, seed) for seed in range(3)) < ROUNDING


# The stochastic beam


def random_laws(vocabulary: int, seed: int) -> Callable[[tuple[int, ...]], torch.Tensor]:
    return TabularScorer(vocabulary, order=None, seed=seed, concentration=0.8).law


def drawn_tree(chance, law, width, length, ends=()) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """The sequences of each level, in the order in which they come up."""
    sequences, arrivals, levels = [()], START, []
    for level in range(length):
        rows = [None if s is None or (s and s[-1] in ends) else law(s) for s in sequences]
        arrivals = draw_beam(chance, arrivals, rows, width, POSITION + level)
        sequences = [None if a.parent is None else (*sequences[a.parent], a.token) for a in arrivals]
        levels.append(tuple(s for s in sequences if s is not None))
        for arrival, sequence in zip(arrivals, sequences, strict=True):
            if sequence is not None:
                shares = [float(law(sequence[:depth])[sequence[depth]]) for depth in range(len(sequence))]
                assert arrival.share == pytest.approx(np.prod(shares))
    return tuple(levels)


def test_a_level_of_the_beam_is_a_draw_of_sequences_without_replacement():
    """The ordered second level has the law of successive draws of whole sequences, and so the inclusion frequencies."""
    for vocabulary, width in ((3, 2), (3, 3), (4, 2)):
        law = random_laws(vocabulary, 2)
        found = enumerate_outcomes(lambda chance, law=law, width=width: drawn_tree(chance, law, width, 2)[1])
        joint = {(a, b): float(law(())[a] * law((a,))[b]) for a, b in product(range(vocabulary), repeat=2)}
        expected = {}
        for order in permutations(joint, width):
            mass, left = 1.0, 1.0
            for sequence in order:
                mass *= joint[sequence] / left
                left -= joint[sequence]
            expected[order] = mass
        assert total_variation(found, expected) < 1e-9
        for sequence in joint:
            included, wanted = (sum(m for o, m in law_.items() if sequence in o) for law_ in (found, expected))
            assert included == pytest.approx(wanted, abs=1e-9)


def perturbed_tree(generator, law, width, length, ends=()):
    """Stochastic beam search as published: perturbed log probabilities, conditioned on the parent's."""
    beams = [((), 0.0, 0.0)]
    levels = []
    for _ in range(length):
        found = []
        for sequence, phi, above in beams:
            if sequence and sequence[-1] in ends:
                continue
            phis = phi + law(sequence).log().numpy()
            h = phis + generator.gumbel(size=len(phis))
            with np.errstate(divide="ignore"):
                v = above - h + np.log1p(-np.exp(h - h.max()))
            conditioned = above - np.maximum(0, v) - np.log1p(np.exp(-np.abs(v)))
            found += [((*sequence, x), phis[x], conditioned[x]) for x in range(len(phis))]
        beams = sorted(found, key=lambda beam: -beam[2])[:width]
        levels.append(tuple(sequence for sequence, _, _ in beams))
    return tuple(levels)


@pytest.mark.parametrize("ends", [(), (0,)], ids=["no stop token", "with a stop token"])
def test_the_tree_has_the_law_of_perturbed_log_probabilities(ends):
    """Three levels of the race against the published formulas: chi-square at 0.001, 6000 trees."""
    law = random_laws(3, 4)
    exact = enumerate_outcomes(lambda chance: drawn_tree(chance, law, 2, 3, ends))
    assert sum(exact.values()) == pytest.approx(1)
    generator = np.random.Generator(np.random.Philox(key=5))
    counts = Counter(perturbed_tree(generator, law, 2, 3, ends) for _ in range(6_000))
    fit = goodness_of_fit(counts, exact)
    assert fit.p_value > 0.001, fit
    assert fit.degrees > 30


def test_a_beam_that_is_certain_of_its_first_path_still_grows():
    """Where rounding leaves nothing to the others, they are drawn nevertheless, and nothing that is impossible is."""
    law = torch.tensor([1.0, 1e-30, 0.0, 1e-40]).double()
    levels = enumerate_outcomes(lambda chance: drawn_tree(chance, lambda path: law, 3, 2))
    assert sum(mass for (_, second), mass in levels.items() if second[0] == (0, 0)) > 0.999
    assert all(2 not in sequence for tree in levels for level in tree for sequence in level)
    assert all(len(level) == 3 for tree in levels for level in tree)


def test_the_size_of_a_tree_is_bounded():
    lm = scripted_language_model(story_scorer(), drafter=story_scorer(surprise=2.0, name="other"))
    for seed in range(20):
        request = Request(lm, [1, 2, seed], Settings(temperature=1.5, seed=seed))
        for width, length in ((4, 3), (2, 5)):
            tree = answered(
                grow_beam(request, NetworkLaws(request, lm.drafter), request.tokens, width, length), lm.drafter
            )
            assert [tree.depths().count(level) for level in range(1, length + 1)] == [width] * length
            assert all(len({tree.tokens[c] for c in family}) == len(family) for family in tree.children.values())


def test_greedy_beams_hold_the_likeliest_sequences():
    law = random_laws(4, 6)
    rows = [law(()).log()]
    first = beam_search(START, rows, 3)
    second = beam_search(first, [law((a.token,)).log() for a in first], 3)
    found = [(first[a.parent].token, a.token) for a in second]
    kept = [a.token for a in first]
    assert kept == law(()).argsort(descending=True)[:3].tolist()
    values = {(a, b): float(law(())[a] * law((a,))[b]) for a in kept for b in range(4)}
    assert found == sorted(values, key=lambda pair: -values[pair])[:3]


# The method


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize(
    ("spec", "length"), [("width=2, length=3", 3), ("width=4, length=2", 2), ("tree=branching, branching=2x2", 2)]
)
def test_a_draft_model_equal_to_the_target_is_always_right(temperature, spec, length):
    """The first child of every node is accepted, and its whole path is in the tree."""
    lm = scripted_language_model(story_scorer(), drafter=story_scorer(name="twin"))
    for seed in range(4):
        settings = {"max_new_tokens": 25, "temperature": temperature, "seed": seed}
        reply = lm.generate([1, 2, seed], method=f"{NAME}(draft=twin, {spec})", **settings)
        assert reply.stats.rounds == -(-25 // (length + 1))


def test_drawing_without_replacement_emits_more():
    """The exact expectation of a round at equal budget: without replacement more than with, whatever the shape."""

    def independent(request, laws):
        return grow_branching(request, laws, request.tokens, (2, 1), Siblings.WITH_REPLACEMENT)

    for seed in range(3):
        scorer = TabularScorer(4, order=None, seed=seed)
        drafter = scorer.blurred(0.6)
        emitted = [
            sum(len(tokens) * mass for tokens, mass in enumerated_round(grow, scorer, drafter).items())
            for grow in (independent, branching(2, 1), beam(2, 2))
        ]
        assert min(emitted[1:]) > emitted[0] + 0.02, emitted


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("draft", ["layers", "ngram", "ngram-text"])
def test_on_a_network(draft, temperature):
    """Layers, masks and positions of the drafter's own cache; greedy output is that of plain decoding."""
    lm = toy_language_model(seed=1, layers=3)
    for tree in ("beam", "branching"):
        spec = f"{NAME}(draft={draft}, tree={tree})"
        settings = {"max_new_tokens": 40, "temperature": temperature, "seed": 2, "ignore_eos": True}
        reply = lm.generate("hello", method=spec, **settings)
        if temperature == 0:
            assert reply.token_ids == lm.generate("hello", method="autoregressive", **settings).token_ids
        assert reply.stats.accepted > 0


def test_a_branching_vector_of_one_level_is_a_number():
    lm = scripted_language_model(story_scorer())
    reply = lm.generate([1], method=f"{NAME}(tree=branching, branching=4)", max_new_tokens=9, temperature=1.0, seed=0)
    assert reply.stats.drafted <= 4 * reply.stats.rounds


@pytest.mark.parametrize(
    ("spec", "error", "reason"),
    [
        ("tree=branching, branching=3x0", BadParameter, "branching must be numbers"),
        ("tree=branching, branching=wide", BadParameter, "branching must be numbers"),
        ("tree=branching, branching=65", BadParameter, "from 1 to 64"),
        ("tree=bush", BadParameter, "must be one of"),
        ("layers=1", BadParameter, "only with draft=layers"),
        ("draft=layers, layers=3", MethodUnavailable, "nothing to gain"),
    ],
)
def test_what_cannot_work_is_refused(spec, error, reason):
    lm = scripted_language_model(story_scorer(), drafter=story_scorer(name="other"))
    with pytest.raises(error, match=reason):
        lm.generate([1], method=f"{NAME}({spec})", max_new_tokens=4)
