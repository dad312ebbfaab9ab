"""All causal families of the installed transformers: right, or refused with the reason; silently wrong never."""

from __future__ import annotations

import pytest

from decodery.evaluation.families import families, tiny_config
from decodery.evaluation.sweep import NOT_BUILT, REFUSED, RIGHT, FamilyOutcome, native_fault, page, try_family
from decodery.models.native import build

REPRESENTATIVE = (
    "deepseek_v3",  # latent attention
    "diffllama",  # two attentions a layer
    "llama4",  # chunks, and queries scaled by position
    "phimoe",  # a window in the mask alone
    "gemma3_text",  # windows in some layers, two kinds of angles
    "gpt_oss",  # sinks
    "cohere2",  # layers without positions
    "opt",  # learned positions
    "falcon",  # linear biases
    "mamba",  # a state
    "falcon_h1",  # a state beside attention
    "lfm2",  # convolutions between attentions
)
NOT_SMALL = {"dots3_note"}
"""Too large however its configuration is shrunk."""
ELSEWHERE = {"cohere_compass_text", "dbrx", "qwen4_exp", "xlstm"}
"""The installed transformers cannot run what their small configurations ask for."""


def check(outcome: FamilyOutcome) -> None:
    if outcome.kind in NOT_SMALL | ELSEWHERE:
        return
    assert outcome.verdict in (RIGHT, REFUSED), outcome


@pytest.mark.parametrize("kind", REPRESENTATIVE)
def test_a_representative_family(kind: str) -> None:
    outcome = try_family(kind)
    assert outcome.verdict == RIGHT, outcome


@pytest.mark.all_families
@pytest.mark.parametrize("kind", sorted(families()))
def test_every_family(kind: str) -> None:
    check(try_family(kind))


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3_text", "smollm3"])
def test_a_family_on_the_compiled_path(kind: str) -> None:
    taken, fault = native_fault(kind)
    if not taken and not build.usable():
        pytest.skip("no compiled path on this processor")
    assert (taken, fault) == (True, "")


def test_what_the_compiled_path_does_not_take() -> None:
    assert native_fault("mamba") == (False, "")


def test_small_configurations() -> None:
    config = tiny_config("llama")
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size, config.eos_token_id) == (64, 4, 256, None)
    assert tiny_config("llama", num_hidden_layers=2).num_hidden_layers == 2


def test_the_page_counts_and_tells() -> None:
    outcomes = [
        FamilyOutcome("b", "B", RIGHT, "eager, fused", "trees"),
        FamilyOutcome("a", "A", REFUSED, detail="its | layers do not fit."),
        FamilyOutcome("c", "C", NOT_BUILT, detail="KeyError: x"),
    ]
    written = page(outcomes)
    assert "Of 3 classes 1 are right, 1 refused with the reason, 0 wrong, 0 end in an error" in written
    assert written.index("| a | A | refused: its / layers do not fit |  |  |") < written.index(
        "| b | B | right | eager"
    )
