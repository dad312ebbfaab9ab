"""llama.cpp through llama-cpp-python.

Plain decoding drives the library's own C functions: one token of each sequence per `llama_decode`, as llama.cpp's examples
do. That is faster than the package's `Llama.generate`, which prompt lookup needs.
"""

from __future__ import annotations

import time
from typing import Any

from lines import Answer, Ask, Engine, serve

BATCH = 2048
"""Most rows of one `llama_decode`, llama.cpp's default."""
LOOKUP = 2
"""Tokens that prompt lookup drafts: what the package's page advises for machines without a GPU."""


class LlamaCpp(Engine):
    """Ways: plain, prompt lookup."""

    packages = ("llama-cpp-python",)

    def load(self, settings: dict[str, Any]) -> dict[str, Any]:
        import llama_cpp

        self._api = llama_cpp
        self._settings = settings
        parameters = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(settings["file"].encode(), parameters)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {settings['file']}")
        self._size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._contexts = {count: self._context(count) for count in settings["batches"]}
        self._rows = llama_cpp.llama_batch_init(BATCH, 0, 1)
        self._lookup: Any = None
        system = llama_cpp.llama_print_system_info().decode()
        return {"threads": settings["threads"], "system": system, "lookup": LOOKUP, "flash_attention": "auto"}

    def _context(self, sequences: int) -> Any:
        parameters = self._api.llama_context_default_params()
        parameters.n_ctx = self._settings["context"] * sequences
        parameters.n_batch = BATCH
        parameters.n_seq_max = sequences
        parameters.n_threads = parameters.n_threads_batch = self._settings["threads"]
        context = self._api.llama_init_from_model(self._model, parameters)
        if not context:
            raise RuntimeError(f"llama.cpp cannot make a context for {sequences} sequences")
        return context

    def generate(self, ask: Ask) -> Answer:
        return self._plain(ask) if ask.way == "plain" else self._looked_up(ask)

    def _plain(self, ask: Ask) -> Answer:
        start = time.perf_counter()
        context = self._contexts[len(ask.prompts)]
        self._api.llama_memory_clear(self._api.llama_get_memory(context), False)
        rows = [
            (token, position, sequence, position == len(prompt) - 1)
            for sequence, prompt in enumerate(ask.prompts)
            for position, token in enumerate(prompt)
        ]
        found = self._decode(context, rows)
        first = time.perf_counter() - start
        tokens: list[list[int]] = [[found[sequence]] for sequence in range(len(ask.prompts))]
        while True:
            rows = [
                (text[-1], len(prompt) + len(text) - 1, sequence, True)
                for sequence, (prompt, text) in enumerate(zip(ask.prompts, tokens, strict=True))
                if len(text) < ask.new_tokens and text[-1] not in ask.ends
            ]
            if not rows:
                return Answer(tokens, first)
            for sequence, token in self._decode(context, rows).items():
                tokens[sequence].append(token)

    def _decode(self, context: Any, rows: list[tuple[int, int, int, bool]]) -> dict[int, int]:
        """Run rows (token, position, sequence, whether its scores are wanted); the likeliest next token of each sequence."""
        import numpy as np

        batch, found = self._rows, {}
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            batch.n_tokens = len(part)
            for place, (token, position, sequence, wanted) in enumerate(part):
                batch.token[place] = token
                batch.pos[place] = position
                batch.n_seq_id[place] = 1
                batch.seq_id[place][0] = sequence
                batch.logits[place] = wanted
            if code := self._api.llama_decode(context, batch):
                raise RuntimeError(f"llama_decode failed with code {code}")
            for place, (_, _, sequence, wanted) in enumerate(part):
                if wanted:
                    scores = self._api.llama_get_logits_ith(context, place)
                    found[sequence] = int(np.ctypeslib.as_array(scores, shape=(self._size,)).argmax())
        return found

    def _looked_up(self, ask: Ask) -> Answer:
        from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

        if self._lookup is None:  # made during warming up, so never on the clock
            self._lookup = self._api.Llama(
                self._settings["file"],
                n_ctx=self._settings["context"],
                n_threads=self._settings["threads"],
                n_threads_batch=self._settings["threads"],
                draft_model=LlamaPromptLookupDecoding(num_pred_tokens=LOOKUP),
                verbose=False,
            )
        (prompt,) = ask.prompts
        self._lookup.reset()
        tokens: list[int] = []
        for token in self._lookup.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0, reset=True):
            tokens.append(token)
            if len(tokens) == ask.new_tokens or token in ask.ends:
                break
        return Answer([tokens])


if __name__ == "__main__":
    serve(LlamaCpp())
