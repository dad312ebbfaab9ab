"""The list of trained files says what they are; they keep to their budget, and none is there twice."""

from __future__ import annotations

import hashlib
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest

from decodery.evaluation.artifacts import ALL, ARTIFACTS, LARGEST, SHARED, TRAINED
from decodery.models.checkpoint import check, tokenizer_folder
from decodery.training.recipes import RECIPES

ROOT = Path(__file__).parents[1]
LISTED = tomllib.loads((ROOT / "artifacts.toml").read_text("utf-8"))["artifact"]
FILES = [path for path in sorted((ROOT / ARTIFACTS).rglob("*")) if path.is_file()]


def test_every_trained_file_is_listed() -> None:
    names = {str(path.relative_to(ROOT / ARTIFACTS)) for path in FILES}
    trained = {name for name in names if name.endswith((".safetensors", ".npz", ".bin", ".gguf"))}
    # A file of numbers in no folder is a card of its own, unless it is that of a file beside it.
    trained |= {
        n for n in names if n.endswith(".json") and "/" not in n and f"{n.removesuffix('.json')}.npz" not in names
    }
    assert {entry["file"] for entry in LISTED} == trained == set(TRAINED)


@pytest.mark.parametrize("entry", LISTED, ids=lambda entry: entry["file"])
def test_a_listed_file_is_what_the_list_says(entry: dict) -> None:
    content = (ROOT / ARTIFACTS / entry["file"]).read_bytes()
    assert (len(content), hashlib.sha256(content).hexdigest()) == (entry["bytes"], entry["sha256"])
    assert entry["recipe"] in RECIPES
    assert entry["fingerprint"]
    assert entry["command"]
    assert entry["metrics"]
    assert "seed" in entry


def test_they_keep_to_the_budget() -> None:
    sizes = {path: path.stat().st_size for path in FILES}
    assert max(sizes.values()) <= LARGEST
    assert sum(sizes.values()) < ALL


def test_no_content_is_there_twice() -> None:
    found = defaultdict(list)
    for path in FILES:
        if path.stat().st_size >= SHARED:
            found[hashlib.sha256(path.read_bytes()).hexdigest()].append(path.name)
    assert [names for names in found.values() if len(names) > 1] == []


def test_models_share_a_tokenizer() -> None:
    twin = ROOT / ARTIFACTS / "stories-twin"
    check(twin)
    assert tokenizer_folder(twin) == ROOT / ARTIFACTS / "diffusion-stories"


@pytest.mark.parametrize("named", ["../elsewhere", "/etc", 3, None])
def test_only_a_folder_beside_it_is_shared(named: object, tmp_path: Path) -> None:
    import json

    (tmp_path / "config.json").write_text(json.dumps({"tokenizer_folder": named}))
    assert tokenizer_folder(tmp_path) == tmp_path
