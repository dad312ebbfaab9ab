"""Where a number comes from: the weights are those that a network was made of, whatever happened to them since."""

from __future__ import annotations

import pytest

import decodery
from decodery.evaluation.provenance import machine, provenance
from decodery.testing import scripted_language_model, story_scorer


def counted(name: str, fast: str) -> tuple[int, int]:
    lm = decodery.load(name, fast=fast, dtype="float32")
    return provenance(lm)["parameters"], lm.network.parameters


@pytest.mark.parametrize("fast", ["fused", "off"])
def test_weights_that_were_emptied_still_count(fast: str) -> None:
    """The fused path empties the modules whose weights it has taken."""
    found, own = counted("stories-twin", fast)
    assert found == own == 3_934_464


def test_a_scorer_without_a_network_has_no_weights() -> None:
    told = provenance(scripted_language_model(story_scorer()))
    assert told["parameters"] is None
    assert told["device"] == "cpu"
    assert told["path"] == ""


def test_the_machine_is_told() -> None:
    told = machine()
    assert told["processor"]
    assert told["cores"] >= 1
    assert {"decodery", "torch", "transformers", "python"} == set(told["versions"])
