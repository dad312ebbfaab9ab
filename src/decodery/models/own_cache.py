"""The scorer for models whose rows cannot be packed: recurrent ones, hybrids, and attention of their own making.

Each text is run by itself through the model's own `forward`, with transformers' own cache of it. Such a cache takes further
tokens and nothing else: no trees, no masks, no parts of the network. Which way of using it gives the model's own scores differs
from class to class, and some classes forget their state without a word; so it is tried when a network is made.
"""

from __future__ import annotations

import copy
import inspect
import logging
import threading
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Listing
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from decodery.errors import ModelNotReadable, Refused, reason
from decodery.models.cache_states import MOST_STATES, CacheState, TextCache, Trunk, differ, room
from decodery.models.chains import beyond_chains
from decodery.models.forward import Forward, Scores, Slots
from decodery.models.key_value_network import ids_of
from decodery.models.scorer import Network
from decodery.models.sequence import Sequence
from decodery.models.twin import BORDERS, context_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger("decodery")

CACHE_ARGUMENTS = ("cache", "past_key_values", "cache_params", "state", "mems")
"""How `forward` and its answer may call the cache."""
REREAD_ROWS = 8
"""So many certain tokens are rather read again after a rejected draft than that a pass is made for them alone."""
CHECKED_TOKENS = 24
"""Length of the text on which the ways of using a cache are tried."""
RECURRENT_BORDERS = {"mamba_chunk_size", "chunk_size"}
"""What a configuration calls the distances at which recurrence changes."""
CHECKED_WORK = 2e10
"""Where the tokens up to such a border times the model's weights are more than this, only the short text is tried."""
TOLERANCE, HALF_TOLERANCE = 1e-3, 0.1
"""Root mean square differences from the whole text's scores, in standard deviations of a row, up to which it is rounding: of
numbers with 32 bits, and with 16."""


@dataclass(frozen=True)
class Use:
    """A way of using a model's cache.

    path: its name. rows: how many tokens a pass may have once there is a state; None: any number. placed: positions and mask
    are handed over, and not left to the model. cached: there is a cache at all; otherwise every pass reads the text anew.
    """

    path: str
    rows: int | None = None
    placed: bool = False
    cached: bool = True


USES = (
    Use("own-cache"),
    Use("own-cache", placed=True),
    Use("own-cache-by-row", rows=1),
    Use("own-cache-by-row", rows=1, placed=True),
    Use("reread", cached=False),
)
"""The fastest first."""


@dataclass(frozen=True)
class _Reading:
    """What a forward has brought: its answer, and for the cache the text with the states on the way to it."""

    scores: Scores
    text: list[int]
    made: list[CacheState]
    trunk: Trunk


class OwnCacheNetwork(Network):
    """A transformers causal language model as a scorer, one text at a time.

    model: a `PreTrainedModel` with a language-model head. It is called and nothing else: neither it nor its configuration is
    changed. While its owner has it in training mode, a copy of its modules that shares its weights is called. name: how
    statistics and error messages call it.
    Raises ModelNotReadable where token ids alone do not give scores, or where these depend on later tokens.
    """

    chains_only = True

    def __init__(self, model: PreTrainedModel, name: str):
        self.model, self.name = model, name
        self._apart: tuple[list[int], Any] = [], None
        config = model.config.get_text_config()
        self.context = context_of(config)
        self.layers = int(getattr(config, "num_hidden_layers", None) or 1)
        self.device, self.dtype = model.device, model.dtype
        self.threads = torch.get_num_threads()
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self._tolerance = TOLERANCE if self.dtype.itemsize >= 4 else HALF_TOLERANCE
        self._lock = threading.RLock()
        self._config = config
        accepted = inspect.signature(model.forward).parameters
        self._argument = next((argument for argument in CACHE_ARGUMENTS if argument in accepted), "")
        self._fixed = {"return_dict": True} if "return_dict" in accepted else {}
        self._keeps = "logits_to_keep" in accepted
        # Some hand the word on to their base model.
        onward = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
        self._caches = "use_cache" in accepted or (bool(self._argument) and onward)
        self._places = [argument for argument in ("position_ids", "attention_mask") if argument in accepted]
        self._use, self._room, self._divisible = USES[-1], MOST_STATES, False
        self._row_bytes, self._state_bytes, self._growth = 0.0, 0, 0.0
        window = getattr(config, "sliding_window", None)
        self._window = window if isinstance(window, int) and window > 0 else self.context
        self._choose()
        self._compare_with_generate()
        self.path = self._use.path
        self.measured_rows = 64 if self._use.rows is None and self._use.cached else 2

    # The contract

    def new_sequence(self) -> Sequence:
        return Sequence(self, TextCache())

    def cache_bytes(self, rows: int, shared: int = 0) -> int:
        # Keys and values are copied to grow: for a moment they are there twice.
        if not self._use.cached:
            return 0
        state = self._state_bytes + int(self._growth * min(rows, self._window))
        return int(2 * self._row_bytes * rows) + state * room(state)

    def check(self, forward: Forward) -> None:
        super().check(forward)
        beyond = beyond_chains(forward, self.layers)
        if beyond:
            raise Refused(
                f"{self.name} keeps a cache of its own for each text, which takes further tokens one after the other: {beyond}."
            )

    def run_pass(self, forwards: Listing[Forward]) -> list[Scores]:
        for forward in forwards:
            self.check(forward)
        with self._lock, torch.inference_mode():
            readings = [self._read(forward) for forward in forwards]
        # Only now that all is well: who failed in company is tried again alone.
        for forward, reading in zip(forwards, readings, strict=True):
            if forward.slots is Slots.NOWHERE:
                continue
            cache = forward.sequence.cache
            assert isinstance(cache, TextCache)
            if reading.made:
                cache.advance(reading.text, reading.made, reading.trunk)
            forward.sequence.write(forward.written_slots(), ids_of(forward), forward.row_positions())
        return [reading.scores for reading in readings]

    # One pass over one text

    def _read(self, forward: Forward) -> _Reading:
        cache = forward.sequence.cache
        assert isinstance(cache, TextCache)
        before = forward.sequence.length
        text = [*forward.sequence.tokens, *ids_of(forward)]
        wanted = [before + row for row in forward.logit_rows()]
        if not self._use.cached:
            return _Reading(Scores(self._call(text, wanted)[0]), text, [], {})
        state, read = cache.resume(forward.sequence.tokens)
        # Up to here nothing will be taken back: tokens before the first whose scores are asked for, and this one.
        certain = before + next(iter(forward.logit_rows()), forward.count - 1) + 1
        found: dict[int, Tensor] = {}
        made: list[CacheState] = []
        trunk: Trunk = {}
        for start, stop in self._spans(read, certain, len(text)):
            rows = [row for row in wanted if start <= row < stop]
            unique = sorted(set(rows))
            logits, state = self._call(text[start:stop], [row - start for row in unique], state, start, self._use)
            found.update(zip(unique, logits, strict=True))
            if state is None:
                raise ModelNotReadable(f"{self.name} ({type(self.model).__name__}) gives no cache back.")
            if certain <= stop < certain + max(1, self._room - 2) or stop == len(text):
                point, trunk = CacheState.of(state, stop)
                made.append(point)
                state = point.at(stop, trunk) if stop < len(text) else None
        rows_found = [found[row] for row in wanted]
        answer = torch.stack(rows_found) if rows_found else torch.empty(0, self.vocabulary, device=self.device)
        return _Reading(Scores(answer), text, made, trunk)

    def _spans(self, read: int, certain: int, total: int) -> Iterator[tuple[int, int]]:
        """The calls by which the tokens from `read` to `total` are run, of which those from `certain` on may be taken back."""
        border = certain if certain < total else total
        if self._use.rows is not None and (read or border > 1):
            if not read:  # what begins a text may be of any length
                yield 0, border
            yield from ((row, row + 1) for row in range(read or border, total))
        elif border < total and border - read > REREAD_ROWS and not self._divisible:
            yield read, border
            yield border, total
        else:
            yield read, total

    def _call(
        self, tokens: Listing[int], wanted: Listing[int], state: Any = None, start: int = 0, use: Use = USES[-1]
    ) -> tuple[Tensor, Any]:
        """One call of the model: logits [len(wanted), vocabulary] float32 of the wanted rows, and the cache after it."""
        inputs: dict[str, Any] = {"input_ids": torch.tensor([tokens], device=self.device), **self._fixed}
        if self._caches:
            inputs["use_cache"] = use.cached
        if state is not None:
            inputs[self._argument] = state
        stop = start + len(tokens)
        if use.placed and "position_ids" in self._places:
            inputs["position_ids"] = torch.arange(start, stop, device=self.device)[None]
        if use.placed and "attention_mask" in self._places:
            inputs["attention_mask"] = torch.ones(1, stop, dtype=torch.long, device=self.device)
        rows = torch.tensor(list(wanted) or [len(tokens) - 1], device=self.device)
        if self._keeps:
            inputs["logits_to_keep"] = rows
        answer = self._evaluated()(**inputs)
        logits: Tensor = answer.logits[0]
        if logits.shape[0] != len(rows) or not self._keeps:
            logits = logits[rows]
        return logits[: len(wanted)].float(), getattr(answer, self._argument, None) if use.cached else None

    def _evaluated(self) -> Any:
        """The model in eval mode: itself, or modules of our own with its present weights. Raises Refused where it has other
        weights in training mode."""
        if not self.model.training:
            return self.model
        if any(hasattr(module, "layers_are_rescaled") for module in self.model.modules()):  # RWKV, in place
            raise Refused(f"{self.name} has other weights in training mode; call its eval() before decoding.")
        weights = [*self.model.parameters(), *self.model.buffers()]
        if self._apart[0] != [id(weight) for weight in weights]:
            twin = copy.deepcopy(self.model, {id(weight): weight for weight in weights})
            self._apart = [id(weight) for weight in weights], twin.eval()
        return self._apart[1]

    # Which way of using the cache is right

    def _choose(self) -> None:
        """Take the fastest way of using the cache that gives the scores of the whole text."""
        kind = type(self.model).__name__
        size = int(self._config.vocab_size)
        text = _sample(CHECKED_TOKENS, size, self._config)
        try:
            with self._lock, torch.inference_mode():
                whole, _ = self._call(text, range(len(text)))
                half, _ = self._call(text[: len(text) // 2], range(len(text) // 2))
        except Exception as error:  # a forward raises what it likes where it lacks something
            raise ModelNotReadable(
                f"{self.name} ({kind}) cannot be run on token ids alone: {reason(error)}."
            ) from error
        self.vocabulary = whole.shape[1]
        if not self._agree(half, whole[: len(half)]):
            raise ModelNotReadable(
                f"{self.name} ({kind}) scores a token by what comes after it too, so it is no causal language model."
            )
        for use in USES:
            if use.cached and (not self._argument or not self._caches or _length_dependent(self._config)):
                continue
            self._use = use
            if not use.cached:
                log.warning(
                    "%s (%s) has no cache that can be gone on from, and reads its text anew for every token",
                    self.name,
                    kind,
                )
                return
            try:
                self._try(text, whole)
                for border in self._borders():
                    self._try_border(_sample(border + 9, size, self._config), border)
            except Exception as fault:  # as above
                log.info("%s (%s) is not right by %s: %s", self.name, kind, use, reason(fault))
                continue
            log.info("%s (%s) runs by %s", self.name, kind, use.path)
            return

    def _compare_with_generate(self) -> None:
        """Raise ModelNotReadable where transformers contradicts itself: generates by other scores than `forward` gives."""
        if not self.model.can_generate() or self.context < CHECKED_TOKENS:
            return
        prompt = _sample(CHECKED_TOKENS, self.vocabulary, self._config)[:7]
        generate: Any = self.model.generate
        try:
            answer = generate(
                torch.tensor([prompt], device=self.device),
                max_new_tokens=4,
                min_new_tokens=4,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        except Exception as error:  # of its own code, which decoding here does not need
            log.info("transformers cannot generate with %s: %s", self.name, reason(error))
            return
        text = answer.sequences[0].tolist()
        [scores] = self.run_pass(
            [Forward(self.new_sequence(), text[:-1], logits=range(len(prompt) - 1, len(text) - 1))]
        )
        theirs = torch.cat(answer.logits).float()
        if theirs.shape[0] != 4 or not self._agree(scores.logits, theirs, 10 * self._tolerance):
            raise ModelNotReadable(
                f"{self.name} ({type(self.model).__name__}) generates by other scores in transformers than its forward gives."
            )

    def _try(self, text: list[int], whole: Tensor) -> None:
        """Run a text in pieces, forked and cut back on the way. Raises ValueError where this gives other scores."""
        first, third = self.new_sequence(), self.new_sequence()
        self._same(first, text, whole, (0, 5, 6, 10))
        second = first.fork()
        self._same(first, text, whole, (10, 17))
        self._measure(first)
        # Random weights may make little of a state that is forgotten, so the states are looked at too.
        with self._lock, torch.inference_mode():
            ours, _ = first.cache.resume(text[:17])  # type: ignore[attr-defined]
            _, theirs = self._call(text[:17], [], use=self._use)
        if differ(ours, theirs) > self._tolerance:
            raise ValueError("the state after 17 tokens in pieces is another than after all at once")
        first.truncate(12)
        self._same(first, text, whole, (12, len(text)))
        self._same(second, text, whole, (10, 11, len(text)))
        self._same(third, text, whole, (0, 1, 3, len(text)))

    def _try_border(self, text: list[int], border: int) -> None:
        """Run a text in pieces around a place where attention or recurrence changes."""
        with self._lock, torch.inference_mode():
            whole, _ = self._call(text, range(len(text)))
        edges = sorted({0, max(1, border - 2), max(2, border - 1), border + 3, border + 4, len(text)})
        self._same(self.new_sequence(), text, whole, edges)

    def _same(self, sequence: Sequence, text: Listing[int], whole: Tensor, edges: Listing[int]) -> None:
        """Append the tokens of a text piece by piece. Raises ValueError where a piece's scores are not those of the whole."""
        for start, stop in pairwise(edges):
            [scores] = self.run_pass([Forward(sequence, text[start:stop])])
            if not self._agree(scores.logits, whole[start:stop]):
                raise ValueError(f"tokens {start} to {stop - 1} have other scores than in the whole text")

    def _agree(self, rows: Tensor, expected: Tensor, tolerance: float | None = None) -> bool:
        scale = expected.std(dim=1).clamp_min(1e-12)
        most = (self._tolerance if tolerance is None else tolerance) * scale
        return bool(((rows - expected).square().mean(dim=1).sqrt() <= most).all())

    def _borders(self) -> list[int]:
        found = {getattr(self._config, name, None) for name in BORDERS | RECURRENT_BORDERS}
        return sorted(
            border
            for border in found
            if isinstance(border, int)
            and 0 < border <= self.context - 9
            and (border + 9) * self.parameters <= CHECKED_WORK
        )

    def _measure(self, sequence: Sequence) -> None:
        """Note what the states of a text take."""
        cache = sequence.cache
        assert isinstance(cache, TextCache)
        points = cache.state_bytes
        (shorter, less), (longer, more) = points[0], points[-1]
        self._row_bytes, self._divisible = cache.row_bytes, cache.divisible
        self._state_bytes, self._growth = more, max(0, more - less) / max(1, longer - shorter)
        self._room = room(more)


def _sample(count: int, size: int, config: Any) -> list[int]:
    """A text of random tokens, the special ones of a configuration among them."""
    ids: list[int] = torch.randint(size, (count,), generator=torch.Generator().manual_seed(0)).tolist()
    for place, name in enumerate(("pad_token_id", "bos_token_id", "eos_token_id")):
        token = getattr(config, name, None)
        if isinstance(token, int) and 0 <= token < size:
            ids[7 + 2 * place] = token
    return ids


def _length_dependent(config: Any) -> bool:
    """Whether the angles of all positions depend on the length of the text, so that no state outlives its length."""

    def types(value: Any) -> Iterator[Any]:
        if isinstance(value, Mapping):
            yield from (value.get("rope_type"), value.get("type"))
            for inner in value.values():
                yield from types(inner)

    names = ("rope_parameters", "rope_scaling")
    return any(kind in ("dynamic", "longrope") for name in names for kind in types(getattr(config, name, None)))
