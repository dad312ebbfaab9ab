"""Small language models: a toy network with byte tokens, and hosts for scorers without a network."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch

from decodery.engine.cost import CostCurve
from decodery.language_model import LanguageModel
from decodery.loading import load
from decodery.models.insertions import Insertions
from decodery.models.masked_diffusion import MaskedDiffusion
from decodery.models.network import TransformersNetwork
from decodery.models.scorer import Scorer

FIRST_LETTER = 0x61
FIRST_SIGN = 0x4E00
"""Token 26 and those after it are written with signs from here on, which all have a glyph."""


class LetterTokenizer:
    """One character per token: a, b, c, … Any other character is read as some token too."""

    chat_template = None
    eos_token_id = None

    def __init__(self, vocabulary: int):
        self._vocabulary = vocabulary

    def __len__(self) -> int:
        return self._vocabulary

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        ids = [
            ord(sign) - FIRST_LETTER if "a" <= sign <= "z" else 26 + ord(sign) - FIRST_SIGN if ord(sign) >= FIRST_SIGN
            else ord(sign)
            for sign in text
        ]  # fmt: skip
        return [token % self._vocabulary for token in ids]

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return "".join(chr(FIRST_LETTER + t) if t < 26 else chr(FIRST_SIGN + t - 26) for t in token_ids)


class ByteTokenizer:
    """UTF-8 bytes as tokens 0 to 255, then the special tokens of a small chat format."""

    specials = ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
    chat_template = "role, content, end for each message"

    def __init__(self) -> None:
        self._ids = {text: 256 + place for place, text in enumerate(self.specials)}
        self._split = re.compile("(" + "|".join(re.escape(text) for text in self.specials) + ")")
        self.eos_token_id = self._ids["<|end|>"]

    def __len__(self) -> int:
        return 256 + len(self.specials)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        ids: list[int] = []
        for part in self._split.split(text):
            ids += [self._ids[part]] if part in self._ids else part.encode()
        return ids

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        parts: list[bytes] = []
        for token in token_ids:
            if token < 256:
                parts.append(bytes([token]))
            elif token < len(self) and not skip_special_tokens:
                parts.append(self.specials[token - 256].encode())
        return b"".join(parts).decode("utf-8", errors="replace")

    def token_bytes(self, token: int) -> bytes:
        """What a token says; nothing for special ones."""
        return bytes([token]) if token < 256 else b""

    def apply_chat_template(
        self, messages: Sequence[dict[str, str]], add_generation_prompt: bool = False, tokenize: bool = False
    ) -> Any:
        text = "".join(f"<|{message['role']}|>{message['content']}<|end|>" for message in messages)
        text += "<|assistant|>" if add_generation_prompt else ""
        return self.encode(text) if tokenize else text


class SmallLanguageModel(LanguageModel):
    """A model for tests: any forward costs the same, and any name of a companion means `drafter` with the same tokenizer."""

    def __init__(
        self,
        network: Scorer,
        tokenizer: Any,
        stop_ids: Sequence[int] = (),
        drafter: Scorer | None = None,
        diffusion: MaskedDiffusion | None = None,
        insertions: Insertions | None = None,
    ):
        super().__init__(network, tokenizer, stop_ids, diffusion=diffusion, load=load, insertions=insertions)
        self.drafter = drafter

    def cost(self, network: Scorer) -> CostCurve:
        return CostCurve.flat()

    def companion(self, name: str) -> LanguageModel:
        if self.drafter is None or name in self.companions:
            return super().companion(name)
        return SmallLanguageModel(self.drafter, self.tokenizer, self.stop_ids)


def scripted_language_model(
    scorer: Scorer, *, stop_ids: Sequence[int] = (), drafter: Scorer | None = None
) -> SmallLanguageModel:
    """A language model over a scorer without a network; its tokens are letters.

    drafter: what methods get as companion, whatever name they ask for.
    """
    return SmallLanguageModel(scorer, LetterTokenizer(scorer.vocabulary), stop_ids, drafter)


def toy_language_model(
    seed: int = 0,
    *,
    layers: int = 2,
    hidden: int = 32,
    heads: int = 4,
    context: int = 4096,
    mixing: float = 0.7,
    dtype: torch.dtype = torch.float32,
) -> SmallLanguageModel:
    """A tiny random Llama with byte tokens, the same for the same arguments.

    mixing: how much the layers add to a token's own embedding. At the default, greedy text neither stands still nor looks
    random: it repeats itself here and there, as text does. Most tokens are printable, and some texts end.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = ByteTokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 2),
        max_position_embeddings=context,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):  # the model draws its first weights from the global generator
        model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            spread = 1.0 if "embed" in name or "lm_head" in name else mixing * weight.shape[1] ** -0.5
            weight.data = torch.randn(weight.shape, generator=generator) * spread
    printable = torch.zeros(len(tokenizer), dtype=torch.bool)
    printable[[10, *range(32, 127), tokenizer.eos_token_id]] = True
    model.lm_head.weight.data[~printable] *= 0.25
    network = TransformersNetwork(model.to(dtype), f"toy-{seed}")  # type: ignore[arg-type]
    return SmallLanguageModel(network, tokenizer, [tokenizer.eos_token_id])
