"""What a step of the law is, and all of them by name.

A step is a frozen dataclass in a file of its own: its fields are its settings, made with `setting`; its class attributes say
where it stands in an order, what it looks at and what it leaves alone. `apply` works on many rows at once. Steps of other
packages are registered at run time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from decodery.sampling.settings import Setting, settings_of

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.sampling.prefix import Prefix

PRESETS = ("hf", "vllm", "llama.cpp")
"""Orders of other libraries; a step says in `places` where it stands in them, as far as it stands elsewhere than by default.

hf: transformers' `GenerationMixin._get_logits_processor`: sequence bias, repetition, n-grams, bad words, least length, own
processors, temperature, then top-h, top-k, top-p, min-p, typical, epsilon and eta. vllm: `vllm/v1/sample/sampler.py`: allowed
tokens, bad words, least length, bias and own processors, then the penalties, temperature, min-p, and top-k with top-p.
llama.cpp: `common/sampling.cpp`: bias, penalties, DRY, top-n-sigma, top-k, tail-free (which it has no longer), typical, top-p,
min-p, XTC, and temperature last; mirostat, which there replaces all truncation, comes after it.
"""


class Step(ABC):
    """One step from raw scores to the law.

    The first setting switches it on: where it has its neutral value, the step is left out, and its other settings, which then
    could not act, are refused.
    """

    name: ClassVar[str]
    """In `order` and in messages; by habit that of its first setting."""
    place: ClassVar[float]
    """Where it stands in the default order: below 100 before all others, 100 to 199 what looks at the text, 200 temperature,
    beyond it truncation."""
    places: ClassVar[Mapping[str, float]] = {}
    """Preset -> place there, where it is another."""
    reads_prefix: ClassVar[bool] = False
    """Whether the tokens before a row matter, or their number."""
    counts_only: ClassVar[bool] = False
    """Of these, only their number."""
    draws: ClassVar[bool] = False
    """Whether it takes random decisions itself, by `Prefix.accept`, at addresses of its own."""
    makes_rows: ClassVar[bool] = False
    """Whether it leaves the rows that it is given as they are, and returns others. In front it saves the law a copy."""
    keeps_argmax: ClassVar[bool] = False
    """Whether the highest score stays where it is. Greedy decoding leaves such steps out."""
    only_forbids: ClassVar[bool] = False
    """Whether it leaves the scores that it does not forbid as they are. Then `allows` tells of one token."""
    guides: ClassVar[bool] = False
    """Whether it knows without a row what must come or may not, see `forced` and `may_follow`."""
    greedy_only: ClassVar[str] = ""
    """Why it is a rule of greedy decoding, and no law to sample from; empty: it is one."""

    @abstractmethod
    def apply(self, rows: Tensor, prefixes: Sequence[Prefix]) -> Tensor:
        """Processed scores [n, vocabulary] float32. rows: [n, vocabulary], which may be changed in place; what is forbidden is
        at minus infinity. prefixes: what stands before each row."""

    def allows(self, prefix: Prefix, token: int) -> bool:
        """Of a step that only forbids: whether it leaves the score of a token as it is. Raises what `apply` does."""
        raise ValueError(f"{self.name} does more than to forbid tokens")

    def forced(self, prefix: Prefix) -> Sequence[int]:
        """Tokens of which only the first may come next, then only the second, and so on, as far as this step sees. Speculation
        drafts them."""
        return ()

    def may_follow(self, prefix: Prefix, token: int) -> bool:
        """Whether a token may come next, as far as this step sees. Speculation drafts no others."""
        return True

    @classmethod
    def settings(cls) -> tuple[Setting, ...]:
        """Its settings; the first switches it on."""
        return settings_of(cls)

    @property
    def active(self) -> bool:
        """Whether it does anything."""
        first = self.settings()[0]
        return bool(getattr(self, first.name) != first.neutral)

    @property
    def uses_prefix(self) -> bool:
        """Whether its work depends on what stands before a row."""
        return self.reads_prefix or self.draws


class StatefulStep(Step):
    """A step that carries a state along the text. The state follows forks and drafts, and is rolled back with them."""

    reads_prefix: ClassVar[bool] = True

    @abstractmethod
    def begin(self, prompt: Sequence[int]) -> Any:
        """The state before the first token of the output. States are never changed, but replaced."""

    @abstractmethod
    def advance(self, state: Any, scores: Tensor, token: int) -> Any:
        """The state after `token` was taken. scores: [vocabulary] the finished scores of the law that it was taken from."""


_STEPS: dict[str, type[Step]] = {}
_SETTINGS: dict[str, Setting] = {}
"""In the default order of their steps; a request looks one up for every token."""


def register(step: type[Step]) -> type[Step]:
    """Make a step known, with its settings; as a decorator, or called for a step of another package. Raises ValueError where
    the name of the step or of a setting is taken, no setting switches it on, or it is not whole."""
    taken = [setting.name for setting in step.settings() if setting.name in _SETTINGS]
    if step.name in _STEPS or taken:
        raise ValueError(f"{step.name} is registered already, or its setting {' or '.join(taken)} is another step's")
    if not step.settings():
        raise ValueError(f"{step.name} has no setting that switches it on")
    for name in ("begin", "advance"):
        if hasattr(step, name) and not issubclass(step, StatefulStep):
            raise ValueError(f"{step.name} has {name}, which is never asked for; derive it from StatefulStep")
    if step.__abstractmethods__:
        raise ValueError(f"{step.name} has no {' and no '.join(sorted(step.__abstractmethods__))}")
    _STEPS[step.name] = step
    _collect_settings()
    return step


def unregister(step: type[Step]) -> None:
    """Forget a step again."""
    del _STEPS[step.name]
    _collect_settings()


def _collect_settings() -> None:
    _SETTINGS.clear()
    for step in sorted(_STEPS.values(), key=lambda step: step.place):
        _SETTINGS.update((setting.name, setting) for setting in step.settings())


def steps() -> Mapping[str, type[Step]]:
    """All steps by name."""
    return _STEPS


def step_settings() -> Mapping[str, Setting]:
    """The settings of all steps by name, in the default order of their steps."""
    return _SETTINGS


def default_order(preset: str | None = None) -> tuple[str, ...]:
    """The names of all steps in the default order, or in that of a preset."""
    place = {name: step.places.get(preset or "", step.place) for name, step in _STEPS.items()}
    return tuple(sorted(_STEPS, key=lambda name: (place[name], name)))
