"""Names become folders: GGUF files, local folders, names that nobody has, and the real default model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import tiny_gguf
import torch
from store_testing import Index, installed_names, is_one_sentence, leftovers

from decodery.errors import DownloadFailed, ModelNotReadable, UnknownModel
from decodery.models import catalogue, store
from decodery.models.checkpoint import Provenance
from decodery.models.gguf.weights import weight_source
from decodery.models.reading import read_model


class TestGgufFile:
    @pytest.fixture
    def file(self, home: Path, tmp_path: Path, gguf_bytes: bytes) -> Path:
        path = tmp_path / "my tiny.gguf"
        path.write_bytes(gguf_bytes)
        return path

    def test_is_installed_once_and_gets_a_name(self, file: Path) -> None:
        folder = store.resolve(str(file))
        name = folder.name
        assert name.startswith("my-tiny-")
        assert not list(folder.glob("*.safetensors"))
        assert not list(folder.glob("*.gguf"))
        before = (folder / "config.json").stat().st_mtime_ns
        assert store.resolve(str(file)) == store.resolve(name) == folder
        assert (folder / "config.json").stat().st_mtime_ns == before
        info = store.known_models()[-1]
        assert (info.name, info.title, info.licence, info.installed) == (name, "Tiny Llama", "apache-2.0", True)
        assert info.parameters.endswith("K")
        assert store.remove(name) == info.bytes_on_disk
        assert installed_names() == []

    def test_the_folder_can_be_named(self, file: Path) -> None:
        folder = store.resolve(str(file))
        assert store.resolve(str(folder)) == folder
        file.unlink()
        with pytest.raises(
            ModelNotReadable, match=r"the weights of my-tiny-.* are in .*, which cannot be read"
        ) as error:
            store.resolve(str(folder))
        assert is_one_sentence(error)

    def test_files_of_one_name_are_told_apart(self, file: Path, tmp_path: Path, quick_installation: None) -> None:
        (tmp_path / "elsewhere").mkdir()
        copy = tmp_path / "elsewhere" / file.name
        copy.write_bytes(file.read_bytes())
        assert store.resolve(str(copy)) != store.resolve(str(file))

    def test_changed_file_is_installed_anew(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = store.resolve(str(file))
        before = (folder / "gguf.json").read_text()
        tiny_gguf.write(file, tiny_gguf.byte_level("gpt-2"), seed=1)
        os.utime(file, ns=(0, 0))
        assert store.resolve(str(file)) == folder
        assert (folder / "gguf.json").read_text() != before

    def test_damaged_installation_is_made_again(self, file: Path, quick_installation: None) -> None:
        folder = store.resolve(str(file))
        (folder / "config.json").write_bytes(b"")
        assert (store.resolve(folder.name) / "config.json").read_bytes() == b"{}"

    def test_installation_without_its_file(self, file: Path, quick_installation: None) -> None:
        folder = store.resolve(str(file))
        file.unlink()
        with pytest.raises(ModelNotReadable, match=r"The file .* of the installed model my-tiny-.* is gone") as error:
            store.resolve(folder.name)
        assert is_one_sentence(error)

    def test_conversion_of_an_older_version_makes_room(self, file: Path, home: Path, quick_installation: None) -> None:
        old = home / "models" / "my-tiny-0123456789ab"
        old.mkdir(parents=True)
        (old / "model.safetensors").write_text("weights in float32")
        Provenance("my-tiny-0123456789ab", "", "", "", "", {}, origin={"path": str(file), "bytes": 1}).write(old)
        store.resolve(str(file))
        assert not old.exists()

    def test_missing_file(self, home: Path) -> None:
        with pytest.raises(UnknownModel, match=r"There is no file .*nothing\.gguf"):
            store.resolve("nothing.gguf")

    def test_damaged_file(self, file: Path, home: Path) -> None:
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(ModelNotReadable, match="cut short") as error:
            store.resolve(str(file))
        assert is_one_sentence(error)
        assert installed_names() == []
        assert leftovers(home) == []


class TestLocalFolder:
    @pytest.fixture
    def folder(self, home: Path, tmp_path: Path) -> Path:
        from safetensors.torch import save_file

        folder = tmp_path / "checkpoint"
        folder.mkdir()
        (folder / "config.json").write_text('{"model_type": "llama"}')
        (folder / "tokenizer.json").write_text("{}")
        save_file({"weight": torch.zeros(10)}, folder / "model.safetensors")
        return folder

    def test_is_taken_as_it_is(self, folder: Path, home: Path) -> None:
        assert store.resolve(str(folder)) == folder
        assert not home.exists()

    def test_shards(self, folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        index = {"weight_map": {"weight": "model-00001-of-00001.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        assert store.resolve(str(folder)) == folder
        (folder / "model-00001-of-00001.safetensors").unlink()
        with pytest.raises(ModelNotReadable, match="lacks 1 of 1 weight files"):
            store.resolve(str(folder))

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda folder: (folder / "model.safetensors").unlink(), "holds no weights; it needs model.safetensors"),
            (lambda folder: (folder / "tokenizer.json").unlink(), "holds no tokenizer; it needs tokenizer.json"),
            (lambda folder: (folder / "config.json").write_text("{"), "config.json is not readable"),
            (lambda folder: os.truncate(folder / "model.safetensors", 90), "it has 90 bytes where"),
            (lambda folder: os.truncate(folder / "model.safetensors", 20), "no readable safetensors file"),
            (lambda folder: os.truncate(folder / "model.safetensors", 0), "no readable safetensors file"),
            (lambda folder: (folder / "config.json").unlink(), "it has no config.json"),
        ],
        ids=["no weights", "no tokenizer", "bad configuration", "cut weights", "cut head", "empty", "no configuration"],
    )
    def test_what_is_wrong_is_said(self, folder: Path, damage: Callable[[Path], None], message: str) -> None:
        damage(folder)
        with pytest.raises(ModelNotReadable, match=message) as error:
            store.resolve(str(folder))
        assert is_one_sentence(error)

    def test_folder_with_a_gguf_file(self, home: Path, tmp_path: Path) -> None:
        (tmp_path / "models").mkdir()
        (tmp_path / "models" / "x.gguf").touch()
        with pytest.raises(ModelNotReadable, match=r"to use the GGUF file in it, give .*x\.gguf"):
            store.resolve(str(tmp_path / "models"))


class TestNames:
    def test_near_names_are_offered(self, home: Path) -> None:
        with pytest.raises(UnknownModel, match=r"no model 'smollm2-135'; did you mean smollm2-135m") as error:
            store.resolve("smollm2-135")
        assert is_one_sentence(error)

    @pytest.mark.parametrize("name", ["", ".", "x" * 5000, "~nobody", "a/b/c", "\0", "-", "../.."])
    def test_odd_names(self, home: Path, name: str) -> None:
        with pytest.raises((UnknownModel, ModelNotReadable)):
            store.resolve(name)

    def test_bundled_models_come_first(self, home: Path) -> None:
        shipped = list(catalogue.shipped())
        assert [model.name for model in store.known_models()] == ["smollm2-135m", "gemma3-270m", *shipped]
        assert {"diffusion-lists", "diffusion-stories", "stories-twin"} <= set(shipped)
        assert [model.name for model in store.known_models() if model.installed] == shipped

    def test_catalogue_is_consistent(self) -> None:
        for model in catalogue.BUNDLED.values():
            assert sum(part.payload_bytes for part in model.parts) == model.file_bytes
            assert all(len(part.payload_sha256) == 64 for part in model.parts)

    def test_home(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert store.home() == home
        monkeypatch.delenv("DECODERY_HOME")
        assert store.home().name == "decodery"

    def test_nothing_heavy_is_imported(self, home: Path) -> None:
        script = (
            "import sys; from decodery.models import store; store.known_models()\n"
            "print([name for name in ('torch', 'transformers', 'gguf', 'numpy') if name in sys.modules])"
        )
        run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert run.stdout.strip() == "[]"


class TestRemove:
    def test_frees_what_it_says(self, index: Index, home: Path, quick_installation: None) -> None:
        folder = store.resolve("tiny")
        size = sum(path.stat().st_size for path in folder.iterdir())
        assert store.remove("tiny") == size
        assert not folder.exists()
        with pytest.raises(UnknownModel, match="No model 'tiny' is installed"):
            store.remove("tiny")

    def test_unfinished_downloads_go_too(self, index: Index, home: Path) -> None:
        index.payload = lambda number, content: content if number == 0 else b""
        with pytest.raises(DownloadFailed):
            store.resolve("tiny")
        assert store.remove("tiny") == len(index.parts[0])
        assert leftovers(home) == []

    def test_nothing_outside_the_cache_is_touched(self, home: Path, tmp_path: Path) -> None:
        (tmp_path / "precious").mkdir()
        (tmp_path / "precious" / "file").write_text("x")
        for name in ("../precious", "../../precious", str(tmp_path / "precious"), "..", ""):
            with pytest.raises(UnknownModel):
                store.remove(name)
        assert (tmp_path / "precious" / "file").exists()


WEIGHTS = {
    "smollm2-135m": "785e20b3e653276b0579b744214a1186d730ba80af04f397f642d6432e5e0154",
    "gemma3-270m": "2a1b02142882b7f30c4e6d3175b442a05ba1d9c42fde8fa5a0ece107ca301f2e",
}
"""SHA-256 of names and float32 weights, in the order of the names, as transformers once dequantised the files."""


@pytest.mark.real_model
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_of_bundled_models_are_what_they_were(name: str) -> None:
    if name != "smollm2-135m" and name not in installed_names():
        pytest.skip(f"{name} is not here, and a quarter of a gigabyte to fetch")
    source = weight_source(store.resolve(name))
    assert source is not None
    digest = sha256()
    for weight in sorted(source.names()):
        digest.update(weight.encode())
        digest.update(source.tensor(weight, torch.float32).numpy().tobytes())
    assert digest.hexdigest() == WEIGHTS[name]


@pytest.mark.real_model
class TestSmolLM2:
    @pytest.fixture(scope="class")
    def folder(self) -> Path:
        return store.resolve("smollm2-135m")

    @pytest.fixture(scope="class")
    def tokenizer(self, folder: Path) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder)

    def test_tokenizer(self, tokenizer: Any) -> None:
        assert tokenizer.tokenize(" 2024") == ["Ġ", "2", "0", "2", "4"]
        assert tokenizer.tokenize("x   5 12") == ["x", "ĠĠĠ", "5", "Ġ", "1", "2"]
        special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"]
        assert tokenizer("".join(special)).input_ids == [0, 1, 2, 3]
        assert tokenizer.decode([0, 1, 2, 3, *range(4, 17)], skip_special_tokens=True) == ""
        assert tokenizer.eos_token_id == tokenizer.pad_token_id == 2
        assert tokenizer.bos_token_id == 1
        assert len(tokenizer) == 49152
        text = "Ünïcode 🙂 漢字, 3.14 and\n\n\ttabs   spaces"
        assert tokenizer.decode(tokenizer(text).input_ids) == text

    def test_answers(self, folder: Path, tokenizer: Any) -> None:
        model = read_model(folder, json.loads((folder / "config.json").read_text()), torch.float32)
        question = [{"role": "user", "content": "What is the capital of France?"}]
        inputs = tokenizer.apply_chat_template(
            question, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0]
        answer = tokenizer.decode(output[inputs["input_ids"].shape[1] :])
        assert answer == "The capital of France is Paris.<|im_end|>"
