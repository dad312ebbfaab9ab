"""What building the package compiles."""

from __future__ import annotations

import platform
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

hatch_build = pytest.importorskip("hatch_build", reason="hatchling is not installed")
ROOT = Path(__file__).parents[1]


@pytest.fixture(params=["x86_64", "aarch64"])
def hook(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The hook over a folder of sources whose compilation only leaves a file, on both kinds of machines; `hook.compiling` is
    what it has loaded, `hook.sets` what is to be compiled."""
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: request.param)
    compiling = hatch_build._compiling(ROOT / hatch_build.NATIVE)
    monkeypatch.setattr(compiling, "BUILT", tmp_path)
    monkeypatch.setattr(compiling, "compile_to", lambda place, instructions: place.write_text(instructions.name))
    monkeypatch.setattr(hatch_build, "_compiling", lambda folder: compiling)
    warnings: list[str] = []
    app = SimpleNamespace(display_warning=warnings.append)
    made = hatch_build.CompiledDecoder(str(ROOT), {}, None, None, str(tmp_path), "wheel", app)
    made.compiling, made.warnings, made.sets = compiling, warnings, compiling.SETS[request.param]
    return made


def built(hook: Any, version: str = "standard") -> dict[str, Any]:
    data: dict[str, Any] = {"force_include": {}, "pure_python": True}
    hook.initialize(version, data)
    return data


def test_a_wheel_holds_the_decoder_for_every_set_of_instructions(hook: Any, tmp_path: Path) -> None:
    data = built(hook)
    names = [hook.compiling.file_name(one) for one in hook.sets]
    assert data["force_include"] == {str(tmp_path / name): f"decodery/models/native/built/{name}" for name in names}
    assert not data["pure_python"]
    assert data["tag"] == f"py3-none-linux_{platform.machine()}"
    assert [(tmp_path / name).read_text() for name in names] == [one.name for one in hook.sets]


def test_the_names_are_those_that_the_package_looks_for(hook: Any) -> None:
    from decodery.models.native import compiling

    assert [hook.compiling.file_name(one) for one in hook.sets] == [
        compiling.file_name(one) for one in compiling.SETS[platform.machine()]
    ]


def test_an_editable_installation_compiles_on_first_use(hook: Any) -> None:
    assert built(hook, "editable") == {"force_include": {}, "pure_python": True}


def test_machines_of_other_kinds_compile_nothing(hook: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert built(hook) == {"force_include": {}, "pure_python": True}


def test_without_a_compiler_the_package_is_built_all_the_same(hook: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(place: Path, instructions: Any) -> str:
        raise hook.compiling.NotBuilt("there is no C compiler")

    monkeypatch.setattr(hook.compiling, "compile_to", failing)
    assert built(hook) == {"force_include": {}, "pure_python": True}
    assert len(hook.warnings) == len(hook.sets)
    assert f"{hook.sets[-1].name}: there is no C compiler" in hook.warnings[-1]


def test_a_decoder_that_came_with_the_package_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from decodery.models.native import build

    shipped = tmp_path / build.file_name(build.AVX2)
    shipped.touch()
    monkeypatch.setattr(build, "BUILT", tmp_path)
    monkeypatch.setattr(build, "compile_to", lambda *_: pytest.fail("it is there"))
    assert build.compiled(build.AVX2) == shipped
