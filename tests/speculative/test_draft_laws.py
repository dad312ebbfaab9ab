"""Draft laws: the abstraction that every method which draws its drafts stands on."""

from __future__ import annotations

import pytest
import torch

from decodery.engine.request import Request
from decodery.engine.settings import Settings
from decodery.models.forward import ALL_LAYERS, Layers
from decodery.speculative.draft import EMPTY, ROOT, Draft, Siblings, chain
from decodery.speculative.draft_laws.growth import draw_distinct, draw_independent, grow_branching, likeliest
from decodery.speculative.draft_laws.networks import NetworkLaws
from decodery.speculative.draft_laws.ngrams import ESCAPE, FLOOR, TEXT_ROWS, NgramLaws
from decodery.speculative.loop import Round
from decodery.speculative.verifiers import Verdict
from decodery.testing import (
    DrafterLaws,
    TabularScorer,
    enumerate_outcomes,
    scripted_language_model,
    story_scorer,
    total_variation,
    toy_language_model,
)

POSITION = 5


class TestChainsFromNgrams(DrafterLaws):
    methods = ("draft-model(draft=ngram, length=2)", "draft-model(draft=ngram-text, length=2)")
    samples = 1000


def new_request(lm, prompt, **settings) -> Request:
    return Request(lm, prompt, Settings(**{"temperature": 1.0, "seed": 0, **settings}))


def answered(generator, network):
    """What a generator of forwards comes to, each answered by the network."""
    forwards = []
    try:
        ask = next(generator)
        while True:
            network.check(ask)
            forwards.append(ask)
            [scores] = network.run([ask])
            ask = generator.send(scores)
    except StopIteration as end:
        return end.value, forwards


def round_of(tokens, draft, path, logits) -> Round:
    emitted = [*(draft.tokens[node] for node in path), 0]
    return Round(tokens, draft, Verdict(tuple(path), 0), emitted, logits, {})


# A network's laws


@pytest.mark.parametrize("layers", [ALL_LAYERS, Layers(0, 1)])
def test_laws_of_a_tree_are_those_of_chains(layers):
    """Masks, positions and the cache, over rounds in which paths are accepted: against a fresh cache each time."""
    lm = toy_language_model(seed=1, layers=3)
    network = lm.network
    request = new_request(lm, [5, 6, 7], temperature=0.8, top_p=0.95)
    laws = NetworkLaws(request, network, layers)

    def alone(path):
        return answered(NetworkLaws(request, network, layers).root([*request.tokens, *path]), network)[0]

    for accepted in ([0, 2], [1, 3], [], [1]):
        root, _ = answered(laws.root(request.tokens), network)
        torch.testing.assert_close(root, alone(()), atol=1e-5, rtol=1e-3)
        for level in ([(40,), (41,)], [(40, 50), (41, 50), (41, 50)]):
            found, forwards = answered(laws.after(level), network)
            assert sum(forward.count for forward in forwards) == len(set(level)), "equal paths are scored once"
            for law, path in zip(found, level, strict=True):
                torch.testing.assert_close(law, alone(path), atol=1e-5, rtol=1e-3)
        draft = Draft([40, 41, 50, 50], [ROOT, ROOT, 0, 1])
        rows = torch.zeros(5, network.vocabulary)
        before = list(request.tokens)
        request.commit(
            [*(draft.tokens[node] for node in accepted), 33], torch.zeros(len(accepted) + 1, network.vocabulary)
        )
        laws.observe(round_of(before, draft, accepted, rows))
        cached = laws._sequence
        assert cached.tokens == request.tokens[: cached.length]
        assert cached.length == len(request.tokens) - 1, "every accepted row was kept"


def test_a_round_without_a_draft_leaves_the_cache_alone():
    lm = scripted_language_model(story_scorer())
    request = new_request(lm, [1, 2])
    laws = NetworkLaws(request, lm.network)
    answered(laws.root(request.tokens), lm.network)
    laws.observe(round_of([1, 2], EMPTY, [], torch.zeros(1, 24)))
    laws.observe(round_of([1, 2, 3], EMPTY, [], torch.zeros(1, 24)))
    assert laws._sequence.tokens == [1, 2]


# Laws without a network


def ngrams(prompt, vocabulary=6, recycle=True, **settings) -> NgramLaws:
    lm = scripted_language_model(TabularScorer(vocabulary))
    return NgramLaws(new_request(lm, prompt, **settings), recycle)


def test_counts_are_interpolated():
    """By hand: after "0 1 0 1 2 0 1", the context (0, 1) was followed by 0 and 2, 1 by 0 and 2."""
    text = [0, 1, 0, 1, 2, 0, 1]
    laws = ngrams(text, recycle=False)
    answered(laws.root(text), None)
    unigram = torch.tensor([3, 3, 1, 0, 0, 0]).double() / 10 + 3 / 10 / 6
    counts = torch.tensor([1, 0, 1, 0, 0, 0]).double()
    bigram = (counts + 2 * unigram) / 4
    trigram = (counts + 2 * bigram) / 4
    torch.testing.assert_close(laws.probabilities(()), (1 - FLOOR) * trigram + FLOOR / 6, atol=1e-12, rtol=0)
    # After the drafted token 3, which was never seen, only unigrams are left.
    torch.testing.assert_close(laws.probabilities((3,)), (1 - FLOOR) * unigram + FLOOR / 6, atol=1e-12, rtol=0)


def test_every_token_can_be_drafted_and_laws_sum_to_one():
    laws = ngrams([0] * 200, top_p=1.0)
    law, forwards = answered(laws.root([0] * 200), None)
    assert not forwards
    assert float(law.min()) > 0
    assert float(law.sum()) == pytest.approx(1, abs=1e-5)
    assert float(law[0]) > 0.9


def test_the_law_is_processed_as_the_target_s_is():
    text = [0, 1, 0, 1, 2, 0, 1]
    laws = ngrams(text, temperature=0.5, top_k=2)
    law, _ = answered(laws.root(text), None)
    assert int((law > 0).sum()) == 2
    raw = laws.probabilities(())
    assert float(law[0] / law[2]) == pytest.approx(float((raw[0] / raw[2]) ** 2), rel=1e-4)
    greedy, _ = answered(ngrams(text, temperature=0.0).root(text), None)
    assert int(greedy.argmax()) == 0


def test_recycled_scores_and_counts_against_a_plain_reading():
    """Two rounds on a text that both repeat contexts. The mean of the target's laws stands in for words not counted yet,
    weighted as eight rows against those that were seen."""
    text, size = [0, 1, 0, 1, 2, 0, 1], 6
    laws = ngrams(text, size)
    answered(laws.root(text), None)
    draft = Draft([0, 2, 1, 0], [ROOT, ROOT, 0, 2])
    seen: list[torch.Tensor] = []
    scored: dict[tuple[int, ...], torch.Tensor] = {}
    for seed in range(2):
        logits = torch.randn(5, size, generator=torch.Generator().manual_seed(seed)) * 3
        laws.observe(Round(text, draft, Verdict((), 0), [], logits, {}))
        for row, path in zip(logits.softmax(-1).double(), ((), (0,), (2,), (0, 1), (0, 1, 0)), strict=True):
            seen.append(row)
            whole = (*text, *path)
            scored[whole[-1:]] = scored[whole[-2:]] = row
    counts = [text.count(token) for token in range(size)]
    for path in ((), (0,), (2,), (0, 1), (3,), (3, 2), (4, 0)):
        whole, share = (*text, *path), 7 / (7 + 3)
        law = torch.tensor([share * count / 7 + (1 - share) / size for count in counts], dtype=torch.float64)
        mean = torch.stack(seen).mean(0)
        law = law + (mean - law) * len(seen) / (len(seen) + TEXT_ROWS)
        for length in (1, 2):
            context = whole[-length:]
            if (
                context in scored
            ):  # all tokens of so small a vocabulary are recycled, so that nothing is left of the rest
                law = law * max(1 - float(scored[context].sum()), 0) + scored[context]
            after = [text[i + length] for i in range(len(text) - length) if tuple(text[i : i + length]) == context]
            if after:
                different = ESCAPE * len(set(after))
                law = law * different / (len(after) + different)
                for token in after:
                    law[token] += 1 / (len(after) + different)
        expected = (1 - FLOOR) * law / law.sum() + FLOOR / size
        torch.testing.assert_close(laws.probabilities(path), expected, atol=1e-6, rtol=0)


def test_what_recycled_scores_leave_is_shared_out_as_before(monkeypatch):
    """Of a large vocabulary only the likeliest are recycled."""
    monkeypatch.setattr("decodery.speculative.draft_laws.ngrams.RECYCLED", 2)
    laws = ngrams([0, 1, 2], 6)
    answered(laws.root([0, 1, 2]), None)
    before = laws.probabilities((5,))
    laws._scored[(5,)] = torch.tensor([3, 1]), torch.tensor([0.5, 0.2], dtype=torch.float64)
    after = laws.probabilities((5,))
    expected = 0.3 * before
    expected[3] += 0.5
    expected[1] += 0.2
    torch.testing.assert_close(after, expected, atol=1e-5, rtol=0)


def test_scores_of_verified_nodes_are_recycled():
    text = [0, 1, 2]
    logits = torch.randn(3, 200, generator=torch.Generator().manual_seed(0)) * 5
    draft = chain([3, 4])
    for recycle in (True, False):
        laws = ngrams(text, 200, recycle)
        answered(laws.root(text), None)
        laws.observe(round_of(text, draft, [], logits))
        law = laws.probabilities((3,))  # the context (2, 3) was scored in row 1
        distance = float((law - logits[1].softmax(0).double()).abs().sum()) / 2
        assert distance < 0.02 if recycle else distance > 0.5


# Draws


LAW = torch.tensor([0.5, 0.0, 0.2, 0.3])


def test_independent_draws_are_independent():
    law = enumerate_outcomes(lambda chance: tuple(draw_independent(chance, LAW, 2, POSITION)))
    expected = {(a, b): float(LAW[a] * LAW[b]) for a in range(4) for b in range(4)}
    assert total_variation(law, expected) < 1e-7


def test_distinct_draws_are_made_without_replacement():
    law = enumerate_outcomes(lambda chance: tuple(draw_distinct(chance, LAW, 2, POSITION)))
    support = [0, 2, 3]
    expected = {(a, b): float(LAW[a] * LAW[b] / (1 - LAW[a])) for a in support for b in support if a != b}
    assert total_variation(law, expected) < 1e-7


def test_distinct_draws_end_with_the_support():
    law = enumerate_outcomes(lambda chance: frozenset(draw_distinct(chance, LAW, 9, POSITION)))
    assert law == {frozenset({0, 2, 3}): pytest.approx(1)}


def test_forbidden_tokens_are_not_likely():
    assert likeliest(torch.tensor([1.0, -float("inf"), 3.0, 2.0]), 4) == [2, 3, 0]


@pytest.mark.parametrize("siblings", [Siblings.WITH_REPLACEMENT, Siblings.WITHOUT_REPLACEMENT])
def test_branching_decides_the_shape(siblings):
    lm = scripted_language_model(story_scorer())
    request = new_request(lm, [1, 2, 3])
    draft, forwards = answered(
        grow_branching(request, NetworkLaws(request, lm.network), request.tokens, (3, 2, 1), siblings), lm.network
    )
    assert [draft.depths().count(depth) for depth in (1, 2, 3)] == [3, 6, 6]
    assert len(forwards) == 3, "one forward per level"
    assert draft.siblings is siblings


def test_nothing_grows_on_a_stop_token():
    lm = scripted_language_model(TabularScorer(3), stop_ids=(0, 1))
    request = new_request(lm, [2])
    grown = grow_branching(
        request, NetworkLaws(request, lm.network), request.tokens, (3, 3), Siblings.WITHOUT_REPLACEMENT
    )
    draft, _ = answered(grown, lm.network)
    assert sorted(draft.tokens[:3]) == [0, 1, 2]
    assert {draft.tokens[parent] for parent in draft.parents[3:]} == {2}
