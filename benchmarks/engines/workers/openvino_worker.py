"""OpenVINO GenAI: bfloat16 or 4-bit weights, bfloat16 arithmetic, tuned for latency."""

from __future__ import annotations

from typing import Any

from lines import Answer, Ask, Engine, serve

DRAFTED, NGRAM = 5, 3
"""Tokens that prompt lookup drafts and the longest n-gram it looks for: as in OpenVINO GenAI's sample of prompt lookup."""


class OpenVino(Engine):
    """Ways: plain, prompt lookup. Several prompts at once go through the pipeline of continuous batching."""

    packages = ("openvino-genai", "openvino")

    def load(self, settings: dict[str, Any]) -> dict[str, Any]:
        import openvino_genai

        self._api = openvino_genai
        self._settings = settings
        self._options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": settings["threads"],
            "INFERENCE_PRECISION_HINT": "bf16",
        }
        self._pipelines: dict[tuple[str, bool], Any] = {}
        return self._options | {"lookup": {"num_assistant_tokens": DRAFTED, "max_ngram_size": NGRAM}}

    def _pipeline(self, way: str, many: bool) -> Any:
        """Made during warming up, so never on the clock."""
        if (way, many) not in self._pipelines:
            folder = self._settings["folder"]
            scheduling = self._api.SchedulerConfig()
            scheduling.cache_size = 1
            scheduling.enable_prefix_caching = False
            scheduling.max_num_batched_tokens = 2048
            if many:
                pipeline = self._api.ContinuousBatchingPipeline(folder, scheduling, "CPU", self._options)
            elif way == "prompt lookup":
                pipeline = self._api.LLMPipeline(
                    folder, "CPU", scheduler_config=scheduling, prompt_lookup=True, **self._options
                )
            else:
                pipeline = self._api.LLMPipeline(folder, "CPU", **self._options)
            self._pipelines[way, many] = pipeline
        return self._pipelines[way, many]

    def generate(self, ask: Ask) -> Answer:
        import numpy as np
        import openvino

        config = self._api.GenerationConfig()
        config.max_new_tokens = ask.new_tokens
        config.do_sample = False
        config.apply_chat_template = False
        config.ignore_eos = not ask.ends
        config.stop_token_ids = set(ask.ends)
        if ask.way == "prompt lookup":
            config.num_assistant_tokens, config.max_ngram_size = DRAFTED, NGRAM
        many = len(ask.prompts) > 1
        pipeline = self._pipeline(ask.way, many)
        ids = [openvino.Tensor(np.array([prompt], dtype=np.int64)) for prompt in ask.prompts]
        if many:
            results = pipeline.generate(ids, [config] * len(ids))
            return Answer([list(result.m_generation_ids[0]) for result in results])
        result = pipeline.generate(ids[0], config)
        return Answer([list(result.tokens[0])], result.perf_metrics.get_ttft().mean / 1000)


if __name__ == "__main__":
    serve(OpenVino())
