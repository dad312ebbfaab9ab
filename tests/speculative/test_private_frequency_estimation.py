"""Private frequency estimation: what is reported, tables, drafts from them, and the whole way from users to drafts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from decodery.engine.settings import Settings
from decodery.errors import BadInput
from decodery.evaluation.recorded import replay
from decodery.models.forward import Forward, Rows
from decodery.speculative.continuations.trigrams import fingerprint
from decodery.speculative.private_frequency_estimation.cells import Cells, head_pairs
from decodery.speculative.private_frequency_estimation.mechanism import Counts, Frequencies, Mechanism
from decodery.speculative.private_frequency_estimation.method import FrequencyDrafter, PrivateFrequencyEstimation
from decodery.speculative.private_frequency_estimation.simulation import simulated_counts
from decodery.speculative.private_frequency_estimation.table import FrequencyTable
from decodery.testing import DrafterLaws, scripted_language_model, story_scorer
from decodery.testing.outputs import new_request

VOCABULARY = 24
CELLS = Cells(VOCABULARY, "", (1, 2, 5), ((2, 3, 4), (5, 6, 1), (0, 1, 2)))


def table(estimates: list[list[float]], error: float = 0.0, cells: Cells = CELLS) -> FrequencyTable:
    values = np.array([*(value for row in estimates for value in row), 0.5])
    return FrequencyTable.of(cells, Frequencies(values, error, 1000))


SMALL = table([[0.1, 0.3, 0.01], [0.2, 0.05, 0.0], [0.01, 0.0, 0.0]], 0.01)


def random_table(vocabulary: int, tokenizer: str = "") -> FrequencyTable:
    generator = np.random.Generator(np.random.Philox(key=1))
    few = min(6, vocabulary)
    cells = Cells(
        vocabulary,
        tokenizer,
        tuple(range(vocabulary)),
        tuple(tuple(generator.permutation(vocabulary)[:few].tolist()) for _ in range(vocabulary)),
    )
    values = generator.random(cells.size)
    return FrequencyTable.of(cells, Frequencies(values / values.sum(), 1e-3, 1000))


@pytest.fixture(autouse=True)
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every host of the laws finds a table of its own tokens."""
    lm = scripted_language_model(story_scorer())
    random_table(VOCABULARY, fingerprint(lm.tokenizer, VOCABULARY)).save(tmp_path / "table.npz")
    monkeypatch.chdir(tmp_path)


@dataclass(frozen=True)
class _Random(PrivateFrequencyEstimation):
    """Drafts from a random table, whatever the vocabulary."""

    name: ClassVar[str] = "random-frequencies"

    def read(self, request: Any) -> FrequencyTable:
        vocabulary = request.host.network.vocabulary
        return request.remember((self.name, vocabulary), lambda: random_table(vocabulary))


@dataclass(frozen=True)
class _Good(PrivateFrequencyEstimation):
    """Drafts from a table of what the target writes."""

    name: ClassVar[str] = "good-frequencies"

    def read(self, request: Any) -> FrequencyTable:
        network = request.host.network
        return request.remember((self.name, network.vocabulary), lambda: _written(network))


def _written(network: Any) -> FrequencyTable:
    texts = []
    for first in range(min(network.vocabulary, 8)):
        text, sequence = [first], network.new_sequence()
        for _ in range(24):
            fed = text[sequence.length :]
            [scores] = type(network).run_pass(network, [Forward(sequence, fed, logits=Rows.LAST)])
            text.append(int(scores.logits[0].argmax()))
        texts.append(text)
    everything = tuple(range(network.vocabulary))
    return FrequencyTable.counted(Cells(network.vocabulary, "", everything, (everything,) * len(everything)), texts)


class TestPrivateFrequencyEstimation(DrafterLaws):
    methods = (
        _Random(table="random", max_ngram=2, width=4, nodes=16, depth=5, adapt=False),
        _Good(table="good"),
    )
    samples = 800

    def test_a_good_table_is_accepted_and_changes_nothing(self):
        lm = scripted_language_model(story_scorer())
        prompt = [3, 1, 4]
        plain = lm.generate(prompt, method="autoregressive", max_new_tokens=40)
        good = lm.generate(prompt, method=_Good(table="good", max_ngram=0, adapt=False), max_new_tokens=40)
        assert list(good.token_ids) == list(plain.token_ids)
        assert good.stats.accepted > 5
        assert good.stats.rounds < 36

    def test_a_table_from_a_file(self):
        lm = scripted_language_model(story_scorer())
        plain = lm.generate([3, 1, 4], method="autoregressive", max_new_tokens=20)
        spec = "private-frequency-estimation(table=table.npz, max_ngram=0, adapt=false)"
        drafted = lm.generate([3, 1, 4], method=spec, max_new_tokens=20)
        assert list(drafted.token_ids) == list(plain.token_ids)
        assert drafted.stats.drafted > 10

    @pytest.mark.parametrize(
        ("name", "words"),
        [("none.npz", "cannot be read"), ("other.npz", "another tokenizer"), ("text.npz", "no table")],
    )
    def test_tables_that_do_not_fit(self, name: str, words: str):
        random_table(VOCABULARY, "another").save(Path("other.npz"))
        Path("text.npz").write_text("table")
        lm = scripted_language_model(story_scorer())
        with pytest.raises(BadInput, match=words):
            lm.generate([1], method=f"private-frequency-estimation(table={name})", max_new_tokens=2)

    def test_memory_is_set_aside_for_the_largest_draft(self):
        lm = scripted_language_model(story_scorer())
        for nodes, most in ((6, 10), (40, 40)):
            method = PrivateFrequencyEstimation(table="table.npz", nodes=nodes)
            request, _ = new_request(lm, method, [1, 2], Settings(max_new_tokens=5))
            assert method.caches(request)[0][1] == 7 + most


def draft(tokens: list[int], depth: int = 9, of: FrequencyTable | None = SMALL, **options: Any) -> Any:
    drafter = FrequencyDrafter(of, PrivateFrequencyEstimation(table="given", **options))
    found = drafter.propose(tokens, depth)
    return list(found.tokens), list(found.parents)


class TestDrafts:
    def test_likely_paths_come_first(self):
        assert draft([1], width=1, max_ngram=0) == ([3], [-1])
        assert draft([1], width=2, max_ngram=0) == ([3, 2, 5, 6], [-1, -1, 1, 1])
        assert draft([7], max_ngram=0) == ([], [])

    def test_what_is_not_significant_is_not_drafted(self):
        """0.05 is five standard errors, 0.01 is one."""
        assert draft([2], width=3, max_ngram=0) == ([5, 6], [-1, -1])
        assert draft([2], width=3, max_ngram=0, alpha=1e-8) == ([5], [-1])
        assert draft([5], max_ngram=0, depth=1) == ([], [])
        assert draft([5], max_ngram=0, depth=1, alpha=0.5) == (
            [0],
            [-1],
        )  # above none, but a pair with an estimate of 0 is not

    def test_sizes(self):
        assert draft([1], width=2, max_ngram=0, nodes=3) == ([3, 2, 5], [-1, -1, 1])
        assert draft([1], width=2, max_ngram=0, depth=1) == ([3, 2], [-1, -1])
        assert draft([1], 1, width=2, max_ngram=0) == ([3, 2], [-1, -1])

    def test_the_running_text_comes_first(self):
        text = [1, 9, 8, 7, 1]
        assert draft(text) == ([9, 8, 7, 1], [-1, 0, 1, 2])
        assert draft(text, max_ngram=0)[0][0] == 3
        assert draft([9, 1, 7, 9, 2, 9], max_ngram=1)[0] == [1, 7, 9, 2, 9]
        assert draft([9, 1], of=None) == ([], [])

    def test_kinds_tell_what_is_accepted_alike(self):
        drafter = FrequencyDrafter(SMALL, PrivateFrequencyEstimation(max_ngram=0))
        assert list(drafter.propose([1], 9).kinds) == [
            ("frequencies", 0, 3),
            ("frequencies", 0, 0),
            ("frequencies", 1, 0),
            ("frequencies", 1, 0),
        ]


class TestTables:
    def test_rows_are_sorted_and_kept(self, tmp_path: Path):
        assert SMALL.ids.tolist() == [[3, 2, 4], [5, 6, 1], [0, 1, 2]]
        assert SMALL.after(1, 0.01, 5) == [(3, pytest.approx(0.3)), (2, pytest.approx(0.1))]
        assert SMALL.after(1, 0.01, 1) == [(3, pytest.approx(0.3))]
        SMALL.save(tmp_path / "t.npz")
        read = FrequencyTable.read(tmp_path / "t.npz")
        assert read.after(1, 0.01, 5) == SMALL.after(1, 0.01, 5)
        assert (read.standard_error, read.vocabulary, read.tokenizer) == (0.01, VOCABULARY, "")

    def test_counted_tables_have_all_that_occurs(self):
        found = FrequencyTable.counted(CELLS, [[1, 2, 5, 9], [1, 2, 9]])
        assert found.after(1, 0.01, 3) == [(2, pytest.approx(2 / 5))]
        assert found.after(2, 0.01, 3) == [(5, pytest.approx(1 / 5))]
        assert found.standard_error == 0

    def test_shuffled_tables_keep_rows_together(self):
        shuffled = SMALL.shuffled(2)
        assert shuffled.contexts.tolist() != SMALL.contexts.tolist()
        assert sorted(shuffled.contexts.tolist()) == [1, 2, 5]
        assert (shuffled.ids == SMALL.ids).all()
        assert any(SMALL.shuffled(seed).contexts.tolist() != shuffled.contexts.tolist() for seed in range(5))

    def test_files_of_another_format(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        from decodery.speculative.private_frequency_estimation import table as module

        monkeypatch.setattr(module, "FORMAT", "other")
        SMALL.save(tmp_path / "t.npz")
        monkeypatch.undo()
        with pytest.raises(BadInput, match="format"):
            FrequencyTable.read(tmp_path / "t.npz")

    def test_single_tokens_make_no_table(self):
        with pytest.raises(BadInput, match="single tokens"):
            FrequencyTable.of(Cells(4), Frequencies(np.zeros(4), 0.1, 1))


class TestCells:
    def test_values_of_a_text(self):
        assert CELLS.size == 10
        assert CELLS.values([1, 2, 5, 0, 1, 9]) == [0, 3, 6, 9, 9]
        assert Cells(7).size == 7
        assert Cells(7).values([3, 3]) == [3, 3]
        assert [CELLS.tokens_of(value) for value in (0, 4, 9)] == [(1, 2), (2, 6), ()]
        assert Cells(7).tokens_of(3) == (3,)

    def test_one_value_of_a_text_is_drawn_evenly(self):
        drawn = [CELLS.choose([1, 2, 5, 0]) for _ in range(600)]
        assert {value: drawn.count(value) // 100 >= 1 for value in (0, 3, 6)} == {0: True, 3: True, 6: True}
        with pytest.raises(BadInput, match="1 tokens has nothing to report"):
            CELLS.choose([1])

    def test_the_head_makes_pairs(self):
        estimates = np.array([0.1, 0.4, -0.1, 0.3, 0.2])
        cells = head_pairs(Cells(5, "t"), estimates, 2, 3)
        assert cells == Cells(5, "t", (1, 3), ((1, 3, 4), (1, 3, 4)))
        assert head_pairs(Cells(5), estimates, 1, 1).successors == ((1,),)
        many = np.zeros(5000)
        assert len(head_pairs(Cells(5000), many, 4096, 1).contexts) == 4096
        with pytest.raises(BadInput, match="1 to 4096 contexts"):
            head_pairs(Cells(5000), many, 4097, 1)
        for wrong in ((0, 1), (6, 1), (2, 0)):
            with pytest.raises(BadInput, match="contexts and at least 1 successor"):
                head_pairs(Cells(5), estimates, *wrong)
        with pytest.raises(BadInput, match="these are of pairs"):
            head_pairs(CELLS, estimates, 1, 1)

    @pytest.mark.parametrize(
        ("contexts", "successors", "words"),
        [
            ((1,), ((1, 1),), "twice"),
            ((1, 1), ((1,), (2,)), "twice"),
            ((24,), ((1,),), "outside"),
            ((1,), ((-1,),), "outside"),
            ((1, 2), ((1,), (1, 2)), "equally many"),
            ((1, 2), ((1,),), "equally many"),
        ],
    )
    def test_what_does_not_fit(self, contexts: Any, successors: Any, words: str):
        with pytest.raises(BadInput, match=words):
            Cells(VOCABULARY, "", contexts, successors)

    def test_too_many_cells(self):
        with pytest.raises(BadInput, match="too large"):
            Cells(10_000, "", tuple(range(1001)), (tuple(range(1000)),) * 1001)

    def test_as_json(self):
        assert Cells.of(CELLS.as_dict()) == CELLS
        with pytest.raises(BadInput, match="stand for"):
            Cells.of({})


def test_from_users_to_drafts():
    """Simulated users of a text whose pairs are known: phase one finds the frequent tokens, phase two their successors, over
    two servers; the table drafts about as well as the one of who sees all."""
    generator = np.random.Generator(np.random.Philox(key=3))
    chain = {token: [(token * 7 + step) % VOCABULARY for step in (1, 2, 5)] for token in range(VOCABULARY)}

    def written(length: int) -> list[int]:
        text = [0]
        while len(text) < length:
            text.append(chain[text[-1]][generator.choice(3, p=[0.7, 0.2, 0.1])])
        return text

    texts = [written(400) for _ in range(30)]
    tokens = Cells(VOCABULARY)
    first = Mechanism.choose(tokens.size, 4.0)
    values = np.concatenate([tokens.values(text) for text in texts])
    head = simulated_counts(first, generator.choice(values, 20_000), generator).frequencies()
    pairs = head_pairs(tokens, head.values, 12, VOCABULARY)
    second = Mechanism.choose(pairs.size, 4.0, 4, (0.5, 0.9), tries=4)
    values = np.concatenate([pairs.values(text) for text in texts])
    servers = [simulated_counts(second, generator.choice(values, 100_000), generator) for _ in range(2)]
    found = FrequencyTable.of(pairs, Counts.merged(servers).frequencies())
    held_out = written(600)

    def accepted(of: FrequencyTable) -> float:
        told = replay(
            FrequencyDrafter(of, PrivateFrequencyEstimation(table="given", max_ngram=0, width=1, depth=1)), held_out, 1
        )
        return told.accepted / told.drafted

    private, counted = accepted(found), accepted(FrequencyTable.counted(pairs, texts))
    assert private > 0.8 * counted > 0.4
    assert accepted(found.shuffled(2)) < 0.5 * private
