"""Weights of a checkpoint are all there, all known and of the right shape, or the folder is refused by their names."""

from __future__ import annotations

import itertools
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_folders import Weights, assert_computes, write
from safetensors.torch import load_file, save_file
from store_testing import is_one_sentence
from tiny_models import make_model

import decodery
from decodery.errors import ModelNotReadable
from decodery.models.weight_names import unwrapped

BASES = {"llama": "model", "gpt2": "transformer", "qwen2": "model", "gemma3": "model", "deepseek2": "model"}
FAMILIES = [(family, tied) for family in BASES for tied in (False, True)]
NORM = "model.layers.1.input_layernorm.weight"
UP = "model.layers.1.mlp.up_proj.weight"


def made(family: str, tied: bool = False, **overrides: Any) -> Any:
    if family != "deepseek2":
        return make_model(family, tie_word_embeddings=tied, **overrides)
    from transformers import DeepseekV2Config, DeepseekV2ForCausalLM

    config: Any = DeepseekV2Config(
        vocab_size=325, hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=4, kv_lora_rank=16, q_lora_rank=None, qk_nope_head_dim=8,
        qk_rope_head_dim=8, v_head_dim=8, n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1,
        first_k_dense_replace=1, n_group=1, topk_group=1, max_position_embeddings=128, tie_word_embeddings=tied,
        bos_token_id=None, eos_token_id=None, attn_implementation="eager", initializer_range=0.2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return DeepseekV2ForCausalLM(config).eval()


def refusal(folder: Path, **settings: Any) -> str:
    with pytest.raises(ModelNotReadable) as error:
        decodery.load(folder, **{"dtype": "float32", **settings})
    assert is_one_sentence(error), str(error.value)
    return str(error.value)


def prefixed(prefix: str) -> Any:
    return lambda weights: {prefix + name: weight for name, weight in weights.items()}


class TestNames:
    @pytest.mark.parametrize(("family", "tied"), FAMILIES)
    def test_wrappers_and_bases(self, family: str, tied: bool, tmp_path: Path) -> None:
        """Each wrapped folder is read as the plain one."""
        base = BASES[family]
        without = lambda weights: {name.removeprefix(f"{base}."): weight for name, weight in weights.items()}  # noqa: E731
        changes = {
            "plain": lambda weights: weights,
            "compiled": prefixed("_orig_mod."),
            "base missing": without,
            "base doubled": prefixed(f"{base}."),
            "base missing, distributed": lambda weights: prefixed("module.")(without(weights)),
        }
        for what, change in changes.items():
            model = made(family, tied)
            folder = write(tmp_path / what, model, change)
            if (
                family == "deepseek2"
            ):  # its attention is not that of the interface in every version: the weights must be right
                from decodery.models.reading import read_model

                config = json.loads((folder / "config.json").read_text())
                state = read_model(folder, config, torch.float32).state_dict()
                assert all(torch.equal(weight, state[name]) for name, weight in model.state_dict().items()), what
            else:
                assert_computes(folder, model)

    @pytest.mark.parametrize(
        "prefix",
        ["module.", "base_model.model.", "_orig_mod.module.", "module._orig_mod.", "net.", "model.", "module.model.",
         "base_model.model.model.", "_forward_module._orig_mod.", "a.b.c."],
    )  # fmt: skip
    def test_combinations(self, prefix: str, tmp_path: Path) -> None:
        model = made("llama")
        assert_computes(write(tmp_path, model, prefixed(prefix)), model, dtype="float32")

    def test_wrappers_within(self, tmp_path: Path) -> None:
        """Layers compiled or checkpointed one by one."""
        model = made("llama")

        def change(weights: Weights) -> Weights:
            renamed = {name.replace("layers.1.", "layers.1._orig_mod."): w for name, w in weights.items()}
            renamed = {name.replace(".mlp.", ".mlp._checkpoint_wrapped_module."): w for name, w in renamed.items()}
            return {"_fsdp_wrapped_module." + name: weight for name, weight in renamed.items()}

        assert_computes(write(tmp_path, model, change), model)

    @pytest.mark.parametrize("same", [True, False])
    def test_a_weight_under_two_names(self, same: bool, tmp_path: Path) -> None:
        model = made("llama")
        folder = write(tmp_path, model, lambda w: {**w, "_orig_mod." + UP: w[UP] if same else w[UP] + 1})
        if same:
            assert_computes(folder, model)
        else:
            assert f"{UP} is there twice with different numbers" in refusal(folder)

    def test_what_is_taken_off(self) -> None:
        known = {"model.a.weight", "model.b.weight", "lm_head.weight"}
        assert unwrapped(["x.model.a.weight", "x.lm_head.weight"], known, "model") == {
            "x.model.a.weight": "model.a.weight",
            "x.lm_head.weight": "lm_head.weight",
        }
        # Names that nothing explains stay as they are, for the message.
        assert unwrapped(["x.y.weight", "x.z.weight"], known, "model") == {n: n for n in ("x.y.weight", "x.z.weight")}
        assert unwrapped(["model.a.weight"], known, "model") == {"model.a.weight": "model.a.weight"}
        assert unwrapped(["a.weight", "q"], known, "model") == {"a.weight": "model.a.weight", "q": "q"}
        assert unwrapped([], known, "model") == {}
        # Only what all names share is a wrapper: these are parts of two models.
        two = ["x.model.a.weight", "y.model.b.weight"]
        assert unwrapped(two, known, "model") == {name: name for name in two}


class TestWhatDoesNotFit:
    def test_missing(self, tmp_path: Path) -> None:
        folder = write(tmp_path, made("llama"), lambda w: {n: x for n, x in w.items() if n != UP})
        assert f"is incomplete: it lacks {UP} of LlamaForCausalLM" in refusal(folder)

    def test_several_missing(self, tmp_path: Path) -> None:
        folder = write(tmp_path, made("llama"), lambda w: {n: x for n, x in w.items() if "layers.3" not in n})
        assert "it lacks model.layers.3.input_layernorm.weight and 8 more" in refusal(folder)

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_a_head_that_is_missing_and_not_tied(self, dtype: str, tmp_path: Path) -> None:
        folder = write(tmp_path, made("llama"), lambda w: {n: x for n, x in w.items() if n != "lm_head.weight"})
        assert "it lacks lm_head.weight" in refusal(folder, dtype=dtype)

    def test_no_name_is_known(self, tmp_path: Path) -> None:
        folder = write(tmp_path, made("llama"), lambda w: {f"x{i}.y": x for i, x in enumerate(w.values())})
        message = refusal(folder)
        assert "lacks lm_head.weight and 38 more" in message
        assert "holds x0.y and 38 more instead" in message

    def test_an_expert_is_missing(self, tmp_path: Path) -> None:
        name = "model.layers.1.mlp.experts.2.up_proj.weight"
        folder = write(tmp_path, made("deepseek2"), lambda w: {n: x for n, x in w.items() if n != name})
        assert f"is incomplete: it lacks {name}." in refusal(folder)

    def test_a_whole_expert_is_missing(self, tmp_path: Path) -> None:
        folder = write(
            tmp_path, made("deepseek2"), lambda w: {n: x for n, x in w.items() if "1.mlp.experts.2." not in n}
        )
        assert "model.layers.1.mlp.experts.down_proj has the shape [3, 32, 16]" in refusal(folder)

    def test_unexpected(self, tmp_path: Path) -> None:
        name = "model.layers.0.self_attn.q_proj.bias"
        folder = write(tmp_path, made("llama"), lambda w: {**w, name: torch.full((32,), 3.0)})
        assert f"does not fit its config.json: it holds {name}, which LlamaForCausalLM has no place for" in refusal(
            folder
        )

    @pytest.mark.parametrize("shape", [(5,), (0,), (1,), (), (1, 32)])
    def test_misshapen(self, shape: tuple[int, ...], tmp_path: Path) -> None:
        folder = write(tmp_path, made("llama"), lambda w: {**w, NORM: torch.ones(shape)})
        assert f"{NORM} has the shape {list(shape)} where LlamaForCausalLM has [32]" in refusal(folder)

    def test_several_misshapen(self, tmp_path: Path) -> None:
        folder = write(tmp_path, made("llama"), None, intermediate_size=40)
        message = refusal(folder)
        assert (
            "model.layers.0.mlp.down_proj.weight has the shape [32, 48] where LlamaForCausalLM has [32, 40]" in message
        )
        assert "and 11 more weights do not fit" in message

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_not_finite(self, bad: float, dtype: str, tmp_path: Path) -> None:
        def change(weights: Weights) -> Weights:
            weights[UP][3, 4] = bad
            return weights

        folder = write(tmp_path, made("llama"), change)
        assert f"the weight {UP} in {folder / 'model.safetensors'} holds numbers that are not finite" in refusal(
            folder, dtype=dtype
        )

    def test_finite_numbers_whose_sum_is_not(self, tmp_path: Path) -> None:
        model = made("llama")
        model.get_input_embeddings().weight.data[50:53] = 3e38
        write(tmp_path, model)
        assert decodery.load(tmp_path, dtype="float32").network.vocabulary == 325

    @pytest.mark.parametrize("name", [UP, "model.embed_tokens.weight"])
    def test_whole_numbers(self, name: str, tmp_path: Path) -> None:
        folder = write(tmp_path, made("llama"), lambda w: {**w, name: (w[name] * 50).to(torch.int8)})
        message = refusal(folder)
        assert f"holds {name} as whole numbers (I8)" in message
        assert "no quantization_config" in message


class TestWhatMayBeThereOrNot:
    def test_tables_of_older_files(self, tmp_path: Path) -> None:
        model = made("llama")
        tables = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.rand(4) for i in range(4)}
        assert_computes(write(tmp_path, model, lambda w: {**w, **tables}), model)

    def test_masks_of_older_gpt2_files(self, tmp_path: Path) -> None:
        model = made("gpt2", True)
        masks: Weights = {}
        for i in range(4):
            masks[f"h.{i}.attn.bias"] = torch.ones(8, 8, dtype=torch.bool).tril()[None, None]
            masks[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
        change = lambda w: {**{n.removeprefix("transformer."): x for n, x in w.items()}, **masks}  # noqa: E731
        assert_computes(write(tmp_path, model, change), model)

    def test_layers_that_predict_further_tokens(self, tmp_path: Path) -> None:
        """As many as the configuration counts apart, and no more."""
        model = made("llama")
        further = lambda w: {**w, **{n.replace("layers.3", "layers.4"): x for n, x in w.items() if "layers.3" in n}}  # noqa: E731
        folder = write(tmp_path / "counted", model, further, num_nextn_predict_layers=1)
        assert_computes(folder, model)
        folder = write(tmp_path / "not counted", model, further)
        assert "holds model.layers.4.input_layernorm.weight and 8 more" in refusal(folder)

    def test_a_tied_head_under_either_name(self, tmp_path: Path) -> None:
        model = made("llama", True)
        renamed = lambda w: {n.replace("model.embed_tokens", "lm_head"): x for n, x in w.items()}  # noqa: E731
        both = lambda w: {**w, "lm_head.weight": w["model.embed_tokens.weight"]}  # noqa: E731
        for what, change in {"head": renamed, "both": both}.items():
            assert_computes(write(tmp_path / what, model, change), model)

    def test_a_head_of_its_own_that_the_configuration_calls_tied(self, tmp_path: Path) -> None:
        """The files know better, as in transformers."""
        model = made("llama")
        assert_computes(write(tmp_path, model, None, tie_word_embeddings=True), model)


class TestFiles:
    def shards(self, folder: Path, model: Any = None) -> tuple[list[Path], dict[str, Any], Path]:
        model = model or made("llama")
        write(folder, model)
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, max_shard_size="60KB")
        index = folder / "model.safetensors.index.json"
        found: dict[str, Any] = json.loads(index.read_text())
        paths = sorted(folder.glob("model-*.safetensors"))
        assert len(paths) > 2
        return paths, found, index

    def test_shards_and_strays(self, tmp_path: Path) -> None:
        """A shard that the index does not name is left alone, whatever is in it."""
        model = made("llama")
        self.shards(tmp_path, model)
        save_file({NORM: torch.zeros(32), "x": torch.ones(1)}, tmp_path / "model-00009-of-00009.safetensors")
        assert_computes(tmp_path, model)

    def test_the_single_file_wins_over_an_index(self, tmp_path: Path) -> None:
        """As in transformers."""
        other, model = made("llama", seed=1), made("llama")
        self.shards(tmp_path, other)
        model.resize_token_embeddings(325, mean_resizing=False)
        save_file({n: w.clone() for n, w in model.state_dict().items()}, tmp_path / "model.safetensors")
        assert_computes(tmp_path, model)

    def test_a_shard_with_other_weights_than_the_index_says(self, tmp_path: Path) -> None:
        paths, found, _ = self.shards(tmp_path)
        save_file({"x": torch.ones(1)}, paths[1])
        lost = sorted(name for name, file in found["weight_map"].items() if file == paths[1].name)
        assert f"{paths[1]} lacks {lost[0]} and {len(lost) - 1} more, which its index says it holds" in refusal(
            tmp_path
        )

    @pytest.mark.parametrize("same", [True, False])
    def test_a_weight_in_two_shards(self, same: bool, tmp_path: Path) -> None:
        model = made("llama")
        paths, found, _ = self.shards(tmp_path, model)
        home = next(path for path in paths if found["weight_map"][NORM] == path.name)
        other = next(path for path in paths if path != home)
        weight = load_file(home)[NORM].clone()
        save_file({**load_file(other), NORM: weight if same else weight + 1}, other)
        if same:
            assert_computes(tmp_path, model)
        else:
            assert f"{NORM} is there twice with different numbers" in refusal(tmp_path)

    @pytest.mark.parametrize(
        "content",
        ["{", "[]", '{"weight_map": []}', '{"weight_map": {"a": 3}}', '{"weight_map": {"a": "../x.safetensors"}}'],
    )
    def test_a_damaged_index(self, content: str, tmp_path: Path) -> None:
        _, _, index = self.shards(tmp_path)
        index.write_text(content)
        assert f"{index} is damaged" in refusal(tmp_path)

    def test_an_empty_index(self, tmp_path: Path) -> None:
        _, _, index = self.shards(tmp_path)
        index.write_text('{"weight_map": {}}')
        assert "names no weights" in refusal(tmp_path)

    def test_a_file_without_weights(self, tmp_path: Path) -> None:
        folder = write(tmp_path, made("llama"), lambda w: {})
        assert f"{folder / 'model.safetensors'} is empty: it holds no weights" in refusal(folder)

    def test_a_truncated_file(self, tmp_path: Path) -> None:
        folder = write(tmp_path, made("llama"))
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-8])
        assert f"{path} is damaged" in refusal(folder)

    @pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
    def test_a_pointer_of_git_lfs(self, name: str, tmp_path: Path) -> None:
        folder = write(tmp_path, made("llama"))
        (folder / "model.safetensors").unlink()
        (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n")
        assert "git lfs pull" in refusal(folder)

    def test_a_head_whose_places_overlap(self, tmp_path: Path) -> None:
        folder = write(tmp_path, made("llama"))
        head = json.dumps({n: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for n in ("a", "b")}).encode()
        (folder / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + bytes(8))
        assert "is no readable safetensors file" in refusal(folder)

    def test_a_dtype_that_nothing_computes_with(self, tmp_path: Path) -> None:
        folder = write(tmp_path, made("llama"))
        head = json.dumps({NORM: {"dtype": "F8_E8M0", "shape": [8], "data_offsets": [0, 8]}}).encode()
        (folder / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + bytes(8))
        assert f"holds {NORM} as F8_E8M0, which cannot be computed with" in refusal(folder)

    @pytest.mark.parametrize(
        ("stored", "wanted"), itertools.product([torch.float64, torch.float16], ["float32", "bfloat16"])
    )
    def test_dtypes_are_converted(self, stored: torch.dtype, wanted: str, tmp_path: Path) -> None:
        model = made("llama")
        folder = write(tmp_path, model, lambda w: {n: x.to(stored) for n, x in w.items()})
        state = decodery.load(folder, dtype=wanted, fast="off").network.model.state_dict()  # type: ignore[attr-defined]
        for name, weight in model.state_dict().items():
            assert torch.equal(state[name], weight.to(stored).to(getattr(torch, wanted))), name


class TestSilence:
    """Other libraries say nothing while a model is loaded, and speak as before afterwards."""

    def test_nothing_leaks(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
    ) -> None:
        from transformers.utils import logging as theirs

        logger = theirs.get_logger("transformers.modeling_utils")
        good = write(tmp_path / "good", made("llama"))
        bad = write(tmp_path / "bad", made("llama"), lambda w: {**w, "x": torch.ones(1), NORM: torch.ones(3)})
        verbosity, shown = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
        theirs.set_verbosity_warning()
        theirs.enable_progress_bar()
        recwarn.clear()
        capfd.readouterr()
        try:
            decodery.load(good, dtype="bfloat16", fast="off")
            refusal(bad)
            out, err = capfd.readouterr()
            assert (out, err) == ("", "")
            assert len(recwarn) == 0
            assert theirs.get_verbosity() == logging.WARNING
            assert theirs.is_progress_bar_enabled()
            assert logger.isEnabledFor(logging.WARNING)
        finally:
            theirs.set_verbosity(verbosity)
            if not shown:
                theirs.disable_progress_bar()
