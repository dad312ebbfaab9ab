"""A language model one can decode with: tokenizer, network, and the calls of the public API."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decodery import byte_laws, fill_in, scoring
from decodery.conversations import Message, Tool
from decodery.engine.background import Background
from decodery.engine.cost import CostCurve, calibrated
from decodery.engine.events import Event
from decodery.engine.memory import KVBudget, Need, budget_for, parse_size
from decodery.engine.method import Method, admit
from decodery.engine.needs import DEFAULTS
from decodery.engine.prompt_layout import LaidOutPrompt
from decodery.engine.registry import method as as_method
from decodery.engine.request import Request
from decodery.engine.scheduler import Scheduler
from decodery.engine.scheduling import Limits, Scheduling
from decodery.engine.settings import Settings
from decodery.engine.task import as_task
from decodery.errors import BadPrompt, BadSetting, MethodUnavailable
from decodery.models import store
from decodery.models.kinds import Kind
from decodery.models.scorer import Scorer
from decodery.prompts import Prompt, PromptReader, is_batch
from decodery.replies import Prepared, Reply, Stream, replies_of

if TYPE_CHECKING:
    from decodery.models.insertions import Insertions
    from decodery.models.masked_diffusion import MaskedDiffusion

log = logging.getLogger("decodery")


class LanguageModel:
    """Tokenizer and network. Made by `decodery.load` and `decodery.wrap`.

    network: the target scorer. tokenizer: a transformers tokenizer, or anything with its `encode` and `decode`.
    stop_ids: tokens that end its output. folder: the local checkpoint, where there is one.
    diffusion: what decoders must know of a masked-diffusion model; None for a causal one. limits: memory and passes of
    its requests. load: loads companions, as `decodery.load` does; None: there are those of `companions` alone. insertions: the
    layout and head of an insertion language model.
    """

    def __init__(
        self,
        network: Scorer,
        tokenizer: Any,
        stop_ids: Sequence[int] = (),
        folder: Path | None = None,
        identity: str = "",
        diffusion: MaskedDiffusion | None = None,
        limits: Limits | None = None,
        load: Callable[..., LanguageModel] | None = None,
        insertions: Insertions | None = None,
    ):
        self.network, self.tokenizer, self.folder = network, tokenizer, folder
        self.name = network.name
        self.stop_ids = tuple(stop_ids)
        if diffusion is not None:
            network.masked = diffusion
        if insertions is not None:
            network.insertions = insertions
        self.memory: dict[Hashable, Any] = {}
        self.background = Background()
        self.companions: dict[str, LanguageModel] = {}
        """Other models that methods use beside this one, by the name under which a method asks for them."""
        self._identity = identity or network.name
        self._costs: dict[tuple[str, ...], CostCurve] = {}
        self._lock = threading.RLock()
        self._limits, self.load_companion = limits or Limits(), load
        self._budget: KVBudget | None = None
        self.scheduling = Scheduling(chunk=self._limits.prefill_chunk)
        """How requests that run together share passes."""

    @property
    def budget(self) -> KVBudget:
        """The memory of keys and values that all requests share, with what is held, waits, and was held at most."""
        if self._budget is None:
            self._budget = budget_for(self.network, self._limits.kv_budget)
        return self._budget

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Around submissions to a scheduler of this model, and its steps: one thread at a time, and the machine arranged for
        passes."""
        with self._lock, self.network.working():
            yield

    def scheduler(self, prefix_cache: int | str = 0, watched: bool = True) -> Scheduler:
        """A scheduler within this model's budget, for programs that keep submitting requests, such as a server. See
        `working`.

        watched: somebody reads tokens as they come, so that running requests must not wait long while others' prompts are
        read. prefix_cache: memory, within the budget, for the beginnings of prompts that are over, as bytes or text
        ("500MB").
        """
        size = parse_size("prefix_cache", prefix_cache) if prefix_cache else 0
        scheduling = dataclasses.replace(self.scheduling, prefix_cache=size, watched=watched)
        return Scheduler(self.budget, scheduling, self.background)

    @property
    def diffusion(self) -> MaskedDiffusion | None:
        """What decoders must know of a masked-diffusion model; None for a causal one."""
        return self.network.masked

    @property
    def default_method(self) -> str:
        """What decodes where no method is named."""
        return next(method for kind, method in DEFAULTS.items() if kind in self.network.kinds)

    # The public calls

    def generate(
        self,
        prompt: Any,
        method: Any = None,
        *,
        seed: Any = None,
        tools: Sequence[Tool] | None = None,
        **settings: Any,
    ) -> Any:
        """Decode a prompt, or a list of prompts as one packed batch.

        prompt: a string, a conversation, token ids, or a list of any of these; [] is a list of none. method: a name,
        "name(key=value)", or a Method; for a list of prompts also a list; None: `default_method`. seed: an integer, None, or
        a list. tools: what conversations may call, see `tokenize`. settings: see `Settings`.
        Returns a Reply; with `n` > 1 a list of replies per prompt; for a list of prompts a list of what each gives. The `n`
        texts of a prompt are independent samples, unless the method decides them together (`Method.together`).
        Raises BadPrompt, BadSetting, BadParameter, UnknownMethod, MethodUnavailable, Refused or NotEnoughMemory before work
        starts. Requests that do not fit into the KV budget together run one after the other. A request that fails later
        raises its own error; within a batch it becomes the `error` of its reply alone.
        """
        batch = is_batch(prompt)
        requests = self._requests(prompt, method, seed, tools, settings)
        with self.working():
            scheduler = self.scheduler(watched=False)
            for group in requests:
                for request, chosen in group:
                    scheduler.submit(request, chosen)
            scheduler.run()
        replies = [[reply for entry in group for reply in replies_of(*entry)] for group in requests]
        if not batch:
            for reply in replies[0]:
                if reply.error is not None:
                    raise reply.error
        answers = [group if len(group) > 1 else group[0] for group in replies]
        return answers if batch else answers[0]

    def stream(
        self,
        prompt: Any,
        method: Any = None,
        *,
        seed: Any = None,
        tools: Sequence[Tool] | None = None,
        **settings: Any,
    ) -> Stream:
        """Decode and yield events (see `decodery.engine.events`) as they happen, of all requests interleaved.

        Of texts that a method decides together only what is decided is told: mostly each whole text when the search is over.
        Same arguments and errors as `generate`. Closing the stream cancels what is still running; its `replies()` tell
        at any time what there is.
        """
        pending: list[Event] = []
        prepared = self.prepare(prompt, method, pending.append, seed=seed, tools=tools, **settings)
        return Stream(self._stream(prepared, pending), prepared.replies)

    def _stream(self, prepared: Prepared, pending: list[Event]) -> Generator[Event]:
        # The lock is held for one step at a time: who reads the events may take long, and may read on another thread.
        scheduler = self.scheduler()
        try:
            with self._lock:
                prepared.submit(scheduler)
            while True:
                while pending:
                    yield pending.pop(0)
                if not scheduler.active:
                    break
                with self.working():
                    scheduler.step()
        finally:
            with self._lock:
                prepared.cancel(scheduler)
        for request, _ in prepared.entries:
            if request.error is not None:
                raise request.error

    def prepare(
        self,
        prompt: Any,
        method: Any = None,
        listener: Callable[[Event], None] | None = None,
        *,
        seed: Any = None,
        tools: Sequence[Tool] | None = None,
        **settings: Any,
    ) -> Prepared:
        """Check what `generate` would decode, and begin nothing: for programs that drive a `scheduler` themselves, such as a
        server. listener: told of each event as it happens. Other arguments and errors as for `generate`."""
        groups = self._requests(prompt, method, seed, tools, settings, listener)
        return Prepared(tuple(entry for group in groups for entry in group))

    def run(self, coroutine: Any) -> Any:
        """Run a coroutine that asks this model, or others, for scores: what it returns.

        coroutine: a generator that yields a `Forward`, or a tuple of them, and is sent the `Scores` of each; or a `Task` of
        one, which says what memory it needs. A list of them is packed into the same passes, as requests are, and gives a list
        of what each returns. What a coroutine raises is raised; within a list it stands in the place of what that one would
        have returned, and the others do not notice.

            def perplexity(tokens):
                scores = yield Forward(lm.network.new_sequence(), tokens)
                return float(torch.nn.functional.cross_entropy(scores.logits[:-1], torch.tensor(tokens[1:])).exp())

            lm.run([perplexity(lm.tokenize(text)) for text in texts])
        """
        batch = isinstance(coroutine, list | tuple)
        listed = list(coroutine) if batch else [coroutine]
        if len({id(one) for one in listed}) < len(listed):
            raise BadSetting("a coroutine stands twice in the list; it runs once, so make another one.")
        tasks = [as_task(one, self.cost) for one in listed]
        with self.working():
            scheduler = self.scheduler(watched=False)
            for task in tasks:
                scheduler.start(task)
            scheduler.run()
        if not batch and tasks[0].error is not None:
            raise tasks[0].error
        results = [task.value if task.error is None else task.error for task in tasks]
        return results if batch else results[0]

    def score(
        self,
        texts: Any,
        prompt: Prompt | None = None,
        *,
        top: int = 0,
        taps: Sequence[int] = (),
        moments: bool = False,
    ) -> Any:
        """The log probability of every token of given texts; nothing is decoded.

        texts: a string or token ids, or a list of these, which share passes. prompt: what stands before each of them, in any
        form that `generate` takes; it is scored once. Without it a text's first token has nothing before it, and so no
        probability. top: how many of the likeliest tokens to tell at each place. taps: layers whose hidden rows of the text's
        tokens are wanted (`POST_NORM`: those that enter the head). moments: tell the entropy of the law that each token is
        drawn from, and the standard deviation of the log probability under it.
        Returns a Scored, or a list of them. Raises BadPrompt, which names the text, BadSetting, Refused or NotEnoughMemory
        before work starts, and ScoresNotNumbers.
        """
        return scoring.score(self, texts, prompt, top, taps, moments)

    def next_byte(
        self, prompt: Prompt | bytes, *, models: Sequence[str] = (), fast: bool = False
    ) -> byte_laws.NextByte:
        """What the model says of the byte after a prompt: exactly, over all ways in which tokens may cover its end.

        prompt: in any form that `generate` takes, or bytes, whose last sign may be incomplete. models: names of further models,
        of any tokenizers: the mean of what they say. fast: leave out nothing, see the method byte-level-probabilities.
        Raises BadPrompt, Refused or MethodUnavailable before work starts, and ConstraintFailed where the model gives the prompt
        no probability.
        """
        return byte_laws.next_byte(self, prompt, models, fast)

    def score_bytes(
        self, text: str | bytes, prompt: Prompt | bytes, *, models: Sequence[str] = (), fast: bool = False
    ) -> byte_laws.ScoredBytes:
        """The log probability of every byte of a text behind a prompt. Other arguments and errors as for `next_byte`."""
        return byte_laws.score_bytes(self, text, prompt, models, fast)

    def fill_prompt(self, prefix: str, suffix: str, layout: str = fill_in.SUFFIX_FIRST) -> list[int]:
        """Token ids of a prompt whose continuation is the text between two others, for models trained to fill in.

        layout: "suffix-prefix-middle", where the prefix stands last and the text goes on with it, so that its last word may go
        on, too (decode with byte-level-probabilities(until=boundary)), or "prefix-suffix-middle". An insertion model needs
        neither: its prompt has a hole where the gap is. Raises MethodUnavailable where the tokenizer has no marks for it,
        BadPrompt and BadSetting.
        """
        return fill_in.fill_prompt(self, prefix, suffix, layout)

    def chat(self, messages: str | Sequence[Message], **arguments: Any) -> Reply:
        """Answer a conversation, or a single user message. Arguments as for `generate`."""
        conversation = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        reply: Reply = self.generate(conversation, **arguments)
        return reply

    def forget(self, session: str | None = None) -> None:
        """Drop what stateful methods remember, of one session or of all."""
        with self._lock:
            for place in [place for place in self.memory if session is None or place[0] == session]:  # type: ignore[index]
                del self.memory[place]

    # What methods use (the `Host` of a request)

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text, without special tokens around it."""
        return PromptReader(self.tokenizer, self.name, self.network.vocabulary).encode(text, add_special_tokens=False)

    def companion(self, name: str) -> LanguageModel:
        """Another model, loaded on first use with this one's dtype and device. Raises MethodUnavailable where none can be."""
        if name not in self.companions:
            if self.load_companion is None:
                raise MethodUnavailable(f"{self.name} was not made by load or wrap, and has no companion {name!r}.")
            self.companions[name] = self.load_companion(name, dtype=self.network.dtype, device=self.network.device)
        return self.companions[name]

    def cost(self, network: Scorer) -> CostCurve:
        """The measured cost curves of a network: measured on first use, kept on disk, and measured anew where its path, dtype
        or number of threads is another."""
        if not network.timed:
            return CostCurve.flat()
        owner = next((m for m in self.companions.values() if m.network is network), self)
        described = {
            "model": owner._identity,
            "parameters": str(network.parameters),
            "dtype": str(network.dtype),
            "device": network.device.type,
            "path": network.path,
            "threads": str(network.threads),
        }
        if network.quantize is not None:
            described["quantize"] = network.quantize
        key = tuple(described.values())
        if key not in self._costs:
            with network.working():
                self._costs[key] = calibrated(network, described, store.home() / "calibration")
        return self._costs[key]

    # From what a user gives to requests, and back

    def _requests(
        self,
        prompt: Any,
        method: Any,
        seed: Any,
        tools: Sequence[Tool] | None,
        settings: Mapping[str, Any],
        listener: Callable[[Event], None] | None = None,
    ) -> list[list[tuple[Request, Method]]]:
        batch = is_batch(prompt)
        prompts = list(prompt) if batch else [prompt]
        method = self.default_method if method is None else method
        methods = _spread("method", method, len(prompts), batch)
        seeds = _spread("seed", seed.tolist() if getattr(seed, "ndim", 0) == 1 else seed, len(prompts), batch)
        if not prompts:  # nothing to do, but what was asked for must be right all the same
            Settings.of({**settings, "seed": None if isinstance(seed, list) else seed}, self.network.vocabulary)
            if not isinstance(method, list):
                as_method(method)
        chosen = {id(m): as_method(m) for m in methods}
        groups: list[list[tuple[Request, Method]]] = []
        number = 0
        for one, named, own_seed in zip(prompts, methods, seeds, strict=True):
            checked = Settings.of({**settings, "seed": own_seed}, self.network.vocabulary).with_seed()
            one_method = chosen[id(named)]
            try:
                ids = self.tokenize(one, tools, one_method)
            except BadPrompt as error:
                if len(prompts) == 1:
                    raise
                raise BadPrompt(f"prompt {len(groups) + 1} of {len(prompts)}: {error}") from error
            if Kind.NEXT_TOKEN in self.network.kinds:  # otherwise the canvas decides, which the method knows
                self._check_length(ids, checked)
            layout = ids.layout if isinstance(ids, LaidOutPrompt) else None
            before, template = self.split_at_hole(ids)
            group = []
            for sample in range(1 if one_method.together else checked.n):
                request = Request(self, before, checked, number, sample, listener, one_method.together)
                request.layout, request.template = layout, template
                group.append((request, one_method))
                number += request.n
            admit(one_method, group[0][0])
            self.budget.check(Need.of(*group[0]))
            groups.append(group)
        return groups

    def _check_length(self, ids: Sequence[int], settings: Settings) -> None:
        total = len(ids) + settings.max_new_tokens
        if total > self.network.context:
            raise BadPrompt(
                f"the prompt has {len(ids)} tokens and max_new_tokens is {settings.max_new_tokens}, together {total}, "
                f"but {self.name} has a context of {self.network.context}."
            )

    def tokenize(
        self, prompt: Prompt, tools: Sequence[Tool] | None = None, method: str | Method | None = None
    ) -> list[int]:
        """Token ids of a prompt: a text with the tokenizer's usual special tokens, a conversation with its template.

        Contents of messages may be lists of parts {"type": "text", "text": …}; assistants may call tools and tools answer.
        tools: what may be called, as JSON schemas or documented functions. method: reads the prompt as this method does,
        which matters for one that reads marked sets: the token ids, a LaidOutPrompt, then say how they are read, to any
        method and to `score`.
        Raises BadPrompt where it is empty or malformed, the tokenizer has no tokens for it, or the model's chat template is
        missing or does not read all of it.
        """
        may_be_empty = self.network.insertions is not None  # its texts begin with slots of their own
        return PromptReader(self.tokenizer, self.name, self.network.vocabulary, may_be_empty).read(
            prompt, tools, None if method is None else as_method(method).arrangement
        )

    def split_at_hole(self, ids: Sequence[int]) -> tuple[Sequence[int], tuple[int, ...]]:
        """The tokens before the first hole of a prompt, and the rest from there on, with which the answer begins. A hole is the
        mask token of an any-order model; for others there are none, and no rest."""
        masked = self.network.masked
        if masked is None or not masked.any_order or masked.mask_token_id not in ids:
            return ids, ()
        first = list(ids).index(masked.mask_token_id)
        return ids[:first], tuple(ids[first:])


def _spread(name: str, value: Any, count: int, batch: bool) -> list[Any]:
    """One value for all prompts, or a list with one for each."""
    if not isinstance(value, list):
        return [value] * count
    if not batch or len(value) != count:
        raise BadSetting(f"a list of {len(value)} for {name} needs a list of as many prompts.")
    return value
