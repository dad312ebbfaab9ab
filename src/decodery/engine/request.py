"""One request on its way: its prompt, its law and noise, its stop rules, and what it has committed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor

from decodery.engine.composed import composed
from decodery.engine.events import Drafted, Event, Finished, Token, TokenLogprobs, Unmasked
from decodery.engine.settings import Settings
from decodery.engine.statistics import Statistics
from decodery.engine.text import Decoder, TextStream, prompt_text
from decodery.errors import Refused
from decodery.models.forward import Forward, Rows, Scores
from decodery.sampling.law import Law
from decodery.sampling.noise import Chance, Noise, Stage

if TYPE_CHECKING:
    from decodery.engine.background import Background
    from decodery.engine.cost import CostCurve
    from decodery.engine.prompt_layout import PromptLayout
    from decodery.models.masked_diffusion import MaskedDiffusion
    from decodery.models.scorer import Scorer
    from decodery.models.sequence import Sequence as CachedSequence

Value = TypeVar("Value")
PROMPT_CHUNK = 128
"""Rows of prompt log probabilities computed at a time; each needs a vocabulary of floats."""


class Host(Protocol):
    """What a request needs from the model it runs on. `LanguageModel` is one; tests make small ones."""

    network: Scorer
    tokenizer: Decoder
    stop_ids: tuple[int, ...]
    """Tokens that end the model's output."""
    memory: dict[Hashable, Any]
    """What methods keep between requests."""
    background: Background
    """What methods do between passes."""
    diffusion: MaskedDiffusion | None
    """What decoders must know of a masked-diffusion model; None for a causal one."""

    def cost(self, network: Scorer) -> CostCurve: ...

    def encode(self, text: str) -> list[int]: ...

    def companion(self, name: str) -> Host:
        """Another model that methods use beside this one, by the name or folder that it is loaded from."""
        ...


class Request:
    """A request being decoded. Methods read `tokens`, `law`, `noise` and call `commit`; everything else is the engine's.

    prompt: token ids. number: the place of the prompt among those given together, for events. sample: which of the
    `n` samples of the prompt; part of the noise's address.
    """

    def __init__(
        self,
        host: Host,
        prompt: Sequence[int],
        settings: Settings,
        number: int = 0,
        sample: int = 0,
        listener: Callable[[Event], None] | None = None,
    ):
        self.host = host
        self.settings = settings.with_seed()
        self.number, self.sample = number, sample
        self.prompt = tuple(prompt)
        self.network: Scorer = host.network
        """What is scored: the host's network, or that of the settings' target."""
        if self.settings.target is not None:
            self.network = composed(self.settings.target, self)
        self.tokens: list[int] = list(prompt)
        """Prompt and committed tokens."""
        stop_ids = () if settings.ignore_eos else host.stop_ids
        self.stop_ids = frozenset((*stop_ids, *settings.stop_token_ids))
        self.law = Law(self.settings, self.prompt, sorted(self.stop_ids))
        assert self.settings.seed is not None
        self.noise: Chance = Noise(self.settings.seed, sample)
        """Where every random decision comes from; tests put one in its place that tries all of them."""
        self.statistics = Statistics(prompt_tokens=len(self.prompt), target=host.network.name)
        self.events: list[Event] = []
        self.prompt_logprobs: list[TokenLogprobs] = []
        self.finish_reason: str | None = None
        self.error: Exception | None = None
        self.reads_rows = settings.logprobs is not None or bool(settings.stopping_criteria)
        """Whether `commit` looks at the rows that it is given."""
        self.company = 1
        """How many requests share the engine now; a draft that rides along with others costs more."""
        self.layout: PromptLayout | None = None
        """How its prompt is read, where this is not from left to right; set by a method before it scores anything."""
        self.rows: Mapping[int, int] = {}
        """Network (by id) -> most rows of a sequence, where it is known; caches are made so large."""
        self._listener = listener
        self._text = TextStream(host.tokenizer, settings.stop, self.prompt)

    # What methods use

    @property
    def new_tokens(self) -> list[int]:
        """The committed tokens of the output."""
        return self.tokens[len(self.prompt) :]

    @property
    def remaining(self) -> int:
        """How many more tokens may be committed."""
        return self.settings.max_new_tokens - (len(self.tokens) - len(self.prompt))

    @property
    def position(self) -> int:
        """The position of the next token: the address of its draws."""
        return len(self.tokens)

    def law_with(self, **changes: Any) -> Law:
        """A law like the request's, as it was before the first token, with other settings."""
        return Law(dataclasses.replace(self.settings, **changes), self.prompt, sorted(self.stop_ids))

    def new_sequence(self, network: Scorer | None = None) -> CachedSequence:
        """An empty sequence of the target, or of another network."""
        owner = network or self.network
        sequence = owner.new_sequence()
        if id(owner) in self.rows:
            sequence.cache.expect(owner.rows_kept(self.rows[id(owner)]))
        return sequence

    def draw(self, row: Tensor, path: Sequence[int] = ()) -> int:
        """The token that plain decoding takes after the committed tokens and `path`, given its raw scores [vocabulary].

        The same address gives the same token in every method.
        """
        if self.law.greedy:
            return self.law.likeliest(row, path)
        law = self.law.log_probabilities(row, path).exp()
        return self.noise.choose(law, self.position + len(path), Stage.TARGET)

    def remember(self, key: Hashable, make: Callable[[], Value], everywhere: bool = False) -> Value:
        """State that outlives the request, shared by the requests of the same session; made on first use.

        everywhere: shared by all sessions, for what never changes once it is made.
        """
        place = (None if everywhere else self.settings.session, key)
        if place not in self.host.memory:
            self.host.memory[place] = make()
        value: Value = self.host.memory[place]
        return value

    def score_prompt(
        self,
        sequence: CachedSequence,
        watch: Callable[[Sequence[int], Scores], None] | None = None,
        taps: tuple[int, ...] = (),
    ) -> Generator[Forward, Scores, None]:
        """Score the prompt but for its last token, where somebody wants the scores: the user (echo with logprobs) or a
        method (`watch`, called with the tokens, raw scores [n, vocabulary] and tapped rows of each chunk). So it is, too, where
        the prompt has a `layout`.

        Every method calls it first, so that all of them offer the prompt's log probabilities, and read it as it is to be read.
        """
        echo = self.settings.echo and self.settings.logprobs is not None
        if self.layout is not None and sequence.length == 0:
            if echo:
                raise Refused(
                    "a prompt whose parts stand side by side is no text whose tokens had scores; ask without them."
                )
            before = len(self.prompt) - 1
            visible = self.layout.visible[:before, :before]
            yield Forward(sequence, self.prompt[:-1], self.layout.positions[:before], visible, logits=Rows.NONE)
            return
        if not echo and watch is None:
            return
        while sequence.length < len(self.prompt) - 1:
            start = sequence.length
            chunk = self.prompt[start : min(start + PROMPT_CHUNK, len(self.prompt) - 1)]
            scores = yield Forward(sequence, chunk, taps=taps)
            if watch is not None:
                watch(chunk, scores)
            if echo:
                for row, token in zip(scores.logits, self.prompt[start + 1 :], strict=False):
                    self.prompt_logprobs.append(self._logprobs(row, token, processed=None))

    def drafted(self, tokens: Sequence[int], parents: Sequence[int]) -> None:
        """Tell that these nodes are being verified."""
        self.statistics.drafted += len(tokens)
        if tokens:
            self._emit(Drafted(self.number, tuple(tokens), tuple(parents)))

    def unmasked(self, step: int, offsets: Sequence[int], tokens: Sequence[int]) -> None:
        """Tell that a step has filled these positions of the canvas."""
        for offset in offsets:
            self.statistics.step_of[offset] = step
        self._emit(Unmasked(self.number, step, tuple(offsets), tuple(tokens), len(self.statistics.step_of)))

    def commit(
        self, tokens: Sequence[int], rows: Tensor | Sequence[Tensor], accepted: int = 0, rounds: int = 1
    ) -> bool:
        """Append tokens to the output; True when the request is over.

        rows: [n, vocabulary] the target's raw scores that each token was chosen by; may be none where `reads_rows` is
        false. accepted: how many of the first tokens had been drafted. rounds: how many forwards brought them. What
        follows a stop token, a stop string or the last allowed token is dropped: a run of accepted tokens never
        overshoots. After the end nothing is committed.
        """
        if self.finish_reason is not None:
            return True
        self.statistics.rounds += rounds
        for place, token in enumerate(tokens):
            logprobs = None
            if self.settings.logprobs is not None:
                processed = self.law.log_probabilities(rows[place])
                logprobs = self._logprobs(rows[place], token, float(processed[token]))
            self.tokens.append(token)
            self.law.observe(token)
            count = len(self.tokens) - len(self.prompt)
            if count == 1:
                self.statistics.first_token()
            if place < accepted:
                self.statistics.accepted += 1
            else:
                self.statistics.bonus += 1
            # Before the least length nothing ends the output, and an end token is a token like others.
            early = count < self.settings.min_new_tokens
            ends = token in self.stop_ids and not early
            visible = self._text.push(token, shown=not ends, may_stop=not early)
            self._emit(Token(self.number, count - 1, token, visible, place < accepted, logprobs))
            reason = "stop" if ends else self._stop_reason(count, early, rows, place)
            if reason is not None:
                self.finish(reason)
                return True
        return False

    # What the engine uses

    def _stop_reason(self, count: int, early: bool, rows: Tensor | Sequence[Tensor], place: int) -> str | None:
        if self._text.stopped_by is not None:
            return "stop"
        if self.settings.stopping_criteria and not early:
            ids, row = torch.tensor([self.tokens]), rows[place][None]
            if any(bool(torch.as_tensor(c(ids, row)).any()) for c in self.settings.stopping_criteria):
                return "stop"
        return "length" if count >= self.settings.max_new_tokens else None

    def finish(self, reason: str, error: Exception | None = None) -> None:
        """End the request. Harmless where it has ended already."""
        if self.finish_reason is not None:
            return
        self.finish_reason, self.error = reason, error
        held = self._text.finish()
        self.statistics.new_tokens = len(self.tokens) - len(self.prompt)
        self.statistics.finish()
        self._emit(Finished(self.number, held, reason, self.statistics))

    @property
    def text(self) -> str:
        """The visible output so far."""
        return self._text.text

    @property
    def prompt_text(self) -> str:
        """The visible text of the prompt; without a character that it leaves incomplete, which the output tells of."""
        return prompt_text(self.host.tokenizer, self.prompt)

    def _emit(self, event: Event) -> None:
        self.events.append(event)
        if self._listener is not None:
            self._listener(event)

    def _logprobs(self, row: Tensor, token: int, processed: float | None) -> TokenLogprobs:
        raw = row.float().log_softmax(dim=-1)
        wanted = self.settings.logprobs or 0
        top = raw.topk(min(wanted, raw.shape[0]))
        pairs = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
        value = float(raw[token])
        return TokenLogprobs(value, value if processed is None else processed, pairs)
