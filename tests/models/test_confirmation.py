"""Every path is compared with transformers when a model is loaded: faults of all kinds are found, and none is sought twice."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Sequence as Listing
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import make_model, random_ids, reference_logits

import decodery
from decodery.errors import BadSetting, ModelNotReadable
from decodery.models import confirmation
from decodery.models.confirmation import NotConfirmed, confirm, rounded_inputs
from decodery.models.forward import Attend, Forward, Scores, Tree
from decodery.models.native.build import CHOICE
from decodery.models.network import TransformersNetwork
from decodery.models.paths import network_for
from decodery.models.twin import BORDERS, CLOSE_WINDOW, borders, kinds_of_layers, reduced, shared, weights
from decodery.testing import LetterTokenizer


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DECODERY_HOME", str(tmp_path))


@cache
def model_of(family: str) -> Any:
    return make_model(family)


class LaterPositions(TransformersNetwork):
    """Rows stand one place too far on."""

    def run_pass(self, forwards: Listing[Forward]) -> list[Scores]:
        moved = [dataclasses.replace(f, positions=[p + 1 + (p > 5) for p in f.row_positions()]) for f in forwards]
        return super().run_pass(moved)


class NoWindow(TransformersNetwork):
    """Sees what its sliding window hides."""

    def _probe(self) -> None:
        super()._probe()
        self._calls = [dataclasses.replace(call, window=None) for call in self._calls]


class WiderWindow(TransformersNetwork):
    """Its window is one row too wide."""

    def _probe(self) -> None:
        super()._probe()
        self._calls = [dataclasses.replace(c, window=c.window and c.window + 1) for c in self._calls]


class SeesTheFuture(TransformersNetwork):
    def run_pass(self, forwards: Listing[Forward]) -> list[Scores]:
        return super().run_pass([dataclasses.replace(f, attend=Attend.FULL) for f in forwards])


class TreesAreChains(TransformersNetwork):
    """Nodes see their siblings."""

    def run_pass(self, forwards: Listing[Forward]) -> list[Scores]:
        return super().run_pass(
            [dataclasses.replace(f, attend=Attend.CAUSAL) if isinstance(f.attend, Tree) else f for f in forwards]
        )


class NeighboursPositions(TransformersNetwork):
    """All texts of a pass stand where the first one does."""

    def run_pass(self, forwards: Listing[Forward]) -> list[Scores]:
        start = forwards[0].row_positions()[0]
        return super().run_pass(
            [dataclasses.replace(f, positions=[start + i for i in range(f.count)]) for f in forwards]
        )


class ForksShareTheirCache(TransformersNetwork):
    """A fork writes over the rows of the text that it came from."""

    def new_sequence(self) -> Any:
        sequence = super().new_sequence()
        cache: Any = sequence.cache
        cache.copy = lambda rows: cache
        return sequence


class RoughNumbers(TransformersNetwork):
    """Off by a hundredth of a deviation: more than float32 makes."""

    def run_pass(self, forwards: Listing[Forward]) -> list[Scores]:
        answers = super().run_pass(forwards)
        return [dataclasses.replace(a, logits=a.logits + 0.01 * a.logits.roll(1, -1)) for a in answers]


def name(given: Any) -> str:
    return getattr(given, "__name__", str(given))


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "qwen2-sliding", "gemma2", "olmo2", "phi3"])
def test_what_is_right_is_confirmed(family: str) -> None:
    confirm(lambda small: TransformersNetwork(small, family), model_of(family), "off")


@pytest.mark.parametrize(
    ("faulty", "family"),
    [
        (LaterPositions, "gpt2"),
        (LaterPositions, "llama"),
        (NoWindow, "gemma3"),
        (WiderWindow, "mistral"),
        (SeesTheFuture, "llama"),
        (TreesAreChains, "llama"),
        (NeighboursPositions, "llama"),
        (ForksShareTheirCache, "llama"),
        (RoughNumbers, "llama"),
    ],
    ids=name,
)
def test_faults_are_found(faulty: type[TransformersNetwork], family: str) -> None:
    with pytest.raises(NotConfirmed, match="off by"):
        confirm(lambda small: faulty(small, family), model_of(family), "off")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_shorter_types_are_as_near_to_float32_as_transformers(dtype: torch.dtype) -> None:
    model = make_model("smollm3").to(dtype)
    confirm(lambda small: TransformersNetwork(small, "right"), model, "off")
    for faulty in (NeighboursPositions, WiderWindow):
        other = make_model("mistral").to(dtype)
        with pytest.raises(NotConfirmed, match="from float32"):
            confirm(lambda small, faulty=faulty: faulty(small, "wrong"), other, "off")  # type: ignore[misc]


def test_a_fault_of_one_layer_in_four_is_found_in_bfloat16() -> None:
    """SmolLM3 leaves every fourth layer without rotation; the blocks of the usual layout rotate all."""
    model = make_model("smollm3", no_rope_layers=[1, 1, 1, 0]).to(torch.bfloat16)
    lm = decodery.wrap(model, LetterTokenizer(99), fast="auto")
    assert lm.network.path == "eager"
    with pytest.raises(BadSetting, match="cannot run on the fused path here"):
        decodery.wrap(model, LetterTokenizer(99), fast="fused")


def test_the_outcome_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def make(small: Any) -> TransformersNetwork:
        made.append(small)
        return TransformersNetwork(small, "counted")

    model = model_of("llama")
    confirm(make, model, "off")
    confirm(make, model, "off")
    assert len(made) == 1
    confirm(make, model, "another path")
    confirm(make, make_model("llama", rms_norm_eps=1e-3), "off")
    confirm(make, make_model("llama").to(torch.bfloat16), "off")
    assert len(made) == 4
    for place in (tmp_path / "confirmed").iterdir():
        place.write_text("damaged")
    confirm(make, model, "off")
    assert len(made) == 5
    monkeypatch.setenv(CHOICE, "avx2")
    confirm(make, model, "off")
    assert len(made) == 6


def test_a_bad_outcome_is_kept_too() -> None:
    for make in (RoughNumbers, TransformersNetwork):
        with pytest.raises(NotConfirmed, match="off by"):
            confirm(lambda small, make=make: make(small, "kept"), model_of("llama"), "off")  # type: ignore[misc]


def test_nothing_is_kept_where_a_path_cannot_run_here(tmp_path: Path) -> None:
    def make(small: Any) -> TransformersNetwork:
        raise ValueError("no compiler")

    with pytest.raises(ValueError, match="no compiler"):
        confirm(make, model_of("llama"), "off")
    assert not (tmp_path / "confirmed").exists()


def test_what_is_not_confirmed_goes_on_by_a_slower_path(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(confirmation, "SAME", 0.0)
    with caplog.at_level("INFO", "decodery"):
        lm = decodery.wrap(model_of("llama"), LetterTokenizer(99), fast="auto")
    assert lm.network.path == "own-cache"
    assert "does not run on the fused path: a whole text: row" in caplog.text
    assert "runs one text at a time: packed rows of" in caplog.text
    with pytest.raises(ModelNotReadable, match="get other scores than transformers gives: a whole text: row"):
        network_for(model_of("llama"), "canvas", "off", bidirectional=True)


# The small copy


def test_kinds_of_layers() -> None:
    assert kinds_of_layers(model_of("llama").model.layers) == 2
    assert kinds_of_layers(make_model("smollm3", no_rope_layers=[1, 1, 1, 0]).model.layers) == 4
    assert kinds_of_layers(make_model("llama", num_hidden_layers=1).model.layers) == 1


@pytest.mark.parametrize("family", ["gemma3", "gpt2", "qwen2-sliding"])
def test_a_model_of_all_layers_computes_the_same(family: str) -> None:
    model = model_of(family)
    small = reduced(model, 4, close=False)
    ids = random_ids(20)
    assert torch.equal(reference_logits(small, ids), reference_logits(model, ids))
    held = weights(model)
    assert all(weight.data_ptr() == held[name].data_ptr() for name, weight in weights(small).items())


def test_borders_move_near() -> None:
    model = make_model("mistral", sliding_window=100)
    assert borders(model.config) == [100]
    small = reduced(model, 2, close=True)
    assert borders(small.config) == [CLOSE_WINDOW]
    assert len(small.model.layers) == 2
    ids = random_ids(30)
    near, far = reference_logits(small, ids), reference_logits(reduced(model, 2, close=False), ids)
    assert torch.allclose(near[:CLOSE_WINDOW], far[:CLOSE_WINDOW], atol=1e-5)
    assert not torch.allclose(near[CLOSE_WINDOW], far[CLOSE_WINDOW], atol=1e-3)
    assert model.config.sliding_window == 100
    assert "sliding_window" in BORDERS


# The user's own model


def test_its_owner_may_use_it_at_the_same_time() -> None:
    model, ids = make_model("llama"), random_ids(12)
    lm = decodery.wrap(model, LetterTokenizer(99))
    expected = lm.generate(ids, method="autoregressive", max_new_tokens=20, ignore_eos=True).token_ids
    assert model.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False)[0, 12:].tolist() == expected
    failures: list[Any] = []

    def own() -> None:
        try:
            for _ in range(10):
                answer = model.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False)[0, 12:].tolist()
                if answer != expected:
                    failures.append(answer)
        except Exception as error:
            failures.append(error)

    owner = threading.Thread(target=own)
    owner.start()
    found = [lm.generate(ids, max_new_tokens=20, ignore_eos=True).token_ids for _ in range(10)]
    owner.join()
    assert failures == []
    assert found == [expected] * 10


def test_training_steps_between_calls_are_seen() -> None:
    model, ids = make_model("llama"), random_ids(12)
    model.train()
    lm = decodery.wrap(model, LetterTokenizer(99))
    before = lm.generate(ids, max_new_tokens=8, ignore_eos=True).token_ids
    assert model.training
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model(torch.tensor([ids]), labels=torch.tensor([ids])).loss.backward()
    optimizer.step()
    after = lm.generate(ids, max_new_tokens=8, ignore_eos=True).token_ids
    assert after != before
    assert after == model.eval().generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0, 12:].tolist()


def test_nothing_of_the_model_is_switched() -> None:
    model = make_model("gemma3")
    config, modules = json.dumps(model.config.to_dict(), default=str), repr(model)
    attention = model.config._attn_implementation
    twin = shared(model, "other")
    assert twin.config._attn_implementation == "other"
    lm = decodery.wrap(model, LetterTokenizer(99))
    stream = lm.stream([3, 4, 5], max_new_tokens=4)
    for _ in stream:
        assert model.config._attn_implementation == attention
    assert (json.dumps(model.config.to_dict(), default=str), repr(model)) == (config, modules)


@torch.inference_mode()
def test_rounding_inputs_rounds_those_of_products_alone() -> None:
    model = make_model("llama", intermediate_size=64)
    text = torch.tensor([[3, 1, 4, 1, 5, 9]])
    plain = model(text).logits
    with rounded_inputs(model, model):
        rounded = model(text).logits
        layer = model.model.layers[0].mlp.down_proj
        row = torch.randn(2, layer.in_features, generator=torch.Generator().manual_seed(0))
        step = row.unflatten(1, (-1, 32)).abs().amax(2, keepdim=True) / 127
        whole = ((row.unflatten(1, (-1, 32)) / step).round() * step).flatten(1)
        assert torch.allclose(layer(row), whole @ layer.weight.T, atol=1e-6)
        assert not torch.allclose(layer(row), row @ layer.weight.T, atol=1e-6)
    assert 1e-4 < float((rounded - plain).abs().max() / plain.std()) < 0.3
    assert torch.equal(model(text).logits, plain)
