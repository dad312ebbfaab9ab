"""Beam search, as transformers' `generate(num_beams=…)` does it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from decodery.engine.method import Decoding, Exactness, Method, parameter
from decodery.errors import BadParameter
from decodery.search.beams import DRAWS_NOTHING, WIDEST, Ending, beam_caches, check_width, concluded, searched

if TYPE_CHECKING:
    from decodery.engine.request import Request
    from decodery.models.scorer import Scorer


@dataclass(frozen=True)
class BeamSearch(Method):
    """Several texts grow side by side, and after each token the likeliest go on: likelier texts than greedy decoding finds, for
    as many rows per token."""

    name: ClassVar[str] = "beam-search"
    title: ClassVar[str] = "Beam search"
    paper: ClassVar[str] = "Lowerre, The Harpy speech recognition system, 1976; as in transformers' generate"
    exactness: ClassVar[Exactness] = Exactness.QUALITY_CHANGING
    family: ClassVar[str] = "search"
    together: ClassVar[bool] = True
    refuses: ClassVar[Mapping[str, str]] = dict.fromkeys(("temperature", "top_k", "top_p", "min_p"), DRAWS_NOTHING)

    beams: int = parameter(
        4, "texts that grow side by side; with 1 it is greedy decoding but for a repetition penalty", low=1, high=WIDEST
    )
    length_penalty: float = parameter(
        1.0, "finished texts are ranked by log probability over length to this power; above 0 favours long texts"
    )
    early_stopping: bool | str = parameter(
        False,
        "when to end: True: with as many finished texts as beams; False: when the best beam ranks no better than them; never: "
        "when it cannot come to rank better",
    )

    def check(self) -> None:
        if self.early_stopping not in (True, False, "never"):
            raise BadParameter(
                f"{self.name}: early_stopping must be True, False or never, not {self.early_stopping!r}."
            )

    def admit(self, request: Request) -> None:
        check_width(self.name, request, self.beams)

    def caches(self, request: Request) -> list[tuple[Scorer, int]]:
        return beam_caches(request, self.beams)

    def decode(self, request: Request) -> Decoding:
        ending = Ending(self.length_penalty, self.early_stopping, request.settings.max_new_tokens)
        [group] = yield from searched(request, 1, self.beams, ending)
        concluded(request, group.finished, self.name)
