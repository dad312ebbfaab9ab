"""What the tests of the scheduler share: methods written in the test, and jobs run to their end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from decodery.engine.job import Job
from decodery.engine.method import Decoding, Exactness, Method
from decodery.engine.registry import method as as_method
from decodery.engine.scheduler import Scheduler
from decodery.engine.settings import Settings
from decodery.language_model import LanguageModel


@dataclass(frozen=True)
class Scripted(Method):
    """A method whose `decode` is a function of the test."""

    name: ClassVar[str] = "scripted"
    title: ClassVar[str] = "Scripted"
    paper: ClassVar[str] = "none"
    exactness: ClassVar[Exactness] = Exactness.QUALITY_CHANGING
    family: ClassVar[str] = "testing"

    def __init__(self, decode: Callable[[Job], Decoding]):
        object.__setattr__(self, "_decode", decode)

    def decode(self, job: Job) -> Decoding:
        decoding: Decoding = self._decode(job)  # type: ignore[attr-defined]
        return decoding


def new_job(lm: LanguageModel, prompt: Sequence[int], request: int = 0, **settings: Any) -> Job:
    return Job(lm, prompt, Settings.of({"max_new_tokens": 12, **settings}, lm.network.vocabulary), request)


def run(*pairs: tuple[Job, Method | str]) -> Scheduler:
    scheduler = Scheduler()
    for job, method in pairs:
        scheduler.submit(job, as_method(method))
    scheduler.run()
    assert scheduler.active == 0
    assert all(job.finish_reason is not None for job, _ in pairs)
    return scheduler
