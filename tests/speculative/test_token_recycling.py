"""Token recycling: the template, the matrix, the laws of every drafter, and the ablations that a toy would fail."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

from decodery.engine.settings import Settings
from decodery.speculative.draft import EMPTY, ROOT, Draft
from decodery.speculative.loop import Round
from decodery.speculative.token_recycling import RecyclingDrafter, Template, TokenRecycling, template
from decodery.speculative.verifiers import Verdict
from decodery.testing import (
    DrafterLaws,
    ScriptedScorer,
    TabularScorer,
    exact_outputs,
    scripted_language_model,
    story_scorer,
    total_variation,
)
from decodery.testing.outputs import new_request


class TestTokenRecycling(DrafterLaws):
    methods = (
        "token-recycling",
        "token-recycling(nodes=9, update=accepted, seed_from_prompt=True)",
        "token-recycling(k=2, skip_unknown=False, persist=False)",
    )
    samples = 1000


class TestTemplate:
    def test_it_is_the_published_one(self):
        shape = template()
        assert len(shape.parents) == 80
        assert max(shape.depths) == 6
        assert [shape.depths.count(depth) for depth in range(1, 7)] == [8, 21, 25, 15, 8, 3]
        # Breadth first, and the children of a node take the candidates 0, 1, … in order.
        assert list(shape.depths) == sorted(shape.depths)
        for parent in {*shape.parents}:
            ranks = [rank for rank, above in zip(shape.ranks, shape.parents, strict=True) if above == parent]
            assert ranks == list(range(len(ranks)))

    def test_every_leaf_ends_one_path(self):
        shape = template()
        leaves = set(range(80)) - set(shape.parents)
        paths = {tuple(_path(shape, leaf)) for leaf in leaves}
        assert len(paths) == len(leaves)
        assert {node for path in paths for node in path} == set(range(80))

    @pytest.mark.parametrize("nodes", range(1, 81))
    def test_every_size_is_closed_under_parents(self, nodes):
        small = template().truncated(nodes)
        assert len(small.parents) == nodes
        for node, parent in enumerate(small.parents):
            assert parent < node
            assert small.depths[node] == (1 if parent == ROOT else small.depths[parent] + 1)

    def test_a_larger_tree_contains_a_smaller_one(self):
        nodes = [_ranked_paths(template().truncated(size)) for size in range(1, 81)]
        assert all(small < large for small, large in itertools.pairwise(nodes))

    def test_the_sum_of_ranks_decides_before_the_depth(self):
        """A long path of first candidates is likelier than a second candidate right below the root."""
        first = {(0,) * depth for depth in range(1, 7)}
        assert _ranked_paths(template().truncated(6)) == first
        assert _ranked_paths(template().truncated(7)) == first | {(1,)}
        assert _ranked_paths(template().truncated(9)) == first | {(1,), (0, 1), (1, 0)}

    def test_few_candidates_leave_a_narrow_tree(self):
        chain = template().narrowed(1)
        assert chain.ranks == (0,) * 6
        assert chain.parents == (ROOT, 0, 1, 2, 3, 4)
        assert max(template().narrowed(3).ranks) == 2
        assert template().narrowed(8) == template()


def _path(shape: Template, node: int) -> list[int]:
    path = []
    while node != ROOT:
        path.append(node)
        node = shape.parents[node]
    return path[::-1]


def _ranked_paths(shape: Template) -> set[tuple[int, ...]]:
    return {tuple(shape.ranks[i] for i in _path(shape, node)) for node in range(len(shape.parents))}


def _matrix(vocabulary: int = 10, k: int = 8, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(vocabulary, generator=generator)[:k] for _ in range(vocabulary)]).int()


class TestMatrix:
    def test_the_tree_reads_the_matrix(self):
        matrix = _matrix()
        draft = RecyclingDrafter(matrix, template()).propose([3, 7], depth=10)
        assert len(draft) == 80
        for node, parent in enumerate(draft.parents):
            above = 7 if parent == ROOT else draft.tokens[parent]
            assert draft.tokens[node] == int(matrix[above, template().ranks[node]])

    def test_depth_is_respected(self):
        draft = RecyclingDrafter(_matrix(), template()).propose([3, 7], depth=2)
        assert max(draft.depths()) == 2
        assert len(draft) == 8 + 21

    def test_unknown_tokens_are_left_out_or_zero(self):
        matrix = torch.full((10, 8), -1, dtype=torch.int32)
        assert RecyclingDrafter(matrix, template()).propose([3], depth=5) is EMPTY
        original = RecyclingDrafter(matrix, template(), skip_unknown=False).propose([3], depth=5)
        # The original's rows of zeros would give siblings that carry the same token; they are merged.
        assert original.tokens == [0] * 5
        assert original.is_chain

    @pytest.mark.parametrize("path", [(), (0,), (0, 8)])
    def test_every_node_overwrites_its_row_and_the_last_one_wins(self, path):
        matrix = _matrix()
        drafter = RecyclingDrafter(matrix, template())
        tokens = [3, 7]
        draft = drafter.propose(tokens, depth=10)
        before = matrix.clone()
        logits = torch.randn(81, 10)
        drafter.observe(_round(tokens, draft, path, logits))
        fed = [7, *draft.tokens]
        assert len(set(fed)) < len(fed), "the test needs tokens that several nodes carry"
        for token in range(10):
            if token in fed:
                last = max(place for place, other in enumerate(fed) if other == token)
                assert matrix[token].tolist() == logits[last].topk(8).indices.tolist()
            else:
                assert matrix[token].tolist() == before[token].tolist()

    def test_only_accepted_nodes_are_kept_on_request(self):
        matrix = _matrix()
        drafter = RecyclingDrafter(matrix, template(), update="accepted")
        draft = drafter.propose([3, 7], depth=10)
        before, logits = matrix.clone(), torch.randn(81, 10)
        drafter.observe(_round([3, 7], draft, (0,), logits))
        kept = {7: 0, draft.tokens[0]: 1}
        for token in range(10):
            row = logits[kept[token]].topk(8).indices if token in kept else before[token]
            assert matrix[token].tolist() == row.tolist()

    def test_a_frozen_matrix_stays(self):
        matrix = _matrix()
        drafter = RecyclingDrafter(matrix, template(), update="none")
        draft = drafter.propose([3, 7], depth=10)
        before = matrix.clone()
        drafter.observe(_round([3, 7], draft, (0,), torch.randn(81, 10)))
        assert torch.equal(matrix, before)

    def test_the_rows_after_a_request_are_the_scorer_s(self):
        """Through the engine: after the request, the row of every token of the text is what the scorer said last."""
        scorer = TabularScorer(12, order=1, seed=4)  # the scores after a token are always the same
        lm = scripted_language_model(scorer)
        reply = lm.generate([1, 2, 3], method="token-recycling(k=4)", max_new_tokens=30)
        [matrix] = [value for value in lm.memory.values() if isinstance(value, torch.Tensor)]
        assert matrix.dtype == torch.int32
        for token in {3, *reply.token_ids[:-1]}:
            assert matrix[token].tolist() == scorer.law([token]).topk(4).indices.tolist()

    def test_the_prompt_fills_rows_on_request(self):
        for seed, filled in (("False", {3}), ("True", {1, 2, 3})):
            lm = scripted_language_model(TabularScorer(12, order=1, seed=4))
            lm.generate([1, 2, 3], method=f"token-recycling(seed_from_prompt={seed})", max_new_tokens=1)
            [matrix] = [value for value in lm.memory.values() if isinstance(value, torch.Tensor)]
            assert {token for token in range(12) if matrix[token, 0] >= 0} == filled

    def test_sessions_do_not_share(self):
        lm = scripted_language_model(story_scorer())
        whole = dict.fromkeys(("one", "two"))
        for session in ("one", "one", "two"):
            whole[session] = lm.generate([1, 2], method="token-recycling", max_new_tokens=30, session=session).stats
        assert whole["one"].rounds < whole["two"].rounds
        lm.forget("one")
        again = lm.generate([1, 2], method="token-recycling", max_new_tokens=30, session="one").stats
        assert again.rounds == whole["two"].rounds

    def test_more_candidates_than_tokens(self):
        lm = scripted_language_model(TabularScorer(5, order=1))
        plain = lm.generate([1, 2], method="autoregressive", max_new_tokens=20)
        assert lm.generate([1, 2], method="token-recycling(k=8)", max_new_tokens=20).token_ids == plain.token_ids


def _round(tokens: list[int], draft: Draft, path: tuple[int, ...], logits: torch.Tensor) -> Round:
    return Round(tokens, draft, Verdict(path, 0), [*(draft.tokens[i] for i in path), 0], logits, {})


@dataclass(frozen=True)
class _Adversarial(TokenRecycling):
    """Drafts what the target finds least likely, first of all."""

    name: ClassVar[str] = "adversarial-recycling"

    def drafter(self, request):
        scorer = request.host.network
        rows = [scorer.score([(token,)], True)[0].argsort()[: self.k] for token in range(scorer.vocabulary)]
        return RecyclingDrafter(torch.stack(rows).int(), template().narrowed(self.k), update="none")


@pytest.mark.parametrize("method", [_Adversarial(k=2), _Adversarial(k=3)])
@pytest.mark.parametrize(
    "settings",
    [
        Settings(temperature=0.7, max_new_tokens=3, seed=0),
        Settings(temperature=1.0, max_new_tokens=3, seed=0),
        Settings(temperature=1.0, top_p=0.9, max_new_tokens=3, seed=0),
    ],
)
def test_an_adversarial_matrix_does_not_change_the_law(method, settings):
    scorer = TabularScorer(6, order=1, seed=2)
    law = exact_outputs(scripted_language_model(scorer), method, [0, 1], settings)
    assert total_variation(law, scorer.joint([0, 1], 3, settings)) < 1e-6


def test_greedy_identity_at_every_tree_size():
    lm = scripted_language_model(story_scorer())
    prompt = [5, 1, 9]
    plain = lm.generate(prompt, method="autoregressive", max_new_tokens=30).token_ids
    for nodes in range(1, 81):
        for _ in ("cold", "hot"):
            reply = lm.generate(prompt, method=f"token-recycling(nodes={nodes})", max_new_tokens=30, session=f"{nodes}")
            assert reply.token_ids == plain


def test_one_forward_per_round():
    lm = scripted_language_model(story_scorer())
    stats = lm.generate([1, 2, 3], method="token-recycling", max_new_tokens=40).stats
    assert stats.forwards == stats.rounds < 40
    assert stats.rows == 3 + (stats.rounds - 1) + stats.drafted


class TestAblations:
    """Streams of similar requests. The effects are large (see the margins), so that no seed decides."""

    @staticmethod
    def _topics() -> ScriptedScorer:
        """Two topics, told apart by the first token, each with a bigram structure of its own."""
        rows: dict[object, torch.Tensor] = {}

        def row(*key: object) -> torch.Tensor:
            if key not in rows:
                address = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
                generator = np.random.Generator(np.random.Philox(key=int.from_bytes(address, "little")))
                rows[key] = torch.from_numpy(generator.standard_normal(200)).float()
            return rows[key]

        def script(prefix: tuple[int, ...]) -> torch.Tensor:
            return 3 * row("topic", prefix[0], prefix[-1]) + 0.5 * row("whole", prefix)

        return ScriptedScorer(script, 200)

    @staticmethod
    def _stream(topic: int, count: int = 8) -> list[list[int]]:
        generator = np.random.Generator(np.random.Philox(key=topic + 1))
        return [[topic, *generator.integers(0, 200, 3).tolist()] for _ in range(count)]

    @staticmethod
    def _acceptance(lm, method: str, prompts: list[list[int]]) -> float:
        """Mean acceptance length over a stream, from totals."""
        stats = [lm.generate(prompt, method=method, max_new_tokens=40).stats for prompt in prompts]
        return sum(s.new_tokens for s in stats) / sum(s.rounds for s in stats)

    def test_all_nodes_teach_more_than_the_accepted_ones(self):
        both = [
            self._acceptance(scripted_language_model(self._topics()), method, self._stream(0))
            for method in ("token-recycling", "token-recycling(update=accepted)")
        ]
        assert both[0] > 1.1 * both[1]

    def test_a_tree_beats_a_chain(self):
        both = [
            self._acceptance(scripted_language_model(self._topics()), method, self._stream(0))
            for method in ("token-recycling", "token-recycling(k=1)")
        ]
        assert both[0] > 1.3 * both[1]

    def test_memory_between_requests_helps(self):
        halves = []
        for method in ("token-recycling", "token-recycling(persist=False)"):
            lm = scripted_language_model(self._topics())
            self._acceptance(lm, method, self._stream(0)[:4])
            halves.append(self._acceptance(lm, method, self._stream(0)[4:]))
        assert halves[0] > 1.5 * halves[1]

    def test_a_frozen_matrix_fails_on_a_new_topic(self):
        lm = scripted_language_model(self._topics())
        self._acceptance(lm, "token-recycling", self._stream(0))
        learned = lm.memory["default", ("token-recycling", 8, "all")]
        lm.memory["default", ("token-recycling", 8, "none")] = learned.clone()
        same = self._acceptance(lm, "token-recycling(update=none)", self._stream(0))
        other = self._acceptance(lm, "token-recycling(update=none)", self._stream(1))
        learning = self._acceptance(lm, "token-recycling", self._stream(1))
        assert same > 2 * other
        assert learning > 2 * other

    def test_it_helps_where_prompt_lookup_does_not(self):
        """Text that follows habits but does not repeat itself."""
        lm = scripted_language_model(self._topics())
        recycling, lookup = (self._acceptance(lm, m, self._stream(0)) for m in ("token-recycling", "prompt-lookup"))
        assert lookup < 1.3
        assert recycling > 1.5 * lookup


def test_its_drafter_is_as_asked() -> None:
    lm = scripted_language_model(story_scorer())
    spec = "token-recycling(k=3, nodes=5, skip_unknown=False, update=accepted)"
    request, method = new_request(lm, spec, [1, 2], Settings(seed=0))
    drafter = method.drafter(request)
    assert drafter.matrix.shape == (24, 3)
    assert drafter._shape == template().narrowed(3).truncated(5)
    assert (drafter._skip_unknown, drafter._update, drafter.watch_prompt) == (False, "accepted", None)
    assert method.drafter(request).matrix is drafter.matrix
    request, method = new_request(lm, "token-recycling(persist=False, seed_from_prompt=True)", [1, 2], Settings(seed=0))
    drafter = method.drafter(request)
    assert drafter.watch_prompt is not None
    assert drafter._shape == template()
    assert method.drafter(request).matrix is not drafter.matrix
    assert (TokenRecycling().adaptive, TokenRecycling(nodes=5).adaptive) == (True, False)
    assert (TokenRecycling().most_nodes(), TokenRecycling(nodes=5).most_nodes()) == (80, 5)
