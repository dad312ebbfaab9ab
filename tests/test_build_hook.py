"""What building the package compiles."""

from __future__ import annotations

import platform
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

hatch_build = pytest.importorskip("hatch_build", reason="hatchling is not installed")
ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="the decoder is for Linux on x86-64"
)


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The hook over a folder of sources whose compilation only leaves a file; `hook.compiling` is what it has loaded."""
    compiling = hatch_build._compiling(ROOT / hatch_build.NATIVE)
    monkeypatch.setattr(compiling, "BUILT", tmp_path)
    monkeypatch.setattr(compiling, "compile_to", lambda place, instructions: place.write_text(instructions.name))
    monkeypatch.setattr(hatch_build, "_compiling", lambda folder: compiling)
    warnings: list[str] = []
    app = SimpleNamespace(display_warning=warnings.append)
    made = hatch_build.CompiledDecoder(str(ROOT), {}, None, None, str(tmp_path), "wheel", app)
    made.compiling, made.warnings = compiling, warnings
    return made


def built(hook: Any, version: str = "standard") -> dict[str, Any]:
    data: dict[str, Any] = {"force_include": {}, "pure_python": True}
    hook.initialize(version, data)
    return data


def test_a_wheel_holds_the_decoder_for_every_set_of_instructions(hook: Any, tmp_path: Path) -> None:
    data = built(hook)
    names = [hook.compiling.file_name(one) for one in hook.compiling.SETS]
    assert data["force_include"] == {str(tmp_path / name): f"decodery/models/native/built/{name}" for name in names}
    assert not data["pure_python"]
    assert data["tag"] == "py3-none-linux_x86_64"
    assert [(tmp_path / name).read_text() for name in names] == [one.name for one in hook.compiling.SETS]


def test_the_names_are_those_that_the_package_looks_for(hook: Any) -> None:
    from decodery.models.native import compiling

    assert [hook.compiling.file_name(one) for one in hook.compiling.SETS] == [
        compiling.file_name(one) for one in compiling.SETS
    ]


def test_an_editable_installation_compiles_on_first_use(hook: Any) -> None:
    assert built(hook, "editable") == {"force_include": {}, "pure_python": True}


def test_without_a_compiler_the_package_is_built_all_the_same(hook: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(place: Path, instructions: Any) -> str:
        raise hook.compiling.NotBuilt("there is no C compiler")

    monkeypatch.setattr(hook.compiling, "compile_to", failing)
    assert built(hook) == {"force_include": {}, "pure_python": True}
    assert len(hook.warnings) == len(hook.compiling.SETS)
    assert "avx2: there is no C compiler" in hook.warnings[-1]


def test_a_decoder_that_came_with_the_package_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from decodery.models.native import build

    shipped = tmp_path / build.file_name(build.AVX2)
    shipped.touch()
    monkeypatch.setattr(build, "BUILT", tmp_path)
    monkeypatch.setattr(build, "compile_to", lambda *_: pytest.fail("it is there"))
    assert build.compiled(build.AVX2) == shipped
