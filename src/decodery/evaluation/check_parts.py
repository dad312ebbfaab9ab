"""What the experiments of `decodery check` share: one part of a report, and how a part comes about."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from decodery.engine.method import Exactness
from decodery.errors import BadInput, BadParameter, BadPrompt, BadSetting, MethodUnavailable, Refused, UnknownModel
from decodery.language_model import LanguageModel

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many steps of it are done, and how many there are."""


@dataclass(frozen=True)
class CheckPart:
    """One experiment. passed: None where it gives no verdict, only numbers. detail: one sentence for people."""

    name: str
    passed: bool | None
    detail: str
    numbers: dict[str, Any] = field(default_factory=dict)


def attempt(name: str, experiment: Callable[[], CheckPart], where: str) -> CheckPart:
    """The experiment's part. A method that cannot run there gets no verdict; one that breaks down is refuted.

    where: on what it was tried, as in "does not run {where}".
    """
    try:
        part = experiment()
    except (UnknownModel, MethodUnavailable, Refused, BadParameter, BadInput, BadPrompt) as error:
        return CheckPart(name, None, f"does not run {where}: {error}")
    except Exception as error:  # whatever a method's own code raises is a finding
        return CheckPart(name, False, f"broke down with {type(error).__name__}: {error}")
    return dataclasses.replace(part, name=name)


def undecided(exactness: Exactness, part: CheckPart) -> CheckPart:
    """The part with its numbers and without a verdict, where the method promises nothing about it."""
    return CheckPart(part.name, None, f"{part.detail}; {exactness} promises nothing here", part.numbers)


def dtype_of(lm: LanguageModel) -> str:
    """The type in which its network computes, such as "float32"."""
    return str(lm.network.dtype).removeprefix("torch.")


def random_prompts(
    lm: LanguageModel, prompts: int | Sequence[str], seed: int, length: int, reserved: Collection[int]
) -> list[list[int]]:
    """Token ids of own prompts, or prompts of `length` random tokens without `reserved` ones: a small model's vocabulary knows
    few texts."""
    if not isinstance(prompts, int):
        return [lm.tokenize(text) for text in prompts]
    if prompts < 1:
        raise BadSetting(f"prompts must be at least 1, not {prompts}.")
    hidden = {*reserved, *lm.stop_ids}
    known = [token for token in range(lm.network.vocabulary) if token not in hidden]
    generator = np.random.Generator(np.random.Philox(key=seed))
    return [[known[i] for i in generator.integers(len(known), size=length)] for _ in range(prompts)]
