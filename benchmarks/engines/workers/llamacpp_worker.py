"""llama.cpp through llama-cpp-python.

The library's own C functions are driven directly, one token of each sequence per `llama_decode`, as llama.cpp's examples do.
That is faster than the package's `Llama.generate`, and decodes several prompts together.
"""

from __future__ import annotations

import time
from typing import Any

from lines import Answer, Ask, Engine, serve

BATCH = 2048
"""Most rows of one `llama_decode`, llama.cpp's default."""
LOOKUP = 2
"""Tokens that prompt lookup drafts: what the package's page advises for machines without a GPU."""

Row = tuple[int, int, int, bool]
"""Token, position, sequence, and whether its scores are wanted."""


class LlamaCpp(Engine):
    """Ways: plain, prompt lookup."""

    packages = ("llama-cpp-python",)

    def load(self, settings: dict[str, Any]) -> dict[str, Any]:
        import llama_cpp
        from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

        self._api = llama_cpp
        self._settings = settings
        parameters = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(settings["file"].encode(), parameters)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {settings['file']}")
        self._size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._contexts = {count: self._context(count) for count in settings["batches"]}
        self._batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        self._drafter = LlamaPromptLookupDecoding(num_pred_tokens=LOOKUP)
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
        context = self._cleared(len(ask.prompts))
        tokens = [[token] for token in self._likeliest(context, self._rows_of(ask.prompts))]
        first = time.perf_counter() - start
        while True:
            going = [
                sequence
                for sequence, text in enumerate(tokens)
                if len(text) < ask.new_tokens and text[-1] not in ask.ends
            ]
            if not going:
                return Answer(tokens, first)
            rows = [(tokens[s][-1], len(ask.prompts[s]) + len(tokens[s]) - 1, s, True) for s in going]
            for sequence, token in zip(going, self._likeliest(context, rows), strict=True):
                tokens[sequence].append(token)

    def _looked_up(self, ask: Ask) -> Answer:
        """The package's own drafter, verified here: its `Llama.generate` scores every row of a prompt to do the same."""
        import numpy as np

        start = time.perf_counter()
        (prompt,) = ask.prompts
        context = self._cleared(1)
        tokens = self._likeliest(context, self._rows_of(ask.prompts))
        first = time.perf_counter() - start
        while len(tokens) < ask.new_tokens and tokens[-1] not in ask.ends:
            cached = len(prompt) + len(tokens) - 1
            known = np.array([*prompt, *tokens], dtype=np.intc)
            draft = [int(token) for token in self._drafter(known)[: ask.new_tokens - len(tokens) - 1]]
            rows = [(token, cached + place, 0, True) for place, token in enumerate([tokens[-1], *draft])]
            for place, token in enumerate(self._likeliest(context, rows)):
                tokens.append(token)
                if token in ask.ends or draft[place : place + 1] != [token]:
                    break
            self._api.llama_memory_seq_rm(self._api.llama_get_memory(context), 0, cached + place + 1, -1)
        return Answer([tokens], first)

    def _cleared(self, sequences: int) -> Any:
        context = self._contexts[sequences]
        self._api.llama_memory_clear(self._api.llama_get_memory(context), False)
        return context

    @staticmethod
    def _rows_of(prompts: list[list[int]]) -> list[Row]:
        return [
            (token, position, sequence, position == len(prompt) - 1)
            for sequence, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]

    def _likeliest(self, context: Any, rows: list[Row]) -> list[int]:
        """Run rows; the likeliest next token after each one whose scores are wanted."""
        import numpy as np

        batch, found = self._batch, []
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
            for place, (_, _, _, wanted) in enumerate(part):
                if wanted:
                    scores = self._api.llama_get_logits_ith(context, place)
                    found.append(int(np.ctypeslib.as_array(scores, shape=(self._size,)).argmax()))
        return found


if __name__ == "__main__":
    serve(LlamaCpp())
