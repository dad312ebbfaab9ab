"""The tools of `decodery.testing`, which all other tests rely on."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from decodery.engine.settings import Settings
from decodery.models.forward import Attend, Forward, Layers, Rows, Slots, tree_mask
from decodery.sampling.noise import Noise, Stage
from decodery.testing import (
    ByteTokenizer,
    DrafterLaws,
    EdgeNoise,
    LetterTokenizer,
    ScriptedScorer,
    TabularScorer,
    enumerate_outcomes,
    exact_outputs,
    goodness_of_fit,
    planted_faults,
    sampled_outputs,
    scripted_language_model,
    story_scorer,
    total_variation,
    toy_language_model,
    visible_prefixes,
    watched,
)


def test_it_does_not_need_pytest():
    code = "import decodery.testing, decodery.evaluation.check, sys; sys.exit('pytest' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def _echo(prefix: tuple[int, ...]) -> list[float]:
    """A scorer whose scores spell out the prefix: its hash, spread over ten numbers."""
    return [float(hash((prefix, i)) % 997) for i in range(10)]


class TestScriptedScorer:
    """A wrong mask, a wrong position or a cache that was not rolled back must show."""

    @pytest.fixture
    def scorer(self):
        return ScriptedScorer(_echo, 10)

    @pytest.fixture
    def sequence(self, scorer):
        sequence = scorer.new_sequence()
        scorer.run([Forward(sequence, [1, 2, 3])])
        return sequence

    def _rows(self, scorer, forward) -> list[list[float]]:
        return scorer.run([forward])[0].logits.tolist()

    def test_rows_see_their_prefix(self, scorer, sequence):
        assert sequence.tokens == [1, 2, 3]
        rows = self._rows(scorer, Forward(sequence, [4, 5]))
        assert rows == [_echo((1, 2, 3, 4)), _echo((1, 2, 3, 4, 5))]
        assert sequence.positions == [0, 1, 2, 3, 4]

    def test_only_the_rows_asked_for(self, scorer, sequence):
        assert self._rows(scorer, Forward(sequence, [4, 5], logits=Rows.LAST)) == [_echo((1, 2, 3, 4, 5))]
        assert self._rows(scorer, Forward(sequence, [6, 7], logits=(1, 0)))[1] == _echo((1, 2, 3, 4, 5, 6))
        assert self._rows(scorer, Forward(sequence, [8], logits=Rows.NONE)) == []

    def test_trees(self, scorer, sequence):
        mask = tree_mask(3, 1, [-1, -1, 0])
        rows = self._rows(scorer, Forward(sequence, [4, 5, 6, 7], [3, 4, 4, 5], mask))
        paths = [(4,), (4, 5), (4, 6), (4, 5, 7)]
        assert rows == [_echo((1, 2, 3, *path)) for path in paths]

    def test_nowhere_leaves_the_cache(self, scorer, sequence):
        rows = self._rows(scorer, Forward(sequence, [4], slots=Slots.NOWHERE))
        assert rows == [_echo((1, 2, 3, 4))]
        assert sequence.tokens == [1, 2, 3]

    def test_slots_overwrite(self, scorer, sequence):
        mask = torch.ones(1, 3, dtype=torch.bool)
        rows = self._rows(scorer, Forward(sequence, [9], [2], mask, slots=[2]))
        assert rows == [_echo((1, 2, 9))]
        assert sequence.tokens == [1, 2, 9]

    def test_packing_keeps_sequences_apart(self, scorer):
        forwards = [Forward(scorer.new_sequence(), [i, i + 1]) for i in range(3)]
        answers = scorer.run(forwards)
        assert [answer.logits[-1].tolist() for answer in answers] == [_echo((i, i + 1)) for i in range(3)]

    def test_a_wrong_mask_is_an_error(self, scorer, sequence):
        mask = tree_mask(3, 1, [-1])
        mask[1, 0] = False
        with pytest.raises(AssertionError, match="sees the positions"):
            scorer.run([Forward(sequence, [4, 5], [3, 4], mask)])
        mask = tree_mask(3, 1, [-1, -1])
        mask[2, 4] = True  # a sibling
        with pytest.raises(AssertionError, match="sees the positions"):
            scorer.run([Forward(sequence, [4, 5, 6], [3, 4, 4], mask)])

    def test_a_wrong_position_is_an_error(self, scorer, sequence):
        with pytest.raises(AssertionError, match="sees the positions"):
            scorer.run([Forward(sequence, [4], [4])])

    def test_a_row_that_does_not_see_itself_is_an_error(self, scorer, sequence):
        mask = tree_mask(3, 1, [])
        mask[0, 3] = False
        with pytest.raises(AssertionError, match="does not see itself"):
            scorer.run([Forward(sequence, [4], [3], mask)])

    def test_a_cache_that_was_not_rolled_back_is_an_error_or_another_score(self, scorer, sequence):
        scorer.run([Forward(sequence, [4, 5])])
        stale = self._rows(scorer, Forward(sequence, [6]))
        assert stale != [_echo((1, 2, 3, 6))]
        tree = scorer.new_sequence()
        scorer.run([Forward(tree, [1, 2, 3], [0, 1, 1], tree_mask(0, 1, [-1, -1]))])
        with pytest.raises(AssertionError, match="gaps or repeats"):
            scorer.run([Forward(tree, [4])])

    def test_full_attention_needs_a_scorer_that_is_not_causal(self, scorer):
        free = ScriptedScorer(_echo, 10, causal=False)
        rows = self._rows(free, Forward(free.new_sequence(), [1, 2, 3], attend=Attend.FULL))
        assert rows == [_echo((1, 2, 3))] * 3
        with pytest.raises(AssertionError):
            scorer.run([Forward(scorer.new_sequence(), [1, 2, 3], attend=Attend.FULL)])

    def test_hidden_rows_stand_for_their_prefixes(self, scorer):
        """The layers of a round run in two parts, as with a network, and the head speaks for the rows of any layer."""
        whole = self._rows(scorer, Forward(scorer.new_sequence(), [1, 2, 3]))
        sequence = scorer.new_sequence()
        [lower] = scorer.run([Forward(sequence, [1, 2, 3], layers=Layers(0, 2), taps=(0, 1))])
        [upper] = scorer.run([Forward(sequence, lower.hidden[1], slots=range(3), layers=Layers(2), taps=(2,))])
        assert upper.logits.tolist() == whole
        assert scorer.head()(upper.hidden[2]).tolist() == whole
        assert scorer.head(torch.tensor([2, 4]))(lower.hidden[0]).tolist() == lower.logits[:, [2, 4]].tolist()
        with pytest.raises(AssertionError, match="another layer"):
            scorer.run([Forward(sequence, lower.hidden[0], slots=range(3), layers=Layers(2))])
        with pytest.raises(AssertionError, match="are fed where"):
            scorer.run([Forward(sequence, lower.hidden[1][[0, 2, 1]], slots=range(3), layers=Layers(2))])

    def test_rows_that_a_layer_has_not_written_are_stale(self, scorer):
        sequence = scorer.new_sequence()
        scorer.run([Forward(sequence, [1, 2])])
        sequence.truncate(1)
        [lower] = scorer.run([Forward(sequence, [3], layers=Layers(0, 2), taps=(1,))])
        with pytest.raises(AssertionError, match=r"rows \[1\] are stale"):
            scorer.run([Forward(sequence, [4])])  # layer 2 still holds what was there before
        scorer.run([Forward(sequence, [4], layers=Layers(0, 2))])
        sequence.truncate(2)
        scorer.run([Forward(sequence, lower.hidden[1], slots=[1], layers=Layers(2))])
        scorer.run([Forward(sequence, [4])])
        skipped = scorer.new_sequence()
        scorer.run([Forward(skipped, [1], layers=Layers(skip_attention=frozenset({1})))])
        scorer.run([Forward(skipped, [2], layers=Layers(skip_attention=frozenset({1})))])
        with pytest.raises(AssertionError, match="stale"):
            scorer.run([Forward(skipped, [3])])
        twin = skipped.fork()
        twin.keep([1], 0)
        with pytest.raises(AssertionError):
            scorer.run([Forward(twin, [3])])

    def test_memory_cuts_the_prefix(self, sequence):
        forward = Forward(sequence, [4, 5])
        assert visible_prefixes(forward, range(2), memory=2) == [(3, 4), (4, 5)]
        assert visible_prefixes(forward, range(2), memory=9) == [(1, 2, 3, 4), (1, 2, 3, 4, 5)]
        masked = Forward(sequence, [4, 5], [3, 4], tree_mask(3, 2, []))
        assert visible_prefixes(masked, range(2), memory=2) == [(3, 4), (4, 5)]


class TestTabularScorer:
    def test_laws_are_fixed_by_the_seed(self):
        one, same, other = TabularScorer(5, seed=1), TabularScorer(5, seed=1), TabularScorer(5, seed=2)
        assert torch.equal(one.law([1, 2]), same.law([1, 2]))
        assert not torch.equal(one.law([1, 2]), other.law([1, 2]))
        assert torch.equal(one.law([0, 1, 2]), one.law([4, 1, 2])), "only the last two tokens count"
        whole = TabularScorer(5, order=None)
        assert not torch.equal(whole.law([0, 1, 2]), whole.law([4, 1, 2]))
        assert float(one.law([3]).sum()) == pytest.approx(1.0)

    def test_given_laws(self):
        scorer = TabularScorer(2, order=1, given={(0,): [3, 1]})
        assert scorer.law([0]).tolist() == [0.75, 0.25]
        assert scorer.score([(0,)], True).exp().tolist()[0] == pytest.approx([0.75, 0.25])
        with pytest.raises(ValueError, match="must be 2 probabilities"):
            TabularScorer(2, order=1, given=lambda prefix: [1, 2, 3]).law([0])

    def test_zeros_stay_zeros(self):
        scorer = TabularScorer(3, order=1, given=lambda prefix: [0.0, 0.5, 0.5])
        assert scorer.score([(0,)], True)[0, 0] == -math.inf
        assert set(scorer.joint([0], 2)) == {(1, 1), (1, 2), (2, 1), (2, 2)}

    @given(seed=st.integers(0, 50), order=st.sampled_from([1, 2, None]), temperature=st.sampled_from([0.5, 1.0]))
    def test_the_joint_law_is_the_chain_rule(self, seed, order, temperature):
        scorer = TabularScorer(3, order=order, seed=seed)
        joint = scorer.joint([0, 1], 2, Settings(temperature=temperature))
        assert math.fsum(joint.values()) == pytest.approx(1.0)
        for (first, second), mass in joint.items():
            one = scorer.law([0, 1]) ** (1 / temperature)
            two = scorer.law([0, 1, first]) ** (1 / temperature)
            assert mass == pytest.approx(float(one[first] / one.sum() * two[second] / two.sum()), abs=1e-6)

    def test_the_joint_law_ends_at_stop_tokens(self):
        joint = TabularScorer(3).joint([0], 3, stop_ids=(2,))
        assert (2,) in joint
        assert all(2 not in output[:-1] for output in joint)
        assert all(len(output) == 3 or output[-1] == 2 for output in joint)

    def test_greedy_is_one_outcome(self):
        [(output, mass)] = TabularScorer(4).joint([0], 5, Settings(temperature=0.0)).items()
        assert mass == 1.0
        lm = scripted_language_model(TabularScorer(4))
        assert lm.generate([0], method="autoregressive", max_new_tokens=5).token_ids == list(output)

    def test_blurring_mixes(self):
        scorer = TabularScorer(4, seed=3)
        distance = [
            float((scorer.law([1]) - scorer.blurred(share).law([1])).abs().sum() / 2) for share in (0.0, 0.4, 0.8)
        ]
        assert distance[0] == 0
        assert distance[2] == pytest.approx(2 * distance[1])
        whole = scorer.score([(1,)], True)
        assert not torch.equal(whole, scorer.score([(1,)], False)), "a pass through some layers has another law"


class TestEnumeration:
    def test_it_finds_the_law(self):
        def run(chance):
            first = chance.choose(torch.tensor([0.2, 0.0, 0.8]), 0, Stage.TARGET)
            return first, first == 2 and chance.accept(0.25, 1)

        assert enumerate_outcomes(run) == pytest.approx({(0, False): 0.2, (2, True): 0.2, (2, False): 0.6})

    def test_impossible_branches_are_not_visited(self):
        visited = []

        def run(chance):
            visited.append((chance.accept(0.0, 0), chance.accept(1.5, 1), chance.accept(-1.0, 2)))
            return visited[-1]

        assert enumerate_outcomes(run) == {(False, True, False): 1.0}
        assert len(visited) == 1

    def test_masses_need_not_be_normalised(self):
        law = enumerate_outcomes(lambda chance: chance.choose(torch.tensor([1.0, 3.0]), 0, Stage.RESIDUAL))
        assert law == pytest.approx({0: 0.25, 1: 0.75})

    def test_the_same_address_twice_is_an_error(self):
        def run(chance):
            return chance.accept(0.5, 3), chance.accept(0.5, 3)

        with pytest.raises(AssertionError, match="used twice"):
            enumerate_outcomes(run)
        enumerate_outcomes(lambda chance: (chance.accept(0.5, 3), chance.accept(0.5, 3, index=1)))

    @pytest.mark.parametrize("bad", [[0.0, 0.0], [-0.5, 1.0]])
    def test_bad_laws_are_errors(self, bad):
        with pytest.raises(AssertionError):
            enumerate_outcomes(lambda chance: chance.choose(torch.tensor(bad), 0, Stage.TARGET))
        with pytest.raises(AssertionError):
            enumerate_outcomes(lambda chance: chance.accept(math.nan, 0))

    def test_too_many_leaves(self):
        with pytest.raises(RuntimeError, match="more than 10 leaves"):
            enumerate_outcomes(lambda chance: sum(chance.accept(0.5, i) for i in range(9)), limit=10)

    def test_outputs_of_the_engine(self):
        scorer = TabularScorer(3, order=1)
        lm = scripted_language_model(scorer)
        settings = Settings(temperature=1.0, max_new_tokens=2, seed=5)
        law = exact_outputs(lm, "autoregressive", [0], settings)
        assert total_variation(law, scorer.joint([0], 2)) < 1e-6
        counts = sampled_outputs(lm, "autoregressive", [0], settings, 700)
        assert sum(counts.values()) == 700
        assert counts == sampled_outputs(lm, "autoregressive", [0], settings, 700)
        assert goodness_of_fit(counts, law).p_value > 1e-4


class TestGoodness:
    LAW = {"a": 0.5, "b": 0.3, "c": 0.199, "d": 0.001}  # noqa: RUF012

    def _sample(self, law, seed, size=1000) -> Counter:
        generator = np.random.Generator(np.random.Philox(key=seed))
        return Counter(generator.choice(list(law), size=size, p=list(law.values())).tolist())

    def test_p_values_are_uniform_under_the_law(self):
        values = [goodness_of_fit(self._sample(self.LAW, seed), self.LAW).p_value for seed in range(400)]
        assert 0.02 < sum(value < 0.05 for value in values) / 400 < 0.09
        assert 0.42 < sum(value < 0.5 for value in values) / 400 < 0.58

    def test_the_distance_is_what_noise_makes_of_it(self):
        fits = [goodness_of_fit(self._sample(self.LAW, seed), self.LAW) for seed in range(200)]
        mean = sum(fit.total_variation for fit in fits) / 200
        assert mean == pytest.approx(fits[0].expected_total_variation, rel=0.1)

    def test_another_law_is_refuted(self):
        other = {"a": 0.4, "b": 0.4, "c": 0.2}
        assert goodness_of_fit(self._sample(other, 1), self.LAW).p_value < 1e-6

    def test_an_impossible_outcome_refutes_at_once(self):
        fit = goodness_of_fit(Counter(a=500, b=300, c=200, x=1), self.LAW)
        assert fit.p_value == 0
        assert fit.impossible == 1

    def test_rare_outcomes_share_a_cell(self):
        law = dict.fromkeys(range(500), 0.001) | {"rest": 0.5}
        assert goodness_of_fit(Counter({"rest": 500, 3: 500}), law).degrees == 1
        assert goodness_of_fit(Counter(a=50), {"a": 1.0}).p_value == 1.0

    def test_total_variation(self):
        assert total_variation({"a": 1.0}, {"b": 1.0}) == 1.0
        assert total_variation({"a": 0.5, "b": 0.5}, {"a": 0.5, "b": 0.5}) == 0.0


class TestHosts:
    @given(st.text())
    def test_bytes_come_back(self, text):
        tokenizer = ByteTokenizer()
        assert tokenizer.decode(tokenizer.encode(text)) == text

    def test_special_tokens(self):
        tokenizer = ByteTokenizer()
        text = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], add_generation_prompt=True)
        ids = tokenizer.encode(text)
        assert ids == [257, 104, 105, 256, 258]
        assert tokenizer.decode(ids) == text == "<|user|>hi<|end|><|assistant|>"
        assert tokenizer.decode(ids, skip_special_tokens=True) == "hi"
        assert tokenizer.eos_token_id == 256
        assert len(tokenizer) == 260

    @given(st.lists(st.integers(0, 59)))
    def test_letters_come_back(self, ids):
        tokenizer = LetterTokenizer(60)
        assert tokenizer.encode(tokenizer.decode(ids)) == ids
        assert all(0 <= token < 60 for token in tokenizer.encode("Any text. Ünicode?"))

    def test_the_toy_is_the_same_every_time(self):
        before = torch.random.get_rng_state()
        one, same, other = toy_language_model(3), toy_language_model(3), toy_language_model(4)
        assert torch.equal(before, torch.random.get_rng_state()), "the global generator is left alone"
        texts = [lm.generate("hello", method="autoregressive", max_new_tokens=20).text for lm in (one, same, other)]
        assert texts[0] == texts[1] != texts[2]

    @pytest.mark.parametrize("seed", range(3))
    def test_the_toy_s_text_neither_stands_still_nor_is_it_noise(self, seed):
        lm = toy_language_model(seed)
        text = [lm.generate(f"{i}", method="autoregressive", max_new_tokens=60) for i in range(5)]
        tokens = [token for reply in text for token in reply.token_ids]
        assert len(set(tokens)) > 10
        stats = [lm.generate(f"{i}", method="token-recycling", max_new_tokens=60).stats for i in range(5)]
        assert sum(s.new_tokens for s in stats) / sum(s.rounds for s in stats) > 1.3

    def test_the_toy_chats(self):
        reply = toy_language_model(1).chat("hello", method="autoregressive", max_new_tokens=4)
        assert reply.prompt_token_ids[0] == 257

    def test_any_companion_is_the_drafter(self):
        drafter = story_scorer(name="other")
        assert scripted_language_model(story_scorer(), drafter=drafter).companion("whatever").network is drafter

    def test_a_story_depends_on_all_of_its_prefix(self):
        scorer = story_scorer()
        first, second = scorer.score([(1, 2, 3), (2, 2, 3)], True)
        assert not torch.equal(first, second)

    def test_watching_ends(self):
        lm = scripted_language_model(story_scorer())
        seen = []
        with watched(lm.network, seen.append):
            lm.generate([1], method="autoregressive", max_new_tokens=3)
        lm.generate([1], method="autoregressive", max_new_tokens=3)
        assert len(seen) == 3
        assert "run_pass" not in vars(lm.network)


class TestNegativeControls:
    """Faults must break the inherited laws, too, not only `check_method`."""

    WHERE = {  # noqa: RUF012
        "fault-greedy-accepts-all": "test_greedy_output_is_that_of_plain_decoding",
        "fault-accepts-impossible": "test_what_is_impossible_does_not_happen_at_the_edges_of_the_unit_interval",
        "fault-shared-noise": "test_sampled_law_is_that_of_plain_decoding_with_real_noise",
    }

    @pytest.mark.parametrize("fault", planted_faults(), ids=lambda fault: fault.name)
    def test_a_fault_breaks_a_law(self, fault):
        laws = type("Laws", (DrafterLaws,), {"methods": (fault,)})()
        law = getattr(laws, self.WHERE.get(fault.name, "test_sampled_law_is_that_of_plain_decoding_exactly"))
        with pytest.raises(AssertionError):
            law()

    def test_a_wrong_path_in_the_cache_breaks_the_cache_law(self, monkeypatch):
        from decodery.models.sequence import Sequence

        def first_rows(self, rows, start=0):
            """Keeps as many rows as it should, but not the accepted ones."""
            self.truncate(start + len(list(rows)))

        laws = type("Laws", (DrafterLaws,), {"methods": ("token-recycling",)})()
        laws.test_the_cache_holds_the_committed_tokens()
        monkeypatch.setattr(Sequence, "keep", first_rows)
        with pytest.raises(AssertionError, match="other tokens than the text"):
            laws.test_the_cache_holds_the_committed_tokens()


def test_edge_noise_is_at_the_edge():
    low, high = EdgeNoise(0.0), EdgeNoise(1.0 - 2.0**-53)
    law = torch.tensor([0.0, 0.5, 0.5, 0.0])
    assert low.choose(law, 0, Stage.TARGET) == 1
    assert high.choose(law, 0, Stage.TARGET) == 2
    assert not low.accept(0.0, 0)
    assert not high.accept(0.999, 0)
    assert high.accept(1.0, 0)
    assert low.uniforms(3, 0, Stage.TARGET).tolist() == [0.0] * 3
    assert isinstance(low, Noise)
