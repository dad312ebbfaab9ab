"""What `generate` of transformers gives back: steps of the whole batch, scores, and a cache that holds the text."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from decodery.errors import BadSetting
from decodery.integrations.generate_arguments import CACHE_NAMES, seen_and_places
from decodery.integrations.generate_processors import Chain


class Steps:
    """The output as `generate` makes it, one step of the whole batch after the other, from rows that are decoded each at its
    own pace.

    Stopping criteria are called once per step with all rows, and so may keep count or compare rows; a row that has run ahead
    is cut where they end it, which changes no token. A row that is over goes on with `filler` where there is one, else with
    tokens of its own, until all are over.

    input_ids: [rows, n]. seen: which of them are no padding [rows, n] bool. recorded: for each row the target's raw scores
    [vocabulary] float32 of its output so far, where they are wanted. chains: for each row the processors. scores, logits:
    whether these are wanted.
    """

    def __init__(
        self,
        input_ids: Tensor,
        seen: Tensor,
        criteria: Callable[[Tensor, Any], Tensor],
        filler: int | None,
        streamer: Any = None,
        recorded: Sequence[Sequence[Tensor]] = (),
        chains: Sequence[tuple[Chain, ...]] = (),
        scores: bool = False,
        logits: bool = False,
    ):
        self.ids = input_ids
        """Prompt and output [rows, n + steps]."""
        self.over = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        self.scores: tuple[Tensor, ...] | None = () if scores else None
        """For each step the processed scores [rows, vocabulary] float32, where they are wanted."""
        self.logits: tuple[Tensor, ...] | None = () if logits else None
        """The same of the raw scores."""
        self.attentions: tuple[tuple[Tensor, ...], ...] | None = None
        self.hidden_states: tuple[tuple[Tensor, ...], ...] | None = None
        self._prompt = input_ids.shape[1]
        self._padding = (~seen).sum(dim=1).tolist()
        self._criteria, self._filler, self._streamer = criteria, filler, streamer
        self._recorded, self._chains = recorded, chains
        self._missing: list[tuple[int, int]] = []

    @property
    def count(self) -> int:
        """Steps so far."""
        return int(self.ids.shape[1]) - self._prompt

    @property
    def done(self) -> bool:
        """Whether all rows are over."""
        return bool(self.over.all())

    def runs(self, row: int) -> bool:
        """Whether further tokens of a row are wanted."""
        return not self.done and (self._filler is None or not bool(self.over[row]))

    def take(self, outputs: Sequence[Sequence[int]]) -> None:
        """Take every step that all rows have reached which are still wanted. outputs: the tokens of each row so far."""
        while not self.done:
            running = [self.runs(row) for row in range(len(outputs))]
            if any(runs and len(tokens) <= self.count for runs, tokens in zip(running, outputs, strict=True)):
                return
            step = [tokens[self.count] if runs else self._filler for runs, tokens in zip(running, outputs, strict=True)]
            if self.scores is not None or self.logits is not None:
                self._score(running)
            tokens = torch.tensor(step, dtype=self.ids.dtype, device=self.ids.device)
            self.ids = torch.cat([self.ids, tokens[:, None]], dim=1)
            self.over |= self._criteria(self.ids, self.scores).to(self.over)
            if self._streamer is not None:
                self._streamer.put(tokens.cpu())

    def _score(self, running: Sequence[bool]) -> None:
        step = self.count
        unknown = torch.zeros_like(next(self._recorded[row][step] for row, runs in enumerate(running) if runs))
        self._missing += [(step, row) for row, runs in enumerate(running) if not runs]
        raw = [self._recorded[row][step] if runs else unknown for row, runs in enumerate(running)]
        if self.logits is not None:
            self.logits += (torch.stack(raw).to(self.ids.device),)
        if self.scores is not None:
            rows = [self._processed(row, step, scores) if running[row] else scores for row, scores in enumerate(raw)]
            self.scores += (torch.stack(rows).to(self.ids.device),)

    def _processed(self, row: int, step: int, raw: Tensor) -> Tensor:
        ids, scores = self.ids[row : row + 1, self._padding[row] : self._prompt + step], raw.clone()[None]
        for chain in self._chains[row]:
            scores = chain(ids, scores)
        return scores[0]

    @property
    def complete(self) -> bool:
        """Whether the scores of all steps are there. Those of rows that were over are not: nobody decoded them."""
        return not self._missing

    def complete_with(self, outputs: Any, past: int, growing: bool) -> None:
        """Fill in what only a pass of the model itself over the whole text gives: scores of the steps after a row was over,
        attentions and hidden states where it has them.

        past: how many tokens of the text it did not read, because a cache held them. growing: `generate` would have kept a
        cache, so each step after the first has a row of its own token alone; else it has those of all tokens so far.
        """
        logits = outputs.logits[:, -self.count :].to(self.ids.device)
        self.attentions = self._cut(outputs.get("attentions"), past, growing, True)
        self.hidden_states = self._cut(outputs.get("hidden_states"), past, growing, False)
        for step, row in self._missing:
            raw = logits[row, step].float()
            if self.logits is not None:
                self.logits[step][row] = raw
            if self.scores is not None:
                self.scores[step][row] = self._processed(row, step, raw)
        self._missing = []

    def _cut(self, layers: Any, past: int, growing: bool, square: bool) -> tuple[tuple[Tensor, ...], ...] | None:
        """Rows [rows, …, n, width] of each layer, as `generate` gives them: for each step a tuple over layers."""
        if layers is None:
            return None
        steps = []
        for step in range(self.count):
            until = self._prompt - past + step
            start = until - 1 if growing and step else 0
            rows = [layer[..., start:until, :] for layer in layers]
            # A cache of fixed size is seen whole.
            exact = square and layers[0].shape[-1] == self._prompt + self.count - 1
            steps.append(tuple(row[..., : past + until] if exact else row for row in rows))
        return tuple(steps)

    def answer(self, config: Any, cache: Any) -> Any:
        """What `generate` returns: the token ids, or its dictionary."""
        if not config.return_dict_in_generate:
            return self.ids
        from transformers.generation.utils import GenerateDecoderOnlyOutput

        name = next(name for name in CACHE_NAMES if name in GenerateDecoderOnlyOutput.__dataclass_fields__)
        return GenerateDecoderOnlyOutput(
            sequences=self.ids,  # type: ignore[arg-type]
            scores=self.scores,  # type: ignore[arg-type]
            logits=self.logits,  # type: ignore[arg-type]
            attentions=self.attentions,  # type: ignore[arg-type]
            hidden_states=self.hidden_states,  # type: ignore[arg-type]
            **{name: cache},
        )


def given_cache(model_kwargs: Mapping[str, Any]) -> tuple[str, Any]:
    """The cache among a model's arguments, and its name there; None where there is none."""
    name = next((name for name in CACHE_NAMES if model_kwargs.get(name) is not None), CACHE_NAMES[0])
    return name, model_kwargs.get(name)


def read(model: Any, ids: Tensor, mask: Tensor | None, cache: Any, name: str, last: int, **wanted: bool) -> Any:
    """Have the model itself read a text into a cache, as far as it is not there yet; its outputs, with the logits
    [rows, last, vocabulary] of the last tokens or those of all.

    ids: [rows, n]. mask: which of the first of them are padding [rows, up to n], or None. cache: a cache of transformers that
    the model takes as the argument `name`, or None. wanted: what else it is to put out.
    """
    if mask is not None:
        mask = torch.cat([mask, mask.new_ones(len(ids), ids.shape[1] - mask.shape[1])], dim=1)
    past = 0 if cache is None else cache.get_seq_length()
    arguments = {
        "attention_mask": mask,
        "position_ids": seen_and_places(ids, mask)[1][:, past:],
        "use_cache": cache is not None,
        "logits_to_keep": last,
        name: cache,
    }
    known = inspect.signature(model.forward).parameters
    return model(ids[:, past:], **{key: value for key, value in arguments.items() if key in known}, **wanted)


def check_beginning(model: Any, ids: Tensor, mask: Tensor | None, cache: Any, name: str) -> None:
    """Raise BadSetting where a cache that was handed in holds anything but the beginning of the text.

    The engine keeps keys and values of its own; what it decodes is right after this cache only where both hold the same.
    """
    past = cache.get_seq_length()
    if past == 0:
        return
    from transformers import DynamicCache

    if not isinstance(cache, DynamicCache):
        raise BadSetting(
            f"a {type(cache).__name__} that holds tokens already is not for this loop; hand in a DynamicCache, or an empty one."
        )
    if past >= ids.shape[1]:
        raise BadSetting(
            f"the cache that was handed in (past_key_values) holds {past} tokens and input_ids has {ids.shape[1]}; decodery "
            "needs the whole text in input_ids, with at least one token after those in the cache."
        )
    beginning = None if mask is None else mask[:, :past]
    anew = DynamicCache(config=model.config.get_text_config(decoder=True))
    read(model, ids[:, :past], beginning, anew, name, 1)
    if not all(isinstance(getattr(layer, "keys", None), Tensor) for layer in anew.layers):
        raise BadSetting(
            f"the cache that was handed in (past_key_values) holds states of {type(model).__name__} that are no keys and "
            "values; decodery cannot tell whether they are those of input_ids, so hand in an empty cache or none."
        )
    seen = seen_and_places(ids[:, :past], beginning)[0]
    same = len(cache.layers) == len(anew.layers) and all(
        _alike(getattr(held, part, None), getattr(expected, part), seen)
        for held, expected in zip(cache.layers, anew.layers, strict=True)
        for part in ("keys", "values")
    )
    if not same:
        raise BadSetting(
            f"the cache that was handed in (past_key_values) holds something else than the first {past} tokens of "
            "input_ids, such as a soft prompt; decodery decodes after text alone."
        )


def _alike(held: Any, expected: Tensor, seen: Tensor) -> bool:
    """Whether keys or values [rows, heads, n, width] are the same up to rounding, where tokens are no padding.

    Another token, place or model moves them by about their own size. A sliding window keeps the last ones alone.
    """
    if not isinstance(held, Tensor) or held.dim() != 4 or held.shape[:2] != expected.shape[:2]:
        return False
    last = min(held.shape[2], expected.shape[2])
    tokens = seen[:, -last:].to(expected.device)
    old, new = (part[:, :, -last:].transpose(1, 2)[tokens].float() for part in (held.to(expected.device), expected))
    rounding = max(1e-3, 16 * torch.finfo(expected.dtype).eps)
    return old.shape == new.shape and bool(((old - new).norm(dim=-1) <= rounding * new.norm(dim=-1)).all())
