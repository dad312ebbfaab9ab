"""The networks that the recipe of masked diffusion trains: a Llama of our own, small and quick, or an existing checkpoint.

Both are callables from tokens to hidden rows with a head beside them. Who sees whom is an argument: every position sees
every other one (masked diffusion), or those before it (an autoregressive twin).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from decodery.models.llama_blocks import Layer, Norm, rotations
from decodery.models.llama_blocks import Shape as Shape


class Body(nn.Module):
    """Embedding, layers and last norm."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = Norm(shape.width, shape.epsilon)


class SmallLlama(nn.Module):
    """A Llama whose weights carry Hugging Face's names, so that its file is an ordinary checkpoint."""

    shift = False

    def __init__(self, shape: Shape, seed: int = 0):
        """Weights are normal with deviation 0.02, the projections back into the residual stream smaller by depth."""
        super().__init__()
        self.shape = shape
        self.model = Body(shape)
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                deviation = 0.02
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    deviation /= (2 * shape.layers) ** 0.5
                nn.init.normal_(weight, std=deviation, generator=generator)

    def forward(
        self,
        tokens: Tensor,
        visible: Tensor | None = None,
        causal: bool = False,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Hidden rows [batch, length, width] after the last norm, of tokens [batch, length] int64.

        visible: bool, broadcast to [batch, heads, length, length], true where a row (third axis) may see another one;
        None is everything, or everything up to itself where causal. positions: [batch, length]; None is 0, 1, …
        """
        places = torch.arange(tokens.shape[1], device=tokens.device) if positions is None else positions[:, None]
        cosine, sine = rotations(self.shape, places)
        rows = self.model.embed_tokens(tokens)
        if torch.is_autocast_enabled(tokens.device.type):
            rows = rows.to(torch.get_autocast_dtype(tokens.device.type))
        cosine, sine = cosine.to(rows.dtype), sine.to(rows.dtype)
        for layer in self.model.layers:
            rows = layer(rows, cosine, sine, visible, causal)
        output: Tensor = self.model.norm(rows)
        return output

    def head(self, rows: Tensor) -> Tensor:
        """Logits [..., vocabulary] float32 of hidden rows."""
        return F.linear(rows, self.model.embed_tokens.weight).float()

    def compile_layers(self) -> None:
        """Let torch fuse the operations of each layer: a quarter less time on a CPU, once each shape of batch is compiled."""
        torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
        for layer in self.model.layers:
            layer.compile(dynamic=False)

    def configuration(self) -> dict[str, Any]:
        """The entries of config.json."""
        shape = self.shape
        return {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": shape.vocabulary,
            "hidden_size": shape.width,
            "intermediate_size": shape.inner_width,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.heads,
            "max_position_embeddings": 2048,
            "rms_norm_eps": shape.epsilon,
            "rope_theta": shape.theta,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
        }

    def write(self, folder: Path, dtype: torch.dtype = torch.float16, **entries: Any) -> None:
        """Write config.json, with further `entries`, and model.safetensors. Vectors of norms are never below float16."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        vectors = torch.float16 if dtype.itemsize < 2 else dtype
        config = {**self.configuration(), "torch_dtype": str(vectors).removeprefix("torch."), **entries}
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", "utf-8")
        weights = {
            name: weight.detach().to("cpu", dtype if weight.dim() > 1 else vectors).contiguous()
            for name, weight in self.named_parameters()
        }
        save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})

    @classmethod
    def read(cls, folder: Path) -> SmallLlama:
        """The network of a folder that `write` wrote, in float32."""
        from safetensors.torch import load_file

        config = json.loads((folder / "config.json").read_text("utf-8"))
        network = cls(
            Shape(
                config["vocab_size"],
                config["hidden_size"],
                config["num_hidden_layers"],
                config["num_attention_heads"],
                config["intermediate_size"],
                config["rope_theta"],
                config["rms_norm_eps"],
            )
        )
        weights = load_file(str(folder / "model.safetensors"))
        network.load_state_dict({name: weight.float() for name, weight in weights.items()})
        return network
