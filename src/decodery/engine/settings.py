"""What a user may set for one generation, whatever the method. Unknown names and bad values are errors."""

from __future__ import annotations

import dataclasses
import math
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from decodery.engine.plain import plain
from decodery.engine.target import Target, target
from decodery.errors import BadSetting, near
from decodery.sampling.law import _STEPS, LawSettings

ALIASES = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "min_tokens": "min_new_tokens",
    "stop_strings": "stop",
    "num_return_sequences": "n",
    "logits_processor": "processors",
    "top_logprobs": "logprobs",
}
"""Names of transformers, vLLM and OpenAI that mean a setting of ours."""


@dataclass(frozen=True)
class Settings(LawSettings):
    """Settings of one request: those of the law (`LawSettings`) and those of the output.

    max_new_tokens: most tokens to generate. min_new_tokens: no end token, stop string or stopping criterion ends the output
    before that many; a stop string that is complete earlier is a part of the text. seed: fixes every random draw; None draws a
    fresh seed, which the reply names. stop: strings that end the output (not included in it); they may hold special tokens,
    which the output does not show. stop_token_ids: further tokens that end it.
    ignore_eos: the model's own end tokens do not end the output. echo: the reply's text begins with the prompt.
    n: how many independent samples. logprobs: None, or how many alternatives to report with each token's own log
    probabilities (0: none), always the target's, raw and processed. stopping_criteria: callables (input_ids [1, n],
    scores) -> bool, as in transformers. session: name of the memory that stateful methods share between requests.
    target: what is scored in place of the model after the prompt alone, as text such as "guidance(scale=1.5)"; see
    `engine.target`.
    """

    max_new_tokens: int = 128
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    echo: bool = False
    n: int = 1
    logprobs: int | None = None
    stopping_criteria: tuple[Callable[..., Any], ...] = ()
    session: str = "default"
    target: Target | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any], vocabulary: int) -> Settings:
        """Check and build settings from names as a user gives them.

        Aliases of other libraries are understood; `do_sample` is: False means temperature 0, True means temperature 1
        where none is given. Raises BadSetting with one sentence.
        """
        given: dict[str, Any] = {}
        names: dict[str, str] = {}
        for name, value in values.items():
            ours = ALIASES.get(name, name)
            if ours in given:
                raise BadSetting(f"{names[ours]} and {name} mean the same setting; give one of them.")
            given[ours], names[ours] = value, name
        given = {name: plain(value) for name, value in given.items()}
        sample = given.pop("do_sample", None)
        if sample is not None:
            if not isinstance(sample, bool):
                raise BadSetting(f"do_sample must be True or False, not {sample!r}.")
            if sample and given.get("temperature") == 0:
                raise BadSetting("do_sample=True contradicts temperature=0, which is greedy decoding.")
            given["temperature"] = given.get("temperature", 1.0) if sample else 0.0
        known = {field.name for field in dataclasses.fields(cls)}
        for name in given:
            if name not in known:
                raise BadSetting(f"{name!r} is not a setting; {near(name, known | set(ALIASES))}")
        settings = cls(**{name: _convert(name, value, vocabulary) for name, value in given.items()})
        if settings.min_new_tokens > settings.max_new_tokens:
            least, most = settings.min_new_tokens, settings.max_new_tokens
            raise BadSetting(f"min_new_tokens is {least}, but max_new_tokens is only {most}.")
        return settings

    def with_seed(self) -> Settings:
        """These settings with a seed: the given one, or a fresh one."""
        return self if self.seed is not None else dataclasses.replace(self, seed=secrets.randbits(48))


def _real(low: float, high: float = math.inf, *, open_low: bool = False) -> Callable[[str, Any, int], float]:
    def check(name: str, value: Any, vocabulary: int) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise BadSetting(f"{name} must be a finite number, not {value!r}.")
        if value < low or value > high or (open_low and value == low):
            border = "above" if open_low else "at least"
            top = f" and at most {high:g}" if math.isfinite(high) else ""
            raise BadSetting(f"{name} must be {border} {low:g}{top}, not {value!r}.")
        return float(value)

    return check


def _integer(low: int, high: int | None = None) -> Callable[[str, Any, int], int]:
    def check(name: str, value: Any, vocabulary: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise BadSetting(f"{name} must be a whole number, not {value!r}.")
        if value < low or (high is not None and value > high):
            top = f" and at most {high}" if high is not None else ""
            raise BadSetting(f"{name} must be at least {low}{top}, not {value}.")
        return value

    return check


def _optional(check: Callable[[str, Any, int], Any]) -> Callable[[str, Any, int], Any]:
    return lambda name, value, vocabulary: None if value is None else check(name, value, vocabulary)


def _flag(name: str, value: Any, vocabulary: int) -> bool:
    if not isinstance(value, bool):
        raise BadSetting(f"{name} must be True or False, not {value!r}.")
    return value


def _stop(name: str, value: Any, vocabulary: int) -> tuple[str, ...]:
    strings = (value,) if isinstance(value, str) else tuple(() if value is None else value)
    if any(not isinstance(text, str) or not text for text in strings):
        raise BadSetting(f"stop must be one or more non-empty strings, not {value!r}.")
    for text in strings:
        if any("\ud800" <= sign <= "\udfff" for sign in text):
            raise BadSetting(f"stop must be valid Unicode, which {text!r} is not: it holds half a surrogate pair.")
    return strings


def _token(name: str, value: Any, vocabulary: int) -> int:
    value = plain(value)
    try:
        if isinstance(value, float | bool):
            raise ValueError
        token = int(value)  # keys of JSON objects are strings
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise BadSetting(f"{name} needs token ids, which are whole numbers, not {value!r}.") from None
    if not 0 <= token < vocabulary:
        raise BadSetting(f"{name} names token {value!r}, but the model's tokens are 0 to {vocabulary - 1}.")
    return token


def _tokens(name: str, value: Any, vocabulary: int) -> tuple[int, ...]:
    if isinstance(value, str):
        raise BadSetting(f"{name} needs token ids, which are whole numbers, not {value!r}.")
    ids = (value,) if isinstance(value, int) else tuple(() if value is None else value)
    return tuple(_token(name, token, vocabulary) for token in ids)


def _bias(name: str, value: Any, vocabulary: int) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise BadSetting(f"logit_bias must map token ids to numbers, not be {value!r}.")
    bias = {}
    for token, given in value.items():
        number = plain(given)
        if isinstance(number, bool) or not isinstance(number, int | float) or math.isnan(number) or number == math.inf:
            raise BadSetting(f"logit_bias of token {token} must be a number below infinity, not {number!r}.")
        bias[_token(name, token, vocabulary)] = float(number)
    return bias


def _callables(name: str, value: Any, vocabulary: int) -> tuple[Callable[..., Any], ...]:
    items = (value,) if callable(value) and not isinstance(value, list | tuple) else tuple(value or ())
    if any(not callable(item) for item in items):
        raise BadSetting(f"{name} must be callables (input_ids, scores), not {value!r}.")
    return items


def _order(name: str, value: Any, vocabulary: int) -> tuple[str, ...]:
    order = tuple(value)
    for step in order:
        if step not in _STEPS:
            raise BadSetting(f"order names {step!r}, which is no step of the law; {near(str(step), _STEPS)}")
    if len(set(order)) != len(order) or set(order) != set(_STEPS):
        raise BadSetting(f"order must name each step of the law exactly once: {', '.join(sorted(_STEPS))}.")
    return order


def _text(name: str, value: Any, vocabulary: int) -> str:
    if not isinstance(value, str):
        raise BadSetting(f"{name} must be a string, not {value!r}.")
    return value


_CHECKS: dict[str, Callable[[str, Any, int], Any]] = {
    "temperature": _real(0.0),
    "top_k": _integer(0),
    "top_p": _real(0.0, 1.0, open_low=True),
    "min_p": _real(0.0, 1.0),
    "repetition_penalty": _real(0.0, open_low=True),
    "presence_penalty": _real(-100.0, 100.0),
    "frequency_penalty": _real(-100.0, 100.0),
    "logit_bias": _bias,
    "min_new_tokens": _integer(0),
    "processors": _callables,
    "order": _order,
    "max_new_tokens": _integer(1),
    "seed": _optional(_integer(-(2**63), 2**64 - 1)),
    "stop": _stop,
    "stop_token_ids": _tokens,
    "ignore_eos": _flag,
    "echo": _flag,
    "n": _integer(1, 1024),
    "logprobs": _optional(_integer(0, 1000)),
    "stopping_criteria": _callables,
    "session": _text,
    "target": lambda name, value, vocabulary: None if value is None else target(value),
}


def _convert(name: str, value: Any, vocabulary: int) -> Any:
    try:
        return _CHECKS[name](name, value, vocabulary)
    except (TypeError, OverflowError):
        raise BadSetting(f"{name} cannot be {value!r}.") from None
