"""The files of one model in the formats of the engines, all from the same GGUF file."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from decodery.errors import BadInput
from decodery.models import catalogue, download, store
from decodery.models.checkpoint import RECORD
from decodery.models.gguf.weights import POINTER
from decodery.models.progress import Silent
from decodery.models.reading import transformers_model

from .environments import SetupFailed, command, python_of

MADE_OF = "made-of.json"
"""In the copy of a checkpoint: which file it was made of."""
FILE_TYPES = {"BF16": 32, "Q4_0": 2}
"""Numbers of `general.file_type` in a GGUF file."""
OPENVINO_FORMATS = {
    "bf16": ("--weight-format", "fp16"),
    "4-bit": ("--weight-format", "int4", "--group-size", "32", "--ratio", "1.0"),
}
"""Arguments of `optimum-cli export openvino`. Groups of 32 with a zero point, as in the file: with groups of 64 the answers of
the default model, whose weights were four-bit numbers before, lose their sense."""


@dataclass(frozen=True)
class ModelFiles:
    """Where one model lies. checkpoint: transformers' folder, with the weights in float32. gguf: the file that everything comes
    from."""

    name: str
    checkpoint: Path
    gguf: Path
    folder: Path

    @property
    def bfloat16_gguf(self) -> Path:
        """The same weights, dequantised and rounded to bfloat16."""
        return self.folder / f"{self.gguf.stem}.BF16.gguf"

    @property
    def q4_0_gguf(self) -> Path:
        """The four-bit matrices in the four-bit form for which llama.cpp has its fastest kernels."""
        return self.folder / f"{self.gguf.stem}.Q4_0.gguf"

    def openvino(self, weights: str) -> Path:
        """OpenVINO's model; weights: "bf16" or "4-bit"."""
        return self.folder / f"openvino-{weights}"


def find(name: str, folder: Path) -> ModelFiles:
    """The checkpoint and the GGUF file of a model, made and fetched where they are not here. name: a bundled model or a .gguf
    file.

    Raises BadInput for any other name, and what the store of models raises.
    """
    installed = store.resolve(name)
    if name in catalogue.BUNDLED:
        place = folder / "models" / name
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place) as scratch:
            gguf = download.fetch_gguf(catalogue.BUNDLED[name], place, Path(scratch), Silent())
        return ModelFiles(name, exported(installed, place), gguf, place)
    if name.lower().endswith(".gguf"):
        gguf = Path(name).expanduser().absolute()
        place = folder / "models" / gguf.stem
        place.mkdir(parents=True, exist_ok=True)
        return ModelFiles(gguf.stem, exported(installed, place), gguf, place)
    raise BadInput(f"{name} is neither a bundled model nor a .gguf file, so llama.cpp has nothing to run.")


def exported(installed: Path, place: Path) -> Path:
    """A copy of an installed model with its weights in safetensors, for the engines that read no others. It appears when it is
    complete, and is made anew when the model was installed anew."""
    target, partial = place / "checkpoint", place / "checkpoint.partial"
    pointer = installed / POINTER
    if not pointer.is_file():
        return installed
    if (target / MADE_OF).is_file() and (target / MADE_OF).read_bytes() == pointer.read_bytes():
        return target
    print(f"writing {target} ...", flush=True)
    for old in (target, partial):
        shutil.rmtree(old, ignore_errors=True)
    transformers_model(installed, torch.float32).save_pretrained(partial)
    for path in installed.glob("*.json"):  # configurations as they were, without what saving adds
        if path.name not in (POINTER, RECORD):
            shutil.copy(path, partial)
    shutil.copy(pointer, partial / MADE_OF)
    os.replace(partial, target)
    return target


def prepare_gguf(files: ModelFiles) -> None:
    """Write the bfloat16 and the Q4_0 file where they are missing."""
    for target, kind in ((files.bfloat16_gguf, "BF16"), (files.q4_0_gguf, "Q4_0")):
        if not target.is_file():
            print(f"writing {target.name} ...", flush=True)
            rewrite(files.gguf, target, kind)


def prepare_openvino(files: ModelFiles, folder: Path) -> None:
    """Convert the checkpoint with optimum-intel where that was not done. Raises SetupFailed."""
    tool = python_of(folder, "openvino").with_name("optimum-cli")
    for weights, arguments in OPENVINO_FORMATS.items():
        target = files.openvino(weights)
        finished = target / "converted.txt"
        line = " ".join(arguments)
        if finished.is_file() and finished.read_text("utf-8") == line:
            continue
        shutil.rmtree(target, ignore_errors=True)
        command(
            [
                *(str(tool), "export", "openvino", "--model", str(files.checkpoint)),
                *("--task", "text-generation-with-past", *arguments, str(target)),
            ],
            folder / "logs" / "setup-openvino.log",
            f"converting {files.name} to OpenVINO, {weights}",
        )
        if not (target / "openvino_tokenizer.xml").is_file():
            raise SetupFailed(f"optimum-intel wrote no tokenizer into {target}, which OpenVINO GenAI needs.")
        finished.write_text(line, "utf-8")


def rewrite(source: Path, target: Path, kind: str) -> None:
    """Copy a GGUF file with other weights: "BF16" makes every quantised tensor bfloat16, "Q4_0" makes only the four-bit ones
    Q4_0. Everything else, the tokenizer too, stays as it is. The file appears when it is complete."""
    import gguf

    reader = gguf.GGUFReader(source)
    kinds = gguf.GGMLQuantizationType
    partial = target.with_name(target.name + ".partial")
    writer = gguf.GGUFWriter(partial, str(reader.fields["general.architecture"].contents()))
    for key, entry in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type"):
            continue
        inner = entry.types[1] if entry.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, entry.contents(), entry.types[0], inner)
    writer.add_file_type(FILE_TYPES[kind])
    change: Callable[[Any], bool] = {
        "BF16": lambda found: found not in (kinds.F32, kinds.F16, kinds.BF16),
        "Q4_0": lambda found: found in (kinds.Q4_1, kinds.Q4_K),
    }[kind]
    for tensor in reader.tensors:
        data, form = tensor.data, tensor.tensor_type
        if change(form):
            form = kinds[kind]
            data = gguf.quantize(gguf.dequantize(data, tensor.tensor_type), form)
        writer.add_tensor(tensor.name, data, raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(partial, target)
