"""The decoder compiled for 64-bit Arm, run by an emulator: the same bits as AVX2 gives on this machine."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import test_native as laws
import torch
from elsewhere import Elsewhere
from test_instructions import on
from test_integers import KINDS, blocks, packed, product, rows_of
from test_packed_weights import centred, eight_bits, four_bits, quantised
from tiny_models import random_ids
from torch import Tensor

from decodery.models.forward import POST_NORM, Attend, Forward, Slots, tree_mask
from decodery.models.native import build
from decodery.models.native.network import NativeNetwork
from decodery.models.native.weights import Weights, form_of
from decodery.models.pages import large

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or not (shutil.which(COMPILER) and shutil.which(EMULATOR)),
    reason=f"{COMPILER} and {EMULATOR} are not there",
)


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    folder = tmp_path_factory.mktemp("arm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DECODERY_HOME", str(folder))
        patch.setenv("CC", COMPILER)
        library = build.compiled(build.NEON)
    program = folder / "calls"
    subprocess.run([COMPILER, "-O1", str(Path(__file__).parent / "calls.c"), "-o", str(program)], check=True)
    made = Elsewhere([EMULATOR, "-L", "/usr/aarch64-linux-gnu"], program, library, folder / "memory")
    yield made
    made.close()


@pytest.fixture(scope="module")
def here() -> Any:
    """The decoder for AVX2, whose sums have the same order."""
    try:
        return build.ready(build.AVX2)
    except build.NotBuilt as reason:
        pytest.skip(str(reason))


@pytest.fixture
def on_both(arm: Elsewhere, here: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], Any]:
    """What a function makes on each of the two."""

    def run(library: Any, make: Callable[[], Any]) -> Any:
        form_of.cache_clear()
        try:
            return on(library, make, monkeypatch)
        finally:
            form_of.cache_clear()

    return lambda make: (run(arm, make), run(here, make))


def test_it_is_what_an_arm_takes(arm: Elsewhere) -> None:
    assert (arm.decodery_ready(), arm.decodery_amx()) == (1, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_whole_numbers(arm: Elsewhere, on_both: Callable[[Callable[[], Any]], Any], kind: str) -> None:
    rows = blocks(kind, 48, 512)

    def made() -> tuple[Tensor, Any]:
        weights, matrix = packed(kind, rows, 512, 2)
        return weights.room[: weights.bytes].clone(), (matrix, weights)

    (there, _), (here, (matrix, _weights)) = on_both(made)
    assert torch.equal(there, here)
    inputs = rows_of(21, 512)
    inputs[3] = 0
    for count in (1, 2, 3, 4, 8, 21):
        assert torch.equal(*on_both(lambda count=count: product(build_of(), matrix, 48, inputs[:count])))
    ids = torch.arange(48)

    def unpacked() -> Tensor:
        found = torch.empty(48, 512, dtype=torch.bfloat16)
        build_of().decodery_rows(matrix, 512, ids.data_ptr(), 48, 0.7, found.data_ptr())
        return found

    assert torch.equal(*on_both(unpacked))


def build_of() -> Any:
    """The decoder that modules use at present."""
    from decodery.models.native import weights

    return weights.library()


@pytest.mark.parametrize("largest", [1e36, 1.0, 1e-36, 1e-37, 1e-39, 0.0])
def test_rows_of_any_size(on_both: Callable[[Callable[[], Any]], Any], largest: float) -> None:
    inputs = (rows_of(2, 64).clamp(-1, 1) * largest).bfloat16()
    _weights, matrix = packed("Q4_1", blocks("Q4_1", 16, 64), 64)
    assert torch.equal(*on_both(lambda: product(build_of(), matrix, 16, inputs)))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_stays_none(on_both: Callable[[Callable[[], Any]], Any], wrong: float) -> None:
    inputs = rows_of(2, 64)
    inputs[1, 40] = wrong
    for kind in ("Q4_0", "Q8_0", "Q5_1"):
        _weights, matrix = packed(kind, blocks(kind, 16, 64), 64)
        found, expected = on_both(lambda matrix=matrix: product(build_of(), matrix, 16, inputs))
        assert torch.equal(found[0], expected[0])
        assert not bool(found[1].isfinite().any())


@pytest.mark.parametrize("most", [four_bits, centred, eight_bits, lambda weight: weight.bfloat16()])
@pytest.mark.parametrize("outputs", [16, 32, 64])
def test_rows_in_bfloat16(
    on_both: Callable[[Callable[[], Any]], Any], most: Callable[[Tensor], Tensor], outputs: int
) -> None:
    """Groups of 1, 2 and 4 blocks; weights found by trying, and as their file has them."""
    weight = most(torch.randn(outputs, 96, generator=torch.Generator().manual_seed(3)))
    weight[5, :32] = 0.0

    def made() -> tuple[Tensor, Any]:
        weights = Weights("packed", large(2 * weight.numel()))
        matrix = weights.pack(weight)
        return weights.room[: weights.bytes].clone(), (matrix, weights)

    (there, _), (here, (matrix, _weights)) = on_both(made)
    assert torch.equal(there, here)
    inputs = rows_of(40, 96)
    for count in (1, 2, 3, 4, 5, 7, 21, 40):
        assert torch.equal(*on_both(lambda count=count: product(build_of(), matrix, outputs, inputs[:count])))


def test_blocks_of_a_file_for_rows_in_bfloat16(on_both: Callable[[Callable[[], Any]], Any]) -> None:
    from gguf import GGMLQuantizationType

    from decodery.models.native.weights import EXACT_OF
    from decodery.models.weight_source import Blocks

    for kind in ("Q4_0", "Q4_1", "Q8_0"):
        given = Blocks(GGMLQuantizationType[kind].value, blocks(kind, 32, 64), 64)

        def made(given: Any = given) -> Tensor:
            weights = Weights("packed", large(2 * 32 * 64))
            assert weights._pack_as([given], EXACT_OF[given.kind], 4, False) is not None
            return weights.room[: weights.bytes].clone()

        assert torch.equal(*on_both(made))


@pytest.mark.parametrize("factor", [1.37, 2.0**-100, 3e30])
def test_numbers_are_rounded_to_bfloat16(on_both: Callable[[Callable[[], Any]], Any], factor: float) -> None:
    """All bfloat16 numbers times a factor, also those that are none."""
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(64, 1024)
    weights = Weights("native", large(2 * bits.numel()))
    matrix, ids = weights.pack(bits.view(torch.bfloat16)), torch.arange(64)

    def rows() -> Tensor:
        found = torch.empty(64, 1024, dtype=torch.bfloat16)
        build_of().decodery_rows(matrix, 1024, ids.data_ptr(), 64, factor, found.data_ptr())
        return found.view(torch.int16)

    assert torch.equal(*on_both(rows))


@pytest.mark.parametrize("vocabulary", [16, 33, 1003])
def test_the_likeliest_tokens(on_both: Callable[[Callable[[], Any]], Any], vocabulary: int) -> None:
    logits = 4 * torch.randn(5, vocabulary, generator=torch.Generator().manual_seed(vocabulary))
    logits[3] = logits[3].round()
    logits[4] = logits[4].sort().values

    def ranked() -> tuple[Tensor, Tensor]:
        ids, shares = torch.empty(5, 9, dtype=torch.int64), torch.empty(5, 9)
        build_of().decodery_top(logits.data_ptr(), 5, vocabulary, 9, ids.data_ptr(), shares.data_ptr(), 2)
        return ids, shares

    (ids, shares), (expected_ids, expected) = on_both(ranked)
    assert torch.equal(ids, expected_ids)
    assert torch.allclose(shares, expected, rtol=1e-6, atol=0)  # the last step is the C library's


@pytest.mark.parametrize(
    ("make", "precision"),
    [
        (lambda: laws.make("llama-biases"), "native"),
        (lambda: laws.make("gemma3"), "native"),
        (lambda: quantised("llama"), "packed"),
        (lambda: quantised("qwen3", centred), "integer"),
    ],
)
def test_a_whole_network(on_both: Callable[[Callable[[], Any]], Any], make: Callable[[], Any], precision: Any) -> None:
    """Prompts in pieces, masks, trees, sequences side by side, layers' rows, rankings, rows of a cache that move."""
    model = make()
    prompt, ids = random_ids(150, 4, 200), random_ids(30, 5, 200)

    def run() -> tuple[list[Tensor], Any]:
        network = NativeNetwork.of(model, "either", precision=precision)
        assert network.path == precision
        network.threads = 2
        found: list[Tensor] = []

        def score(*forwards: Forward) -> None:
            for scores in network.run(list(forwards)):
                found.extend([scores.logits, *scores.hidden.values()])

        one, other = network.new_sequence(), network.new_sequence()
        score(Forward(one, prompt[:90]), Forward(other, ids[:20]))
        score(Forward(one, prompt[90:], taps=(1, POST_NORM)), Forward(other, ids[20:21]))
        score(Forward(one, ids[:9], attend=Attend.FULL, slots=Slots.NOWHERE))
        parents = [-1, -1, 0, 0, 1, 2, 4]
        positions = [150 + depth for depth in (0, 1, 1, 2, 2, 2, 3, 3)]
        score(Forward(one, ids[:8], positions, tree_mask(150, 1, parents)))
        one.keep([150, 152, 155], 150)
        score(Forward(one, ids[8:9]))
        [ranked] = network.run([Forward(one, ids[9:12], rank=8)])
        return found, ranked.ranking

    (found, ranked), (expected, expected_ranked) = on_both(run)
    assert len(found) == len(expected)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert ranked.ids == expected_ranked.ids
    assert torch.allclose(torch.tensor(ranked.shares), torch.tensor(expected_ranked.shares), rtol=1e-6, atol=0)
