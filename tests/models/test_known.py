"""What an earlier load has found out: later ones give the same without transformers, and look again when anything changed."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_native import make
from tiny_models import byte_level_tokenizer

import decodery
from decodery.loading import load
from decodery.models.forward import Forward
from decodery.models.known import Known
from decodery.models.native.network import NativeNetwork
from decodery.models.native.weights import Precision

pytestmark = pytest.mark.usefixtures("native_decoder")
PROMPT = "the quick brown"
SETTINGS: dict[str, Any] = {"max_new_tokens": 8, "temperature": 0, "method": "autoregressive"}


@pytest.fixture
def folder(tmp_path: Path, home: Path) -> Path:
    """A checkpoint with a byte-level tokenizer, and an empty home."""
    return saved(tmp_path / "model")


def saved(folder: Path, family: str = "llama", template: str | None = "{{ messages[0].content }}") -> Path:
    model = make_with(family)
    model.save_pretrained(folder)
    tokenizer = copy.deepcopy(byte_level_tokenizer())
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def make_with(family: str) -> Any:
    model = make(family)
    model.resize_token_embeddings(336)
    model.generation_config.eos_token_id = [3, 1]
    return model


def test_the_second_load_needs_no_transformers(folder: Path) -> None:
    lm = load(folder, dtype="bfloat16")
    expected = lm.generate(PROMPT, **SETTINGS)
    code = f"""
import sys, json
from decodery.loading import load
from decodery.models import store
lm = load({str(folder)!r}, dtype="bfloat16")
reply = lm.generate({PROMPT!r}, **{SETTINGS!r})
heavy = [name for name in sys.modules if name.split(".")[0] in ("transformers", "scipy")]
print(json.dumps([reply.text, reply.token_ids, lm.stop_ids, lm.network.path, heavy]))
"""
    here = os.environ | {"PYTHONPATH": str(Path(decodery.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=here)
    assert json.loads(done.stdout) == [expected.text, list(expected.token_ids), [0, 1, 3], "native", []]
    assert lm.stop_ids == (0, 1, 3)


def test_a_known_network_scores_the_same_bits(folder: Path) -> None:
    first, second = (load(folder, dtype="bfloat16") for _ in range(2))
    assert isinstance(second.network, NativeNetwork)
    assert second.network.layout == first.network.layout  # type: ignore[attr-defined]
    replies = [lm.generate(PROMPT, **SETTINGS, logprobs=2, echo=True) for lm in (first, second)]
    assert replies[0].token_ids == replies[1].token_ids
    assert replies[0].prompt_logprobs == replies[1].prompt_logprobs
    assert first.network.fingerprint() == second.network.fingerprint()


def test_the_transformers_model_is_built_when_it_is_asked_for(folder: Path) -> None:
    for _ in range(2):
        network: Any = load(folder, dtype="bfloat16").network
        assert type(network.model).__name__ == "LlamaForCausalLM"
        assert network.model is network.model
        weight = network.model.get_input_embeddings().weight
        assert torch.equal(weight, network.embed(torch.arange(network.vocabulary)))


def known(folder: Path, precision: Precision = "integer") -> bool:
    return Known(folder)._recorded(precision) is not None


def test_anything_that_changes_is_looked_at_again(folder: Path) -> None:
    assert not known(folder)
    load(folder, dtype="bfloat16")
    assert known(folder)
    assert not known(folder, "native")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    assert not known(folder)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = (folder / "generation_config.json").read_text()
    load(folder, dtype="bfloat16")
    assert known(folder)
    (folder / "generation_config.json").write_text(generation.replace("[\n    3", "[\n    5"))
    assert not known(folder)
    assert load(folder, dtype="bfloat16").stop_ids == (0, 1, 5)


def test_the_native_path_takes_bfloat16_where_torch_does_not(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On processors that do not multiply bfloat16 themselves: "auto" is float32 for torch alone."""
    monkeypatch.setattr("decodery.loading._fast_bfloat16", lambda: False)
    assert load(folder).network.dtype == torch.float32, "tiny"
    monkeypatch.setattr("decodery.loading.TINY", 1000)
    lm = load(folder)
    assert (lm.network.path, lm.network.dtype) == ("native", torch.bfloat16)
    assert lm.network.model.dtype == torch.bfloat16
    assert load(folder, fast="off").network.dtype == torch.float32
    assert load(folder, dtype="float32").network.dtype == torch.float32
    monkeypatch.setattr("decodery.loading.build.usable", lambda: ())
    assert load(folder).network.dtype == torch.float32


def test_other_versions_look_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(folder, dtype="bfloat16")
    assert known(folder)
    monkeypatch.setattr("decodery.models.known.version", lambda package: f"another {package}")
    assert not known(folder)


def test_weights_that_do_not_fit_what_is_known_are_read_the_long_way(folder: Path, tmp_path: Path) -> None:
    load(folder, dtype="bfloat16")
    other = saved(tmp_path / "other", "llama-biases")
    (folder / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    assert known(folder)
    assert Known(folder).network("name", True) is None


@pytest.mark.parametrize("family", ["gemma3", "qwen2-sliding", "smollm3", "llama-biases"])
def test_the_first_load_confirms_the_first_layers_and_tokens_alone(
    family: str, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / family, family)
    built: list[tuple[int, int]] = []

    def of(model: Any, *arguments: Any, **more: Any) -> NativeNetwork:
        built.append((len(model.base_model.layers), len(model.get_output_embeddings().weight)))
        return whole(model, *arguments, **more)

    whole = NativeNetwork.of
    monkeypatch.setattr(NativeNetwork, "of", of)
    monkeypatch.setattr("decodery.models.confirmation.FEW_TOKENS", 64)
    network: Any = load(folder, dtype="bfloat16").network
    assert built == [(1 if family == "llama-biases" else 2, 64)]
    assert network.layers == 4
    ids = list(range(60))
    ours = network.run([Forward(network.new_sequence(), ids)])[0].logits
    through = NativeNetwork.of(network.model, family, precision="integer")
    assert torch.equal(through.run([Forward(through.new_sequence(), ids)])[0].logits, ours)


def test_a_model_whose_first_layers_score_otherwise_is_not_known(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(make: Any, model: Any, path: str) -> None:
        if not path.startswith("off"):
            raise ValueError("it computes something else")

    monkeypatch.setattr("decodery.models.confirmation.confirm", refuse)
    monkeypatch.setattr("decodery.models.paths.confirm", refuse)
    assert load(folder, dtype="bfloat16").network.path == "eager"  # type: ignore[attr-defined]
    assert not known(folder)


def test_end_tokens_of_a_folder_without_a_generation_config(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": [7, 9]}))
    for _ in range(2):
        assert load(folder, dtype="bfloat16").stop_ids == (0, 7, 9)
    assert known(folder)


@pytest.mark.parametrize("content", ["", "{", '{"layout": "{}", "ends": []}', "[]", '{"layout": "[1]"}'])
def test_a_damaged_record_is_looked_at_again(folder: Path, content: str) -> None:
    load(folder, dtype="bfloat16")
    [record] = Known(folder).place.glob("integer-*.json")
    whole = record.read_text()
    record.write_text(content)
    assert not known(folder)
    load(folder, dtype="bfloat16")
    assert record.read_text() == whole


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_facts.json"])
def test_a_damaged_tokenizer_is_read_again(folder: Path, file: str) -> None:
    expected = load(folder, dtype="bfloat16").encode(PROMPT)
    kept = Known(folder).place / file
    whole = kept.read_text()
    kept.write_text("{")
    assert load(folder, dtype="bfloat16").encode(PROMPT) == expected
    assert kept.read_text() == whole


def test_a_home_that_cannot_be_written_is_no_error(folder: Path, home: Path) -> None:
    home.mkdir(exist_ok=True)
    load(folder, dtype="bfloat16")  # the compiled decoder is kept there too
    for path in sorted((home / "known").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (home / "known").rmdir()
    (home / "known").write_text("a file where a folder belongs")
    assert load(folder, dtype="bfloat16").generate(PROMPT, **SETTINGS).token_ids
    assert not known(folder)


def test_only_the_path_that_was_asked_for_is_taken(folder: Path) -> None:
    assert load(folder, dtype="bfloat16").network.path == "native"  # type: ignore[attr-defined]
    with pytest.raises(decodery.BadSetting, match="do not fit into four or eight bits"):
        load(folder, dtype="bfloat16", fast="packed")
    assert load(folder, dtype="bfloat16", fast="off").network.path == "eager"  # type: ignore[attr-defined]
    assert load(folder, dtype="bfloat16", fast="fused").network.path == "fused"  # type: ignore[attr-defined]
    assert load(folder, dtype="float32").network.path != "native"  # type: ignore[attr-defined]
