"""The laws of our verifiers, by enumeration, and verifiers that must break them."""

from __future__ import annotations

import pytest
import torch

from decodery.sampling.noise import Noise
from decodery.speculative.draft import EMPTY, Draft, Siblings, chain
from decodery.speculative.verifiers import (
    ChainRejection,
    GreedyMatch,
    SampleThenMatch,
    TreeRejection,
    verifier_for,
)
from decodery.testing import VerifierLaws, faults


class TestGreedyMatch(VerifierLaws):
    verifier = GreedyMatch()
    siblings = (Siblings.DETERMINISTIC,)
    greedy = True


class TestSampleThenMatch(VerifierLaws):
    verifier = SampleThenMatch()
    siblings = (Siblings.DETERMINISTIC,)
    reaches_optimum = True


class TestChainRejection(VerifierLaws):
    verifier = ChainRejection()
    siblings = (Siblings.WITH_REPLACEMENT, Siblings.WITHOUT_REPLACEMENT)
    chains_only = True


class TestTreeRejection(VerifierLaws):
    verifier = TreeRejection()
    siblings = (Siblings.WITH_REPLACEMENT, Siblings.WITHOUT_REPLACEMENT)


class _RightChain(VerifierLaws):
    """Subclassed below with something wrong; not collected by itself."""

    siblings = (Siblings.WITH_REPLACEMENT,)
    chains_only = True


@pytest.mark.parametrize(
    "wrong", [faults._InvertedRatio, faults._ResidualFromTarget, faults._NoResidual], ids=lambda cls: cls.__name__
)
def test_a_wrong_chain_verifier_breaks_the_law(wrong):
    laws = type("Laws", (_RightChain,), {"verifier": wrong()})()
    with pytest.raises(AssertionError, match="off the target's law"):
        laws.test_chains_have_the_target_law()


def test_a_wrong_tree_verifier_breaks_the_law():
    laws = type(
        "Laws", (VerifierLaws,), {"verifier": faults._UnchangedSiblings(), "siblings": (Siblings.WITH_REPLACEMENT,)}
    )
    laws().test_chains_have_the_target_law()  # it is right as long as there is one child
    with pytest.raises(AssertionError, match="off the target's law"):
        laws().test_trees_have_the_target_law()


def test_a_wrong_deterministic_verifier_breaks_the_law():
    laws = type("Laws", (VerifierLaws,), {"verifier": faults._MatchThenDraw(), "siblings": (Siblings.DETERMINISTIC,)})()
    with pytest.raises(AssertionError, match="off the target's law"):
        laws.test_chains_have_the_target_law()


def test_the_verifier_fits_the_draft():
    law = torch.full((4,), 0.25)
    drawn = {"q": {-1: law}, "siblings": Siblings.WITH_REPLACEMENT}
    assert isinstance(verifier_for(chain([1, 2]), greedy=True), GreedyMatch)
    assert isinstance(verifier_for(chain([1, 2]), greedy=False), SampleThenMatch)
    assert isinstance(verifier_for(EMPTY, greedy=False), SampleThenMatch)
    assert isinstance(verifier_for(Draft([1], [-1], **drawn), greedy=False), ChainRejection)
    assert isinstance(verifier_for(Draft([1, 1], [-1, -1], **drawn), greedy=False), TreeRejection)


def test_rejection_needs_draft_probabilities():
    rows = torch.zeros(2, 4)
    with pytest.raises(ValueError, match="draft probabilities"):
        ChainRejection().verify(chain([1]), rows, Noise(0), 0)
    with pytest.raises(ValueError, match="draft probabilities"):
        TreeRejection().verify(chain([1]), rows, Noise(0), 0)
