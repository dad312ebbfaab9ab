"""decodery inside transformers: `model.generate(..., custom_generate=decodery.transformers_generate("token-recycling"))`."""

from __future__ import annotations

import contextlib
import inspect
import sys
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from decodery.engine.method import Method, admit
from decodery.engine.registry import method as as_method
from decodery.engine.request import Request
from decodery.engine.scheduler import Scheduler
from decodery.engine.settings import Settings
from decodery.errors import BadPrompt, BadSetting, Refused
from decodery.integrations.generate_arguments import ASSISTANT, CACHE_NAMES, meant_method, refuse, seen_and_places
from decodery.integrations.generate_output import Steps, check_beginning, given_cache, read
from decodery.integrations.generate_processors import chains
from decodery.language_model import LanguageModel
from decodery.loading import load
from decodery.models.paths import network_for

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def transformers_generate(method: str | Method | None = None) -> Callable[..., Any]:
    """A decoding loop for the `custom_generate` argument of transformers' `generate`.

    method: None means the one that the arguments of `generate` name (`assistant_model`, `prompt_lookup_num_tokens`,
    `assistant_early_exit`), else decodery's default. `assistant_model` also goes with a method that drafts with a model.

    All arguments of `generate` are honoured, or refused by name before work starts. Logits processors shape the law; they
    are asked about drafts and about one row of the batch at a time, so they must be functions of what they are given.
    Stopping criteria are called as by `generate`, once per step with the whole batch. Streamers get each step. Batches may be
    padded on the left; several sequences, scores and raw logits are given as by `generate`, and `torch.manual_seed` fixes
    sampling. A cache that is handed in, or asked for by `return_dict_in_generate`, holds prompt and output but for its last
    token afterwards, at the price of one more pass over the text; where it holds something before, that must be the beginning
    of `input_ids`, which costs another. What methods learn is kept as long as the loop and the model live.

    Raises the errors of `LanguageModel.generate`, and ModelNotReadable where the model is none for decodery.
    """
    return _Loop(None if method is None else as_method(method))


SHOWN = ("output_attentions", "output_hidden_states")
"""What a model shows of its passes where it is asked to."""


class _NoText:
    """transformers deals with text itself; here only token ids come and go."""

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return ""


@dataclass
class _Known:
    """What is kept of a model between calls: what methods learned of each shape of it. Not the network itself: its dtype,
    device or weights may be others the next time. One thread at a time uses it."""

    memories: dict[tuple[int, int], dict[Hashable, Any]] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)


class _Loop:
    """The loop that `transformers_generate` hands out."""

    def __init__(self, method: Method | None):
        self._method = method
        self._known: weakref.WeakKeyDictionary[nn.Module, _Known] = weakref.WeakKeyDictionary()

    @property
    def __signature__(self) -> inspect.Signature:
        """The arguments of the loop, as `inspect.signature` tells them.

        `generate` asks for them right after it has put aside what its own loops get and others do not: streamer, assistant
        model and tokenizers. This is the one place where a loop of others can ask for them; they would be dropped without
        a word.
        """
        frame = sys._getframe(1)
        while (caller := frame.f_back) is not None:
            frame = caller
            names = frame.f_locals
            if "generation_mode_kwargs" in names and names.get("custom_generate") is self:
                _hand_on(names["kwargs"], names["generation_mode_kwargs"])
                break
        return _SIGNATURE

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        tokenizer: Any = None,
        assistant_model: PreTrainedModel | None = None,
        assistant_tokenizer: Any = None,
        put_aside: Mapping[str, Any] | None = None,
        **model_kwargs: Any,
    ) -> Any:
        aside = put_aside or {}
        refuse(
            model,
            input_ids,
            logits_processor,
            generation_config,
            model_kwargs,
            assistant_model,
            aside.get("synced_gpus", False),
        )
        chosen = meant_method(self._method, generation_config, assistant_model, assistant_tokenizer is None)
        if chosen.together:
            raise Refused(
                f"{chosen.name} decides several texts of a prompt together, and transformers' generate wants one for each row; "
                "use decodery.wrap(model, tokenizer).generate(prompt, method, n=…)."
            )
        known = self._known.setdefault(model, _Known())
        with known.lock, _evaluating(model, assistant_model):
            # Text is of use where two tokenizers meet, and costs time for each token.
            lm = _language_model(model, tokenizer if assistant_tokenizer is not None else _NoText())
            if assistant_model is None:
                lm.memory = known.memories.setdefault((lm.network.vocabulary, lm.network.layers), {})
            else:  # another one may come with the next call, so what a method learns of this one is not kept
                lm.companions[ASSISTANT] = _language_model(assistant_model, assistant_tokenizer)
            with lm.working():
                return _decode(
                    lm,
                    model,
                    chosen,
                    input_ids,
                    logits_processor,
                    stopping_criteria,
                    generation_config,
                    model_kwargs,
                    aside,
                )


_SIGNATURE = inspect.signature(_Loop(None).__call__)


def _hand_on(arguments: dict[str, Any], aside: Mapping[str, Any]) -> None:
    """Put what `generate` has put aside back among the arguments from which a loop of others gets those it names.

    Arguments that its own loop names too, and a cache, go together under a name of ours.
    """
    for name in ("tokenizer", "assistant_tokenizer", ASSISTANT):
        if name in aside:
            arguments[name] = aside[name]
    own = {name: aside[name] for name in ("streamer", "synced_gpus") if name in aside}
    arguments["put_aside"] = {**own, "cache": any(arguments.get(name) is not None for name in CACHE_NAMES)}


@contextlib.contextmanager
def _evaluating(*models: nn.Module | None) -> Iterator[None]:
    """Nothing is dropped at random meanwhile. Modules that were in training are so again afterwards."""
    training = [module for model in models if model is not None for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _language_model(model: PreTrainedModel, tokenizer: Any) -> LanguageModel:
    return LanguageModel(network_for(model, type(model).__name__, fast="off"), tokenizer, load=load)


def _decode(
    lm: LanguageModel,
    model: PreTrainedModel,
    chosen: Method,
    input_ids: Tensor,
    processors: Any,
    criteria: Any,
    config: Any,
    model_kwargs: Mapping[str, Any],
    aside: Mapping[str, Any],
) -> Any:
    rows = len(input_ids)
    mask = model_kwargs.get("attention_mask")
    seen, _ = seen_and_places(input_ids, mask)
    name, cache = given_cache(model_kwargs)
    if aside.get("cache"):
        if not config.use_cache:
            raise BadSetting(
                "use_cache=False contradicts the cache that was handed in (past_key_values); give one of them."
            )
        check_beginning(model, input_ids, mask, cache, name)
    wanted = {
        kind: config.return_dict_in_generate and getattr(config, f"output_{kind}") for kind in ("scores", "logits")
    }
    shown = {kind: True for kind in SHOWN if config.return_dict_in_generate and getattr(config, kind)}
    if "output_attentions" in shown and cache is not None and any(cache.is_sliding):
        raise BadSetting("output_attentions is not for this loop where attention has a sliding window; leave it out.")
    # Asked once per step about one text, in order, a processor may follow the text; else it must not.
    steady = chosen.name != "autoregressive" or rows > 1 or bool(wanted["scores"])
    laws = chains(processors, [row[~kept] for row, kept in zip(input_ids, seen, strict=True)], steady)
    recorded: list[list[Tensor]] = [[] for _ in range(rows)]
    requests = []
    for place, row in enumerate(input_ids):
        own = Settings(
            temperature=1.0 if config.do_sample else 0.0,
            processors=laws[place],
            stopping_criteria=(_recorder(recorded[place]),) if any(wanted.values()) else (),
            max_new_tokens=max(1, (criteria.max_length or config.max_length) - input_ids.shape[1]),
            # The user's torch seed decides: each row draws its own.
            seed=int(torch.randint(2**62, ())) if config.do_sample else 0,
        )
        request = Request(lm, row[seen[place]].tolist(), own, place)
        _check_length(request)
        admit(chosen, request)
        requests.append(request)
    steps = Steps(input_ids, seen, criteria, _filler(config, criteria), aside.get("streamer"), recorded, laws, **wanted)
    _run(requests, chosen, steps)
    keeps = cache is not None and (config.return_dict_in_generate or aside.get("cache"))
    if keeps or shown or not steps.complete:
        past = cache.get_seq_length() if keeps else 0
        outputs = read(model, steps.ids[:, :-1], mask, cache if keeps else None, name, steps.count, **shown)
        steps.complete_with(outputs, past, bool(config.use_cache))
    if aside.get("streamer") is not None:
        aside["streamer"].end()
    return steps.answer(config, cache)


def _run(requests: Sequence[Request], chosen: Method, steps: Steps) -> None:
    """Decode until the steps are over. What stops the output is `generate`'s own criteria, so requests know of no end
    tokens."""
    scheduler = Scheduler()
    try:
        for request in requests:
            scheduler.submit(request, chosen)
        while scheduler.active and not steps.done and all(request.error is None for request in requests):
            scheduler.step()
            steps.take([request.new_tokens for request in requests])
            for request in requests:
                if not steps.runs(request.number):
                    scheduler.cancel(request)
        for request in requests:
            if request.error is not None:
                raise request.error
    finally:
        for request in requests:
            scheduler.cancel(request)


def _check_length(request: Request) -> None:
    network, prompt, longest = request.host.network, len(request.prompt), request.settings.max_new_tokens
    if prompt + longest > network.context:
        raise BadPrompt(
            f"the prompt has {prompt} tokens and up to {longest} are to follow, together {prompt + longest}, but "
            f"{network.name} has a context of {network.context}; set max_new_tokens."
        )


def _recorder(rows: list[Tensor]) -> Callable[[Tensor, Tensor], bool]:
    """A stopping criterion that stops nothing: it sees the raw scores [1, vocabulary] by which each token was chosen."""

    def record(ids: Tensor, scores: Tensor) -> bool:
        rows.append(scores[0].float().clone())
        return False

    return record


def _filler(config: Any, criteria: Any) -> int | None:
    """What rows that are over go on with: the pad token, or the first end token. None where no token ends the output."""
    ends = next((criterion.eos_token_id for criterion in criteria if hasattr(criterion, "eos_token_id")), None)
    if ends is None:
        return None
    pad = config.pad_token_id
    return int(torch.as_tensor(ends if pad is None else pad).flatten()[0])
