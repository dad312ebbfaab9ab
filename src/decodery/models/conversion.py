"""Converts a GGUF file into a checkpoint folder, once, so that later loads take a second.

The weights are read by transformers and stored in float32: dequantised 4-bit values are a scale times an integer plus
an offset, which bfloat16 cannot hold, and the file is only mapped into memory when it is loaded in another type.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from decodery.errors import ModelNotReadable
from decodery.models.gguf_file import GgufFile
from decodery.models.gguf_tokenizer import end_tokens, write_tokenizer

# What transformers notes in the configuration about the reading itself.
_NOT_OF_THE_MODEL = ("quantization_config", "_name_or_path", "_model_name_or_path", "unk_token_id")

_FLOAT32_BYTES = 4

# transformers changes global state (the default type of torch, its progress bars) while it loads.
_ONE_AT_A_TIME = threading.Lock()


def converted_bytes(file: GgufFile) -> int:
    """Bytes of disk that a conversion takes while it runs: the weights, and the copy that transformers reads."""
    return file.parameters * _FLOAT32_BYTES + file.path.stat().st_size


def convert(file: GgufFile, folder: Path, scratch: Path) -> None:
    """Fill `folder` with configuration, weights and tokenizer of `file`; `scratch` is for intermediate files.

    Raises ModelNotReadable where the file is damaged, or of a kind that cannot be converted.
    """
    if file.metadata.get("split.count", 1) > 1:
        raise ModelNotReadable(f"{file.path} is one of several parts; merge them into one GGUF file first.")
    file.check_length()
    write_tokenizer(file, folder)  # first, because it takes a second and knows its limits
    model = _load(file, scratch)
    _write_json(folder / "config.json", _configuration(model))
    _write_json(folder / "generation_config.json", _generation(file))
    _write_weights(model, folder / "model.safetensors")
    # safetensors writes files that only their owner can read; a cache may be shared.
    shutil.copymode(folder / "config.json", folder / "model.safetensors")


def _load(file: GgufFile, scratch: Path) -> Any:
    """The network, in float32, with every weight taken from the file."""
    slim = scratch / "without-vocabulary.gguf"
    failure: Exception | None = None
    # Some readers of transformers need seconds per array of the vocabulary, others cannot do without it.
    for path in (slim, file.path):
        if path == slim:
            file.write_without_vocabulary(slim)
        try:
            model = _load_from(path, file)
        except (OSError, MemoryError):
            raise
        except Exception as error:
            failure = error
            continue
        finally:
            slim.unlink(missing_ok=True)
        return model
    if isinstance(failure, ModelNotReadable):
        raise failure
    reason = str(failure).strip().split("\n")[0].rstrip(".") or type(failure).__name__
    raise ModelNotReadable(
        f"{file.path}, of architecture {file.architecture!r}, cannot be converted by transformers ({reason})."
    ) from failure


def _load_from(path: Path, file: GgufFile) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    with _ONE_AT_A_TIME, _quiet():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32, output_loading_info=True
        )
    model, found = loaded
    lacking = sorted({*found["missing_keys"], *(str(key) for key in found["mismatched_keys"])})
    if lacking:  # transformers would leave these weights random
        others = f" and {len(lacking) - 1} more weights" if len(lacking) > 1 else ""
        raise ModelNotReadable(f"{file.path} is incomplete: it lacks {lacking[0]}{others}.")
    if model.config.vocab_size != len(file.tokenizer("tokens")):
        raise ModelNotReadable(
            f"{file.path} is inconsistent: {len(file.tokenizer('tokens'))} tokens, "
            f"but a network for {model.config.vocab_size}."
        )
    return model


def _write_weights(model: Any, path: Path) -> None:
    """Write the weights; where two names share one tensor, as tied embeddings do, under the first name only."""
    from safetensors.torch import save_file

    written: dict[str, Any] = {}
    storages: set[int] = set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in storages:
            storages.add(tensor.data_ptr())
            written[name] = tensor.contiguous()
    save_file(written, path, metadata={"format": "pt"})


def _configuration(model: Any) -> dict[str, Any]:
    configuration = json.loads(model.config.to_json_string(use_diff=True))
    kept = {key: value for key, value in configuration.items() if key not in _NOT_OF_THE_MODEL}
    return _shortened(kept) | {"architectures": [type(model).__name__], "dtype": "float32"}


def _generation(file: GgufFile) -> dict[str, Any]:
    ends = end_tokens(file)
    ids = {
        "bos_token_id": file.tokenizer("bos_token_id"),
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": file.tokenizer("padding_token_id"),
    }
    return {key: value for key, value in ids.items() if value is not None}


def _shortened(value: Any) -> Any:
    """Floats as they were meant: a GGUF file holds 1e-05 in float32, which reads as 9.999999747378752e-06."""
    if isinstance(value, dict):
        return {key: _shortened(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_shortened(entry) for entry in value]
    if isinstance(value, float):
        import numpy

        single = numpy.float32(value)
        return float(str(single)) if float(single) == value else value
    return value


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of transformers: progress is reported by the store."""
    from transformers.utils import logging

    reader: Any = None
    with contextlib.suppress(ImportError):  # a part of transformers that may go away
        reader = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    shown = getattr(reader, "tqdm", None)
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    if shown is not None:  # this one does not heed the setting
        reader.tqdm = lambda items, **_: items
    try:
        yield
    finally:
        if shown is not None:
            reader.tqdm = shown
        if bars:
            logging.enable_progress_bar()
