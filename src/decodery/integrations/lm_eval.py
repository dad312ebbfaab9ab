"""decodery in EleutherAI's lm-evaluation-harness: any method on any of its tasks.

    python -m decodery.integrations.lm_eval --model decodery \\
        --model_args pretrained=smollm2-135m,method=cascade --tasks lambada_openai

is `lm_eval` with one model more. Programs import this module and hand `DecoderyLM(...)` to `lm_eval.simple_evaluate`. Beside
the accuracies, the results tell under `config.decodery` what was decoded in how many forwards, by task, and whether log
likelihoods are exact: those of masked-diffusion models are estimates of lower bounds (`decodery.diffusion.likelihood_bound`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from decodery.diffusion.likelihood_bound import SAMPLES, likelihood_bound
from decodery.engine.registry import method as as_method
from decodery.errors import BadPrompt, BadSetting
from decodery.language_model import LanguageModel
from decodery.loading import load

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

log = logging.getLogger("decodery")


@dataclass
class Spent:
    """What the requests of one task took. tokens: decoded ones. forwards: of the model, to decode them. bound_forwards: of the
    estimates of log likelihoods."""

    requests: int = 0
    tokens: int = 0
    forwards: int = 0
    bound_forwards: int = 0

    def told(self) -> dict[str, float]:
        """As the results tell it."""
        found: dict[str, float] = {"requests": self.requests}
        if self.forwards:
            found |= {
                "tokens": self.tokens,
                "forwards": self.forwards,
                "tokens_per_forward": self.tokens / self.forwards,
            }
        if self.bound_forwards:
            found["bound_forwards"] = self.bound_forwards
        return found


@register_model("decodery")
class DecoderyLM(TemplateLM):  # type: ignore[misc]
    """A decodery model for lm_eval.

    pretrained: what `decodery.load` takes, or a LanguageModel. method: how texts are decoded, as "name(key=value)"; None: the
    default of the model. dtype, device, threads, fast, quantize, kv_budget: as for `load`; fast is "exact", since a score of a
    model should not depend on how this machine rounds. batch_size: prompts that are decoded at once; "auto": all, as far as
    there is memory. seed: the i-th request of a call draws with seed + i. max_gen_toks: most new tokens where a task does not
    say. samples, check_greedy: of masked-diffusion models, in how many ways tokens are hidden for each estimate, and whether
    the text is decoded greedily to see if it equals the continuation; otherwise no continuation counts as greedy.
    """

    def __init__(
        self,
        pretrained: str | LanguageModel,
        method: str | None = None,
        *,
        dtype: str = "auto",
        device: str | None = None,
        threads: int | None = None,
        fast: str = "exact",
        quantize: str | None = None,
        kv_budget: int | str | None = None,
        batch_size: int | str | None = "auto",
        max_batch_size: int | None = None,
        seed: int = 0,
        max_gen_toks: int = 256,
        samples: int = SAMPLES,
        check_greedy: bool = True,
    ):
        super().__init__()
        if max_batch_size is not None:
            raise BadSetting(
                "max_batch_size has no meaning here; batch_size=auto decodes as many at once as fit into memory."
            )
        self._batch = _batch_size(batch_size)
        if isinstance(pretrained, LanguageModel):
            self.lm = pretrained
        else:
            # The harness says cuda:0 where nobody says anything.
            where = "auto" if device is None or (device == "cuda:0" and not torch.cuda.is_available()) else device
            self.lm = load(
                pretrained,
                dtype=dtype,
                device=where,
                threads=threads,
                fast=fast,
                quantize=quantize,
                kv_budget=kv_budget,
            )
        self.method = as_method(self.lm.default_method if method is None else method)
        self.tokenizer = self.lm.tokenizer
        self._seed, self._most, self._samples, self._check_greedy = seed, max_gen_toks, samples, check_greedy
        self._spent: dict[str, Spent] = {}
        self._device = self.lm.network.device
        if self._bounds:
            log.warning(
                "log likelihoods of %s are estimates of lower bounds, from %d samples each.", self.lm.name, samples
            )

    # What lm_eval asks of a model's tokenizer

    @property
    def _bounds(self) -> bool:
        """Whether log likelihoods are bounds."""
        return self.lm.diffusion is not None

    @property
    def max_length(self) -> int:
        """Most tokens that may stand before the one that is scored."""
        return self.lm.network.context - 1

    @property
    def eot_token_id(self) -> int:
        """A token that ends a text. Raises BadPrompt where there is none."""
        if not self.lm.stop_ids:
            raise BadPrompt(f"{self.lm.name} has no token that ends a text, and lm_eval needs one.")
        return self.lm.stop_ids[0]

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has nothing before it, so that its first token has a probability."""
        first = getattr(self.tokenizer, "bos_token_id", None)
        return self.eot_token_id if first is None else int(first)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids of a text, with the tokenizer's usual special tokens unless it begins with the first of them."""
        start = getattr(self.tokenizer, "bos_token", None)
        plain = isinstance(start, str) and bool(start) and string.startswith(start)
        if add_special_tokens is False or (add_special_tokens is None and plain):
            return self.lm.encode(string)
        return self.lm.tokenize(string)

    @property
    def tokenizer_name(self) -> str:
        """What caches of requests are told apart by."""
        return str(self.lm.folder or self.lm.name).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as the model's template writes it; without a generation prompt its last message goes on."""
        more = {} if add_generation_prompt else {"continue_final_message": True}
        text: str = self.tokenizer.apply_chat_template(
            chat_history, tokenize=False, add_generation_prompt=add_generation_prompt, **more
        )
        return text

    def get_model_info(self) -> dict[str, Any]:
        """What the results tell of the model, and of what was decoded."""
        network = self.lm.network
        exact = f"lower bound, estimated from {self._samples} samples" if self._bounds else "exact"
        return {
            "decodery": {
                "model": self.lm.name,
                "method": self.method.spec(),
                "exactness": str(self.method.exactness),
                "path": network.path,
                "dtype": str(network.dtype).removeprefix("torch."),
                "log_likelihood": exact,
                "tasks": {task: spent.told() for task, spent in self._spent.items()},
            }
        }

    # Log likelihoods

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Of continuations, and whether greedy decoding gives them."""
        pairs = [self._pair(*request.args) for request in requests]
        found = self._scored([_task(request) for request in requests], pairs, disable_tqdm)
        for request, result in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, result)
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts; of one that is longer than the context, window by window."""
        windows: list[tuple[list[int], list[int]]] = []
        owners: list[int] = []
        for place, request in enumerate(requests):
            tokens = self.tok_encode(*request.args)
            if self._unshifted:
                size = self.lm.network.context
                cut: Iterable[Any] = (([], tokens[start : start + size]) for start in range(0, len(tokens), size))
            else:
                rolling = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, 1)
                cut = map(make_disjoint_window, rolling)
            for window in cut:
                windows.append(window)
                owners.append(place)
        names = [_task(requests[place]) for place in owners]
        totals = [0.0] * len(requests)
        for place, (value, _) in zip(owners, self._scored(names, windows, disable_tqdm, greedy=False), strict=True):
            totals[place] += value
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    @property
    def _unshifted(self) -> bool:
        """Whether a first token has a probability with nothing before it."""
        return self.lm.diffusion is not None and not self.lm.diffusion.shift

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if context:
            before, after = self._encode_pair(context, continuation)
        else:
            before, after = [], self.tok_encode(continuation, add_special_tokens=False)
        if not before and not self._unshifted:
            before = [self.prefix_token_id]
            if after[:1] == before:
                after = after[1:]
        if not after:
            raise BadPrompt(f"the continuation {continuation!r} has no tokens behind its context.")
        if len(after) > self.max_length:
            raise BadPrompt(
                f"a continuation has {len(after)} tokens, but {self.lm.name} has a context of {self.lm.network.context}."
            )
        room = self.lm.network.context - len(after)
        return before[-room:], after

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        pairs = [(before, after) for _, before, after in requests]
        return self._scored([""] * len(pairs), pairs, disable_tqdm)

    def _scored(
        self,
        tasks: Sequence[str],
        pairs: Sequence[tuple[list[int], list[int]]],
        quiet: bool,
        greedy: bool = True,
    ) -> list[tuple[float, bool]]:
        """Of each continuation (log likelihood, greedy). Continuations of one context share its rows."""
        contexts: dict[tuple[int, ...], list[int]] = {}
        for place, (before, _) in enumerate(pairs):
            contexts.setdefault(tuple(before), []).append(place)
        found: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
        for before, places in tqdm(contexts.items(), desc="Scoring contexts", disable=quiet):
            after = [pairs[place][1] for place in places]
            if self._bounds:
                values = self._bound(list(before), after, [tasks[place] for place in places], greedy)
            else:
                scored = self.lm.score(after, list(before), top=1)
                values = [(one.log_probability, one.top_ids[:, 0].tolist() == one.token_ids) for one in scored]
            for place, value in zip(places, values, strict=True):
                found[place] = value
                self._spend(tasks[place]).requests += 1
        return found

    def _bound(
        self, before: list[int], after: Sequence[list[int]], tasks: Sequence[str], greedy: bool
    ) -> list[tuple[float, bool]]:
        runs = [likelihood_bound(self.lm, tokens, before, samples=self._samples, seed=self._seed) for tokens in after]
        bounds = self.lm.run(runs)
        found = []
        for tokens, bound, task in zip(after, bounds, tasks, strict=True):
            if isinstance(bound, Exception):
                raise bound
            self._spend(task).bound_forwards += bound.forwards
            same = greedy and self._check_greedy and self._decodes(before, tokens)
            found.append((bound.log_probability, same))
        return found

    def _decodes(self, before: list[int], tokens: list[int]) -> bool:
        """Whether greedy decoding of as many tokens gives these; not where there is no prompt to decode behind."""
        if not before:
            return False
        reply = self.lm.generate(before, self.method, max_new_tokens=len(tokens), temperature=0.0, seed=self._seed)
        same: bool = reply.token_ids == tokens
        return same

    # Decoding

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The texts behind contexts, up to their stop strings."""
        texts = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items())), []).append(place)
        progress = tqdm(total=len(requests), desc="Decoding", disable=disable_tqdm)
        for places in groups.values():
            settings, most = self._settings(requests[places[0]].args[1])
            size = len(places) if self._batch is None else self._batch
            for start in range(0, len(places), size):
                part = places[start : start + size]
                prompts = [self._context(requests[place].args[0], most) for place in part]
                seeds = [self._seed + place for place in part]
                replies = self.lm.generate(prompts, self.method, seed=seeds, max_new_tokens=most, **settings)
                for place, reply in zip(part, replies, strict=True):
                    if reply.error is not None:
                        raise reply.error
                    texts[place] = reply.text
                    spent = self._spend(_task(requests[place]))
                    spent.requests += 1
                    spent.tokens += len(reply.token_ids)
                    spent.forwards += reply.stats.forwards
                    self.cache_hook.add_partial("generate_until", requests[place].args, reply.text)
                progress.update(len(part))
        progress.close()
        return texts

    def _settings(self, given: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
        """decodery's settings of what a task says, but for the most new tokens, and these."""
        settings: dict[str, Any] = dict(normalize_gen_kwargs(dict(given), self._most))
        settings.pop("do_sample", None)
        stop = [text for text in settings.pop("until", None) or [] if text]
        most = int(settings.pop("max_gen_toks"))
        if most >= self.lm.network.context:
            raise BadSetting(
                f"a task asks for {most} new tokens, but {self.lm.name} has a context of {self.lm.network.context}; "
                "give --gen_kwargs max_gen_toks=…"
            )
        return {**settings, **({"stop": stop} if stop else {})}, most

    def _context(self, text: str, most: int) -> list[int]:
        """The last tokens of a context that leave room for `most` new ones."""
        tokens = self.tok_encode(text) if text else [self.prefix_token_id]
        return tokens[-(self.lm.network.context - most) :]

    def _spend(self, task: str) -> Spent:
        return self._spent.setdefault(task, Spent())


def _task(request: Instance) -> str:
    return request.task_name or ""


def _batch_size(given: int | str | None) -> int | None:
    """Prompts at once; None: all."""
    if given is None or str(given) == "auto":
        return None
    try:
        size = int(given)
    except ValueError:
        size = 0
    if size < 1:
        raise BadSetting(f"batch_size must be a number of prompts or auto, not {given!r}.")
    return size


def main() -> None:
    """`lm_eval` with the model "decodery"."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
