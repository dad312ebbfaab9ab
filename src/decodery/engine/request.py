"""One request on its way: its prompt, its settings and noise, and the texts that it gives."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from decodery.engine.composed import composed
from decodery.engine.events import Branched, Event, TokenLogprobs
from decodery.engine.output import Output
from decodery.engine.settings import Settings
from decodery.engine.spelling import WrittenTokens
from decodery.engine.statistics import Statistics
from decodery.engine.text import prompt_text
from decodery.models.forward import Forward, Scores
from decodery.sampling.chance import DrawnSample
from decodery.sampling.law import Law
from decodery.sampling.noise import Chance

if TYPE_CHECKING:
    from decodery.engine.host import Host
    from decodery.engine.prompt_layout import PromptLayout
    from decodery.models.scorer import Scorer
    from decodery.models.sequence import Sequence as CachedSequence

Value = TypeVar("Value")
PROMPT_CHUNK = 128
"""Rows of prompt log probabilities computed at a time; each needs a vocabulary of floats."""


class Request:
    """A request being decoded. A method reads `tokens`, `law`, `noise` and calls `commit`; everything else is the engine's.

    A method that decodes one text needs to know of no more than that: what stands here under the names of `Output` are those
    of its only one. A method that decides several texts together works on forks of `output` and hands `n` of them to
    `conclude`.

    prompt: token ids. number: the place of its first reply among all of the call, for events. sample: which of the `n`
    samples of the prompt; part of the noise's address. together: its method decides all `n` texts of the settings together;
    otherwise the request gives one.
    """

    def __init__(
        self,
        host: Host,
        prompt: Sequence[int],
        settings: Settings,
        number: int = 0,
        sample: int = 0,
        listener: Callable[[Event], None] | None = None,
        together: bool = False,
    ):
        self.host = host
        written = WrittenTokens(host)
        self.settings = settings.with_seed().spelled(written)
        self.number, self.sample, self.together = number, sample, together
        self.n = self.settings.n if together else 1
        """How many outputs it gives."""
        self.prompt = tuple(prompt)
        self.network: Scorer = host.network
        """What is scored: the host's network, or that of the settings' target."""
        if self.settings.target is not None:
            self.network = composed(self.settings.target, host, self.prompt, self.settings.max_new_tokens)
        stop_ids = () if settings.ignore_eos else host.stop_ids
        self.stop_ids = frozenset((*stop_ids, *settings.stop_token_ids))
        self.special_ids = written.special_ids
        self.statistics = Statistics(prompt_tokens=len(self.prompt), target=host.network.name)
        self.events: list[Event] = []
        self.prompt_logprobs: list[TokenLogprobs] = []
        self.finish_reason: str | None = None
        """Why it is over: that of its first output."""
        self.error: Exception | None = None
        self.company = 1
        """How many tasks share the engine now; a draft that rides along with others costs more."""
        self.away = 0.0
        """See `Scheduler.away`."""
        self.layout: PromptLayout | None = None
        """How its prompt is read, where this is not from left to right; set before anything is scored."""
        self.template: tuple[int, ...] = ()
        """With an any-order model, what is given behind the prompt: tokens, and the mask where one is to be found, as at its
        beginning; nothing where the method says how long the answer is. Set before anything is scored."""
        self.rows: Mapping[int, int] = {}
        """Network (by id) -> most rows of a sequence, where it is known; caches are made so large."""
        self._begun: CachedSequence | None = None
        self._listener = listener
        self._tree: dict[tuple[int, int], int] = {}
        """Of all texts that were considered: (node, token behind it) -> node."""
        self.output = Output(self)
        """The text that it decodes. Where several are decided together: one without new tokens, to fork; when they are decided,
        the first of them."""
        self.reads_rows = settings.logprobs is not None or bool(settings.stopping_criteria) or self.law.stateful
        """Whether `commit` looks at the rows that it is given."""
        self.outputs: list[Output] = []
        """What it gives, as far as that is shown."""
        if not together:
            self.show(self.output)

    # What methods use: its output's

    @property
    def tokens(self) -> list[int]:
        """Prompt and committed tokens."""
        return self.output.tokens

    @property
    def new_tokens(self) -> list[int]:
        """The committed tokens of the output."""
        return self.output.new_tokens

    @property
    def remaining(self) -> int:
        """How many more tokens may be committed."""
        return self.output.remaining

    @property
    def position(self) -> int:
        """The position of the next token: the address of its draws."""
        return self.output.position

    @property
    def law(self) -> Law:
        """The processed law, which has observed the committed tokens."""
        return self.output.law

    @property
    def text(self) -> str:
        """The visible output so far."""
        return self.output.text

    def draw(self, row: Tensor, path: Sequence[int] = ()) -> int:
        """See `Output.draw`."""
        return self.output.draw(row, path)

    def commit(
        self, tokens: Sequence[int], rows: Tensor | Sequence[Tensor], accepted: int = 0, rounds: int = 1
    ) -> bool:
        """See `Output.commit`. True when the request is over."""
        return self.output.commit(tokens, rows, accepted, rounds)

    def drafted(self, tokens: Sequence[int], parents: Sequence[int]) -> None:
        """See `Output.drafted`."""
        self.output.drafted(tokens, parents)

    # What methods use: its own

    def considered(self, texts: Sequence[Sequence[int]], scores: Sequence[float]) -> None:
        """Tell of texts that a search goes on with: the new tokens of each, and what it goes by."""
        tokens: list[int] = []
        parents: list[int] = []
        told: list[float | None] = []
        for text, score in zip(texts, scores, strict=True):
            node, fresh = -1, False
            for token in text:
                place = node, token
                fresh = place not in self._tree
                if fresh:
                    self._tree[place] = len(self._tree)
                    tokens.append(token)
                    parents.append(node)
                    told.append(None)
                node = self._tree[place]
            if fresh:
                told[-1] = score
        if tokens:
            self.emit(Branched(self.number, tuple(tokens), tuple(parents), tuple(told), self.sample))

    @property
    def noise(self) -> Chance:
        """Where every random decision comes from; tests put one in its place that tries all of them."""
        return self.output.noise

    @noise.setter
    def noise(self, chance: Chance) -> None:
        self.output.noise = self.output.law.chance = chance

    def chance(self, seed: int | None = None, text: Sequence[int] | None = None) -> Chance:
        """The draws of the source that the settings name, from their beginning. seed: another than the request's. text: the
        committed tokens, which grow; None: those of its output."""
        settings = self.settings
        assert settings.seed is not None
        given = settings.seed if seed is None else seed
        text = self.tokens if text is None else text
        return settings.source.chance(DrawnSample(given, self.sample, settings.n, text, len(self.prompt)))

    def law_with(self, **changes: Any) -> Law:
        """A law like the request's, as it was before the first token, with other settings."""
        return Law(
            dataclasses.replace(self.settings, **changes),
            self.prompt,
            sorted(self.stop_ids),
            self.noise,
            self.special_ids,
        )

    def begin_again(self, prompt: Sequence[int], sequence: CachedSequence, **changes: Any) -> None:
        """Before anything is committed: go on as a request with this prompt and other values of settings. sequence: holds the
        prompt's first rows, and is the target's first new one. Chance keeps its addresses, so its source must not look at the
        prompt. Raises ValueError where tokens are committed, or texts decided together."""
        if self.new_tokens or self.together:
            raise ValueError("only a request of one text that has no tokens yet can begin again")
        self.prompt = tuple(prompt)
        self.settings = dataclasses.replace(self.settings, **changes)
        self.statistics.prompt_tokens = len(self.prompt)
        self.output.begin_again()
        self.reads_rows = (
            self.settings.logprobs is not None or bool(self.settings.stopping_criteria) or self.law.stateful
        )
        self._begun = sequence

    def new_sequence(self, network: Scorer | None = None) -> CachedSequence:
        """An empty sequence of the target, or of another network."""
        owner = network or self.network
        if owner is self.network and self._begun is not None:
            sequence, self._begun = self._begun, None
            return sequence
        sequence = owner.new_sequence()
        if id(owner) in self.rows:
            sequence.cache.expect(owner.rows_kept(self.rows[id(owner)]))
        return sequence

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
            yield self.layout.opening(sequence, self.prompt)
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
                    self.prompt_logprobs.append(self.logprobs_of(row, token))

    def show(self, output: Output) -> None:
        """Make this the next of the request's outputs, which tells what happens as it happens. For methods whose texts do not
        wait for each other; the others conclude."""
        self._give(output, len(self.outputs))

    def conclude(self, outputs: Sequence[tuple[Output, float]]) -> None:
        """The request is over, and these are its `n` outputs, in this order; one that has not ended ends with "length".

        Each has a weight: how much it counts beside the others, at least 0. What it is (a probability, a share of the votes, an
        importance weight) is the method's to say. An output may take the place of one that is shown, where it was forked
        from that and that has told nothing since. Raises ValueError where their number is another, one stands twice, or a
        weight is no number.
        """
        if self.finish_reason is not None:
            return
        if len(outputs) != self.n or len({id(output) for output, _ in outputs}) != self.n:
            raise ValueError(f"{self.n} different outputs were asked for, and {len(outputs)} are concluded")
        if any(not 0 <= weight < math.inf for _, weight in outputs):
            raise ValueError(f"weights are numbers of at least 0, not {[weight for _, weight in outputs]}")
        self.output = outputs[0][0]
        for place, (output, weight) in enumerate(outputs):
            output.weight = weight
            self._give(output, place)
            output.finish("length")

    def attempt(self, number: int, of: int, **changes: Any) -> Request:
        """A try at the whole text by a method that decodes one: sample `number` of `of`, as that method alone would draw it.
        changes: other values of settings.

        What it costs is counted here, and its output keeps to itself, with the log probabilities of its tokens, until `take`.
        """
        settings = dataclasses.replace(self.settings, n=of, echo=False, logprobs=self.settings.logprobs or 0, **changes)
        other = Request(self.host, self.prompt, settings, self.number, number, together=True)
        other.n, other.network, other.layout = 1, self.network, self.layout
        other.statistics, other.rows, other.company = self.statistics, self.rows, self.company
        return other

    def take(self, attempt: Request) -> Output:
        """The output of a try, as one of this request's, to be concluded with. Log probabilities stay where they were asked
        for."""
        output = attempt.output
        output.request = self
        if self.settings.logprobs is None:
            output.withhold_logprobs()
        return output

    def finish(self, reason: str, error: Exception | None = None) -> None:
        """End the request: outputs that go on end now, those that are not decided stay empty. Harmless where it has ended."""
        if self.finish_reason is not None:
            return
        self.error = error
        while len(self.outputs) < self.n:
            self.show(self.output.fork())
        for output in self.outputs:
            output.finish(reason)

    @property
    def prompt_text(self) -> str:
        """The visible text of the prompt; without a character that it leaves incomplete, which the output tells of."""
        return prompt_text(self.host.tokenizer, self.prompt)

    # What outputs use

    def emit(self, event: Event) -> None:
        """An output tells of an event."""
        self.events.append(event)
        if self._listener is not None:
            self._listener(event)

    def ended(self) -> None:
        """An output has ended; with the last of them the request is over."""
        if len(self.outputs) == self.n and all(output.finish_reason is not None for output in self.outputs):
            self.finish_reason = self.outputs[0].finish_reason

    def logprobs_of(self, row: Tensor, token: int, processed: float | None = None) -> TokenLogprobs:
        """What the settings ask to be told of a token that raw scores [vocabulary] were for. processed: its log probability
        under the law that it was drawn from; None: as the raw one."""
        raw = row.float().log_softmax(dim=-1)
        wanted = self.settings.logprobs or 0
        top = raw.topk(min(wanted, raw.shape[0]))
        pairs = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
        value = float(raw[token])
        return TokenLogprobs(value, value if processed is None else processed, pairs)

    def _give(self, output: Output, place: int) -> None:
        if place < len(self.outputs):
            shown = self.outputs[place]
            if shown is output:
                return
            goes_on = output.place is None and output.begun_at == len(shown.new_tokens) and shown.finish_reason is None
            if not goes_on:
                raise ValueError(f"output {place} has been shown, and what is concluded does not go on from it")
            self.outputs[place] = output
        else:
            self.outputs.append(output)
        output.become(place)
