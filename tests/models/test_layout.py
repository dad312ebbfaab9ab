"""Layouts: read off a model's modules, refused where they could not say all of it, and enough to run it without the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_native import FAMILIES, SHAPE, make
from tiny_models import make_model, random_ids, reference_logits
from torch import Tensor, nn

from decodery.models.forward import Forward
from decodery.models.layout import LayerLayout, Layout
from decodery.models.native.network import NativeNetwork
from decodery.models.native.weights import Precision
from decodery.models.reading import StoredWeights, empty_model, fill
from decodery.models.recognition import recognised


@pytest.mark.parametrize("family", [*FAMILIES, "smollm3"])
def test_a_layout_survives_as_json(family: str) -> None:
    layout = recognised(make(family))
    assert Layout.from_json(layout.as_json()) == layout


@pytest.mark.parametrize("family", [*FAMILIES, "smollm3"])
def test_a_layout_names_all_weights(family: str) -> None:
    model = make(family)
    assert dict(recognised(model).shapes()) == {name: tuple(weight.shape) for name, weight in model.named_parameters()}


def test_what_a_layout_says() -> None:
    gemma, qwen = recognised(make("gemma3")), recognised(make("qwen2-sliding"))
    assert (gemma.sandwich, gemma.unit_norms, gemma.head_norms, gemma.activation) == (True, True, True, "gelu_tanh")
    assert gemma.embedding_scale == float(torch.tensor(192.0).sqrt().bfloat16())
    assert gemma.attention_scale == 24**-0.5
    full, sliding = (gemma.rotations[layer.rotation or 0] for layer in (gemma.layers[1], gemma.layers[0]))
    assert full.frequencies[1] < sliding.frequencies[1]  # of base 1,000,000 and of base 10,000
    assert [layer.window for layer in gemma.layers] == [13, None, 13, None]
    assert [layer.window for layer in qwen.layers] == [13, None, 13, None]
    assert qwen.biased == ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    assert (qwen.sandwich, qwen.unit_norms, qwen.head_norms, qwen.activation) == (False, False, False, "silu")
    assert recognised(make("smollm3")).layers == tuple(LayerLayout(None, 0 if i % 2 == 0 else None) for i in range(4))


def test_the_first_layers_that_have_one_of_each_kind() -> None:
    gemma, llama = recognised(make("gemma3")), recognised(make("llama"))
    assert (gemma.varied, llama.varied) == (2, 1)


def _extra(model: Any) -> None:
    model.model.layers[2].mlp.gate = nn.Parameter(torch.ones(1))


def _buffer(model: Any) -> None:
    model.model.layers[2].self_attn.register_buffer("bias", torch.ones(1))


def _clamped(model: Any) -> None:
    model.model.layers[2].mlp.act_fn = nn.ReLU()


def _epsilon(model: Any) -> None:
    model.model.layers[2].input_layernorm.variance_epsilon = 1e-2


def _replaced(model: Any) -> None:
    model.model.layers[0].mlp.forward = lambda rows: rows


def _scaled(model: Any) -> None:
    model.model.layers[2].self_attn.scaling = 0.5


def _norm(model: Any) -> None:
    model.model.layers[2].input_layernorm = nn.LayerNorm(
        model.config.hidden_size, model.config.rms_norm_eps, bias=False
    )


def _quantised(model: Any) -> None:
    class Int8Linear(nn.Linear):
        pass

    model.model.layers[2].mlp.up_proj = Int8Linear(model.config.hidden_size, model.config.intermediate_size, bias=False)


def _angles(model: Any) -> None:
    model.model.rotary_emb.attention_scaling = 1.0
    model.model.rotary_emb.inv_freq[3] = 0.7
    kept = model.model.rotary_emb.inv_freq.clone()
    model.model.rotary_emb.inv_freq = kept[: len(kept) // 2]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_extra, "has other weights than usual: model.layers.2.mlp.gate"),
        (_buffer, "keeps model.layers.2.self_attn.bias, which the usual decoder has not"),
        (_clamped, "its activation ReLU is not known to the native path"),
        (_epsilon, "its norms have several epsilons"),
        (_replaced, "the forward of its LlamaMLP was replaced"),
        (_scaled, "its layers scale attention differently"),
        (_norm, "LayerNorm is another kind of norm"),
        (_quantised, "has another layer layout"),
        (_angles, "it rotates a part of each head only"),
    ],
)
def test_what_a_layout_cannot_say_is_refused(change: Callable[[Any], None], reason: str) -> None:
    model = make("llama")
    change(model)
    with pytest.raises(ValueError, match=reason):
        recognised(model)


def _of(family: str, **own: Any) -> Any:
    return make_model(family, **{**SHAPE, **own}).to(torch.bfloat16)


def _configured(name: str, **own: Any) -> Any:
    import transformers

    values = {**SHAPE, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None, **own}
    config = getattr(transformers, f"{name}Config")(**values)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


LONG = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
LLAMA4 = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 2.0,
    "original_max_position_embeddings": 512,
    "llama_4_scaling_beta": 0.1,
}


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: _of("granite"), "makes use of logits_scaling"),
        (lambda: _of("helium", head_dim=64), "does not rotate as usual"),
        (lambda: _of("gemma2"), "sets final_logit_softcapping to 5.0"),
        (lambda: _of("gemma2", final_logit_softcapping=None), "sets attn_logit_softcapping to 2.0"),
        (lambda: _of("llama", hidden_act="relu"), "activation"),
        (lambda: _of("llama", rope_parameters=LONG), "depend on the length of the text"),
        (lambda: _of("olmo2"), "another layer layout"),
        (lambda: _of("phi3"), "another layer layout"),
        (lambda: _of("gpt2"), "another layer layout"),
        (lambda: _configured("Olmo", clip_qkv=8.0), "OlmoAttention makes use of clamp_, clip_qkv"),
        (lambda: _configured("Cohere"), "makes use of logit_scale"),
        (lambda: _configured("Glm"), "another layer layout"),
        (lambda: _configured("Ministral3", rope_parameters=LLAMA4), "makes use of .*llama_4_scaling_beta"),
        (lambda: _configured("Mixtral"), "makes use of"),
    ],
)
def test_families_that_do_something_else_are_refused(model: Callable[[], Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        recognised(model())


def test_windows_that_contradict_the_kinds_of_layers_are_refused() -> None:
    model = make("qwen2-sliding")
    model.model.layers[1].self_attn.sliding_window = 5
    with pytest.raises(ValueError, match="other windows than their kinds say"):
        recognised(model)


@pytest.mark.usefixtures("native_decoder")
@pytest.mark.parametrize("seed", range(3))
def test_layers_without_rotation(seed: int) -> None:
    """As near to float32 as transformers' own bfloat16, over a text so long that angles matter."""
    model = make_model("smollm3", seed, **SHAPE, no_rope_layers=[1, 1, 0, 1])
    ids = random_ids(150, seed, 200)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.4 if parameter.dim() > 1 else 1.0)
    model = model.to(torch.bfloat16)
    network = NativeNetwork.of(model, "smollm3")
    assert [layer.rotation for layer in network.layout.layers] == [0, 0, None, 0]
    ours = network.run([Forward(network.new_sequence(), ids)])[0].logits
    rounded, exact = reference_logits(model, ids), reference_logits(model.float(), ids)
    assert _off(ours, exact) < 1.1 * _off(rounded, exact) < 0.2 * float(exact.std())


def _off(rows: Tensor, exact: Tensor) -> float:
    return float((rows - exact).square().mean().sqrt())


def _saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


@pytest.mark.usefixtures("native_decoder")
@pytest.mark.parametrize("family", [*FAMILIES, "smollm3"])
@pytest.mark.parametrize("precision", ["native", "packed", "integer"])
def test_layout_and_files_give_the_bits_of_the_model(family: str, precision: Precision, tmp_path: Path) -> None:
    model = make(family)
    wrapped = NativeNetwork.of(model, family, precision=precision)
    source = StoredWeights(_saved(model, tmp_path))
    layout = Layout.from_json(wrapped.layout.as_json())
    network = NativeNetwork(layout, source, family, precision)
    ids = random_ids(90, 3, 200)
    ours, theirs = (n.run([Forward(n.new_sequence(), ids, taps=(1, 3))])[0] for n in (network, wrapped))
    assert torch.equal(ours.logits, theirs.logits)
    assert all(torch.equal(ours.hidden[tap], theirs.hidden[tap]) for tap in (1, 3))
    every = torch.arange(208)
    assert torch.equal(network.embed(every), wrapped.embed(every))
    assert torch.equal(network.embed(torch.arange(208)), model.get_input_embeddings()(torch.arange(208)))
    assert (network.fingerprint(), network.work, network.parameters) == (
        wrapped.fingerprint(),
        wrapped.work,
        sum(parameter.numel() for parameter in model.parameters()),
    )


@pytest.mark.usefixtures("native_decoder")
@pytest.mark.parametrize("precision", ["native", "packed", "integer"])
def test_a_tied_matrix_is_kept_once(precision: Precision, tmp_path: Path) -> None:
    model = make_model("gemma3", **{**SHAPE, "tie_word_embeddings": True}).to(torch.bfloat16)
    network = NativeNetwork.of(model, "tied", precision=precision)
    assert network.layout.tied
    assert network._model.embedding.tiles == network._model.head.tiles
    assert torch.equal(network.embed(torch.arange(208)), model.get_input_embeddings()(torch.arange(208)))
    again = NativeNetwork(network.layout, StoredWeights(_saved(model, tmp_path)), "again", precision)
    ours, theirs = (n.run([Forward(n.new_sequence(), random_ids(40, 1, 200))])[0].logits for n in (network, again))
    assert torch.equal(ours, theirs)
    assert _off(ours, reference_logits(model, random_ids(40, 1, 200))) < 0.1 * float(ours.std())


@pytest.mark.usefixtures("native_decoder")
def test_weights_that_are_not_those_of_the_layout_are_refused(tmp_path: Path) -> None:
    model = make("llama")
    layout = recognised(model)
    with pytest.raises(ValueError, match=r"its weights are not those of its layout: model.layers.0.mlp.down_proj.bias"):
        NativeNetwork(layout, StoredWeights(_saved(make("llama-biases"), tmp_path / "more")), "more")
    smaller = make_model("llama", **{**SHAPE, "intermediate_size": 160}).to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"model.layers.0.mlp.gate_proj.weight has the shape \[160, 192\], not \[192"):
        NativeNetwork(layout, StoredWeights(_saved(smaller, tmp_path / "less")), "less")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen2-sliding", "gemma3", "smollm3"])
def test_an_empty_model_shows_its_layout_and_can_be_filled(family: str, tied: bool, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    hidden = 384 if family.startswith("qwen2") else 192
    model = make_model(family, **{**SHAPE, "hidden_size": hidden, "tie_word_embeddings": tied}).to(torch.bfloat16)
    empty = empty_model(_saved(model, tmp_path), torch.bfloat16)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    layout = recognised(empty)
    assert layout == recognised(loaded)
    assert layout.tied == tied
    source = StoredWeights(tmp_path)
    fill(empty, source)
    assert torch.equal(reference_logits(empty, [1, 2, 3]), reference_logits(loaded, [1, 2, 3]))
