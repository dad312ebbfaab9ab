"""Weights rounded when a model is loaded: their values, what is refused, and that every word reaches the network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_gguf
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from test_integers import every_library, product, rows_of
from test_known import PROMPT, SETTINGS, make_with, saved
from test_native import make
from tiny_models import byte_level_tokenizer, make_model
from torch import Tensor

import decodery
from decodery.errors import BadSetting
from decodery.evaluation.provenance import provenance
from decodery.loading import load, wrap
from decodery.models import confirmation, rounding
from decodery.models.forward import Forward
from decodery.models.known import Known
from decodery.models.layout import PRODUCTS
from decodery.models.native import build
from decodery.models.native.network import NativeNetwork
from decodery.models.native.weights import Weights, form_of
from decodery.models.pages import large
from decodery.models.recognition import recognised
from decodery.models.rounding import KINDS, NUMBERS, Rounded, in_blocks
from decodery.models.weight_source import Blocks, ModelWeights
from decodery.testing import LetterTokenizer

pytestmark = pytest.mark.usefixtures("native_decoder")
DTYPES = tuple(NUMBERS)


@pytest.fixture
def folder(tmp_path: Path, home: Path) -> Path:
    """A checkpoint in bfloat16, and an empty home."""
    return saved(tmp_path / "model")


def theirs(numbers: Tensor, word: str) -> Tensor:
    """Blocks as the package gguf makes them."""
    return torch.from_numpy(quantize(numbers.float().numpy(), GGMLQuantizationType(KINDS[word])))


def meaning(numbers: Tensor, word: str) -> Tensor:
    return torch.from_numpy(dequantize(theirs(numbers, word).numpy(), GGMLQuantizationType(KINDS[word])))


def scores_of(lm: Any) -> Tensor:
    return lm.network.run([Forward(lm.network.new_sequence(), list(range(5, 30)))])[0].logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("word", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1e-30, 1e-7, 1e-4, 0.02, 1.0, 300.0])
def test_blocks_are_those_of_the_package(word: str, dtype: torch.dtype, size: float) -> None:
    drawn = torch.randn(64, 512, generator=torch.Generator().manual_seed(3)) * size
    drawn[3], drawn[4, :40] = 0, drawn[4, 0]
    numbers = drawn.to(dtype)
    assert torch.equal(in_blocks(numbers, KINDS[word]), theirs(numbers, word))


@given(
    st.lists(st.integers(-300, 300), min_size=32, max_size=32),
    st.sampled_from([1.0, 0.5, 1 / 127, 1 / 254, 0.1, 1e-3]),
    st.sampled_from(list(KINDS)),
)
@settings(max_examples=200, deadline=None)
def test_ties_are_rounded_as_the_package_does(values: list[int], step: float, word: str) -> None:
    numbers = torch.tensor([values]).float() * step
    assert torch.equal(in_blocks(numbers, KINDS[word]), theirs(numbers, word))


@pytest.mark.parametrize("word", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 3])
def test_tiles_hold_the_blocks(word: str, dtype: torch.dtype, threads: int) -> None:
    """Rounded on the way into tiles, a matrix multiplies as it does when its blocks come from a file."""
    numbers, inputs = (torch.randn(48, 96, generator=torch.Generator().manual_seed(4)) * 0.05).to(dtype), rows_of(5, 96)
    form = form_of(KINDS[word])
    assert form is not None
    made = []
    for blocks in (
        Blocks(NUMBERS[dtype], numbers, 96, KINDS[word]),
        Blocks(KINDS[word], theirs(numbers, word), 96),
    ):
        weights = Weights("integer", large(2 * 48 * 96 + 4096), threads)
        matrix = weights._pack_as([blocks], form, 4, False)
        assert matrix is not None
        made.append((weights.room[: weights.bytes].clone(), product(every_library()[0], matrix, 48, inputs)))
    assert torch.equal(made[0][0], made[1][0])
    assert torch.equal(made[0][1], made[1][1])


def test_every_set_of_instructions_rounds_alike() -> None:
    numbers = torch.randn(32, 256, generator=torch.Generator().manual_seed(5))
    for kind, expected in ((kind, in_blocks(numbers, kind)) for kind in KINDS.values()):
        for library in every_library():
            found = torch.zeros_like(expected)
            assert library.decodery_round(numbers.data_ptr(), 32, 256, 0, kind, found.data_ptr())
            assert torch.equal(found, expected)


@pytest.mark.parametrize("word", KINDS)
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 1e30])
def test_numbers_without_a_scale_are_refused(word: str, wrong: float) -> None:
    numbers = torch.zeros(16, 64)
    numbers[7, 40] = wrong
    with pytest.raises(ValueError, match="half precision has no scale"):
        in_blocks(numbers, KINDS[word])
    model = make("llama")
    model.get_parameter("model.layers.2.mlp.up_proj.weight").data[5, 5] = wrong
    with pytest.raises(BadSetting, match=r"layers.2.mlp.up_proj.weight cannot be rounded"):
        wrap(model, LetterTokenizer(208), fast="auto", quantize=word)


@pytest.mark.parametrize("word", KINDS)
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_what_is_rounded_to_what(word: str, family: str) -> None:
    """Embedding and head to eight bits, layers as asked, vectors not at all."""
    model = make(family)
    layout = recognised(model)
    source = Rounded(ModelWeights(model), layout, word)
    for name, weight in model.named_parameters():
        kind = "q8_0" if name in (layout.embedding, layout.head) else word
        expected = meaning(weight.detach(), kind).bfloat16() if weight.dim() == 2 else weight
        assert torch.equal(source.tensor(name, torch.bfloat16) + 0.0, expected + 0.0), name
    network = NativeNetwork(layout, source, "rounded", "integer")
    matrices = 1 + (not layout.tied) + len(layout.layers) * len(PRODUCTS)
    # Gate and up are one matrix of the decoder.
    assert network._weights.rounded == network._weights.integer == matrices - len(layout.layers)


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("word", KINDS)
def test_a_checkpoint_is_rounded_from_the_numbers_of_its_files(
    word: str, stored: torch.dtype, tmp_path: Path, home: Path
) -> None:
    """Not from what bfloat16 has left of them."""
    model = make_with("llama").to(torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 1e-4)
    model.to(stored).save_pretrained(tmp_path / "model")
    byte_level_tokenizer().save_pretrained(tmp_path / "model")
    lm: Any = load(tmp_path / "model", quantize=word)
    name = "model.layers.1.mlp.down_proj.weight"
    expected = meaning(model.get_parameter(name).detach(), word)
    own = lm.network.model.get_parameter(name)
    assert torch.equal(own + 0.0, expected.bfloat16() + 0.0)
    row = torch.zeros(1, 192).bfloat16()
    row[0, ::32] = 1
    struct = lm.network._layer_structs[1].down
    found = product(lm.network.library, struct, 192, row)
    torch.testing.assert_close(found[0], expected[:, ::32].sum(1), rtol=1e-5, atol=1e-6)


def test_a_rounded_model_scores_as_its_rounded_weights(folder: Path) -> None:
    """In four bits, beside whose errors those of bfloat16 and of rounded rows are small."""
    lm, plain = load(folder, quantize="q4_0"), load(folder, dtype="bfloat16", fast="native")
    assert (lm.network.path, lm.network.quantize, lm.network.dtype) == ("integer", "q4_0", torch.bfloat16)
    exact: Any = load(folder, dtype="float32", fast="off")
    for name, weight in exact.network.model.named_parameters():
        if weight.dim() == 2:
            weight.data = meaning(weight.data, "q4_0" if "layers" in name else "q8_0")
    far, near = (float((scores_of(lm) - scores_of(other)).square().mean().sqrt()) for other in (plain, exact))
    assert near < 0.5 * far


@pytest.mark.parametrize("word", KINDS)
def test_a_second_load_answers_the_same(word: str, folder: Path) -> None:
    first, second = (load(folder, quantize=word) for _ in range(2))
    replies = [lm.generate(PROMPT, **SETTINGS, logprobs=2, echo=True) for lm in (first, second)]
    assert replies[0].token_ids == replies[1].token_ids
    assert replies[0].prompt_logprobs == replies[1].prompt_logprobs
    assert first.network.fingerprint() == second.network.fingerprint()


def test_words_share_nothing(folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what is known, nor what was confirmed, nor fingerprints, nor scores, nor cost curves."""
    told: list[dict[str, str]] = []
    monkeypatch.setattr("decodery.language_model.calibrated", lambda network, described, place: told.append(described))
    words = (None, *KINDS)
    models = []
    for count, word in enumerate(words, start=1):
        models.append(load(folder, dtype="bfloat16", quantize=word))
        assert len(list(Known(folder).place.glob("integer*.json"))) == count
        assert len(list((home / "confirmed").glob("*.json"))) == count
        models[-1].cost(models[-1].network)
    assert len({lm.network.fingerprint() for lm in models}) == 3
    assert [described.get("quantize") for described in told] == list(words)
    assert not torch.equal(scores_of(models[1]), scores_of(models[2]))
    assert [provenance(lm).get("quantize") for lm in models] == list(words)
    assert provenance(models[1], whole=False)["path"] == "integer"


def test_a_path_that_rounds_otherwise_is_not_confirmed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compared are the scores of rounded weights: those of other ones are found out."""
    monkeypatch.setattr(rounding, "KINDS", {"q8_0": 2, "q4_0": 2})
    plain = rounding.with_weights
    monkeypatch.setattr(rounding, "with_weights", lambda model, source: plain(model, ModelWeights(model)))
    with pytest.raises(BadSetting, match=r"cannot be kept in q8_0 here: .* from float32"):
        load(folder, quantize="q8_0")


def test_what_was_confirmed_is_the_rounded_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    compare = confirmation._compare

    def spy(network: Any, make: Any, small: Any, length: int) -> str:
        seen.append((network, small))
        return compare(network, make, small, length)

    monkeypatch.setattr(confirmation, "_compare", spy)
    load(folder, quantize="q4_0")
    [(network, small)] = seen
    assert network.quantize == "q4_0"
    weight = small.get_parameter("model.layers.0.mlp.up_proj.weight").detach()
    original = load(folder, dtype="bfloat16", fast="off").network.model.get_parameter(  # type: ignore[attr-defined]
        "model.layers.0.mlp.up_proj.weight"
    )
    assert torch.equal(weight + 0.0, meaning(original.detach(), "q4_0").bfloat16() + 0.0)


def test_wrapped_models_are_rounded_and_left_alone() -> None:
    model = make("qwen3")
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    lm = wrap(model, LetterTokenizer(208), fast="integer", quantize="q4_0")
    assert (lm.network.path, lm.network.quantize) == ("integer", "q4_0")
    assert all(torch.equal(before[name], weight) for name, weight in model.named_parameters())
    network: Any = lm.network
    name = "model.layers.3.self_attn.o_proj.weight"
    rounded = network.model.get_parameter(name)
    assert torch.equal(rounded + 0.0, meaning(before[name], "q4_0").bfloat16() + 0.0)
    plain = wrap(model, LetterTokenizer(208), fast="native")
    assert lm.network.fingerprint() != plain.network.fingerprint()


def test_what_cannot_be_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for word in ("q4_k", "Q8_0", "int8", ""):
        with pytest.raises(BadSetting, match=f"quantize must be q8_0 or q4_0, not '{word}'"):
            load(folder, quantize=word)
    for fast in ("exact", "packed", "native", "fused", "off", False):
        with pytest.raises(BadSetting, match="integer path alone; give fast='auto' or 'integer'"):
            load(folder, quantize="q8_0", fast=fast)
    with pytest.raises(BadSetting, match="integer path alone"):
        wrap(make("llama"), LetterTokenizer(208), quantize="q8_0")
    for dtype in ("float32", "float16", torch.float32):
        with pytest.raises(BadSetting, match="computes in bfloat16"):
            load(folder, quantize="q8_0", dtype=dtype)
    with pytest.raises(BadSetting, match="is for a CPU, not for meta"):
        load(folder, quantize="q8_0", device="meta")
    with pytest.raises(BadSetting, match="the native path is for bfloat16 on a CPU; leave quantize out"):
        wrap(make("llama").float(), LetterTokenizer(208), fast="auto", quantize="q8_0")

    model = make("llama")
    with pytest.raises(ValueError, match="for the integer path alone, not for packed"):
        NativeNetwork.of(model, "packed", precision="packed", quantize="q8_0")

    def none() -> Any:
        raise build.NotBuilt("it is written for another machine")

    monkeypatch.setattr(rounding, "library", none)
    with pytest.raises(
        BadSetting, match=r"compiled decoder, which cannot run here \(it is written for another machine\)"
    ):
        load("no/such-model", quantize="q8_0")


def test_models_that_do_not_qualify_are_refused(tmp_path: Path, home: Path) -> None:
    for family, why in (("gpt2", "another layer layout"), ("gemma2", "final_logit_softcapping")):
        model = make_model(family).to(torch.bfloat16)
        with pytest.raises(BadSetting, match=rf"cannot be kept in q4_0 here: .*{why}.*; leave quantize out"):
            wrap(model, LetterTokenizer(99), fast="auto", quantize="q4_0")
    folder = saved(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(BadSetting, match="are quantised already; leave out quantize='q8_0'"):
        load(folder, quantize="q8_0")
    with pytest.raises(BadSetting, match="canvases do not run on the integer path"):
        rounding.check_model("q8_0", "some", {}, True)


class Mixed(ModelWeights):
    """A file that holds some matrices quantised."""

    def __init__(self, model: Any, held: dict[str, Blocks]):
        super().__init__(model)
        self.held = held

    def numbers(self, name: str) -> Tensor | None:  # type: ignore[override]
        return None if name in self.held else super().numbers(name)

    def blocks(self, name: str) -> Blocks | None:
        return self.held.get(name)


def test_what_a_file_holds_quantised_keeps_its_numbers() -> None:
    model = make("llama")
    layout = recognised(model)
    matrices = {name: weight.detach() for name, weight in model.named_parameters() if weight.dim() == 2}
    held = {name: Blocks(8, theirs(weight, "q8_0"), weight.shape[1]) for name, weight in matrices.items()}
    some = {name: held[name] for name in held if "layers.2" in name}
    network = NativeNetwork(layout, Rounded(Mixed(model, some), layout, "q4_0"), "mixed", "integer")
    eight, four = (network._layer_structs[layer].down for layer in (2, 1))
    assert (eight.form, four.form) == tuple(form_of(kind).number for kind in (8, 2))  # type: ignore[union-attr]
    row = torch.zeros(1, 192).bfloat16()
    row[0, 40] = 1
    found = product(network.library, eight, 192, row)[0]
    expected = meaning(matrices["model.layers.2.mlp.down_proj.weight"], "q8_0")[:, 40]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match="hold all of its matrices quantised already"):
        NativeNetwork(layout, Rounded(Mixed(model, held), layout, "q4_0"), "whole", "integer")


def test_a_quantised_file_is_never_rounded_again(home: Path, tmp_path: Path) -> None:
    """Neither where transformers would have to read it."""
    path = tmp_path / "tiny.gguf"
    tiny_gguf.write(path, tiny_gguf.byte_level())
    with pytest.raises(BadSetting, match=r"tiny.gguf cannot be kept in q4_0: .*; leave quantize out"):
        load(path, quantize="q4_0")


SOURCE = """
import math, sys
from pathlib import Path
import torch
from decodery.models.forward import Forward
from decodery.models.layout import LayerLayout, Layout, Rotation
from decodery.models.native.network import NativeNetwork
from decodery.models.rounding import Rounded

rotation = Rotation(tuple(10000.0 ** (-i / 32) for i in range(32)), 1.0)
layout = Layout(16384, 2048, 1024, 4096, 16, 16, 64, "silu", 1e-5, 0.125, 1.0, False, False, False, (), True, "model.",
                (rotation,), (LayerLayout(None, 0),) * 6)

class Made:
    def names(self):
        return [name for name, _ in layout.shapes()]
    def tensor(self, name, dtype):
        return torch.ones(dict(layout.shapes())[name], dtype=dtype)
    def numbers(self, name):
        return torch.full(dict(layout.shapes())[name], 0.01, dtype=torch.bfloat16)
    def blocks(self, name):
        return None
    def release(self, name):
        pass

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

before = peak()
network = NativeNetwork(layout, Rounded(Made(), layout, sys.argv[1]), "made", "integer")
logits = network.run([Forward(network.new_sequence(), [1, 2, 3])])[0].logits
assert network.path == "integer" and bool(logits.isfinite().all())
print(peak() - before, network._weights.bytes)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is asked of Linux")
@pytest.mark.parametrize("word", KINDS)
def test_peak_memory(word: str) -> None:
    """The result and the matrix in work: the largest is the embedding."""
    here = os.environ | {"PYTHONPATH": str(Path(decodery.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", SOURCE, word], capture_output=True, text=True, env=here)
    assert done.returncode == 0, done.stderr
    grown, result = map(int, done.stdout.split())
    own = 2 * 2**20  # of the process's code and tables
    assert grown < 1.3 * result + 2 * 16384 * 1024 + own, grown / result
