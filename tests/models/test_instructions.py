"""The compiled decoder for each set of instructions: the same laws on all of them, and nearly the same bits."""

from __future__ import annotations

import platform
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_native as laws
import torch
from test_packed_weights import centred, eight_bits, four_bits
from tiny_models import random_ids
from torch import Tensor

from decodery.errors import BadSetting
from decodery.models.forward import Attend, Forward, Slots
from decodery.models.native import binding, build
from decodery.models.native.network import NativeNetwork
from decodery.models.native.weights import Weights
from decodery.models.pages import large

FLAGS = {one.name: " ".join(one.features) for sets in build.SETS.values() for one in sets}


@pytest.fixture
def kind(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes this a machine of a kind, without a choice of instructions."""
    monkeypatch.delenv(build.CHOICE, raising=False)
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    return lambda machine: monkeypatch.setattr(platform, "machine", lambda: machine)


def cpuinfo(tmp_path: Path, *flags: str) -> Path:
    """What Linux would say of cores with these flags."""
    path = tmp_path / "cpuinfo"
    path.write_text("\n".join(f"processor : {core}\nflags : fpu {each}\n" for core, each in enumerate(flags)))
    return path


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ("fp asimd evtstrm aes crc32 atomics fphp asimdhp cpuid asimdrdm asimddp sve i8mm bf16", ["neon"]),
        ("fp asimd evtstrm aes crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp ssbs", ["neon"]),
        ("fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid", []),
        ("", []),
    ],
)
def test_processors_of_arm_need_dot_products(
    features: str, expected: list[str], tmp_path: Path, kind: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind("aarch64")
    path = tmp_path / "cpuinfo"
    path.write_text("".join(f"processor : {core}\nFeatures : {features}\nCPU part : 0xd0c\n" for core in range(2)))
    assert [one.name for one in build.usable(path)] == expected
    path.write_text(path.read_text() + "processor : 2\nFeatures : fp asimd atomics\n")
    assert build.usable(path) == ()
    monkeypatch.setenv(build.CHOICE, "avx2")
    with pytest.raises(BadSetting, match="DECODERY_PROCESSOR is 'avx2', but must be neon"):
        build.usable(path)


def test_machines_of_other_kinds_have_none(tmp_path: Path, kind: Callable[[str], None]) -> None:
    kind("riscv64")
    assert build.usable(cpuinfo(tmp_path, FLAGS["avx2"])) == ()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (FLAGS["amx"] + " avx_vnni", ["amx", "avx512", "avxvnni", "avx2"]),
        (FLAGS["avx512"], ["avx512", "avx2"]),
        (FLAGS["avx512"].replace("avx512_bf16", "") + " avx_vnni", ["avxvnni", "avx2"]),
        (FLAGS["avx512"].replace("avx512_bf16", ""), ["avx2"]),
        (FLAGS["avx2"], ["avx2"]),
        (FLAGS["avx2"].replace("f16c", ""), []),
        ("", []),
    ],
)
def test_a_processor_takes_the_best_that_it_has(
    flags: str, expected: list[str], tmp_path: Path, kind: Callable[[str], None]
) -> None:
    kind("x86_64")
    assert [one.name for one in build.usable(cpuinfo(tmp_path, flags))] == expected


def test_what_some_cores_lack_is_not_used(tmp_path: Path, kind: Callable[[str], None]) -> None:
    kind("x86_64")
    unlike = cpuinfo(tmp_path, FLAGS["avx512"] + " avx_vnni", FLAGS["avxvnni"])
    assert [one.name for one in build.usable(unlike)] == ["avxvnni", "avx2"]


def test_the_environment_chooses(tmp_path: Path, kind: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    kind("x86_64")
    has = cpuinfo(tmp_path, FLAGS["avx512"])
    monkeypatch.setenv(build.CHOICE, "avx2")
    assert build.usable(has) == (build.AVX2,)
    monkeypatch.setenv(build.CHOICE, "sse")
    with pytest.raises(BadSetting, match="DECODERY_PROCESSOR is 'sse', but must be amx, avx512, avxvnni or avx2"):
        build.usable(has)
    with pytest.raises(BadSetting, match="must be"):
        build.prepare()
    monkeypatch.setenv(build.CHOICE, "amx")
    with pytest.raises(BadSetting, match="DECODERY_PROCESSOR is amx, but this machine has avx512 and avx2 only"):
        build.usable(has)
    with pytest.raises(BadSetting, match="this machine has none of these"):
        build.usable(cpuinfo(tmp_path, "sse2"))


def test_a_wrong_choice_is_told_by_who_loads_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    from decodery.models.paths import network_for

    monkeypatch.setenv(build.CHOICE, "fastest")
    build.library.cache_clear()
    try:
        with pytest.raises(BadSetting, match="DECODERY_PROCESSOR is 'fastest'"):
            network_for(laws.make("llama"), "tiny")
    finally:
        build.library.cache_clear()


def test_a_processor_that_fits_nothing_is_a_reason(
    kind: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "usable", lambda: ())
    build.library.cache_clear()
    try:
        for machine, wanted in (("x86_64", "AVX2, FMA, F16C and BMI2"), ("aarch64", "ASIMD, ATOMICS and ASIMDDP")):
            kind(machine)
            with pytest.raises(build.NotBuilt, match=f"not all of the instructions {wanted}"):
                build.library()
        monkeypatch.setattr(build, "usable", lambda: (build.AMX,))
        monkeypatch.setattr(build, "ready", lambda one: None)
        with pytest.raises(build.NotBuilt, match="does not let it use the matrix unit"):
            build.library()
        kind("riscv64")
        with pytest.raises(build.NotBuilt, match="written for Linux on x86-64 and on 64-bit Arm"):
            build.library()
    finally:
        build.library.cache_clear()


def test_what_is_compiled_for_another_processor_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DECODERY_HOME", str(tmp_path))
    monkeypatch.setattr(build, "BUILT", tmp_path / "built")
    monkeypatch.setattr(build, "compile_to", lambda place, *_: str(place))
    told = ({}, {"model name": {"another"}}, {"flags": {"fpu"}}, {"CPU part": {"0xd0c"}}, {"Features": {"asimd"}})
    places = set[Path]()
    for one in told:
        monkeypatch.setattr(build, "processors", lambda one=one: one)
        places |= {build.compiled(build.AVX2), build.compiled(build.AVX2), build.compiled(build.AVX2, "-mbmi")}
    assert len(places) == 2 * len(told)


def test_every_source_is_known() -> None:
    """Or a change of it would not be compiled."""
    there = {path.name for path in Path(build.__file__).parent.iterdir() if path.suffix in (".c", ".h")}
    assert there == set(build.SOURCES)


# Laws on every set


@pytest.fixture
def made(processor: str) -> Callable[[str], NativeNetwork]:
    """Networks of a family on each set."""
    return lambda family: NativeNetwork.of(laws.make(family), f"{family} on {processor}")


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_rows_score_alone_as_in_any_company(made: Callable[[str], NativeNetwork], family: str) -> None:
    network = made(family)
    laws.test_a_chain_scores_like_single_steps(network, 70)
    laws.test_a_prompt_scores_the_same_in_any_chunks(network, 273)
    laws.test_a_tree_scores_like_its_paths(network, 2)
    laws.test_packed_sequences_score_as_alone(network)


@pytest.mark.parametrize("family", ["llama-biases", "gemma3"])
def test_scores_masks_heads_and_cuts(made: Callable[[str], NativeNetwork], family: str) -> None:
    network = made(family)
    laws.test_scores_are_those_of_transformers(network)
    laws.test_full_attention_masks_and_nowhere(network)
    laws.test_a_pass_may_be_cut_at_any_layer(network)


def test_rankings(made: Callable[[str], NativeNetwork]) -> None:
    network = made("llama")
    for rows, k in ((1, 1), (17, 8), (4, 300)):
        laws.test_rows_may_be_ranked_instead(network, rows, k)
    logits = 4 * torch.randn(5, 1003, generator=torch.Generator().manual_seed(1))
    logits[3] = logits[3].round()
    ids, shares = network.top(logits, 9)
    order = logits.sort(dim=1, descending=True, stable=True).indices[:, :9]
    assert ids == order.tolist()
    assert torch.allclose(torch.tensor(shares), logits.softmax(1).gather(1, order), atol=1e-6)


# Each set against the lowest, which the same machine has


@pytest.fixture
def lowest(processor: str) -> Any:
    """The decoder for the lowest set of instructions."""
    last = build.SETS[platform.machine()][-1]
    if processor == last.name:
        pytest.skip("the lowest set itself")
    return build.ready(last)


def on(library: Any, make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """What `make` makes on another decoder."""
    with monkeypatch.context() as patch:
        for module in ("network", "weights", "cache"):
            patch.setattr(f"decodery.models.native.{module}.library", lambda: library)
        return make()


def wild() -> Any:
    """A model whose attention is sharp and whose gates are far from zero."""
    model = laws.make("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.mul_(6)
            layer.mlp.gate_proj.weight.mul_(60)
    return model


@pytest.mark.parametrize("make", [lambda: laws.make("llama"), lambda: laws.make("gemma3"), wild])
def test_scores_agree_with_those_of_the_lowest(
    lowest: Any, make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To much less than what bfloat16 rounds: most rows are the very same bits."""
    model, ids = make(), random_ids(150, 4, 200)

    def rows() -> Tensor:
        network = NativeNetwork.of(model, "either")
        sequence = network.new_sequence()
        asked = Forward(sequence, ids[:90]), Forward(sequence, ids[90:91]), Forward(sequence, ids[91:])
        block = Forward(sequence, ids[:9], attend=Attend.FULL, slots=Slots.NOWHERE)
        return torch.cat([network.run([one])[0].logits for one in (*asked, block)])

    best, low = rows(), on(lowest, rows, monkeypatch)
    assert bool(best.isfinite().all())
    distance = (best - low).square().mean(1).sqrt() / best.std(1)
    assert float(distance.square().mean().sqrt()) < 0.02


@pytest.mark.parametrize("most", [four_bits, centred, eight_bits, lambda weight: weight.bfloat16()])
def test_weights_are_packed_into_the_same_bytes(
    lowest: Any, most: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = most(torch.randn(96, 160, generator=torch.Generator().manual_seed(3)))
    weight[5, :32] = 0.0

    def packed() -> tuple[int, Tensor]:
        weights = Weights("packed", large(2 * weight.numel()))
        weights.pack(weight)
        return weights.bytes, weights.room[: weights.bytes].clone()

    (best, there), (low, here) = packed(), on(lowest, packed, monkeypatch)
    assert best == low
    assert torch.equal(there, here)


@pytest.mark.parametrize("factor", [1.37, -0.7, 2.0**-100, 3e30])
def test_numbers_are_rounded_to_bfloat16_as_the_instruction_does(processor: str, factor: float) -> None:
    """All bfloat16 numbers times a factor: to the nearest, the even one of two; numbers below 2^-126 are zero, and what is no
    number stays none, with its sign."""
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(64, 1024)
    weights = Weights("native", large(2 * bits.numel()))
    matrix = weights.pack(bits.view(torch.bfloat16))
    found = rows_of(matrix, factor)
    exact = bits.view(torch.bfloat16).float() * factor
    exact = torch.where(exact.abs() < 2.0**-126, exact.sign() * 0.0, exact)
    none = exact.isnan()
    assert torch.equal(found[~none].float(), exact[~none].bfloat16().float())
    assert bool(found[none].isnan().all())
    assert torch.equal(found.signbit(), bits.view(torch.bfloat16).signbit() ^ (factor < 0) & ~none)
    assert torch.equal(found[none].view(torch.int16), bits[none] | 0x40)


def test_what_is_no_number_does_not_become_one(processor: str) -> None:
    """Rounding up the last of these would make it a zero."""
    [last] = struct.unpack("<f", b"\xff\xff\xff\x7f")
    weights = Weights("native", large(2 * 64 * 1024))
    found = rows_of(weights.pack(torch.ones(64, 1024, dtype=torch.bfloat16)), last)
    assert torch.equal(found.view(torch.int16), torch.full((64, 1024), 0x7FFF, dtype=torch.int16))


def rows_of(matrix: binding.MatrixStruct, factor: float) -> Tensor:
    ids, rows = torch.arange(64), torch.empty(64, 1024, dtype=torch.bfloat16)
    build.library().decodery_rows(matrix, 1024, ids.data_ptr(), 64, factor, rows.data_ptr())
    return rows
