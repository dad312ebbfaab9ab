"""Folders of adapters are merged into their base model as peft merges them, or refused with the reason."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_folders import IDS, computed, write
from store_testing import is_one_sentence
from test_checkpoint_weights import made
from tiny_models import byte_level_tokenizer, reference_logits

import decodery
from decodery.errors import ModelNotReadable

TARGETS = ["q_proj", "v_proj", "down_proj"]


def refusal(folder: Path) -> str:
    with pytest.raises(ModelNotReadable) as error:
        decodery.load(folder, dtype="float32")
    assert is_one_sentence(error), str(error.value)
    return str(error.value)


def described(folder: Path, **entries: Any) -> Path:
    """A folder that looks like an adapter's."""
    folder.mkdir(exist_ok=True)
    described = {"peft_type": "LORA", "base_model_name_or_path": "base", "r": 4, "target_modules": TARGETS, **entries}
    (folder / "adapter_config.json").write_text(json.dumps(described))
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write(tmp_path / "base", made("llama"))


class TestWithoutPeft:
    """What is said of a folder before peft is needed."""

    def weights(self, folder: Path) -> None:
        from safetensors.torch import save_file

        save_file({"base_model.model.x": torch.ones(1)}, folder / "adapter_model.safetensors")

    def test_peft_is_missing(self, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "peft", None)
        folder = described(tmp_path / "adapter")
        self.weights(folder)
        assert "which is merged into its base model with peft; install it: pip install peft." in refusal(folder)

    def test_no_weights(self, base: Path, tmp_path: Path) -> None:
        assert "lacks its weights, adapter_model.safetensors" in refusal(described(tmp_path / "adapter"))

    @pytest.mark.parametrize("name", [None, "", 3])
    def test_no_base(self, name: Any, tmp_path: Path) -> None:
        folder = described(tmp_path / "adapter", base_model_name_or_path=name)
        self.weights(folder)
        assert "does not name its base model" in refusal(folder)

    def test_a_base_that_is_not_there(self, tmp_path: Path) -> None:
        folder = described(tmp_path / "adapter", base_model_name_or_path="nobody knows")
        self.weights(folder)
        assert "is an adapter for nobody knows, which is not to be had: There is no model" in refusal(folder)

    def test_a_base_that_is_an_adapter(self, tmp_path: Path) -> None:
        for folder in (described(tmp_path / "base"), described(tmp_path / "adapter")):
            self.weights(folder)
        assert "which is an adapter itself" in refusal(tmp_path / "adapter")

    def test_a_model_and_an_adapter_in_one_folder(self, base: Path) -> None:
        described(base)
        assert "holds the weights of a model (model.safetensors) and an adapter" in refusal(base)

    @pytest.mark.parametrize("content", ["{", "[]"])
    def test_a_damaged_description(self, content: str, tmp_path: Path) -> None:
        (described(tmp_path) / "adapter_config.json").write_text(content)
        assert "adapter_config.json is not readable" in refusal(tmp_path)

    def test_adapters_of_training_are_not_taken_for_weights(self, tmp_path: Path, base: Path) -> None:
        (base / "model.safetensors").unlink()
        torch.save({}, base / "adapter_model.bin")
        assert "holds no weights" in refusal(base)


class TestMerged:
    """With peft: scores equal those of peft's own merging, and of the adapted model before it."""

    @pytest.fixture(autouse=True)
    def peft(self) -> Any:
        return pytest.importorskip("peft")

    def adapter(self, base: Path, folder: Path, config: Any, safe: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """Write an adapter with random weights; the scores of the adapted model, and of peft's merged one."""
        import peft
        from transformers import AutoModelForCausalLM

        model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager"), config)
        torch.manual_seed(5)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.requires_grad:
                    weight.copy_(torch.randn_like(weight) * 0.3 + ("magnitude" in name))
        model.save_pretrained(folder, safe_serialization=safe)
        model.eval()
        adapted = reference_logits(model, IDS)
        return adapted, reference_logits(model.merge_and_unload(), IDS)

    def assert_merged(self, folder: Path, expected: tuple[torch.Tensor, torch.Tensor]) -> None:
        found = computed(folder)
        for scores in expected:
            torch.testing.assert_close(found, scores, rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize("safe", [True, False])
    def test_lora(self, safe: bool, base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        import peft

        config = peft.LoraConfig(r=4, lora_alpha=9, target_modules=TARGETS, task_type="CAUSAL_LM")
        expected = self.adapter(base, tmp_path / "adapter", config, safe)
        capfd.readouterr()
        self.assert_merged(tmp_path / "adapter", expected)
        assert capfd.readouterr() == ("", "")
        plain = computed(base)
        assert float((expected[0] - plain).abs().max()) > 0.5

    @pytest.mark.parametrize(
        ("kind", "settings"),
        [
            ("LoraConfig", {"r": 4, "use_dora": True, "target_modules": TARGETS}),
            ("LoraConfig", {"r": 4, "use_rslora": True, "target_modules": "all-linear", "rank_pattern": {"q_proj": 2}}),
            ("LoraConfig", {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
            ("LoraConfig", {"r": 4, "target_modules": ["q_proj"], "bias": "none", "layers_to_transform": [1]}),
            ("IA3Config", {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
            ("LoHaConfig", {"r": 4, "target_modules": TARGETS}),
            ("OFTConfig", {"r": 4, "oft_block_size": 0, "target_modules": ["q_proj"]}),
        ],
    )  # fmt: skip
    def test_kinds(self, kind: str, settings: dict[str, Any], base: Path, tmp_path: Path) -> None:
        import peft

        config = getattr(peft, kind)(task_type="CAUSAL_LM", **settings)
        self.assert_merged(tmp_path / "adapter", self.adapter(base, tmp_path / "adapter", config))

    @pytest.mark.parametrize("family", ["gpt2", "gemma3"])
    @pytest.mark.parametrize("target", ["head", "embedding"])
    def test_a_shared_weight_of_which_one_part_is_adapted(self, family: str, target: str, tmp_path: Path) -> None:
        """Merged into both, as peft does it, the other part would change too."""
        import peft

        embedding = {"gpt2": "wte"}.get(family, "embed_tokens")
        base = write(tmp_path / "base", made(family, True))
        targets = ["lm_head"] if target == "head" else [embedding]
        config = peft.LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM")
        adapted, _ = self.adapter(base, tmp_path / "adapter", config)
        torch.testing.assert_close(computed(tmp_path / "adapter"), adapted, rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize(("tied", "lacking"), [(False, False), (True, False), (False, True)])
    def test_another_vocabulary(self, tied: bool, lacking: bool, tmp_path: Path) -> None:
        """The adapter brings the rows of tokens that were added in training."""
        import peft
        from safetensors.torch import load_file, save_file
        from transformers import AutoModelForCausalLM

        base, folder = write(tmp_path / "base", made("llama", tied)), tmp_path / "adapter"
        larger = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
        larger.resize_token_embeddings(328, mean_resizing=False)
        config = peft.LoraConfig(r=4, target_modules=TARGETS, task_type="CAUSAL_LM", init_lora_weights=False)
        model = peft.get_peft_model(larger, config).eval()
        model.save_pretrained(folder)
        adapted = reference_logits(model, IDS)
        path = folder / "adapter_model.safetensors"
        weights = load_file(path)
        assert sum(weight.shape[0] == 328 for weight in weights.values()) == 2
        if lacking:
            save_file({name: weight for name, weight in weights.items() if "lm_head" not in name}, path)
            assert "was trained with another vocabulary than its base model's, and lacks rows of it" in refusal(folder)
        else:
            torch.testing.assert_close(computed(folder), adapted, rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize("place", ["absolute", "beside", "from here"])
    def test_where_the_base_is(self, place: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import peft

        config = peft.LoraConfig(r=4, target_modules=TARGETS, task_type="CAUSAL_LM")
        expected = self.adapter(base, tmp_path / "adapter", config)
        path = tmp_path / "adapter" / "adapter_config.json"
        names = {"absolute": str(base), "beside": "base", "from here": "./x/base"}
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": names[place]}))
        if place == "from here":
            (tmp_path / "here" / "x").mkdir(parents=True)
            base.rename(tmp_path / "here" / "x" / "base")
            monkeypatch.chdir(tmp_path / "here")
        self.assert_merged(tmp_path / "adapter", expected)

    def test_its_own_tokenizer(self, base: Path, tmp_path: Path) -> None:
        import peft

        config = peft.LoraConfig(r=4, target_modules=TARGETS, task_type="CAUSAL_LM")
        self.adapter(base, tmp_path / "adapter", config)
        assert decodery.load(tmp_path / "adapter").tokenizer.chat_template is None
        tokenizer = type(byte_level_tokenizer()).from_pretrained(base)
        tokenizer.chat_template = "{{ messages[0].content }}"
        tokenizer.save_pretrained(tmp_path / "adapter")
        assert decodery.load(tmp_path / "adapter").tokenizer.chat_template == tokenizer.chat_template

    def test_runs_on_every_path(self, base: Path, tmp_path: Path) -> None:
        import peft

        config = peft.LoraConfig(r=4, target_modules=TARGETS, task_type="CAUSAL_LM")
        adapted, _ = self.adapter(base, tmp_path / "adapter", config)
        lm = decodery.load(tmp_path / "adapter", dtype="float32", fast="fused")
        assert lm.network.path == "fused"
        assert lm.generate(IDS, max_new_tokens=1, ignore_eos=True).token_ids == [int(adapted[-1].argmax())]

    def test_other_shapes(self, base: Path, tmp_path: Path) -> None:
        import peft

        config = peft.LoraConfig(r=4, target_modules=TARGETS, task_type="CAUSAL_LM")
        self.adapter(base, tmp_path / "adapter", config)
        write(base, made("llama", intermediate_size=40))
        assert "does not fit its base model" in refusal(tmp_path / "adapter")

    def test_other_names(self, base: Path, tmp_path: Path) -> None:
        import peft

        config = peft.LoraConfig(r=4, target_modules=TARGETS, task_type="CAUSAL_LM")
        self.adapter(base, tmp_path / "adapter", config)
        write(base, made("gpt2"))
        message = refusal(tmp_path / "adapter")
        assert "does not fit its base model" in message
        assert "not found" in message

    @pytest.mark.parametrize("change", ["missing", "unexpected"])
    def test_other_weights(self, change: str, base: Path, tmp_path: Path) -> None:
        import peft
        from safetensors.torch import load_file, save_file

        config = peft.LoraConfig(r=4, target_modules=TARGETS, task_type="CAUSAL_LM")
        self.adapter(base, tmp_path / "adapter", config)
        path = tmp_path / "adapter" / "adapter_model.safetensors"
        weights = load_file(path)
        name = "base_model.model.model.layers.2.mlp.down_proj.lora_A.weight"
        if change == "missing":
            del weights[name]
            save_file(weights, path)
            assert "is incomplete: it lacks " in refusal(tmp_path / "adapter")
        else:
            save_file({**weights, name.replace("layers.2", "layers.7"): weights[name].clone()}, path)
            assert "which its base model has no place for" in refusal(tmp_path / "adapter")

    def test_not_finite(self, base: Path, tmp_path: Path) -> None:
        import peft
        from safetensors.torch import load_file, save_file

        config = peft.LoraConfig(r=4, target_modules=TARGETS, task_type="CAUSAL_LM")
        self.adapter(base, tmp_path / "adapter", config)
        path = tmp_path / "adapter" / "adapter_model.safetensors"
        save_file({name: weight * float("nan") for name, weight in load_file(path).items()}, path)
        assert "holds numbers that are not finite" in refusal(tmp_path / "adapter")

    def test_learned_prompts(self, base: Path, tmp_path: Path) -> None:
        import peft

        config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
        self.adapter_only(base, tmp_path / "adapter", config)
        assert "is an adapter of kind PROMPT_TUNING, a learned prompt" in refusal(tmp_path / "adapter")

    def adapter_only(self, base: Path, folder: Path, config: Any) -> None:
        import peft
        from transformers import AutoModelForCausalLM

        peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)

    def test_a_kind_that_peft_does_not_know(self, base: Path, tmp_path: Path) -> None:
        import peft

        config = peft.LoraConfig(r=4, target_modules=TARGETS, task_type="CAUSAL_LM")
        self.adapter(base, tmp_path / "adapter", config)
        described(tmp_path / "adapter", peft_type="NEWEST")
        assert "is an adapter of kind NEWEST, which the installed peft" in refusal(tmp_path / "adapter")


def test_peft_is_not_imported_for_plain_folders(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    importlib.invalidate_caches()
    assert decodery.load(base, dtype="float32").network.vocabulary == 325
