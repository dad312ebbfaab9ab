"""Reading a `Layout` off a transformers model: by its modules and by what its code names, never by its family.

Whatever a layout cannot say is a reason to refuse: a parameter or buffer too many, another norm, activation or rotation (all
tried out on numbers), or a forward whose code names something that the usual decoder has no use for, such as a multiplier, a
bound of scores or a clipping. What is recognised must still be confirmed by scores: code can do other things with the same
names.
"""

from __future__ import annotations

import copy
import inspect
from types import CodeType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from decodery.models.layout import ACTIVATIONS, PRODUCTS, SANDWICH_NORMS, LayerLayout, Layout, Rotation

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LAYER_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
HEAD_NORMS = {"q_norm", "k_norm"}
STATIC_ROTATIONS = {"default", "linear", "llama3", "yarn"}
"""Kinds of rotary embedding whose angles depend on the position alone."""
FEED_FORWARD_NAMES = frozenset({"act_fn", "down_proj", "gate_proj", "up_proj"})
ATTENTION_NAMES = frozenset(
    {
        *("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm", "head_dim", "scaling", "sliding_window"),
        *("shape", "view", "transpose", "reshape", "contiguous", "apply_rotary_pos_emb", "use_rope"),
        *("update", "layer_idx", "config", "_attn_implementation", "ALL_ATTENTION_FUNCTIONS", "get_interface"),
        *("eager_attention_forward", "training", "attention_dropout", "getattr"),
        *("nn", "functional", "dropout", "residual_dropout"),
    }
)
LAYER_NAMES = frozenset(LAYER_PARTS | set(SANDWICH_NORMS))
BASE_NAMES = frozenset(
    {
        *("embed_tokens", "layers", "norm", "rotary_emb", "num_hidden_layers", "config", "layer_types"),
        *("has_sliding_layers", "sliding_window", "create_causal_mask", "create_sliding_window_causal_mask"),
        *("use_bidirectional_attention", "_bidirectional_window_overlay"),
        *("ValueError", "DynamicCache", "get_seq_length", "torch", "arange", "shape", "device", "unsqueeze"),
        *("isinstance", "dict", "enumerate", "set", "copy", "tensor", "bool"),
    }
)
MODEL_NAMES = frozenset(
    {
        *("model", "last_hidden_state", "slice_logits_to_keep", "lm_head", "config", "vocab_size"),
        *("final_logit_softcapping", "torch", "tanh", "loss_function"),
        *("cache", "past_key_values", "hidden_states", "attentions"),
    }
)
SWITCHES = ("final_logit_softcapping", "attn_logit_softcapping", "use_bidirectional_attention")
"""Entries of a configuration that change what a forward of these names computes, unless they are off."""


def recognised(model: PreTrainedModel) -> Layout:
    """The layout of a model; its matrices are not looked at. Raises ValueError, which says why, where it is of another kind."""
    base: Any = model.base_model
    kind = type(model).__name__
    output: Any = model.get_output_embeddings()
    if not all(hasattr(base, part) for part in ("embed_tokens", "layers", "norm", "rotary_emb")) or not isinstance(
        output, nn.Linear
    ):
        raise ValueError(f"{kind} has another layer layout")
    config: Any = model.config.get_text_config()
    for switch in SWITCHES:
        if getattr(config, switch, None):
            raise ValueError(f"its configuration sets {switch} to {getattr(config, switch)!r}")
    _check_code(model, MODEL_NAMES)
    _check_code(base, BASE_NAMES)
    sandwich = _check_layers(base.layers, kind)
    attention, feed_forward = base.layers[0].self_attn, base.layers[0].mlp
    head_norms = hasattr(attention, "q_norm")
    norms = [base.norm, *(module for layer in base.layers for module in _norms(layer))]
    width = int(attention.head_dim)
    biased = [part for part in PRODUCTS if base.layers[0].get_submodule(part).bias is not None]
    rotations, by_kind = _rotations(base.rotary_emb, width, int(getattr(config, "max_position_embeddings", 0) or 4096))
    named = {id(weight): name for name, weight in model.named_parameters()}
    layout = Layout(
        vocabulary=int(config.vocab_size),
        context=int(getattr(config, "max_position_embeddings", None) or 1 << 20),
        hidden=int(config.hidden_size),
        feed_forward=int(feed_forward.gate_proj.out_features),
        heads=int(attention.q_proj.out_features) // width,
        key_heads=int(attention.k_proj.out_features) // width,
        width=width,
        activation=_activation(base.layers),
        epsilon=_one({_epsilon(norm) for norm in norms}, "norms have several epsilons"),
        attention_scale=_one({float(layer.self_attn.scaling) for layer in base.layers}, "layers scale attention differently"),
        embedding_scale=_embedding_scale(base.embed_tokens),
        sandwich=sandwich,
        head_norms=head_norms,
        unit_norms=_one({norm_offset(norm) for norm in norms}, "norms are of two kinds") == 1.0,
        biased=(*biased, *(("lm_head",) if output.bias is not None else ())),
        tied=output.weight is base.embed_tokens.weight,
        prefix=named[id(base.embed_tokens.weight)].removesuffix("embed_tokens.weight"),
        rotations=rotations,
        layers=tuple(
            LayerLayout(window, by_kind(config, index) if getattr(layer.self_attn, "use_rope", True) else None)
            for index, (layer, window) in enumerate(zip(base.layers, _windows(base, config), strict=True))
        ),
    )  # fmt: skip
    _check_weights(model, layout)
    return layout


def _check_layers(layers: Any, kind: str) -> bool:
    """Whether they have norms behind attention and feed-forward too. Raises ValueError where they are others."""
    sandwich = hasattr(layers[0], SANDWICH_NORMS[0])
    parts = LAYER_PARTS | (set(SANDWICH_NORMS) if sandwich else set())
    for layer in layers:
        attention = {name for name, _ in layer.self_attn.named_children()} if hasattr(layer, "self_attn") else set()
        inner = {name for name, _ in layer.mlp.named_children()} - {"act_fn"} if hasattr(layer, "mlp") else set()
        products = {name for name, module in layer.named_modules() if type(module) is nn.Linear}
        projections = {part.removeprefix("self_attn.") for part in PRODUCTS if part.startswith("self_attn.")}
        if (
            {name for name, _ in layer.named_children()} != parts
            or attention not in (projections, projections | HEAD_NORMS)
            or inner != {"gate_proj", "up_proj", "down_proj"}
            or products != set(PRODUCTS)
            or len({type(layer) for layer in layers}) != 1
        ):
            raise ValueError(f"{kind} has another layer layout")
    _check_code(layers[0], LAYER_NAMES)
    _check_code(layers[0].self_attn, ATTENTION_NAMES)
    _check_code(layers[0].mlp, FEED_FORWARD_NAMES)
    _check_turn(layers[0].self_attn)
    return sandwich


def _check_code(module: nn.Module, known: frozenset[str]) -> None:
    """Raise ValueError where a module's forward names something else, or is not that of its class."""
    kind = type(module).__name__
    if "forward" in vars(module):
        raise ValueError(f"the forward of its {kind} was replaced")
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    if code is None:
        raise ValueError(f"the forward of {kind} cannot be looked at")
    foreign = sorted(name for name in _names(code) - known if not name.endswith("OutputWithPast"))
    if foreign:
        raise ValueError(f"{kind} makes use of {', '.join(foreign)}, which the usual decoder has not")


def _names(code: CodeType) -> set[str]:
    """What code names: variables that are not its own, attributes, and the attributes that it asks for by text."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant)
        elif "getattr" in code.co_names and isinstance(constant, str) and constant.isidentifier():
            names.add(constant)
    return names


def _check_turn(attention: Any) -> None:
    """Raise ValueError unless the halves of a head's width are what rotation pairs."""
    turn: Any = inspect.unwrap(type(attention).forward).__globals__.get("apply_rotary_pos_emb")
    width = int(attention.head_dim)
    if turn is None:
        raise ValueError(f"{type(attention).__name__} does not rotate as usual")
    generator = torch.Generator().manual_seed(0)
    rows, angles = torch.randn(1, 1, 2, width, generator=generator), torch.randn(1, 2, width // 2, generator=generator)
    cos, sin = (torch.cat((part, part), -1) for part in (angles.cos(), angles.sin()))
    first, second = rows.chunk(2, -1)
    expected = rows * cos + torch.cat((-second, first), -1) * sin
    try:
        turned = turn(rows, rows, cos, sin)
        same = all(torch.allclose(part, expected, atol=1e-5) for part in turned)
    except (TypeError, RuntimeError):
        same = False
    if not same:
        raise ValueError(f"{type(attention).__name__} does not rotate as usual")


def _rotations(rotary: Any, width: int, context: int) -> tuple[tuple[Rotation, ...], Any]:
    """The rotations of a model, and which of them a layer uses, as a function of the configuration and the layer."""
    types = getattr(rotary, "rope_type", "default")
    kinds = sorted(types) if isinstance(types, dict) else []
    if not STATIC_ROTATIONS.issuperset(types.values() if isinstance(types, dict) else [types]):
        raise ValueError("its rotary angles depend on the length of the text")
    found = []
    positions = torch.tensor([[0, 1, 2, 77, context // 2, context - 1]])
    for kind in kinds or [None]:
        before = f"{kind}_" if kind else ""
        frequencies = getattr(rotary, f"{before}inv_freq", None)
        factor = getattr(rotary, f"{before}attention_scaling", 1.0)
        if not isinstance(frequencies, Tensor) or frequencies.numel() * 2 != width:
            raise ValueError("it rotates a part of each head only")
        rotation = Rotation(tuple(frequencies.float().tolist()), float(factor))
        theirs = rotary(torch.empty(1, 1, 1), positions, *([kind] if kind else []))
        ours = rotation.angles(positions[0])
        if not all(torch.equal(mine, other[0].float()) for mine, other in zip(ours, theirs, strict=True)):
            raise ValueError(f"{type(rotary).__name__} computes other angles")
        found.append(rotation)

    def used(config: Any, layer: int) -> int:
        return kinds.index(config.layer_types[layer]) if kinds else 0

    return tuple(found), used


def _windows(base: Any, config: Any) -> list[int | None]:
    """The sliding window of each layer: what its attention passes on, or the configuration's where it asks there."""
    code = inspect.unwrap(type(base.layers[0].self_attn).forward).__code__
    if "sliding_window" in code.co_names:
        windows = [layer.self_attn.sliding_window for layer in base.layers]
    else:
        asked = "sliding_window" in _names(code)
        windows = [getattr(config, "sliding_window", None) if asked else None for _ in base.layers]
    # Masks are made by the kinds of layers, attention by its own window: where the two differ, something else is meant.
    if "layer_types" in _names(inspect.unwrap(type(base).forward).__code__):
        kinds = ["full_attention" if window is None else "sliding_attention" for window in windows]
        if kinds != list(config.layer_types[: len(kinds)]):
            raise ValueError("its layers have other windows than their kinds say")
    return windows


def _activation(layers: Any) -> str:
    x = torch.linspace(-8, 8, 101)
    known = dict(zip(ACTIVATIONS, (nn.functional.silu(x), nn.functional.gelu(x, approximate="tanh")), strict=True))
    names = set()
    for layer in layers:
        given = layer.mlp.act_fn(x)
        name = next((name for name, values in known.items() if torch.allclose(given, values, atol=1e-6)), None)
        if name is None:
            raise ValueError(f"its activation {type(layer.mlp.act_fn).__name__} is not known to the native path")
        names.add(name)
    return _one(names, "layers have several activations")


def _norms(layer: nn.Module) -> list[nn.Module]:
    return [module for name, module in layer.named_modules() if name.endswith(("layernorm", "_norm"))]


def _epsilon(norm: Any) -> float:
    for name in ("variance_epsilon", "eps"):
        if hasattr(norm, name):
            return float(getattr(norm, name))
    raise ValueError(f"{type(norm).__name__} is another kind of norm")


def norm_offset(norm: nn.Module) -> float:
    """What a root-mean-square norm adds to its weights, 0 or 1. Raises ValueError where it is another kind of norm."""
    weight = getattr(norm, "weight", None)
    if isinstance(weight, Tensor) and {name for name, _ in norm.named_parameters()} == {"weight"}:
        row = torch.linspace(-1, 2, weight.numel())
        weight = row.flip(0).to(weight.dtype)
        normed = row * torch.rsqrt(row.square().mean() + _epsilon(norm))
        scored: Tensor = _with_weight(norm, weight)(row).float()
        for offset in (0.0, 1.0):
            if torch.allclose(scored, normed * (weight + offset), rtol=1e-2, atol=1e-3):
                return offset
    raise ValueError(f"{type(norm).__name__} is another kind of norm")


def _with_weight(module: nn.Module, weight: Tensor) -> nn.Module:
    """The same module over another weight: one's own may be anything, and that of an empty model is."""
    twin = copy.copy(module)
    twin._parameters = {**module._parameters, "weight": nn.Parameter(weight, requires_grad=False)}
    return twin


def _embedding_scale(embedding: Any) -> float:
    """What the rows of an embedding are multiplied with. Raises ValueError where something else is done to them."""
    if type(embedding) is nn.Embedding:
        return 1.0
    scale = getattr(embedding, "embed_scale", None)
    if scale is None:
        raise ValueError(f"{type(embedding).__name__} is another kind of embedding")
    factor = torch.as_tensor(scale).to(embedding.weight.dtype)
    rows = torch.linspace(-1, 2, 4 * embedding.weight.shape[1]).reshape(4, -1).to(embedding.weight.dtype)
    with torch.no_grad():
        if not torch.equal(_with_weight(embedding, rows)(torch.arange(4)), rows * factor):
            raise ValueError(f"{type(embedding).__name__} is another kind of embedding")
    return float(factor)


def _check_weights(model: PreTrainedModel, layout: Layout) -> None:
    """Raise ValueError where a model has other weights than its layout, or buffers of unknown use."""
    there = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    expected = dict(layout.shapes())
    if there != expected:
        odd = sorted(name for name in {*there, *expected} if there.get(name) != expected.get(name))
        raise ValueError(f"{type(model).__name__} has other weights than usual: {odd[0]}")
    rest = [
        name for name, _ in model.named_buffers() if ".rotary_emb." not in name and not name.endswith(".embed_scale")
    ]
    if rest:
        raise ValueError(f"{type(model).__name__} keeps {rest[0]}, which the usual decoder has not")


def _one(values: set[Any], several: str) -> Any:
    if len(values) != 1:
        raise ValueError(f"its {several}")
    return values.pop()
