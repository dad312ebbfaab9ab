"""One text on its way: what has been committed of it, its law and its text, and whether it is over."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from decodery.engine.events import Drafted, Event, Finished, Inserted, Token, TokenLogprobs, Unmasked
from decodery.engine.text import TextStream
from decodery.sampling.law import Law
from decodery.sampling.noise import Index, Numbers, Stage

if TYPE_CHECKING:
    from decodery.engine.host import Host
    from decodery.engine.settings import Settings
    from decodery.engine.statistics import Statistics
    from decodery.sampling.noise import Chance


class Giver(Protocol):
    """What an output needs of the request that gives it."""

    host: Host
    settings: Settings
    prompt: tuple[int, ...]
    stop_ids: frozenset[int]
    special_ids: tuple[int, ...]
    number: int
    sample: int
    statistics: Statistics

    def chance(self, seed: int | None = None, text: Sequence[int] | None = None) -> Chance: ...
    def logprobs_of(self, row: Tensor, token: int, processed: float | None = None) -> TokenLogprobs: ...
    def emit(self, event: Event) -> None: ...
    def ended(self) -> None: ...


class Output:
    """A text that a request gives, or a try at one. Forks go on from the same tokens, each by itself.

    One that is shown (`place` is its number in the request) tells what happens as it happens. A try keeps that to itself, until
    `Request.conclude` or `Request.show` takes it. What is counted of tries that nobody takes are the forwards alone.
    """

    def __init__(self, request: Giver):
        self.request = request
        self.tokens: list[int] = list(request.prompt)
        """Prompt and committed tokens."""
        self.noise = request.chance(text=self.tokens)
        """Where its random decisions come from."""
        self.law = Law(request.settings, request.prompt, sorted(request.stop_ids), self.noise, request.special_ids)
        """The processed law, which has observed the committed tokens."""
        self.logprobs: list[TokenLogprobs] = []
        """Of each committed token, where the settings ask for them."""
        self.finish_reason: str | None = None
        self.weight: float | None = None
        """How much it counts beside the other outputs of the request; see `Request.conclude`."""
        self.score: float | None = None
        """What the method ranks its texts by, where it does, such as their log probability. A fork inherits it."""
        self.step_of: list[int] = []
        """Of a canvas, the step that filled each position, -1 where none did; of a text that grew by insertions, the step that
        inserted each token, -1 for given ones; empty for other methods."""
        self.block_ends: list[int] = []
        """Where the blocks of a canvas ended, in offsets."""
        self.place: int | None = None
        self.begun_at = 0
        """How many committed tokens it had when it was forked from an output that is shown, and so had been told of."""
        self._text = TextStream(request.host.tokenizer, request.settings.stop, request.prompt)
        self._held = ""
        self._untold: list[Event] = []
        self._uncounted = 0

    # What methods use

    @property
    def new_tokens(self) -> list[int]:
        """The committed tokens."""
        return self.tokens[len(self.request.prompt) :]

    @property
    def remaining(self) -> int:
        """How many more tokens may be committed."""
        return self.request.settings.max_new_tokens - (len(self.tokens) - len(self.request.prompt))

    @property
    def position(self) -> int:
        """The position of the next token: the address of its draws."""
        return len(self.tokens)

    @property
    def text(self) -> str:
        """The visible text so far."""
        return self._text.text

    def draw(self, row: Tensor, path: Sequence[int] = (), index: Index = 0) -> int:
        """The token that plain decoding takes after the committed tokens and `path`, given its raw scores [vocabulary].

        The same address gives the same token in every method. index: tells apart the draws of several outputs of a request.
        """
        if self.law.greedy:
            return self.law.likeliest(row, path)
        ids = None
        if isinstance(self.noise, Numbers) and self.noise.by_mass:
            ids, law = self.law.kept(row, path)
        else:
            law = self.law.probabilities(row, path)
        place = self.noise.choose(law, self.position + len(path), Stage.TARGET, index, path)
        return place if ids is None else int(ids[place])

    def fork(self) -> Output:
        """A try that goes on from here by itself."""
        twin = copy.copy(self)
        twin.tokens, twin._text = list(self.tokens), self._text.fork()
        twin.noise = self.noise.fork(twin.tokens)
        twin.law = self.law.fork(twin.noise)
        twin.logprobs, twin.step_of, twin.block_ends = list(self.logprobs), list(self.step_of), list(self.block_ends)
        twin._untold = list(self._untold)
        if self.place is not None:
            twin.place, twin.begun_at = None, len(self.tokens) - len(self.request.prompt)
        return twin

    def commit(
        self, tokens: Sequence[int], rows: Tensor | Sequence[Tensor], accepted: int = 0, rounds: int = 1
    ) -> bool:
        """Append tokens; True when the output is over.

        rows: [n, vocabulary] the target's raw scores that each token was chosen by; may be none where the request's
        `reads_rows` is false. accepted: how many of the first tokens had been drafted. rounds: how many forwards brought them.
        What follows a stop token, a stop string or the last allowed token is dropped: a run of accepted tokens never
        overshoots. After the end nothing is committed.
        """
        if self.finish_reason is not None:
            return True
        self._count(rounds)
        for place, token in enumerate(tokens):
            logprobs = None
            if self.request.settings.logprobs is not None:
                processed = self.law.log_probabilities(rows[place])
                logprobs = self.request.logprobs_of(rows[place], token, float(processed[token]))
                self.logprobs.append(logprobs)
            index = len(self.tokens) - len(self.request.prompt)
            visible, reason = self._append(token, rows, place)
            request, output = self._address
            self._tell(Token(request, index, token, visible, place < accepted, logprobs, output))
            if reason is not None:
                self.finish(reason)
                return True
        return False

    def would_stop(self, tokens: Sequence[int], rows: Tensor | Sequence[Tensor] = ()) -> bool:
        """Whether the output is over, or would be once these tokens are committed; nothing is committed.

        rows: as for `commit`; only stopping criteria look at them, which are asked as if the tokens were there.
        """
        if self.finish_reason is not None:
            return True
        twin = self.fork()
        return any(twin._append(token, rows, place)[1] is not None for place, token in enumerate(tokens))

    def drafted(self, tokens: Sequence[int], parents: Sequence[int]) -> None:
        """Tell that these nodes are being verified."""
        self.request.statistics.drafted += len(tokens)
        if tokens:
            request, output = self._address
            self._tell(Drafted(request, tuple(tokens), tuple(parents), output))

    def open_canvas(self, length: int) -> None:
        """The output is the text of a canvas of so many positions, none of which is filled."""
        self.step_of[:] = [-1] * length

    def unmasked(self, step: int, offsets: Sequence[int], tokens: Sequence[int]) -> None:
        """Tell that a step has filled these positions of the canvas."""
        for offset in offsets:
            self.step_of[offset] = step
        request, output = self._address
        self._tell(Unmasked(request, step, tuple(offsets), tuple(tokens), len(self.step_of), output))

    def inserted(self, step: int, offset: int, token: int) -> None:
        """Tell that a step has inserted a token at this place of a text that grows; step is -1 for what the prompt gives."""
        self.step_of.insert(offset, step)
        request, output = self._address
        self._tell(Inserted(request, step, offset, token, output))

    def finish(self, reason: str) -> None:
        """End the output. Harmless where it has ended already."""
        if self.finish_reason is not None:
            return
        self.finish_reason = reason
        self._held = self._text.finish()
        if self.place is not None:
            self._close()

    # What the request uses

    def begin_again(self) -> None:
        """The request has another prompt and other settings, and no tokens yet; see `Request.begin_again`."""
        request = self.request
        self.tokens[:] = request.prompt
        self.law = Law(request.settings, request.prompt, sorted(request.stop_ids), self.noise, request.special_ids)
        self._text = TextStream(request.host.tokenizer, request.settings.stop, request.prompt)

    def withhold_logprobs(self) -> None:
        """Forget the log probabilities, which a method wanted and nobody else."""
        self.logprobs = []
        self._untold = [
            dataclasses.replace(event, logprobs=None) if isinstance(event, Token) else event for event in self._untold
        ]

    def become(self, place: int) -> None:
        """From now on it is the output of this number: tell what has been kept back, and then all as it happens."""
        self.place = place
        statistics = self.request.statistics
        if place == 0:
            statistics.step_of, statistics.block_ends = self.step_of, self.block_ends
        untold, self._untold = self._untold, []
        self._count(self._uncounted)
        request, output = self._address
        for event in untold:
            self._tell(dataclasses.replace(event, request=request, output=output))
        if self.finish_reason is not None:
            self._close()

    # The rest

    @property
    def _address(self) -> tuple[int, int]:
        """How events name it: the place of its reply among all, and its number among the texts of its prompt."""
        place = self.place or 0
        return self.request.number + place, self.request.sample + place

    def _append(self, token: int, rows: Tensor | Sequence[Tensor], place: int) -> tuple[str, str | None]:
        """Take a token in: the text that becomes visible, and why the output ends with it, if so."""
        settings = self.request.settings
        self.tokens.append(token)
        self.law.observe(token, rows[place] if self.law.stateful else None)
        count = len(self.tokens) - len(self.request.prompt)
        # Before the least length nothing ends the output, and an end token is a token like others.
        early = count < settings.min_new_tokens
        ends = token in self.request.stop_ids and not early
        visible = self._text.push(token, shown=not ends, may_stop=not early)
        if ends or self._text.stopped_by is not None:
            return visible, "stop"
        if settings.stopping_criteria and not early:
            ids, row = torch.tensor([self.tokens]), rows[place][None]
            if any(bool(torch.as_tensor(c(ids, row)).any()) for c in settings.stopping_criteria):
                return visible, "stop"
        return visible, "length" if count >= settings.max_new_tokens else None

    def _count(self, rounds: int) -> None:
        if self.place is None:
            self._uncounted += rounds
        else:
            self.request.statistics.rounds += rounds

    def _tell(self, event: Event) -> None:
        if self.place is None:
            self._untold.append(event)
            return
        if isinstance(event, Token):
            self.request.statistics.committed(event.from_draft)
        self.request.emit(event)

    def _close(self) -> None:
        assert self.finish_reason is not None
        statistics = self.request.statistics
        statistics.new_tokens += len(self.tokens) - len(self.request.prompt)
        statistics.finish()
        self.request.ended()
        request, output = self._address
        self._tell(Finished(request, self._held, self.finish_reason, statistics, output))
