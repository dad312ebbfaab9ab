"""Every architecture: a file that says what a network of transformers is becomes that network again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf_writing as writing
import pytest
import torch
from gguf_cases import DENSE, Case
from gguf_mixtures import MIXED
from gguf_newer import NEWER
from gguf_writing import ENTRIES
from torch import Tensor

from decodery.models.gguf.architectures import ARCHITECTURES, REFUSED, configuration
from decodery.models.gguf.file import GgufFile, TensorEntry
from decodery.models.gguf.model import write_folder
from decodery.models.reading import read_model

CASES = {**DENSE, **MIXED, **NEWER}


def written(case: Case, path: Path) -> Any:
    entries = {**ENTRIES, **case.entries}
    model = writing.network(case.family, **case.settings)
    writing.write(path, case.architecture, model, entries, case.change, case.extra)
    return model


def read(path: Path, folder: Path) -> Any:
    folder.mkdir()
    write_folder(GgufFile.read(path), folder)
    return read_model(folder, json.loads((folder / "config.json").read_text()), torch.float32)


def logits(model: Any) -> Tensor:
    ids = torch.tensor([[(7 * i + 3) % 200 + 4 for i in range(40)]])
    with torch.inference_mode():
        result: Tensor = model(ids).logits
    return result


@pytest.mark.parametrize("name", CASES)
def test_the_file_is_the_network(name: str, tmp_path: Path) -> None:
    expected = written(CASES[name], tmp_path / "x.gguf")
    model = read(tmp_path / "x.gguf", tmp_path / "model")
    state = model.state_dict()
    for weight_name, weight in expected.state_dict().items():
        torch.testing.assert_close(state[weight_name], weight, rtol=1e-5, atol=1e-6)
    assert type(model) is type(expected)
    assert float((logits(model) - logits(expected)).abs().max()) < 1e-4


def described(architecture: str, **entries: Any) -> dict[str, Any]:
    """The configuration of a file that nobody wrote. entries: with two underscores for each dot."""
    given = {
        **ENTRIES,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.key_length": 24,
        "attention.value_length": 24,
    }
    given |= {key.replace("__", "."): value for key, value in entries.items()}
    metadata = {
        "general.architecture": architecture,
        **{f"{architecture}.{key}": value for key, value in given.items()},
    }
    return configuration(GgufFile((Path("x.gguf"),), metadata, (TensorEntry("token_embd.weight", (64, 99), 0, 0),)))


def test_what_files_of_gemma_leave_out() -> None:
    config = described("gemma2")
    assert (config["attn_logit_softcapping"], config["final_logit_softcapping"]) == (50, 30)
    assert config["sliding_window"] == 4096
    assert config["layer_types"] == ["sliding_attention", "full_attention", "sliding_attention"]
    config = described("gemma3", attention__sliding_window=8, block_count=7)
    assert [i for i, kind in enumerate(config["layer_types"]) if kind == "full_attention"] == [5]
    assert config["rope_parameters"]["sliding_attention"]["rope_theta"] == 10000
    assert set(described("gemma3")["layer_types"]) == {"full_attention"}


@pytest.mark.parametrize(("architecture", "layers"), [("gemma2", 46), ("gemma3", 62)])
def test_the_largest_gemma_scales_its_queries_in_its_own_way(architecture: str, layers: int) -> None:
    assert described(architecture, block_count=layers)["query_pre_attn_scalar"] == 64 // 4
    assert described(architecture, block_count=layers - 1)["query_pre_attn_scalar"] == 24


@pytest.mark.parametrize(
    ("pattern", "near"),
    [
        (0, [True] * 4),
        (1, [False] * 4),
        (2, [True, False] * 2),
        (4, [True] * 3 + [False]),
        ([True, False, False, True], None),
    ],
)
def test_which_layers_have_a_window(pattern: int | list[bool], near: list[bool] | None) -> None:
    entries = {"attention__sliding_window": 8, "attention__sliding_window_pattern": pattern}
    kinds = described("gemma3", block_count=4, **entries)["layer_types"]
    assert [kind == "sliding_attention" for kind in kinds] == (near or pattern)


def test_every_architecture_is_tried() -> None:
    assert {case.architecture for case in CASES.values()} == set(ARCHITECTURES)


def test_transformers_knows_no_architecture_that_is_not_read_or_refused_by_name() -> None:
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    spelled = {"qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe", "gpt_oss": "gpt-oss", "minimax_m2": "minimax-m2"}
    theirs = {spelled.get(name, name) for name in GGUF_SUPPORTED_ARCHITECTURES} - {"general", "tokenizer", "mistral"}
    assert theirs <= set(ARCHITECTURES) | set(REFUSED)


def test_nor_does_its_newer_table() -> None:
    from transformers.integrations import gguf

    assert set(gguf.GGUF_CONFIG_ARCHS) <= set(ARCHITECTURES)
