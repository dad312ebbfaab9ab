"""Weights that are packed while a load does something else: the same as without, as far as wanted, and never in the way."""

from __future__ import annotations

import dataclasses
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import tiny_gguf
import torch

import decodery
from decodery import loading
from decodery.loading import load
from decodery.models import store
from decodery.models.forward import Forward
from decodery.models.gguf.file import GgufFile
from decodery.models.gguf.weights import GgufWeights
from decodery.models.known import Known
from decodery.models.native import ahead
from decodery.models.native.ahead import Ahead, usual_matrices
from decodery.models.native.network import NativeNetwork
from decodery.models.native.weights import Weights, most_bytes
from decodery.models.pages import large

pytestmark = pytest.mark.usefixtures("native_decoder")
MATRICES = 1 + 2 * 6
"""Embedding, and what each of two layers packs."""


@pytest.fixture
def path(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in eight bits that the native path takes, and an empty home."""
    monkeypatch.setattr(tiny_gguf, "HEADS", 1)
    monkeypatch.setattr(tiny_gguf, "GROUPS", 1)
    monkeypatch.setattr(loading, "TINY", 0)
    vocabulary = tiny_gguf.byte_level()
    more = 272 - len(vocabulary.tokens)
    vocabulary = dataclasses.replace(
        vocabulary,
        tokens=[*vocabulary.tokens, *(f"<{i}>" for i in range(more))],
        kinds=[*vocabulary.kinds, *[tiny_gguf.USER_DEFINED] * more],
    )
    tiny_gguf.write(tmp_path / "tiny.gguf", vocabulary)
    return tmp_path / "tiny.gguf"


def source(path: Path) -> GgufWeights:
    return GgufWeights(GgufFile.read(path))


def ended(packing: Ahead) -> Ahead:
    packing._thread.join(60)
    return packing


def scores(network: Any) -> torch.Tensor:
    [found] = network.run([Forward(network.new_sequence(), [5, 6, 7, 8])])
    return found.logits


@pytest.mark.parametrize("most", [0.0, 0.3, 1e9])
@pytest.mark.parametrize("precision", ["integer", "packed"])
def test_what_is_packed_ahead_is_what_would_be(
    path: Path, precision: Any, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load(path, fast=precision, dtype="bfloat16").network
    assert isinstance(expected, NativeNetwork)
    monkeypatch.setattr(ahead, "MOST", most)
    weights = ended(Ahead(source(path), precision)).take()
    count, size = len(weights.ready), weights.bytes
    assert count == 0 if most == 0 else count == MATRICES if most > 1 else 0 < count < MATRICES
    assert size < (most + 0.5) * path.stat().st_size
    network = NativeNetwork(expected.layout, source(path), "tiny", precision, weights)
    assert network._weights is weights
    assert not weights.ready
    assert weights.bytes == expected._weights.bytes
    assert torch.equal(scores(network), scores(expected))
    assert network.path == expected.path == precision


def test_it_ends_when_it_is_told_to(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go = threading.Event(), threading.Event()
    read = Weights.read

    def slowly(self: Weights, *arguments: Any, **how: Any) -> Any:
        begun.set()
        assert go.wait(60)
        return read(self, *arguments, **how)

    monkeypatch.setattr(Weights, "read", slowly)
    packing = Ahead(source(path), "integer")
    assert begun.wait(60)
    packing.end()
    go.set()
    assert len(packing.take().ready) == 1


def test_what_cannot_be_packed_is_left_to_who_loads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Weights.read

    def failing(self: Weights, given: Any, *names: str, **how: Any) -> Any:
        if "q_proj" in names[0]:
            raise ValueError("not these")
        return read(self, given, *names, **how)

    with monkeypatch.context() as patched:
        patched.setattr(Weights, "read", failing)
        weights = ended(Ahead(source(path), "integer")).take()
    assert list(weights.ready) == [("model.embed_tokens.weight",)]
    expected = load(path, dtype="bfloat16").network
    assert isinstance(expected, NativeNetwork)
    network = NativeNetwork(expected.layout, source(path), "tiny", "integer", weights)
    assert torch.equal(scores(network), scores(expected))


def test_other_models_names() -> None:
    assert list(usual_matrices(["transformer.wte.weight", "h.0.self_attn.q_proj.weight"])) == []
    names = ["model.embed_tokens.weight", "lm_head.weight", "model.layers.0.self_attn.q_proj.weight"]
    found = [given for given, _ in usual_matrices(names)]
    assert found[:2] == [("model.embed_tokens.weight",), ("lm_head.weight",)]
    assert found[2:] == [
        tuple(f"model.layers.0.{part}.weight" for part in parts)
        for parts in (
            *(("self_attn.q_proj",), ("self_attn.k_proj",), ("self_attn.v_proj",), ("self_attn.o_proj",)),
            *(("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",)),
        )
    ]


class Spied(Ahead):
    made: list[Ahead]

    def __init__(self, given: GgufWeights, precision: Any):
        super().__init__(given, precision)
        self.made.append(self)
        self.known = Known(store.resolve(str(given.file.path))).place.is_dir() if len(self.made) > 1 else None


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Ahead]:
    Spied.made = []
    monkeypatch.setattr(loading, "Ahead", Spied)
    return Spied.made


def test_a_load_packs_from_the_start(path: Path, made: list[Ahead]) -> None:
    networks = [load(path, dtype="bfloat16").network for _ in range(2)]
    assert len(made) == 2
    for network, packing in zip(networks, made, strict=True):
        assert isinstance(network, NativeNetwork)
        assert network._weights is packing._weights
    assert torch.equal(scores(networks[0]), scores(networks[1]))


def test_a_new_file_is_packed_before_it_is_installed(
    path: Path, made: list[Ahead], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store.gguf_model, "write_folder", stop)
    with pytest.raises(KeyboardInterrupt):
        load(path, dtype="bfloat16")
    [packing] = made
    assert not packing._wanted
    made.clear()
    monkeypatch.setattr(
        loading, "TINY", 1 << 30
    )  # such a small file is not for the native path, unless it is asked for
    with pytest.raises(KeyboardInterrupt):
        load(path, dtype="bfloat16")
    assert not made


@pytest.mark.parametrize("given", [{"fast": "off"}, {"fast": "fused"}, {"dtype": "float32"}])
def test_other_paths_pack_nothing(path: Path, made: list[Ahead], given: dict[str, Any]) -> None:
    load(path, **given)
    assert not made


def test_rounded_weights_are_not_packed_ahead(path: Path, made: list[Ahead]) -> None:
    with pytest.raises(decodery.BadSetting, match="cannot be kept in q8_0"):
        load(path, quantize="q8_0")
    assert not made


def test_packing_on_one_thread_disturbs_no_pass(path: Path) -> None:
    network = load(path, dtype="bfloat16").network
    network.threads = 2  # type: ignore[attr-defined]
    expected, wanted, rounds = scores(network), time.monotonic() + 2, 0
    while time.monotonic() < wanted or rounds < 5:
        weights = Weights("integer", large(most_bytes(1 << 20, 64)), 1)
        given = source(path)
        thread = threading.Thread(
            target=lambda weights=weights, given=given: [
                weights.read(given, *names, **how) for names, how in usual_matrices(given.names())
            ]
        )
        thread.start()
        while thread.is_alive():
            assert torch.equal(scores(network), expected)
        rounds += 1
        packed = weights.room[: weights.bytes]
        assert torch.equal(packed, network._weights.room[: weights.bytes])  # type: ignore[attr-defined]
