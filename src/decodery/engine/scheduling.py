"""How tasks that run together share passes and memory."""

from __future__ import annotations

from dataclasses import dataclass

from decodery.engine.memory import parse_budget
from decodery.errors import BadSetting
from decodery.plain import plain


@dataclass(frozen=True)
class Scheduling:
    """How tasks that run together share passes and memory. None of it changes what a task gives, up to rounding.

    chunk: rows of prompts in one pass while several tasks run; None: by the cost curve; 0: prompts are scored whole;
    BadSetting where it is neither. watched: somebody reads tokens as they come, so a pass must not take long because of a
    prompt. share: beginnings that several tasks have in common are scored once. prefix_cache: bytes, within the KV budget,
    for beginnings of prompts that are over, so that later requests can go on from them.
    """

    chunk: int | None = None
    watched: bool = True
    share: bool = True
    prefix_cache: int = 0

    def __post_init__(self) -> None:
        chunk = plain(self.chunk)
        object.__setattr__(self, "chunk", chunk)
        if chunk is not None and (not isinstance(chunk, int) or isinstance(chunk, bool) or chunk < 0):
            raise BadSetting(f"prefill_chunk must be a number of tokens, or 0 for whole prompts, not {chunk!r}.")


@dataclass(frozen=True)
class Limits:
    """What the requests of one model may take. None of it changes what they give, up to rounding.

    kv_budget: most memory of the keys and values of all requests together, in bytes or as text ("2GB", "512MiB"); None: half of
    what is free when the first request comes. prefill_chunk: tokens of prompts in one pass; see `Scheduling.chunk`. Raises
    BadSetting where one of them is neither.
    """

    kv_budget: int | str | None = None
    prefill_chunk: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "kv_budget", parse_budget(self.kv_budget))
        object.__setattr__(self, "prefill_chunk", Scheduling(chunk=self.prefill_chunk).chunk)
