"""The list of trained files, `artifacts.toml`: `python -m decodery.evaluation.artifacts [FOLDER]` writes it.

One entry for every file that comes with the package as the outcome of a recipe, from the card that the recipe wrote (a file of
numbers alone is its own): size, sha256, fingerprint of the model, recipe, command, seed, training time and metrics. The folder
is that of the repository, by default the current one. A test holds the list against the files, and these against their budget.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ARTIFACTS = Path("src/decodery/artifacts")
LARGEST = 10_000_000
"""Bytes of a file at most."""
ALL = 90_000_000
"""Bytes of all files together at most."""
SHARED = 1024
"""Bytes from which on no content may be there twice; what is smaller describes the folder that it lies in."""
TRAINED = {
    "diffusion-lists/model.safetensors": "diffusion-lists",
    "diffusion-lists-dparallel/model.safetensors": "dparallel",
    "diffusion-rainbow/model.safetensors": "rainbow-padding",
    "diffusion-stories/model.safetensors": "stories",
    "stories-twin/model.safetensors": "stories",
    "any-subset-stories/model.safetensors": "any-subset",
    "insertion-stars/model.safetensors": "insertion-language-models",
    "insertion-stars/insertion_head.safetensors": "insertion-language-models",
    "stars-twin/model.safetensors": "insertion-language-models",
    "exit-adapters-smollm2-135m/adapters.safetensors": "exit-adapters",
    "successors-smollm2-135m.npz": "successors",
    "smollm2-sibling/layers.gguf": "sibling",
    "kangaroo-smollm2-135m/adapter.safetensors": "kangaroo",
    "adadec-smollm2-135m.json": "adadec-threshold",
    "diffadapt-smollm2-135m/probe.safetensors": "diffadapt",
}
"""Trained files, and their recipes."""


def entries(root: Path) -> Iterator[dict[str, Any]]:
    """What is told of every trained file. Raises OSError where one, or its card, is missing."""
    for name, recipe in TRAINED.items():
        path = root / ARTIFACTS / name
        beside = path.with_suffix(".json") if path.suffix in (".npz", ".json") else path.parent / "card.json"
        card = json.loads(beside.read_text())
        content = path.read_bytes()
        told = {
            "file": name,
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "fingerprint": card.get("fingerprint") or card.get("tokenizer") or _fingerprint(path.parent),
            "recipe": recipe,
            "command": card.get("command") or _said(card, "recipe") or f"decodery train {recipe}",
            "seed": card.get("seed", card["recipe"]["seed"] if isinstance(card["recipe"], dict) else 0),
        }
        if seconds := _seconds(card):
            told["training_seconds"] = round(seconds)
        metrics = card.get("metrics") or card.get("agreement")
        if isinstance(metrics, list):  # measured under several conditions
            told["metrics"] = metrics
        elif metrics:
            told["metrics"] = {key: value for key, value in metrics.items() if key != "seconds"}
        elif "runs" in card:
            told["metrics"] = {"tokens": card["tokens"], "runs": card["runs"]}
        yield told


def _said(card: Mapping[str, Any], key: str) -> str:
    return card[key] if isinstance(card.get(key), str) else ""


def _fingerprint(folder: Path) -> str:
    from decodery.loading import load

    return load(folder, dtype="float32").network.fingerprint()


def _seconds(card: Mapping[str, Any]) -> float:
    """Of all stages, as their logs tell them; 0 where none does."""
    stages = [*card.get("stages", []), card]
    logged = sum(stage["log"][-1].get("seconds", 0.0) for stage in stages if stage.get("log"))
    return float(logged or card.get("seconds_of_last_run", 0.0))


def as_toml(root: Path) -> str:
    """The list as the file has it."""
    lines = [
        "# Every trained file of src/decodery/artifacts; written by: python -m decodery.evaluation.artifacts",
        "# fingerprint: of the model that the file is or belongs to; of a table, of the tokenizer. "
        "training_seconds: of one core.",
    ]
    for entry in entries(root):
        lines += ["", "[[artifact]]", *(f"{key} = {_value(value)}" for key, value in entry.items())]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_value(inner) for inner in value) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(key)} = {_value(inner)}" for key, inner in value.items()) + " }"
    return json.dumps(value)


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() else json.dumps(key)


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    (folder / "artifacts.toml").write_text(as_toml(folder), encoding="utf-8")
