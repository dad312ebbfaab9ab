"""Given texts instead of decoded ones: the log probability of every token, its alternatives, and hidden rows."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from decodery.engine.host import Host
from decodery.engine.prompt_layout import LaidOutPrompt, PromptLayout
from decodery.engine.request import PROMPT_CHUNK
from decodery.engine.task import Asking, Task
from decodery.engine.text import TextStream
from decodery.errors import BadPrompt, BadSetting, Refused, ScoresNotNumbers
from decodery.models.forward import POST_NORM, Forward, Rows
from decodery.models.kinds import Kind
from decodery.plain import plain
from decodery.prompts import Prompt, is_batch
from decodery.sampling.top import top_ids

if TYPE_CHECKING:
    from decodery.engine.memory import KVBudget
    from decodery.engine.scheduler import Scheduler
    from decodery.models.scorer import Scorer
    from decodery.models.sequence import Sequence as CachedSequence

AT_ONCE = 512
"""Rows of scores that are asked for at a time, of all texts together; each needs a vocabulary of floats."""
MOMENTS_AT_ONCE = 16
"""Rows whose moments are summed together, in float64."""


class Reading(Host, Protocol):
    """What scoring needs of a language model."""

    name: str

    @property
    def budget(self) -> KVBudget: ...

    def tokenize(self, prompt: Prompt) -> list[int]: ...
    def working(self) -> contextlib.AbstractContextManager[None]: ...
    def scheduler(self, prefix_cache: int | str = 0, watched: bool = True) -> Scheduler: ...


@dataclass(frozen=True)
class Scored:
    """What a model says of a given text of n tokens.

    text: what the tokens say. token_ids: [n]. spans: of each token, where its part of `text` begins and ends, in characters; a
    token that says nothing by itself (a special one, a part of a character) has an empty part, and the one that completes a
    character has all of it. logprobs: [n] float32, of each token after those before it, natural, of the raw scores; NaN for a
    first token that has nothing before it. top_ids, top_logprobs: [n, k] int64 and float32, the likeliest tokens at each place,
    likeliest first; at such a first place -1 and NaN. hidden: layer -> [n, hidden] in the network's dtype, the row of each
    token itself. prompt_tokens: how many stood before the text. entropies, deviations: [n] float64, of the law that each token
    is drawn from: its entropy in nats, and the standard deviation under it of the log probability, whose mean is minus the
    entropy; NaN at such a first place. None where they were not asked for.
    """

    text: str
    token_ids: list[int]
    spans: list[tuple[int, int]] = field(repr=False)
    logprobs: Float[Tensor, "n"] = field(repr=False)
    top_ids: Int[Tensor, "n k"] = field(repr=False)
    top_logprobs: Float[Tensor, "n k"] = field(repr=False)
    hidden: Mapping[int, Tensor] = field(repr=False)
    prompt_tokens: int = 0
    entropies: Float[Tensor, "n"] | None = field(default=None, repr=False)
    deviations: Float[Tensor, "n"] | None = field(default=None, repr=False)

    @property
    def log_probability(self) -> float:
        """Of the whole text: the sum over all tokens that have one."""
        return float(self.logprobs.double().nansum())


@dataclass(frozen=True)
class _Read:
    """A prompt that was read. scores: raw [vocabulary], after its last token."""

    tokens: list[int]
    sequence: CachedSequence
    scores: Tensor


def score(lm: Reading, texts: Any, prompt: Prompt | None, top: Any, taps: Any, moments: bool = False) -> Any:
    """See `LanguageModel.score`."""
    batch = is_batch(texts)
    top, taps = _checked(lm, top, taps)
    before = [] if prompt is None else lm.tokenize(prompt)
    layout = before.layout if isinstance(before, LaidOutPrompt) else None
    listed = list(texts) if batch else [texts]
    names = [f"text {place} of {len(listed)}: " if batch else "" for place in range(1, len(listed) + 1)]
    read = [_tokens(lm, text, name, before) for text, name in zip(listed, names, strict=True)]
    if layout is not None:
        layout.check(lm.network, len(before) + max(map(len, read), default=0))
    with lm.working():
        scheduler = lm.scheduler(watched=False)
        known = _read_prompt(lm, scheduler, before, layout, read) if before else None
        tasks = [
            Task(
                _scored(lm.network, tokens, known, top, taps, moments, name),
                [(lm.network, len(before) + len(tokens))],
                lm.cost,
            )
            for tokens, name in zip(read, names, strict=True)
        ]
        for task in tasks:
            lm.budget.check(task.need())
        _run(scheduler, tasks, [min(len(tokens), PROMPT_CHUNK) for tokens in read])
    results = []
    for tokens, task in zip(read, tasks, strict=True):
        assert task.value is not None
        text, spans = spelled(lm.tokenizer, before, tokens)
        logprobs, ids, values, hidden, spread = task.value
        results.append(Scored(text, tokens, spans, logprobs, ids, values, hidden, len(before), *spread))
    return results if batch else results[0]


def _checked(lm: Reading, top: Any, taps: Any) -> tuple[int, tuple[int, ...]]:
    if Kind.NEXT_TOKEN not in lm.network.kinds:
        raise Refused(
            f"{lm.name} is {lm.network.kinds.words}, which gives no token a probability after those before it; score needs a "
            "causal one."
        )
    top = plain(top)
    if not isinstance(top, int) or isinstance(top, bool) or top < 0:
        raise BadSetting(f"top must be a number of tokens, not {top!r}.")
    layers = [plain(tap) for tap in ((taps,) if isinstance(taps, int) else taps)]
    for tap in layers:
        if not isinstance(tap, int) or isinstance(tap, bool) or not POST_NORM <= tap < lm.network.layers:
            raise BadSetting(
                f"taps are layers of {lm.name}, 0 to {lm.network.layers - 1}, or {POST_NORM} for the rows that enter the head, "
                f"not {tap!r}."
            )
    if layers and lm.network.chains_only:
        raise Refused(f"score gives no hidden rows of {lm.name}, which shows none; leave taps out.")
    return min(top, lm.network.vocabulary), tuple(dict.fromkeys(layers))


def _tokens(lm: Reading, text: Any, name: str, before: Sequence[int]) -> list[int]:
    """Token ids of a text; one that follows a prompt gets no special tokens around it. Raises BadPrompt."""
    try:
        if before and isinstance(text, str):
            ids = lm.encode(text)
            if not ids:
                raise BadPrompt("the text is empty; give at least one character.")
        else:
            ids = lm.tokenize(text)
    except BadPrompt as error:
        raise BadPrompt(f"{name}{error}") from error
    total, most = len(before) + len(ids), lm.network.context
    if total > most:
        behind = f", behind a prompt of {len(before)} together {total}" if before else ""
        raise BadPrompt(f"{name}the text has {len(ids)} tokens{behind}, but {lm.name} has a context of {most}.")
    return ids


def _run(scheduler: Scheduler, tasks: Sequence[Task[Any]], rows: Sequence[int]) -> None:
    """Run tasks, as many at once as ask for no more rows of scores than there is memory for. Raises what ends one of them."""
    queue = deque(zip(tasks, rows, strict=True))
    running: list[tuple[Task[Any], int]] = []
    try:
        while queue or running:
            while queue and (not running or sum(count for _, count in running) + queue[0][1] <= AT_ONCE):
                running.append(queue.popleft())
                scheduler.start(running[-1][0])
            scheduler.step()
            failed = next((task.error for task, _ in running if task.error is not None), None)
            if failed is not None:
                raise failed
            running = [(task, count) for task, count in running if not task.over]
    finally:
        for task, _ in running:
            scheduler.cancel(task)


def _read_prompt(
    lm: Reading, scheduler: Scheduler, prompt: list[int], layout: PromptLayout | None, texts: Sequence[Sequence[int]]
) -> _Read:
    """Read a prompt once for all texts; not at all where its rows serve none of them, because of the texts' lengths."""
    border = lm.network.border
    if not texts or (border is not None and all(len(prompt) + len(text) > border for text in texts)):
        return _Read(prompt, lm.network.new_sequence(), torch.empty(0))

    def read() -> Asking[_Read]:
        sequence = lm.network.new_sequence()
        if layout is not None:
            yield layout.opening(sequence, prompt)
        scores = yield Forward(sequence, prompt[sequence.length :], logits=Rows.LAST)
        return _Read(prompt, sequence, scores.logits[0])

    task = Task(read(), [(lm.network, len(prompt))], lm.cost)
    _run(scheduler, [task], [1])
    assert task.value is not None
    return task.value


def _scored(
    network: Scorer, tokens: list[int], prompt: _Read | None, top: int, taps: tuple[int, ...], moments: bool, name: str
) -> Asking[tuple[Tensor, Tensor, Tensor, dict[int, Tensor], tuple[Tensor | None, Tensor | None]]]:
    """Of one text: the log probabilities, the likeliest tokens with theirs, hidden rows, and the moments, as in `Scored`."""
    logprobs = torch.full((len(tokens),), torch.nan)
    ids, values = torch.full((len(tokens), top), -1), torch.full((len(tokens), top), torch.nan)
    hidden: dict[int, list[Tensor]] = {tap: [] for tap in taps}
    spread = torch.full((2, len(tokens)), torch.nan, dtype=torch.float64) if moments else None

    def take(rows: Tensor, first: int) -> None:
        """Raw scores [m, vocabulary], the first of them after all tokens before number `first`."""
        total = rows.logsumexp(1, keepdim=True)
        if not bool(total.isfinite().all()):
            place = first + int((~total.isfinite()).nonzero()[0, 0])
            what = f"{name}the network's scores of token {place + 1} are not numbers"
            raise ScoresNotNumbers(f"{what}: {network.origin_of_faults(tokens)}.", raw=True)
        places = range(first, first + len(rows))
        wanted = torch.tensor([[tokens[place]] for place in places], device=rows.device)
        logprobs[places] = (rows.gather(1, wanted) - total)[:, 0].cpu()
        if top:
            best = top_ids(rows, top)
            ids[places], values[places] = best.cpu(), (rows.gather(1, best) - total).cpu()
        if spread is not None:
            spread[:, places] = _moments(rows).cpu()

    behind = 0 if prompt is None else len(prompt.tokens)
    whole = network.border is not None and behind + len(tokens) > network.border
    if whole or prompt is None:
        sequence, text = network.new_sequence(), [*([] if prompt is None else prompt.tokens), *tokens]
        sequence.cache.expect(network.rows_kept(len(text)))
    else:
        sequence, text = prompt.sequence.fork(), tokens
        take(prompt.scores[None], 0)
    skipped = len(text) - len(tokens)
    until = len(text) if taps else len(text) - 1  # the scores after the last token are those of no token
    # A text beyond the border is scored in another way as a whole, so it cannot be read in pieces.
    size = len(text) if whole else PROMPT_CHUNK
    for start in range(0, until, size):
        chunk = text[start : min(start + size, until)]
        asked = range(max(skipped - 1 - start, 0), min(len(chunk), len(text) - 1 - start))
        scores = yield Forward(sequence, chunk, taps=taps, logits=asked)
        if asked:
            take(scores.logits, start + asked.start + 1 - skipped)
        for tap, rows in scores.hidden.items():
            hidden[tap].append(rows[max(skipped - start, 0) :].cpu())
    told = {tap: torch.cat(rows) for tap, rows in hidden.items()}
    return logprobs, ids, values, told, (None, None) if spread is None else (spread[0], spread[1])


def _moments(rows: Tensor) -> Tensor:
    """Of raw scores [m, vocabulary]: the entropies, and the standard deviations of the log probability, [2, m] float64."""
    parts = []
    for piece in torch.split(rows, MOMENTS_AT_ONCE):
        law = piece.double().log_softmax(1)
        shares = law.exp()
        law = law.masked_fill(shares == 0, 0.0)  # what cannot come does not count
        mean = (shares * law).sum(1, keepdim=True)
        # About the mean, in two steps: the difference of two means of squares loses what a sharp law has.
        parts.append(torch.stack((-mean[:, 0], (shares * (law - mean).square()).sum(1).sqrt())))
    return torch.cat(parts, 1)


def spelled(tokenizer: Any, before: Sequence[int], tokens: list[int]) -> tuple[str, list[tuple[int, int]]]:
    """What tokens say behind others, and which part of it each says."""
    stream = TextStream(tokenizer, (), before)
    spans = []
    for token in tokens:
        start = len(stream.text)
        stream.push(token)
        spans.append((start, len(stream.text)))
    if stream.finish():
        spans[-1] = spans[-1][0], len(stream.text)
    return stream.text, spans
