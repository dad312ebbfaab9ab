"""The laws of our verifiers, by enumeration, and verifiers that must break them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from decodery.sampling.noise import Noise, Stage
from decodery.speculative.draft import EMPTY, ROOT, Draft, Siblings, chain
from decodery.speculative.verifiers import (
    ChainRejection,
    GreedyMatch,
    GreedySetMatch,
    KSeq,
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


class Asked(Noise):
    """Noise that tells where it was asked."""

    def __init__(self) -> None:
        super().__init__(3)
        self.places: list[tuple[int, Stage]] = []

    def choose(
        self, probabilities: torch.Tensor, position: int, stage: Stage, index: Any = 0, path: Sequence[int] = ()
    ) -> int:
        self.places.append((position, stage))
        return super().choose(probabilities, position, stage, index, path)

    def accept(self, probability: float, position: int, index: Any = 0) -> bool:
        self.places.append((position, Stage.ACCEPT))
        return super().accept(probability, position, index)


VERIFIERS = {
    Siblings.WITH_REPLACEMENT: (ChainRejection(), TreeRejection(), KSeq()),
    Siblings.WITHOUT_REPLACEMENT: (ChainRejection(), TreeRejection()),
    Siblings.GREEDY: (GreedySetMatch(),),
}


@pytest.mark.parametrize("wrong", [None, 0, 1, 2])
@pytest.mark.parametrize("siblings", VERIFIERS)
def test_decisions_are_made_at_the_position_of_the_token_that_they_decide(
    siblings: Siblings, wrong: int | None
) -> None:
    """A chain of three tokens that were certain to be drafted; the target is sure of them too, but for one."""
    certain = torch.tensor([1.0, 0.0])
    draft = Draft([0, 0, 0], [ROOT, 0, 1], dict.fromkeys((ROOT, 0, 1), certain), siblings)
    target = torch.stack([certain.flip(0) if place == wrong else certain for place in range(4)]).log()
    end = 3 if wrong is None else wrong
    for verifier in VERIFIERS[siblings]:
        chance = Asked()
        verdict = verifier.verify(draft, target, chance, 10)
        assert verdict.path == tuple(range(end))
        assert verdict.next_token == (0 if wrong is None else 1)
        accepted = [position for position, stage in chance.places if stage is Stage.ACCEPT]
        assert accepted == list(range(10, 10 + min(end + 1, 3)))
        last = (13, Stage.TARGET) if wrong is None else (10 + wrong, Stage.RESIDUAL)
        assert chance.places[-1] == last


@pytest.mark.parametrize("right", [0, 1, 3])
def test_tokens_of_the_target_are_drawn_where_plain_decoding_draws_them(right: int) -> None:
    draft = Draft([0, 0, 0], [ROOT, 0, 1])
    target = torch.tensor([[1.0, 0.0] if place < right else [0.0, 1.0] for place in range(4)]).log()
    chance = Asked()
    assert SampleThenMatch().verify(draft, target, chance, 10).path == tuple(range(right))
    assert chance.places == [(10 + place, Stage.TARGET) for place in range(right + 1)]
