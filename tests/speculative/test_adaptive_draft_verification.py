"""Adaptive draft verification: the table, the search against an independent one, the laws, adaptation and exploration."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

from decodery.engine.settings import Settings
from decodery.errors import BadInput
from decodery.models.forward import Forward, Rows
from decodery.speculative.adaptive_draft_verification import (
    AdaptiveDraftVerification,
    Search,
    TrigramDrafter,
    within_choices,
)
from decodery.speculative.continuations.trigrams import TrigramStore, TrigramTable, fingerprint
from decodery.speculative.draft import EMPTY
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


def _random_store(vocabulary: int, seed: int = 0, successors: int = 4) -> TrigramStore:
    """A table of random successors and weights for every pair."""
    generator = np.random.Generator(np.random.Philox(key=seed))
    store = TrigramStore(vocabulary, 12)
    for first in range(vocabulary):
        for second in range(vocabulary):
            for third in generator.permutation(vocabulary)[:successors].tolist():
                store.reinforce(first, second, third, float(generator.random()), 3.0)
    return store


@dataclass(frozen=True)
class _RandomTable(AdaptiveDraftVerification):
    """Begins with random weights."""

    name: ClassVar[str] = "random-trigrams"

    def store(self, request):
        vocabulary = request.host.network.vocabulary
        return request.remember((self.name, vocabulary), lambda: _random_store(vocabulary))


@dataclass(frozen=True)
class _GoodTable(AdaptiveDraftVerification):
    """Begins with trigrams of what the target writes."""

    name: ClassVar[str] = "good-trigrams"

    def store(self, request):
        def counted() -> TrigramStore:
            vocabulary = request.host.network.vocabulary
            texts = []
            for first in range(min(vocabulary, 8)):
                texts.append([first])
                sequence = request.host.network.new_sequence()
                for _ in range(24):
                    fed = texts[-1][sequence.length :]
                    [scores] = type(request.host.network).run_pass(
                        request.host.network, [Forward(sequence, fed, logits=Rows.LAST)]
                    )
                    texts[-1].append(int(scores.logits[0].argmax()))
            return TrigramStore(vocabulary, 12, TrigramTable.count(texts, vocabulary).pruned(12))

        return request.remember((self.name, request.host.network.vocabulary), counted)


class TestAdaptiveDraftVerification(DrafterLaws):
    methods = (
        "adaptive-draft-verification(simulations=40)",
        "adaptive-draft-verification(simulations=20, budget=trie, legacy_score=True, read_prompt=True, persist=False)",
        _RandomTable(simulations=12, prefixes=8, choices=8),
        _GoodTable(simulations=12, explore=False),
    )
    samples = 400


@dataclass(frozen=True)
class _Adversarial(AdaptiveDraftVerification):
    """Proposes what the target finds least likely, and nearly everything else too."""

    name: ClassVar[str] = "adversarial-trigrams"

    def store(self, request):
        scorer = request.host.network
        store = TrigramStore(scorer.vocabulary, 12)
        for first in range(scorer.vocabulary):
            for second in range(scorer.vocabulary):
                order = scorer.score([(second,)], True)[0].argsort().tolist()
                for place, third in enumerate(order[: scorer.vocabulary - 1]):
                    store.reinforce(first, second, third, 3.0 - 0.5 * place, 3.0)
        return store


@pytest.mark.parametrize(
    "settings",
    [
        Settings(temperature=0.7, max_new_tokens=3, seed=0),
        Settings(temperature=1.0, top_p=0.9, max_new_tokens=3, seed=0),
    ],
)
def test_a_table_that_proposes_wrong_tokens_does_not_change_the_law(settings):
    scorer = TabularScorer(5, order=1, seed=2)
    method = _Adversarial(simulations=10)
    law = exact_outputs(scripted_language_model(scorer), method, [0, 1, 2], settings)
    assert total_variation(law, scorer.joint([0, 1, 2], 3, settings)) < 1e-6


# The search


class _Node:
    """A node of the reference search, with the names of the card."""

    def __init__(self, key: tuple[int, int], parent: _Node | None, prior: float):
        self.key, self.parent, self.prior = key, parent, prior
        self.children: list[_Node] = []
        self.N, self.W = 0, 0.0

    @property
    def length(self) -> int:
        return 1 if self.parent is None else self.parent.length + 1

    def prefix(self) -> tuple[int, ...]:
        return () if self.parent is None else (*self.parent.prefix(), self.key[1])


def _reference(
    rows: dict[tuple[int, int], dict[int, float]], root: tuple[int, int], simulations: int, length: int,
    c1: float | None, c2: float, position: int, legacy: bool,
) -> dict[tuple[int, ...], int]:  # fmt: skip
    """Visit counts by prefix of a search that is written down step by step. c1: None for a greedy one."""
    chance = random.Random(position)
    ordered = {key: sorted(row.items(), key=lambda item: (-item[1], item[0])) for key, row in rows.items()}
    tree = _Node(root, None, 0.0)

    def value(node: _Node) -> float:
        if c1 is None:  # what was never visited is worth the way there and its own weight
            return node.W / node.N if node.N else reached(node.parent) + node.prior
        if node.N == 0:
            return math.inf
        parent = node.parent.N
        factor = c1 + math.log((parent + c2 + 1) / c2)
        return node.W / node.N + factor * node.prior * math.sqrt(parent) / (1 + node.N)

    def reached(node: _Node) -> float:
        if node.parent is None:
            return 1.0
        above = node.parent.key
        return reached(node.parent) + (rows[above].get(above[1], 0.0) if legacy else node.prior)

    for _ in range(simulations):
        node = tree
        while node.children and node.length < length:
            best = node.children[0]
            for child in node.children[1:]:
                if value(child) > value(best):
                    best = child
            node = best
        if ordered.get(node.key) and node.length < length:
            node.children = [_Node((node.key[1], token), node, weight) for token, weight in ordered[node.key]]
            node = node.children[-1]
        keys, at = [], node
        while at is not None:
            keys.insert(0, at.key)
            at = at.parent
        while len(keys) < length and ordered.get(keys[-1]):
            successors = ordered[keys[-1]]
            point = chance.random() * sum(weight for _, weight in successors)
            chosen = 0
            while chosen < len(successors) - 1 and point >= successors[chosen][1]:
                point -= successors[chosen][1]
                chosen += 1
            keys.append((keys[-1][1], successors[chosen][0]))
        score = 1.0
        for key, after in itertools.pairwise(keys):
            score += rows[key].get(key[1] if legacy else after[1], 0.0)
        while node is not None:
            node.N, node.W = node.N + 1, node.W + score
            node = node.parent
    found = {}
    nodes = [tree]
    for node in nodes:
        nodes += node.children
        found[node.prefix()] = node.N
    del found[()]
    return found


def _rows(store: TrigramStore) -> dict[tuple[int, int], dict[int, float]]:
    size = store.vocabulary
    pairs = [(first, second) for first in range(size) for second in range(size)]
    found = {pair: store.find(pair[0] * size + pair[1]) for pair in pairs}
    return {pair: dict(zip(row.ids, row.weights, strict=True)) for pair, row in found.items() if row is not None}


class TestSearch:
    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize("legacy", [False, True])
    @pytest.mark.parametrize("path_keys", [2, 4, 6])
    def test_its_visits_are_those_of_the_reference(self, seed, legacy, path_keys):
        store = _random_store(7, seed, successors=1 + seed)
        for pair in ((1, 2), (3, 3)):  # and pairs that nothing follows
            store._rows.pop(pair[0] * 7 + pair[1])
        found = Search(store, path_keys, 32.0, 8.0, 150, legacy).run(0, 5, position=9)
        expected = _reference(_rows(store), (0, 5), 150, path_keys, 32.0, 8.0, 9, legacy)
        assert found.visited(10**6) == {prefix: count for prefix, count in expected.items() if count}
        assert sum(count for prefix, count in expected.items() if len(prefix) == 1) == 150

    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize("legacy", [False, True])
    def test_without_exploration_its_visits_are_those_of_the_reference_too(self, seed, legacy):
        store = _random_store(7, seed, successors=1 + seed)
        store._rows.pop(1 * 7 + 2)
        found = Search(store, 5, None, 8.0, 150, legacy).run(0, 5, position=9)
        expected = _reference(_rows(store), (0, 5), 150, 5, None, 8.0, 9, legacy)
        assert found.visited(10**6) == {prefix: count for prefix, count in expected.items() if count}

    def test_a_hand_made_table(self):
        """One pair with two successors that lead nowhere: after both were tried once, PUCT decides."""
        store = TrigramStore(4, 12)
        store.reinforce(0, 1, 2, 0.75, 3.0)
        store.reinforce(0, 1, 3, 0.25, 3.0)
        root = Search(store, 4, 32.0, 8.0, 3).run(0, 1, position=3)
        # Entered by the last child, then the first one, which was not tried; then 1.75 + 0.75 x against 1.25 + 0.25 x.
        assert root.visits == [2, 1]
        assert root.values == [1.75, 1.25]

    def test_the_legacy_score_is_one_without_repeated_tokens(self):
        store = TrigramStore(6, 12)
        for first, second, third in ((0, 1, 2), (0, 1, 3), (1, 2, 4), (1, 3, 5), (2, 4, 5), (3, 5, 0)):
            store.reinforce(first, second, third, 0.5, 3.0)
        legacy = Search(store, 4, 32.0, 8.0, 150, legacy=True).run(0, 1, position=3)
        assert legacy.values == [1.0, 1.0]
        assert min(Search(store, 4, 32.0, 8.0, 150).run(0, 1, position=3).values) > 1.4
        store.reinforce(0, 1, 1, 0.5, 3.0)  # now the middle token does follow its pair
        repeated = Search(store, 4, 32.0, 8.0, 150, legacy=True).run(0, 1, position=3)
        assert min(repeated.values) >= 1.5

    def test_an_unknown_pair_has_no_tree_and_one_simulation_finds_that_out(self, monkeypatch):
        asked = []
        monkeypatch.setattr(TrigramStore, "find", lambda self, key: asked.append(key))
        assert Search(TrigramStore(4, 12), 4, 32.0, 8.0, 150).run(0, 1, position=3) is None
        assert len(asked) < 4, "the other simulations would find no more"


class TestDraft:
    def test_prefixes_are_lengthened_by_the_likeliest_successor(self):
        store = TrigramStore(8, 12)
        for place in range(6):
            store.reinforce(place, place + 1, place + 2, 0.5, 3.0)
        drafter = TrigramDrafter(store, AdaptiveDraftVerification(delta=0, choices=64))
        draft = drafter.propose([9, 0, 1], depth=10)
        assert draft.tokens == [2, 3, 4, 5], "three tokens searched, one more that follows"
        assert [kind[:2] for kind in draft.kinds] == [("trigram", depth) for depth in (1, 2, 3, 4)]
        assert draft.kinds[-1][2] == 0 < draft.kinds[0][2]

    def test_the_longest_paths_go_first(self):
        paths = [(1, 2, 3), (1, 2), (4, 5, 4), (6, 7, 8, 9), (1, 3, 5)]
        assert within_choices(paths, 64) == paths
        assert within_choices(paths, 10) == [(1, 2, 3), (1, 2), (4, 5, 4), (1, 3, 5)]
        assert within_choices(paths, 7) == [(1, 2, 3), (1, 2), (4, 5, 4)]
        assert within_choices(paths, 2) == [(1, 2)]
        assert within_choices(paths, 1) == []

    @pytest.mark.parametrize("budget", ["paths", "trie"])
    @pytest.mark.parametrize("choices", [1, 4, 12, 24, 64])
    def test_the_budget_is_kept(self, budget, choices):
        store = _random_store(12, successors=10)
        options = AdaptiveDraftVerification(delta=0, budget=budget, choices=choices, prefixes=64)
        draft = TrigramDrafter(store, options).propose([3, 5, 1], depth=10)
        ends = [node for node in range(len(draft)) if node not in draft.children]
        if budget == "paths":
            assert sum(len({draft.tokens[i] for i in draft.path(node)}) for node in ends) <= choices
        else:
            assert len(draft) == choices
            root = TrigramDrafter(store, options)._search.run(5, 1, position=3).visited(64)
            paths = {tuple(draft.tokens[i] for i in draft.path(node)) for node in range(len(draft))}
            left = min(root.get(path, 0) for path in paths)
            assert all(count <= left for path, count in root.items() if path not in paths)

    def test_a_short_context_gives_nothing_and_teaches_nothing(self):
        store = TrigramStore(8, 12)
        drafter = TrigramDrafter(store, AdaptiveDraftVerification())
        assert drafter.propose([1, 2], depth=5) is EMPTY
        assert _rows(store) == {}
        store.reinforce(1, 2, 3, 0.5, 3.0)
        for text in ([1], [1, 2]):
            assert drafter.propose(text, depth=5) is EMPTY, "not even what the table knows"
        assert drafter.propose([0, 1, 2], depth=5).tokens == [3]


# What it learns from


class TestLearning:
    def test_tables_that_learn_otherwise_are_kept_apart(self):
        lm = scripted_language_model(story_scorer())
        options = ("", "window=8", "delta=0.5", "cap=1.0", "read_prompt=True", "top_m=4")
        specs = [f"adaptive-draft-verification({option})" for option in options]
        made = [new_request(lm, spec, [1, 2], Settings(seed=0)) for spec in specs]
        stores = [method.store(request) for request, method in made]
        assert len({id(store) for store in stores}) == len(options)
        assert [method.store(request) for request, method in made] == stores, "and each stays with its session"
        request, method = new_request(lm, "adaptive-draft-verification(persist=False)", [1, 2], Settings(seed=0))
        assert method.store(request) is not method.store(request)

    def test_only_committed_text_teaches(self):
        """Through the engine: the session's table holds trigrams of the text alone, though much more was drafted."""
        lm = scripted_language_model(story_scorer())
        prompt = [1, 2, 3, 1, 2, 4, 1, 2]
        reply = lm.generate(prompt, method="adaptive-draft-verification", max_new_tokens=40)
        assert reply.stats.drafted > reply.stats.accepted
        [store] = [value for value in lm.memory.values() if isinstance(value, TrigramStore)]
        text = [*prompt, *reply.token_ids]
        committed = {tuple(text[i : i + 3]) for i in range(len(text) - 2)}
        learned = {(*pair, third) for pair, row in _rows(store).items() for third in row}
        assert learned <= committed
        assert len(learned) > len(committed) / 2

    def test_the_window_is_reinforced_once_in_every_round(self):
        store = TrigramStore(100, 12)
        drafter = TrigramDrafter(store, AdaptiveDraftVerification())
        text = list(range(30))
        drafter.propose(text, depth=5)
        assert store.find(12 * 100 + 13) is None, "before the window"
        assert store.find(14 * 100 + 15).weights == [0.04]
        assert store.find(27 * 100 + 28).weights == [0.04]
        drafter.propose([*text, 30], depth=5)
        assert store.find(14 * 100 + 15).weights == [0.04]
        assert store.find(15 * 100 + 16).weights == [0.08]
        whole = TrigramStore(100, 12)
        TrigramDrafter(whole, AdaptiveDraftVerification(read_prompt=True)).propose(text, depth=5)
        assert whole.find(1).weights == [0.04]


# Where the table comes from


class TestCorpus:
    @pytest.fixture
    def text(self):
        return scripted_language_model(story_scorer()).generate("qqq", "autoregressive", max_new_tokens=60).text

    def test_a_text_helps(self, text, tmp_path):
        path = tmp_path / "corpus.txt"
        path.write_text(text)
        lm = scripted_language_model(story_scorer())
        plain = lm.generate("qqqabc", method="autoregressive", max_new_tokens=40)
        alone = lm.generate("qqqabc", "adaptive-draft-verification", max_new_tokens=40)
        helped = lm.generate("qqqabc", f"adaptive-draft-verification(corpus={str(path)!r})", max_new_tokens=40)
        assert helped.token_ids == alone.token_ids == plain.token_ids
        assert helped.stats.rounds < alone.stats.rounds

    def test_a_table_is_a_text_counted_before(self, text, tmp_path):
        lm = scripted_language_model(story_scorer())
        (tmp_path / "corpus.txt").write_text(text)
        table = TrigramTable.count([lm.encode(text)], 24, tokenizer=fingerprint(lm.tokenizer, 24))
        table.save(tmp_path / "table.npz")
        stats = [
            lm.generate("qqq", f"adaptive-draft-verification(corpus={str(tmp_path / name)!r})", max_new_tokens=40).stats
            for name in ("corpus.txt", "table.npz")
        ]
        assert stats[0].rounds == stats[1].rounds
        assert stats[0].drafted == stats[1].drafted

    def test_bad_files_are_errors_before_work_starts(self, tmp_path):
        lm = scripted_language_model(story_scorer())
        TrigramTable.count([[1, 2, 3]], 24, tokenizer="another").save(tmp_path / "foreign.npz")
        (tmp_path / "broken.txt").write_bytes(b"ab\xff")
        (tmp_path / "broken.npz").write_bytes(b"no table")
        np.savez(tmp_path / "other.npz", weights=np.zeros(3))
        for name, message in (
            ("none.txt", "cannot be read"),
            ("broken.txt", "not UTF-8"),
            ("broken.npz", "no table of trigrams"),
            ("other.npz", "no table of trigrams"),
            ("foreign.npz", "another tokenizer"),
        ):
            with pytest.raises(BadInput, match=message):
                lm.generate("a", f"adaptive-draft-verification(corpus={str(tmp_path / name)!r})")


# What the paper promises


def _acceptance(lm, method: str, prompts: list[list[int]], tokens: int = 40) -> float:
    """Mean acceptance length over a stream, from totals."""
    stats = [lm.generate(prompt, method=method, max_new_tokens=tokens).stats for prompt in prompts]
    return sum(s.new_tokens for s in stats) / sum(s.rounds for s in stats)


class TestAdaptation:
    prompts: ClassVar[list[list[int]]] = [[first, 3, 5, 1] for first in range(12)]

    @pytest.mark.parametrize("table", ["", "corpus"])
    def test_the_second_pass_accepts_more(self, table, tmp_path):
        lm = scripted_language_model(story_scorer(surprise=0.5))
        corpus = ""
        if table:
            path = tmp_path / "corpus.txt"
            path.write_text(lm.generate([7, 7, 7], "autoregressive", max_new_tokens=100).text)
            corpus = f", corpus={str(path)!r}"
        spec = f"adaptive-draft-verification(adapt=False{corpus})"
        first, second = (_acceptance(lm, spec, self.prompts) for _ in range(2))
        assert second > 1.05 * first

    def test_without_reinforcement_both_passes_are_equal(self, tmp_path):
        lm = scripted_language_model(story_scorer(surprise=0.5))
        path = tmp_path / "corpus.txt"
        path.write_text(lm.generate([7, 7, 7], "autoregressive", max_new_tokens=100).text)
        spec = f"adaptive-draft-verification(adapt=False, delta=0, corpus={str(path)!r})"
        first, second = (_acceptance(lm, spec, self.prompts) for _ in range(2))
        assert first == second > 1.0

    def test_an_empty_table_helps_on_text_that_repeats(self):
        def script(prefix: tuple[int, ...]) -> list[float]:
            return [5.0 if token == prefix[-9] else 0.0 for token in range(20)]

        lm = scripted_language_model(ScriptedScorer(script, 20))
        prompt = [3, 14, 1, 5, 9, 2, 6, 8, 7] * 2
        assert _acceptance(lm, "adaptive-draft-verification", [prompt], tokens=60) > 3

    def test_sessions_do_not_share(self):
        lm = scripted_language_model(story_scorer())
        spec = "adaptive-draft-verification(adapt=False)"
        rounds = [
            lm.generate([5, 1, 9, 2], spec, max_new_tokens=40, session=session).stats.rounds
            for session in ("one", "one", "two")
        ]
        assert rounds[1] < rounds[0] == rounds[2]


class TestExploration:
    """A mixed-topic set: after the same two tokens each topic goes on in its own way, and all ways are in the table."""

    @staticmethod
    def _target() -> ScriptedScorer:
        rows: dict[object, torch.Tensor] = {}

        def script(prefix: tuple[int, ...]) -> torch.Tensor:
            key = (prefix[0] % 6, prefix[-1])
            if key not in rows:
                generator = np.random.Generator(np.random.Philox(key=key[0] * 1000 + key[1]))
                rows[key] = torch.from_numpy(generator.standard_normal(40)).float()
            return rows[key]

        return ScriptedScorer(script, 40)

    def test_a_greedy_search_is_narrower_and_accepts_less(self, tmp_path):
        lm = scripted_language_model(self._target())
        prompts = [[topic, first, second] for topic in range(6) for first in (7, 11) for second in (3, 8, 21)]
        path = tmp_path / "corpus.txt"
        path.write_text("".join(lm.generate(p, "autoregressive", max_new_tokens=40).text for p in prompts))
        store = TrigramStore(40, 12, TrigramTable.count([lm.encode(path.read_text())], 40).pruned(12))
        pairs = [pair for pair, row in _rows(store).items() if len(row) >= 3]
        broad, acceptance = [], []
        for explore in (True, False):
            options = AdaptiveDraftVerification(delta=0, explore=explore, prefixes=8, budget="trie", choices=8)
            drafter = TrigramDrafter(store, options)
            drafts = [drafter.propose([0, *pair], depth=10) for pair in pairs]
            broad.append(sum(len(draft.children[-1]) for draft in drafts) / len(drafts))
            spec = options.spec().replace("delta=0.0", f"delta=0, adapt=False, corpus={str(path)!r}")
            acceptance.append(_acceptance(lm, spec, prompts))
        assert broad[0] > broad[1]
        assert acceptance[0] > acceptance[1]
