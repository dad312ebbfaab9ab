"""The draws of a run, recorded and handed in again: what would have come under another prompt, setting or model, had chance
been the same (counterfactuals: Chatzi et al. 2024, arXiv 2409.17027; Ravfogel et al. 2024, arXiv 2411.07180)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from decodery.errors import BadSetting
from decodery.sampling.chance.addressed import Addressed
from decodery.sampling.chance.base import DrawnSample, Source
from decodery.sampling.noise import Chance, Draw, Index, Numbers, Stage, fastest, inverse, unrolled

if TYPE_CHECKING:
    from torch import Tensor


class Replayed(Numbers):
    """Decides as the recorded draws of the same addresses did. Positions count from the end of the prompt, as prompts may
    differ.

    Raises BadSetting where there is no draw at an address, or one of another kind.
    """

    def __init__(self, draws: dict[tuple[int, Stage, Index], float | int], prompt: int):
        self._draws, self._prompt = draws, prompt

    def _recorded(self, position: int, stage: Stage, index: Index) -> float | int:
        place = position if stage is Stage.ORDER else position - self._prompt
        number = self._draws.get((place, stage, index))
        if number is None:
            told = f"draw {index} " if index else "draw "
            raise BadSetting(
                f"the recorded run has no {told}for {stage.name.lower()} at token {place + 1}; "
                f"it holds {len(self._draws)} draws."
            )
        return number

    def choose(
        self, probabilities: Tensor, position: int, stage: Stage, index: Index = 0, path: Sequence[int] = ()
    ) -> int:
        number = self._recorded(position, stage, index)
        self.note(position, stage, index, number)
        if isinstance(number, int):
            return fastest(probabilities.log(), unrolled(number, len(probabilities)))
        return inverse(probabilities, number)[0]

    def uniform(self, position: int, stage: Stage, index: Index = 0) -> float:
        number = self._recorded(position, stage, index)
        if isinstance(number, int):
            raise BadSetting(
                f"the recorded run raced at token {position - self._prompt + 1}, where one number is asked for."
            )
        return number

    def key(self, position: int, stage: Stage, index: Index = 0) -> int:
        number = self._recorded(position, stage, index)
        if not isinstance(number, int):
            raise BadSetting(
                f"the recorded run drew one number at token {position - self._prompt + 1}, where a race is asked for."
            )
        return number


@dataclass(frozen=True)
class Replay(Source):
    """The draws of one recorded sample; see `Recording`."""

    draws: tuple[Draw, ...] = ()

    name = "replay"
    summary = "The draws of a recorded run, handed in again (`Recording` records one)."
    by_name: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.draws:
            raise BadSetting(
                "chance replay needs the draws of a run; record one with chance=Recording(), and give Replay(draws)."
            )
        object.__setattr__(self, "draws", tuple(self.draws))

    def chance(self, sample: DrawnSample) -> Chance:
        return Replayed({(d.position, d.stage, d.index): d.number for d in self.draws}, sample.prompt)

    def refuses_samples(self, count: int) -> str | None:
        return "a recorded run is that of one sample" if count > 1 else None

    def spec(self) -> str:
        return f"{self.name} of {len(self.draws)} draws"


@dataclass(frozen=True)
class Recording(Source):
    """Another source, whose draws are kept. runs: the draws of each sample in the order in which they began, positions
    counted from the end of the prompt, for `Replay`."""

    source: Source = field(default_factory=Addressed)
    runs: list[_Run] = field(default_factory=list, compare=False)

    name = "recording"
    by_name: ClassVar[bool] = False

    summary = "Another source, whose draws are kept."

    def chance(self, sample: DrawnSample) -> Chance:
        chance = self.source.chance(sample)
        if not isinstance(chance, Numbers):
            raise BadSetting(f"chance {self.source.name} cannot be recorded.")
        chance.record = run = _Run(sample.prompt)
        self.runs.append(run)
        return chance

    def refuses_samples(self, count: int) -> str | None:
        return self.source.refuses_samples(count)

    @property
    def target_only(self) -> str:  # type: ignore[override]
        return self.source.target_only


class _Run(list[Draw]):
    """The draws of one sample. Positions of steps of a canvas are kept, others count from the end of the prompt."""

    def __init__(self, prompt: int):
        super().__init__()
        self._prompt = prompt

    def append(self, draw: Draw) -> None:
        place = draw.position if draw.stage is Stage.ORDER else draw.position - self._prompt
        super().append(Draw(place, draw.stage, draw.index, draw.number))
