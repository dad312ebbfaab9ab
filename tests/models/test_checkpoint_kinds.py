"""Kinds of checkpoint folders: pickles, tokenizers of other sizes, configurations that are no causal language model's."""

from __future__ import annotations

import argparse
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_folders import assert_computes, write
from safetensors.torch import load_file
from test_checkpoint_weights import UP, made, refusal
from tiny_models import byte_level_tokenizer, make_model

import decodery
from decodery.errors import BadPrompt, BadSetting
from decodery.loading import _dtype


class Code:
    """Something whose pickle runs a command when it is read the usual way."""

    def __reduce__(self) -> Any:
        return os.system, ("echo ran > ran.txt",)


def pickled(
    folder: Path, model: Any = None, name: str = "pytorch_model.bin", wrap: Any = None, **settings: Any
) -> Path:
    """A folder whose weights torch has written."""
    write(folder, model or made("llama"))
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(wrap(weights) if wrap else weights, folder / name, **settings)
    return folder


class TestPickles:
    @pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "model.bin"])
    @pytest.mark.parametrize("zipped", [True, False])
    def test_one_file(self, name: str, zipped: bool, tmp_path: Path) -> None:
        model = made("llama")
        assert_computes(pickled(tmp_path, model, name, _use_new_zipfile_serialization=zipped), model)

    def test_what_training_leaves_beside_it(self, tmp_path: Path) -> None:
        model = made("gpt2", True)
        pickled(tmp_path, model, "final.pt")
        for name in ("training_args.bin", "optimizer.pt", "rng_state_0.pth", "scheduler.pt"):
            torch.save({"a": argparse.Namespace()}, tmp_path / name)
        assert_computes(tmp_path, model)

    @pytest.mark.parametrize("entry", ["state_dict", "model", "module", "model_state_dict"])
    def test_weights_within_what_training_saves(self, entry: str, tmp_path: Path) -> None:
        model = made("llama")
        wrap = lambda w: {"epoch": 3, entry: {"module." + n: torch.nn.Parameter(x) for n, x in w.items()}}  # noqa: E731
        assert_computes(pickled(tmp_path, model, wrap=wrap), model)

    def test_tied_weights_stored_twice(self, tmp_path: Path) -> None:
        model = made("llama", True)
        wrap = lambda w: {**w, "lm_head.weight": w["model.embed_tokens.weight"]}  # noqa: E731
        assert_computes(pickled(tmp_path, model, wrap=wrap), model)

    @pytest.mark.parametrize("damage", ["", "lacks", "missing"])
    def test_shards(self, damage: str, tmp_path: Path) -> None:
        model = made("llama")
        write(tmp_path, model)
        weights = load_file(tmp_path / "model.safetensors")
        (tmp_path / "model.safetensors").unlink()
        places: dict[str, str] = {}
        for i in range(3):
            part = dict(list(weights.items())[i::3])
            file = f"pytorch_model-{i + 1:05}-of-00003.bin"
            places |= dict.fromkeys(part, file)
            if damage == "lacks" and i == 1:
                lost = sorted(part)[0]
                del part[lost]
            if not (damage == "missing" and i == 2):
                torch.save(part, tmp_path / file)
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
        if not damage:
            assert_computes(tmp_path, model)
        elif damage == "lacks":
            assert f"pytorch_model-00002-of-00003.bin lacks {lost}, which its index says it holds" in refusal(tmp_path)
        else:
            assert "lacks 1 of 3 weight files (pytorch_model-00003-of-00003.bin)" in refusal(tmp_path)

    @pytest.mark.parametrize("zipped", [True, False])
    def test_code_is_not_run(self, zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        folder = pickled(
            tmp_path / "m", wrap=lambda w: {**w, "more": Code()}, _use_new_zipfile_serialization=zipped
        )  # fmt: skip
        message = refusal(folder)
        assert "pytorch_model.bin names posix.system, and to read it would run code" in message
        assert not (tmp_path / "ran.txt").exists()

    def test_a_whole_model(self, tmp_path: Path) -> None:
        folder = pickled(tmp_path, wrap=lambda w: made("llama"))
        assert "names transformers.models.llama.modeling_llama.LlamaForCausalLM" in refusal(folder)

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", "is empty"),
            (b"PK" + bytes(99), "is no readable file of torch"),
            (b"something else", "is no readable file of torch"),
            (pickle.dumps({"a": 1}, protocol=2), "is no readable file of torch"),
        ],
    )
    def test_damaged_files(self, content: bytes, reason: str, tmp_path: Path) -> None:
        (pickled(tmp_path) / "pytorch_model.bin").write_bytes(content)
        assert reason in refusal(tmp_path)

    @pytest.mark.parametrize(
        ("wrap", "reason"),
        [
            (lambda w: list(w.values()), "holds no weights by name but a list"),
            (lambda w: torch.ones(3), "holds no weights by name but a Tensor"),
            (lambda w: {}, "holds no weights by name but nothing"),
            (lambda w: {**w, "step": 3}, "holds step beside weights, which is no tensor"),
            (lambda w: {**w, UP: w[UP] * float("nan")}, f"the weight {UP}"),
            (lambda w: {**w, UP: (w[UP] * 9).to(torch.int8)}, f"holds {UP} as whole numbers (I8)"),
            (lambda w: {**w, UP: w[UP].to(torch.complex64)}, f"holds {UP} as torch.complex64"),
        ],
    )
    def test_other_contents(self, wrap: Any, reason: str, tmp_path: Path) -> None:
        assert reason in refusal(pickled(tmp_path, wrap=wrap))

    def test_several_files_and_none_with_the_usual_name(self, tmp_path: Path) -> None:
        pickled(tmp_path, name="a.pt")
        torch.save({}, tmp_path / "b.pth")
        assert "holds 2 files that could be the weights (a.pt, b.pth" in refusal(tmp_path)

    def test_safetensors_win(self, tmp_path: Path) -> None:
        model = made("llama")
        write(tmp_path, model)
        torch.save({"x": Code()}, tmp_path / "pytorch_model.bin")
        assert_computes(tmp_path, model)

    def test_their_size_decides_the_dtype(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """As that of safetensors files does."""
        monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: True)
        folder = pickled(tmp_path)
        assert _dtype("auto", torch.device("cpu"), folder) is torch.float32
        monkeypatch.setattr("decodery.loading.TINY", 1000)
        assert _dtype("auto", torch.device("cpu"), folder) is torch.bfloat16


class TestTokenizersOfAnotherSize:
    def larger(self, folder: Path, special: bool = True) -> Path:
        write(folder, made("llama", eos_token_id=0))
        tokenizer = type(byte_level_tokenizer()).from_pretrained(folder)
        tokenizer.add_special_tokens({"pad_token": "[PAD]"}) if special else tokenizer.add_tokens(["[PAD]"])
        tokenizer.save_pretrained(folder)
        return folder

    @pytest.mark.parametrize("special", [True, False])
    def test_added_tokens_are_forbidden(self, special: bool, tmp_path: Path) -> None:
        lm = decodery.load(self.larger(tmp_path, special), dtype="float32")
        assert len(lm.tokenizer) == lm.network.vocabulary + 1 == 326
        assert lm.generate("the quick", max_new_tokens=5, ignore_eos=True).finish_reason == "length"
        for prompt in ("the [PAD] fox", [3, 325]):
            with pytest.raises(BadPrompt, match=r"holds token 325 \('\[PAD\]'\), but the tokens of .* are 0 to 324"):
                lm.generate(prompt)
        with pytest.raises(BadPrompt, match="holds token 326, but"):
            lm.generate([326])
        with pytest.raises(BadSetting, match="325"):
            lm.generate("the", logit_bias={325: 1.0})
        with pytest.raises(BadSetting, match="325"):
            lm.generate("the", stop_token_ids=[325])

    def test_an_end_token_that_never_comes(self, tmp_path: Path) -> None:
        folder = self.larger(tmp_path)
        path = folder / "generation_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [0, 7, 325]}))
        assert decodery.load(folder, dtype="float32").stop_ids == (0, 7)

    def test_a_tokenizer_of_another_model(self, tmp_path: Path) -> None:
        """Its own tokens go beyond the network, so that it is another's."""
        make_model("llama", vocab_size=300).save_pretrained(tmp_path)
        byte_level_tokenizer().save_pretrained(tmp_path)
        assert "the tokenizer has 325 tokens but" in refusal(tmp_path)

    def test_rows_without_tokens(self, tmp_path: Path) -> None:
        """Tokens that the tokenizer lacks are scored as any other, and read as nothing."""
        make_model("llama", vocab_size=384).save_pretrained(tmp_path)
        byte_level_tokenizer().save_pretrained(tmp_path)
        lm = decodery.load(tmp_path, dtype="float32")
        reply = lm.generate("the", max_new_tokens=3, logit_bias={350: 1e4})
        assert reply.token_ids == [350] * 3
        assert reply.text == ""
        assert (
            "".join(e.text for e in lm.stream("the", max_new_tokens=3, logit_bias={350: 1e4}) if hasattr(e, "text"))
            == ""
        )
        assert lm.generate([350, 3], max_new_tokens=2, ignore_eos=True).finish_reason == "length"


def configured(folder: Path, **config: Any) -> Path:
    """A folder that says something else of itself."""
    return write(folder, made("llama"), None, **config)


class TestConfigurations:
    @pytest.mark.parametrize(
        ("config", "reason"),
        [
            ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "an encoder with a decoder"),
            ({"model_type": "bart", "architectures": None}, "an encoder with a decoder"),
            (
                {"model_type": "bert", "architectures": ["BertForMaskedLM"]},
                "is BertForMaskedLM (bert), no causal language",
            ),
            ({"model_type": "bert", "architectures": ["BertModel"]}, "is BertModel (bert), no causal language"),
            ({"model_type": "roberta", "architectures": None}, "is roberta, no causal language model"),
            ({"model_type": "vit", "architectures": ["ViTModel"]}, "is ViTModel (vit), no causal language model"),
            ({"model_type": "whisper", "architectures": ["WhisperModel"]}, "encoder with a decoder"),
            (
                {"architectures": ["LlamaForSequenceClassification"]},
                "is LlamaForSequenceClassification (llama), no causal",
            ),
            ({"model_type": None}, "names no model_type"),
            ({"model_type": "lama", "architectures": ["LamaForCausalLM"]}, "which the installed transformers"),
            (
                {"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "modeling_mine.Mine"}},
                "only code that comes with it can run (modeling_mine.Mine)",
            ),
            (
                {"architectures": ["MyLlama"], "auto_map": {"AutoModelForCausalLM": "modeling_mine.MyLlama"}},
                "only code that comes with it can run (modeling_mine.MyLlama)",
            ),
        ],
    )
    def test_refused(self, config: dict[str, Any], reason: str, tmp_path: Path) -> None:
        assert reason in refusal(configured(tmp_path, **config))

    @pytest.mark.parametrize(
        "config",
        [
            {"auto_map": {"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"}},  # transformers has it by now
            {"architectures": None},
            {"architectures": ["LLaMAForCausalLM"]},  # an old spelling
            {"dtype": None, "torch_dtype": "bfloat16"},
        ],
    )
    def test_read(self, config: dict[str, Any], tmp_path: Path) -> None:
        model = made("llama")
        assert_computes(write(tmp_path, model, None, **config), model)

    def test_no_generation_config(self, tmp_path: Path) -> None:
        write(tmp_path, made("llama"), None, eos_token_id=[5, 9])
        (tmp_path / "generation_config.json").unlink()
        assert decodery.load(tmp_path, dtype="float32").stop_ids == (0, 5, 9)  # and the tokenizer's own

    @pytest.mark.parametrize(
        ("ends", "ids"), [([None, 3], (0, 3)), (-1, (0,)), (9999, (0,)), ([7, 3], (0, 3, 7)), (None, (0,)), ([], (0,))]
    )  # fmt: skip
    def test_end_tokens(self, ends: Any, ids: tuple[int, ...], tmp_path: Path) -> None:
        (write(tmp_path, made("llama")) / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
        assert decodery.load(tmp_path, dtype="float32").stop_ids == ids

    @pytest.mark.parametrize("ends", ["2", ["a"], 2.5, [[1]], True])
    def test_end_tokens_that_are_none(self, ends: Any, tmp_path: Path) -> None:
        (write(tmp_path, made("llama")) / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
        assert f"name {ends!r} as eos_token_id, which must be a token id" in refusal(tmp_path)

    def test_what_transformers_says_of_a_configuration(self, tmp_path: Path) -> None:
        message = refusal(configured(tmp_path, eos_token_id="2"))
        assert "Validation error for field 'eos_token_id': TypeError" in message

    def test_no_tokenizer(self, tmp_path: Path) -> None:
        write(tmp_path, made("llama"))
        for path in tmp_path.glob("tokenizer*"):
            path.unlink()
        assert "holds no tokenizer; it needs tokenizer.json" in refusal(tmp_path)

    @pytest.mark.parametrize("content", ["{", "[]", "3"])
    @pytest.mark.parametrize(
        "name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    )
    def test_damaged_json(self, name: str, content: str, tmp_path: Path) -> None:
        (write(tmp_path, made("llama")) / name).write_text(content)
        what = f"the tokenizer in {tmp_path}" if name == "tokenizer.json" else str(tmp_path / name)
        assert refusal(tmp_path).startswith(what)

    def test_code_of_a_tokenizer(self, tmp_path: Path) -> None:
        folder = write(tmp_path, made("llama"))
        path = folder / "tokenizer_config.json"
        settings = json.loads(path.read_text()) | {
            "tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["tokenization_mine.Mine", None]}
        }  # fmt: skip
        path.write_text(json.dumps(settings))
        (folder / "tokenization_mine.py").write_text("raise SystemExit('ran')")
        assert "needs code that comes with it, and such code is never run" in refusal(folder)
