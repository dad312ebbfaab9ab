"""What speculative sampling promises (Leviathan et al., 2023; Chen et al., 2023; SpecInfer, 2024), decided end to end.

The sampled law is decided by enumeration: the whole engine is run once for every way in which its random decisions can fall,
which gives the law to the rounding of float32. No sample size comes close to that, and there are no false alarms. What
enumeration takes for granted, that draws at different addresses are independent, is tested with real noise and N = 100 000.
"""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from mechanisms import LOSSLESS

from decodery.engine.registry import MethodInfo, find
from decodery.engine.settings import Settings
from decodery.models.forward import Forward, tree_mask
from decodery.sampling.law import Law
from decodery.sampling.noise import Noise, Stage
from decodery.speculative.draft import ROOT, Draft, Siblings
from decodery.speculative.verifiers import ChainRejection, SampleThenMatch, TreeRejection
from decodery.testing import (
    TabularScorer,
    adversarial_draft,
    exact_outputs,
    faults,
    goodness_of_fit,
    oracle_draft,
    random_draft,
    scripted_language_model,
    story_scorer,
    total_variation,
    toy_language_model,
)

ROUNDING = 1e-6
LAWS = {
    "temperature 0.7": {"temperature": 0.7},
    "temperature 1": {"temperature": 1.0},
    "top-p 0.9": {"temperature": 1.0, "top_p": 0.9},
    "temperature 0.7, top-p 0.9": {"temperature": 0.7, "top_p": 0.9},
}


def _label(value: object) -> str:
    return str(value) if isinstance(value, str | int) else getattr(value, "name", type(value).__name__)


def _model(vocabulary: int, seed: int = 3):
    scorer = TabularScorer(vocabulary, order=None, seed=seed)
    return scripted_language_model(scorer, drafter=scorer.blurred(0.8)), scorer


def _distance(method, vocabulary: int, tokens: int, law: str) -> float:
    lm, scorer = _model(vocabulary)
    settings = Settings(**LAWS[law], max_new_tokens=tokens, seed=0)
    found = exact_outputs(lm, method, [0, 1, 2], settings, earlier=([0, 1], [2, 0, 1]))
    return total_variation(found, scorer.joint([0, 1, 2], tokens, settings))


class TestJointLaw:
    @pytest.mark.parametrize("law", LAWS)
    @pytest.mark.parametrize(
        ("method", "vocabulary", "tokens"),
        [
            ("draft-model(draft=other)", 6, 2),  # chains
            ("draft-model(draft=other)", 3, 3),
            ("draft-model(draft=other, width=2)", 5, 2),  # trees with replacement
            ("draft-model(draft=other, width=3)", 4, 2),
            ("token-recycling", 6, 3),  # deterministic trees
            ("suffix-automaton", 6, 3),  # deterministic chains
            (random_draft(6), 6, 3),
        ],
        ids=_label,
    )
    def test_equals_ancestral_sampling(self, method, vocabulary, tokens, law):
        assert _distance(method, vocabulary, tokens, law) < ROUNDING

    @pytest.mark.parametrize(
        ("fault", "law"),
        [
            (faults.ResidualFromTarget(), "temperature 1"),
            (faults.UnwarpedBonus(), "temperature 0.7"),
            (faults.UnwarpedBonus(), "top-p 0.9"),
            (faults.UntruncatedDraft(), "top-p 0.9"),
            (faults.InvertedRatio(), "temperature 1"),
            (faults.IgnoresTemperature(), "temperature 0.7"),
            (faults.MatchThenDraw(), "temperature 1"),
            (faults.UnchangedSiblings(width=2, length=1), "temperature 1"),
        ],
        ids=_label,
    )
    def test_the_negative_controls_fail(self, fault, law):
        assert _distance(fault, 3, 3, law) > 1000 * ROUNDING


class TestRealNoise:
    """Verifiers with the real noise on 7 tokens: 100 000 drafts of two levels, chi-square of the first two tokens.

    A sound verifier fails a test with probability 1e-3 over all seeds; the seed is fixed, so it fails always or never.
    """

    SAMPLES = 100_000

    @pytest.mark.parametrize(
        ("verifier", "kind", "width"),
        [
            (ChainRejection(), Siblings.WITH_REPLACEMENT, 1),
            (TreeRejection(), Siblings.WITH_REPLACEMENT, 2),
            (SampleThenMatch(), Siblings.DETERMINISTIC, 2),
        ],
        ids=_label,
    )
    def test_two_tokens_have_the_target_law(self, verifier, kind, width):
        assert self._fit(verifier, kind, width).p_value > 1e-3

    def test_the_negative_control_fails(self):
        assert self._fit(faults._SharedNoise(), Siblings.WITH_REPLACEMENT, 1, 20_000).p_value < 1e-3

    def _fit(self, verifier, kind: Siblings, width: int, samples: int = SAMPLES):
        size, prompt = 7, [0, 1]
        scorer = TabularScorer(size, order=None, seed=1)
        settings = Settings(temperature=0.7, top_p=0.9, max_new_tokens=2, seed=0)
        law = Law(settings, prompt)
        target = [
            law.log_probabilities(scorer.score([(*prompt, *path)], True)[0], path)
            for path in [(), *((token,) for token in range(size))]
        ]
        drafter = law.log_probabilities(scorer.blurred(0.8).score([tuple(prompt)], True)[0]).exp()
        best = drafter.argsort(descending=True)[:width].tolist()
        counts: Counter[tuple[int, int]] = Counter()
        for sample in range(samples):
            noise = Noise(17, sample)
            if kind is Siblings.DETERMINISTIC:
                draft = Draft(best, [ROOT] * width)
            else:
                drawn = [noise.choose(drafter, 2, Stage.DRAFT, i) for i in range(width)]
                draft = Draft(drawn, [ROOT] * width, {ROOT: drafter}, kind)
            rows = [target[0], *(target[1 + token] for token in draft.tokens)]
            verdict = verifier.verify(draft, rows, noise, 2)
            if verdict.path:
                first, second = draft.tokens[verdict.path[0]], verdict.next_token
            else:
                first = verdict.next_token
                second = noise.choose(target[1 + first].exp(), 3, Stage.TARGET)
            counts[first, second] += 1
        return goodness_of_fit(counts, scorer.joint(prompt, 2, settings))


class TestGreedyIdentity:
    """On a network in float32, where a wrong mask or position is no error but another score."""

    METHODS = (
        *(name for name in LOSSLESS if MethodInfo.of(find(name)).family == "speculative"),
        "token-recycling(nodes=12)",
        "draft-model(width=3)",
        oracle_draft(3),
        adversarial_draft(3, 2),
        random_draft(12),
    )

    @pytest.fixture(scope="class")
    def plain(self):
        lm = toy_language_model(seed=1, layers=4)  # with layers between the first and the last, which some leave out
        prompts = [f"{word} number {i}" for i in range(10) for word in ("the", "a", "no", "every", "another")]
        ids = [lm.tokenize(prompt) for prompt in prompts]
        return lm, ids, [lm.generate(prompt, method="autoregressive", max_new_tokens=20) for prompt in ids]

    @pytest.mark.parametrize("method", METHODS, ids=_label)
    def test_on_fifty_prompts_of_a_network(self, plain, method):
        lm, prompts, references = plain
        lm.forget()
        drafted = 0
        for prompt, reference in zip(prompts, references, strict=True):
            reply = lm.generate(prompt, method=method, max_new_tokens=20)
            assert reply.token_ids == reference.token_ids
            drafted += reply.stats.drafted
        assert drafted > 0, "the test must test something"


class TestForwardCounts:
    @pytest.mark.parametrize("count", [1, 5, 6, 30])
    @pytest.mark.parametrize("length", [1, 4])
    def test_an_oracle_takes_the_fewest(self, length, count):
        lm = toy_language_model(seed=1)
        stats = lm.generate("hello", method=oracle_draft(length), max_new_tokens=count).stats
        assert stats.forwards == math.ceil(count / (length + 1))

    def test_an_adversary_takes_one_per_token(self):
        lm = toy_language_model(seed=1)
        assert lm.generate("hello", method=adversarial_draft(4, 2), max_new_tokens=20).stats.forwards == 20


class TestTreeForward:
    """A tree is scored as its paths would be, one by one."""

    DRAFT = Draft([65, 66, 67, 68, 69, 70, 71], [ROOT, ROOT, 0, 0, 2, 4, 1])

    @pytest.fixture
    def scored(self):
        network = toy_language_model(seed=2).network
        sequence = network.new_sequence()
        prompt = [72, 101, 108, 108, 111]
        network.run([Forward(sequence, prompt)])
        start = len(prompt)
        positions = [start, *(start + depth for depth in self.DRAFT.depths())]
        mask = tree_mask(start, 1, self.DRAFT.parents)
        [scores] = network.run([Forward(sequence, [33, *self.DRAFT.tokens], positions, mask)])
        return network, sequence, [*prompt, 33], scores.logits

    def test_every_node_has_the_scores_of_its_path(self, scored):
        network, _, text, logits = scored
        for node in range(len(self.DRAFT)):
            path = [self.DRAFT.tokens[i] for i in self.DRAFT.path(node)]
            [alone] = network.run([Forward(network.new_sequence(), [*text, *path])])
            torch.testing.assert_close(logits[node + 1], alone.logits[-1], atol=1e-4, rtol=0)

    @pytest.mark.parametrize("leaf", [5, 3, 6, ROOT])
    def test_after_keeping_a_path_the_next_scores_are_those_of_a_fresh_cache(self, scored, leaf):
        network, sequence, text, _ = scored
        path = self.DRAFT.path(leaf)
        sequence.keep([len(text) + node for node in path], len(text))
        assert sequence.tokens == [*text, *(self.DRAFT.tokens[node] for node in path)]
        assert sequence.positions == list(range(sequence.length))
        kept = list(sequence.tokens)
        [after] = network.run([Forward(sequence, [99, 100])])
        [fresh] = network.run([Forward(network.new_sequence(), [*kept, 99, 100])])
        torch.testing.assert_close(after.logits, fresh.logits[-2:], atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", [name for name in LOSSLESS if name != "autoregressive"])
def test_a_stop_token_within_an_accepted_run_ends_it(method):
    """The bonus after it is never emitted, and nothing is drafted beyond it."""
    lm = scripted_language_model(story_scorer())
    whole = lm.generate([4, 2], method="autoregressive", max_new_tokens=40).token_ids
    for place in (7, 20, 33):
        stop = whole[place]
        lm.generate([4, 2], method=method, max_new_tokens=40)  # learn the text
        reply = lm.generate([4, 2], method=method, max_new_tokens=40, stop_token_ids=[stop])
        assert reply.token_ids == whole[: whole.index(stop) + 1]
