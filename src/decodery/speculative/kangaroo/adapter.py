"""The adapter: from the row that leaves the target's first layers to a row that the target's head understands.

a = f + attention(norm(f)), g = norm(a), with rotary positions and keys and values of its own, and no feed-forward. g enters the
target's head as it is: it is normed already. Source: Kangaroo, arXiv 2404.18911, section 3.1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from decodery.errors import MethodUnavailable
from decodery.models import catalogue

if TYPE_CHECKING:
    from decodery.models.scorer import Network, Scorer

FILE = "adapter.safetensors"
SHAPE = (
    *("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps", "rope_parameters"),
    "max_position_embeddings",
)
"""What of a configuration the adapter shares with its target."""
WEIGHTS = {
    "norm": "model.layers.0.input_layernorm.weight",
    "queries": "model.layers.0.self_attn.q_proj.weight",
    "keys": "model.layers.0.self_attn.k_proj.weight",
    "values": "model.layers.0.self_attn.v_proj.weight",
    "output": "model.layers.0.self_attn.o_proj.weight",
    "final_norm": "model.norm.weight",
}
"""Its weights, and how the model of one layer calls them that computes it."""
NOTHING = 32
"""Width of that model's feed-forward, which adds zeros, and size of its vocabulary, which nobody asks for: as small as the
compiled decoder takes."""


def empty_adapter(shape: Mapping[str, Any]) -> Any:
    """A transformers model of one layer whose feed-forward adds nothing: its rows after the final norm are the adapter's. In
    float32, with random weights. shape: the entries of `SHAPE`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        **shape,
        vocab_size=NOTHING,
        intermediate_size=NOTHING,
        num_hidden_layers=1,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    for name, weight in model.named_parameters():
        weight.requires_grad_(name in WEIGHTS.values())
        if ".mlp." in name:
            torch.nn.init.zeros_(weight)
    return model


def shape_of(config: Any) -> dict[str, Any]:
    """The entries of `SHAPE` of a target's configuration. Raises MethodUnavailable where one is missing."""
    told = config.get_text_config().to_dict()
    width = told.get("head_dim") or told["hidden_size"] // told["num_attention_heads"]
    missing = [name for name in SHAPE if name not in told and name != "head_dim"]
    if missing:
        raise MethodUnavailable(f"kangaroo: a {told.get('model_type')} model says nothing of {missing[0]}.")
    return {**{name: told[name] for name in SHAPE if name in told}, "head_dim": width}


@dataclass(frozen=True)
class Adapter:
    """A trained adapter and what it was trained for.

    weights: by the names of `WEIGHTS`. exit: first layers that run before it. shape: entries of `SHAPE`. tokens: [n] int64, the
    tokens that the target writes most often, ascending. fingerprint: of the target. facts: of the training.
    """

    weights: Mapping[str, Tensor]
    exit: int
    shape: Mapping[str, Any]
    tokens: Tensor
    fingerprint: str
    facts: Mapping[str, Any]

    def write(self, folder: Path) -> None:
        """Keep it in `folder`, in bfloat16."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        told = {
            "exit": self.exit,
            "shape": dict(self.shape),
            "fingerprint": self.fingerprint,
            "facts": dict(self.facts),
        }
        tensors = {name: weight.to(torch.bfloat16).contiguous() for name, weight in self.weights.items()}
        tensors["tokens"] = self.tokens.to(torch.int32)
        save_file(tensors, folder / FILE, metadata={"kangaroo": json.dumps(told)})

    @classmethod
    def read(cls, folder: Path) -> Adapter:
        """The adapter kept in a folder. Raises MethodUnavailable where there is none."""
        from safetensors import SafetensorError, safe_open

        path = folder / FILE
        try:
            with safe_open(path, framework="pt") as stored:
                told = json.loads((stored.metadata() or {})["kangaroo"])
                weights = {name: stored.get_tensor(name) for name in WEIGHTS}
                tokens = stored.get_tensor("tokens").long()
            return cls(
                weights, int(told["exit"]), told["shape"], tokens, str(told["fingerprint"]), told.get("facts", {})
            )
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise MethodUnavailable(f"{path} holds no adapter of kangaroo: {error}.") from error

    def network(self, target: Scorer) -> Network:
        """The adapter as a network of one layer beside its target: it takes hidden rows and gives rows that the head takes."""
        from decodery.models.paths import network_for

        model = empty_adapter(self.shape)
        with torch.no_grad():
            for name, weight in self.weights.items():
                model.get_parameter(WEIGHTS[name]).copy_(weight)
        model = model.to(device=target.device, dtype=target.dtype)
        return network_for(model, f"{target.name} (adapter)", "exact", owned=True)


def shipped(fingerprint: str) -> Path | None:
    """The folder of the adapter that ships with decodery for the network of this fingerprint, if there is one."""
    return catalogue.made_for("kangaroo-*", fingerprint=fingerprint)
