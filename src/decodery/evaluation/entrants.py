"""What takes part in a benchmark: methods, the bare network, and other engines. All are asked the same way."""

from __future__ import annotations

import contextlib
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from decodery.errors import BadSetting, near
from decodery.language_model import LanguageModel
from decodery.models.forward import Attend, Forward, Rows, Slots
from decodery.models.kinds import Kind
from decodery.models.reading import transformers_model

WARM_UP = "benchmark warm-up"


@dataclass(frozen=True)
class Answer:
    """One request answered. What an engine does not tell is None."""

    token_ids: tuple[int, ...]
    text: str = ""
    rounds: int | None = None
    forwards: int | None = None
    rows: int | None = None
    drafted: int | None = None
    accepted: int | None = None
    first_token_seconds: float | None = None


@dataclass(frozen=True)
class Ask:
    """Requests to be answered together. repeat: which pass over the questions this is; None while warming up."""

    prompts: Sequence[Sequence[int]]
    max_new_tokens: int
    temperature: float
    seeds: Sequence[int]
    repeat: int | None


class Entrant(ABC):
    """Takes part in a benchmark under `name`."""

    name: str

    @abstractmethod
    def answer(self, ask: Ask) -> list[Answer]:
        """Answer the requests; the caller takes the time."""

    def close(self) -> None:  # noqa: B027
        """The benchmark is over."""


class MethodEntrant(Entrant):
    """A decoding method. What it learns it keeps from question to question, but not from repeat to repeat."""

    def __init__(self, lm: LanguageModel, method: str):
        self.name, self._lm = method, lm
        self._sessions: set[str] = set()

    def answer(self, ask: Ask) -> list[Answer]:
        session = WARM_UP if ask.repeat is None else f"benchmark, {self.name}, repeat {ask.repeat}"
        self._sessions.add(session)
        replies = self._lm.generate(
            [list(prompt) for prompt in ask.prompts],
            method=self.name,
            seed=list(ask.seeds),
            max_new_tokens=ask.max_new_tokens,
            temperature=ask.temperature,
            session=session,
        )
        for reply in replies:
            if reply.error is not None:  # a failed request is a failed benchmark, not a fast one
                raise reply.error
        return [
            Answer(
                tuple(reply.token_ids),
                reply.text,
                reply.stats.rounds,
                reply.stats.forwards,
                reply.stats.rows,
                reply.stats.drafted,
                reply.stats.accepted,
                reply.stats.first_token_seconds,
            )
            for reply in replies
        ]

    def close(self) -> None:
        for session in self._sessions:
            self._lm.forget(session)


class BareForward(Entrant):
    """The forwards of plain decoding and nothing else: no law, no noise, no text, no scheduler. What the engine costs is
    the difference to plain decoding."""

    name = "bare forward"

    def __init__(self, lm: LanguageModel):
        self._network = lm.network
        self.outputs: list[tuple[int, ...]] = []
        """The tokens to be fed, of each request: plain decoding's answers to the same ask."""

    def follow(self, answers: Sequence[Answer]) -> None:
        """Take over plain decoding's answers to the ask that comes next."""
        self.outputs = [answer.token_ids for answer in answers]

    def answer(self, ask: Ask) -> list[Answer]:
        network = self._network
        with network.working():
            sequences = [network.new_sequence() for _ in ask.prompts]
            network.run([Forward(s, p, logits=Rows.LAST) for s, p in zip(sequences, ask.prompts, strict=True)])
            for step in range(max(len(output) for output in self.outputs) - 1):
                # The last token of an output is committed but never fed.
                asks = [
                    Forward(sequence, [output[step]], logits=Rows.LAST)
                    for sequence, output in zip(sequences, self.outputs, strict=True)
                    if step < len(output) - 1
                ]
                network.run(asks)
        return [Answer(output, forwards=len(output), rounds=len(output)) for output in self.outputs]


class BareCanvas(BareForward):
    """The same for canvases: as many forwards over prompt and canvas as plain decoding takes, and nothing else."""

    def __init__(self, lm: LanguageModel):
        super().__init__(lm)
        model = lm.network.masked
        assert model is not None
        self._canvas, self._mask = model.canvas, model.mask_token_id
        self._forwards: list[int] = []

    def follow(self, answers: Sequence[Answer]) -> None:
        super().follow(answers)
        self._forwards = [answer.forwards or 0 for answer in answers]

    def answer(self, ask: Ask) -> list[Answer]:
        network = self._network
        canvases = [[*p, *[self._mask] * min(self._canvas, ask.max_new_tokens)] for p in ask.prompts]
        with network.working():
            sequences = [network.new_sequence() for _ in canvases]
            for step in range(max(self._forwards)):
                network.run(
                    [
                        Forward(sequence, canvas, attend=Attend.FULL, slots=range(len(canvas)))
                        for sequence, canvas, count in zip(sequences, canvases, self._forwards, strict=True)
                        if step < count
                    ]
                )
        return [
            Answer(output, forwards=count, rounds=count)
            for output, count in zip(self.outputs, self._forwards, strict=True)
        ]


class BareQueries(BareForward):
    """The same for any-order models: the row of the token before, and a query."""

    def __init__(self, lm: LanguageModel):
        super().__init__(lm)
        assert lm.network.masked is not None
        self._mask = lm.network.masked.mask_token_id

    def answer(self, ask: Ask) -> list[Answer]:
        network = self._network
        with network.working():
            sequences = [network.new_sequence() for _ in ask.prompts]
            for step in range(max(len(output) for output in self.outputs)):
                going = [
                    (sequence, [*(output[step - 1 : step] if step else prompt), self._mask])
                    for sequence, prompt, output in zip(sequences, ask.prompts, self.outputs, strict=True)
                    if step < len(output)
                ]
                network.run([Forward(sequence, tokens, logits=Rows.LAST) for sequence, tokens in going])
                for sequence, _ in going:
                    sequence.truncate(sequence.length - 1)
        return [Answer(output, forwards=len(output), rounds=len(output)) for output in self.outputs]


class BareGrowing(BareForward):
    """The same for texts that grow by insertions: one forward over all that stands for each token, and the last one."""

    def follow(self, answers: Sequence[Answer]) -> None:
        super().follow(answers)
        self._forwards = [answer.forwards or 0 for answer in answers]

    def answer(self, ask: Ask) -> list[Answer]:
        network, model = self._network, self._network.insertions
        assert model is not None
        begun = [[model.class_token_id, model.begin_token_id, *prompt] for prompt in ask.prompts]
        with network.working():
            for step in range(max(self._forwards)):
                network.run(
                    [
                        Forward(
                            network.new_sequence(),
                            [*text, *output[:step]],
                            attend=Attend.FULL,
                            slots=Slots.NOWHERE,
                            taps=(network.layers - 1,),
                            logits=Rows.NONE,
                        )
                        for text, output, count in zip(begun, self.outputs, self._forwards, strict=True)
                        if step < count
                    ]
                )
        return [
            Answer(output, forwards=count, rounds=count)
            for output, count in zip(self.outputs, self._forwards, strict=True)
        ]


class TransformersEntrant(Entrant):
    """transformers' own `generate` on the same weights, dtype and prompts, with its attention as it ships."""

    def __init__(
        self, lm: LanguageModel, model: Any, name: str, options: dict[str, Any], most_together: int | None = None
    ):
        """model: transformers' own. options: of its GenerationConfig. most_together: the largest batch it can decode (None:
        any)."""
        self._lm, self._model, self._options, self.most_together = lm, model, options, most_together
        self.name = f"transformers: {name}"

    def answer(self, ask: Ask) -> list[Answer]:
        from transformers import GenerationConfig

        stops = list(self._lm.stop_ids)
        padding = stops[0] if stops else 0
        width = max(len(prompt) for prompt in ask.prompts)
        ids = torch.tensor([[padding] * (width - len(p)) + list(p) for p in ask.prompts], device=self._model.device)
        seen = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in ask.prompts], device=self._model.device)
        law: dict[str, Any] = {"do_sample": False}
        if ask.temperature > 0:
            law = {"do_sample": True, "temperature": ask.temperature, "top_k": 0, "top_p": 1.0}
        config = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=ask.max_new_tokens,
            eos_token_id=stops or None,
            pad_token_id=padding,
            **law,
            **self._options,
        )
        with _quiet_transformers(), torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(ask.seeds[0])
            output = self._model.generate(ids, attention_mask=seen, generation_config=config)
        return [Answer(_without_padding(row[width:].tolist(), stops)) for row in output]


def _without_padding(tokens: list[int], stops: Sequence[int]) -> tuple[int, ...]:
    """The tokens up to the first end token, which belongs to the output."""
    end = next((place for place, token in enumerate(tokens) if token in stops), len(tokens))
    return tuple(tokens[: end + 1])


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Its advice on deprecated arguments that it passes to itself is no news here."""
    log = logging.getLogger("transformers")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def rivals(lm: LanguageModel, against: Sequence[str], batch_size: int) -> tuple[list[Entrant], list[str]]:
    """The other engines asked for, and notes on what was left out. Raises BadSetting for unknown names."""
    entrants: list[Entrant] = []
    notes: list[str] = []
    for engine in against:
        if engine != "transformers":
            raise BadSetting(f"{engine!r} is no engine to measure against; {near(engine, ['transformers'])}")
        if Kind.NEXT_TOKEN not in lm.network.kinds:
            raise BadSetting(f"{lm.name} is {lm.network.kinds.words}, which transformers' generate does not decode.")
        if not hasattr(lm.network, "model"):
            raise BadSetting(f"{lm.name} is no transformers model, so transformers cannot decode it.")
        model = _complete_model(lm)
        early = max(1, lm.network.layers // 3)
        candidates = [
            TransformersEntrant(lm, model, "generate", {}),
            TransformersEntrant(lm, model, "prompt lookup", {"prompt_lookup_num_tokens": 10}, 1),
            # The first layers of the model itself as assistant: needs no second model, as our draft-model.
            TransformersEntrant(lm, model, f"assisted, {early} layers", {"assistant_early_exit": early}, 1),
        ]
        for candidate in candidates:
            if candidate.most_together is not None and batch_size > candidate.most_together:
                notes.append(f"{candidate.name} decodes one prompt at a time, so it is left out at this batch size.")
            elif early >= lm.network.layers and "assistant_early_exit" in candidate._options:
                notes.append(f"{candidate.name} needs more layers than {lm.name} has, so it is left out.")
            else:
                entrants.append(candidate)
    return entrants, notes


def _complete_model(lm: LanguageModel) -> Any:
    """transformers' model of what `lm` decodes. Where the model was loaded by us, its weights may lie packed now, so it is
    loaded a second time."""
    network: Any = lm.network
    if lm.folder is None:
        return network.model
    return transformers_model(lm.folder, network.dtype).to(network.device).eval()


def timed(entrant: Entrant, ask: Ask, device: torch.device) -> tuple[list[Answer], float]:
    """The answers, and the wall-clock seconds they took, prefill included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    answers = entrant.answer(ask)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return answers, time.perf_counter() - start
