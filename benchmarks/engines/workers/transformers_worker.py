"""transformers' `generate` as it ships: bfloat16, scaled-dot-product attention, dynamic cache."""

from __future__ import annotations

import logging
from typing import Any

from lines import Answer, Ask, Engine, serve


class Transformers(Engine):
    """Ways: plain, prompt lookup, assisted (the model's own first layers draft)."""

    packages = ("transformers", "torch")

    def load(self, settings: dict[str, Any]) -> dict[str, Any]:
        import torch
        from transformers import AutoModelForCausalLM

        logging.getLogger("transformers").setLevel(logging.ERROR)
        torch.set_num_threads(settings["threads"])
        self._torch = torch
        self._model = AutoModelForCausalLM.from_pretrained(settings["folder"], dtype=torch.bfloat16).eval()
        early = max(1, self._model.config.num_hidden_layers // 3)
        self._ways: dict[str, dict[str, Any]] = {
            "plain": {},
            "prompt lookup": {"prompt_lookup_num_tokens": 10},
            "assisted": {"assistant_early_exit": early},
        }
        return {"dtype": "bfloat16", "threads": torch.get_num_threads(), "ways": self._ways}

    def generate(self, ask: Ask) -> Answer:
        from transformers import GenerationConfig

        torch = self._torch
        padding = 0
        width = max(len(prompt) for prompt in ask.prompts)
        ids = torch.tensor([[padding] * (width - len(p)) + p for p in ask.prompts])
        seen = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in ask.prompts])
        config = GenerationConfig(
            max_new_tokens=ask.new_tokens,
            do_sample=False,
            eos_token_id=ask.ends or None,
            pad_token_id=padding,
            **self._ways[ask.way],
        )
        # An end token in the model's own configuration would come back where none is given.
        self._model.generation_config.eos_token_id = ask.ends or None
        with torch.inference_mode():
            output = self._model.generate(ids, attention_mask=seen, generation_config=config)
        return Answer([row[width:].tolist() for row in output])


if __name__ == "__main__":
    serve(Transformers())
